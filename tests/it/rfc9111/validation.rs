//! Tests how a stale response is validated (RFC 9111 §4.3), and what a 304 is believed about.

use crate::support::{Larder, Origin};

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
