//! What a flight does: asks the durable tier, then the origin, and keeps what may be kept
//! (`keep`).
//!
//! A fetch knows at the response's head whether it may be shared, and says so at once. The body of
//! one that may be follows in a task of its own, so that no client's leaving or slowness touches
//! it. Whatever is stored carries the purge position at which its fetch began.

mod keep;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use self::keep::fill_from_durable;

use crate::body::ResponseBody;
use crate::clock::{Clock, Timestamp};
use crate::fill::{Budget, Fill, FillReader, FillWriter};
use crate::flight::{Flights, Joined, Landing, Outcome, Shared, SharedResponse, Source, Watch};
use crate::forwarding::{Onward, Peer};
use crate::passes::{Pass, Passes, Recent};
use crate::rfc9111::cache_status::{Fwd, Tier};
use crate::rfc9111::directives::CacheControl;
use crate::rfc9111::groups;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::reuse::{self, Failure, Reuse};
use crate::rfc9111::storage::{Exchange, NotStorable, StoragePolicy, storable};
use crate::rfc9111::tags::TooManyTags;
use crate::rfc9111::validation::{self, Validation};
use crate::rfc9111::{date, fields, partial};
use crate::rules::Ranges;
use crate::searches::Searches;
use crate::store::backend::BackendError;
use crate::store::durable::{Apart, Found, FoundBody, FoundResponse, Opening, Wanted};
use crate::store::memory::{self, Lookup};
use crate::store::{Durability, Known, Store};
use crate::stored::seen::Seen;
use crate::stored::{Body, Replaced, StoredHead, StoredResponse};
use crate::upstream::{Errand, Interim, OriginRequest, RequestBody, Upstream, UpstreamBody, UpstreamError};

/// What a GET is to fetch, and what may be done with it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The key that its response is looked for under.
    pub key: CacheKey,
    /// The key of its URI to the byte; another than `key` where the origin said that some
    /// differences between queries do not matter.
    pub exact: CacheKey,
    /// The request as the client sent it: the origin is asked with its fields, preconditions and range
    /// among them, and what is made of them on the way.
    pub request: Arc<Request<()>>,
    /// The fields that select a variant and decide on storing, where they are not those of the request.
    pub as_asked: Option<Box<HeaderMap>>,
    /// Who the client is.
    pub peer: Peer,
    /// The client's own directives, as far as they count.
    pub directives: CacheControl,
    /// The method to ask with.
    pub method: Method,
    /// Path and query to ask for.
    pub uri: Uri,
    /// What the configuration says of storing.
    pub policy: Arc<StoragePolicy>,
    /// Whether the durable tier may keep it.
    pub durability: Durability,
    /// Whether it may wait for another request's answer.
    pub collapse: bool,
    /// What is asked of the origin where the client wants a range.
    pub ranges: Ranges,
    /// Whether the durable tier was asked already.
    pub asked_durable: bool,
    /// What it can be purged by.
    pub tags: Vec<String>,
    /// Why the origin is asked, as far as is known before the durable tier is.
    pub fwd: Fwd,
    /// A stored response to validate.
    pub validate: Option<Arc<StoredResponse>>,
    /// A stored part of what is asked for, to be completed or added to.
    pub part: Option<Arc<StoredResponse>>,
    /// A stored response that is no use but will be history once another is stored.
    pub replaced: Option<Replaced>,
    /// The stored response to GET that the answer to this HEAD speaks of.
    pub head_of: Option<Arc<StoredResponse>>,
    /// What is known of the key's variants.
    pub known: Option<Known>,
    /// Where interim responses go: to the client that led.
    pub interim: Option<Interim>,
    /// Whether anybody waits for it.
    pub errand: Errand,
    /// The tier that what is to be validated came from.
    pub tier: Tier,
    /// What was known of purges when the fetch began, in terms that hold in other processes.
    pub seen: Arc<Seen>,
}

impl Plan {
    /// The client's fields as far as the cache goes: what selects a variant and decides on storing.
    pub fn client_fields(&self) -> &HeaderMap {
        self.as_asked.as_deref().unwrap_or(self.request.headers())
    }

    /// Asks for the whole although the client wants a range of it.
    pub fn ask_for_the_whole(&mut self) {
        let mut fields = self.request.headers().clone();
        fields.remove(header::RANGE);
        fields.remove(header::IF_RANGE);
        self.as_asked = Some(Box::new(fields));
    }

    /// Whether the plan asks for the whole of its target.
    fn is_for_the_whole(&self) -> bool {
        self.method == Method::GET && !self.client_fields().contains_key(header::RANGE)
    }

    /// Whether the whole is worth fetching for a range of it: because a rule says so, or because it is
    /// known that it fits, and this is not the first range that is asked for.
    pub fn prefers_whole(&self, limit: u64) -> bool {
        let is_range = self.method == Method::GET && self.client_fields().contains_key(header::RANGE);
        let fits = |part: &Arc<StoredResponse>| part.head.parts().is_some_and(|parts| parts.complete_len() <= limit);
        is_range
            && match self.ranges {
                Ranges::Whole => true,
                Ranges::Auto => self.part.as_ref().is_some_and(fits),
                Ranges::Forward => false,
            }
    }

    /// What a response to the plan can be purged by, besides its URL: what its rule and its own fields say,
    /// and the groups that it is in, both by their names and as groups of their origin.
    pub fn tags_of(&self, response: &HeaderMap) -> Result<Vec<String>, TooManyTags> {
        let mut tags = self.tags.clone();
        let groups = groups::listed(response, &groups::CACHE_GROUPS);
        if let Some(parts) = self.exact.parts() {
            tags.extend(groups.iter().map(|group| groups::tag(parts.prefix, parts.scheme, parts.authority, group)));
        }
        tags.extend(groups);
        self.policy.tag_fields.add(response, &mut tags)?;
        Ok(tags)
    }

    /// The stored response that a new one takes the place of, as far as is known.
    fn replaced(&self) -> Option<Replaced> {
        self.validate.as_ref().map(Replaced::response).or_else(|| self.replaced.clone())
    }

    /// Where what the plan brings is put.
    fn place(&self) -> Place {
        Place {
            exact: self.exact.clone(),
            durability: self.durability,
            known: self.known.clone(),
            replaced: self.replaced(),
        }
    }

    /// Whether a stored response, whose body is `len` bytes, has what the plan asks for.
    fn can_use(&self, head: &StoredHead, len: u64) -> bool {
        head.can_answer(&self.method, self.client_fields(), len)
    }
}

/// Where a response is put.
#[derive(Debug)]
struct Place {
    /// The key of its URI to the byte.
    exact: CacheKey,
    durability: Durability,
    /// What is known of the key's variants.
    known: Option<Known>,
    /// What it takes the place of, as far as is known.
    replaced: Option<Replaced>,
}

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
    Apart(Arc<StoredHead>, Box<Apart>),
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
    /// The keys that the durable tier was lately asked for a part of.
    pub ranged: Recent<()>,
    /// When what the durable tier has for some keys was last validated in the background.
    pub validated: Recent<Timestamp>,
    /// What is known of the queries of some paths.
    pub searches: Searches,
    /// The fetches under way that can be shared.
    pub flights: Arc<Flights>,
    /// One for each fetch that may go on although nobody waits for it.
    pub unattended: Semaphore,
    /// The memory that fetches under way may take.
    pub budget: Arc<Budget>,
    /// `[memory]`
    pub memory: memory::Config,
    /// Whether the origin is told that `Surrogate-Control` is listened to.
    pub surrogate_control: bool,
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
    fn begin(&self, plan: &mut Plan) -> u64 {
        let position = self.store.position();
        plan.seen = self.store.purges().seen();
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

    /// Why nobody should wait for the response to a request for `key` with these fields, if one lately was
    /// not to be shared.
    pub fn pass(&self, key: &CacheKey, request: &HeaderMap, now: Timestamp) -> Option<Pass> {
        let own = || {
            let has_credentials = request.contains_key(header::AUTHORIZATION);
            self.passes.get(key.hash() ^ WITH_CREDENTIALS, now).filter(|_| has_credentials)
        };
        self.passes.get(key.hash(), now).or_else(own)
    }

    /// Whether a response for a `key` that is not worth waiting for may not be stored either, because of
    /// what it says. That is remembered, then.
    pub fn is_still_not_storable(&self, key: &CacheKey, exchange: &Exchange<'_>, policy: &StoragePolicy) -> bool {
        let is = !keep::is_partial(exchange.status)
            && storable(exchange, policy).is_err_and(NotStorable::is_about_the_response);
        if is {
            self.passes.remember(key.hash(), Pass::NotStorable, exchange.response_time);
        }
        is
    }

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
    async fn consult_durable(
        self: &Arc<Self>,
        plan: &mut Plan,
        position: u64,
        landing: Option<Landing>,
        opening: Opening,
    ) -> Result<(Fetched, Option<Landing>), Option<Landing>> {
        let is_known = plan.known.is_some();
        let (policy, known) = (Arc::clone(&plan.policy), plan.known.as_ref().map(|known| Arc::clone(&known.record)));
        match self.store.lookup_durable(&plan.exact, plan.client_fields(), policy, known, opening).await {
            Found::Response(found) if found.head.parts().is_some() => {
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
            Found::Response(found) if self.reuse(plan, &found.head).is_some() => {
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
            Found::Response(found) => self.validate_durable(plan, *found, position).await,
            Found::OtherVariants(record) => {
                let record = Arc::new(record);
                // One that came from memory may have been removed there since.
                if !is_known {
                    self.store.adopt((*record).clone(), position);
                }
                plan.known = Some(Known { record, position });
                plan.fwd = Fwd::VaryMiss;
            }
            Found::Nothing => {}
        }
        Err(landing)
    }

    /// Validates what was served stale: once a key at a time, and nobody waits.
    fn validate_behind(self: &Arc<Self>, plan: &Plan, stored: Arc<StoredResponse>, position: u64) {
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
            FoundBody::Apart(apart) => Fetched::Apart(Arc::new(head), Box::new(apart)),
            FoundBody::Streamed(first, reader) => {
                let writer = self.start_fill(Some(first.len() as u64 + reader.left()));
                let fill = Arc::clone(writer.fill());
                let for_leader = ForLeader { cookies: Vec::new(), reader: fill.reader() };
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
            FoundBody::Apart(apart) if apart.len() <= self.memory.max_object_size => {
                match apart.read(vec![Wanted::Range(0, apart.len())]).await {
                    Some(pieces) => self.collect(pieces, apart.len()).await,
                    None => None,
                }
            }
            // It would not fit.
            FoundBody::Apart(_) => None,
            FoundBody::Streamed(first, reader) if first.len() as u64 + reader.left() > self.memory.max_object_size => {
                None
            }
            FoundBody::Streamed(first, reader) => {
                let mut whole = None;
                let keep = |body: Body| whole.insert(body).clone();
                match fill_from_durable(self.start_fill(None), first, reader, keep).await {
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
            plan.known = Some(Known { record: Arc::new(record.clone()), position });
            self.store.adopt(record, position);
        }
        body.map(|body| Arc::new(StoredResponse::new(head, body)))
    }

    /// Asks the origin: with the validators of what is to be validated, for what is missing of what
    /// is stored in part, or for the whole.
    async fn from_origin(
        self: &Arc<Self>,
        plan: &Plan,
        position: u64,
        landing: Option<Landing>,
    ) -> (Fetched, Option<Landing>) {
        if plan.validate.is_some() {
            return self.ask(plan, Wish::Validation, position, landing).await;
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
        self.send(&OriginRequest { method, uri, fields: &fields, interim, errand }, RequestBody::Empty).await
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
        Onward { peer, scheme, authority, host, surrogate_control: self.surrogate_control }
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
            stored.head.marks.note_failure(failure, self.clock.now());
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

    /// How the origin failed lately to validate a stored response, if it did: it is not waited for
    /// again so soon.
    pub fn known_failure(&self, stored: &StoredHead) -> Option<Failure> {
        if self.upstream.breaker().is_open() {
            return Some(Failure::Unreachable);
        }
        let config = self.upstream.config();
        let within = self.upstream.patience() + config.breaker_pause;
        stored.marks.failure(millis(within), self.clock.now())
    }

    /// Whether it is time to validate a stored response in the background (again).
    pub fn may_validate(&self, stored: &StoredHead) -> bool {
        let pause = millis(self.upstream.config().breaker_pause);
        stored.marks.failure(pause.saturating_sub(1), self.clock.now()).is_none()
            && self.upstream.breaker().is_probe_due()
    }

    /// All that comes through a channel, if it is `len` bytes and there is room.
    async fn collect(&self, mut pieces: mpsc::Receiver<Result<Bytes, BackendError>>, len: u64) -> Option<Body> {
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

    /// A fill for a body of `len` bytes, if that is known: what can't be kept whole is not begun to be.
    fn start_fill(&self, len: Option<u64>) -> FillWriter {
        let limit =
            if len.is_some_and(|len| len > self.memory.max_object_size) { 0 } else { self.memory.max_object_size };
        Fill::start(usize::try_from(limit).unwrap_or(usize::MAX), Arc::clone(&self.budget))
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn shared(stored: &Arc<StoredResponse>, source: Source) -> Fetched {
    let shared = Shared { response: SharedResponse::Stored(Arc::clone(stored)), source };
    Fetched::Shared(Arc::new(shared), ForLeader::default())
}

/// A part although the whole was asked for: it is the origin's word to this client, and no more.
fn unasked_part(plan: &Plan, answer: Response<UpstreamBody>) -> Fetched {
    let response = answer.map(ResponseBody::upstream);
    Fetched::Passed { response, why: NotStorable::Part, fwd: plan.fwd, fwd_status: None }
}

/// Takes the fields of the connection out of a response, and dates it if its origin did not
/// (RFC 9110 §6.6.1).
pub fn clean_response(response: &mut HeaderMap, clock: &Clock) {
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
