//! A bucket as the place of the durable tier. The only folder that names the AWS SDK.
//!
//! * Responses in packs are read by ranged requests that this folder signs itself (`replay.rs`): an operation of the SDK
//!   costs twice as much. All others are the SDK's.
//! * Names that differ lead to objects that differ: no request depends on a condition that a service may ignore.

mod explain;
mod lifecycle;
mod objects;
mod replay;
mod upload;

pub use self::lifecycle::Lifecycle;
use self::replay::{Recorder, SmallReader};

use std::cell::Cell;
use std::future::ready;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::endpoint::{DefaultResolver, Endpoint, EndpointFuture, Params, ResolveEndpoint};
use aws_sdk_s3::config::interceptors::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
};
use aws_sdk_s3::config::{
    Builder, ConfigBag, Intercept, RequestChecksumCalculation, ResponseChecksumValidation, RuntimeComponents,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::BoxError;
use bytes::Bytes;
use parking_lot::RwLock;
use tracing::warn;

use super::error::{StoreError, StoreErrorKind};
use super::names::ObjectNames;
use super::place::{GrowingPack, ObjectReader, ObjectWriter, Operation, Page, Place};
use super::purpose::stated;
use crate::base::{Clock, Metrics, RequestClass, RequestPurpose};
use crate::rfc9111::timestamp::Timestamp;

/// The access to an S3 bucket. Credentials come from the SDK's usual chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Config {
    /// Name of the bucket.
    pub bucket: String,
    /// URL of an S3-compatible service; empty: AWS.
    pub endpoint_url: String,
    /// Region; empty: as the SDK finds it.
    pub region: String,
    /// True if the bucket is named in the path instead of the host name.
    pub path_style: bool,
}

/// A bucket of objects.
#[derive(Debug)]
pub struct S3Bucket {
    /// Sends everything but reads of responses in packs.
    client: Client,
    /// One for each thread that looks responses up, with connections of its own: no answer is handed from the thread
    /// that receives it to another.
    readers: RwLock<Vec<SmallReader>>,
    settings: Builder,
    config: S3Config,
    watcher: Arc<Watcher>,
    /// Name of the probe, once [`Place::check`] has written and read it.
    probe: OnceLock<String>,
}

thread_local! {
    /// Number of this thread among those that look responses up.
    static THREAD: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Declares the current thread to be number `thread`, from 0, of those that look responses up.
pub fn use_reader(thread: usize) {
    THREAD.set(Some(thread));
}

/// Resolves the bucket's endpoint once. The SDK's rules for it take longer than the rest of a small request.
#[derive(Debug)]
struct CachedEndpoint {
    rules: DefaultResolver,
    resolved: OnceLock<Endpoint>,
}

impl CachedEndpoint {
    fn new() -> Self {
        Self { rules: DefaultResolver::new(), resolved: OnceLock::new() }
    }
}

impl ResolveEndpoint for CachedEndpoint {
    fn resolve_endpoint<'a>(&'a self, params: &'a Params) -> EndpointFuture<'a> {
        if let Some(resolved) = self.resolved.get() {
            return EndpointFuture::ready(Ok(resolved.clone()));
        }
        EndpointFuture::new(async move {
            let found = self.rules.resolve_endpoint(params).await?;
            Ok(self.resolved.get_or_init(|| found).clone())
        })
    }
}

/// Counts every request, the SDK's retries included, and takes the service's time from every answer.
#[derive(Debug)]
struct Watcher {
    metrics: Arc<Metrics>,
    clock: Clock,
    /// See [`Place::clock_offset`].
    offset: AtomicI64,
    /// True once it was logged that the service's time can't be.
    has_warned: AtomicBool,
}

/// The interceptor that tells the watcher.
#[derive(Debug)]
struct Watching(Arc<Watcher>);

impl Intercept for Watching {
    fn name(&self) -> &'static str {
        "larder"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let request = context.request();
        let class = match request.method() {
            "GET" if request.uri().contains("list-type=2") || request.uri().contains("?uploads") => RequestClass::List,
            "GET" | "HEAD" => RequestClass::Read,
            "DELETE" => RequestClass::Delete,
            _ => RequestClass::Write,
        };
        self.0.metrics.request(class, purpose_of(class, request.uri(), stated()));
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(date) = context.response().headers().get("date") {
            self.0.note_date(date);
        }
        Ok(())
    }
}

/// Returns what a request is for: by its name, and where that may mean several, by what its task states.
fn purpose_of(class: RequestClass, uri: &str, stated: Option<RequestPurpose>) -> RequestPurpose {
    let path = uri.split_once('?').map_or(uri, |(path, _)| path);
    let name = path.rsplit_once("larder-1/").map_or("", |(_, name)| name);
    match (class, name.split_once('/').map_or(name, |(first, _)| first)) {
        (RequestClass::List, _) => stated.unwrap_or(RequestPurpose::Probe),
        (_, "probe") => RequestPurpose::Probe,
        (_, "acme") => RequestPurpose::Certificates,
        (_, "s") => RequestPurpose::Snapshots,
        (RequestClass::Write, "b") => RequestPurpose::Bodies,
        (RequestClass::Write, _) if name.ends_with(".purges") => RequestPurpose::Purges,
        (_, _) if name.ends_with(".purges") => RequestPurpose::Journal,
        (RequestClass::Read, _) => stated.unwrap_or(RequestPurpose::LookUp),
        (RequestClass::Write, _) => stated.unwrap_or(RequestPurpose::Packs),
        (RequestClass::Delete, _) => RequestPurpose::Reclaiming,
    }
}

impl Watcher {
    /// Takes the service's time from the `Date` of an answer.
    fn note_date(&self, date: &str) {
        let Ok(date) = httpdate::parse_http_date(date) else { return };
        // The date is in whole seconds: half a second old on the average.
        let ahead = Timestamp::from(date).plus_millis(500).millis_since(self.clock.now());
        if ahead.abs() > MOST_APART {
            // A service refuses requests that are signed at another time. One that answers has a wrong `Date`.
            if !self.has_warned.swap(true, Ordering::Relaxed) {
                warn!(
                    "the bucket's answers are dated more than an hour {} this machine's clock: their time is ignored; one of the two clocks is wrong",
                    if ahead > 0 { "after" } else { "before" }
                );
            }
            return;
        }
        self.offset.store(if ahead.abs() <= SAME_CLOCK { 0 } else { ahead }, Ordering::Relaxed);
    }

    /// Returns the time by the service's clock.
    fn time(&self) -> SystemTime {
        self.clock.now().plus_millis(self.offset.load(Ordering::Relaxed)).into()
    }
}

/// Clocks that differ by no more milliseconds count as one.
const SAME_CLOCK: i64 = 2000;

/// Clocks that differ by more milliseconds are not corrected.
const MOST_APART: i64 = 60 * 60_000;

/// The longest that connecting to the service may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

impl S3Bucket {
    /// Loads credentials and region as the SDK does everywhere. Sends nothing to the bucket.
    pub async fn connect(config: S3Config, metrics: Arc<Metrics>, clock: Clock) -> Self {
        let watcher =
            Arc::new(Watcher { metrics, clock, offset: AtomicI64::new(0), has_warned: AtomicBool::new(false) });
        let mut loader = aws_config::defaults(BehaviorVersion::latest());
        if !config.region.is_empty() {
            loader = loader.region(Region::new(config.region.clone()));
        }
        if !config.endpoint_url.is_empty() {
            loader = loader.endpoint_url(&config.endpoint_url);
        }
        let shared = loader
            .retry_config(RetryConfig::standard().with_max_attempts(3).with_initial_backoff(Duration::from_millis(50)))
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_TIMEOUT)
                    .operation_attempt_timeout(Duration::from_secs(30))
                    .operation_timeout(Duration::from_secs(60))
                    .build(),
            )
            .load()
            .await;
        let mut builder = Builder::from(&shared)
            .force_path_style(config.path_style)
            .interceptor(Watching(Arc::clone(&watcher)))
            // Objects carry their own checksums. Some services refuse the SDK's newer ones.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if shared.region().is_none() {
            builder = builder.region(Region::new("us-east-1"));
        }
        let client = Client::from_conf(builder.clone().build());
        Self { client, readers: RwLock::default(), settings: builder, config, watcher, probe: OnceLock::new() }
    }

    /// Makes a client for each of `threads` threads that look responses up.
    fn prepare(&self, threads: usize) {
        // Each look-up has a deadline of its own: the SDK need not keep three.
        let patient = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build();
        let settings = self
            .settings
            .clone()
            .timeout_config(patient)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        let client = |recorder: Recorder| {
            let settings = settings.clone().endpoint_resolver(CachedEndpoint::new()).interceptor(recorder);
            Client::from_conf(settings.build())
        };
        *self.readers.write() = (0..threads).map(|_| SmallReader::new(client)).collect();
    }

    /// Returns the current thread's reader, if it has one.
    fn reader(&self) -> Option<SmallReader> {
        THREAD.get().and_then(|thread| self.readers.read().get(thread).cloned())
    }
}

impl Place for S3Bucket {
    fn check<'a>(&'a self, names: &'a ObjectNames) -> Operation<'a, ()> {
        Box::pin(self.check(names))
    }

    fn find_cache<'a>(&'a self, root: &'a str) -> Operation<'a, ()> {
        Box::pin(self.find_cache(root))
    }

    fn get<'a>(&'a self, name: &'a str, limit: u64) -> Operation<'a, Bytes> {
        Box::pin(self.get(name, limit))
    }

    fn read<'a>(&'a self, name: &'a str, len: u64) -> Operation<'a, Box<dyn ObjectReader>> {
        Box::pin(self.read(name, len))
    }

    fn read_range<'a>(&'a self, name: &'a str, first: u64, end: u64) -> Operation<'a, Box<dyn ObjectReader>> {
        Box::pin(self.read_range(name, first, end))
    }

    fn list<'a>(&'a self, prefix: &'a str, after: &'a str) -> Operation<'a, Page> {
        Box::pin(self.list(prefix, after))
    }

    fn put<'a>(&'a self, name: &'a str, pieces: &'a [Bytes]) -> Operation<'a, ()> {
        let body = match pieces {
            [one] => one.clone(),
            many => many.concat().into(),
        };
        Box::pin(objects::put(&self.client, &self.config, name, body))
    }

    fn begin<'a>(&'a self, name: &'a str) -> Operation<'a, Box<dyn ObjectWriter>> {
        Box::pin(async move { Ok(self.begin(name)) })
    }

    fn delete<'a>(&'a self, name: &'a str) -> Operation<'a, ()> {
        Box::pin(self.delete(name))
    }

    fn remove_unfinished<'a>(&'a self, root: &'a str, before: Timestamp, is_dry: bool) -> Operation<'a, u64> {
        Box::pin(self.end_uploads(root, before, is_dry))
    }

    fn read_pack<'a>(&'a self, name: &'a str, first: u64, len: u32) -> Operation<'a, Bytes> {
        Box::pin(self.read_pack(name, first, len))
    }

    fn begin_pack<'a>(&'a self, name: &'a str) -> Operation<'a, Box<dyn GrowingPack>> {
        Box::pin(ready(Err(StoreError::new(
            StoreErrorKind::Unacceptable,
            format!("{name}: a bucket's packs do not grow"),
        ))))
    }

    fn take_over<'a>(&'a self, _: &'a str) -> Operation<'a, Option<Box<dyn GrowingPack>>> {
        Box::pin(ready(Ok(None)))
    }

    fn clock_offset(&self) -> i64 {
        self.watcher.offset.load(Ordering::Relaxed)
    }

    fn prepare(&self, threads: usize) {
        self.prepare(threads);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_or_its_task_tells_what_a_request_is_for() {
        use RequestClass::{Delete, List, Read, Write};
        let base = "http://h:9/bucket/any/prefix/larder-1/";
        for (class, name, stated, expected) in [
            (Read, "j/1-2.pack", None, RequestPurpose::LookUp),
            (Read, "j/1-2.pack", Some(RequestPurpose::Journal), RequestPurpose::Journal),
            (Read, "j/1-2.pack?x-id=GetObject", Some(RequestPurpose::Reclaiming), RequestPurpose::Reclaiming),
            (Read, "b/00/11/2", None, RequestPurpose::LookUp),
            (Write, "j/1-2.pack?x-id=PutObject", None, RequestPurpose::Packs),
            (Write, "j/1-2.pack", Some(RequestPurpose::Reclaiming), RequestPurpose::Reclaiming),
            (Write, "j/1-2.purges", Some(RequestPurpose::Journal), RequestPurpose::Purges),
            (Write, "b/00/11/2?uploads", None, RequestPurpose::Bodies),
            (Write, "s/1-2", Some(RequestPurpose::Journal), RequestPurpose::Snapshots),
            (Read, "s/1-2", None, RequestPurpose::Snapshots),
            (Delete, "j/1-2.pack", None, RequestPurpose::Reclaiming),
            (Delete, "j/1-2.purges", None, RequestPurpose::Journal),
            (Write, "probe", None, RequestPurpose::Probe),
            (Delete, "acme/0/claims/1-2-3", None, RequestPurpose::Certificates),
            (Read, "probe", Some(RequestPurpose::Journal), RequestPurpose::Probe),
        ] {
            assert_eq!(purpose_of(class, &format!("{base}{name}"), stated), expected, "{class:?} {name}");
        }
        let listing = "http://h:9/bucket/?list-type=2&prefix=larder-1%2Fj%2F";
        assert_eq!(purpose_of(List, listing, Some(RequestPurpose::Journal)), RequestPurpose::Journal);
        assert_eq!(purpose_of(List, listing, None), RequestPurpose::Probe);
    }

    #[test]
    fn a_date_that_is_hours_off_does_not_move_the_clock() {
        let now = Timestamp::from_secs(1_700_000_000);
        let clock = Clock::manual(now);
        let watcher =
            Watcher { metrics: Metrics::new(1), clock, offset: AtomicI64::new(0), has_warned: AtomicBool::new(false) };
        let date = |ahead: i64| httpdate::fmt_http_date(now.plus_millis(ahead * 1000).into());
        // Seconds that the service is ahead, and by how much the clock is corrected then.
        for (ahead, expected) in
            [(0, 0), (600, 600), (365 * 86_400, 600), (-7200, 600), (-600, -600), (3500, 3500), (3700, 3500), (0, 0)]
        {
            watcher.note_date(&date(ahead));
            let offset = watcher.offset.load(Ordering::Relaxed);
            assert!((offset - expected * 1000).abs() <= 500, "{ahead}: {offset}");
        }
    }
}
