//! Tests that the durable tier serves whole objects or none: broken, swapped, or cut off by `kill -9`.

use crate::support::durable::{in_directory, objects, packs, pages_of_every_kind};
use crate::support::{Larder, Origin, Process, file_url};

/// A pack is broken in each of its parts, and a separate body.
#[test]
fn what_cannot_be_believed_is_a_miss_and_is_replaced() {
    type Spoil = fn(Vec<u8>) -> Vec<u8>;
    // Without a footer, or with a broken one, the entries themselves tell what they are.
    let broken: [(&str, bool, Spoil); 9] = [
        ("cut in the first entry", false, |bytes| bytes[..100].to_vec()),
        ("empty", false, |_| Vec::new()),
        ("a flipped bit in the entry's header", false, |bytes| flip_at(bytes, 20)),
        ("a flipped bit in the response's head", false, |bytes| flip_at(bytes, 64 + 40)),
        ("foreign", false, |_| b"<html>not ours</html>".to_vec()),
        ("an entry of a version to come", false, |mut bytes| {
            bytes[4] = 99;
            bytes
        }),
        ("cut in the footer", true, |bytes| bytes[..bytes.len() - 40].to_vec()),
        ("a flipped bit in the trailer", true, |bytes| {
            let last = bytes.len() - 1;
            flip_at(bytes, last)
        }),
        ("a flipped bit in the footer", true, |bytes| {
            let at = bytes.len() - 60;
            flip_at(bytes, at)
        }),
    ];
    let origin = pages_of_every_kind();
    for (what, is_found, spoil) in broken {
        let directory = tempfile::tempdir().expect("a directory");
        let larder = in_directory(&origin, directory.path(), "");
        let whole = larder.get("/a", "").body;
        larder.settle();
        larder.stop();
        for file in packs(directory.path()) {
            let bytes = std::fs::read(&file).expect("a pack");
            std::fs::write(&file, spoil(bytes)).expect("it is spoilt");
        }
        let larder = in_directory(&origin, directory.path(), "");
        let answer = larder.get("/a", "");
        let hit = is_found.then_some("durable");
        assert_eq!((answer.hit(), answer.status(), answer.body == whole), (hit, 200, true), "{what}");
        larder.settle();
        larder.stop();
        let larder = in_directory(&origin, directory.path(), "");
        let answer = larder.get("/a", "");
        assert_eq!((answer.hit(), answer.body == whole), (Some("durable"), true), "{what}: written anew");
    }
}

fn flip_at(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    bytes[at] ^= 1;
    bytes
}

/// The entry holds, and its separate body does not.
#[test]
fn a_separate_body_that_cannot_be_believed_is_a_miss() {
    let origin = pages_of_every_kind();
    for is_cut in [true, false] {
        let directory = tempfile::tempdir().expect("a directory");
        let larder = in_directory(&origin, directory.path(), "durable.inline_size=10KiB");
        let whole = larder.get("/large", "").body;
        larder.settle();
        larder.stop();
        for file in objects(directory.path()).into_iter().filter(|file| file.to_string_lossy().contains("/b/")) {
            let bytes = std::fs::read(&file).expect("a body");
            let spoilt = if is_cut { bytes[..bytes.len() / 2].to_vec() } else { flip_at(bytes, 70) };
            std::fs::write(&file, spoilt).expect("it is spoilt");
        }
        let larder = in_directory(&origin, directory.path(), "durable.inline_size=10KiB");
        let answer = larder.get("/large", "");
        assert_eq!((answer.hit(), answer.status(), answer.body == whole), (None, 200, true));
        assert_eq!(larder.metric("larder_durable_operations_total{op=\"get\",outcome=\"unreadable\"}"), 1);
        larder.settle();
        larder.stop();
        let larder = in_directory(&origin, directory.path(), "durable.inline_size=10KiB");
        let answer = larder.get("/large", "");
        assert_eq!((answer.hit(), answer.body == whole), (Some("durable"), true), "written anew");
    }
}

#[test]
fn swapped_packs_are_not_served_for_each_other() {
    let (origin, directory) = (pages_of_every_kind(), tempfile::tempdir().expect("a directory"));
    let larder = in_directory(&origin, directory.path(), "");
    for path in ["/a", "/b"] {
        larder.get(path, "");
        larder.settle();
    }
    // While the index still has the places as they were.
    let files = packs(directory.path());
    let (a, b) = (std::fs::read(&files[0]).expect("a pack"), std::fs::read(&files[1]).expect("a pack"));
    std::fs::write(&files[0], b).expect("swapped");
    std::fs::write(&files[1], a).expect("swapped");
    for path in ["/a", "/b"] {
        assert_eq!(larder.get(path, "Cache-Control: no-store").text(), path);
    }
    larder.stop();
    let larder = in_directory(&origin, directory.path(), "");
    for path in ["/a", "/b"] {
        let answer = larder.get(path, "");
        assert_eq!(
            (answer.hit(), answer.text().as_str()),
            (Some("durable"), path),
            "each pack says what it has: {}",
            answer.cache_status()
        );
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
