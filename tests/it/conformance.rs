//! HTTP caching to the letter, over sockets: what the public test package says nothing of, and what
//! it gets wrong. Its own run is in `conformance/`.

use crate::binary::{Process, file_url};
use crate::support::{Answer, Gate, Larder, Origin, Seen, at_once, eventually};

/// The same in memory and through the durable tier alone.
/// Ranges are asked for as they are, so that parts are put together.
const FORWARD: &str = "rule=[{path = \"*\", ranges = \"forward\"}]";

fn in_each_tier(mut test: impl FnMut(&dyn Fn(&Origin) -> Larder)) {
    test(&|origin| Larder::new(origin, FORWARD));
    let directory = tempfile::tempdir().expect("a directory");
    let next = std::cell::Cell::new(0);
    test(&|origin| {
        next.set(next.get() + 1);
        let url = file_url(&directory.path().join(next.get().to_string()));
        Larder::new(origin, &format!("{url}\nmemory.capacity=0\ndurable.min_lifetime=0s\n{FORWARD}"))
    });
    // And read back, not found in the queue.
    test(&|origin| {
        next.set(next.get() + 1);
        let url = file_url(&directory.path().join(next.get().to_string()));
        Larder::new(origin, &format!("{url}\nmemory.capacity=0\ndurable.min_lifetime=0s\n{FORWARD}")).settling()
    });
}

fn is_hit(answer: &Answer) -> bool {
    answer.hit().is_some()
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
    assert!(is_hit(&larder.get("/a", "")), "stale while revalidate");
    assert!(!is_hit(&larder.get("/a-own", "")), "what the response says goes first");
    assert!(!is_hit(&larder.get("/b", "")), "no rule");
    larder.advance(50);
    origin.script(|_, reply| reply.send(500, "", "broken"));
    assert_eq!(larder.get("/a", "").status(), 200);
    assert_eq!(larder.get("/a-own", "").status(), 500);
    assert_eq!(larder.get("/b", "").status(), 500);
    assert_eq!(larder.get("/b", "Cache-Control: stale-if-error=1000").status(), 200, "a client may ask for it");
}

#[test]
fn a_response_that_is_never_fresh_is_served_while_it_is_revalidated() {
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=0, stale-while-revalidate=60", "old"));
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    origin.script(|_, reply| reply.send(200, "Cache-Control: max-age=60", "new"));
    larder.advance(5);
    let stale = larder.get("/a", "");
    assert_eq!((stale.text().as_str(), is_hit(&stale)), ("old", true));
    origin.requests.wait_for(2);
    eventually("the background validation lands", || larder.get("/a", "").text() == "new");
    assert_eq!(origin.count(), 2);
}

#[test]
fn a_targeted_field_replaces_cache_control_and_expires() {
    const FUTURE: &str = "Fri, 01 Jan 2038 00:00:00 GMT";
    for (fields, stored) in [
        ("CDN-Cache-Control: max-age=60\nCache-Control: no-store".to_owned(), true),
        ("CDN-Cache-Control: no-store\nCache-Control: max-age=60".to_owned(), false),
        ("CDN-Cache-Control: private\nCache-Control: max-age=60".to_owned(), false),
        ("Larder-Cache-Control: max-age=60\nCDN-Cache-Control: no-store".to_owned(), true),
        (format!("CDN-Cache-Control: max-age=0\nExpires: {FUTURE}"), false),
        (format!("CDN-Cache-Control: must-revalidate\nExpires: {FUTURE}"), false),
        (format!("CDN-Cache-Control: MAX-AGE=0\nExpires: {FUTURE}"), true),
        ("CDN-Cache-Control: max-age=60\nSet-Cookie: a=1".to_owned(), true),
        ("Surrogate-Control: max-age=60".to_owned(), false),
        ("X-Accel-Expires: 60".to_owned(), false),
    ] {
        let sent = fields.clone();
        let origin = Origin::new(move |_, reply| reply.send(200, &sent, "x"));
        let larder = Larder::new(&origin, "cache.set_cookie=explicit");
        let first = larder.get("/a", "");
        let name = fields.split(':').next().expect("a name");
        assert!(first.get(name).is_some(), "{name} is passed on");
        assert_eq!(is_hit(&larder.get("/a", "")), stored, "{fields}");
    }
}

#[test]
fn other_fields_speak_to_larder_where_configured_and_are_removed_where_configured() {
    for (fields, stored) in [
        ("Surrogate-Control: max-age=60\nCache-Control: no-store", true),
        ("Surrogate-Control: max-age=60;other\nCache-Control: no-store", false),
        ("X-Accel-Expires: 60\nCache-Control: private", true),
        ("X-Accel-Expires: 0\nCache-Control: max-age=60", false),
        ("My-Cache-Control: max-age=60\nCDN-Cache-Control: no-store", true),
        ("CDN-Cache-Control: max-age=60", false),
    ] {
        let origin = Origin::new(move |_, reply| reply.send(200, fields, "x"));
        let config = "cache.surrogate_control=true\ncache.x_accel_expires=true\ncache.remove_targets=true\ncache.targets=My-Cache-Control";
        let larder = Larder::new(&origin, config);
        for _ in 0..2 {
            let answer = larder.get("/a", "");
            for gone in ["surrogate-control", "x-accel-expires", "my-cache-control"] {
                assert_eq!(answer.get(gone), None);
            }
        }
        assert_eq!(is_hit(&larder.get("/a", "")), stored, "{fields}");
        assert_eq!(origin.last().head.get("surrogate-capability"), Some("larder=\"Surrogate/1.0\""));
    }
}

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

#[test]
fn an_immutable_response_is_not_validated_for_a_reload() {
    let origin = Origin::answers(vec![(200, "Cache-Control: max-age=60, immutable\nETag: \"a\"", "x")]);
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    assert!(is_hit(&larder.get("/a", "Cache-Control: max-age=0")));
    assert!(!is_hit(&larder.get("/a", "Cache-Control: no-cache")), "what is forced is done");
    larder.advance(61);
    assert!(!is_hit(&larder.get("/a", "Cache-Control: max-age=0")), "only while it is fresh");
}

fn grouped(seen: &Seen) -> String {
    match (seen.method(), seen.path()) {
        ("GET", "/a") => "Cache-Control: max-age=60\nCache-Groups: \"news\", \"all\"".into(),
        ("GET", "/b") => "Cache-Control: max-age=60\nCache-Groups: \"all\"".into(),
        ("GET", "/c") => "Cache-Control: max-age=60\nCache-Groups: \"News\"".into(),
        ("GET", "/safe") => "Cache-Group-Invalidation: \"all\"".into(),
        (_, group) => format!("Cache-Group-Invalidation: \"{}\"", group.trim_start_matches('/')),
    }
}

#[test]
fn a_group_is_invalidated_as_one_on_its_own_origin() {
    in_each_tier(|start| {
        let origin = Origin::new(|seen, reply| reply.send(200, &grouped(seen), "x"));
        let larder = start(&origin);
        let hits = || ["/a", "/b", "/c"].map(|path| is_hit(&larder.get(path, "")));
        hits();
        larder.settle_if_durable();
        assert_eq!(hits(), [true, true, true]);
        larder.get("/safe", "");
        assert_eq!(hits(), [true, true, true], "the answer to a safe request says nothing");
        let post =
            |path: &str, fields: &str| larder.client().send("POST", path, &format!("Content-Length: 0\n{fields}"));
        post("/all", "Host: other.example");
        assert_eq!(hits(), [true, true, true], "another origin");
        post("/news", "");
        assert_eq!(hits(), [false, true, true], "names are compared letter by letter");
        assert_eq!(hits(), [true, true, true], "what is stored afterwards is not covered");
        post("/all", "");
        assert_eq!(hits(), [false, false, true]);
        origin.script(|seen, reply| reply.send(500, &grouped(seen), "x"));
        post("/all", "");
        assert_eq!(hits(), [true, true, true], "an error changes nothing");
    });
}

#[test]
fn a_groups_invalidation_survives_kill_9_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let origin = Origin::new(|seen, reply| reply.send(200, &grouped(seen), "x"));
    let upstream = format!("http://{}", origin.address);
    let url = file_url(directory.path());
    for _ in 0..3 {
        let larder = Process::start(&upstream, &[&url]);
        for path in ["/a", "/c"] {
            larder.get(path, "");
        }
        larder.settle();
        larder.client().send("POST", "/all", "Content-Length: 0");
        larder.kill_9();
        let larder = Process::start(&upstream, &[&url]);
        assert!(!is_hit(&larder.get("/a", "")));
        assert_eq!(larder.get("/c", "").hit(), Some("durable"), "another group");
        larder.settle();
        larder.kill_9();
        let larder = Process::start(&upstream, &[&url]);
        assert_eq!(larder.get("/a", "").hit(), Some("durable"), "what was stored afterwards");
    }
}

#[test]
fn a_response_under_way_is_covered_by_its_groups_invalidation() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |seen, reply| {
            if seen.method() == "GET" {
                gate.wait();
            }
            reply.send(200, &grouped(seen), "x");
        }
    });
    let larder = Larder::new(&origin, "");
    let mut client = larder.client();
    client.ask("GET", "/a", "");
    origin.requests.wait_for(1);
    larder.client().send("POST", "/all", "Content-Length: 0");
    gate.open();
    client.answer();
    assert!(!is_hit(&larder.get("/a", "")));
}

#[test]
fn no_vary_search_makes_queries_alike_as_it_says() {
    for (field, first, second, alike) in [
        ("", "a=1", "a=1&u=2", false),
        ("params=(\"u\")", "a=1", "a=1&u=2", true),
        ("params=(\"u\")", "a=1", "a=2&u=2", false),
        ("params=(\"u\")", "u=1", "", true),
        ("params, except=(\"a\")", "a=1&b=2", "c=3&a=1", true),
        ("params, except=(\"a\")", "a=1", "a=2", false),
        ("key-order", "a=1&b=2", "b=2&a=1", true),
        ("key-order", "a=1&b=2", "b=1&a=2", false),
        ("nonsense=", "a=1&b=2", "b=2&a=1", false),
    ] {
        let origin = Origin::new(move |_, reply| {
            reply.send(200, &format!("Cache-Control: max-age=60\nNo-Vary-Search: {field}"), "x");
        });
        let larder = Larder::new(&origin, "");
        let url = |query: &str| if query.is_empty() { "/p".to_owned() } else { format!("/p?{query}") };
        larder.get(&url(first), "");
        assert!(is_hit(&larder.get(&url(first), "")), "{field}: the same query");
        assert_eq!(is_hit(&larder.get(&url(second), "")), alike, "{field}: {first} {second}");
        assert!(!is_hit(&larder.get(&format!("/q?{first}"), "")), "another path");
        // Either URL purges what both are answered from.
        assert_eq!(larder.purge(&format!("http://site.example{}", url(second))).status(), 200);
        assert!(!is_hit(&larder.get(&url(second), "")), "{field}");
        if alike {
            larder.client().send("POST", &url(first), "Content-Length: 0");
            assert!(!is_hit(&larder.get(&url(second), "")), "{field}");
        }
    }
}

#[test]
fn paths_whose_responses_differ_on_no_vary_search_keep_both() {
    let origin = Origin::new(|seen, reply| {
        let field = if seen.path().contains("u=") { "No-Vary-Search: params=(\"u\")" } else { "" };
        reply.send(200, &format!("Cache-Control: max-age=60\n{field}"), seen.path());
    });
    let larder = Larder::new(&origin, "");
    assert_eq!(larder.get("/p?a=1", "").text(), "/p?a=1");
    assert_eq!(larder.get("/p?a=2&u=1", "").text(), "/p?a=2&u=1");
    assert_eq!(larder.get("/p?a=1", "").text(), "/p?a=1");
    assert!(is_hit(&larder.get("/p?a=1", "")));
    assert_eq!(larder.get("/p?u=7&a=2", "").text(), "/p?a=2&u=1");
    assert!(is_hit(&larder.get("/p?u=7&a=2", "")));
}

#[test]
fn a_posts_response_answers_get_when_it_says_that_it_may() {
    in_each_tier(|start| {
        for (fields, stored) in [
            ("Cache-Control: max-age=60\nContent-Location: /a", true),
            ("Cache-Control: max-age=60\nContent-Location: http://site.example/a", true),
            ("Cache-Control: max-age=60\nContent-Location: /other", false),
            ("Cache-Control: max-age=60\nContent-Location: http://other.example/a", false),
            ("Cache-Control: max-age=60", false),
            ("Last-Modified: Fri, 01 Jan 2010 00:00:00 GMT\nContent-Location: /a", false),
            ("Cache-Control: max-age=60, private\nContent-Location: /a", false),
            ("Cache-Control: max-age=60\nContent-Location: /a\nSet-Cookie: s=1", false),
            ("Cache-Control: max-age=60\nContent-Location: /a\nVary: *", false),
        ] {
            let origin = Origin::new(move |seen, reply| match seen.method() {
                "POST" => reply.send(200, fields, "posted"),
                _ => reply.send(200, "Cache-Control: max-age=60", "got"),
            });
            let larder = start(&origin);
            assert_eq!(larder.get("/a", "").text(), "got");
            let mut client = larder.client();
            client.ask("POST", "/a", "Content-Length: 3");
            client.raw("x=1");
            let posted = client.answer();
            assert_eq!((posted.status(), posted.text().as_str()), (200, "posted"), "{fields}");
            assert_eq!(posted.fwd(), Some("method"));
            let expected = if stored { ("posted", true) } else { ("got", false) };
            let answer = larder.get("/a", "");
            assert_eq!((answer.text().as_str(), is_hit(&answer)), expected, "{fields}");
            // A POST is never answered from the store.
            let before = origin.count();
            larder.client().send("POST", "/a", "Content-Length: 0");
            assert_eq!(origin.count(), before + 1);
        }
    });
}

#[test]
fn a_head_freshens_what_it_matches_and_invalidates_what_it_does_not() {
    in_each_tier(|start| {
        for (head, freshened, again) in [
            ("Cache-Control: max-age=60\nETag: \"a\"\nContent-Length: 4\nX: new", true, false),
            ("Cache-Control: max-age=60\nETag: \"a\"\nX: new", true, false),
            ("Cache-Control: max-age=60\nETag: \"b\"\nX: new", false, true),
            ("Cache-Control: max-age=60\nETag: \"a\"\nContent-Length: 5", false, true),
            // Nothing in common that could be relied on.
            ("Cache-Control: max-age=60", false, false),
        ] {
            let origin = Origin::new(move |seen, reply| match seen.method() {
                "HEAD" => reply.raw(format!("HTTP/1.1 200 OK\r\n{}\r\n\r\n", head.replace('\n', "\r\n"))),
                _ => reply.send(200, "Cache-Control: max-age=10\nETag: \"a\"\nX: old\nKept: 1", "body"),
            });
            let larder = start(&origin);
            larder.get("/a", "");
            larder.advance(11);
            let answer = larder.client().send("HEAD", "/a", "");
            assert_eq!(answer.status(), 200);
            if freshened {
                assert_eq!((answer.get("x"), answer.get("kept")), (Some("new"), Some("1")), "{head}");
            }
            let get = larder.get("/a", "");
            assert_eq!(is_hit(&get), freshened, "{head}");
            assert_eq!(get.text(), "body");
            if freshened {
                assert_eq!((get.get("x"), get.get("content-length")), (Some("new"), Some("4")));
            } else {
                // The client also asks about a response that is another by now, where it is kept to stand in.
                let is_conditional = origin.last().head.get("if-none-match").is_some();
                assert!(is_conditional || again, "{head}");
            }
        }
    });
}

/// A file of twenty letters that answers ranges, with a validator of its own.
fn ranged(validator: &'static str) -> Origin {
    Origin::new(move |seen, reply| {
        const FILE: &str = "abcdefghijklmnopqrst";
        let common =
            format!("Cache-Control: max-age=60\n{validator}\nX-Range: {}", seen.head.get("range").unwrap_or("-"));
        let spec = seen.head.get("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        match spec {
            Some((first, last)) => {
                let first: usize = first.parse().expect("a position");
                let last: usize = last.parse().unwrap_or(FILE.len() - 1);
                let fields = format!("{common}\nContent-Range: bytes {first}-{last}/{}", FILE.len());
                reply.send(206, &fields, &FILE[first..=last]);
            }
            None => reply.send(200, &common, FILE),
        }
    })
}

fn range(larder: &Larder, range: &str) -> (u16, String, Option<String>, bool) {
    let answer = larder.get("/f", &format!("Range: bytes={range}"));
    (answer.status(), answer.text(), answer.get("content-range").map(str::to_owned), is_hit(&answer))
}

#[test]
fn parts_are_stored_served_combined_and_completed() {
    in_each_tier(|start| {
        let origin = ranged("ETag: \"v\"");
        let larder = start(&origin);
        let part =
            |text: &str, positions: &str, hit| (206, text.to_owned(), Some(format!("bytes {positions}/20")), hit);
        assert_eq!(range(&larder, "2-5"), part("cdef", "2-5", false));
        assert_eq!(range(&larder, "2-5"), part("cdef", "2-5", true));
        assert_eq!(range(&larder, "3-4"), part("de", "3-4", true), "a smaller one");
        assert_eq!(range(&larder, "10-14"), part("klmno", "10-14", false), "elsewhere");
        assert_eq!(range(&larder, "2-5"), part("cdef", "2-5", true), "the first is still there");
        assert_eq!(range(&larder, "6-9"), part("ghij", "6-9", false));
        assert_eq!(range(&larder, "2-14"), part("cdefghijklmno", "2-14", true), "three together");
        assert_eq!(range(&larder, "15-"), part("pqrst", "15-19", false));
        assert_eq!(range(&larder, "-3"), part("rst", "17-19", true));
        // Only the beginning is missing, and only that is asked for.
        let whole = larder.get("/f", "");
        assert_eq!((whole.status(), whole.text().as_str()), (200, "abcdefghijklmnopqrst"));
        assert_eq!((whole.fwd(), whole.get("content-range")), (Some("partial"), None));
        assert!(whole.cache_status().contains("fwd-status=206"), "{}", whole.cache_status());
        assert_eq!(whole.get("content-length"), Some("20"));
        let asked = origin.last().head;
        assert_eq!((asked.get("range"), asked.get("if-range")), (Some("bytes=0-1"), Some("\"v\"")));
        assert_eq!(whole.get("x-range"), Some("bytes=0-1"), "the newest fields");
        let again = larder.get("/f", "");
        assert_eq!((again.text().as_str(), is_hit(&again)), ("abcdefghijklmnopqrst", true));
        assert_eq!(range(&larder, "0-0"), part("a", "0-0", true));
    });
}

#[test]
fn ranges_that_make_a_whole_are_one() {
    in_each_tier(|start| {
        let origin = ranged("ETag: \"v\"");
        let larder = start(&origin);
        range(&larder, "0-9");
        range(&larder, "8-19");
        let whole = larder.get("/f", "");
        assert_eq!((whole.status(), whole.text().as_str(), is_hit(&whole)), (200, "abcdefghijklmnopqrst", true));
        assert_eq!(origin.count(), 2);
    });
}

#[test]
fn parts_of_different_representations_are_never_mixed() {
    in_each_tier(|start| {
        for (before, after) in [
            ("ETag: \"v\"", "ETag: \"w\""),
            ("ETag: W/\"v\"", "ETag: W/\"v\""),
            ("X: 1", "X: 1"),
            ("ETag: \"v\"", "X: 1"),
        ] {
            let (first, second) = (ranged(before), ranged(after));
            let larder = start(&first);
            range(&larder, "0-9");
            first.script_of(&second);
            assert!(!range(&larder, "10-19").3);
            // The newer part took the place of the older one.
            assert!(range(&larder, "10-19").3, "{before} {after}");
            assert!(!range(&larder, "0-9").3, "{before} {after}");
            let whole = larder.get("/f", "");
            assert_eq!((whole.status(), whole.text().as_str()), (200, "abcdefghijklmnopqrst"), "{before} {after}");
        }
    });
}

#[test]
fn a_stored_part_is_validated_and_obeys_if_range() {
    in_each_tier(|start| {
        let origin = ranged("ETag: \"v\"");
        let larder = start(&origin);
        range(&larder, "2-9");
        let with = |fields: &str| larder.get("/f", &format!("Range: bytes=3-4\n{fields}"));
        assert!(is_hit(&with("If-Range: \"v\"")));
        let other = with("If-Range: \"w\"");
        assert!(!is_hit(&other));
        range(&larder, "2-9");
        larder.advance(61);
        origin.script(|_, reply| reply.send(304, "Cache-Control: max-age=60\nETag: \"v\"\nX: new", ""));
        let validated = with("");
        assert_eq!((validated.status(), validated.text().as_str(), validated.get("x")), (206, "de", Some("new")));
        assert_eq!(origin.last().head.get("if-none-match"), Some("\"v\""));
        assert_eq!(origin.last().head.get("range"), Some("bytes=3-4"));
        assert!(is_hit(&with("")));
        // HEAD and what is beyond are not answered from a part.
        assert!(!is_hit(&larder.client().send("HEAD", "/f", "")));
    });
}

#[test]
fn a_part_never_takes_the_place_of_a_whole() {
    let gate = Gate::default();
    let (slow, quick) = (ranged("ETag: \"v\""), ranged("ETag: \"v\""));
    let larder = Larder::new(&slow, "");
    slow.script({
        let gate = gate.clone();
        move |seen, reply| {
            if seen.head.get("range").is_some() {
                reply.raw("HTTP/1.1 206 X\r\nCache-Control: max-age=60\r\nETag: \"v\"\r\nContent-Range: bytes 0-1/20\r\nContent-Length: 2\r\n\r\n");
                gate.wait();
                reply.raw("ab");
            } else {
                reply.send(200, "Cache-Control: max-age=60\nETag: \"v\"", "abcdefghijklmnopqrst");
            }
        }
    });
    let mut client = larder.client();
    client.ask("GET", "/f", "Range: bytes=0-1");
    assert_eq!(client.head().map(|head| head.line), Some("HTTP/1.1 206 Partial Content".into()));
    // The whole comes while the part is still on its way.
    larder.get("/f", "");
    gate.open();
    assert_eq!(client.bytes(2).expect("the part"), b"ab");
    slow.script_of(&quick);
    assert!(is_hit(&larder.get("/f", "")));
    assert!(range(&larder, "5-6").3);
}

#[test]
fn the_refusal_of_a_range_is_no_answer_to_others() {
    let origin = Origin::new(|seen, reply| match seen.head.get("range") {
        Some(_) => reply.send(416, "Cache-Control: max-age=60\nContent-Range: bytes */4", ""),
        None => reply.send(200, "Cache-Control: max-age=60", "page"),
    });
    let larder = Larder::new(&origin, "");
    assert_eq!(larder.get("/a", "Range: bytes=99-").status(), 416);
    assert_eq!(larder.get("/a", "").text(), "page");
}

#[test]
fn a_validated_part_is_cut_and_shared_as_the_answer_says() {
    in_each_tier(|start| {
        let origin = ranged("ETag: \"v\"");
        let larder = start(&origin);
        range(&larder, "0-1");
        range(&larder, "6-9");
        larder.advance(61);
        origin.script(|_, reply| reply.send(304, "Cache-Control: private\nETag: \"v\"", ""));
        let (status, text, positions, _) = range(&larder, "0-1");
        assert_eq!((status, text.as_str(), positions.as_deref()), (206, "ab", Some("bytes 0-1/20")));
        let asked = origin.count();
        range(&larder, "6-9");
        assert!(origin.count() > asked, "what became private is gone");
    });
}

#[test]
fn a_client_with_a_part_of_one_representation_gets_no_part_of_another() {
    let origin = ranged("ETag: \"v\"");
    let larder = Larder::new(&origin, "");
    range(&larder, "2-9");
    larder.advance(61);
    origin.script(|seen, reply| match seen.head.get("if-range") {
        Some("\"v\"") => reply.send(200, "ETag: \"w\"", "another"),
        _ => reply.send(206, "ETag: \"w\"\nContent-Range: bytes 3-4/7", "th"),
    });
    let answer = larder.get("/f", "Range: bytes=3-4\nIf-Range: \"v\"");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "another"));
}

#[test]
fn what_completes_a_part_is_shared_by_its_own_word_only() {
    for (stored, fields, answer) in [
        ("public, max-age=60", "", "Set-Cookie: sid=alice"),
        ("public, max-age=60", "Authorization: Basic alice", "X: alice"),
        ("max-age=60", "", "Cache-Control: private"),
    ] {
        let origin = Origin::new(move |seen, reply| match (seen.head.get("range"), seen.head.get("x-who")) {
            (Some("bytes=0-4"), _) => {
                let fields = format!("CDN-Cache-Control: {stored}\nETag: \"a\"\nContent-Range: bytes 0-4/10");
                reply.send(206, &fields, "01234");
            }
            (Some("bytes=5-"), Some(who)) => {
                reply.send(206, &format!("{answer}\nETag: \"a\"\nContent-Range: bytes 5-9/10"), &who[..5]);
            }
            (_, who) => reply.send(200, &format!("{answer}\nETag: \"a\""), who.unwrap_or("nobody")),
        });
        let larder = Larder::new(&origin, "");
        larder.get("/a", "Range: bytes=0-4");
        larder.get("/a", &format!("X-Who: alice\n{fields}"));
        let bob = larder.get("/a", "X-Who: bobby");
        assert!(!is_hit(&bob), "{answer}");
        assert!(!bob.text().contains("alice"), "{answer}: {}", bob.text());
    }
}

#[test]
fn what_does_not_fit_the_gap_never_looks_like_a_whole() {
    for (sent, before, after) in
        [("XXXXXXXX", "", "56789"), ("X", "", "56789"), ("XXXXXXXX", "01", "789"), ("X", "01", "789")]
    {
        let origin = Origin::new(move |seen, reply| {
            let (first, last) = (before.len(), 9 - after.len());
            match seen.head.get("range") {
                Some(asked) if asked.starts_with(&format!("bytes={first}-{last}")) => {
                    reply.raw(format!("HTTP/1.1 206 X\r\nETag: \"a\"\r\nCache-Control: max-age=60\r\nContent-Range: bytes {first}-{last}/10\r\nTransfer-Encoding: chunked\r\n\r\n"));
                    reply.chunk(sent);
                    reply.end();
                }
                Some(asked) => {
                    let (from, text) = if asked == "bytes=0-1" { (0, before) } else { (10 - after.len(), after) };
                    let fields = format!(
                        "ETag: \"a\"\nCache-Control: max-age=60\nContent-Range: bytes {from}-{}/10",
                        from + text.len() - 1
                    );
                    reply.send(206, &fields, text);
                }
                None => reply.send(200, "ETag: \"a\"", "0123456789"),
            }
        });
        let larder = Larder::new(&origin, FORWARD);
        if !before.is_empty() {
            larder.get("/a", "Range: bytes=0-1");
        }
        larder.get("/a", &format!("Range: bytes={}-", 10 - after.len()));
        let mut client = larder.client();
        client.ask("GET", "/a", "");
        assert!(client.try_answer().is_err(), "{sent} {before} {after}");
    }
}

#[test]
fn a_head_of_what_is_held_in_part_is_answered_by_the_origin() {
    in_each_tier(|start| {
        let origin = ranged("ETag: \"v\"");
        let larder = start(&origin);
        range(&larder, "2-5");
        range(&larder, "9-12");
        origin.script(|_, reply| {
            reply.raw("HTTP/1.1 200 X\r\nCache-Control: max-age=60\r\nETag: \"v\"\r\nContent-Length: 20\r\n\r\n");
        });
        let head = larder.client().send("HEAD", "/f", "");
        assert_eq!((head.status(), head.get("content-length"), head.get("content-range")), (200, Some("20"), None));
        assert!(range(&larder, "2-5").3, "and the part is good for longer");
    });
}

#[test]
fn an_unsafe_request_whose_client_leaves_invalidates_all_the_same() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |seen, reply| match seen.method() {
            "GET" => reply.send(200, "Cache-Control: max-age=60", "x"),
            _ => {
                gate.wait();
                reply.send(204, "", "");
            }
        }
    });
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    let mut client = larder.client();
    client.ask("POST", "/a", "Content-Length: 0");
    origin.requests.wait_for(2);
    drop(client);
    gate.open();
    eventually("it is invalidated", || !is_hit(&larder.get("/a", "")));
}

#[test]
fn followers_of_alike_queries_get_nothing_that_is_not_theirs() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |seen, reply| {
            if seen.path().contains("id=0") {
                return reply.send(200, "Cache-Control: max-age=60\nNo-Vary-Search: params=(\"user\")", "shared");
            }
            gate.wait();
            reply.send(200, "Cache-Control: max-age=60", seen.path());
        }
    });
    let larder = std::sync::Arc::new(Larder::new(&origin, ""));
    larder.get("/i?id=0&user=a", "");
    let clients = {
        let larder = std::sync::Arc::clone(&larder);
        std::thread::spawn(move || {
            at_once(4, move |n| {
                let path = format!("/i?id=5&user={n}");
                (larder.get(&path, "").text(), path)
            })
        })
    };
    origin.requests.wait_for(2);
    gate.open();
    for (text, path) in clients.join().expect("no panic") {
        assert_eq!(text, path);
    }
}

#[test]
fn nobody_joins_what_its_group_was_invalidated_under() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |seen, reply| match (seen.method(), seen.head.get("x-new")) {
            ("GET", None) => {
                reply.begin("Cache-Control: max-age=60\nCache-Groups: \"g\"");
                reply.chunk("old");
                gate.wait();
                reply.end();
            }
            ("GET", Some(_)) => reply.send(200, "Cache-Control: max-age=60", "new"),
            _ => reply.send(204, "Cache-Group-Invalidation: \"g\"", ""),
        }
    });
    let larder = Larder::new(&origin, "");
    let mut first = larder.client();
    first.ask("GET", "/a", "");
    first.head().expect("a head");
    assert_eq!(larder.client().send("POST", "/b", "Content-Length: 0").status(), 204);
    assert_eq!(larder.get("/a", "X-New: 1").text(), "new");
    gate.open();
}

#[test]
fn a_posts_response_of_before_its_groups_invalidation_is_not_stored() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |seen, reply| match (seen.method(), seen.path()) {
            ("POST", "/a") => {
                gate.wait();
                reply.send(200, "Cache-Control: max-age=60\nContent-Location: /a\nCache-Groups: \"g\"", "old");
            }
            ("POST", _) => reply.send(204, "Cache-Group-Invalidation: \"g\"", ""),
            _ => reply.send(200, "Cache-Control: max-age=60", "new"),
        }
    });
    let larder = Larder::new(&origin, "");
    let mut client = larder.client();
    client.ask("POST", "/a", "Content-Length: 0");
    origin.requests.wait_for(1);
    larder.client().send("POST", "/b", "Content-Length: 0");
    gate.open();
    assert_eq!(client.answer().text(), "old");
    assert_eq!(larder.get("/a", "").text(), "new");
}

#[test]
fn an_answer_that_took_long_does_not_take_the_place_of_a_newer_one() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |seen, reply| match seen.method() {
            "POST" => {
                reply.begin("Cache-Control: max-age=60\nContent-Location: /a");
                reply.chunk("old");
                gate.wait();
                reply.end();
            }
            _ => reply.send(200, "Cache-Control: max-age=60", "new"),
        }
    });
    let larder = Larder::new(&origin, "");
    let mut client = larder.client();
    client.ask("POST", "/a", "Content-Length: 0");
    client.head().expect("a head");
    larder.advance(1);
    assert_eq!(larder.get("/a", "X: 1").text(), "new");
    gate.open();
    while client.chunk().is_some_and(|chunk| !chunk.is_empty()) {}
    assert_eq!(larder.get("/a", "").text(), "new");
}

#[test]
fn a_successor_that_is_not_written_takes_the_durable_one_along() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = file_url(directory.path());
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=600", "first"));
    let larder = Larder::new(&origin, &url);
    larder.get("/a", "");
    larder.settle();
    // For less than durable.min_lifetime: in memory only.
    origin.script(|_, reply| reply.send(200, "Cache-Control: max-age=5", "second"));
    larder.get("/a", "Cache-Control: no-cache");
    larder.settle();
    larder.stop();
    let larder = Larder::new(&origin, &url);
    assert_eq!(larder.get("/a", "").text(), "second");
}

#[test]
fn a_variants_successor_takes_only_that_variant_along() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = file_url(directory.path());
    let origin = Origin::new(|seen, reply| {
        let foo = seen.head.get("foo").unwrap_or_default();
        reply.send(200, "Cache-Control: max-age=600\nVary: Foo", &format!("first {foo}"));
    });
    let larder = Larder::new(&origin, &url);
    for foo in ["a", "b", "c"] {
        larder.get("/a", &format!("Foo: {foo}"));
    }
    larder.settle();
    origin.script(|seen, reply| {
        let foo = seen.head.get("foo").unwrap_or_default();
        let lifetime = if foo == "a" { 5 } else { 600 };
        reply.send(200, &format!("Cache-Control: max-age={lifetime}\nVary: Foo"), &format!("second {foo}"));
    });
    larder.get("/a", "Foo: a\nCache-Control: no-cache");
    // The record that leads to all of them is written again after that.
    larder.get("/a", "Foo: b\nCache-Control: no-cache");
    larder.settle();
    larder.stop();
    let larder = Larder::new(&origin, &url);
    assert_eq!(larder.get("/a", "Foo: a").text(), "second a");
    assert_eq!(larder.get("/a", "Foo: b").text(), "second b");
    let other = larder.get("/a", "Foo: c");
    assert_eq!((other.text().as_str(), other.hit()), ("first c", Some("durable")));
}

#[test]
fn hints_to_a_slow_client_are_whole_or_not_there() {
    let origin = Origin::new(|_, reply| {
        for n in 0..400 {
            let fill = char::from(b'a' + u8::try_from(n % 26).expect("a letter")).to_string().repeat(7000);
            reply.raw(format!("HTTP/1.1 103 Early Hints\r\nX-Fill: {fill}\r\n\r\n"));
        }
        reply.send(200, "", "page");
    });
    let larder = Larder::new(&origin, "");
    let mut client = larder.client();
    client.ask("GET", "/a", "");
    // It reads nothing until the origin has said all.
    origin.requests.wait_for(1);
    eventually("the origin has answered", || larder.metric("larder_origin_requests_total{outcome=\"answered\"}") == 1);
    loop {
        let head = client.head().expect("a head");
        if !head.line.contains("103") {
            assert!(head.line.contains("200"), "{}", head.line);
            break;
        }
        let fill = head.get("x-fill").expect("its field");
        assert!(fill.len() == 7000 && fill.bytes().all(|byte| byte == fill.as_bytes()[0]), "{fill:.80}");
        assert_eq!(head.fields.len(), 1);
    }
    assert_eq!(client.bytes(4).expect("a body"), b"page");
}

#[test]
fn a_part_that_nobody_asked_for_is_not_stored() {
    let origin = Origin::answers(vec![(206, "Cache-Control: max-age=60\nContent-Range: bytes 0-1/4", "ab")]);
    let larder = Larder::new(&origin, "");
    assert_eq!(larder.get("/a", "").status(), 206, "the origin's word is passed on");
    assert!(!is_hit(&larder.get("/a", "Range: bytes=0-1")));
}

#[test]
fn early_hints_are_relayed_as_they_arrive_and_never_stored() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |_, reply| {
            reply.raw("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x\r\nX: 1\r\n\r\n");
            gate.wait();
            reply.send(200, "Cache-Control: max-age=60", "page");
        }
    });
    for (method, fields) in [("GET", ""), ("GET", "Range: bytes=0-1"), ("POST", "Content-Length: 0")] {
        let larder = Larder::new(&origin, "");
        let mut client = larder.client();
        client.ask(method, "/a", fields);
        // The origin has said no more than this by now.
        assert_eq!(client.head().map(|head| head.line), Some("HTTP/1.1 102 Processing".into()));
        let hints = client.head().expect("a head");
        assert_eq!(hints.line, "HTTP/1.1 103 Early Hints");
        assert_eq!(hints.all("link"), ["</a.css>; rel=preload"]);
        assert_eq!(hints.get("x"), None);
        gate.open();
        let is_range = fields.starts_with("Range");
        assert_eq!(client.answer().text(), if is_range { "pa" } else { "page" });
        if method == "GET" && fields.is_empty() {
            assert_eq!(client.get("/a", "").hit(), Some("memory"), "the next response begins at once");
        }
    }
    let larder = Larder::new(&origin, "");
    let mut old = larder.client();
    old.raw("GET /old HTTP/1.0\r\n\r\n");
    assert_eq!(old.answer().status(), 200, "HTTP/1.0 knows no interim responses");
}

#[test]
fn trailers_reach_a_client_that_takes_them_and_are_not_stored() {
    let origin = Origin::new(|seen, reply| {
        let cached = if seen.path() == "/stored" { "Cache-Control: max-age=60" } else { "Cache-Control: no-store" };
        reply.begin(&format!("Trailer: X-Sum\n{cached}"));
        reply.chunk("hello");
        reply.raw("0\r\nX-Sum: 42\r\n\r\n");
    });
    let larder = Larder::new(&origin, "");
    for (path, fields, expected) in [
        ("/a", "TE: trailers\nConnection: TE", true),
        ("/a", "", false),
        ("/stored", "TE: trailers\nConnection: TE", false),
    ] {
        let mut client = larder.client();
        client.ask("GET", path, fields);
        let head = client.head().expect("a head");
        assert_eq!(head.get("trailer").is_some(), path == "/a", "what is stored announces none");
        assert_eq!(client.chunk().as_deref(), Some("hello"));
        let mut rest = String::new();
        for _ in 0..3 {
            std::io::BufRead::read_line(client.reader(), &mut rest).expect("a line");
            if rest.ends_with("\r\n\r\n") {
                break;
            }
        }
        assert_eq!(rest.to_ascii_lowercase().contains("x-sum: 42"), expected, "{path} {fields}: {rest:?}");
    }
    assert!(is_hit(&larder.get("/stored", "")));
}

#[test]
fn the_language_that_a_client_prefers_selects_what_is_stored_in_it() {
    in_each_tier(|start| {
        let origin = Origin::new(|seen, reply| {
            let language =
                if seen.head.get("accept-language").is_some_and(|asked| asked.contains("de")) { "de" } else { "en" };
            let fields = format!("Cache-Control: max-age=60\nVary: Accept-Language\nContent-Language: {language}");
            reply.send(200, &fields, language);
        });
        let larder = start(&origin);
        let get = |asked: &str| {
            let answer = larder.get("/a", &format!("Accept-Language: {asked}"));
            (answer.text(), is_hit(&answer))
        };
        assert_eq!(get("en, de"), ("de".into(), false));
        assert_eq!(get("EN,  de"), ("de".into(), true), "case and white space mean nothing");
        assert_eq!(get("fr;q=0.5, de"), ("de".into(), true), "the one it prefers");
        assert_eq!(get("de, en"), ("de".into(), false), "some applications take the first of one weight");
        assert_eq!(get("fr"), ("en".into(), false));
        assert_eq!(get("en"), ("en".into(), true));
        assert_eq!(get("en, fr"), ("en".into(), false), "no one is preferred");
    });
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
fn a_follower_gets_nothing_that_was_purged_while_it_waited() {
    for answer in [304, 0] {
        let gate = Gate::default();
        let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=1\nETag: \"a\"", "purged"));
        let larder = std::sync::Arc::new(Larder::new(&origin, ""));
        larder.get("/a", "");
        larder.advance(2);
        origin.script({
            let gate = gate.clone();
            move |seen, reply| match seen.head.get("x-led") {
                Some(_) => {
                    gate.wait();
                    reply.send(500, "", "broken");
                }
                None if answer == 304 && seen.head.get("if-none-match").is_some() => {
                    reply.send(304, "Cache-Control: max-age=60\nETag: \"a\"", "");
                }
                None if answer == 304 => reply.send(200, "Cache-Control: max-age=60", "new"),
                None => reply.hang_up(),
            }
        });
        let mut leader = larder.client();
        leader.ask("GET", "/a", "X-Led: 1");
        origin.requests.wait_for(2);
        let follower = {
            let larder = std::sync::Arc::clone(&larder);
            std::thread::spawn(move || larder.get("/a", "").text())
        };
        eventually("the follower waits", || larder.running().proxy().usage().waiting == 2);
        assert_eq!(larder.purge("http://site.example/a").status(), 200);
        gate.open();
        assert_eq!(leader.answer().status(), 500);
        assert_ne!(follower.join().expect("no panic"), "purged", "{answer}");
        assert_ne!(larder.get("/a", "").text(), "purged", "{answer}");
    }
}

#[test]
fn a_durable_response_without_validators_gives_way_as_well() {
    for successor in ["s-maxage=1", "no-store"] {
        let directory = tempfile::tempdir().expect("a directory");
        let url = file_url(directory.path());
        let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: s-maxage=600", "first"));
        let larder = Larder::new(&origin, &url);
        larder.get("/a", "");
        larder.settle();
        larder.stop();
        // Memory does not know it.
        let larder = Larder::new(&origin, &url);
        origin.script(move |_, reply| reply.send(200, &format!("Cache-Control: {successor}"), "second"));
        assert_eq!(larder.get("/a", "Cache-Control: no-cache").text(), "second");
        larder.settle();
        larder.stop();
        let larder = Larder::new(&origin, &url);
        assert_eq!(larder.get("/a", "").text(), "second", "{successor}");
    }
}

#[test]
fn a_newer_response_stays_whether_it_varies_or_not() {
    for (old, new) in [("", "Vary: X-V"), ("Vary: X-V", "")] {
        let gate = Gate::default();
        let origin = Origin::new({
            let gate = gate.clone();
            move |seen, reply| match seen.head.get("authorization") {
                Some(_) => {
                    reply.begin(&format!("Cache-Control: public, max-age=600\n{old}"));
                    reply.chunk("old");
                    gate.wait();
                    reply.end();
                }
                None => reply.send(200, &format!("Cache-Control: max-age=600\n{new}"), "new"),
            }
        });
        let larder = Larder::new(&origin, "");
        let mut client = larder.client();
        client.ask("GET", "/a", "Authorization: x");
        client.head().expect("a head");
        larder.advance(1);
        assert_eq!(larder.get("/a", "").text(), "new");
        gate.open();
        while client.chunk().is_some_and(|chunk| !chunk.is_empty()) {}
        assert_eq!(larder.get("/a", "").text(), "new", "{old:?} {new:?}");
    }
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
fn a_large_body_survives_a_validation_that_was_not_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = file_url(directory.path());
    let body = "x".repeat(2 << 20);
    let origin = Origin::new(move |_, reply| reply.send(200, "Cache-Control: max-age=600\nETag: \"a\"", &body));
    let larder = Larder::new(&origin, &url);
    larder.get("/a", "");
    larder.settle();
    for lifetime in [1, 600] {
        origin.script(move |_, reply| reply.send(304, &format!("Cache-Control: max-age={lifetime}\nETag: \"a\""), ""));
        larder.get("/a", "Cache-Control: no-cache");
        larder.settle();
    }
    larder.stop();
    let larder = Larder::new(&origin, &url);
    let answer = larder.get("/a", "");
    assert_eq!((answer.hit(), answer.body.len()), (Some("durable"), 2 << 20));
}
