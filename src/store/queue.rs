//! The durable tier's queue: operations that wait to be carried out, and what a look-up that comes
//! meanwhile is told.
//!
//! A response that waits to be written is found here as it will be found there. A key that waits to
//! be deleted is not there.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::header::HeaderMap;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::watch;

use crate::entry::{BodyObject, StoredApart, StoredHead, StoredResponse, Variant, VaryRecord};
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::timestamp::Timestamp;

/// The most variants of a key that are found while they wait.
const MAX_FOUND: usize = 64;

/// The most keys whose deletion is tried until it succeeds.
const MAX_RETRIED: usize = 65_536;

/// One operation.
#[derive(Debug)]
pub(super) enum Op {
    /// Write a response, and the record that leads to it where it varies.
    Put {
        /// The response.
        stored: Put,
        /// The record.
        record: Option<Arc<VaryRecord>>,
    },
    /// Delete what a key leads to.
    Delete {
        /// The key.
        key: CacheKey,
        /// The one variant that is to go, by its name and by what selects it; `None`: everything.
        variant: Option<(u128, Variant)>,
        /// The object of a body that may go with it: from then on it counts as not written.
        body: Option<Arc<BodyObject>>,
    },
}

/// A response to be written.
#[derive(Clone, Debug)]
pub(super) enum Put {
    /// With its body.
    Whole(Arc<StoredResponse>),
    /// Its body is written already.
    Apart(Arc<StoredApart>),
}

impl Put {
    /// Its head.
    pub(super) fn head(&self) -> &StoredHead {
        match self {
            Self::Whole(stored) => &stored.head,
            Self::Apart(stored) => &stored.head,
        }
    }

    /// The bytes that it holds in memory.
    pub(super) fn weight(&self) -> u64 {
        match self {
            Self::Whole(stored) => stored.weight() as u64,
            Self::Apart(stored) => (stored.head.weight() + stored.checksums.len() * 8) as u64,
        }
    }
}

impl Op {
    /// The key it is about.
    pub(super) fn key(&self) -> &CacheKey {
        match self {
            Self::Put { stored, .. } => &stored.head().key,
            Self::Delete { key, .. } => key,
        }
    }

    /// Returns whether it writes a response.
    pub(super) fn is_put(&self) -> bool {
        matches!(self, Self::Put { .. })
    }

    /// The bytes it holds.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Put { stored, .. } => stored.weight(),
            Self::Delete { key, .. } => key.as_bytes().len() as u64,
        }
    }
}

/// For so many keys there is always room.
const KEPT: usize = 1024;

/// What is outstanding for one key.
#[derive(Debug, Default)]
struct Pending {
    operations: usize,
    /// What the key will have, newest first: one response for each variant.
    puts: SmallVec<[(Put, Option<Arc<VaryRecord>>); 1]>,
}

/// What the queue has for a request.
#[derive(Debug)]
pub(super) enum Waiting {
    /// Nothing is outstanding for the key: the tier itself is to be asked.
    Nothing,
    /// The key is about to be gone, or to have something that does not answer the request: the record
    /// that leads to it, and its purge position.
    Other(Option<(Arc<VaryRecord>, u64)>),
    /// A response that waits to be written, and the record that will lead to it.
    Found(Put, Option<Arc<VaryRecord>>),
}

/// How full the queue is, and what is in it by key. The operations themselves go through channels.
#[derive(Debug)]
pub(super) struct Queue {
    objects: AtomicU64,
    bytes: AtomicU64,
    /// Those of the operations that write a response.
    puts: AtomicU64,
    /// What is outstanding and about no response.
    others: AtomicU64,
    /// Guarded by its lock: what is outstanding, by the key's hash.
    pending: Mutex<HashMap<u128, Pending>>,
    /// Guarded by its lock: the keys whose deletion failed, and is tried until it succeeds.
    retried: Mutex<HashSet<u128>>,
    /// The number of outstanding operations, for whoever waits for none.
    idle: watch::Sender<u64>,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            objects: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            puts: AtomicU64::new(0),
            others: AtomicU64::new(0),
            pending: Mutex::default(),
            retried: Mutex::default(),
            idle: watch::Sender::new(0),
        }
    }
}

impl Queue {
    /// Operations and bytes in the queue.
    pub(super) fn depth(&self) -> (u64, u64) {
        (self.objects.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Returns how many responses wait to be written.
    pub(super) fn puts(&self) -> u64 {
        self.puts.load(Ordering::Relaxed)
    }

    /// What is outstanding for a key, as `request` would find it.
    pub(super) fn look(&self, key: &CacheKey, request: &HeaderMap) -> Waiting {
        let (puts, record) = {
            let pending = self.pending.lock();
            let Some(pending) = pending.get(&key.hash()) else { return Waiting::Nothing };
            (pending.puts.clone(), record_of(pending, key))
        };
        // Which of them answers is looked into without the lock.
        let found = puts.into_iter().find(|(put, _)| put.head().key == *key && put.head().is_selected_by(request));
        match found {
            Some((stored, record)) => Waiting::Found(stored, record),
            None => Waiting::Other(record),
        }
    }

    /// The newest record that waits to be written for `key`, and the purge position of the response
    /// that it goes with.
    pub(super) fn record(&self, key: &CacheKey) -> Option<(Arc<VaryRecord>, u64)> {
        record_of(self.pending.lock().get(&key.hash())?, key)
    }

    /// Whether a response waits to be written that `stored` would not take the place of.
    pub(super) fn outranks(&self, stored: &StoredHead, now: Timestamp) -> bool {
        let pending = self.pending.lock();
        pending.get(&stored.key.hash()).is_some_and(|pending| {
            pending.puts.iter().map(|(other, _)| other.head()).any(|other| {
                other.key == stored.key
                    && (other.variant() == stored.variant() || stored.variant().is_none())
                    && other.outranks(stored, now)
            })
        })
    }

    /// Whether anything is outstanding for the key with this hash.
    pub(super) fn is_pending(&self, hash: u128) -> bool {
        self.pending.lock().contains_key(&hash)
    }

    /// Counts an operation in.
    pub(super) fn enter(&self, op: &Op) {
        {
            let mut pending = self.pending.lock();
            let pending = pending.entry(op.key().hash()).or_default();
            pending.operations += 1;
            match op {
                Op::Delete { variant: None, .. } => pending.puts.clear(),
                Op::Delete { variant: Some((_, variant)), .. } => {
                    pending.puts.retain(|(other, _)| other.head().variant() != Some(variant));
                }
                Op::Put { stored, record } => {
                    let variant = stored.head().variant();
                    pending.puts.retain(|(other, _)| {
                        let other = other.head().variant();
                        variant.is_some() && other.is_some() && other != variant
                    });
                    pending.puts.insert(0, (stored.clone(), record.clone()));
                    pending.puts.truncate(MAX_FOUND);
                }
            }
        }
        self.bytes.fetch_add(op.bytes(), Ordering::Relaxed);
        self.puts.fetch_add(u64::from(op.is_put()), Ordering::Relaxed);
        self.objects.fetch_add(1, Ordering::Relaxed);
        self.tell();
    }

    /// Counts something in that is about no response.
    pub(super) fn enter_other(&self) {
        self.others.fetch_add(1, Ordering::Relaxed);
        self.tell();
    }

    /// It is done.
    pub(super) fn leave_other(&self) {
        self.others.fetch_sub(1, Ordering::Relaxed);
        self.tell();
    }

    /// How much is outstanding that is about no response.
    pub(super) fn others(&self) -> u64 {
        self.others.load(Ordering::Relaxed)
    }

    fn tell(&self) {
        self.idle.send_replace(self.objects.load(Ordering::Relaxed) + self.others.load(Ordering::Relaxed));
    }

    /// One operation on the key with this hash is no longer outstanding.
    pub(super) fn settle(&self, hash: u128) {
        let mut all = self.pending.lock();
        if let Some(pending) = all.get_mut(&hash) {
            pending.operations -= 1;
            if pending.operations == 0 {
                all.remove(&hash);
            }
            // What a burst needed room for is given back.
            if all.capacity() > 2 * KEPT && all.len() < all.capacity() / 8 {
                let room = KEPT.max(all.len() * 2);
                all.shrink_to(room);
            }
        }
    }

    /// One operation of `bytes` has left the queue, which wrote a response or not.
    pub(super) fn leave(&self, bytes: u64, is_put: bool) {
        self.puts.fetch_sub(u64::from(is_put), Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.objects.fetch_sub(1, Ordering::Relaxed);
        self.tell();
    }

    /// Notes a key whose deletion is tried again until it succeeds; `false` when it is already.
    pub(super) fn begin_retrying(&self, hash: u128) -> bool {
        let mut retried = self.retried.lock();
        // What is left out counts as purged as long as its purge is remembered.
        retried.len() < MAX_RETRIED && retried.insert(hash)
    }

    /// It has succeeded.
    pub(super) fn end_retrying(&self, hash: u128) {
        self.retried.lock().remove(&hash);
    }

    /// The number of keys whose deletion is tried again.
    pub(super) fn retrying(&self) -> u64 {
        self.retried.lock().len() as u64
    }

    /// Waits until no operation is outstanding.
    pub(super) async fn empty(&self) {
        let _ = self.idle.subscribe().wait_for(|count| *count == 0).await;
    }
}

fn record_of(pending: &Pending, key: &CacheKey) -> Option<(Arc<VaryRecord>, u64)> {
    let (put, record) = pending.puts.iter().find(|(put, record)| put.head().key == *key && record.is_some())?;
    Some((record.clone()?, put.head().position))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::tests::sample;

    #[test]
    fn what_a_burst_needed_room_for_is_given_back() {
        let (queue, stored) = (Queue::default(), Arc::new(sample()));
        for hash in 0..10 * KEPT as u128 {
            let mut pending = queue.pending.lock();
            let puts = smallvec::smallvec![(Put::Whole(Arc::clone(&stored)), None)];
            pending.insert(hash, Pending { operations: 1, puts });
        }
        assert!(queue.pending.lock().capacity() >= 10 * KEPT);
        for hash in 0..10 * KEPT as u128 {
            queue.settle(hash);
            assert_eq!(queue.pending.lock().len() as u128, 10 * KEPT as u128 - hash - 1);
        }
        assert!(queue.pending.lock().capacity() <= 2 * KEPT);
        assert_eq!(Arc::strong_count(&stored), 1);
    }
}
