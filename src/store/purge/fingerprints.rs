//! Fingerprints of URLs whose purges were evicted: 40 bits of each key's hash, in some five bytes.
//!
//! Of a million other URLs, one is found by mistake. It counts as purged, which costs a request to the origin.

/// The last three bytes of all fingerprints with the same first two, sorted.
type Leaf = Vec<[u8; 3]>;

/// The leaves of one first byte, by the second byte; `None` while all are empty.
type Branch = Option<Box<[Leaf; 256]>>;

/// The first 40 bits of a key's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fingerprint(pub [u8; 5]);

impl Fingerprint {
    /// Returns the fingerprint of a hash.
    pub(super) fn of(hash: u128) -> Self {
        let mut first = [0; 5];
        first.copy_from_slice(&hash.to_be_bytes()[..5]);
        Self(first)
    }

    /// Returns the position of its branch, that of its leaf, and its value in that.
    fn split(self) -> (usize, usize, [u8; 3]) {
        let [branch, leaf, value @ ..] = self.0;
        (usize::from(branch), usize::from(leaf), value)
    }
}

/// A set of fingerprints, in some five bytes each.
#[derive(Debug)]
pub(super) struct FingerprintSet {
    branches: [Branch; 256],
    len: u64,
}

impl Default for FingerprintSet {
    fn default() -> Self {
        Self { branches: [const { None }; 256], len: 0 }
    }
}

impl FingerprintSet {
    /// Returns whether the set has the fingerprint of a hash.
    pub(super) fn contains(&self, hash: u128) -> bool {
        let (branch, leaf, value) = Fingerprint::of(hash).split();
        self.branches[branch].as_deref().is_some_and(|leaves| leaves[leaf].binary_search(&value).is_ok())
    }

    /// Adds a fingerprint.
    pub(super) fn insert(&mut self, fingerprint: Fingerprint) {
        let (branch, leaf, value) = fingerprint.split();
        let leaves = self.branches[branch].get_or_insert_with(|| Box::new([const { Leaf::new() }; 256]));
        let leaf = &mut leaves[leaf];
        let Err(at) = leaf.binary_search(&value) else { return };
        if leaf.len() == leaf.capacity() {
            // Grows by a quarter instead of doubling: a million keys are fifteen to a leaf.
            leaf.reserve_exact(leaf.len() / 4 + 4);
        }
        leaf.insert(at, value);
        self.len += 1;
    }

    /// Returns the number of fingerprints.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Adds all fingerprints of another set, as [`FingerprintSet::encode`] wrote them. Returns `false` if they are
    /// malformed; some may have been added then.
    pub(super) fn merge(&mut self, mut encoded: &[u8]) -> bool {
        while let Some(([a, b, count @ ..], rest)) = encoded.split_first_chunk::<6>() {
            let len = usize::try_from(u32::from_le_bytes(*count)).ok().and_then(|count| count.checked_mul(3));
            let Some((values, rest)) = len.and_then(|len| rest.split_at_checked(len)) else { return false };
            encoded = rest;
            for value in values.chunks_exact(3) {
                self.insert(Fingerprint([*a, *b, value[0], value[1], value[2]]));
            }
        }
        encoded.is_empty()
    }

    /// Encodes the set for a snapshot: for each leaf its first two bytes, the number of its fingerprints as a
    /// little-endian u32, and the last three bytes of each.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut encoded = Vec::new();
        for (a, leaves) in (0..=u8::MAX).zip(&self.branches) {
            let leaves = leaves.iter().flat_map(|leaves| leaves.iter());
            for (b, leaf) in (0..=u8::MAX).zip(leaves).filter(|(_, leaf)| !leaf.is_empty()) {
                encoded.extend_from_slice(&[a, b]);
                encoded.extend_from_slice(&u32::try_from(leaf.len()).unwrap_or(u32::MAX).to_le_bytes());
                encoded.extend_from_slice(leaf.as_flattened());
            }
        }
        encoded
    }

    /// Returns the bytes that the set takes in memory.
    #[cfg(test)]
    fn bytes(&self) -> u64 {
        // An allocation is rounded up to eight bytes, on the average by four.
        let held = |leaf: &Leaf| if leaf.capacity() == 0 { 0 } else { leaf.capacity() * 3 + 4 };
        let leaves = self.branches.iter().flatten().flat_map(|leaves| leaves.iter());
        size_of::<Self>() as u64 + leaves.map(|leaf| (size_of::<Leaf>() + held(leaf)) as u64).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_read_back() {
        let hash = |n: u32| u128::from(n) << 88 | 7;
        let mut set = FingerprintSet::default();
        set.insert(Fingerprint::of(hash(2)));
        set.insert(Fingerprint::of(hash(2)));
        let encoded = set.encode();
        let mut other = FingerprintSet::default();
        assert!(other.merge(&encoded));
        other.insert(Fingerprint::of(hash(3)));
        assert!(other.contains(hash(2)) && other.contains(hash(3)) && !other.contains(hash(1)));
        assert_eq!(other.len(), 2);
        for broken in [&b"nonsense"[..], &encoded[..encoded.len() - 1], &[&encoded[..], &[0]].concat()] {
            assert!(!FingerprintSet::default().merge(broken));
        }
    }

    #[test]
    fn a_fingerprint_takes_a_few_bytes_and_few_are_found_by_mistake() {
        let (mut set, mut random) = (FingerprintSet::default(), fastrand::Rng::with_seed(7));
        let stored: Vec<u128> = (0..200_000).map(|_| random.u128(..)).collect();
        for hash in &stored {
            set.insert(Fingerprint::of(*hash));
        }
        assert!(stored.iter().all(|hash| set.contains(*hash)));
        let wrong = (0..100_000).filter(|_| set.contains(random.u128(..))).count();
        assert!(wrong <= 2, "{wrong}");
        assert!(set.bytes() / 200_000 <= 16, "{}", set.bytes());
    }
}
