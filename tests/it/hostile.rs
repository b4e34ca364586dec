//! What HTTP forbids, and what nobody should send: a clear answer, nothing stored, and the next
//! request served.

use crate::support::{Gate, Larder, Origin, eventually};

fn origin() -> Origin {
    Origin::new(|seen, reply| {
        reply.send(200, "Cache-Control: max-age=60", &format!("{} {}", seen.method(), seen.path()));
    })
}

/// Sends `bytes` on a connection of its own; the status and the sentence.
fn refused(larder: &Larder, bytes: &str) -> (u16, String) {
    let mut client = larder.client();
    client.raw(bytes);
    let answer = client.try_answer().unwrap_or_else(|error| panic!("{error}: {bytes:.80}"));
    assert!(answer.get("cache-status").is_some_and(|status| status.starts_with("larder; detail=")), "{bytes:.80}");
    assert_eq!(answer.get("age"), Some("0"), "{bytes:.80}");
    assert!(answer.get("connection") != Some("close") || client.is_closed(), "{bytes:.80}");
    (answer.status(), answer.text())
}

#[test]
fn forbidden_requests_get_one_plain_sentence() {
    let origin = origin();
    let larder = Larder::new(&origin, "");
    let huge = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let large = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(70 << 10));
    let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: 1\r\n".repeat(200));
    let both = "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let both_reversed =
        "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\ncontent-LENGTH: 5\r\n\r\n0\r\n\r\n";
    for (bytes, status, sentence) in [
        ("NONSENSE\r\n\r\n", 400, "this is not a request that HTTP/1.1 allows"),
        ("GET / HTTP/9.9\r\n\r\n", 400, "this is not a request that HTTP/1.1 allows"),
        ("GET / HTTP/1.1\r\nHost : h\r\n\r\n", 400, "this is not a request that HTTP/1.1 allows"),
        ("GET / HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n", 400, "this is not a request that HTTP/1.1 allows"),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            400,
            "this is not a request that HTTP/1.1 allows",
        ),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", 400, "this is not a request that HTTP/1.1 allows"),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n",
            400,
            "this is not a request that HTTP/1.1 allows",
        ),
        (both, 400, "the request has both Content-Length and Transfer-Encoding"),
        (both_reversed, 400, "the request has both Content-Length and Transfer-Encoding"),
        (&huge, 431, "the request's head is larger than this server takes"),
        (&large, 431, "the request's head is larger than this server takes"),
        (&many, 431, "the request's head is larger than this server takes"),
        ("GET / HTTP/1.1\r\n\r\n", 400, "the request has no Host field"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, "the request has more than one Host field"),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "the Host field is not a host name"),
        ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400, "the Host field is not a host name"),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 405, "this server does not answer CONNECT or TRACE"),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405, "this server does not answer CONNECT or TRACE"),
    ] {
        assert_eq!(refused(&larder, bytes), (status, format!("{sentence}\n")), "{bytes:.80}");
    }
    assert_eq!(origin.count(), 0, "none of it reached the origin");
    assert_eq!(larder.get("/after", "").text(), "GET /after");
    assert_eq!(larder.metric("larder_memory_objects"), 1);
    eventually("the connections are gone", || larder.metric("larder_connections ") == 0);
}

#[test]
fn chunked_framing_that_is_broken_never_reaches_the_origin_as_a_whole() {
    let origin = origin();
    let larder = Larder::new(&origin, "");
    for body in ["zz\r\nhello\r\n0\r\n\r\n", "5\r\nhelloX0\r\n\r\n", "fffffffffffffffff\r\n"] {
        let mut client = larder.client();
        client.raw(format!("POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{body}"));
        if let Ok(answer) = client.try_answer() {
            assert!((400..=502).contains(&answer.status()), "{body}: {}", answer.status());
        }
    }
    assert_eq!(larder.get("/after", "").text(), "GET /after");
}

#[test]
fn a_body_on_a_hit_is_not_the_next_request() {
    let origin = origin();
    let larder = Larder::new(&origin, "");
    larder.get("/page", "");
    let mut client = larder.client();
    // The body looks like a request. It is a GET with content, so it goes to the origin.
    let inner = "GET /smuggled HTTP/1.1\r\nHost: site.example\r\n\r\n";
    client.raw(format!("GET /page HTTP/1.1\r\nHost: site.example\r\nContent-Length: {}\r\n\r\n{inner}", inner.len()));
    client.ask("GET", "/next", "");
    assert_eq!(client.answer().text(), "GET /page");
    assert_eq!(client.answer().text(), "GET /next");
    assert!(origin.seen().iter().all(|seen| seen.path() != "/smuggled"));
    // The same on a request that is answered without the origin: by a refusal.
    let mut client = larder.client();
    client.raw(format!("POST /x HTTP/1.1\r\nContent-Length: {}\r\n\r\n{inner}", inner.len()));
    assert_eq!(client.answer().status(), 400);
    client.raw("GET /next HTTP/1.1\r\nHost: site.example\r\n\r\n");
    if let Ok(answer) = client.try_answer() {
        assert_eq!(answer.text(), "GET /next");
    }
    assert!(origin.seen().iter().all(|seen| seen.path() != "/smuggled"));
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let origin = origin();
    let larder = Larder::new(&origin, "");
    larder.get("/hit", "");
    let mut client = larder.client();
    for path in ["/1", "/hit", "/2", "/hit"] {
        client.ask("GET", path, "");
    }
    for path in ["/1", "/hit", "/2", "/hit"] {
        assert_eq!(client.answer().text(), format!("GET {path}"));
    }
    // A bad one at the end gets its answer after the good ones have theirs.
    client.ask("GET", "/3", "");
    client.raw("NONSENSE\r\n\r\n");
    assert_eq!(client.answer().text(), "GET /3");
    assert_eq!(client.answer().status(), 400);
    assert!(client.is_closed());
}

#[test]
fn http_1_0_is_served() {
    let origin = Origin::new(|_, reply| {
        reply.begin("Cache-Control: max-age=60");
        reply.chunk("hello");
        reply.end();
    });
    let larder = Larder::new(&origin, "");
    for _ in 0..2 {
        let mut client = larder.client();
        client.raw("GET /a HTTP/1.0\r\n\r\n");
        let answer = client.answer();
        assert_eq!((answer.status(), answer.text().as_str(), answer.get("transfer-encoding")), (200, "hello", None));
    }
    assert_eq!(origin.count(), 1);
}

#[test]
fn odd_answers_of_the_origin_do_no_harm() {
    for (bytes, status) in [
        // More than was announced: the rest is no response to anything.
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nCache-Control: max-age=60\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            200,
        ),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200),
        ("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200),
        ("HTTP/1.1 204 No Content\r\nCache-Control: max-age=60\r\n\r\n", 204),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", 502),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 200),
        ("HTTP/2 200\r\n\r\n", 502),
        ("\0\0\0\0", 502),
    ] {
        let origin = Origin::new(move |seen, reply| match seen.path() {
            "/odd" => {
                reply.raw(bytes);
                if bytes.starts_with('\0') {
                    reply.hang_up();
                }
            }
            path => reply.send(200, "", path),
        });
        let larder = Larder::new(&origin, "server.threads=1");
        let mut client = larder.client();
        let mut answer = client.get("/odd", "");
        if answer.status() == 103 {
            answer = client.answer();
        }
        assert_eq!(answer.status(), status, "{bytes:.80}");
        for path in ["/a", "/b"] {
            assert_eq!(client.get(path, "").text(), path, "{bytes:.80}");
        }
    }
}

#[test]
fn a_head_that_never_ends_is_timed_out() {
    let origin = origin();
    let larder = Larder::new(&origin, "server.header_timeout=100ms\nserver.idle_timeout=200ms");
    let mut half = larder.client();
    half.raw("GET /a HTTP/1.1\r\nHos");
    let mut idle = larder.client();
    idle.get("/a", "");
    assert!(half.is_closed());
    assert!(idle.is_closed());
    eventually("the connections are gone", || larder.metric("larder_connections ") == 0);
    assert_eq!(larder.get("/a", "").text(), "GET /a");
}

#[test]
fn too_many_connections_are_told_so() {
    let origin = origin();
    let larder = Larder::new(&origin, "server.max_connections=2");
    let (mut a, mut b) = (larder.client(), larder.client());
    a.get("/a", "");
    b.get("/a", "");
    let mut c = larder.client();
    c.ask("GET", "/a", "");
    let answer = c.answer();
    assert_eq!((answer.status(), answer.get("retry-after")), (503, Some("1")));
    assert_eq!(answer.text(), "too many connections are open here\n");
    drop((a, c));
    eventually("there is room again", || {
        let mut client = larder.client();
        client.ask("GET", "/a", "");
        client.try_answer().is_ok_and(|answer| answer.status() == 200)
    });
}

#[test]
fn a_client_that_stops_sending_is_timed_out_and_the_origin_is_not_blamed() {
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: no-store", "x"));
    let larder = Larder::new(&origin, "server.body_timeout=200ms\nupstream.response_timeout=100ms");
    for framing in ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"] {
        for _ in 0..6 {
            let mut client = larder.client();
            client.raw(format!("POST /a HTTP/1.1\r\nHost: site.example\r\n{framing}"));
            let answer = client.answer();
            assert_eq!((answer.status(), answer.get("connection")), (408, Some("close")), "{framing}");
            assert!(answer.cache_status().contains("detail=request-timeout"), "{}", answer.cache_status());
            assert!(client.is_closed());
        }
    }
    assert_eq!(larder.metric("larder_origin_down "), 0);
    assert_eq!(larder.get("/a", "").status(), 200);
}

#[test]
fn a_request_body_past_the_limit_is_refused_and_never_read_as_a_request() {
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: no-store", "x"));
    let larder = Larder::new(&origin, "server.max_body_size=1KiB");
    let inner = "GET /smuggled HTTP/1.1\r\nHost: site.example\r\n\r\n".repeat(40);
    let chunked = format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len());
    for framed in [format!("Content-Length: {}\r\n\r\n{inner}", inner.len()), chunked] {
        let mut client = larder.client();
        client.raw(format!("POST /a HTTP/1.1\r\nHost: site.example\r\n{framed}"));
        let answer = client.answer();
        assert_eq!((answer.status(), answer.get("connection")), (413, Some("close")));
        assert!(client.is_closed());
    }
    assert!(origin.seen().iter().all(|seen| seen.path() != "/smuggled"));
    let mut client = larder.client();
    client.raw(format!("POST /a HTTP/1.1\r\nHost: site.example\r\nContent-Length: 1024\r\n\r\n{}", "x".repeat(1024)));
    assert_eq!(client.answer().status(), 200);
    assert_eq!(client.get("/a", "").status(), 200, "and its connection goes on");
}

#[test]
fn what_clients_hold_keeps_others_from_nothing_but_large_bodies_in_memory() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |seen, reply| {
            if seen.path() == "/medium" {
                return reply.send(200, "Cache-Control: max-age=60", &"x".repeat(100_000));
            }
            if !seen.path().starts_with("/large") {
                return reply.send(200, "Cache-Control: max-age=60", "x");
            }
            reply.begin("Cache-Control: max-age=60");
            reply.chunk(&"x".repeat(3 << 19));
            gate.wait();
            reply.end();
        }
    });
    let larder = Larder::new(&origin, "server.max_buffered=1MiB");
    larder.get("/a", "");
    let mut slow = larder.client();
    slow.ask("GET", "/large", "");
    slow.head().expect("a head");
    eventually("it holds much", || larder.metric("larder_fill_bytes") > 1 << 20);
    // Small pages are kept as ever, larger ones pass, and nobody is told otherwise.
    assert!(larder.get("/small", "").cache_status().contains("stored"));
    assert_eq!(larder.get("/small", "").hit(), Some("memory"));
    for _ in 0..2 {
        let medium = larder.get("/medium", "");
        assert_eq!((medium.body.len(), medium.hit(), medium.cache_status().contains("stored")), (100_000, None, false));
    }
    // At twice as much, those that need the application wait.
    let mut another = larder.client();
    another.ask("GET", "/large2", "");
    another.head().expect("a head");
    eventually("it holds too much", || larder.metric("larder_fill_bytes") >= 1 << 20);
    let more: Vec<_> = (3..8)
        .map(|n| {
            let mut client = larder.client();
            client.ask("GET", &format!("/large{n}"), "");
            client
        })
        .collect();
    eventually("it holds too much", || larder.metric("larder_held_bytes") >= 2 << 20);
    let refused = larder.get("/b", "");
    assert_eq!((refused.status(), refused.get("retry-after")), (503, Some("1")));
    assert!(refused.cache_status().contains("detail=overloaded"), "{}", refused.cache_status());
    assert_eq!(larder.get("/a", "").hit(), Some("memory"));
    assert_eq!(larder.client().send("POST", "/a", "Content-Length: 0").status(), 200, "nothing of it is kept");
    gate.open();
    drop((slow, another, more));
    eventually("nobody does", || larder.metric("larder_held_bytes") == 0);
    assert_eq!(larder.get("/b", "").status(), 200);
}

#[test]
fn targets_with_signs_that_browsers_send_are_answered_under_one_key() {
    let origin = Origin::new(|seen, reply| {
        let path = seen.path().to_owned();
        reply.send(200, "Cache-Control: max-age=60", &path);
    });
    let larder = Larder::new(&origin, "");
    for (raw, escaped) in [
        ("/a\"b", "/a%22b"),
        ("/a<b>", "/a%3Cb%3E"),
        ("/a`b", "/a%60b"),
        ("/?q=\"x\"&r=<y>`", "/?q=%22x%22&r=%3Cy%3E%60"),
        ("http://site.example/c\"d", "/c%22d"),
    ] {
        let answer = larder.get(raw, "If-None-Match: \"x\"");
        assert_eq!((answer.status(), answer.text().as_str()), (200, escaped), "{raw}");
        assert_eq!(larder.get(escaped, "").hit(), Some("memory"), "{raw}");
        // Byte by byte, and behind another request on the same connection.
        let mut client = larder.client();
        for _ in 0..2 {
            for byte in format!("GET {raw} HTTP/1.1\r\nHost: site.example\r\n\r\n").bytes() {
                client.raw([byte]);
            }
            assert_eq!(client.answer().hit(), Some("memory"), "{raw}");
        }
    }
    // A long target grows past what was read of it.
    let long = format!("/{}", "\"".repeat(10_000));
    assert_eq!(larder.get(&long, "").text().len(), 30_001);
    // Nowhere else are they let through, and what follows a body is read as it was sent.
    assert_eq!(larder.client().send("G\"T", "/", "").status(), 400);
    let mut client = larder.client();
    client.raw("POST /p HTTP/1.1\r\nHost: site.example\r\nContent-Length: 7\r\n\r\n\"<\n>\"` ");
    assert_eq!(client.answer().status(), 200);
    assert_eq!(origin.last().body, b"\"<\n>\"` ");
}

#[test]
fn no_spelling_of_a_private_page_gets_another_pages_terms() {
    // Says nothing of its lifetime, as pages of one user often do.
    let origin = Origin::new(|_, reply| reply.send(200, "", "mine"));
    let rules = "rule=[{path=\"/static/*\", timeout=\"1h\"}, {path=\"*.css\", override_timeout=\"1h\"}, {path=\"/admin*\", bypass=true}]";
    let larder = Larder::new(&origin, rules);
    for path in [
        "/static/../account",
        "/static/%2e%2e/account",
        "/static/..%2faccount",
        "/static/..;/account",
        "/static/..;a=b/account",
        "/static/..%3b/account",
        "/static/%252e%252e/account",
        "/static/..%00/account",
        "/static/.%2e/account",
        "/static/..%5caccount",
        "/account;x.css",
        "/account%3bx.css",
        "/account%00.css",
        "/account%23.css",
        "/account%3f.css",
        "/account%253f.css",
        "/account%0a.css",
        "/account%0d.css",
        "/static/..%2fadmin/x",
        "/static/..;/admin/x",
        "/admin%00/../static/x",
    ] {
        for _ in 0..2 {
            assert_eq!(larder.get(path, "").hit(), None, "{path}");
        }
    }
    for path in ["/static/a.js", "/static/a;v=1.js", "/static/a%20b", "/a.css", "/caf%C3%A9.css"] {
        larder.get(path, "");
        assert_eq!(larder.get(path, "").hit(), Some("memory"), "{path}");
    }
    // A parameter that another one may hide in is part of the key.
    let larder = Larder::new(&origin, "cache.default_timeout=1h\nrule=[{path=\"/*\", ignore_query=[\"utm_*\"]}]");
    larder.get("/a?utm_source=x", "");
    assert_eq!(larder.get("/a?utm_medium=y", "").hit(), Some("memory"));
    assert_eq!(larder.get("/a?utm_source=x;admin=1", "").hit(), None);
}

#[test]
fn a_hit_that_nobody_reads_counts_until_it_is_over_whatever_memory_has_given_up() {
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=60", &"x".repeat(8 << 20)));
    let larder = Larder::new(&origin, "memory.capacity=20MiB\nserver.max_buffered=24MiB");
    let mut unread = Vec::new();
    for n in 0..6 {
        larder.get(&format!("/{n}"), "");
        for _ in 0..2 {
            let mut client = larder.client();
            client.ask("GET", &format!("/{n}"), "");
            assert!(client.head().is_some());
            unread.push(client);
        }
    }
    let held = larder.metric("larder_held_bytes");
    assert!(held >= 24 << 20, "those that memory gave up are counted, each once: {held}");
    assert!(held <= 40 << 20, "past that none is kept to be held: {held}");
    drop(unread);
    eventually("nobody reads any", || larder.metric("larder_held_bytes") == 0);
}
