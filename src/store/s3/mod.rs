//! Durable objects in an S3 bucket. The only folder that names the AWS SDK.

mod explain;
mod lifecycle;
mod look;
mod upload;

use self::explain::Asked;
pub use self::lifecycle::Lifecycle;
use self::look::{Learning, Looked, Looker};
pub use self::upload::S3Upload;

use std::cell::Cell;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::endpoint::{DefaultResolver, Endpoint, EndpointFuture, Params, ResolveEndpoint};
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::interceptors::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
};
use aws_sdk_s3::config::{
    Builder, ConfigBag, Intercept, RequestChecksumCalculation, ResponseChecksumValidation, RuntimeComponents,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use bytes::{Bytes, BytesMut};
use parking_lot::RwLock;

use super::backend::{BackendError, CheckFailure, Listed, PROBE, Page, Pieces, Trouble};
use crate::base::{Clock, Metrics, RequestClass};
use crate::entry::encoding::SMALL;
use crate::rfc9111::timestamp::Timestamp;

/// How an S3 bucket is reached. Credentials come from the SDK's usual chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Config {
    /// The bucket.
    pub bucket: String,
    /// For S3-compatible services; empty: AWS.
    pub endpoint_url: String,
    /// Empty: as the SDK finds it.
    pub region: String,
    /// Whether the bucket is named in the path rather than in the host name.
    pub path_style: bool,
}

/// A bucket of objects.
#[derive(Debug)]
pub struct S3Store {
    /// What everything but the looking for small objects is done with.
    client: Client,
    /// For that, one for each thread that does it: with connections of its own, so that no answer has to be
    /// handed from the thread that reads it to the one that waits.
    lookers: RwLock<Vec<Looker>>,
    settings: Builder,
    config: S3Config,
    watcher: Arc<Watcher>,
    /// An object that is there, once [`S3Store::check`] has written and read it.
    probe: OnceLock<String>,
}

thread_local! {
    /// Which of the clients this thread uses.
    static THREAD: Cell<Option<usize>> = const { Cell::new(None) };
}

/// This thread is the one with this number, from 0, of those that look for objects.
pub fn look_from(thread: usize) {
    THREAD.set(Some(thread));
}

/// Where one bucket is, worked out once: the rules for that take longer than all else about a small request.
#[derive(Debug)]
struct OneEndpoint {
    rules: DefaultResolver,
    known: OnceLock<Endpoint>,
}

impl OneEndpoint {
    fn new() -> Self {
        // Its default knows of no region.
        Self { rules: DefaultResolver::new(), known: OnceLock::new() }
    }
}

impl ResolveEndpoint for OneEndpoint {
    fn resolve_endpoint<'a>(&'a self, params: &'a Params) -> EndpointFuture<'a> {
        if let Some(known) = self.known.get() {
            return EndpointFuture::ready(Ok(known.clone()));
        }
        EndpointFuture::new(async move {
            let found = self.rules.resolve_endpoint(params).await?;
            Ok(self.known.get_or_init(|| found).clone())
        })
    }
}

/// Sees every request go out, those that the SDK tries again included, and every answer come.
#[derive(Debug)]
struct Watcher {
    metrics: Arc<Metrics>,
    clock: Clock,
    /// See [`S3Store::clock_offset`].
    offset: AtomicI64,
}

/// The SDK's handle to it.
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
        self.0.metrics.request(match request.method() {
            "GET" if request.uri().contains("list-type=2") || request.uri().contains("?uploads") => RequestClass::List,
            "GET" | "HEAD" => RequestClass::Read,
            "DELETE" => RequestClass::Delete,
            _ => RequestClass::Write,
        });
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

impl Watcher {
    /// Takes in what the service says the time is.
    fn note_date(&self, date: &str) {
        let Ok(date) = httpdate::parse_http_date(date) else { return };
        // In whole seconds: on the average half a second ago.
        let ahead = Timestamp::from(date).plus_millis(500).millis_since(self.clock.now());
        self.offset.store(if ahead.abs() <= SAME_CLOCK { 0 } else { ahead }, Ordering::Relaxed);
    }

    /// The time as the service has it.
    fn time(&self) -> SystemTime {
        self.clock.now().plus_millis(self.offset.load(Ordering::Relaxed)).into()
    }
}

/// Clocks that differ by no more milliseconds count as one.
const SAME_CLOCK: i64 = 2000;

/// The longest that a name of ours may be, and the service's default, of a page of a listing.
const PAGE: i32 = 1000;

impl S3Store {
    /// Loads credentials and region as the SDK does everywhere. Nothing is sent to the bucket yet.
    pub async fn connect(config: S3Config, metrics: Arc<Metrics>, clock: Clock) -> Self {
        let watcher = Arc::new(Watcher { metrics, clock, offset: AtomicI64::new(0) });
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
            // Objects carry their own checksums; the SDK's newer ones are refused by some services.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if shared.region().is_none() {
            builder = builder.region(Region::new("us-east-1"));
        }
        let client = Client::from_conf(builder.clone().build());
        Self { client, lookers: RwLock::default(), settings: builder, config, watcher, probe: OnceLock::new() }
    }

    /// Has so many threads look for objects that call [`look_from`].
    pub fn prepare(&self, threads: usize) {
        // Whoever looks has a deadline of his own: the SDK need not keep three.
        let patient = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build();
        let settings = self
            .settings
            .clone()
            .timeout_config(patient)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        let client = |learning: Learning| {
            let settings = settings.clone().endpoint_resolver(OneEndpoint::new()).interceptor(learning);
            Client::from_conf(settings.build())
        };
        *self.lookers.write() = (0..threads).map(|_| Looker::new(client)).collect();
    }

    /// The object `name`, looked for by this thread's own means if it has any.
    async fn look(&self, name: &str) -> Result<Option<(S3Pieces, Option<u64>)>, BackendError> {
        let Some(looker) = THREAD.get().and_then(|thread| self.lookers.read().get(thread).cloned()) else {
            return self.open(&self.client, name, None).await;
        };
        match looker.look(name, &self.watcher).await {
            Looked::Object(stream, len) => Ok(Some((S3Pieces { stream, name: name.to_owned() }, len))),
            Looked::Nothing => Ok(None),
            Looked::Unclear => {
                let opened = self.open(&looker.client, name, None).await;
                if opened.is_ok() {
                    looker.learn(name);
                }
                opened
            }
        }
    }

    /// How far the service's clock is ahead of this machine's, in milliseconds, by its last answer.
    pub fn clock_offset(&self) -> i64 {
        self.watcher.offset.load(Ordering::Relaxed)
    }

    /// The objects whose names begin with `prefix` and come after `after`: the first page of them.
    pub async fn list(&self, prefix: &str, after: &str) -> Result<Page, BackendError> {
        let listing = self.client.list_objects_v2().bucket(&self.config.bucket).prefix(prefix).max_keys(PAGE);
        let listing = if after.is_empty() { listing } else { listing.start_after(after) };
        let page = listing.send().await.map_err(|error| self.config.fault(Asked::List, prefix, &error))?;
        let is_last = !page.is_truncated.unwrap_or(false);
        let listed = page.contents.unwrap_or_default().into_iter().filter_map(|object| {
            let modified = object.last_modified.and_then(|time| SystemTime::try_from(time).ok()).map(Timestamp::from);
            Some(Listed { name: object.key?, modified: modified.unwrap_or_default() })
        });
        // A service that ignores where to begin would never come to an end.
        let listed: Vec<Listed> = listed.filter(|listed| listed.name.as_str() > after).collect();
        Ok(Page { is_last: is_last || listed.is_empty(), listed })
    }

    /// Checks that names below `root` may be listed, and the object `probe` written and read: in that order, and
    /// nothing outside `root` is asked for, since rights may end there.
    pub async fn check(&self, root: &str, probe: &str) -> Result<(), CheckFailure> {
        self.list_one(root).await?;
        let text = |error: BackendError| CheckFailure(error.to_string());
        self.put(probe, &[Bytes::from_static(PROBE)]).await.map_err(text)?;
        let read = self.client.get_object().bucket(&self.config.bucket).key(probe).send().await;
        read.map_err(|error| text(self.config.fault(Asked::Read, probe, &error)))?;
        // From now on a refused read can be told from one of an object that is not there.
        let _ = self.probe.set(probe.to_owned());
        Ok(())
    }

    async fn list_one(&self, root: &str) -> Result<bool, CheckFailure> {
        let listing = self.client.list_objects_v2().bucket(&self.config.bucket).prefix(root).max_keys(1);
        let listed = listing.send().await;
        let failure = |error| CheckFailure(self.config.fault(Asked::List, root, &error).to_string());
        listed.map(|page| page.contents.is_some_and(|listed| !listed.is_empty())).map_err(failure)
    }

    /// Returns whether names below `root` can be listed.
    pub async fn is_there(&self, root: &str) -> bool {
        self.list_one(root).await.is_ok()
    }

    /// Checks that something lies below `root`.
    pub async fn look_for_cache(&self, root: &str) -> Result<(), CheckFailure> {
        if self.list_one(root).await? {
            return Ok(());
        }
        Err(CheckFailure(format!(
            "in the bucket \"{}\" nothing lies below \"{root}\": check durable.url and cache.key_prefix, which have to be those that Larder runs with",
            self.config.bucket
        )))
    }

    /// The object `name`, if there is one of at most `limit` bytes.
    pub async fn get(&self, name: &str, limit: u64) -> Result<Option<Bytes>, BackendError> {
        let Some((mut pieces, len)) = self.look(name).await? else { return Ok(None) };
        if len.is_some_and(|len| len > limit) {
            return Err(BackendError::failing(format!("{name} has more than the {limit} bytes of any object of ours")));
        }
        // What is large goes into a buffer of its own: a piece keeps all that was read from the network with it.
        let expected = len.and_then(|len| usize::try_from(len).ok()).unwrap_or(0);
        let mut small = Bytes::new();
        let mut whole = BytesMut::with_capacity(if expected > SMALL { expected } else { 0 });
        while let Some(piece) = pieces.next().await? {
            let total = small.len() + whole.len() + piece.len();
            if total as u64 > limit {
                return Err(BackendError::failing(format!(
                    "{name} has more than the {limit} bytes of any object of ours"
                )));
            }
            if whole.is_empty() && small.is_empty() && total <= SMALL {
                small = piece;
            } else {
                whole.extend_from_slice(&std::mem::take(&mut small));
                whole.extend_from_slice(&piece);
            }
        }
        let whole = if whole.is_empty() { small } else { whole.freeze() };
        if len.is_some_and(|len| len != whole.len() as u64) {
            return Err(BackendError::failing(format!("{name} ended after {} bytes", whole.len())));
        }
        Ok(Some(whole))
    }

    /// The object `name`, piece by piece, if there is one of `len` bytes.
    pub async fn read(&self, name: &str, len: u64) -> Result<Option<Pieces>, BackendError> {
        match self.open(&self.client, name, None).await? {
            None => Ok(None),
            Some((_, Some(actual))) if actual != len => {
                Err(BackendError::failing(format!("{name} has {actual} bytes instead of {len}")))
            }
            Some((pieces, _)) => Ok(Some(Pieces::S3(pieces))),
        }
    }

    /// The bytes of the object `name` from `first` up to `end`, if there is one that has them.
    pub async fn read_range(&self, name: &str, first: u64, end: u64) -> Result<Option<Pieces>, BackendError> {
        let range = format!("bytes={first}-{}", end.saturating_sub(1));
        match self.open(&self.client, name, Some(range)).await? {
            None => Ok(None),
            // A service that ignores the range sends the whole.
            Some((_, len)) if len.is_some_and(|len| len != end - first) => {
                Err(BackendError::failing(format!("{name} gave {} bytes instead of {}", len.unwrap_or(0), end - first)))
            }
            Some((pieces, _)) => Ok(Some(Pieces::S3(pieces))),
        }
    }

    async fn open(
        &self,
        client: &Client,
        name: &str,
        range: Option<String>,
    ) -> Result<Option<(S3Pieces, Option<u64>)>, BackendError> {
        match client.get_object().bucket(&self.config.bucket).key(name).set_range(range).send().await {
            Ok(object) => {
                let len = object.content_length().and_then(|len| u64::try_from(len).ok());
                Ok(Some((S3Pieces { stream: object.body, name: name.to_owned() }, len)))
            }
            Err(SdkError::ServiceError(service))
                if service.err().is_no_such_key()
                    || (service.raw().status().as_u16() == 404 && service.err().code() != Some("NoSuchBucket")) =>
            {
                Ok(None)
            }
            Err(SdkError::ServiceError(service)) if self.may_hide_a_missing(name, service.raw()) => {
                // A caller who may not list without naming a prefix is told this of every missing name.
                if self.is_readable().await {
                    return Ok(None);
                }
                Err(self.config.fault(Asked::Read, name, &SdkError::ServiceError(service)))
            }
            Err(error) => Err(self.config.fault(Asked::Read, name, &error)),
        }
    }

    /// Returns whether an answer refuses to read an object, and may do so because there is none.
    fn may_hide_a_missing(&self, name: &str, answer: &HttpResponse) -> bool {
        answer.status().as_u16() == 403 && self.probe.get().is_some_and(|probe| probe != name)
    }

    /// Returns whether the object that is known to be there may be read.
    async fn is_readable(&self) -> bool {
        let Some(probe) = self.probe.get() else { return false };
        self.client.get_object().bucket(&self.config.bucket).key(probe).send().await.is_ok()
    }

    /// Writes the object `name`.
    pub async fn put(&self, name: &str, pieces: &[Bytes]) -> Result<(), BackendError> {
        let body = match pieces {
            [one] => one.clone(),
            many => many.concat().into(),
        };
        put(&self.client, &self.config, name, body).await
    }

    /// Deletes the object `name`; it is no error if there is none.
    pub async fn delete(&self, name: &str) -> Result<(), BackendError> {
        match self.client.delete_object().bucket(&self.config.bucket).key(name).send().await {
            Err(SdkError::ServiceError(service)) if service.err().code() == Some("NoSuchKey") => Ok(()),
            Err(error) => Err(self.config.fault(Asked::Delete, name, &error)),
            Ok(_) => Ok(()),
        }
    }
}

/// How long a connection to the service may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

async fn put(client: &Client, store: &S3Config, name: &str, body: Bytes) -> Result<(), BackendError> {
    client
        .put_object()
        .bucket(&store.bucket)
        .key(name)
        .content_type("application/octet-stream")
        .body(ByteStream::from(body))
        .send()
        .await
        .map(|_| ())
        .map_err(|error| store.fault(Asked::Write, name, &error))
}

/// An object of the bucket, piece by piece.
#[derive(Debug)]
pub struct S3Pieces {
    stream: ByteStream,
    name: String,
}

impl S3Pieces {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BackendError> {
        match self.stream.next().await {
            None => Ok(None),
            Some(Ok(piece)) => Ok(Some(piece)),
            Some(Err(error)) => Err(BackendError::new(Trouble::Unreachable, format!("{}: {error}", self.name))),
        }
    }
}
