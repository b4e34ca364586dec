//! The public listeners: worker threads, connections, limits, and the drain at the end.
//!
//! Each worker is a thread with a runtime of its own and its own sockets (`SO_REUSEPORT`), so that
//! a connection, the requests on it and the origin connections they use stay on one core.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener, ToSocketAddrs};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Response;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::body::ResponseBody;
use crate::client_io::{ClientIo, Connection, Patience, conflicting_framing};
use crate::forwarding::Peer;
use crate::interim::Open;
use crate::proxy::{Proxy, Reply};
use crate::rfc9111::present::Present;
use crate::telemetry::WorkerMetrics;
use crate::transport::{self, Transport};

/// `[server]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where clients connect.
    pub listen: Vec<Listen>,
    /// Worker threads; 0: one a core.
    pub threads: usize,
    /// Proxies in front of this one whose `X-Forwarded` fields count.
    pub trusted_proxies: Vec<IpNet>,
    /// From a request's first byte to the end of its head.
    pub header_timeout: Duration,
    /// How long a connection may stay without a request.
    pub idle_timeout: Duration,
    /// How long a client may take nothing of what is written to it, or send nothing of its request's
    /// body.
    pub body_timeout: Duration,
    /// The largest request body, in bytes; 0: any.
    pub max_body_size: u64,
    /// The bytes that fetches under way may hold before requests that need another are refused.
    pub max_buffered: u64,
    /// The largest request head, in bytes.
    pub max_header_size: usize,
    /// The most fields of a request.
    pub max_headers: usize,
    /// The most connections at once.
    pub max_connections: u64,
    /// How long requests under way may take to finish when Larder stops.
    pub drain_timeout: Duration,
    /// Bytes a second, averaged, below which a request's body is given up; 0: any rate will do.
    pub min_body_rate: u64,
    /// How long nothing may move in a tunnel.
    pub tunnel_timeout: Duration,
    /// The bytes that all temporary files may hold.
    pub max_spooled: u64,
    /// Where temporary files go; empty: where the system has them.
    pub spool_dir: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![Listen::Tcp("127.0.0.1:8080".into())],
            threads: 0,
            trusted_proxies: Vec::new(),
            header_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(60),
            max_body_size: 0,
            max_buffered: 1 << 30,
            max_header_size: 64 << 10,
            max_headers: 100,
            max_connections: 20_000,
            drain_timeout: Duration::from_secs(20),
            min_body_rate: 500,
            tunnel_timeout: Duration::from_secs(600),
            max_spooled: 10 << 30,
            spool_dir: PathBuf::new(),
        }
    }
}

/// One address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `host:port`
    Tcp(String),
    /// `unix:/path`
    Unix(PathBuf),
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How many bytes a client's connection may hold that are not on their way yet. Room is told of when half of
/// it is gone: with a client as slow as one may be while others wait for it, every two seconds.
const UNSENT: u32 = 256 << 10;

/// The sockets of one worker.
#[derive(Debug)]
pub struct Sockets {
    tcp: Vec<StdTcpListener>,
    unix: Vec<StdUnixListener>,
}

impl Sockets {
    /// The listeners, by kind.
    pub fn into_parts(self) -> (Vec<StdTcpListener>, Vec<StdUnixListener>) {
        (self.tcp, self.unix)
    }
}

/// Binds every address once for each of `workers`, and says where that is in the end.
pub fn bind(listen: &[Listen], workers: usize) -> io::Result<(Vec<Sockets>, Vec<Listen>)> {
    let mut sockets: Vec<Sockets> = (0..workers).map(|_| Sockets { tcp: Vec::new(), unix: Vec::new() }).collect();
    let mut bound = Vec::new();
    for address in listen {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("can't listen on {address}: {error}"));
        match address {
            Listen::Tcp(text) => {
                let wanted: Vec<SocketAddr> = text.to_socket_addrs().map_err(named)?.collect();
                let first = *wanted.first().ok_or_else(|| named(io::Error::other("the name has no address")))?;
                let actual = bind_tcp(first, &mut sockets).map_err(named)?;
                bound.push(Listen::Tcp(actual.to_string()));
            }
            Listen::Unix(path) => {
                let listener = bind_unix(path).map_err(named)?;
                for worker in &mut sockets {
                    worker.unix.push(listener.try_clone().map_err(named)?);
                }
                bound.push(address.clone());
            }
        }
    }
    Ok((sockets, bound))
}

fn bind_tcp(address: SocketAddr, workers: &mut [Sockets]) -> io::Result<SocketAddr> {
    let shared = workers.len() > 1;
    // Sockets that share a port also share it with another process that shares it. The first one
    // is bound without, so that a port that is taken is an error.
    let probe = tcp_socket(address, false)?;
    let actual = probe.local_addr()?.as_socket().ok_or_else(|| io::Error::other("no socket address"))?;
    if !shared {
        for worker in workers {
            worker.tcp.push(probe.try_clone()?.into());
        }
        return Ok(actual);
    }
    drop(probe);
    for worker in workers {
        worker.tcp.push(tcp_socket(actual, true)?.into());
    }
    Ok(actual)
}

fn tcp_socket(address: SocketAddr, share: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if share {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    transport::send_at_once(&SockRef::from(&socket), address.ip());
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket)
}

/// A socket file that nobody listens on is a leftover of a process that is gone.
fn bind_unix(path: &PathBuf) -> io::Result<StdUnixListener> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let refuses = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err_and(refuses) {
        std::fs::remove_file(path)?;
    }
    let listener = StdUnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// One worker: its share of the listeners, until it is told to stop and its connections are done.
#[derive(Debug)]
pub struct Worker {
    /// What answers.
    pub proxy: Arc<Proxy>,
    /// `[server]`
    pub config: Arc<Config>,
    /// What this worker counts.
    pub metrics: Arc<WorkerMetrics>,
    /// Cancelled when Larder stops.
    pub stop: CancellationToken,
}

impl Worker {
    /// Serves on the current runtime.
    pub async fn run(self, sockets: Sockets) -> io::Result<()> {
        let this = Arc::new(self);
        let connections = Arc::new(Connections::default());
        let mut acceptors = Vec::new();
        for listener in sockets.tcp {
            let listener = TcpListener::from_std(listener)?;
            acceptors.push(tokio::spawn(Arc::clone(&this).accept_tcp(listener, Arc::clone(&connections))));
        }
        for listener in sockets.unix {
            let listener = UnixListener::from_std(listener)?;
            acceptors.push(tokio::spawn(Arc::clone(&this).accept_unix(listener, Arc::clone(&connections))));
        }
        for acceptor in acceptors {
            // They end when told to stop; one that panicked has ended as well.
            let _ = acceptor.await;
        }
        connections.end();
        // Bodies that are still coming in are stored, though their clients may be gone.
        let fetches = &this.proxy.fetcher.tasks;
        fetches.close();
        let tunnels = &this.proxy.fetcher.tunnels;
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
                    // So that a slow client's progress shows while it reads, and not only once it
                    // has emptied a third of a large send buffer.
                    let _ = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT);
                    let peer = Peer::new(Some(from.ip()), &self.config.trusted_proxies);
                    let transport = Transport::Tcp(stream);
                    connections.tasks.spawn(Arc::clone(&self).serve(transport, peer, Arc::clone(&connections)));
                }
                Err(error) => rest_after(&error).await,
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
                    let peer = Peer::new(None, &self.config.trusted_proxies);
                    let transport = Transport::Unix(stream);
                    connections.tasks.spawn(Arc::clone(&self).serve(transport, peer, Arc::clone(&connections)));
                }
                Err(error) => rest_after(&error).await,
            }
        }
    }

    async fn serve(self: Arc<Self>, transport: Transport, peer: Peer, connections: Arc<Connections>) {
        let open = self.proxy.metrics.open_connections() + self.proxy.fetcher.tunnels.len() as u64;
        if open >= self.config.max_connections {
            transport.refuse_for_load().await;
            return;
        }
        self.metrics.connections.add_one();
        let _open = OpenConnection(&self.metrics);
        let connection = Connection::new();
        let patience = Patience {
            header: self.config.header_timeout,
            idle: self.config.idle_timeout,
            body: self.config.body_timeout,
        };
        let io = ClientIo::new(transport, Arc::clone(&connection), patience);
        let io = TokioIo::new(io);
        let service = service_fn(|request| {
            let present = Present::of(request.headers());
            let conflict = connection.begin(&request, present);
            let outlet = connection.outlet();
            let open = outlet.open();
            let reply =
                if conflict { None } else { Some(self.proxy.handle(&self.metrics, &peer, outlet, request, present)) };
            Answering { connection: &connection, reply, _open: open }
        });
        let mut http = http1::Builder::new();
        http.max_header_size(self.config.max_header_size)
            .max_headers(self.config.max_headers)
            .max_buf_size((2 * self.config.max_header_size).max(128 << 10));
        let mut serving = std::pin::pin!(http.serve_connection(io, service).with_upgrades());
        let mut ended = std::pin::pin!(connections.end.cancelled());
        let mut is_told = false;
        // To be woken at the end.
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

/// A request of a connection that is being answered; `None`: its framing contradicts itself.
struct Answering<'a> {
    connection: &'a Arc<Connection>,
    reply: Option<Reply<'a>>,
    /// Interim responses to it go out until then.
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

/// The connections of a worker, and how they learn that it ends.
#[derive(Debug, Default)]
struct Connections {
    tasks: TaskTracker,
    /// Looked at whenever a connection wakes: to ask `end` each time would take a lock.
    is_ending: AtomicBool,
    /// Cancelled once that is set, which wakes all of them.
    end: CancellationToken,
}

impl Connections {
    /// There are no more, and those that there are finish what is under way.
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

/// Out of file descriptors, or the like: to try again at once would only burn the processor.
pub async fn rest_after(error: &io::Error) {
    warn!("a connection was not accepted: {error}");
    tokio::time::sleep(Duration::from_millis(50)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a socket sends, as the system calls it.
    fn congestion(socket: &SockRef<'_>) -> Vec<u8> {
        let named = socket.tcp_congestion().expect("a TCP socket");
        named.into_iter().take_while(|byte| *byte != 0).collect()
    }

    #[test]
    fn what_is_for_this_machine_itself_is_sent_without_pacing() {
        let plain = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        let usual = congestion(&SockRef::from(&plain));
        for (address, expected) in [("127.0.0.1:0", &b"reno"[..]), ("0.0.0.0:0", &usual)] {
            for workers in [1, 2] {
                let (sockets, _) = bind(&[Listen::Tcp(address.into())], workers).expect("a free port");
                for socket in sockets.iter().flat_map(|worker| &worker.tcp) {
                    assert_eq!(congestion(&SockRef::from(socket)), expected, "{address}, {workers}");
                }
            }
        }
        let listener = tcp_socket("127.0.0.1:0".parse().expect("an address"), false).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let client = std::net::TcpStream::connect(address.as_socket().expect("TCP")).expect("a connection");
        let accepted = std::iter::repeat_with(|| listener.accept()).find_map(Result::ok).expect("one was made").0;
        assert_eq!(congestion(&SockRef::from(&accepted)), b"reno");
        drop(client);
    }
}
