//! Tests that one client's answer decides for nobody else: not what is stored, not who waits, not what stands in.

use std::sync::Arc;

use crate::support::{Client, Count, Gate, Larder, Origin, Reply, Seen, at_once, eventually};

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

fn answer((field, status, fields): (&str, u16, &str), page: &str, seen: &Seen, reply: &mut Reply) {
    if seen.has(field) { reply.send(status, fields, "own") } else { reply.send(200, page, "page") }
}

/// Answers `own` to who sends `field`, and a public page to everyone else.
fn origin(own: (&'static str, u16, &'static str), page: &'static str) -> Origin {
    Origin::new(move |seen, reply| answer(own, page, seen, reply))
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
        let crowd = larder.crowd(20, "/a");
        before.requests.wait_for(2);
        larder.wait_for_waiting(19);
        gate.open();
        assert!(crowd.join().unwrap().iter().all(|answer| answer.text() == "page"), "{own:?}");
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
        let leader = std::thread::spawn(move || Client::connect(address).get("/a", own.0).text());
        origin.requests.wait_for(1);
        let crowd = larder.crowd(20, "/a");
        larder.wait_for_waiting(21);
        gate.open();
        assert_eq!(leader.join().unwrap(), "own");
        assert!(crowd.join().unwrap().iter().all(|answer| answer.text() == "page"), "{own:?}");
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
    let leader = std::thread::spawn(move || Client::connect(address).get("/a", "X-Theme: odd").text());
    origin.requests.wait_for(1);
    let crowd = larder.crowd(20, "/a");
    larder.wait_for_waiting(21);
    gate.open();
    assert_eq!(leader.join().unwrap(), "odd");
    assert!(crowd.join().unwrap().iter().all(|answer| answer.text() == "none"));
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
        let origin = Origin::new(move |seen, reply| match (seen.has(field), seen.method()) {
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
                if seen.has("X-Odd: 1") {
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
fn a_client_cannot_evict_what_others_use() {
    let origin = Origin::new(|seen, reply| match seen.head.get("if-none-match") {
        Some(_) => reply.send(304, "ETag: \"1\"\nCache-Control: max-age=60", ""),
        None => reply.send(200, "ETag: \"1\"\nCache-Control: max-age=60", "x"),
    });
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    for fields in [
        "Cache-Control: no-cache, no-store",
        "Cache-Control: no-cache\nAuthorization: x",
        "Cache-Control: max-age=0\nAuthorization: x",
        "Cache-Control: no-cache, no-store\nRange: bytes=0-0",
    ] {
        assert!(larder.get("/a", fields).status() < 300, "{fields}");
        assert_eq!(larder.get("/a", "").hit(), Some("memory"), "{fields}");
    }
}

#[test]
fn a_client_cannot_switch_collapsing_off() {
    for poison in ["Range: bytes=0-0", "Authorization: x", "Cache-Control: no-store"] {
        let gate = Gate::default();
        let origin = Origin::new({
            let gate = gate.clone();
            move |seen, reply| {
                if seen.head.get("range").is_some() {
                    reply.send(206, "Content-Range: bytes 0-0/2\nCache-Control: max-age=60", "x");
                    return;
                }
                if seen.head.get("x-crowd").is_some() {
                    gate.wait();
                }
                reply.send(200, "Cache-Control: max-age=60", "x");
            }
        });
        let larder = Arc::new(Larder::new(&origin, ""));
        larder.get("/a", poison);
        let crowd = {
            let larder = Arc::clone(&larder);
            let asked = Count::default();
            let seen = asked.clone();
            let threads = std::thread::spawn(move || {
                at_once(20, move |_| {
                    let mut client = larder.client();
                    client.ask("GET", "/a", "X-Crowd: 1");
                    asked.add();
                    client.answer().status()
                })
            });
            seen.wait_for(20);
            threads
        };
        origin.requests.wait_for(2);
        gate.open();
        assert_eq!(crowd.join().expect("no panic"), [200; 20]);
        // The part has no validator: what is missing is asked for in vain, once for all.
        let asked = if poison.starts_with("Range") { 3 } else { 2 };
        assert_eq!(origin.count(), asked, "{poison}");
    }
}
