//! The durable tier's queue: the operations that wait, by key, and the answers to look-ups that come meanwhile.
//!
//! A look-up finds a response that waits to be written as if it were written, and nothing for a key that waits to be
//! deleted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::header::HeaderMap;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::watch;

use crate::entry::{BodyObject, JournalTime, StoredApart, StoredHead, StoredResponse, Variant, VaryRecord};
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::timestamp::Timestamp;

/// The most waiting variants of a key that look-ups find.
const MAX_VARIANTS: usize = 64;

/// One operation.
#[derive(Debug)]
pub(super) enum Op {
    /// Writes a response, and the record that leads to it if it varies.
    Put {
        /// The response.
        stored: Put,
        /// The record.
        record: Option<Arc<VaryRecord>>,
        /// See [`crate::store::pack::EntryHeader::order`].
        order: JournalTime,
    },
    /// Deletes what a key leads to.
    Delete {
        /// The key.
        key: CacheKey,
        /// The one variant to delete: its name, and what selects it. `None`: everything.
        variant: Option<(u128, Variant)>,
        /// The separate body that goes with it, if known. It counts as not written from then on.
        body: Option<Arc<BodyObject>>,
        /// See [`crate::store::pack::EntryHeader::order`].
        order: JournalTime,
    },
}

/// A response to be written.
#[derive(Clone, Debug)]
pub(super) enum Put {
    /// A response with its body.
    Whole(Arc<StoredResponse>),
    /// A response whose body is written already.
    Apart(Arc<StoredApart>),
}

impl Put {
    /// Returns its head.
    pub(super) fn head(&self) -> &StoredHead {
        match self {
            Self::Whole(stored) => &stored.head,
            Self::Apart(stored) => &stored.head,
        }
    }

    /// Returns the bytes that it holds in memory.
    pub(super) fn weight(&self) -> u64 {
        match self {
            Self::Whole(stored) => stored.weight() as u64,
            Self::Apart(stored) => (stored.head.weight() + stored.checksums.len() * 8) as u64,
        }
    }
}

impl Op {
    /// Returns its key.
    pub(super) fn key(&self) -> &CacheKey {
        match self {
            Self::Put { stored, .. } => &stored.head().key,
            Self::Delete { key, .. } => key,
        }
    }

    /// Returns its order.
    pub(super) fn order(&self) -> JournalTime {
        match self {
            Self::Put { order, .. } | Self::Delete { order, .. } => *order,
        }
    }

    /// Returns whether it writes a response.
    pub(super) fn is_put(&self) -> bool {
        matches!(self, Self::Put { .. })
    }

    /// Returns the bytes that it holds.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Put { stored, .. } => stored.weight(),
            Self::Delete { key, .. } => key.as_bytes().len() as u64,
        }
    }
}

/// The capacity that the map of keys keeps when it shrinks.
const MIN_CAPACITY: usize = 1024;

/// The outstanding operations of one key.
#[derive(Debug, Default)]
struct Pending {
    operations: usize,
    /// The responses that the key will have, one for each variant, newest first.
    puts: SmallVec<[(Put, Option<Arc<VaryRecord>>); 1]>,
}

/// The queue's answer to a look-up.
#[derive(Debug)]
pub(super) enum Waiting {
    /// Nothing is outstanding for the key: the index and the place decide.
    Nothing,
    /// The key will hold nothing for the request. If it will hold other variants: their record, and its purge position.
    Other(Option<(Arc<VaryRecord>, u64)>),
    /// A response that waits to be written, and its record.
    Found(Put, Option<Arc<VaryRecord>>),
}

/// Counts what is in the queue, and knows it by key. The operations themselves go through channels.
#[derive(Debug)]
pub(super) struct WriteQueue {
    objects: AtomicU64,
    bytes: AtomicU64,
    /// Operations that write a response.
    puts: AtomicU64,
    /// Large bodies that are being written.
    uploads: AtomicU64,
    /// Guarded by its lock: the outstanding operations, by the key's hash.
    pending: Mutex<HashMap<u128, Pending>>,
    /// The number of outstanding operations and uploads, for those who wait until there are none.
    idle: watch::Sender<u64>,
}

impl Default for WriteQueue {
    fn default() -> Self {
        Self {
            objects: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            puts: AtomicU64::new(0),
            uploads: AtomicU64::new(0),
            pending: Mutex::default(),
            idle: watch::Sender::new(0),
        }
    }
}

impl WriteQueue {
    /// Returns the operations and the bytes in the queue.
    pub(super) fn depth(&self) -> (u64, u64) {
        (self.objects.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Returns how many responses wait to be written.
    pub(super) fn puts(&self) -> u64 {
        self.puts.load(Ordering::Relaxed)
    }

    /// Answers a look-up for `request`.
    pub(super) fn look(&self, key: &CacheKey, request: &HeaderMap) -> Waiting {
        let (puts, record) = {
            let pending = self.pending.lock();
            let Some(pending) = pending.get(&key.hash()) else { return Waiting::Nothing };
            (pending.puts.clone(), record_of(pending, key))
        };
        // Selected without the lock.
        let found = puts.into_iter().find(|(put, _)| put.head().key == *key && put.head().is_selected_by(request));
        match found {
            Some((stored, record)) => Waiting::Found(stored, record),
            None => Waiting::Other(record),
        }
    }

    /// Returns the newest record that waits to be written for `key`, and the purge position of its response.
    pub(super) fn record(&self, key: &CacheKey) -> Option<(Arc<VaryRecord>, u64)> {
        record_of(self.pending.lock().get(&key.hash())?, key)
    }

    /// Returns whether a response waits to be written that `stored` may not replace.
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

    /// Returns whether an operation on the key with this hash is outstanding.
    pub(super) fn is_pending(&self, hash: u128) -> bool {
        self.pending.lock().contains_key(&hash)
    }

    /// Calls `each` with every value that waits to be written and counts.
    pub(super) fn each_value(&self, mut each: impl FnMut(&StoredHead)) {
        let heads: Vec<Put> = {
            let pending = self.pending.lock();
            let puts = pending.values().flat_map(|pending| pending.puts.iter());
            puts.filter(|(put, _)| put.head().key.is_value()).map(|(put, _)| put.clone()).collect()
        };
        for put in &heads {
            each(put.head());
        }
    }

    /// Waits until no operation on the key with this hash is outstanding.
    pub(super) async fn settled(&self, hash: u128) {
        let _ = self.idle.subscribe().wait_for(|_| !self.is_pending(hash)).await;
    }

    /// Returns whether a response that waits leads to this separate body.
    pub(super) fn leads_to(&self, body: u128) -> bool {
        let leads = |(put, _): &(Put, Option<Arc<VaryRecord>>)| {
            put.head().body_object.as_ref().is_some_and(|object| object.id == body)
        };
        self.pending.lock().values().any(|pending| pending.puts.iter().any(leads))
    }

    /// Counts an operation that begins to wait.
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
                Op::Put { stored, record, .. } => {
                    let variant = stored.head().variant();
                    pending.puts.retain(|(other, _)| {
                        let other = other.head().variant();
                        variant.is_some() && other.is_some() && other != variant
                    });
                    pending.puts.insert(0, (stored.clone(), record.clone()));
                    pending.puts.truncate(MAX_VARIANTS);
                }
            }
        }
        self.bytes.fetch_add(op.bytes(), Ordering::Relaxed);
        self.puts.fetch_add(u64::from(op.is_put()), Ordering::Relaxed);
        self.objects.fetch_add(1, Ordering::Relaxed);
        self.update_idle();
    }

    /// Counts a large body that begins to be written.
    pub(super) fn begin_upload(&self) {
        self.uploads.fetch_add(1, Ordering::Relaxed);
        self.update_idle();
    }

    /// Counts a large body that is written, or given up.
    pub(super) fn end_upload(&self) {
        self.uploads.fetch_sub(1, Ordering::Relaxed);
        self.update_idle();
    }

    /// Returns the number of large bodies that are being written.
    pub(super) fn uploads(&self) -> u64 {
        self.uploads.load(Ordering::Relaxed)
    }

    fn update_idle(&self) {
        self.idle.send_replace(self.objects.load(Ordering::Relaxed) + self.uploads.load(Ordering::Relaxed));
    }

    /// Ends an operation on the key with this hash: look-ups go to the place again after the last one.
    pub(super) fn settle(&self, hash: u128) {
        let mut all = self.pending.lock();
        if let Some(pending) = all.get_mut(&hash) {
            pending.operations -= 1;
            if pending.operations == 0 {
                all.remove(&hash);
            }
            // Gives back the memory that a burst needed.
            if all.capacity() > 2 * MIN_CAPACITY && all.len() < all.capacity() / 8 {
                let room = MIN_CAPACITY.max(all.len() * 2);
                all.shrink_to(room);
            }
        }
    }

    /// Counts an operation of `bytes` that leaves the queue. `is_put` says whether it wrote a response.
    pub(super) fn leave(&self, bytes: u64, is_put: bool) {
        self.puts.fetch_sub(u64::from(is_put), Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.objects.fetch_sub(1, Ordering::Relaxed);
        self.update_idle();
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
    fn memory_of_a_burst_is_given_back() {
        let (queue, stored) = (WriteQueue::default(), Arc::new(sample()));
        for hash in 0..10 * MIN_CAPACITY as u128 {
            let mut pending = queue.pending.lock();
            let puts = smallvec::smallvec![(Put::Whole(Arc::clone(&stored)), None)];
            pending.insert(hash, Pending { operations: 1, puts });
        }
        assert!(queue.pending.lock().capacity() >= 10 * MIN_CAPACITY);
        for hash in 0..10 * MIN_CAPACITY as u128 {
            queue.settle(hash);
            assert_eq!(queue.pending.lock().len() as u128, 10 * MIN_CAPACITY as u128 - hash - 1);
        }
        assert!(queue.pending.lock().capacity() <= 2 * MIN_CAPACITY);
        assert_eq!(Arc::strong_count(&stored), 1);
    }
}
