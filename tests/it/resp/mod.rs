//! Tests of the room `resp`: objects over Redis's protocol.

mod atomic;
mod bounds;
mod expiry;
mod hostile;
mod listing;
mod pages;
mod protocol;
mod semantics;
mod sharing;
mod survival;

use larder::base::Clock;

use crate::support::{Larder, START};

/// Nobody asks the application.
const NOBODY: &str = "http://127.0.0.1:1";

/// A Larder with a listener for objects, and `config` besides.
fn larder(config: &str) -> Larder {
    at(config, &Clock::manual(START))
}

fn at(config: &str, clock: &Clock) -> Larder {
    Larder::at(NOBODY, &format!("resp.listen=127.0.0.1:0\n{config}"), clock.clone())
}

/// Runs `test` with values in memory, in a directory behind a memory that keeps nothing, and there in complete packs. The
/// test calls the function that it gets after each change.
fn in_each_tier(test: impl Fn(&Larder, &dyn Fn())) {
    test(&larder(""), &|| ());
    for is_complete in [false, true] {
        let directory = tempfile::tempdir().expect("a directory");
        let config = format!("{}\nmemory.capacity=0", crate::support::file_url(directory.path()));
        let this = larder(&config);
        test(&this, &|| {
            if is_complete {
                this.settle()
            }
        });
    }
}
