//! The life of a request.
//!
//! 1. [`Proxy::handle`]: what its sender may not say is taken out, and its target, key and rule are worked out.
//! 2. [`Proxy::answer`]: what no stored response may answer is passed on (`forward`).
//! 3. Memory is looked up, and [`decide`](crate::fetch) says what is done with what is found.
//! 4. The decision is carried out: an answer from memory, here and now; a refusal; or a fetch (`share`), which asks the
//!    durable tier and the origin.
//! 5. The answer is labelled with `Cache-Status`, counted and logged ([`Reply`]).

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request};
use tokio_util::task::TaskTracker;
use tracing::field::Empty;
use tracing::{Span, debug_span};

use super::access::{Line, RequestId};
use super::client::{Client, informational};
use super::failures::Failures;
use super::forward::Passed;
use super::reply::{Reply, Step};
use super::rules;
use super::target::{Keys, Target, is_upgrade, shared_form};
use crate::base::{Metrics, WorkerMetrics};
use crate::entry::{Reading, StoredResponse, Validating, Who};
use crate::fetch::{
    Asked, Behind, Decision, Fetcher, Holdings, Inquiry, Joined, Looked, Order, Pass, Sharing, Terms, is_passed_on,
    sharing, with_nothing, with_stored, without_looking,
};
use crate::respond::{Answer, ClientRequest, Label, Refusal, hit, options};
use crate::rfc9111::cache_status::{CACHE_STATUS, CacheStatus, Fwd, Handling};
use crate::rfc9111::directives::CacheControl;
use crate::rfc9111::fields;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::present::Present;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::{Lookup, Store};
use crate::upstream::forwarding::{Original, Peer, Trust};
use crate::upstream::{ClientBody, Limits, Upstream, forwarding};

/// The proxy: everything that the workers share.
#[derive(Debug)]
pub struct Proxy {
    /// What fetches.
    pub fetcher: Arc<Fetcher>,
    /// Whose word on a request counts, and in which fields.
    pub trust: Trust,
    /// What the configuration says of some paths, and the keys that come of it.
    pub keys: Keys,
    /// `[cache]`
    pub cache: rules::Config,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Whether every request is logged.
    pub access_log: bool,
    /// The failures that were logged lately.
    pub failures: Failures,
    /// What a request's body may be.
    pub upload_limits: Limits,
    /// Idle limit of a tunnel.
    pub tunnel_timeout: Duration,
    /// Connections that are no longer HTTP. They end when both sides have, or with the process.
    pub tunnels: TaskTracker,
}

/// What fetches, and bodies that pass, take now.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Bytes of bodies that are coming in.
    pub filling: u64,
    /// Those, and the bytes that clients of fetches that are done still read.
    pub held: u64,
    /// Fetches under way that can be shared.
    pub flights: u64,
    /// Requests that wait for one.
    pub waiting: u64,
    /// Fetches that may yet go on although nobody waits for them.
    pub unattended_left: u64,
    /// Bytes of uploads and of what is read ahead of clients, in memory.
    pub buffered: u64,
    /// The same in temporary files.
    pub spooled: u64,
}

impl Proxy {
    /// Begins to answer a request of `client`, of whose fields those are `present`.
    ///
    /// A hit is answered here and now. What has to wait does so on the heap, so that nobody carries its
    /// state about who does not need it.
    pub(crate) fn handle<'a>(
        self: &'a Arc<Self>,
        worker: &'a WorkerMetrics,
        client: &'a dyn Client,
        mut request: Request<ClientBody>,
        mut present: Present,
    ) -> Reply<'a> {
        // A field that the origin will not see must not select a stored response either.
        if present.has(Present::CONNECTION) {
            fields::remove_listed(request.headers_mut());
            present = Present::of(request.headers());
        }
        let original = if present.has(Present::CLAIM) || self.trust.has_fields() {
            let (received, now_present) = self.receive(client.peer(), &mut request);
            present = now_present;
            received
        } else {
            Original::of_peer(client.peer())
        };
        let access = if self.access_log { Some(self.begin_line(client.peer(), &request)) } else { None };
        if present.has(Present::VIA) && self.fetcher.origin.signature.is_in(request.headers()) {
            return Reply::new(worker, client, access, self.labelled(Refusal::Loop.answer(), None));
        }
        let step = match self.keys.target(&original, &request, present) {
            Ok(target) => self.answer(client, target, request, present),
            Err(refusal) => self.labelled(refusal.answer(), None),
        };
        Reply::new(worker, client, access, step)
    }

    /// Takes out of a request what its sender may not say. Apart from the way of a request that says no such thing.
    #[cold]
    fn receive(&self, peer: &Peer, request: &mut Request<ClientBody>) -> (Original, Present) {
        let method = request.method().clone();
        let original = forwarding::receive(&self.trust, peer, &method, request.headers_mut());
        (original, Present::of(request.headers()))
    }

    #[cold]
    fn begin_line(&self, peer: &Peer, request: &Request<ClientBody>) -> Box<Line> {
        Box::new(Line::begin(&self.trust, peer, request))
    }

    /// The tasks of fetches under way.
    pub fn fetches(&self) -> &TaskTracker {
        &self.fetcher.tasks
    }

    /// What fetches, and bodies that pass, take now.
    pub fn usage(&self) -> Usage {
        let (limits, flights) = (&self.fetcher.limits, &self.fetcher.flights);
        let buffers = self.upstream().buffers();
        Usage {
            filling: limits.budget.used() as u64,
            held: limits.budget.held() as u64,
            flights: flights.under_way() as u64,
            waiting: flights.waiting() as u64,
            unattended_left: limits.unattended.available_permits() as u64,
            buffered: buffers.used() as u64,
            spooled: buffers.spools.used(),
        }
    }

    /// Both tiers.
    pub fn store(&self) -> &Store {
        &self.fetcher.store
    }

    /// The origin.
    pub(crate) fn upstream(&self) -> &Upstream {
        &self.fetcher.origin.upstream
    }

    fn answer<'a>(
        self: &'a Arc<Self>,
        caller: &'a dyn Client,
        target: Target<'a>,
        request: Request<ClientBody>,
        present: Present,
    ) -> Step<'a> {
        if is_upgrade(&request, present) {
            let span = span_of(&request, &target);
            return Step::waits(span, async move {
                let mut answer = self.tunnel(caller, &target, request).await;
                self.label_answer(&mut answer, Some(&target));
                answer
            });
        }
        let (method, has_content) = (request.method(), !request.body().is_none());
        let inquiry = Inquiry { method, fields: request.headers(), present, has_content };
        if let Some(decision) = without_looking(inquiry, target.rule.rule.bypass) {
            return self.pass(caller, target, request, decision);
        }
        let now = self.fetcher.clock.now();
        let (key, found) = self.look_up(&target, request.headers());
        let (decision, directives) = self.decide(&target, inquiry, &found, now);
        match (decision, found) {
            (Decision::Answer(_, behind), Lookup::Found(stored)) => {
                if is_due(behind) {
                    self.validate_behind(caller, &target, key, &request, directives, &stored);
                }
                self.hit(ClientRequest::noted(&request, present), stored, now, &target)
            }
            (Decision::NotCached, _) => self.labelled(Refusal::OnlyIfCached.answer(), Some(&target)),
            (Decision::Fetch(fwd), found) => {
                let stored = if let Lookup::Found(stored) = found { Some(stored) } else { None };
                self.fetch(caller, target, request, present, Missed { fwd, stored, key, directives, now })
            }
            (decision @ (Decision::Pass(_) | Decision::Answer(..)), _) => self.pass(caller, target, request, decision),
        }
    }

    /// Decides on what memory has for a request. Returns the request's directives as well, as far as they count.
    #[inline]
    fn decide(
        &self,
        target: &Target<'_>,
        inquiry: Inquiry<'_>,
        found: &Lookup,
        now: Timestamp,
    ) -> (Decision, CacheControl) {
        let rule = target.rule;
        let says_something = inquiry.present.has(Present::DIRECTIVES);
        let mut directives = if says_something { rule.directives(inquiry.fields) } else { CacheControl::default() };
        let decision = match found {
            Lookup::Found(stored) => {
                let head = &stored.head;
                if says_something {
                    directives = rule.request_directives.bounded(directives, head.response_time(), now);
                }
                let failure = || self.fetcher.known_failure(head, Who::of(inquiry.fields));
                with_stored(inquiry, &directives, head, stored.len(), rule.rule.early_refresh, failure, now)
            }
            Lookup::OtherVariants(record) => {
                for names in &record.sets {
                    self.fetcher.memories.hit_for_miss.divide(record.key.hash(), names, now);
                }
                with_nothing(true)
            }
            Lookup::Nothing => with_nothing(false),
        };
        (decision, directives)
    }

    /// Passes on a request that no stored response may answer.
    fn pass<'a>(
        self: &'a Arc<Self>,
        caller: &'a dyn Client,
        target: Target<'a>,
        mut request: Request<ClientBody>,
        decision: Decision,
    ) -> Step<'a> {
        let fwd = if let Decision::Pass(fwd) = decision { fwd } else { Fwd::Request };
        if *request.method() == Method::OPTIONS
            && let Some(answer) = max_forwards(request.headers_mut())
        {
            return self.labelled(answer, Some(&target));
        }
        let span = span_of(&request, &target);
        let (request, body) = request.into_parts();
        Step::waits(span, async move {
            let mut answer = self.forward(caller, &target, &request, body, fwd).await;
            self.label_answer(&mut answer, Some(&target));
            answer
        })
    }

    /// Fetches for a request that memory does not answer.
    fn fetch<'a>(
        self: &'a Arc<Self>,
        caller: &'a dyn Client,
        target: Target<'a>,
        request: Request<ClientBody>,
        present: Present,
        missed: Missed,
    ) -> Step<'a> {
        if self.fetcher.limits.are_overloaded() {
            return self.labelled(Refusal::Overloaded.answer(), Some(&target));
        }
        let Missed { fwd, stored, key, directives, now } = missed;
        let looked_up = key.as_deref().unwrap_or(&target.key);
        let Looked { pass, lasts, .. } =
            self.fetcher.memories.hit_for_miss.look_at(looked_up.hash(), request.headers(), present, now);
        let inquiry = Inquiry { method: request.method(), fields: request.headers(), present, has_content: false };
        let may_be_durable = || self.fetcher.store.may_be_durable(&target.key);
        let span = span_of(&request, &target);
        if is_passed_on(inquiry, &directives, pass, stored.is_some(), may_be_durable) {
            let (mut request, _) = request.into_parts();
            if let Cow::Owned(asked) = shared_form(&request.uri, &target.rule.rule.query) {
                request.uri = asked;
            }
            return Step::waits(span, async move {
                let since = Passed { fwd, now, is_noted: lasts };
                let mut answer = self.pass_on(caller, &target, key.as_deref(), &request, since).await;
                self.label_answer(&mut answer, Some(&target));
                answer
            });
        }
        // Its body is empty.
        let request = Arc::new(request.map(|_| ()));
        let mut held = Holdings::nothing(fwd);
        match fwd {
            Fwd::Partial => held.part = stored,
            _ => held.validate = stored,
        }
        let asked = asked(caller, &target, &request, directives, key.map(|key| *key));
        let order = Order::new(Arc::new(asked), held, informational(caller, request.version()));
        Step::waits(span, async move {
            let mut answer = self.fetch_order(&request, order, pass).await;
            self.label_answer(&mut answer, Some(&target));
            answer
        })
    }

    fn hit<'a>(
        &self,
        asked: ClientRequest<'_>,
        stored: Arc<StoredResponse>,
        now: Timestamp,
        target: &Target<'_>,
    ) -> Step<'a> {
        match self.fetcher.limits.budget.reading(&stored) {
            None => Step::answered(hit(asked, stored, now, self.label(target))),
            Some(reading) => Step::answered(held_by(hit(asked, stored, now, self.label(target)), reading)),
        }
    }

    /// What a response says of what was done, and what of it clients do not see.
    fn put_label(&self, target: Option<&Target<'_>>, status: &CacheStatus, fields: &mut HeaderMap) {
        if status.handling != Handling::Hit {
            // What is stored has none.
            self.cache.tag_fields.remove(fields);
        }
        if self.cache.remove_targets {
            for name in self.cache.targets.names() {
                fields.remove(name);
            }
        }
        let key = target.filter(|_| self.cache.status_key).map(|target| &target.key);
        fields.append(CACHE_STATUS, status.to_value(key));
    }

    fn label_answer(&self, (status, response): &mut Answer, target: Option<&Target<'_>>) {
        self.put_label(target, status, response.headers_mut());
        self.tell_failure(target, response);
    }

    /// A step that is an answer of our own.
    fn labelled<'a>(&self, mut answer: Answer, target: Option<&Target<'_>>) -> Step<'a> {
        self.label_answer(&mut answer, target);
        Step::answered(answer)
    }

    fn label(&self, target: &Target<'_>) -> Label<impl FnOnce(&CacheStatus, &mut HeaderMap)> {
        // Several keys may lead to one response.
        let is_steady = !self.cache.status_key;
        Label {
            put: move |status: &CacheStatus, fields: &mut HeaderMap| self.put_label(Some(target), status, fields),
            is_steady,
        }
    }

    /// What memory has for a request, and the key that it is under, where the origin said that some
    /// differences between queries do not matter.
    fn look_up(&self, target: &Target<'_>, request: &HeaderMap) -> (Option<Box<CacheKey>>, Lookup) {
        let store = &self.fetcher.store;
        let Some(searched) = self.fetcher.memories.searches.key(&target.key) else {
            return (None, store.lookup(&target.key, request));
        };
        // Not every response for a path has to say the same: the newer one counts.
        match (store.lookup(&searched, request), store.lookup(&target.key, request)) {
            (Lookup::Found(shared), Lookup::Found(own)) if own.head.response_time() > shared.head.response_time() => {
                (None, Lookup::Found(own))
            }
            (Lookup::Found(shared), _) => (Some(Box::new(searched)), Lookup::Found(shared)),
            (_, Lookup::Found(own)) => (None, Lookup::Found(own)),
            (Lookup::Nothing, Lookup::OtherVariants(record)) => (None, Lookup::OtherVariants(record)),
            (found, _) => (Some(Box::new(searched)), found),
        }
    }

    /// Fetches what was ordered, as [`sharing`] says.
    async fn fetch_order(self: &Arc<Self>, request: &Request<()>, mut order: Order, pass: Option<Pass>) -> Answer {
        let sharing = sharing(&order, pass, self.fetcher.limits.memory.max_object_size);
        let holds_nothing = order.held.validate.is_none() && order.held.part.is_none();
        // The flight asks the durable tier for all who are in it.
        if sharing != Sharing::Together
            && holds_nothing
            && let Some(fetched) = Box::pin(self.fetcher.find_durable(&mut order)).await
            && let Some(answer) = self.answer_found(request, &order, fetched).await
        {
            return answer;
        }
        match sharing {
            Sharing::Together => self.fly(request, order).await,
            Sharing::Whole => {
                // Asked alone after all, it asks for its range.
                order.ask_for_the_whole();
                self.fly(request, order).await
            }
            Sharing::Alone if order.asked.directives.only_if_cached => Refusal::OnlyIfCached.answer(),
            Sharing::Alone => {
                if *request.method() != Method::GET {
                    let held = &mut order.held;
                    let stored = held.validate.take().or_else(|| held.part.take());
                    held.head_of = stored.or(held.head_of.take());
                }
                Box::pin(self.alone(request, order)).await
            }
        }
    }

    async fn fly(self: &Arc<Self>, request: &Request<()>, order: Order) -> Answer {
        let selection = self.selection_of(&order).selection;
        match self.join(&order, selection) {
            Joined::Leader(lease) => self.lead(request, order, lease).await,
            Joined::Follower(follower) => Box::pin(self.follow(request, order, follower, selection)).await,
        }
    }

    /// Validates a stored response that has just been served, in the background and once.
    fn validate_behind(
        self: &Arc<Self>,
        caller: &dyn Client,
        target: &Target<'_>,
        key: Option<Box<CacheKey>>,
        request: &Request<ClientBody>,
        directives: CacheControl,
        stored: &Arc<StoredResponse>,
    ) {
        if *request.method() != Method::GET || !self.fetcher.may_validate(&stored.head, Who::of(request.headers())) {
            return;
        }
        let Some(validating) = Validating::begin(stored) else { return };
        let now = self.fetcher.clock.now();
        let hash = key.as_deref().unwrap_or(&target.key).hash();
        let selection = self.fetcher.memories.hit_for_miss.look(hash, request.headers(), now).selection;
        if let Joined::Leader(mut lease) = self.fetcher.flights.join(hash, selection.number()) {
            lease.hold(validating);
            let request = Arc::new(without_body(request));
            let asked = asked(caller, target, &request, directives, key.map(|key| *key));
            let held = Holdings { validate: Some(Arc::clone(stored)), ..Holdings::nothing(Fwd::Stale) };
            self.fetcher.launch(Order::new(Arc::new(asked), held, None).in_background(), lease, None);
        }
    }
}

/// Begins the span of a request that waits, where the level is on: every line below names the request.
fn span_of<B>(request: &Request<B>, target: &Target<'_>) -> Span {
    debug_span!(
        "request",
        id = %RequestId::random(),
        method = %request.method(),
        host = target.authority(),
        path = request.uri().path(),
        cache_status = Empty,
    )
}

/// Draws the lot of a validation that is due with some probability.
fn is_due(behind: Behind) -> bool {
    match behind {
        Behind::No => false,
        Behind::Yes => true,
        Behind::Perhaps(probability) => fastrand::f64() < probability,
    }
}

/// RFC 9110 §7.6.2: an OPTIONS request that may be forwarded no further is answered here, one that may has a
/// step less left.
fn max_forwards(request: &mut HeaderMap) -> Option<Answer> {
    let left = request.get(header::MAX_FORWARDS)?.to_str().ok()?.parse::<u64>().ok()?;
    match left.checked_sub(1) {
        Some(left) => {
            request.insert(header::MAX_FORWARDS, HeaderValue::from(left));
            None
        }
        None => Some(options()),
    }
}

/// The head of a request, as another one.
fn without_body(request: &Request<ClientBody>) -> Request<()> {
    let mut head = Request::new(());
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = request.uri().clone();
    *head.version_mut() = request.version();
    *head.headers_mut() = request.headers().clone();
    head
}

/// Says what is asked for: what a request asks, whose response is looked for under `key` (without one, under that of its
/// URI), and the terms of its rule.
pub(super) fn asked(
    caller: &dyn Client,
    target: &Target<'_>,
    request: &Arc<Request<()>>,
    directives: CacheControl,
    key: Option<CacheKey>,
) -> Asked {
    let rule = &target.rule.rule;
    Asked {
        key: key.unwrap_or_else(|| target.key.clone()),
        exact: target.key.clone(),
        request: Arc::clone(request),
        uri: shared_form(request.uri(), &rule.query).into_owned(),
        peer: caller.peer().clone(),
        directives,
        terms: Terms {
            request_directives: target.rule.request_directives,
            policy: Arc::clone(&target.rule.policy),
            transfer: Arc::clone(&target.rule.transfer),
            durability: rule.durability,
            collapse: rule.collapse,
            ranges: rule.ranges,
            tags: rule.tags.clone(),
        },
    }
}

/// An answer that keeps `reading` until its body has ended.
#[cold]
pub(super) fn held_by((status, response): Answer, reading: Reading) -> Answer {
    (status, response.map(|body| body.on_end(move |_| drop(reading))))
}

/// What is known of a request that memory does not answer.
struct Missed {
    fwd: Fwd,
    /// A stored response that is not enough.
    stored: Option<Arc<StoredResponse>>,
    /// The key that it was looked up under, where that is not the one of its URI.
    key: Option<Box<CacheKey>>,
    /// The client's directives, as far as they count.
    directives: CacheControl,
    /// The time of the look-up.
    now: Timestamp,
}
