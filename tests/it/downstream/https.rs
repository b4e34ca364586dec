//! Tests the redirect to https, and Strict-Transport-Security.

use crate::support::{Larder, Origin};

const BEHIND_TLS: &str = "server.trusted_proxies=127.0.0.1\nserver.redirect_to_https=true\n";

/// The host that a client asked for, its target, and where it is sent.
const SENT: &[(&str, &str, &str)] = &[
    ("shop.example", "/a?b=c", "https://shop.example/a?b=c"),
    ("shop.example:80", "/", "https://shop.example/"),
    ("shop.example:8080", "/a", "https://shop.example/a"),
    ("[2001:db8::1]:8080", "/a", "https://[2001:db8::1]/a"),
    ("[2001:db8::1]", "/a", "https://[2001:db8::1]/a"),
    ("shop.example", "http://shop.example/x", "https://shop.example/x"),
    ("shop.example", "//evil.example/x", "https://shop.example//evil.example/x"),
];

#[test]
fn who_comes_by_http_is_sent_to_https_with_method_host_and_target() {
    let origin = Origin::long_lived();
    let larder = Larder::new(&origin, BEHIND_TLS);
    for (host, target, location) in SENT {
        for method in ["GET", "HEAD", "POST"] {
            let answer = larder.send_raw(format!(
                "{method} {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            ));
            assert_eq!((answer.status(), answer.get("location")), (308, Some(*location)), "{method} {host} {target}");
            assert_eq!(answer.get("cache-control"), Some("no-store"));
            assert_eq!(answer.get("strict-transport-security"), None, "RFC 6797 §7.2");
        }
    }
    assert_eq!(origin.count(), 0, "the application is not asked");
}

#[test]
fn who_came_by_https_to_a_trusted_proxy_is_not_sent_round_in_circles() {
    let origin = Origin::long_lived();
    let larder = Larder::new(&origin, BEHIND_TLS);
    assert_eq!(larder.get("/a", "X-Forwarded-Proto: https\r\n").status(), 200);
    assert_eq!(larder.get("/a", "X-Forwarded-Proto: http\r\n").status(), 308);
    let untrusting = Larder::new(&origin, "server.redirect_to_https=true");
    assert_eq!(untrusting.get("/a", "X-Forwarded-Proto: https\r\n").status(), 308, "nobody's word counts");
}

#[test]
fn a_certificate_authority_is_not_redirected() {
    let origin = Origin::long_lived();
    let larder = Larder::new(&origin, BEHIND_TLS);
    assert_eq!(larder.get("/.well-known/acme-challenge/token", "").status(), 200, "the application answers it");
    assert_eq!(larder.get("/.well-known/other", "").status(), 308);
    let nameless = larder.send_raw("GET /evil.example HTTP/1.0\r\n\r\n");
    assert_eq!(nameless.status(), 400, "it would be sent to the host that its path names");
}

#[test]
fn strict_transport_security_goes_out_by_https_alone_and_the_applications_own_wins() {
    let origin = Origin::new(|seen, reply| {
        let own = if seen.path() == "/own" { "Strict-Transport-Security: max-age=1\r\n" } else { "" };
        reply.send(200, &format!("Cache-Control: max-age=60\r\n{own}"), "body");
    });
    let larder =
        Larder::new(&origin, "server.trusted_proxies=127.0.0.1\nserver.hsts=max-age=31536000; includeSubDomains");
    let sts = |path: &str, proto: &str| {
        let answer = larder.get(path, &format!("X-Forwarded-Proto: {proto}\r\n"));
        assert_eq!(answer.status(), 200);
        answer.get("strict-transport-security").map(str::to_owned)
    };
    for _ in ["a miss", "a hit"] {
        assert_eq!(sts("/", "https").as_deref(), Some("max-age=31536000; includeSubDomains"));
        assert_eq!(sts("/", "http"), None);
        assert_eq!(sts("/own", "https").as_deref(), Some("max-age=1"));
    }
    // Larder's own refusals have no target, and say it too.
    for (proto, expected) in [("https", Some("max-age=31536000; includeSubDomains")), ("http", None)] {
        for line in ["GET / HTTP/1.1\r\nHost: a b", "TRACE / HTTP/1.1\r\nHost: site.example"] {
            let refused = larder.send_raw(format!("{line}\r\nX-Forwarded-Proto: {proto}\r\n\r\n"));
            assert!(refused.status() >= 400);
            assert_eq!(refused.get("strict-transport-security"), expected, "{line} {proto}");
        }
    }
}
