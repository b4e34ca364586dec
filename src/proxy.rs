//! The life of a request, from top to bottom, as RFC 9111 §4 tells it.

use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tracing::debug;

use crate::body::ResponseBody;
use crate::fetch::{Fetched, Fetcher, ForLeader, Plan, clean_response};
use crate::fill::FillReader;
use crate::flight::{Flights, Follower, Joined, Landing, Outcome, Shared, SharedBody, Source};
use crate::forwarding::{self, Peer};
use crate::respond::{Answer, Refusal, add_age, build, failed, hit, not_cached, refuse, refused, unavailable};
use crate::rfc9111::cache_status::{CACHE_STATUS, CacheStatus, Fwd, Handling};
use crate::rfc9111::conditional;
use crate::rfc9111::directives::CacheControl;
use crate::rfc9111::fields;
use crate::rfc9111::invalidation;
use crate::rfc9111::key::{CacheKey, KeyParts, normal_authority};
use crate::rfc9111::reuse::{self, Reuse, Why};
use crate::rfc9111::storage;
use crate::rules::{RequestDirectives, Resolved, Rules};
use crate::store::backend::BackendError;
use crate::store::memory::Lookup;
use crate::stored::StoredResponse;
use crate::telemetry::{Metrics, WorkerMetrics};
use crate::upstream::{OriginRequest, RequestBody, UpstreamBody};

/// The proxy: everything that the workers share.
#[derive(Debug)]
pub struct Proxy {
    /// What fetches.
    pub fetcher: Arc<Fetcher>,
    /// The fetches under way.
    pub flights: Arc<Flights>,
    /// What the configuration says of some paths.
    pub rules: Rules,
    /// `[cache]`
    pub cache: crate::rules::Config,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Whether every request is logged.
    pub access_log: bool,
}

/// Where a request is headed, worked out once.
#[derive(Debug)]
struct Target<'a> {
    scheme: &'static str,
    /// As it enters the key, and as the origin is told: a spelling of one client's own must not
    /// come back in a page that others get.
    authority: String,
    key: CacheKey,
    rule: &'a Resolved,
}

impl Proxy {
    /// Answers a request.
    pub async fn handle(
        self: &Arc<Self>,
        worker: &WorkerMetrics,
        peer: &Peer,
        mut request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        // What the origin will not see must not select a stored response either.
        fields::remove_listed(request.headers_mut());
        let access = self.access_log.then(|| crate::access::Line::begin(peer, &request));
        let (status, mut response) = match self.target(peer, &request) {
            Ok(target) => self.answer(peer, &target, request).await,
            Err(refusal) => refused(&refusal),
        };
        worker.record(&status);
        response.headers_mut().append(CACHE_STATUS, status.to_value());
        match access {
            Some(line) => line.finish(response, &status),
            None => response,
        }
    }

    async fn answer(self: &Arc<Self>, peer: &Peer, target: &Target<'_>, request: Request<Incoming>) -> Answer {
        if is_upgrade(&request) {
            return self.tunnel(peer, target, request).await;
        }
        if let Some(fwd) = never_from_cache(&request, target.rule) {
            return self.forward(peer, target, request, fwd).await;
        }
        let directives = self.directives(request.headers());
        let now = self.fetcher.clock.now();
        let (fwd, validate) = match self.fetcher.store.memory().lookup(&target.key, request.headers()) {
            Lookup::Found(stored) => match reuse::reuse(&directives, &stored.head.freshness, now) {
                Reuse::Fresh | Reuse::Stale => return hit(&request, &stored, now),
                Reuse::StaleWhileRevalidate => {
                    self.revalidate_behind(peer, target, &request, &directives, &stored);
                    return hit(&request, &stored, now);
                }
                Reuse::Validate(Why::Stale) => (Fwd::Stale, Some(stored)),
                Reuse::Validate(Why::Request) => (Fwd::Request, Some(stored)),
                Reuse::GatewayTimeout => return not_cached(),
            },
            Lookup::OtherVariants(_) => (Fwd::VaryMiss, None),
            Lookup::Nothing => (Fwd::UriMiss, None),
        };
        let plan = Plan { fwd, validate, ..self.plan(peer, target, &request, directives) };
        self.fetch(&request, plan).await
    }

    /// Nothing in memory answers the request: the durable tier may, or the origin.
    async fn fetch(self: &Arc<Self>, request: &Request<Incoming>, plan: Plan) -> Answer {
        let is_plain_get = *request.method() == Method::GET && !request.headers().contains_key(header::RANGE);
        let is_range_of_stored = plan.validate.is_some() && *request.method() == Method::GET;
        let only_if_cached = plan.directives.only_if_cached;
        if only_if_cached || !(is_plain_get || is_range_of_stored) {
            // What only this client can use is not worth a flight: a HEAD, a part of something
            // that is not stored.
            if plan.validate.is_none()
                && let Some(fetched) = self.fetcher.find_durable(&plan).await
            {
                return self.answer_fetched(request, fetched);
            }
            if only_if_cached {
                return not_cached();
            }
            return self.alone(request, Plan { validate: None, ..plan }).await;
        }
        if plan.directives.no_store || self.fetcher.is_pass(&plan) {
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
        match self.fetcher.store.memory().lookup(&plan.key, &plan.client_fields) {
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
            Ok(fetched) => self.answer_fetched(request, fetched),
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
                    Fetched::Passed { .. } => Outcome::NotShared,
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
        match follower.outcome().await {
            Outcome::Shared(shared) => {
                if let Some(answer) = self.answer_follower(request, &plan, &shared) {
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
    fn answer_follower(&self, request: &Request<Incoming>, plan: &Plan, shared: &Shared) -> Option<Answer> {
        let head = &shared.head;
        if !head.is_selected_by(request.headers()) {
            return None;
        }
        if request.headers().contains_key(header::AUTHORIZATION)
            && !storage::allows_authorized(&CacheControl::of(&head.fields))
        {
            return None;
        }
        match reuse::reuse(&plan.directives, &head.freshness, self.fetcher.clock.now()) {
            Reuse::Fresh | Reuse::Stale | Reuse::StaleWhileRevalidate => {}
            // The origin has just been asked: that is as new as this client can wish for.
            Reuse::Validate(Why::Request) if matches!(shared.source, Source::Origin { .. }) => {}
            Reuse::Validate(Why::Stale) if matches!(shared.source, Source::InPlaceOfError { .. }) => {}
            Reuse::Validate(_) | Reuse::GatewayTimeout => return None,
        }
        let reader = match &shared.body {
            SharedBody::Stored(_) => None,
            SharedBody::Filling(fill) => Some(fill.reader()?),
        };
        self.answer_shared(request, shared, reader, true)
    }

    /// Asks the origin for this client only.
    async fn alone(self: &Arc<Self>, request: &Request<Incoming>, plan: Plan) -> Answer {
        let fetched = self.fetcher.alone(plan, RequestBody::Empty).await;
        self.answer_fetched(request, fetched)
    }

    fn answer_fetched(&self, request: &Request<Incoming>, fetched: Fetched) -> Answer {
        match fetched {
            Fetched::Shared(shared, ForLeader { cookies, reader }) => {
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
        request: &Request<Incoming>,
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
                CacheStatus { handling, ttl: Some(crate::rfc9111::cache_status::ttl_seconds(remaining)), detail: None }
            }
            Source::Origin { fwd, status, stored } => {
                let handling = Handling::Forward { fwd, fwd_status: status, stored, collapsed };
                CacheStatus { handling, ttl: Some(crate::rfc9111::cache_status::ttl_seconds(remaining)), detail: None }
            }
        };
        let response = build(request, &shared.head, &shared.body, reader, now)?;
        Some((status, response))
    }

    /// Validates a stale response that has just been served, in the background and once.
    fn revalidate_behind(
        self: &Arc<Self>,
        peer: &Peer,
        target: &Target<'_>,
        request: &Request<Incoming>,
        directives: &CacheControl,
        stored: &Arc<StoredResponse>,
    ) {
        if *request.method() != Method::GET || self.fetcher.passes.contains(target.key.hash(), self.fetcher.clock.now())
        {
            return;
        }
        let variant = stored.head.variant.as_ref().map_or(0, |variant| target.key.variant_hash(&variant.selector));
        if let Joined::Leader(landing) = self.flights.join(target.key.hash(), variant) {
            let mut plan = self.plan(peer, target, request, directives.clone());
            plan.fwd = Fwd::Stale;
            plan.validate = Some(Arc::clone(stored));
            self.launch(plan, landing, None);
        }
    }

    /// Sends a request on that no stored response may answer, and invalidates what it changed.
    async fn forward(
        self: &Arc<Self>,
        peer: &Peer,
        target: &Target<'_>,
        request: Request<Incoming>,
        fwd: Fwd,
    ) -> Answer {
        let (parts, body) = request.into_parts();
        let request = OriginRequest {
            method: parts.method.clone(),
            uri: origin_form(&parts.uri),
            fields: self.origin_fields(peer, target, &parts.headers),
            body: RequestBody::client(body),
        };
        match self.fetcher.upstream.send(request).await {
            Ok(mut response) => {
                clean_response(response.headers_mut(), self.fetcher.clock.now());
                if !invalidation::is_safe(&parts.method) && invalidation::is_non_error(response.status()) {
                    self.invalidate(target, parts.uri.path(), response.headers());
                }
                (CacheStatus::forward(fwd), add_age(response.map(ResponseBody::upstream)))
            }
            Err(error) => failed(&unavailable(&error), fwd),
        }
    }

    /// RFC 9111 §4.4: what a successful unsafe request changed is no longer to be served.
    fn invalidate(&self, target: &Target<'_>, path: &str, response: &HeaderMap) {
        self.forget(&target.key);
        for named in invalidation::named_targets(response, target.scheme, &target.authority, path) {
            let key = self.key(target.scheme, &target.authority, &named.path, named.query.as_deref());
            if key != target.key {
                self.forget(&key);
            }
        }
    }

    fn forget(&self, key: &CacheKey) {
        self.fetcher.store.invalidate(key);
        self.flights.detach(key.hash());
        self.metrics.invalidations.add_one();
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
        let key = self.key(scheme, &authority, path, url.query());
        self.metrics.purges.add_one();
        // In force in this process before the durable tier is waited for.
        self.fetcher.store.forget(&key);
        self.flights.detach(key.hash());
        self.fetcher.store.forget_durably(&key).await.map_err(PurgeError::Durable)
    }

    /// Passes a request to change protocols on, and ties the two connections together.
    async fn tunnel(self: &Arc<Self>, peer: &Peer, target: &Target<'_>, mut request: Request<Incoming>) -> Answer {
        let client = hyper::upgrade::on(&mut request);
        let (parts, body) = request.into_parts();
        let mut fields = self.origin_fields(peer, target, &parts.headers);
        if let Some(protocol) = parts.headers.get(header::UPGRADE) {
            fields.insert(header::UPGRADE, protocol.clone());
            fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        let body = RequestBody::client(body);
        let request = OriginRequest { method: parts.method, uri: origin_form(&parts.uri), fields, body };
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

    fn plan(&self, peer: &Peer, target: &Target<'_>, request: &Request<Incoming>, directives: CacheControl) -> Plan {
        let rule = &target.rule.rule;
        Plan {
            key: target.key.clone(),
            client_fields: request.headers().clone(),
            directives,
            method: request.method().clone(),
            uri: origin_form(request.uri()),
            origin_fields: self.origin_fields(peer, target, request.headers()),
            policy: target.rule.policy,
            durability: rule.durability,
            tags: rule.tags.clone(),
            fwd: Fwd::UriMiss,
            validate: None,
        }
    }

    fn origin_fields(&self, peer: &Peer, target: &Target<'_>, request: &HeaderMap) -> HeaderMap {
        let host = self.fetcher.upstream.config().host.as_deref().unwrap_or(&target.authority);
        forwarding::to_origin(request, peer, target.scheme, &target.authority, host)
    }

    fn directives(&self, request: &HeaderMap) -> CacheControl {
        let all = CacheControl::of_request(request);
        match self.cache.request_directives {
            RequestDirectives::Honour => all,
            // What must never be stored is no one's to decide.
            RequestDirectives::Ignore => CacheControl { no_store: all.no_store, ..CacheControl::default() },
        }
    }

    /// Works out where a request is headed, or what is wrong with it.
    fn target(&self, peer: &Peer, request: &Request<Incoming>) -> Result<Target<'_>, Refusal> {
        let bad = |detail, sentence| refuse(StatusCode::BAD_REQUEST, detail, sentence);
        if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
            return Err(refuse(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "this server does not answer CONNECT or TRACE",
            ));
        }
        let mut codings = fields::members(request.headers(), &header::TRANSFER_ENCODING);
        if codings.any(|coding| !coding.eq_ignore_ascii_case(b"chunked")) {
            return Err(refuse(
                StatusCode::NOT_IMPLEMENTED,
                "transfer-coding",
                "this server knows no transfer coding other than chunked",
            ));
        }
        let is_in_form = match request.uri().path() {
            "*" => *request.method() == Method::OPTIONS,
            path => path.starts_with('/') || (path.is_empty() && request.uri().scheme().is_some()),
        };
        if !is_in_form {
            return Err(bad("bad-target", "the request's target is neither a path nor a URL"));
        }
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (_, Some(_)) => return Err(bad("bad-host", "the request has more than one Host field")),
            (Some(host), None) => host.to_str().map_err(|_| bad("bad-host", "the Host field is not a host name"))?,
            (None, None) if request.version() == Version::HTTP_10 => "",
            (None, None) => return Err(bad("bad-host", "the request has no Host field")),
        };
        let original = forwarding::original(peer, request.headers());
        // RFC 9112 §3.2.2: the authority of a target in absolute form goes before Host.
        let host = match request.uri().authority() {
            Some(authority) => authority.as_str(),
            None => host,
        };
        let host = original.host.filter(|host| !host.is_empty()).unwrap_or(host);
        let authority = if host.is_empty() && request.version() == Version::HTTP_10 {
            "".into()
        } else {
            normal_authority(host, original.scheme)
                .ok_or_else(|| bad("bad-host", "the Host field is not a host name"))?
        };
        let path = request.uri().path();
        let rule = self.rules.matching(path);
        let key = self.key_with(rule, original.scheme, &authority, path, request.uri().query());
        Ok(Target { scheme: original.scheme, authority: authority.into_owned(), key, rule })
    }

    fn key(&self, scheme: &str, authority: &str, path: &str, query: Option<&str>) -> CacheKey {
        self.key_with(self.rules.matching(path), scheme, authority, path, query)
    }

    fn key_with(&self, rule: &Resolved, scheme: &str, authority: &str, path: &str, query: Option<&str>) -> CacheKey {
        let rules = &rule.rule.query;
        let prefix = &self.cache.key_prefix;
        match query {
            Some(query) if !rules.is_empty() => {
                let query = rules.apply(query);
                CacheKey::new(KeyParts { prefix, scheme, authority, path, query: query.as_deref() })
            }
            query => CacheKey::new(KeyParts { prefix, scheme, authority, path, query }),
        }
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

/// Why a request goes to the origin whatever is stored, if it does.
fn never_from_cache(request: &Request<Incoming>, rule: &Resolved) -> Option<Fwd> {
    if rule.rule.bypass {
        return Some(Fwd::Bypass);
    }
    if *request.method() != Method::GET && *request.method() != Method::HEAD {
        return Some(Fwd::Method);
    }
    // Content in a GET may change the response, and is no part of the key. Conditions on the
    // origin's state are for the origin.
    if !request.body().is_end_stream() || conditional::is_for_the_origin(request.headers()) {
        return Some(Fwd::Request);
    }
    None
}

/// Whether the client asks to change protocols in a way that is passed on. Anything else that it
/// may have asked for with `Upgrade` is left out, and the request is an ordinary one.
fn is_upgrade(request: &Request<Incoming>) -> bool {
    request.headers().contains_key(header::UPGRADE)
        && *request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && request.body().is_end_stream()
        && fields::has_member(request.headers(), &header::CONNECTION, "upgrade")
        // HTTP/2 in clear text would make requests that never pass here again.
        && !fields::members(request.headers(), &header::UPGRADE).any(|protocol| {
            protocol.to_ascii_lowercase().starts_with(b"h2")
        })
}

/// The target as the origin is asked for it.
fn origin_form(uri: &Uri) -> Uri {
    match uri.path_and_query() {
        Some(target) if uri.authority().is_some() => Uri::from(target.clone()),
        _ => uri.clone(),
    }
}
