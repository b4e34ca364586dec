//! Tests that the durable tier serves whole objects or none: broken, swapped, or cut off by `kill -9`.

use crate::support::durable::{in_directory, objects, pages_of_every_kind};
use crate::support::{Larder, Origin, Process, file_url};

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
    let origin = pages_of_every_kind();
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
fn swapped_objects_are_not_served_for_each_other() {
    let (origin, directory) = (pages_of_every_kind(), tempfile::tempdir().expect("a directory"));
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
fn a_large_durable_body_that_is_broken_inside_is_asked_for_anew() {
    let directory = tempfile::tempdir().expect("a directory");
    let body: String = (0..200_000).map(|n| format!("{n:07}\n")).collect();
    let origin = Origin::new({
        let body = body.clone();
        move |_, reply| reply.send(200, "Cache-Control: max-age=600", &body)
    });
    let config = format!("{}\ndurable.lookup_timeout=20s", file_url(directory.path()));
    let larder = Larder::new(&origin, &config);
    larder.get("/big", "");
    larder.settle();
    larder.stop();
    let bodies = directory.path().join("larder-1/b");
    let first = |path: &std::path::Path| {
        std::fs::read_dir(path).expect("a directory").next().expect("an entry").expect("an entry").path()
    };
    let file = first(&first(&first(&bodies)));
    let mut bytes = std::fs::read(&file).expect("the body");
    bytes[1_000_000] ^= 1;
    std::fs::write(&file, bytes).expect("it is spoilt");
    let larder = Larder::new(&origin, &config);
    let mut client = larder.client();
    client.ask("GET", "/big", "");
    assert!(client.try_answer().is_err(), "what can't be believed is not given out as whole");
    larder.settle();
    let answer = larder.get("/big", "");
    assert_eq!((answer.hit(), answer.text() == body), (None, true));
}

#[test]
fn kill_9_at_any_moment_leaves_whole_responses_or_none() {
    let directory = tempfile::tempdir().expect("a directory");
    let body = |path: &str| format!("{path}:").repeat(40_000 / (path.len() + 1));
    let origin = Origin::new(move |seen, reply| reply.send(200, "Cache-Control: max-age=600", &body(seen.path())));
    let upstream = origin.url();
    let url = file_url(directory.path());
    let sets = [url.as_str(), "durable.inline_size=10KiB"];
    let mut stored = 0;
    let mut round = 0;
    while stored < 200 {
        let larder = Process::start(&upstream, &sets);
        let mut client = larder.client();
        // Each round is killed after another number of stores, with writes under way.
        round += 1;
        for _ in 0..round {
            client.get(&format!("/{stored}"), "");
            stored += 1;
        }
        larder.kill_9();
    }
    let larder = Process::start(&upstream, &sets);
    let mut client = larder.client();
    let mut hits = 0;
    for n in 0..200 {
        let path = format!("/{n}");
        let answer = client.get(&path, "");
        assert_eq!(answer.text(), body(&path), "{}", answer.cache_status());
        hits += usize::from(answer.hit() == Some("durable"));
    }
    assert!(hits > 0, "something had been written");
    assert_eq!(larder.metric("larder_durable_operations_total{op=\"get\",outcome=\"error\"}"), 0);
}
