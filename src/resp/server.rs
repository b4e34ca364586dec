//! The listener: its sockets on each worker, its connections, and their end at the stop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::Config;
use super::connection::Connection;
use super::memory::ClientMemory;
use super::parse::Limits;
use super::session::Session;
use super::settling::Settling;
use super::values::Values;
use crate::base::log::OncePerMinute;
use crate::base::{Clock, Metrics, RespCounters, RespRefusal, Stopwatch, Transport};
use crate::downstream::{Listen, Sockets, pause_after};
use crate::store::Store;

/// The state that all workers share.
#[derive(Debug)]
pub(crate) struct Server {
    /// `[resp]`
    pub(super) config: Config,
    /// The address that it listens on.
    pub(super) address: Option<Listen>,
    /// The bounds on what a client may send after `AUTH`.
    pub(super) limits: Limits,
    /// The objects.
    pub(super) values: Arc<Values>,
    /// The tiers that they are in.
    pub(super) store: Arc<Store>,
    /// The counters of all workers.
    pub(super) metrics: Arc<Metrics>,
    /// `memory.capacity`
    pub(super) capacity: u64,
    /// The bytes that clients hold.
    pub(super) memory: Arc<ClientMemory>,
    /// Runs since the start.
    pub(super) begun: Stopwatch,
    /// A random number that tells this process from others.
    pub(super) run_id: u128,
    clock: Clock,
    told: OncePerMinute<RespRefusal>,
    last_id: AtomicU64,
}

impl Server {
    /// Makes the listener of `[resp]`.
    pub(crate) fn new(
        config: Config,
        address: Option<Listen>,
        capacity: u64,
        store: Arc<Store>,
        prefix: &str,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Arc<Self> {
        Arc::new(Self {
            address,
            capacity,
            limits: config.limits(),
            values: Arc::new(Values::new(Arc::clone(&store), prefix, clock.clone())),
            store,
            memory: ClientMemory::new(config.max_buffered, &metrics),
            metrics,
            begun: Stopwatch::start(),
            run_id: fastrand::u128(..),
            clock,
            told: OncePerMinute::new(),
            last_id: AtomicU64::new(0),
            config,
        })
    }

    fn session(&self, counters: &Arc<RespCounters>, peer: Option<SocketAddr>) -> Session {
        Session {
            id: self.last_id.fetch_add(1, Ordering::Relaxed) + 1,
            peer,
            begun: Some(Stopwatch::start()),
            is_authenticated: !self.config.needs_password(),
            counters: Arc::clone(counters),
            ..Session::default()
        }
    }

    /// Logs that something of `peer` was refused, once a minute for each reason. `bytes` are what it was about.
    pub(super) fn tell(&self, why: RespRefusal, peer: Option<SocketAddr>, bytes: &[u8]) {
        let Some(turn) = self.told.turn(why, self.clock.now().as_millis()) else { return };
        let peer = peer.map_or_else(|| "unix".to_owned(), |peer| peer.ip().to_canonical().to_string());
        let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
        let begins = String::from_utf8_lossy(line);
        info!(
            peer,
            reason = why.as_str(),
            begins = Some(&*begins).filter(|begins| !begins.is_empty()),
            "the Redis listener refused {}{}",
            why.what(),
            turn.in_words()
        );
    }
}

/// Tells the connections of a worker that Larder stops.
#[derive(Debug, Default)]
pub(super) struct Ending {
    /// True once it does. Connections read it whenever they wake: polling `token` each time would take a lock.
    is_near: AtomicBool,
    /// Cancelled after `is_near` is set, which wakes all of them.
    token: CancellationToken,
}

impl Ending {
    /// Returns whether Larder stops.
    pub(super) fn is_near(&self) -> bool {
        self.is_near.load(Ordering::Relaxed)
    }

    /// Becomes ready when Larder stops.
    pub(super) fn told(&self) -> WaitForCancellationFuture<'_> {
        self.token.cancelled()
    }

    fn tell(&self) {
        self.is_near.store(true, Ordering::Relaxed);
        self.token.cancel();
    }
}

/// The state that the connections of a worker share.
#[derive(Debug, Default)]
pub(super) struct Common {
    pub(super) ending: Ending,
    pub(super) settling: Settling,
}

impl Common {
    /// Waits for the directory for good, on behalf of the connections.
    async fn settle(self: Arc<Self>, values: Arc<Values>) {
        self.settling.serve(|| values.settle()).await;
    }
}

/// One worker, which serves its share of the listener on the runtime of its thread.
#[derive(Debug)]
pub(crate) struct Worker {
    /// The state that all workers share.
    pub server: Arc<Server>,
    /// The counters of this worker.
    pub counters: Arc<RespCounters>,
    /// The longest time for connections to finish what has arrived when Larder stops.
    pub drain_timeout: Duration,
    /// Cancelled when Larder stops.
    pub stop: CancellationToken,
}

impl Worker {
    /// Serves on the current runtime until the stop, and until its connections are done.
    pub(crate) async fn run(self, sockets: Sockets) -> io::Result<()> {
        let this = Arc::new(self);
        let (connections, common) = (TaskTracker::new(), Arc::new(Common::default()));
        let settling = tokio::spawn(Arc::clone(&common).settle(Arc::clone(&this.server.values)));
        let mut acceptors = Vec::new();
        let Sockets { tcp, unix, .. } = sockets;
        for listener in tcp {
            let listener = TcpListener::from_std(listener)?;
            let acceptor = Arc::clone(&this).accept_tcp(listener, connections.clone(), Arc::clone(&common));
            acceptors.push(tokio::spawn(acceptor));
        }
        for listener in unix {
            let listener = UnixListener::from_std(listener)?;
            let acceptor = Arc::clone(&this).accept_unix(listener, connections.clone(), Arc::clone(&common));
            acceptors.push(tokio::spawn(acceptor));
        }
        for acceptor in acceptors {
            // Acceptors end at the stop; one that panicked has ended as well.
            let _ = acceptor.await;
        }
        common.ending.tell();
        connections.close();
        if tokio::time::timeout(this.drain_timeout, connections.wait()).await.is_err() {
            warn!("the drain's deadline has passed: {} connections of Redis clients end now", connections.len());
        }
        settling.abort();
        Ok(())
    }

    async fn accept_tcp(self: Arc<Self>, listener: TcpListener, connections: TaskTracker, common: Arc<Common>) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => {
                    let _ = stream.set_nodelay(true);
                    self.begin(Transport::Tcp(stream), Some(from), &connections, &common);
                }
                Err(error) => pause_after(&error).await,
            }
        }
    }

    async fn accept_unix(self: Arc<Self>, listener: UnixListener, connections: TaskTracker, common: Arc<Common>) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => self.begin(Transport::Unix(stream), None, &connections, &common),
                Err(error) => pause_after(&error).await,
            }
        }
    }

    fn begin(&self, transport: Transport, peer: Option<SocketAddr>, connections: &TaskTracker, common: &Arc<Common>) {
        if self.server.metrics.open_resp_connections() >= self.server.config.max_connections {
            self.counters.refused(RespRefusal::TooManyConnections);
            self.server.tell(RespRefusal::TooManyConnections, peer, &[]);
            connections.spawn(refuse_for_load(transport));
            return;
        }
        self.counters.connections.add_one();
        let open = OpenConnection(Arc::clone(&self.counters));
        let connection =
            Connection::new(transport, Arc::clone(&self.server), self.server.session(&self.counters, peer));
        let common = Arc::clone(common);
        connections.spawn(async move {
            connection.serve(common).await;
            drop(open);
        });
    }
}

/// Tells a client that there are too many, in Redis's words.
async fn refuse_for_load(mut transport: Transport) {
    let _ = tokio::time::timeout(Duration::from_secs(1), async {
        transport.write_all(b"-ERR max number of clients reached\r\n").await
    })
    .await;
    transport.linger().await;
}

/// Counts a connection as open until it is dropped.
struct OpenConnection(Arc<RespCounters>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections_closed.add_one();
    }
}
