//! Tests connections that begin with a PROXY header, sent by hand and by `haproxy`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use larder::downstream::Listen;

use crate::support::{Client, Larder, Origin, PATIENCE, Process, Redis, Seen, eventually};

const FROM_HERE: &str = "server.proxy_protocol=127.0.0.1";
const LINE: &str = "PROXY TCP4 203.0.113.9 192.0.2.1 56324 443\r\n";
const REQUEST: &str = "GET /a HTTP/1.1\r\nHost: site.example\r\nCache-Control: no-store\r\n";
const REFUSED: &str = "larder_requests_unparsed_total{reason=\"proxy-header\"}";

/// Returns a header of version 2 for a client at 203.0.113.9.
fn v2(version: u8, family: u8, values: &[u8]) -> Vec<u8> {
    let addresses: &[u8] = match family {
        0x11 => &[203, 0, 113, 9, 192, 0, 2, 1, 0xdc, 4, 1, 0xbb],
        _ => &[],
    };
    let len = u16::try_from(addresses.len() + values.len()).expect("a short header");
    [b"\r\n\r\n\0\r\nQUIT\n", &[version, family][..], &len.to_be_bytes(), addresses, values].concat()
}

/// The value that says that the client came by TLS.
const TLS: &[u8] = &[0x20, 0, 5, 1, 0, 0, 0, 0];

/// Sends `header` and a request with `fields` in one segment. Returns the request as the origin saw it.
fn seen(larder: &Larder, origin: &Origin, header: impl AsRef<[u8]>, fields: &str) -> Seen {
    let mut client = larder.client();
    client.raw([header.as_ref(), REQUEST.as_bytes(), fields.as_bytes(), b"\r\n"].concat());
    assert_eq!(client.answer().status(), 200);
    origin.last()
}

/// Returns what the origin was told of the client: its address and scheme.
fn told(seen: &Seen) -> (Option<&str>, Option<&str>) {
    (seen.head.get("x-forwarded-for"), seen.head.get("x-forwarded-proto"))
}

#[test]
fn the_client_is_whom_the_header_names_and_nobody_else() {
    let origin = Origin::echo();
    let larder = Larder::new(&origin, FROM_HERE);
    let spoofed = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nForwarded: for=6.6.6.6\r\n";
    for (header, expected) in [
        (LINE.into(), ("203.0.113.9", "http")),
        ("PROXY TCP6 2001:DB8::9 ::1 1 2\r\n".into(), ("2001:db8::9", "http")),
        ("PROXY TCP6 ::ffff:203.0.113.9 ::1 1 2\r\n".into(), ("203.0.113.9", "http")),
        (v2(0x21, 0x11, &[]), ("203.0.113.9", "http")),
        (v2(0x21, 0x11, TLS), ("203.0.113.9", "https")),
        (v2(0x20, 0x00, &[]), ("127.0.0.1", "http")),
        ("PROXY UNKNOWN\r\n".into(), ("127.0.0.1", "http")),
    ] {
        let header: Vec<u8> = header;
        let seen = seen(&larder, &origin, &header, spoofed);
        assert_eq!(told(&seen), (Some(expected.0), Some(expected.1)), "{}", header.escape_ascii());
        assert_eq!(seen.head.get("forwarded"), None);
    }
    // It is of the whole connection, and a header within it is not one.
    let mut client = larder.client();
    client.raw(LINE);
    for _ in 0..2 {
        client.get("/b", "Cache-Control: no-store");
        assert_eq!(told(&origin.last()), (Some("203.0.113.9"), Some("http")));
    }
    client.raw(format!("PROXY TCP4 6.6.6.6 192.0.2.1 1 2\r\n{REQUEST}\r\n"));
    assert_eq!(client.answer().status(), 400);
    // Pages by http and by https are two.
    for (header, hit) in [(v2(0x21, 0x11, &[]), false), (v2(0x21, 0x11, TLS), false), (v2(0x21, 0x11, TLS), true)] {
        let mut client = larder.client();
        client.raw(header);
        assert_eq!(client.get("/c", "").is_hit(), hit);
    }
}

#[test]
fn trusted_proxies_are_looked_for_behind_the_header_not_before_it() {
    let origin = Origin::echo();
    let claims = "X-Forwarded-For: 198.51.100.7\r\nX-Forwarded-Proto: https\r\n";
    let trusting = |networks: &str| Larder::new(&origin, &format!("{FROM_HERE}\nserver.trusted_proxies={networks}"));
    // The header's client is itself a trusted proxy, such as a CDN.
    let larder = trusting("203.0.113.0/24");
    assert_eq!(told(&seen(&larder, &origin, LINE, claims)), (Some("198.51.100.7, 203.0.113.9"), Some("https")));
    assert_eq!(told(&seen(&larder, &origin, v2(0x20, 0, &[]), claims)), (Some("127.0.0.1"), Some("http")));
    // Only the load balancer is trusted: it says so of itself, but its clients are not it.
    let larder = trusting("127.0.0.1");
    assert_eq!(told(&seen(&larder, &origin, LINE, claims)), (Some("203.0.113.9"), Some("http")));
    assert_eq!(told(&seen(&larder, &origin, "PROXY UNKNOWN\r\n", claims)), (Some("127.0.0.1"), Some("http")));
    let own = seen(&larder, &origin, v2(0x20, 0, &[]), claims);
    assert_eq!(told(&own), (Some("198.51.100.7, 127.0.0.1"), Some("https")));
}

#[test]
fn a_header_from_elsewhere_is_malformed_http() {
    let origin = Origin::echo();
    for header in [LINE.into(), v2(0x21, 0x11, &[])] {
        let larder = Process::start(&origin.url(), &["durable.url=off", "server.proxy_protocol=192.0.2.1,unix"]);
        let mut client = larder.client();
        client.raw([&header[..], REQUEST.as_bytes(), b"\r\n"].concat());
        let answer = client.answer();
        assert_eq!((answer.status(), answer.get("connection")), (400, Some("close")), "{}", header.escape_ascii());
        assert_eq!(origin.count(), 0);
        eventually("the log says what it looks like", || larder.log().contains("it looks like a PROXY header"));
        let malformed = larder.metric("larder_requests_unparsed_total{reason=\"malformed\"}");
        assert_eq!((larder.metric(REFUSED), malformed), (0, 1));
    }
}

#[test]
fn a_connection_without_a_header_is_closed_counted_and_told_once_a_minute() {
    let origin = Origin::echo();
    let larder = Process::start(&origin.url(), &["durable.url=off", FROM_HERE]);
    let bad: [&[u8]; 5] = [
        b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"PROXY TCP4 203.0.113.9 192.0.2.1 56324 99999\r\nGET /a HTTP/1.1\r\nHost: h\r\n\r\n",
        b"PROXY TCP4 203.0.113.9 192.0.2.1 56324 443\nGET /a HTTP/1.1\r\nHost: h\r\n\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
    ];
    for (n, bytes) in bad.iter().enumerate() {
        let mut client = larder.client();
        client.raw(bytes);
        assert!(client.is_closed(), "not a byte is answered to {}", bytes.escape_ascii());
        eventually("it is counted", || larder.metric(REFUSED) == n as u64 + 1);
    }
    // Programs that only look whether the port is open are nobody's mistake.
    drop(larder.client());
    let mut client = larder.client();
    client.raw([LINE, REQUEST, "\r\n"].concat());
    assert_eq!(client.answer().status(), 200);
    eventually("the connections are gone", || larder.metric("larder_connections ") <= 1);
    assert_eq!((larder.metric(REFUSED), origin.count()), (5, 1));
    let log = larder.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("refused before")).collect();
    let [line] = lines[..] else { panic!("{log}") };
    for part in [
        "begin with a PROXY header (server.proxy_protocol)",
        "begins with something else",
        "peer=127.0.0.1",
        "begins=\"GET /a HTTP/",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[test]
fn a_header_may_arrive_byte_by_byte() {
    let origin = Origin::echo();
    let larder = Larder::new(&origin, FROM_HERE);
    for header in [LINE.into(), v2(0x21, 0x11, TLS)] {
        let mut client = larder.client();
        for byte in [&header[..], REQUEST.as_bytes(), b"\r\n"].concat() {
            client.raw([byte]);
        }
        assert_eq!(client.answer().status(), 200);
        assert_eq!(origin.last().head.get("x-forwarded-for"), Some("203.0.113.9"));
    }
}

#[test]
fn a_slow_sender_is_given_up_and_holds_nothing_of_others() {
    let origin = Origin::echo();
    let larder = Larder::new(&origin, &format!("{FROM_HERE}\nserver.header_timeout=300ms\nserver.idle_timeout=10m"));
    let mut slow: Vec<Client> = (0..40).map(|_| larder.client()).collect();
    for (n, client) in slow.iter_mut().enumerate() {
        client.raw(&LINE.as_bytes()[..n]);
    }
    assert_eq!(told(&seen(&larder, &origin, LINE, "")).0, Some("203.0.113.9"));
    for client in &mut slow {
        assert!(client.is_closed());
    }
    eventually("they are counted", || larder.metric(REFUSED) == 40);
    eventually("the connections are gone", || larder.metric("larder_connections ") == 0);
}

#[test]
fn a_stop_does_not_wait_for_headers() {
    let origin = Origin::echo();
    let larder = Larder::new(&origin, &format!("{FROM_HERE}\nserver.header_timeout=1h\nserver.drain_timeout=1h"));
    let mut slow = larder.client();
    slow.raw("PROXY ");
    eventually("it is connected", || larder.metric("larder_connections ") == 1);
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        larder.stop();
        let _ = tell.send(());
    });
    told.recv_timeout(PATIENCE).expect("it stops");
    assert!(slow.is_closed());
}

#[test]
fn unix_sockets_are_a_sender_of_their_own_and_other_listeners_take_no_header() {
    let origin = Origin::echo();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("public");
    let redis = directory.path().join("resp");
    let config = format!(
        "server.listen=127.0.0.1:0,unix:{}\nserver.proxy_protocol=unix\nserver.trusted_proxies=127.0.0.1",
        path.display()
    );
    let larder = Larder::new(&origin, &config);
    let asks = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(&path).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.write_all(bytes).expect("it is sent");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    let request = format!("{REQUEST}X-Forwarded-For: 6.6.6.6\r\nConnection: close\r\n\r\n");
    assert!(asks(format!("{LINE}{request}").as_bytes()).starts_with("HTTP/1.1 200 "));
    assert_eq!(origin.last().head.get("x-forwarded-for"), Some("203.0.113.9"));
    assert!(asks(format!("PROXY UNKNOWN\r\n{request}").as_bytes()).starts_with("HTTP/1.1 200 "));
    assert_eq!(origin.last().head.get("x-forwarded-for"), None, "an unknown client is not believed");
    assert_eq!(asks(request.as_bytes()), "");
    // The TCP listener is not one of them.
    assert_eq!(larder.get("/b", "").status(), 200);
    assert_eq!(larder.metric(REFUSED), 1);

    let everywhere = format!("server.proxy_protocol=127.0.0.1,unix\nresp.listen=unix:{}", redis.display());
    let everywhere = Larder::new(&origin, &everywhere);
    assert_eq!(Client::connect(everywhere.admin).get("/metrics", "").status(), 200);
    let mut admin = Client::connect(everywhere.admin);
    admin.raw([LINE, REQUEST, "\r\n"].concat());
    assert_eq!(admin.answer().status(), 400);
    assert_eq!(Redis::at(&redis).say("PING"), "PONG");
}

#[test]
fn the_access_log_names_the_client_of_the_header() {
    let origin = Origin::echo();
    let larder = Process::start(&origin.url(), &["durable.url=off", "log.access=true", "log.format=json", FROM_HERE]);
    let mut client = larder.client();
    client.raw([LINE, REQUEST, "\r\n"].concat());
    assert_eq!(client.answer().status(), 200);
    eventually("it is logged", || larder.log().contains("\"/a\""));
    let log = larder.log();
    let line = log.lines().find(|line| line.contains("\"/a\"")).expect("just seen");
    let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
    assert_eq!((line["client"].as_str(), line["peer"].as_str()), (Some("203.0.113.9"), Some("203.0.113.9")), "{line}");
}

/// `haproxy` with a configuration.
struct Haproxy(Child);

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Haproxy {
    /// Returns whether the programs that this takes are installed, and says which is not.
    fn is_here() -> bool {
        let all = ["haproxy", "openssl", "curl"].map(|program| {
            let version = if program == "openssl" { "version" } else { "-V" };
            let ran = command(program).arg(version).stdout(Stdio::null()).stderr(Stdio::null()).status();
            let is_here = ran.is_ok();
            if !is_here {
                eprintln!("{program} is not installed: nothing is tested with HAProxy");
            }
            is_here
        });
        all == [true; 3]
    }

    /// Starts it, and waits until it listens on `address`.
    fn start(config: &str, address: SocketAddr) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("haproxy.cfg");
        std::fs::write(&file, config).expect("it is written");
        let child =
            command("haproxy").arg("-db").arg("-f").arg(&file).stdout(Stdio::null()).spawn().expect("it starts");
        let this = Self(child);
        eventually("HAProxy listens", || TcpStream::connect(address).is_ok());
        this
    }
}

/// A program, which Debian may keep where only the administrator looks.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    command
}

/// Makes a certificate with its key, as two files and as one.
fn certificate(directory: &Path) -> [String; 3] {
    let [chain, key, both] = ["chain.pem", "key.pem", "both.pem"].map(|name| directory.join(name));
    let mut made = command("openssl");
    made.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]);
    made.args(["-subj", "/CN=shop.example", "-addext", "subjectAltName=DNS:shop.example"]);
    made.arg("-keyout").arg(&key).arg("-out").arg(&chain);
    let made = made.output().expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let text = [&chain, &key].map(|file| std::fs::read_to_string(file).expect("it was made")).concat();
    std::fs::write(&both, text).expect("it is written");
    [chain, key, both].map(|path| path.display().to_string())
}

/// Asks as a client at 127.0.0.9. Returns the status.
fn curl(url: &str) -> String {
    let mut command = command("curl");
    command.args(["--interface", "127.0.0.9", "--insecure", "--silent", "--max-time", "30", "--output", "/dev/null"]);
    command.args(["--write-out", "%{http_code}", "--header", "X-Forwarded-For: 6.6.6.6", url]);
    let ran = command.output().expect("it runs");
    String::from_utf8_lossy(&ran.stdout).into_owned()
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|held| held.local_addr()).expect("a port")
}

const DEFAULTS: &str =
    "defaults\n    mode tcp\n    timeout connect 10s\n    timeout client 1m\n    timeout server 1m\n";

#[test]
fn haproxy_tells_who_its_clients_are() {
    if !Haproxy::is_here() {
        return;
    }
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: no-store", "body"));
    let larder = Larder::new(&origin, FROM_HERE);
    let directory = tempfile::tempdir().expect("a directory");
    let [.., both] = certificate(directory.path());
    for (how, says_tls) in [
        ("send-proxy", false),
        ("send-proxy-v2", false),
        ("send-proxy-v2 proxy-v2-options crc32c,unique-id", false),
        ("send-proxy-v2-ssl", true),
        ("send-proxy-v2 proxy-v2-options ssl,cert-cn,ssl-cipher,cert-sig,cert-key,authority,crc32c", true),
    ] {
        let (plain, tls) = (free_port(), free_port());
        let server = format!("server larder {} {how}\n", larder.address);
        let config = format!(
            "{DEFAULTS}listen plain\n    bind {plain}\n    {server}listen tls\n    bind {tls} ssl crt {both}\n    {server}"
        );
        let _haproxy = Haproxy::start(&config, tls);
        let refused = larder.metric(REFUSED);
        assert_eq!(curl(&format!("http://{plain}/plain")), "200", "{how}");
        assert_eq!(told(&origin.last()), (Some("127.0.0.9"), Some("http")), "{how}");
        assert_eq!(curl(&format!("https://{tls}/tls")), "200", "{how}");
        let scheme = if says_tls { "https" } else { "http" };
        assert_eq!(told(&origin.last()), (Some("127.0.0.9"), Some(scheme)), "{how}");
        assert_eq!(larder.metric(REFUSED), refused, "{how}");
    }
}

#[test]
fn health_checks_of_haproxy_are_its_own_requests() {
    if !Haproxy::is_here() {
        return;
    }
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: no-store", "body"));
    let larder = Larder::new(&origin, FROM_HERE);
    for how in ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl"] {
        let path = format!("/health-{how}");
        let address = free_port();
        let config = format!(
            "{DEFAULTS}listen plain\n    bind {address}\n    option httpchk\n    http-check send meth GET uri {path} ver HTTP/1.1 hdr Host h\n    server larder {} {how} check inter 100ms\n",
            larder.address
        );
        let _haproxy = Haproxy::start(&config, address);
        eventually("it checks", || origin.seen().iter().any(|seen| seen.path() == path));
        let checks = origin.seen();
        let check = checks.iter().find(|seen| seen.path() == path).expect("just seen");
        assert_eq!(told(check), (Some("127.0.0.1"), Some("http")), "{how}");
    }
    assert_eq!(larder.metric(REFUSED), 0);
}

#[test]
fn the_configurations_in_the_documentation_work() {
    if !Haproxy::is_here() {
        return;
    }
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/behind-a-load-balancer.md"));
    let page = page.expect("the page");
    let configs: Vec<&str> =
        page.split("```haproxy\n").skip(1).filter_map(|rest| Some(rest.split_once("```")?.0)).collect();
    assert_eq!(configs.len(), 2);
    let directory = tempfile::tempdir().expect("a directory");
    let [chain, key, both] = certificate(directory.path());
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: no-store", "body"));
    let larder = Larder::new(
        &origin,
        &format!(
            "{FROM_HERE}\nserver.listen=http://127.0.0.1:0,https://127.0.0.1:0\ntls.certificate=[{{chain = \"{chain}\", key = \"{key}\"}}]"
        ),
    );
    let Listen::Tls(by_tls) = &larder.running().addresses()[1] else { panic!("a listener with TLS") };
    for config in configs {
        let (plain, tls) = (free_port(), free_port());
        let config = config
            .replace("bind :80\n", &format!("bind {plain}\n"))
            .replace("bind :443", &format!("bind {tls}"))
            .replace("10.0.0.5:80 ", &format!("{} ", larder.address))
            .replace("10.0.0.5:443 ", &format!("{by_tls} "))
            .replace("/etc/haproxy/shop.example.pem", &both);
        let has_plain = config.contains("listen http\n");
        let _haproxy = Haproxy::start(&config, tls);
        if has_plain {
            assert_eq!(curl(&format!("http://{plain}/plain")), "200", "{config}");
            assert_eq!(told(&origin.last()), (Some("127.0.0.9"), Some("http")), "{config}");
        }
        assert_eq!(curl(&format!("https://{tls}/tls")), "200", "{config}");
        assert_eq!(told(&origin.last()), (Some("127.0.0.9"), Some("https")), "{config}");
    }
    assert_eq!(larder.metric(REFUSED), 0, "the checks are none of it");
}

#[test]
fn a_flood_of_connections_that_send_nothing_counts_as_connections() {
    let origin = Origin::echo();
    let larder = Larder::new(&origin, &format!("{FROM_HERE}\nserver.max_connections=3\nserver.header_timeout=1h"));
    let held: Vec<Client> = (0..3).map(|_| larder.client()).collect();
    eventually("they are open", || larder.metric("larder_connections ") == 3);
    let mut further = larder.client();
    further.raw([LINE, REQUEST, "\r\n"].concat());
    assert_eq!(further.answer().status(), 503);
    drop(held);
    eventually("they are gone", || larder.metric("larder_connections ") == 0);
    let mut client = larder.client();
    client.raw([LINE, REQUEST, "\r\n"].concat());
    client.reader().get_ref().set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
    assert_eq!(client.answer().status(), 200);
}
