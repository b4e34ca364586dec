//! The durable tier: what survives a restart and the loss of the machine.
//!
//! * It never fails or slows a request that the origin can serve: a lookup has a deadline, an
//!   error is counted and is a miss, and writes happen behind, in a queue bounded in objects and
//!   bytes.
//! * Operations on one key happen in the order they were asked for. While one is outstanding the
//!   queue answers for the key, so a lookup never finds what is about to be replaced or deleted.
//! * An object is believed only when its key, version and checksums hold. Anything else is a miss.
//! * Every name lies under `<url prefix>/<key prefix>/larder-1/`, and only names made here are ever
//!   deleted.

mod body;
mod drain;
mod evict;
mod examine;
mod flow;
mod lookup;
mod upload;
mod write;

pub(crate) use self::body::{Apart, BodyReader, Wanted};
pub(crate) use self::drain::report_drain;
pub(crate) use self::examine::Examined;
use self::flow::Flow;
pub(crate) use self::lookup::{Found, FoundBody, FoundResponse, Opening};

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::{info, warn};

use super::admission::{Admission, Verdict};
use super::backend::{Backend, BackendError, CheckFailure, PROBE, Trouble};
use super::file::FileStore;
use super::index::Index;
use super::journal::{Journal, Timing, Urgency};
use super::memory::Memory;
use super::names::Names;
use super::purge::Purges;
use super::queue::{Op, Put, Queue};
use super::s3::{S3Config, S3Store};
use super::seldom::Seldom;
use crate::base::{Breaker, Clock, DurableOp, DurableOutcome, Lost, Metrics, Prices, Saved, Stopwatch};
use crate::entry::encoding::{DurableBody, Object, decode, key_of};
use crate::entry::{BodyObject, StoredApart, StoredResponse, Variant, VaryRecord};
use crate::rfc9111::freshness::LifetimePolicy;
use crate::rfc9111::key::CacheKey;

/// `[durable]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where objects are kept.
    pub location: Location,
    /// Whether Larder refuses to start without the tier.
    pub required: bool,
    /// The bytes that a directory may take; 0: any number. A bucket is not held to it.
    pub capacity: u64,
    /// How long a lookup may take before the origin is asked instead.
    pub lookup_timeout: Duration,
    /// Responses fresh for less than this stay in memory only.
    pub min_lifetime: Duration,
    /// How long past its freshness an object may still serve validation and stale-if-error.
    pub retain: Duration,
    /// Larger bodies are objects of their own, read as a stream.
    pub inline_size: u64,
    /// A larger response is not kept.
    pub max_object_size: u64,
    /// How many bodies too large for memory are written at once.
    pub uploads: usize,
    /// Bytes a second below which the writing of such a body may not hold its clients.
    pub min_upload_rate: u64,
    /// The most objects that wait to be written.
    pub queue_objects: usize,
    /// The most body bytes that wait to be written.
    pub queue_bytes: u64,
    /// How many writes are under way at once.
    pub writers: usize,
    /// How long the queue may take to empty when Larder stops.
    pub drain_timeout: Duration,
    /// Between two looks for what other processes purged and stored.
    pub poll_interval: Duration,
    /// How long a newly stored key may wait to be announced to them.
    pub announce_interval: Duration,
    /// So many failed or slow requests on end, and nothing is looked for until one succeeds; 0: never.
    pub breaker_failures: u32,
    /// Between two attempts to find the tier up again.
    pub breaker_pause: Duration,
    /// On which use a response is written.
    pub after_hits: u8,
    /// How many write requests a month are let through for responses; 0: any number.
    pub monthly_writes: u64,
    /// What requests cost.
    pub prices: Prices,
}

/// `durable.url`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// There is no durable tier.
    Off,
    /// A directory.
    File(PathBuf),
    /// A bucket, and a prefix of names in it.
    S3 {
        /// The bucket and how to reach it.
        config: S3Config,
        /// Without slashes at the ends; empty: none.
        prefix: String,
    },
}

impl Default for Config {
    fn default() -> Self {
        Self {
            location: Location::File("./larder-cache".into()),
            required: true,
            capacity: 10 << 30,
            lookup_timeout: Duration::from_millis(500),
            min_lifetime: Duration::from_secs(30),
            retain: Duration::from_secs(7 * 24 * 3600),
            inline_size: 1 << 20,
            max_object_size: 16 << 30,
            uploads: 2,
            min_upload_rate: 8 << 20,
            queue_objects: 65_536,
            queue_bytes: 64 << 20,
            writers: 32,
            drain_timeout: Duration::from_secs(5),
            poll_interval: Duration::from_secs(2),
            announce_interval: Duration::from_secs(5),
            breaker_failures: 5,
            breaker_pause: Duration::from_secs(2),
            after_hits: 1,
            monthly_writes: 0,
            prices: Prices::default(),
        }
    }
}

/// What may be added to a body to make an inline object: its head, at most.
const HEAD_LIMIT: u64 = 1 << 20;

/// No object that leads to a response is larger, whatever the configuration was when it was written.
pub(crate) const MAX_HEAD: u64 = (64 << 20) + HEAD_LIMIT;

/// Deletions are small and must not be lost easily: the queue holds this many times more of them.
const DELETES_PER_PUT: u64 = 16;

/// So many deletions that failed are tried again at once.
const DELETING: usize = 4;

/// So many objects that can't be read are said once each.
const MAX_SAID: usize = 4096;

/// How long the tier may take to answer when Larder starts.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest pause between two attempts to write or delete an object.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// The durable tier.
#[derive(Debug)]
pub struct Durable {
    inner: Arc<Inner>,
    runtime: Handle,
    lookup_timeout: Duration,
}

#[derive(Debug)]
struct Inner {
    /// The tier's own: what works behind runs there, whoever has it begun.
    runtime: Handle,
    backend: Arc<Backend>,
    config: Config,
    names: Names,
    /// The object that is written to find out whether that is allowed.
    probe: String,
    purges: Arc<Purges>,
    memory: Arc<Memory>,
    metrics: Arc<Metrics>,
    writers: Vec<mpsc::UnboundedSender<Op>>,
    queue: Queue,
    index: Arc<Index>,
    journal: Arc<Journal>,
    breaker: Arc<Breaker>,
    /// Whether the breaker is closed, for those who wait until it is.
    is_up: watch::Sender<bool>,
    flow: Flow,
    /// Held while a deletion is tried again: a few at once are.
    deleting: Semaphore,
    admission: Admission,
    said: Said,
    /// Guarded by its lock: the keys that a large body is being written for.
    uploading: Mutex<HashSet<u128>>,
}

/// Remembers which messages were logged recently.
#[derive(Debug, Default)]
struct Said {
    /// By operation and kind of trouble.
    errors: [[Seldom; Trouble::COUNT]; DurableOp::COUNT],
    lost: Seldom,
    stops: Seldom,
    downs: Seldom,
    full: Seldom,
    evicting: Seldom,
    /// Guarded by its lock: the names of objects that were said not to be readable.
    unreadable: Mutex<HashSet<String>>,
}

/// The place that the configuration names, and the names in it. `None` when there is none.
pub(crate) async fn place(
    config: &Config,
    key_prefix: &str,
    metrics: &Arc<Metrics>,
    clock: &Clock,
) -> Option<(Backend, Names)> {
    match &config.location {
        Location::Off => None,
        Location::File(root) => {
            let names = Names::new("", key_prefix);
            let store = FileStore::new(root.clone(), names.root(), config.capacity);
            Some((Backend::File(store), names))
        }
        Location::S3 { config, prefix } => {
            let store = S3Store::connect(config.clone(), Arc::clone(metrics), clock.clone()).await;
            Some((Backend::S3(store), Names::new(prefix, key_prefix)))
        }
    }
}

/// The separate body that an object leads to.
pub(crate) fn body_of(object: &Bytes) -> Option<u128> {
    let key = key_of(object).ok()?;
    match decode(object, &key, &LifetimePolicy::default()).ok()? {
        Object::Response { head, body: DurableBody::Separate { .. } } => Some(head.body_id()),
        Object::Response { .. } | Object::Vary(_) => None,
    }
}

impl Durable {
    /// Connects to the place that the configuration names, checks it, reads the journal, and starts what
    /// works behind on the current runtime. `None` when it is off.
    pub async fn open(
        config: &Config,
        key_prefix: &str,
        purges: Arc<Purges>,
        memory: Arc<Memory>,
        metrics: Arc<Metrics>,
    ) -> Result<Option<Self>, CheckFailure> {
        let place = place(config, key_prefix, &metrics, purges.clock()).await;
        let Some((backend, names)) = place else { return Ok(None) };
        let this = Self::over(Arc::new(backend), config, names, purges, memory, metrics);
        let inner = &this.inner;
        let watch = Stopwatch::start();
        let checked = tokio::time::timeout(CHECK_TIMEOUT, inner.backend.check(inner.names.root(), &inner.probe));
        let checked = checked.await.unwrap_or_else(|_| {
            Err(CheckFailure(format!("the durable tier does not answer within {} s", CHECK_TIMEOUT.as_secs())))
        });
        match checked {
            Ok(()) => {
                // Nothing of the tier is served before it is known what was purged.
                let left = CHECK_TIMEOUT.saturating_sub(watch.elapsed());
                match tokio::time::timeout(left, inner.journal.load()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => warn!("the journal is not read yet, nothing durable is served: {error}"),
                    Err(_) => warn!("the journal is long: nothing durable is served until it is read"),
                }
            }
            Err(failure) if config.required => return Err(failure),
            // In service it fails open: the next lookup may find it there, and what is to be written waits.
            Err(failure) => {
                warn!("the durable tier can't be used, going on without it: {failure}");
                inner.stop_writing(&failure);
            }
        }
        this.runtime.spawn(evict::keep_within(Arc::clone(inner)));
        this.runtime.spawn(Arc::clone(&inner.journal).follow());
        this.runtime.spawn(Arc::clone(&inner.journal).tend());
        this.runtime.spawn(say_prices(Arc::clone(&inner.metrics)));
        Ok(Some(this))
    }

    /// The tier over a place, with its writers started on the current runtime. The journal is not read.
    pub(super) fn over(
        backend: Arc<Backend>,
        config: &Config,
        names: Names,
        purges: Arc<Purges>,
        memory: Arc<Memory>,
        metrics: Arc<Metrics>,
    ) -> Self {
        metrics.set_prices(config.prices);
        let runtime = Handle::current();
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..config.writers.max(1)).map(|_| mpsc::unbounded_channel()).unzip();
        let index = Arc::new(Index::default());
        let journal = Arc::new(Journal::new(
            Arc::clone(&backend),
            names.clone(),
            Arc::clone(&purges),
            Arc::clone(&index),
            Arc::clone(&memory),
            Arc::clone(&metrics),
            Timing { poll: config.poll_interval, announce: config.announce_interval },
        ));
        let inner = Arc::new(Inner {
            runtime: runtime.clone(),
            backend,
            config: config.clone(),
            probe: names.probe(),
            names,
            purges,
            memory,
            metrics,
            writers: senders,
            queue: Queue::default(),
            index,
            journal,
            breaker: Breaker::new(config.breaker_failures, config.breaker_pause),
            is_up: watch::Sender::new(true),
            flow: Flow::new(config.breaker_failures),
            deleting: Semaphore::new(DELETING),
            admission: Admission::new(config.after_hits, config.monthly_writes),
            said: Said::default(),
            uploading: Mutex::default(),
        });
        for receiver in receivers {
            runtime.spawn(write::write_behind(Arc::clone(&inner), receiver));
        }
        runtime.spawn(Arc::clone(&inner.journal).write_behind());
        Self { inner, runtime, lookup_timeout: config.lookup_timeout }
    }

    /// The record of a key's variants that waits to be written, and its purge position.
    pub fn waiting_record(&self, key: &CacheKey) -> Option<(Arc<VaryRecord>, u64)> {
        self.inner.queue.record(key)
    }

    /// Counts a use of something that is not in the tier and may be, and says whether it is worth the `requests`
    /// that it takes to write it.
    pub fn admit(&self, hash: u128, requests: u32) -> Verdict {
        let verdict = self.inner.admission.admit(hash, requests);
        match verdict {
            Verdict::Admitted => {}
            Verdict::TooFewUses => self.inner.metrics.saved(Saved::AfterHits),
            Verdict::NoBudget => self.inner.metrics.saved(Saved::Budget),
        }
        verdict
    }

    /// Whether a body of `len` bytes is an object of its own.
    pub fn is_separate(&self, len: u64) -> bool {
        len > self.inner.config.inline_size
    }

    /// How many requests it takes to write a response.
    pub fn requests_for(&self, stored: &StoredResponse) -> u32 {
        let has_own_body = self.is_separate(stored.len()) && !stored.head.is_body_written();
        1 + u32::from(has_own_body) + u32::from(stored.head.variant().is_some())
    }

    /// Counts what was not written for a reason that the configuration gives.
    pub fn saved(&self, why: Saved) {
        self.inner.metrics.saved(why);
    }

    /// Whether the queue takes another response of `weight` bytes.
    pub fn has_room(&self, weight: usize) -> bool {
        let config = &self.inner.config;
        let ((objects, bytes), weight) = (self.inner.queue.depth(), weight as u64);
        objects < config.queue_objects as u64 && bytes.saturating_add(weight) <= config.queue_bytes.max(weight)
    }

    /// Has a response written; `false` when the queue is full.
    pub fn put(&self, stored: Arc<StoredResponse>, record: Option<Arc<VaryRecord>>) -> bool {
        let queue = &self.inner.queue;
        if !self.has_room(stored.weight()) {
            self.inner.lost(Lost::QueueFull, &stored.head.key, &"the queue is full");
            return false;
        }
        if queue.outranks(&stored.head, self.inner.purges.time()) {
            return true;
        }
        stored.head.marks.is_durable.store(true, Ordering::Release);
        self.inner.enqueue(Op::Put { stored: Put::Whole(stored), record });
        true
    }

    /// Has the head of a response written whose body is there already. What can't be kept is deleted.
    pub fn put_apart(&self, stored: Arc<StoredApart>, record: Option<Arc<VaryRecord>>) {
        if self.inner.queue.outranks(&stored.head, self.inner.purges.time()) {
            return self.forget_body(stored.head.body_id());
        }
        if !self.has_room(stored.head.weight()) {
            self.inner.lost(Lost::QueueFull, &stored.head.key, &"the queue is full");
            return self.forget_body(stored.head.body_id());
        }
        stored.head.marks.is_durable.store(true, Ordering::Release);
        self.inner.enqueue(Op::Put { stored: Put::Apart(stored), record });
    }

    /// Deletes a body that no head leads to.
    pub fn forget_body(&self, id: u128) {
        let inner = Arc::clone(&self.inner);
        self.runtime.spawn(async move { inner.forget_body(id).await });
    }

    /// Large bodies that are being written now.
    pub fn uploads(&self) -> u64 {
        self.inner.uploading.lock().len() as u64
    }

    /// See [`Config::max_object_size`].
    pub fn max_object_size(&self) -> u64 {
        self.inner.max_object_size()
    }

    /// The bytes that the directory holds, and may hold; 0: any number. A bucket's are not counted.
    pub fn held(&self) -> (u64, u64) {
        match &*self.inner.backend {
            Backend::File(store) => (store.room().bytes(), self.inner.config.capacity),
            Backend::S3(_) => (0, 0),
            #[cfg(test)]
            Backend::Simulated(_) => (0, 0),
        }
    }

    /// See [`Config::min_upload_rate`].
    pub fn min_upload_rate(&self) -> u64 {
        self.inner.config.min_upload_rate
    }

    /// Whether the tier may have something for the key with this hash, or is about to.
    pub fn may_hold(&self, hash: u128) -> bool {
        self.inner.index.may_hold(hash) || self.inner.queue.is_pending(hash)
    }

    /// Has everything kept for `key` deleted. In a directory it is gone when this returns.
    ///
    /// `body` is the object of the body that goes with it, where that is known.
    pub fn delete(&self, key: &CacheKey, body: Option<Arc<BodyObject>>) {
        if !self.may_hold(key.hash()) {
            return;
        }
        if let Backend::File(store) = &*self.inner.backend {
            store.put_out_of_reach(&self.inner.names.primary(key));
        }
        if !self.has_room_to_delete() {
            return;
        }
        self.inner.enqueue(Op::Delete { key: key.clone(), variant: None, body });
    }

    /// Returns whether the queue takes another deletion.
    fn has_room_to_delete(&self) -> bool {
        let inner = &self.inner;
        let has_room = inner.queue.depth().0 < (inner.config.queue_objects as u64).saturating_mul(DELETES_PER_PUT);
        if !has_room {
            inner.metrics.durable(DurableOp::Delete, DurableOutcome::Dropped);
            if let Some(left_out) = inner.said.full.is_due() {
                warn!("the durable queue is full: what was invalidated stays there, and counts as purged{left_out}");
            }
        }
        has_room
    }

    /// Has one variant of `key` deleted, the one with this name.
    pub fn delete_variant(&self, key: &CacheKey, name: u128, variant: &Variant, body: Option<Arc<BodyObject>>) {
        if let Backend::File(store) = &*self.inner.backend {
            store.put_out_of_reach(&self.inner.names.variant(key, name));
        }
        if !self.has_room_to_delete() {
            return;
        }
        self.inner.enqueue(Op::Delete { key: key.clone(), variant: Some((name, variant.clone())), body });
    }

    /// Has purges that were made written to the journal.
    pub fn hurry(&self, urgency: Urgency) {
        self.inner.journal.hurry(urgency);
    }

    /// Waits until the purge with this number is in the journal, at most `within`.
    pub async fn recorded(&self, arrival: u64, within: Duration) -> Result<(), BackendError> {
        self.inner.journal.wait_for(arrival, within).await
    }

    /// Whether a purge is written as fast as it is told.
    pub fn is_near(&self) -> bool {
        self.inner.backend.is_near()
    }

    /// What tells other processes of it.
    #[cfg(test)]
    pub(super) fn journal(&self) -> &Arc<Journal> {
        &self.inner.journal
    }

    /// Has so many threads look for objects, each of which calls [`crate::store::s3::look_from`].
    pub fn prepare(&self, threads: usize) {
        self.inner.backend.prepare(threads);
    }

    /// What is known of what the tier holds.
    pub fn index(&self) -> &Index {
        &self.inner.index
    }

    /// Returns whether the tier is known to be down, or not to take writes.
    pub fn is_down(&self) -> bool {
        self.inner.breaker.is_open() || !self.inner.flow.is_flowing()
    }

    /// See [`Config::poll_interval`].
    pub fn poll_interval(&self) -> Duration {
        self.inner.config.poll_interval
    }

    /// Objects and bytes that wait to be written or deleted.
    pub fn queue_depth(&self) -> (u64, u64) {
        let (objects, bytes) = self.inner.queue.depth();
        (objects + self.inner.journal.outstanding(), bytes)
    }

    /// How long [`Durable::drain`] may take when Larder stops.
    pub fn drain_timeout(&self) -> Duration {
        self.inner.config.drain_timeout
    }

    /// See [`Config::min_lifetime`], in milliseconds.
    pub fn min_lifetime_millis(&self) -> i64 {
        millis(self.inner.config.min_lifetime)
    }

    /// See [`Config::retain`], in milliseconds.
    pub fn retain_millis(&self) -> i64 {
        millis(self.inner.config.retain)
    }
}

/// A configured duration as the rules count.
fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl Inner {
    /// Waits while the tier is known to be down, or not to take writes.
    async fn takes_writes(&self) {
        let is_up = async {
            let _ = self.is_up.subscribe().wait_for(|is_up| *is_up).await;
        };
        tokio::select! {
            () = is_up => {}
            // There is time to try once more.
            () = self.flow.ends() => {}
        }
        self.flow.wait().await;
    }

    /// See [`Config::max_object_size`]. One that would take the place of half of all is not kept either.
    fn max_object_size(&self) -> u64 {
        match &*self.backend {
            Backend::File(store) => self.config.max_object_size.min(store.room().largest()),
            Backend::S3(_) => self.config.max_object_size,
            #[cfg(test)]
            Backend::Simulated(_) => self.config.max_object_size,
        }
    }

    /// A request failed, slowly or at once. After so many on end the tier counts as down, and is tried
    /// until it answers.
    fn failed(self: &Arc<Self>, was_slow: bool, why: &dyn std::fmt::Display) {
        if !self.breaker.failed(was_slow) {
            return;
        }
        self.metrics.durable_downs.add_one();
        self.is_up.send_replace(false);
        let is_said = self.said.downs.is_due();
        if let Some(left_out) = is_said {
            warn!("the durable tier counts as down until it answers: {why}{left_out}");
        }
        let this = Arc::clone(self);
        self.runtime.spawn(async move {
            loop {
                this.flow.pause(this.config.breaker_pause.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
                let look = || this.backend.get(&this.probe, HEAD_LIMIT);
                let answer = tokio::time::timeout(this.config.lookup_timeout, async {
                    match look().await {
                        // A caller without the right to list is refused what is not there as well.
                        Err(error) if error.trouble == Trouble::Refused => {
                            this.backend.put(&this.probe, &[Bytes::from_static(PROBE)]).await?;
                            look().await
                        }
                        answer => answer,
                    }
                });
                if matches!(answer.await, Ok(Ok(_))) {
                    this.breaker.succeeded();
                    this.is_up.send_replace(true);
                    if is_said.is_some() {
                        info!("the durable tier answers again");
                    }
                    return;
                }
            }
        });
    }

    fn unreadable(&self, name: &str, why: &str) {
        self.metrics.durable(DurableOp::Get, DurableOutcome::Unreadable);
        let mut said = self.said.unreadable.lock();
        if said.len() >= MAX_SAID {
            said.clear();
        }
        if !said.insert(name.to_owned()) {
            return;
        }
        drop(said);
        warn!(object = name, why, "a durable object is not readable, and counts as not there");
    }

    fn note(&self, op: DurableOp, outcome: &Result<(), BackendError>) {
        match outcome {
            Ok(()) => self.metrics.durable(op, DurableOutcome::Ok),
            Err(error) => self.note_error(op, error),
        }
    }

    fn note_error(&self, op: DurableOp, error: &BackendError) {
        self.metrics.durable(op, DurableOutcome::Error);
        self.say_error(op, error);
    }

    /// Says what failed, once a minute for each operation and kind of trouble.
    fn say_error(&self, op: DurableOp, error: &BackendError) {
        if let Some(left_out) = self.said.errors[op as usize][error.trouble as usize].is_due() {
            warn!(op = ?op, "the durable tier failed: {error}{left_out}");
        }
    }

    /// A response that was to be written will not be.
    fn lost(&self, lost: Lost, key: &CacheKey, why: &dyn std::fmt::Display) {
        self.metrics.durable(DurableOp::Put, DurableOutcome::Dropped);
        self.metrics.lost(lost);
        if let Some(left_out) = self.said.lost.is_due() {
            let url = key.parts().map_or_else(String::new, |parts| format!("{}{}", parts.authority, parts.path));
            warn!(url, "a response is not written to the durable tier: {why}{left_out}");
        }
    }
}

/// Says every hour what the service was asked for, and what that costs.
async fn say_prices(metrics: Arc<Metrics>) {
    loop {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        if let Some(bill) = metrics.bill() {
            info!("the durable tier so far: {bill}");
        }
    }
}
