//! Look-ups: first in the queue, then in the index, and only then in the place.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::HeaderMap;
use tokio::runtime::Handle;

use super::{BodyReader, Durable, Inner, SeparateBody};
use crate::base::{DurableOp, DurableOutcome, Saved, Stopwatch};
use crate::entry::encoding::{DecodeError, DurableBody, Object, decode};
use crate::entry::{Body, JournalTime, StoredHead, StoredResponse, VaryRecord};
use crate::rfc9111::freshness::LifetimePolicy;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::storage::StoragePolicy;
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::index::{Fingerprint, Found};
use crate::store::names::PackName;
use crate::store::pack::{Entry, EntryHeader};
use crate::store::queue::{Put, Waiting};

/// The result of a look-up.
#[derive(Debug)]
pub enum DurableLookup {
    /// A response that the key and `Vary` select.
    Response(Box<FoundResponse>),
    /// Responses for the key, none for this request.
    OtherVariants(VaryRecord),
    /// Nothing.
    Nothing,
    /// Nothing that could be read in time: there may be one.
    Unknown,
}

/// A response from the durable tier.
#[derive(Debug)]
pub struct FoundResponse {
    /// Its head.
    pub head: StoredHead,
    /// Its body.
    pub body: FoundBody,
    /// The record that led to it, if it varies.
    pub record: Option<VaryRecord>,
}

/// The body of a response from the durable tier.
#[derive(Debug)]
pub enum FoundBody {
    /// All of it.
    Whole(Body),
    /// Its first chunk, and a reader of the rest.
    Streamed(Bytes, BodyReader),
    /// A separate body that is not opened, as [`Opening::Later`] asks.
    Separate(SeparateBody),
}

/// Says when a separate body is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// With its head: its first chunk is verified before the look-up returns.
    AtOnce,
    /// Later, by the caller, who decides what to read of it.
    Later,
}

/// The reason why a look-up has no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    /// There is none that can be believed.
    Absent,
    /// There is a place for it, which could not be read.
    Unread,
}

/// A look-up under way.
struct Search<'a> {
    request: &'a HeaderMap,
    opening: Opening,
    runtime: Handle,
    /// The purge position at its beginning.
    position: u64,
}

impl Durable {
    /// Looks for a response to `request`, at most for the look-up timeout. `known` is the record that memory has of the key.
    pub async fn lookup(
        &self,
        key: &CacheKey,
        request: &HeaderMap,
        policy: Arc<StoragePolicy>,
        known: Option<Arc<VaryRecord>>,
        opening: Opening,
    ) -> DurableLookup {
        let (mut waiting, inner) = (None, &self.inner);
        match inner.queue.look(key, request) {
            Waiting::Nothing => {}
            Waiting::Found(Put::Whole(stored), record) => return self.waiting(&stored, record, known.is_some()),
            // Its body is written already, and read from the place.
            Waiting::Found(Put::Apart(stored), record) => waiting = Some((stored, record)),
            // A purged record is not written: its writer skips it.
            Waiting::Other(Some((record, position))) if !inner.purges.covers_fetch(key.hash(), position) => {
                return DurableLookup::OtherVariants((*record).clone());
            }
            Waiting::Other(_) => return DurableLookup::Nothing,
        }
        if !inner.journal.is_loaded() {
            return DurableLookup::Unknown;
        }
        if !inner.index.may_hold(key) && waiting.is_none() {
            inner.metrics.saved(Saved::Index);
            return DurableLookup::Nothing;
        }
        if inner.spares_lookups() {
            inner.metrics.saved(Saved::Breaker);
            return DurableLookup::Unknown;
        }
        let watch = Stopwatch::start();
        let search = Search { request, opening, runtime: self.runtime.clone(), position: inner.purges.position() };
        // Runs on the thread that asks: handing it to another and back costs as much as the rest.
        let looking: Pin<Box<dyn Future<Output = DurableLookup> + Send + '_>> = Box::pin(async {
            let Some((stored, record)) = waiting else {
                return inner.lookup(key, &search, &policy.lifetimes, known).await;
            };
            let body = DurableBody::Separate { len: stored.len, checksums: Arc::clone(&stored.checksums) };
            let record = record.filter(|_| known.is_none()).map(|record| (*record).clone());
            inner.found((*stored.head).clone(), body, &search, record).await
        });
        let found = match tokio::time::timeout(self.lookup_timeout, looking).await {
            Ok(found) => found,
            Err(_) => {
                inner.metrics.durable(DurableOp::Get, DurableOutcome::TimedOut);
                inner.note_outage(true, &StoreError::timed_out());
                DurableLookup::Unknown
            }
        };
        self.inner.metrics.durable_latency.record(watch.elapsed());
        found
    }

    /// Returns a response that waits to be written as it would be found in the place.
    fn waiting(&self, stored: &Arc<StoredResponse>, record: Option<Arc<VaryRecord>>, is_known: bool) -> DurableLookup {
        let (purges, mut head) = (&self.inner.purges, stored.head.clone());
        let position = purges.position();
        if !head.outlives(purges.covers(&head, head.position)) {
            return DurableLookup::Nothing;
        }
        head.position = position;
        DurableLookup::Response(Box::new(FoundResponse {
            head,
            body: FoundBody::Whole(stored.body()),
            record: record.filter(|_| !is_known).map(|record| (*record).clone()),
        }))
    }
}

/// The entries that one read brought: the first, and those of its group.
#[derive(Debug)]
pub(super) struct Group {
    /// The entry at the place.
    pub(super) first: Object,
    /// The variant that a Vary record was written with.
    pub(super) second: Option<Second>,
}

/// An entry that was read with the one before it.
#[derive(Debug)]
pub(super) struct Second {
    /// The name of the variant.
    variant: u128,
    /// The entry's order.
    order: JournalTime,
    /// The pack, and the entry's place in it.
    pack: PackName,
    offset: u64,
    /// The bytes from there on.
    bytes: Bytes,
}

impl Inner {
    async fn lookup(
        self: &Arc<Self>,
        key: &CacheKey,
        search: &Search<'_>,
        policy: &LifetimePolicy,
        known: Option<Arc<VaryRecord>>,
    ) -> DurableLookup {
        let is_known = known.is_some();
        let (record, second) = match known {
            Some(record) => ((*record).clone(), None),
            None => match self.group(key, 0, policy).await {
                Err(Missing::Absent) => return DurableLookup::Nothing,
                Err(Missing::Unread) => return DurableLookup::Unknown,
                Ok(Group { first: Object::Vary(record), second }) => (record, second),
                Ok(Group { first: Object::Response { head, body }, .. }) => {
                    return self.found(*head, body, search, None).await;
                }
            },
        };
        let candidates: Vec<u128> = record.candidates(search.request).collect();
        for variant in candidates {
            let object = match &second {
                Some(second) if self.leads_to(second, key, variant) => second.decode(key, policy).ok(),
                Some(_) | None => self.group(key, variant, policy).await.ok().map(|group| group.first),
            };
            if let Some(Object::Response { head, body }) = object {
                // A record that came from memory may have been removed there since. It does not go back.
                let record = (!is_known).then_some(record);
                return self.found(*head, body, search, record).await;
            }
        }
        DurableLookup::OtherVariants(record)
    }

    /// Returns whether an entry that was read with its record is still that of the variant: it may have been deleted, or
    /// replaced, by another that left the record as it is.
    pub(super) fn leads_to(&self, second: &Second, key: &CacheKey, variant: u128) -> bool {
        second.variant == variant
            && self
                .index
                .find(self.index.fingerprint(key, variant))
                .filter(|found| (found.pack.name, found.place.offset) == (second.pack, second.offset))
                .is_some_and(|found| found.place.is_of(second.order))
    }

    async fn found(
        self: &Arc<Self>,
        mut head: StoredHead,
        body: DurableBody,
        search: &Search<'_>,
        record: Option<VaryRecord>,
    ) -> DurableLookup {
        if !head.outlives(self.purges.covers_read(&head)) || !head.is_selected_by(search.request) {
            return DurableLookup::Nothing;
        }
        // The response was just compared with all purges up to this position.
        head.position = search.position;
        let body = match body {
            DurableBody::Inline(bytes) => FoundBody::Whole(Body::from(bytes)),
            DurableBody::Separate { len, checksums } if search.opening == Opening::Later => {
                FoundBody::Separate(SeparateBody {
                    inner: Arc::clone(self),
                    runtime: search.runtime.clone(),
                    name: self.names.body(head.body_id()),
                    len,
                    checksums,
                })
            }
            DurableBody::Separate { len, checksums } => match self.open_body(&head, len, checksums).await {
                Some(body) => body,
                // One that can't be believed leaves the index.
                None => return DurableLookup::Unknown,
            },
        };
        DurableLookup::Response(Box::new(FoundResponse { head, body, record }))
    }

    /// Reads and decodes the entry of a slot. Counts the outcome. An entry that is absent or unreadable leaves the index.
    async fn group(self: &Arc<Self>, key: &CacheKey, variant: u128, policy: &LifetimePolicy) -> Result<Group, Missing> {
        let fingerprint = self.index.fingerprint(key, variant);
        // Once more, if the pack is gone: it may have been replaced by another.
        for _ in 0..2 {
            let Some(found) = self.index.find(fingerprint) else { return Err(Missing::Absent) };
            let name = self.names.pack(found.pack.name);
            let answer = self.place.read_pack(&name, found.place.offset, found.place.len).await;
            self.note_read(&answer);
            match answer {
                Ok(bytes) => return self.decoded(bytes, fingerprint, &found, key, policy).ok_or(Missing::Absent),
                Err(error) => match error.kind() {
                    StoreErrorKind::Absent => {
                        self.metrics.durable(DurableOp::Get, DurableOutcome::NotFound);
                        _ = self.index.remove_pack(found.pack.name);
                    }
                    StoreErrorKind::Corrupt => {
                        self.report_unreadable(&place_name(&found), &error);
                        self.index.bury(fingerprint, found.place);
                        return Err(Missing::Absent);
                    }
                    StoreErrorKind::Refused
                    | StoreErrorKind::Unavailable
                    | StoreErrorKind::Overloaded
                    | StoreErrorKind::Full
                    | StoreErrorKind::Unacceptable
                    | StoreErrorKind::GivenUp => {
                        self.report_error(DurableOp::Get, &error);
                        return Err(Missing::Unread);
                    }
                },
            }
        }
        if self.index.find(fingerprint).is_some() { Err(Missing::Unread) } else { Err(Missing::Absent) }
    }

    /// Decodes what was read at a place. Counts the outcome.
    pub(super) fn decoded(
        &self,
        bytes: Bytes,
        fingerprint: Fingerprint,
        found: &Found,
        key: &CacheKey,
        policy: &LifetimePolicy,
    ) -> Option<Group> {
        match decode_group(bytes, found, key, policy) {
            Ok(group) => {
                self.metrics.durable(DurableOp::Get, DurableOutcome::Ok);
                self.index.note_use(fingerprint, found.place);
                Some(group)
            }
            Err(DecodeError::OtherKey) => {
                // Two slots with one fingerprint: the entry is sound, and belongs to the other.
                self.metrics.durable(DurableOp::Get, DurableOutcome::NotFound);
                None
            }
            Err(error) => {
                self.report_unreadable(&place_name(found), &error.as_str());
                self.index.bury(fingerprint, found.place);
                None
            }
        }
    }
}

/// Returns the name of a place for people.
pub(super) fn place_name(found: &Found) -> String {
    format!("{} at {}", found.pack.name, found.place.offset)
}

impl Second {
    /// Decodes the entry.
    pub(super) fn decode(&self, key: &CacheKey, policy: &LifetimePolicy) -> Result<Object, DecodeError> {
        decode(&Entry::take(&mut self.bytes.clone())?.object, key, policy)
    }
}

/// Decodes the first entry of what was read at a place.
pub(super) fn decode_first(
    mut bytes: Bytes,
    found: &Found,
    key: &CacheKey,
    policy: &LifetimePolicy,
) -> Result<Object, DecodeError> {
    let entry = Entry::take(&mut bytes)?;
    decode_at(&entry, found, key, policy)
}

/// Decodes the entry that was read at a place. One of another order is not what was written there: the place has answered
/// with the bytes of another pack.
fn decode_at(entry: &Entry, found: &Found, key: &CacheKey, policy: &LifetimePolicy) -> Result<Object, DecodeError> {
    let object = decode(&entry.object, key, policy)?;
    if !found.place.is_of(entry.header.order) {
        return Err(DecodeError::OtherOrder);
    }
    if let Object::Response { head, .. } = &object
        && key.is_value()
    {
        head.marks.note_order(entry.header.order);
    }
    Ok(object)
}

fn decode_group(
    mut bytes: Bytes,
    found: &Found,
    key: &CacheKey,
    policy: &LifetimePolicy,
) -> Result<Group, DecodeError> {
    let entry = Entry::take(&mut bytes)?;
    let first = decode_at(&entry, found, key, policy)?;
    let is_group = u64::from(entry.header.group_len) > entry.header.len();
    let (pack, offset) = (found.pack.name, found.place.offset + entry.header.len());
    let second = EntryHeader::decode(&bytes).ok().filter(|_| is_group);
    let second = second.map(|header| Second { variant: header.variant, order: header.order, pack, offset, bytes });
    Ok(Group { first, second })
}
