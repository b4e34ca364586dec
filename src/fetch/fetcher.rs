//! Holds the things that all fetches share: both tiers, the origins, the flights under way, the memories of keys, and the limits.
//!
//! `launch` begins fetches.

use std::sync::Arc;
use std::time::Duration;

use http::Response;
use http::header::{self, HeaderMap};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span};

use super::decide;
use super::flight::Flights;
use super::hit_for_miss::{HitForMiss, Reach, Unshared};
use super::order::Placement;
use super::searches::Searches;
use crate::base::{Clock, Recent};
use crate::entry::{Body, Budget, Fill, FillWriter, StoredHead, StoredResponse, Tried, Unread, Who};
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::reuse::Failure;
use crate::rfc9111::storage::{Exchange, NotStorable, StoragePolicy, speaks_of_the_page, storable};
use crate::rfc9111::timestamp::Timestamp;
use crate::rfc9111::vary::Vary;
use crate::rfc9111::{date, fields};
use crate::store::{Durability, MemoryConfig, Store};
use crate::upstream::forwarding::{Onward, Peer, Signature};
use crate::upstream::{OriginRequest, Peers, RequestBody, Upstream, UpstreamBody, UpstreamError, UpstreamName};

/// An origin, and what it is told about this server.
#[derive(Debug)]
pub(crate) struct Origin {
    /// The name of its upstream in the configuration; that of `[upstream]` is `default`.
    pub(crate) name: String,
    /// The connections to it.
    pub(crate) upstream: Arc<Upstream>,
    /// True if the origin is told that `Surrogate-Control` is obeyed.
    pub(crate) surrogate_control: bool,
    /// The pseudonym in `Via` of forwarded requests.
    pub(crate) signature: Signature,
}

/// The origins, each by the upstream that a request's settings name.
#[derive(Debug)]
pub(crate) struct Origins {
    /// That of `[upstream]`, then those of `[upstreams.NAME]` in their order.
    all: Vec<Origin>,
    signature: Signature,
}

impl Origins {
    /// Makes the origins of `upstreams`, each with its name: that of `[upstream]`, then those of `[upstreams.NAME]` in
    /// their order. All are told the same about this server.
    pub(crate) fn new(upstreams: Vec<(String, Arc<Upstream>)>, surrogate_control: bool) -> Self {
        let signature = Signature::random();
        let origin = |(name, upstream)| Origin { name, upstream, surrogate_control, signature };
        Self { all: upstreams.into_iter().map(origin).collect(), signature }
    }

    /// Returns the origin that `name` names.
    #[inline]
    pub(crate) fn named(&self, name: UpstreamName) -> &Origin {
        &self.all[name.index()]
    }

    /// Returns all origins, that of `[upstream]` first.
    pub(crate) fn all(&self) -> &[Origin] {
        &self.all
    }

    /// Returns whether this process has forwarded a request with these fields before, to whichever origin.
    pub(crate) fn have_seen(&self, fields: &HeaderMap) -> bool {
        self.signature.is_in(fields)
    }
}

impl Origin {
    /// Returns the terms on which a request is forwarded: who sent it, and what the origin is told about it.
    pub(crate) fn onward<'a>(&'a self, peer: &'a Peer, scheme: &'a str, authority: &'a str) -> Onward<'a> {
        let host = self.upstream.config().host.as_deref();
        let (surrogate_control, signature) = (self.surrogate_control, self.signature);
        Onward { peer, scheme, authority, host, surrogate_control, signature }
    }

    /// Sends a request to the origin, and removes hop-by-hop fields from the answer.
    pub(crate) async fn send(
        &self,
        request: &OriginRequest<'_>,
        body: RequestBody,
        clock: &Clock,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let mut answer = self.upstream.send(request, body).await?;
        clean_response(answer.headers_mut(), clock);
        Ok(answer)
    }
}

/// The memories of keys. All are bounded, and no answer is wrong without them.
#[derive(Debug)]
pub(crate) struct Memories {
    /// Requests whose responses could not be shared.
    pub(crate) hit_for_miss: HitForMiss,
    /// The queries of paths whose origin sends No-Vary-Search.
    pub(crate) searches: Searches,
    /// The keys of which the durable tier lately served a range.
    pub(super) ranged: Recent<()>,
    /// The response times of the latest background validations of durable responses, by key.
    pub(super) validated: Recent<Timestamp>,
    /// The stored responses whose last validation was answered with another entity tag.
    mismatched: Recent<()>,
}

impl Memories {
    /// Makes empty memories; hit-for-miss lasts for `pass_memory`.
    pub(crate) fn new(pass_memory: Duration) -> Self {
        Self {
            hit_for_miss: HitForMiss::new(pass_memory),
            searches: Searches::default(),
            ranged: Recent::new(Duration::from_secs(60)),
            validated: Recent::new(Duration::from_secs(60)),
            mismatched: Recent::new(Duration::from_secs(3600)),
        }
    }

    /// Returns whether a recent validation of a stored response was answered with another entity tag.
    pub(super) fn is_mismatched(&self, stored: &StoredResponse, now: Timestamp) -> bool {
        self.mismatched.get(stored.head.uses_hash(), now).is_some()
    }

    /// Remembers that a validation of a stored response was answered with another entity tag.
    pub(super) fn note_mismatched(&self, stored: &StoredResponse, now: Timestamp) {
        self.mismatched.remember(stored.head.uses_hash(), (), now);
    }

    /// Remembers why the response of an exchange is not stored. Requests that ask alike then do not wait for each
    /// other.
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
        if !why.is_about_the_response() || decide::is_partial(exchange.status) {
            return;
        }
        if let Vary::Fields(names) = Vary::of(exchange.response, &policy.nominated) {
            self.hit_for_miss.divide(hash, &names, now);
        }
        let reach = if speaks_of_the_page(exchange.status) { Reach::Selection } else { Reach::SameFields };
        self.hit_for_miss.remember(hash, exchange.request, (Unshared::NotStorable, reach), now);
    }
}

/// Limits for the memory and the tasks of fetches.
#[derive(Debug)]
pub(crate) struct FetchLimits {
    /// The memory shared by fetches under way and by the clients that still read what they brought.
    pub(crate) budget: Arc<Budget>,
    /// The bytes in the budget past which bodies are no longer kept.
    pub(crate) max_buffered: usize,
    /// `[memory]`
    pub(crate) memory: MemoryConfig,
    /// One permit for each fetch that may go on although nobody waits for it.
    pub(crate) unattended: Semaphore,
}

impl FetchLimits {
    /// Makes limits of which nothing is used.
    pub(crate) fn new(budget: Arc<Budget>, max_buffered: usize, memory: MemoryConfig) -> Self {
        Self { budget, max_buffered, memory, unattended: Semaphore::new(MAX_UNATTENDED) }
    }

    /// Returns whether twice `max_buffered` is in use. Past `max_buffered` bodies pass without being kept, which takes
    /// memory as well; past twice of it new fetches are refused.
    pub(crate) fn are_overloaded(&self) -> bool {
        self.budget.held() >= self.max_buffered.saturating_mul(2)
    }

    /// Returns the largest body that is kept whole now: a small one if clients hold `max_buffered` bytes.
    pub(super) fn largest_kept(&self) -> u64 {
        let largest = self.memory.max_object_size;
        if self.budget.held() < self.max_buffered { largest } else { largest.min(KEPT_WHEN_FULL) }
    }

    /// Starts a fill for a body of `len` bytes, if that is known. A body too large to be kept whole passes through a
    /// window.
    pub(super) fn start_fill(&self, len: Option<u64>) -> FillWriter {
        let largest = self.largest_kept();
        let limit = if len.is_some_and(|len| len > largest) { 0 } else { largest };
        let unread = if len.is_some() { Unread::Finite } else { Unread::PerhapsEndless };
        Fill::start(usize::try_from(limit).unwrap_or(usize::MAX), unread, Arc::clone(&self.budget))
    }
}

/// The state that all fetches share.
#[derive(Debug)]
pub struct Fetcher {
    /// Both tiers.
    pub(crate) store: Arc<Store>,
    /// The origins.
    pub(crate) origins: Origins,
    /// The peers that are asked before the origins; `None`: there are none.
    pub(crate) peers: Option<Arc<Peers>>,
    /// The time.
    pub(crate) clock: Clock,
    /// The memories of keys.
    pub(crate) memories: Memories,
    /// The fetches under way that can be shared.
    pub(crate) flights: Arc<Flights>,
    /// Limits for memory and tasks.
    pub(crate) limits: FetchLimits,
    /// True if an expired durable object is deleted when it is read.
    pub(crate) purge_expired_on_read: bool,
    /// The tasks that outlive their clients.
    pub(crate) tasks: TaskTracker,
}

/// The most fetches that go on although nobody waits for them.
pub const MAX_UNATTENDED: usize = 256;

/// Bodies of up to this many bytes are kept however much clients hold.
const KEPT_WHEN_FULL: u64 = 64 << 10;

impl Fetcher {
    /// Spawns a task of a fetch within `span`. Adds nothing to the task where the span is disabled.
    pub(super) fn spawn(&self, span: Span, task: impl Future<Output = ()> + Send + 'static) {
        if span.is_disabled() {
            self.tasks.spawn(task);
        } else {
            self.tasks.spawn(task.instrument(span));
        }
    }

    /// Returns why a response for `key` may not be stored, as far as the response itself decides. Remembers the reason
    /// for hit-for-miss, unless it `is_noted` already.
    pub(crate) fn still_not_storable(
        &self,
        key: &CacheKey,
        exchange: &Exchange<'_>,
        policy: &StoragePolicy,
        is_noted: bool,
    ) -> Option<NotStorable> {
        let why = storable(exchange, policy).err().filter(|why| why.is_about_the_response())?;
        if !is_noted {
            self.memories.note_not_storable(key, exchange, policy, why, self.clock.now());
        }
        Some(why)
    }

    /// Returns how the origin recently failed to validate a stored response for clients like `who`. While that is
    /// known, a stale response is served without waiting for the origin.
    pub(crate) fn known_failure(&self, name: UpstreamName, stored: &StoredHead, who: Who) -> Option<Failure> {
        let upstream = &self.origins.named(name).upstream;
        if upstream.is_down() {
            return Some(Failure::Unreachable);
        }
        let within = upstream.patience() + upstream.config().breaker_pause;
        match stored.marks.tried(millis(within), who, self.clock.now())? {
            Tried::Failed(failure) => Some(failure),
            Tried::NotStored => None,
        }
    }

    /// Returns whether a stored response is due for background validation for clients like `who`: at most one is tried
    /// in a `breaker_pause`, or four for clients that differ, whatever came of the last.
    pub(crate) fn may_validate(&self, name: UpstreamName, stored: &StoredHead, who: Who) -> bool {
        let upstream = &self.origins.named(name).upstream;
        let pause = millis(upstream.config().breaker_pause);
        stored.marks.is_due(pause, who, self.clock.now()) && upstream.is_probe_due()
    }

    /// Sends a request to the origin, and removes hop-by-hop fields from the answer.
    pub(crate) async fn send(
        &self,
        name: UpstreamName,
        request: &OriginRequest<'_>,
        body: RequestBody,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        self.origins.named(name).send(request, body, &self.clock).await
    }

    /// Stores a response. One that is stored for several queries stays in memory: other processes may make another key
    /// of it.
    pub(super) fn insert(&self, place: &Placement, stored: &Arc<StoredResponse>) -> bool {
        let is_exact = stored.head.key == place.exact;
        // A replaced response under another key is removed there.
        if let Some(old) = place.replaced.as_ref().filter(|old| old.key != stored.head.key) {
            self.store.forget_replaced(old);
        }
        if !is_exact && self.store.is_purged(place.exact.hash(), stored.head.position) {
            return false;
        }
        let durability = if is_exact { place.durability } else { Durability::MemoryOnly };
        self.store.insert(stored, durability, place.known.as_ref(), place.replaced.as_ref())
    }

    /// Makes a stored response of a head and a complete body.
    pub(super) fn whole_of(&self, mut head: StoredHead, body: Body) -> StoredResponse {
        self.store.name_body(&mut head, body.len());
        StoredResponse::new(head, body)
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Removes hop-by-hop fields from a response, and adds `Date` if its origin did not (RFC 9110 §6.6.1).
pub(crate) fn clean_response(response: &mut HeaderMap, clock: &Clock) {
    // Looks before it removes: nearly every response has no such field, and a date.
    let (mut is_framed, mut has_hop_by_hop, mut is_dated) = (false, false, false);
    for name in response.keys() {
        is_framed |= *name == header::TRANSFER_ENCODING;
        has_hop_by_hop |= fields::is_hop_by_hop(name);
        is_dated |= *name == header::DATE;
    }
    // RFC 9112 §6.3: Transfer-Encoding overrides Content-Length, so that length was not the body's.
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
