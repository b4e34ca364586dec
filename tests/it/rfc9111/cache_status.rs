//! Tests the `Cache-Status` field (RFC 9211).

use crate::support::{Larder, Origin};

#[test]
fn cache_status_keeps_what_other_caches_said_and_names_the_key_where_asked() {
    let origin = Origin::answers(vec![(200, "Cache-Control: max-age=60\nCache-Status: \"inner\"; hit", "x")]);
    let larder = Larder::new(&origin, "cache.status_key=true\ncache.key_prefix=p");
    for (n, expected) in [
        "larder; fwd=uri-miss; stored; ttl=60; key=\"http://site.example/a?b=%22\"",
        "larder; hit; ttl=60; key=\"http://site.example/a?b=%22\"; detail=memory",
    ]
    .iter()
    .enumerate()
    {
        let answer = larder.get("/a?b=%22", "");
        assert_eq!(answer.head.all("cache-status"), ["\"inner\"; hit", expected], "{n}");
    }
    larder.advance(61);
    assert!(larder.get("/a?b=%22", "Cache-Control: max-stale").cache_status_of_larder().contains("; ttl=-1;"));
}
