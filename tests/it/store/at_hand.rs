//! Tests of hits that a directory answers from the page cache, in the request's own poll.

use std::path::Path;

use crate::support::durable::{in_directory, pages_of_every_kind};
use crate::support::{Larder, Origin};

/// Returns whether the file system of a directory reads without waiting.
fn reads_without_waiting(directory: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).filter(|fields| fields.len() > 2);
    let below = fields.filter(|fields| directory.starts_with(fields[1]));
    below.max_by_key(|fields| fields[1].len()).is_some_and(|fields| ["ext4", "xfs", "btrfs"].contains(&fields[2]))
}

fn at_hand(larder: &Larder) -> u64 {
    larder.metric("larder_durable_at_hand_total")
}

/// A Larder without memory, whose tier has pages and their files open.
fn warm(origin: &Origin, directory: &Path, asked: &[(&str, &str)]) -> Larder {
    let larder = in_directory(origin, directory, "memory.capacity=0");
    for (path, fields) in asked {
        larder.get(path, fields);
        larder.settle();
        // Opens the file.
        assert_eq!(larder.get(path, fields).hit(), Some("durable"), "{path}");
    }
    larder
}

#[test]
fn what_is_at_hand_is_answered_as_any_hit() {
    let (origin, directory) = (pages_of_every_kind(), tempfile::tempdir().expect("a directory"));
    let (english, german) = ("Accept-Language: en", "Accept-Language: de");
    let larder = warm(&origin, directory.path(), &[("/a", ""), ("/vary", english), ("/vary", german), ("/etag", "")]);
    let (asked, before) = (origin.count(), at_hand(&larder));
    for (path, fields, status, text) in [
        ("/a", "", 200, "/a"),
        ("/a", "Range: bytes=1-1", 206, "a"),
        ("/vary", english, 200, "en"),
        ("/vary", german, 200, "de"),
        ("/etag", "If-None-Match: \"1\"", 304, ""),
        ("/etag", "", 200, "validated"),
    ] {
        let answer = larder.get(path, fields);
        assert_eq!((answer.status(), answer.text().as_str(), answer.hit()), (status, text, Some("durable")), "{path}");
    }
    let head = larder.client().send("HEAD", "/a", "");
    assert_eq!((head.status(), head.hit(), head.head.get("content-length")), (200, Some("durable"), Some("2")));
    assert_eq!(origin.count(), asked);
    if reads_without_waiting(directory.path()) {
        assert_eq!(at_hand(&larder), before + 7);
    }
    // Others are left to a fetch: a variant that is not there, a separate body, what is stale.
    assert_eq!(larder.get("/vary", "Accept-Language: fr").hit(), None);
    larder.advance(200);
    assert!(larder.get("/etag", "").cache_status().contains("fwd=stale"));
}

#[test]
fn what_is_purged_or_deleted_is_not_at_hand() {
    let (origin, directory) = (pages_of_every_kind(), tempfile::tempdir().expect("a directory"));
    let larder = warm(&origin, directory.path(), &[("/a", ""), ("/b", "")]);
    assert_eq!(larder.purge("http://site.example/a").status(), 200);
    assert_eq!(larder.get("/a", "Cache-Control: no-store").hit(), None);
    assert_eq!(larder.get("/b", "").hit(), Some("durable"));
    larder.client().send("DELETE", "/b", "");
    assert_eq!(larder.get("/b", "Cache-Control: no-store").hit(), None);
}

/// While memory is full, one use does not take the place of what is used often.
#[test]
fn what_is_at_hand_goes_into_a_full_memory_at_its_second_use() {
    let origin = Origin::new(|seen, reply| reply.send(200, "Cache-Control: max-age=600", &seen.path().repeat(500)));
    let directory = tempfile::tempdir().expect("a directory");
    let larder = in_directory(&origin, directory.path(), "memory.capacity=64KiB\nmemory.policy=lru");
    let paths: Vec<String> = (10..60).map(|n| format!("/{n}")).collect();
    for path in &paths {
        larder.get(path, "");
    }
    larder.settle();
    // Opens the file.
    larder.get("/10", "");
    if !reads_without_waiting(directory.path()) {
        return;
    }
    let tiers = |path: &str| [(); 3].map(|()| larder.get(path, "").cache_status().contains("durable"));
    assert_eq!(tiers("/11"), [true, true, false], "read twice, and then in memory");
    for path in &paths[20..] {
        larder.get(path, "");
    }
    assert_eq!(tiers("/11"), [false; 3], "others that were read once took nobody's place");
}
