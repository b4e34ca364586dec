//! A look-up that only reports what the tier has, for an operator who asks why a request was answered as it was.

use std::sync::Arc;

use http::header::HeaderMap;

use super::{Durable, HEAD_LIMIT, Inner};
use crate::entry::encoding::{DecodeError, DurableBody, Object, decode};
use crate::entry::{StoredHead, VaryRecord};
use crate::rfc9111::freshness::LifetimePolicy;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::storage::StoragePolicy;
use crate::store::error::StoreErrorKind;

/// The tier's content for a request, or the reason why it serves nothing.
#[derive(Debug)]
pub enum Examined {
    /// The journal is not read yet: nothing of the tier is served.
    NotLoaded,
    /// The index has no such key: the place was not asked.
    NotIndexed,
    /// The place counts as down, or has just refused a read: it was not asked.
    Down,
    /// The place failed.
    Failed(String),
    /// A write or deletion of the key waits.
    Waiting,
    /// There is no such object.
    Nothing,
    /// There is an object that can't be believed.
    Unreadable(DecodeError),
    /// There are responses for the key, none for this request.
    OtherVariants(VaryRecord),
    /// There is a response.
    Response {
        /// Its head.
        head: Box<StoredHead>,
        /// The length of its body.
        len: u64,
        /// True if the body is an object of its own.
        is_apart: bool,
    },
}

impl Durable {
    /// Looks for a response to `request` as a look-up does, and reports what there is. Changes nothing.
    pub async fn examine(&self, key: &CacheKey, request: &HeaderMap, policy: Arc<StoragePolicy>) -> Examined {
        let inner = Arc::clone(&self.inner);
        if inner.queue.is_pending(key.hash()) {
            return Examined::Waiting;
        }
        if !inner.journal.is_loaded() {
            return Examined::NotLoaded;
        }
        if !inner.index.may_hold(key.hash()) {
            return Examined::NotIndexed;
        }
        if inner.spares_lookups() {
            return Examined::Down;
        }
        let (key, request) = (key.clone(), request.clone());
        let looking = self.runtime.spawn(async move { inner.examine(&key, &request, &policy.lifetimes).await });
        match tokio::time::timeout(self.lookup_timeout, looking).await {
            Ok(Ok(examined)) => examined,
            Ok(Err(_)) => Examined::Failed("the look-up was given up".into()),
            Err(_) => Examined::Failed("it does not answer in time".into()),
        }
    }
}

impl Inner {
    async fn examine(&self, key: &CacheKey, request: &HeaderMap, policy: &LifetimePolicy) -> Examined {
        let record = match self.read_object(&self.names.primary(key), key, policy).await {
            Ok(Object::Response { head, body }) if head.is_selected_by(request) => return response(head, &body),
            Ok(Object::Response { .. }) => return Examined::Nothing,
            Ok(Object::Vary(record)) => record,
            Err(examined) => return examined,
        };
        for hash in record.candidates(request).collect::<Vec<_>>() {
            match self.read_object(&self.names.variant(key, hash), key, policy).await {
                Ok(Object::Response { head, body }) if head.is_selected_by(request) => return response(head, &body),
                Ok(_) | Err(Examined::Nothing) => {}
                Err(examined) => return examined,
            }
        }
        Examined::OtherVariants(record)
    }

    async fn read_object(&self, name: &str, key: &CacheKey, policy: &LifetimePolicy) -> Result<Object, Examined> {
        match self.place.get(name, self.config.inline_size + HEAD_LIMIT).await {
            Ok(object) => decode(&object, key, policy).map_err(Examined::Unreadable),
            Err(error) if error.kind() == StoreErrorKind::Absent => Err(Examined::Nothing),
            Err(error) => Err(Examined::Failed(error.to_string())),
        }
    }
}

fn response(head: Box<StoredHead>, body: &DurableBody) -> Examined {
    let (len, is_apart) = match body {
        DurableBody::Inline(bytes) => (bytes.len() as u64, false),
        DurableBody::Separate { len, .. } => (*len, true),
    };
    Examined::Response { head, len, is_apart }
}
