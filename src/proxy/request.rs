//! The life of a request.

use crate::proxy::failures::Failures;
use crate::proxy::reply::Reply;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Version};
use hyper::body::Incoming;

use super::reply::Step;
use crate::base::{Metrics, WorkerMetrics};
use crate::entry::{Reading, StoredResponse, Validating, Who};
use crate::fetch::{Fetcher, Joined, Looked, Pass, Plan};
use crate::proxy::Keys;
use crate::proxy::access::Line;
use crate::proxy::target::{Target, is_upgrade, never_from_cache, shared_form};
use crate::respond::{Answer, Asked, LOOP, Label, hit, not_cached, options, overloaded, refused};
use crate::rfc9111::cache_status::{CACHE_STATUS, CacheStatus, Fwd, Handling, Tier};
use crate::rfc9111::directives::CacheControl;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::present::Present;
use crate::rfc9111::reuse::{Reuse, Why};
use crate::rfc9111::timestamp::Timestamp;
use crate::rfc9111::{fields, reuse};
use crate::store::Lookup;
use crate::upstream::forwarding::{Original, Peer, Trust};
use crate::upstream::{Errand, Interim, Limits, Outlet, forwarding};

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
    pub cache: crate::proxy::rules::Config,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Whether every request is logged.
    pub access_log: bool,
    /// The failures that were logged lately.
    pub failures: Failures,
    /// What a request's body may be.
    pub upload_limits: Limits,
    /// The bytes that fetches under way may hold before requests that need another are refused.
    pub max_buffered: usize,
    /// Idle limit of a tunnel.
    pub tunnel_timeout: Duration,
}

impl Proxy {
    /// Begins to answer a request, of whose fields those are `present`. Interim responses to it go out
    /// through `outlet`.
    ///
    /// A hit is answered here and now. What has to wait does so on the heap, so that nobody carries its
    /// state about who does not need it.
    pub fn handle<'a>(
        self: &'a Arc<Self>,
        worker: &'a WorkerMetrics,
        peer: &'a Peer,
        outlet: &'a Arc<Outlet>,
        mut request: Request<Incoming>,
        mut present: Present,
    ) -> Reply<'a> {
        // A field that the origin will not see must not select a stored response either.
        if present.has(Present::CONNECTION) {
            fields::remove_listed(request.headers_mut());
            present = Present::of(request.headers());
        }
        let received;
        let original = if present.has(Present::CLAIM) || self.trust.has_fields() {
            (received, present) = self.receive(peer, &mut request);
            &received
        } else {
            &Original::OF_PEER
        };
        let access = if self.access_log { Some(self.begin_line(peer, &request)) } else { None };
        if present.has(Present::VIA) && self.fetcher.signature.is_in(request.headers()) {
            return Reply::new(worker, outlet, access, self.labelled(refused(&LOOP), None));
        }
        let step = match self.keys.target(original, &request, present) {
            Ok(target) => self.answer(Caller { peer, outlet }, target, request, present),
            Err(refusal) => self.labelled(refused(&refusal), None),
        };
        Reply::new(worker, outlet, access, step)
    }

    /// Takes out of a request what its sender may not say. Apart from the way of a request that says no such thing.
    #[cold]
    fn receive(&self, peer: &Peer, request: &mut Request<Incoming>) -> (Original, Present) {
        let method = request.method().clone();
        let original = forwarding::receive(&self.trust, peer, &method, request.headers_mut());
        (original, Present::of(request.headers()))
    }

    #[cold]
    fn begin_line(&self, peer: &Peer, request: &Request<Incoming>) -> Box<Line> {
        Box::new(Line::begin(&self.trust, peer, request))
    }

    fn answer<'a>(
        self: &'a Arc<Self>,
        caller: Caller<'a>,
        target: Target<'a>,
        mut request: Request<Incoming>,
        present: Present,
    ) -> Step<'a> {
        if is_upgrade(&request, present) {
            return Step::waits(async move {
                let mut answer = self.tunnel(&caller, &target, request).await;
                self.label_answer(&mut answer, Some(&target));
                answer
            });
        }
        if let Some(fwd) = never_from_cache(&request, present, target.rule) {
            if *request.method() == Method::OPTIONS
                && let Some(answer) = max_forwards(request.headers_mut())
            {
                return self.labelled(answer, Some(&target));
            }
            let (request, body) = request.into_parts();
            return Step::waits(async move {
                let mut answer = self.forward(&caller, &target, &request, body, fwd).await;
                self.label_answer(&mut answer, Some(&target));
                answer
            });
        }
        let says_something = present.has(Present::DIRECTIVES);
        let mut directives =
            if says_something { target.rule.directives(request.headers()) } else { CacheControl::default() };
        let now = self.fetcher.clock.now();
        let (key, found) = self.look_up(&target, request.headers());
        if says_something && let Lookup::Found(stored) = &found {
            directives = target.rule.request_directives.bounded(directives, stored.head.response_time(), now);
        }
        let missed = match found {
            Lookup::Found(stored) if !stored.head.can_answer(request.method(), request.headers(), stored.len()) => {
                Missed { fwd: Fwd::Partial, stored: Some(stored) }
            }
            Lookup::Found(stored) => match reuse::reuse(&directives, &stored.head.freshness, now) {
                Reuse::Fresh | Reuse::Stale => {
                    if target.rule.is_due_early(&stored.head, now) {
                        self.revalidate_behind(&caller, &target, key, &request, &directives, &stored);
                    }
                    return self.hit(Asked::noted(&request, present), stored, now, &target);
                }
                Reuse::GatewayTimeout => return self.labelled(not_cached(), Some(&target)),
                reuse @ (Reuse::StaleWhileRevalidate | Reuse::Validate(_))
                    if stored.head.parts().is_none()
                        && self.may_wait(reuse, &directives, &stored, request.headers(), now) =>
                {
                    self.revalidate_behind(&caller, &target, key, &request, &directives, &stored);
                    return self.hit(Asked::noted(&request, present), stored, now, &target);
                }
                Reuse::StaleWhileRevalidate | Reuse::Validate(Why::Stale) => {
                    Missed { fwd: Fwd::Stale, stored: Some(stored) }
                }
                Reuse::Validate(Why::Request) => Missed { fwd: Fwd::Request, stored: Some(stored) },
            },
            Lookup::OtherVariants(record) => {
                for names in &record.sets {
                    self.fetcher.hit_for_miss.divide(record.key.hash(), names, now);
                }
                Missed { fwd: Fwd::VaryMiss, stored: None }
            }
            Lookup::Nothing => Missed { fwd: Fwd::UriMiss, stored: None },
        };
        // Past `max_buffered` bodies pass without being kept; that takes memory as well.
        if self.fetcher.budget.held() >= self.max_buffered.saturating_mul(2) {
            return self.labelled(overloaded(), Some(&target));
        }
        let looked_up = key.as_deref().unwrap_or(&target.key);
        let Looked { pass, lasts, .. } =
            self.fetcher.hit_for_miss.look_at(looked_up.hash(), request.headers(), present, now);
        let is_for_a_whole = *request.method() == Method::GET && !present.has(Present::RANGE);
        if pass == Some(Pass::NotStorable)
            && is_for_a_whole
            && missed.stored.is_none()
            && !directives.only_if_cached
            && !self.fetcher.store.may_be_durable(&target.key)
        {
            let (mut request, _) = request.into_parts();
            if let Cow::Owned(asked) = shared_form(&request.uri, &target.rule.rule.query) {
                request.uri = asked;
            }
            return Step::waits(async move {
                let since = Passed { fwd: missed.fwd, now, is_noted: lasts };
                let mut answer = self.pass_on(&caller, &target, key.as_deref(), &request, since).await;
                self.label_answer(&mut answer, Some(&target));
                answer
            });
        }
        // Its body is empty.
        let request = Arc::new(request.map(|_| ()));
        let mut plan = Box::new(plan(&caller, &target, &request, directives, missed.fwd));
        match missed.fwd {
            Fwd::Partial => plan.part = missed.stored,
            _ => plan.validate = missed.stored,
        }
        if let Some(key) = key {
            plan.key = *key;
        }
        Step::waits(async move {
            let mut answer = self.fetch(&request, plan, pass).await;
            self.label_answer(&mut answer, Some(&target));
            answer
        })
    }

    fn hit<'a>(&self, asked: Asked<'_>, stored: Arc<StoredResponse>, now: Timestamp, target: &Target<'_>) -> Step<'a> {
        match self.fetcher.budget.reading(&stored) {
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

    /// Whether a stale response is served now and validated behind: because it says so, or because the
    /// origin is known to fail and this may stand in.
    fn may_wait(
        &self,
        reuse: Reuse,
        directives: &CacheControl,
        stored: &StoredResponse,
        request: &HeaderMap,
        now: Timestamp,
    ) -> bool {
        match reuse {
            Reuse::StaleWhileRevalidate => true,
            Reuse::Validate(Why::Stale) => self
                .fetcher
                .known_failure(&stored.head, Who::of(request))
                .is_some_and(|failure| reuse::stale_if_error(directives, &stored.head.freshness, failure, now)),
            Reuse::Fresh | Reuse::Stale | Reuse::Validate(Why::Request) | Reuse::GatewayTimeout => false,
        }
    }

    /// What memory has for a request, and the key that it is under, where the origin said that some
    /// differences between queries do not matter.
    fn look_up(&self, target: &Target<'_>, request: &HeaderMap) -> (Option<Box<CacheKey>>, Lookup) {
        let store = &self.fetcher.store;
        let Some(searched) = self.fetcher.searches.key(&target.key) else {
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

    /// Nothing in memory answers the request: the durable tier may, or the origin.
    async fn fetch(self: &Arc<Self>, request: &Request<()>, mut plan: Box<Plan>, pass: Option<Pass>) -> Answer {
        let is_get = *request.method() == Method::GET;
        let is_plain_get = is_plain_get(request);
        let is_of_a_whole = is_get && plan.validate.as_ref().is_some_and(|stored| stored.head.parts().is_none());
        let only_if_cached = plan.directives.only_if_cached;
        // What only this client can use is not worth a flight: a HEAD, a part, what is not to be
        // stored, what each request validates for itself.
        let waits_for_nobody = only_if_cached
            || !plan.collapse
            || plan.directives.no_store
            || pass.is_some()
            || !(is_plain_get || is_of_a_whole);
        let prefers_whole = plan.collapse && plan.prefers_whole(self.fetcher.memory.max_object_size);
        if prefers_whole && !(only_if_cached || plan.directives.no_store || pass.is_some()) {
            return self.fetch_whole(request, plan).await;
        }
        if waits_for_nobody {
            if plan.validate.is_none()
                && plan.part.is_none()
                && let Some(fetched) = Box::pin(self.fetcher.find_durable(&mut plan)).await
                && let Some(answer) = self.answer_found(request, &plan, fetched).await
            {
                return answer;
            }
            if only_if_cached {
                return not_cached();
            }
            if !is_get {
                let stored = plan.validate.take().or_else(|| plan.part.take());
                plan.head_of = stored.or(plan.head_of);
            }
            return Box::pin(self.alone(request, plan)).await;
        }
        self.fly(request, plan).await
    }

    /// The whole is fetched for a range of it, unless the durable tier has that.
    async fn fetch_whole(self: &Arc<Self>, request: &Request<()>, mut plan: Box<Plan>) -> Answer {
        if plan.validate.is_none()
            && plan.part.is_none()
            && let Some(fetched) = Box::pin(self.fetcher.find_durable(&mut plan)).await
            && let Some(answer) = self.answer_found(request, &plan, fetched).await
        {
            return answer;
        }
        // Asked alone after all, it asks for its range.
        plan.ask_for_the_whole();
        self.fly(request, plan).await
    }

    async fn fly(self: &Arc<Self>, request: &Request<()>, plan: Box<Plan>) -> Answer {
        let selection = self.selection_of(&plan).selection;
        match self.join(&plan, selection) {
            Joined::Leader(landing) => self.lead(request, plan, landing).await,
            Joined::Follower(follower) => Box::pin(self.follow(request, plan, follower, selection)).await,
        }
    }

    /// Validates a stale response that has just been served, in the background and once.
    fn revalidate_behind(
        self: &Arc<Self>,
        caller: &Caller<'_>,
        target: &Target<'_>,
        key: Option<Box<CacheKey>>,
        request: &Request<Incoming>,
        directives: &CacheControl,
        stored: &Arc<StoredResponse>,
    ) {
        if *request.method() != Method::GET || !self.fetcher.may_validate(&stored.head, Who::of(request.headers())) {
            return;
        }
        let Some(validating) = Validating::begin(stored) else { return };
        let key = key.map_or_else(|| target.key.clone(), |key| *key);
        let selection =
            self.fetcher.hit_for_miss.look(key.hash(), request.headers(), self.fetcher.clock.now()).selection;
        if let Joined::Leader(mut landing) = self.fetcher.flights.join(key.hash(), selection.number()) {
            landing.hold(validating);
            let plan = plan(caller, target, &Arc::new(without_body(request)), directives.clone(), Fwd::Stale);
            // The client has its answer: interim responses are nobody's.
            let validate = Some(Arc::clone(stored));
            let errand = Errand::Background;
            let plan = Plan { key, validate, interim: None, errand, ..plan };
            self.fetcher.launch(Box::new(plan), landing, None);
        }
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
fn without_body(request: &Request<Incoming>) -> Request<()> {
    let mut head = Request::new(());
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = request.uri().clone();
    *head.version_mut() = request.version();
    *head.headers_mut() = request.headers().clone();
    head
}

/// Whether a whole is asked for.
fn is_plain_get(request: &Request<()>) -> bool {
    *request.method() == Method::GET && !request.headers().contains_key(header::RANGE)
}

/// What is to be fetched for a request, because of `fwd`.
pub(super) fn plan(
    caller: &Caller<'_>,
    target: &Target<'_>,
    request: &Arc<Request<()>>,
    directives: CacheControl,
    fwd: Fwd,
) -> Plan {
    let rule = &target.rule.rule;
    Plan {
        key: target.key.clone(),
        exact: target.key.clone(),
        request: Arc::clone(request),
        as_asked: None,
        peer: caller.peer.clone(),
        directives,
        method: request.method().clone(),
        uri: shared_form(request.uri(), &rule.query).into_owned(),
        policy: Arc::clone(&target.rule.policy),
        request_directives: target.rule.request_directives,
        transfer: Arc::clone(&target.rule.transfer),
        durability: rule.durability,
        collapse: rule.collapse,
        ranges: rule.ranges,
        asked_durable: false,
        tags: rule.tags.clone(),
        fwd,
        validate: None,
        part: None,
        replaced: None,
        head_of: None,
        known: None,
        interim: caller.interim(request.version()),
        errand: Errand::Client,
        tier: Tier::Memory,
        version_vector: Arc::default(),
    }
}

/// An answer that keeps `reading` until its body has ended.
#[cold]
pub(super) fn held_by((status, response): Answer, reading: Reading) -> Answer {
    (status, response.map(|body| body.on_end(move |_| drop(reading))))
}

/// Holds the reason for passing a request on: its like could not be stored.
#[derive(Clone, Copy)]
pub(super) struct Passed {
    pub(super) fwd: Fwd,
    /// Time at which it began.
    pub(super) now: Timestamp,
    /// True if the memory that its like is not stored lasts for a while yet.
    pub(super) is_noted: bool,
}

/// Why memory does not answer a request, and the stored response that is not enough.
struct Missed {
    fwd: Fwd,
    stored: Option<Arc<StoredResponse>>,
}

/// Who asks, and where interim responses to it go.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    pub(super) peer: &'a Peer,
    outlet: &'a Arc<Outlet>,
}

impl Caller<'_> {
    /// Clients of HTTP/1.0 know no interim responses (RFC 9110 §15.2).
    pub(super) fn interim(&self, version: Version) -> Option<Interim> {
        (version >= Version::HTTP_11).then(|| self.outlet.interim())
    }
}
