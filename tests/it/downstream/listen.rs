//! Tests the sockets that Larder listens on.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use crate::support::{Origin, eventually, larder, run};

#[test]
fn a_port_that_is_taken_is_one_clear_line() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("server.listen={}", taken.local_addr().expect("an address"));
    for threads in ["server.threads=1", "server.threads=4"] {
        let ran = run(&mut larder(&[&address, threads, "durable.url=off", "admin.listen=off"]));
        let told = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(ran.status.code(), Some(1), "{told}");
        assert!(told.starts_with("larder: can't listen on 127.0.0.1:"), "{told}");
        assert!(told.contains("(server.listen)") && told.contains("choose another port"), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
}

#[test]
fn sockets_are_for_whom_they_are_configured() {
    let origin = Origin::cacheable();
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    for (mode, expected) in [(None, 0o660), (Some("0600"), 0o600), (Some("666"), 0o666)] {
        let listen = format!("server.listen=127.0.0.1:0,unix:{}", path("public").display());
        let admin = format!("admin.listen=unix:{}", path("admin").display());
        let mode = mode.map(|mode| format!("server.socket_mode={mode}"));
        let upstream = format!("upstream.url=http://{}", origin.address);
        let mut sets = vec![listen.as_str(), &admin, &upstream, "durable.url=off"];
        sets.extend(mode.as_deref());
        let mut child = larder(&sets).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        eventually("it is up", || UnixStream::connect(path("admin")).is_ok());
        let mode_of = |name: &str| std::fs::metadata(path(name)).expect("it is there").permissions().mode() & 0o777;
        assert_eq!((mode_of("public"), mode_of("admin")), (expected, 0o600));
        // The unix socket admits every client, by any name.
        let mut stream = UnixStream::connect(path("admin")).expect("it listens");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let purged = larder(&[&admin]).args(["purge", "--all"]).output().expect("it runs");
        assert!(purged.status.success());
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        assert!(path("public").exists(), "left over, and replaced in the next round");
    }
}
