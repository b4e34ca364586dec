//! Keeping what a fetch brought: wholes, parts, and stored responses that a 304 or a HEAD made
//! good again.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tracing::debug;

use super::fetcher::shared;
use super::plan::Place;
use super::{Fetched, Fetcher, ForLeader, Plan};
use crate::entry::{Body, FillWriter, NewHead, Replaced, StoredHead, StoredResponse, Tried, Who};
use crate::fetch::hit_for_miss::Reach;
use crate::fetch::{Landing, Outcome, Pass, Shared, SharedResponse, Source};
use crate::rfc9111::freshness::Freshness;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::partial::{self, Part, Parts};
use crate::rfc9111::search::SearchVariance;
use crate::rfc9111::storage::{Exchange, NotStorable, Storable, storable};
use crate::rfc9111::tags::{MAX_TAGS, TooManyTags};
use crate::rfc9111::timestamp::Timestamp;
use crate::rfc9111::validation::HeadOutcome;
use crate::rfc9111::vary::Vary;
use crate::rfc9111::{storage, validation, vary};
use crate::store::{BodyReader, Durability, Lookup, StoreError};
use crate::upstream::{EndsWithConnection, Errand, Passing, UpstreamBody};

/// The one range that is missing of a stored part, and what tells that it is of the same whole.
#[derive(Debug)]
pub(super) struct Missing {
    stored: Arc<StoredResponse>,
    range: (u64, u64),
    complete: u64,
}

impl Missing {
    /// `None` when there is more than one, or the stored part is not what it says it is, or the whole
    /// would have more than `limit` bytes.
    pub(super) fn of(stored: &Arc<StoredResponse>, limit: u64) -> Option<Self> {
        let parts = stored.head.parts().filter(|parts| parts.len() == stored.len())?;
        if parts.complete_len() > limit {
            return None;
        }
        Some(Self { stored: Arc::clone(stored), range: parts.gap()?, complete: parts.complete_len() })
    }

    /// Makes `request` ask for it.
    pub(super) fn ask_for(&self, request: &mut HeaderMap) {
        request.insert(header::RANGE, partial::range_of(self.range, self.complete));
        let head = &self.stored.head;
        if let Some(validator) = partial::if_range(&head.fields.to_map(), head.response_time()) {
            request.insert(header::IF_RANGE, validator);
        }
    }
}

/// A body on its way in, with what is stored already before it and after it.
#[derive(Debug)]
struct Incoming {
    before: Vec<Bytes>,
    body: Passing,
    /// The bytes that have to come in between.
    len: Option<u64>,
    after: Vec<Bytes>,
}

impl Incoming {
    /// The length of it all, if that is known.
    fn len(&self) -> Option<u64> {
        let stored: u64 = self.before.iter().chain(&self.after).map(|chunk| chunk.len() as u64).sum();
        self.len.or_else(|| self.body.size_hint().exact()).map(|len| len.saturating_add(stored))
    }
}

impl From<UpstreamBody> for Incoming {
    fn from(body: UpstreamBody) -> Self {
        Self { before: Vec::new(), body: Passing::held(body), len: None, after: Vec::new() }
    }
}

/// Whether a response is a part, or says that the client's own condition failed: nothing is known of the whole.
pub(super) fn is_partial(status: StatusCode) -> bool {
    matches!(status.as_u16(), 206 | 304 | 412 | 416)
}

impl Fetcher {
    /// Keeps a response if RFC 9111 §3 lets it; otherwise it is for the client that led.
    pub fn keep_or_pass(
        self: &Arc<Self>,
        plan: &Plan,
        answer: Response<UpstreamBody>,
        request_time: Timestamp,
        position: u64,
        landing: Option<Landing>,
    ) -> (Fetched, Option<Landing>) {
        let response_time = self.clock.now();
        let exchange = Exchange {
            method: &plan.method,
            request: plan.client_fields(),
            status: answer.status(),
            response: answer.headers(),
            request_time,
            response_time,
        };
        let verdict = storable(&exchange, &plan.policy).and_then(|storable| {
            if answer.extensions().get::<EndsWithConnection>().is_some() {
                return Err(NotStorable::Unframed);
            }
            // Nor does an error take the place of a page that is fresh: one client's fields may have caused it.
            let is_fresh = |stored: &Arc<StoredResponse>| {
                stored.head.status.is_success() && stored.head.freshness.is_fresh(response_time)
            };
            if plan.validate.as_ref().is_some_and(is_fresh) && !storage::speaks_of_the_page(answer.status()) {
                return Err(NotStorable::Status);
            }
            let tags = plan.tags_of(answer.headers()).map_err(|TooManyTags| NotStorable::Tags)?;
            // A part of what memory does not take would stand in the way of the whole.
            let is_of_large = storable.part().is_some_and(|part| part.complete > self.memory.max_object_size);
            if is_of_large && self.store.durable().is_some() {
                return Err(NotStorable::TooLarge);
            }
            let len = answer.body().size_hint().exact();
            // What fits into memory has no need of the durable tier.
            let in_memory = self.memory.max_object_size;
            let largest = match len {
                Some(len) if len <= in_memory => in_memory,
                Some(len) if len > self.largest(plan, &storable) => in_memory,
                // Asked once it is known that only the durable tier takes it, since it counts uses.
                Some(_) if !self.store.admits_large(uses_hash(plan, &storable)) => in_memory,
                Some(_) | None => self.largest(plan, &storable),
            };
            if len.is_none_or(|len| len <= largest) {
                Ok((storable, tags, largest))
            } else {
                Err(NotStorable::TooLarge)
            }
        });
        match verdict {
            Ok((storable, tags, _)) if storable.part().is_some() => {
                let cookies = left_out(&storable, answer.headers());
                let new = (answer.status(), answer.headers(), tags);
                let head = self.new_head(plan, &storable, new, &exchange, position);
                (self.keep_part(plan, head, answer.into_body(), cookies), landing)
            }
            Ok((storable, tags, largest)) => {
                let cookies = left_out(&storable, answer.headers());
                let new = (answer.status(), answer.headers(), tags);
                let head = self.new_head(plan, &storable, new, &exchange, position);
                let (hash, request) = (plan.key.hash(), plan.client_fields());
                if let Some(variant) = head.variant() {
                    self.hit_for_miss.divide(hash, &variant.names, response_time);
                }
                if head.freshness.is_reusable_as_it_is(response_time) {
                    self.hit_for_miss.forget(hash, request, response_time);
                } else {
                    // Each request needs a validation of its own, so there is nothing to wait for.
                    let pass = (Pass::EachValidates, Reach::Selection);
                    self.hit_for_miss.remember(hash, request, pass, response_time);
                }
                let large = (largest > self.memory.max_object_size).then(|| plan.place());
                (self.keep(plan, head, answer.into_body().into(), (None, cookies), landing, large), None)
            }
            Err(_) if plan.method == Method::HEAD => {
                let updated = self.learn_from_head(plan, answer.status(), answer.headers(), request_time, position);
                let passed =
                    Fetched::Passed { response: answer, why: NotStorable::Method, fwd: plan.fwd, fwd_status: None };
                (updated.unwrap_or(passed), landing)
            }
            Err(why) => {
                self.note_not_storable(&plan.key, &exchange, &plan.policy, why, exchange.response_time);
                if !validation::is_failure(answer.status()) {
                    self.note_not_stored(plan);
                }
                if let Some(stored) = plan.replaced() {
                    self.outdate(plan, &stored, why, answer.status());
                }
                let passed = Fetched::Passed { response: answer, why, fwd: plan.fwd, fwd_status: None };
                (passed, landing)
            }
        }
    }

    /// The largest body that may be kept of a response: past the memory's limit only the durable tier
    /// takes it, as it comes in, if it is a whole that lasts, under the key that it was asked for.
    fn largest(&self, plan: &Plan, storable: &Storable) -> u64 {
        let in_memory = self.memory.max_object_size;
        let is_durable = storable.part().is_none()
            && plan.key == plan.exact
            && self.store.is_for_durable(storable.freshness(), plan.durability);
        if is_durable { in_memory.max(self.store.max_durable_size()) } else { in_memory }
    }

    /// Has a body that outgrows memory written to the durable tier, as one of its fill's readers.
    /// `is_admitted`: it is known to be worth it.
    fn keep_large(self: &Arc<Self>, writer: &mut FillWriter, head: &Arc<StoredHead>, place: Place, is_admitted: bool) {
        let Some(durable) = self.store.durable() else { return };
        if head.key != place.exact {
            return;
        }
        let (this, head) = (Arc::clone(self), Arc::clone(head));
        writer.on_overflow(durable.min_upload_rate(), move |reader| {
            let Some(durable) = this.store.durable() else { return };
            if !(is_admitted || this.store.admits_large(head.uses_hash())) {
                return;
            }
            let Some(leave) = durable.begin_upload(head.key.hash()) else { return };
            let fetcher = Arc::clone(&this);
            this.tasks.spawn(async move {
                let Some(durable) = fetcher.store.durable() else { return };
                if let Some((stored, _leave)) = durable.upload(leave, head, reader).await {
                    fetcher.store.insert_apart(stored, place.known.as_ref());
                }
            });
        });
    }

    /// Notes that a validation in the background brought nothing to store: the next one waits a pause.
    fn note_not_stored(&self, plan: &Plan) {
        if let (Errand::Background, Some(stored)) = (plan.errand, &plan.validate) {
            stored.head.marks.note_tried(Tried::NotStored, Who::of(plan.client_fields()), self.clock.now());
        }
    }

    /// Has the stored response that one which may not be stored would have replaced count as history, if it is
    /// that for everybody. It is stale from then on, and may stand in for an origin that fails; a page that is
    /// gone (404, 410), and what is in the durable tier alone, is forgotten.
    fn outdate(&self, plan: &Plan, stored: &Replaced, why: NotStorable, status: StatusCode) {
        let names = stored.variant.as_ref().map(|variant| &variant.names[..]);
        if !why.outdates(status, plan.client_fields(), names) {
            return;
        }
        let is_gone = matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE);
        if is_gone || !self.store.outdate(stored, plan.known.as_ref()) {
            self.forget_outdated(plan, stored);
        }
    }

    /// Forgets a stored response, and the others for its URL only if it is not a variant.
    fn forget_outdated(&self, plan: &Plan, stored: &Replaced) {
        if stored.variant.is_some() {
            self.store.forget_variant(stored, plan.known.as_ref());
        } else {
            self.invalidate(plan, &stored.key);
        }
    }

    /// Forgets what is stored for the plan's URL, by whichever key it was found.
    fn invalidate(&self, plan: &Plan, stored: &CacheKey) {
        self.store.invalidate(&plan.exact);
        for key in [&plan.key, stored] {
            if *key != plan.exact {
                self.store.invalidate(key);
            }
        }
    }

    /// The head of a response that is to be stored. Its key is the plan's exact one, unless the
    /// response says that some differences between queries do not matter.
    fn new_head(
        &self,
        plan: &Plan,
        storable: &Storable,
        (status, response, tags): (StatusCode, &HeaderMap, Vec<String>),
        exchange: &Exchange<'_>,
        position: u64,
    ) -> StoredHead {
        let in_force = self.store.names_in_force(&plan.exact, plan.known.as_ref(), exchange.response_time);
        let beside = in_force.map(|names| storable.clone().beside(&names));
        let storable = beside.as_ref().unwrap_or(storable);
        let searched = SearchVariance::of(response)
            .and_then(|variance| self.searches.learn(&plan.exact, variance))
            // A purge of another of the path's URLs did not know yet that it was one of this response's.
            .filter(|(_, is_new)| !is_new || !self.store.is_any_purged(position))
            .map(|(key, _)| key);
        let new = NewHead {
            key: searched.as_ref().unwrap_or(&plan.exact),
            request: plan.client_fields(),
            status,
            fields: response,
            request_time: exchange.request_time,
            response_time: exchange.response_time,
            position,
            version_vector: Arc::clone(&plan.version_vector),
            tags,
            hidden: &plan.policy.tag_fields,
        };
        StoredHead::new(storable, new)
    }

    /// Puts a response in. What was fetched for several queries stays in memory: a key that other
    /// processes make otherwise is no use to them.
    fn insert(&self, place: &Place, stored: &Arc<StoredResponse>) -> bool {
        let is_exact = stored.head.key == place.exact;
        // What has its successor under another key gives way there as well.
        if let Some(old) = place.replaced.as_ref().filter(|old| old.key != stored.head.key) {
            self.store.forget_replaced(old);
        }
        if !is_exact && self.store.is_purged(place.exact.hash(), stored.head.position) {
            return false;
        }
        let durability = if is_exact { place.durability } else { Durability::MemoryOnly };
        self.store.insert(stored, durability, place.known.as_ref(), place.replaced.as_ref())
    }

    /// Starts taking in the body of a response that is to be stored. `status` is the origin's, where
    /// the response has another; `cookies` are those that only the client that asked gets.
    fn keep(
        self: &Arc<Self>,
        plan: &Plan,
        head: StoredHead,
        body: Incoming,
        (status, cookies): (Option<StatusCode>, HeaderMap),
        landing: Option<Landing>,
        large: Option<Place>,
    ) -> Fetched {
        let status = status.map(|status| status.as_u16());
        let stored = large.is_some() || body.len().is_none_or(|len| len <= self.largest_kept());
        let source = Source::Origin { fwd: plan.fwd, status, stored };
        let (this, place) = (Arc::clone(self), plan.place());
        let keep = move |stored: &Arc<StoredResponse>| {
            this.insert(&place, stored);
        };
        self.take_in(head, body, (source, cookies), landing, large, keep)
    }

    /// A response whose body is all here.
    fn whole_of(&self, mut head: StoredHead, body: Body) -> StoredResponse {
        self.store.name_body(&mut head, body.len());
        StoredResponse::new(head, body)
    }

    /// Starts taking in a part. It is for the client that asked for it; others find it stored.
    fn keep_part(self: &Arc<Self>, plan: &Plan, head: StoredHead, body: UpstreamBody, cookies: HeaderMap) -> Fetched {
        let source = Source::Origin { fwd: plan.fwd, status: None, stored: true };
        let (this, plan) = (Arc::clone(self), plan.clone());
        let keep = move |part: &Arc<StoredResponse>| this.add_part(&plan, part);
        self.take_in(head, body.into(), (source, cookies), None, None, keep)
    }

    fn take_in(
        self: &Arc<Self>,
        head: StoredHead,
        body: Incoming,
        (source, cookies): (Source, HeaderMap),
        mut landing: Option<Landing>,
        large: Option<Place>,
        keep: impl FnOnce(&Arc<StoredResponse>) + Send + 'static,
    ) -> Fetched {
        let len = body.len();
        let mut writer = self.start_fill(len);
        let reader = writer.fill().reader();
        let head = Arc::new(head);
        if let Some(place) = large {
            let is_admitted = len.is_some_and(|len| len > self.memory.max_object_size);
            self.keep_large(&mut writer, &head, place, is_admitted);
        }
        let response = SharedResponse::Filling(Arc::clone(&head), Arc::clone(writer.fill()));
        let shared = Arc::new(Shared { response, source });
        if let Some(landing) = &mut landing {
            landing.publish(Outcome::Shared(Arc::clone(&shared)));
        }
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            let kept = |body: Body| {
                if !head.is_of_length(body.len()) {
                    return body;
                }
                let stored = Arc::new(this.whole_of(Arc::unwrap_or_clone(head), body));
                keep(&stored);
                stored.into_body()
            };
            fill_from_origin(writer, body, kept).await;
            drop(landing);
        });
        Fetched::Shared(shared, ForLeader { cookies, reader })
    }

    /// Adds a part to what is stored of the same representation, or stores it by itself. A whole
    /// stays as it is: what is asked for in part says nothing against it.
    fn add_part(&self, plan: &Plan, new: &Arc<StoredResponse>) {
        // More bytes than it says are of no known place.
        if new.head.parts().is_none_or(|parts| new.len() > parts.len()) {
            return;
        }
        let base = match self.store.lookup(&new.head.key, plan.client_fields()) {
            Lookup::Found(stored) if stored.head.parts().is_none() => return,
            Lookup::Found(stored) => Some(stored),
            Lookup::OtherVariants(_) | Lookup::Nothing => plan.part.clone(),
        };
        let Some(base) = base else {
            let whole = self.combined(plan, None, new).map(Arc::new);
            self.insert(&plan.place(), whole.as_ref().unwrap_or(new));
            return;
        };
        let combined = self.combined(plan, Some(&base), new);
        let is_same = are_of_one_whole(&base.head, &new.head);
        // To copy megabytes for a few bytes more would be a lever: those are asked for again.
        let is_worth_it = base.len() <= SMALL || new.len() >= base.len() / 16;
        match combined {
            Some(combined) if is_worth_it => drop(self.insert(&plan.place(), &Arc::new(combined))),
            Some(_) => {}
            // Of the same whole, and too much together: the older one stays, having been asked for.
            None if is_same && base.head.freshness.is_fresh(self.clock.now()) => {}
            None => drop(self.insert(&plan.place(), new)),
        }
    }

    /// A part and what is stored already in one; without that, a part that is the whole as one.
    fn combined(
        &self,
        plan: &Plan,
        base: Option<&Arc<StoredResponse>>,
        new: &Arc<StoredResponse>,
    ) -> Option<StoredResponse> {
        let new_fields = new.head.fields.to_map();
        let part = Part::of(&new_fields)?;
        if part.end - part.first != new.len() {
            return None;
        }
        let (parts, body, mut fields) = match base {
            None => (Parts::from(part), new.body(), HeaderMap::new()),
            Some(base) => {
                let old = base.head.parts().filter(|old| old.len() == base.len())?;
                if !are_of_one_whole(&base.head, &new.head) {
                    return None;
                }
                let (parts, pieces) = old.with(part)?;
                if parts.len() > self.memory.max_object_size {
                    return None;
                }
                (parts, Body::combined(&base.body(), &new.body(), &pieces), base.head.fields.to_map())
            }
        };
        if base.is_none() && !parts.is_complete() {
            return None;
        }
        partial::combine(&mut fields, &new_fields);
        if parts.is_complete() {
            fields.insert(header::CONTENT_LENGTH, HeaderValue::from(parts.complete_len()));
        }
        let exchange = Exchange {
            method: &Method::GET,
            request: plan.client_fields(),
            status: StatusCode::OK,
            response: &fields,
            request_time: new.head.request_time(),
            response_time: new.head.response_time(),
        };
        let storable = storable(&exchange, &plan.policy).ok()?;
        let tags = all_tags(plan, &new_fields, new.head.tags(), base.map(|base| base.head.tags())).ok()?;
        let all = (StatusCode::OK, &fields, tags);
        let mut head = self.new_head(plan, &storable, all, &exchange, new.head.position);
        if !parts.is_complete() {
            head.status = StatusCode::PARTIAL_CONTENT;
            head.set_parts(Some(parts));
        }
        Some(self.whole_of(head, body))
    }

    /// Starts taking in the missing part of a response, for everyone who wants the whole. The landing
    /// comes back when what came does not fit what is stored.
    pub(super) fn keep_completed(
        self: &Arc<Self>,
        plan: &Plan,
        missing: &Missing,
        answer: Response<UpstreamBody>,
        request_time: Timestamp,
        position: u64,
        landing: Option<Landing>,
    ) -> Result<Fetched, Option<Landing>> {
        let response_time = self.clock.now();
        let stored = &missing.stored;
        let (first, end) = missing.range;
        let fits = Part::of(answer.headers()) == Some(Part { first, end, complete: missing.complete })
            && answer.body().size_hint().exact().is_none_or(|len| len == end - first)
            && answer.extensions().get::<EndsWithConnection>().is_none()
            && partial::is_same_representation(
                (&stored.head.fields.to_map(), stored.head.response_time()),
                (answer.headers(), response_time),
            )
            && missing.complete <= self.memory.max_object_size;
        if !fits || !may_be_shared(plan, answer.headers(), request_time, response_time) {
            return Err(landing);
        }
        let mut fields = stored.head.fields.to_map();
        partial::combine(&mut fields, answer.headers());
        fields.insert(header::CONTENT_LENGTH, HeaderValue::from(missing.complete));
        let exchange = Exchange {
            method: &plan.method,
            request: plan.client_fields(),
            status: StatusCode::OK,
            response: &fields,
            request_time,
            response_time,
        };
        let Ok(storable) = storable(&exchange, &plan.policy) else { return Err(landing) };
        let Ok(tags) = all_tags(plan, answer.headers(), stored.head.tags(), None) else { return Err(landing) };
        let head = self.new_head(plan, &storable, (StatusCode::OK, &fields, tags), &exchange, position);
        let cookies = left_out(&storable, answer.headers());
        let mut body = Incoming::from(answer.into_body());
        body.len = Some(end - first);
        let held = stored.body();
        held.cut(0, first, &mut body.before);
        held.cut(first, missing.complete - end, &mut body.after);
        Ok(self.keep(plan, head, body, (Some(StatusCode::PARTIAL_CONTENT), cookies), landing, None))
    }

    /// RFC 9111 §4.3.4: the stored response is good again, with the fields of the 304.
    pub(super) fn freshen(
        self: &Arc<Self>,
        plan: &Plan,
        stored: &Arc<StoredResponse>,
        not_modified: &HeaderMap,
        request_time: Timestamp,
        position: u64,
    ) -> Fetched {
        let updated = self.update(plan, stored, not_modified, request_time, position);
        match updated.verdict {
            Ok((fresh, kept)) => {
                let status = Some(StatusCode::NOT_MODIFIED.as_u16());
                let shared = Shared {
                    response: SharedResponse::Stored(fresh),
                    source: Source::Origin { fwd: plan.fwd, status, stored: kept },
                };
                Fetched::Shared(Arc::new(shared), ForLeader { cookies: updated.cookies, reader: None })
            }
            Err(why) => {
                // The origin took back its leave to store, for everybody or for this client.
                self.note_not_stored(plan);
                self.outdate(plan, &Replaced::response(stored), why, stored.head.status);
                let (now, policy) = (self.clock.now(), &plan.policy.lifetimes);
                self.note_not_storable(&plan.key, &updated.exchange(plan), &plan.policy, why, now);
                let mut head = stored.head.clone();
                head.freshness = Freshness::of(head.status, &updated.fields, request_time, now, policy);
                head.fields = crate::entry::Fields::new(updated.fields.iter());
                let status = Some(StatusCode::NOT_MODIFIED.as_u16());
                let own = Shared {
                    response: SharedResponse::Stored(Arc::new(StoredResponse::with_body_of(stored, head))),
                    source: Source::Origin { fwd: plan.fwd, status, stored: false },
                };
                Fetched::Own(Arc::new(own), ForLeader { cookies: updated.cookies, reader: None })
            }
        }
    }

    /// RFC 9111 §4.3.5: what the response to a HEAD says of the stored response to GET. `None` when
    /// that is not updated by it.
    fn learn_from_head(
        self: &Arc<Self>,
        plan: &Plan,
        status: StatusCode,
        answer: &HeaderMap,
        request_time: Timestamp,
        position: u64,
    ) -> Option<Fetched> {
        let stored = plan.head_of.as_ref().filter(|_| status == StatusCode::OK)?;
        let len = stored.head.parts().map_or(stored.len(), Parts::complete_len);
        match validation::head_outcome(answer, &stored.head.fields.to_map(), len) {
            HeadOutcome::Updates => {
                let updated = self.update(plan, stored, answer, request_time, position);
                let (fresh, kept) = match updated.verdict {
                    Ok(fresh) => fresh,
                    Err(why) => {
                        self.outdate(plan, &Replaced::response(stored), why, stored.head.status);
                        return None;
                    }
                };
                // What is said of the whole is not to be told from a part.
                if fresh.head.parts().is_some() {
                    return None;
                }
                let source = Source::Origin { fwd: plan.fwd, status: None, stored: kept };
                match shared(&fresh, source) {
                    Fetched::Shared(shared, _) => {
                        Some(Fetched::Shared(shared, ForLeader { cookies: updated.cookies, reader: None }))
                    }
                    Fetched::Own(..) | Fetched::Apart(..) | Fetched::Passed { .. } | Fetched::Failed(..) => None,
                }
            }
            HeadOutcome::Outdates => {
                let names = stored.head.variant().map(|variant| &variant.names[..]);
                let replaced = Replaced::response(stored);
                let speaks = storage::is_word_for_all(plan.client_fields(), names);
                if speaks && !self.store.outdate(&replaced, plan.known.as_ref()) {
                    self.forget_outdated(plan, &replaced);
                }
                None
            }
            HeadOutcome::Neither => None,
        }
    }

    /// RFC 9111 §3.2: puts the fields of a newer response about the same content in place of the
    /// stored ones, and stores the outcome if it still may be.
    fn update(
        &self,
        plan: &Plan,
        stored: &Arc<StoredResponse>,
        newer: &HeaderMap,
        request_time: Timestamp,
        position: u64,
    ) -> Updated {
        let mut newer = newer.clone();
        let response_time = self.clock.now();
        // Its cookies are for the client that it answers, whatever the stored response may share.
        let cookies = cookies_of(&newer);
        for name in cookies.keys() {
            newer.remove(name);
        }
        let mut fields = stored.head.fields.to_map();
        validation::freshen(&mut fields, &newer);
        // A part is stored under the same conditions as the whole.
        let status = if stored.head.parts().is_some() { StatusCode::OK } else { stored.head.status };
        let exchange = Exchange {
            method: &Method::GET,
            request: plan.client_fields(),
            status,
            response: &fields,
            request_time,
            response_time,
        };
        let forbidden = storage::forbids(&newer, &plan.policy, response_time);
        let may_be_stored = if forbidden { Err(NotStorable::Private) } else { storable(&exchange, &plan.policy) };
        let verdict = may_be_stored.and_then(|storable| {
            let tags = all_tags(plan, &newer, stored.head.tags(), None).map_err(|TooManyTags| NotStorable::Tags)?;
            let new = (stored.head.status, &fields, tags);
            let mut head = self.new_head(plan, &storable, new, &exchange, position);
            head.set_parts(stored.head.parts().cloned());
            // A body that came inline from the durable tier has no object of its own yet.
            // Another variant's object may be deleted with its body: each has its own. An object's name begins
            // with its key's.
            if head.key == stored.head.key && head.variant() == stored.head.variant() {
                head.body_object.clone_from(&stored.head.body_object);
            }
            self.store.name_body(&mut head, stored.len());
            let fresh = Arc::new(StoredResponse::with_body_of(stored, head));
            let kept = self.insert(&plan.place(), &fresh);
            Ok((fresh, kept))
        });
        Updated { verdict, fields, cookies, times: (request_time, response_time), status }
    }
}

/// The hash by which the uses of a response are counted that is not stored yet (see [`StoredHead::uses_hash`]).
fn uses_hash(plan: &Plan, storable: &Storable) -> u128 {
    match storable.vary() {
        Vary::Fields(names) => plan.exact.variant_hash(&vary::selector(names, plan.client_fields())),
        Vary::None | Vary::Any => plan.exact.hash(),
    }
}

/// The cookies of a response that is stored without them: they are for the client that it was fetched for.
fn left_out(storable: &Storable, response: &HeaderMap) -> HeaderMap {
    if storable.leaves_out_cookies() { cookies_of(response) } else { HeaderMap::new() }
}

/// The fields in which a response sets cookies.
fn cookies_of(response: &HeaderMap) -> HeaderMap {
    let fields = response.iter().filter(|(name, _)| storage::sets_cookies(name));
    fields.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Whether what completes a stored part may be stored by its own word as well: the stored part's
/// leave to share is not this one's.
fn may_be_shared(plan: &Plan, answer: &HeaderMap, request_time: Timestamp, response_time: Timestamp) -> bool {
    let exchange = Exchange {
        method: &plan.method,
        request: plan.client_fields(),
        status: StatusCode::OK,
        response: answer,
        request_time,
        response_time,
    };
    // That it could not serve anyone by itself is no matter.
    matches!(storable(&exchange, &plan.policy), Ok(_) | Err(NotStorable::NothingToReuse))
}

/// The tags of a response made of others: it is purged with each of them.
fn all_tags(
    plan: &Plan,
    newer: &HeaderMap,
    older: &[String],
    others: Option<&[String]>,
) -> Result<Vec<String>, TooManyTags> {
    let mut tags = plan.tags_of(newer)?;
    for tag in older.iter().chain(others.unwrap_or_default()) {
        if !tags.contains(tag) {
            tags.push(tag.clone());
        }
    }
    if tags.len() > MAX_TAGS { Err(TooManyTags) } else { Ok(tags) }
}

/// Parts of at most this many bytes are put together whatever comes.
const SMALL: u64 = 1 << 20;

fn are_of_one_whole(a: &StoredHead, b: &StoredHead) -> bool {
    a.is_of_the_same(b)
}

/// A stored response with the fields of a newer one.
struct Updated {
    /// The response, and whether it is kept; or why it may not be.
    verdict: Result<(Arc<StoredResponse>, bool), NotStorable>,
    /// Its fields.
    fields: HeaderMap,
    /// Cookies that the newer one brought, for the client that asked and no one else.
    cookies: HeaderMap,
    /// Times of the newer request and of its response.
    times: (Timestamp, Timestamp),
    /// The status that it is stored with.
    status: StatusCode,
}

impl Updated {
    /// The exchange that the outcome would be stored of.
    fn exchange<'a>(&'a self, plan: &'a Plan) -> Exchange<'a> {
        Exchange {
            method: &Method::GET,
            request: plan.client_fields(),
            status: self.status,
            response: &self.fields,
            request_time: self.times.0,
            response_time: self.times.1,
        }
    }
}

/// Takes a body in to its end, and has it kept if it is complete and was kept whole.
///
/// It is kept before the last of it is given out: a client that has read to the end, and asks
/// again, gets a hit.
async fn fill_from_origin(mut writer: FillWriter, incoming: Incoming, keep: impl FnOnce(Body) -> Body) {
    let Incoming { before, mut body, len, after } = incoming;
    let mut left = len;
    for chunk in before {
        if !writer.push(chunk).await {
            return;
        }
    }
    let mut last = Bytes::new();
    while let Some(frame) = body.frame().await {
        let data = match frame.map(http_body::Frame::into_data) {
            Ok(Ok(data)) => data,
            // Trailers are not stored.
            Ok(Err(_)) => continue,
            Err(error) => {
                debug!("a response is not stored: {error}");
                return;
            }
        };
        // Bytes too many, or too few, would put those after them in the wrong place.
        match left.map(|left| left.checked_sub(data.len() as u64)) {
            Some(Some(less)) => left = Some(less),
            Some(None) => return,
            None => {}
        }
        if body.is_end_stream() {
            last = data;
            break;
        }
        if writer.is_window() {
            // Readers that are slower than the origin are none of its business.
            body.begin();
        }
        if !writer.push(data).await {
            return;
        }
    }
    if left.is_some_and(|left| left > 0) {
        return;
    }
    for chunk in after {
        if !writer.push(std::mem::replace(&mut last, chunk)).await {
            return;
        }
    }
    // One that is too large after all is taken over like any other.
    if !writer.has_room_for(&last) && !writer.push(std::mem::take(&mut last)).await {
        return;
    }
    finish(writer, last, keep);
}

/// The same for a body from the durable tier; an error when it broke off or can't be believed.
pub(super) async fn fill_from_durable(
    mut writer: FillWriter,
    first: Bytes,
    mut rest: BodyReader,
    keep: impl FnOnce(Body) -> Body,
) -> Result<(), StoreError> {
    let mut piece = first;
    loop {
        if rest.is_end() {
            finish(writer, piece, keep);
            return Ok(());
        }
        if !writer.push(piece).await {
            return Ok(());
        }
        piece = rest.next().await?.unwrap_or_default();
    }
}

/// Ends a fill with `last`. Who still reads has the body from where it is kept, as `keep` says.
fn finish(writer: FillWriter, last: Bytes, keep: impl FnOnce(Body) -> Body) {
    let body = writer.whole(&last).map(keep);
    writer.complete(last, body);
}
