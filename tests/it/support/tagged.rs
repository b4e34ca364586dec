//! Pages with tags, and purges of every kind with what each covers of them.

use super::origin::Origin;
use super::proxy::Larder;

/// Every page has a validator, and the tags of its path's first segment.
pub(crate) fn tagged() -> Origin {
    Origin::new(|seen, reply| {
        let segment = seen.path().split(['/', '?']).nth(1).unwrap_or_default().to_owned();
        let fields = format!(
            "Cache-Control: max-age=6000\nETag: \"1\"\nCache-Tag: {segment}, pages\nSurrogate-Key: s-{segment} s-pages\nxkey: x-{segment}\nCache-Groups: \"group {segment}\""
        );
        if seen.head.get("if-none-match").is_some() {
            reply.send(304, &fields, "");
        } else {
            reply.send(200, &fields, seen.path());
        }
    })
}

/// The pages that the purges of [`KINDS`] are tried on.
pub(crate) const PATHS: [&str; 5] = ["/blog/1", "/blog/2?a=1", "/blogs", "/shop/1", "/"];

/// Purges, each with those of [`PATHS`] that it covers.
pub(crate) const KINDS: &[(&str, &[usize])] = &[
    (r#"{"url": "http://site.example/blog/1"}"#, &[0]),
    (r#"{"url": "HTTP://SITE.example:80/blog/2?a=1"}"#, &[1]),
    (r#"{"prefix": "http://site.example/blog/"}"#, &[0, 1]),
    (r#"{"prefix": "http://site.example/blog"}"#, &[0, 1, 2]),
    (r#"{"prefix": "/blog/2?a"}"#, &[1]),
    (r#"{"url": "https://site.example:443/blog/1"}"#, &[0]),
    (r#"{"url": "https://site.example/blog/1", "scheme": "exact"}"#, &[]),
    (r#"{"url": "http://site.example/blog/1", "scheme": "exact"}"#, &[0]),
    (r#"{"prefix": "https://site.example/blog"}"#, &[0, 1, 2]),
    (r#"{"prefix": "https://site.example/", "scheme": "exact"}"#, &[]),
    (r#"{"prefix": "http://site.example:80/shop", "scheme": "exact"}"#, &[3]),
    (r#"{"url": "http://site.example:8080/blog/1"}"#, &[]),
    (r#"{"prefix": "http://other.example/"}"#, &[]),
    (r#"{"tag": "blog"}"#, &[0, 1]),
    (r#"{"tag": "s-shop"}"#, &[3]),
    (r#"{"tag": "x-blogs"}"#, &[2]),
    (r#"{"tag": "group blog"}"#, &[0, 1]),
    (r#"{"tag": "blo"}"#, &[]),
    (r#"{"tag": "*"}"#, &[]),
    (r#"{"tag": "BLOG"}"#, &[]),
    (r#"{"all": true}"#, &[0, 1, 2, 3, 4]),
];

/// The same purge, softly.
pub(crate) fn soft(what: &str) -> String {
    what.replace('}', r#", "soft": true}"#)
}

/// Has all of the paths stored.
pub(crate) fn fill(larder: &Larder) {
    for path in PATHS {
        larder.get(path, "");
        assert!(larder.get(path, "").hit().is_some(), "{path}");
    }
}

/// Asks for all paths, and returns those that are hits; the others are stored again by it.
pub(crate) fn hits(larder: &Larder) -> Vec<usize> {
    (0..PATHS.len()).filter(|n| larder.get(PATHS[*n], "").hit().is_some()).collect()
}

/// Returns the paths that a purge does not cover.
pub(crate) fn others(covered: &[usize]) -> Vec<usize> {
    (0..PATHS.len()).filter(|n| !covered.contains(n)).collect()
}
