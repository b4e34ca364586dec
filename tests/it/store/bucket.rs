//! Tests the durable tier in a bucket: what survives, and what is said of one that can't be used.

use std::sync::Arc;

use crate::support::durable::pages_of_every_kind;
use crate::support::s3::faults::Fault;
use crate::support::{Answer, Origin, Place, Process, S3, at_once, bucket, eventually, larder, packs};

fn with_s3(origin: &Origin, s3: &S3) -> Process {
    let sets = s3.sets("larder-bucket");
    Process::start(&origin.url(), &sets.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn s3_survives_kill_9_and_the_loss_of_the_machine() {
    let (origin, root) = (pages_of_every_kind(), tempfile::tempdir().expect("a directory"));
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
    assert_eq!(larder.purge("http://site.example/a").status(), 200);
    larder.kill_9();
    let larder = with_s3(&origin, &s3);
    assert_eq!(larder.get("/a", "").hit(), None);
    assert_eq!(larder.get("/large", "").hit(), Some("durable"));
    assert_eq!(std::fs::read_to_string(root.path().join("larder-bucket/not-ours")).expect("it is there"), "keep");
}

#[test]
fn requests_are_counted_by_what_they_are_for() {
    let (origin, root) = (pages_of_every_kind(), tempfile::tempdir().expect("a directory"));
    bucket(root.path());
    let s3 = S3::start(root.path(), 0);
    let larder = with_s3(&origin, &s3);
    let count = |larder: &Process, class: &str, purpose: &str| {
        larder.metric(&format!("larder_durable_requests_total{{class=\"{class}\",purpose=\"{purpose}\"}}"))
    };
    larder.get("/a", "");
    larder.settle();
    assert_eq!(larder.purge("http://site.example/b").status(), 200);
    assert_eq!((count(&larder, "write", "packs"), count(&larder, "write", "purges")), (1, 1));
    assert_eq!((count(&larder, "list", "probe"), count(&larder, "write", "probe")), (1, 1));
    eventually("the journal is listed", || count(&larder, "list", "journal") > 0);
    assert_eq!((count(&larder, "read", "look-up"), count(&larder, "write", "reclaiming")), (0, 0));
    larder.kill_9();
    let larder = with_s3(&origin, &s3);
    assert_eq!(larder.get("/a", "").hit(), Some("durable"));
    assert_eq!((count(&larder, "read", "look-up"), count(&larder, "read", "journal") > 0), (1, true));
}

#[test]
fn an_s3_server_that_dies_costs_nobody_an_answer_and_is_used_again_when_it_is_back() {
    let (origin, root) = (pages_of_every_kind(), tempfile::tempdir().expect("a directory"));
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

    let origin = pages_of_every_kind();
    elsewhere.push("durable.required=false".into());
    let larder = Process::start(&origin.url(), &elsewhere.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(larder.get("/a", "").status(), 200);
}

/// A second opinion on the protocol.
#[test]
fn every_place_holds_the_same() {
    for place in Place::all() {
        let origin = pages_of_every_kind();
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

/// Returns which of `/0` to `/<count - 1>` another process finds, and that process.
fn found(place: &Place, count: usize) -> (Vec<usize>, Process) {
    let larder = place.start_before("http://127.0.0.1:1", &["memory.capacity=0"]);
    eventually("the index is loaded", || larder.metric("larder_index_loaded") == 1);
    ((0..count).filter(|n| larder.get(&format!("/{n}"), "").hit() == Some("durable")).collect(), larder)
}

/// Stores `/0` to `/<count - 1>` and ends.
fn store(place: &Place, origin: &Origin, count: usize, sets: &[&str]) {
    let mut larder = place.start(origin, &[&["durable.drain_timeout=20s"], sets].concat());
    let mut client = larder.client();
    for n in 0..count {
        assert_eq!(client.get(&format!("/{n}"), "").status(), 200);
    }
    drop(client);
    larder.signal("-TERM");
    assert_eq!(larder.wait(), Some(0), "{}", larder.log());
}

#[test]
fn a_thousand_responses_cost_a_few_requests() {
    let (place, origin) = (Place::s3(), Origin::long_lived());
    let s3 = place.s3.as_ref().expect("a server");
    store(&place, &origin, 1000, &["durable.pack_interval=10m"]);
    assert_eq!(s3.count("PUT", ".pack"), 1);
    assert!(s3.count("PUT", "") <= 3, "beside the pack the probe, and a snapshot perhaps");
    s3.seen.lock().unwrap().clear();
    assert_eq!(found(&place, 1000).0.len(), 1000);
    assert!(s3.count("GET", ".pack") <= 1002, "one request each, besides the footer");
    // As full as they may be.
    store(
        &place,
        &Origin::new(|seen, reply| {
            reply.send(200, "Cache-Control: max-age=6000", &seen.path().repeat(4000));
        }),
        100,
        &["durable.pack_interval=10m", "durable.pack_size=64KiB", "cache.key_prefix=other"],
    );
    let journal = place.directory().join("larder-bucket/any/prefix/other/larder-1/j");
    let sizes = std::fs::read_dir(journal).expect("it is there").map(|entry| entry.expect("an entry"));
    let sizes: Vec<u64> = sizes.map(|entry| entry.metadata().expect("a size").len()).collect();
    let full = sizes.iter().filter(|size| (60 << 10..84 << 10).contains(*size)).count();
    assert!(full + 1 >= sizes.len() && sizes.len() < 25, "{sizes:?}");
}

#[test]
fn a_pack_that_was_written_without_an_answer_leads_to_one_response() {
    let (place, origin) = (Place::s3(), Origin::long_lived());
    let s3 = place.s3.as_ref().expect("a server");
    let larder = place.start(&origin, &["memory.capacity=0", "durable.breaker_pause=50ms"]);
    s3.set_fault(Fault::Status500);
    larder.get("/0", "");
    eventually("it is written and fails", || s3.count("PUT", ".pack") > 1);
    s3.set_fault(Fault::None);
    larder.settle();
    assert_eq!(larder.get("/0", "").hit(), Some("durable"));
    larder.kill_9();
    let (found, other) = found(&place, 1);
    assert_eq!((found, other.metric("larder_index_keys ")), (vec![0], 1));
}

#[test]
fn a_pack_that_comes_late_is_found_by_others() {
    let (place, origin) = (Place::s3(), Origin::long_lived());
    store(&place, &origin, 5, &["durable.pack_interval=10m"]);
    let [pack] = &packs(&place)[..] else { panic!("one pack") };
    let aside = place.directory().join("aside");
    std::fs::rename(pack, &aside).expect("it is moved");
    let (none, larder) = found(&place, 5);
    assert_eq!(none, [0; 0]);
    let listed = || place.s3.as_ref().expect("a server").count("GET", "list-type=2");
    let before = listed();
    eventually("it has looked since", || listed() > before + 2);
    // Its name is minutes older than what was read since, as when writing it took long and its writer's clock is behind.
    let name = pack.file_name().expect("a name").to_string_lossy().into_owned();
    let (time, rest) = name.split_once('-').expect("a time");
    let time = u64::from_str_radix(time, 16).expect("a time") - (240_000 << 10);
    std::fs::rename(&aside, pack.with_file_name(format!("{time:016x}-{rest}"))).expect("it is moved");
    eventually("it is found", || larder.metric("larder_index_keys ") == 5);
    assert_eq!(larder.get("/3", "").hit(), Some("durable"));
}

#[test]
fn packs_that_are_gone_cut_or_changed_are_misses_and_are_replaced() {
    for what in ["gone", "cut", "changed"] {
        let (place, origin) = (Place::s3(), Origin::long_lived());
        let larder = place.start(&origin, &["memory.capacity=0", "durable.lookup_timeout=20s"]);
        for n in 0..5 {
            larder.get(&format!("/{n}"), "");
        }
        larder.settle();
        for pack in packs(&place) {
            let mut bytes = std::fs::read(&pack).expect("it is there");
            match what {
                "gone" => std::fs::remove_file(&pack).expect("it goes"),
                "cut" => std::fs::write(&pack, &bytes[..100]).expect("it is cut"),
                _ => {
                    bytes.iter_mut().skip(64).step_by(100).for_each(|byte| *byte ^= 1);
                    std::fs::write(&pack, bytes).expect("it is changed");
                }
            }
        }
        let asked = origin.count();
        for n in 0..5 {
            let path = format!("/{n}");
            let answer = larder.get(&path, "");
            assert_eq!((answer.status(), answer.hit(), answer.text()), (200, None, path.repeat(50)), "{what}");
        }
        assert_eq!(origin.count(), asked + 5);
        larder.settle();
        assert_eq!(larder.metric("larder_durable_downs_total"), 0, "{what}: {}", larder.log());
        for n in 0..5 {
            assert_eq!(larder.get(&format!("/{n}"), "").hit(), Some("durable"), "{what}");
        }
        larder.kill_9();
        // A deletion may be lost with a damaged pack: after a restart what was stored before is asked for again.
        let found = found(&place, 5).0.len();
        assert!(found == 5 || what != "gone", "{what}: {found}");
    }
}
