//! One fetch: asks the durable tier, then the origin, and keeps what may be kept.
//!
//! 1. It begins: notes the purges that are known, so that every later one covers what it stores.
//! 2. It looks in memory again: another fetch may have ended in between.
//! 3. It asks the durable tier ([`Fetch::consult_durable`]).
//! 4. It asks the origin, with the validators of a stored response or for the bytes that a stored part lacks.
//! 5. At the answer's head [`decide::on_head`] decides, and everybody who waits is told.
//! 6. A body that is kept comes in by a task of its own, which holds the lease of the flight until it is complete.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use http::header::{self, HeaderMap};
use http::{Response, StatusCode};
use tracing::debug;

use super::decide::{self, AnswerHead, HeadDecision, Inquiry, KeepLimits, OnStored, Validates, with_stored};
use super::fetcher::Fetcher;
use super::flight::{Lease, Outcome, Provenance, Shared, SharedResponse};
use super::missing::Missing;
use super::order::{Order, Route};
use crate::entry::{FillReader, StoredHead, StoredResponse, Tried, VersionVector, Who};
use crate::rfc9111::cache_status::{Fwd, Tier};
use crate::rfc9111::present::Present;
use crate::rfc9111::reuse::{self, Failure};
use crate::rfc9111::storage::{Exchange, NotStorable};
use crate::rfc9111::timestamp::Timestamp;
use crate::rfc9111::validation;
use crate::store::{Lookup, Opening, SeparateBody};
use crate::upstream::forwarding::Onward;
use crate::upstream::{EndsWithConnection, Errand, OriginRequest, UpstreamBody, UpstreamError};

/// The kind of request that is sent to the origin.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wish<'a> {
    /// The client's request, with its preconditions.
    AsAsked,
    /// A conditional request, with the validators of the stored response.
    Validation,
    /// A request for the whole, without the client's preconditions.
    Whole,
    /// A request for the range that a stored part lacks.
    Missing(&'a Missing),
}

/// The outcome of a fetch.
#[derive(Debug)]
pub(crate) enum Fetched {
    /// A response that may be shared, and what only the client that led gets.
    Shared(Arc<Shared>, ForLeader),
    /// A response from the store for the client that led, which nobody else may have.
    Own(Arc<Shared>, ForLeader),
    /// A response from the durable tier for this client, whose body has not been read yet.
    Apart(Arc<StoredHead>, Box<SeparateBody>),
    /// A response for the client that led alone.
    Passed {
        /// The response, without hop-by-hop fields.
        response: Response<UpstreamBody>,
        /// The reason why it is not stored.
        why: NotStorable,
        /// The reason for asking the origin.
        fwd: Fwd,
        /// The status of the origin, where the response has another.
        fwd_status: Option<u16>,
    },
    /// An error; there is no response.
    Failed(UpstreamError, Fwd),
}

/// The things that the client that led a fetch gets besides the shared response.
#[derive(Debug, Default)]
pub(crate) struct ForLeader {
    /// The fields with cookies that a 304 brought, or that the response is stored without. Only this client sees them.
    pub(crate) cookies: HeaderMap,
    /// The reader of a body that is coming in. It is taken before the first byte: a fill that can't be kept whole goes
    /// on only for those who read it.
    pub(crate) reader: Option<FillReader>,
}

/// A fetch under way. Dropping it drops its lease, so that a follower can fetch instead.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) order: Order,
    /// The purge position at its beginning: later purges cover what it stores.
    pub(super) position: u64,
    /// The version vector of the purges known when its response was asked for, which other processes understand: at its
    /// own beginning, or at that of a peer's fetch.
    pub(super) version_vector: Arc<VersionVector>,
    /// The same, of the purges known at its own beginning.
    pub(super) known: Arc<VersionVector>,
    /// The same without what only the peer knew that it is for. A stored response that is found to be current was not
    /// fetched after those.
    pub(super) local: Arc<VersionVector>,
    /// The lease of its flight, held while the origin is asked. Dropping it without a result hands the fetch to one
    /// follower.
    pub(super) lease: Option<Lease>,
    /// True once a request of it may have been sent.
    pub(super) is_sent: Arc<AtomicBool>,
}

impl Fetch {
    /// Begins a fetch, and notes the purges that are known now.
    pub(crate) fn begin(fetcher: &Arc<Fetcher>, order: Order, lease: Option<Lease>) -> Self {
        let position = fetcher.store.position();
        let local = fetcher.store.purges().version_vector();
        let mut known = Arc::clone(&local);
        if let Some(asked_with) = &order.asked.from_peer {
            known = fetcher.store.purges().known_to_both(&known, asked_with);
        }
        Self {
            fetcher: Arc::clone(fetcher),
            order,
            position,
            version_vector: Arc::clone(&known),
            known,
            local,
            lease,
            is_sent: Arc::default(),
        }
    }

    /// Makes a fetch of a request that was already sent, at purge position `position`, when the purges in `version_vector`
    /// were known.
    pub(crate) fn begun(
        fetcher: &Arc<Fetcher>,
        order: Order,
        position: u64,
        version_vector: Arc<VersionVector>,
    ) -> Self {
        let (known, local) = (Arc::clone(&version_vector), Arc::clone(&version_vector));
        Self {
            fetcher: Arc::clone(fetcher),
            order,
            position,
            version_vector,
            known,
            local,
            lease: None,
            is_sent: Arc::default(),
        }
    }

    /// Returns the order, with what was found for it by now.
    pub(super) fn into_order(self) -> Order {
        self.order
    }

    /// Takes the lease, unless the task of a body that is coming in holds it.
    pub(super) fn take_lease(&mut self) -> Option<Lease> {
        self.lease.take()
    }

    /// Returns a copy of this fetch without its lease, for a task that outlives it.
    pub(super) fn without_lease(&self) -> Self {
        let vector = Arc::clone(&self.version_vector);
        Self { local: Arc::clone(&self.local), ..Self::begun(&self.fetcher, self.order.clone(), self.position, vector) }
    }

    /// Fetches for a flight: from the tiers first, since another flight may have ended in between, then from the
    /// origin.
    pub(super) async fn run(&mut self) -> Fetched {
        self.drop_covered();
        let order = &self.order;
        match self.fetcher.store.look_again(&order.asked.key, order.client_fields()) {
            Lookup::Found(stored) => match self.decide_on_stored(&stored.head, stored.len()) {
                OnStored::Fetch(Fwd::Partial) => {
                    self.order.held.fwd = Fwd::Partial;
                    self.order.held.part = Some(stored);
                }
                // It was stored after the request had looked in memory.
                OnStored::Answer(..)
                    if self.order.held.validate.as_ref().is_none_or(|old| !Arc::ptr_eq(old, &stored)) =>
                {
                    return shared(&stored, Provenance::Tier(Tier::Memory));
                }
                OnStored::Answer(..) | OnStored::Fetch(_) | OnStored::NotCached => {
                    self.order.held.validate = Some(stored);
                }
            },
            Lookup::OtherVariants(_) => {
                self.order.held.known = self.fetcher.store.known(&self.order.asked.key);
            }
            Lookup::Nothing => {}
        }
        let held = &self.order.held;
        if held.validate.is_none()
            && held.part.is_none()
            && !held.asked_durable
            && let Some(fetched) = Box::pin(self.consult_durable(Opening::AtOnce)).await
        {
            return fetched;
        }
        self.ask_the_origin().await
    }

    /// Fetches from the origin for one client, outside any flight.
    pub(super) async fn alone(&mut self) -> Fetched {
        self.drop_covered();
        if self.order.held.validate.is_some() {
            return Box::pin(self.ask_the_origin()).await;
        }
        self.ask(Wish::AsAsked).await
    }

    /// Drops stored responses that were purged since they were found, so that they are not validated, added to, or
    /// served in place of an error.
    fn drop_covered(&mut self) {
        let (store, exact) = (&self.fetcher.store, self.order.asked.exact.hash());
        let is_covered = |stored: &Arc<StoredResponse>| {
            store.is_covered(&stored.head) || store.is_purged(exact, stored.head.position)
        };
        let held = &mut self.order.held;
        for stored in [&mut held.validate, &mut held.part, &mut held.head_of] {
            if stored.as_ref().is_some_and(is_covered) {
                *stored = None;
            }
        }
    }

    /// Decides on a response that is stored by now, whose body here has `len` bytes. Knows of no failure of the origin:
    /// the fetch is on its way to ask it.
    pub(super) fn decide_on_stored(&self, head: &StoredHead, len: u64) -> OnStored {
        let (order, now) = (&self.order, self.fetcher.clock.now());
        let directives = order.asked.directives.clone();
        let directives = order.asked.terms.request_directives.bounded(directives, head.response_time(), now);
        let fields = order.client_fields();
        let inquiry = Inquiry { method: order.method(), fields, present: Present::of(fields), has_content: false };
        with_stored(inquiry, &directives, head, len, 0, || None, now)
    }

    /// Asks the origin: with the validators of a stored response, for the bytes that a part lacks, or for the whole.
    pub(super) async fn ask_the_origin(&mut self) -> Fetched {
        let (fetcher, held) = (&self.fetcher, &self.order.held);
        if let Some(stored) = &held.validate {
            // Asks for the whole at once where recent validations were answered with another entity tag.
            let is_in_vain =
                stored.head.parts().is_none() && fetcher.memories.is_mismatched(stored, fetcher.clock.now());
            return self.ask(if is_in_vain { Wish::Whole } else { Wish::Validation }).await;
        }
        if let Some(part) = held.part.as_ref().filter(|_| self.order.is_for_the_whole())
            && let Some(missing) = Missing::of(part, fetcher.limits.memory.max_object_size)
        {
            return Box::pin(self.complete(missing)).await;
        }
        self.ask(Wish::Whole).await
    }

    /// Asks for the range that a part lacks. Asks for the whole if the answer does not fit the part.
    async fn complete(&mut self, missing: Missing) -> Fetched {
        let request_time = self.fetcher.clock.now();
        let answer = match self.ask_origin(Wish::Missing(&missing)).await {
            Ok(answer) => answer,
            Err(error) => return Fetched::Failed(error, self.order.held.fwd),
        };
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => match self.keep_completed(&missing, answer, request_time) {
                Some(fetched) => fetched,
                None => self.ask_for_the_whole().await,
            },
            StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PRECONDITION_FAILED | StatusCode::NOT_MODIFIED => {
                drop(answer);
                self.ask_for_the_whole().await
            }
            _ => self.keep_or_pass(answer, request_time),
        }
    }

    async fn ask_for_the_whole(&mut self) -> Fetched {
        let request_time = self.fetcher.clock.now();
        match self.ask_origin(Wish::Whole).await {
            Ok(answer) => {
                let times = self.times_since(request_time);
                let decision = self.decide(&answer, times, false, Validates::No);
                self.settle(decision, answer, times)
            }
            Err(error) => self.in_place_of(error),
        }
    }

    async fn ask(&mut self, wish: Wish<'_>) -> Fetched {
        let request_time = self.fetcher.clock.now();
        let answer = match self.ask_origin(wish).await {
            Ok(answer) => answer,
            Err(error) => return self.in_place_of(error),
        };
        let times = self.times_since(request_time);
        let asked_for_range =
            answer.status() != StatusCode::PARTIAL_CONTENT || self.fields_for(wish).contains_key(header::RANGE);
        match self.decide(&answer, times, asked_for_range, Validates::Yes) {
            HeadDecision::StandIn => match self.stale_if_error(Some(answer.status())) {
                Some(stale) => stale,
                None => {
                    let decision = self.decide(&answer, times, asked_for_range, Validates::NothingStandsIn);
                    self.settle(decision, answer, times)
                }
            },
            HeadDecision::AskAgain => {
                drop(answer);
                if let Some(stored) = &self.order.held.validate {
                    self.fetcher.memories.note_mismatched(stored, self.fetcher.clock.now());
                }
                Box::pin(self.ask_for_the_whole()).await
            }
            decision => self.settle(decision, answer, times),
        }
    }

    /// Keeps a response if RFC 9111 §3 allows it; otherwise passes it to the client that led.
    pub(crate) fn keep_or_pass(&mut self, answer: Response<UpstreamBody>, request_time: Timestamp) -> Fetched {
        let times = (request_time, self.fetcher.clock.now());
        let decision = self.decide(&answer, times, true, Validates::No);
        self.settle(decision, answer, times)
    }

    fn decide(
        &self,
        answer: &Response<UpstreamBody>,
        times: (Timestamp, Timestamp),
        asked_for_range: bool,
        validation: Validates,
    ) -> HeadDecision {
        use hyper::body::Body as _;
        let (fetcher, order) = (&self.fetcher, &self.order);
        let exchange = self.exchange(answer, times);
        let head = AnswerHead {
            exchange: &exchange,
            len: answer.body().size_hint().exact(),
            is_unframed: answer.extensions().get::<EndsWithConnection>().is_some(),
            asked_for_range,
            validation,
        };
        let limits = KeepLimits {
            in_memory: fetcher.limits.memory.max_object_size,
            has_durable: fetcher.store.durable().is_some(),
            largest: |storable: &_| self.largest(storable),
            admits_large: |storable: &_| fetcher.store.admits_large(self.uses_hash(storable)),
        };
        decide::on_head(order, &head, &limits)
    }

    /// Returns the exchange of the order's request and `answer`.
    pub(super) fn exchange<'a, B>(
        &'a self,
        answer: &'a Response<B>,
        (request_time, response_time): (Timestamp, Timestamp),
    ) -> Exchange<'a> {
        Exchange {
            method: self.order.method(),
            request: self.order.client_fields(),
            status: answer.status(),
            response: answer.headers(),
            request_time,
            response_time,
        }
    }

    pub(super) async fn ask_origin(&mut self, wish: Wish<'_>) -> Result<Response<UpstreamBody>, UpstreamError> {
        if self.order.route == Route::Peers
            && let Some(answered) = Box::pin(self.ask_peers(wish)).await
        {
            return answered;
        }
        let order = &self.order;
        let errand = if order.errand == Errand::Client && self.stand_in(Failure::Unreachable).is_some() {
            Errand::StandIn
        } else {
            order.errand
        };
        let fields = || self.fields_for(wish);
        let (method, uri, informational) = (order.origin_method(), &order.asked.uri, order.informational.as_ref());
        let transfer = &order.asked.terms.transfer;
        let since = Some(order.asked.since);
        let sticky = order.sticky();
        let (fields, is_sent) = (&fields, Some(&*self.is_sent));
        let request = OriginRequest { method, uri, fields, informational, errand, since, sticky, is_sent, transfer };
        self.fetcher.send(order.asked.terms.upstream, &request, order.origin_body()).await
    }

    /// Returns the request fields for the origin.
    fn fields_for(&self, wish: Wish<'_>) -> HeaderMap {
        let onward = self.onward();
        self.fields_onward(wish, onward)
    }

    /// Returns the terms on which the request is forwarded to the origin.
    pub(super) fn onward(&self) -> Onward<'_> {
        let asked = &self.order.asked;
        let parts = asked.exact.parts();
        let (scheme, authority) = parts.map_or(("http", ""), |parts| (parts.scheme, parts.authority));
        self.fetcher.origins.named(asked.terms.upstream).onward(&asked.peer, scheme, authority)
    }

    /// Returns the request fields for whoever is asked on these terms.
    pub(super) fn fields_onward(&self, wish: Wish<'_>, onward: Onward<'_>) -> HeaderMap {
        let mut fields = onward.fields(self.order.asked.request.headers());
        match (wish, &self.order.held.validate) {
            (Wish::AsAsked, _) => {}
            (Wish::Validation, Some(stored)) if stored.head.parts().is_some() => {
                let head = &stored.head;
                validation::make_conditional_range(&mut fields, &head.fields.to_map(), head.response_time());
            }
            (Wish::Validation, Some(stored)) => validation::make_conditional(&mut fields, &stored.head.fields.to_map()),
            (Wish::Validation, None) | (Wish::Whole, _) => validation::remove_preconditions(&mut fields),
            (Wish::Missing(missing), _) => {
                validation::remove_preconditions(&mut fields);
                missing.ask_for(&mut fields);
            }
        }
        fields
    }

    /// Returns a stale response in place of an error of the origin, or else the error.
    fn in_place_of(&self, error: UpstreamError) -> Fetched {
        let held = &self.order.held;
        let is_known = matches!(error, UpstreamError::Down { .. });
        let stale = if is_known {
            self.stale(Failure::Unreachable, Provenance::StandIn(held.tier))
        } else {
            self.stale_if_error(None)
        };
        // The origin counts as down, so no client with a stale response probes it: a validation in the background
        // does.
        if let (true, Some(_), Some(validate), Errand::Client) = (is_known, &stale, &held.validate, self.order.errand) {
            self.validate_in_background(Arc::clone(validate));
        }
        stale.unwrap_or(Fetched::Failed(error, held.fwd))
    }

    /// Validates a response that was served stale, in the background.
    pub(super) fn validate_in_background(&self, stored: Arc<StoredResponse>) {
        self.fetcher.validate_in_background(self.without_lease(), stored);
    }

    /// Returns a stale response in place of an error of the origin, where one may be served (RFC 5861 §4, RFC 9111
    /// §4.2.4).
    fn stale_if_error(&self, status: Option<StatusCode>) -> Option<Fetched> {
        let failure = if status.is_some() { Failure::Status } else { Failure::Unreachable };
        if let Some(stored) = &self.order.held.validate {
            let who = Who::of(self.order.client_fields());
            stored.head.marks.note_tried(Tried::Failed(failure), who, self.fetcher.clock.now());
        }
        let status = status.map(|status| status.as_u16());
        self.stale(failure, Provenance::InPlaceOfError { fwd: self.order.held.fwd, status })
    }

    /// Returns the stale response that may stand in, unless it was purged since the request began.
    fn stale(&self, failure: Failure, source: Provenance) -> Option<Fetched> {
        let (fetcher, order) = (&self.fetcher, &self.order);
        let stored = self.stand_in(failure)?;
        let is_purged = fetcher.store.is_covered(&stored.head)
            || fetcher.store.is_purged(order.asked.exact.hash(), self.position.min(stored.head.position));
        if is_purged {
            return None;
        }
        debug!("a stale response stands in for an error of the origin");
        let fits = stored.len() <= fetcher.limits.memory.max_object_size;
        if order.held.tier == Tier::Durable && order.held.validate.is_some() && fits {
            // Later requests find it in memory.
            fetcher.store.promote(stored, None);
        }
        Some(shared(stored, source))
    }

    /// Returns the stored response that may stand in when the origin fails in this way.
    fn stand_in(&self, failure: Failure) -> Option<&Arc<StoredResponse>> {
        let (order, now) = (&self.order, self.fetcher.clock.now());
        let stored = order.held.validate.as_ref().or(order.held.head_of.as_ref())?;
        let may = reuse::stale_if_error(&order.asked.directives, &stored.head.freshness, failure, now);
        (may && order.is_answered_by(&stored.head, stored.len())).then_some(stored)
    }

    /// Publishes a response to those who wait, while its body may still be coming in.
    pub(super) fn publish(&mut self, shared: &Arc<Shared>) {
        if let Some(lease) = &mut self.lease {
            lease.publish(Outcome::Shared(Arc::clone(shared)));
        }
    }
}

/// Returns a stored response as the outcome of a fetch, for everybody.
pub(super) fn shared(stored: &Arc<StoredResponse>, source: Provenance) -> Fetched {
    let shared = Shared { response: SharedResponse::Stored(Arc::clone(stored)), source };
    Fetched::Shared(Arc::new(shared), ForLeader::default())
}
