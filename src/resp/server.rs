//! The listener: its sockets on each worker, its connections, and their end at the stop.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Config;
use super::connection::serve;
use super::session::Session;
use super::values::Values;
use crate::base::{RespCounters, Transport};
use crate::downstream::{Sockets, pause_after};

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Server {
    /// `[resp]`
    pub(super) config: Config,
    /// The objects.
    pub(super) values: Arc<Values>,
    last_id: AtomicU64,
}

impl Server {
    /// Makes the listener of `[resp]`.
    pub(crate) fn new(config: Config, values: Arc<Values>) -> Arc<Self> {
        Arc::new(Self { config, values, last_id: AtomicU64::new(0) })
    }

    fn session(&self, counters: &Arc<RespCounters>) -> Session {
        Session {
            id: self.last_id.fetch_add(1, Ordering::Relaxed) + 1,
            is_authenticated: self.config.password.is_empty(),
            counters: Arc::clone(counters),
            ..Session::default()
        }
    }
}

/// One worker, which serves its share of the listener on the runtime of its thread.
#[derive(Debug)]
pub(crate) struct Worker {
    /// What all workers share.
    pub server: Arc<Server>,
    /// The counters of this worker.
    pub counters: Arc<RespCounters>,
    /// Cancelled when Larder stops.
    pub stop: CancellationToken,
}

impl Worker {
    /// Serves on the current runtime until the stop, and until its connections are done.
    pub(crate) async fn run(self, sockets: Sockets) -> io::Result<()> {
        let this = Arc::new(self);
        let connections = TaskTracker::new();
        let mut acceptors = Vec::new();
        let (tcp, unix) = sockets.into_parts();
        for listener in tcp {
            let listener = TcpListener::from_std(listener)?;
            acceptors.push(tokio::spawn(Arc::clone(&this).accept_tcp(listener, connections.clone())));
        }
        for listener in unix {
            let listener = UnixListener::from_std(listener)?;
            acceptors.push(tokio::spawn(Arc::clone(&this).accept_unix(listener, connections.clone())));
        }
        for acceptor in acceptors {
            // Acceptors end at the stop; one that panicked has ended as well.
            let _ = acceptor.await;
        }
        Ok(())
    }

    async fn accept_tcp(self: Arc<Self>, listener: TcpListener, connections: TaskTracker) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    self.begin(Transport::Tcp(stream), &connections);
                }
                Err(error) => pause_after(&error).await,
            }
        }
    }

    async fn accept_unix(self: Arc<Self>, listener: UnixListener, connections: TaskTracker) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => self.begin(Transport::Unix(stream), &connections),
                Err(error) => pause_after(&error).await,
            }
        }
    }

    fn begin(&self, transport: Transport, connections: &TaskTracker) {
        let session = self.server.session(&self.counters);
        connections.spawn(serve(transport, Arc::clone(&self.server), session));
    }
}
