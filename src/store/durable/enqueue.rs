//! Taking writes and deletions into the queue, within its bounds.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc::error::SendError;
use tokio::sync::oneshot;
use tracing::warn;

use super::write::Work;
use super::{Durable, Inner};
use crate::base::{DurableOp, DurableOutcome, Lost};
use crate::entry::{BodyObject, StoredApart, StoredResponse, Variant, VaryRecord};
use crate::rfc9111::key::CacheKey;
use crate::store::queue::{Deletion, Op, Put};

/// The queue takes this many times more deletions than responses, and as many bytes of them: they are small, and must not be
/// lost easily.
const DELETES_PER_PUT: u64 = 16;

/// The moment at which a response came that is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// It was just received, or freshened.
    JustNow,
    /// It was in memory for some time.
    Before,
}

impl Durable {
    /// Waits until all that was queued before is written or given up, in a directory, and the purge with the number `awaited`
    /// is in the journal. Does not wait for a bucket.
    pub async fn written(&self, awaited: Option<u64>, within: Duration) {
        if !self.is_local() {
            return;
        }
        let is_appended = async {
            let (sender, is_written) = oneshot::channel();
            if self.inner.queue.depth().0 > 0 && self.inner.writer.send(Work::Flush(sender)).is_ok() {
                let _ = tokio::time::timeout(within, is_written).await;
            }
        };
        let is_told = async {
            if let Some(awaited) = awaited {
                let _ = self.recorded(awaited, within).await;
            }
        };
        tokio::join!(is_appended, is_told);
    }

    /// Returns whether every invalidation is written to the journal, and awaited there, also of what the tier is not known
    /// to hold. It is in a directory that others use as well: what they store just now is not known here yet.
    pub fn tells_all(&self) -> bool {
        self.is_local() && self.inner.journal.has_peers()
    }

    /// Returns whether the queue takes another response of `weight` bytes.
    pub fn has_room(&self, weight: usize) -> bool {
        let config = &self.inner.config;
        let ((objects, bytes), weight) = (self.inner.queue.puts(), weight as u64);
        objects < config.queue_objects as u64 && bytes.saturating_add(weight) <= config.queue_bytes.max(weight)
    }

    /// Queues a response to be written. Returns `false` if the queue is full.
    pub fn put(&self, stored: Arc<StoredResponse>, record: Option<Arc<VaryRecord>>, came: Came) -> bool {
        let queue = &self.inner.queue;
        if !self.has_room(stored.weight()) {
            self.inner.report_lost(Lost::QueueFull, &stored.head.key, &"the queue is full");
            return false;
        }
        if queue.outranks(&stored.head, self.inner.purges.time()) {
            return true;
        }
        stored.head.marks.is_durable.store(true, Ordering::Release);
        let now = self.inner.purges.take_order();
        let order = match came {
            Came::JustNow => now,
            Came::Before => now.min(self.inner.purges.journal_time(stored.head.response_time())),
        };
        self.inner.enqueue(Op::Put { stored: Put::Whole(stored), record, order });
        true
    }

    /// Queues the head of a response whose body is written already. Deletes the body if the head can't be kept.
    pub fn put_apart(&self, stored: Arc<StoredApart>, record: Option<Arc<VaryRecord>>) {
        if self.inner.queue.outranks(&stored.head, self.inner.purges.time()) {
            return self.delete_body(stored.head.body_id());
        }
        if !self.has_room(stored.head.weight()) {
            self.inner.report_lost(Lost::QueueFull, &stored.head.key, &"the queue is full");
            return self.delete_body(stored.head.body_id());
        }
        stored.head.marks.is_durable.store(true, Ordering::Release);
        let order = self.inner.purges.take_order();
        self.inner.enqueue(Op::Put { stored: Put::Apart(stored), record, order });
    }

    /// Deletes a separate body that no head leads to, in the background.
    pub fn delete_body(&self, id: u128) {
        let inner = Arc::clone(&self.inner);
        self.runtime.spawn(async move { inner.delete_body(id).await });
    }

    /// Queues everything kept for `key` to be deleted. [`Durable::written`] waits until it is.
    /// `body` is the object of the body that goes with it, where that is known.
    pub fn delete(&self, key: &CacheKey, body: Option<Arc<BodyObject>>) {
        if !self.may_hold(key) {
            return;
        }
        self.delete_named(key, None, body);
    }

    /// Queues one variant of `key` to be deleted, the one with this name.
    pub fn delete_variant(&self, key: &CacheKey, name: u128, variant: &Variant, body: Option<Arc<BodyObject>>) {
        self.delete_named(key, Some((name, variant)), body);
    }

    /// Returns `false` if the queue is full.
    pub(super) fn delete_named(
        &self,
        key: &CacheKey,
        variant: Option<(u128, &Variant)>,
        body: Option<Arc<BodyObject>>,
    ) -> bool {
        let (queue, order) = (&self.inner.queue, self.inner.purges.take_order());
        if queue.merge(key.hash(), variant.map_or(0, |(name, _)| name), order, body.as_ref()) {
            return true;
        }
        let variant = variant.map(|(name, variant)| (name, variant.clone()));
        let deletion = Arc::new(Deletion::new(key, variant, body, order));
        let has_room = self.has_room_to_delete(&deletion);
        if has_room {
            self.inner.enqueue(Op::Delete(Arc::clone(&deletion)));
            deletion.is_sent();
        }
        has_room
    }

    /// Returns whether the queue takes another deletion.
    fn has_room_to_delete(&self, deletion: &Deletion) -> bool {
        let inner = &self.inner;
        let ((objects, bytes), more) = (inner.queue.deletions(), deletion.bytes());
        let has_room = objects < (inner.config.queue_objects as u64).saturating_mul(DELETES_PER_PUT)
            && bytes.saturating_add(more) <= inner.config.queue_bytes.max(more);
        if !has_room {
            inner.metrics.durable(DurableOp::Delete, DurableOutcome::Dropped);
            if let Some(suppressed) = inner.log.queue_full.is_due() {
                warn!("the durable queue is full: what was invalidated stays there, and counts as purged{suppressed}");
            }
        }
        has_room
    }
}

impl Inner {
    /// Gives an operation to the writer.
    pub(super) fn enqueue(&self, op: Op) {
        self.queue.enter(&op);
        if let Err(SendError(Work::Op(op))) = self.writer.send(Work::Op(op)) {
            self.settle(&op);
        }
    }

    /// Ends an operation.
    pub(super) fn settle(&self, op: &Op) {
        // Only now: a write of the body may have stood before this in the queue.
        if let Op::Delete(deletion) = op {
            deletion.forget_bodies();
        }
        self.queue.leave(op);
    }
}
