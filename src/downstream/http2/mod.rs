//! A client's connection of HTTP/2 (RFC 9113).
//!
//! * One task serves a connection and all of its streams, so a hit is answered where its request was read.
//! * This uses the `h2` crate itself, since hyper's server sends no informational responses and does not say when a
//!   client stops reading a single stream.
//! * A client that sends frames which ask for nothing, resets what it asked for, or does not read, loses its stream or
//!   its connection (`meter`, `io`, `stream`).
//! * Priorities (RFC 9218) are not heeded: `h2` gives the streams of a connection their turns in order.

mod io;
mod meter;
mod outgoing;
mod outlet;
mod request;
mod stream;
mod tunnel;

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, Stream as _};
use h2::server::{Builder, Connection};
use http::Request;
use tracing::debug;

use self::io::Http2Io;
use self::meter::Meter;
use self::outgoing::{Data, Outgoing};
use self::outlet::Outlet;
use self::stream::OpenStream;
use super::server::{Connections, Worker};
use crate::base::{Stopwatch, Timer, Transport, Unparsed};
use crate::proxy::{Client, Upgraded};
use crate::upstream::forwarding::Peer;
use crate::upstream::{ClientBody, Informational};

/// The bytes of a request's body that a client may send before somebody reads them.
const STREAM_WINDOW: u32 = 256 << 10;

/// The same for all bodies of a connection.
const CONNECTION_WINDOW: u32 = 1 << 20;

/// The largest frame.
const FRAME: u32 = 16 << 10;

/// The bytes of a response's body that wait for the connection.
const SEND_BUFFER: usize = 128 << 10;

/// The streams that a client may reset before they were looked at.
const PENDING_RESETS: usize = 50;

/// The streams that were reset here, and whose late frames are ignored.
const REMEMBERED_RESETS: usize = 50;

/// The requests that are begun before what they began is polled, and others have their turn.
const AT_ONCE: usize = 64;

/// The time in which a connection that is given up sends what it has to say.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The client, as all streams of a connection see it.
struct Http2Client {
    peer: Peer,
    outlet: Arc<Outlet>,
    outgoing: Arc<Outgoing>,
    meter: Arc<Meter>,
    /// The stream that is being polled.
    current: AtomicU64,
}

impl Client for Http2Client {
    fn peer(&self) -> &Peer {
        &self.peer
    }

    fn informational(&self) -> Informational {
        self.outlet.sender(self.current.load(Ordering::Relaxed))
    }

    fn wake_on_informational(&self, waker: &Waker) {
        self.outlet.wake_on_informational(self.current.load(Ordering::Relaxed), waker);
    }

    fn upgraded(&self, request: &mut Request<ClientBody>) -> Upgraded {
        tunnel::upgraded(request)
    }
}

/// Serves the streams of `peer` until its connection ends. `first` was read of it before.
pub(super) async fn serve(
    worker: &Worker,
    transport: Transport,
    first: Bytes,
    mut peer: Peer,
    connections: &Connections,
) {
    peer.is_http2 = true;
    let config = &*worker.config;
    let meter = Arc::new(Meter::new());
    let ip = peer.ip;
    let (io, wire) = Http2Io::new(transport, first, Arc::clone(&meter), config.body_timeout);
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_streams(config.max_streams)
        .max_header_list_size(u32::try_from(config.max_header_size).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(PENDING_RESETS)
        // The meter counts them by time, so that many do not add up on a connection that lasts.
        .max_local_error_reset_streams(None)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        .enable_connect_protocol();
    let handshake = builder.handshake::<_, Data>(io);
    let mut connection = match tokio::time::timeout(config.header_timeout, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            worker.refusals.note(Unparsed::Malformed, ip, &[]);
            debug!("a client's connection did not begin with HTTP/2: {error}");
            return;
        }
        Err(_) => {
            worker.refusals.note(Unparsed::HeadTimeout, ip, &[]);
            return;
        }
    };
    wire.lock().begin_turns();
    let (outlet, outgoing) = (Arc::default(), Arc::default());
    let client = Http2Client { peer, outlet, outgoing, meter: Arc::clone(&meter), current: AtomicU64::new(0) };
    let mut serving = Serving {
        worker,
        client: &client,
        meter: &meter,
        streams: FuturesUnordered::new(),
        begun: false,
        idle: Some(Stopwatch::start()),
        timer: Timer::default(),
        end: End::No,
        is_stopping: false,
        written: (0, Stopwatch::start()),
    };
    let mut ended = pin!(connections.ended());
    let outcome = std::future::poll_fn(|cx| {
        if !serving.is_stopping && (connections.are_ending() || ended.as_mut().poll(cx).is_ready()) {
            serving.is_stopping = true;
            connection.graceful_shutdown();
        }
        let polled = serving.poll(&mut connection, cx);
        // The rest is written when the connection is dropped.
        match wire.lock().poll_out(cx) {
            Poll::Ready(Err(error)) if polled.is_pending() => {
                debug!("a client's connection can't be written to: {error}");
                Poll::Ready(Ok(()))
            }
            Poll::Ready(_) | Poll::Pending => polled,
        }
    })
    .await;
    if let Err(error) = outcome {
        if let Some((why, what)) = fault(&error, &meter) {
            worker.refusals.note(why, ip, what.as_bytes());
        }
        debug!("a client's connection ended: {error}");
    }
}

/// Returns what a client did wrong, if that has ended its connection.
fn fault(error: &h2::Error, meter: &Meter) -> Option<(Unparsed, &'static str)> {
    if let Some(flood) = meter.flood() {
        return Some((Unparsed::Flood, flood.as_str()));
    }
    // `h2` itself has ended the connection.
    let reason = error.reason().filter(|_| error.is_library())?;
    Some(match reason {
        h2::Reason::ENHANCE_YOUR_CALM => {
            (Unparsed::Flood, "too many streams were reset, or frames too small or too many")
        }
        _ => (Unparsed::Malformed, "frames that HTTP/2 does not allow"),
    })
}

/// Says how far a connection has ended.
#[derive(Clone, Copy)]
enum End {
    No,
    /// Nobody asked for anything for a while: it was told so.
    Idle(Stopwatch),
    /// It is given up.
    Abrupt(Stopwatch),
}

/// A connection that is served.
struct Serving<'a> {
    worker: &'a Worker,
    client: &'a Http2Client,
    meter: &'a Meter,
    streams: FuturesUnordered<OpenStream<'a>>,
    /// True once a request has been read: a connection without any counts as idle from its first moment on.
    begun: bool,
    /// Runs while there is no stream.
    idle: Option<Stopwatch>,
    timer: Timer,
    end: End,
    /// True once Larder stops.
    is_stopping: bool,
    /// The bytes of bodies that were written when that was last looked at, and when they were found to have changed.
    written: (u64, Stopwatch),
}

impl Serving<'_> {
    /// Serves until nothing is left to be read or written.
    fn poll(
        &mut self,
        connection: &mut Connection<Http2Io, Data>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), h2::Error>> {
        let mut turns = 0;
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.begin(request, respond, cx);
                    turns += 1;
                    if turns < AT_ONCE {
                        continue;
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => {
                    return Poll::Ready(match self.meter.flood() {
                        Some(_) => Err(h2::Reason::ENHANCE_YOUR_CALM.into()),
                        None => Ok(()),
                    });
                }
                Poll::Pending => {}
            }
            match Pin::new(&mut self.streams).poll_next(cx) {
                Poll::Ready(Some(())) if turns < AT_ONCE => {}
                Poll::Ready(Some(())) => {
                    cx.waker().wake_by_ref();
                    break;
                }
                Poll::Ready(None) | Poll::Pending => {
                    if turns >= AT_ONCE {
                        cx.waker().wake_by_ref();
                    }
                    break;
                }
            }
        }
        for _ in 0..self.meter.take_malformed() {
            // `h2` has reset its stream, and does not say what it was.
            self.worker.refusals.note(
                Unparsed::Malformed,
                self.client.peer.ip,
                b"a request that HTTP/2 does not allow",
            );
        }
        if self.meter.flood().is_some() && !matches!(self.end, End::Abrupt(_)) {
            self.end = End::Abrupt(Stopwatch::start());
            self.streams.clear();
            connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
            cx.waker().wake_by_ref();
        }
        self.poll_end(connection, cx)
    }

    /// Begins to answer a request. What can be answered at once is.
    fn begin(
        &mut self,
        request: Request<h2::RecvStream>,
        mut respond: h2::server::SendResponse<Data>,
        cx: &mut Context<'_>,
    ) {
        self.begun = true;
        // `h2` hands over what was reset before it was looked at. The origin is not asked for that.
        if self.meter.has_resets() && respond.poll_reset(cx).is_ready() {
            return;
        }
        let mut stream = OpenStream::begin(self.worker, self.client, request, respond);
        if Pin::new(&mut stream).poll(cx).is_pending() {
            self.streams.push(stream);
            self.idle = None;
        } else if self.streams.is_empty() {
            self.idle = Some(Stopwatch::start());
        }
    }

    /// Ends a connection that nobody uses, or that is given up.
    fn poll_end(
        &mut self,
        connection: &mut Connection<Http2Io, Data>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), h2::Error>> {
        if self.streams.is_empty() && self.idle.is_none() {
            self.idle = Some(Stopwatch::start());
        }
        loop {
            let (since, limit) = match (self.end, self.idle) {
                (End::Idle(since) | End::Abrupt(since), _) => (since, LAST_WORDS),
                // Most clients close their connection by themselves then.
                (End::No, Some(since)) if self.is_stopping => (since, LAST_WORDS),
                (End::No, Some(since)) => (since, self.worker.config.idle_timeout),
                (End::No, None) => return Poll::Pending,
            };
            if self.timer.poll(cx, since, limit).is_pending() {
                return Poll::Pending;
            }
            let is_in_use = self.is_in_use(connection);
            match self.end {
                End::No if is_in_use => self.idle = Some(Stopwatch::start()),
                End::No => {
                    self.end = End::Idle(Stopwatch::start());
                    connection.graceful_shutdown();
                    cx.waker().wake_by_ref();
                }
                // A request came before the client knew.
                End::Idle(_) if is_in_use => self.end = End::Idle(Stopwatch::start()),
                End::Idle(_) => return Poll::Ready(Ok(())),
                End::Abrupt(_) => return Poll::Ready(Err(h2::Reason::ENHANCE_YOUR_CALM.into())),
            }
        }
    }

    /// Returns whether there is a stream: one that is answered, a tunnel, or one whose client still takes what waits
    /// for it.
    fn is_in_use(&mut self, connection: &Connection<Http2Io, Data>) -> bool {
        let outgoing = &self.client.outgoing;
        let written = outgoing.written();
        if written != self.written.0 {
            self.written = (written, Stopwatch::start());
        }
        let takes = || outgoing.waiting() == 0 || self.written.1.elapsed() < self.worker.config.body_timeout;
        !self.streams.is_empty() || (connection.has_streams() && takes())
    }
}
