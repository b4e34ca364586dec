//! What the durable tier holds, in a few bytes an object, so that a miss pays no request to find out
//! that there is nothing.
//!
//! It keeps 32 bits of the hash of each key. It is right when it says that there is nothing, but for what
//! another process has just written and not announced yet, and it is wrong once in thousands when it says
//! that there may be something: the first costs a request to the origin, the second one to the bucket.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::RwLock;
use roaring::RoaringBitmap;

/// The keys that the durable tier holds something for.
#[derive(Debug, Default)]
pub struct Index {
    /// Guarded by its lock: read on a miss, written when something was stored or found missing.
    prints: RwLock<RoaringBitmap>,
    is_loaded: AtomicBool,
    /// How many objects were seen by the listing that loads it.
    listed: AtomicU64,
}

/// What is kept of a key's hash. The bits that names of objects begin with, so that a listing in their
/// order is one in order of these.
pub fn print_of(hash: u128) -> u32 {
    u32::try_from(hash >> 96).unwrap_or(u32::MAX)
}

impl Index {
    /// Whether there may be something for the key with this hash. Everything may be until the index is
    /// loaded.
    pub fn may_hold(&self, hash: u128) -> bool {
        !self.is_loaded() || self.prints.read().contains(print_of(hash))
    }

    /// Something is there for the key with this hash.
    pub fn insert(&self, hash: u128) {
        self.prints.write().insert(print_of(hash));
    }

    /// The same for many.
    pub fn insert_all(&self, prints: impl IntoIterator<Item = u32>) {
        self.prints.write().extend(prints);
    }

    /// Nothing is there for the key with this hash. Another key with the same bits, one in thousands of
    /// millions, is forgotten with it.
    pub fn remove(&self, hash: u128) {
        self.prints.write().remove(print_of(hash));
    }

    /// Takes over another's keys, as [`Index::encode`] wrote them. `false` when they can't be read.
    pub fn take_over(&self, encoded: &[u8]) -> bool {
        let Ok(other) = RoaringBitmap::deserialize_from(encoded) else { return false };
        *self.prints.write() |= other;
        true
    }

    /// Its keys, for a snapshot.
    pub fn encode(&self) -> Vec<u8> {
        let prints = self.prints.read().clone();
        let mut encoded = Vec::with_capacity(prints.serialized_size());
        // Writing to memory does not fail.
        let _ = prints.serialize_into(&mut encoded);
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
        self.prints.read().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.prints.read().is_empty()
    }

    /// The bytes that it takes in memory.
    pub fn bytes(&self) -> u64 {
        let statistics = self.prints.read().statistics();
        let containers = u64::from(statistics.n_containers) * CONTAINER;
        containers + statistics.n_bytes_array_containers + statistics.n_bytes_bitset_containers
    }
}

/// What one of the bitmap's containers takes besides its values.
const CONTAINER: u64 = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_no_only_when_it_knows() {
        let index = Index::default();
        let hash = |n: u32| u128::from(n) << 96 | 7;
        assert!(index.may_hold(hash(1)), "not loaded yet");
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
        assert!(!other.may_hold(hash(2)));
        assert!(!other.take_over(b"nonsense"));
        assert_eq!(other.len(), 1);
    }
}
