//! Tests who is answered on the admin listener: by token, name and origin, and within which limits.

use crate::support::{Client, Larder, Origin, eventually};

#[test]
fn admin_answers_and_keeps_strangers_out() {
    let origin = Origin::answers(vec![(200, "Cache-Control: max-age=60", "x")]);
    let larder = Larder::new(&origin, "admin.token=secret");
    larder.get("/a", "");
    larder.get("/a", "");
    let ask = |method: &str, path: &str, fields: &str| Client::connect(larder.admin).send(method, path, fields);
    assert_eq!(ask("GET", "/healthz", "").status(), 200);
    assert_eq!(ask("GET", "/readyz", "").status(), 200);
    for fields in ["", "Authorization: Bearer wrong", "Authorization: Bearer secre", "Authorization: Basic secret"] {
        assert_eq!(ask("GET", "/metrics", fields).status(), 401, "{fields}");
        assert_eq!(ask("POST", "/purge", fields).status(), 401, "{fields}");
    }
    let metrics = ask("GET", "/metrics", "Authorization: Bearer secret").text();
    for line in [
        "larder_requests_total{status=\"hit\",tier=\"memory\"} 1",
        "larder_requests_total{status=\"fwd\",fwd=\"uri-miss\"} 1",
        "larder_origin_requests_total{outcome=\"answered\"} 1",
        "larder_memory_objects 1",
        "larder_flights 0",
        "larder_fill_bytes 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} in\n{metrics}");
    }
    assert_eq!(ask("DELETE", "/purge", "Authorization: Bearer secret").status(), 405);
    assert_eq!(ask("GET", "/nothing", "Authorization: Bearer secret").status(), 404);
    assert_eq!(larder.get("/purge", "").fwd(), Some("uri-miss"), "the public listener knows nothing of it");
}

#[test]
fn the_admin_listener_answers_its_own_names_and_no_web_page() {
    let origin = Origin::cacheable();
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
fn a_web_page_cannot_purge_through_its_visitors_browser() {
    let origin = Origin::answers(vec![(200, "Cache-Control: max-age=60", "x")]);
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    let mut browser = Client::connect(larder.admin);
    let body = "{\"url\": \"http://site.example/a\"}";
    browser.raw(format!(
        "POST /purge HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    assert_eq!(browser.answer().status(), 403);
    assert_eq!(larder.get("/a", "").hit(), Some("memory"));
}

#[test]
fn the_admin_listener_has_limits_of_time_and_number_and_size() {
    let origin = Origin::cacheable();
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
