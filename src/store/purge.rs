//! Which stored responses a purge covers: positions on one line of time.
//!
//! A fetch notes the position at which it began; a purge takes the next one. A response is covered
//! by every purge of its URL with a later position, also one that comes in the middle of its
//! fetch. Positions come from the clock and never go back, so those in the durable tier keep
//! their order over restarts.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::clock::{Clock, Timestamp};

/// The most purges that are remembered. What began before the oldest forgotten one counts as
/// covered while it is under way; what was stored was removed when the purge came.
const MAX_REMEMBERED: usize = 65_536;

/// Positions within one millisecond.
const PER_MILLI: u64 = 1 << 10;

/// The purges of one process.
#[derive(Debug)]
pub struct Purges {
    clock: Clock,
    last: AtomicU64,
    recent: Mutex<Recent>,
    /// The position of the last purge of a URL.
    last_url: AtomicU64,
    /// The position of the last purge of a tag: what is newer is covered by none.
    last_tag: AtomicU64,
    tags: Mutex<Recent>,
}

/// Guarded by its lock: the latest position of each purged URL, or tag, and the order they came in.
#[derive(Debug, Default)]
struct Recent {
    purged: HashMap<u128, u64>,
    order: VecDeque<(u128, u64)>,
    floor: u64,
}

impl Recent {
    /// Notes a purge; the position of the last one before it.
    fn note(&mut self, hash: u128, position: u64) -> Option<u64> {
        let before = self.purged.insert(hash, position);
        self.order.push_back((hash, position));
        while self.order.len() > MAX_REMEMBERED {
            if let Some((hash, position)) = self.order.pop_front() {
                self.floor = position;
                if self.purged.get(&hash) == Some(&position) {
                    self.purged.remove(&hash);
                }
            }
        }
        before
    }

    fn covers(&self, hash: u128, position: u64) -> bool {
        self.purged.get(&hash).is_some_and(|&purge| position < purge)
    }
}

impl Purges {
    /// None so far.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            last: AtomicU64::new(0),
            recent: Mutex::default(),
            last_url: AtomicU64::new(0),
            last_tag: AtomicU64::new(0),
            tags: Mutex::default(),
        }
    }

    /// The position of a fetch that begins now.
    pub fn position(&self) -> u64 {
        let now = self.now();
        self.last.fetch_max(now, Ordering::SeqCst).max(now)
    }

    /// Purges the URL whose key hashes to `hash`. The position that the purge took, and the position
    /// of the last one before it, if that is remembered.
    pub fn purge(&self, hash: u128) -> (u64, Option<u64>) {
        let mut recent = self.recent.lock();
        let position = self.next();
        self.last_url.store(position, Ordering::Release);
        (position, recent.note(hash, position))
    }

    /// Whether any URL was purged since `position`.
    pub fn is_any_since(&self, position: u64) -> bool {
        position < self.last_url.load(Ordering::Acquire)
    }

    /// Purges all that has the tag, in every key; the position that the purge took.
    pub fn purge_tag(&self, tag: &str) -> u64 {
        let mut tags = self.tags.lock();
        let position = self.next();
        tags.note(hash_of(tag), position);
        self.last_tag.store(position, Ordering::Release);
        position
    }

    /// Whether a purge of one of `tags` covers what was fetched at `position`. One that is no longer
    /// remembered counts as covering.
    pub fn covers_tags(&self, tags: &[String], position: u64) -> bool {
        if tags.is_empty() || position >= self.last_tag.load(Ordering::Acquire) {
            return false;
        }
        let purged = self.tags.lock();
        position < purged.floor || tags.iter().any(|tag| purged.covers(hash_of(tag), position))
    }

    /// Whether a purge covers a fetch of `hash` that began at `position`.
    pub fn covers_fetch(&self, hash: u128, position: u64) -> bool {
        let recent = self.recent.lock();
        position < recent.floor || recent.covers(hash, position)
    }

    /// Whether a purge that is still remembered covers an object of `hash` stored at `position`.
    pub fn covers_stored(&self, hash: u128, position: u64) -> bool {
        self.recent.lock().covers(hash, position)
    }

    /// A position after all that were given out.
    fn next(&self) -> u64 {
        let now = self.now();
        // `fetch_update` retries on a race; the closure is a pure function of the last position.
        self.last
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| Some(now.max(last + 1)))
            .map_or(now, |last| now.max(last + 1))
    }

    /// The time that positions come from.
    pub fn time(&self) -> Timestamp {
        self.clock.now()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.clock.now().as_millis()).unwrap_or(0).saturating_mul(PER_MILLI)
    }
}

fn hash_of(tag: &str) -> u128 {
    xxhash_rust::xxh3::xxh3_128(tag.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_purge_covers_what_began_before_it_and_nothing_after() {
        let clock = Clock::manual(Timestamp::from_secs(1000));
        let purges = Purges::new(clock.clone());
        let before = purges.position();
        assert!(!purges.covers_fetch(1, before));
        purges.purge(1);
        let after = purges.position();
        assert!(purges.covers_fetch(1, before));
        assert!(!purges.covers_fetch(2, before));
        assert!(!purges.covers_fetch(1, after), "also within one tick of the clock");
        clock.advance(Duration::from_secs(1));
        assert!(!purges.covers_stored(1, purges.position()));
    }

    #[test]
    fn forgetting_is_bounded_and_safe() {
        let purges = Purges::new(Clock::manual(Timestamp::from_secs(1000)));
        let before = purges.position();
        purges.purge(0);
        for hash in 1..=MAX_REMEMBERED as u128 {
            purges.purge(hash);
        }
        assert!(purges.recent.lock().purged.len() <= MAX_REMEMBERED);
        assert!(purges.covers_fetch(0, before), "forgotten, and so taken as covered");
    }

    #[test]
    fn a_tag_covers_what_has_it_and_is_older() {
        let purges = Purges::new(Clock::manual(Timestamp::from_secs(1000)));
        let before = purges.position();
        let [a, b] = ["a", "b"].map(|tag| vec![tag.to_owned()]);
        assert!(!purges.covers_tags(&a, before));
        purges.purge_tag("a");
        let after = purges.position();
        assert!(purges.covers_tags(&a, before));
        assert!(!purges.covers_tags(&b, before), "exactly that tag");
        assert!(!purges.covers_tags(&[], before));
        assert!(!purges.covers_tags(&a, after));
    }
}
