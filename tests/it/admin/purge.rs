//! Tests requests for a purge: how they are made, what they are told, and which are refused.

use std::net::SocketAddr;

use crate::support::tagged::{PATHS, fill, hits, others, tagged};
use crate::support::{Answer, Client, Larder, Origin, eventually, file_url, larder, out_of, post};

#[test]
fn a_purged_url_is_asked_for_again() {
    let origin = Origin::new(|seen, reply| {
        let language = seen.head.get("accept-language").unwrap_or_default();
        reply.send(200, "Cache-Control: max-age=60\nVary: Accept-Language", language);
    });
    let larder = Larder::new(&origin, "");
    for fields in ["Accept-Language: en", "Accept-Language: de"] {
        larder.get("/a", fields);
        larder.get("/b", fields);
    }
    assert_eq!(larder.purge("http://SITE.example:80/a").status(), 200);
    for fields in ["Accept-Language: en", "Accept-Language: de"] {
        assert_eq!(larder.get("/a", fields).hit(), None, "every variant is gone");
        assert_eq!(larder.get("/b", fields).hit(), Some("memory"));
    }
    for url in ["/a", "nonsense", "ftp://site.example/a"] {
        assert_eq!(larder.purge(url).status(), 400, "{url}");
    }
}

fn method_purge(address: SocketAddr, target: &str, fields: &str) -> Answer {
    let mut client = Client::connect(address);
    let fields: String = fields.lines().map(|line| format!("{line}\r\n")).collect();
    client.raw(format!("PURGE {target} HTTP/1.1\r\n{fields}\r\n"));
    client.answer()
}

#[test]
fn purge_requests_are_answered_on_the_admin_listener_and_nowhere_else() {
    let origin = tagged();
    let larder = Larder::new(&origin, "admin.token=secret");
    let token = "Authorization: Bearer secret";
    fill(&larder);
    let refused = method_purge(larder.address, "/blog/1", "Host: site.example");
    assert_eq!((refused.status(), refused.cache_status()), (405, "larder; detail=method-not-allowed"));
    assert_eq!(method_purge(larder.admin, "/blog/1", "Host: site.example").status(), 401);
    assert_eq!(hits(&larder).len(), PATHS.len());
    for (target, fields, covered) in [
        ("/blog/1", "Host: site.example", &[0][..]),
        ("http://site.example/blog/2?a=1", "Host: admin", &[1]),
        ("/blog*", "Host: Site.Example", &[0, 1, 2]),
        ("/blog/1", "Host: other.example", &[]),
    ] {
        let answer = method_purge(larder.admin, target, &format!("{fields}\n{token}"));
        assert_eq!(answer.status(), 200, "{target}: {}", answer.text());
        assert_eq!(hits(&larder), others(covered), "{target}");
    }
    let answer = method_purge(larder.admin, "/shop/1", &format!("Host: site.example\nSoft-Purge: 1\n{token}"));
    assert_eq!(answer.status(), 200);
    assert!(larder.get("/shop/1", "").cache_status().starts_with("larder; fwd=stale; fwd-status=304"));
    assert_eq!(method_purge(larder.admin, "/x", &format!("Host: a b\n{token}")).status(), 400);
    assert_eq!(method_purge(larder.admin, "*", &format!("Host: site.example\n{token}")).status(), 400);
    assert_eq!(method_purge(larder.admin, "/x", &format!("Host: h\nSoft-Purge: perhaps\n{token}")).status(), 400);
}

#[test]
fn what_makes_no_sense_is_said_in_one_sentence() {
    let origin = tagged();
    let larder = Larder::new(&origin, "");
    fill(&larder);
    for (body, word) in [
        ("", "JSON"),
        ("{}", "one of"),
        (r#"{"all": false}"#, "one of"),
        (r#"{"url": "http://h/", "tag": "x"}"#, "one of"),
        (r#"{"urls": ["http://h/"]}"#, "unknown field"),
        (r#"{"url": "/relative"}"#, "absolute"),
        (r#"{"prefix": "site.example/"}"#, "prefix"),
        (r#"{"prefix": ""}"#, "prefix"),
        (r#"{"tag": ""}"#, "tag"),
        (r#"{"tag": "a,b"}"#, "comma"),
        (r#"{"tag": " a"}"#, "white space"),
        (r#"{"url": "http://h/", "scheme": "https"}"#, "both"),
        (r#"{"tag": "a", "scheme": "exact"}"#, "URLs and prefixes"),
    ] {
        let answer = larder.purge_of(body);
        assert_eq!(answer.status(), 400, "{body}");
        assert!(answer.text().contains(word), "{body}: {}", answer.text());
    }
    let answer = post(larder.admin, "/purge?wait=soon", r#"{"all": true}"#);
    assert_eq!(answer.status(), 400);
    assert_eq!(hits(&larder).len(), PATHS.len(), "nothing was purged");
}

#[test]
fn a_purge_says_what_was_held_and_where() {
    let origin = Origin::cacheable();
    let directory = tempfile::tempdir().expect("a directory");
    let config = format!("{}\nserver.trusted_proxies=127.0.0.1", file_url(directory.path()));
    let running = Larder::new(&origin, &config);
    eventually("the index is loaded", || running.metric("larder_index_loaded") == 1);
    let admin = format!("admin.listen={}", running.admin);
    let purge = |args: &[&str]| {
        let (code, out, error) =
            out_of(&larder(&[]).arg("purge").args(args).args(["--set", &admin]).output().expect("it runs"));
        assert_eq!(code, Some(0), "{error}");
        // A deletion that still waits counts as held.
        running.settle();
        out.trim_end().to_owned()
    };
    let fill = |scheme: &str, host: &str| {
        running.get("/a", &format!("Host: {host}\nX-Forwarded-Proto: {scheme}"));
        running.settle();
    };
    let is_held = |scheme: &str, host: &str| {
        running.get("/a", &format!("Host: {host}\nX-Forwarded-Proto: {scheme}\nCache-Control: only-if-cached")).status()
            == 200
    };
    let both = "held in memory and in the durable tier";
    fill("http", "h");
    assert_eq!(purge(&["http://h/a"]), format!("purged http://h/a ({both})"));
    assert_eq!(purge(&["http://h/a"]), "purged http://h/a (nothing was held)");
    fill("http", "h");
    assert_eq!(purge(&["https://h/a", "--exact-scheme"]), "purged https://h/a (nothing was held)");
    assert!(is_held("http", "h"));
    assert_eq!(
        purge(&["https://h:443/a"]),
        "purged https://h:443/a (held under http in memory and in the durable tier)"
    );
    assert!(!is_held("http", "h"));
    fill("http", "h");
    fill("https", "h");
    let answer = post(running.admin, "/purge", "{\"url\": \"http://h:80/a\"}").text();
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    for scheme in ["http", "https"] {
        assert_eq!(answer["held"][scheme], serde_json::json!({"memory": true, "durable": true}), "{answer}");
        assert!(!is_held(scheme, "h"), "{scheme}");
    }
    // Port 443 named under http is https without a port.
    for (stored, url) in [
        (("http", "h:443"), "https://h/a"),
        (("http", "h:443"), "http://h:443/a"),
        (("https", "h:443"), "http://h/a"),
        (("https", "h"), "http://h:443/a"),
        (("http", "h:8080"), "https://h:8080/a"),
    ] {
        fill(stored.0, stored.1);
        assert!(is_held(stored.0, stored.1));
        assert!(purge(&[url]).contains("held"), "{url}");
        assert!(!is_held(stored.0, stored.1), "{stored:?} {url}");
        fill(stored.0, stored.1);
        let prefix = url.strip_suffix("/a").unwrap();
        let told = purge(&["--prefix", prefix]);
        assert!(told.ends_with("(not searched for: what it covers counts as gone from now on)"), "{told}");
        assert!(!is_held(stored.0, stored.1), "{stored:?} {prefix}");
    }
    fill("https", "h");
    let mut client = Client::connect(running.admin);
    client.raw("PURGE /a HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(client.answer().text().contains("\"https\":{\"durable\":true,\"memory\":true}"));
    assert!(!is_held("https", "h"));
    let answer = post(running.admin, "/purge", "{\"tag\": \"t\"}").text();
    assert!(answer.contains("\"held\":null") && answer.contains("not searched for"), "{answer}");
}
