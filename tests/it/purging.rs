//! Purges of every kind, here and on every other process of the same bucket; what a start knows of
//! before; and what a miss costs.

use crate::binary::{Process, file_url, larder};
use crate::places::Place;
use crate::s3::{S3, bucket};
use crate::support::{Answer, Client, Larder, Origin, START, eventually};
use larder::base::Clock;

/// Every page has a validator, and the tags of its path's first segment.
fn tagged() -> Origin {
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

const PATHS: [&str; 5] = ["/blog/1", "/blog/2?a=1", "/blogs", "/shop/1", "/"];

/// What is to be purged, and which of [`PATHS`] that covers.
const KINDS: &[(&str, &[usize])] = &[
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

fn soft(what: &str) -> String {
    what.replace('}', r#", "soft": true}"#)
}

fn fill(larder: &Larder) {
    for path in PATHS {
        larder.get(path, "");
        assert!(larder.get(path, "").hit().is_some(), "{path}");
    }
}

/// Which of the paths are hits; the others become so again.
fn hits(larder: &Larder) -> Vec<usize> {
    (0..PATHS.len()).filter(|n| larder.get(PATHS[*n], "").hit().is_some()).collect()
}

fn others(covered: &[usize]) -> Vec<usize> {
    (0..PATHS.len()).filter(|n| !covered.contains(n)).collect()
}

#[test]
fn a_purge_covers_what_it_names_and_nothing_else() {
    for durable in [false, true] {
        let (origin, directory) = (tagged(), tempfile::tempdir().expect("a directory"));
        let config = if durable { file_url(directory.path()) } else { String::new() };
        let larder = Larder::new(&origin, &config);
        fill(&larder);
        for (what, covered) in KINDS {
            let answer = larder.purge_of(what);
            assert_eq!(answer.status(), 200, "{what}: {}", answer.text());
            assert_eq!(hits(&larder), others(covered), "{what}");
            assert_eq!(hits(&larder).len(), PATHS.len(), "stored after the purge, it is good: {what}");
        }
    }
}

#[test]
fn a_soft_purge_leaves_what_can_be_validated_or_stand_in() {
    let (origin, directory) = (tagged(), tempfile::tempdir().expect("a directory"));
    let larder = Larder::new(&origin, &file_url(directory.path()));
    fill(&larder);
    for (what, covered) in KINDS {
        assert_eq!(larder.purge_of(&soft(what)).status(), 200, "{what}");
        for (n, path) in PATHS.iter().enumerate() {
            let answer = larder.get(path, "");
            if covered.contains(&n) {
                let status = answer.cache_status();
                assert!(status.starts_with("larder; fwd=stale; fwd-status=304; stored"), "{what} {path}: {status}");
            } else {
                assert!(answer.hit().is_some(), "{what} {path}: {}", answer.cache_status());
            }
            assert_eq!(answer.text(), *path);
        }
    }
    larder.purge_of(r#"{"all": true, "soft": true}"#);
    origin.script(|_, reply| reply.hang_up());
    let answer = larder.get("/shop/1", "");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "/shop/1"), "{}", answer.cache_status());
    larder.purge_of(r#"{"all": true}"#);
    assert_eq!(larder.get("/shop/1", "").status(), 502, "a hard one leaves nothing");
}

/// One of several on one place: here, with a clock of its own, or a process, with credentials of its own.
enum Node {
    Here(Larder),
    Process(Process),
}

impl Node {
    fn start(upstream: &str, config: &str, skew: i64) -> Self {
        if config.contains("s3://") {
            Self::Process(Process::start(upstream, &config.lines().collect::<Vec<_>>()))
        } else {
            Self::Here(Larder::at(upstream, config, Clock::manual(START.plus_millis(skew))))
        }
    }

    fn get(&self, path: &str) -> Answer {
        match self {
            Self::Here(larder) => larder.get(path, ""),
            Self::Process(larder) => larder.get(path, ""),
        }
    }

    fn admin(&self) -> std::net::SocketAddr {
        match self {
            Self::Here(larder) => larder.admin,
            Self::Process(larder) => larder.admin,
        }
    }

    fn metric(&self, line_start: &str) -> u64 {
        crate::support::metric(self.admin(), line_start)
    }

    fn purge_of(&self, what: &str) -> Answer {
        crate::support::post(self.admin(), "/purge", what)
    }

    fn settle(&self) {
        eventually("everything is written", || self.metric("larder_durable_queue_objects") == 0);
    }

    fn hits(&self) -> Vec<usize> {
        (0..PATHS.len()).filter(|n| self.get(PATHS[*n]).hit().is_some()).collect()
    }
}

/// Two on one place, where they are here with clocks ten seconds apart.
fn two(origin: &Origin, config: &str) -> [Node; 2] {
    let upstream = format!("http://{}", origin.address);
    [5000, -5000].map(|skew| Node::start(&upstream, config, skew))
}

#[test]
fn a_purge_on_one_process_is_a_purge_on_all() {
    for place in Place::all() {
        let config = place.sets.join("\n");
        let origin = tagged();
        for is_soft in [false, true] {
            let [here, there] = two(&origin, &config);
            here.hits();
            here.settle();
            assert_eq!(here.hits().len(), PATHS.len());
            here.settle();
            for (what, covered) in KINDS {
                there.hits();
                assert_eq!(there.hits().len(), PATHS.len());
                there.settle();
                let what = if is_soft { soft(what) } else { (*what).to_owned() };
                let known = there.metric("larder_purge_position");
                assert_eq!(here.purge_of(&what).status(), 200, "{what}");
                // Under both schemes there are three keys and two prefixes, unless a port is named; and each
                // key is two, since what is stored for several queries goes as well.
                let has_port = what.contains(":8080");
                let told = match (what.contains("\"url\""), what.contains("exact")) {
                    (true, true) => 2,
                    (true, false) => {
                        if has_port {
                            4
                        } else {
                            6
                        }
                    }
                    (false, false) if what.contains("://") => 2,
                    (false, _) => 1,
                };
                eventually("it is known there", || there.metric("larder_purge_position") >= known + told);
                assert_eq!(there.hits(), others(covered), "{what}");
            }
            // Who comes anew knows of them, and has what came after them.
            there.settle();
            here.settle();
            drop(here);
            drop(there);
            let anew = Node::start("http://127.0.0.1:1", &config, 0);
            eventually("the index is loaded", || anew.metric("larder_index_loaded") == 1);
            assert_eq!(anew.hits().len(), PATHS.len());
            anew.purge_of(r#"{"all": true}"#);
        }
    }
}

#[test]
fn a_purge_outlives_the_process_that_took_it() {
    for place in Place::all() {
        let config = place.sets.join("\n");
        let origin = tagged();
        let sets: Vec<&str> = config.lines().collect();
        let start = || Process::start(&format!("http://{}", origin.address), &sets);
        for what in [r#"{"tag": "blog"}"#, r#"{"prefix": "/blog/"}"#, r#"{"all": true}"#, KINDS[0].0] {
            let larder = start();
            larder.get("/blog/1", "");
            larder.settle();
            let answer = crate::support::post(larder.admin, "/purge", what);
            assert_eq!(answer.status(), 200, "{}", answer.text());
            larder.kill_9();
            let larder = start();
            let answer = larder.get("/blog/1", "");
            assert_eq!(answer.hit(), None, "{what}: {}", answer.cache_status());
            larder.settle();
            larder.kill_9();
            let larder = start();
            eventually("the index is loaded", || larder.metric("larder_index_loaded") == 1);
            assert_eq!(larder.get("/blog/1", "").hit(), Some("durable"), "stored after {what}");
        }
    }
}

#[test]
fn a_start_without_anything_of_its_own_is_warm_and_misses_ask_for_nothing() {
    for place in Place::all() {
        let origin = tagged();
        let larder = place.start(&origin, &[]);
        for n in 0..100 {
            larder.get(&format!("/warm/{n}"), "");
        }
        larder.settle();
        larder.kill_9();
        let asked = origin.count();
        let larder = place.start(&origin, &[]);
        for n in 0..100 {
            assert_eq!(larder.get(&format!("/warm/{n}"), "").hit(), Some("durable"), "{} {n}", place.name);
        }
        assert_eq!(origin.count(), asked);
        eventually("the index is loaded", || larder.metric("larder_index_loaded") == 1);
        let looked_for = || place.s3.as_ref().map_or(0, S3::looked_for);
        let (before, saved) = (looked_for(), larder.metric("larder_durable_saved_total{why=\"index\"}"));
        for n in 0..100 {
            assert_eq!(larder.get(&format!("/cold/{n}"), "").fwd(), Some("uri-miss"));
        }
        assert_eq!(looked_for(), before, "no object was asked for");
        assert_eq!(larder.metric("larder_durable_saved_total{why=\"index\"}"), saved + 100);
    }
}

#[test]
fn what_is_under_way_is_covered_by_purges_of_every_kind() {
    let origin = tagged();
    let larder = Larder::new(&origin, "");
    for what in [r#"{"tag": "t"}"#, r#"{"prefix": "/a"}"#, r#"{"all": true}"#, r#"{"tag": "t", "soft": true}"#] {
        let gate = crate::support::Gate::default();
        let held = gate.clone();
        origin.script(move |_, reply| {
            held.wait();
            reply.send(200, "Cache-Control: max-age=600\nxkey: t", "before");
        });
        let asked = origin.count();
        let client = {
            let mut client = larder.client();
            std::thread::spawn(move || client.get("/a", "").text())
        };
        origin.requests.wait_for(asked + 1);
        assert_eq!(larder.purge_of(what).status(), 200);
        gate.open();
        assert_eq!(client.join().expect("no panic"), "before");
        origin.script(|_, reply| reply.send(200, "Cache-Control: max-age=600\nxkey: t", "after"));
        assert_eq!(larder.get("/a", "").text(), "after", "{what}");
        larder.purge_of(r#"{"all": true}"#);
    }
}

fn method_purge(address: std::net::SocketAddr, target: &str, fields: &str) -> Answer {
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
    let answer = crate::support::post(larder.admin, "/purge?wait=soon", r#"{"all": true}"#);
    assert_eq!(answer.status(), 400);
    assert_eq!(hits(&larder).len(), PATHS.len(), "nothing was purged");
}

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

#[test]
fn a_purge_that_cannot_be_recorded_is_in_force_and_recorded_when_it_can_be() {
    let directory = tempfile::tempdir().expect("a directory");
    bucket(directory.path());
    let mut s3 = S3::start(directory.path(), 0);
    let (origin, config) = (tagged(), s3.sets("larder-bucket").join("\n"));
    let [here, there] = two(&origin, &config);
    here.hits();
    here.settle();
    // Both have all of it in memory.
    there.hits();
    assert_eq!((here.hits().len(), there.hits().len()), (PATHS.len(), PATHS.len()));
    here.settle();
    there.settle();
    s3.stop();
    let admin = here.admin();
    let purge = std::thread::spawn(move || crate::support::post(admin, "/purge", r#"{"tag": "blog"}"#));
    let answer = purge.join().expect("no panic");
    assert_eq!(answer.status(), 502, "{}", answer.text());
    assert!(answer.text().contains("purged here"), "{}", answer.text());
    assert_eq!(here.hits(), others(&[0, 1]), "in force here");
    let known = there.metric("larder_purge_position");
    s3.restart();
    eventually("it is known there", || there.metric("larder_purge_position") > known);
    eventually("the tier is in use again", || there.metric("larder_durable_down ") == 0);
    for path in &PATHS[..2] {
        assert_ne!(there.get(path).hit(), Some("memory"), "what it has from before is gone");
    }
    assert_eq!(there.get(PATHS[2]).hit(), Some("memory"));
}

#[test]
fn the_command_purges_what_it_is_told() {
    let origin = tagged();
    let running = Larder::new(&origin, "");
    fill(&running);
    let admin = format!("admin.listen={}", running.admin);
    for (args, covered) in [
        (&["http://site.example/blog/1", "http://site.example/"][..], &[0, 4][..]),
        (&["--prefix", "/blog/"], &[0, 1]),
        (&["--tag", "s-shop", "--tag", "x-blogs"], &[2, 3]),
        (&["--all", "--wait", "10ms"], &[0, 1, 2, 3, 4]),
    ] {
        let done = larder(&[]).arg("purge").args(args).args(["--set", &admin]).output().expect("it runs");
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(hits(&running), others(covered), "{args:?}");
    }
    let done = larder(&[]).args(["purge", "--soft", "--all", "--set", &admin]).output().expect("it runs");
    assert!(done.status.success());
    assert!(running.get("/shop/1", "").cache_status().contains("fwd=stale; fwd-status=304"));
    let nothing = larder(&[]).args(["purge", "--soft"]).output().expect("it runs");
    assert_eq!(nothing.status.code(), Some(2));
    let wrong = larder(&[]).args(["purge", "--prefix", "site", "--set", &admin]).output().expect("it runs");
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("is no prefix"));
}

#[test]
fn what_is_used_often_enough_is_written_and_no_sooner() {
    let (origin, directory) = (tagged(), tempfile::tempdir().expect("a directory"));
    let config = format!("{}\ndurable.after_hits=3", file_url(directory.path()));
    let larder = Larder::new(&origin, &config);
    larder.get("/blog/1", "");
    larder.get("/blog/1", "");
    larder.get("/shop/1", "");
    larder.settle();
    let puts = || larder.metric("larder_durable_operations_total{op=\"put\",outcome=\"ok\"}");
    assert_eq!(puts(), 0);
    larder.get("/blog/1", "");
    larder.settle();
    assert_eq!(puts(), 1);
    larder.get("/blog/1", "");
    larder.settle();
    assert_eq!(puts(), 1, "once");
    assert!(larder.metric("larder_durable_saved_total{why=\"after-hits\"}") >= 2);
    drop(larder);
    let larder = Larder::new(&origin, &config);
    assert_eq!(larder.get("/blog/1", "").hit(), Some("durable"));
    assert_eq!(larder.get("/shop/1", "").hit(), None);
}

#[test]
fn a_budget_bounds_the_writes_and_nothing_else() {
    let (origin, directory) = (tagged(), tempfile::tempdir().expect("a directory"));
    // A day's worth is two.
    let config = format!("{}\ndurable.monthly_writes=60", file_url(directory.path()));
    let larder = Larder::new(&origin, &config);
    fill(&larder);
    larder.settle();
    assert_eq!(larder.metric("larder_durable_operations_total{op=\"put\",outcome=\"ok\"}"), 2);
    assert_eq!(larder.metric("larder_durable_saved_total{why=\"budget\"}"), 3);
    assert_eq!(hits(&larder).len(), PATHS.len());
    assert_eq!(larder.purge_of(r#"{"all": true}"#).status(), 200, "purges are written whatever it says");
}

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
