//! Tests `No-Vary-Search`: queries that one response answers.

use std::sync::Arc;

use crate::support::{Gate, Larder, Origin, at_once};

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
        assert!(larder.get(&url(first), "").is_hit(), "{field}: the same query");
        assert_eq!(larder.get(&url(second), "").is_hit(), alike, "{field}: {first} {second}");
        assert!(!larder.get(&format!("/q?{first}"), "").is_hit(), "another path");
        // Either URL purges what both are answered from.
        assert_eq!(larder.purge(&format!("http://site.example{}", url(second))).status(), 200);
        assert!(!larder.get(&url(second), "").is_hit(), "{field}");
        if alike {
            larder.client().send("POST", &url(first), "Content-Length: 0");
            assert!(!larder.get(&url(second), "").is_hit(), "{field}");
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
    assert!(larder.get("/p?a=1", "").is_hit());
    assert_eq!(larder.get("/p?u=7&a=2", "").text(), "/p?a=2&u=1");
    assert!(larder.get("/p?u=7&a=2", "").is_hit());
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
    let larder = Arc::new(Larder::new(&origin, ""));
    larder.get("/i?id=0&user=a", "");
    let clients = {
        let larder = Arc::clone(&larder);
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
