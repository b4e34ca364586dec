//! Keeps the response that a fetch brought, or passes it to the client that led, as [`decide`](super::decide) says.

use std::sync::Arc;

use futures_util::FutureExt as _;
use http::header::HeaderMap;
use http::{Response, StatusCode};
use tracing::Span;

use super::body::{Incoming, fill_from_origin};
use super::decide::HeadDecision;
use super::fetch::{Fetch, Fetched, ForLeader};
use super::flight::{Lease, Provenance, Shared, SharedResponse};
use super::hit_for_miss::{Reach, Unshared};
use super::order::Placement;
use crate::entry::{Body, FillWriter, NewHead, Replaced, StoredHead, StoredResponse, Tried, Who};
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::search::SearchVariance;
use crate::rfc9111::storage::{self, Exchange, NotStorable, Storable};
use crate::rfc9111::timestamp::Timestamp;
use crate::rfc9111::vary::Vary;
use crate::rfc9111::{validation, vary};
use crate::upstream::{Errand, UpstreamBody};

impl Fetch {
    /// Carries out the decision on the head of the origin's answer. `times` are those of the request and the answer.
    pub(super) fn settle(
        &mut self,
        decision: HeadDecision,
        answer: Response<UpstreamBody>,
        times: (Timestamp, Timestamp),
    ) -> Fetched {
        match decision {
            HeadDecision::Keep(storable, tags, largest) => {
                let (head, cookies) = self.head_of(&storable, tags, &answer, times);
                self.note_storable(&head, times.1);
                let is_large = largest > self.fetcher.limits.memory.max_object_size && !self.is_kept_by_peer();
                let large = is_large.then(|| self.order.placement());
                self.keep(head, answer.into_body().into(), (None, cookies), large)
            }
            HeadDecision::KeepPart(storable, tags) => {
                let (head, cookies) = self.head_of(&storable, tags, &answer, times);
                self.keep_part(head, answer.into_body(), cookies)
            }
            HeadDecision::Freshen => match self.order.held.validate.clone() {
                Some(stored) => self.freshen(&stored, answer.headers(), times.0),
                None => self.pass(answer, NotStorable::Status),
            },
            HeadDecision::LearnFrom => {
                let updated = self.learn_from_head(answer.status(), answer.headers(), times.0);
                updated.unwrap_or_else(|| self.pass(answer, NotStorable::Method))
            }
            HeadDecision::UnaskedPart => self.pass(answer, NotStorable::Part),
            HeadDecision::Pass(why) => {
                self.note_passed(&answer, why, times);
                self.pass(answer, why)
            }
            // `Fetch::ask` handles these before.
            HeadDecision::StandIn | HeadDecision::AskAgain => self.pass(answer, NotStorable::Status),
        }
    }

    fn pass(&self, response: Response<UpstreamBody>, why: NotStorable) -> Fetched {
        Fetched::Passed { response, why, fwd: self.order.held.fwd, fwd_status: None }
    }

    /// Makes the head of a response that is kept. Returns with it the cookies that are left out of it.
    fn head_of(
        &self,
        storable: &Storable,
        tags: Vec<String>,
        answer: &Response<UpstreamBody>,
        times: (Timestamp, Timestamp),
    ) -> (StoredHead, HeaderMap) {
        let exchange = self.exchange(answer, times);
        let head = self.new_head(storable, (answer.status(), answer.headers(), tags), &exchange);
        (head, left_out(storable, answer.headers()))
    }

    /// Remembers that responses to requests that ask alike are stored.
    fn note_storable(&self, head: &StoredHead, now: Timestamp) {
        let (memory, request) = (&self.fetcher.memories.hit_for_miss, self.order.client_fields());
        let hash = self.order.asked.key.hash();
        if let Some(variant) = head.variant() {
            memory.divide(hash, &variant.names, now);
        }
        if head.freshness.is_reusable_as_it_is(now) {
            memory.forget(hash, request, now);
        } else {
            // Each request needs a validation of its own, so waiting for another's is of no use.
            memory.remember(hash, request, (Unshared::EachValidates, Reach::Selection), now);
        }
    }

    /// Remembers that a response is not stored, and makes the stored one that it would have replaced stale.
    fn note_passed(&self, answer: &Response<UpstreamBody>, why: NotStorable, times: (Timestamp, Timestamp)) {
        let asked = &self.order.asked;
        let exchange = self.exchange(answer, times);
        self.fetcher.memories.note_not_storable(&asked.key, &exchange, &asked.terms.policy, why, times.1);
        if !validation::is_failure(answer.status()) {
            self.note_not_stored();
        }
        if let Some(stored) = self.order.held.replaced() {
            self.outdate(&stored, why, answer.status());
        }
    }

    /// Returns the largest body that may be kept for a response. Past the limit of memory only the durable tier takes
    /// it, as it comes in: a whole response that lasts, under the key that it was asked for.
    pub(super) fn largest(&self, storable: &Storable) -> u64 {
        let in_memory = self.fetcher.limits.memory.max_object_size;
        let is_durable = storable.part().is_none()
            && self.order.asked.key == self.order.asked.exact
            && self.fetcher.store.is_for_durable(storable.freshness(), self.order.asked.terms.durability);
        if is_durable { in_memory.max(self.fetcher.store.max_durable_size()) } else { in_memory }
    }

    /// Returns the hash by which uses of a response are counted before it is stored (see [`StoredHead::uses_hash`]).
    pub(super) fn uses_hash(&self, storable: &Storable) -> u128 {
        match storable.vary() {
            Vary::Fields(names) => {
                self.order.asked.exact.variant_hash(&vary::selector(names, self.order.client_fields()))
            }
            Vary::None | Vary::Any => self.order.asked.exact.hash(),
        }
    }

    /// Writes a body that outgrows memory to the durable tier, which reads the fill like a client. `is_admitted` says
    /// that the durable tier's admission has agreed already.
    fn keep_large(&self, writer: &mut FillWriter, head: &Arc<StoredHead>, place: Placement, is_admitted: bool) {
        let Some(durable) = self.fetcher.store.durable() else { return };
        if head.key != place.exact {
            return;
        }
        let (this, head) = (Arc::clone(&self.fetcher), Arc::clone(head));
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

    /// Notes that a background validation brought nothing to store, so that the next one waits for a pause.
    pub(super) fn note_not_stored(&self) {
        if let (Errand::Background, Some(stored)) = (self.order.errand, &self.order.held.validate) {
            stored.head.marks.note_tried(
                Tried::NotStored,
                Who::of(self.order.client_fields()),
                self.fetcher.clock.now(),
            );
        }
    }

    /// Makes the stored response stale that an unstorable one would have replaced, if that response speaks for
    /// everybody. The stale one may still stand in when the origin fails. A page that is gone (404, 410), or that only
    /// the durable tier has, is forgotten.
    pub(super) fn outdate(&self, stored: &Replaced, why: NotStorable, status: StatusCode) {
        let names = stored.variant.as_ref().map(|variant| &variant.names[..]);
        if !why.outdates(status, self.order.client_fields(), names) {
            return;
        }
        let is_gone = matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE);
        if is_gone || !self.fetcher.store.outdate(stored, self.order.held.known.as_ref()) {
            self.forget_outdated(stored);
        }
    }

    /// Forgets a stored response; unless it is a variant, everything that is stored for its URL.
    pub(super) fn forget_outdated(&self, stored: &Replaced) {
        if stored.variant.is_some() {
            self.fetcher.store.forget_variant(stored, self.order.held.known.as_ref());
        } else {
            self.invalidate(&stored.key);
        }
    }

    /// Forgets what is stored for the order's URL, under every key that it may have.
    fn invalidate(&self, stored: &CacheKey) {
        self.fetcher.store.invalidate(&self.order.asked.exact);
        for key in [&self.order.asked.key, stored] {
            if *key != self.order.asked.exact {
                self.fetcher.store.invalidate(key);
            }
        }
    }

    /// Makes the head of a response that is to be stored. Its key is the exact one of the order, unless the response
    /// says that some differences between queries do not matter.
    pub(super) fn new_head(
        &self,
        storable: &Storable,
        (status, response, tags): (StatusCode, &HeaderMap, Vec<String>),
        exchange: &Exchange<'_>,
    ) -> StoredHead {
        let in_force = self.fetcher.store.names_in_force(
            &self.order.asked.exact,
            self.order.held.known.as_ref(),
            exchange.response_time,
        );
        let beside = in_force.map(|names| storable.clone().beside(&names));
        let storable = beside.as_ref().unwrap_or(storable);
        let searched = SearchVariance::of(response)
            .and_then(|variance| self.fetcher.memories.searches.learn(&self.order.asked.exact, variance))
            // A purge of another query of the path, since this fetch began, could not know that this response
            // answers that query too.
            .filter(|(_, is_new)| !is_new || !self.fetcher.store.is_any_purged(self.position))
            .map(|(key, _)| key);
        let new = NewHead {
            key: searched.as_ref().unwrap_or(&self.order.asked.exact),
            request: self.order.client_fields(),
            status,
            fields: response,
            request_time: exchange.request_time,
            response_time: exchange.response_time,
            position: self.position,
            version_vector: Arc::clone(&self.version_vector),
            tags,
            hidden: &self.order.asked.terms.policy.tag_fields,
        };
        StoredHead::new(storable, new)
    }

    /// Begins to store the body of a response. `status` is the origin's, where the response has another; `cookies` are
    /// for the client that asked alone.
    pub(super) fn keep(
        &mut self,
        head: StoredHead,
        body: Incoming,
        (status, cookies): (Option<StatusCode>, HeaderMap),
        large: Option<Placement>,
    ) -> Fetched {
        let status = status.map(|status| status.as_u16());
        let stored = large.is_some() || body.len().is_none_or(|len| len <= self.fetcher.limits.largest_kept());
        let source = Provenance::Origin { fwd: self.order.held.fwd, status, stored, by_peer: self.is_by_peer() };
        let (this, place) = (Arc::clone(&self.fetcher), self.order.placement());
        let keep = move |stored: &Arc<StoredResponse>| {
            this.insert(&place, stored);
        };
        self.take_in(head, body, (source, cookies), large, keep)
    }

    /// Begins to store a part. It goes to the client that asked for it; others find it stored later.
    fn keep_part(&mut self, head: StoredHead, body: UpstreamBody, cookies: HeaderMap) -> Fetched {
        let source = Provenance::Origin { fwd: self.order.held.fwd, status: None, stored: true, by_peer: false };
        let fetch = self.without_lease();
        let keep = move |part: &Arc<StoredResponse>| fetch.add_part(part);
        // The flight ends with the head: the part answers only the client that asked for it.
        let lease = self.lease.take();
        let fetched = self.take_in(head, body.into(), (source, cookies), None, keep);
        self.lease = lease;
        fetched
    }

    /// Takes in the rest of a body in a task of its own. The flight ends with it.
    fn spawn_filling(&self, filling: impl Future<Output = ()> + Send + 'static, lease: Option<Lease>) {
        self.fetcher.spawn(Span::current(), async move {
            filling.await;
            drop(lease);
        });
    }

    fn take_in(
        &mut self,
        head: StoredHead,
        body: Incoming,
        (source, cookies): (Provenance, HeaderMap),
        large: Option<Placement>,
        keep: impl FnOnce(&Arc<StoredResponse>) + Send + 'static,
    ) -> Fetched {
        let len = body.len();
        let mut writer = self.fetcher.limits.start_fill(len);
        let reader = writer.fill().reader();
        let head = Arc::new(head);
        if let Some(place) = large {
            let is_admitted = len.is_some_and(|len| len > self.fetcher.limits.memory.max_object_size);
            self.keep_large(&mut writer, &head, place, is_admitted);
        }
        let response = SharedResponse::Filling(Arc::clone(&head), Arc::clone(writer.fill()));
        let shared = Arc::new(Shared { response, source });
        let this = Arc::clone(&self.fetcher);
        let filling = async move {
            let kept = |body: Body| {
                if !head.is_of_length(body.len()) {
                    return body;
                }
                let stored = Arc::new(this.whole_of(Arc::unwrap_or_clone(head), body));
                keep(&stored);
                stored.into_body()
            };
            fill_from_origin(writer, body, kept).await;
        };
        if len == Some(0) {
            // Its end is known with its head. Whoever has that finds it stored.
            let mut filling = Box::pin(filling);
            let is_filled = filling.as_mut().now_or_never().is_some();
            self.publish(&shared);
            let lease = self.lease.take();
            if !is_filled {
                self.spawn_filling(filling, lease);
            }
        } else {
            self.publish(&shared);
            let lease = self.lease.take();
            self.spawn_filling(filling, lease);
        }
        Fetched::Shared(shared, ForLeader { cookies, reader })
    }
}

/// Returns the cookies of a response that is stored without them, for the client that it was fetched for.
pub(super) fn left_out(storable: &Storable, response: &HeaderMap) -> HeaderMap {
    if storable.leaves_out_cookies() { cookies_of(response) } else { HeaderMap::new() }
}

/// Returns the fields in which a response sets cookies.
pub(super) fn cookies_of(response: &HeaderMap) -> HeaderMap {
    let fields = response.iter().filter(|(name, _)| storage::sets_cookies(name));
    fields.map(|(name, value)| (name.clone(), value.clone())).collect()
}
