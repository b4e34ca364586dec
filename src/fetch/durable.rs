//! Uses what the durable tier has for a fetch: answers with it, takes it into memory, or has it validated or
//! completed.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use tokio::sync::mpsc;
use tracing::{Span, warn};

use super::body::fill_from_durable;
use super::decide::{OnStored, Use};
use super::fetch::{Fetch, Fetched, ForLeader, shared};
use super::flight::{Provenance, Shared, SharedResponse};
use crate::base::log::cut;
use crate::entry::{Body, Replaced, StoredResponse};
use crate::rfc9111::cache_status::{Fwd, Tier};
use crate::rfc9111::validation;
use crate::store::{BodyPart, DurableLookup, FoundBody, FoundResponse, KnownRecord, Opening, StoreError};

impl Fetch {
    /// Asks the durable tier. Returns its response if that may be reused; otherwise notes in the order what the tier
    /// has.
    pub(super) async fn consult_durable(&mut self, opening: Opening) -> Option<Fetched> {
        let is_known = self.order.held.known.is_some();
        let (policy, known) = (
            Arc::clone(&self.order.asked.terms.policy),
            self.order.held.known.as_ref().map(|known| Arc::clone(&known.record)),
        );
        match self
            .fetcher
            .store
            .lookup_durable(&self.order.asked.exact, self.order.client_fields(), policy, known, opening)
            .await
        {
            DurableLookup::Response(found) if found.head.parts().is_some() => {
                let part = self.whole_from_durable(*found).await?;
                self.fetcher.store.promote(&part, None);
                match self.decide_on_stored(&part.head, part.len()) {
                    OnStored::Fetch(Fwd::Partial) => {
                        self.order.held.fwd = Fwd::Partial;
                        self.order.held.part = Some(part);
                    }
                    OnStored::Answer(..) => return Some(shared(&part, Provenance::Tier(Tier::Durable))),
                    OnStored::Fetch(_) | OnStored::NotCached => {
                        self.order.held.fwd = Fwd::Stale;
                        self.order.held.validate = Some(part);
                    }
                }
            }
            DurableLookup::Response(found) if let OnStored::Answer(why, _) = self.decide_on_stored(&found.head, 0) => {
                let is_stale = why == Use::WhileRevalidate;
                let fetched = self.take_durable(*found);
                // Validates the copy that is in memory from now on: the outcome of each try is noted there. A body
                // that is still streaming is validated later, when it is in memory.
                if let (true, Fetched::Shared(shared, _)) = (is_stale, &fetched)
                    && let SharedResponse::Stored(stored) = &shared.response
                {
                    self.validate_in_background(Arc::clone(stored));
                }
                return Some(fetched);
            }
            DurableLookup::Response(found) => self.validate_durable(*found).await,
            DurableLookup::OtherVariants(record) => {
                let record = Arc::new(record);
                // A record that came from memory is not put back: memory may have removed it since.
                if !is_known {
                    self.fetcher.store.adopt((*record).clone(), self.position);
                }
                self.order.held.known = Some(KnownRecord { record, position: self.position });
                self.order.held.fwd = Fwd::VaryMiss;
            }
            DurableLookup::Nothing | DurableLookup::Unknown => {}
        }
        None
    }

    /// Answers from the durable tier, and keeps its response in memory.
    fn take_durable(&mut self, found: FoundResponse) -> Fetched {
        let mut head = found.head;
        // The read has checked the stored position. From here on the response is covered by purges made after the read
        // began.
        head.position = self.position;
        let source = Provenance::Tier(Tier::Durable);
        match found.body {
            FoundBody::Whole(body) => {
                let stored = Arc::new(StoredResponse::new(head, body));
                if stored.len() <= self.fetcher.limits.memory.max_object_size {
                    self.fetcher.store.promote(&stored, found.record);
                }
                let shared = shared(&stored, source);
                if let Fetched::Shared(shared, _) = &shared {
                    self.publish(shared);
                }
                self.lease = None;
                shared
            }
            FoundBody::Separate(apart) => Fetched::Apart(Arc::new(head), Box::new(apart)),
            FoundBody::Streamed(first, reader) => {
                let writer = self.fetcher.limits.start_fill(Some(first.len() as u64 + reader.left()));
                let fill = Arc::clone(writer.fill());
                let for_leader = ForLeader { cookies: HeaderMap::new(), reader: fill.reader() };
                let head = Arc::new(head);
                let response = SharedResponse::Filling(Arc::clone(&head), fill);
                let shared = Arc::new(Shared { response, source });
                self.publish(&shared);
                let (this, lease) = (Arc::clone(&self.fetcher), self.lease.take());
                self.fetcher.spawn(Span::current(), async move {
                    let key = head.key.clone();
                    let keep = |body| {
                        let stored = Arc::new(StoredResponse::new(Arc::unwrap_or_clone(head), body));
                        this.store.promote(&stored, found.record);
                        stored.into_body()
                    };
                    if let Err(error) = fill_from_durable(writer, first, reader, keep).await {
                        // The next request for it gets it from the origin.
                        warn!(
                            url = &*cut(key.to_url().into()),
                            "a body from the durable tier broke off, and is deleted there: {error}"
                        );
                        this.store.discard(&key, None);
                    }
                    drop(lease);
                });
                Fetched::Shared(shared, for_leader)
            }
        }
    }

    /// Has a response of the durable tier validated that may not be reused as it is.
    async fn validate_durable(&mut self, found: FoundResponse) {
        // A key that varies is not deleted: it may have fresh variants beside the expired one.
        if self.fetcher.purge_expired_on_read
            && found.record.is_none()
            && !found.head.freshness.is_fresh(self.fetcher.clock.now())
        {
            // Deletes its separate body as well.
            self.fetcher.store.discard(&self.order.asked.exact, found.head.body_object.clone());
        }
        self.order.held.fwd =
            if found.head.freshness.is_fresh(self.fetcher.clock.now()) { Fwd::Request } else { Fwd::Stale };
        let freshness = &found.head.freshness;
        self.order.held.tier = Tier::Durable;
        let is_of_use = validation::has_validator(&found.head.fields.to_map())
            || !freshness.stale_if_error.is_zero()
            || !freshness.stale_if_unreachable.is_zero();
        if is_of_use {
            self.order.held.validate = self.whole_from_durable(found).await;
        } else {
            self.order.held.replaced = Some(Replaced::head(&found.head));
        }
    }

    /// Reads a response of the durable tier to its end, to be validated or added to. It has to fit into memory, from
    /// which it is served afterwards.
    async fn whole_from_durable(&mut self, found: FoundResponse) -> Option<Arc<StoredResponse>> {
        let body = match found.body {
            FoundBody::Whole(body) => Some(body),
            FoundBody::Separate(apart) if apart.len() <= self.fetcher.limits.memory.max_object_size => {
                match apart.read(vec![BodyPart::Range(0, apart.len())]).await {
                    Some(pieces) => self.collect(pieces, apart.len()).await,
                    None => None,
                }
            }
            // It would not fit into memory.
            FoundBody::Separate(_) => None,
            FoundBody::Streamed(first, reader)
                if first.len() as u64 + reader.left() > self.fetcher.limits.memory.max_object_size =>
            {
                None
            }
            FoundBody::Streamed(first, reader) => {
                let mut whole = None;
                let keep = |body: Body| whole.insert(body).clone();
                let len = first.len() as u64 + reader.left();
                match fill_from_durable(self.fetcher.limits.start_fill(Some(len)), first, reader, keep).await {
                    Ok(()) => whole,
                    Err(error) => {
                        warn!(
                            url = &*cut(self.order.asked.exact.to_url().into()),
                            "a body from the durable tier broke off, and is deleted there: {error}"
                        );
                        self.fetcher.store.discard(&self.order.asked.exact, None);
                        None
                    }
                }
            }
        };
        let mut head = found.head;
        head.position = self.position;
        if let Some(record) = found.record {
            self.order.held.known = Some(KnownRecord { record: Arc::new(record.clone()), position: self.position });
            self.fetcher.store.adopt(record, self.position);
        }
        body.map(|body| Arc::new(StoredResponse::new(head, body)))
    }

    /// Collects the pieces from a channel into a body; `None`: they are not `len` bytes, or there is no room.
    async fn collect(&self, mut pieces: mpsc::Receiver<Result<Bytes, StoreError>>, len: u64) -> Option<Body> {
        let mut writer = self.fetcher.limits.start_fill(Some(len));
        while let Some(piece) = pieces.recv().await {
            if !writer.push(piece.ok()?).await {
                return None;
            }
        }
        let body = writer.whole(&Bytes::new()).filter(|body| body.len() == len);
        writer.complete(Bytes::new(), body.clone());
        body
    }
}
