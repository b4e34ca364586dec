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

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::HeaderMap;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::backend::{Backend, BackendError, CheckFailure, Pieces};
use super::file::FileStore;
use super::purge::Purges;
use super::queue::{Op, Put, Queue, Waiting};
use super::s3::{S3Config, S3Store};
use super::tags::{self, TagPurges};
use crate::clock::Stopwatch;
use crate::fill::FillReader;
use crate::rfc9111::freshness::LifetimePolicy;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::storage::StoragePolicy;
use crate::stored::encoding::{
    self, BODY_CHUNK, Checksums, DecodeError, DurableBody, Object, decode, encode_apart, encode_response, encode_vary,
};
use crate::stored::{Body, StoredApart, StoredHead, StoredResponse, Variant, VaryRecord};
use crate::telemetry::{DurableOp, DurableOutcome, Metrics};

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
            queue_objects: 4096,
            queue_bytes: 64 << 20,
            writers: 8,
            drain_timeout: Duration::from_secs(5),
        }
    }
}

/// What may be added to a body to make an inline object: its head, at most.
const HEAD_LIMIT: u64 = 1 << 20;

/// Deletions are small and must not be lost easily: the queue holds this many times more of them.
const DELETES_PER_PUT: u64 = 16;

/// How long the tier may take to answer when Larder starts.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a purge waits for the tier before it says that it has not got there yet.
const PURGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest pause between two attempts to delete an object.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// How often an operation is tried before it is given up; the S3 client retries within each.
const ATTEMPTS: u32 = 3;

/// What the tier has for a request.
#[derive(Debug)]
pub enum Found {
    /// A response that the key and `Vary` select.
    Response(Box<FoundResponse>),
    /// Responses for the key, none for this request.
    OtherVariants(VaryRecord),
    /// Nothing, or nothing that could be had in time.
    Nothing,
}

/// A response from the durable tier.
#[derive(Debug)]
pub struct FoundResponse {
    /// Its head.
    pub head: StoredHead,
    /// Its body.
    pub body: FoundBody,
    /// The record that led to it, where it varies.
    pub record: Option<VaryRecord>,
}

/// The body of a response from the durable tier.
#[derive(Debug)]
pub enum FoundBody {
    /// All of it.
    Whole(Body),
    /// Its first piece, and the rest as it comes.
    Streamed(Bytes, BodyReader),
    /// An object of its own that was not opened, as was asked.
    Apart(Apart),
}

/// A separate body, to be read in part.
#[derive(Clone, Debug)]
pub struct Apart {
    inner: Arc<Inner>,
    runtime: Handle,
    name: String,
    len: u64,
    checksums: Arc<[u64]>,
}

/// What of a separate body is read, and what stands between.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// A text that is no part of it.
    Text(Bytes),
    /// The bytes from the first position up to the second.
    Range(u64, u64),
}

/// How many pieces a client's own reading is ahead of it.
const AHEAD: usize = 2;

impl Apart {
    /// The length of the body.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads what is wanted and no more, but to the ends of the chunks that are checked. `None` when the
    /// first piece can't be had, in time or at all. Dropping the receiver ends the reading.
    pub async fn read(&self, wanted: Vec<Wanted>) -> Option<mpsc::Receiver<Result<Bytes, BackendError>>> {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let (opened, is_open) = oneshot::channel();
        let this = self.clone();
        let within = self.inner.config.lookup_timeout;
        let task = self.runtime.spawn(async move { this.send(wanted, &sender, opened).await });
        match tokio::time::timeout(within, is_open).await {
            Ok(Ok(())) => Some(receiver),
            Ok(Err(_)) => None,
            Err(_) => {
                task.abort();
                self.inner.metrics.durable(DurableOp::Get, DurableOutcome::TimedOut);
                None
            }
        }
    }

    async fn send(
        &self,
        wanted: Vec<Wanted>,
        sender: &mpsc::Sender<Result<Bytes, BackendError>>,
        opened: oneshot::Sender<()>,
    ) {
        let mut opened = Some(opened);
        // What stands before the first piece goes out once that is there.
        let mut texts = Vec::new();
        for wanted in wanted {
            let (first, end) = match wanted {
                Wanted::Text(text) => {
                    texts.push(text);
                    continue;
                }
                Wanted::Range(first, end) => (first, end),
            };
            let mut left = end.saturating_sub(first);
            let mut reader = match self.open(first, end).await {
                Ok(reader) => reader,
                Err(error) => {
                    self.inner.note_error(DurableOp::Get, &error);
                    let _ = sender.send(Err(error)).await;
                    return;
                }
            };
            let mut skip = first % BODY_CHUNK as u64;
            while left > 0 {
                let mut piece = match reader.next().await {
                    Ok(Some(piece)) => piece,
                    Ok(None) => return self.fail(BackendError("the body ended early".into()), sender).await,
                    Err(error) => return self.fail(error, sender).await,
                };
                piece = piece.split_off(usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len()));
                piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                skip = 0;
                left -= piece.len() as u64;
                if let Some(opened) = opened.take() {
                    self.inner.metrics.durable(DurableOp::Get, DurableOutcome::Ok);
                    // The one who waits may have given up: the next line finds out.
                    let _ = opened.send(());
                }
                for piece in texts.drain(..).chain([piece]) {
                    if sender.send(Ok(piece)).await.is_err() {
                        return;
                    }
                }
            }
        }
        if let Some(opened) = opened.take() {
            let _ = opened.send(());
        }
        for text in texts {
            if sender.send(Ok(text)).await.is_err() {
                return;
            }
        }
    }

    async fn fail(&self, error: BackendError, sender: &mpsc::Sender<Result<Bytes, BackendError>>) {
        self.inner.unreadable(&self.name, &error.0);
        let _ = sender.send(Err(error)).await;
    }

    /// Opens the chunks that hold the bytes from `first` up to `end`.
    async fn open(&self, first: u64, end: u64) -> Result<BodyReader, BackendError> {
        const CHUNK: u64 = BODY_CHUNK as u64;
        let start = first / CHUNK * CHUNK;
        let stop = end.div_ceil(CHUNK).saturating_mul(CHUNK).min(self.len);
        let pieces = self.inner.backend.read_range(&self.name, start, stop).await?;
        let pieces = pieces.ok_or_else(|| BackendError("its body is missing".into()))?;
        let next = usize::try_from(first / CHUNK).unwrap_or(usize::MAX);
        let checksums = Arc::clone(&self.checksums);
        Ok(BodyReader { pieces, pending: BytesMut::new(), left: stop.saturating_sub(start), checksums, next })
    }
}

/// A separate body on its way in, each piece checked before it is given out.
#[derive(Debug)]
pub struct BodyReader {
    pieces: Pieces,
    pending: BytesMut,
    left: u64,
    checksums: Arc<[u64]>,
    next: usize,
}

impl BodyReader {
    /// The bytes that are still to come.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Whether every piece was given out.
    pub fn is_end(&self) -> bool {
        self.left == 0
    }

    /// The next checked piece; `None` at the end of a complete body.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BackendError> {
        if self.left == 0 {
            return Ok(None);
        }
        let want = usize::try_from(self.left.min(BODY_CHUNK as u64)).unwrap_or(BODY_CHUNK);
        while self.pending.len() < want {
            match self.pieces.next().await? {
                Some(piece) => self.pending.extend_from_slice(&piece),
                None => return Err(BackendError("the body ended early".into())),
            }
        }
        let chunk = self.pending.split_to(want).freeze();
        if self.checksums.get(self.next) != Some(&encoding::chunk_checksum(&chunk)) {
            return Err(BackendError("the body's checksum does not hold".into()));
        }
        self.next += 1;
        self.left -= want as u64;
        Ok(Some(chunk))
    }
}

/// The durable tier.
#[derive(Debug)]
pub struct Durable {
    inner: Arc<Inner>,
    runtime: Handle,
    lookup_timeout: Duration,
}

#[derive(Debug)]
struct Inner {
    backend: Backend,
    config: Config,
    names: Names,
    purges: Arc<Purges>,
    metrics: Arc<Metrics>,
    writers: Vec<mpsc::UnboundedSender<Op>>,
    queue: Queue,
    tags: TagPurges,
    /// Guarded by its lock: the keys that a large body is being written for.
    uploading: Mutex<HashSet<u128>>,
}

/// Leave to write a large body.
#[derive(Debug)]
pub struct Leave {
    inner: Arc<Inner>,
    hash: u128,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.inner.uploading.lock().remove(&self.hash);
        self.inner.queue.leave_other();
    }
}

/// The names of objects: everything this process may ever write or delete.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Names {
    root: String,
}

impl Names {
    fn new(url_prefix: &str, key_prefix: &str) -> Self {
        let mut root = String::new();
        for part in [url_prefix, &escape(key_prefix)] {
            if !part.is_empty() {
                root.push_str(part);
                root.push('/');
            }
        }
        root.push_str("larder-1/");
        Self { root }
    }

    /// The object at a key: a response, or the record of one that varies.
    fn primary(&self, key: &CacheKey) -> String {
        self.spread("o", key.hash())
    }

    fn variant(&self, key: &CacheKey, variant: u128) -> String {
        format!("{}.{variant:032x}", self.primary(key))
    }

    fn body(&self, id: u128) -> String {
        self.spread("b", id)
    }

    /// The last purge of the tag with `key`.
    fn tag(&self, key: &CacheKey) -> String {
        self.spread("t", key.hash())
    }

    /// Spreads names over 65,536 prefixes, which S3 partitions by and directories stay small by.
    fn spread(&self, kind: &str, hash: u128) -> String {
        let hex = format!("{hash:032x}");
        format!("{}{kind}/{}/{}/{}", self.root, &hex[..2], &hex[2..4], &hex[4..])
    }
}

/// A key prefix as one path segment that can't climb out of its directory.
fn escape(prefix: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(prefix.len());
    for byte in prefix.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => out.push(char::from(byte)),
            _ => {
                out.push('%');
                out.push(char::from(HEX[usize::from(byte >> 4)]));
                out.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
    out
}

impl Durable {
    /// Connects to the place that the configuration names, checks it, and starts the writers on
    /// `runtime`. `None` when it is off, or can't be used and need not be.
    pub async fn open(
        config: &Config,
        key_prefix: &str,
        purges: Arc<Purges>,
        metrics: Arc<Metrics>,
    ) -> Result<Option<Self>, CheckFailure> {
        let (backend, url_prefix) = match &config.location {
            Location::Off => return Ok(None),
            Location::File(root) => (Backend::File(FileStore::new(root.clone())), String::new()),
            Location::S3 { config, prefix } => (Backend::S3(S3Store::connect(config.clone()).await), prefix.clone()),
        };
        let checked = tokio::time::timeout(CHECK_TIMEOUT, backend.check()).await.unwrap_or_else(|_| {
            Err(CheckFailure(format!("the durable tier does not answer within {} s", CHECK_TIMEOUT.as_secs())))
        });
        if let Err(failure) = checked {
            if config.required {
                return Err(failure);
            }
            // In service it fails open; the next lookup may find it there.
            warn!("the durable tier does not answer, going on without it: {failure}");
        }
        let runtime = Handle::current();
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..config.writers.max(1)).map(|_| mpsc::unbounded_channel()).unzip();
        let inner = Arc::new(Inner {
            backend,
            config: config.clone(),
            names: Names::new(&url_prefix, key_prefix),
            purges,
            metrics,
            writers: senders,
            queue: Queue::default(),
            tags: TagPurges::default(),
            uploading: Mutex::default(),
        });
        for receiver in receivers {
            runtime.spawn(write_behind(Arc::clone(&inner), receiver));
        }
        Ok(Some(Self { inner, runtime, lookup_timeout: config.lookup_timeout }))
    }

    /// What the tier has for `key` and `request`, within the lookup timeout. `known` is the
    /// record that memory has of the key.
    pub async fn lookup(
        &self,
        key: &CacheKey,
        request: &HeaderMap,
        policy: Arc<StoragePolicy>,
        known: Option<Arc<VaryRecord>>,
        opening: Opening,
    ) -> Found {
        let mut waiting = None;
        match self.inner.queue.look(key, request) {
            Waiting::Nothing => {}
            Waiting::Found(Put::Whole(stored), record) => return self.waiting(&stored, record, known.is_some()),
            // Its body is there already.
            Waiting::Found(Put::Apart(stored), record) => waiting = Some((stored, record)),
            // A write that a purge came before is skipped in its turn.
            Waiting::Other(Some((record, position))) if !self.inner.purges.covers_stored(key.hash(), position) => {
                return Found::OtherVariants((*record).clone());
            }
            Waiting::Other(_) => return Found::Nothing,
        }
        let watch = Stopwatch::start();
        let (inner, key, request) = (Arc::clone(&self.inner), key.clone(), request.clone());
        let runtime = self.runtime.clone();
        // On the tier's own threads: its connections outlive the worker that asks.
        let mut task = AbortOnDrop(self.runtime.spawn(async move {
            let looked = Looked { request: &request, opening, runtime };
            let Some((stored, record)) = waiting else {
                return inner.lookup(&key, &looked, &policy.lifetimes, known).await;
            };
            let body = DurableBody::Separate { len: stored.len, checksums: Arc::clone(&stored.checksums) };
            let record = record.filter(|_| known.is_none()).map(|record| (*record).clone());
            inner.found((*stored.head).clone(), body, &looked, record).await
        }));
        let found = match tokio::time::timeout(self.lookup_timeout, &mut task.0).await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) => Found::Nothing,
            Err(_) => {
                self.inner.metrics.durable(DurableOp::Get, DurableOutcome::TimedOut);
                Found::Nothing
            }
        };
        self.inner.metrics.durable_latency.record(watch.elapsed());
        found
    }

    /// A response that waits to be written, as it will be found.
    fn waiting(&self, stored: &StoredResponse, record: Option<Arc<VaryRecord>>, is_known: bool) -> Found {
        let (purges, head) = (&self.inner.purges, &stored.head);
        if purges.covers_stored(head.key.hash(), head.position) || purges.covers_tags(&head.tags, head.position) {
            return Found::Nothing;
        }
        Found::Response(Box::new(FoundResponse {
            head: (*stored.head).clone(),
            body: FoundBody::Whole(stored.body.clone()),
            record: record.filter(|_| !is_known).map(|record| (*record).clone()),
        }))
    }

    /// The record of a key's variants that waits to be written, and its purge position.
    pub fn waiting_record(&self, key: &CacheKey) -> Option<(Arc<VaryRecord>, u64)> {
        self.inner.queue.record(key)
    }

    /// Has a response written; `false` when the queue is full.
    pub fn put(&self, stored: Arc<StoredResponse>, record: Option<Arc<VaryRecord>>) -> bool {
        let config = &self.inner.config;
        let queue = &self.inner.queue;
        let (objects, bytes) = queue.depth();
        let full = objects >= config.queue_objects as u64
            || bytes.saturating_add(stored.weight() as u64) > config.queue_bytes.max(stored.weight() as u64);
        if full {
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
            return self.forget_body(stored.head.body_id);
        }
        stored.head.marks.is_durable.store(true, Ordering::Release);
        self.inner.enqueue(Op::Put { stored: Put::Apart(stored), record });
    }

    /// Deletes a body that no head leads to.
    pub fn forget_body(&self, id: u128) {
        let inner = Arc::clone(&self.inner);
        self.runtime.spawn(async move { inner.forget_body(id).await });
    }

    /// Leave to write the large body of a response for the key with this hash: a few at once have it, and
    /// one for each key.
    pub fn begin_upload(&self, hash: u128) -> Option<Leave> {
        let mut uploading = self.inner.uploading.lock();
        if uploading.len() >= self.inner.config.uploads || !uploading.insert(hash) {
            drop(uploading);
            self.inner.metrics.durable(DurableOp::Put, DurableOutcome::Dropped);
            return None;
        }
        self.inner.queue.enter_other();
        Some(Leave { inner: Arc::clone(&self.inner), hash })
    }

    /// Writes the body that `reader` brings as the object of `head`. `None` when it did not come to its
    /// end, is too large, or could not be written: then there is nothing. The leave comes back, to be kept
    /// until the head is on its way.
    pub async fn upload(
        &self,
        leave: Leave,
        head: Arc<StoredHead>,
        reader: FillReader,
    ) -> Option<(StoredApart, Leave)> {
        let written = self.runtime.spawn(async move {
            let inner = Arc::clone(&leave.inner);
            let outcome = inner.upload(&head, reader).await;
            inner.metrics.durable_uploads.add_one();
            match outcome {
                Ok(Some(apart)) => {
                    inner.metrics.durable(DurableOp::Put, DurableOutcome::Ok);
                    Some((apart, leave))
                }
                Ok(None) => {
                    inner.metrics.durable(DurableOp::Put, DurableOutcome::Dropped);
                    None
                }
                Err(error) => {
                    inner.note_error(DurableOp::Put, &error);
                    None
                }
            }
        });
        written.await.ok().flatten()
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

    /// Has everything kept for `key` deleted. In a directory it is gone when this returns.
    pub fn delete(&self, key: &CacheKey) {
        if let Backend::File(store) = &self.inner.backend {
            store.put_out_of_reach(&self.inner.names.primary(key));
        }
        if self.inner.queue.depth().0 >= (self.inner.config.queue_objects as u64).saturating_mul(DELETES_PER_PUT) {
            self.inner.metrics.durable(DurableOp::Delete, DurableOutcome::Dropped);
            warn!("the durable queue is full: an invalidated URL stays in the durable tier until it expires");
            return;
        }
        self.inner.enqueue(Op::Delete { key: key.clone(), variant: None, done: None });
    }

    /// Has one variant of `key` deleted, the one with this name.
    pub fn delete_variant(&self, key: &CacheKey, name: u128, variant: &Variant) {
        if let Backend::File(store) = &self.inner.backend {
            store.put_out_of_reach(&self.inner.names.variant(key, name));
        }
        self.inner.enqueue(Op::Delete { key: key.clone(), variant: Some((name, variant.clone())), done: None });
    }

    /// Writes down that `tag` was purged at `position`. Ready at once for a bucket, which follows
    /// behind; for a directory when it is written.
    pub async fn purge_tag(&self, tag: &str, position: u64) {
        let inner = Arc::clone(&self.inner);
        let key = tags::key_of(tag);
        let is_near = matches!(inner.backend, Backend::File(_));
        if !inner.tags.begin(&key, position) {
            return;
        }
        inner.queue.enter_other();
        let written = self.runtime.spawn(async move {
            let name = inner.names.tag(&key);
            inner.tags.write(&inner.backend, &name, &key).await;
            inner.queue.leave_other();
        });
        if is_near {
            let _ = tokio::time::timeout(self.lookup_timeout, written).await;
        }
    }

    /// Begins to delete everything kept for `key`; [`Durable::finish_delete`] says how that went.
    pub fn begin_delete(&self, key: &CacheKey) -> oneshot::Receiver<Result<(), BackendError>> {
        let (done, outcome) = oneshot::channel();
        self.inner.enqueue(Op::Delete { key: key.clone(), variant: None, done: Some(done) });
        outcome
    }

    /// Waits for a deletion, and says how it went.
    pub async fn finish_delete(outcome: oneshot::Receiver<Result<(), BackendError>>) -> Result<(), BackendError> {
        match tokio::time::timeout(PURGE_TIMEOUT, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(BackendError("the durable tier is shutting down".into())),
            Err(_) => Err(BackendError("it does not answer".into())),
        }
    }

    /// Objects and bytes that wait to be written or deleted.
    pub fn queue_depth(&self) -> (u64, u64) {
        self.inner.queue.depth()
    }

    /// Waits until nothing is outstanding, at most `deadline`; how many operations were left.
    pub async fn drain(&self, deadline: Duration) -> u64 {
        let emptied = tokio::time::timeout(deadline, self.inner.queue.empty()).await;
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

/// A lookup that nobody waits for any more is no use to finish.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A key whose deletion failed, and has to be tried again.
struct Undeleted(CacheKey, Option<u128>);

/// Carries out operations in their order until the tier is dropped.
async fn write_behind(inner: Arc<Inner>, mut ops: mpsc::UnboundedReceiver<Op>) {
    // The senders live in `inner`, which this task holds: it ends with the runtime.
    while let Some(op) = ops.recv().await {
        let (hash, bytes) = (op.key().hash(), op.bytes());
        let outcome = inner.carry_out(op).await;
        match outcome {
            // Not waited for, and no part of the queue, so that the tier's other work goes on; but
            // the key stays outstanding, so that what should be gone counts as gone. Once for each.
            Err(Undeleted(key, variant)) if inner.queue.begin_retrying(hash) => {
                let inner = Arc::clone(&inner);
                tokio::spawn(async move {
                    inner.delete_at_last(&key, variant).await;
                    inner.queue.end_retrying(hash);
                    inner.queue.settle(hash);
                });
            }
            Err(_) | Ok(()) => inner.queue.settle(hash),
        }
        inner.queue.leave(bytes);
    }
}

/// Whether a separate body is opened when it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// It is, and its first piece is checked.
    AtOnce,
    /// It is not: what is wanted of it is to be seen.
    Later,
}

/// How the tier is looked into.
struct Looked<'a> {
    request: &'a HeaderMap,
    opening: Opening,
    runtime: Handle,
}

impl Inner {
    /// Writes the body that `reader` brings; `None` when it broke off, or is too large.
    async fn upload(
        &self,
        head: &Arc<StoredHead>,
        mut reader: FillReader,
    ) -> Result<Option<StoredApart>, BackendError> {
        let mut upload = self.backend.begin(&self.names.body(head.body_id)).await?;
        let mut checksums = Checksums::default();
        while let Some(chunk) = reader.chunk().await {
            let Ok(chunk) = chunk else { return Ok(None) };
            checksums.update(&chunk);
            if checksums.len() > self.config.max_object_size {
                return Ok(None);
            }
            upload.write(chunk).await?;
        }
        let len = checksums.len();
        if !head.is_of_length(len) {
            return Ok(None);
        }
        upload.finish().await?;
        head.body_written.store(true, Ordering::Release);
        Ok(Some(StoredApart { head: Arc::clone(head), len, checksums: checksums.finish().into() }))
    }

    async fn forget_body(&self, id: u128) {
        let outcome = self.backend.delete(&self.names.body(id)).await;
        self.note(DurableOp::Delete, &outcome);
    }

    fn enqueue(&self, op: Op) {
        self.queue.enter(&op);
        let (hash, bytes) = (op.key().hash(), op.bytes());
        // By key, so that operations on one key keep their order.
        let writer = usize::try_from(hash % self.writers.len() as u128).unwrap_or(0);
        if self.writers[writer].send(op).is_err() {
            self.queue.settle(hash);
            self.queue.leave(bytes);
        }
    }

    async fn carry_out(&self, op: Op) -> Result<(), Undeleted> {
        match op {
            Op::Put { stored, record } => {
                let head = stored.head();
                let is_purged = self.purges.covers_fetch(head.key.hash(), head.position);
                if !is_purged {
                    let outcome = self.try_repeatedly(|| self.write(&stored, record.as_deref())).await;
                    self.note(DurableOp::Put, &outcome);
                    if outcome.is_ok() {
                        return Ok(());
                    }
                }
                if let Put::Apart(apart) = &stored {
                    // Nothing else leads to it.
                    self.forget_body(apart.head.body_id).await;
                }
                Ok(())
            }
            Op::Delete { key, variant, done } => {
                let variant = variant.map(|(name, _)| name);
                let outcome = self.try_repeatedly(|| self.delete_all(&key, variant)).await;
                self.note(DurableOp::Delete, &outcome);
                let is_done = outcome.is_ok();
                if let Some(done) = done {
                    let _ = done.send(outcome);
                }
                if is_done { Ok(()) } else { Err(Undeleted(key, variant)) }
            }
        }
    }

    /// Tries to delete until it is done: what was invalidated must not come back with the tier.
    async fn delete_at_last(&self, key: &CacheKey, variant: Option<u128>) {
        let mut pause = Duration::from_millis(500);
        loop {
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause = (pause * 2).min(MAX_PAUSE);
            let outcome = self.delete_all(key, variant).await;
            self.note(DurableOp::Delete, &outcome);
            if outcome.is_ok() {
                return;
            }
        }
    }

    async fn try_repeatedly<F: Future<Output = Result<(), BackendError>>>(
        &self,
        operation: impl Fn() -> F,
    ) -> Result<(), BackendError> {
        let mut attempt = 1;
        loop {
            match operation().await {
                Err(_) if attempt < ATTEMPTS => {
                    let backoff = Duration::from_millis(50 << attempt);
                    tokio::time::sleep(backoff.mul_f64(0.5 + fastrand::f64())).await;
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// Deletes what a key leads to, or one variant of it. In a bucket that is its first object: the rest can't be found
    /// again, and ends by the bucket's lifecycle rule. A directory has no such rule, and a look
    /// round costs nothing there, so variants and separate bodies go as well.
    async fn delete_all(&self, key: &CacheKey, variant: Option<u128>) -> Result<(), BackendError> {
        let name = match variant {
            Some(variant) => self.names.variant(key, variant),
            None => self.names.primary(key),
        };
        let Backend::File(store) = &self.backend else { return self.backend.delete(&name).await };
        for member in store.family(&name).await? {
            let body = self.separate_body(&member, key).await;
            self.backend.delete(&member).await?;
            if let Some(body) = body {
                self.backend.delete(&self.names.body(body)).await?;
            }
        }
        Ok(())
    }

    /// The separate body that the object `name` of a directory leads to.
    async fn separate_body(&self, name: &str, key: &CacheKey) -> Option<u128> {
        self.existing(name, key).await?.1
    }

    /// The head of the response `name` of a directory, and its separate body, if it has one. In a bucket
    /// that would cost a request for each write.
    async fn existing(&self, name: &str, key: &CacheKey) -> Option<(Box<StoredHead>, Option<u128>)> {
        let Backend::File(store) = &self.backend else { return None };
        let bytes = store.get(name, self.config.inline_size + HEAD_LIMIT).await.ok()??;
        match decode(&bytes, key, &LifetimePolicy::default()) {
            Ok(Object::Response { head, body }) => {
                let separate = matches!(body, DurableBody::Separate { .. }).then_some(head.body_id);
                Some((head, separate))
            }
            Ok(Object::Vary(_) | Object::Tag { .. }) | Err(_) => None,
        }
    }

    /// Writes an object, and then deletes the separate body that the one before it led to.
    async fn replace(&self, name: &str, object: Bytes, stored: &StoredHead) -> Result<(), BackendError> {
        let before = self.existing(name, &stored.key).await;
        let now = self.purges.time();
        if let Some((_, body)) = before.as_ref().filter(|(head, _)| head.outranks(stored, now)) {
            if *body != Some(stored.body_id) && stored.body_written.load(Ordering::Acquire) {
                stored.body_written.store(false, Ordering::Release);
                self.backend.delete(&self.names.body(stored.body_id)).await?;
            }
            return Ok(());
        }
        self.backend.put(name, &[object]).await?;
        match before.and_then(|(_, body)| body) {
            Some(body) if body != stored.body_id => self.backend.delete(&self.names.body(body)).await,
            Some(_) | None => Ok(()),
        }
    }

    /// Writes a body of its own first, then the head, then the record that leads to it: a reader
    /// finds all of it or none, wherever a crash falls.
    async fn write(&self, put: &Put, record: Option<&VaryRecord>) -> Result<(), BackendError> {
        let head = put.head();
        let key = &head.key;
        let object: Bytes = match put {
            Put::Whole(stored) => {
                let inline = stored.body.len() <= self.config.inline_size;
                if !inline && !head.body_written.load(Ordering::Acquire) {
                    self.backend.put(&self.names.body(head.body_id), stored.body.segments()).await?;
                    head.body_written.store(true, Ordering::Release);
                }
                encode_response(stored, inline).into()
            }
            Put::Apart(stored) => encode_apart(head, stored.len, &stored.checksums).into(),
        };
        match (&head.variant, record) {
            (Some(variant), Some(record)) => {
                let name = self.names.variant(key, record.variant_hash(&variant.selector));
                self.replace(&name, object, head).await?;
                self.backend.put(&self.names.primary(key), &[encode_vary(record).into()]).await
            }
            _ => self.replace(&self.names.primary(key), object, head).await,
        }
    }

    async fn lookup(
        self: &Arc<Self>,
        key: &CacheKey,
        looked: &Looked<'_>,
        policy: &LifetimePolicy,
        known: Option<Arc<VaryRecord>>,
    ) -> Found {
        let is_known = known.is_some();
        let record = match known {
            Some(record) => (*record).clone(),
            None => match self.object(&self.names.primary(key), key, policy).await {
                None | Some(Object::Tag { .. }) => return Found::Nothing,
                Some(Object::Vary(record)) => record,
                Some(Object::Response { head, body }) => return self.found(*head, body, looked, None).await,
            },
        };
        let candidates: Vec<u128> = record.candidates(looked.request).collect();
        for hash in candidates {
            if let Some(Object::Response { head, body }) =
                self.object(&self.names.variant(key, hash), key, policy).await
            {
                // One that came from memory may have been removed there since: it does not go back.
                let record = (!is_known).then_some(record);
                return self.found(*head, body, looked, record).await;
            }
        }
        Found::OtherVariants(record)
    }

    async fn found(
        self: &Arc<Self>,
        head: StoredHead,
        body: DurableBody,
        looked: &Looked<'_>,
        record: Option<VaryRecord>,
    ) -> Found {
        let covered = self.purges.covers_stored(head.key.hash(), head.position)
            || self.purges.covers_tags(&head.tags, head.position);
        if covered || !head.is_selected_by(looked.request) {
            return Found::Nothing;
        }
        // Of before this process began, or of another one.
        let name = |key: &CacheKey| self.names.tag(key);
        if self.tags.cover(&self.backend, name, &head.tags, head.position, self.purges.position()).await {
            return Found::Nothing;
        }
        let body = match body {
            DurableBody::Inline(bytes) => FoundBody::Whole(Body::from(bytes)),
            DurableBody::Separate { len, checksums } if looked.opening == Opening::Later => FoundBody::Apart(Apart {
                inner: Arc::clone(self),
                runtime: looked.runtime.clone(),
                name: self.names.body(head.body_id),
                len,
                checksums,
            }),
            DurableBody::Separate { len, checksums } => match self.open_body(&head, len, checksums).await {
                Some(body) => body,
                None => return Found::Nothing,
            },
        };
        Found::Response(Box::new(FoundResponse { head, body, record }))
    }

    /// Opens a separate body and checks its first piece, so that one that is missing, cut off, or
    /// another's is a miss and not a broken response.
    async fn open_body(&self, head: &StoredHead, len: u64, checksums: Arc<[u64]>) -> Option<FoundBody> {
        let name = self.names.body(head.body_id);
        let opened = self.backend.read(&name, len).await;
        let pieces = match opened {
            Ok(Some(pieces)) => pieces,
            Ok(None) => {
                self.unreadable(&name, "its body is missing");
                return None;
            }
            Err(error) => {
                self.note_error(DurableOp::Get, &error);
                return None;
            }
        };
        let mut reader = BodyReader { pieces, pending: BytesMut::new(), left: len, checksums, next: 0 };
        match reader.next().await {
            Ok(Some(first)) => Some(FoundBody::Streamed(first, reader)),
            Ok(None) => Some(FoundBody::Whole(Body::default())),
            Err(error) => {
                self.unreadable(&name, &error.0);
                None
            }
        }
    }

    async fn object(&self, name: &str, key: &CacheKey, policy: &LifetimePolicy) -> Option<Object> {
        let bytes = match self.backend.get(name, self.config.inline_size + HEAD_LIMIT).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                self.metrics.durable(DurableOp::Get, DurableOutcome::NotFound);
                return None;
            }
            Err(error) => {
                self.note_error(DurableOp::Get, &error);
                return None;
            }
        };
        match decode(&bytes, key, policy) {
            Ok(object) => {
                self.metrics.durable(DurableOp::Get, DurableOutcome::Ok);
                Some(object)
            }
            Err(DecodeError::OtherKey) => {
                // Two keys with one hash: the other one's object is sound, and not ours.
                self.metrics.durable(DurableOp::Get, DurableOutcome::NotFound);
                None
            }
            Err(error) => {
                self.unreadable(name, error.as_str());
                None
            }
        }
    }

    fn unreadable(&self, name: &str, why: &str) {
        self.metrics.durable(DurableOp::Get, DurableOutcome::Unreadable);
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

/// Says at a stop what became of the queue.
pub fn report_drain(left: u64) {
    if left == 0 {
        info!("every stored response is in the durable tier");
    } else {
        warn!("{left} writes to the durable tier were dropped: the deadline had passed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_never_leave_our_own_prefix() {
        for (url_prefix, key_prefix, root) in [
            ("", "", "larder-1/"),
            ("any/prefix", "", "any/prefix/larder-1/"),
            ("any", "../..", "any/%2E%2E%2F%2E%2E/larder-1/"),
            ("", "a b/é", "a%20b%2F%C3%A9/larder-1/"),
        ] {
            let names = Names::new(url_prefix, key_prefix);
            assert_eq!(names.root, root);
            assert!(names.body(1).starts_with(root));
        }
    }
}
