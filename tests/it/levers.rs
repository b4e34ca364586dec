//! One client's answer decides for nobody else: not what is stored, not who waits, not what stands in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::{Answer, Gate, Larder, Origin, Reply, Seen, at_once, eventually};

/// Requests by which one client may get an answer of its own, and that answer.
const OWN_ANSWERS: [(&str, u16, &str); 9] = [
    ("Cookie: session=1", 200, "Cache-Control: private"),
    ("Cookie: session=1", 200, "Cache-Control: no-store"),
    ("Cookie: session=1", 302, "Location: /login"),
    ("Cookie: session=1", 200, "Cache-Control: max-age=60\nSet-Cookie: session=2"),
    ("Authorization: Basic x", 200, "Cache-Control: private"),
    ("Authorization: Basic x", 200, "Cache-Control: max-age=60"),
    ("Accept: image/x-odd", 406, ""),
    ("X-Odd: 1", 400, "Cache-Control: no-store"),
    ("User-Agent: crawler", 403, ""),
];

/// Returns whether a request has the field, given as `Name: value`.
fn has(seen: &Seen, field: &str) -> bool {
    let (name, value) = field.split_once(": ").expect("a field");
    seen.head.get(name) == Some(value)
}

/// Answers `own` to who sends `field`, and a public page to everyone else.
fn origin(own: (&'static str, u16, &'static str), page: &'static str) -> Origin {
    Origin::new(move |seen, reply| answer(own, page, seen, reply))
}

fn answer((field, status, fields): (&str, u16, &str), page: &str, seen: &Seen, reply: &mut Reply) {
    if has(seen, field) { reply.send(status, fields, "own") } else { reply.send(200, page, "page") }
}

#[test]
fn ones_own_answer_removes_nothing_and_stands_in_nobodys_way() {
    for own in OWN_ANSWERS {
        let origin = origin(own, "Cache-Control: max-age=10, stale-if-error=600\nETag: \"1\"");
        let larder = Larder::new(&origin, "");
        larder.get("/a", "");
        // A fresh page is asked about by the client's own directive, a stale one by itself.
        assert_eq!(larder.get("/a", &format!("{}\nCache-Control: no-cache", own.0)).text(), "own", "{own:?}");
        assert_eq!(larder.get("/a", "").hit(), Some("memory"), "{own:?}");
        larder.advance(11);
        assert_eq!(larder.get("/a", own.0).text(), "own", "{own:?}");
        // The page is still there to stand in for an error.
        origin.script(|_, reply| reply.send(503, "", "down"));
        let stale = larder.get("/a", "");
        assert_eq!((stale.status(), stale.text().as_str()), (200, "page"), "{own:?}");
    }
}

#[test]
fn ones_own_answer_stops_no_validation_in_the_background() {
    for own in OWN_ANSWERS {
        let origin = origin(own, "Cache-Control: max-age=10, stale-while-revalidate=3600\nETag: \"1\"");
        let larder = Larder::new(&origin, "upstream.breaker_pause=1s");
        larder.get("/a", "");
        for _ in 0..3 {
            larder.advance(20);
            // The page stays, whatever comes of the validation that this client starts...
            let asked = origin.count();
            assert_eq!(larder.get("/a", own.0).text(), "page", "{own:?}");
            origin.requests.wait_for(asked + 1);
            // ...the next one's brings the page back, after the pause at the latest.
            eventually("the page is fresh again", || {
                larder.advance(1);
                let answer = larder.get("/a", "");
                assert_eq!(answer.text(), "page", "{own:?}");
                !answer.cache_status().contains("ttl=-")
            });
        }
    }
}

#[test]
fn ones_own_answer_does_not_keep_a_crowd_from_sharing() {
    for own in OWN_ANSWERS {
        // Before the crowd...
        let before = origin(own, "Cache-Control: max-age=60");
        let larder = Larder::new(&before, "");
        larder.get("/a", own.0);
        let gate = Gate::default();
        let held = gate.clone();
        before.script(move |seen, reply| {
            held.wait();
            answer(own, "Cache-Control: max-age=60", seen, reply);
        });
        let address = larder.address;
        let crowd = std::thread::spawn(move || {
            at_once(20, move |_| crate::support::Client::connect(address).get("/a", "").text())
        });
        before.requests.wait_for(2);
        eventually("all of them wait", || larder.running().proxy().usage().waiting >= 19);
        gate.open();
        assert!(crowd.join().unwrap().iter().all(|text| text == "page"), "{own:?}");
        assert_eq!(before.count(), 2, "{own:?}: one for the crowd");
    }
}

#[test]
fn a_leader_with_an_answer_of_its_own_hands_over_to_one_of_those_who_wait() {
    // Nothing tells these requests apart before the answer comes.
    for own in OWN_ANSWERS.into_iter().filter(|own| !own.0.starts_with("Cookie") && !own.0.starts_with("Auth")) {
        let gate = Gate::default();
        let held = gate.clone();
        let origin = Origin::new(move |seen, reply| {
            held.wait();
            answer(own, "Cache-Control: max-age=60", seen, reply);
        });
        let larder = Larder::new(&origin, "");
        let address = larder.address;
        let leader = std::thread::spawn(move || crate::support::Client::connect(address).get("/a", own.0).text());
        origin.requests.wait_for(1);
        let crowd = std::thread::spawn(move || {
            at_once(20, move |_| crate::support::Client::connect(address).get("/a", "").text())
        });
        eventually("all of them wait", || larder.running().proxy().usage().waiting >= 21);
        gate.open();
        assert_eq!(leader.join().unwrap(), "own");
        assert!(crowd.join().unwrap().iter().all(|text| text == "page"), "{own:?}");
        assert_eq!(origin.count(), 2, "{own:?}: one for the leader, one for all others");
    }
}

#[test]
fn a_leader_of_another_variant_hands_over_to_one_of_those_who_wait() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::new(move |seen, reply| {
        held.wait();
        let theme = seen.head.get("x-theme").unwrap_or("none").to_owned();
        reply.send(200, "Cache-Control: max-age=60\nVary: X-Theme", &theme);
    });
    let larder = Larder::new(&origin, "");
    let address = larder.address;
    let leader = std::thread::spawn(move || crate::support::Client::connect(address).get("/a", "X-Theme: odd").text());
    origin.requests.wait_for(1);
    let crowd =
        std::thread::spawn(move || at_once(20, move |_| crate::support::Client::connect(address).get("/a", "").text()));
    eventually("all of them wait", || larder.running().proxy().usage().waiting >= 21);
    gate.open();
    assert_eq!(leader.join().unwrap(), "odd");
    assert!(crowd.join().unwrap().iter().all(|text| text == "none"));
    assert_eq!(origin.count(), 2);
}

#[test]
fn ones_own_answer_does_not_hide_what_the_durable_tier_has() {
    for own in OWN_ANSWERS {
        let origin = origin(own, "Cache-Control: max-age=60");
        let directory = tempfile::tempdir().unwrap();
        let config =
            format!("durable.url=file:{}\nmemory.capacity=0\ndurable.min_lifetime=0s", directory.path().display());
        let larder = Larder::new(&origin, &config).settling();
        larder.get("/a", "");
        larder.get("/a", &format!("{}\nCache-Control: no-cache", own.0));
        assert_eq!(larder.get("/a", "").hit(), Some("durable"), "{own:?}");
    }
}

#[test]
fn one_clients_refused_variant_leaves_the_others() {
    let origin = Origin::new(|seen, reply| match seen.head.get("cookie") {
        Some("user=1") => reply.send(200, "Cache-Control: private\nVary: Cookie", "mine"),
        Some(other) => {
            let text = other.to_owned();
            reply.send(200, "Cache-Control: max-age=60\nVary: Cookie", &text);
        }
        None => reply.send(200, "Cache-Control: max-age=60\nVary: Cookie", "nobody's"),
    });
    let larder = Larder::new(&origin, "");
    for fields in ["", "Cookie: user=2"] {
        larder.get("/a", fields);
    }
    larder.get("/a", "Cookie: user=1");
    larder.get("/a", "Cookie: user=1\nCache-Control: no-cache");
    assert_eq!(larder.get("/a", "").hit(), Some("memory"));
    assert_eq!(larder.get("/a", "Cookie: user=2").hit(), Some("memory"));
    // A variant that was stored, and then is refused to its own client, goes alone.
    origin.script(|_, reply| reply.send(200, "Cache-Control: private\nVary: Cookie", "private now"));
    assert_eq!(larder.get("/a", "Cookie: user=2\nCache-Control: no-cache").text(), "private now");
    assert_eq!(larder.get("/a", "Cookie: user=2").hit(), None);
    assert_eq!(larder.get("/a", "").hit(), Some("memory"));
}

#[test]
fn what_says_of_the_page_that_it_is_gone_or_private_still_counts() {
    for (status, fields) in
        [(200, "Cache-Control: private"), (200, "Cache-Control: no-store"), (404, "Cache-Control: no-store"), (410, "")]
    {
        let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=60", "page"));
        let larder = Larder::new(&origin, "");
        larder.get("/a", "");
        origin.script(move |_, reply| reply.send(status, fields, "gone"));
        assert_eq!(larder.get("/a", "Cache-Control: no-cache").text(), "gone");
        assert_eq!(larder.get("/a", "").text(), "gone", "{status} {fields}");
    }
}

/// flask-cors: only requests with an origin that is allowed get the field, and only those say Vary.
fn cors() -> Origin {
    Origin::new(|seen, reply| match seen.head.get("origin") {
        Some(origin) if origin.ends_with(".shop.example") => {
            let fields = format!("Cache-Control: max-age=60\nVary: Origin\nAccess-Control-Allow-Origin: {origin}");
            reply.send(200, &fields, "shared");
        }
        Some(_) | None => reply.send(200, "Cache-Control: max-age=60", "plain"),
    })
}

const OURS: &str = "Origin: https://www.shop.example";

#[test]
fn an_answer_without_vary_does_not_take_fresh_variants_away() {
    let with_cors = |answer: &Answer| answer.get("access-control-allow-origin").is_some();
    for config in ["", "durable.url=file:DIR\nmemory.capacity=0\ndurable.min_lifetime=0s"] {
        let directory = tempfile::tempdir().unwrap();
        let config = config.replace("DIR", &directory.path().display().to_string());
        let origin = cors();
        let mut larder = Larder::new(&origin, &config);
        if !config.is_empty() {
            larder = larder.settling();
        }
        assert!(with_cors(&larder.get("/a", OURS)));
        for foreign in ["Origin: https://evil.example", "", "Origin: null"] {
            assert!(!with_cors(&larder.get("/a", foreign)));
        }
        let again = larder.get("/a", OURS);
        assert!(with_cors(&again) && again.hit().is_some(), "{}", again.cache_status());
        // It is kept for those who ask the same, and for no one else.
        assert!(larder.get("/a", "").hit().is_some());
        assert!(with_cors(&larder.get("/a", "Origin: https://m.shop.example")));
    }
}

#[test]
fn once_no_variant_is_fresh_an_answer_without_vary_is_everybodys() {
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=10\nVary: X-Theme", "one"));
    let larder = Larder::new(&origin, "");
    larder.get("/a", "X-Theme: dark");
    origin.script(|_, reply| reply.send(200, "Cache-Control: max-age=60", "for all"));
    // For a while after they are stale, they are not given up.
    larder.advance(20);
    assert_eq!(larder.get("/a", "X-Theme: dark").text(), "for all");
    assert_eq!(larder.get("/a", "X-Theme: light").hit(), None);
    larder.advance(700);
    assert_eq!(larder.get("/a", "X-Theme: dark").text(), "for all");
    assert_eq!(larder.get("/a", "X-Theme: light").hit(), Some("memory"));
}

#[test]
fn only_plain_lists_of_languages_and_codings_select_by_what_was_chosen() {
    let origin = Origin::new(|seen, reply| {
        // The application repeats what it was asked.
        let asked = seen.head.get("accept-language").unwrap_or_default().to_owned();
        reply.send(200, "Cache-Control: max-age=60\nVary: Accept-Language\nContent-Language: en", &asked);
    });
    let larder = Larder::new(&origin, "");
    for evil in ["\"><script>", "en, <script>", "en;q=0.9;x=<script>", "en_US"] {
        larder.get("/a", &format!("Accept-Language: {evil}"));
        assert_ne!(larder.get("/a", "Accept-Language: en").text(), evil);
        larder.purge("http://site.example/a");
    }
    larder.get("/a", "Accept-Language: en-US, en;q=0.9, de;q=0.1");
    assert_eq!(larder.get("/a", "Accept-Language: en").hit(), Some("memory"));
}

#[test]
fn a_cookie_on_a_304_is_for_the_client_that_it_answers_and_freshens_under_every_setting() {
    for mode in ["never", "strip", "explicit", "rfc"] {
        let origin = Origin::new(|seen, reply| match seen.head.get("if-none-match") {
            Some(_) => reply.send(304, "Cache-Control: max-age=10\nETag: \"1\"\nSet-Cookie: session=refreshed", ""),
            None => reply.send(200, "Cache-Control: max-age=10, stale-while-revalidate=60\nETag: \"1\"", "page"),
        });
        let larder = Larder::new(&origin, &format!("cache.set_cookie={mode}"));
        larder.get("/a", "");
        larder.advance(100);
        let validated = larder.get("/a", "");
        assert_eq!(
            (validated.text().as_str(), validated.get("set-cookie")),
            ("page", Some("session=refreshed")),
            "{mode}"
        );
        let next = larder.get("/a", "");
        assert_eq!((next.hit(), next.get("set-cookie")), (Some("memory"), None), "{mode}");
        // One that came in the background is nobody's.
        larder.get("/b", "");
        larder.advance(11);
        let asked = origin.count();
        assert_eq!(larder.get("/b", "").get("set-cookie"), None, "{mode}");
        origin.requests.wait_for(asked + 1);
        eventually("it is fresh", || {
            let answer = larder.get("/b", "");
            assert_eq!(answer.get("set-cookie"), None, "{mode}");
            !answer.cache_status().contains("ttl=-")
        });
    }
}

#[test]
fn a_stripped_cookie_is_for_the_client_that_led() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::new(move |_, reply| {
        held.wait();
        reply.send(200, "Cache-Control: max-age=60\nSet-Cookie: session=first", "page");
    });
    let larder = Larder::new(&origin, "cache.set_cookie=strip");
    let address = larder.address;
    let crowd = std::thread::spawn(move || {
        at_once(10, move |_| crate::support::Client::connect(address).get("/a", "").get("set-cookie").is_some())
    });
    eventually("all of them wait", || larder.running().proxy().usage().waiting >= 10);
    gate.open();
    assert_eq!(crowd.join().unwrap().into_iter().filter(|has_cookie| *has_cookie).count(), 1);
    assert_eq!(origin.count(), 1);
}

#[test]
fn bound_directives_have_a_page_validated_once_in_a_while() {
    for directive in
        ["Cache-Control: no-cache", "Cache-Control: max-age=0", "Pragma: no-cache", "Cache-Control: min-fresh=3600"]
    {
        let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=60", "page"));
        let by_rule = "rule=[{path=\"/*\", request_directives=\"bound\"}]";
        for config in ["cache.request_directives=bound", by_rule] {
            let larder = Larder::new(&origin, config);
            larder.get("/a", "");
            let asked = origin.count();
            for _ in 0..5 {
                assert_eq!(larder.get("/a", directive).hit(), Some("memory"), "{directive} {config}");
            }
            larder.advance(11);
            assert_eq!(larder.get("/a", directive).fwd(), Some("request"), "{directive} {config}");
            assert_eq!(larder.get("/a", directive).hit(), Some("memory"), "{directive} {config}");
            assert_eq!(origin.count(), asked + 1, "{directive} {config}");
        }
    }
}

#[test]
fn no_client_undoes_a_soft_purge() {
    let up = Arc::new(AtomicBool::new(true));
    let is_up = Arc::clone(&up);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let origin = Origin::new(move |_, reply| {
        count.fetch_add(1, Ordering::SeqCst);
        let fields = "Cache-Control: max-age=60, stale-if-error=600";
        if is_up.load(Ordering::SeqCst) { reply.send(200, fields, "page") } else { reply.send(500, "", "down") }
    });
    let larder = Larder::new(&origin, "");
    for fields in
        ["Cache-Control: max-stale", "Cache-Control: max-stale=3600", "Cache-Control: max-stale, only-if-cached"]
    {
        larder.get("/a", "");
        larder.purge_of("{\"url\": \"http://site.example/a\", \"soft\": true}");
        let before = asked.load(Ordering::SeqCst);
        let answer = larder.get("/a", fields);
        let is_only_if_cached = fields.contains("only-if-cached");
        assert_eq!((answer.hit(), answer.status()), (None, if is_only_if_cached { 504 } else { 200 }), "{fields}");
        assert_eq!(asked.load(Ordering::SeqCst) - before, usize::from(!is_only_if_cached), "{fields}");
    }
    // For an origin that fails it still stands in.
    larder.get("/a", "");
    larder.purge_of("{\"url\": \"http://site.example/a\", \"soft\": true}");
    up.store(false, Ordering::SeqCst);
    assert_eq!(larder.get("/a", "").text(), "page");
}

#[test]
fn uses_are_counted_of_a_variant() {
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=600\nVary: X-Theme", "page"));
    let directory = tempfile::tempdir().unwrap();
    let config = format!("durable.url=file:{}\ndurable.after_hits=3", directory.path().display());
    let larder = Larder::new(&origin, &config);
    for n in 0..5 {
        larder.get("/a", &format!("X-Theme: {n}"));
    }
    larder.settle();
    assert_eq!(larder.metric("larder_durable_operations_total{op=\"put\",outcome=\"ok\"}"), 0, "each was used once");
    for _ in 0..2 {
        larder.get("/a", "X-Theme: 1");
    }
    larder.settle();
    assert_ne!(larder.metric("larder_durable_operations_total{op=\"put\",outcome=\"ok\"}"), 0);
}

#[test]
fn a_stream_gets_no_configured_lifetime_and_each_listener_has_its_own() {
    for kind in ["text/event-stream", "multipart/x-mixed-replace; boundary=x"] {
        for fields in ["", "Cache-Control: max-age=60\n"] {
            let fields = format!("{fields}Content-Type: {kind}");
            let origin = Origin::new(move |_, reply| {
                reply.begin(&fields);
                reply.chunk("first");
                reply.chunk("second");
                reply.end();
            });
            let larder =
                Larder::new(&origin, "cache.default_timeout=1h\nrule=[{path=\"/o\", override_timeout=\"1h\"}]");
            for path in ["/a", "/o"] {
                for _ in 0..3 {
                    assert_eq!(larder.get(path, "").hit(), None, "{kind} {path}");
                }
            }
            assert_eq!(origin.count(), 6, "{kind}");
        }
    }
}

#[test]
fn the_stream_of_one_listener_ends_with_it() {
    let gone = Gate::default();
    let noticed = gone.clone();
    let origin = Origin::new(move |_, reply| {
        reply.begin("Content-Type: text/event-stream");
        while reply.try_chunk("event") {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        noticed.open();
    });
    let larder = Larder::new(&origin, "cache.default_timeout=1h");
    let mut client = larder.client();
    client.ask("GET", "/a", "");
    assert!(client.head().is_some() && client.chunk().is_some());
    drop(client);
    gone.wait();
}

#[test]
fn a_304_that_is_about_something_else_costs_two_trips_once() {
    for (stored, other) in [("\"abc-gzip\"", "\"abc\""), ("\"1\"", "\"2\""), ("W/\"1\"", "W/\"2\"")] {
        let origin = Origin::new(move |seen, reply| match seen.head.get("if-none-match") {
            Some(_) => reply.send(304, &format!("ETag: {other}"), ""),
            None => reply.send(200, &format!("Cache-Control: max-age=10\nETag: {stored}"), "page"),
        });
        let larder = Larder::new(&origin, "");
        larder.get("/a", "");
        for trips in [2, 1, 1] {
            larder.advance(11);
            let asked = origin.count();
            assert_eq!(larder.get("/a", "").text(), "page");
            assert_eq!(origin.count() - asked, trips, "{stored} {other}");
        }
    }
}

#[test]
fn a_304_whose_tag_differs_in_weakness_alone_freshens() {
    const DATE: &str = "Fri, 01 Jan 2010 00:00:00 GMT";
    for (stored, other) in [("W/\"x\"", "\"x\""), ("\"x\"", "W/\"x\"")] {
        let origin = Origin::new(move |seen, reply| match seen.head.get("if-none-match") {
            Some(_) => reply.send(304, &format!("ETag: {other}\nLast-Modified: {DATE}"), ""),
            None => {
                let fields = format!("Cache-Control: max-age=10\nETag: {stored}\nLast-Modified: {DATE}");
                reply.send(200, &fields, "page");
            }
        });
        let larder = Larder::new(&origin, "");
        larder.get("/a", "");
        larder.advance(11);
        let asked = origin.count();
        let answer = larder.get("/a", "");
        assert_eq!((answer.text().as_str(), origin.count() - asked), ("page", 1), "{stored} {other}");
        assert!(answer.cache_status().contains("fwd-status=304"), "{}", answer.cache_status());
        assert_eq!(larder.get("/a", "").get("etag"), Some(stored), "the stored tag stays");
    }
}

#[test]
fn ones_own_request_leaves_a_page_that_stands_in_for_an_error() {
    const PAGE: &str = "Cache-Control: max-age=60, stale-if-error=600";
    // Answers that say no, each to a request that no field of selects the page.
    for (method, field, fields) in [
        ("HEAD", "X-Odd: 1", "Cache-Control: max-age=60"),
        ("GET", "X-Odd: 1", "Cache-Control: no-store"),
        ("GET", "X-Odd: 1", "Cache-Control: max-age=60\nContent-Type: text/event-stream"),
        ("GET", "X-Odd: 1", "Cache-Control: max-age=60\nVary: *"),
        ("GET", "X-Odd: 1", "Location: /elsewhere"),
    ] {
        let origin = Origin::new(move |seen, reply| match (has(seen, field), seen.method()) {
            (true, "HEAD") => reply.raw(format!("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n{fields}\r\n\r\n")),
            (true, _) => reply.send(200, fields, "own"),
            (false, _) => reply.send(200, PAGE, "page"),
        });
        let larder = Larder::new(&origin, "");
        larder.get("/a", "");
        larder.client().send(method, "/a", &format!("{field}\nCache-Control: no-cache"));
        // It is asked about, and stands in where that fails.
        let down = origin.count();
        origin.script(|_, reply| reply.send(503, "", "down"));
        let stale = larder.get("/a", "");
        assert_eq!((stale.text().as_str(), origin.count()), ("page", down + 1), "{method} {fields}");
    }
}

#[test]
fn no_error_takes_the_place_of_a_fresh_page_or_gets_a_configured_lifetime() {
    for status in [400, 401, 403, 405, 406, 414, 416, 429, 500, 501, 502, 503] {
        for fields in ["Cache-Control: max-age=300", "Cache-Control: no-cache, max-age=0", "Expires: 0", ""] {
            let origin = Origin::new(move |seen, reply| {
                if has(seen, "X-Odd: 1") {
                    reply.send(status, fields, "error");
                } else {
                    reply.send(200, "Cache-Control: max-age=60", "page");
                }
            });
            let rules = "rule=[{path=\"/o/*\", override_timeout=\"1h\"}, {path=\"/t/*\", timeout=\"1h\"}]";
            let larder = Larder::new(&origin, rules);
            for path in ["/a", "/o/a", "/t/a"] {
                larder.get(path, "");
                larder.get(path, "X-Odd: 1\nCache-Control: no-cache");
                assert_eq!(larder.get(path, "").text(), "page", "{status} {fields} {path}");
                // On a cold page only its own word has it stored.
                let (cold, states) = (format!("{path}/cold"), fields.contains("300"));
                larder.get(&cold, "X-Odd: 1");
                assert_eq!(larder.get(&cold, "").text() == "error", states, "{status} {fields} {path}");
            }
        }
    }
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
fn lists_of_languages_that_applications_read_differently_are_variants_of_their_own() {
    let origin = Origin::new(|seen, reply| {
        let asked = seen.head.get("accept-language").unwrap_or_default().to_owned();
        reply.send(200, "Cache-Control: max-age=60\nVary: Accept-Language", &asked);
    });
    let larder = Larder::new(&origin, "");
    for asked in ["de", "d e", "de,fr", "fr,de", ",de", "de;q=1;x=y", "de;q=0.5, fr"] {
        assert_eq!(larder.get("/a", &format!("Accept-Language: {asked}")).text(), asked);
    }
    assert_eq!(larder.get("/a", "Accept-Language: DE, fr").text(), "de,fr", "case and white space mean nothing");
}

#[test]
fn a_field_that_connection_lists_is_still_what_a_trusted_proxy_said() {
    let origin = Origin::new(|seen, reply| {
        let told = ["x-forwarded-for", "x-forwarded-proto", "x-real-ip"].map(|name| seen.head.get(name).unwrap_or("-"));
        reply.send(200, "", &told.join(" "));
    });
    let larder = Larder::new(&origin, "server.trusted_proxies=127.0.0.1\nserver.trusted_fields=X-Real-IP");
    let fields = "X-Forwarded-For: 9.9.9.9\nX-Forwarded-Proto: https\nConnection: close, x-forwarded-for, x-forwarded-proto, x-real-ip";
    assert_eq!(larder.get("/a", fields).text(), "9.9.9.9, 127.0.0.1 https 9.9.9.9");
}
