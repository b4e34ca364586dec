//! Looking for a request: in the queue, the index, and then the place itself.

use std::pin::Pin;
use std::sync::Arc;

use http::header::HeaderMap;
use tokio::runtime::Handle;

use super::{Apart, BodyReader, Durable, HEAD_LIMIT, Inner};
use crate::base::{DurableOp, DurableOutcome, Saved, Stopwatch};
use crate::entry::encoding::{DecodeError, DurableBody, Object, decode};
use crate::entry::{Body, StoredHead, StoredResponse, VaryRecord};
use crate::rfc9111::freshness::LifetimePolicy;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::storage::StoragePolicy;
use crate::store::queue::{Put, Waiting};
use bytes::Bytes;

/// What the tier has for a request.
#[derive(Debug)]
pub enum Found {
    /// A response that the key and `Vary` select.
    Response(Box<FoundResponse>),
    /// Responses for the key, none for this request.
    OtherVariants(VaryRecord),
    /// Nothing, or nothing that could be had in time.
    Nothing,
}

/// A response from the durable tier.
#[derive(Debug)]
pub struct FoundResponse {
    /// Its head.
    pub head: StoredHead,
    /// Its body.
    pub body: FoundBody,
    /// The record that led to it, where it varies.
    pub record: Option<VaryRecord>,
}

/// The body of a response from the durable tier.
#[derive(Debug)]
pub enum FoundBody {
    /// All of it.
    Whole(Body),
    /// Its first piece, and the rest as it comes.
    Streamed(Bytes, BodyReader),
    /// An object of its own that was not opened, as was asked.
    Apart(Apart),
}

/// Whether a separate body is opened when it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// It is, and its first piece is checked.
    AtOnce,
    /// It is not: what is wanted of it is to be seen.
    Later,
}

/// How the tier is looked into.
struct Looked<'a> {
    request: &'a HeaderMap,
    opening: Opening,
    runtime: Handle,
    /// The purge position when it began.
    position: u64,
}

impl Durable {
    /// What the tier has for `key` and `request`, within the lookup timeout. `known` is the
    /// record that memory has of the key.
    pub async fn lookup(
        &self,
        key: &CacheKey,
        request: &HeaderMap,
        policy: Arc<StoragePolicy>,
        known: Option<Arc<VaryRecord>>,
        opening: Opening,
    ) -> Found {
        let (mut waiting, inner) = (None, &self.inner);
        match inner.queue.look(key, request) {
            Waiting::Nothing => {}
            Waiting::Found(Put::Whole(stored), record) => return self.waiting(&stored, record, known.is_some()),
            // Its body is there already.
            Waiting::Found(Put::Apart(stored), record) => waiting = Some((stored, record)),
            // A write that a purge came before is skipped in its turn.
            Waiting::Other(Some((record, position))) if !inner.purges.covers_fetch(key.hash(), position) => {
                return Found::OtherVariants((*record).clone());
            }
            Waiting::Other(_) => return Found::Nothing,
        }
        if !inner.journal.is_loaded() {
            return Found::Nothing;
        }
        if !inner.index.may_hold(key.hash()) && waiting.is_none() {
            inner.metrics.saved(Saved::Index);
            return Found::Nothing;
        }
        if inner.breaker.is_open() {
            inner.metrics.saved(Saved::Breaker);
            return Found::Nothing;
        }
        let watch = Stopwatch::start();
        let looked = Looked { request, opening, runtime: self.runtime.clone(), position: inner.purges.position() };
        // On the thread that asks: to hand it to another and back costs as much as the rest.
        let looking: Pin<Box<dyn Future<Output = Found> + Send + '_>> = Box::pin(async {
            let Some((stored, record)) = waiting else {
                return inner.lookup(key, &looked, &policy.lifetimes, known).await;
            };
            let body = DurableBody::Separate { len: stored.len, checksums: Arc::clone(&stored.checksums) };
            let record = record.filter(|_| known.is_none()).map(|record| (*record).clone());
            inner.found((*stored.head).clone(), body, &looked, record).await
        });
        let found = match tokio::time::timeout(self.lookup_timeout, looking).await {
            Ok(found) => found,
            Err(_) => {
                inner.metrics.durable(DurableOp::Get, DurableOutcome::TimedOut);
                inner.failed(true, &"it does not answer in time");
                Found::Nothing
            }
        };
        self.inner.metrics.durable_latency.record(watch.elapsed());
        found
    }

    /// A response that waits to be written, as it will be found.
    fn waiting(&self, stored: &Arc<StoredResponse>, record: Option<Arc<VaryRecord>>, is_known: bool) -> Found {
        let (purges, mut head) = (&self.inner.purges, stored.head.clone());
        let position = purges.position();
        if !head.outlives(purges.covers(&head, head.position)) {
            return Found::Nothing;
        }
        head.position = position;
        Found::Response(Box::new(FoundResponse {
            head,
            body: FoundBody::Whole(stored.body()),
            record: record.filter(|_| !is_known).map(|record| (*record).clone()),
        }))
    }
}

impl Inner {
    async fn lookup(
        self: &Arc<Self>,
        key: &CacheKey,
        looked: &Looked<'_>,
        policy: &LifetimePolicy,
        known: Option<Arc<VaryRecord>>,
    ) -> Found {
        let is_known = known.is_some();
        let record = match known {
            Some(record) => (*record).clone(),
            None => match self.object(&self.names.primary(key), key, policy).await {
                None => return Found::Nothing,
                Some(Object::Vary(record)) => record,
                Some(Object::Response { head, body }) => return self.found(*head, body, looked, None).await,
            },
        };
        let candidates: Vec<u128> = record.candidates(looked.request).collect();
        for hash in candidates {
            if let Some(Object::Response { head, body }) =
                self.object(&self.names.variant(key, hash), key, policy).await
            {
                if is_known && self.backend.is_near() {
                    self.backend.note_use(&self.names.primary(key));
                }
                // One that came from memory may have been removed there since: it does not go back.
                let record = (!is_known).then_some(record);
                return self.found(*head, body, looked, record).await;
            }
        }
        Found::OtherVariants(record)
    }

    async fn found(
        self: &Arc<Self>,
        mut head: StoredHead,
        body: DurableBody,
        looked: &Looked<'_>,
        record: Option<VaryRecord>,
    ) -> Found {
        if !head.outlives(self.purges.covers_read(&head)) || !head.is_selected_by(looked.request) {
            return Found::Nothing;
        }
        // Compared with all that is known now.
        head.position = looked.position;
        let body = match body {
            DurableBody::Inline(bytes) => FoundBody::Whole(Body::from(bytes)),
            DurableBody::Separate { len, checksums } if looked.opening == Opening::Later => FoundBody::Apart(Apart {
                inner: Arc::clone(self),
                runtime: looked.runtime.clone(),
                name: self.names.body(head.body_id()),
                len,
                checksums,
            }),
            DurableBody::Separate { len, checksums } => match self.open_body(&head, len, checksums).await {
                Some(body) => body,
                None => return Found::Nothing,
            },
        };
        Found::Response(Box::new(FoundResponse { head, body, record }))
    }

    async fn object(self: &Arc<Self>, name: &str, key: &CacheKey, policy: &LifetimePolicy) -> Option<Object> {
        let is_primary = name.rsplit('/').next().is_some_and(|last| !last.contains('.'));
        let answer = self.backend.get(name, self.config.inline_size + HEAD_LIMIT).await;
        match &answer {
            Ok(_) => drop(self.breaker.succeeded()),
            Err(error) => self.failed(false, error),
        }
        let bytes = match answer {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                self.metrics.durable(DurableOp::Get, DurableOutcome::NotFound);
                if is_primary && !self.queue.is_pending(key.hash()) {
                    self.index.remove(key.hash());
                }
                return None;
            }
            Err(error) => {
                self.note_error(DurableOp::Get, &error);
                return None;
            }
        };
        match decode(&bytes, key, policy) {
            Ok(object) => {
                self.metrics.durable(DurableOp::Get, DurableOutcome::Ok);
                Some(object)
            }
            Err(DecodeError::OtherKey) => {
                // Two keys with one hash: the other one's object is sound, and not ours.
                self.metrics.durable(DurableOp::Get, DurableOutcome::NotFound);
                None
            }
            Err(error) => {
                self.unreadable(name, error.as_str());
                // Said once: it is not looked for again before it is written again.
                if is_primary && !self.queue.is_pending(key.hash()) {
                    self.index.remove(key.hash());
                }
                None
            }
        }
    }
}
