//! Times that can't be: those of a clock that was far ahead, of a damaged object, or of a stranger's file.
//!
//! A process that took such a time over would give later ones to all that it makes, and its version vectors would contain
//! purges that are yet to come: those would be void. So a time far ahead of the clock is neither noted nor passed on.

use super::Purges;
use crate::entry::{JournalTime, TICK_BITS, VersionVector};

/// Milliseconds by which a time may be ahead of the clock. The clocks of processes may differ by much less.
const MOST_AHEAD: u64 = 60 * 60_000;

impl Purges {
    /// Returns the greatest time that is believed now.
    pub(in crate::store) fn latest_believed(&self) -> JournalTime {
        latest_believed(self.journal_now())
    }

    /// Returns whether a time is believed.
    pub(in crate::store) fn believes(&self, time: JournalTime) -> bool {
        time <= self.latest_believed()
    }

    /// Returns whether all that this process gave out and read is believed: not if its clock was set back far.
    pub(in crate::store) fn believes_itself(&self) -> bool {
        self.believes(self.table.read().latest())
    }

    /// Returns whether a version vector is believed. If it is not, its response counts as one that knew of no purge.
    pub(super) fn believes_vector(&self, vector: &VersionVector) -> bool {
        let latest = self.latest_believed();
        vector.complete_until <= latest && vector.recent.iter().all(|(_, time)| *time <= latest)
    }
}

/// Returns the greatest time that is believed at `now`.
pub(super) fn latest_believed(now: JournalTime) -> JournalTime {
    now.saturating_add(MOST_AHEAD << TICK_BITS)
}
