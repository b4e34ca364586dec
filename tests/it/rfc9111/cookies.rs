//! Tests responses that set a cookie: whom the cookie reaches, and what is stored of the response.

use crate::support::{Gate, Larder, Origin, eventually};

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
    let crowd = larder.crowd(10, "/a");
    larder.wait_for_waiting(10);
    gate.open();
    assert_eq!(crowd.join().unwrap().iter().filter(|answer| answer.get("set-cookie").is_some()).count(), 1);
    assert_eq!(origin.count(), 1);
}
