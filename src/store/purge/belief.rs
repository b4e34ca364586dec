//! Times that can't be: those of a clock that was far ahead, of a damaged object, or of a stranger's file.
//!
//! A process that took such a time over would give later ones to all that it makes, and its version vectors would contain
//! purges that are yet to come: those would be void. So a time far ahead of the clock is neither noted nor passed on.

use super::Purges;
use crate::entry::{HORIZON, JournalTime, TICK_BITS, VersionVector};

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

    /// Returns what is believed of a version vector of which another process tells, and which was made `age`
    /// milliseconds ago. No process knows all purges of the last minutes (`HORIZON`): one that claims to has a clock that
    /// is ahead, and has not heard of them.
    pub fn credible(&self, told: &VersionVector, age: i64) -> VersionVector {
        if !self.believes_vector(told) {
            return VersionVector::default();
        }
        let ago = u64::try_from(age).unwrap_or(0).saturating_add(HORIZON).saturating_mul(1 << TICK_BITS);
        told.complete_until(self.journal_now().saturating_sub(ago))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Clock;
    use crate::rfc9111::timestamp::Timestamp;

    #[test]
    fn nobody_is_believed_to_know_all_purges_of_the_last_minutes() {
        let purges = Purges::new(Clock::manual(Timestamp::from_secs(1_700_000_000)), 1);
        let now = purges.journal_now();
        let before = |millis: u64| now - (millis << TICK_BITS);
        let vector = |complete_until| VersionVector { complete_until, recent: vec![(7, now)] };
        for (told, age, believed) in [
            (before(HORIZON), 0, before(HORIZON)),
            (before(HORIZON + 9), 0, before(HORIZON + 9)),
            (before(HORIZON), 1000, before(HORIZON + 1000)),
            (now, 0, before(HORIZON)),
            (now + (1000 << TICK_BITS), i64::MAX, 0),
            (now, i64::MIN, before(HORIZON)),
        ] {
            assert_eq!(purges.credible(&vector(told), age), vector(believed));
        }
        let far = now + ((2 * MOST_AHEAD) << TICK_BITS);
        assert_eq!(purges.credible(&vector(far), 0), VersionVector::default());
    }
}
