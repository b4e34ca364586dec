//! The durable tier's queue: the operations that wait, by key, and the answers to look-ups that come meanwhile.
//!
//! A look-up finds a response that waits to be written as if it were written, and nothing for a key that waits to be
//! deleted. Writes and deletions have bounds of their own: neither keeps the other out.

mod deletion;

pub(crate) use self::deletion::Deletion;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use http::header::HeaderMap;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::watch;

use crate::entry::{BodyObject, JournalTime, StoredApart, StoredHead, StoredResponse, VaryRecord};
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
    Delete(Arc<Deletion>),
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
            Self::Delete(deletion) => &deletion.key,
        }
    }

    /// Returns its order.
    pub(super) fn order(&self) -> JournalTime {
        match self {
            Self::Put { order, .. } => *order,
            Self::Delete(deletion) => deletion.order(),
        }
    }

    /// Returns whether it writes a response.
    pub(super) fn is_put(&self) -> bool {
        matches!(self, Self::Put { .. })
    }

    /// Settles its order: it is about to be encoded.
    pub(super) fn close(&self) {
        if let Self::Delete(deletion) = self {
            deletion.close();
        }
    }

    /// Returns the bytes that it holds.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Put { stored, .. } => stored.weight(),
            Self::Delete(deletion) => deletion.bytes(),
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
    /// The deletions after the last write, one of each name.
    deletions: SmallVec<[Arc<Deletion>; 1]>,
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

/// Operations of one kind, and the bytes that they hold.
#[derive(Debug, Default)]
struct Depth {
    objects: AtomicU64,
    bytes: AtomicU64,
}

impl Depth {
    fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.objects.fetch_add(1, Ordering::Relaxed);
    }

    fn remove(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.objects.fetch_sub(1, Ordering::Relaxed);
    }

    fn get(&self) -> (u64, u64) {
        (self.objects.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

/// Counts what is in the queue, and knows it by key. The operations themselves go through channels.
#[derive(Debug)]
pub(super) struct WriteQueue {
    puts: Depth,
    deletions: Depth,
    /// Large bodies that are being written.
    uploads: AtomicU64,
    /// Guarded by its lock: the outstanding operations, by the key's hash.
    pending: Mutex<HashMap<u128, Pending>>,
    /// Tells those who wait that operations or uploads have begun or ended.
    changed: watch::Sender<()>,
}

impl Default for WriteQueue {
    fn default() -> Self {
        Self {
            puts: Depth::default(),
            deletions: Depth::default(),
            uploads: AtomicU64::new(0),
            pending: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }
}

impl WriteQueue {
    /// Returns the operations and the bytes in the queue.
    pub(super) fn depth(&self) -> (u64, u64) {
        let (puts, deletions) = (self.puts.get(), self.deletions.get());
        (puts.0 + deletions.0, puts.1 + deletions.1)
    }

    /// Returns the responses that wait to be written, and the bytes that they hold.
    pub(super) fn puts(&self) -> (u64, u64) {
        self.puts.get()
    }

    /// Returns the deletions that wait, and the bytes that they hold.
    pub(super) fn deletions(&self) -> (u64, u64) {
        self.deletions.get()
    }

    /// Moves a waiting deletion on in place of another one of the same, with this order. Returns `false` if none waits, or a
    /// write came since: the other one has to be queued.
    pub(super) fn merge(&self, hash: u128, name: u128, order: JournalTime, body: Option<&Arc<BodyObject>>) -> bool {
        let pending = self.pending.lock();
        let deletions = pending.get(&hash).map(|pending| &pending.deletions);
        let same = deletions.and_then(|deletions| deletions.iter().find(|deletion| deletion.name() == name));
        same.is_some_and(|same| same.take_over(order, body))
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
        self.wait_until(|queue| !queue.is_pending(hash)).await;
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
                Op::Delete(deletion) => {
                    match &deletion.variant {
                        None => pending.puts.clear(),
                        Some((_, variant)) => pending.puts.retain(|(other, _)| other.head().variant() != Some(variant)),
                    }
                    pending.deletions.retain(|other| other.name() != deletion.name());
                    pending.deletions.push(Arc::clone(deletion));
                }
                Op::Put { stored, record, .. } => {
                    // Later deletions have to come after this.
                    pending.deletions.clear();
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
        self.depth_of(op).add(op.bytes());
        self.tell();
    }

    /// Counts a large body that begins to be written.
    pub(super) fn begin_upload(&self) {
        self.uploads.fetch_add(1, Ordering::Relaxed);
        self.tell();
    }

    /// Counts a large body that is written, or given up.
    pub(super) fn end_upload(&self) {
        self.uploads.fetch_sub(1, Ordering::Relaxed);
        self.tell();
    }

    /// Returns the number of large bodies that are being written.
    pub(super) fn uploads(&self) -> u64 {
        self.uploads.load(Ordering::Relaxed)
    }

    /// Tells those who wait, if anybody does: that takes more locks than all the rest of the queue.
    fn tell(&self) {
        // Whoever waits subscribes, and looks then. So one of the two sees the other.
        fence(Ordering::SeqCst);
        if self.changed.receiver_count() > 0 {
            self.changed.send_replace(());
        }
    }

    async fn wait_until(&self, is_so: impl Fn(&Self) -> bool) {
        let mut changes = self.changed.subscribe();
        fence(Ordering::SeqCst);
        let _ = changes.wait_for(|()| is_so(self)).await;
    }

    fn depth_of(&self, op: &Op) -> &Depth {
        if op.is_put() { &self.puts } else { &self.deletions }
    }

    /// Ends an operation: look-ups of its key go to the place again after the last one.
    pub(super) fn leave(&self, op: &Op) {
        {
            let mut all = self.pending.lock();
            let hash = op.key().hash();
            if let Some(pending) = all.get_mut(&hash) {
                if let Op::Delete(deletion) = op {
                    pending.deletions.retain(|other| !Arc::ptr_eq(other, deletion));
                }
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
        self.depth_of(op).remove(op.bytes());
        self.tell();
    }

    /// Waits until no operation is outstanding.
    pub(super) async fn empty(&self) {
        self.wait_until(|queue| queue.depth().0 + queue.uploads() == 0).await;
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
    use crate::rfc9111::key::KeyParts;

    fn key(path: &str) -> CacheKey {
        CacheKey::new(KeyParts { prefix: "", scheme: "http", authority: "h", path, query: None })
    }

    fn deletion(key: &CacheKey, order: JournalTime) -> Op {
        Op::Delete(Arc::new(Deletion::new(key, None, None, order)))
    }

    #[test]
    fn memory_of_a_burst_is_given_back() {
        let queue = WriteQueue::default();
        let ops: Vec<Op> = (0..10 * MIN_CAPACITY).map(|n| deletion(&key(&format!("/{n}")), 1)).collect();
        for op in &ops {
            queue.enter(op);
        }
        assert!(queue.pending.lock().capacity() >= 10 * MIN_CAPACITY);
        for (gone, op) in ops.iter().enumerate() {
            queue.leave(op);
            assert_eq!(queue.pending.lock().len(), 10 * MIN_CAPACITY - gone - 1);
        }
        assert!(queue.pending.lock().capacity() <= 2 * MIN_CAPACITY);
        assert_eq!(queue.depth(), (0, 0));
    }

    #[test]
    fn a_deletion_is_merged_into_the_one_that_waits_and_into_no_other() {
        let (queue, stored) = (WriteQueue::default(), Arc::new(sample()));
        let (page, body) = (stored.head.key.clone(), BodyObject::written(7));
        let merge = |order, body| queue.merge(page.hash(), 0, order, body);
        assert!(!merge(1, None), "none waits");
        let first = deletion(&page, 2);
        queue.enter(&first);
        assert!(!merge(3, None), "the writer does not have it: an answer would come before its tombstone");
        let Op::Delete(waiting) = &first else { panic!("a deletion") };
        waiting.is_sent();
        assert!(merge(5, Some(&body)) && merge(4, Some(&body)));
        assert_eq!((first.order(), queue.deletions().0), (5, 1));
        assert!(!queue.merge(page.hash(), 1, 6, None), "another variant");
        assert!(!queue.merge(key("/other").hash(), 0, 6, None), "another key");
        // A write comes between: what is deleted later is deleted after it.
        let put = Op::Put { stored: Put::Whole(stored), record: None, order: 6 };
        queue.enter(&put);
        assert!(!merge(7, None));
        let second = deletion(&page, 7);
        queue.enter(&second);
        second.close();
        assert!(!merge(8, None), "its tombstone has an order");
        waiting.forget_bodies();
        assert!(!body.is_written());
        for op in [first, put, second] {
            queue.leave(&op);
        }
        assert!(!queue.is_pending(page.hash()) && queue.depth() == (0, 0));
    }
}
