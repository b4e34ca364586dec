//! The origin: connections over TCP or a unix socket, kept and used again.
//!
//! Each worker thread keeps its own idle connections, so that taking one costs no lock. hyper-util
//! has a pool as well; it does not tell whether a connection had been used before, which decides
//! whether a request that failed may be sent again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Sleep, timeout};
use tracing::{debug, info, warn};

use crate::breaker::{Admission, Breaker, Probe};
use crate::clock::Stopwatch;
pub use crate::interim::Interim;
use crate::request_body::Fault;
pub use crate::request_body::RequestBody;
use crate::rfc9111::fields;
use crate::telemetry::{Metrics, OriginOutcome};

/// `[upstream]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the origin listens.
    pub address: Address,
    /// How long making a connection may take.
    pub connect_timeout: Duration,
    /// From sending a request to its response head.
    pub response_timeout: Duration,
    /// The longest silence within a response's body.
    pub body_timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// How many unused connections each worker thread keeps.
    pub max_idle: usize,
    /// `Host` for every request; `None`: the client's.
    pub host: Option<String>,
    /// After so many failures on end the origin counts as down; 0: never.
    pub breaker_failures: u32,
    /// How long lies between two attempts to find it up again, at the least.
    pub breaker_pause: Duration,
}

/// `upstream.url`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `http://host:port`
    Tcp {
        /// A name or an address.
        host: String,
        /// The port.
        port: u16,
    },
    /// `unix:/path`
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "http://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: Address::Tcp { host: "127.0.0.1".into(), port: 5000 },
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(30),
            max_idle: 256,
            host: None,
            breaker_failures: 5,
            breaker_pause: Duration::from_secs(1),
        }
    }
}

/// Why there is no response from the origin.
#[derive(Clone, Debug)]
pub enum UpstreamError {
    /// No connection could be made.
    Connect(Arc<io::Error>),
    /// No connection could be made in time.
    ConnectTimeout,
    /// No response head arrived in time.
    ResponseTimeout,
    /// The connection broke before the head, or what came is not HTTP.
    Broken(Arc<hyper::Error>),
    /// The client's own request body ended early.
    RequestBody(Fault),
    /// The origin is known to be down, and was not asked; whether it was slow when it failed last,
    /// rather than gone.
    Down {
        /// Whether it was slow.
        was_slow: bool,
    },
    /// The answer is one that this proxy can't pass on; the sentence says why.
    Unsupported(&'static str),
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "no connection to the origin: {error}"),
            Self::ConnectTimeout => f.write_str("no connection to the origin in time"),
            Self::ResponseTimeout => f.write_str("the origin did not answer in time"),
            Self::Broken(error) => write!(f, "the origin's answer broke off: {error}"),
            Self::RequestBody(fault) => fault.fmt(f),
            Self::Down { .. } => f.write_str("the origin is known to be down"),
            Self::Unsupported(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for UpstreamError {}

/// A request to the origin: target in origin form, fields complete.
#[derive(Debug)]
pub struct OriginRequest {
    /// Its method.
    pub method: Method,
    /// Path and query, or `*`.
    pub uri: Uri,
    /// Its fields, `Host` among them, those of the client's connection not.
    pub fields: HeaderMap,
    /// Its body.
    pub body: RequestBody,
    /// Where interim responses to it go.
    pub interim: Option<Interim>,
    /// What for.
    pub errand: Errand,
}

/// What a request to the origin is for, as far as an origin that is known to be down goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Errand {
    /// For a client that has nothing else.
    #[default]
    Client,
    /// For a client that has a stale response to do with.
    StandIn,
    /// For nobody who waits.
    Background,
}

type Sender = SendRequest<RequestBody>;

struct Idle {
    sender: Sender,
    since: Stopwatch,
}

thread_local! {
    /// The idle connections of this thread, by origin.
    static IDLE: RefCell<HashMap<u64, Vec<Idle>>> = RefCell::default();
}

/// The most bytes that are read of a response before they are passed on; its head has to fit.
const READ_AHEAD: usize = 64 << 10;

/// No origin closes a kept connection sooner than this.
const NEVER_CLOSED_YET: Duration = Duration::from_secs(1);

/// How long a connection whose last request is still going out is kept.
const TO_BECOME_FREE: Duration = Duration::from_secs(1);

/// The origin.
#[derive(Debug)]
pub struct Upstream {
    id: u64,
    config: Config,
    metrics: Arc<Metrics>,
    breaker: Arc<Breaker>,
}

impl Upstream {
    /// An origin that no connection is made to yet.
    pub fn new(config: Config, metrics: Arc<Metrics>) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let breaker = Breaker::new(config.breaker_failures, config.breaker_pause);
        Arc::new(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), config, metrics, breaker })
    }

    /// The `[upstream]` it was made with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether the origin is known to be down.
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// The longest that a request waits for the head of its response, from connecting on.
    pub fn patience(&self) -> Duration {
        self.config.connect_timeout + self.config.response_timeout
    }

    /// Whether a connection can be made now.
    pub async fn is_reachable(&self) -> bool {
        match timeout(self.config.connect_timeout, self.dial()).await {
            Ok(dialed) => dialed.is_ok(),
            Err(_) => false,
        }
    }

    /// Sends a request and waits for the head of its final response.
    pub async fn send(self: &Arc<Self>, request: OriginRequest) -> Result<Response<UpstreamBody>, UpstreamError> {
        let _probe = self.admit(request.errand)?;
        let watch = Stopwatch::start();
        let outcome = self.exchange_in_time(request).await;
        self.learn_from(outcome.as_ref().err());
        self.metrics.origin(match &outcome {
            Ok(_) => OriginOutcome::Answered,
            Err(UpstreamError::Connect(_) | UpstreamError::ConnectTimeout) => OriginOutcome::ConnectFailed,
            Err(UpstreamError::ResponseTimeout) => OriginOutcome::TimedOut,
            Err(
                UpstreamError::Broken(_)
                | UpstreamError::RequestBody(_)
                | UpstreamError::Unsupported(_)
                | UpstreamError::Down { .. },
            ) => OriginOutcome::Broken,
        });
        if outcome.is_ok() {
            self.metrics.origin_latency.record(watch.elapsed());
        }
        outcome
    }

    /// Leave to ask an origin that may be known to be down.
    fn admit(&self, errand: Errand) -> Result<Option<Probe>, UpstreamError> {
        let admission = match errand {
            Errand::Client => self.breaker.admit(),
            Errand::Background => self.breaker.admit_in_background(),
            Errand::StandIn if self.breaker.is_open() => Admission::Refused { was_slow: false },
            Errand::StandIn => Admission::Granted,
        };
        match admission {
            Admission::Granted => Ok(None),
            Admission::Probe(probe) => Ok(Some(probe)),
            Admission::Refused { was_slow } => {
                self.metrics.origin_refused.add_one();
                Err(UpstreamError::Down { was_slow })
            }
        }
    }

    /// What an outcome says of the origin. What went wrong here says nothing.
    fn learn_from(&self, error: Option<&UpstreamError>) {
        let has_failed = match error {
            None | Some(UpstreamError::Unsupported(_)) => {
                if self.breaker.succeeded() {
                    info!("the application answers again");
                }
                false
            }
            Some(UpstreamError::Connect(error)) => !is_our_own(error) && self.breaker.failed(false),
            Some(UpstreamError::ConnectTimeout | UpstreamError::ResponseTimeout | UpstreamError::Broken(_)) => {
                self.breaker.failed(true)
            }
            Some(UpstreamError::RequestBody(_) | UpstreamError::Down { .. }) => false,
        };
        if let (true, Some(error)) = (has_failed, error) {
            self.metrics.origin_downs.add_one();
            warn!("the application counts as down until it answers: {error}");
        }
    }

    /// The origin has `response_timeout` for its answer, counted from when the request's body last
    /// moved: an upload may take as long as it does.
    async fn exchange_in_time(
        self: &Arc<Self>,
        request: OriginRequest,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let upload = request.body.upload();
        let limit = self.config.response_timeout;
        let mut exchange = std::pin::pin!(self.exchange(request));
        let mut left = limit;
        loop {
            if let Ok(outcome) = timeout(left, exchange.as_mut()).await {
                return outcome;
            }
            let Some(upload) = &upload else { return Err(UpstreamError::ResponseTimeout) };
            left = limit.saturating_sub(upload.still_for());
            if left.is_zero() {
                // A client that stands still is the body's own business: it ends it.
                if !upload.waits_for_client() {
                    return Err(UpstreamError::ResponseTimeout);
                }
                left = limit;
            }
        }
    }

    async fn exchange(self: &Arc<Self>, request: OriginRequest) -> Result<Response<UpstreamBody>, UpstreamError> {
        let OriginRequest { method, uri, fields, body, interim, errand: _ } = request;
        // RFC 9110 §9.2.2: only an idempotent request may be repeated, and only when its body can be.
        let repeatable = matches!(body, RequestBody::Empty) && is_idempotent(&method);
        let mut message = Request::new(body);
        *message.method_mut() = method;
        *message.uri_mut() = uri;
        *message.headers_mut() = fields;
        *message.version_mut() = Version::HTTP_11;
        relay_interim(&mut message, interim.as_ref());

        // Origins close connections that were idle for a second or more, and a request that can't be
        // repeated must not run into that.
        let newer_than = if repeatable { self.config.idle_timeout } else { NEVER_CLOSED_YET };
        while let Some(sender) = self.take_idle(newer_than.min(self.config.idle_timeout)) {
            let copy = repeatable.then(|| copy_head(&message));
            match self.try_send(sender, message).await {
                Ok(response) => return Ok(response),
                // The origin had closed the kept connection, and did not get the request.
                Err((_, Some(unsent))) => {
                    message = unsent;
                    self.metrics.origin_retries.add_one();
                }
                // It may have got it. Once more, on a connection that nobody has used: a request
                // that is itself what breaks connections must not go through all of them.
                Err((error @ UpstreamError::Broken(_), None)) => {
                    message = copy.ok_or(error)?;
                    relay_interim(&mut message, interim.as_ref());
                    self.metrics.origin_retries.add_one();
                    break;
                }
                Err((error, None)) => return Err(error),
            }
        }
        let sender = self.connect().await?;
        self.try_send(sender, message).await.map_err(|(error, _)| error)
    }

    async fn try_send(
        self: &Arc<Self>,
        mut sender: Sender,
        message: Request<RequestBody>,
    ) -> Result<Response<UpstreamBody>, (UpstreamError, Option<Request<RequestBody>>)> {
        let wants_upgrade = message.headers().contains_key(header::UPGRADE);
        let upload = message.body().upload();
        match sender.try_send_request(message).await {
            Ok(mut response) => match unsupported(&response, wants_upgrade) {
                Some(why) => Err((UpstreamError::Unsupported(why), None)),
                None => {
                    // RFC 9112 §2.3: an intermediary speaks its own version. The client's framing must
                    // not hang on the origin's.
                    *response.version_mut() = Version::HTTP_11;
                    if ends_with_connection(&response) {
                        response.extensions_mut().insert(EndsWithConnection);
                    }
                    Ok(response.map(|body| UpstreamBody::new(body, sender, Arc::clone(self))))
                }
            },
            Err(mut failure) => {
                let unsent = failure.take_message();
                let fault = upload.and_then(|upload| upload.fault());
                let error = failure.into_error();
                let error = match fault {
                    Some(fault) => UpstreamError::RequestBody(fault),
                    None if error.is_user() => UpstreamError::RequestBody(Fault::Broken),
                    None => UpstreamError::Broken(Arc::new(error)),
                };
                Err((error, unsent))
            }
        }
    }

    async fn connect(&self) -> Result<Sender, UpstreamError> {
        let dialed = timeout(self.config.connect_timeout, self.dial()).await;
        let stream = dialed
            .map_err(|_| UpstreamError::ConnectTimeout)?
            .map_err(|error| UpstreamError::Connect(Arc::new(error)))?;
        match stream {
            Stream::Tcp(stream) => handshake(TokioIo::new(stream)).await,
            Stream::Unix(stream) => handshake(TokioIo::new(stream)).await,
        }
    }

    async fn dial(&self) -> io::Result<Stream> {
        match &self.config.address {
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Address::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix),
        }
    }

    /// The kept connection that was used last, if any is open, free, and idle for less than
    /// `newer_than`.
    fn take_idle(&self, newer_than: Duration) -> Option<Sender> {
        IDLE.with_borrow_mut(|idle| {
            let idle = idle.get_mut(&self.id)?;
            // From the newest on, and no further than need be: those below are looked at in their turn.
            let mut at = idle.len();
            while let Some(one) = at.checked_sub(1).and_then(|newest| idle.get(newest)) {
                at -= 1;
                if one.sender.is_closed() {
                    idle.remove(at);
                } else if one.sender.is_ready() {
                    let idle_for = one.since.elapsed();
                    if idle_for > self.config.idle_timeout {
                        // Those below have been idle for longer still.
                        idle.drain(..=at);
                        return None;
                    }
                    return (idle_for <= newer_than).then(|| idle.remove(at).sender);
                } else if one.since.elapsed() >= TO_BECOME_FREE {
                    // Its last request is still going out (the origin answered before it had all of
                    // it), and it had a moment to become free.
                    idle.remove(at);
                }
            }
            None
        })
    }

    fn give_back(&self, sender: Sender) {
        if sender.is_closed() || self.config.max_idle == 0 {
            return;
        }
        // `try_with`: a body may be dropped while its thread is being torn down.
        let _ = IDLE.try_with(|idle| {
            if let Ok(mut idle) = idle.try_borrow_mut() {
                let idle = idle.entry(self.id).or_default();
                if idle.len() >= self.config.max_idle {
                    idle.remove(0);
                }
                idle.push(Idle { sender, since: Stopwatch::start() });
            }
        });
    }
}

/// Whether a connection could not be made for want of something on this side.
fn is_our_own(error: &io::Error) -> bool {
    // EMFILE, ENFILE, EADDRNOTAVAIL, ENOBUFS.
    matches!(error.raw_os_error(), Some(24 | 23 | 99 | 105))
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

async fn handshake<S>(stream: TokioIo<S>) -> Result<Sender, UpstreamError>
where
    S: Unpin + Send + 'static,
    TokioIo<S>: hyper::rt::Read + hyper::rt::Write,
{
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(READ_AHEAD)
        .handshake(stream)
        .await
        .map_err(|error| UpstreamError::Broken(Arc::new(error)))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!("a connection to the origin ended: {error}");
        }
    });
    Ok(sender)
}

/// Marks a response whose body ends with its connection (RFC 9112 §6.3): cut short it looks the
/// same.
#[derive(Clone, Copy, Debug)]
pub struct EndsWithConnection;

fn ends_with_connection<B: Body>(response: &Response<B>) -> bool {
    let is_chunked = fields::has_member(response.headers(), &header::TRANSFER_ENCODING, "chunked");
    !is_chunked && response.body().size_hint().exact().is_none()
}

/// Why a response can't be passed on, if it can't.
fn unsupported<B>(response: &Response<B>, wants_upgrade: bool) -> Option<&'static str> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && !wants_upgrade {
        return Some("the application changed protocols although nobody asked it to");
    }
    // RFC 9112 §7: compression for the way that is not undone would be taken for the content's own.
    let compresses = |coding: &[u8]| {
        [&b"gzip"[..], b"x-gzip", b"deflate", b"compress", b"x-compress"]
            .iter()
            .any(|known| coding.eq_ignore_ascii_case(known))
    };
    if fields::members(response.headers(), &header::TRANSFER_ENCODING).any(compresses) {
        return Some("the application compresses with Transfer-Encoding, which this server does not undo");
    }
    None
}

fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE)
}

/// Has interim responses to `message` passed on as they arrive.
fn relay_interim(message: &mut Request<RequestBody>, interim: Option<&Interim>) {
    if let Some(interim) = interim.cloned() {
        hyper::ext::on_informational(message, move |response| interim.relay(response.status(), response.headers()));
    }
}

fn copy_head(message: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = message.method().clone();
    *copy.uri_mut() = message.uri().clone();
    *copy.headers_mut() = message.headers().clone();
    *copy.version_mut() = message.version();
    copy
}

/// The body of a response from the origin. At its end the connection is kept for the next request;
/// dropped before, it is closed.
#[derive(Debug)]
pub struct UpstreamBody {
    body: Incoming,
    sender: Option<Sender>,
    upstream: Arc<Upstream>,
    silence: Option<Pin<Box<Sleep>>>,
}

/// Why a response's body broke off.
#[derive(Debug)]
pub enum UpstreamBodyError {
    /// The connection broke, or the framing did.
    Broken(hyper::Error),
    /// Nothing came for longer than `upstream.body_timeout`.
    TimedOut,
}

impl fmt::Display for UpstreamBodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(error) => write!(f, "the origin's response broke off: {error}"),
            Self::TimedOut => f.write_str("the origin's response stalled"),
        }
    }
}

impl std::error::Error for UpstreamBodyError {}

impl UpstreamBody {
    fn new(body: Incoming, sender: Sender, upstream: Arc<Upstream>) -> Self {
        let mut this = Self { body, sender: Some(sender), upstream, silence: None };
        this.finish_if_ended();
        this
    }

    /// hyper does not ask a body of known length for its end, so it is looked for after each frame.
    fn finish_if_ended(&mut self) {
        if self.body.is_end_stream()
            && let Some(sender) = self.sender.take()
        {
            self.upstream.give_back(sender);
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = UpstreamBodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.silence = None;
                this.finish_if_ended();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.sender = None;
                Poll::Ready(Some(Err(UpstreamBodyError::Broken(error))))
            }
            Poll::Ready(None) => {
                if let Some(sender) = this.sender.take() {
                    this.upstream.give_back(sender);
                }
                Poll::Ready(None)
            }
            Poll::Pending => {
                let limit = this.upstream.config.body_timeout;
                let silence = this.silence.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
                if silence.as_mut().poll(cx).is_ready() {
                    this.sender = None;
                    return Poll::Ready(Some(Err(UpstreamBodyError::TimedOut)));
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
