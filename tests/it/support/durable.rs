//! A durable tier in a directory, and pages for it.

use std::path::{Path, PathBuf};

use super::binary::file_url;
use super::origin::Origin;
use super::proxy::Larder;

/// Pages that vary, are large, do not last, have a validator, or nothing of that.
pub(crate) fn pages_of_every_kind() -> Origin {
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
pub(crate) fn large() -> String {
    (0..100_000).map(|n| format!("{n:07}\n")).collect()
}

/// A Larder whose durable tier is `directory`.
pub(crate) fn in_directory(origin: &Origin, directory: &Path, more: &str) -> Larder {
    Larder::new(origin, &format!("{}\ndurable.lookup_timeout=20s\n{more}", file_url(directory)))
}

/// Every pack and separate body below `directory`, by path.
pub(crate) fn objects(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.to_string_lossy();
        if path.is_dir() {
            found.extend(objects(&path));
        } else if name.ends_with(".pack") || name.ends_with(".open") || name.contains("larder-1/b/") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The packs among them.
pub(crate) fn packs(directory: &Path) -> Vec<PathBuf> {
    objects(directory).into_iter().filter(|path| !path.to_string_lossy().contains("larder-1/b/")).collect()
}

/// Ranges are asked for as they are, so that parts are put together.
pub(crate) const FORWARD: &str = "rule=[{path = \"*\", ranges = \"forward\"}]";

/// Runs `test` in memory and through the durable tier alone.
pub(crate) fn in_each_tier(mut test: impl FnMut(&dyn Fn(&Origin) -> Larder)) {
    test(&|origin| Larder::new(origin, FORWARD));
    let directory = tempfile::tempdir().expect("a directory");
    let next = std::cell::Cell::new(0);
    test(&|origin| {
        next.set(next.get() + 1);
        let url = file_url(&directory.path().join(next.get().to_string()));
        Larder::new(origin, &format!("{url}\nmemory.capacity=0\ndurable.min_lifetime=0s\n{FORWARD}"))
    });
    // And read back, not found in the queue.
    test(&|origin| {
        next.set(next.get() + 1);
        let url = file_url(&directory.path().join(next.get().to_string()));
        Larder::new(origin, &format!("{url}\nmemory.capacity=0\ndurable.min_lifetime=0s\n{FORWARD}")).settling()
    });
}
