//! Tests what reaches the origin, and how: fields, bodies, upgrades, sockets.

use std::io::{Read, Write};

use crate::support::{Client, Gate, Larder, Origin, at_once};

#[test]
fn fields_are_made_those_of_a_forwarded_request() {
    let origin = Origin::answers(vec![(200, "Connection: X-Hop\nX-Hop: 1\nKeep-Alive: timeout=5\nX-Stays: 1", "x")]);
    let larder = Larder::new(&origin, "");
    let answer = larder.get(
        "/a?q=1",
        "Connection: X-Secret\nX-Secret: 1\nTE: trailers\nX-Forwarded-For: 1.2.3.4\nX-Forwarded-Host: evil\nForwarded: for=x\nX-Kept: 1",
    );
    let seen = origin.last().head;
    assert_eq!(seen.line, "GET /a?q=1 HTTP/1.1");
    assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!((seen.get("x-forwarded-proto"), seen.get("x-forwarded-host")), (Some("http"), Some("site.example")));
    assert_eq!((seen.get("host"), seen.get("x-kept")), (Some("site.example"), Some("1")));
    assert!(seen.get("via").is_some_and(|via| via.starts_with("1.1 larder-")), "{seen:?}");
    assert_eq!((seen.get("te"), seen.get("connection")), (Some("trailers"), Some("te")), "trailers are passed on");
    for gone in ["x-secret", "forwarded"] {
        assert_eq!(seen.get(gone), None, "{gone}");
    }
    assert_eq!((answer.get("x-hop"), answer.get("keep-alive"), answer.get("x-stays")), (None, None, Some("1")));
    assert!(answer.get("date").is_some());
    assert_eq!(answer.get("age"), Some("0"));
}

#[test]
fn a_trusted_proxy_is_believed_and_its_scheme_enters_the_key() {
    let origin = Origin::new(|seen, reply| {
        let scheme = seen.head.get("x-forwarded-proto").unwrap_or_default().to_owned();
        reply.send(200, "Cache-Control: max-age=60", &scheme);
    });
    let larder = Larder::new(&origin, "server.trusted_proxies=127.0.0.0/8");
    let https = "X-Forwarded-Proto: https\nX-Forwarded-For: 9.9.9.9";
    assert_eq!(larder.get("/a", https).text(), "https");
    assert_eq!(origin.last().head.get("x-forwarded-for"), Some("9.9.9.9, 127.0.0.1"));
    assert_eq!(larder.get("/a", "").text(), "http");
    assert_eq!(larder.get("/a", https).hit(), Some("memory"));
    let exact = r#"{"url": "https://site.example/a", "scheme": "exact"}"#;
    assert_eq!(larder.purge_of(exact).status(), 200);
    assert_eq!(larder.get("/a", https).hit(), None);
    assert_eq!(larder.get("/a", "").hit(), Some("memory"));
}

#[test]
fn a_fixed_host_is_sent_to_the_origin() {
    let origin = Origin::answers(vec![(200, "", "x")]);
    let larder = Larder::new(&origin, "upstream.host=app.internal");
    larder.get("/", "");
    let seen = origin.last().head;
    assert_eq!((seen.get("host"), seen.get("x-forwarded-host")), (Some("app.internal"), Some("site.example")));
}

#[test]
fn request_bodies_stream_in_both_framings() {
    let origin = Origin::new(|seen, reply| reply.send(200, "", &String::from_utf8_lossy(&seen.body)));
    let larder = Larder::new(&origin, "");
    let mut client = larder.client();
    client.raw("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(client.answer().text(), "hello");
    client
        .raw("POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n");
    assert_eq!(client.answer().text(), "hello world");
    let seen = origin.last().head;
    assert_eq!((seen.get("content-length"), seen.get("transfer-encoding")), (Some("11"), None), "many know no chunks");
    let larder = Larder::new(&origin, "upstream.buffer_request=0");
    let answer =
        larder.send_raw("POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    assert_eq!(answer.text(), "hello");
    let seen = origin.last().head;
    assert_eq!((seen.get("content-length"), seen.get("transfer-encoding")), (None, Some("chunked")));
}

#[test]
fn expect_100_continue_is_met_when_the_body_is_wanted() {
    let origin = Origin::new(|seen, reply| reply.send(200, "", &String::from_utf8_lossy(&seen.body)));
    let larder = Larder::new(&origin, "");
    let mut client = larder.client();
    client.raw("PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.head().expect("an interim answer").line, "HTTP/1.1 100 Continue");
    client.raw("hello");
    assert_eq!(client.answer().text(), "hello");
    assert_eq!(origin.last().head.get("expect"), None);
}

#[test]
fn an_upload_goes_at_the_origins_pace() {
    // The origin reads nothing until the gate opens: what the client can send before that is
    // bounded by buffers on the way, not by the size of the body.
    let gate = Gate::default();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let upstream = format!("http://{}", listener.local_addr().expect("an address"));
    let origin = std::thread::spawn({
        let gate = gate.clone();
        move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            gate.wait();
            let mut total = 0;
            let mut block = vec![0; 1 << 20];
            // The head is a few hundred bytes of it.
            while total < 64 << 20 {
                total += stream.read(&mut block).expect("it reads");
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").expect("it writes");
            // Kept open until the proxy is done with it.
            let _ = stream.read_to_end(&mut block);
        }
    });
    let config = "upstream.buffer_request=0";
    let larder = Larder::with_upstream(&upstream, config);
    let mut client = larder.client();
    client.raw(format!("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", 64 << 20));
    let stream = client.reader().get_ref().try_clone().expect("a stream");
    stream.set_nonblocking(true).expect("it is set");
    let block = vec![b'x'; 1 << 20];
    let (mut sent, mut refusals) = (0_usize, 0);
    // Until the way is full: nothing taken for a hundred tries in a row.
    while refusals < 100 {
        match (&stream).write(&block) {
            Ok(n) => (sent, refusals) = (sent + n, 0),
            Err(_) => {
                refusals += 1;
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
        assert!(sent < 32 << 20, "the body is taken in although nobody reads it");
    }
    gate.open();
    stream.set_nonblocking(false).expect("it is set");
    let mut left = (64 << 20) - sent;
    while left > 0 {
        let n = left.min(block.len());
        (&stream).write_all(&block[..n]).expect("it is taken now");
        left -= n;
    }
    assert_eq!(client.answer().text(), "ok");
    drop((client, larder));
    origin.join().expect("no panic");
}

#[test]
fn an_early_refusal_of_an_upload_reaches_the_client() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let upstream = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut head = [0; 1024];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!");
            let mut rest = vec![0; 1 << 16];
            while stream.read(&mut rest).is_ok_and(|n| n > 0) {}
        }
    });
    let config = "upstream.buffer_request=0";
    let larder = Larder::with_upstream(&upstream, config);
    let mut client = larder.client();
    client.raw(format!("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", 1 << 30));
    client.raw("some of it");
    let answer = client.answer();
    assert_eq!((answer.status(), answer.text().as_str()), (413, "no!"));
}

#[test]
fn a_websocket_is_tunnelled_both_ways() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let upstream = format!("http://{}", listener.local_addr().expect("an address"));
    let origin = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        let mut client = std::io::BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            std::io::BufRead::read_line(&mut client, &mut head).expect("a head");
        }
        let stream = client.get_mut();
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nhello")
            .expect("it writes");
        let mut echo = [0; 4];
        client.read_exact(&mut echo).expect("it reads");
        client.get_mut().write_all(&echo).expect("it writes");
        head
    });
    let larder = Larder::with_upstream(&upstream, "");
    let mut client = larder.client();
    client.ask(
        "GET",
        "/ws",
        "Connection: keep-alive, Upgrade, TE\nTE: trailers\nUpgrade: websocket\nSec-WebSocket-Key: k",
    );
    let head = client.head().expect("a head");
    assert_eq!(head.line, "HTTP/1.1 101 Switching Protocols");
    assert_eq!((head.get("upgrade"), head.get("sec-websocket-accept")), (Some("websocket"), Some("x")));
    assert_eq!(client.bytes(5).expect("bytes"), b"hello");
    client.raw("ping");
    assert_eq!(client.bytes(4).expect("bytes"), b"ping");
    assert!(client.is_closed(), "the end of one side is passed on");
    let seen = origin.join().expect("no panic");
    let seen = seen.to_ascii_lowercase();
    for line in ["upgrade: websocket\r\n", "te: trailers\r\n", "connection: upgrade, te\r\n"] {
        assert!(seen.contains(line), "{seen}");
    }
}

#[test]
fn an_upgrade_that_the_origin_declines_is_an_ordinary_answer() {
    let origin = Origin::answers(vec![(200, "Cache-Control: max-age=60", "plain")]);
    let larder = Larder::new(&origin, "");
    for _ in 0..2 {
        let answer = larder.get("/ws", "Connection: Upgrade\nUpgrade: websocket");
        assert_eq!((answer.text().as_str(), answer.fwd()), ("plain", Some("bypass")));
    }
}

#[test]
fn unix_sockets_on_both_sides() {
    let directory = tempfile::tempdir().expect("a directory");
    let (app, front) = (directory.path().join("app.sock"), directory.path().join("larder.sock"));
    let listener = std::os::unix::net::UnixListener::bind(&app).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            std::thread::spawn(move || {
                let mut head = [0; 4096];
                while stream.read(&mut head).is_ok_and(|n| n > 0) {
                    let _ = stream
                        .write_all(b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok");
                }
            });
        }
    });
    let config = format!("server.listen=[\"127.0.0.1:0\", \"unix:{}\"]", front.display());
    let larder = Larder::with_upstream(&format!("unix:{}", app.display()), &config);
    assert_eq!(larder.get("/a", "").fwd(), Some("uri-miss"));
    let mut stream = std::os::unix::net::UnixStream::connect(&front).expect("it listens");
    stream.write_all(b"GET /a HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n\r\n").expect("it writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.contains("larder; hit") && answer.ends_with("\r\n\r\nok"), "{answer}");
    larder.stop();
    assert!(!front.exists(), "the socket file goes with the process");
}

#[test]
fn a_dead_or_slow_origin_is_502_or_504_and_is_not_remembered() {
    let dead = Larder::with_upstream("http://127.0.0.1:1", "");
    let answer = dead.get("/a", "");
    assert_eq!((answer.status(), answer.cache_status()), (502, "larder; fwd=uri-miss; detail=connect-failed"));
    assert_eq!(answer.text(), "the application can't be reached\n");
    assert_eq!(answer.get("cache-control"), Some("no-store"));

    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |_, _| gate.wait()
    });
    let slow = std::sync::Arc::new(Larder::new(&origin, "upstream.response_timeout=100ms"));
    let answers = {
        let slow = std::sync::Arc::clone(&slow);
        at_once(5, move |_| slow.get("/a", "").status())
    };
    assert_eq!(answers, [504; 5]);
    let answer = slow.client().send("POST", "/a", "Content-Length: 0");
    assert_eq!((answer.status(), answer.cache_status()), (504, "larder; fwd=method; detail=response-timeout"));
    gate.open();
    assert_eq!(slow.metric("larder_flights"), 0);

    let broken = Origin::new(|_, reply| reply.raw("NONSENSE\r\n\r\n"));
    let broken = Larder::new(&broken, "");
    assert_eq!(broken.get("/a", "").cache_status(), "larder; fwd=uri-miss; detail=origin-broken");
}

#[test]
fn a_stalled_body_is_given_up() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |_, reply| {
            reply.begin("Cache-Control: max-age=60");
            reply.chunk("some");
            gate.wait();
        }
    });
    let larder = Larder::new(&origin, "upstream.body_timeout=100ms");
    let mut client: Client = larder.client();
    client.ask("GET", "/a", "");
    assert!(client.try_answer().is_err(), "never a clean end");
    gate.open();
    assert_eq!(larder.metric("larder_memory_objects"), 0);
}
