//! A look-up that only reports what the tier has, for an operator who asks why a request was answered as it was.

use std::sync::Arc;

use http::header::HeaderMap;

use super::lookup::{decode_first, place_name};
use super::{Durable, Inner};
use crate::entry::encoding::{DecodeError, DurableBody, Object};
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
        /// The pack and the offset of its entry.
        at: String,
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
        if !inner.index.may_hold(key) {
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
        let record = match self.read_entry(key, 0, policy).await {
            Ok((Object::Response { head, body }, at)) if head.is_selected_by(request) => {
                return response(head, &body, at);
            }
            Ok((Object::Response { .. }, _)) => return Examined::Nothing,
            Ok((Object::Vary(record), _)) => record,
            Err(examined) => return examined,
        };
        for variant in record.candidates(request).collect::<Vec<_>>() {
            match self.read_entry(key, variant, policy).await {
                Ok((Object::Response { head, body }, at)) if head.is_selected_by(request) => {
                    return response(head, &body, at);
                }
                Ok(_) | Err(Examined::Nothing) => {}
                Err(examined) => return examined,
            }
        }
        Examined::OtherVariants(record)
    }

    async fn read_entry(
        &self,
        key: &CacheKey,
        variant: u128,
        policy: &LifetimePolicy,
    ) -> Result<(Object, String), Examined> {
        let found = self.index.find(self.index.fingerprint(key, variant)).ok_or(Examined::Nothing)?;
        let name = self.names.pack(found.pack.name);
        match self.place.read_pack(&name, found.place.offset, found.place.len).await {
            Ok(bytes) => {
                let object = decode_first(bytes, &found, key, policy).map_err(Examined::Unreadable)?;
                Ok((object, place_name(&found)))
            }
            Err(error) if error.kind() == StoreErrorKind::Absent => Err(Examined::Nothing),
            Err(error) => Err(Examined::Failed(error.to_string())),
        }
    }
}

fn response(head: Box<StoredHead>, body: &DurableBody, at: String) -> Examined {
    let (len, is_apart) = match body {
        DurableBody::Inline(bytes) => (bytes.len() as u64, false),
        DurableBody::Separate { len, .. } => (*len, true),
    };
    Examined::Response { head, len, is_apart, at }
}
