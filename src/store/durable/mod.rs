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
mod examine;
mod lookup;
mod upload;
mod write;

pub use self::body::{Apart, BodyReader, Wanted};
pub use self::examine::Examined;
pub use self::lookup::{Found, FoundBody, FoundResponse, Opening};
pub use self::upload::Leave;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::admission::{Admission, Verdict};
use super::backend::{Backend, BackendError, CheckFailure};
use super::file::FileStore;
use super::index::Index;
use super::journal::{Journal, Timing, Urgency};
use super::memory::Memory;
use super::names::Names;
use super::purge::Purges;
use super::queue::{Op, Put, Queue};
use super::s3::{S3Config, S3Store};
use crate::breaker::Breaker;
use crate::clock::{Clock, Stopwatch};
use crate::rfc9111::key::CacheKey;
use crate::stored::{BodyObject, StoredApart, StoredResponse, Variant, VaryRecord};
use crate::telemetry::{DurableOp, DurableOutcome, Metrics, Prices, Saved};

/// `[durable]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where objects are kept.
    pub location: Location,
    /// Whether Larder refuses to start without the tier.
    pub required: bool,
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
pub const MAX_HEAD: u64 = (64 << 20) + HEAD_LIMIT;

/// Deletions are small and must not be lost easily: the queue holds this many times more of them.
const DELETES_PER_PUT: u64 = 16;

/// So many objects that can't be read are said once each.
const MAX_SAID: usize = 4096;

/// How long the tier may take to answer when Larder starts.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest pause between two attempts to delete an object.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// How often an operation is tried before it is given up; the S3 client retries within each.
const ATTEMPTS: u32 = 3;

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
    purges: Arc<Purges>,
    metrics: Arc<Metrics>,
    writers: Vec<mpsc::UnboundedSender<Op>>,
    queue: Queue,
    index: Arc<Index>,
    journal: Arc<Journal>,
    breaker: Arc<Breaker>,
    /// Whether the breaker is closed, for those who wait until it is.
    is_up: watch::Sender<bool>,
    admission: Admission,
    /// Guarded by its lock: the names of objects that were said not to be readable.
    said: Mutex<HashSet<String>>,
    /// Guarded by its lock: the keys that a large body is being written for.
    uploading: Mutex<HashSet<u128>>,
}

/// The place that the configuration names, and the names in it. `None` when there is none.
pub async fn place(
    location: &Location,
    key_prefix: &str,
    metrics: &Arc<Metrics>,
    clock: &Clock,
) -> Option<(Backend, Names)> {
    let (backend, url_prefix) = match location {
        Location::Off => return None,
        Location::File(root) => (Backend::File(FileStore::new(root.clone())), ""),
        Location::S3 { config, prefix } => {
            let store = S3Store::connect(config.clone(), Arc::clone(metrics), clock.clone()).await;
            (Backend::S3(store), &prefix[..])
        }
    };
    Some((backend, Names::new(url_prefix, key_prefix)))
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
        let place = place(&config.location, key_prefix, &metrics, purges.clock()).await;
        let Some((backend, names)) = place else { return Ok(None) };
        let this = Self::over(Arc::new(backend), config, names, purges, memory, metrics);
        let inner = &this.inner;
        let watch = Stopwatch::start();
        let checked = tokio::time::timeout(CHECK_TIMEOUT, inner.backend.check()).await.unwrap_or_else(|_| {
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
            // In service it fails open; the next lookup may find it there.
            Err(failure) => warn!("the durable tier does not answer, going on without it: {failure}"),
        }
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
            memory,
            Arc::clone(&metrics),
            Timing { poll: config.poll_interval, announce: config.announce_interval },
        ));
        let inner = Arc::new(Inner {
            runtime: runtime.clone(),
            backend,
            config: config.clone(),
            names,
            purges,
            metrics,
            writers: senders,
            queue: Queue::default(),
            index,
            journal,
            breaker: Breaker::new(config.breaker_failures, config.breaker_pause),
            is_up: watch::Sender::new(true),
            admission: Admission::new(config.after_hits, config.monthly_writes),
            said: Mutex::default(),
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
            self.inner.metrics.durable(DurableOp::Put, DurableOutcome::Dropped);
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
        self.inner.config.max_object_size
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
        if self.inner.queue.depth().0 >= (self.inner.config.queue_objects as u64).saturating_mul(DELETES_PER_PUT) {
            self.inner.metrics.durable(DurableOp::Delete, DurableOutcome::Dropped);
            warn!("the durable queue is full: what was invalidated stays there, and counts as purged");
            return;
        }
        self.inner.enqueue(Op::Delete { key: key.clone(), variant: None, body });
    }

    /// Has one variant of `key` deleted, the one with this name.
    pub fn delete_variant(&self, key: &CacheKey, name: u128, variant: &Variant, body: Option<Arc<BodyObject>>) {
        if let Backend::File(store) = &*self.inner.backend {
            store.put_out_of_reach(&self.inner.names.variant(key, name));
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

    /// Whether the tier is known to be down.
    pub fn is_down(&self) -> bool {
        self.inner.breaker.is_open()
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

    /// Waits until nothing is outstanding, at most `deadline`; how many operations were left.
    pub async fn drain(&self, deadline: Duration) -> u64 {
        let emptied = tokio::time::timeout(deadline, async {
            self.inner.queue.empty().await;
            while let Err(error) = self.inner.journal.write().await {
                warn!("the journal can't be written: {error}");
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        })
        .await;
        let undeleted = self.inner.queue.retrying();
        match emptied {
            Ok(()) => undeleted,
            Err(_) => self.queue_depth().0 + self.inner.queue.others() + undeleted,
        }
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
    /// Waits while the tier is known to be down.
    async fn is_up(&self) {
        let _ = self.is_up.subscribe().wait_for(|is_up| *is_up).await;
    }

    /// A request failed, slowly or at once. After so many on end the tier counts as down, and is tried
    /// until it answers.
    fn failed(self: &Arc<Self>, was_slow: bool, why: &dyn std::fmt::Display) {
        if !self.breaker.failed(was_slow) {
            return;
        }
        self.metrics.durable_downs.add_one();
        self.is_up.send_replace(false);
        warn!("the durable tier counts as down until it answers: {why}");
        let this = Arc::clone(self);
        self.runtime.spawn(async move {
            let name = format!("{}probe", this.names.root());
            loop {
                tokio::time::sleep(this.config.breaker_pause.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
                let answer =
                    tokio::time::timeout(this.config.lookup_timeout, this.backend.get(&name, HEAD_LIMIT)).await;
                if matches!(answer, Ok(Ok(_))) {
                    this.breaker.succeeded();
                    this.is_up.send_replace(true);
                    info!("the durable tier answers again");
                    return;
                }
            }
        });
    }

    fn unreadable(&self, name: &str, why: &str) {
        self.metrics.durable(DurableOp::Get, DurableOutcome::Unreadable);
        let mut said = self.said.lock();
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
        warn!(op = ?op, "the durable tier failed: {error}");
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

/// Says at a stop what became of the queue.
pub fn report_drain(left: u64) {
    if left == 0 {
        info!("every stored response is in the durable tier");
    } else {
        warn!("{left} writes to the durable tier were dropped: the deadline had passed");
    }
}
