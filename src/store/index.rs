//! What the durable tier holds, in a few bytes an object, so that a miss pays no request to find out
//! that there is nothing.
//!
//! It keeps 40 bits of the hash of each key. It is right when it says that there is nothing, but for
//! what another process has just written and not announced yet; of a million absent keys it takes one for
//! present, where a million are. The first costs a request to the origin, the second one to the bucket.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::RwLock;

/// The values of all keys with the same first two bytes, sorted.
type Drawer = Vec<[u8; 3]>;

/// The drawers of the same first byte, once there is anything in one.
type Chest = Option<Box<[Drawer; 256]>>;

/// The first 40 bits of a key's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Print(pub [u8; 5]);

impl Print {
    /// That of a hash.
    pub fn of(hash: u128) -> Self {
        let mut first = [0; 5];
        first.copy_from_slice(&hash.to_be_bytes()[..5]);
        Self(first)
    }

    /// The chest, the drawer in it, and the value in that.
    fn split(self) -> (usize, usize, [u8; 3]) {
        let [chest, drawer, value @ ..] = self.0;
        (usize::from(chest), usize::from(drawer), value)
    }
}

/// A set of prints, in few bytes.
#[derive(Debug)]
pub(super) struct Prints {
    chests: [Chest; 256],
    len: u64,
}

impl Default for Prints {
    fn default() -> Self {
        Self { chests: [const { None }; 256], len: 0 }
    }
}

impl Prints {
    /// Whether it has the print of a hash.
    pub(super) fn contains(&self, hash: u128) -> bool {
        let (chest, drawer, value) = Print::of(hash).split();
        self.chests[chest].as_deref().is_some_and(|drawers| drawers[drawer].binary_search(&value).is_ok())
    }

    /// Puts one in.
    pub(super) fn insert(&mut self, print: Print) {
        let (chest, drawer, value) = print.split();
        let drawers = self.chests[chest].get_or_insert_with(|| Box::new([const { Drawer::new() }; 256]));
        let drawer = &mut drawers[drawer];
        let Err(at) = drawer.binary_search(&value) else { return };
        if drawer.len() == drawer.capacity() {
            // A quarter more, not twice as much: a million objects are fifteen to a drawer.
            drawer.reserve_exact(drawer.len() / 4 + 4);
        }
        drawer.insert(at, value);
        self.len += 1;
    }

    /// Takes the print of a hash out.
    pub(super) fn remove(&mut self, hash: u128) {
        let (chest, drawer, value) = Print::of(hash).split();
        let Some(drawers) = &mut self.chests[chest] else { return };
        if let Ok(at) = drawers[drawer].binary_search(&value) {
            drawers[drawer].remove(at);
            self.len -= 1;
        }
    }

    /// The number of prints.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Takes over another's, as [`Prints::encode`] wrote them. `false` when they can't be read: then some may
    /// have been taken over.
    pub(super) fn take_over(&mut self, mut encoded: &[u8]) -> bool {
        while let Some(([a, b, count @ ..], rest)) = encoded.split_first_chunk::<6>() {
            let len = usize::try_from(u32::from_le_bytes(*count)).ok().and_then(|count| count.checked_mul(3));
            let Some((values, rest)) = len.and_then(|len| rest.split_at_checked(len)) else { return false };
            encoded = rest;
            for value in values.chunks_exact(3) {
                self.insert(Print([*a, *b, value[0], value[1], value[2]]));
            }
        }
        encoded.is_empty()
    }

    /// For a snapshot: of each first two bytes that there are those, the number of prints, a little-endian
    /// u32, and the three other bytes of each.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut encoded = Vec::new();
        for (a, drawers) in (0..=u8::MAX).zip(&self.chests) {
            let drawers = drawers.iter().flat_map(|drawers| drawers.iter());
            for (b, drawer) in (0..=u8::MAX).zip(drawers).filter(|(_, drawer)| !drawer.is_empty()) {
                encoded.extend_from_slice(&[a, b]);
                encoded.extend_from_slice(&u32::try_from(drawer.len()).unwrap_or(u32::MAX).to_le_bytes());
                encoded.extend_from_slice(drawer.as_flattened());
            }
        }
        encoded
    }

    /// The bytes that it takes in memory.
    pub(super) fn bytes(&self) -> u64 {
        // An allocation is rounded up to eight bytes, on the average by four.
        let held = |drawer: &Drawer| if drawer.capacity() == 0 { 0 } else { drawer.capacity() * 3 + 4 };
        let drawers = self.chests.iter().flatten().flat_map(|drawers| drawers.iter());
        size_of::<Self>() as u64 + drawers.map(|drawer| (size_of::<Drawer>() + held(drawer)) as u64).sum::<u64>()
    }
}

/// The keys that the durable tier holds something for.
#[derive(Debug, Default)]
pub struct Index {
    /// Guarded by its lock: read on a miss, written when something was stored or found missing.
    prints: RwLock<Prints>,
    is_loaded: AtomicBool,
    /// How many objects were seen by the listing that loads it.
    listed: AtomicU64,
}

impl Index {
    /// Whether there may be something for the key with this hash. Everything may be until the index is
    /// loaded.
    pub fn may_hold(&self, hash: u128) -> bool {
        !self.is_loaded() || self.prints.read().contains(hash)
    }

    /// Something is there for the key with this hash.
    pub fn insert(&self, hash: u128) {
        self.insert_all([Print::of(hash)]);
    }

    /// The same for many.
    pub fn insert_all(&self, prints: impl IntoIterator<Item = Print>) {
        let mut all = self.prints.write();
        prints.into_iter().for_each(|print| all.insert(print));
    }

    /// Nothing is there for the key with this hash. Another key with the same bits is forgotten with it.
    pub fn remove(&self, hash: u128) {
        self.prints.write().remove(hash);
    }

    /// Takes over another's keys (see [`Prints::take_over`]).
    pub fn take_over(&self, encoded: &[u8]) -> bool {
        self.prints.write().take_over(encoded)
    }

    /// Its keys, for a snapshot (see [`Prints::encode`]).
    pub fn encode(&self) -> Vec<u8> {
        self.prints.read().encode()
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
        self.prints.read().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes that it takes in memory.
    pub fn bytes(&self) -> u64 {
        self.prints.read().bytes()
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
        for broken in [&b"nonsense"[..], &encoded[..encoded.len() - 1], &[&encoded[..], &[0]].concat()] {
            assert!(!Index::default().take_over(broken));
        }
    }

    #[test]
    fn it_takes_a_few_bytes_a_key_and_is_seldom_wrong() {
        let (index, mut random) = (Index::default(), fastrand::Rng::with_seed(7));
        let stored: Vec<u128> = (0..200_000).map(|_| random.u128(..)).collect();
        for hash in &stored {
            index.insert(*hash);
        }
        index.loaded();
        assert!(stored.iter().all(|hash| index.may_hold(*hash)));
        let wrong = (0..100_000).filter(|_| index.may_hold(random.u128(..))).count();
        assert!(wrong <= 2, "{wrong}");
        assert!(index.bytes() / 200_000 <= 16, "{}", index.bytes());
    }
}
