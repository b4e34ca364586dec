//! The durable tier, in a directory and in S3: what survives, what is believed, what failure costs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::binary::{Process, file_url, larder};
use crate::places::Place;
use crate::s3::{S3, bucket};
use crate::support::{Answer, Larder, Origin, START, at_once, eventually};

fn cacheable() -> Origin {
    Origin::new(|seen, reply| {
        let language = seen.head.get("accept-language").unwrap_or("none").to_owned();
        match seen.path() {
            "/vary" => reply.send(200, "Cache-Control: max-age=600\nVary: Accept-Language", &language),
            "/large" => reply.send(200, "Cache-Control: max-age=600", &large()),
            "/short" => reply.send(200, "Cache-Control: max-age=10", "short"),
            "/etag" if seen.head.get("if-none-match").is_some() => {
                reply.send(304, "ETag: \"1\"\nCache-Control: max-age=600", "");
            }
            "/etag" => reply.send(200, "Cache-Control: max-age=100\nETag: \"1\"", "validated"),
            path => reply.send(200, "Cache-Control: max-age=600", path),
        }
    })
}

/// More than one piece of a separate body, and no two alike.
fn large() -> String {
    (0..100_000).map(|n| format!("{n:07}\n")).collect()
}

fn in_directory(origin: &Origin, directory: &Path, more: &str) -> Larder {
    Larder::new(origin, &format!("{}\ndurable.lookup_timeout=20s\n{more}", file_url(directory)))
}

/// Every object and body below `directory`, by path: not what the journal is made of.
fn objects(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if ["larder-1/j", "larder-1/s", "larder-1/probe"].iter().any(|name| path.ends_with(name)) {
            continue;
        }
        if path.is_dir() { found.extend(objects(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn what_is_stored_survives_a_restart() {
    let (origin, directory) = (cacheable(), tempfile::tempdir().expect("a directory"));
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
    let (origin, directory) = (cacheable(), tempfile::tempdir().expect("a directory"));
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
    let (origin, directory) = (cacheable(), tempfile::tempdir().expect("a directory"));
    let larder = in_directory(&origin, directory.path(), "");
    larder.get("/a", "");
    larder.settle();
    larder.stop();
    let offline = "http://127.0.0.1:1";
    for (purge, left) in [(false, 1), (true, 0)] {
        let sets = format!("cache.purge_expired_on_read={purge}\ncache.stale_if_unreachable=0s");
        let config = format!("{}\n{sets}", file_url(directory.path()));
        let larder = Larder::at(offline, &config, larder::base::Clock::manual(START));
        larder.advance(700);
        assert_eq!(larder.get("/a", "").status(), 502);
        larder.settle();
        assert_eq!(objects(directory.path()).len(), left);
    }
}

#[test]
fn a_purge_reaches_the_durable_tier() {
    let (origin, directory) = (cacheable(), tempfile::tempdir().expect("a directory"));
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
    let (origin, directory) = (cacheable(), tempfile::tempdir().expect("a directory"));
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
    let (origin, directory) = (cacheable(), tempfile::tempdir().expect("a directory"));
    for prefix in ["", "one", "../two"] {
        let larder = in_directory(&origin, directory.path(), &format!("cache.key_prefix={prefix}"));
        assert_eq!(larder.get("/a", "").hit(), None, "{prefix}");
        larder.settle();
    }
    assert_eq!(objects(directory.path()).len(), 3, "all of them inside the directory");
    assert_eq!(in_directory(&origin, directory.path(), "cache.key_prefix=one").get("/a", "").hit(), Some("durable"));
}

#[test]
fn objects_that_cannot_be_believed_are_misses_and_are_replaced() {
    let broken: [(&str, fn(Vec<u8>) -> Vec<u8>); 6] = [
        ("truncated", |bytes| bytes[..bytes.len() / 2].to_vec()),
        ("empty", |_| Vec::new()),
        ("a flipped bit at the end", |mut bytes| {
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            bytes
        }),
        ("a flipped bit in the head", |mut bytes| {
            bytes[40] ^= 1;
            bytes
        }),
        ("foreign", |_| b"<html>not ours</html>".to_vec()),
        ("a version to come", |mut bytes| {
            bytes[4] = 99;
            bytes
        }),
    ];
    let origin = cacheable();
    for path in ["/a", "/large"] {
        for (what, spoil) in broken {
            let directory = tempfile::tempdir().expect("a directory");
            let larder = in_directory(&origin, directory.path(), "durable.inline_size=10KiB");
            let whole = larder.get(path, "").body;
            larder.settle();
            larder.stop();
            // The separate body of /large counts as well: its first piece is checked before it is used.
            for file in objects(directory.path()) {
                let bytes = std::fs::read(&file).expect("an object");
                std::fs::write(&file, spoil(bytes)).expect("it is spoilt");
            }
            let larder = in_directory(&origin, directory.path(), "durable.inline_size=10KiB");
            let answer = larder.get(path, "");
            assert_eq!((answer.hit(), answer.status(), answer.body == whole), (None, 200, true), "{path} {what}");
            assert_eq!(
                larder.metric("larder_durable_operations_total{op=\"get\",outcome=\"unreadable\"}"),
                1,
                "{path} {what}"
            );
            larder.settle();
            larder.stop();
            let larder = in_directory(&origin, directory.path(), "durable.inline_size=10KiB");
            let answer = larder.get(path, "");
            assert_eq!((answer.hit(), answer.body == whole), (Some("durable"), true), "{path} {what}: written anew");
        }
    }
}

#[test]
fn a_directory_keeps_no_more_than_its_keys_lead_to() {
    let calls = std::sync::atomic::AtomicUsize::new(0);
    let origin = Origin::new(move |seen, reply| {
        let n = calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let language = seen.head.get("accept-language").unwrap_or("none").to_owned();
        reply.send(200, "Cache-Control: max-age=600\nVary: Accept-Language", &format!("{language}{n} ").repeat(10_000));
    });
    let directory = tempfile::tempdir().expect("a directory");
    let larder = in_directory(&origin, directory.path(), "durable.inline_size=1KiB");
    for _ in 0..5 {
        for language in ["en", "de"] {
            larder.get("/a", &format!("Accept-Language: {language}\nCache-Control: no-cache"));
        }
        larder.settle();
    }
    assert_eq!(objects(directory.path()).len(), 5, "a record, two variants, and a body each");
    larder.purge("http://site.example/a");
    larder.settle();
    assert_eq!(objects(directory.path()).len(), 0);
    larder.get("/a", "Accept-Language: en");
    larder.settle();
    larder.client().send("DELETE", "/a", "");
    larder.settle();
    assert_eq!(objects(directory.path()).len(), 0);
}

#[test]
fn swapped_objects_are_not_served_for_each_other() {
    let (origin, directory) = (cacheable(), tempfile::tempdir().expect("a directory"));
    let larder = in_directory(&origin, directory.path(), "");
    larder.get("/a", "");
    larder.get("/b", "");
    larder.settle();
    larder.stop();
    let files = objects(directory.path());
    let (a, b) = (std::fs::read(&files[0]).expect("an object"), std::fs::read(&files[1]).expect("an object"));
    std::fs::write(&files[0], b).expect("swapped");
    std::fs::write(&files[1], a).expect("swapped");
    let larder = in_directory(&origin, directory.path(), "");
    for path in ["/a", "/b"] {
        let answer = larder.get(path, "");
        assert_eq!((answer.hit(), answer.text().as_str()), (None, path));
    }
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

    let origin = cacheable();
    let larder = Process::start(&format!("http://{}", origin.address), &[&url, "durable.required=false"]);
    assert_eq!(larder.get("/a", "").status(), 200);
    assert!(larder.log().contains("going on without it"), "{}", larder.log());
}

#[test]
fn a_directory_that_goes_away_costs_nobody_an_answer() {
    let (origin, directory) = (cacheable(), tempfile::tempdir().expect("a directory"));
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

fn with_s3(origin: &Origin, s3: &S3) -> Process {
    let sets = s3.sets("larder-bucket");
    Process::start(&format!("http://{}", origin.address), &sets.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn s3_survives_kill_9_and_the_loss_of_the_machine() {
    let (origin, root) = (cacheable(), tempfile::tempdir().expect("a directory"));
    bucket(root.path());
    std::fs::write(root.path().join("larder-bucket/not-ours"), "keep").expect("a foreign object");
    let s3 = S3::start(root.path(), 0);
    let paths = [("/a", ""), ("/vary", "Accept-Language: en"), ("/vary", "Accept-Language: de"), ("/large", "")];
    let larder = with_s3(&origin, &s3);
    let before: Vec<Answer> = paths.iter().map(|(path, fields)| larder.get(path, fields)).collect();
    larder.settle();
    larder.kill_9();
    let larder = with_s3(&origin, &s3);
    for ((path, fields), before) in paths.iter().zip(&before) {
        let after = larder.get(path, fields);
        assert_eq!((after.hit(), &after.body), (Some("durable"), &before.body), "{path} {fields}");
    }
    assert_eq!(origin.count(), 4);
    let mut admin = crate::support::Client::connect(larder.admin);
    let body = "{\"url\": \"http://site.example/a\"}";
    admin.raw(format!("POST /purge HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    assert_eq!(admin.answer().status(), 200);
    larder.kill_9();
    let larder = with_s3(&origin, &s3);
    assert_eq!(larder.get("/a", "").hit(), None);
    assert_eq!(larder.get("/large", "").hit(), Some("durable"));
    assert_eq!(std::fs::read_to_string(root.path().join("larder-bucket/not-ours")).expect("it is there"), "keep");
}

#[test]
fn an_s3_server_that_dies_costs_nobody_an_answer_and_is_used_again_when_it_is_back() {
    let (origin, root) = (cacheable(), tempfile::tempdir().expect("a directory"));
    bucket(root.path());
    let mut s3 = S3::start(root.path(), 0);
    let larder = Arc::new(with_s3(&origin, &s3));
    for n in 0..10 {
        larder.get(&format!("/before/{n}"), "");
    }
    larder.settle();
    s3.stop();
    let answers = {
        let larder = Arc::clone(&larder);
        at_once(10, move |n| {
            let mut client = larder.client();
            (client.get(&format!("/before/{n}"), "").status(), client.get(&format!("/during/{n}"), "").status())
        })
    };
    assert!(answers.iter().all(|answer| *answer == (200, 200)), "{answers:?}");
    s3.restart();
    larder.settle();
    for n in 0..10 {
        larder.get(&format!("/after/{n}"), "");
    }
    larder.settle();
    let other = with_s3(&origin, &s3);
    for n in 0..10 {
        assert_eq!(other.get(&format!("/before/{n}"), "").hit(), Some("durable"));
        assert_eq!(other.get(&format!("/after/{n}"), "").hit(), Some("durable"));
    }
    // The first one reads again as well, without a restart: here what only the other one stored.
    let known = larder.metric("larder_index_keys ");
    other.get("/elsewhere", "");
    other.settle();
    eventually("the first one has heard of it", || larder.metric("larder_index_keys ") > known);
    assert_eq!(larder.get("/elsewhere", "").hit(), Some("durable"));
}

#[test]
fn an_unusable_bucket_is_said_in_one_clear_line() {
    let root = tempfile::tempdir().expect("a directory");
    bucket(root.path());
    let s3 = S3::start(root.path(), 0);
    let told = |sets: &[String], secret: Option<&str>| {
        let mut all: Vec<&str> = vec!["server.listen=127.0.0.1:0", "admin.listen=off"];
        all.extend(sets.iter().map(String::as_str));
        let mut command = larder(&all);
        match secret {
            Some(secret) => command.env("AWS_SECRET_ACCESS_KEY", secret),
            None => command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY"),
        };
        let ran = command.output().expect("it runs");
        let told = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!((ran.status.code(), told.lines().count()), (Some(1), 1), "{told}");
        told
    };
    let missing = told(&s3.sets("no-such-bucket"), Some("secret"));
    assert!(missing.contains("there is no bucket \"no-such-bucket\""), "{missing}");
    let refused = told(&s3.sets("larder-bucket"), Some("wrong"));
    assert!(refused.contains("refuses these credentials for the bucket \"larder-bucket\""), "{refused}");
    let none = told(&s3.sets("larder-bucket"), None);
    assert!(none.contains("no credentials for the bucket \"larder-bucket\" were found"), "{none}");
    let mut elsewhere = s3.sets("larder-bucket");
    elsewhere[1] = "durable.endpoint_url=http://127.0.0.1:1".into();
    let unreachable = told(&elsewhere, Some("secret"));
    assert!(unreachable.contains("http://127.0.0.1:1 can't be reached"), "{unreachable}");

    let origin = cacheable();
    elsewhere.push("durable.required=false".into());
    let larder = Process::start(
        &format!("http://{}", origin.address),
        &elsewhere.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    assert_eq!(larder.get("/a", "").status(), 200);
}

/// A second opinion on the protocol.
#[test]
fn every_place_holds_the_same() {
    for place in Place::all() {
        let origin = cacheable();
        let larder = place.start(&origin, &[]);
        for path in ["/a", "/large"] {
            larder.get(path, "");
        }
        larder.settle();
        larder.kill_9();
        let larder = place.start(&origin, &[]);
        for path in ["/a", "/large"] {
            assert_eq!(larder.get(path, "").hit(), Some("durable"), "{} {path}: {}", place.name, larder.log());
        }
        assert_eq!(origin.count(), 2);
    }
}

/// A body that is an object of its own, and fields that a 304 gives anew: each answer's are those of `turn`.
fn validated(turn: impl Fn(usize) -> &'static str + Send + Sync + 'static) -> Origin {
    let calls = std::sync::atomic::AtomicUsize::new(0);
    Origin::new(move |seen, reply| {
        if seen.path() != "/a" {
            return reply.send(200, "Cache-Control: max-age=600", &large());
        }
        let fields = format!("ETag: \"1\"\nCache-Control: {}", turn(calls.fetch_add(1, Ordering::SeqCst)));
        if seen.head.get("if-none-match").is_some() {
            return reply.send(304, &fields, "");
        }
        reply.send(200, &fields, &large());
    })
}

#[test]
fn a_body_that_is_deleted_in_between_is_written_again() {
    let origin = validated(|n| if n == 1 { "max-age=5" } else { "max-age=600" });
    let directory = tempfile::tempdir().expect("a directory");
    let larder = in_directory(&origin, directory.path(), "durable.inline_size=1KiB\ndurable.writers=1");
    // What stands before it in the queue.
    for n in 0..30 {
        larder.get(&format!("/other{n}"), "");
    }
    for _ in 0..3 {
        assert_eq!(larder.get("/a", "Cache-Control: no-cache").body, large().as_bytes());
    }
    larder.settle();
    larder.stop();
    let larder = in_directory(&origin, directory.path(), "durable.inline_size=1KiB");
    let answer = larder.get("/a", "");
    assert_eq!((answer.hit(), answer.body == large().as_bytes()), (Some("durable"), true));
}

#[test]
fn a_304_writes_no_body_again_whatever_the_inline_size_was() {
    let origin = validated(|_| "max-age=600");
    let directory = tempfile::tempdir().expect("a directory");
    let bodies = || -> Vec<_> {
        let all = objects(directory.path()).into_iter().filter(|path| path.to_string_lossy().contains("larder-1/b/"));
        all.map(|path| (path.metadata().expect("a file").modified().expect("a time"), path)).collect()
    };
    let mut before = Vec::new();
    for (run, size) in ["1KiB", "1MiB", "1KiB", "0", "16MiB"].iter().enumerate() {
        let larder = in_directory(&origin, directory.path(), &format!("durable.inline_size={size}"));
        let answer = larder.get("/a", "");
        assert_eq!((answer.hit(), answer.body == large().as_bytes()), ((run > 0).then_some("durable"), true), "{size}");
        larder.settle();
        for _ in 0..3 {
            larder.get("/a", "Cache-Control: no-cache");
            larder.settle();
        }
        if run == 0 {
            before = bodies();
            assert_eq!(before.len(), 1);
        }
        assert_eq!(bodies(), before, "{size}");
        larder.stop();
    }
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
