//! Sends requests to the origin over TCP or a unix socket, on connections that are kept and used again.
//!
//! Each worker thread keeps its own idle connections, so that taking one costs no lock. hyper-util
//! has a pool as well; it does not tell whether a connection had been used before, which decides
//! whether a request that failed may be sent again.

use crate::upstream::framing;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::header::HeaderValue;
use http::header::{self, HeaderMap};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tracing::{debug, info, warn};
use xxhash_rust::xxh3::xxh3_64;

use super::body::UpstreamBody;
use super::informational::{Informational, relay};
use super::link::{Link, take_idle};
use super::request_body::RequestBody;
use crate::base::{Admission, Breaker, Metrics, OriginOutcome, Probe, Stopwatch, Timer, Transport, send_at_once};
use crate::upstream::origin_io::{OriginIo, READ_AHEAD, Wire};
use crate::upstream::request_body::Upload;
use crate::upstream::{Buffers, Fault, Transfer};

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
    /// Bytes of a request's body that are taken in before the origin is asked.
    pub buffer_request: u64,
    /// Bytes of a response's body that are read ahead of its client.
    pub buffer_response: u64,
    /// Bytes of either that go to a temporary file past that.
    pub spool: u64,
    /// The most fields of a response.
    pub max_headers: usize,
    /// The largest response head, in bytes.
    pub max_header_size: usize,
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
            buffer_request: 64 << 10,
            buffer_response: 1 << 20,
            spool: 1 << 30,
            max_headers: MAX_HEADERS,
            max_header_size: 256 << 10,
        }
    }
}

/// As many fields hyper has room for without being told; to be told costs it something.
const MAX_HEADERS: usize = 100;

/// Why there is no response from the origin.
#[derive(Clone, Debug)]
pub enum UpstreamError {
    /// No connection could be made.
    Connect(Arc<io::Error>),
    /// No connection could be made in time.
    ConnectTimeout,
    /// No response head arrived in time.
    ResponseTimeout,
    /// The connection broke before the head was there.
    Broken(Arc<hyper::Error>),
    /// The origin's answer is not HTTP.
    Malformed(Arc<hyper::Error>),
    /// The head has more bytes than `upstream.max_header_size`, which is this.
    TooLargeHead(usize),
    /// The head has more fields than `upstream.max_headers`, which is this.
    TooManyFields(usize),
    /// The head states a length for the body that is none.
    InvalidLength,
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
            Self::Malformed(error) => write!(f, "the origin's answer is not HTTP: {error}"),
            Self::TooLargeHead(limit) => {
                write!(f, "the head of the origin's answer has more than {limit} bytes (upstream.max_header_size)")
            }
            Self::TooManyFields(limit) => {
                write!(f, "the origin's answer has more than {limit} fields (upstream.max_headers)")
            }
            Self::InvalidLength => f.write_str("the Content-Length of the origin's answer is not one number"),
            Self::RequestBody(fault) => fault.fmt(f),
            Self::Down { .. } => f.write_str("the origin is known to be down"),
            Self::Unsupported(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for UpstreamError {
    /// Returns the cause of the error that its own sentence already has.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect(error) => error.source(),
            Self::Broken(error) | Self::Malformed(error) => error.source(),
            Self::ConnectTimeout
            | Self::ResponseTimeout
            | Self::TooLargeHead(_)
            | Self::TooManyFields(_)
            | Self::InvalidLength
            | Self::RequestBody(_)
            | Self::Down { .. }
            | Self::Unsupported(_) => None,
        }
    }
}

/// The head of a request to the origin: target in origin form, fields complete.
pub(crate) struct OriginRequest<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Path and query, or `*`.
    pub uri: &'a Uri,
    /// Makes its fields, `Host` among them, those of the client's connection not. Called again when it has
    /// to be sent a second time.
    pub fields: &'a (dyn Fn() -> HeaderMap + Sync),
    /// Takes the informational responses to it.
    pub informational: Option<&'a Informational>,
    /// What for.
    pub errand: Errand,
    /// Limits for its bytes, and for those of the response.
    pub transfer: &'a Transfer,
}

impl OriginRequest<'_> {
    fn message(&self, body: RequestBody) -> Request<RequestBody> {
        let mut message = Request::new(body);
        let framed = matches!(message.body(), RequestBody::Sending(_)).then(|| message.body().size_hint().exact());
        *message.method_mut() = self.method.clone();
        *message.uri_mut() = self.uri.clone();
        *message.headers_mut() = (self.fields)();
        *message.version_mut() = Version::HTTP_11;
        if let Some(len) = framed {
            self.frame(message.headers_mut(), len);
        }
        if let Some(sender) = self.informational.cloned() {
            hyper::ext::on_informational(&mut message, move |response| {
                relay(&*sender, response.status(), response.headers());
            });
        }
        message
    }

    /// Says how long the body is. hyper sends none with a GET whose length it does not know.
    fn frame(&self, fields: &mut HeaderMap, len: Option<u64>) {
        if let Some(len) = len {
            fields.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
            // There are none behind a length.
            fields.remove(header::TRAILER);
        } else {
            fields.remove(header::CONTENT_LENGTH);
            fields.insert(header::TRANSFER_ENCODING, const { HeaderValue::from_static("chunked") });
        }
        if !expects_content(self.method) && len != Some(0) {
            // Closes the connection: an application that does not expect content there would take it for the next
            // request.
            let options = if fields.contains_key(header::TE) { "te, close" } else { "close" };
            fields.insert(header::CONNECTION, HeaderValue::from_static(options));
        }
    }
}

/// Returns whether applications read the content of requests with such a method. That of others means nothing to most
/// (RFC 9110 §9.3.1, §9.3.5, §9.3.7).
fn expects_content(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}

/// What a request to the origin is for, as far as an origin that is known to be down goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Errand {
    /// For a client that has nothing else.
    #[default]
    Client,
    /// For a client that has a stale response to do with.
    StandIn,
    /// For nobody who waits.
    Background,
}

/// No origin closes a kept connection sooner than this.
const NEVER_CLOSED_YET: Duration = Duration::from_secs(1);

/// The origin.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(super) id: u64,
    pub(super) config: Config,
    metrics: Arc<Metrics>,
    breaker: Arc<Breaker>,
    buffers: Arc<Buffers>,
    /// The paths whose answers lately could not be taken, and when that was logged.
    said: Mutex<VecDeque<(u64, Stopwatch)>>,
}

/// Pause between two log lines that the answers of one path can't be taken, and limit of the paths remembered for it.
const SAID: Duration = Duration::from_secs(60);
const MAX_SAID: usize = 64;

impl Upstream {
    /// An origin that no connection is made to yet.
    pub(crate) fn new(config: Config, metrics: Arc<Metrics>, buffers: Arc<Buffers>) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let breaker = Breaker::new(config.breaker_failures, config.breaker_pause);
        let (id, said) = (NEXT.fetch_add(1, Ordering::Relaxed), Mutex::default());
        Arc::new(Self { id, config, metrics, breaker, buffers, said })
    }

    /// The `[upstream]` it was made with.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Whether the origin is known to be down.
    pub(crate) fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// The memory and the files of bodies that pass.
    pub(crate) fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    /// The longest that a request waits for the head of its response, from connecting on.
    pub(crate) fn patience(&self) -> Duration {
        self.patience_for(self.config.response_timeout)
    }

    /// The same for a request whose `response_timeout` is its own.
    pub(crate) fn patience_for(&self, response_timeout: Duration) -> Duration {
        self.config.connect_timeout + response_timeout
    }

    /// Whether a connection can be made now.
    pub(crate) async fn is_reachable(&self) -> bool {
        match timeout(self.config.connect_timeout, self.dial()).await {
            Ok(dialed) => dialed.is_ok(),
            Err(_) => false,
        }
    }

    /// Sends a request and waits for the head of its final response.
    pub(crate) async fn send(
        self: &Arc<Self>,
        request: &OriginRequest<'_>,
        body: RequestBody,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let _probe = self.admit(request.errand)?;
        let begun = Stopwatch::start();
        // RFC 9110 §9.2.2: only an idempotent request may be repeated, and only when its body can be.
        let is_idempotent = is_idempotent(request.method);
        let again = if is_idempotent { body.whole().map(Box::new) } else { None };
        let answers = self.breaker.answers();
        let is_repeatable = again.is_some() || (is_idempotent && matches!(body, RequestBody::Empty));
        let mut wait = Wait { since: begun, limit: &request.transfer.response_timeout, upload: body.upload() };
        let (mut body, mut may_be_kept) = (Some(body), true);
        let mut unsent: Option<Box<Request<RequestBody>>> = None;
        // One future, without others within it but for a connection's: a response is moved by each.
        let (error, was_sending) = loop {
            let kept = if may_be_kept { self.take_kept(begun, is_repeatable) } else { None };
            let is_kept = kept.is_some();
            let mut link = match kept {
                Some(link) => link,
                None => match Box::pin(self.connect(wait.left())).await {
                    Ok(link) => link,
                    Err(error) => break (error, false),
                },
            };
            let message = match (unsent.take(), body.take()) {
                (Some(unsent), _) => *unsent,
                (None, Some(body)) => request.message(body),
                (None, None) => request.message(again.clone().map_or(RequestBody::Empty, |again| (*again).into())),
            };
            link.begin(request.transfer);
            // Changed elsewhere: what is lent here is carried along for as long as is waited.
            let message = go_over(message, &link.wire);
            let mut answer = std::pin::pin!(link.sender.try_send_request(message));
            let answered = std::future::poll_fn(|cx| match answer.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(Some(answer)),
                Poll::Pending => wait.poll_end(&mut link.timer, cx).map(|()| None),
            });
            let mut failure = match answered.await {
                Some(Ok(response)) => match self.take(response, link, begun, request, &mut wait.upload) {
                    Ok(response) => return Ok(response),
                    Err(error) => break (error, false),
                },
                Some(Err(failure)) => failure,
                None => break (UpstreamError::ResponseTimeout, wait.is_sending(&link.wire)),
            };
            unsent = failure.take_message().map(Box::new);
            let error = wait.error(failure.into_error(), &link.wire, &self.config);
            match &unsent {
                // The origin had closed the kept connection, and did not get the request.
                Some(_) if is_kept => {}
                // It may have got it. Once more, on a connection that nobody has used: a request that
                // is itself what breaks connections must not go through all of them.
                None if is_kept
                    && is_repeatable
                    && matches!(error, UpstreamError::Broken(_) | UpstreamError::Malformed(_)) =>
                {
                    may_be_kept = false;
                }
                Some(_) | None => break (error, wait.is_sending(&link.wire)),
            }
            self.metrics.origin_retries.add_one();
        };
        // A place that answers others meanwhile is not down, however many of its pages are slow or broken.
        let is_excused = was_sending || self.breaker.answers() != answers;
        self.learn_from(&error, is_excused, request.uri.path());
        Err(error)
    }

    /// Takes a kept connection, if there is one that will do at `now`.
    fn take_kept(&self, now: Stopwatch, is_repeatable: bool) -> Option<Box<Link>> {
        // Origins close connections that were idle for a second or more, and a request that can't be
        // repeated must not run into that.
        let limit = self.config.idle_timeout;
        let newer_than = if is_repeatable { limit } else { NEVER_CLOSED_YET.min(limit) };
        take_idle(self.id, now, newer_than, limit)
    }

    /// Takes a response that came over a connection; an error where it can't be passed on.
    fn take(
        &self,
        mut response: Response<Incoming>,
        mut link: Box<Link>,
        begun: Stopwatch,
        request: &OriginRequest<'_>,
        upload: &mut Option<Upload>,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS && !(request.fields)().contains_key(header::UPGRADE) {
            const UNASKED: &str = "the application changed protocols although nobody asked it to";
            return Err(UpstreamError::Unsupported(UNASKED));
        }
        link.may_be_kept = framing::settle(&mut response)?;
        if let Some(upload) = upload.take() {
            let is_sent = upload.is_sent() && link.wire.is_sent();
            // A body that an application left unread would be its next request. Those that answer an error often do
            // not read it.
            let was_read = response.status().is_success() || response.status() == StatusCode::SEE_OTHER;
            link.may_be_kept &= is_sent && was_read && expects_content(request.method);
            link.upload = (!is_sent).then_some(upload);
        }
        self.metrics.origin(OriginOutcome::Answered);
        self.note_answer();
        // RFC 9112 §2.3: an intermediary speaks its own version. The client's framing must not hang on
        // the origin's.
        *response.version_mut() = Version::HTTP_11;
        let now = Stopwatch::start();
        self.metrics.origin_latency.record(now.since(begun));
        link.heard = Some(now);
        Ok(response.map(|body| UpstreamBody::new(body, link)))
    }

    fn note_answer(&self) {
        if self.breaker.succeeded() {
            info!("the application answers again");
        }
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

    /// Learns what a failure says of the origin: what went wrong here says nothing, an answer that can't be
    /// taken is the fault of its `path`, and one path counts once.
    fn learn_from(&self, error: &UpstreamError, is_excused: bool, path: &str) {
        self.metrics.origin(match error {
            UpstreamError::Connect(_) | UpstreamError::ConnectTimeout => OriginOutcome::ConnectFailed,
            UpstreamError::ResponseTimeout => OriginOutcome::TimedOut,
            UpstreamError::Broken(_)
            | UpstreamError::Malformed(_)
            | UpstreamError::TooLargeHead(_)
            | UpstreamError::TooManyFields(_)
            | UpstreamError::InvalidLength
            | UpstreamError::RequestBody(_)
            | UpstreamError::Unsupported(_)
            | UpstreamError::Down { .. } => OriginOutcome::Broken,
        });
        let has_failed = match error {
            UpstreamError::Malformed(_)
            | UpstreamError::TooLargeHead(_)
            | UpstreamError::TooManyFields(_)
            | UpstreamError::InvalidLength
            | UpstreamError::Unsupported(_) => {
                self.note_answer();
                self.say(error, path);
                false
            }
            UpstreamError::Connect(error) => !is_our_own(error) && self.breaker.failed(false),
            UpstreamError::ConnectTimeout => self.breaker.failed(true),
            UpstreamError::ResponseTimeout | UpstreamError::Broken(_) => {
                !is_excused && self.breaker.failed_at(true, xxh3_64(path.as_bytes()))
            }
            UpstreamError::RequestBody(_) | UpstreamError::Down { .. } => false,
        };
        if has_failed {
            self.metrics.origin_downs.add_one();
            warn!("the application counts as down until it answers: {error}");
        }
    }

    /// Logs why the answer for `path` could not be taken, once in a while.
    fn say(&self, error: &UpstreamError, path: &str) {
        let hash = xxh3_64(path.as_bytes());
        {
            let mut said = self.said.lock();
            said.retain(|(_, at)| at.elapsed() < SAID);
            if said.len() >= MAX_SAID || said.iter().any(|(of, _)| *of == hash) {
                return;
            }
            said.push_back((hash, Stopwatch::start()));
        }
        warn!("no answer for {path}: {error}");
    }

    async fn connect(self: &Arc<Self>, left: Duration) -> Result<Box<Link>, UpstreamError> {
        let limit = self.config.connect_timeout;
        let in_time = timeout(limit.min(left), self.dial()).await;
        let transport = in_time
            .map_err(|_| if limit <= left { UpstreamError::ConnectTimeout } else { UpstreamError::ResponseTimeout })?
            .map_err(|error| UpstreamError::Connect(Arc::new(error)))?;
        let wire = Arc::new(Wire::default());
        let mut http = http1::Builder::new();
        http.max_buf_size(self.config.max_header_size.max(READ_AHEAD)).max_header_size(self.config.max_header_size);
        if self.config.max_headers != MAX_HEADERS {
            http.max_headers(self.config.max_headers);
        }
        let (sender, connection) = http
            .handshake(TokioIo::new(OriginIo::new(transport, Arc::clone(&wire))))
            .await
            .map_err(|error| UpstreamError::Broken(Arc::new(error)))?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                debug!("a connection to the origin ended: {error}");
            }
        });
        let (task, upstream) = (task.abort_handle(), Arc::clone(self));
        Ok(Box::new(Link {
            sender,
            task,
            timer: Timer::default(),
            upstream,
            wire,
            transfer: Transfer::default(),
            is_in_use: false,
            may_be_kept: true,
            upload: None,
            heard: None,
            silent: None,
        }))
    }

    async fn dial(&self) -> io::Result<Transport> {
        match &self.config.address {
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                if let Ok(address) = stream.peer_addr() {
                    send_at_once(&SockRef::from(&stream), address.ip());
                }
                Ok(Transport::Tcp(stream))
            }
            Address::Unix(path) => UnixStream::connect(path).await.map(Transport::Unix),
        }
    }
}

/// Whether a connection could not be made for want of something on this side.
fn is_our_own(error: &io::Error) -> bool {
    // EMFILE, ENFILE, EADDRNOTAVAIL, ENOBUFS.
    matches!(error.raw_os_error(), Some(24 | 23 | 99 | 105))
}

/// How long the head of a response is waited for. The origin has `limit` for it, counted from when the
/// request's body last moved: an upload may take as long as it does.
struct Wait<'a> {
    since: Stopwatch,
    limit: &'a Duration,
    upload: Option<Upload>,
}

impl Wait<'_> {
    fn left(&self) -> Duration {
        self.limit.saturating_sub(self.since.elapsed())
    }

    /// Returns whether the origin has not taken all of the request's body.
    fn is_sending(&self, wire: &Wire) -> bool {
        self.upload.as_ref().is_some_and(|upload| !(upload.is_sent() && wire.is_sent()))
    }

    /// Why there is no answer: the client's body goes before what hyper says of it.
    fn error(&self, error: hyper::Error, wire: &Wire, config: &Config) -> UpstreamError {
        match self.upload.as_ref().and_then(Upload::fault) {
            Some(fault) => UpstreamError::RequestBody(fault),
            None if error.is_user() => UpstreamError::RequestBody(Fault::Broken),
            None if error.is_parse_too_large() && wire.read() >= config.max_header_size as u64 => {
                UpstreamError::TooLargeHead(config.max_header_size)
            }
            None if error.is_parse_too_large() => UpstreamError::TooManyFields(config.max_headers),
            None if error.is_parse() => UpstreamError::Malformed(Arc::new(error)),
            None => UpstreamError::Broken(Arc::new(error)),
        }
    }

    /// Ready when the origin has had its time.
    fn poll_end(&mut self, timer: &mut Timer, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(timer.poll(cx, self.since, *self.limit));
            let Some(upload) = &self.upload else { return Poll::Ready(()) };
            let moved = upload.moved();
            if moved.elapsed() < *self.limit {
                self.since = moved;
            } else if upload.waits_for_client() {
                // A client that stands still is the body's own business: it ends it.
                self.since = Stopwatch::start();
            } else {
                return Poll::Ready(());
            }
        }
    }
}

/// Has `message` go out over a connection.
fn go_over(mut message: Request<RequestBody>, wire: &Arc<Wire>) -> Request<RequestBody> {
    message.body_mut().go_over(wire);
    message
}

fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE)
}
