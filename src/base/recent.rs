//! Something that is remembered of keys for a short while, in bounded number.

use std::collections::HashMap;
use std::time::Duration;

use ahash::RandomState;
use parking_lot::Mutex;

use crate::rfc9111::timestamp::Timestamp;

/// The most keys remembered, over all shards.
const MAX_REMEMBERED: usize = 65_536;

const SHARDS: usize = 32;

/// Something about each of some keys, and until when it is remembered.
#[derive(Debug)]
pub(crate) struct Recent<T> {
    /// Each lock guards its shard's map, for one look-up or insertion.
    shards: Box<[Shard<T>]>,
    keep: i64,
}

type Shard<T> = Mutex<HashMap<u128, (Timestamp, T), RandomState>>;

impl<T> Recent<T> {
    /// Remembers each key for `keep`.
    pub(crate) fn new(keep: Duration) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            keep: i64::try_from(keep.as_millis()).unwrap_or(i64::MAX),
        }
    }

    /// Remembers `what` of `key`.
    pub(crate) fn remember(&self, key: u128, what: T, now: Timestamp) {
        self.change(key, now, |_| what);
    }

    /// Puts in place of what is remembered of `key` what `change` makes of it.
    pub(crate) fn change(&self, key: u128, now: Timestamp, change: impl FnOnce(Option<T>) -> T) {
        let mut shard = self.shard(key).lock();
        if shard.len() >= MAX_REMEMBERED / SHARDS && !shard.contains_key(&key) {
            shard.retain(|_, (until, _)| *until > now);
            if shard.len() >= MAX_REMEMBERED / SHARDS {
                // To forget costs one wait; to grow would cost memory without end.
                shard.clear();
            }
        }
        let before = shard.remove(&key).filter(|(until, _)| *until > now).map(|(_, what)| what);
        shard.insert(key, (now.plus_millis(self.keep), change(before)));
    }

    /// Forgets `key`.
    pub(crate) fn forget(&self, key: u128) {
        self.shard(key).lock().remove(&key);
    }

    /// The thing that is remembered of `key`.
    pub(crate) fn get(&self, key: u128, now: Timestamp) -> Option<T>
    where
        T: Clone,
    {
        self.shard(key).lock().get(&key).filter(|(until, _)| *until > now).map(|(_, what)| what.clone())
    }

    /// Looks at the thing that is remembered of `key`, under its lock.
    pub(crate) fn with<R>(&self, key: u128, now: Timestamp, look: impl FnOnce(Option<&T>) -> R) -> R {
        let shard = self.shard(key).lock();
        look(shard.get(&key).filter(|(until, _)| *until > now).map(|(_, what)| what))
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
