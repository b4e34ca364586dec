//! Starts what the tests of objects are about, in this process or as one of its own.

use std::path::{Path, PathBuf};

use larder::base::Clock;

use crate::support::{Larder, Place, Process, START};

/// Nobody asks the application.
pub(super) const NOBODY: &str = "http://127.0.0.1:1";

/// A Larder with a listener for objects, and `config` besides.
pub(super) fn larder(config: &str) -> Larder {
    at(config, &Clock::manual(START))
}

pub(super) fn at(config: &str, clock: &Clock) -> Larder {
    Larder::at(NOBODY, &format!("resp.listen=127.0.0.1:0\n{config}"), clock.clone())
}

/// A process of its own, whose listener for objects is a socket of this name in `directory`: buckets need credentials in
/// the environment.
pub(super) fn process(directory: &Path, name: &str, sets: &[&str]) -> (Process, PathBuf) {
    let socket = directory.join(name);
    let listen = format!("resp.listen=unix:{}", socket.display());
    let sets: Vec<&str> = sets.iter().copied().chain([listen.as_str()]).collect();
    (Process::start(NOBODY, &sets), socket)
}

/// The same, over a place.
pub(super) fn process_over(place: &Place, directory: &Path, name: &str, more: &[&str]) -> (Process, PathBuf) {
    let sets: Vec<&str> = place.sets.iter().map(String::as_str).chain(more.iter().copied()).collect();
    process(directory, name, &sets)
}

/// Runs `test` with values in memory, in a directory behind a memory that keeps nothing, and there in complete packs. The
/// test calls the function that it gets after each change.
pub(super) fn in_each_tier(test: impl Fn(&Larder, &dyn Fn())) {
    test(&larder(""), &|| ());
    for is_complete in [false, true] {
        let directory = tempfile::tempdir().expect("a directory");
        let config = format!("{}\nmemory.capacity=0", crate::support::file_url(directory.path()));
        let this = larder(&config);
        test(&this, &|| {
            if is_complete {
                this.settle();
            }
        });
    }
}
