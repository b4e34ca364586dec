//! Tests when a stale response is served (RFC 9111 §4.2.4, RFC 5861): while it is revalidated, and for an origin that
//! fails or is gone.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{Gate, Larder, Origin, eventually, file_url, in_each_tier};

#[test]
fn stale_while_revalidate_answers_first_and_asks_once() {
    let gate = Gate::default();
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
    eventually("the new response is served", || larder.get("/a", "").text() == "new");
    assert_eq!(origin.count(), 2);
}

#[test]
fn a_response_that_is_never_fresh_is_served_while_it_is_revalidated() {
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=0, stale-while-revalidate=60", "old"));
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    origin.script(|_, reply| reply.send(200, "Cache-Control: max-age=60", "new"));
    larder.advance(5);
    let stale = larder.get("/a", "");
    assert_eq!((stale.text().as_str(), stale.is_hit()), ("old", true));
    origin.requests.wait_for(2);
    eventually("the background validation lands", || larder.get("/a", "").text() == "new");
    assert_eq!(origin.count(), 2);
}

#[test]
fn what_the_durable_tier_serves_stale_is_revalidated() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = format!("{}\nmemory.capacity=0\ndurable.min_lifetime=0s", file_url(directory.path()));
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=1, stale-while-revalidate=600", "old"));
    let larder = Larder::new(&origin, &config);
    larder.get("/a", "");
    larder.settle();
    larder.advance(5);
    origin.script(|_, reply| reply.send(200, "Cache-Control: max-age=60", "new"));
    let stale = larder.get("/a", "");
    assert_eq!((stale.text().as_str(), stale.hit()), ("old", Some("durable")));
    eventually("the background validation lands", || larder.get("/a", "").text() == "new");
    assert_eq!(origin.count(), 2);
}

#[test]
fn stale_if_error_stands_in_for_a_broken_origin() {
    let origin = Origin::new({
        let calls = AtomicUsize::new(0);
        move |_, reply| match calls.fetch_add(1, Ordering::SeqCst) {
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
fn what_forbids_stale_forbids_it_when_the_origin_is_gone() {
    for (directives, while_unreachable, on_503) in [
        ("max-age=2", 200, 503),
        ("max-age=2, stale-if-error=60", 200, 200),
        ("max-age=2, stale-if-error=0", 502, 503),
        ("max-age=2, must-revalidate", 502, 503),
        ("max-age=2, must-revalidate, stale-if-error=60", 502, 503),
        ("max-age=2, proxy-revalidate", 502, 503),
        ("max-age=2, no-cache", 502, 503),
        ("max-age=2, s-maxage=2", 502, 503),
    ] {
        for (unreachable, expected) in [(true, while_unreachable), (false, on_503)] {
            let origin =
                Origin::new(move |_, reply| reply.send(200, &format!("Cache-Control: {directives}\nETag: \"a\""), "x"));
            let larder = Larder::new(&origin, "");
            larder.get("/a", "");
            larder.advance(3);
            origin.script(move |_, reply| if unreachable { reply.hang_up() } else { reply.send(503, "", "down") });
            let answer = larder.get("/a", "");
            assert_eq!(answer.status(), expected, "{directives} unreachable: {unreachable}");
            if expected == 200 {
                assert!(answer.cache_status().contains("ttl=-1"), "{}", answer.cache_status());
                assert_eq!(answer.fwd(), Some("stale"));
            }
        }
    }
}

#[test]
fn an_unreachable_origin_is_stood_in_for_only_so_long() {
    in_each_tier(|start| {
        let origin = Origin::answers(vec![(200, "Cache-Control: max-age=10\nETag: \"a\"", "x")]);
        let larder = start(&origin);
        larder.get("/a", "");
        origin.script(|_, reply| reply.hang_up());
        larder.advance(10 + 3600);
        assert_eq!(larder.get("/a", "").status(), 200);
        // Not for a client that wants it fresh.
        for fields in ["Cache-Control: no-cache", "Cache-Control: max-age=60"] {
            assert_eq!(larder.get("/a", fields).status(), 502, "{fields}");
        }
        larder.advance(1);
        assert_eq!(larder.get("/a", "").status(), 502);
    });
}

#[test]
fn rules_grant_staleness_where_the_response_says_nothing() {
    let rule = "rule=[{path = \"/a*\", stale_while_revalidate = \"10s\", stale_if_error = \"100s\"}]";
    let origin = Origin::new(|seen, reply| match seen.path() {
        "/a-own" => reply.send(200, "Cache-Control: max-age=5, stale-while-revalidate=0, stale-if-error=0", "x"),
        _ => reply.send(200, "Cache-Control: max-age=5", "x"),
    });
    let larder = Larder::new(&origin, rule);
    for path in ["/a", "/a-own", "/b"] {
        larder.get(path, "");
    }
    larder.advance(12);
    assert!(larder.get("/a", "").is_hit(), "stale while revalidate");
    assert!(!larder.get("/a-own", "").is_hit(), "what the response says goes first");
    assert!(!larder.get("/b", "").is_hit(), "no rule");
    larder.advance(50);
    origin.script(|_, reply| reply.send(500, "", "broken"));
    assert_eq!(larder.get("/a", "").status(), 200);
    assert_eq!(larder.get("/a-own", "").status(), 500);
    assert_eq!(larder.get("/b", "").status(), 500);
    assert_eq!(larder.get("/b", "Cache-Control: stale-if-error=1000").status(), 200, "a client may ask for it");
}
