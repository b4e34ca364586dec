//! The writers: they carry out the queue's operations in the background, those of one key in their order.

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
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::queue::{Op, Put};

/// A deletion that failed, and has to be tried again: the key, the variant, and the body that goes with it.
struct Undeleted(CacheKey, Option<u128>, Option<Arc<BodyObject>>);

/// Number of failures, while others succeed, after which a write is given up: the place does not take the object.
const OWN_FAILURES: u32 = 6;

/// Attempts at a deletion before it leaves the queue and is tried beside it.
const ATTEMPTS: u32 = 3;

/// The first pause between two attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause while Larder stops, so that there is time for several attempts.
const LAST_PAUSE: Duration = Duration::from_millis(250);

/// The attempts at one write.
#[derive(Debug, Default)]
struct Attempts {
    made: u32,
    /// Writes of any object that had succeeded by the last attempt.
    done: u64,
    /// Attempts that failed while others succeeded.
    own: u32,
}

/// Carries out operations in their order. Ends with the runtime: `inner` holds the senders.
pub(super) async fn write_behind(inner: Arc<Inner>, mut ops: mpsc::UnboundedReceiver<Op>) {
    while let Some(op) = ops.recv().await {
        let (hash, bytes, is_put) = (op.key().hash(), op.bytes(), op.is_put());
        let outcome = inner.carry_out(op).await;
        match outcome {
            // Tried again beside the queue, once for each key, so that other operations go on. The key stays outstanding:
            // what should be deleted counts as deleted.
            Err(Undeleted(key, variant, body)) if inner.queue.begin_retrying(hash) => {
                let inner = Arc::clone(&inner);
                tokio::spawn(async move {
                    inner.delete_until_done(&key, variant).await;
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
    /// Counts a failed attempt. `done` is the number of writes that succeeded so far.
    fn note(&mut self, done: u64) {
        self.own += u32::from(self.made > 0 && done > self.done);
        self.made = self.made.saturating_add(1);
        self.done = done;
    }
}

impl Inner {
    /// Deletes a separate body that no head leads to.
    pub(super) async fn delete_body(&self, id: u128) {
        let outcome = self.place.delete(&self.names.body(id)).await;
        self.report(DurableOp::Delete, &outcome);
    }

    async fn carry_out(self: &Arc<Self>, op: Op) -> Result<(), Undeleted> {
        match op {
            Op::Put { stored, record } => {
                let is_written = self.write_until_done(&stored, record.as_deref()).await;
                // The object may have been written although the answer was an error.
                if is_written || !self.place.is_local() {
                    self.journal.announce(stored.head().key.hash());
                }
                if is_written {
                    return Ok(());
                }
                stored.head().marks.is_durable.store(false, Ordering::Release);
                if let Put::Apart(apart) = &stored {
                    // No head leads to its body.
                    self.delete_body(apart.head.body_id()).await;
                }
                Ok(())
            }
            Op::Delete { key, variant, body } => {
                // Only now: a write of the body may have stood before this in the queue.
                if let Some(body) = &body {
                    body.note(false);
                }
                let variant = variant.map(|(name, _)| name);
                for attempt in 1.. {
                    self.wait_to_write().await;
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

    /// Writes a response, however long that takes. Returns `false` if it is purged meanwhile, or lost: there is no space
    /// for it, or the place takes others and not this one.
    async fn write_until_done(self: &Arc<Self>, stored: &Put, record: Option<&VaryRecord>) -> bool {
        let head = stored.head();
        let mut attempts = Attempts::default();
        loop {
            self.wait_to_write().await;
            if self.purges.covers(head, head.position) != Covered::No {
                return false;
            }
            let outcome = self.write(stored, record).await;
            self.report(DurableOp::Put, &outcome);
            let Err(error) = outcome else {
                self.writes.succeeded();
                return true;
            };
            let lost = match error.kind() {
                StoreErrorKind::Full => Some(Lost::NoRoom),
                StoreErrorKind::Unacceptable => Some(Lost::NotTaken),
                StoreErrorKind::Absent
                | StoreErrorKind::Refused
                | StoreErrorKind::Unavailable
                | StoreErrorKind::Corrupt
                | StoreErrorKind::Overloaded => {
                    attempts.note(self.writes.done());
                    (attempts.own >= OWN_FAILURES).then_some(Lost::NotTaken)
                }
            };
            if let Some(lost) = lost {
                self.report_lost(lost, &head.key, &error);
                return false;
            }
            self.note_failed_write(&error);
            if self.writes.is_closed() {
                self.back_off(attempts.made).await;
                self.test_with_probe(&attempts).await;
            }
        }
    }

    /// Writes the probe where no other write tells whether the place or the object is at fault.
    async fn test_with_probe(self: &Arc<Self>, attempts: &Attempts) {
        if attempts.made > 1 && self.writes.done() == attempts.done && self.writes.is_closed() {
            match self.write_probe().await {
                Ok(()) => self.writes.succeeded(),
                Err(error) => self.note_failed_write(&error),
            }
        }
    }

    /// Waits before the next attempt; longer, the more were made.
    async fn back_off(&self, attempts: u32) {
        let most = if self.writes.is_stopping() { LAST_PAUSE } else { MAX_PAUSE };
        let pause = FIRST_PAUSE.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(most);
        self.writes.pause(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    }

    async fn delete_once(self: &Arc<Self>, key: &CacheKey, variant: Option<u128>) -> Result<(), StoreError> {
        let outcome = self.delete_all(key, variant).await;
        self.report(DurableOp::Delete, &outcome);
        match &outcome {
            // A refused deletion tells nothing about writes: the rights differ.
            Err(error) if error.kind().is_outage() => self.note_failed_write(error),
            Ok(()) | Err(_) => {}
        }
        outcome
    }

    /// Deletes what was invalidated, however long that takes: a restart must not bring it back.
    async fn delete_until_done(self: &Arc<Self>, key: &CacheKey, variant: Option<u128>) {
        for attempt in ATTEMPTS.. {
            self.back_off(attempt).await;
            self.wait_to_write().await;
            let Ok(_permit) = self.deleting.acquire().await else { return };
            if self.delete_once(key, variant).await.is_ok() {
                return;
            }
        }
    }

    /// Deletes what a key leads to, or one variant of it: the object, and in a directory its variants and their separate
    /// bodies. In a bucket nothing leads to those any more, and its lifecycle rules end them.
    async fn delete_all(&self, key: &CacheKey, variant: Option<u128>) -> Result<(), StoreError> {
        let name = match variant {
            Some(variant) => self.names.variant(key, variant),
            None => self.names.primary(key),
        };
        for member in self.place.family(&name).await? {
            let body = self.existing(&member, key).await.and_then(|(_, body)| body);
            self.place.delete(&member).await?;
            if let Some(body) = body {
                self.place.delete(&self.names.body(body)).await?;
            }
        }
        Ok(())
    }

    /// Returns the head and the separate body of the response that `name` holds in a directory. In a bucket that would
    /// cost a request for each write.
    async fn existing(&self, name: &str, key: &CacheKey) -> Option<(Box<StoredHead>, Option<u128>)> {
        if !self.place.is_local() {
            return None;
        }
        let bytes = self.place.get(name, self.config.inline_size + HEAD_LIMIT).await.ok()?;
        match decode(&bytes, key, &LifetimePolicy::default()) {
            Ok(Object::Response { head, body }) => {
                let separate = matches!(body, DurableBody::Separate { .. }).then(|| head.body_id());
                Some((head, separate))
            }
            Ok(Object::Vary(_)) | Err(_) => None,
        }
    }

    /// Writes an object, and then deletes the separate body that the replaced object led to.
    async fn replace(&self, name: &str, object: Bytes, stored: &StoredHead) -> Result<(), StoreError> {
        let before = self.existing(name, &stored.key).await;
        let own = stored.body_object.as_ref();
        let is_own = |body: &u128| own.is_some_and(|own| own.id == *body);
        let now = self.purges.time();
        if let Some((_, body)) = before.as_ref().filter(|(head, _)| head.outranks(stored, now)) {
            if let Some(own) = own.filter(|own| own.is_written() && !body.as_ref().is_some_and(is_own)) {
                own.note(false);
                self.place.delete(&self.names.body(own.id)).await?;
            }
            return Ok(());
        }
        self.place.put(name, &[object]).await?;
        match before.and_then(|(_, body)| body) {
            Some(body) if !is_own(&body) => self.place.delete(&self.names.body(body)).await,
            Some(_) | None => Ok(()),
        }
    }

    /// Writes the separate body first, then the head, then the record that leads to it: a reader finds all of it or none,
    /// wherever a crash falls.
    async fn write(&self, put: &Put, record: Option<&VaryRecord>) -> Result<(), StoreError> {
        let head = put.head();
        let key = &head.key;
        let object: Bytes = match put {
            Put::Whole(stored) => {
                if let Some(object) = &head.body_object
                    && !self.has_body(object).await?
                {
                    self.place.put(&self.names.body(object.id), stored.body().segments()).await?;
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
                self.place.put(&self.names.primary(key), &[encode_vary(record).into()]).await?;
            }
            _ => self.replace(&self.names.primary(key), object, head).await?,
        }
        // A body that an earlier head led to may have been evicted with that.
        match &head.body_object {
            Some(object) if object.is_written() && !self.has_body(object).await? => Err(match put {
                Put::Whole(_) => StoreError::new(StoreErrorKind::Absent, "its body was evicted meanwhile"),
                Put::Apart(_) => StoreError::new(StoreErrorKind::Full, "its body was evicted meanwhile"),
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// Returns whether a separate body is written and was not evicted since.
    async fn has_body(&self, object: &BodyObject) -> Result<bool, StoreError> {
        if object.is_written() && self.place.was_evicted(&self.names.body(object.id)).await? {
            object.note(false);
        }
        Ok(object.is_written())
    }
}
