//! Writing behind: what waits in the queue is carried out, a key's operations in their order.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{ATTEMPTS, HEAD_LIMIT, Inner, MAX_PAUSE};
use crate::rfc9111::freshness::LifetimePolicy;
use crate::rfc9111::key::CacheKey;
use crate::store::backend::{Backend, BackendError};
use crate::store::queue::{Op, Put};
use crate::stored::encoding::{DurableBody, Object, decode, encode_apart, encode_response, encode_vary};
use crate::stored::seen::Covered;
use crate::stored::{BodyObject, StoredHead, VaryRecord};
use crate::telemetry::DurableOp;

/// A key whose deletion failed, and has to be tried again.
struct Undeleted(CacheKey, Option<u128>, Option<Arc<BodyObject>>);

/// Carries out operations in their order until the tier is dropped.
pub(super) async fn write_behind(inner: Arc<Inner>, mut ops: mpsc::UnboundedReceiver<Op>) {
    // The senders live in `inner`, which this task holds: it ends with the runtime.
    while let Some(op) = ops.recv().await {
        let (hash, bytes) = (op.key().hash(), op.bytes());
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
        inner.queue.leave(bytes);
    }
}

impl Inner {
    pub(super) async fn forget_body(&self, id: u128) {
        let outcome = self.backend.delete(&self.names.body(id)).await;
        self.note(DurableOp::Delete, &outcome);
    }

    pub(super) fn enqueue(&self, op: Op) {
        self.queue.enter(&op);
        let (hash, bytes) = (op.key().hash(), op.bytes());
        // By key, so that operations on one key keep their order.
        let writer = usize::try_from(hash % self.writers.len() as u128).unwrap_or(0);
        if self.writers[writer].send(op).is_err() {
            self.queue.settle(hash);
            self.queue.leave(bytes);
        }
    }

    async fn carry_out(&self, op: Op) -> Result<(), Undeleted> {
        match op {
            Op::Put { stored, record } => {
                let head = stored.head();
                if self.purges.covers(head, head.position) == Covered::No {
                    self.is_up().await;
                    let outcome = self.try_repeatedly(|| self.write(&stored, record.as_deref())).await;
                    self.note(DurableOp::Put, &outcome);
                    // An error may be that of an answer, and the object be written for all that.
                    if outcome.is_ok() || !self.backend.is_near() {
                        self.journal.announce(head.key.hash());
                    }
                    if outcome.is_ok() {
                        return Ok(());
                    }
                }
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
                let outcome = self.try_repeatedly(|| self.delete_all(&key, variant)).await;
                self.note(DurableOp::Delete, &outcome);
                if outcome.is_err() {
                    return Err(Undeleted(key, variant, body));
                }
                if variant.is_none() {
                    self.index.remove(key.hash());
                }
                Ok(())
            }
        }
    }

    /// Tries to delete until it is done: what was invalidated must not come back with the tier.
    async fn delete_at_last(&self, key: &CacheKey, variant: Option<u128>) {
        let mut pause = Duration::from_millis(500);
        loop {
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause = (pause * 2).min(MAX_PAUSE);
            let outcome = self.delete_all(key, variant).await;
            self.note(DurableOp::Delete, &outcome);
            if outcome.is_ok() {
                return;
            }
        }
    }

    async fn try_repeatedly<F: Future<Output = Result<(), BackendError>>>(
        &self,
        operation: impl Fn() -> F,
    ) -> Result<(), BackendError> {
        let mut attempt = 1;
        loop {
            match operation().await {
                Err(_) if attempt < ATTEMPTS => {
                    let backoff = Duration::from_millis(50 << attempt);
                    tokio::time::sleep(backoff.mul_f64(0.5 + fastrand::f64())).await;
                    attempt += 1;
                }
                outcome => return outcome,
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
                if let Some(object) = head.body_object.as_ref().filter(|object| !object.is_written()) {
                    self.backend.put(&self.names.body(object.id), stored.body().segments()).await?;
                    object.note(true);
                }
                encode_response(stored, head.body_object.is_none()).into()
            }
            Put::Apart(stored) => encode_apart(head, stored.len, &stored.checksums).into(),
        };
        match (head.variant(), record) {
            (Some(variant), Some(record)) => {
                let name = self.names.variant(key, record.variant_hash(&variant.selector));
                self.replace(&name, object, head).await?;
                self.backend.put(&self.names.primary(key), &[encode_vary(record).into()]).await
            }
            _ => self.replace(&self.names.primary(key), object, head).await,
        }
    }
}
