//! Tests `explain`: why a response is a hit or not, and why it was not stored.

use crate::support::tagged::tagged;
use crate::support::{Client, Larder, Origin, eventually, file_url, larder};

#[test]
fn explain_says_why_without_asking_the_application() {
    let (origin, directory) = (tagged(), tempfile::tempdir().expect("a directory"));
    let config = format!(
        "{}\ncache.key_prefix=site\nrule=[{{path=\"/blog/*\", ignore_query=[\"utm_*\"], tags=[\"b\"]}}, {{path=\"/private/*\", bypass=true}}]",
        file_url(directory.path())
    );
    let running = Larder::new(&origin, &config);
    running.get("/blog/1?utm_source=x", "");
    running.get("/shop/1", "");
    running.settle();
    eventually("the index is loaded", || running.metric("larder_index_loaded") == 1);
    running.advance(100);
    let asked = origin.count();
    let explain = |query: &str| {
        let answer = Client::connect(running.admin).get(&format!("/explain?{query}"), "");
        assert_eq!(answer.status(), 200, "{}", answer.text());
        answer.text()
    };
    for (query, words) in [
        (
            "url=http://site.example/blog/1%3Futm_source%3Dy",
            &[
                "\"verdict\":\"larder; hit; ttl=5900; detail=memory\"",
                "\"prefix\":\"site\"",
                "/blog/*",
                "\"has\":\"response\"",
                "age 100.000s = 0.000s when it was received + 100.000s here",
                "6000.000s - 100.000s = 5900.000s",
                "no purge covers it",
            ][..],
        ),
        ("url=http://site.example/shop/2", &["larder; fwd=uri-miss", "memory: nothing", "by its index"]),
        ("url=http://site.example/private/x", &["larder; fwd=bypass"]),
        ("url=http://site.example/shop/1&method=post", &["larder; fwd=method"]),
        (
            "url=http://site.example/shop/1&header=Cache-Control:%20no-cache",
            &["larder; fwd=request", "a 304 makes it good again"],
        ),
    ] {
        let text = explain(query);
        for word in words {
            assert!(text.contains(word), "{query}: {word} in\n{text}");
        }
    }
    running.purge_of(r#"{"tag": "b", "soft": true}"#);
    assert!(explain("url=http://site.example/blog/1").contains("covered by a purge of the tag b, softly"));
    assert!(explain("url=http://site.example/blog/1").contains("larder; fwd=stale"));
    running.purge_of(r#"{"prefix": "/shop/"}"#);
    let text = explain("url=http://site.example/shop/1");
    assert!(text.contains("the prefix /shop/") && text.contains("larder; fwd=uri-miss"), "{text}");
    assert_eq!(origin.count(), asked, "the application was not asked");
    for wrong in ["", "url=/x", "url=http://h/&x=1", "url=http://h/&header=nonsense"] {
        assert_eq!(Client::connect(running.admin).get(&format!("/explain?{wrong}"), "").status(), 400, "{wrong}");
    }
    let told = larder(&[])
        .args(["explain", "http://site.example/blog/1", "-H", "Accept: text/html"])
        .args(["--set", &format!("admin.listen={}", running.admin)])
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&told.stdout);
    assert!(text.lines().count() > 5 && text.contains("verdict: Cache-Status: larder; "), "{text}");
}

#[test]
fn why_a_response_was_not_stored_is_told_everywhere() {
    for (why, request, fields) in [
        ("set-cookie", "", "Cache-Control: max-age=60\nSet-Cookie: a=1"),
        ("private", "", "Cache-Control: private"),
        ("no-store", "", "Cache-Control: no-store"),
        ("no-lifetime", "", ""),
        ("vary", "", "Cache-Control: max-age=60\nVary: *"),
        ("authorization", "Authorization: Basic x", "Cache-Control: max-age=60"),
        ("request-no-store", "Cache-Control: no-store", "Cache-Control: max-age=60"),
        ("too-large", "", "Cache-Control: max-age=60\nX-Large: 1"),
        ("stream", "", "Cache-Control: max-age=60\nContent-Type: text/event-stream"),
    ] {
        let origin = Origin::new(move |_, reply| {
            let body = "x".repeat(if fields.contains("X-Large") { 5000 } else { 10 });
            reply.send(200, fields, &body);
        });
        let larder = Larder::new(&origin, "cache.status_key=true\nmemory.max_object_size=4KiB");
        // Twice: the second goes by what is remembered of the first.
        for _ in 0..2 {
            let answer = larder.get("/a", request);
            let status = answer.cache_status();
            assert!(status.ends_with(&format!("; detail={why}")), "{why}: {status}");
        }
        assert_eq!(larder.metric(&format!("larder_not_stored_total{{reason=\"{why}\"}}")), 2);
        let told = Client::connect(larder.admin).get("/explain?url=http://site.example/a", "").text();
        assert!(
            told.contains(&format!("\"why\":\"{why}\"")) || told.contains(&format!("\"why\": \"{why}\"")),
            "{told}"
        );
        // Without the key the field says no more than the standard has words for.
        let plain = Larder::new(&origin, "memory.max_object_size=4KiB");
        let status = plain.get("/a", request).cache_status().to_owned();
        assert!(!status.contains("detail="), "{status}");
    }
}

#[test]
fn explain_takes_out_what_connection_lists() {
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=60", "a"));
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    let fields = "Connection: if-match\nIf-Match: \"x\"";
    let query = "/explain?url=http://site.example/a&header=Connection:%20if-match&header=If-Match:%20x";
    let told = Client::connect(larder.admin).get(query, "").text();
    assert!(told.contains("larder; hit"), "{told}");
    assert!(larder.get("/a", fields).is_hit());
}
