//! The pages that may have responses to QUERY. A response to QUERY is not found by its URL, so that whoever changes a page
//! asks here whether there may be some.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The bits of the filter: with 10,000 pages in it, it takes one other in 160 for one of them.
const BITS: u128 = 1 << 18;

/// A filter of pages by the hashes of their keys. It misses none, and forgets none.
#[derive(Debug, Default)]
pub(super) struct QueryPages {
    is_any: AtomicBool,
    /// True once it is not known which pages there are.
    are_all: AtomicBool,
    /// Two bits for each page. Takes memory only where there is one.
    words: OnceLock<Box<[AtomicU64]>>,
}

impl QueryPages {
    /// Adds a page.
    pub(super) fn add(&self, page: u128) {
        let words = self.words.get_or_init(|| (0..BITS / 64).map(|_| AtomicU64::new(0)).collect());
        for (word, bit) in places(page) {
            if words[word].load(Ordering::Acquire) & bit == 0 {
                words[word].fetch_or(bit, Ordering::AcqRel);
            }
        }
        self.is_any.store(true, Ordering::Release);
    }

    /// Adds every page.
    pub(super) fn add_all(&self) {
        self.are_all.store(true, Ordering::Release);
        self.is_any.store(true, Ordering::Release);
    }

    /// Returns whether there is any.
    pub(super) fn has_any(&self) -> bool {
        self.is_any.load(Ordering::Acquire)
    }

    /// Returns whether a page may be among them.
    pub(super) fn may_have(&self, page: u128) -> bool {
        let is_set = |words: &[AtomicU64]| {
            places(page).into_iter().all(|(word, bit)| words[word].load(Ordering::Acquire) & bit != 0)
        };
        self.has_any() && (self.are_all.load(Ordering::Acquire) || self.words.get().is_some_and(|words| is_set(words)))
    }
}

/// Returns the bits of a page: the word, and the bit in it.
fn places(page: u128) -> [(usize, u64); 2] {
    [page, page / BITS].map(|hash| {
        let bit = hash % BITS;
        (usize::try_from(bit / 64).unwrap_or(0), 1 << (bit % 64))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_page_is_missed_and_few_others_are_taken_for_one() {
        let hash = |n: u32| xxhash_rust::xxh3::xxh3_128(&n.to_le_bytes());
        let pages = QueryPages::default();
        assert!(!pages.has_any() && !pages.may_have(hash(0)));
        for n in 0..10_000 {
            pages.add(hash(n));
            assert!(pages.may_have(hash(n)), "{n}");
        }
        assert!((0..10_000).all(|n| pages.may_have(hash(n))));
        let others = (10_000..110_000).filter(|n| pages.may_have(hash(*n))).count();
        assert!((100..1000).contains(&others), "{others}");
        pages.add_all();
        assert!(pages.may_have(hash(10_000 + 1)));
    }
}
