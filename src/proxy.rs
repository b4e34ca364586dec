//! The life of a request, from top to bottom, as RFC 9111 §4 tells it.

use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::{HeaderName, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tracing::debug;

use crate::body::ResponseBody;
use crate::clock::Timestamp;
use crate::fetch::{Fetched, Fetcher, ForLeader, Plan, clean_response};
use crate::fill::FillReader;
use crate::flight::{Flights, Follower, Joined, Landing, Outcome, Shared, SharedBody, Source};
use crate::forwarding::{self, Peer};
use crate::interim::{Interim, Outlet};
use crate::passes::Pass;
use crate::respond::{Answer, Asked, add_age, build, failed, hit, not_cached, refuse, refused, unavailable};
use crate::rfc9111::cache_status::{CACHE_STATUS, CacheStatus, Fwd, Handling, ttl_seconds};
use crate::rfc9111::directives::CacheControl;
use crate::rfc9111::fields;
use crate::rfc9111::groups;
use crate::rfc9111::invalidation;
use crate::rfc9111::key::{CacheKey, normal_authority};
use crate::rfc9111::reuse::{self, Reuse, Why};
use crate::rfc9111::storage;
use crate::rfc9111::targeted::governing;
use crate::rules::RequestDirectives;
use crate::store::backend::BackendError;
use crate::store::memory::Lookup;
use crate::stored::StoredResponse;
use crate::target::{Keys, Target, is_upgrade, never_from_cache, origin_form};
use crate::telemetry::{Metrics, WorkerMetrics};
use crate::upstream::{OriginRequest, RequestBody, UpstreamBody, UpstreamError};

/// The proxy: everything that the workers share.
#[derive(Debug)]
pub struct Proxy {
    /// What fetches.
    pub fetcher: Arc<Fetcher>,
    /// The fetches under way.
    pub flights: Arc<Flights>,
    /// What the configuration says of some paths, and the keys that come of it.
    pub keys: Keys,
    /// `[cache]`
    pub cache: crate::rules::Config,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Whether every request is logged.
    pub access_log: bool,
}

impl Proxy {
    /// Answers a request. Interim responses to it go out through `outlet`.
    pub async fn handle(
        self: &Arc<Self>,
        worker: &WorkerMetrics,
        peer: &Peer,
        outlet: &Arc<Outlet>,
        mut request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        // What the origin will not see must not select a stored response either.
        fields::remove_listed(request.headers_mut());
        let access = self.access_log.then(|| crate::access::Line::begin(peer, &request));
        let mut key = None;
        let (status, mut response) = match self.keys.target(peer, &request) {
            Ok(target) => {
                key = self.cache.status_key.then(|| Box::new(target.key.clone()));
                self.answer(&Caller { peer, outlet }, &target, request).await
            }
            Err(refusal) => refused(&refusal),
        };
        worker.record(&status);
        if self.cache.remove_targets {
            for name in self.cache.targets.names() {
                response.headers_mut().remove(name);
            }
        }
        response.headers_mut().append(CACHE_STATUS, status.to_value(key.as_deref()));
        match access {
            Some(line) => line.finish(response, &status),
            None => response,
        }
    }

    async fn answer(self: &Arc<Self>, caller: &Caller<'_>, target: &Target<'_>, request: Request<Incoming>) -> Answer {
        if is_upgrade(&request) {
            return Box::pin(self.tunnel(caller, target, request)).await;
        }
        if let Some(fwd) = never_from_cache(&request, target.rule) {
            return caller.outlet.attend(Box::pin(self.forward(caller, target, request, fwd))).await;
        }
        let directives = self.directives(request.headers());
        let now = self.fetcher.clock.now();
        let (key, found) = self.look_up(target, request.headers());
        let missed = match found {
            Lookup::Found(stored)
                if !stored.head.can_answer(request.method(), request.headers(), stored.body.len()) =>
            {
                Missed { fwd: Fwd::Partial, stored: Some(stored) }
            }
            Lookup::Found(stored) => match reuse::reuse(&directives, &stored.head.freshness, now) {
                Reuse::Fresh | Reuse::Stale => return hit(Asked::of(&request), &stored, now),
                Reuse::StaleWhileRevalidate if stored.head.parts.is_none() => {
                    self.revalidate_behind(caller, target, key, &request, &directives, &stored);
                    return hit(Asked::of(&request), &stored, now);
                }
                Reuse::StaleWhileRevalidate | Reuse::Validate(Why::Stale) => {
                    Missed { fwd: Fwd::Stale, stored: Some(stored) }
                }
                Reuse::Validate(Why::Request) => Missed { fwd: Fwd::Request, stored: Some(stored) },
                Reuse::GatewayTimeout => return not_cached(),
            },
            Lookup::OtherVariants(_) => Missed { fwd: Fwd::VaryMiss, stored: None },
            Lookup::Nothing => Missed { fwd: Fwd::UriMiss, stored: None },
        };
        // On the heap, so that a hit does not carry a fetch's state about.
        caller.outlet.attend(Box::pin(self.miss(caller, target, key, &request, directives, missed))).await
    }

    /// Memory does not answer a request, for the reason and with what it has.
    async fn miss(
        self: &Arc<Self>,
        caller: &Caller<'_>,
        target: &Target<'_>,
        key: Option<Box<CacheKey>>,
        request: &Request<Incoming>,
        directives: CacheControl,
        missed: Missed,
    ) -> Answer {
        let mut plan = self.plan(caller, target, request, directives, missed.fwd);
        match missed.fwd {
            Fwd::Partial => plan.part = missed.stored,
            _ => plan.validate = missed.stored,
        }
        if let Some(key) = key {
            plan.key = *key;
        }
        self.fetch(request, plan).await
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
            (Lookup::Found(shared), Lookup::Found(own)) if own.head.response_time > shared.head.response_time => {
                (None, Lookup::Found(own))
            }
            (Lookup::Found(shared), _) => (Some(Box::new(searched)), Lookup::Found(shared)),
            (_, Lookup::Found(own)) => (None, Lookup::Found(own)),
            (Lookup::Nothing, Lookup::OtherVariants(record)) => (None, Lookup::OtherVariants(record)),
            (found, _) => (Some(Box::new(searched)), found),
        }
    }

    /// Nothing in memory answers the request: the durable tier may, or the origin.
    async fn fetch(self: &Arc<Self>, request: &Request<Incoming>, mut plan: Plan) -> Answer {
        let is_get = *request.method() == Method::GET;
        let is_plain_get = is_get && !request.headers().contains_key(header::RANGE);
        let is_of_a_whole = is_get && plan.validate.as_ref().is_some_and(|stored| stored.head.parts.is_none());
        let only_if_cached = plan.directives.only_if_cached;
        let pass = self.fetcher.pass(&plan);
        // What only this client can use is not worth a flight: a HEAD, a part, what is not to be
        // stored, what each request validates for itself.
        let waits_for_nobody =
            only_if_cached || plan.directives.no_store || pass.is_some() || !(is_plain_get || is_of_a_whole);
        if waits_for_nobody {
            let is_stored = pass != Some(Pass::NotStorable) || only_if_cached;
            if plan.validate.is_none()
                && plan.part.is_none()
                && is_stored
                && let Some(fetched) = self.fetcher.find_durable(&mut plan).await
            {
                return self.answer_fetched(Asked::of(request), fetched);
            }
            if only_if_cached {
                return not_cached();
            }
            if !is_get {
                let stored = plan.validate.take().or_else(|| plan.part.take());
                plan.head_of = stored.or(plan.head_of);
            }
            return self.alone(request, plan).await;
        }
        let variant = self.variant_of(&plan);
        match self.join(&plan, variant) {
            Joined::Leader(landing) => self.lead(request, plan, landing).await,
            Joined::Follower(follower) => self.follow(request, plan, follower).await,
        }
    }

    /// What is known of the variant that a request will select, so that requests for different
    /// ones do not wait for each other.
    fn variant_of(&self, plan: &Plan) -> u128 {
        match self.fetcher.store.lookup(&plan.key, &plan.client_fields) {
            Lookup::OtherVariants(record) => record.candidates(&plan.client_fields).next().unwrap_or(0),
            Lookup::Found(stored) => {
                stored.head.variant.as_ref().map_or(0, |variant| plan.key.variant_hash(&variant.selector))
            }
            Lookup::Nothing => 0,
        }
    }

    /// Clients with credentials fly with their like: that their response can't be shared would
    /// otherwise hold up everyone else.
    fn join(&self, plan: &Plan, variant: u128) -> Joined {
        let credentials = u128::from(plan.client_fields.contains_key(header::AUTHORIZATION));
        self.flights.join(plan.key.hash(), variant ^ credentials)
    }

    async fn lead(self: &Arc<Self>, request: &Request<Incoming>, plan: Plan, landing: Landing) -> Answer {
        let (sender, receiver) = oneshot::channel();
        self.launch(plan, landing, Some(sender));
        match receiver.await {
            Ok(fetched) => self.answer_fetched(Asked::of(request), fetched),
            Err(_) => failed(
                &refuse(StatusCode::BAD_GATEWAY, "internal", "the request to the application was lost"),
                Fwd::Miss,
            ),
        }
    }

    /// Starts a flight as a task that no client's leaving stops.
    fn launch(self: &Arc<Self>, plan: Plan, landing: Landing, leader: Option<oneshot::Sender<Fetched>>) {
        let fetcher = Arc::clone(&self.fetcher);
        self.fetcher.tasks.spawn(async move {
            let (fetched, landing) = fetcher.fly(plan, landing).await;
            if let Some(landing) = landing {
                landing.publish(match &fetched {
                    Fetched::Shared(shared, _) => Outcome::Shared(Arc::clone(shared)),
                    Fetched::Own(..) | Fetched::Passed { .. } => Outcome::NotShared,
                    Fetched::Failed(error, _) => Outcome::Failed(error.clone()),
                });
            }
            if let Some(leader) = leader {
                // A leader that has left takes its own response with it.
                let _ = leader.send(fetched);
            }
        });
    }

    async fn follow(self: &Arc<Self>, request: &Request<Incoming>, plan: Plan, follower: Follower) -> Answer {
        let arrived = self.fetcher.clock.now();
        match follower.outcome().await {
            Outcome::Shared(shared) => {
                if let Some(answer) = self.answer_follower(request, &plan, &shared, arrived) {
                    return answer;
                }
                // What came is another's: another variant, or not to be shared with this client.
                self.alone(request, plan).await
            }
            Outcome::NotShared => self.alone(request, plan).await,
            Outcome::Failed(error) => {
                let fwd = plan.fwd;
                failed(&unavailable(&error), fwd)
            }
        }
    }

    /// Gives a follower what its flight brought, if every rule lets it have that.
    fn answer_follower(
        &self,
        request: &Request<Incoming>,
        plan: &Plan,
        shared: &Shared,
        arrived: Timestamp,
    ) -> Option<Answer> {
        let head = &shared.head;
        // Under another URL's key only if its origin said that the two are one.
        if head.key != plan.exact && self.fetcher.searches.key(&plan.exact).as_ref() != Some(&head.key) {
            return None;
        }
        if !head.is_selected_by(request.headers()) || self.fetcher.store.is_covered(head) {
            return None;
        }
        let governing = governing(&head.fields, &plan.policy.lifetimes.targets, head.response_time);
        if request.headers().contains_key(header::AUTHORIZATION) && !storage::allows_authorized(&governing.directives) {
            return None;
        }
        let has_it = match &shared.body {
            SharedBody::Stored(body) => head.can_answer(request.method(), request.headers(), body.len()),
            // A part on its way in is for the client that asked for it.
            SharedBody::Filling(_) => head.parts.is_none(),
        };
        if !has_it {
            return None;
        }
        match reuse::reuse(&plan.directives, &head.freshness, self.fetcher.clock.now()) {
            Reuse::Fresh | Reuse::Stale | Reuse::StaleWhileRevalidate => {}
            // The origin has answered since: that is as new as this client can wish for.
            Reuse::Validate(Why::Request)
                if matches!(shared.source, Source::Origin { .. }) && head.response_time >= arrived => {}
            Reuse::Validate(Why::Stale) if matches!(shared.source, Source::InPlaceOfError { .. }) => {}
            Reuse::Validate(_) | Reuse::GatewayTimeout => return None,
        }
        let reader = match &shared.body {
            SharedBody::Stored(_) => None,
            SharedBody::Filling(fill) => Some(fill.reader()?),
        };
        self.answer_shared(Asked::of(request), shared, reader, true)
    }

    /// Asks the origin for this client only.
    async fn alone(self: &Arc<Self>, request: &Request<Incoming>, plan: Plan) -> Answer {
        let fetched = self.fetcher.alone(plan, RequestBody::Empty).await;
        self.answer_fetched(Asked::of(request), fetched)
    }

    fn answer_fetched(&self, request: Asked<'_>, fetched: Fetched) -> Answer {
        match fetched {
            Fetched::Shared(shared, ForLeader { cookies, reader })
            | Fetched::Own(shared, ForLeader { cookies, reader }) => {
                let Some((status, mut response)) = self.answer_shared(request, &shared, reader, false) else {
                    return failed(&refuse(StatusCode::BAD_GATEWAY, "internal", "the response was lost"), Fwd::Miss);
                };
                for cookie in cookies {
                    response.headers_mut().append(header::SET_COOKIE, cookie);
                }
                (status, response)
            }
            Fetched::Passed { response, fwd, fwd_status, .. } => {
                let handling = Handling::Forward { fwd, fwd_status, stored: false, collapsed: false };
                (CacheStatus { handling, ttl: None, detail: None }, add_age(response))
            }
            Fetched::Failed(error, fwd) => failed(&unavailable(&error), fwd),
        }
    }

    /// Answers from a shared response; a body that is coming in needs a reader.
    fn answer_shared(
        &self,
        request: Asked<'_>,
        shared: &Shared,
        reader: Option<FillReader>,
        collapsed: bool,
    ) -> Option<Answer> {
        let now = self.fetcher.clock.now();
        let remaining = shared.head.freshness.remaining(now);
        let status = match shared.source {
            Source::Tier(tier) => CacheStatus::hit(tier, remaining),
            Source::InPlaceOfError { fwd, status } => {
                let handling = Handling::Forward { fwd, fwd_status: status, stored: false, collapsed };
                CacheStatus { handling, ttl: Some(ttl_seconds(remaining)), detail: None }
            }
            Source::Origin { fwd, status, stored } => {
                let handling = Handling::Forward { fwd, fwd_status: status, stored, collapsed };
                CacheStatus { handling, ttl: Some(ttl_seconds(remaining)), detail: None }
            }
        };
        let response = build(request, &shared.head, &shared.body, reader, now)?;
        Some((status, response))
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
        let key = key.map_or_else(|| target.key.clone(), |key| *key);
        let pass = self.fetcher.passes.get(key.hash(), self.fetcher.clock.now());
        if *request.method() != Method::GET || pass == Some(Pass::NotStorable) {
            return;
        }
        let variant = stored.head.variant.as_ref().map_or(0, |variant| key.variant_hash(&variant.selector));
        if let Joined::Leader(landing) = self.flights.join(key.hash(), variant) {
            let plan = self.plan(caller, target, request, directives.clone(), Fwd::Stale);
            // The client has its answer: interim responses are nobody's.
            self.launch(Plan { key, validate: Some(Arc::clone(stored)), interim: None, ..plan }, landing, None);
        }
    }

    /// Sends a request on that no stored response may answer, and invalidates what it changed.
    async fn forward(
        self: &Arc<Self>,
        caller: &Caller<'_>,
        target: &Target<'_>,
        request: Request<Incoming>,
        fwd: Fwd,
    ) -> Answer {
        let (position, request_time) = (self.fetcher.store.position(), self.fetcher.clock.now());
        let (parts, body) = request.into_parts();
        let request = OriginRequest {
            method: parts.method.clone(),
            uri: origin_form(&parts.uri),
            fields: self.origin_fields(caller.peer, target, &parts.headers),
            body: RequestBody::client(body),
            interim: caller.interim(parts.version),
        };
        let sent = if invalidation::is_safe(&parts.method) {
            self.fetcher.send(request).await.map(|response| (response, None))
        } else {
            self.send_unsafe(target, &parts, request, position).await
        };
        let (response, own) = match sent {
            Ok(sent) => sent,
            Err(error) => return failed(&unavailable(&error), fwd),
        };
        if let Some(own) = own
            && fwd == Fwd::Method
            && self.is_for_get(target, &parts, &response)
        {
            let asked = Request::from_parts(parts, ());
            let plan = self.plan(caller, target, &asked, self.directives(asked.headers()), fwd);
            if !self.fetcher.store.are_purged(&plan.tags_of(response.headers()), position) {
                let (fetched, _) = self.fetcher.keep_or_pass(&plan, response, request_time, own, None);
                return self.answer_fetched(Asked::of(&asked), fetched);
            }
        }
        (CacheStatus::forward(fwd), add_age(response.map(ResponseBody::upstream)))
    }

    /// Sends an unsafe request on in a task of its own: what it changed is invalidated even if its
    /// client does not wait for the answer.
    async fn send_unsafe(
        self: &Arc<Self>,
        target: &Target<'_>,
        parts: &http::request::Parts,
        request: OriginRequest,
        position: u64,
    ) -> Result<(Response<UpstreamBody>, Option<u64>), UpstreamError> {
        let this = Arc::clone(self);
        let changed = Changed {
            scheme: target.scheme,
            authority: target.authority.clone(),
            key: target.key.clone(),
            path: parts.uri.path().to_owned(),
        };
        let (mut sender, receiver) = oneshot::channel();
        self.fetcher.tasks.spawn(async move {
            let is_abandoned = async {
                sender.closed().await;
                tokio::time::sleep(ABANDONED).await;
            };
            let answered = tokio::select! {
                answered = this.fetcher.send(request) => answered,
                () = is_abandoned => {
                    // Nobody knows what came of it: the URL is not what it was, perhaps.
                    let (_, written) = this.invalidate(&changed, &HeaderMap::new(), position);
                    return written.await;
                }
            };
            let sent = match answered {
                Ok(response) if invalidation::is_non_error(response.status()) => {
                    let (own, written) = this.invalidate(&changed, response.headers(), position);
                    written.await;
                    Ok((response, own))
                }
                Ok(response) => Ok((response, None)),
                Err(error) => Err(error),
            };
            // A client that has left takes its own response with it.
            let _ = sender.send(sent);
        });
        receiver.await.unwrap_or(Err(UpstreamError::RequestBody))
    }

    /// Whether the response to a POST may answer a later GET (RFC 9110 §9.3.3): it says for how long,
    /// and that it is what a GET would have got.
    fn is_for_get<B>(&self, target: &Target<'_>, request: &http::request::Parts, response: &Response<B>) -> bool {
        let (uri, fields) = (&request.uri, response.headers());
        request.method == Method::POST
            && response.status() == StatusCode::OK
            && governing(fields, &self.cache.targets, self.fetcher.clock.now()).states_lifetime(fields)
            && invalidation::answers_get(fields, target.scheme, &target.authority, uri.path(), uri.query())
    }

    /// RFC 9111 §4.4, RFC 9875 §3: what a successful unsafe request, sent at `position`, changed is no
    /// longer to be served. The position from which on a response for its own URI may be stored
    /// again, unless somebody else purged it meanwhile; and what is still to be written down.
    fn invalidate<'a>(
        &'a self,
        changed: &Changed,
        response: &HeaderMap,
        position: u64,
    ) -> (Option<u64>, impl Future<Output = ()> + use<'a>) {
        let tags: Vec<String> = groups::listed(response, &groups::CACHE_GROUP_INVALIDATION)
            .iter()
            .map(|group| groups::tag(&self.keys.prefix, changed.scheme, &changed.authority, group))
            .collect();
        let written = self.fetcher.store.invalidate_tags(tags);
        for named in invalidation::named_targets(response, changed.scheme, &changed.authority, &changed.path) {
            let key = self.keys.key(changed.scheme, &changed.authority, &named.path, named.query.as_deref());
            if key != changed.key {
                self.forget(&key);
            }
        }
        let own = self.fetcher.store.invalidate_by(&changed.key, position);
        self.flights.detach(changed.key.hash());
        self.forget_searched(&changed.key);
        self.metrics.invalidations.add_one();
        (own, written)
    }

    fn forget(&self, key: &CacheKey) {
        self.fetcher.store.invalidate(key);
        self.flights.detach(key.hash());
        self.forget_searched(key);
        self.metrics.invalidations.add_one();
    }

    /// Forgets what is stored for a URL together with others. To be done after the URL's own key is
    /// purged: what is learnt of its queries from then on was fetched before, and is not kept.
    fn forget_searched(&self, key: &CacheKey) {
        if let Some(searched) = self.fetcher.searches.key(key) {
            self.fetcher.store.forget(&searched);
            self.flights.detach(searched.hash());
        }
    }

    /// Forgets everything stored for a URL, in both tiers, before it returns.
    pub async fn purge(&self, url: &Uri) -> Result<(), PurgeError> {
        let scheme = match url.scheme_str() {
            Some("https") => "https",
            Some("http") => "http",
            Some(_) | None => return Err(PurgeError::Url),
        };
        let authority = url.authority().and_then(|authority| normal_authority(authority.as_str(), scheme));
        let authority = authority.ok_or(PurgeError::Url)?;
        let path = if url.path().is_empty() { "/" } else { url.path() };
        let key = self.keys.key(scheme, &authority, path, url.query());
        self.metrics.purges.add_one();
        // In force in this process before the durable tier is waited for.
        let purged = self.fetcher.store.purge(&key);
        self.flights.detach(key.hash());
        self.forget_searched(&key);
        purged.await.map_err(PurgeError::Durable)
    }

    /// Passes a request to change protocols on, and ties the two connections together.
    async fn tunnel(
        self: &Arc<Self>,
        caller: &Caller<'_>,
        target: &Target<'_>,
        mut request: Request<Incoming>,
    ) -> Answer {
        let client = hyper::upgrade::on(&mut request);
        let (parts, body) = request.into_parts();
        let mut fields = self.origin_fields(caller.peer, target, &parts.headers);
        if let Some(protocol) = parts.headers.get(header::UPGRADE) {
            fields.insert(header::UPGRADE, protocol.clone());
            fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        let body = RequestBody::client(body);
        let uri = origin_form(&parts.uri);
        let request = OriginRequest { method: parts.method, uri, fields, body, interim: None };
        let mut response = match self.fetcher.upstream.send(request).await {
            Ok(response) => response,
            Err(error) => return failed(&unavailable(&error), Fwd::Bypass),
        };
        let status = CacheStatus::forward(Fwd::Bypass);
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            clean_response(response.headers_mut(), self.fetcher.clock.now());
            return (status, add_age(response.map(ResponseBody::upstream)));
        }
        let origin = hyper::upgrade::on(&mut response);
        self.fetcher.tunnels.spawn(async move {
            let (Ok(client), Ok(origin)) = tokio::join!(client, origin) else { return };
            let (mut client, mut origin) = (TokioIo::new(client), TokioIo::new(origin));
            if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut origin).await {
                debug!("a tunnel ended: {error}");
            }
        });
        (status, add_age(response.map(|_: UpstreamBody| ResponseBody::empty())))
    }

    fn plan<B>(
        &self,
        caller: &Caller<'_>,
        target: &Target<'_>,
        request: &Request<B>,
        directives: CacheControl,
        fwd: Fwd,
    ) -> Plan {
        let rule = &target.rule.rule;
        Plan {
            key: target.key.clone(),
            exact: target.key.clone(),
            client_fields: request.headers().clone(),
            directives,
            method: request.method().clone(),
            uri: origin_form(request.uri()),
            origin_fields: self.origin_fields(caller.peer, target, request.headers()),
            policy: Arc::clone(&target.rule.policy),
            durability: rule.durability,
            tags: rule.tags.clone(),
            fwd,
            validate: None,
            part: None,
            replaced: None,
            head_of: None,
            known: None,
            interim: caller.interim(request.version()),
        }
    }

    fn origin_fields(&self, peer: &Peer, target: &Target<'_>, request: &HeaderMap) -> HeaderMap {
        let host = self.fetcher.upstream.config().host.as_deref().unwrap_or(&target.authority);
        let mut fields = forwarding::to_origin(request, peer, target.scheme, &target.authority, host);
        if self.cache.targets.surrogate_control {
            fields.append(SURROGATE_CAPABILITY, HeaderValue::from_static(CAPABILITY));
        }
        fields
    }

    fn directives(&self, request: &HeaderMap) -> CacheControl {
        let all = CacheControl::of_request(request);
        match self.cache.request_directives {
            RequestDirectives::Honour => all,
            // What must never be stored is no one's to decide.
            RequestDirectives::Ignore => CacheControl { no_store: all.no_store, ..CacheControl::default() },
        }
    }
}

/// Tells the origin that `Surrogate-Control` is listened to, and by which name.
const SURROGATE_CAPABILITY: HeaderName = HeaderName::from_static("surrogate-capability");
const CAPABILITY: &str = "larder=\"Surrogate/1.0\"";

/// How long an unsafe request is waited for after its client has left. It holds a connection to the
/// origin, and no one counts those.
const ABANDONED: Duration = Duration::from_secs(5);

/// Why memory does not answer a request, and the stored response that is not enough.
struct Missed {
    fwd: Fwd,
    stored: Option<Arc<StoredResponse>>,
}

/// What an unsafe request was sent to.
struct Changed {
    scheme: &'static str,
    authority: String,
    key: CacheKey,
    path: String,
}

/// Who asks, and where interim responses to it go.
struct Caller<'a> {
    peer: &'a Peer,
    outlet: &'a Arc<Outlet>,
}

impl Caller<'_> {
    /// Clients of HTTP/1.0 know no interim responses (RFC 9110 §15.2).
    fn interim(&self, version: Version) -> Option<Interim> {
        (version >= Version::HTTP_11).then(|| self.outlet.interim())
    }
}

/// Why a purge was not done.
#[derive(Debug)]
pub enum PurgeError {
    /// It is no absolute URL.
    Url,
    /// It is forgotten in memory, and may still be in the durable tier.
    Durable(BackendError),
}
