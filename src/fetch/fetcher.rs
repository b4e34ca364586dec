//! Runs a fetch: asks the durable tier (`durable`), then the origin, and keeps what may be kept (`keep`).

use crate::fetch::keep;
use crate::fetch::plan::Plan;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap};
use http::{Method, Response, StatusCode};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::base::{Clock, Recent};
use crate::entry::{Budget, Fill, FillReader, FillWriter, StoredHead, StoredResponse, Tried, Unread, Who};
use crate::fetch::hit_for_miss::Reach;
use crate::fetch::{
    Flights, HitForMiss, Joined, Landing, Outcome, Pass, Searches, Shared, SharedResponse, Source, Watch,
};
use crate::rfc9111::cache_status::{Fwd, Tier};
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::reuse::{Failure, Reuse};
use crate::rfc9111::storage::{Exchange, NotStorable, StoragePolicy, speaks_of_the_page, storable};
use crate::rfc9111::timestamp::Timestamp;
use crate::rfc9111::validation::Validation;
use crate::rfc9111::vary::Vary;
use crate::rfc9111::{date, fields, reuse, validation};
use crate::store::{Lookup, MemoryConfig, Opening, SeparateBody, Store};
use crate::upstream::forwarding::{Onward, Peer, Signature};
use crate::upstream::{Errand, OriginRequest, RequestBody, Upstream, UpstreamBody, UpstreamError};

/// What the origin is asked for.
#[derive(Clone, Copy, Debug)]
enum Wish<'a> {
    /// What the client asked for, under its own preconditions.
    AsAsked,
    /// Whether what is to be validated still holds.
    Validation,
    /// The whole, whatever the client's preconditions.
    Whole,
    /// What is missing of a stored part.
    Missing(&'a keep::Missing),
}

/// What came of a fetch.
#[derive(Debug)]
pub enum Fetched {
    /// A response that may be shared, and what of it is for the client that led.
    Shared(Arc<Shared>, ForLeader),
    /// A response from the store for the client that led, which nobody else may have.
    Own(Arc<Shared>, ForLeader),
    /// A response from the durable tier for this client, with its body still there.
    Apart(Arc<StoredHead>, Box<SeparateBody>),
    /// A response for the client that led.
    Passed {
        /// The response, without the fields of its connection.
        response: Response<UpstreamBody>,
        /// Why it is not shared.
        why: NotStorable,
        /// Why the origin was asked.
        fwd: Fwd,
        /// The origin's status, where the response has another.
        fwd_status: Option<u16>,
    },
    /// None.
    Failed(UpstreamError, Fwd),
}

/// What the client that led a fetch gets besides the shared response.
#[derive(Debug, Default)]
pub struct ForLeader {
    /// The fields with the cookies that a 304 brought, or that a response is stored without. No one else sees them.
    pub cookies: HeaderMap,
    /// Its reader of a body that is coming in, taken before the first byte: a fill that can't be
    /// kept whole goes on only for those who read it.
    pub reader: Option<FillReader>,
}

/// Everything a fetch needs.
#[derive(Debug)]
pub struct Fetcher {
    /// Both tiers.
    pub store: Store,
    /// The origin.
    pub upstream: Arc<Upstream>,
    /// The time.
    pub clock: Clock,
    /// The requests whose responses are not worth waiting for.
    pub hit_for_miss: HitForMiss,
    /// The keys that the durable tier was lately asked for a part of.
    pub ranged: Recent<()>,
    /// When what the durable tier has for some keys was last validated in the background.
    pub validated: Recent<Timestamp>,
    /// The responses that their origin answers validations of with another entity tag.
    pub mismatched: Recent<()>,
    /// What is known of the queries of some paths.
    pub searches: Searches,
    /// The fetches under way that can be shared.
    pub flights: Arc<Flights>,
    /// One for each fetch that may go on although nobody waits for it.
    pub unattended: Semaphore,
    /// The memory that fetches under way may take.
    pub budget: Arc<Budget>,
    /// The bytes that fetches under way, and clients that still read, may hold before bodies are kept no more.
    pub max_buffered: usize,
    /// `[memory]`
    pub memory: MemoryConfig,
    /// Whether the origin is told that `Surrogate-Control` is listened to.
    pub surrogate_control: bool,
    /// The name that forwarded requests are signed with.
    pub signature: Signature,
    /// Whether an expired durable object is deleted when it is found.
    pub purge_expired_on_read: bool,
    /// Every task that outlives its client.
    pub tasks: TaskTracker,
    /// Connections that are no longer HTTP. They end when both sides have, or with the process.
    pub tunnels: TaskTracker,
}

/// Tells apart, among the flights of a key, those that validate what the durable tier had in the background.
const BEHIND: u128 = 0x5bd1_e995_7b7d_159c_c2b2_ae3d_27d4_eb4f;

/// How many fetches that nobody waits for go on at once.
pub const MAX_UNATTENDED: usize = 256;

impl Fetcher {
    /// Starts a flight as a task that no client's leaving stops, as long as anybody waits for it. When
    /// nobody does, before its head has come, it goes on among a bounded number.
    pub fn launch(self: &Arc<Self>, plan: Box<Plan>, landing: Landing, leader: Option<oneshot::Sender<Fetched>>) {
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            let watch = landing.watch();
            let (fetched, landing) = tokio::select! {
                biased;
                flown = this.fly(plan, landing) => flown,
                () = this.is_called_off(&watch) => return,
            };
            if let Some(landing) = landing {
                landing.end(match &fetched {
                    Fetched::Shared(shared, _) => Outcome::Shared(Arc::clone(shared)),
                    Fetched::Own(..) | Fetched::Apart(..) | Fetched::Passed { .. } => Outcome::NotShared,
                    Fetched::Failed(error, _) => Outcome::Failed(error.clone()),
                });
            }
            if let Some(leader) = leader {
                // A leader that has left takes its own response with it.
                let _ = leader.send(fetched);
            }
        });
    }

    /// Ready when nobody waits for a flight, and too many are such already.
    async fn is_called_off(&self, watch: &Watch) {
        loop {
            watch.deserted().await;
            if let Ok(_permit) = self.unattended.try_acquire() {
                return std::future::pending().await;
            }
            if watch.cancel() {
                debug!("a fetch that nobody waits for ends: {MAX_UNATTENDED} others go on");
                return;
            }
        }
    }

    /// Fetches for a flight: the tiers first, since another flight may have landed in between, and
    /// then the origin. What is still coming in keeps `landing`, so that the flight can be joined
    /// until its body is complete.
    pub async fn fly(self: &Arc<Self>, mut plan: Box<Plan>, landing: Landing) -> (Fetched, Option<Landing>) {
        let position = self.begin(&mut plan);
        self.drop_covered(&mut plan);
        match self.store.lookup(&plan.key, plan.client_fields()) {
            Lookup::Found(stored) if !plan.can_use(&stored.head, stored.len()) => {
                plan.fwd = Fwd::Partial;
                plan.part = Some(stored);
            }
            // One that was stored since this flight was found necessary.
            Lookup::Found(stored)
                if self.reuse(&plan, &stored.head).is_some()
                    && plan.validate.as_ref().is_none_or(|old| !Arc::ptr_eq(old, &stored)) =>
            {
                return (shared(&stored, Source::Tier(Tier::Memory)), Some(landing));
            }
            Lookup::Found(stored) => plan.validate = Some(stored),
            Lookup::OtherVariants(_) => plan.known = self.store.known(&plan.key),
            Lookup::Nothing => {}
        }
        let mut landing = Some(landing);
        if plan.validate.is_none() && plan.part.is_none() && !plan.asked_durable {
            let consulted = Box::pin(self.consult_durable(&mut plan, position, landing, Opening::AtOnce));
            landing = match consulted.await {
                Ok(fetched) => return fetched,
                Err(landing) => landing,
            };
        }
        self.from_origin(&plan, position, landing).await
    }

    /// Notes what is known of purges when a fetch begins; the position of that.
    pub(super) fn begin(&self, plan: &mut Plan) -> u64 {
        let position = self.store.position();
        plan.version_vector = self.store.purges().version_vector();
        position
    }

    /// What was purged since it was found is history: it is not validated, added to, or served in
    /// place of an error. To be called after the position of a fetch is taken.
    fn drop_covered(&self, plan: &mut Plan) {
        let exact = plan.exact.hash();
        let is_covered = |stored: &Arc<StoredResponse>| {
            self.store.is_covered(&stored.head) || self.store.is_purged(exact, stored.head.position)
        };
        for stored in [&mut plan.validate, &mut plan.part, &mut plan.head_of] {
            if stored.as_ref().is_some_and(is_covered) {
                *stored = None;
            }
        }
    }

    /// Returns why a response for a `key` that nobody waits for may not be stored, as far as the response
    /// itself decides that. Remembers it, unless it `is_noted` already.
    pub fn still_not_storable(
        &self,
        key: &CacheKey,
        exchange: &Exchange<'_>,
        policy: &StoragePolicy,
        is_noted: bool,
    ) -> Option<NotStorable> {
        let why = storable(exchange, policy).err().filter(|why| why.is_about_the_response())?;
        if !is_noted {
            self.note_not_storable(key, exchange, policy, why, self.clock.now());
        }
        Some(why)
    }

    /// Remembers that those who ask like this request should not wait for each other.
    pub(super) fn note_not_storable(
        &self,
        key: &CacheKey,
        exchange: &Exchange<'_>,
        policy: &StoragePolicy,
        why: NotStorable,
        now: Timestamp,
    ) {
        let hash = key.hash();
        self.hit_for_miss.note_refused(hash, why, now);
        if !why.is_about_the_response() || keep::is_partial(exchange.status) {
            return;
        }
        if let Vary::Fields(names) = Vary::of(exchange.response, &policy.nominated) {
            self.hit_for_miss.divide(hash, &names, now);
        }
        let reach = if speaks_of_the_page(exchange.status) { Reach::Selection } else { Reach::SameFields };
        self.hit_for_miss.remember(hash, exchange.request, (Pass::NotStorable, reach), now);
    }

    /// Validates what was served stale: once a key at a time, and nobody waits.
    pub(super) fn validate_behind(self: &Arc<Self>, plan: &Plan, stored: Arc<StoredResponse>, position: u64) {
        if plan.method != Method::GET || !self.upstream.breaker().is_probe_due() {
            return;
        }
        let hash = plan.exact.hash();
        let Joined::Leader(landing) = self.flights.join(hash, BEHIND) else { return };
        // It may have been looked up before the last validation landed.
        let validated = self.validated.get(hash, self.clock.now());
        if validated.is_some_and(|at| at > stored.head.response_time()) {
            return;
        }
        let errand = Errand::Background;
        let plan = Plan { validate: Some(stored), interim: None, fwd: Fwd::Stale, errand, ..plan.clone() };
        let plan = Box::new(plan);
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            let Ok(_permit) = this.unattended.try_acquire() else { return };
            // Kept until what came is stored: who asks meanwhile begins no other.
            let (fetched, landing) = this.from_origin(&plan, position, Some(landing)).await;
            if let Fetched::Shared(shared, _) = &fetched {
                this.validated.remember(hash, shared.head().response_time(), this.clock.now());
            }
            drop(landing);
        });
    }

    /// Asks the origin for a client that waits for nobody.
    pub async fn alone(self: &Arc<Self>, mut plan: Box<Plan>) -> Fetched {
        let position = self.begin(&mut plan);
        self.drop_covered(&mut plan);
        if plan.validate.is_some() {
            return Box::pin(self.from_origin(&plan, position, None)).await.0;
        }
        self.ask(&plan, Wish::AsAsked, position, None).await.0
    }

    /// Notes that a part of a response was read from the durable tier. One that fits into memory is taken
    /// there the second time.
    pub fn note_ranged(self: &Arc<Self>, plan: &Plan, len: u64) {
        if plan.method != Method::GET || len > self.memory.max_object_size || plan.key != plan.exact {
            return;
        }
        let (hash, now) = (plan.key.hash(), self.clock.now());
        if self.ranged.get(hash, now).is_none() {
            return self.ranged.remember(hash, (), now);
        }
        self.ranged.forget(hash);
        if let Joined::Leader(landing) = self.flights.join(hash, BEHIND) {
            let plan = Plan { interim: None, errand: Errand::Background, asked_durable: false, ..plan.clone() };
            self.launch(Box::new(plan), landing, None);
        }
    }

    /// How `head` may answer the plan's own request, if it may.
    pub(super) fn reuse(&self, plan: &Plan, head: &StoredHead) -> Option<Reuse> {
        let now = self.clock.now();
        let directives = plan.request_directives.bounded(plan.directives.clone(), head.response_time(), now);
        match reuse::reuse(&directives, &head.freshness, now) {
            reuse @ (Reuse::Fresh | Reuse::Stale | Reuse::StaleWhileRevalidate) => Some(reuse),
            Reuse::Validate(_) | Reuse::GatewayTimeout => None,
        }
    }

    /// Asks the origin: with the validators of what is to be validated, for what is missing of what
    /// is stored in part, or for the whole.
    async fn from_origin(
        self: &Arc<Self>,
        plan: &Plan,
        position: u64,
        landing: Option<Landing>,
    ) -> (Fetched, Option<Landing>) {
        if let Some(stored) = &plan.validate {
            // Asks for the whole at once where recent validations came to nothing.
            let is_in_vain = stored.head.parts().is_none()
                && self.mismatched.get(stored.head.uses_hash(), self.clock.now()).is_some();
            let wish = if is_in_vain { Wish::Whole } else { Wish::Validation };
            return self.ask(plan, wish, position, landing).await;
        }
        if let Some(part) = plan.part.as_ref().filter(|_| plan.is_for_the_whole())
            && let Some(missing) = keep::Missing::of(part, self.memory.max_object_size)
        {
            return Box::pin(self.complete(plan, &missing, position, landing)).await;
        }
        self.ask(plan, Wish::Whole, position, landing).await
    }

    /// Asks for the one range that is missing. If what comes does not fit, the whole is asked for.
    async fn complete(
        self: &Arc<Self>,
        plan: &Plan,
        missing: &keep::Missing,
        position: u64,
        landing: Option<Landing>,
    ) -> (Fetched, Option<Landing>) {
        let request_time = self.clock.now();
        let answer = match self.ask_origin(plan, Wish::Missing(missing)).await {
            Ok(answer) => answer,
            Err(error) => return (Fetched::Failed(error, plan.fwd), landing),
        };
        let answer = match answer.status() {
            StatusCode::PARTIAL_CONTENT => {
                match self.keep_completed(plan, missing, answer, request_time, position, landing) {
                    Ok(fetched) => return (fetched, None),
                    Err(landing) => return self.ask_for_the_whole(plan, position, landing).await,
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PRECONDITION_FAILED | StatusCode::NOT_MODIFIED => {
                drop(answer);
                return self.ask_for_the_whole(plan, position, landing).await;
            }
            _ => answer,
        };
        self.keep_or_pass(plan, answer, request_time, position, landing)
    }

    async fn ask_for_the_whole(
        self: &Arc<Self>,
        plan: &Plan,
        position: u64,
        landing: Option<Landing>,
    ) -> (Fetched, Option<Landing>) {
        let request_time = self.clock.now();
        match self.ask_origin(plan, Wish::Whole).await {
            Ok(answer) if answer.status() == StatusCode::PARTIAL_CONTENT => (unasked_part(plan, answer), landing),
            Ok(answer) => self.keep_or_pass(plan, answer, request_time, position, landing),
            Err(error) => (self.in_place_of(plan, error, position), landing),
        }
    }

    async fn ask(
        self: &Arc<Self>,
        plan: &Plan,
        wish: Wish<'_>,
        position: u64,
        landing: Option<Landing>,
    ) -> (Fetched, Option<Landing>) {
        let request_time = self.clock.now();
        let answer = match self.ask_origin(plan, wish).await {
            Ok(answer) => answer,
            Err(error) => return (self.in_place_of(plan, error, position), landing),
        };
        let is_unasked = || !self.fields_for(plan, wish).contains_key(header::RANGE);
        if answer.status() == StatusCode::PARTIAL_CONTENT && is_unasked() {
            return (unasked_part(plan, answer), landing);
        }
        let Some(stored) = &plan.validate else {
            return self.keep_or_pass(plan, answer, request_time, position, landing);
        };
        match validation::outcome(answer.status(), answer.headers(), &stored.head.fields.to_map()) {
            Validation::Freshened => (self.freshen(plan, stored, answer.headers(), request_time, position), landing),
            Validation::Failed => match self.stale_if_error(plan, Some(answer.status()), position) {
                Some(stale) => (stale, landing),
                None => self.keep_or_pass(plan, answer, request_time, position, landing),
            },
            Validation::Replaced => self.keep_or_pass(plan, answer, request_time, position, landing),
            Validation::Mismatched => {
                // RFC 9111 §4.3.4: such a 304 updates nothing, and without the stored response it
                // says nothing to the client either. Ask again, for the whole.
                drop(answer);
                self.mismatched.remember(stored.head.uses_hash(), (), self.clock.now());
                Box::pin(self.ask_for_the_whole(plan, position, landing)).await
            }
        }
    }

    async fn ask_origin(&self, plan: &Plan, wish: Wish<'_>) -> Result<Response<UpstreamBody>, UpstreamError> {
        let errand = if plan.errand == Errand::Client && self.stand_in(plan, Failure::Unreachable).is_some() {
            Errand::StandIn
        } else {
            plan.errand
        };
        let fields = || self.fields_for(plan, wish);
        let (method, uri, interim) = (&plan.method, &plan.uri, plan.interim.as_ref());
        let transfer = &plan.transfer;
        self.send(&OriginRequest { method, uri, fields: &fields, interim, errand, transfer }, RequestBody::Empty).await
    }

    /// The fields to ask the origin with.
    fn fields_for(&self, plan: &Plan, wish: Wish<'_>) -> HeaderMap {
        let parts = plan.exact.parts();
        let (scheme, authority) = parts.map_or(("http", ""), |parts| (parts.scheme, parts.authority));
        let mut fields = self.onward(&plan.peer, scheme, authority).fields(plan.request.headers());
        match (wish, &plan.validate) {
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

    /// What the origin is told of a request.
    pub fn onward<'a>(&'a self, peer: &'a Peer, scheme: &'a str, authority: &'a str) -> Onward<'a> {
        let host = self.upstream.config().host.as_deref();
        let (surrogate_control, signature) = (self.surrogate_control, self.signature);
        Onward { peer, scheme, authority, host, surrogate_control, signature }
    }

    /// Sends a request to the origin, and takes the fields of the connection out of the answer.
    pub async fn send(
        &self,
        request: &OriginRequest<'_>,
        body: RequestBody,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let mut answer = self.upstream.send(request, body).await?;
        clean_response(answer.headers_mut(), &self.clock);
        Ok(answer)
    }

    /// What there is without an answer of the origin.
    fn in_place_of(self: &Arc<Self>, plan: &Plan, error: UpstreamError, position: u64) -> Fetched {
        let is_known = matches!(error, UpstreamError::Down { .. });
        let stale = if is_known {
            self.stale(plan, Failure::Unreachable, position, Source::StandIn(plan.tier))
        } else {
            self.stale_if_error(plan, None, position)
        };
        // Nobody who has a stale response is sent to find the origin up again.
        if let (true, Some(_), Some(validate), Errand::Client) = (is_known, &stale, &plan.validate, plan.errand) {
            self.validate_behind(plan, Arc::clone(validate), position);
        }
        stale.unwrap_or(Fetched::Failed(error, plan.fwd))
    }

    /// A stale response in place of an error of the origin, where it may be (RFC 5861 §4, RFC 9111
    /// §4.2.4).
    fn stale_if_error(&self, plan: &Plan, status: Option<StatusCode>, position: u64) -> Option<Fetched> {
        let failure = if status.is_some() { Failure::Status } else { Failure::Unreachable };
        if let Some(stored) = &plan.validate {
            stored.head.marks.note_tried(Tried::Failed(failure), Who::of(plan.client_fields()), self.clock.now());
        }
        let status = status.map(|status| status.as_u16());
        self.stale(plan, failure, position, Source::InPlaceOfError { fwd: plan.fwd, status })
    }

    /// One that was purged since the request began is history.
    fn stale(&self, plan: &Plan, failure: Failure, position: u64, source: Source) -> Option<Fetched> {
        let stored = self.stand_in(plan, failure)?;
        let is_purged = self.store.is_covered(&stored.head)
            || self.store.is_purged(plan.exact.hash(), position.min(stored.head.position));
        if is_purged {
            return None;
        }
        debug!("a stale response stands in for an error of the origin");
        if plan.tier == Tier::Durable && plan.validate.is_some() && stored.len() <= self.memory.max_object_size {
            // The next one has it from memory.
            self.store.promote(stored, None);
        }
        Some(shared(stored, source))
    }

    /// The stored response that may stand in when the origin fails like this.
    fn stand_in<'a>(&self, plan: &'a Plan, failure: Failure) -> Option<&'a Arc<StoredResponse>> {
        let stored = plan.validate.as_ref().or(plan.head_of.as_ref())?;
        let may = reuse::stale_if_error(&plan.directives, &stored.head.freshness, failure, self.clock.now());
        (may && plan.can_use(&stored.head, stored.len())).then_some(stored)
    }

    /// Returns how the origin recently failed to validate a stored response for clients like `who`: it is not waited
    /// for again so soon.
    pub fn known_failure(&self, stored: &StoredHead, who: Who) -> Option<Failure> {
        if self.upstream.breaker().is_open() {
            return Some(Failure::Unreachable);
        }
        let config = self.upstream.config();
        let within = self.upstream.patience() + config.breaker_pause;
        match stored.marks.tried(millis(within), who, self.clock.now())? {
            Tried::Failed(failure) => Some(failure),
            Tried::NotStored => None,
        }
    }

    /// Returns whether a stored response is due for background validation for a client like `who`: whatever came of
    /// the last try, at most once in a `breaker_pause`, or four times for clients that ask in other ways.
    pub fn may_validate(&self, stored: &StoredHead, who: Who) -> bool {
        let pause = millis(self.upstream.config().breaker_pause);
        stored.marks.is_due(pause, who, self.clock.now()) && self.upstream.breaker().is_probe_due()
    }

    /// The largest body that is kept whole now: where clients hold as much as they may, others pass.
    pub(super) fn largest_kept(&self) -> u64 {
        let largest = self.memory.max_object_size;
        if self.budget.held() < self.max_buffered { largest } else { largest.min(KEPT_WHEN_FULL) }
    }

    /// A fill for a body of `len` bytes, if that is known: what can't be kept whole is not begun to be.
    pub(super) fn start_fill(&self, len: Option<u64>) -> FillWriter {
        let largest = self.largest_kept();
        let limit = if len.is_some_and(|len| len > largest) { 0 } else { largest };
        let unread = if len.is_some() { Unread::Finite } else { Unread::PerhapsEndless };
        Fill::start(usize::try_from(limit).unwrap_or(usize::MAX), unread, Arc::clone(&self.budget))
    }
}

/// Small bodies are kept however much clients hold.
const KEPT_WHEN_FULL: u64 = 64 << 10;

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn shared(stored: &Arc<StoredResponse>, source: Source) -> Fetched {
    let shared = Shared { response: SharedResponse::Stored(Arc::clone(stored)), source };
    Fetched::Shared(Arc::new(shared), ForLeader::default())
}

/// A part although the whole was asked for: it is the origin's word to this client, and no more.
fn unasked_part(plan: &Plan, answer: Response<UpstreamBody>) -> Fetched {
    let response = answer;
    Fetched::Passed { response, why: NotStorable::Part, fwd: plan.fwd, fwd_status: None }
}

/// Takes the fields of the connection out of a response, and dates it if its origin did not
/// (RFC 9110 §6.6.1).
pub(crate) fn clean_response(response: &mut HeaderMap, clock: &Clock) {
    // Nearly every response has none of the former, and a date.
    let (mut is_framed, mut has_hop_by_hop, mut is_dated) = (false, false, false);
    for name in response.keys() {
        is_framed |= *name == header::TRANSFER_ENCODING;
        has_hop_by_hop |= fields::is_hop_by_hop(name);
        is_dated |= *name == header::DATE;
    }
    // RFC 9112 §6.3: where there are both, the body was not as long as Content-Length says.
    if is_framed {
        response.remove(header::CONTENT_LENGTH);
    }
    if has_hop_by_hop {
        fields::remove_hop_by_hop(response);
    }
    if !is_dated {
        response.insert(header::DATE, date::format(clock.now()));
    }
}
