//! How often an entry in memory was used of late.

use std::sync::atomic::{AtomicU16, Ordering};

/// The uses of an entry, counted up to [`Uses::MOST`], and aged by epochs: each halves what was counted before it.
///
/// Whoever counts takes no lock: two uses at one moment may count as one. An entry that is used all the time is only read.
#[derive(Debug, Default)]
pub(crate) struct Uses(
    /// From the lowest bit: the uses, whether the entry was used since that was last asked, and the epoch of both.
    AtomicU16,
);

/// The bits of the uses.
const COUNT: u16 = 0b111;
/// The bit of an entry that was used since that was last asked.
const RECENT: u16 = 0b1000;
/// Number of bits below the epoch.
const SHIFT: u32 = 4;

impl Uses {
    /// The most uses that are told apart. Larger counts take longer to age: entries whose time is over would stay.
    pub(crate) const MOST: u8 = 7;

    /// Counts a use.
    #[inline]
    pub(crate) fn count(&self, epoch: u16) {
        let state = self.0.load(Ordering::Relaxed);
        if state != (epoch << SHIFT | RECENT | COUNT) {
            let uses = (aged(state, epoch) + 1).min(COUNT);
            self.0.store(epoch << SHIFT | RECENT | uses, Ordering::Relaxed);
        }
    }

    /// Returns the uses of late.
    pub(crate) fn of_late(&self, epoch: u16) -> u8 {
        u8::try_from(aged(self.0.load(Ordering::Relaxed), epoch)).unwrap_or(Self::MOST)
    }

    /// Begins with `uses` from elsewhere, none of them recent.
    pub(crate) fn begin(&self, uses: u8, epoch: u16) {
        self.0.store(epoch << SHIFT | u16::from(uses.min(Self::MOST)), Ordering::Relaxed);
    }

    /// Takes over the uses of the entry that this one replaces.
    pub(crate) fn take_over(&self, old: &Self) {
        self.0.store(old.0.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Has the entry count as used since that was last asked, without a use.
    pub(crate) fn note_recent(&self) {
        self.0.fetch_or(RECENT, Ordering::Relaxed);
    }

    /// Returns whether the entry was used since this was last asked.
    pub(crate) fn take_recent(&self) -> bool {
        self.0.fetch_and(!RECENT, Ordering::Relaxed) & RECENT != 0
    }
}

/// Returns the uses in `state`, halved for each epoch since. Epochs are compared by their lowest bits.
fn aged(state: u16, epoch: u16) -> u16 {
    let since = epoch.wrapping_sub(state >> SHIFT) & (u16::MAX >> SHIFT);
    (state & COUNT).checked_shr(u32::from(since)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_counted_and_age() {
        let uses = Uses::default();
        assert_eq!((uses.of_late(0), uses.take_recent()), (0, false));
        for n in 1..20 {
            uses.count(3);
            assert_eq!(uses.of_late(3), Uses::MOST.min(n));
        }
        assert_eq!([4, 5, 6, 7, 40].map(|epoch| uses.of_late(epoch)), [3, 1, 0, 0, 0]);
        uses.count(4);
        assert_eq!(uses.of_late(4), 4, "counted on from what is left");
        assert_eq!((uses.take_recent(), uses.take_recent(), uses.of_late(4)), (true, false, 4));
    }

    #[test]
    fn epochs_may_wrap() {
        let uses = Uses::default();
        uses.begin(200, u16::MAX);
        assert_eq!((uses.of_late(u16::MAX), uses.of_late(0), uses.take_recent()), (Uses::MOST, 3, false));
        let new = Uses::default();
        new.take_over(&uses);
        assert_eq!(new.of_late(0), 3);
    }
}
