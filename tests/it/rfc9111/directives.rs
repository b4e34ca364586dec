//! Tests the directives of requests (RFC 9111 §5.2.1).

use crate::support::{Gate, Larder, Origin};

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
fn no_cache_takes_no_answer_of_before() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |seen, reply| match seen.head.get("cache-control") {
            Some(_) => reply.send(200, "Cache-Control: max-age=60", "new"),
            None => {
                reply.begin("Cache-Control: max-age=60");
                reply.chunk("old");
                gate.wait();
                reply.end();
            }
        }
    });
    let larder = Larder::new(&origin, "");
    let mut client = larder.client();
    client.ask("GET", "/a", "");
    client.head().expect("a head");
    larder.advance(30);
    assert_eq!(larder.get("/a", "Cache-Control: no-cache").text(), "new");
    gate.open();
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
