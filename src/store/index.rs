//! What the durable tier holds, in a few bytes an object, so that a miss pays no request to find out
//! that there is nothing.
//!
//! It keeps [`BITS`] bits of the hash of each key. It is right when it says that there is nothing, but for
//! what another process has just written and not announced yet; of a million absent keys it takes one for
//! present, where a million are. The first costs a request to the origin, the second one to the bucket.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::RwLock;

/// What is kept of a key's hash: its first bits, which names of objects begin with as well.
pub const BITS: u32 = 40;

/// The bits that say in which drawer the rest is.
const DRAWER_BITS: u32 = 16;

/// A drawer's values, sorted.
type Drawer = Vec<[u8; 3]>;

/// The keys that the durable tier holds something for.
#[derive(Debug)]
pub struct Index {
    /// Guarded by its lock: read on a miss, written when something was stored or found missing.
    drawers: RwLock<Box<[Drawer]>>,
    len: AtomicU64,
    is_loaded: AtomicBool,
    /// How many objects were seen by the listing that loads it.
    listed: AtomicU64,
}

/// The first [`BITS`] bits of a key's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Print(pub [u8; 5]);

impl Print {
    /// That of a hash.
    pub fn of(hash: u128) -> Self {
        let [a, b, c, d, e, ..] = hash.to_be_bytes();
        Self([a, b, c, d, e])
    }

    fn split(self) -> (usize, [u8; 3]) {
        let [a, b, c, d, e] = self.0;
        (usize::from(u16::from_be_bytes([a, b])), [c, d, e])
    }
}

impl Default for Index {
    fn default() -> Self {
        Self {
            drawers: RwLock::new(vec![Drawer::new(); 1 << DRAWER_BITS].into()),
            len: AtomicU64::new(0),
            is_loaded: AtomicBool::new(false),
            listed: AtomicU64::new(0),
        }
    }
}

impl Index {
    /// Whether there may be something for the key with this hash. Everything may be until the index is
    /// loaded.
    pub fn may_hold(&self, hash: u128) -> bool {
        let (drawer, value) = Print::of(hash).split();
        !self.is_loaded() || self.drawers.read()[drawer].binary_search(&value).is_ok()
    }

    /// Something is there for the key with this hash.
    pub fn insert(&self, hash: u128) {
        self.insert_all([Print::of(hash)]);
    }

    /// The same for many.
    pub fn insert_all(&self, prints: impl IntoIterator<Item = Print>) {
        let mut drawers = self.drawers.write();
        for print in prints {
            let (drawer, value) = print.split();
            let drawer = &mut drawers[drawer];
            let Err(at) = drawer.binary_search(&value) else { continue };
            if drawer.len() == drawer.capacity() {
                // A quarter more, not twice as much: a million objects are fifteen to a drawer.
                drawer.reserve_exact(drawer.len() / 4 + 4);
            }
            drawer.insert(at, value);
            self.len.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Nothing is there for the key with this hash. Another key with the same bits is forgotten with it.
    pub fn remove(&self, hash: u128) {
        let (drawer, value) = Print::of(hash).split();
        let mut drawers = self.drawers.write();
        if let Ok(at) = drawers[drawer].binary_search(&value) {
            drawers[drawer].remove(at);
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Takes over another's keys, as [`Index::encode`] wrote them. `false` when they can't be read: then some
    /// may have been taken over.
    pub fn take_over(&self, mut encoded: &[u8]) -> bool {
        for drawer in 0..=u16::MAX {
            let Some((count, rest)) = encoded.split_first_chunk::<4>() else { return false };
            let len = usize::try_from(u32::from_le_bytes(*count)).ok().and_then(|count| count.checked_mul(3));
            let Some((values, rest)) = len.and_then(|len| rest.split_at_checked(len)) else { return false };
            encoded = rest;
            let [a, b] = drawer.to_be_bytes();
            self.insert_all(values.chunks_exact(3).map(|value| Print([a, b, value[0], value[1], value[2]])));
        }
        encoded.is_empty()
    }

    /// Its keys, for a snapshot: of each of the 65,536 drawers the number of values, a little-endian u32, and
    /// the values, three bytes each.
    pub fn encode(&self) -> Vec<u8> {
        let drawers = self.drawers.read();
        let values: usize = drawers.iter().map(Vec::len).sum();
        let mut encoded = Vec::with_capacity(drawers.len() * 4 + values * 3);
        for drawer in &**drawers {
            encoded.extend_from_slice(&u32::try_from(drawer.len()).unwrap_or(u32::MAX).to_le_bytes());
            encoded.extend_from_slice(drawer.as_flattened());
        }
        encoded
    }

    /// Whether it knows of everything.
    pub fn is_loaded(&self) -> bool {
        self.is_loaded.load(Ordering::Acquire)
    }

    /// From now on it does.
    pub fn loaded(&self) {
        self.is_loaded.store(true, Ordering::Release);
    }

    /// Counts objects that a listing saw.
    pub fn note_listed(&self, objects: u64) {
        self.listed.fetch_add(objects, Ordering::Relaxed);
    }

    /// How many those are.
    pub fn listed(&self) -> u64 {
        self.listed.load(Ordering::Relaxed)
    }

    /// The number of keys.
    pub fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes that it takes in memory.
    pub fn bytes(&self) -> u64 {
        let drawers = self.drawers.read();
        // An allocation is rounded up to eight bytes, on the average by four.
        let held = |drawer: &Drawer| if drawer.capacity() == 0 { 0 } else { drawer.capacity() * 3 + 4 };
        drawers.iter().map(|drawer| (size_of::<Drawer>() + held(drawer)) as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_no_only_when_it_knows() {
        let index = Index::default();
        let hash = |n: u32| u128::from(n) << 88 | 7;
        assert!(index.may_hold(hash(1)), "not loaded yet");
        index.insert(hash(2));
        index.insert(hash(2));
        index.loaded();
        assert!(!index.may_hold(hash(1)));
        assert!(index.may_hold(hash(2)));
        let other = Index::default();
        assert!(other.take_over(&index.encode()));
        other.insert(hash(3));
        other.loaded();
        assert!(other.may_hold(hash(2)) && other.may_hold(hash(3)));
        other.remove(hash(2));
        other.remove(hash(2));
        assert!(!other.may_hold(hash(2)));
        assert_eq!(other.len(), 1);
        let encoded = other.encode();
        for broken in [&b"nonsense"[..], &encoded[1..], &encoded[..encoded.len() - 1], &[&encoded[..], &[0]].concat()] {
            assert!(!Index::default().take_over(broken));
        }
    }

    #[test]
    fn it_takes_a_few_bytes_a_key_and_is_seldom_wrong() {
        let (index, mut random) = (Index::default(), fastrand::Rng::with_seed(7));
        let stored: Vec<u128> = (0..200_000).map(|_| random.u128(..)).collect();
        stored.iter().for_each(|hash| index.insert(*hash));
        index.loaded();
        assert!(stored.iter().all(|hash| index.may_hold(*hash)));
        let wrong = (0..100_000).filter(|_| index.may_hold(random.u128(..))).count();
        assert!(wrong <= 2, "{wrong}");
        let empty = Index::default().bytes();
        assert!((index.bytes() - empty) / 200_000 <= 10, "{}", index.bytes());
    }
}
