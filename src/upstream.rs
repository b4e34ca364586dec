//! The origin: connections over TCP or a unix socket, kept and used again.
//!
//! Each worker thread keeps its own idle connections, so that taking one costs no lock. hyper-util
//! has a pool as well; it does not tell whether a connection had been used before, which decides
//! whether a request that failed may be sent again.

mod body;
mod link;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::header::{self, HeaderMap};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tracing::{debug, info, warn};

pub use self::body::{UpstreamBody, UpstreamBodyError};
use self::link::{Link, take_idle};
use crate::breaker::{Admission, Breaker, Probe};
use crate::clock::{Stopwatch, Timer};
pub use crate::interim::Interim;
use crate::request_body::Fault;
pub use crate::request_body::RequestBody;
use crate::request_body::Upload;
use crate::rfc9111::fields;
use crate::telemetry::{Metrics, OriginOutcome};
use crate::transport::{self, Transport};

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

impl std::error::Error for UpstreamError {
    /// What the error comes of that its own sentence has.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect(error) => error.source(),
            Self::Broken(error) => error.source(),
            Self::ConnectTimeout
            | Self::ResponseTimeout
            | Self::RequestBody(_)
            | Self::Down { .. }
            | Self::Unsupported(_) => None,
        }
    }
}

/// The head of a request to the origin: target in origin form, fields complete.
pub struct OriginRequest<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Path and query, or `*`.
    pub uri: &'a Uri,
    /// Makes its fields, `Host` among them, those of the client's connection not. Called again when it has
    /// to be sent a second time.
    pub fields: &'a (dyn Fn() -> HeaderMap + Sync),
    /// Where interim responses to it go.
    pub interim: Option<&'a Interim>,
    /// What for.
    pub errand: Errand,
}

impl OriginRequest<'_> {
    fn message(&self, body: RequestBody) -> Request<RequestBody> {
        let mut message = Request::new(body);
        *message.method_mut() = self.method.clone();
        *message.uri_mut() = self.uri.clone();
        *message.headers_mut() = (self.fields)();
        *message.version_mut() = Version::HTTP_11;
        if let Some(interim) = self.interim.cloned() {
            hyper::ext::on_informational(&mut message, move |response| {
                interim.relay(response.status(), response.headers());
            });
        }
        message
    }
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

/// The most bytes that are read of a response before they are passed on; its head has to fit.
const READ_AHEAD: usize = 64 << 10;

/// No origin closes a kept connection sooner than this.
const NEVER_CLOSED_YET: Duration = Duration::from_secs(1);

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
    pub async fn send(
        self: &Arc<Self>,
        request: &OriginRequest<'_>,
        body: RequestBody,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let _probe = self.admit(request.errand)?;
        let begun = Stopwatch::start();
        // RFC 9110 §9.2.2: only an idempotent request may be repeated, and only when its body can be.
        let is_repeatable = matches!(body, RequestBody::Empty) && is_idempotent(request.method);
        let mut wait = Wait { since: begun, limit: self.config.response_timeout, upload: body.upload() };
        let (mut body, mut may_be_kept) = (Some(body), true);
        let mut unsent: Option<Box<Request<RequestBody>>> = None;
        // One future, without others within it but for a connection's: a response is moved by each.
        let error = loop {
            let kept = if may_be_kept { self.take_kept(begun, is_repeatable) } else { None };
            let is_kept = kept.is_some();
            let mut link = match kept {
                Some(link) => link,
                None => match Box::pin(self.connect(wait.left())).await {
                    Ok(link) => link,
                    Err(error) => break error,
                },
            };
            link.is_in_use = true;
            let message = match unsent.take() {
                Some(unsent) => *unsent,
                None => request.message(body.take().unwrap_or(RequestBody::Empty)),
            };
            let mut answer = std::pin::pin!(link.sender.try_send_request(message));
            let answered = std::future::poll_fn(|cx| match answer.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(Some(answer)),
                Poll::Pending => wait.poll_end(&mut link.timer, cx).map(|()| None),
            });
            let mut failure = match answered.await {
                Some(Ok(response)) => match unsupported(&response, || (request.fields)().contains_key(header::UPGRADE))
                {
                    None => return Ok(self.take(response, link, begun)),
                    Some(why) => break UpstreamError::Unsupported(why),
                },
                Some(Err(failure)) => failure,
                None => break UpstreamError::ResponseTimeout,
            };
            unsent = failure.take_message().map(Box::new);
            let error = wait.error(failure.into_error());
            match &unsent {
                // The origin had closed the kept connection, and did not get the request.
                Some(_) if is_kept => {}
                // It may have got it. Once more, on a connection that nobody has used: a request that
                // is itself what breaks connections must not go through all of them.
                None if is_kept && is_repeatable && matches!(error, UpstreamError::Broken(_)) => may_be_kept = false,
                Some(_) | None => break error,
            }
            self.metrics.origin_retries.add_one();
        };
        self.learn_from(Some(&error));
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

    /// Takes a response that came over a connection.
    fn take(&self, mut response: Response<Incoming>, mut link: Box<Link>, begun: Stopwatch) -> Response<UpstreamBody> {
        self.learn_from(None);
        // RFC 9112 §2.3: an intermediary speaks its own version. The client's framing must not hang on
        // the origin's.
        *response.version_mut() = Version::HTTP_11;
        if ends_with_connection(&response) {
            response.extensions_mut().insert(EndsWithConnection);
        }
        let now = Stopwatch::start();
        self.metrics.origin_latency.record(now.since(begun));
        link.heard = Some(now);
        response.map(|body| UpstreamBody::new(body, link))
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
        self.metrics.origin(match error {
            None => OriginOutcome::Answered,
            Some(UpstreamError::Connect(_) | UpstreamError::ConnectTimeout) => OriginOutcome::ConnectFailed,
            Some(UpstreamError::ResponseTimeout) => OriginOutcome::TimedOut,
            Some(
                UpstreamError::Broken(_)
                | UpstreamError::RequestBody(_)
                | UpstreamError::Unsupported(_)
                | UpstreamError::Down { .. },
            ) => OriginOutcome::Broken,
        });
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

    async fn connect(self: &Arc<Self>, left: Duration) -> Result<Box<Link>, UpstreamError> {
        let limit = self.config.connect_timeout;
        let in_time = timeout(limit.min(left), self.dial()).await;
        let transport = in_time
            .map_err(|_| if limit <= left { UpstreamError::ConnectTimeout } else { UpstreamError::ResponseTimeout })?
            .map_err(|error| UpstreamError::Connect(Arc::new(error)))?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(READ_AHEAD)
            .handshake(TokioIo::new(transport))
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
            is_in_use: false,
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
                    transport::send_at_once(&SockRef::from(&stream), address.ip());
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
struct Wait {
    since: Stopwatch,
    limit: Duration,
    upload: Option<Upload>,
}

impl Wait {
    fn left(&self) -> Duration {
        self.limit.saturating_sub(self.since.elapsed())
    }

    /// Why there is no answer: the client's body goes before what hyper says of it.
    fn error(&self, error: hyper::Error) -> UpstreamError {
        match self.upload.as_ref().and_then(Upload::fault) {
            Some(fault) => UpstreamError::RequestBody(fault),
            None if error.is_user() => UpstreamError::RequestBody(Fault::Broken),
            None => UpstreamError::Broken(Arc::new(error)),
        }
    }

    /// Ready when the origin has had its time.
    fn poll_end(&mut self, timer: &mut Timer, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(timer.poll(cx, self.since, self.limit));
            let Some(upload) = &self.upload else { return Poll::Ready(()) };
            let moved = upload.moved();
            if moved.elapsed() < self.limit {
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

/// Marks a response whose body ends with its connection (RFC 9112 §6.3): cut short it looks the
/// same.
#[derive(Clone, Copy, Debug)]
pub struct EndsWithConnection;

fn ends_with_connection<B: Body>(response: &Response<B>) -> bool {
    response.body().size_hint().exact().is_none()
        && !fields::has_member(response.headers(), &header::TRANSFER_ENCODING, "chunked")
}

/// Why a response can't be passed on, if it can't.
fn unsupported<B: Body>(response: &Response<B>, wants_upgrade: impl FnOnce() -> bool) -> Option<&'static str> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && !wants_upgrade() {
        return Some("the application changed protocols although nobody asked it to");
    }
    // RFC 9112 §7: compression for the way that is not undone would be taken for the content's own. Where
    // the length is known none was applied.
    let compresses = |coding: &[u8]| {
        [&b"gzip"[..], b"x-gzip", b"deflate", b"compress", b"x-compress"]
            .iter()
            .any(|known| coding.eq_ignore_ascii_case(known))
    };
    let has_length = response.body().size_hint().exact().is_some();
    if !has_length && fields::members(response.headers(), &header::TRANSFER_ENCODING).any(compresses) {
        return Some("the application compresses with Transfer-Encoding, which this server does not undo");
    }
    None
}

fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE)
}
