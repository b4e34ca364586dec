//! What the durable tier has for a fetch: answered with, taken into memory, or made what is to be validated or
//! completed.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use tokio::sync::mpsc;
use tracing::warn;

use super::fetcher::shared;
use super::keep::fill_from_durable;
use super::{Fetched, Fetcher, ForLeader, Plan};
use crate::entry::{Body, Replaced, StoredResponse};
use crate::fetch::{Landing, Outcome, Shared, SharedResponse, Source};
use crate::rfc9111::cache_status::{Fwd, Tier};
use crate::rfc9111::reuse::Reuse;
use crate::rfc9111::validation;
use crate::store::{BodyPart, DurableLookup, FoundBody, FoundResponse, KnownRecord, Opening, StoreError};

impl Fetcher {
    /// What the durable tier has for a request that nobody shares, if it may be reused. If it may
    /// not, the plan notes what there is.
    pub async fn find_durable(self: &Arc<Self>, plan: &mut Plan) -> Option<Fetched> {
        let position = self.begin(plan);
        // Of a large body only what is asked for is read.
        let opening = if plan.is_for_the_whole() { Opening::AtOnce } else { Opening::Later };
        plan.asked_durable = true;
        self.consult_durable(plan, position, None, opening).await.ok().map(|(fetched, _)| fetched)
    }

    /// What the durable tier has for the plan, if that may be reused. If it may not, the plan notes
    /// what there is, and the landing comes back.
    pub(super) async fn consult_durable(
        self: &Arc<Self>,
        plan: &mut Plan,
        position: u64,
        landing: Option<Landing>,
        opening: Opening,
    ) -> Result<(Fetched, Option<Landing>), Option<Landing>> {
        let is_known = plan.known.is_some();
        let (policy, known) = (Arc::clone(&plan.policy), plan.known.as_ref().map(|known| Arc::clone(&known.record)));
        match self.store.lookup_durable(&plan.exact, plan.client_fields(), policy, known, opening).await {
            DurableLookup::Response(found) if found.head.parts().is_some() => {
                let Some(part) = self.whole_from_durable(plan, *found, position).await else { return Err(landing) };
                self.store.promote(&part, None);
                if !plan.can_use(&part.head, part.len()) {
                    plan.fwd = Fwd::Partial;
                    plan.part = Some(part);
                } else if self.reuse(plan, &part.head).is_some() {
                    return Ok((shared(&part, Source::Tier(Tier::Durable)), landing));
                } else {
                    plan.fwd = Fwd::Stale;
                    plan.validate = Some(part);
                }
            }
            DurableLookup::Response(found) if self.reuse(plan, &found.head).is_some() => {
                let is_stale = self.reuse(plan, &found.head) == Some(Reuse::StaleWhileRevalidate);
                let fetched = self.take_durable(*found, position, landing);
                // The one that is in memory from now on: how it fared is noted there. A body that streams
                // is validated once it is in memory.
                if let (true, Fetched::Shared(shared, _)) = (is_stale, &fetched)
                    && let SharedResponse::Stored(stored) = &shared.response
                {
                    self.validate_behind(plan, Arc::clone(stored), position);
                }
                return Ok((fetched, None));
            }
            DurableLookup::Response(found) => self.validate_durable(plan, *found, position).await,
            DurableLookup::OtherVariants(record) => {
                let record = Arc::new(record);
                // One that came from memory may have been removed there since.
                if !is_known {
                    self.store.adopt((*record).clone(), position);
                }
                plan.known = Some(KnownRecord { record, position });
                plan.fwd = Fwd::VaryMiss;
            }
            DurableLookup::Nothing => {}
        }
        Err(landing)
    }

    /// Answers from the durable tier, and keeps in memory what it had.
    fn take_durable(self: &Arc<Self>, found: FoundResponse, position: u64, landing: Option<Landing>) -> Fetched {
        let mut head = found.head;
        // Its own position was checked when it was read; from here on it is covered by purges that
        // come after the read began.
        head.position = position;
        let source = Source::Tier(Tier::Durable);
        match found.body {
            FoundBody::Whole(body) => {
                let stored = Arc::new(StoredResponse::new(head, body));
                if stored.len() <= self.memory.max_object_size {
                    self.store.promote(&stored, found.record);
                }
                let shared = shared(&stored, source);
                if let (Some(mut landing), Fetched::Shared(shared, _)) = (landing, &shared) {
                    landing.publish(Outcome::Shared(Arc::clone(shared)));
                }
                shared
            }
            FoundBody::Separate(apart) => Fetched::Apart(Arc::new(head), Box::new(apart)),
            FoundBody::Streamed(first, reader) => {
                let writer = self.start_fill(Some(first.len() as u64 + reader.left()));
                let fill = Arc::clone(writer.fill());
                let for_leader = ForLeader { cookies: HeaderMap::new(), reader: fill.reader() };
                let head = Arc::new(head);
                let response = SharedResponse::Filling(Arc::clone(&head), fill);
                let shared = Arc::new(Shared { response, source });
                let mut landing = landing;
                if let Some(landing) = &mut landing {
                    landing.publish(Outcome::Shared(Arc::clone(&shared)));
                }
                let this = Arc::clone(self);
                self.tasks.spawn(async move {
                    let key = head.key.clone();
                    let keep = |body| {
                        let stored = Arc::new(StoredResponse::new(Arc::unwrap_or_clone(head), body));
                        this.store.promote(&stored, found.record);
                        stored.into_body()
                    };
                    if let Err(error) = fill_from_durable(writer, first, reader, keep).await {
                        // Whoever asks again gets it from the origin.
                        warn!("a body from the durable tier broke off, and is deleted there: {error}");
                        this.store.discard(&key, None);
                    }
                    drop(landing);
                });
                Fetched::Shared(shared, for_leader)
            }
        }
    }

    /// Makes a stale response of the durable tier the one to validate.
    async fn validate_durable(self: &Arc<Self>, plan: &mut Plan, found: FoundResponse, position: u64) {
        // A key that varies may have fresh variants beside the expired one.
        if self.purge_expired_on_read && found.record.is_none() && !found.head.freshness.is_fresh(self.clock.now()) {
            // Its separate body goes as well.
            self.store.discard(&plan.exact, found.head.body_object.clone());
        }
        plan.fwd = if found.head.freshness.is_fresh(self.clock.now()) { Fwd::Request } else { Fwd::Stale };
        let freshness = &found.head.freshness;
        plan.tier = Tier::Durable;
        let is_of_use = validation::has_validator(&found.head.fields.to_map())
            || !freshness.stale_if_error.is_zero()
            || !freshness.stale_if_unreachable.is_zero();
        if is_of_use {
            plan.validate = self.whole_from_durable(plan, found, position).await;
        } else {
            plan.replaced = Some(Replaced::head(&found.head));
        }
    }

    /// Reads a response of the durable tier to its end: it is to be validated or added to, and
    /// served from memory then, so it has to fit there.
    async fn whole_from_durable(
        self: &Arc<Self>,
        plan: &mut Plan,
        found: FoundResponse,
        position: u64,
    ) -> Option<Arc<StoredResponse>> {
        let body = match found.body {
            FoundBody::Whole(body) => Some(body),
            FoundBody::Separate(apart) if apart.len() <= self.memory.max_object_size => {
                match apart.read(vec![BodyPart::Range(0, apart.len())]).await {
                    Some(pieces) => self.collect(pieces, apart.len()).await,
                    None => None,
                }
            }
            // It would not fit.
            FoundBody::Separate(_) => None,
            FoundBody::Streamed(first, reader) if first.len() as u64 + reader.left() > self.memory.max_object_size => {
                None
            }
            FoundBody::Streamed(first, reader) => {
                let mut whole = None;
                let keep = |body: Body| whole.insert(body).clone();
                let len = first.len() as u64 + reader.left();
                match fill_from_durable(self.start_fill(Some(len)), first, reader, keep).await {
                    Ok(()) => whole,
                    Err(error) => {
                        warn!("a body from the durable tier broke off, and is deleted there: {error}");
                        self.store.discard(&plan.exact, None);
                        None
                    }
                }
            }
        };
        let mut head = found.head;
        head.position = position;
        if let Some(record) = found.record {
            plan.known = Some(KnownRecord { record: Arc::new(record.clone()), position });
            self.store.adopt(record, position);
        }
        body.map(|body| Arc::new(StoredResponse::new(head, body)))
    }

    /// All that comes through a channel, if it is `len` bytes and there is room.
    async fn collect(&self, mut pieces: mpsc::Receiver<Result<Bytes, StoreError>>, len: u64) -> Option<Body> {
        let mut writer = self.start_fill(Some(len));
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
