//! Tests request bodies: what is taken in before the application is asked, and how it is sent then.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use crate::support::{Client, Gate, Larder, Origin, at_once, eventually};
use larder::base::Stopwatch;

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| b'a' + u8::try_from((n * 7 + n / 251) % 26).expect("a letter")).collect()
}

/// A request with `body` in one of the two framings.
fn request(method: &str, body: &[u8], is_chunked: bool) -> Vec<u8> {
    let mut message = format!("{method} /up HTTP/1.1\r\nHost: site.example\r\n").into_bytes();
    if !is_chunked {
        message.extend(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
        message.extend(body);
        return message;
    }
    message.extend(b"Transfer-Encoding: chunked\r\n\r\n");
    for piece in body.chunks(10_000) {
        message.extend(format!("{:x}\r\n", piece.len()).as_bytes());
        message.extend(piece);
        message.extend(b"\r\n");
    }
    message.extend(b"0\r\n\r\n");
    message
}

fn echoing() -> Origin {
    Origin::new(|seen, reply| reply.send(200, "Cache-Control: max-age=60", &String::from_utf8_lossy(&seen.body)))
}

#[test]
fn nobody_who_has_not_sent_all_of_it_costs_the_application_anything() {
    let origin = echoing();
    let larder = Larder::new(&origin, "");
    let whole = bytes(100_000);
    let mut stalled = Vec::new();
    let mut expected = 0;
    for (head, sent) in [
        ("POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n", 2),
        ("POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n", 99_999),
        ("PUT /up HTTP/1.1\r\nHost: h\r\nContent-Length: 10737418240\r\n\r\n", 90_000),
        ("POST /up HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n186a0\r\n", 70_000),
        ("GET /up HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n", 2),
    ] {
        let mut client = larder.client();
        client.raw(head);
        client.raw(&whole[..sent]);
        stalled.push((client, sent));
        expected += sent;
    }
    eventually("all that they sent was taken", || {
        let (memory, files) = larder.buffered();
        memory + usize::try_from(files).unwrap() == expected
    });
    assert_eq!(origin.connections.value(), 0, "no connection is made for them");
    assert_eq!(larder.get("/other", "").status(), 200);
    assert_eq!((origin.count(), origin.connections.value()), (1, 1));
    for at in [0, 1] {
        let (client, sent) = &mut stalled[at];
        client.raw(&whole[*sent..]);
        assert_eq!(client.answer().body, whole);
    }
    // Those that break off are never seen.
    drop(stalled);
    eventually("nothing is held", || larder.buffered() == (0, 0));
    assert_eq!(origin.count(), 3);
}

#[test]
fn bodies_of_any_size_and_framing_arrive_whole() {
    let origin = echoing();
    for (config, is_always_whole) in [
        ("", true),
        ("upstream.buffer_request=1", true),
        ("upstream.spool=150KiB", false),
        ("upstream.spool=0", false),
        ("server.max_spooled=100KiB", false),
        ("server.spool_dir=/nowhere/at/all", false),
        ("upstream.buffer_request=0", false),
    ] {
        let larder = Larder::new(&origin, config);
        let mut client = larder.client();
        for len in [0, 1, 65_536, 65_537, 100_000, 1 << 20] {
            let body = bytes(len);
            if config.contains("max_spooled") && len > 200_000 {
                // At its client's pace it would hold the application.
                let mut refused = larder.client();
                refused.raw(request("POST", &body, false));
                let answer = refused.answer();
                assert_eq!((answer.status(), answer.get("retry-after")), (503, Some("1")));
                continue;
            }
            for (method, is_chunked) in
                [("POST", false), ("PUT", true), ("POST", true), ("GET", true), ("DELETE", false)]
            {
                client.raw(request(method, &body, is_chunked));
                let answer = client.answer();
                assert!(answer.body == body, "{config} {method} {len} {is_chunked}: {}", answer.status());
                assert_eq!(answer.get("cache-status").map(|status| status.contains("stored")), Some(false));
                let seen = origin.last();
                assert_eq!(seen.method(), method);
                if is_always_whole || (!is_chunked && len > 0) {
                    let stated = seen.head.get("content-length");
                    assert_eq!(stated, Some(&*len.to_string()), "{config} {method} {len} {is_chunked}");
                    assert_eq!(seen.head.get("transfer-encoding"), None);
                }
            }
        }
        drop(client);
        eventually("nothing is held", || larder.buffered() == (0, 0));
    }
}

#[test]
fn a_body_that_breaks_off_never_counts_as_whole() {
    let origin = echoing();
    for config in
        ["", "upstream.buffer_request=0", "upstream.spool=0", "upstream.buffer_request=1\nupstream.spool=8KiB"]
    {
        let larder = Larder::new(&origin, config);
        for is_chunked in [false, true] {
            let message = request("POST", &bytes(200_000), is_chunked);
            for sent in [150_000, message.len() - 1] {
                let mut client = larder.client();
                client.raw(&message[..sent]);
                drop(client);
            }
            let answer = larder.send_raw(
                "POST /up HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nnonsense\r\n",
            );
            assert_eq!(answer.status(), 400, "{config}");
        }
        eventually("nothing is held", || larder.buffered() == (0, 0));
        eventually("nobody is there", || larder.metric("larder_connections ") == 0);
        assert_eq!(larder.metric("larder_origin_down "), 0);
    }
    // A chunked body without its last byte may be taken for the last line of trailers; one with a length never.
    assert!(origin.seen().iter().all(|seen| seen.body.len() < 6 || seen.head.get("transfer-encoding").is_some()));
}

#[test]
fn temporary_files_have_no_names() {
    let directory = tempfile::tempdir().expect("a directory");
    let origin = echoing();
    let larder = Larder::new(&origin, &format!("server.spool_dir={}", directory.path().display()));
    let mut client = larder.client();
    client.raw(format!("POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", 1 << 20));
    client.raw(vec![b'x'; 1 << 19]);
    eventually("some of it is in a file", || larder.buffered().1 > 300_000);
    assert_eq!(std::fs::read_dir(directory.path()).expect("it is there").count(), 0);
    client.raw(vec![b'x'; 1 << 19]);
    assert_eq!(client.answer().body.len(), 1 << 20);
}

#[test]
fn leave_to_send_is_given_when_larder_begins_to_take_and_not_to_who_is_refused() {
    let origin = echoing();
    let larder = Larder::new(&origin, "server.max_body_size=1MiB");
    for (head, status) in [
        ("POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: 1048577", 413),
        ("POST /up HTTP/1.1\r\nHost: h\r\nHost: i\r\nContent-Length: 5", 400),
        ("TRACE /up HTTP/1.1\r\nHost: h\r\nContent-Length: 5", 405),
        ("POST /up HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked", 501),
    ] {
        assert_eq!(larder.send_raw(format!("{head}\r\nExpect: 100-continue\r\n\r\n")).status(), status, "{head}");
    }
    let mut client = larder.client();
    client.raw("PUT /up HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.head().expect("an interim answer").line, "HTTP/1.1 100 Continue");
    assert_eq!(origin.connections.value(), 0);
    client.raw("hello");
    assert_eq!(client.answer().text(), "hello");
}

#[test]
fn a_body_that_is_held_is_sent_again_where_its_request_may_be() {
    let origin = Origin::new(|seen, reply| {
        reply.send(200, "Cache-Control: no-store", &seen.body.len().to_string());
        // It was kept, and is gone when it is wanted again.
        reply.hang_up();
    });
    let larder = Larder::new(&origin, "server.threads=1");
    let mut client = larder.client();
    for n in 0..30 {
        let len = [10, 60_000, 300_000][n % 3];
        client.raw(request(["PUT", "DELETE", "OPTIONS"][n % 3], &bytes(len), n % 2 == 0));
        assert_eq!(client.answer().text(), len.to_string());
    }
}

/// An origin that reads `read` bytes of a request, refuses it, and closes while more comes in.
fn refusing(read: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let upstream = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            std::thread::spawn(move || {
                let mut block = vec![0; read];
                let _ = stream.read(&mut block);
                let _ =
                    stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!");
            });
        }
    });
    upstream
}

#[test]
fn a_refused_upload_gets_its_answer_every_time_and_the_application_is_not_down() {
    for (config, len) in [("", 8 << 20), ("upstream.buffer_request=0", 3 << 20), ("upstream.spool=0", 3 << 20)] {
        let larder = Larder::with_upstream(&refusing(1000), config);
        for n in 0..30 {
            let mut client = larder.client();
            let mut sending = client.reader().get_ref().try_clone().expect("a stream");
            let message = request("POST", &vec![b'x'; len], n % 2 == 0);
            let sender = std::thread::spawn(move || drop(sending.write_all(&message)));
            let answer = client.answer();
            assert_eq!((answer.status(), answer.text().as_str()), (413, "no!"), "{config}, try {n}");
            drop(client);
            sender.join().expect("no panic");
        }
        assert_eq!(larder.metric("larder_origin_downs_total"), 0);
        eventually("nothing is held", || larder.buffered() == (0, 0));
    }
}

#[test]
fn an_application_that_breaks_off_uploads_is_not_down() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let upstream = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut head = [0; 1000];
            let _ = stream.expect("a connection").read(&mut head);
        }
    });
    for config in ["", "upstream.buffer_request=0"] {
        let larder = Larder::with_upstream(&upstream, config);
        for n in 0..10 {
            let mut client = larder.client();
            let mut sending = client.reader().get_ref().try_clone().expect("a stream");
            let path = format!("POST /{n}");
            let message = request(&path, &vec![b'x'; 8 << 20], false);
            let message = String::from_utf8(message).expect("text").replace(" /up", "");
            let sender = std::thread::spawn(move || drop(sending.write_all(message.as_bytes())));
            assert_eq!(client.answer().status(), 502);
            drop(client);
            sender.join().expect("no panic");
        }
        assert_eq!(larder.metric("larder_origin_downs_total"), 0, "{config}");
    }
}

#[test]
fn past_what_may_be_buffered_uploads_are_refused_and_nothing_else() {
    let origin = echoing();
    let larder = Larder::new(&origin, "server.max_buffered=1MiB\nupstream.spool=0");
    let mut stalled: Vec<Client> = (0..10)
        .map(|_| {
            let mut client = larder.client();
            client.raw("POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: 64000\r\n\r\n");
            client.raw(vec![b'x'; 60_000]);
            client
        })
        .collect();
    eventually("the buffers are full", || larder.buffered().0 > (1 << 19) - 60_000);
    let refusal = at_once(1, {
        let address = larder.address;
        move |_| {
            // The first few take the room that is left.
            let mut kept = Vec::new();
            loop {
                let mut client = Client::connect(address);
                client.raw("POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: 64000\r\nExpect: 100-continue\r\n\r\n");
                let head = client.head().expect("an answer");
                if head.line != "HTTP/1.1 100 Continue" {
                    return head;
                }
                client.raw(vec![b'x'; 60_000]);
                kept.push(client);
            }
        }
    });
    assert_eq!((&*refusal[0].line, refusal[0].get("retry-after")), ("HTTP/1.1 503 Service Unavailable", Some("1")));
    assert_eq!(larder.get("/a", "").status(), 200);
    eventually("fetches are as they were", || larder.get("/a", "").hit() == Some("memory"));
    for client in stalled.iter_mut().take(3) {
        client.raw(vec![b'x'; 4000]);
        assert_eq!(client.answer().status(), 200, "who is being taken in is finished");
    }
    drop(stalled);
    eventually("nothing is held", || larder.buffered() == (0, 0));
    assert_eq!(larder.send_raw(request("POST", b"hello", false)).text(), "hello");
}

#[test]
fn who_sends_slower_than_the_least_rate_is_given_up_and_the_application_not_blamed() {
    let origin = echoing();
    let larder = Arc::new(Larder::new(
        &origin,
        "server.min_body_rate=1KiB\nrule=[{path = \"/any\", min_body_rate = \"0\"}, {path = \"/live\", buffer_request = \"0\"}]",
    ));
    let outcomes = at_once(3, {
        let larder = Arc::clone(&larder);
        move |n| {
            let path = ["/up", "/any", "/live"][n];
            let mut client = larder.client();
            let mut sending = client.reader().get_ref().try_clone().expect("a stream");
            let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 120\r\n\r\n");
            let watch = Stopwatch::start();
            let sender = std::thread::spawn(move || {
                let _ = sending.write_all(head.as_bytes());
                for _ in 0..120 {
                    // The passing of time is what is tested here.
                    std::thread::sleep(std::time::Duration::from_millis(200));
                    if sending.write_all(b"x").is_err() {
                        return;
                    }
                }
            });
            let status = client.answer().status();
            drop(client);
            sender.join().expect("no panic");
            (status, watch.elapsed().as_secs() >= 20)
        }
    });
    assert_eq!(outcomes, [(408, true), (200, true), (408, true)]);
    assert_eq!(larder.metric("larder_origin_downs_total"), 0);
}

#[test]
fn a_rule_lets_bodies_pass_as_they_come() {
    let gate = Gate::default();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let upstream = format!("http://{}", listener.local_addr().expect("an address"));
    let origin = std::thread::spawn({
        let gate = gate.clone();
        move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut seen = Vec::new();
            let mut block = [0; 4096];
            while !seen.ends_with(b"first\r\n") {
                let n = stream.read(&mut block).expect("it reads");
                seen.extend(&block[..n]);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst").expect("it writes");
            gate.wait();
            while !seen.ends_with(b"0\r\n\r\n") {
                let n = stream.read(&mut block).expect("it reads");
                seen.extend(&block[..n]);
            }
            stream.write_all(b"later").expect("it writes");
        }
    });
    let config = "rule=[{path = \"/live/*\", buffer_request = \"0\"}]";
    let larder = Larder::with_upstream(&upstream, config);
    let mut client = larder.client();
    client.raw("POST /live/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
    assert_eq!(client.head().expect("a head").line, "HTTP/1.1 200 OK");
    assert_eq!(client.bytes(5).expect("bytes"), b"first", "both directions at once");
    gate.open();
    client.raw("5\r\nlater\r\n0\r\n\r\n");
    assert_eq!(client.bytes(5).expect("bytes"), b"later");
    origin.join().expect("no panic");
}

#[test]
fn interim_responses_to_an_upload_reach_its_client() {
    let origin = Origin::new(|seen, reply| {
        reply.raw("HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nContent-Length: 3\r\n\r\n");
        reply.send(200, "", &seen.body.len().to_string());
    });
    let larder = Larder::new(&origin, "");
    for len in [5, 300_000] {
        let mut client = larder.client();
        let message = request("POST", &bytes(len), false);
        let message = String::from_utf8(message).expect("text").replacen("\r\n", "\r\nExpect: 100-continue\r\n", 1);
        let (head, body) = message.split_once("\r\n\r\n").expect("a head");
        client.raw(format!("{head}\r\n\r\n"));
        assert_eq!(client.head().expect("an interim answer").line, "HTTP/1.1 100 Continue");
        client.raw(body);
        let hints = client.head().expect("an interim answer");
        assert_eq!(hints.line, "HTTP/1.1 103 Early Hints");
        assert_eq!((hints.get("link"), hints.get("content-length")), (Some("</a.css>; rel=preload"), None));
        assert_eq!(client.answer().text(), len.to_string());
    }
}

#[test]
fn a_get_with_content_ends_its_connection_to_the_application() {
    // An application that does not read the content of a GET would take it for the next request.
    let origin = echoing();
    for config in ["", "upstream.buffer_request=0"] {
        let larder = Larder::new(&origin, &format!("server.threads=1\n{config}"));
        let before = origin.connections.value();
        let mut client = larder.client();
        for is_chunked in [false, true] {
            let inner = b"GET /smuggled HTTP/1.1\r\nHost: site.example\r\n\r\n";
            client.raw(request("GET", inner, is_chunked));
            assert_eq!(client.answer().body, inner);
            assert_eq!(origin.last().head.get("connection"), Some("close"));
        }
        client.raw(request("POST", b"x", false));
        client.answer();
        assert_eq!(origin.last().head.get("connection"), None);
        client.raw(request("POST", b"x", false));
        client.answer();
        assert_eq!(origin.connections.value() - before, 3, "those of the POSTs are one");
    }
    assert!(origin.seen().iter().all(|seen| seen.path() == "/up"));
}

#[test]
fn what_an_application_left_unread_of_a_body_is_nobodys_request() {
    // Answers by the head alone and goes on to read whatever comes as the next request.
    let origin = Origin::without_bodies(|seen, reply| {
        let fields = if seen.method() == "GET" { "Cache-Control: max-age=60" } else { "" };
        let status = if seen.method() == "POST" { 404 } else { 200 };
        reply.send(status, fields, seen.path());
    });
    let larder = Larder::new(&origin, "server.threads=1");
    let smuggled = "GET /evil HTTP/1.1\r\nHost: evil\r\nX: ";
    for method in ["GET", "HEAD", "OPTIONS", "DELETE", "POST", "PROPFIND", "REPORT"] {
        let mut client = larder.client();
        client.ask(method, &format!("/{method}"), &format!("Content-Length: {}", smuggled.len()));
        client.raw(smuggled);
        client.answer();
        for n in 0..2 {
            let path = format!("/home/{method}/{n}");
            assert_eq!(larder.get(&path, "").text(), path, "{method}");
        }
    }
}
