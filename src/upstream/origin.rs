//! Sends requests to the origin over TCP or a unix socket, on connections that are kept and used again.
//!
//! Each worker thread keeps its own idle connections, so that taking one needs no lock. hyper-util's pool does not tell
//! whether a connection was used before. That decides whether a failed request may be sent again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::time::timeout;
use tracing::{info, warn};
use xxhash_rust::xxh3::xxh3_64;

use super::attempts::Attempts;
use super::body::UpstreamBody;
use super::connect::is_our_own;
use super::link::{self, Link};
use super::message::{Errand, OriginRequest, expects_content};
use super::origin_io::Wire;
use super::request_body::RequestBody;
use super::upload::Upload;
use super::wait::HeadWait;
use super::{Buffers, Config, UpstreamError, framing};
use crate::base::log::cut;
use crate::base::{Admission, Breaker, Metrics, OriginOutcome, Probe, Stopwatch};

/// Idle time within which origins do not close a kept connection.
const NEVER_CLOSED_YET: Duration = Duration::from_secs(1);

/// The origin: its settings, its breaker, and the requests to it. The idle connections are the threads' own (`link`).
#[derive(Debug)]
pub(crate) struct Upstream {
    /// Tells the idle connections of one origin from those of another.
    pub(super) id: u64,
    pub(super) config: Config,
    metrics: Arc<Metrics>,
    breaker: Arc<Breaker>,
    buffers: Arc<Buffers>,
    /// Hashes of the paths whose unusable answers were logged within [`LOG_PAUSE`], with the time of the line. The lock
    /// guards one look and one insertion.
    logged: Mutex<VecDeque<(u64, Stopwatch)>>,
}

/// Pause between two log lines about the unusable answers of one path.
const LOG_PAUSE: Duration = Duration::from_secs(60);

/// The most paths remembered as logged. While there are as many, no further path is logged.
const MAX_LOGGED: usize = 64;

impl Upstream {
    /// Makes an origin, and no connection to it yet.
    pub(crate) fn new(config: Config, metrics: Arc<Metrics>, buffers: Arc<Buffers>) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let breaker = Breaker::new(config.breaker_failures, config.breaker_pause);
        let (id, logged) = (NEXT.fetch_add(1, Ordering::Relaxed), Mutex::default());
        Arc::new(Self { id, config, metrics, breaker, buffers, logged })
    }

    /// Returns the `[upstream]` settings.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the breaker, which knows whether the origin is down.
    pub(crate) fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Returns the memory and the temporary files of the bodies that pass.
    pub(crate) fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    /// Returns the longest that a request waits for the head of its response, from connecting on.
    pub(crate) fn patience(&self) -> Duration {
        self.patience_for(self.config.response_timeout)
    }

    /// Returns the longest that a request with this `response_timeout` waits for the head of its response.
    pub(crate) fn patience_for(&self, response_timeout: Duration) -> Duration {
        self.config.connect_timeout + response_timeout
    }

    /// Returns whether a connection can be made now.
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
        let answers = self.breaker.answers();
        let mut wait = HeadWait { since: begun, limit: &request.transfer.response_timeout, upload: body.upload() };
        let mut attempts = Attempts::new(request.method, body);
        // Everything but connecting, which is rare, is in one future: each further one would move the response once more.
        let (error, was_sending) = loop {
            let idle = if attempts.may_reuse { self.take_idle(begun, attempts.is_repeatable) } else { None };
            let is_reused = idle.is_some();
            let mut link = match idle {
                Some(link) => link,
                None => match Box::pin(self.connect(wait.left())).await {
                    Ok(link) => link,
                    Err(error) => break (error, false),
                },
            };
            let message = attempts.message(request);
            link.begin(request.transfer);
            // In a function of its own: a borrow of `message` here would make the future hold it across the await.
            let message = bind_to_wire(message, &link.wire);
            let mut answer = std::pin::pin!(link.sender.try_send_request(message));
            let answered = std::future::poll_fn(|cx| match answer.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(Some(answer)),
                Poll::Pending => wait.poll_end(&mut link.timer, cx).map(|()| None),
            });
            let mut failure = match answered.await {
                Some(Ok(response)) => match self.accept(response, link, begun, request, &mut wait.upload) {
                    Ok(response) => return Ok(response),
                    Err(error) => break (error, false),
                },
                Some(Err(failure)) => failure,
                None => break (UpstreamError::ResponseTimeout, wait.is_sending(&link.wire)),
            };
            let unsent = failure.take_message();
            let error = wait.error(failure.into_error(), &link.wire, &self.config);
            if !attempts.may_retry(unsent, is_reused, &error) {
                break (error, wait.is_sending(&link.wire));
            }
            self.metrics.origin_retries.add_one();
        };
        // An origin that answered other requests meanwhile is not down, however many of its pages are slow or broken.
        let is_excused = was_sending || self.breaker.answers() != answers;
        self.learn_from(&error, is_excused, request.uri.path());
        Err(error)
    }

    /// Takes an idle connection, if there is one that the request may use at `now`.
    fn take_idle(&self, now: Stopwatch, is_repeatable: bool) -> Option<Box<Link>> {
        // Origins close connections that were idle for a second or more. A request that can't be repeated must not be
        // sent on one that is about to be closed.
        let limit = self.config.idle_timeout;
        let newer_than = if is_repeatable { limit } else { NEVER_CLOSED_YET.min(limit) };
        link::take_idle(self.id, now, newer_than, limit)
    }

    /// Checks a response that came over `link`, and ties its body to that. Fails if it can't be passed on.
    fn accept(
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
            // An application that answers an error often leaves the request's body unread. It would take the body for
            // its next request.
            let was_read = response.status().is_success() || response.status() == StatusCode::SEE_OTHER;
            link.may_be_kept &= is_sent && was_read && expects_content(request.method);
            link.upload = (!is_sent).then_some(upload);
        }
        self.metrics.origin(OriginOutcome::Answered);
        self.note_answer();
        // RFC 9112 §2.3: an intermediary sends its own version. The framing to the client must not depend on the
        // origin's version.
        *response.version_mut() = Version::HTTP_11;
        let now = Stopwatch::start();
        self.metrics.origin_latency.record(now.since(begun));
        link.heard = Some(now);
        Ok(response.map(|body| UpstreamBody::new(body, link)))
    }

    /// Tells the breaker that the origin answered.
    fn note_answer(&self) {
        if self.breaker.succeeded() {
            info!("the application answers again");
        }
    }

    /// Admits a request to the origin, or refuses it because the origin is known to be down.
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

    /// Counts a failed request, and tells the breaker if it says something about the origin.
    ///
    /// A failure on this side says nothing. An answer that can't be used shows that the origin is up. The
    /// timeouts and broken answers of one path count once.
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
                self.log_unusable(error, path);
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

    /// Logs why the answer for `path` can't be used, at most once in [`LOG_PAUSE`].
    fn log_unusable(&self, error: &UpstreamError, path: &str) {
        let hash = xxh3_64(path.as_bytes());
        {
            let mut logged = self.logged.lock();
            logged.retain(|(_, at)| at.elapsed() < LOG_PAUSE);
            if logged.len() >= MAX_LOGGED || logged.iter().any(|(of, _)| *of == hash) {
                return;
            }
            logged.push_back((hash, Stopwatch::start()));
        }
        warn!("no answer for {}: {error}", cut(path.into()));
    }
}

/// Makes the body of `message` stop once a write to `wire` has failed.
fn bind_to_wire(mut message: Request<RequestBody>, wire: &Arc<Wire>) -> Request<RequestBody> {
    message.body_mut().bind_to_wire(wire);
    message
}
