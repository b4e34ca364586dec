//! Tests bodies that are objects of their own: written once, and again only when they are gone.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::durable::{in_directory, large, objects};
use crate::support::{Larder, Origin, file_url};

/// A body that is an object of its own, and fields that a 304 gives anew: each answer's are those of `turn`.
fn validated(turn: impl Fn(usize) -> &'static str + Send + Sync + 'static) -> Origin {
    let calls = AtomicUsize::new(0);
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
fn a_large_body_survives_a_validation_that_was_not_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = file_url(directory.path());
    let body = "x".repeat(2 << 20);
    let origin = Origin::new(move |_, reply| reply.send(200, "Cache-Control: max-age=600\nETag: \"a\"", &body));
    let larder = Larder::new(&origin, &url);
    larder.get("/a", "");
    larder.settle();
    for lifetime in [1, 600] {
        origin.script(move |_, reply| reply.send(304, &format!("Cache-Control: max-age={lifetime}\nETag: \"a\""), ""));
        larder.get("/a", "Cache-Control: no-cache");
        larder.settle();
    }
    larder.stop();
    let larder = Larder::new(&origin, &url);
    let answer = larder.get("/a", "");
    assert_eq!((answer.hit(), answer.body.len()), (Some("durable"), 2 << 20));
}
