//! The public listeners: worker threads, connections, limits, and the drain at the stop.
//!
//! Each worker is a thread with a runtime of its own and its own sockets (`SO_REUSEPORT`). So a connection, its
//! requests and the origin connections that they use stay on one core.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use http::{HeaderName, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::outlet::{Open, Outlet};
use super::proxy_protocol::{Sender, introduce};
use crate::base::{Stopwatch, Transport, Unparsed, WorkerMetrics};
use crate::downstream::{ClientIo, Connection, Listen, Patience, Refusals, Sockets, Witness, conflicting_framing};
use crate::proxy::{Client, Proxy, Reply, Stream, Upgraded};
use crate::respond::ResponseBody;
use crate::rfc9111::present::Present;
use crate::upstream::forwarding::{Peer, Trust};
use crate::upstream::{ClientBody, Informational};

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
}

impl Config {
    /// Returns whose word on a request counts, and in which fields.
    pub fn trust(&self) -> Trust {
        Trust {
            proxies: self.trusted_proxies.clone(),
            fields: self.trusted_fields.clone(),
            allowed: self.allowed_fields.clone(),
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
        }
    }
}

/// The most bytes that the kernel holds for a client and has not sent. The connection becomes writable again when half
/// of them are sent: every two seconds with the slowest client that others wait for.
const UNSENT: u32 = 256 << 10;

/// One worker, which serves its share of the listeners until the stop and until its connections are done.
#[derive(Debug)]
pub(crate) struct Worker {
    /// Answers the requests.
    pub proxy: Arc<Proxy>,
    /// `[server]`
    pub config: Arc<Config>,
    /// The counters of this worker.
    pub metrics: Arc<WorkerMetrics>,
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
        let (tcp, unix) = sockets.into_parts();
        for listener in tcp {
            let listener = TcpListener::from_std(listener)?;
            acceptors.push(tokio::spawn(Arc::clone(&this).accept_tcp(listener, Arc::clone(&connections))));
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

    async fn accept_tcp(self: Arc<Self>, listener: TcpListener, connections: Arc<Connections>) {
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
                    let peer = Peer::new(Some(from.ip()), "http", &self.config.trusted_proxies);
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
        let open = self.proxy.metrics.open_connections() + self.proxy.tunnels.len() as u64;
        if open >= self.config.max_connections {
            self.refusals.note(Unparsed::TooManyConnections, peer.ip, &[]);
            transport.refuse_for_load().await;
            return;
        }
        self.metrics.connections.add_one();
        let _open = OpenConnection(&self.metrics);
        let introduced = introduce(&self.config, &self.refusals, &mut transport, peer, &connections.end).await;
        let Some(peer) = introduced else { return };
        let connection = Connection::new();
        let patience = Patience {
            header: self.config.header_timeout,
            idle: self.config.idle_timeout,
            body: self.config.body_timeout,
        };
        let witness = Witness { refusals: Arc::clone(&self.refusals), peer: peer.ip };
        let io = ClientIo::new(transport, Arc::clone(&connection), patience, witness);
        let io = TokioIo::new(io);
        let client = Http1Client { peer, outlet: Arc::clone(connection.outlet()) };
        let service = service_fn(|request: Request<Incoming>| {
            let present = Present::of(request.headers());
            let conflict = connection.begin(&request, present);
            let open = client.outlet.open();
            let reply = if conflict {
                self.refusals.note(Unparsed::Framing, client.peer.ip, &[]);
                None
            } else {
                Some(self.proxy.handle(&self.metrics, &client, request.map(ClientBody::new), present))
            };
            Answering { connection: &connection, reply, _open: open }
        });
        let mut http = http1::Builder::new();
        http.max_header_size(self.config.max_header_size)
            .max_headers(self.config.max_headers)
            .max_buf_size((2 * self.config.max_header_size).max(128 << 10));
        let mut serving = std::pin::pin!(http.serve_connection(io, service).with_upgrades());
        let mut ended = std::pin::pin!(connections.end.cancelled());
        let mut is_told = false;
        // Registers this task with `ended`, so that the end wakes it.
        let _ = std::future::poll_fn(|cx| Poll::Ready(ended.as_mut().poll(cx))).await;
        let outcome = std::future::poll_fn(|cx| {
            if !is_told && connections.is_ending.load(Ordering::Relaxed) {
                is_told = true;
                serving.as_mut().graceful_shutdown();
            }
            serving.as_mut().poll(cx)
        })
        .await;
        if let Err(error) = outcome {
            debug!("a client's connection ended: {error}");
        }
    }
}

/// The client of a connection of HTTP/1.
struct Http1Client {
    peer: Peer,
    outlet: Arc<Outlet>,
}

impl Client for Http1Client {
    fn peer(&self) -> &Peer {
        &self.peer
    }

    fn informational(&self) -> Informational {
        self.outlet.sender()
    }

    fn wake_on_informational(&self, waker: &Waker) {
        self.outlet.wake_on_informational(waker);
    }

    fn upgraded(&self, request: &mut Request<ClientBody>) -> Upgraded {
        let upgraded = hyper::upgrade::on(request);
        Box::pin(async move {
            let stream: Box<dyn Stream> = Box::new(TokioIo::new(upgraded.await.map_err(io::Error::other)?));
            Ok(stream)
        })
    }
}

/// The answer to a request, as a future. `reply` is `None` if the request's framing contradicts itself.
struct Answering<'a> {
    connection: &'a Arc<Connection>,
    reply: Option<Reply<'a>>,
    /// Lets informational responses out until the answer is there.
    _open: Open<'a>,
}

impl Future for Answering<'_> {
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let mut response = match &mut this.reply {
            Some(reply) => ready!(Pin::new(reply).poll(cx)),
            None => conflicting_framing(),
        };
        this.connection.track(&mut response);
        Poll::Ready(Ok(response))
    }
}

/// The connections of a worker.
#[derive(Debug, Default)]
struct Connections {
    tasks: TaskTracker,
    /// True once they are to end. Connections read it whenever they wake: polling `end` each time would take a lock.
    is_ending: AtomicBool,
    /// Cancelled after `is_ending` is set, which wakes all of them.
    end: CancellationToken,
}

impl Connections {
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
