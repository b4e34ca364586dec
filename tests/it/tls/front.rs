//! Tests a listener with TLS by clients of other makers, and what the command line says of its files.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use super::curl::curl;
use crate::support::{Authority, Client, Larder, Origin, eventually, larder, out_of, run};

/// Runs `openssl s_client`, which sends a request, and returns what it says.
fn openssl(authority: &Authority, address: SocketAddr, arguments: &[&str]) -> String {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &address.to_string(), "-servername", "site.example", "-CAfile"]);
    command.arg(authority.file()).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("openssl is here");
    // A refused handshake ends it before the request.
    let _ = child.stdin.take().expect("piped").write_all(b"GET /a HTTP/1.0\r\nHost: site.example\r\n\r\n");
    let (_, out, error) = out_of(&child.wait_with_output().expect("it ends"));
    out + &error
}

#[test]
fn curl_speaks_the_versions_of_http_that_it_is_told_to() {
    let (authority, origin) = (Authority::new(), Origin::cacheable());
    let larder = Larder::new(&origin, &authority.listeners());
    for (arguments, version) in [
        (&["--http1.0"][..], "1"),
        (&["--http1.1"], "1.1"),
        (&["--http2"], "2"),
        (&["--no-alpn"], "1.1"),
        (&["--tls-max", "1.2"], "2"),
        (&["--tlsv1.3"], "2"),
    ] {
        let (code, out, error) = out_of(&curl(&authority, larder.address_of(1), arguments));
        assert_eq!((code, out.as_str()), (Some(0), format!("/a {version}").as_str()), "{arguments:?}: {error}");
    }
}

#[test]
fn openssl_resumes_its_session_in_either_version() {
    let (authority, origin) = (Authority::new(), Origin::cacheable());
    let larder = Larder::new(&origin, &authority.listeners());
    let session = authority.path("session").display().to_string();
    for version in ["-tls1_2", "-tls1_3"] {
        let first = openssl(&authority, larder.address_of(1), &[version, "-ign_eof", "-sess_out", &session]);
        assert!(first.contains("Verify return code: 0 (ok)") && first.contains(" 200 OK"), "{first}");
        let second = openssl(&authority, larder.address_of(1), &[version, "-ign_eof", "-sess_in", &session]);
        assert!(second.contains("Reused, ") && second.contains(" 200 OK"), "{second}");
    }
    let old = openssl(&authority, larder.address_of(1), &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]);
    assert!(old.contains("alert protocol version"), "{old}");
    assert_eq!(larder.metric("larder_tls_handshake_failures_total{reason=\"no-shared-version\"}"), 1);
}

#[test]
fn a_request_without_tls_is_told_where_it_has_come_to() {
    let (authority, origin) = (Authority::new(), Origin::cacheable());
    let larder = Larder::new(&origin, &authority.listeners());
    let answer = Client::connect(larder.address_of(1)).get("/a", "");
    assert_eq!((answer.status(), answer.text().as_str()), (400, "this port speaks TLS: use https://\n"));
    eventually("it is counted", || larder.metric("larder_tls_handshake_failures_total{reason=\"plain-http\"}") == 1);
}

#[test]
fn half_handshakes_keep_nobody_waiting_and_end() {
    let (authority, origin) = (Authority::new(), Origin::cacheable());
    let larder = Larder::new(&origin, &format!("{}\ntls.handshake_timeout=300ms", authority.listeners()));
    let address = larder.address_of(1);
    let mut half: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(address).expect("it connects")).collect();
    for (n, stream) in half.iter_mut().enumerate() {
        stream.write_all(&b"\x16\x03\x01\x02\x00\x01"[..n % 6]).expect("it writes");
    }
    assert_eq!(authority.connect(address, None).expect("it connects").get("/a", "").status(), 200);
    for mut stream in half {
        assert_eq!(stream.read(&mut [0; 1]).expect("it is closed"), 0);
    }
    assert_eq!(larder.metric("larder_tls_handshake_failures_total{reason=\"timeout\"}"), 100);
}

#[test]
fn check_tells_of_the_files_and_a_mistake_keeps_larder_from_starting() {
    let authority = Authority::new();
    let listeners = authority.listeners();
    let sets: Vec<&str> = listeners.lines().collect();
    let (code, out, error) = out_of(&run(larder(&sets).arg("check")));
    assert_eq!((code, out.lines().last()), (Some(0), Some("ok")), "{out}{error}");
    assert!(out.contains("site.pem: for site.example, until "), "{out}");
    std::fs::write(authority.path("site.key"), authority.server(&[]).key).expect("it is written");
    for command in [&["check"][..], &["run"]] {
        let (code, _, error) = out_of(&run(larder(&sets).args(command)));
        assert!(code.is_some_and(|code| code > 0) && error.contains("site.key: it is not the key"), "{code:?} {error}");
    }
    let (code, _, error) = out_of(&run(larder(&["server.listen=https://127.0.0.1:0"]).arg("check")));
    assert!(code == Some(2) && error.contains("tls.certificate: there is none for"), "{error}");
    let conflicts = ["server.allowed_fields=X_Client_Subject", "server.trusted_fields=X-Client-Subject"];
    for conflict in conflicts {
        let (code, _, error) =
            out_of(&run(larder(&["tls.client_subject_field=X-Client-Subject", conflict]).arg("check")));
        assert!(code == Some(2) && error.contains("take it out there"), "{error}");
    }
}
