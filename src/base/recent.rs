//! A map that keeps a value for each key for a short time, and has a bounded size.

use std::collections::HashMap;
use std::time::Duration;

use ahash::RandomState;
use parking_lot::Mutex;

use crate::rfc9111::timestamp::Timestamp;

/// The most keys, over all shards.
const MAX_REMEMBERED: usize = 65_536;

/// Number of shards, each with a lock of its own.
const SHARDS: usize = 32;

/// A map of keys to values that expire.
#[derive(Debug)]
pub(crate) struct Recent<T> {
    /// The shards. Each lock is held for one look-up or insertion.
    shards: Box<[Shard<T>]>,
    /// Milliseconds from an insertion to its expiry.
    keep: i64,
}

/// The values of a shard, each with the time at which it expires.
type Shard<T> = Mutex<HashMap<u128, (Timestamp, T), RandomState>>;

impl<T> Recent<T> {
    /// Makes a map that keeps each value for `keep`.
    pub(crate) fn new(keep: Duration) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            keep: i64::try_from(keep.as_millis()).unwrap_or(i64::MAX),
        }
    }

    /// Sets the value of `key` to `what`.
    pub(crate) fn remember(&self, key: u128, what: T, now: Timestamp) {
        self.change(key, now, |_| what);
    }

    /// Replaces the value of `key` by the one that `change` makes of it.
    pub(crate) fn change(&self, key: u128, now: Timestamp, change: impl FnOnce(Option<T>) -> T) {
        let mut shard = self.shard(key).lock();
        if shard.len() >= MAX_REMEMBERED / SHARDS && !shard.contains_key(&key) {
            shard.retain(|_, (until, _)| *until > now);
            if shard.len() >= MAX_REMEMBERED / SHARDS {
                // Losing values costs their users one wait. Keeping them would need unbounded memory.
                shard.clear();
            }
        }
        let before = shard.remove(&key).filter(|(until, _)| *until > now).map(|(_, what)| what);
        shard.insert(key, (now.plus_millis(self.keep), change(before)));
    }

    /// Removes the value of `key`.
    pub(crate) fn forget(&self, key: u128) {
        self.shard(key).lock().remove(&key);
    }

    /// Returns a copy of the value of `key`.
    pub(crate) fn get(&self, key: u128, now: Timestamp) -> Option<T>
    where
        T: Clone,
    {
        self.shard(key).lock().get(&key).filter(|(until, _)| *until > now).map(|(_, what)| what.clone())
    }

    /// Calls `look` with the value of `key`, under the shard's lock.
    pub(crate) fn with<R>(&self, key: u128, now: Timestamp, look: impl FnOnce(Option<&T>) -> R) -> R {
        let shard = self.shard(key).lock();
        look(shard.get(&key).filter(|(until, _)| *until > now).map(|(_, what)| what))
    }

    /// Returns the shard of `key`.
    fn shard(&self, key: u128) -> &Shard<T> {
        &self.shards[usize::try_from(key % SHARDS as u128).unwrap_or(0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_remembered_for_a_while_and_in_bounded_number() {
        let recent = Recent::new(Duration::from_secs(10));
        let now = Timestamp::from_secs(1000);
        recent.remember(1, 'a', now);
        assert_eq!(recent.get(1, now.plus_millis(9_999)), Some('a'));
        assert_eq!(recent.get(1, now.plus_millis(10_000)), None);
        recent.change(1, now, |before| if before == Some('a') { 'b' } else { 'c' });
        assert_eq!(recent.get(1, now), Some('b'));
        recent.forget(1);
        assert_eq!(recent.get(1, now), None);
        for key in 0..3 * MAX_REMEMBERED as u128 {
            recent.remember(key, 'd', now);
        }
        let total: usize = recent.shards.iter().map(|shard| shard.lock().len()).sum();
        assert!(total <= MAX_REMEMBERED, "{total}");
    }
}
