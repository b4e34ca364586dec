//! Tests which responses are stored (RFC 9111 §3).

use crate::support::{Larder, Origin};

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
