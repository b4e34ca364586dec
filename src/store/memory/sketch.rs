//! How often was asked for what is not in memory, by a guess of a few bits.

use std::hash::BuildHasher;

use super::seed::Seed;
use crate::entry::Uses;

/// A count-min sketch of uses up to [`Uses::MOST`]. Never counts too few, and too many only where others have hit all of an
/// entry's counters.
#[derive(Debug)]
pub(super) struct Sketch {
    seed: Seed,
    /// Two counters of four bits in each. A power of two in length.
    counters: Vec<u8>,
}

/// Bytes of counters for each entry in memory. The sketch holds several times as many keys as memory has entries.
const BYTES_AN_ENTRY: usize = 16;

/// The fewest entries that counts are kept for.
pub(super) const FEWEST: usize = 64;

const ROWS: usize = 4;

/// The lower three bits of both counters of a byte: what is left of them when they are shifted.
const LOWER: u8 = 0x77;

impl Sketch {
    pub(super) fn new(seed: Seed) -> Self {
        Self { seed, counters: vec![0; FEWEST * BYTES_AN_ENTRY] }
    }

    /// Grows to what suits so many entries. Keeps its counts: both halves of the new table begin with what the old one had.
    pub(super) fn suit(&mut self, entries: usize) {
        while self.counters.len() < entries.saturating_mul(BYTES_AN_ENTRY) {
            self.counters.extend_from_within(..);
        }
    }

    /// Counts a use. Returns the uses, this one included.
    pub(super) fn count(&mut self, slot: u128) -> u8 {
        let uses = self.places(slot).map(|place| self.at(place)).into_iter().min().unwrap_or(0);
        let uses = uses.saturating_add(1).min(Uses::MOST);
        self.raise(slot, uses);
        uses
    }

    /// Notes that there were at least so many uses.
    pub(super) fn raise(&mut self, slot: u128, uses: u8) {
        for place in self.places(slot) {
            self.raise_at(place, uses.min(Uses::MOST));
        }
    }

    /// Halves all counts.
    pub(super) fn age(&mut self) {
        self.counters.iter_mut().for_each(|pair| *pair = *pair >> 1 & LOWER);
    }

    /// Returns the numbers of an entry's counters.
    fn places(&self, slot: u128) -> [u64; ROWS] {
        let hash = self.seed.hash_one(slot);
        let (first, step) = (hash & u64::from(u32::MAX), hash >> 32 | 1);
        std::array::from_fn(|row| first + row as u64 * step)
    }

    fn at(&self, place: u64) -> u8 {
        let (index, shift) = self.position(place);
        self.counters[index] >> shift & 0xf
    }

    fn raise_at(&mut self, place: u64, uses: u8) {
        let (index, shift) = self.position(place);
        if self.counters[index] >> shift & 0xf < uses {
            self.counters[index] = self.counters[index] & !(0xf << shift) | uses << shift;
        }
    }

    /// Returns the byte that a counter is in, and its shift there.
    fn position(&self, place: u64) -> (usize, u32) {
        let index = usize::try_from(place >> 1).unwrap_or(0) & (self.counters.len() - 1);
        (index, if place & 1 == 0 { 0 } else { 4 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sketch() -> Sketch {
        Sketch::new(Seed::random())
    }

    #[test]
    fn uses_are_counted_age_and_outlive_growth() {
        let mut sketch = sketch();
        assert_eq!([1, 1, 1, 2].map(|slot| sketch.count(slot)), [1, 2, 3, 1]);
        sketch.raise(1, 6);
        sketch.raise(1, 2);
        sketch.suit(10_000);
        assert_eq!([1, 1, 1].map(|slot| sketch.count(slot)), [Uses::MOST; 3]);
        sketch.age();
        assert_eq!([1, 2, 3].map(|slot| sketch.count(slot)), [4, 1, 1]);
    }

    /// A sketch that suits so many entries keeps several times as many keys apart.
    #[test]
    fn few_keys_are_taken_for_others() {
        let mut sketch = sketch();
        sketch.suit(4096);
        let wrong = (0..16_384).filter(|n| sketch.count(u128::from(n * 7_919_u32)) > 1).count();
        assert!(wrong < 500, "{wrong}");
    }
}
