//! What is remembered of keys for a short while, in bounded number: that their responses turned out
//! not to be shareable ([`Passes`]), so that clients that ask for them do not wait for each other.

use std::collections::HashMap;
use std::time::Duration;

use ahash::RandomState;
use parking_lot::Mutex;

use crate::clock::Timestamp;

/// The most keys remembered, over all shards.
const MAX_REMEMBERED: usize = 65_536;

const SHARDS: usize = 32;

/// Why nobody waits for the response to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// It may not be stored.
    NotStorable,
    /// It is stored, and each request needs a validation of its own.
    EachValidates,
}

/// The keys that nobody waits for.
pub type Passes = Recent<Pass>;

/// Something about each of some keys, and until when it is remembered.
#[derive(Debug)]
pub struct Recent<T> {
    /// Each lock guards its shard's map, for one look-up or insertion.
    shards: Box<[Shard<T>]>,
    keep: i64,
}

type Shard<T> = Mutex<HashMap<u128, (Timestamp, T), RandomState>>;

impl<T: Copy> Recent<T> {
    /// Remembers each key for `keep`.
    pub fn new(keep: Duration) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            keep: i64::try_from(keep.as_millis()).unwrap_or(i64::MAX),
        }
    }

    /// Remembers `what` of `key`.
    pub fn remember(&self, key: u128, what: T, now: Timestamp) {
        let mut shard = self.shard(key).lock();
        if shard.len() >= MAX_REMEMBERED / SHARDS && !shard.contains_key(&key) {
            shard.retain(|_, (until, _)| *until > now);
            if shard.len() >= MAX_REMEMBERED / SHARDS {
                // To forget costs one wait; to grow would cost memory without end.
                shard.clear();
            }
        }
        shard.insert(key, (now.plus_millis(self.keep), what));
    }

    /// Forgets `key`.
    pub fn forget(&self, key: u128) {
        self.shard(key).lock().remove(&key);
    }

    /// What is remembered of `key`.
    pub fn get(&self, key: u128, now: Timestamp) -> Option<T> {
        self.shard(key).lock().get(&key).filter(|(until, _)| *until > now).map(|(_, what)| *what)
    }

    fn shard(&self, key: u128) -> &Shard<T> {
        &self.shards[usize::try_from(key % SHARDS as u128).unwrap_or(0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_remembered_for_a_while_and_in_bounded_number() {
        let passes = Passes::new(Duration::from_secs(10));
        let now = Timestamp::from_secs(1000);
        passes.remember(1, Pass::NotStorable, now);
        assert!(passes.get(1, now.plus_millis(9_999)).is_some());
        assert!(passes.get(1, now.plus_millis(10_000)).is_none());
        passes.forget(1);
        assert!(passes.get(1, now).is_none());
        for key in 0..3 * MAX_REMEMBERED as u128 {
            passes.remember(key, Pass::NotStorable, now);
        }
        let total: usize = passes.shards.iter().map(|shard| shard.lock().len()).sum();
        assert!(total <= MAX_REMEMBERED, "{total}");
    }
}
