//! Tests clients that read slowly or not at all: the application is done long before them, and nobody else waits.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use crate::support::{Client, Count, Gate, Larder, Origin, Process, at_once, eventually};

const MIB: usize = 1 << 20;

fn text(len: usize) -> String {
    (0..len).map(|n| char::from(b'a' + u8::try_from((n * 7 + n / 4099) % 26).expect("a letter"))).collect()
}

/// An origin that sends `body` in one of three framings, and counts when all of it was taken.
fn sending(body: &str) -> (Origin, Count) {
    let (body, done) = (body.to_owned(), Count::default());
    let origin = Origin::new({
        let done = done.clone();
        move |seen, reply| {
            match seen.path() {
                "/length" => reply.send(200, "Cache-Control: no-store", &body),
                "/small" => return reply.send(200, "Cache-Control: no-store", "small"),
                "/chunks" => {
                    reply.begin("Cache-Control: private\nTrailer: X-Sum");
                    let mut rest = &body[..];
                    // Small ones and large ones.
                    for n in 0.. {
                        let len = [1, 700, 70_000, 16_384][n % 4].min(rest.len());
                        if len == 0 {
                            break;
                        }
                        reply.chunk(&rest[..len]);
                        rest = &rest[len..];
                    }
                    reply.raw("0\r\nX-Sum: 1\r\n\r\n");
                }
                _ => {
                    reply.raw(format!(
                        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nConnection: close\r\n\r\n{body}"
                    ));
                    done.add();
                    return reply.hang_up();
                }
            }
            done.add();
        }
    });
    (origin, done)
}

#[test]
fn the_application_is_done_before_its_client_has_read_anything() {
    let body = text(8 * MIB);
    let (origin, done) = sending(&body);
    for config in [
        "",
        "upstream.buffer_response=16MiB\nupstream.spool=0",
        "upstream.buffer_response=1",
        "server.max_buffered=1MiB",
    ] {
        let larder = Larder::new(&origin, config);
        for path in ["/length", "/chunks", "/close"] {
            let before = done.value();
            let mut client = larder.client();
            client.ask("GET", path, "");
            done.wait_for(before + 1);
            assert_eq!(larder.get("/small", "").text(), "small");
            let answer = client.answer();
            assert!(answer.text() == body, "{config} {path}: {} bytes", answer.body.len());
            assert_eq!(answer.get("cache-status").map(|status| status.contains("stored")), Some(false), "{path}");
        }
        eventually("nothing is held", || larder.buffered() == (0, 0));
    }
}

#[test]
fn nor_does_it_wait_for_who_reads_what_turns_out_too_large_to_be_kept() {
    let body = text(8 * MIB);
    let done = Count::default();
    let origin = Origin::new({
        let (body, done) = (body.clone(), done.clone());
        move |_, reply| {
            reply.begin("Cache-Control: max-age=60");
            for piece in 0..body.len() / 4096 {
                reply.chunk(&body[4096 * piece..4096 * (piece + 1)]);
            }
            reply.end();
            done.add();
        }
    });
    let larder = Larder::new(&origin, "memory.max_object_size=100KiB");
    for _ in 0..2 {
        let before = done.value();
        let mut clients = [larder.client(), larder.client()];
        for client in &mut clients {
            client.ask("GET", "/large", "");
        }
        done.wait_for(before + 1);
        for client in &mut clients {
            client.head().expect("a head");
        }
        drop(clients);
        eventually("nothing is held", || larder.buffered() == (0, 0) && larder.metric("larder_held_bytes") == 0);
        assert!(larder.get("/large", "").text() == body);
    }
}

#[test]
fn what_is_too_large_for_the_buffers_goes_at_the_pace_of_its_client_and_arrives_whole() {
    let body = text(24 * MIB);
    let (origin, done) = sending(&body);
    for config in [
        "upstream.buffer_response=0",
        "upstream.spool=0",
        "upstream.spool=1MiB",
        "upstream.buffer_response=1\nupstream.spool=100KiB",
        "server.max_spooled=1MiB",
        "server.max_spooled=1KiB",
        "server.spool_dir=/nowhere/at/all",
    ] {
        let larder = Larder::new(&origin, config);
        for path in ["/length", "/chunks"] {
            let before = done.value();
            let mut client = larder.client();
            client.ask("GET", path, "");
            client.head().expect("a head");
            eventually("the way is full", || {
                let held = larder.buffered();
                std::thread::sleep(std::time::Duration::from_millis(50));
                larder.buffered() == held
            });
            assert_eq!(done.value(), before, "{config}: no more is read than may be held");
            let (memory, files) = larder.buffered();
            assert!(memory <= MIB + (192 << 10) && files <= MIB as u64, "{config}: {memory} {files}");
            drop(client);
            let mut client = larder.client();
            client.ask("GET", path, "");
            assert!(client.answer().text() == body, "{config} {path}");
        }
        eventually("nothing is held", || larder.buffered() == (0, 0));
    }
}

#[test]
fn what_trickles_is_there_at_once() {
    let gates: Vec<Gate> = (0..40).map(|_| Gate::default()).collect();
    let origin = Origin::new({
        let gates = gates.clone();
        move |_, reply| {
            reply.begin("Cache-Control: no-store");
            for (n, gate) in gates.iter().enumerate() {
                reply.chunk(&n.to_string());
                gate.wait();
            }
            reply.end();
        }
    });
    let larder = Larder::new(&origin, "");
    let mut client = larder.client();
    client.ask("GET", "/events", "");
    client.head().expect("a head");
    for (n, gate) in gates.iter().enumerate() {
        assert_eq!(client.chunk(), Some(n.to_string()));
        gate.open();
    }
    assert_eq!(client.chunk().as_deref(), Some(""));
}

#[test]
fn trailers_follow_what_was_read_ahead() {
    let body = text(4 * MIB);
    let (origin, done) = sending(&body);
    let larder = Larder::new(&origin, "");
    let mut client = larder.client();
    client.ask("GET", "/chunks", "TE: trailers\nConnection: TE, close");
    done.wait_for(1);
    let mut all = Vec::new();
    client.reader().read_to_end(&mut all).expect("it ends");
    assert!(String::from_utf8_lossy(&all).to_ascii_lowercase().ends_with("0\r\nx-sum: 1\r\n\r\n"));
}

#[test]
fn a_body_that_breaks_off_breaks_off_behind_all_that_came() {
    let body = text(6 * MIB);
    let origin = Origin::new({
        let body = body.clone();
        move |_, reply| {
            reply.raw(format!("HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 99000000\r\n\r\n{body}"));
            reply.hang_up();
        }
    });
    for config in ["", "upstream.spool=0"] {
        let larder = Larder::new(&origin, config);
        let mut client = larder.client();
        client.ask("GET", "/a", "");
        client.head().expect("a head");
        let mut got = Vec::new();
        let _ = client.reader().read_to_end(&mut got);
        // hyper gives up what it has not written yet.
        assert!(
            body.as_bytes().starts_with(&got) && got.len() > 6 * MIB - (256 << 10),
            "{config}: {} bytes",
            got.len()
        );
        eventually("nothing is held", || larder.buffered() == (0, 0));
    }
}

#[test]
fn a_client_that_leaves_takes_what_was_read_for_it_along() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let upstream = format!("http://{}", listener.local_addr().expect("an address"));
    let origin = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut block = vec![0; 64 << 10];
        let _ = stream.read(&mut block);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nTransfer-Encoding: chunked\r\n\r\n");
        let mut sent = 0_u64;
        while stream
            .write_all(b"10000\r\n")
            .and_then(|()| stream.write_all(&block))
            .and_then(|()| stream.write_all(b"\r\n"))
            .is_ok()
        {
            sent += 1 << 16;
        }
        sent
    });
    let larder = Larder::with_upstream(&upstream, "upstream.spool=16MiB");
    let mut client = larder.client();
    client.ask("GET", "/endless", "");
    client.head().expect("a head");
    eventually("the file is as long as it may be", || larder.buffered().1 > 15 << 20);
    drop(client);
    assert!(origin.join().expect("it ends") < 64 << 20);
    eventually("nothing is held", || larder.buffered() == (0, 0));
}

#[test]
fn a_tunnel_in_which_nothing_moves_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let upstream = format!("http://{}", listener.local_addr().expect("an address"));
    let origin = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut block = [0; 4096];
        let _ = stream.read(&mut block);
        let head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nhello";
        stream.write_all(head).expect("it writes");
        stream.read(&mut block)
    });
    let config = "server.tunnel_timeout=300ms";
    let larder = Larder::with_upstream(&upstream, config);
    let mut client = larder.client();
    client.ask("GET", "/ws", "Connection: Upgrade\nUpgrade: websocket");
    let head = client.head().expect("a head");
    assert_eq!((&*head.line, head.get("content-length")), ("HTTP/1.1 101 Switching Protocols", None));
    assert_eq!(client.bytes(5).expect("bytes"), b"hello");
    assert!(client.is_closed());
    assert!(origin.join().expect("no panic").is_ok_and(|n| n == 0));
}

/// gunicorn as it comes, with two workers of which each serves one request at a time.
struct TwoWorkers {
    child: Child,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl TwoWorkers {
    /// `None` where gunicorn is not installed.
    fn start() -> Option<Self> {
        const APPLICATION: &str = r#"
def application(environ, start_response):
    if environ["PATH_INFO"] == "/large":
        body = b"x" * (8 << 20)
    elif environ["REQUEST_METHOD"] == "POST":
        body = str(len(environ["wsgi.input"].read())).encode()
    else:
        body = b"hello"
    start_response("200 OK", [("Cache-Control", "private"), ("Content-Length", str(len(body)))])
    return [body]
"#;
        let Some(gunicorn) = std::env::var_os("LARDER_TEST_GUNICORN") else {
            eprintln!("LARDER_TEST_GUNICORN does not name gunicorn; `make test` sets it");
            return None;
        };
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("page.py"), APPLICATION).expect("it is written");
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let child = Command::new(gunicorn)
            .args(["--workers", "2", "--bind", &format!("127.0.0.1:{port}"), "page:application"])
            .current_dir(directory.path())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("gunicorn starts");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let application = Self { child, address, _directory: directory };
        eventually("the application answers", || std::net::TcpStream::connect(address).is_ok());
        Some(application)
    }
}

impl Drop for TwoWorkers {
    fn drop(&mut self) {
        // gunicorn's own end takes its workers along.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

#[test]
fn two_sync_workers_are_free_whatever_clients_do_not_send_or_read() {
    let Some(application) = TwoWorkers::start() else { return };
    let larder = Process::start(
        &format!("http://{}", application.address),
        &["durable.url=off", "upstream.response_timeout=5s"],
    );
    let mut held = Vec::new();
    for n in 0..6 {
        let mut client: Client = larder.client();
        match n % 3 {
            0 => client.raw("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nxx"),
            1 => {
                client.raw("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n");
                client.raw(vec![b'x'; 99_000]);
            }
            _ => {
                client.ask("GET", "/large", "");
                client.head().expect("a head");
            }
        }
        held.push(client);
    }
    for _ in 0..10 {
        let answer = larder.get("/a", "");
        assert_eq!((answer.status(), answer.text().as_str()), (200, "hello"));
    }
    let mut client = larder.client();
    client.raw("POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    assert_eq!(client.answer().text(), "5", "what came in chunks is sent with its length");
    assert_eq!(held[2].bytes(8 * MIB).expect("all of it"), vec![b'x'; 8 * MIB]);
    held[1].raw(vec![b'x'; 1000]);
    assert_eq!(held[1].answer().text(), "100000");
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody_for_long() {
    let origin = Origin::new(|_, reply| {
        reply.begin("Cache-Control: max-age=60");
        for _ in 0..48 {
            reply.chunk(&"x".repeat(1 << 20));
        }
        reply.end();
    });
    let larder = Arc::new(Larder::new(&origin, "memory.max_object_size=1MiB"));
    let mut stuck = larder.client();
    stuck.ask("GET", "/a", "");
    origin.requests.wait_for(1);
    let others = {
        let larder = Arc::clone(&larder);
        std::thread::spawn(move || at_once(3, move |_| larder.get("/a", "").body.len()))
    };
    assert_eq!(others.join().expect("no panic"), [48 << 20; 3]);
    drop(stuck);
}
