//! Tests the tags that a response is purged by: who sees them, and how many there may be.

use crate::support::tagged::{fill, hits, others, tagged};
use crate::support::{Larder, Origin};

#[test]
fn tags_are_for_this_cache_unless_configured() {
    let origin = tagged();
    for (config, seen) in [("", None), ("cache.show_tag_fields=true", Some("blog, pages"))] {
        let larder = Larder::new(&origin, config);
        for fields in ["", "", "Cache-Control: no-store", "Range: bytes=0-1"] {
            let answer = larder.get("/blog/1", fields);
            assert_eq!(answer.get("cache-tag"), seen, "{fields}");
            assert_eq!(answer.get("xkey").is_some(), seen.is_some());
        }
    }
    let larder = Larder::new(&origin, "cache.tag_fields=[\"Edge-Tag\"]");
    let answer = larder.get("/blog/1", "");
    assert_eq!(answer.get("cache-tag"), Some("blog, pages"), "it is no tag field here");
    larder.purge_of(r#"{"tag": "blog"}"#);
    assert_eq!(larder.get("/blog/1", "").hit(), Some("memory"));
}

#[test]
fn what_cannot_be_purged_by_all_its_tags_is_not_stored() {
    let origin = Origin::new(|seen, reply| {
        let tags = match seen.path() {
            "/many" => (0..1001).map(|n| format!("t{n} ")).collect::<String>(),
            "/long" => "x".repeat(1025),
            _ => (0..1000).map(|n| format!("t{n} ")).collect(),
        };
        reply.send(200, &format!("Cache-Control: max-age=600\nxkey: {}", tags.trim()), "ok");
    });
    let larder = Larder::new(&origin, "");
    for (path, is_stored) in [("/many", false), ("/long", false), ("/most", true)] {
        larder.get(path, "");
        assert_eq!(larder.get(path, "").hit().is_some(), is_stored, "{path}");
    }
    larder.purge_of(r#"{"tag": "t999"}"#);
    assert_eq!(larder.get("/most", "").hit(), None);
}

#[test]
fn a_304_keeps_the_tags_and_adds_its_own() {
    let origin = Origin::new(|seen, reply| match seen.head.get("if-none-match") {
        None => reply.send(200, "Cache-Control: max-age=10\nETag: \"1\"\nxkey: first", "page"),
        Some(_) => reply.send(304, "Cache-Control: max-age=600\nETag: \"1\"\nxkey: second", ""),
    });
    for tag in ["first", "second"] {
        let larder = Larder::new(&origin, "");
        larder.get("/a", "");
        larder.advance(20);
        assert!(larder.get("/a", "").cache_status().contains("fwd-status=304"));
        assert!(larder.get("/a", "").hit().is_some());
        larder.purge_of(&format!("{{\"tag\": \"{tag}\"}}"));
        assert_eq!(larder.get("/a", "").hit(), None, "{tag}");
    }
}

#[test]
fn rules_tag_what_they_match() {
    let origin = tagged();
    let larder = Larder::new(&origin, "rule=[{path=\"/shop/*\", tags=[\"catalogue\"]}]");
    fill(&larder);
    larder.purge_of(r#"{"tag": "catalogue"}"#);
    assert_eq!(hits(&larder), others(&[3]));
}
