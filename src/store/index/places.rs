//! Places in packs, in twenty bytes each.

use crate::entry::JournalTime;
use crate::store::pack::{ALIGNMENT, EntryKind};

/// The keyed hash of a slot's full key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::store) struct Fingerprint(pub u64);

impl Fingerprint {
    /// Returns the first byte, which names the shard.
    pub(super) fn first(self) -> u8 {
        self.0.to_be_bytes()[0]
    }

    /// Returns the number of its leaf in the shard, and its value in that.
    fn split(self) -> (usize, [u8; 6]) {
        let [_, leaf, value @ ..] = self.0.to_be_bytes();
        (usize::from(leaf), value)
    }
}

/// The place of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Place {
    /// The number of its pack.
    pub pack: u32,
    /// The place in the pack.
    pub offset: u64,
    /// The length of what to read there: that of the entry's group, and at most a sixteenth more.
    pub len: u32,
    /// The entry's order.
    pub order: JournalTime,
    /// True for a tombstone.
    pub is_tombstone: bool,
    /// True for a Vary record.
    pub is_record: bool,
    /// True if the entry was used since it was written.
    pub is_used: bool,
    /// True if an older entry of the slot may be in another pack, and come back without this one.
    pub replaces: bool,
}

/// Bits of an order that a place has: its milliseconds last until the year 2109.
const ORDER_BITS: u32 = 52;

/// The bits above the length's class. The last four bits of the order lie between them.
const TOMBSTONE: u16 = 1 << 15;
const USED: u16 = 1 << 14;
const RECORD: u16 = 1 << 13;
const ORDER_SHIFT: u32 = 9;
const CLASS: u16 = (1 << ORDER_SHIFT) - 1;

/// The bit above the pack's number.
const REPLACES: u8 = 1 << 7;

/// The greatest number of a pack.
pub(super) const MAX_PACK: u32 = 0x007f_ffff;

/// The weight of a Vary record, whose group's bytes are its variant's: a pack with a record alone is not dead.
const RECORD_WEIGHT: u64 = ALIGNMENT as u64;

impl Place {
    /// The place of an entry whose group has `group_len` bytes.
    pub(super) fn new(pack: u32, offset: u64, group_len: u32, order: JournalTime, kind: EntryKind) -> Self {
        Self {
            pack,
            offset,
            len: len_of(class_of(group_len)),
            order: order.min((1 << ORDER_BITS) - 1),
            is_tombstone: kind.is_tombstone(),
            is_record: kind == EntryKind::Vary,
            is_used: false,
            replaces: kind.is_tombstone(),
        }
    }

    /// Returns the bytes that count as live for it.
    pub(super) fn weight(&self) -> u64 {
        match self {
            Self { is_tombstone: true, .. } => 0,
            Self { is_record: true, .. } => RECORD_WEIGHT,
            Self { len, .. } => u64::from(*len),
        }
    }

    /// Returns whether the entry has a lesser order.
    pub(in crate::store) fn is_before(&self, order: JournalTime) -> bool {
        self.order < order.min((1 << ORDER_BITS) - 1)
    }

    /// Returns whether the entry has a greater order.
    pub(in crate::store) fn is_after(&self, order: JournalTime) -> bool {
        self.order > order.min((1 << ORDER_BITS) - 1)
    }

    /// Returns whether two places are of the same entry.
    pub(in crate::store) fn is_same(&self, other: &Self) -> bool {
        (self.pack, self.offset, self.order) == (other.pack, other.offset, other.order)
    }
}

/// Returns the class of a length: exact up to 256 bytes, then sixteen classes to a doubling, rounded up.
fn class_of(len: u32) -> u16 {
    let units = len.div_ceil(ALIGNMENT).max(1);
    if units < 32 {
        return u16::try_from(units).unwrap_or(CLASS);
    }
    let mut exponent = units.ilog2() - 4;
    let mut mantissa = units.div_ceil(1 << exponent);
    if mantissa == 32 {
        (exponent, mantissa) = (exponent + 1, 16);
    }
    u16::try_from(16 * (exponent + 1) + mantissa - 16).unwrap_or(CLASS)
}

/// Returns the greatest length of a class.
fn len_of(class: u16) -> u32 {
    let class = u32::from(class);
    let units = if class < 32 { class } else { (16 + class % 16) << (class / 16 - 1) };
    units.saturating_mul(ALIGNMENT)
}

/// A place and the rest of its fingerprint, in twenty bytes: six of the fingerprint, three of a flag and the pack's number, three of the
/// offset in units of sixteen, six of the order, and two of the length's class, the rest of the order and flags.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packed(pub [u8; 20]);

impl Packed {
    fn value(&self) -> &[u8] {
        &self.0[..6]
    }

    /// Returns the number of its pack.
    pub(super) fn pack(&self) -> u32 {
        let [_, _, _, _, _, _, p0, p1, p2, ..] = self.0;
        u32::from_be_bytes([0, p0 & !REPLACES, p1, p2])
    }

    /// Returns the place with another number for its pack; `None` if `number` has none for it.
    pub(super) fn renumbered(mut self, number: impl Fn(u32) -> Option<u32>) -> Option<Self> {
        let number = number(self.pack())?;
        let flag = self.0[6] & REPLACES;
        self.0[6..9].copy_from_slice(&number.to_be_bytes()[1..]);
        self.0[6] |= flag;
        Some(self)
    }

    /// Returns the place, and its fingerprint, whose first two bytes are `first` and `second`.
    pub(super) fn read(&self, first: u8, second: u8) -> (Fingerprint, Place) {
        let mut bytes = [first, second, 0, 0, 0, 0, 0, 0];
        bytes[2..].copy_from_slice(self.value());
        (Fingerprint(u64::from_be_bytes(bytes)), unpack(self))
    }
}

fn pack(value: [u8; 6], place: Place) -> Packed {
    let mut packed = [0; 20];
    packed[..6].copy_from_slice(&value);
    packed[6..9].copy_from_slice(&place.pack.to_be_bytes()[1..]);
    packed[6] |= if place.replaces { REPLACES } else { 0 };
    let units = u32::try_from(place.offset / u64::from(ALIGNMENT)).unwrap_or(u32::MAX);
    packed[9..12].copy_from_slice(&units.to_be_bytes()[1..]);
    packed[12..18].copy_from_slice(&(place.order >> 4).to_be_bytes()[2..]);
    let rest = u16::from(place.order.to_le_bytes()[0] & 15) << ORDER_SHIFT;
    let flag = |is_set: bool, flag: u16| if is_set { flag } else { 0 };
    let flags = flag(place.is_tombstone, TOMBSTONE) | flag(place.is_used, USED) | flag(place.is_record, RECORD);
    packed[18..].copy_from_slice(&(class_of(place.len) | rest | flags).to_be_bytes());
    Packed(packed)
}

fn unpack(packed: &Packed) -> Place {
    let [_, _, _, _, _, _, p0, _, _, o0, o1, o2, t0, t1, t2, t3, t4, t5, f0, f1] = packed.0;
    let flags = u16::from_be_bytes([f0, f1]);
    Place {
        pack: packed.pack(),
        offset: u64::from(u32::from_be_bytes([0, o0, o1, o2])) * u64::from(ALIGNMENT),
        len: len_of(flags & CLASS),
        order: u64::from_be_bytes([0, 0, t0, t1, t2, t3, t4, t5]) << 4 | u64::from(flags >> ORDER_SHIFT & 15),
        is_tombstone: flags & TOMBSTONE != 0,
        is_record: flags & RECORD != 0,
        is_used: flags & USED != 0,
        replaces: p0 & REPLACES != 0,
    }
}

/// The places with the same first two bytes of the fingerprint, sorted by the rest.
type Leaf = Vec<Packed>;

/// The places whose fingerprints begin with one byte.
#[derive(Debug, Default)]
pub(in crate::store) struct PlaceTable {
    /// By the second byte; empty until there is a place.
    leaves: Vec<Leaf>,
    len: u64,
}

impl PlaceTable {
    fn find(&self, fingerprint: Fingerprint) -> Option<(usize, usize)> {
        let (leaf, value) = fingerprint.split();
        let at = self.leaves.get(leaf)?.binary_search_by(|packed| packed.value().cmp(&value)).ok()?;
        Some((leaf, at))
    }

    /// Returns the place with this fingerprint.
    pub(super) fn get(&self, fingerprint: Fingerprint) -> Option<Place> {
        let (leaf, at) = self.find(fingerprint)?;
        Some(unpack(&self.leaves[leaf][at]))
    }

    /// Sets the place with this fingerprint.
    pub(super) fn set(&mut self, fingerprint: Fingerprint, place: Place) {
        if self.leaves.is_empty() {
            self.leaves = vec![Leaf::new(); 256];
        }
        let (leaf, value) = fingerprint.split();
        let leaf = &mut self.leaves[leaf];
        match leaf.binary_search_by(|packed| packed.value().cmp(&value)) {
            Ok(at) => leaf[at] = pack(value, place),
            Err(at) => {
                if leaf.len() == leaf.capacity() {
                    // Grows by an eighth instead of doubling: a million places are fifteen to a leaf.
                    leaf.reserve_exact(leaf.len() / 8 + 2);
                }
                leaf.insert(at, pack(value, place));
                self.len += 1;
            }
        }
    }

    /// Takes over places of a snapshot, which are sorted, as the leaf `second`. Returns `false`, and takes none, if the leaf
    /// has places.
    pub(super) fn fill(&mut self, second: u8, places: impl ExactSizeIterator<Item = Packed>) -> bool {
        if self.leaves.is_empty() {
            self.leaves = vec![Leaf::new(); 256];
        }
        let leaf = &mut self.leaves[usize::from(second)];
        if !leaf.is_empty() {
            return false;
        }
        self.len += places.len() as u64;
        leaf.reserve_exact(places.len());
        leaf.extend(places);
        true
    }

    /// Notes a use of what is at a place, if that is still the slot's.
    pub(super) fn note_use(&mut self, fingerprint: Fingerprint, place: Place) {
        if let Some(current) = self.get(fingerprint).filter(|current| current.is_same(&place)) {
            self.set(fingerprint, Place { is_used: true, ..current });
        }
    }

    /// Removes a place, if it is still the slot's. Returns whether it was.
    pub(super) fn remove(&mut self, fingerprint: Fingerprint, place: Place) -> bool {
        let Some((leaf, at)) = self.find(fingerprint) else { return false };
        let is_it = unpack(&self.leaves[leaf][at]).is_same(&place);
        if is_it {
            self.leaves[leaf].remove(at);
            self.len -= 1;
        }
        is_it
    }

    /// Keeps the places for which `keep` says so.
    pub(super) fn retain(&mut self, keep: impl Fn(&Place) -> bool) {
        self.len = 0;
        for leaf in &mut self.leaves {
            leaf.retain(|packed| keep(&unpack(packed)));
            leaf.shrink_to(leaf.len() + leaf.len() / 8 + 2);
            self.len += leaf.len() as u64;
        }
    }

    /// Returns the leaves that have places, and the second byte of their fingerprints.
    pub(super) fn leaves(&self) -> impl Iterator<Item = (u8, &[Packed])> {
        (0..=u8::MAX).zip(&self.leaves).filter(|(_, leaf)| !leaf.is_empty()).map(|(second, leaf)| (second, &leaf[..]))
    }

    /// Returns the number of places.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Returns the bytes that the table takes in memory.
    pub(super) fn bytes(&self) -> u64 {
        // An allocation is rounded up to eight bytes, on the average by four.
        let held = |leaf: &Leaf| if leaf.capacity() == 0 { 0 } else { leaf.capacity() * size_of::<Packed>() + 4 };
        let leaves: usize = self.leaves.iter().map(|leaf| size_of::<Leaf>() + held(leaf)).sum();
        (size_of::<Self>() + leaves) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_never_too_short_and_at_most_a_sixteenth_too_long() {
        for len in (1..5000).chain((5000..1 << 26).step_by(997)) {
            let class = len_of(class_of(len));
            let padded = len.div_ceil(16) * 16;
            assert!(class >= padded && class - padded <= padded / 16, "{len} {class}");
            assert_eq!(class_of(class), class_of(len));
        }
    }

    #[test]
    fn a_place_is_read_back() {
        let place = Place {
            pack: 0x005b_cdef,
            offset: 0x00ff_ffff * 16,
            len: len_of(class_of(12_345)),
            order: (1 << 52) - 2,
            is_tombstone: true,
            is_record: true,
            is_used: true,
            replaces: true,
        };
        let mut table = PlaceTable::default();
        let fingerprint = Fingerprint(0x0102_0304_0506_0708);
        table.set(fingerprint, place);
        assert_eq!(table.get(fingerprint), Some(place));
        let all: Vec<_> =
            table.leaves().flat_map(|(second, leaf)| leaf.iter().map(move |p| p.read(1, second))).collect();
        assert_eq!(all, [(fingerprint, place)]);
        assert!(!table.remove(fingerprint, Place { offset: 0, ..place }) && table.remove(fingerprint, place));
        assert_eq!((table.len(), table.get(fingerprint)), (0, None));
    }
}
