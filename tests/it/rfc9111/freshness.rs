//! Tests which stored response is fresh, and how old it is said to be.

use crate::support::{Larder, Origin};

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
fn age_is_the_first_member_and_nonsense_is_none() {
    for (age, seen) in
        [("30", "30"), ("30, 7200", "30"), ("030", "30"), ("abc", "0"), ("-5", "0"), ("1.5", "0"), ("7;x=1", "0")]
    {
        let origin = Origin::new(move |_, reply| {
            reply.send(200, &format!("Cache-Control: max-age=2147483648, stale-while-revalidate=60\nAge: {age}"), "x");
        });
        let larder = Larder::new(&origin, "");
        larder.get("/a", "");
        assert_eq!(larder.get("/a", "").get("age"), Some(seen), "{age}");
    }
}

#[test]
fn an_immutable_response_is_not_validated_for_a_reload() {
    let origin = Origin::answers(vec![(200, "Cache-Control: max-age=60, immutable\nETag: \"a\"", "x")]);
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    assert!(larder.get("/a", "Cache-Control: max-age=0").is_hit());
    assert!(!larder.get("/a", "Cache-Control: no-cache").is_hit(), "what is forced is done");
    larder.advance(61);
    assert!(!larder.get("/a", "Cache-Control: max-age=0").is_hit(), "only while it is fresh");
}
