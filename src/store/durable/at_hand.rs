//! Look-ups that do not wait: what the page cache has of a directory's packs is read in the request's own poll.
//!
//! Whatever would wait, or is not plain (an error, a separate body, a part), is left to a look-up that may.

use bytes::Bytes;
use http::header::HeaderMap;

use super::lookup::Group;
use super::{Durable, FoundBody, FoundResponse, Inner};
use crate::base::Stopwatch;
use crate::entry::encoding::{DurableBody, Object};
use crate::entry::{Body, StoredHead, VaryRecord};
use crate::rfc9111::freshness::LifetimePolicy;
use crate::rfc9111::key::CacheKey;

impl Durable {
    /// Looks for a response to `request`, if that is possible without waiting. `None` says nothing: another look-up may find
    /// one. `known` is the record that memory has of the key.
    pub fn look_at_hand(
        &self,
        key: &CacheKey,
        request: &HeaderMap,
        policy: &LifetimePolicy,
        known: Option<&VaryRecord>,
    ) -> Option<FoundResponse> {
        let inner = &self.inner;
        if !self.is_local || inner.queue.is_pending(key.hash()) || !inner.journal.is_loaded() || inner.spares_lookups()
        {
            return None;
        }
        let (position, watch) = (inner.purges.position(), Stopwatch::start());
        let (head, body, record) = inner.select_at_hand(key, request, policy, known)?;
        let found = inner.accept_at_hand(head, body, request, position, record)?;
        inner.metrics.durable_latency.record(watch.elapsed());
        inner.metrics.durable_at_hand.add_one();
        Some(found)
    }
}

impl Inner {
    /// Reads the response that the key and `Vary` select, and the record that led to it, unless it is known.
    fn select_at_hand(
        &self,
        key: &CacheKey,
        request: &HeaderMap,
        policy: &LifetimePolicy,
        known: Option<&VaryRecord>,
    ) -> Option<(StoredHead, Bytes, Option<VaryRecord>)> {
        let mut second = None;
        let read = match known {
            Some(_) => None,
            None => match self.group_at_hand(key, 0, policy)? {
                Group { first: Object::Vary(record), second: other } => {
                    second = other;
                    Some(record)
                }
                Group { first, .. } => return inline(first).map(|(head, body)| (head, body, None)),
            },
        };
        let record = known.or(read.as_ref())?;
        let candidates: Vec<u128> = record.candidates(request).collect();
        for variant in candidates {
            let object = match &second {
                Some(second) if self.leads_to(second, key, variant) => second.decode(key, policy).ok(),
                Some(_) | None if self.index.find(self.index.fingerprint(key, variant)).is_none() => continue,
                Some(_) | None => Some(self.group_at_hand(key, variant, policy)?.first),
            };
            return inline(object?).map(|(head, body)| (head, body, read));
        }
        None
    }

    fn group_at_hand(&self, key: &CacheKey, variant: u128, policy: &LifetimePolicy) -> Option<Group> {
        let fingerprint = self.index.fingerprint(key, variant);
        let found = self.index.find(fingerprint)?;
        let name = self.names.pack(found.pack.name);
        let bytes = self.place.read_at_hand(&name, found.place.offset, found.place.len)?.ok()?;
        self.decoded(bytes, fingerprint, &found, key, policy)
    }

    /// Returns a response that was read, unless a purge covers it or it is past its retention.
    fn accept_at_hand(
        &self,
        mut head: StoredHead,
        body: Bytes,
        request: &HeaderMap,
        position: u64,
        record: Option<VaryRecord>,
    ) -> Option<FoundResponse> {
        if head.parts().is_some() || !head.is_selected_by(request) || !head.outlives(self.purges.covers_read(&head)) {
            return None;
        }
        // The response was just compared with all purges up to this position.
        head.position = position;
        Some(FoundResponse { head, body: FoundBody::Whole(Body::from(body)), record })
    }
}

/// Returns the head and the body of a response that has both.
fn inline(object: Object) -> Option<(StoredHead, Bytes)> {
    match object {
        Object::Response { head, body: DurableBody::Inline(bytes) } => Some((*head, bytes)),
        Object::Response { body: DurableBody::Separate { .. }, .. } | Object::Vary(_) => None,
    }
}
