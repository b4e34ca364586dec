//! Remembers what was used lately, in a few KiB: a filter before memory, so that what is used once does not take the place of
//! what is used often.
//!
//! The filter forgets when another use falls into the same slot. It may therefore say "first" of a second use, and never the
//! other way round but for two slots with one hash.

use std::sync::atomic::{AtomicU64, Ordering};

/// Number of uses that are remembered.
const SLOTS: usize = 1 << 13;

/// The hashes of the last uses.
#[derive(Debug)]
pub(super) struct SecondUse {
    slots: Box<[AtomicU64]>,
}

impl Default for SecondUse {
    fn default() -> Self {
        Self { slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl SecondUse {
    /// Notes a use of what has this hash. Returns whether it was used before, as far as that is remembered.
    pub(super) fn note(&self, hash: u128) -> bool {
        let value = u64::try_from(hash >> 64).unwrap_or(0);
        let slot = usize::try_from(hash & (SLOTS as u128 - 1)).unwrap_or(0);
        self.slots[slot].swap(value, Ordering::Relaxed) == value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_use_counts_unless_others_came_between() {
        let uses = SecondUse::default();
        let hash = |high: u128, slot: u128| high << 64 | slot;
        assert!(!uses.note(hash(1, 5)));
        assert!(!uses.note(hash(2, 6)));
        assert!(uses.note(hash(1, 5)));
        assert!(!uses.note(hash(3, 5)), "another in the same slot");
        assert!(!uses.note(hash(1, 5)));
    }
}
