//! Tests the log: what it says of failures and requests, and that it harms nobody when it can't be written.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::support::{Client, Gate, Origin, Process, eventually, larder, metric, signal_to};

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

#[test]
fn a_log_that_cannot_be_written_harms_no_request_and_no_stop() {
    for format in ["text", "json"] {
        let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let sets = ["log.access=true", &format!("log.format={format}")];
        let (origin, gate) = Origin::gated();
        let upstream = origin.url();
        let larder = Mute::start(&upstream, full().into(), &sets);
        let admin = larder.admin;
        Client::connect(larder.address).get("/a", "");
        eventually("lost lines are counted", || metric(admin, "larder_log_lines_dropped_total") > 0);
        serves_and_drains(larder, &origin, &gate);

        // A pipe whose reader is gone.
        let (origin, gate) = Origin::gated();
        let upstream = origin.url();
        let mut larder = Mute::start(&upstream, Stdio::piped(), &sets);
        drop(larder.child.stderr.take());
        serves_and_drains(larder, &origin, &gate);

        // A pipe that nobody reads, filled.
        let (origin, gate) = Origin::gated();
        let upstream = origin.url();
        let mut larder = Mute::start(&upstream, Stdio::piped(), &sets);
        let unread = larder.child.stderr.take();
        serves_and_drains(larder, &origin, &gate);
        drop(unread);
    }
}

#[test]
fn lost_lines_are_told_once_somebody_reads_again() {
    let origin = Origin::cacheable();
    let larder = &mut Mute::start(&origin.url(), Stdio::piped(), &["log.access=true"]);
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
    let running = Process::start(&origin.url(), &sets);
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
    let origin = Origin::cacheable();
    let sets = ["durable.url=off", "server.header_timeout=100ms", "log.format=json"];
    let running = Process::start(&origin.url(), &sets);
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
    let origin = Origin::cacheable();
    for (format, level) in [("text", "error"), ("json", "warn")] {
        let (format, level) = (format!("log.format={format}"), format!("log.level={level}"));
        let running = Mute::start(
            &origin.url(),
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
fn the_access_log_has_a_line_a_request() {
    let origin = Origin::cacheable();
    let larder = Process::start(&origin.url(), &["durable.url=off", "log.access=true", "log.format=json"]);
    larder.get("/a?x=1", "");
    larder.get("/a?x=1", "");
    eventually("two lines", || larder.log().matches("\"uri\":\"/a?x=1\"").count() == 2);
    let log = larder.log();
    let line = log.lines().rfind(|line| line.contains("\"uri\"")).expect("a line");
    for part in
        ["\"status\":200", "\"bytes\":6", "\"method\":\"GET\"", "\"host\":\"site.example\"", "larder; hit; ttl="]
    {
        assert!(line.contains(part), "{part} in {line}");
    }
}

/// At level debug each line of a request is told with its span, in the task of its fetch as well; at level info there
/// are no spans.
#[test]
fn each_line_below_a_request_names_it() {
    let origin = Origin::new(|request, reply| match request.path() {
        path if path.starts_with("/garbage") => reply.raw("no HTTP at all\r\n\r\n"),
        "/broken" => {
            reply.raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\nCache-Control: max-age=9\r\n\r\nabc");
            reply.hang_up();
        }
        _ => reply.send(200, "Cache-Control: max-age=9", "a"),
    });
    for (format, names) in [
        ("text", ["request.method=GET", "request.host=site.example", "fetch.path=/broken", "request.id="]),
        (
            "json",
            [
                "\"request.method\":\"GET\"",
                "\"request.host\":\"site.example\"",
                "\"fetch.path\":\"/broken\"",
                "\"request.id\":\"",
            ],
        ),
    ] {
        let (format, level) = (format!("log.format={format}"), "log.level=debug");
        let sets = ["durable.url=off", &format, level, "log.access=true"];
        let larder = Process::start(&format!("http://{}", origin.address), &sets);
        let mut client = larder.client();
        client.ask("GET", "/broken", "");
        assert!(client.try_answer().is_err(), "its body breaks off");
        let line = |words: &str| larder.log().lines().find(|line| line.contains(words)).map(str::to_owned);
        eventually("the fetch tells why", || line("a response is not stored").is_some());
        let told = line("a response is not stored").expect("just seen");
        for name in names {
            assert!(told.contains(name), "{name} in {told}");
        }
        let answered = line("answered").expect("the answer is told before its body");
        assert!(answered.contains("fwd=uri-miss"), "{answered}");
        let id = |line: &str, name: &str| {
            let rest = line.split(name).nth(1).unwrap_or_else(|| panic!("{name} in {line}"));
            rest.trim_start_matches(['"', ':', '=']).chars().take(32).collect::<String>()
        };
        assert_eq!(id(&told, "request.id"), id(&answered, "request.id"));
        eventually("the access line is there", || line("duration_us").is_some());
        let access = line("duration_us").expect("just seen");
        assert_eq!(id(&access, "request_id"), id(&answered, "request.id"), "one id a request");
        // What a client chose is cut.
        larder.get(&format!("/{}", "x".repeat(20_000)), "");
        eventually("the long one is told", || {
            larder.log().lines().filter(|line| line.contains("answered")).count() == 2
        });
        assert_eq!(larder.get(&format!("/garbage{}", "x".repeat(20_000)), "").status(), 502);
        eventually("why is told", || line("got no answer").is_some() && line("no answer for /garbage").is_some());
        let told = line("no answer for /garbage").expect("just seen");
        assert!(told.contains(&format!("(from http://{})", origin.address)), "{told}");
        assert!(larder.log().lines().all(|line| line.len() < 6000));
    }
    let larder = Process::start(&format!("http://{}", origin.address), &["durable.url=off"]);
    larder.get("/a", "");
    assert!(!larder.log().contains("request.id"));
}
