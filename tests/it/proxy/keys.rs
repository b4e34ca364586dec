//! Tests the key and the rules of a request: which spellings of a URL are one, and which rule holds for them.

use crate::support::{Larder, Origin};

#[test]
fn keys_are_exact_over_host_scheme_and_query() {
    let origin = Origin::new(|seen, reply| {
        let host = seen.head.get("host").unwrap_or_default();
        reply.send(200, "Cache-Control: max-age=60", &format!("{host} {}", seen.path()));
    });
    let larder = Larder::new(&origin, "");
    let mut asked = 0;
    for (path, host) in [
        ("/a", "one.example"),
        ("/a", "two.example"),
        ("/a", "one.example:8080"),
        ("/a?", "one.example"),
        ("/a?b", "one.example"),
        ("/A", "one.example"),
        ("/a/", "one.example"),
        ("/%61", "one.example"),
    ] {
        let answer = larder.get(path, &format!("Host: {host}"));
        asked += 1;
        assert_eq!((answer.text(), origin.count()), (format!("{host} {path}"), asked));
    }
    // The same host, spelled otherwise.
    for host in ["ONE.example", "one.example:80"] {
        assert_eq!(larder.get("/a", &format!("Host: {host}")).hit(), Some("memory"), "{host}");
    }
    // RFC 9112 §3.2.2: the target's authority goes before Host.
    let answer = larder.send_raw("GET http://two.example/a HTTP/1.1\r\nHost: one.example\r\n\r\n");
    assert_eq!(answer.text(), "two.example /a");
}

#[test]
fn rules_hold_by_path() {
    let origin = Origin::answers(vec![(200, "", "x")]);
    let rules = r#"rule=[
        {path = "/static/*", timeout = "60s", ignore_query = ["utm_*"], sort_query = true},
        {path = "/off/*", bypass = true, timeout = "60s"},
        {path = "/override", override_timeout = "100s"},
    ]"#
    .replace('\n', " ");
    let larder = Larder::new(&origin, &rules);
    assert_eq!(larder.get("/static/a?b=2&a=1&utm_source=x", "").fwd(), Some("uri-miss"));
    assert_eq!(larder.get("/static/a?a=1&b=2", "").hit(), Some("memory"));
    assert_eq!(larder.get("/static/a?a=1&b=3", "").hit(), None);
    for _ in 0..2 {
        assert_eq!(larder.get("/off/a", "").fwd(), Some("bypass"));
    }
    for _ in 0..2 {
        assert_eq!(larder.get("/plain", "").hit(), None);
    }
    larder.get("/override", "");
    assert!(larder.get("/override", "").cache_status().contains("ttl=100"));
}

#[test]
fn what_the_key_leaves_out_does_not_reach_the_origin() {
    let origin = Origin::new(|seen, reply| {
        let path = seen.path().to_owned();
        reply.send(200, "Cache-Control: max-age=60", &path);
    });
    let larder = Larder::new(&origin, "rule=[{path=\"/*\", ignore_query=[\"utm_*\"], sort_query=true}]");
    for (asked, seen) in [
        ("/a?utm_source=<script>", "/a"),
        ("/b?x=1&utm_source=evil&y=2", "/b?x=1&y=2"),
        ("/c?y=2&x=1", "/c?y=2&x=1"),
        ("/d?utm_source=x;y=1", "/d?utm_source=x;y=1"),
    ] {
        assert_eq!(larder.get(asked, "").text(), seen);
        // Also once it is known that it is not stored, and of what follows a miss.
        origin.script(|seen, reply| {
            let path = seen.path().to_owned();
            reply.send(200, "Cache-Control: no-store", &path);
        });
        for _ in 0..2 {
            assert_eq!(larder.get(&format!("/n{asked}"), "").text(), format!("/n{seen}"));
        }
        origin.script(|seen, reply| {
            let path = seen.path().to_owned();
            reply.send(200, "Cache-Control: max-age=60", &path);
        });
    }
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
    let answer = larder.send_raw("POST /p HTTP/1.1\r\nHost: site.example\r\nContent-Length: 7\r\n\r\n\"<\n>\"` ");
    assert_eq!(answer.status(), 200);
    assert_eq!(origin.last().body, b"\"<\n>\"` ");
}

#[test]
fn spellings_of_a_path_do_not_reach_into_a_rule() {
    let origin = Origin::answers(vec![(200, "", "private")]);
    let larder = Larder::new(&origin, "rule=[{path = \"/static/*\", override_timeout = \"1h\"}]");
    for path in ["/static/../account", "/static/%2e%2e/account", "/static/..%2faccount"] {
        larder.get(path, "Cookie: session=1");
        assert_eq!(larder.get(path, "").hit(), None, "{path}");
    }
    larder.get("/static/a.css", "");
    assert_eq!(larder.get("/static/a.css", "").hit(), Some("memory"));
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
