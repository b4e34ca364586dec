//! Tests what HTTP forbids, and what nobody should send: a clear answer, nothing stored, and the next request served.

use crate::support::{Larder, Origin, eventually};

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
    let origin = Origin::echo();
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
fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::echo();
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
        let answer = larder.send_raw("GET /a HTTP/1.0\r\n\r\n");
        assert_eq!((answer.status(), answer.text().as_str(), answer.get("transfer-encoding")), (200, "hello", None));
    }
    assert_eq!(origin.count(), 1);
}

#[test]
fn a_head_that_never_ends_is_timed_out() {
    let origin = Origin::echo();
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
    let origin = Origin::echo();
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
fn the_public_listener_says_what_it_takes_instead_of_what_it_does_not() {
    let origin = Origin::cacheable();
    let larder = Larder::new(&origin, "");
    for line in ["CONNECT a:80", "TRACE /", "PURGE /"] {
        let answer = larder.send_raw(format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(answer.status(), 405, "{line}");
        let allow = answer.get("allow").expect("RFC 9110 15.5.6");
        assert!(allow.contains("GET") && !allow.contains(line.split(' ').next().unwrap()), "{allow}");
    }
}
