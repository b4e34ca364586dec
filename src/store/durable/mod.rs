//! The durable tier: what survives a restart and the loss of the machine.
//!
//! * It never fails or slows a request that the origin can serve. A look-up has a deadline; an error is a counted miss;
//!   writes happen in the background, in a queue bounded in objects and bytes.
//! * Operations on one key happen in the order in which they were asked for. While one is outstanding, the queue answers
//!   for the key: a look-up never finds what is about to be replaced or deleted.
//! * An object is believed only when its key, version and checksums hold. Any other is a miss.
//! * All names lie below `<url prefix>/<key prefix>/larder-1/`. Only names made here are deleted.
//!
//! `lookup` and `body` read; `enqueue` and `write` write; `outage` and `write_breaker` spare a place that fails.

mod at_hand;
mod body;
mod config;
mod drain;
mod enqueue;
mod examine;
mod lookup;
mod outage;
mod reclaim;
mod report;
mod upload;
mod values;
mod write;
mod write_breaker;

pub(crate) use self::body::{BodyPart, BodyReader, SeparateBody};
use self::config::open_place;
pub(crate) use self::config::{Config, Location};
pub(crate) use self::drain::report_drain;
pub(crate) use self::enqueue::Came;
pub(crate) use self::examine::Examined;
pub(crate) use self::lookup::{DurableLookup, FoundBody, FoundResponse, Opening};
use self::reclaim::Room;
pub(crate) use self::reclaim::{KeptKey, Sweep};
use self::report::DurableLog;
use self::write::Work;
use self::write_breaker::WriteBreaker;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::warn;

use super::admission::{Verdict, WriteAdmission};
use super::error::{StoreError, StoreErrorKind};
use super::index::{Index, PackTotals};
use super::journal::{Journal, Urgency};
use super::memory::Memory;
use super::names::ObjectNames;
use super::place::Place;
use super::purge::Purges;
use super::purpose::asking_for;
use super::queue::WriteQueue;
use crate::base::{Breaker, Metrics, RequestPurpose, Saved, Stopwatch};
use crate::entry::{StoredResponse, VaryRecord};
use crate::rfc9111::key::CacheKey;

/// The most bytes of an inline object besides its body.
const HEAD_LIMIT: u64 = 1 << 20;

/// The longest that the tier takes to answer when Larder starts.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest pause between two attempts to write or delete an object.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// The durable tier.
#[derive(Debug)]
pub struct Durable {
    inner: Arc<Inner>,
    runtime: Handle,
    lookup_timeout: Duration,
    /// See [`Place::is_local`].
    is_local: bool,
}

#[derive(Debug)]
struct Inner {
    /// The tier's own runtime. Background work runs there, also if a worker thread begins it.
    runtime: Handle,
    place: Arc<dyn Place>,
    config: Config,
    names: ObjectNames,
    /// Name of the object that is written to find out whether the place takes writes.
    probe: String,
    purges: Arc<Purges>,
    memory: Arc<Memory>,
    metrics: Arc<Metrics>,
    writer: mpsc::UnboundedSender<Work>,
    queue: WriteQueue,
    index: Arc<Index>,
    journal: Arc<Journal>,
    /// Spares look-ups a place that is down.
    breaker: Arc<Breaker>,
    /// Guarded by its lock: when the place last refused a read.
    refused: Mutex<Option<Stopwatch>>,
    /// False while the breaker is open; the writers wait for it.
    is_up: watch::Sender<bool>,
    /// Spares writes a place that takes none.
    writes: WriteBreaker,
    /// Permits to write packs and separate bodies.
    writing: Semaphore,
    admission: WriteAdmission,
    log: DurableLog,
    /// Guarded by its lock: the keys whose large body is being written.
    uploading: Mutex<HashSet<u128>>,
    room: Room,
}

impl Durable {
    /// Opens the tier: connects to its place, checks that, reads the journal, and starts the background work on the current
    /// runtime. Returns `None` if the tier is off.
    pub async fn open(
        config: &Config,
        key_prefix: &str,
        purges: Arc<Purges>,
        memory: Arc<Memory>,
        metrics: Arc<Metrics>,
    ) -> Result<Option<Self>, StoreError> {
        let opened = open_place(config, key_prefix, &metrics, purges.clock()).await;
        let Some((place, names)) = opened else { return Ok(None) };
        let this = Self::over(place, config, names, purges, memory, metrics);
        let inner = &this.inner;
        let watch = Stopwatch::start();
        match tokio::time::timeout(CHECK_TIMEOUT, inner.place.check(&inner.names)).await.unwrap_or_else(|_| {
            let text = format!("the durable tier does not answer within {} s", CHECK_TIMEOUT.as_secs());
            Err(StoreError::new(StoreErrorKind::Unavailable, text))
        }) {
            Ok(()) => {
                // Until the journal is read, purges are unknown and nothing of the tier is served.
                let left = CHECK_TIMEOUT.saturating_sub(watch.elapsed());
                match tokio::time::timeout(left, asking_for(RequestPurpose::Journal, inner.journal.load())).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => warn!("the journal is not read yet, nothing durable is served: {error}"),
                    Err(_) => warn!(
                        "the journal is not read within {} s: nothing durable is served until it is",
                        CHECK_TIMEOUT.as_secs()
                    ),
                }
            }
            Err(error) if config.required => return Err(error),
            // Starts without it: later look-ups may find the place up, and what is to be written waits.
            Err(error) => {
                warn!("the durable tier can't be used, going on without it: {error}");
                inner.stop_writing(&error);
            }
        }
        this.runtime.spawn(asking_for(RequestPurpose::Reclaiming, Arc::clone(inner).reclaim()));
        this.runtime.spawn(asking_for(RequestPurpose::Journal, Arc::clone(&inner.journal).follow()));
        this.runtime.spawn(asking_for(RequestPurpose::Journal, Arc::clone(&inner.journal).tend()));
        this.runtime.spawn(report::log_prices(Arc::clone(&inner.metrics)));
        Ok(Some(this))
    }

    /// The tier over a place, with its writers started on the current runtime. Does not read the journal.
    pub(super) fn over(
        place: Arc<dyn Place>,
        config: &Config,
        names: ObjectNames,
        purges: Arc<Purges>,
        memory: Arc<Memory>,
        metrics: Arc<Metrics>,
    ) -> Self {
        metrics.set_prices(config.prices);
        let runtime = Handle::current();
        let (writer, work) = mpsc::unbounded_channel();
        let index = Arc::new(Index::default());
        // In a directory a look costs little, and pack_interval bounds how soon others read what is appended.
        let local = if place.is_local() { config.pack_interval() } else { config.poll_interval };
        let poll = config.poll_interval.min(local);
        let journal = Arc::new(Journal::new(
            Arc::clone(&place),
            names.clone(),
            Arc::clone(&purges),
            Arc::clone(&index),
            Arc::clone(&memory),
            Arc::clone(&metrics),
            poll,
        ));
        let inner = Arc::new(Inner {
            runtime: runtime.clone(),
            place,
            config: config.clone(),
            probe: names.probe(),
            names,
            purges,
            memory,
            metrics,
            writer,
            queue: WriteQueue::default(),
            index,
            journal,
            breaker: Breaker::new(config.breaker_failures, config.breaker_pause),
            refused: Mutex::default(),
            is_up: watch::Sender::new(true),
            writes: WriteBreaker::new(config.breaker_failures),
            writing: Semaphore::new(config.writers.max(1)),
            admission: WriteAdmission::new(config.after_hits, config.monthly_writes),
            log: DurableLog::default(),
            uploading: Mutex::default(),
            room: Room::default(),
        });
        runtime.spawn(write::write_behind(Arc::clone(&inner), work));
        runtime.spawn(Arc::clone(&inner.journal).write_behind());
        Self { is_local: inner.place.is_local(), inner, runtime, lookup_timeout: config.lookup_timeout }
    }

    /// Returns the record of a key's variants that waits to be written, and its purge position.
    pub fn waiting_record(&self, key: &CacheKey) -> Option<(Arc<VaryRecord>, u64)> {
        self.inner.queue.record(key)
    }

    /// Counts a use of a response that the tier does not have, and decides whether it is worth the `requests` that writing
    /// it takes.
    pub fn admit(&self, hash: u128, requests: u32) -> Verdict {
        let verdict = self.inner.admission.admit(hash, requests);
        match verdict {
            Verdict::Admitted => {}
            Verdict::TooFewUses => self.inner.metrics.saved(Saved::AfterHits),
            Verdict::NoBudget => self.inner.metrics.saved(Saved::Budget),
        }
        verdict
    }

    /// Returns whether a body of `len` bytes is an object of its own.
    pub fn is_separate(&self, len: u64) -> bool {
        len > self.inner.config.inline_size
    }

    /// Returns the number of requests that writing a response takes beside those of its pack.
    pub fn requests_for(&self, stored: &StoredResponse) -> u32 {
        u32::from(self.is_separate(stored.len()) && !stored.head.is_body_written())
    }

    /// Counts a response that the configuration keeps from being written.
    pub fn saved(&self, why: Saved) {
        self.inner.metrics.saved(why);
    }

    /// Returns the number of large bodies that are being written.
    pub fn uploads(&self) -> u64 {
        self.inner.uploading.lock().len() as u64
    }

    /// Returns the largest response that is kept (see [`Config::max_object_size`]).
    pub fn max_object_size(&self) -> u64 {
        self.inner.max_object_size()
    }

    /// Returns the bytes that the place holds, and may hold (0: any number). Both are 0 for a bucket.
    pub fn held(&self) -> (u64, u64) {
        (self.inner.used(), self.inner.config.capacity())
    }

    /// Returns how many packs there are, and their bytes.
    pub fn packs(&self) -> PackTotals {
        self.inner.index.pack_totals()
    }

    /// Returns [`Config::min_upload_rate`].
    pub fn min_upload_rate(&self) -> u64 {
        self.inner.config.min_upload_rate
    }

    /// Returns whether the tier may have something for the key, or is about to.
    pub fn may_hold(&self, key: &CacheKey) -> bool {
        // In this order: what has left the queue is in the index already.
        self.inner.queue.is_pending(key.hash()) || self.inner.index.may_hold(key)
    }

    /// Returns whether the tier, or another process that shares it, may have a response to QUERY.
    pub fn may_hold_queries(&self) -> bool {
        self.inner.index.may_hold_queries()
    }

    /// Returns whether the tier, or another process that shares it, may have a response to a QUERY for the page whose key
    /// has this hash.
    pub fn may_hold_queries_of(&self, page: u128) -> bool {
        self.inner.index.may_hold_queries_of(page)
    }

    /// Notes that a response to a QUERY for a page is stored, in whatever tier.
    pub(super) fn note_query_of(&self, page: u128) {
        self.inner.index.note_query_of(page);
    }

    /// Has purges that were made written to the journal.
    pub fn hurry(&self, urgency: Urgency) {
        self.inner.journal.hurry(urgency);
    }

    /// Waits until the purge with this number is in the journal, at most `within`.
    pub async fn recorded(&self, arrival: u64, within: Duration) -> Result<(), StoreError> {
        self.inner.journal.wait_for(arrival, within).await
    }

    /// Returns the place, and the names in it.
    pub(in crate::store) fn place(&self) -> (Arc<dyn Place>, &ObjectNames) {
        (Arc::clone(&self.inner.place), &self.inner.names)
    }

    /// Returns whether the place is on this machine.
    pub fn is_local(&self) -> bool {
        self.is_local
    }

    /// Makes one pass over the packs and the separate bodies, as the background work does.
    #[cfg(test)]
    pub(super) async fn reclaim_once(&self) -> Result<(), StoreError> {
        self.inner.reclaim_now().await
    }

    #[cfg(test)]
    pub(super) fn journal(&self) -> &Arc<Journal> {
        &self.inner.journal
    }

    /// Prepares for `threads` threads that read small objects, each of which calls [`crate::store::s3::use_reader`].
    pub fn prepare(&self, threads: usize) {
        self.inner.place.prepare(threads);
    }

    /// Returns the index of what the tier holds.
    pub fn index(&self) -> &Index {
        &self.inner.index
    }

    /// Returns whether the tier counts as down, or takes no writes.
    pub fn is_down(&self) -> bool {
        self.inner.breaker.is_open() || !self.inner.writes.is_closed()
    }

    /// Returns [`Config::poll_interval`].
    pub fn poll_interval(&self) -> Duration {
        self.inner.config.poll_interval
    }

    /// Returns the objects and bytes that wait to be written or deleted.
    pub fn queue_depth(&self) -> (u64, u64) {
        let (objects, bytes) = self.inner.queue.depth();
        (objects + self.inner.journal.outstanding(), bytes)
    }

    /// Returns [`Config::drain_timeout`].
    pub fn drain_timeout(&self) -> Duration {
        self.inner.config.drain_timeout
    }

    /// Returns [`Config::min_lifetime`] in milliseconds.
    pub fn min_lifetime_millis(&self) -> i64 {
        millis(self.inner.config.min_lifetime)
    }

    /// Returns [`Config::retain`] in milliseconds.
    pub fn retain_millis(&self) -> i64 {
        millis(self.inner.config.retain)
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl Inner {
    /// Returns the largest response that is kept. In a bounded place no response takes more than an eighth.
    fn max_object_size(&self) -> u64 {
        let largest = match self.config.capacity() {
            0 => u64::MAX,
            capacity => capacity / 8,
        };
        self.config.max_object_size.min(largest)
    }
}
