//! Tests what an operator relies on, with the real binary: the log whatever becomes of standard error, signals,
//! sockets, the admin listener's door, messages, and the command line.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::binary::{Process, larder};
use crate::support::{Client, Gate, Larder, Origin, eventually, metric, post};

fn cacheable() -> Origin {
    Origin::new(|seen, reply| reply.send(200, "Cache-Control: max-age=600", seen.path()))
}

/// A free port of this machine. Somebody else may take it; nobody here does.
fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address")
}

/// A Larder that says nothing of where it listens.
struct Mute {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Mute {
    fn start(upstream: &str, stderr: Stdio, sets: &[&str]) -> Self {
        let (address, admin) = (free_port(), free_port());
        let own = [
            format!("server.listen={address}"),
            format!("admin.listen={admin}"),
            format!("upstream.url={upstream}"),
            "admin.hosts=site.example".to_owned(),
            "durable.url=off".to_owned(),
            "server.threads=2".to_owned(),
        ];
        let all: Vec<&str> = own.iter().map(String::as_str).chain(sets.iter().copied()).collect();
        let child = larder(&all).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().expect("it starts");
        let this = Self { child, address, admin };
        eventually("it is up", || std::net::TcpStream::connect(address).is_ok());
        this
    }

    fn signal(&self, signal: &str) {
        signal_to(&self.child, signal);
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal_to(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill is there").success());
}

fn out_of(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Every request is served, and SIGTERM drains, though every request has a line that can't be written.
fn serves_and_drains(mut larder: Mute, origin: &Origin, gate: &Gate) {
    let mut client = Client::connect(larder.address);
    for n in 0..3000 {
        let path = format!("/{}/{}", n % 300, "x".repeat(200));
        assert_eq!(client.get(&path, "User-Agent: test").text(), path);
    }
    let mut operator = Client::connect(larder.admin);
    assert_eq!(operator.get("/readyz", "").status(), 200);
    assert_eq!(operator.get("/healthz", "").status(), 200);
    let mut busy = Client::connect(larder.address);
    let asked = origin.count();
    busy.ask("GET", "/slow", "");
    origin.requests.wait_for(asked + 1);
    larder.signal("-TERM");
    eventually("new connections are refused", || std::net::TcpStream::connect(larder.address).is_err());
    gate.open();
    assert_eq!(busy.answer().text(), "/slow", "what is under way is finished");
    assert_eq!(larder.child.wait().expect("it ends").code(), Some(0));
}

fn gated() -> (Origin, Gate) {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::new(move |seen, reply| {
        if seen.path() == "/slow" {
            held.wait();
        }
        reply.send(200, "Cache-Control: max-age=600", seen.path());
    });
    (origin, gate)
}

#[test]
fn a_log_that_cannot_be_written_harms_no_request_and_no_stop() {
    for format in ["text", "json"] {
        let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let sets = ["log.access=true", &format!("log.format={format}")];
        let (origin, gate) = gated();
        let upstream = format!("http://{}", origin.address);
        let larder = Mute::start(&upstream, full().into(), &sets);
        let admin = larder.admin;
        Client::connect(larder.address).get("/a", "");
        eventually("lost lines are counted", || metric(admin, "larder_log_lines_dropped_total") > 0);
        serves_and_drains(larder, &origin, &gate);

        // A pipe whose reader is gone.
        let (origin, gate) = gated();
        let upstream = format!("http://{}", origin.address);
        let mut larder = Mute::start(&upstream, Stdio::piped(), &sets);
        drop(larder.child.stderr.take());
        serves_and_drains(larder, &origin, &gate);

        // A pipe that nobody reads, filled.
        let (origin, gate) = gated();
        let upstream = format!("http://{}", origin.address);
        let mut larder = Mute::start(&upstream, Stdio::piped(), &sets);
        let unread = larder.child.stderr.take();
        serves_and_drains(larder, &origin, &gate);
        drop(unread);
    }
}

#[test]
fn lost_lines_are_told_once_somebody_reads_again() {
    let origin = cacheable();
    let larder = &mut Mute::start(&format!("http://{}", origin.address), Stdio::piped(), &["log.access=true"]);
    let mut client = Client::connect(larder.address);
    let path = format!("/{}", "x".repeat(900));
    let dropped = || metric(larder.admin, "larder_log_lines_dropped_total");
    while dropped() == 0 {
        for _ in 0..500 {
            client.get(&path, "");
        }
    }
    let mut reader = larder.child.stderr.take().expect("piped");
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (mut all, mut some) = (Vec::new(), vec![0; 65536]);
        while let Ok(n @ 1..) = reader.read(&mut some) {
            all.extend_from_slice(&some[..n]);
            let text = String::from_utf8_lossy(&all);
            if let Some(line) = text.lines().find(|line| line.contains(" log line")) {
                let _ = sender.send(line.to_owned());
            }
        }
    });
    let line = receiver.recv_timeout(Duration::from_secs(30)).expect("it is told");
    assert!(line.contains("lost: standard error took them more slowly than they came"), "{line}");
}

#[test]
fn a_command_whose_output_or_error_is_closed_or_full_does_not_panic() {
    let origin = cacheable();
    let running = Larder::new(&origin, "");
    let admin = format!("admin.listen={}", running.admin);
    let explain = ["explain", "http://site.example/a"];
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let run = |args: &[&str], stdout: Stdio, stderr: Stdio| {
        let mut child =
            larder(&[&admin, "durable.url=off"]).args(args).stdout(stdout).stderr(stderr).spawn().expect("it runs");
        // Nobody reads.
        drop((child.stdout.take(), child.stderr.take()));
        child.wait().expect("it ends").code()
    };
    for args in [&explain[..], &["check"], &["purge", "http://site.example/a"]] {
        assert_eq!(run(args, Stdio::piped(), Stdio::piped()), Some(0), "{args:?}: a reader that has enough");
        assert_eq!(run(args, full().into(), full().into()), Some(1), "{args:?}: what can't be said");
    }
    for (args, code) in
        [(&["check", "--set", "a.b=1"][..], 2), (&["run", "--set", "a.b=1"], 2), (&["purge"], 2), (&["nonsense"], 2)]
    {
        assert_eq!(run(args, Stdio::null(), full().into()), Some(code), "{args:?}");
        assert_eq!(run(args, Stdio::null(), Stdio::piped()), Some(code), "{args:?}");
    }
}

#[test]
fn signals_without_a_meaning_are_told_and_have_no_effect() {
    let origin = cacheable();
    let mut running = Process::start(&format!("http://{}", origin.address), &["durable.url=off"]);
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
        let (origin, gate) = gated();
        let mut running = Process::start(&format!("http://{}", origin.address), &["durable.url=off"]);
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
fn sockets_are_for_whom_they_are_configured() {
    let origin = cacheable();
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

#[test]
fn the_admin_listener_answers_its_own_names_and_no_web_page() {
    let origin = cacheable();
    let larder = Larder::new(&origin, "admin.hosts=[\"metrics.example\"]");
    let ask = |head: &str| {
        let mut client = Client::connect(larder.admin);
        client.raw(head);
        client.answer()
    };
    for (head, status) in [
        ("GET /metrics HTTP/1.1\r\nHost: localhost:1\r\n\r\n", 200),
        ("GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 200),
        ("GET /metrics HTTP/1.1\r\nHost: metrics.example\r\n\r\n", 200),
        ("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        ("GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 403),
        ("GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        ("GET /metrics HTTP/1.1\r\n\r\n", 400),
        ("GET /metrics HTTP/1.0\r\n\r\n", 400),
        ("GET /metrics HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: cross-site\r\n\r\n", 403),
        ("GET /explain?url=http://h/ HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: same-site\r\n\r\n", 403),
        ("PURGE /a HTTP/1.1\r\nHost: evil.example\r\n\r\n", 200),
        ("PURGE /a HTTP/1.1\r\nHost: evil.example\r\nSec-Fetch-Site: cross-site\r\n\r\n", 403),
        ("PURGE /a HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n", 400),
        ("PURGE http://site.example/a HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        ("PURGE http://site.example/a HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        ("GET /healthz HTTP/1.1\r\nHost: evil.example\r\nSec-Fetch-Site: cross-site\r\n\r\n", 200),
        ("GET /readyz HTTP/1.0\r\n\r\n", 200),
        ("GET /readyz HTTP/1.1\r\nHost: evil.example\r\n\r\n", 200),
        ("DELETE /readyz HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
    ] {
        assert_eq!(ask(head).status(), status, "{head}");
    }
    let refused = ask("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n").text();
    assert!(refused.contains("admin.hosts") && refused.contains("evil.example"), "{refused}");
    for (path, allow) in [
        ("/metrics", "GET, HEAD"),
        ("/healthz", "GET, HEAD"),
        ("/readyz", "GET, HEAD"),
        ("/explain", "GET, HEAD, POST"),
    ] {
        let answer = ask(&format!("DELETE {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert_eq!((answer.status(), answer.get("allow")), (405, Some(allow)), "{path}");
    }
    let answer = ask("GET /purge HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!((answer.status(), answer.get("allow")), (405, Some("POST")));
}

#[test]
fn the_public_listener_says_what_it_takes_instead_of_what_it_does_not() {
    let origin = cacheable();
    let larder = Larder::new(&origin, "");
    for line in ["CONNECT a:80", "TRACE /", "PURGE /"] {
        let mut client = larder.client();
        client.raw(format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let answer = client.answer();
        assert_eq!(answer.status(), 405, "{line}");
        let allow = answer.get("allow").expect("RFC 9110 15.5.6");
        assert!(allow.contains("GET") && !allow.contains(line.split(' ').next().unwrap()), "{allow}");
    }
}

#[test]
fn the_admin_listener_has_limits_of_time_and_number_and_size() {
    let origin = cacheable();
    let config = "server.header_timeout=200ms\nserver.idle_timeout=400ms\nserver.body_timeout=200ms";
    let larder = Larder::new(&origin, config);
    let mut half = Client::connect(larder.admin);
    half.raw("GET /healthz HTTP/1.1\r\nHos");
    let mut silent = Client::connect(larder.admin);
    let mut idle = Client::connect(larder.admin);
    assert_eq!(idle.get("/healthz", "").status(), 200);
    assert!(half.is_closed() && silent.is_closed() && idle.is_closed());
    let mut stalled = Client::connect(larder.admin);
    stalled.raw("POST /purge HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{");
    assert_eq!(stalled.answer().status(), 408);
    let mut large = Client::connect(larder.admin);
    large.raw("POST /purge HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n");
    assert_eq!(large.answer().status(), 413, "before it is sent");
    let chunk = format!("{:x}\r\n{}\r\n", 70_000, "x".repeat(70_000));
    let mut large = Client::connect(larder.admin);
    large.raw(format!("POST /purge HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"));
    assert_eq!(large.answer().status(), 413);
    let mut nonsense = Client::connect(larder.admin);
    nonsense.raw("NONSENSE\r\n\r\n");
    assert_eq!(nonsense.answer().text(), "this is not a request that HTTP/1.1 allows\n");

    let larder = Larder::new(&origin, "");
    let mut open: Vec<Client> = (0..256).map(|_| Client::connect(larder.admin)).collect();
    assert_eq!(open[255].get("/healthz", "").status(), 200);
    // Past that health is told all the same, whatever the others wait for, and nothing else.
    for (path, status) in [("/healthz", 200), ("/readyz", 200), ("/metrics", 503), ("/explain", 503)] {
        let answer = Client::connect(larder.admin).get(path, "");
        assert_eq!((answer.status(), answer.get("retry-after").is_some()), (status, status == 503), "{path}");
    }
    drop(open);
    eventually("there is room again", || {
        let mut client = Client::connect(larder.admin);
        client.ask("GET", "/healthz", "");
        client.try_answer().is_ok_and(|answer| answer.status() == 200)
    });
}

#[test]
fn a_failure_is_logged_with_its_cause_once_a_url_and_minute() {
    let origin = Origin::new(|seen, reply| match seen.path() {
        "/broken" => reply.hang_up(),
        "/nonsense" => {
            reply.raw("HTTP/2 200\r\n\r\n");
            reply.hang_up();
        }
        "/own" => reply.send(502, "", "the application's own"),
        _ => {}
    });
    let sets = ["durable.url=off", "upstream.response_timeout=200ms", "upstream.breaker_failures=0"];
    let running = Process::start(&format!("http://{}", origin.address), &sets);
    for (path, status) in [("/broken", 502), ("/nonsense", 502), ("/slow", 504), ("/own", 502)] {
        for method in ["GET", "GET", "POST"] {
            assert_eq!(running.client().send(method, path, "Content-Length: 0").status(), status, "{path}");
        }
    }
    let only_if_cached = running.get("/none", "Cache-Control: only-if-cached");
    assert_eq!(only_if_cached.status(), 504, "which is no failure of anybody's");
    eventually("the last is logged", || running.log().contains("/slow"));
    let log = running.log();
    let failures: Vec<&str> = log.lines().filter(|line| line.contains("got no answer")).collect();
    assert_eq!(failures.len(), 3, "{log}");
    for (line, (status, path, cause)) in failures.iter().zip([
        ("502", "/broken", "broke off: connection closed before message completed"),
        ("502", "/nonsense", "is not HTTP: "),
        ("504", "/slow", "did not answer in time"),
    ]) {
        let url = format!("url=http://site.example{path} ");
        assert!(line.contains(&url) && line.contains(&format!("status={status} ")) && line.contains(cause), "{line}");
    }
    drop(running);
    let nobody = free_port();
    let sets = ["durable.url=off", "log.access=true", "log.format=json"];
    let running = Process::start(&format!("http://{nobody}"), &sets);
    for _ in 0..3 {
        assert_eq!(running.get("/a?b=1", "").status(), 502);
        assert_eq!(running.get("/c", "").status(), 502);
    }
    eventually("all requests are logged", || running.log().matches("\"request\"").count() == 6);
    let log = running.log();
    let failures: Vec<&str> = log.lines().filter(|line| line.contains("got no answer")).collect();
    assert_eq!(failures.len(), 2, "{log}");
    let line: serde_json::Value = serde_json::from_str(failures[0]).expect("JSON");
    assert_eq!((line["level"].as_str(), line["status"].as_u64()), (Some("INFO"), Some(502)), "{line}");
    assert_eq!(line["url"].as_str(), Some("http://site.example/a?b=1"));
    assert!(line["cause"].as_str().is_some_and(|cause| cause.contains("onnection refused")), "{line}");
    let id = line["request_id"].as_str().expect("an id");
    let of_same: Vec<&str> = log.lines().filter(|line| line.contains(id)).collect();
    assert_eq!(of_same.len(), 2, "the access line has the same number: {of_same:?}");
}

#[test]
fn what_is_no_request_is_counted_and_logged_once_a_minute_and_reason() {
    let origin = cacheable();
    let sets = ["durable.url=off", "server.header_timeout=100ms", "log.format=json"];
    let running = Process::start(&format!("http://{}", origin.address), &sets);
    let large = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let both = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    for (reason, bytes) in [
        ("malformed", "\u{1b}[2J\u{202e}NONSENSE\r\n\r\n"),
        ("malformed", "\u{16}\u{3}\u{1}\r\n\r\n"),
        ("head-too-large", &large),
        ("framing", both),
        ("head-timeout", "GET / HTTP/1.1\r\nHost: h\r\nX"),
    ] {
        let name = format!("larder_requests_unparsed_total{{reason=\"{reason}\"}}");
        let before = running.metric(&name);
        for _ in 0..2 {
            let mut client = running.client();
            client.raw(bytes);
            let _ = client.try_answer();
        }
        eventually("they are counted", || running.metric(&name) == before + 2);
    }
    eventually("they are logged", || running.log().contains("head-timeout"));
    let log = running.log();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .filter(|line| line.contains("refused before"))
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let reasons: Vec<&str> = lines.iter().filter_map(|line| line["reason"].as_str()).collect();
    assert_eq!(reasons, ["malformed", "head-too-large", "framing", "head-timeout"], "{log}");
    assert!(lines.iter().all(|line| line["peer"] == "127.0.0.1"));
}

#[test]
fn the_access_log_names_the_client_and_is_forged_by_nobody() {
    let origin = cacheable();
    for (format, level) in [("text", "error"), ("json", "warn")] {
        let (format, level) = (format!("log.format={format}"), format!("log.level={level}"));
        let running = Mute::start(
            &format!("http://{}", origin.address),
            Stdio::piped(),
            &["log.access=true", &format, &level, "server.trusted_proxies=127.0.0.0/8"],
        );
        let mut running = running;
        let mut lines = std::io::BufReader::new(running.child.stderr.take().expect("piped"));
        let agent = "x\u{202e}y\u{9b}31m z\" client=6.6.6.6\tq";
        let fields = format!(
            "X-Forwarded-For: 6.6.6.6, 203.0.113.9, 127.0.0.2\nReferer: http://a.example/\nUser-Agent: {agent}"
        );
        Client::connect(running.address).get("/a", &fields);
        let mut line = String::new();
        std::io::BufRead::read_line(&mut lines, &mut line).expect("a line");
        if format.ends_with("json") {
            let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            assert_eq!(line["user_agent"].as_str(), Some(agent));
            assert_eq!((line["client"].as_str(), line["peer"].as_str()), (Some("203.0.113.9"), Some("127.0.0.1")));
            assert_eq!(line["referer"].as_str(), Some("http://a.example/"));
            assert!(line["duration_us"].as_u64().is_some_and(|us| us > 0), "{line}");
            assert_eq!(line["request_id"].as_str().map(str::len), Some(32));
        } else {
            for part in
                [" client=203.0.113.9 ", " peer=127.0.0.1 ", " duration_us=", " uri=/a ", "\\u{202e}", "\\u{9b}"]
            {
                assert!(line.contains(part), "{part} in {line}");
            }
            assert!(line.contains("\\\" client=6.6.6.6\\tq\""), "{line}");
        }
        assert!(!line.trim_end().chars().any(|c| c.is_control() || c == '\u{202e}'), "{line:?}");
        // The level silences all else.
        running.signal("-TERM");
        let mut rest = String::new();
        lines.read_to_string(&mut rest).expect("its end");
        assert!(rest.is_empty(), "{rest}");
    }
}

#[test]
fn options_are_taken_before_and_after_the_subcommand() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("config.toml");
    std::fs::write(&file, "[log]\nlevel = \"loud\"\n").expect("it is written");
    let file = file.to_str().expect("a path");
    let run = |args: &[&str]| {
        out_of(&Command::new(env!("CARGO_BIN_EXE_larder")).env_clear().args(args).output().expect("it runs"))
    };
    let fixed = "log.level=info";
    for (args, code) in [
        (&["--config", file, "check"][..], 2),
        (&["check", "--config", file], 2),
        (&["--config", file, "check", "--set", fixed], 0),
        (&["--config", file, "--set", fixed, "check"], 0),
        (&["--set", fixed, "check", "--config", file], 0),
        (&["--set", "log.level=x", "check", "--set", fixed], 0),
        (&["--set", fixed, "check", "--set", "log.level=x"], 2),
        (&["--config", file, "check", "--config", file], 2),
    ] {
        let (found, out, error) = run(args);
        assert_eq!(found, Some(code), "{args:?}: {out}{error}");
        assert_eq!(code == 0, out.ends_with("ok\n"), "{args:?}: {out}{error}");
    }
    // With both behind one another the later one wins, and the first keys still count.
    let (_, _, error) = run(&["--set", "server.threads=x", "check", "--set", "log.level=x"]);
    assert_eq!(error.lines().count(), 2, "{error}");
}

#[test]
fn check_warns_and_still_says_ok() {
    let run = |sets: &[&str]| out_of(&larder(sets).arg("check").output().expect("it runs"));
    let rules = "rule=[{path = \"*\"}, {path = \"/static/*\"}]";
    let (code, out, error) = run(&[rules, "server.listen=127.0.0.1:5000", "upstream.url=http://localhost:5000"]);
    assert_eq!((code, error.as_str(), out.lines().last()), (Some(0), "", Some("ok")), "{out}");
    let told: Vec<&str> = out.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert_eq!(told.len(), 2, "{out}");
    assert!(told[0].contains("upstream.url") && told[1].contains("rule[1].path"), "{out}");
    let (code, out, error) = run(&["server.listen=127.0.0.1:9090"]);
    assert_eq!((code, out.as_str()), (Some(2), ""), "{error}");
    assert!(error.contains("admin.listen: \"127.0.0.1:9090\"") && error.contains("one address"), "{error}");
}

#[test]
fn a_purge_says_what_was_held_and_where() {
    let origin = cacheable();
    let directory = tempfile::tempdir().expect("a directory");
    let config = format!("{}\nserver.trusted_proxies=127.0.0.1", crate::binary::file_url(directory.path()));
    let running = Larder::new(&origin, &config);
    eventually("the index is loaded", || running.metric("larder_index_loaded") == 1);
    let admin = format!("admin.listen={}", running.admin);
    let purge = |args: &[&str]| {
        let (code, out, error) =
            out_of(&larder(&[]).arg("purge").args(args).args(["--set", &admin]).output().expect("it runs"));
        assert_eq!(code, Some(0), "{error}");
        out.trim_end().to_owned()
    };
    let fill = |scheme: &str, host: &str| {
        running.get("/a", &format!("Host: {host}\nX-Forwarded-Proto: {scheme}"));
        running.settle();
    };
    let is_held = |scheme: &str, host: &str| {
        running.get("/a", &format!("Host: {host}\nX-Forwarded-Proto: {scheme}\nCache-Control: only-if-cached")).status()
            == 200
    };
    let both = "held in memory and in the durable tier";
    fill("http", "h");
    assert_eq!(purge(&["http://h/a"]), format!("purged http://h/a ({both})"));
    assert_eq!(purge(&["http://h/a"]), "purged http://h/a (nothing was held)");
    fill("http", "h");
    assert_eq!(purge(&["https://h/a", "--exact-scheme"]), "purged https://h/a (nothing was held)");
    assert!(is_held("http", "h"));
    assert_eq!(
        purge(&["https://h:443/a"]),
        "purged https://h:443/a (held under http in memory and in the durable tier)"
    );
    assert!(!is_held("http", "h"));
    fill("http", "h");
    fill("https", "h");
    let answer = post(running.admin, "/purge", "{\"url\": \"http://h:80/a\"}").text();
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    for scheme in ["http", "https"] {
        assert_eq!(answer["held"][scheme], serde_json::json!({"memory": true, "durable": true}), "{answer}");
        assert!(!is_held(scheme, "h"), "{scheme}");
    }
    // Port 443 named under http is https without a port.
    for (stored, url) in [
        (("http", "h:443"), "https://h/a"),
        (("http", "h:443"), "http://h:443/a"),
        (("https", "h:443"), "http://h/a"),
        (("https", "h"), "http://h:443/a"),
        (("http", "h:8080"), "https://h:8080/a"),
    ] {
        fill(stored.0, stored.1);
        assert!(is_held(stored.0, stored.1));
        assert!(purge(&[url]).contains("held"), "{url}");
        assert!(!is_held(stored.0, stored.1), "{stored:?} {url}");
        fill(stored.0, stored.1);
        let prefix = url.strip_suffix("/a").unwrap();
        let told = purge(&["--prefix", prefix]);
        assert!(told.ends_with("(not searched for: what it covers counts as gone from now on)"), "{told}");
        assert!(!is_held(stored.0, stored.1), "{stored:?} {prefix}");
    }
    fill("https", "h");
    let mut client = Client::connect(running.admin);
    client.raw("PURGE /a HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(client.answer().text().contains("\"https\":{\"durable\":true,\"memory\":true}"));
    assert!(!is_held("https", "h"));
    let answer = post(running.admin, "/purge", "{\"tag\": \"t\"}").text();
    assert!(answer.contains("\"held\":null") && answer.contains("not searched for"), "{answer}");
}

#[test]
fn what_is_under_way_is_covered_by_a_purge_of_the_other_scheme() {
    for what in ["{\"url\": \"https://site.example/slow\"}", "{\"prefix\": \"https://site.example/\"}"] {
        let (origin, gate) = gated();
        let larder = Larder::new(&origin, "");
        let mut client = larder.client();
        client.ask("GET", "/slow", "");
        origin.requests.wait_for(1);
        assert_eq!(larder.purge_of(what).status(), 200);
        gate.open();
        assert_eq!(client.answer().status(), 200);
        assert_eq!(larder.get("/slow", "").hit(), None, "{what}");
    }
}
