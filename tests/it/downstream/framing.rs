//! Tests where a request ends: no body is taken for a request, and no conflicting framing passes.

use crate::support::{Gate, Larder, Origin};

#[test]
fn chunked_framing_that_is_broken_never_reaches_the_origin_as_a_whole() {
    let origin = Origin::echo();
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
    let origin = Origin::echo();
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
fn bodies_are_not_taken_for_heads() {
    let origin = Origin::answers(vec![(200, "", "x")]);
    let larder = Larder::new(&origin, "");
    let mut client = larder.client();
    let parts = "--b\r\nA: 1\r\n\r\n1\r\n--b\r\nB: 2\r\n\r\n2\r\n--b--\r\n";
    let plain = format!("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{parts}", parts.len());
    let chunked = "POST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n";
    for request in [&plain, &plain, chunked, &plain, chunked, chunked, "GET /c HTTP/1.1\r\nHost: h\r\n\r\n", chunked] {
        client.raw(request);
        assert_eq!(client.answer().status(), 200, "{request}");
    }
    let bad = "POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    client.raw(bad);
    assert_eq!(client.answer().status(), 400);
}

#[test]
fn conflicting_framing_is_seen_in_pipelines_and_behind_large_heads() {
    let origin = Origin::answers(vec![(200, "Cache-Control: max-age=60", "x")]);
    let larder = Larder::new(&origin, "");
    let bad = "POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let mut client = larder.client();
    client.raw(format!("GET /a HTTP/1.1\r\nHost: h\r\n\r\n{bad}"));
    assert_eq!((client.answer().status(), client.answer().status()), (200, 400));
    let mut client = larder.client();
    let padding = "x".repeat(40 << 10);
    client.raw(format!("POST /b HTTP/1.1\r\nHost: h\r\nX: {padding}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"));
    assert_eq!(client.answer().status(), 400);
    assert_eq!(origin.count(), 1);
}

#[test]
fn conflicting_framing_is_seen_behind_bare_line_feeds_and_while_another_is_answered() {
    let bad = "POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let gate = Gate::default();
    let origin = {
        let gate = gate.clone();
        Origin::new(move |_, reply| {
            gate.wait();
            reply.send(200, "", "x");
        })
    };
    let larder = Larder::new(&origin, "");
    let mut client = larder.client();
    client.raw("GET /a HTTP/1.1\r\nHost: h\r\n\r\n");
    origin.requests.wait_for(1);
    client.raw(bad);
    gate.open();
    assert_eq!((client.answer().status(), client.answer().status()), (200, 400));

    let mut client = larder.client();
    client.raw(format!("\r\n\r\nGET /a HTTP/1.1\nHost: h\n\n{bad}"));
    assert_eq!((client.answer().status(), client.answer().status()), (200, 400));
}
