//! Tests the durable tier in a bucket: what survives, and what is said of one that can't be used.

use std::sync::Arc;

use crate::support::durable::pages_of_every_kind;
use crate::support::{Answer, Origin, Place, Process, S3, at_once, bucket, eventually, larder};

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
