//! Tests the signals of a running `larder`.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{Origin, Process, eventually, larder, out_of, signal_to};

#[test]
fn signals_without_a_meaning_are_told_and_have_no_effect() {
    let origin = Origin::cacheable();
    let mut running = Process::start(&origin.url(), &["durable.url=off"]);
    for (signal, name) in [("-HUP", "SIGHUP"), ("-USR1", "SIGUSR1"), ("-USR2", "SIGUSR2")] {
        running.signal(signal);
        eventually("it is told", || running.log().contains(&format!("{name}: ")));
        assert_eq!(running.get("/a", "").status(), 200, "{name}");
    }
    assert!(running.log().contains("SIGHUP: there is no reload yet"), "{}", running.log());
    running.signal("-PIPE");
    assert_eq!(running.get("/a", "").status(), 200);
    running.signal("-TERM");
    assert_eq!(running.wait(), Some(0));
}

#[test]
fn signals_that_come_together_drain_and_a_later_one_of_the_same_kind_ends_at_once() {
    for (first, second, later, code) in [
        ("-TERM", "-INT", None, 0),
        ("-INT", "-TERM", None, 0),
        ("-TERM", "-TERM", None, 0),
        ("-INT", "-INT", Some("-INT"), 1),
        ("-TERM", "-INT", Some("-TERM"), 1),
    ] {
        let (origin, gate) = Origin::gated();
        let mut running = Process::start(&origin.url(), &["durable.url=off"]);
        let mut busy = running.client();
        busy.ask("GET", "/slow", "");
        origin.requests.wait_for(1);
        running.signals(&[first, second]);
        eventually("it stops", || running.log().contains("stopping: no new connections"));
        if let Some(later) = later {
            // A second has to pass; what ends it is the signal.
            std::thread::sleep(Duration::from_millis(1100));
            running.signal(later);
        } else {
            // It is the same connection's answer that says that both were taken.
            gate.open();
            assert_eq!(busy.answer().text(), "/slow", "{first} {second}");
        }
        assert_eq!(running.wait(), Some(code), "{first} {second} {later:?}: {}", running.log());
        gate.open();
    }
}

#[test]
fn a_signal_before_it_is_up_ends_it_with_a_word() {
    // A bucket that takes the connection and never answers keeps the start waiting.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("durable.endpoint_url=http://{}", silent.local_addr().expect("an address"));
    for signal in ["-TERM", "-INT"] {
        let sets = ["durable.url=s3://bucket", "durable.region=x", "durable.path_style=true", &endpoint];
        let child = larder(&sets).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
        let accepted = silent.accept().expect("the bucket is asked");
        signal_to(&child, "-HUP");
        signal_to(&child, signal);
        let (code, _, told) = out_of(&child.wait_with_output().expect("it ends"));
        assert_eq!(code, Some(0), "{told}");
        assert!(told.contains("stopped before it was up"), "{told}");
        drop(accepted);
    }
}

#[test]
fn of_many_signals_to_end_a_tied_command_gets_one() {
    let script = "trap 'echo told' TERM; exec 3<&0; cat <&3 >/dev/null & reader=$!; echo up; \
                  until wait $reader; do :; done; exit 7";
    let mut tied = Command::new(env!("CARGO_BIN_EXE_larder"))
        .args(["tied", "--once", &std::process::id().to_string(), "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(tied.stdout.take().expect("piped")).lines().map(|line| line.expect("a line"));
    assert_eq!(lines.next().as_deref(), Some("up"));
    signal_to(&tied, "-TERM");
    assert_eq!(lines.next().as_deref(), Some("told"));
    // As the kernel does when several threads of the parent end.
    for _ in 0..5 {
        signal_to(&tied, "-TERM");
    }
    drop(tied.stdin.take());
    assert_eq!(lines.next(), None);
    assert_eq!(tied.wait().expect("it ends").code(), Some(7));
}
