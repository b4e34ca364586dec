//! What a flight does: asks the durable tier, then the origin, and keeps what may be kept.
//!
//! A fetch knows at the response's head whether it may be shared, and says so at once. The body of
//! one that may be follows in a task of its own, so that no client's leaving or slowness touches
//! it. Whatever is stored carries the purge position at which its fetch began.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::body::ResponseBody;
use crate::clock::{Clock, Timestamp};
use crate::fill::{Budget, Fill, FillReader, FillWriter};
use crate::flight::{Landing, Shared, SharedBody, Source};
use crate::passes::Passes;
use crate::rfc9111::cache_status::{Fwd, Tier};
use crate::rfc9111::directives::CacheControl;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::reuse::{self, Reuse};
use crate::rfc9111::storage::{self, Exchange, NotStorable, Storable, StoragePolicy, storable};
use crate::rfc9111::validation::{self, Validation};
use crate::rfc9111::{date, fields};
use crate::store::backend::BackendError;
use crate::store::durable::{BodyReader, Found, FoundBody, FoundResponse};
use crate::store::memory::{self, Lookup};
use crate::store::{Durability, Store};
use crate::stored::{Body, NewHead, StoredHead, StoredResponse};
use crate::upstream::{EndsWithConnection, OriginRequest, RequestBody, Upstream, UpstreamBody, UpstreamError};

/// What a GET is to fetch, and what may be done with it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The key of the request.
    pub key: CacheKey,
    /// The fields as the client sent them: what selects a variant and decides on storing.
    pub client_fields: HeaderMap,
    /// The client's own directives, as far as they count.
    pub directives: CacheControl,
    /// The method to ask with.
    pub method: Method,
    /// Path and query to ask for.
    pub uri: Uri,
    /// The fields to ask with; the client's preconditions and range among them.
    pub origin_fields: HeaderMap,
    /// What the configuration says of storing.
    pub policy: StoragePolicy,
    /// Whether the durable tier may keep it.
    pub durability: Durability,
    /// What it can be purged by.
    pub tags: Vec<String>,
    /// Why the origin is asked, as far as is known before the durable tier is.
    pub fwd: Fwd,
    /// A stored response to validate.
    pub validate: Option<Arc<StoredResponse>>,
}

/// What came of a fetch.
#[derive(Debug)]
pub enum Fetched {
    /// A response that may be shared, and what of it is for the client that led.
    Shared(Arc<Shared>, ForLeader),
    /// A response for the client that led.
    Passed {
        /// The response, without the fields of its connection.
        response: Response<ResponseBody>,
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
    /// Cookies that a 304 brought. They are not stored, and no one else sees them.
    pub cookies: Vec<HeaderValue>,
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
    /// The keys that are not worth waiting for.
    pub passes: Passes,
    /// The memory that fetches under way may take.
    pub budget: Arc<Budget>,
    /// `[memory]`
    pub memory: memory::Config,
    /// Whether an expired durable object is deleted when it is found.
    pub purge_expired_on_read: bool,
    /// Every task that outlives its client.
    pub tasks: TaskTracker,
    /// Connections that are no longer HTTP. They end when both sides have, or with the process.
    pub tunnels: TaskTracker,
}

/// Tells apart, among the passes, clients with credentials: that theirs can't be shared says
/// nothing of the others'.
const WITH_CREDENTIALS: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834;

impl Fetcher {
    /// Fetches for a flight: the tiers first, since another flight may have landed in between, and
    /// then the origin. What is still coming in keeps `landing`, so that the flight can be joined
    /// until its body is complete.
    pub async fn fly(self: &Arc<Self>, mut plan: Plan, landing: Landing) -> (Fetched, Option<Landing>) {
        let position = self.store.position();
        let known = match self.store.memory().lookup(&plan.key, &plan.client_fields) {
            // One that was stored since this flight was found necessary.
            Lookup::Found(stored)
                if self.reuse(&plan, &stored.head).is_some()
                    && plan.validate.as_ref().is_none_or(|old| !Arc::ptr_eq(&old.head, &stored.head)) =>
            {
                return (shared(&stored, Source::Tier(Tier::Memory)), Some(landing));
            }
            Lookup::Found(stored) => {
                plan.validate = Some(stored);
                None
            }
            Lookup::OtherVariants(record) => Some(record),
            Lookup::Nothing => None,
        };
        if plan.validate.is_none() {
            let is_known = known.is_some();
            match self.store.lookup_durable(&plan.key, &plan.client_fields, plan.policy.lifetimes, known).await {
                Found::Response(found) if self.reuse(&plan, &found.head).is_some() => {
                    return (self.take_durable(*found, position, Some(landing)), None);
                }
                Found::Response(found) => self.validate_durable(&mut plan, *found, position).await,
                Found::OtherVariants(record) => {
                    // One that came from memory may have been removed there since.
                    if !is_known {
                        self.store.adopt(record, position);
                    }
                    plan.fwd = Fwd::VaryMiss;
                }
                Found::Nothing => {}
            }
        }
        self.from_origin(plan, position, Some(landing)).await
    }

    /// Whether a response for this request lately turned out not to be shareable.
    pub fn is_pass(&self, plan: &Plan) -> bool {
        let now = self.clock.now();
        let has_credentials = plan.client_fields.contains_key(header::AUTHORIZATION);
        self.passes.contains(plan.key.hash(), now)
            || (has_credentials && self.passes.contains(plan.key.hash() ^ WITH_CREDENTIALS, now))
    }

    /// What the durable tier has for a request that nobody shares, if it may be reused.
    pub async fn find_durable(self: &Arc<Self>, plan: &Plan) -> Option<Fetched> {
        let position = self.store.position();
        let found = self.store.lookup_durable(&plan.key, &plan.client_fields, plan.policy.lifetimes, None).await;
        match found {
            Found::Response(found) if self.reuse(plan, &found.head).is_some() => {
                Some(self.take_durable(*found, position, None))
            }
            Found::Response(_) | Found::OtherVariants(_) | Found::Nothing => None,
        }
    }

    /// Asks the origin for a client that waits for nobody.
    pub async fn alone(self: &Arc<Self>, plan: Plan, body: RequestBody) -> Fetched {
        let position = self.store.position();
        if plan.validate.is_some() {
            return self.from_origin(plan, position, None).await.0;
        }
        self.ask(&plan, plan.origin_fields.clone(), body, position, None).await.0
    }

    /// How `head` may answer the plan's own request, if it may.
    fn reuse(&self, plan: &Plan, head: &StoredHead) -> Option<Reuse> {
        match reuse::reuse(&plan.directives, &head.freshness, self.clock.now()) {
            reuse @ (Reuse::Fresh | Reuse::Stale | Reuse::StaleWhileRevalidate) => Some(reuse),
            Reuse::Validate(_) | Reuse::GatewayTimeout => None,
        }
    }

    /// Answers from the durable tier, and keeps in memory what it had.
    fn take_durable(self: &Arc<Self>, found: FoundResponse, position: u64, landing: Option<Landing>) -> Fetched {
        let mut head = found.head;
        // Its own position was checked when it was read; from here on it is covered by purges that
        // come after the read began.
        head.position = position;
        let head = Arc::new(head);
        let source = Source::Tier(Tier::Durable);
        match found.body {
            FoundBody::Whole(body) => {
                let stored = Arc::new(StoredResponse { head, body });
                if stored.body.len() <= self.memory.max_object_size {
                    self.store.promote(&stored, found.record);
                }
                let shared = shared(&stored, source);
                if let (Some(landing), Fetched::Shared(shared, _)) = (landing, &shared) {
                    landing.publish(crate::flight::Outcome::Shared(Arc::clone(shared)));
                }
                shared
            }
            FoundBody::Streamed(first, reader) => {
                let writer = self.start_fill();
                let fill = Arc::clone(writer.fill());
                let for_leader = ForLeader { cookies: Vec::new(), reader: fill.reader() };
                let shared = Arc::new(Shared { head: Arc::clone(&head), body: SharedBody::Filling(fill), source });
                if let Some(landing) = &landing {
                    landing.publish(crate::flight::Outcome::Shared(Arc::clone(&shared)));
                }
                let this = Arc::clone(self);
                self.tasks.spawn(async move {
                    let key = head.key.clone();
                    let keep = |body| this.store.promote(&Arc::new(StoredResponse { head, body }), found.record);
                    if let Err(error) = fill_from_durable(writer, first, reader, keep).await {
                        // Whoever asks again gets it from the origin.
                        warn!("a body from the durable tier broke off, and is deleted there: {error}");
                        this.store.discard(&key);
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
            self.store.discard(&plan.key);
        }
        plan.fwd = if found.head.freshness.is_fresh(self.clock.now()) { Fwd::Request } else { Fwd::Stale };
        if !validation::has_validator(&found.head.fields) && found.head.freshness.stale_if_error == 0 {
            return;
        }
        let body = match found.body {
            FoundBody::Whole(body) => Some(body),
            FoundBody::Streamed(first, reader) => {
                // It is served from memory if it proves good, so it has to fit there.
                let mut whole = None;
                match fill_from_durable(self.start_fill(), first, reader, |body| whole = Some(body)).await {
                    Ok(()) => whole,
                    Err(error) => {
                        warn!("a body from the durable tier broke off, and is deleted there: {error}");
                        self.store.discard(&plan.key);
                        None
                    }
                }
            }
        };
        let mut head = found.head;
        head.position = position;
        plan.validate = body.map(|body| Arc::new(StoredResponse { head: Arc::new(head), body }));
        if let Some(record) = found.record {
            self.store.adopt(record, position);
        }
    }

    /// Asks the origin: with the validators of what is to be validated, or for the whole.
    async fn from_origin(
        self: &Arc<Self>,
        plan: Plan,
        position: u64,
        landing: Option<Landing>,
    ) -> (Fetched, Option<Landing>) {
        let mut origin_fields = plan.origin_fields.clone();
        match &plan.validate {
            Some(stored) => validation::make_conditional(&mut origin_fields, &stored.head.fields),
            None => validation::remove_preconditions(&mut origin_fields),
        }
        self.ask(&plan, origin_fields, RequestBody::Empty, position, landing).await
    }

    async fn ask(
        self: &Arc<Self>,
        plan: &Plan,
        origin_fields: HeaderMap,
        body: RequestBody,
        position: u64,
        landing: Option<Landing>,
    ) -> (Fetched, Option<Landing>) {
        let request_time = self.clock.now();
        let answer = match self.send(plan, origin_fields, body).await {
            Ok(answer) => answer,
            Err(error) => {
                let stale = self.stale_if_error(plan, None);
                return (stale.unwrap_or(Fetched::Failed(error, plan.fwd)), landing);
            }
        };
        let Some(stored) = &plan.validate else {
            return self.keep_or_pass(plan, answer, request_time, position, landing);
        };
        match validation::outcome(answer.status(), answer.headers(), &stored.head.fields) {
            Validation::Freshened => (self.freshen(plan, stored, answer.headers(), request_time, position), landing),
            Validation::Failed => match self.stale_if_error(plan, Some(answer.status())) {
                Some(stale) => (stale, landing),
                None => self.keep_or_pass(plan, answer, request_time, position, landing),
            },
            Validation::Replaced => self.keep_or_pass(plan, answer, request_time, position, landing),
            Validation::Mismatched => {
                // RFC 9111 §4.3.4: such a 304 updates nothing, and without the stored response it
                // says nothing to the client either. Ask again, for the whole.
                drop(answer);
                let mut whole = plan.origin_fields.clone();
                validation::remove_preconditions(&mut whole);
                let request_time = self.clock.now();
                match self.send(plan, whole, RequestBody::Empty).await {
                    Ok(answer) => self.keep_or_pass(plan, answer, request_time, position, landing),
                    Err(error) => (Fetched::Failed(error, plan.fwd), landing),
                }
            }
        }
    }

    async fn send(
        &self,
        plan: &Plan,
        origin_fields: HeaderMap,
        body: RequestBody,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let request = OriginRequest { method: plan.method.clone(), uri: plan.uri.clone(), fields: origin_fields, body };
        let mut answer = self.upstream.send(request).await?;
        clean_response(answer.headers_mut(), self.clock.now());
        Ok(answer)
    }

    /// Keeps a response if RFC 9111 §3 lets it; otherwise it is for the client that led.
    fn keep_or_pass(
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
            request: &plan.client_fields,
            status: answer.status(),
            response: answer.headers(),
            request_time,
            response_time,
        };
        let verdict = storable(&exchange, &plan.policy).and_then(|storable| {
            if answer.extensions().get::<EndsWithConnection>().is_some() {
                return Err(NotStorable::Unframed);
            }
            let fits = answer.body().size_hint().exact().is_none_or(|len| len <= self.memory.max_object_size);
            if fits { Ok(storable) } else { Err(NotStorable::TooLarge) }
        });
        match verdict {
            Ok(storable) => {
                let head = Self::new_head(plan, &storable, answer.status(), answer.headers(), &exchange, position);
                let collapses = head.freshness.is_fresh(response_time) && !head.freshness.no_cache;
                if collapses {
                    self.passes.forget(plan.key.hash());
                } else {
                    // Each request needs a validation of its own, so there is nothing to wait for.
                    self.passes.remember(plan.key.hash(), response_time);
                }
                (self.keep(plan, head, answer.into_body(), landing), None)
            }
            Err(why) => {
                // A part, or a 304 to the client's own condition, says nothing of the whole.
                let is_partial = matches!(answer.status().as_u16(), 206 | 304 | 412 | 416);
                let is_about_the_response = why.is_about_the_response() && !is_partial;
                if is_about_the_response {
                    self.passes.remember(plan.key.hash(), response_time);
                } else if why == NotStorable::Authorization {
                    self.passes.remember(plan.key.hash() ^ WITH_CREDENTIALS, response_time);
                }
                if plan.validate.is_some() && is_about_the_response && !answer.status().is_server_error() {
                    // The stored response has a successor that may not be stored: it is history.
                    self.store.invalidate(&plan.key);
                }
                let passed = Fetched::Passed {
                    response: answer.map(ResponseBody::upstream),
                    why,
                    fwd: plan.fwd,
                    fwd_status: None,
                };
                (passed, landing)
            }
        }
    }

    fn new_head(
        plan: &Plan,
        storable: &Storable,
        status: StatusCode,
        response: &HeaderMap,
        exchange: &Exchange<'_>,
        position: u64,
    ) -> StoredHead {
        let new = NewHead {
            key: &plan.key,
            request: &plan.client_fields,
            status,
            fields: response,
            request_time: exchange.request_time,
            response_time: exchange.response_time,
            position,
            tags: plan.tags.clone(),
            body_id: memory::random_u128(),
            body_written: Arc::new(AtomicBool::new(false)),
        };
        StoredHead::new(storable, new)
    }

    /// Starts taking in the body of a response that is to be stored.
    fn keep(self: &Arc<Self>, plan: &Plan, head: StoredHead, body: UpstreamBody, landing: Option<Landing>) -> Fetched {
        let writer = self.start_fill();
        let reader = writer.fill().reader();
        let head = Arc::new(head);
        let shared = Arc::new(Shared {
            head: Arc::clone(&head),
            body: SharedBody::Filling(Arc::clone(writer.fill())),
            source: Source::Origin { fwd: plan.fwd, status: None, stored: true },
        });
        if let Some(landing) = &landing {
            landing.publish(crate::flight::Outcome::Shared(Arc::clone(&shared)));
        }
        let this = Arc::clone(self);
        let durability = plan.durability;
        self.tasks.spawn(async move {
            let keep = |body: Body| {
                if head.is_of_length(body.len()) {
                    this.store.insert(&Arc::new(StoredResponse { head, body }), durability);
                }
            };
            fill_from_origin(writer, body, keep).await;
            drop(landing);
        });
        Fetched::Shared(shared, ForLeader { cookies: Vec::new(), reader })
    }

    /// RFC 9111 §4.3.4: the stored response is good again, with the fields of the 304.
    fn freshen(
        self: &Arc<Self>,
        plan: &Plan,
        stored: &StoredResponse,
        not_modified: &HeaderMap,
        request_time: Timestamp,
        position: u64,
    ) -> Fetched {
        let mut answer = not_modified.clone();
        let directives = CacheControl::of(&answer);
        let mut cookies = Vec::new();
        if !storage::cookie_is_shared(&answer, &directives, plan.policy.set_cookie) {
            cookies = answer.get_all(header::SET_COOKIE).iter().cloned().collect();
            answer.remove(header::SET_COOKIE);
            answer.remove("set-cookie2");
        }
        let mut merged = stored.head.fields.clone();
        validation::freshen(&mut merged, &answer);
        let exchange = Exchange {
            method: &plan.method,
            request: &plan.client_fields,
            status: stored.head.status,
            response: &merged,
            request_time,
            response_time: self.clock.now(),
        };
        match storable(&exchange, &plan.policy) {
            Ok(storable) => {
                let mut head = Self::new_head(plan, &storable, stored.head.status, &merged, &exchange, position);
                // A body that came inline from the durable tier has no object of its own yet.
                if stored.head.body_id != 0 {
                    head.body_id = stored.head.body_id;
                    head.body_written = Arc::clone(&stored.head.body_written);
                }
                let fresh = Arc::new(StoredResponse { head: Arc::new(head), body: stored.body.clone() });
                let kept = self.store.insert(&fresh, plan.durability);
                let source =
                    Source::Origin { fwd: plan.fwd, status: Some(StatusCode::NOT_MODIFIED.as_u16()), stored: kept };
                match shared(&fresh, source) {
                    Fetched::Shared(shared, _) => Fetched::Shared(shared, ForLeader { cookies, reader: None }),
                    other => other,
                }
            }
            Err(why) => {
                if why.is_about_the_response() {
                    // The origin took back its leave to store. The client that asked is the last.
                    self.store.invalidate(&plan.key);
                    self.passes.remember(plan.key.hash(), exchange.response_time);
                }
                let mut response = Response::new(ResponseBody::stored(&stored.body));
                *response.status_mut() = stored.head.status;
                for cookie in cookies {
                    merged.append(header::SET_COOKIE, cookie);
                }
                *response.headers_mut() = merged;
                Fetched::Passed { response, why, fwd: plan.fwd, fwd_status: Some(StatusCode::NOT_MODIFIED.as_u16()) }
            }
        }
    }

    /// A stale response in place of an error of the origin, where it said that it may be
    /// (RFC 5861 §4).
    fn stale_if_error(&self, plan: &Plan, status: Option<StatusCode>) -> Option<Fetched> {
        let stored = plan.validate.as_ref()?;
        if !reuse::stale_if_error(&stored.head.freshness, self.clock.now()) {
            return None;
        }
        debug!("a stale response stands in for an error of the origin");
        let status = status.map(|status| status.as_u16());
        Some(shared(stored, Source::InPlaceOfError { fwd: plan.fwd, status }))
    }

    fn start_fill(&self) -> FillWriter {
        let limit = usize::try_from(self.memory.max_object_size).unwrap_or(usize::MAX);
        Fill::start(limit, Arc::clone(&self.budget))
    }
}

fn shared(stored: &StoredResponse, source: Source) -> Fetched {
    let shared = Shared { head: Arc::clone(&stored.head), body: SharedBody::Stored(stored.body.clone()), source };
    Fetched::Shared(Arc::new(shared), ForLeader::default())
}

/// Takes the fields of the connection out of a response, and dates it if its origin did not
/// (RFC 9110 §6.6.1).
pub fn clean_response(response: &mut HeaderMap, now: Timestamp) {
    // RFC 9112 §6.3: where there are both, the body was not as long as Content-Length says.
    if response.contains_key(header::TRANSFER_ENCODING) {
        response.remove(header::CONTENT_LENGTH);
    }
    fields::remove_hop_by_hop(response);
    response.entry(header::DATE).or_insert_with(|| date::format(now));
}

/// Takes a body in to its end, and has it kept if it is complete and was kept whole.
///
/// It is kept before the last of it is given out: a client that has read to the end, and asks
/// again, gets a hit.
async fn fill_from_origin(mut writer: FillWriter, mut body: UpstreamBody, keep: impl FnOnce(Body)) {
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
        if body.is_end_stream() {
            return finish(writer, data, keep);
        }
        if !writer.push(data).await {
            return;
        }
    }
    finish(writer, Bytes::new(), keep);
}

/// The same for a body from the durable tier; an error when it broke off or can't be believed.
async fn fill_from_durable(
    mut writer: FillWriter,
    first: Bytes,
    mut rest: BodyReader,
    keep: impl FnOnce(Body),
) -> Result<(), BackendError> {
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

fn finish(writer: FillWriter, last: Bytes, keep: impl FnOnce(Body)) {
    if let Some(body) = writer.whole(&last) {
        keep(body);
    }
    writer.complete(last);
}
