//! Keys whose responses turned out not to be shareable, remembered for a short while: clients that
//! ask for them do not wait for each other.

use std::collections::HashMap;
use std::time::Duration;

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

/// The keys, and until when each is remembered.
#[derive(Debug)]
pub struct Passes {
    /// Each lock guards its shard's map, for one look-up or insertion.
    shards: Box<[Shard]>,
    keep: i64,
}

type Shard = Mutex<HashMap<u128, (Timestamp, Pass)>>;

impl Passes {
    /// Remembers each key for `keep`.
    pub fn new(keep: Duration) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            keep: i64::try_from(keep.as_millis()).unwrap_or(i64::MAX),
        }
    }

    /// Remembers that nobody should wait for the response to `key`, and why.
    pub fn remember(&self, key: u128, pass: Pass, now: Timestamp) {
        let mut shard = self.shard(key).lock();
        if shard.len() >= MAX_REMEMBERED / SHARDS && !shard.contains_key(&key) {
            shard.retain(|_, (until, _)| *until > now);
            if shard.len() >= MAX_REMEMBERED / SHARDS {
                // To forget costs one wait; to grow would cost memory without end.
                shard.clear();
            }
        }
        shard.insert(key, (now.plus_millis(self.keep), pass));
    }

    /// Forgets `key`: its response can be shared now.
    pub fn forget(&self, key: u128) {
        self.shard(key).lock().remove(&key);
    }

    /// Why nobody should wait for the response to `key`, if it is remembered.
    pub fn get(&self, key: u128, now: Timestamp) -> Option<Pass> {
        self.shard(key).lock().get(&key).filter(|(until, _)| *until > now).map(|(_, pass)| *pass)
    }

    fn shard(&self, key: u128) -> &Shard {
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
