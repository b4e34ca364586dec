//! Sends requests to the origin over TCP or a unix socket, on connections that are kept and used again.
//!
//! Each worker thread keeps its own idle connections, so that taking one needs no lock. hyper-util's pool does not tell
//! whether a connection was used before. That decides whether a failed request may be sent again.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::{info, warn};
use xxhash_rust::xxh3::xxh3_64;

use super::apart::{Apart, Sent, hold, tell};
use super::attempts::Attempts;
use super::body::UpstreamBody;
use super::connect::is_our_own;
use super::endpoint::{Endpoint, Target};
use super::link::{self, Link};
use super::message::{Errand, OriginRequest, expects_content};
use super::origin_io::Wire;
use super::pool::{Choice, Pool, Seat};
use super::request_body::RequestBody;
use super::sticky::Sticky;
use super::tls::{OriginTls, OriginTlsError};
use super::upload::Upload;
use super::wait::HeadWait;
use super::watch::LookUps;
use super::{Buffers, Config, UpstreamError, framing};
use crate::base::log::cut;
use crate::base::{Metrics, OriginOutcome, Probe, Stopwatch, Transport};

/// Idle time within which origins do not close a kept connection.
const NEVER_CLOSED_YET: Duration = Duration::from_secs(1);

/// The origin: its settings, its addresses, and the requests to them. The idle connections are the threads' own (`link`).
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(super) config: Config,
    pub(super) pool: Arc<Pool>,
    pub(super) look_ups: LookUps,
    tls: Option<OriginTls>,
    pub(super) sticky: Option<Sticky>,
    metrics: Arc<Metrics>,
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
    /// Makes an origin, and no connection to it yet. Names are looked up by [`Upstream::watch`].
    pub(crate) fn new(
        config: Config,
        metrics: Arc<Metrics>,
        buffers: Arc<Buffers>,
    ) -> Result<Arc<Self>, OriginTlsError> {
        let tls = OriginTls::new(&config)?;
        let endpoints = config.addresses.iter().enumerate();
        let endpoints = endpoints.map(|(n, listed)| config.endpoint(n, listed, Target::of(&listed.address)));
        let pool = Pool::new(&config, endpoints.collect());
        let sticky = match &*config.sticky_cookie {
            "" => None,
            name => Some(Sticky::new(name, &config.sticky_key).map_err(|_| no_random_bytes())?),
        };
        Ok(Arc::new(Self {
            config,
            pool,
            look_ups: LookUps::default(),
            tls,
            sticky,
            metrics,
            buffers,
            logged: Mutex::default(),
        }))
    }

    /// Returns the `[upstream]` settings.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the addresses.
    pub(crate) fn endpoints(&self) -> Arc<[Arc<Endpoint>]> {
        self.pool.endpoints()
    }

    /// Returns the number of requests that wait until an address has room.
    pub(crate) fn waiting(&self) -> usize {
        self.pool.waiting()
    }

    /// Returns whether every address is known to be down.
    pub(crate) fn is_down(&self) -> bool {
        self.pool.is_down()
    }

    /// Returns whether a request that no client waits for may be sent.
    pub(crate) fn is_probe_due(&self) -> bool {
        self.pool.is_probe_due()
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

    /// Returns whether a connection can be made now, to whichever address.
    pub(crate) async fn is_reachable(&self) -> bool {
        for endpoint in self.endpoints().iter() {
            if matches!(timeout(self.config.connect_timeout, self.dial(endpoint)).await, Ok(Ok(_))) {
                return true;
            }
        }
        false
    }

    /// Sends a request and waits for the head of its final response. One that an address did not get, or that may be
    /// repeated and broke off, is sent to another.
    // No `async fn`, which would be one more layer that moves the response.
    pub(crate) fn send<'a>(
        self: &'a Arc<Self>,
        request: &'a OriginRequest<'_>,
        body: RequestBody,
    ) -> impl Future<Output = Sent> + Send + 'a {
        self.send_from(request, body, None)
    }

    /// Finds a place for a request.
    #[inline]
    pub(super) async fn seat(
        self: &Arc<Self>,
        request: &OriginRequest<'_>,
        choice: &Choice,
    ) -> Result<(Seat, Option<Probe>), UpstreamError> {
        let mut seated = self.pool.seat(&self.config, choice).await;
        if matches!(seated, Err(UpstreamError::Down { .. }))
            && request.errand == Errand::Client
            && self.look_ups.are_hastened()
        {
            // All that are known may be gone, and others there.
            Box::pin(self.look_ups.settle()).await;
            seated = self.pool.seat(&self.config, choice).await;
        }
        if let Some(is_sent) = request.is_sent {
            is_sent.store(true, Ordering::Relaxed);
        }
        seated.inspect_err(|_| self.metrics.origin_refused.add_one())
    }

    /// Sends a request that has its place already, or finds one.
    pub(super) async fn send_from(
        self: &Arc<Self>,
        request: &OriginRequest<'_>,
        body: RequestBody,
        apart: Option<Apart>,
    ) -> Sent {
        let (mut choice, mut seat, mut probe, mut client) = match apart {
            Some(Apart { choice, seat, probe, client }) => (choice, seat, probe, client),
            None if self.config.max_requests > 0 => return self.send_apart(request, body).await,
            None => {
                let choice = self.choice(request);
                let (seat, probe) = self.seat(request, &choice).await?;
                (choice, seat, probe, None)
            }
        };
        self.pool.note_request(self.config.retry_budget);
        let begun = Stopwatch::start();
        let mut answers = seat.endpoint.breaker.answers();
        let mut wait = HeadWait { since: begun, limit: &request.transfer.response_timeout, upload: body.upload() };
        let mut attempts = Attempts::new(request.method, body);
        // Everything but connecting, which is rare, is in one future: each further one would move the response once more.
        loop {
            let (error, was_sending) = loop {
                let endpoint = &seat.endpoint;
                let idle =
                    if attempts.may_reuse { self.take_idle(endpoint, begun, attempts.is_repeatable) } else { None };
                let is_reused = idle.is_some();
                let mut link = match idle {
                    Some(link) => link,
                    None => match Box::pin(self.connect(endpoint, wait.left())).await {
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
                        Ok(mut response) => {
                            self.keep_at(&choice, &seat, &mut response);
                            hold(&mut response, seat);
                            return tell(&mut client, Ok(response));
                        }
                        Err(error) => break (error, false),
                    },
                    Some(Err(failure)) => failure,
                    None if client.is_some() => {
                        let is_excused = wait.is_sending(&link.wire) || seat.endpoint.breaker.answers() != answers;
                        self.learn_from(
                            &seat.endpoint,
                            &UpstreamError::ResponseTimeout,
                            is_excused,
                            request.uri.path(),
                        );
                        drop(probe.take());
                        let told = tell(&mut client, Err(UpstreamError::ResponseTimeout));
                        // The application is still at work on it.
                        let _ = Box::pin(timeout(request.transfer.response_timeout, answer)).await;
                        return told;
                    }
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
            // A request that broke off at one address already may be at fault itself.
            let has_broken = !choice.tried.is_empty();
            let is_excused = was_sending || has_broken || seat.endpoint.breaker.answers() != answers;
            self.learn_from(&seat.endpoint, &error, is_excused, request.uri.path());
            drop(probe.take());
            choice.tried.push(seat.endpoint.id);
            if !attempts.may_go_elsewhere(&error) || client.as_ref().is_some_and(oneshot::Sender::is_closed) {
                return tell(&mut client, Err(error));
            }
            let has_moved = error.is_connect() && self.may_have_moved(&seat.endpoint);
            drop(seat);
            if has_moved && !self.pool.has_another(&choice) {
                Box::pin(self.look_ups.settle()).await;
            }
            if !self.pool.has_another(&choice) || !self.pool.take_repeat() {
                return tell(&mut client, Err(error));
            }
            choice.since.get_or_insert(begun);
            let Ok(another) = self.pool.seat(&self.config, &choice).await else {
                // The others have gone down meanwhile: the first failure says more.
                return tell(&mut client, Err(error));
            };
            (seat, probe) = another;
            answers = seat.endpoint.breaker.answers();
            self.metrics.origin_retries.add_one();
        }
    }

    /// Opens a connection to an address, with TLS if it speaks that.
    pub(super) async fn dial(&self, endpoint: &Endpoint) -> io::Result<Transport> {
        let transport = endpoint.dial().await?;
        match &self.tls {
            Some(tls) if endpoint.is_tls => tls.connect(endpoint.listed, transport).await,
            Some(_) | None => Ok(transport),
        }
    }

    /// Takes an idle connection, if there is one that the request may use at `now`.
    fn take_idle(&self, endpoint: &Endpoint, now: Stopwatch, is_repeatable: bool) -> Option<Box<Link>> {
        // Origins close connections that were idle for a second or more. A request that can't be repeated must not be
        // sent on one that is about to be closed.
        let limit = self.config.idle_timeout;
        let newer_than = if is_repeatable { limit } else { NEVER_CLOSED_YET.min(limit) };
        link::take_idle(endpoint.id, now, newer_than, limit)
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
            // An application that answers an error often leaves the request's body unread, and so may one that finds a
            // QUERY's validator to be current (304). It would take the body for its next request.
            let was_read = response.status().is_success() || response.status() == StatusCode::SEE_OTHER;
            link.may_be_kept &= is_sent && was_read && expects_content(request.method);
            link.upload = (!is_sent).then_some(upload);
        }
        self.metrics.origin(OriginOutcome::Answered);
        link.endpoint.note(OriginOutcome::Answered);
        self.note_answer(&link.endpoint);
        // RFC 9112 §2.3: an intermediary sends its own version. The framing to the client must not depend on the
        // origin's version.
        *response.version_mut() = Version::HTTP_11;
        let now = Stopwatch::start();
        self.metrics.origin_latency.record(now.since(begun));
        link.heard = Some(now);
        Ok(response.map(|body| UpstreamBody::new(body, link)))
    }

    /// Tells the breaker of an address that it answered.
    pub(super) fn note_answer(&self, endpoint: &Arc<Endpoint>) {
        if endpoint.breaker.succeeded() {
            endpoint.begin_slowly();
            if endpoint.may_tell_up() {
                info!("the application at {} answers again", endpoint.name);
            }
            self.pool.offer(endpoint);
        }
    }

    /// Counts a failed request, and tells the breaker if it says something about the origin.
    ///
    /// A failure on this side says nothing. An answer that can't be used shows that the origin is up. The
    /// timeouts and broken answers of one path count once.
    pub(super) fn learn_from(&self, endpoint: &Arc<Endpoint>, error: &UpstreamError, is_excused: bool, path: &str) {
        let outcome = match error {
            UpstreamError::Connect(_) | UpstreamError::ConnectTimeout => OriginOutcome::ConnectFailed,
            UpstreamError::ResponseTimeout => OriginOutcome::TimedOut,
            UpstreamError::Broken(_)
            | UpstreamError::Malformed(_)
            | UpstreamError::TooLargeHead(_)
            | UpstreamError::TooManyFields(_)
            | UpstreamError::InvalidLength
            | UpstreamError::Unsupported(_) => OriginOutcome::Broken,
            UpstreamError::RequestBody(_) | UpstreamError::Busy | UpstreamError::Down { .. } => OriginOutcome::NotSent,
        };
        self.metrics.origin(outcome);
        endpoint.note(outcome);
        let has_failed = match error {
            UpstreamError::Malformed(_)
            | UpstreamError::TooLargeHead(_)
            | UpstreamError::TooManyFields(_)
            | UpstreamError::InvalidLength
            | UpstreamError::Unsupported(_) => {
                self.note_answer(endpoint);
                self.log_unusable(endpoint, error, path);
                false
            }
            UpstreamError::Connect(error) => !is_our_own(error) && endpoint.breaker.failed(false),
            UpstreamError::ConnectTimeout => endpoint.breaker.failed(true),
            UpstreamError::ResponseTimeout | UpstreamError::Broken(_) => {
                !is_excused && endpoint.breaker.failed_at(true, xxh3_64(path.as_bytes()))
            }
            UpstreamError::RequestBody(_) | UpstreamError::Busy | UpstreamError::Down { .. } => false,
        };
        if error.is_connect() && self.may_have_moved(endpoint) {
            self.look_ups.hasten();
        }
        if has_failed {
            self.metrics.origin_downs.add_one();
            self.pool.offer_all();
            if endpoint.may_tell_down() {
                warn!("the application at {} counts as down until it answers: {error}", endpoint.name);
            }
        }
    }

    /// Logs why the answer of an address for `path` can't be used, at most once in [`LOG_PAUSE`].
    fn log_unusable(&self, endpoint: &Endpoint, error: &UpstreamError, path: &str) {
        let hash = xxh3_64(path.as_bytes());
        {
            let mut logged = self.logged.lock();
            logged.retain(|(_, at)| at.elapsed() < LOG_PAUSE);
            if logged.len() >= MAX_LOGGED || logged.iter().any(|(of, _)| *of == hash) {
                return;
            }
            logged.push_back((hash, Stopwatch::start()));
        }
        warn!("no answer for {}: {error} (from {})", cut(path.into()), endpoint.name);
    }
}

fn no_random_bytes() -> OriginTlsError {
    OriginTlsError::new("sticky_key", "it is empty, and the system has no random bytes; set it")
}

/// Makes the body of `message` stop once a write to `wire` has failed.
fn bind_to_wire(mut message: Request<RequestBody>, wire: &Arc<Wire>) -> Request<RequestBody> {
    message.body_mut().bind_to_wire(wire);
    message
}
