//! The times at which objects were last used, in a table of fixed size without locks.
//!
//! Two names may share a slot: the later use then replaces the earlier, and the file's own date, which is at most an hour
//! behind, stands in for it.

use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_64;

use crate::base::Clock;
use crate::rfc9111::timestamp::Timestamp;

/// Number of slots.
const SLOTS: usize = 1 << 18;

/// Bits of a slot that hold the time. The others hold bits of the name's hash.
const TIME_BITS: u32 = 40;

/// The time that slots count from, in milliseconds since 1970: the beginning of 2020.
const SINCE: i64 = 1_577_836_800_000;

/// The last uses of objects, by a hash of their names.
#[derive(Debug)]
pub(super) struct Uses(Box<[AtomicU64]>);

impl Default for Uses {
    fn default() -> Self {
        Self((0..SLOTS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Uses {
    /// Records a use of the object `name` now.
    pub(super) fn note(&self, name: &str) {
        let (slot, tag) = self.slot(name);
        let millis = Clock::system().now().as_millis().saturating_sub(SINCE);
        let time = u64::try_from(millis).unwrap_or(0) & ((1 << TIME_BITS) - 1);
        slot.store(tag << TIME_BITS | time, Ordering::Relaxed);
    }

    /// Returns when this process last used the object `name`, if the table still has it.
    pub(super) fn last(&self, name: &str) -> Option<Timestamp> {
        let (slot, tag) = self.slot(name);
        let noted = slot.load(Ordering::Relaxed);
        let time = i64::try_from(noted & ((1 << TIME_BITS) - 1)).unwrap_or(0);
        (noted != 0 && noted >> TIME_BITS == tag).then(|| Timestamp::from_millis(SINCE + time))
    }

    fn slot(&self, name: &str) -> (&AtomicU64, u64) {
        let hash = xxh3_64(name.as_bytes());
        let slot = usize::try_from(hash & (SLOTS as u64 - 1)).unwrap_or(0);
        (&self.0[slot], hash >> TIME_BITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_is_remembered_of_the_name_that_was_used() {
        let uses = Uses::default();
        assert_eq!(uses.last("a"), None);
        uses.note("a");
        let since = Clock::system().now().millis_since(uses.last("a").expect("it was used"));
        assert!((0..60_000).contains(&since), "{since}");
        assert_eq!(uses.last("b"), None);
    }
}
