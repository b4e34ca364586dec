//! The public listeners: worker threads, connections, limits, and the drain at the stop.
//!
//! Each worker is a thread with a runtime of its own and its own sockets (`SO_REUSEPORT`). So a connection, its
//! requests and the origin connections that they use stay on one core.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderName;
use ipnet::IpNet;
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::proxy_protocol::{Sender, introduce};
use super::{http1, http2};
use crate::base::{Stopwatch, Transport, Unparsed, WorkerMetrics};
use crate::downstream::{Listen, Refusals, Sockets};
use crate::proxy::Proxy;
use crate::tls::{Accepted, Protocol, Tls};
use crate::upstream::forwarding::{Peer, Trust};

/// `[server]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The addresses that clients connect to.
    pub listen: Vec<Listen>,
    /// The number of worker threads; 0: one a core.
    pub threads: usize,
    /// The proxies in front of this one whose `X-Forwarded` fields count.
    pub trusted_proxies: Vec<IpNet>,
    /// The load balancers whose connections begin with a PROXY header.
    pub proxy_protocol: Vec<Sender>,
    /// Further fields that those are believed in. Each is part of every key.
    pub trusted_fields: Vec<HeaderName>,
    /// The field names with other characters than letters, digits and hyphens that reach the origin all the same.
    pub allowed_fields: Vec<HeaderName>,
    /// The longest time from a request's first byte to the end of its head.
    pub header_timeout: Duration,
    /// The longest time that a connection may stay without a request.
    pub idle_timeout: Duration,
    /// The longest time in which a client takes nothing of what is written to it, or sends nothing of its request's
    /// body.
    pub body_timeout: Duration,
    /// The largest request body, in bytes; 0: no limit.
    pub max_body_size: u64,
    /// The bytes that fetches under way may hold before requests for further fetches are refused.
    pub max_buffered: u64,
    /// The largest request head, in bytes.
    pub max_header_size: usize,
    /// The most fields of a request.
    pub max_headers: usize,
    /// The most connections at once.
    pub max_connections: u64,
    /// The longest time for requests under way to finish when Larder stops.
    pub drain_timeout: Duration,
    /// The mode of the files of unix sockets, which says who may connect.
    pub socket_mode: u32,
    /// The bytes a second, averaged, below which a request's body is given up; 0: no limit.
    pub min_body_rate: u64,
    /// The time after which an idle tunnel ends.
    pub tunnel_timeout: Duration,
    /// The most bytes in all temporary files.
    pub max_spooled: u64,
    /// The directory of temporary files; empty: the system's.
    pub spool_dir: PathBuf,
    /// True if clients may begin HTTP/2 in clear text.
    pub h2c: bool,
    /// The most requests of one connection of HTTP/2 at once.
    pub max_streams: u32,
    /// The most requests of HTTP/2 at once, on all connections.
    pub max_requests: u64,
    /// True if requests in clear text are sent to the same URL with https.
    pub redirect_to_https: bool,
    /// The value of `Strict-Transport-Security` for what goes out by https; empty: the application's.
    pub hsts: String,
}

impl Config {
    /// Returns whose word on a request counts, and in which fields.
    pub fn trust(&self) -> Trust {
        Trust {
            proxies: self.trusted_proxies.clone(),
            fields: self.trusted_fields.clone(),
            allowed: self.allowed_fields.clone(),
            subject: None,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![Listen::Tcp("127.0.0.1:8080".into())],
            threads: 0,
            trusted_proxies: Vec::new(),
            proxy_protocol: Vec::new(),
            trusted_fields: Vec::new(),
            allowed_fields: Vec::new(),
            header_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(60),
            max_body_size: 0,
            max_buffered: 1 << 30,
            max_header_size: 64 << 10,
            max_headers: 100,
            max_connections: 20_000,
            drain_timeout: Duration::from_secs(20),
            socket_mode: 0o660,
            min_body_rate: 500,
            tunnel_timeout: Duration::from_secs(600),
            max_spooled: 10 << 30,
            spool_dir: PathBuf::new(),
            h2c: false,
            max_streams: 100,
            max_requests: 20_000,
            redirect_to_https: false,
            hsts: String::new(),
        }
    }
}

/// The most bytes that the kernel holds for a client and has not sent. The connection becomes writable again when half
/// of them are sent: every two seconds with the slowest client that others wait for.
const UNSENT: u32 = 256 << 10;

/// Counts the requests of HTTP/2 under way, of all workers.
#[derive(Debug, Default)]
pub(crate) struct Requests(AtomicU64);

impl Requests {
    /// Counts one more; `None`: there are `most` already.
    pub(super) fn begin(&self, most: u64) -> Option<UnderWay<'_>> {
        let under_way = UnderWay(self);
        (self.0.fetch_add(1, Ordering::Relaxed) < most).then_some(under_way)
    }
}

/// Guard of a request under way.
#[derive(Debug)]
pub(super) struct UnderWay<'a>(&'a Requests);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Says who connects to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Clients.
    Clients,
    /// Other nodes (`peers.listen`), whose fields count here alone.
    Peers,
}

/// One worker, which serves its share of the listeners until the stop and until its connections are done.
#[derive(Debug)]
pub(crate) struct Worker {
    /// Says who connects.
    pub audience: Audience,
    /// Answers the requests.
    pub proxy: Arc<Proxy>,
    /// `[server]`
    pub config: Arc<Config>,
    /// The counters of this worker.
    pub metrics: Arc<WorkerMetrics>,
    /// Speaks TLS; `None`: there is no listener with TLS.
    pub tls: Option<Arc<Tls>>,
    /// The requests of HTTP/2 under way, of all workers.
    pub under_way: Arc<Requests>,
    /// Counts what arrives and is not a request.
    pub refusals: Arc<Refusals>,
    /// Cancelled when Larder stops.
    pub stop: CancellationToken,
}

impl Worker {
    /// Serves on the current runtime until the stop, and drains.
    pub(crate) async fn run(self, sockets: Sockets) -> io::Result<()> {
        let this = Arc::new(self);
        let connections = Arc::new(Connections::default());
        let mut acceptors = Vec::new();
        let Sockets { tcp, tls, unix } = sockets;
        for (listeners, is_tls) in [(tcp, false), (tls, true)] {
            for listener in listeners {
                let listener = TcpListener::from_std(listener)?;
                acceptors.push(tokio::spawn(Arc::clone(&this).accept_tcp(listener, is_tls, Arc::clone(&connections))));
            }
        }
        for listener in unix {
            let listener = UnixListener::from_std(listener)?;
            acceptors.push(tokio::spawn(Arc::clone(&this).accept_unix(listener, Arc::clone(&connections))));
        }
        for acceptor in acceptors {
            // Acceptors end at the stop; one that panicked has ended as well.
            let _ = acceptor.await;
        }
        connections.end();
        // Bodies that are still coming in are stored, even if their clients are gone.
        let fetches = this.proxy.fetches();
        fetches.close();
        let tunnels = &this.proxy.tunnels;
        tunnels.close();
        let drained = async {
            connections.tasks.wait().await;
            fetches.wait().await;
            tunnels.wait().await;
        };
        if tokio::time::timeout(this.config.drain_timeout, drained).await.is_err() {
            let (connections, fetches, tunnels) = (connections.tasks.len(), fetches.len(), tunnels.len());
            warn!(
                "the drain's deadline has passed: {connections} connections, {fetches} fetches, {tunnels} tunnels end now"
            );
        }
        Ok(())
    }

    async fn accept_tcp(self: Arc<Self>, listener: TcpListener, is_tls: bool, connections: Arc<Connections>) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => {
                    let _ = stream.set_nodelay(true);
                    // Shows a slow client's progress while it reads. Otherwise it would show only when a third of a
                    // large send buffer is empty.
                    let _ = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT);
                    let scheme = if is_tls { "https" } else { "http" };
                    let peer = Peer::new(Some(from.ip()), scheme, &self.config.trusted_proxies);
                    let transport = Transport::Tcp(stream);
                    connections.tasks.spawn(Arc::clone(&self).serve(transport, peer, Arc::clone(&connections)));
                }
                Err(error) => pause_after(&error).await,
            }
        }
    }

    async fn accept_unix(self: Arc<Self>, listener: UnixListener, connections: Arc<Connections>) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let peer = Peer::new(None, "http", &self.config.trusted_proxies);
                    let transport = Transport::Unix(stream);
                    connections.tasks.spawn(Arc::clone(&self).serve(transport, peer, Arc::clone(&connections)));
                }
                Err(error) => pause_after(&error).await,
            }
        }
    }

    async fn serve(self: Arc<Self>, mut transport: Transport, peer: Peer, connections: Arc<Connections>) {
        let open = match self.audience {
            Audience::Clients => self.proxy.metrics.open_connections() + self.proxy.tunnels.len() as u64,
            Audience::Peers => self.metrics.connections.value().saturating_sub(self.metrics.connections_closed.value()),
        };
        if open >= self.config.max_connections {
            self.refusals.note(Unparsed::TooManyConnections, peer.ip, &[]);
            // A client of TLS could read the answer only after a handshake, which costs what is short here.
            if peer.scheme == "http" {
                transport.refuse_for_load().await;
            }
            return;
        }
        self.metrics.connections.add_one();
        let _open = OpenConnection(&self.metrics);
        // Before the header is read, which says whether the client used TLS, and not whether this connection does.
        let tls = self.tls.as_ref().filter(|_| peer.scheme == "https");
        let introduced = introduce(&self.config, &self.refusals, &mut transport, peer, &connections.end).await;
        let Some(mut peer) = introduced else { return };
        let begun = match tls {
            Some(tls) => Self::shake_hands(tls, transport, &mut peer, &connections).await,
            None if self.config.h2c => self.begin(transport).await,
            None => Some(Begun { protocol: Protocol::Http1, transport, first: Bytes::new() }),
        };
        let Some(Begun { protocol, transport, first }) = begun else { return };
        let lasts = peer.lasts(self.proxy.fetcher.clock.now());
        let served = async {
            match protocol {
                Protocol::Http1 => http1::serve(&self, transport, first, peer, &connections).await,
                // Peers speak HTTP/1.1.
                Protocol::Http2 if self.audience == Audience::Peers => {}
                // On the heap: connections of HTTP/1 need no room for it.
                Protocol::Http2 => Box::pin(http2::serve(&self, transport, first, peer, &connections)).await,
            }
        };
        match lasts {
            None => served.await,
            // Nobody is served longer than his certificate says.
            Some(limit) => drop(Box::pin(tokio::time::timeout(limit, served)).await),
        }
    }

    /// Begins a connection with TLS, and notes the subject that the client shows.
    async fn shake_hands(tls: &Tls, transport: Transport, peer: &mut Peer, connections: &Connections) -> Option<Begun> {
        let accepted = tokio::select! {
            accepted = tls.accept(transport, peer.ip) => accepted,
            // The stop does not wait for a client that has asked for nothing yet.
            () = connections.ended() => return None,
        };
        // An error is counted and logged already.
        let Accepted { protocol, transport, subject, valid_until } = accepted.ok()?;
        (peer.subject, peer.valid_until) = (subject, valid_until);
        Some(Begun { protocol, transport, first: Bytes::new() })
    }

    /// Reads the first bytes of a connection in clear text, which tell its version (RFC 9113 §3.3).
    async fn begin(&self, mut transport: Transport) -> Option<Begun> {
        // No other method begins with these letters.
        const PREFACE: &[u8] = b"PRI ";
        let mut first = BytesMut::with_capacity(FIRST_READ);
        let read = async {
            while first.len() < PREFACE.len() && PREFACE.starts_with(&first) {
                let limit = if first.is_empty() { self.config.idle_timeout } else { self.config.header_timeout };
                if tokio::time::timeout(limit, transport.read_buf(&mut first)).await?? == 0 {
                    break;
                }
            }
            io::Result::Ok(())
        };
        // Nobody is served yet: at the stop the connection ends.
        tokio::select! {
            read = read => read.ok()?,
            () = self.stop.cancelled() => return None,
        }
        let protocol = if first.starts_with(PREFACE) { Protocol::Http2 } else { Protocol::Http1 };
        Some(Begun { protocol, transport, first: first.freeze() })
    }
}

/// A connection whose version of HTTP is known.
struct Begun {
    protocol: Protocol,
    transport: Transport,
    /// The bytes that were read of it.
    first: Bytes,
}

/// The most bytes that are read of a connection whose version is not known yet.
const FIRST_READ: usize = 4 << 10;

/// The connections of a worker.
#[derive(Debug, Default)]
pub(super) struct Connections {
    tasks: TaskTracker,
    /// True once they are to end. Connections read it whenever they wake: polling `end` each time would take a lock.
    is_ending: AtomicBool,
    /// Cancelled after `is_ending` is set, which wakes all of them.
    end: CancellationToken,
}

impl Connections {
    /// Returns whether connections are to end. Costs a load; [`Connections::ended`] wakes those that wait.
    pub(super) fn are_ending(&self) -> bool {
        self.is_ending.load(Ordering::Relaxed)
    }

    /// Waits until connections are to end.
    pub(super) fn ended(&self) -> WaitForCancellationFuture<'_> {
        self.end.cancelled()
    }

    /// Ends the connections once each has finished what is under way.
    fn end(&self) {
        self.is_ending.store(true, Ordering::Relaxed);
        self.end.cancel();
        self.tasks.close();
    }
}

struct OpenConnection<'a>(&'a WorkerMetrics);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.connections_closed.add_one();
    }
}

/// Pauses after an accept has failed, as without file descriptors: retrying at once would keep the processor busy.
pub(crate) async fn pause_after(error: &io::Error) {
    // Logged once a minute: at the limit of open files this can go on for as long as clients like.
    static TOLD: Mutex<Option<Stopwatch>> = Mutex::new(None);
    let is_due = TOLD.lock().is_none_or(|told| told.elapsed() >= Duration::from_secs(60));
    if is_due {
        *TOLD.lock() = Some(Stopwatch::start());
        warn!("connections are not accepted: {error}; this is told once a minute");
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
}
