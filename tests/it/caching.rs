//! What is stored, reused, validated and invalidated, seen from outside.

use crate::support::{Client, Larder, Origin, eventually};

#[test]
fn a_fresh_response_is_served_without_the_origin() {
    let origin = Origin::answers(vec![(200, "Cache-Control: max-age=60\nX-A: 1", "hello")]);
    let larder = Larder::new(&origin, "");
    let miss = larder.get("/a", "");
    assert_eq!((miss.status(), miss.text().as_str()), (200, "hello"));
    assert_eq!(miss.cache_status(), "larder; fwd=uri-miss; stored; ttl=60");
    assert_eq!(miss.get("age"), Some("0"));
    larder.advance(10);
    let hit = larder.get("/a", "");
    assert_eq!(hit.cache_status(), "larder; hit; ttl=50; detail=memory");
    assert_eq!((hit.get("age"), hit.get("x-a"), hit.text().as_str()), (Some("10"), Some("1"), "hello"));
    assert_eq!(origin.count(), 1);
    larder.advance(50);
    assert_eq!(larder.get("/a", "").fwd(), Some("stale"));
    assert_eq!(origin.count(), 2);
}

#[test]
fn what_must_not_be_stored_is_not() {
    for fields in [
        "Cache-Control: no-store, max-age=60",
        "Cache-Control: private, max-age=60",
        "Cache-Control: max-age=60\nSet-Cookie: session=1",
        "Cache-Control: max-age=60\nVary: *",
        "Cache-Control: max-age=0",
        "",
    ] {
        let origin = Origin::answers(vec![(200, fields, "x")]);
        let larder = Larder::new(&origin, "");
        for n in 1..=3 {
            let answer = larder.get("/a", "");
            assert_eq!((answer.hit(), origin.count()), (None, n), "{fields}");
            assert!(!answer.cache_status().contains("stored"), "{fields}");
        }
    }
}

#[test]
fn cookies_are_stored_only_as_configured() {
    const PUBLIC: &str = "Cache-Control: public, max-age=60\nSet-Cookie: mine=1";
    const SHARED: &str = "Cache-Control: s-maxage=60\nSet-Cookie: mine=1";
    const OF_A_CLIENT: &str = "Cache-Control: s-maxage=60\nSet-Cookie: mine=1\nVary: Cookie";
    // (mode, response, whether it is stored, whether the second client sees the first one's cookie)
    for (mode, fields, stored, shown) in [
        ("", SHARED, false, true),
        ("never", SHARED, false, true),
        ("strip", PUBLIC, true, false),
        ("strip", SHARED, true, false),
        ("strip", OF_A_CLIENT, false, true),
        ("explicit", PUBLIC, false, true),
        ("explicit", SHARED, true, true),
        ("explicit", OF_A_CLIENT, false, true),
        ("rfc", PUBLIC, true, true),
        ("rfc", OF_A_CLIENT, true, true),
    ] {
        let origin = Origin::answers(vec![(200, fields, "x")]);
        let by_rule = format!("rule=[{{path=\"/*\", set_cookie=\"{mode}\"}}]\ncache.set_cookie=never");
        let both = [if mode.is_empty() { String::new() } else { format!("cache.set_cookie={mode}") }, by_rule];
        for config in both.iter().take(if mode.is_empty() { 1 } else { 2 }) {
            let larder = Larder::new(&origin, config);
            assert_eq!(larder.get("/a", "").get("set-cookie"), Some("mine=1"), "its own client gets it: {config}");
            let second = larder.get("/a", "");
            assert_eq!(
                (second.hit().is_some(), second.get("set-cookie").is_some()),
                (stored, shown),
                "{config} {fields}"
            );
        }
    }
}

#[test]
fn authorized_responses_are_shared_only_if_they_say_so() {
    for (fields, shared) in [("Cache-Control: max-age=60", false), ("Cache-Control: public, max-age=60", true)] {
        let origin = Origin::answers(vec![(200, fields, "x")]);
        let larder = Larder::new(&origin, "");
        larder.get("/a", "Authorization: Basic me");
        assert_eq!(larder.get("/a", "Authorization: Basic you").hit().is_some(), shared);
        larder.get("/b", "Authorization: Basic me");
        assert_eq!(larder.get("/b", "").hit().is_some(), shared);
    }
}

#[test]
fn variants_are_selected_by_the_nominated_fields() {
    let origin = Origin::new(|seen, reply| {
        let language = seen.head.get("accept-language").unwrap_or("none").to_owned();
        reply.send(200, "Cache-Control: max-age=60\nVary: Accept-Language", &language);
    });
    let larder = Larder::new(&origin, "");
    assert_eq!(larder.get("/a", "Accept-Language: en").fwd(), Some("uri-miss"));
    assert_eq!(larder.get("/a", "Accept-Language: de").fwd(), Some("vary-miss"));
    assert_eq!(larder.get("/a", "").fwd(), Some("vary-miss"));
    for (fields, expected) in [("Accept-Language: en", "en"), ("Accept-Language: de", "de"), ("", "none")] {
        let answer = larder.get("/a", fields);
        assert_eq!((answer.hit(), answer.text().as_str()), (Some("memory"), expected));
    }
    assert_eq!(origin.count(), 3);
}

#[test]
fn a_stale_response_is_validated_and_lives_on() {
    let origin = Origin::new(|seen, reply| match seen.head.get("if-none-match") {
        Some("\"v1\"") => reply.send(304, "Cache-Control: max-age=60\nETag: \"v1\"\nX-New: 1", ""),
        _ => reply.send(200, "Cache-Control: max-age=10\nETag: \"v1\"\nX-Old: 1", "body"),
    });
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    larder.advance(11);
    let validated = larder.get("/a", "");
    assert_eq!(validated.cache_status(), "larder; fwd=stale; fwd-status=304; stored; ttl=60");
    assert_eq!((validated.status(), validated.text().as_str()), (200, "body"));
    assert_eq!(
        (validated.get("x-old"), validated.get("x-new"), validated.get("age")),
        (Some("1"), Some("1"), Some("0"))
    );
    assert_eq!(larder.get("/a", "").hit(), Some("memory"));
    assert_eq!(origin.count(), 2);
}

#[test]
fn a_changed_response_takes_the_place_of_the_stale_one() {
    let origin = Origin::answers(vec![
        (200, "Cache-Control: max-age=10\nETag: \"1\"", "one"),
        (200, "Cache-Control: max-age=10\nETag: \"2\"", "two"),
    ]);
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    larder.advance(11);
    assert_eq!(larder.get("/a", "").text(), "two");
    assert_eq!((larder.get("/a", "").text().as_str(), origin.count()), ("two", 2));
}

#[test]
fn a_response_whose_successor_may_not_be_stored_is_history() {
    let origin = Origin::answers(vec![
        (200, "Cache-Control: max-age=60\nETag: \"1\"", "one"),
        (200, "Cache-Control: no-store", "private now"),
        (200, "Cache-Control: no-store", "still private"),
    ]);
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    // The client's own no-cache makes the fresh response be validated.
    assert_eq!(larder.get("/a", "Cache-Control: no-cache").text(), "private now");
    assert_eq!(larder.get("/a", "").text(), "still private");
}

#[test]
fn a_304_about_something_else_is_not_believed() {
    let origin = Origin::answers(vec![
        (200, "Cache-Control: max-age=10\nETag: \"1\"", "one"),
        (304, "ETag: \"2\"", ""),
        (200, "Cache-Control: max-age=10\nETag: \"2\"", "two"),
    ]);
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    larder.advance(11);
    assert_eq!(larder.get("/a", "").text(), "two");
    assert_eq!(origin.last().head.get("if-none-match"), None, "asked again for the whole");
}

#[test]
fn a_cookie_on_a_304_is_for_its_client_only() {
    let origin = Origin::new(|seen, reply| match seen.head.get("if-none-match") {
        Some(_) => reply.send(304, "ETag: \"1\"\nCache-Control: max-age=60\nSet-Cookie: who=me", ""),
        None => reply.send(200, "ETag: \"1\"\nCache-Control: max-age=10", "body"),
    });
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    larder.advance(11);
    assert_eq!(larder.get("/a", "").get("set-cookie"), Some("who=me"));
    let hit = larder.get("/a", "");
    assert_eq!((hit.hit(), hit.get("set-cookie")), (Some("memory"), None));
}

#[test]
fn clients_that_have_it_get_304_from_the_cache() {
    let origin = Origin::answers(vec![(
        200,
        "Cache-Control: max-age=60\nETag: \"v\"\nLast-Modified: Wed, 01 Jan 2020 00:00:00 GMT\nX-Other: 1",
        "body",
    )]);
    let larder = Larder::new(&origin, "");
    // Also on a miss: the whole is fetched, and the client's condition answered from it.
    let first = larder.get("/a", "If-None-Match: \"v\"");
    assert_eq!((first.status(), first.get("etag")), (304, Some("\"v\"")));
    // Which needs no more than its head: the body may still be on its way.
    eventually("it is stored", || larder.metric("larder_memory_objects") == 1);
    for condition in
        ["If-None-Match: \"v\"", "If-None-Match: W/\"v\"", "If-Modified-Since: Wed, 01 Jan 2020 00:00:00 GMT"]
    {
        let answer = larder.get("/a", condition);
        assert_eq!((answer.status(), answer.hit(), answer.body.len()), (304, Some("memory"), 0), "{condition}");
        assert_eq!((answer.get("x-other"), answer.get("content-length")), (None, None));
    }
    assert_eq!(larder.get("/a", "If-None-Match: \"w\"").status(), 200);
    assert_eq!(origin.count(), 1);
}

#[test]
fn ranges_are_cut_from_the_whole() {
    let origin = Origin::answers(vec![(200, "Cache-Control: max-age=60\nETag: \"v\"", "0123456789")]);
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    for (fields, status, body, range) in [
        ("Range: bytes=2-4", 206, "234", Some("bytes 2-4/10")),
        ("Range: bytes=7-", 206, "789", Some("bytes 7-9/10")),
        ("Range: bytes=-2", 206, "89", Some("bytes 8-9/10")),
        ("Range: bytes=20-", 416, "", Some("bytes */10")),
        ("Range: bytes=4-2", 200, "0123456789", None),
        ("Range: bytes=2-4\nIf-Range: \"v\"", 206, "234", Some("bytes 2-4/10")),
        ("Range: bytes=2-4\nIf-Range: \"w\"", 200, "0123456789", None),
        ("Range: bytes=2-4\nIf-None-Match: \"v\"", 304, "", None),
    ] {
        let answer = larder.get("/a", fields);
        assert_eq!(
            (answer.status(), answer.text().as_str(), answer.get("content-range")),
            (status, body, range),
            "{fields}"
        );
        assert_eq!(answer.hit(), Some("memory"));
    }
    assert_eq!(origin.count(), 1);
}

#[test]
fn a_range_of_something_not_stored_goes_to_the_origin_as_it_is() {
    let origin = Origin::answers(vec![(206, "Content-Range: bytes 0-1/10\nCache-Control: max-age=60", "01")]);
    let larder = Larder::new(&origin, "");
    assert_eq!(larder.get("/a", "Range: bytes=0-1").status(), 206);
    assert_eq!(origin.last().head.get("range"), Some("bytes=0-1"));
    // What came is a part: it must not be taken for the whole. Without a strong validator it can't be
    // completed either, whatever comes when the rest is asked for.
    larder.get("/a", "");
    assert_eq!(origin.count(), 3);
    assert_eq!(origin.last().head.get("range"), None);
}

#[test]
fn head_is_answered_from_a_stored_get() {
    let origin = Origin::new(|_, reply| {
        reply.begin("Cache-Control: max-age=60");
        reply.chunk("hello");
        reply.end();
    });
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    let mut client = larder.client();
    let head = client.send("HEAD", "/a", "");
    assert_eq!((head.hit(), head.get("content-length")), (Some("memory"), Some("5")));
    assert_eq!(client.get("/a", "").text(), "hello", "the connection goes on");
}

#[test]
fn a_head_response_is_not_a_get_response() {
    let origin = Origin::new(|seen, reply| match seen.method() {
        "HEAD" => reply.raw("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nCache-Control: max-age=60\r\n\r\n"),
        _ => reply.send(200, "Cache-Control: max-age=60", "hello"),
    });
    let larder = Larder::new(&origin, "");
    assert_eq!(larder.client().send("HEAD", "/a", "").status(), 200);
    assert_eq!(larder.get("/a", "").text(), "hello");
    assert_eq!(origin.count(), 2);
}

#[test]
fn unsafe_methods_invalidate_what_they_changed() {
    let origin = Origin::new(|seen, reply| match seen.method() {
        "GET" => reply.send(200, "Cache-Control: max-age=60", "page"),
        "POST" if seen.path() == "/fails" => reply.send(500, "", ""),
        "POST" => reply.send(303, "Location: /list\nContent-Location: http://site.example/item", ""),
        _ => reply.send(200, "Location: http://other.example/list", ""),
    });
    let larder = Larder::new(&origin, "");
    let paths = ["/form", "/list", "/item", "/fails"];
    let warm = || paths.iter().for_each(|path| drop(larder.get(path, "")));
    let cached = || paths.map(|path| larder.get(path, "").hit().is_some());
    warm();
    larder.client().send("POST", "/form", "Content-Length: 0");
    assert_eq!(cached(), [false, false, false, true]);
    warm();
    larder.client().send("POST", "/fails", "Content-Length: 0");
    assert_eq!(cached(), [true; 4], "a failed request changed nothing");
    larder.client().send("DELETE", "/form", "");
    assert_eq!(cached(), [false, true, true, true], "another origin's URLs are left alone");
    larder.client().send("FROB", "/form", "");
    assert_eq!(cached(), [false, true, true, true], "a method that nobody knows is unsafe");
    larder.client().send("OPTIONS", "/form", "");
    assert_eq!(cached(), [true; 4]);
}

#[test]
fn methods_and_bodies_do_not_share_a_response() {
    let origin = Origin::new(|seen, reply| {
        reply.send(
            200,
            "Cache-Control: max-age=60",
            &format!("{} {}", seen.method(), String::from_utf8_lossy(&seen.body)),
        );
    });
    let larder = Larder::new(&origin, "");
    assert_eq!(larder.client().send("POST", "/a", "Content-Length: 0").text(), "POST ");
    assert_eq!(larder.client().send("OPTIONS", "/a", "").text(), "OPTIONS ");
    let mut client = larder.client();
    client.raw("GET /a HTTP/1.1\r\nHost: site.example\r\nContent-Length: 4\r\n\r\nevil");
    assert_eq!(client.answer().text(), "GET evil");
    assert_eq!(larder.get("/a", "").text(), "GET ", "a GET with content is no one else's GET");
}

#[test]
fn the_clients_directives_count() {
    let origin = Origin::new(|seen, reply| match seen.head.get("if-none-match") {
        Some(_) => reply.send(304, "ETag: \"1\"", ""),
        None => reply.send(200, "ETag: \"1\"\nCache-Control: max-age=60", "x"),
    });
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    larder.advance(30);
    for (fields, fwd) in [
        ("Cache-Control: max-age=40", None),
        ("Cache-Control: min-fresh=20", None),
        ("Cache-Control: max-age=20", Some("request")),
    ] {
        assert_eq!(larder.get("/a", fields).fwd(), fwd, "{fields}");
    }
    assert_eq!(larder.get("/a", "Cache-Control: no-cache").fwd(), Some("request"));
    assert_eq!(larder.get("/a", "Pragma: no-cache").fwd(), Some("request"));
    assert_eq!(larder.get("/b", "Cache-Control: only-if-cached").status(), 504);
    assert_eq!(larder.get("/a", "Cache-Control: only-if-cached").status(), 200);
    assert_eq!(larder.get("/c", "Cache-Control: no-store").status(), 200);
    assert_eq!(larder.get("/c", "").hit(), None, "a client's no-store keeps its response out");

    let ignoring = Larder::new(&origin, "cache.request_directives=ignore");
    ignoring.get("/a", "");
    assert_eq!(ignoring.get("/a", "Cache-Control: no-cache, max-age=0").hit(), Some("memory"));
}

#[test]
fn stale_while_revalidate_answers_first_and_asks_once() {
    let gate = crate::support::Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |seen, reply| match seen.head.get("if-none-match") {
            Some(_) => {
                gate.wait();
                reply.send(200, "Cache-Control: max-age=10", "new");
            }
            None => reply.send(200, "Cache-Control: max-age=10, stale-while-revalidate=60\nETag: \"1\"", "old"),
        }
    });
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    larder.advance(15);
    for _ in 0..5 {
        let answer = larder.get("/a", "");
        assert_eq!((answer.text().as_str(), answer.cache_status()), ("old", "larder; hit; ttl=-5; detail=memory"));
    }
    origin.requests.wait_for(2);
    gate.open();
    crate::support::eventually("the new response is served", || larder.get("/a", "").text() == "new");
    assert_eq!(origin.count(), 2);
}

#[test]
fn stale_if_error_stands_in_for_a_broken_origin() {
    let origin = Origin::new({
        let calls = std::sync::atomic::AtomicUsize::new(0);
        move |_, reply| match calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => reply.send(200, "Cache-Control: max-age=10, stale-if-error=60\nETag: \"1\"", "good"),
            1 => reply.send(503, "", "bad"),
            _ => reply.hang_up(),
        }
    });
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    larder.advance(15);
    let answer = larder.get("/a", "");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "good"));
    assert_eq!(answer.cache_status(), "larder; fwd=stale; fwd-status=503; ttl=-5");
    assert_eq!(larder.get("/a", "").text(), "good", "also when the connection breaks");
    larder.advance(60);
    assert_eq!(larder.get("/a", "").status(), 502, "but not for ever");
}

#[test]
fn what_may_be_stored_after_all_is_stored_at_once() {
    const KEPT: &str = "Cache-Control: max-age=60\r\nVary: Accept-Language";
    let origin = Origin::answers(vec![
        (200, "Cache-Control: no-store", "one"),
        (200, "Cache-Control: no-store", "two"),
        (200, KEPT, "three"),
        (200, KEPT, "other"),
    ]);
    let larder = Larder::new(&origin, "");
    let german = "Accept-Language: de";
    for expected in ["one", "two"] {
        let answer = larder.get("/a?b=c", german);
        assert_eq!((answer.text().as_str(), answer.cache_status()), (expected, "larder; fwd=uri-miss"));
    }
    assert_eq!(larder.get("/a?b=c", german).cache_status(), "larder; fwd=uri-miss; stored; ttl=60");
    let answer = larder.get("/a?b=c", german);
    assert_eq!((answer.text().as_str(), answer.hit()), ("three", Some("memory")));
    assert_eq!(larder.get("/a?b=c", "Accept-Language: en").text(), "other", "the request's own fields select it");
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
    let mut client = larder.client();
    client.raw("GET http://two.example/a HTTP/1.1\r\nHost: one.example\r\n\r\n");
    assert_eq!(client.answer().text(), "two.example /a");
}

#[test]
fn a_purged_url_is_asked_for_again() {
    let origin = Origin::new(|seen, reply| {
        let language = seen.head.get("accept-language").unwrap_or_default();
        reply.send(200, "Cache-Control: max-age=60\nVary: Accept-Language", language);
    });
    let larder = Larder::new(&origin, "");
    for fields in ["Accept-Language: en", "Accept-Language: de"] {
        larder.get("/a", fields);
        larder.get("/b", fields);
    }
    assert_eq!(larder.purge("http://SITE.example:80/a").status(), 200);
    for fields in ["Accept-Language: en", "Accept-Language: de"] {
        assert_eq!(larder.get("/a", fields).hit(), None, "every variant is gone");
        assert_eq!(larder.get("/b", fields).hit(), Some("memory"));
    }
    for url in ["/a", "nonsense", "ftp://site.example/a"] {
        assert_eq!(larder.purge(url).status(), 400, "{url}");
    }
}

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
