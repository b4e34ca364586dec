//! Tests answers of the application that are not as they should be: what clients get, what is stored, and whether the
//! application counts as down.

use crate::support::{Client, Gate, Larder, Origin, Process, at_once, eventually};

/// An origin that answers `/odd` with some bytes, and hangs up behind them; anything else as usual.
fn odd(bytes: impl Into<String>) -> Origin {
    let bytes = bytes.into();
    Origin::new(move |seen, reply| match seen.path() {
        path if path.starts_with("/odd") => {
            reply.raw(&bytes);
            reply.hang_up();
        }
        path => reply.send(200, "Cache-Control: no-store", path),
    })
}

#[test]
fn a_length_that_is_none_is_never_passed_on() {
    for (lines, outcome) in [
        ("Content-Length: 4, 4", Some("4")),
        ("Content-Length: 4\r\nContent-Length: 4", Some("4")),
        ("Content-Length: 4,4\r\nContent-Length: 4", Some("4")),
        ("Content-Length: 4, 5", None),
        ("Content-Length: 4\r\nContent-Length: 5", None),
        ("Content-Length: +4", None),
        ("Content-Length: -4", None),
        ("Content-Length: 4 4", None),
        ("Content-Length: 0x4", None),
        ("Content-Length: 4,", None),
        ("Content-Length:", None),
        ("Content-Length: 18446744073709551616", None),
        ("Content-Length: 99999999999999999999999999", None),
    ] {
        for (method, status) in [("GET", "200 OK"), ("HEAD", "200 OK"), ("GET", "304 Not Modified")] {
            let body = if method == "GET" && status == "200 OK" { "abcd" } else { "" };
            let origin = odd(format!("HTTP/1.1 {status}\r\nCache-Control: max-age=60\r\n{lines}\r\n\r\n{body}"));
            let larder = Larder::new(&origin, "server.threads=1");
            for _ in 0..2 {
                let mut client = larder.client();
                client.ask(method, "/odd", "If-None-Match: \"x\"");
                let answer = client.answer();
                let about = format!("{method} {status} {lines}: {:?}", answer.head);
                match outcome {
                    Some(len) => {
                        assert_eq!(&answer.status().to_string(), &status[..3], "{about}");
                        assert!(answer.head.all("content-length").iter().all(|stated| *stated == len), "{about}");
                        assert_eq!(answer.text(), body, "{about}");
                    }
                    None => assert_eq!((answer.status(), answer.hit()), (502, None), "{about}"),
                }
                assert_eq!(client.get("/next", "").text(), "/next", "{about}");
            }
            assert_eq!(larder.metric("larder_origin_downs_total"), 0);
        }
    }
}

#[test]
fn what_has_no_content_gets_no_length_and_no_content() {
    for lines in ["Content-Length: 4", "Content-Length: 0", "Transfer-Encoding: chunked", "Content-Length: x"] {
        let origin = odd(format!("HTTP/1.1 204 No Content\r\n{lines}\r\n\r\nabcd"));
        let larder = Larder::new(&origin, "server.threads=1");
        let mut client = larder.client();
        for method in ["GET", "POST"] {
            let fields = if method == "POST" { "Content-Length: 0" } else { "" };
            let answer = client.send(method, "/odd", fields);
            assert_eq!(
                (answer.status(), answer.get("content-length"), answer.get("transfer-encoding")),
                (204, None, None)
            );
            assert_eq!(client.get("/next", "").text(), "/next");
        }
    }
}

#[test]
fn a_body_that_ends_with_its_connection_is_never_stored() {
    for (head, status) in [
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity", 200),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity", 200),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: identity", 200),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked,", 200),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, ,", 200),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding:", 200),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 400", 200),
        ("HTTP/1.1 200 OK\r\nX: 1", 200),
        ("HTTP/1.0 200 OK\r\nX: 1", 200),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked", 502),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked", 502),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: rot13, chunked", 502),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked", 502),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked", 502),
    ] {
        let origin = odd(format!("{head}\r\nCache-Control: max-age=60\r\n\r\n4\r\nabcd\r\n0\r\n\r\n"));
        let larder = Larder::new(&origin, "server.threads=1\nupstream.breaker_failures=2");
        for n in 1..=6 {
            let answer = larder.get("/odd", "");
            assert_eq!((answer.status(), answer.hit()), (status, None), "{head}");
            assert!(!answer.cache_status().contains("stored"), "{}", answer.cache_status());
            assert_eq!(origin.count(), n, "{head}");
        }
        assert_eq!(larder.metric("larder_origin_downs_total"), 0, "{head}");
    }
}

#[test]
fn a_response_with_two_framings_is_read_by_its_chunks_and_its_connection_not_used_again() {
    let origin = Origin::new(|_, reply| {
        reply.raw("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n");
    });
    let larder = Larder::new(&origin, "server.threads=1");
    let mut client = larder.client();
    for n in 1..=3 {
        let answer = client.get("/a", "");
        assert_eq!((answer.text().as_str(), answer.get("content-length")), ("abcd", None));
        assert_eq!(origin.connections.value(), n);
    }
}

#[test]
fn an_answer_that_cannot_be_taken_is_its_urls_fault_and_the_log_says_why() {
    let fields = |n: usize| (0..n).map(|i| format!("X-{i}: 1\r\n")).collect::<String>();
    for (head, sets, detail, said) in [
        (fields(101), &[][..], "origin-too-many-fields", Some("more than 100 fields (upstream.max_headers)")),
        (fields(30), &["upstream.max_headers=29"], "origin-too-many-fields", Some("(upstream.max_headers)")),
        (
            format!("X: {}\r\n", "x".repeat(300 << 10)),
            &[],
            "origin-head-too-large",
            Some("more than 262144 bytes (upstream.max_header_size)"),
        ),
        (
            format!("X: {}\r\n", "x".repeat(3000)),
            &["upstream.max_header_size=2KiB"],
            "origin-head-too-large",
            Some("(upstream.max_header_size)"),
        ),
        ("no field\r\n".into(), &[], "origin-broken", Some("is not HTTP")),
        (fields(99), &[], "", None),
        (fields(300), &["upstream.max_headers=400"], "", None),
        (format!("X: {}\r\n", "x".repeat(200 << 10)), &[], "", None),
        (format!("X: {}\r\n", "x".repeat(900 << 10)), &["upstream.max_header_size=1MiB"], "", None),
    ] {
        let origin = odd(format!("HTTP/1.1 200 OK\r\n{head}\r\n"));
        let mut all = vec!["durable.url=off", "upstream.breaker_failures=3"];
        all.extend(sets);
        let larder = Process::start(&origin.url(), &all);
        for n in 0..10 {
            let mut client = larder.client();
            client.ask("GET", &format!("/odd/{n}"), "");
            let head = client.head().expect("an answer");
            let status = head.get("cache-status").expect("it has one").to_owned();
            let expected = if said.is_some() { "HTTP/1.1 502 Bad Gateway" } else { "HTTP/1.1 200 OK" };
            assert_eq!(head.line, expected, "{status}");
            assert!(status.contains(detail), "{status}");
            assert_eq!(larder.get("/next", "").text(), "/next", "others are served");
        }
        assert_eq!(larder.metric("larder_origin_downs_total"), 0);
        if let Some(said) = said {
            eventually("the log says it of each URL", || {
                let log = larder.log();
                (0..10).all(|n| log.lines().any(|line| line.contains(&format!("/odd/{n}:")) && line.contains(said)))
            });
            larder.get("/odd/1", "");
            let lines = larder.log().lines().filter(|line| line.contains("/odd/1:")).count();
            assert_eq!(lines, 1, "once a minute");
        }
    }
}

#[test]
fn one_url_that_fails_is_not_an_application_that_is_down() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |seen, reply| match seen.path().split('?').next() {
            Some("/slow") => gate.wait(),
            Some("/breaks") => reply.hang_up(),
            _ => reply.send(200, "Cache-Control: no-store", "fine"),
        }
    });
    let config = "upstream.response_timeout=300ms\nupstream.breaker_failures=3\ncache.collapse_limit=1000";
    let larder = Larder::new(&origin, config);
    for n in 0..10 {
        assert_eq!(larder.get(&format!("/slow?{n}"), "").status(), 504);
        // On a busy machine it may be too late for that.
        assert!(matches!(larder.get(&format!("/breaks?{n}"), "").status(), 502 | 504));
    }
    assert_eq!(larder.metric("larder_origin_downs_total"), 0);
    eventually("others are served", || larder.get("/a", "").text() == "fine");
    gate.open();
}

#[test]
fn a_place_that_answers_others_is_not_down_however_many_of_its_pages_are_slow() {
    let origin = Origin::new(|seen, reply| {
        if seen.path().starts_with("/fast") {
            reply.send(200, "Cache-Control: no-store", "x");
        } else if seen.path().starts_with("/broken") {
            reply.hang_up();
        }
    });
    let larder = Larder::new(&origin, "upstream.response_timeout=300ms");
    let address = larder.address;
    let slow = std::thread::spawn(move || {
        at_once(30, move |n| {
            let kind = if n % 2 == 0 { "slow" } else { "broken" };
            Client::connect(address).get(&format!("/{kind}/{n}"), "").status()
        })
    });
    origin.requests.wait_for(20);
    let mut statuses = Vec::new();
    while !slow.is_finished() {
        statuses.push(larder.get(&format!("/fast/{}", statuses.len()), "").status());
    }
    assert!(slow.join().unwrap().iter().all(|status| matches!(status, 502 | 504)));
    assert!(statuses.len() > 5 && statuses.iter().all(|status| *status == 200), "{statuses:?}");
}

#[test]
fn content_length_beside_transfer_encoding_never_reaches_a_client() {
    let origin = Origin::new(|seen, reply| match seen.path() {
        "/odd" => reply.raw(
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nCache-Control: max-age=60\r\n\r\n\
             32\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil...\r\n0\r\n\r\n",
        ),
        path => reply.send(200, "", path),
    });
    let larder = Larder::new(&origin, "");
    let mut client = larder.client();
    for _ in 0..3 {
        let answer = client.get("/odd", "");
        assert!(answer.text().starts_with("helloHTTP") && answer.text().ends_with("evil..."), "{}", answer.text());
        assert_eq!(client.get("/next", "").text(), "/next");
    }
}

#[test]
fn a_body_that_ends_with_its_connection_is_passed_on_and_not_stored() {
    let origin = Origin::new(|_, reply| {
        reply.raw("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nConnection: close\r\n\r\nperhaps all of it");
        reply.hang_up();
    });
    let larder = Larder::new(&origin, "");
    for n in 1..=2 {
        assert_eq!(larder.get("/a", "").text(), "perhaps all of it");
        assert_eq!(origin.count(), n);
    }
}

#[test]
fn codings_and_protocols_that_nobody_asked_for_are_refused() {
    for (bytes, detail) in [
        ("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "origin-unsupported"),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\nCache-Control: max-age=60\r\n\r\n2\r\nzz\r\n0\r\n\r\n",
            "origin-unsupported",
        ),
    ] {
        let origin = Origin::new(move |_, reply| reply.raw(bytes));
        let larder = Larder::new(&origin, "");
        let answer = larder.get("/a", "");
        assert_eq!(answer.status(), 502);
        assert!(answer.cache_status().ends_with(detail), "{}", answer.cache_status());
    }
    let origin = Origin::answers(vec![(200, "", "x")]);
    let larder = Larder::new(&origin, "");
    let answer = larder.send_raw("POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n");
    assert_eq!(answer.status(), 501);
    assert_eq!(larder.send_raw("GET * HTTP/1.1\r\nHost: h\r\n\r\n").status(), 400);
    assert_eq!(origin.count(), 0);
}

#[test]
fn a_response_of_http_1_0_that_breaks_off_is_no_clean_end() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |_, reply| {
            reply.raw("HTTP/1.0 200 OK\r\n\r\nhalf of it");
            gate.wait();
        }
    });
    let larder = Larder::new(&origin, "upstream.body_timeout=200ms");
    let mut client = larder.client();
    client.ask("GET", "/a", "");
    let head = client.head().expect("a head");
    assert_eq!((head.line.as_str(), head.get("transfer-encoding")), ("HTTP/1.1 200 OK", Some("chunked")));
    assert_eq!(client.chunk().as_deref(), Some("half of it"));
    assert_eq!(client.chunk(), None, "no last chunk");
    gate.open();
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
