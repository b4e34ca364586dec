//! Writing behind: what waits in the queue is carried out, a key's operations in their order.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{HEAD_LIMIT, Inner, MAX_PAUSE};
use crate::base::{DurableOp, Lost};
use crate::entry::encoding::{DurableBody, Object, decode, encode_response, encode_separate, encode_vary};
use crate::entry::{BodyObject, Covered, StoredHead, VaryRecord};
use crate::rfc9111::freshness::LifetimePolicy;
use crate::rfc9111::key::CacheKey;
use crate::store::queue::{Op, Put};
use crate::store::{Backend, BackendError, Trouble};

/// A key whose deletion failed, and has to be tried again.
struct Undeleted(CacheKey, Option<u128>, Option<Arc<BodyObject>>);

/// A write that fails so often while others succeed is not tried again: it is the object that is not taken.
const OWN_FAILURES: u32 = 6;

/// A deletion is tried so often before it is put aside.
const ATTEMPTS: u32 = 3;

/// The first pause between two attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause at a stop, where there is time for several.
const LAST_PAUSE: Duration = Duration::from_millis(250);

/// Counts how the attempts at one write went.
#[derive(Debug, Default)]
struct Attempts {
    made: u32,
    /// Writes that had succeeded at the last one.
    done: u64,
    /// Those that failed while others succeeded.
    own: u32,
}

/// Carries out operations in their order until the tier is dropped.
pub(super) async fn write_behind(inner: Arc<Inner>, mut ops: mpsc::UnboundedReceiver<Op>) {
    // The senders live in `inner`, which this task holds: it ends with the runtime.
    while let Some(op) = ops.recv().await {
        let (hash, bytes, is_put) = (op.key().hash(), op.bytes(), op.is_put());
        let outcome = inner.carry_out(op).await;
        match outcome {
            // Not waited for, and no part of the queue, so that the tier's other work goes on; but
            // the key stays outstanding, so that what should be gone counts as gone. Once for each.
            Err(Undeleted(key, variant, body)) if inner.queue.begin_retrying(hash) => {
                let inner = Arc::clone(&inner);
                tokio::spawn(async move {
                    inner.delete_at_last(&key, variant).await;
                    if let Some(body) = &body {
                        body.note(false);
                    }
                    if variant.is_none() {
                        inner.index.remove(hash);
                    }
                    inner.queue.end_retrying(hash);
                    inner.queue.settle(hash);
                });
            }
            Err(_) | Ok(()) => inner.queue.settle(hash),
        }
        inner.queue.leave(bytes, is_put);
    }
}

impl Attempts {
    /// Another one failed, and so many writes have succeeded so far.
    fn note(&mut self, done: u64) {
        self.own += u32::from(self.made > 0 && done > self.done);
        self.made = self.made.saturating_add(1);
        self.done = done;
    }
}

impl Inner {
    pub(super) async fn forget_body(&self, id: u128) {
        let outcome = self.backend.delete(&self.names.body(id)).await;
        self.note(DurableOp::Delete, &outcome);
    }

    pub(super) fn enqueue(&self, op: Op) {
        self.queue.enter(&op);
        let (hash, bytes, is_put) = (op.key().hash(), op.bytes(), op.is_put());
        // By key, so that operations on one key keep their order.
        let writer = usize::try_from(hash % self.writers.len() as u128).unwrap_or(0);
        if self.writers[writer].send(op).is_err() {
            self.queue.settle(hash);
            self.queue.leave(bytes, is_put);
        }
    }

    async fn carry_out(self: &Arc<Self>, op: Op) -> Result<(), Undeleted> {
        match op {
            Op::Put { stored, record } => {
                let is_written = self.write_at_last(&stored, record.as_deref()).await;
                // An error may be that of an answer, and the object be written for all that.
                if is_written || !self.backend.is_near() {
                    self.journal.announce(stored.head().key.hash());
                }
                if is_written {
                    return Ok(());
                }
                stored.head().marks.is_durable.store(false, Ordering::Release);
                if let Put::Apart(apart) = &stored {
                    // Nothing else leads to it.
                    self.forget_body(apart.head.body_id()).await;
                }
                Ok(())
            }
            Op::Delete { key, variant, body } => {
                // Not sooner: a write of it may have stood before this in the key's queue.
                if let Some(body) = &body {
                    body.note(false);
                }
                let variant = variant.map(|(name, _)| name);
                for attempt in 1.. {
                    self.takes_writes().await;
                    let outcome = self.delete_once(&key, variant).await;
                    if outcome.is_ok() {
                        break;
                    }
                    if attempt == ATTEMPTS {
                        return Err(Undeleted(key, variant, body));
                    }
                    self.back_off(attempt).await;
                }
                if variant.is_none() {
                    self.index.remove(key.hash());
                }
                Ok(())
            }
        }
    }

    /// Writes a response, however long the place does not take it. `false` when it is purged meanwhile, and when it is
    /// lost: there is no room for it, or the place takes others and not this one.
    async fn write_at_last(self: &Arc<Self>, stored: &Put, record: Option<&VaryRecord>) -> bool {
        let head = stored.head();
        let mut attempts = Attempts::default();
        loop {
            self.takes_writes().await;
            if self.purges.covers(head, head.position) != Covered::No {
                return false;
            }
            let outcome = self.write(stored, record).await;
            self.note(DurableOp::Put, &outcome);
            let Err(error) = outcome else {
                self.flow.succeeded();
                return true;
            };
            let lost = match error.trouble {
                Trouble::Full => Some(Lost::NoRoom),
                Trouble::Unacceptable => Some(Lost::NotTaken),
                Trouble::Unreachable | Trouble::Failing | Trouble::Refused => {
                    attempts.note(self.flow.done());
                    (attempts.own >= OWN_FAILURES).then_some(Lost::NotTaken)
                }
            };
            if let Some(lost) = lost {
                self.lost(lost, &head.key, &error);
                return false;
            }
            self.write_failed(&error);
            if self.flow.is_flowing() {
                self.back_off(attempts.made).await;
                self.tell_whose_failure(&attempts).await;
            }
        }
    }

    /// Writes the probe where no other write would show whether the place takes writes.
    async fn tell_whose_failure(self: &Arc<Self>, attempts: &Attempts) {
        if attempts.made > 1 && self.flow.done() == attempts.done && self.flow.is_flowing() {
            match self.write_probe().await {
                Ok(()) => self.flow.succeeded(),
                Err(error) => self.write_failed(&error),
            }
        }
    }

    /// Waits before the next attempt, of which so many were made.
    async fn back_off(&self, attempts: u32) {
        let most = if self.flow.is_ending() { LAST_PAUSE } else { MAX_PAUSE };
        let pause = FIRST_PAUSE.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(most);
        self.flow.pause(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    }

    async fn delete_once(self: &Arc<Self>, key: &CacheKey, variant: Option<u128>) -> Result<(), BackendError> {
        let outcome = self.delete_all(key, variant).await;
        self.note(DurableOp::Delete, &outcome);
        match &outcome {
            // A caller without the right to delete may still have the right to write.
            Err(error) if matches!(error.trouble, Trouble::Unreachable | Trouble::Failing) => self.write_failed(error),
            Ok(()) | Err(_) => {}
        }
        outcome
    }

    /// Tries to delete until it is done: what was invalidated must not come back with the tier.
    async fn delete_at_last(self: &Arc<Self>, key: &CacheKey, variant: Option<u128>) {
        for attempt in ATTEMPTS.. {
            self.back_off(attempt).await;
            self.takes_writes().await;
            let Ok(_one_of_few) = self.deleting.acquire().await else { return };
            if self.delete_once(key, variant).await.is_ok() {
                return;
            }
        }
    }

    /// Deletes what a key leads to, or one variant of it. In a bucket that is its first object: the rest can't be found
    /// again, and ends by the bucket's lifecycle rule. A directory has no such rule, and a look
    /// round costs nothing there, so variants and separate bodies go as well.
    async fn delete_all(&self, key: &CacheKey, variant: Option<u128>) -> Result<(), BackendError> {
        let name = match variant {
            Some(variant) => self.names.variant(key, variant),
            None => self.names.primary(key),
        };
        let Backend::File(store) = &*self.backend else { return self.backend.delete(&name).await };
        for member in store.family(&name).await? {
            let body = self.separate_body(&member, key).await;
            self.backend.delete(&member).await?;
            if let Some(body) = body {
                self.backend.delete(&self.names.body(body)).await?;
            }
        }
        Ok(())
    }

    /// The separate body that the object `name` of a directory leads to.
    async fn separate_body(&self, name: &str, key: &CacheKey) -> Option<u128> {
        self.existing(name, key).await?.1
    }

    /// The head of the response `name` of a directory, and its separate body, if it has one. In a bucket
    /// that would cost a request for each write.
    async fn existing(&self, name: &str, key: &CacheKey) -> Option<(Box<StoredHead>, Option<u128>)> {
        let Backend::File(store) = &*self.backend else { return None };
        let bytes = store.get(name, self.config.inline_size + HEAD_LIMIT).await.ok()??;
        match decode(&bytes, key, &LifetimePolicy::default()) {
            Ok(Object::Response { head, body }) => {
                let separate = matches!(body, DurableBody::Separate { .. }).then(|| head.body_id());
                Some((head, separate))
            }
            Ok(Object::Vary(_)) | Err(_) => None,
        }
    }

    /// Writes an object, and then deletes the separate body that the one before it led to.
    async fn replace(&self, name: &str, object: Bytes, stored: &StoredHead) -> Result<(), BackendError> {
        let before = self.existing(name, &stored.key).await;
        let own = stored.body_object.as_ref();
        let is_own = |body: &u128| own.is_some_and(|own| own.id == *body);
        let now = self.purges.time();
        if let Some((_, body)) = before.as_ref().filter(|(head, _)| head.outranks(stored, now)) {
            if let Some(own) = own.filter(|own| own.is_written() && !body.as_ref().is_some_and(is_own)) {
                own.note(false);
                self.backend.delete(&self.names.body(own.id)).await?;
            }
            return Ok(());
        }
        self.backend.put(name, &[object]).await?;
        match before.and_then(|(_, body)| body) {
            Some(body) if !is_own(&body) => self.backend.delete(&self.names.body(body)).await,
            Some(_) | None => Ok(()),
        }
    }

    /// Writes a body of its own first, then the head, then the record that leads to it: a reader
    /// finds all of it or none, wherever a crash falls.
    async fn write(&self, put: &Put, record: Option<&VaryRecord>) -> Result<(), BackendError> {
        let head = put.head();
        let key = &head.key;
        let object: Bytes = match put {
            Put::Whole(stored) => {
                // A body that is too large to go with its head was given an object.
                if let Some(object) = &head.body_object
                    && !self.has_body(object).await?
                {
                    self.backend.put(&self.names.body(object.id), stored.body().segments()).await?;
                    object.note(true);
                }
                encode_response(stored, head.body_object.is_none()).into()
            }
            Put::Apart(stored) => encode_separate(head, stored.len, &stored.checksums).into(),
        };
        match (head.variant(), record) {
            (Some(variant), Some(record)) => {
                let name = self.names.variant(key, record.variant_hash(&variant.selector));
                self.replace(&name, object, head).await?;
                self.backend.put(&self.names.primary(key), &[encode_vary(record).into()]).await?;
            }
            _ => self.replace(&self.names.primary(key), object, head).await?,
        }
        // A body that was written before may have been evicted with the head that led to it.
        match &head.body_object {
            Some(object) if object.is_written() && !self.has_body(object).await? => Err(match put {
                Put::Whole(_) => BackendError::failing("its body was evicted meanwhile"),
                Put::Apart(_) => BackendError::new(Trouble::Full, "its body was evicted meanwhile"),
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// Returns whether a body is there. In a bucket that is known; in a directory it may have been evicted.
    async fn has_body(&self, object: &BodyObject) -> Result<bool, BackendError> {
        if let Backend::File(store) = &*self.backend
            && object.is_written()
            && !store.has(&self.names.body(object.id)).await?
        {
            object.note(false);
        }
        Ok(object.is_written())
    }
}
