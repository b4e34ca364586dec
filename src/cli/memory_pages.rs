//! Chooses the pages that the kernel backs memory with.
//!
//! A huge page (2 MiB) makes a large cache some 7 % cheaper to look up, but stays whole as long as a few bytes of it are
//! used. A process with a small cache holds 30 MiB less without them.

/// A memory tier of at least so many bytes has huge pages.
const LARGE: u64 = 256 << 20;

/// Has the kernel give the process no huge pages. Comes first: pages that are there already stay.
pub(super) fn make_small() {
    allow_huge(false);
}

/// Has the kernel give huge pages, where its settings allow them, if memory holds enough for them to pay.
pub(super) fn fit(capacity: u64) {
    if capacity >= LARGE {
        allow_huge(true);
    }
}

fn allow_huge(is_allowed: bool) {
    // A kernel that refuses goes by its own settings.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(!is_allowed);
}
