//! Tests the durable tier in a directory: what survives a restart, and what its failure costs.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::durable::{in_directory, packs, pages_of_every_kind};
use crate::support::{Answer, Larder, Origin, Process, eventually, file_url, larder};

#[test]
fn what_is_stored_survives_a_restart() {
    let (origin, directory) = (pages_of_every_kind(), tempfile::tempdir().expect("a directory"));
    let paths = [
        ("/a", ""),
        ("/vary", "Accept-Language: en"),
        ("/vary", "Accept-Language: de"),
        ("/large", ""),
        ("/short", ""),
    ];
    let larder = in_directory(&origin, directory.path(), "");
    let before: Vec<Answer> = paths.iter().map(|(path, fields)| larder.get(path, fields)).collect();
    larder.settle();
    larder.stop();
    let asked = origin.count();

    let larder = in_directory(&origin, directory.path(), "");
    for ((path, fields), before) in paths.iter().zip(&before).take(4) {
        let after = larder.get(path, fields);
        assert_eq!((after.hit(), &after.body), (Some("durable"), &before.body), "{path} {fields}");
        assert_eq!(after.head.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case("content-length")).count(), 1);
        assert_eq!(larder.get(path, fields).hit(), Some("memory"), "it is kept in memory from then on");
    }
    assert_eq!(origin.count(), asked);
    assert_eq!(larder.get("/vary", "Accept-Language: fr").fwd(), Some("vary-miss"));
    assert_eq!(larder.get("/short", "").hit(), None, "what does not last is not written");
}

#[test]
fn age_and_freshness_go_on_over_a_restart() {
    let (origin, directory) = (pages_of_every_kind(), tempfile::tempdir().expect("a directory"));
    let larder = in_directory(&origin, directory.path(), "");
    larder.get("/etag", "");
    larder.settle();
    larder.stop();
    let larder = in_directory(&origin, directory.path(), "");
    larder.advance(40);
    let hit = larder.get("/etag", "");
    assert_eq!((hit.get("age"), hit.cache_status()), (Some("40"), "larder; hit; ttl=60; detail=durable"));
    larder.stop();
    let larder = in_directory(&origin, directory.path(), "");
    larder.advance(140);
    let validated = larder.get("/etag", "");
    assert_eq!(validated.cache_status(), "larder; fwd=stale; fwd-status=304; stored; ttl=600");
    assert_eq!(validated.text(), "validated");
    larder.settle();
    larder.stop();
    // The 304 was written as well.
    let larder = in_directory(&origin, directory.path(), "");
    larder.advance(300);
    assert_eq!(larder.get("/etag", "").hit(), Some("durable"));
    larder.stop();
    // Past its retention an object is not even validated.
    let larder = in_directory(&origin, directory.path(), "durable.retain=1h");
    larder.advance(140 + 600 + 3700);
    larder.get("/etag", "");
    assert_eq!(origin.last().head.get("if-none-match"), None);
}

#[test]
fn an_expired_object_is_deleted_where_configured() {
    let (origin, directory) = (pages_of_every_kind(), tempfile::tempdir().expect("a directory"));
    let larder = in_directory(&origin, directory.path(), "");
    larder.get("/a", "");
    larder.settle();
    larder.stop();
    let offline = "http://127.0.0.1:1";
    for (purge, left) in [(false, true), (true, false)] {
        let sets = format!("cache.purge_expired_on_read={purge}\ncache.stale_if_unreachable=0s");
        let config = format!("{}\n{sets}", file_url(directory.path()));
        let larder = Larder::with_upstream(offline, &config);
        larder.advance(700);
        assert_eq!(larder.get("/a", "").status(), 502);
        larder.settle();
        larder.stop();
        // With the time before it expired, who finds it serves it.
        let answer = Larder::with_upstream(offline, &config).get("/a", "");
        assert_eq!(answer.hit() == Some("durable"), left, "{}", answer.text());
    }
}

#[test]
fn a_purge_reaches_the_durable_tier() {
    let (origin, directory) = (pages_of_every_kind(), tempfile::tempdir().expect("a directory"));
    for (path, fields) in [("/a", ""), ("/vary", "Accept-Language: en"), ("/large", "")] {
        let larder = in_directory(&origin, directory.path(), "");
        larder.get(path, fields);
        larder.settle();
        assert_eq!(larder.purge(&format!("http://site.example{path}")).status(), 200);
        assert_eq!(larder.get(path, fields).hit(), None);
        larder.settle();
        assert_eq!(larder.purge(&format!("http://site.example{path}")).status(), 200);
        larder.stop();
        let larder = in_directory(&origin, directory.path(), "");
        assert_eq!(larder.get(path, fields).hit(), None, "{path}, also after a restart");
        larder.purge(&format!("http://site.example{path}"));
    }
}

#[test]
fn an_unsafe_request_reaches_the_durable_tier() {
    let (origin, directory) = (pages_of_every_kind(), tempfile::tempdir().expect("a directory"));
    let larder = in_directory(&origin, directory.path(), "");
    larder.get("/a", "");
    larder.settle();
    larder.client().send("DELETE", "/a", "");
    assert_eq!(larder.get("/a", "Cache-Control: no-store").hit(), None, "at once, whatever the queue does");
    larder.settle();
    larder.stop();
    assert_eq!(in_directory(&origin, directory.path(), "").get("/a", "").hit(), None);
}

#[test]
fn key_prefixes_are_worlds_of_their_own() {
    let (origin, directory) = (pages_of_every_kind(), tempfile::tempdir().expect("a directory"));
    for prefix in ["", "one", "../two"] {
        let larder = in_directory(&origin, directory.path(), &format!("cache.key_prefix={prefix}"));
        assert_eq!(larder.get("/a", "").hit(), None, "{prefix}");
        larder.settle();
    }
    assert_eq!(packs(directory.path()).len(), 3, "all of them inside the directory");
    assert_eq!(in_directory(&origin, directory.path(), "cache.key_prefix=one").get("/a", "").hit(), Some("durable"));
}

/// What is replaced or deleted counts as dead at once: its space is reclaimed with its pack.
#[test]
fn what_is_replaced_or_deleted_counts_as_dead() {
    let calls = AtomicUsize::new(0);
    let origin = Origin::new(move |seen, reply| {
        let n = calls.fetch_add(1, Ordering::SeqCst);
        let language = seen.head.get("accept-language").unwrap_or("none").to_owned();
        reply.send(200, "Cache-Control: max-age=600\nVary: Accept-Language", &format!("{language}{n} ").repeat(10_000));
    });
    let directory = tempfile::tempdir().expect("a directory");
    let larder = in_directory(&origin, directory.path(), "");
    let live = || larder.metric("larder_packs_live_bytes");
    for _ in 0..5 {
        for language in ["en", "de"] {
            larder.get("/a", &format!("Accept-Language: {language}\nCache-Control: no-cache"));
        }
        larder.settle();
        assert!((80_000..120_000).contains(&live()), "two variants: {}", live());
    }
    assert!(larder.metric("larder_packs_bytes") > 400_000, "those before are still there");
    larder.client().send("DELETE", "/a", "Accept-Language: en");
    larder.settle();
    larder.stop();
    assert_eq!(in_directory(&origin, directory.path(), "").get("/a", "Accept-Language: en").hit(), None);
}

#[test]
fn a_directory_that_cannot_be_used_is_said_at_the_start() {
    let directory = tempfile::tempdir().expect("a directory");
    let in_the_way = directory.path().join("file");
    std::fs::write(&in_the_way, "").expect("it is written");
    let url = file_url(&in_the_way.join("cache"));
    let ran = larder(&[&url, "server.listen=127.0.0.1:0", "admin.listen=off"]).output().expect("it runs");
    let told = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!((ran.status.code(), told.lines().count()), (Some(1), 1), "{told}");
    assert!(told.contains("durable.url: the directory") && told.contains("can't be written to"), "{told}");

    let origin = pages_of_every_kind();
    let larder = Process::start(&origin.url(), &[&url, "durable.required=false"]);
    assert_eq!(larder.get("/a", "").status(), 200);
    assert!(larder.log().contains("going on without it"), "{}", larder.log());
}

#[test]
fn a_directory_that_goes_away_costs_nobody_an_answer() {
    let (origin, directory) = (pages_of_every_kind(), tempfile::tempdir().expect("a directory"));
    let larder = in_directory(&origin, &directory.path().join("cache"), "");
    larder.get("/a", "");
    larder.settle();
    std::fs::remove_dir_all(directory.path().join("cache")).expect("it goes");
    std::fs::write(directory.path().join("cache"), "in the way").expect("it is written");
    assert_eq!(larder.get("/a", "").hit(), Some("memory"));
    assert_eq!(larder.get("/b", "").status(), 200);
    eventually("the write has failed", || {
        larder.metric("larder_durable_operations_total{op=\"put\",outcome=\"error\"}") > 0
    });
    std::fs::remove_file(directory.path().join("cache")).expect("it is out of the way");
    larder.settle();
    larder.stop();
    let larder = in_directory(&origin, &directory.path().join("cache"), "");
    assert_eq!(larder.get("/b", "").hit(), Some("durable"), "it waited, and was written when that went");
}

#[test]
fn how_a_response_from_the_durable_tier_fared_is_remembered() {
    let origin = Origin::new(|_, reply| {
        reply.send(200, "ETag: \"1\"\nCache-Control: max-age=60, stale-while-revalidate=5, stale-if-error=600", "a");
    });
    let directory = tempfile::tempdir().expect("a directory");
    let larder = in_directory(&origin, directory.path(), "");
    larder.get("/a", "");
    larder.settle();
    larder.stop();
    let larder = in_directory(&origin, directory.path(), "");
    larder.advance(62);
    origin.script(|_, reply| reply.send(500, "", "no"));
    assert_eq!(larder.get("/a", "").hit(), Some("durable"), "stale, and validated behind");
    eventually("the validation has failed", || {
        larder.metric("larder_origin_requests_total{outcome=\"answered\"}") == 1
    });
    larder.advance(10);
    assert_eq!(larder.get("/a", "").hit(), Some("memory"), "nobody waits for an origin that is known to fail");
}
