//! The peers: who they are, which of them answer, and which of them a key belongs to.
//!
//! Every node is greeted again and again, this one too: it recognises its own id. A peer that fails to answer a request
//! is asked no more until it answers a greeting.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use http::{Request, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::RwLock;
use smallvec::SmallVec;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::config::PeersConfig;
use super::protocol::{Received, Secrets, Verdict};
use crate::base::{Metrics, Stopwatch};
use crate::upstream::config::{Address, Listed};
use crate::upstream::watch::look_up;
use crate::upstream::{Buffers, Config, OriginTlsError, Upstream};

/// The most nodes that are known.
const MAX_NODES: usize = 256;

/// The fields that a peer's answer may have beside those of an application's.
const FURTHER_FIELDS: usize = 8;

/// The bytes that they may take.
const FURTHER_BYTES: usize = 768 << 10;

/// The time for which a node is not asked that kept a request waiting for longer than it was told to.
const ASIDE: Duration = Duration::from_secs(60);

/// The time after which an operator is told that no address is this node's.
const TO_FIND_ITSELF: Duration = Duration::from_secs(10);

/// The nodes, and what this process needs to ask them and to answer them.
#[derive(Debug)]
pub(crate) struct Peers {
    pub(super) config: PeersConfig,
    pub(super) secrets: Secrets,
    /// Replaced whole when a name gets other addresses.
    nodes: RwLock<Arc<[Arc<Node>]>>,
    /// The settings of the connections to every node.
    connections: Config,
    pub(super) metrics: Arc<Metrics>,
    /// Counters of the requests to peers, which are none to the origin.
    uncounted: Arc<Metrics>,
    buffers: Arc<Buffers>,
}

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    /// Its address, by which every node scores it.
    pub(super) name: String,
    address: Address,
    pub(super) upstream: Arc<Upstream>,
    state: RwLock<State>,
}

/// The knowledge of a node.
#[derive(Clone, Debug)]
enum State {
    /// It was not greeted yet.
    Unknown,
    /// It answers: it is this process itself (`is_own`), or another.
    Up { is_own: bool, credential: HeaderValue },
    /// It does not answer, or does not know the token.
    Down,
    /// It answers greetings, and kept a request waiting since which this time has gone by.
    Aside(Stopwatch),
}

/// The state that a node counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerState {
    /// It was not greeted yet.
    Unknown,
    /// It is this process.
    Own,
    /// It answers.
    Up,
    /// It does not answer, or does not know the token.
    Down,
}

impl PeerState {
    /// Returns its name in the metrics and in `explain`.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Own => "own",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

impl Node {
    fn state(&self) -> PeerState {
        match &*self.state.read() {
            State::Unknown => PeerState::Unknown,
            State::Up { is_own: true, .. } => PeerState::Own,
            State::Up { .. } => PeerState::Up,
            State::Down | State::Aside(_) => PeerState::Down,
        }
    }

    /// Returns the credential for questions to it; `None`: it is not asked.
    pub(super) fn credential(&self) -> Option<HeaderValue> {
        match &*self.state.read() {
            State::Up { credential, .. } => Some(credential.clone()),
            State::Unknown | State::Down | State::Aside(_) => None,
        }
    }

    /// Asks it no more until it answers a greeting.
    pub(super) fn set_down(&self, why: &str) {
        let mut state = self.state.write();
        if !matches!(*state, State::Down | State::Aside(_)) {
            *state = State::Down;
            warn!("the peer {} is not asked until it answers again: {why}", self.name);
        }
    }

    /// Asks it no more for a while, though it answers greetings.
    pub(super) fn set_aside(&self, why: &str) {
        let before = std::mem::replace(&mut *self.state.write(), State::Aside(Stopwatch::start()));
        if !matches!(before, State::Down | State::Aside(_)) {
            warn!("the peer {} is not asked for {ASIDE:?}: {why}", self.name);
        }
    }

    fn set_up(&self, is_own: bool, credential: HeaderValue) {
        let mut state = self.state.write();
        if matches!(&*state, State::Aside(since) if since.elapsed() < ASIDE) {
            return;
        }
        let before = std::mem::replace(&mut *state, State::Up { is_own, credential });
        drop(state);
        if !matches!(before, State::Up { .. }) {
            info!("the peer {} answers{}", self.name, if is_own { ": it is this node" } else { "" });
        }
    }
}

/// The outcome of a greeting.
enum Greeted {
    Answered(String, HeaderValue),
    Refused,
    Strange,
}

impl Peers {
    /// Makes the peers of a configuration that names some, and greets none yet. `of_origins` are the settings of the
    /// upstreams, whose answers peers pass on.
    pub(crate) fn new<'a>(
        config: PeersConfig,
        of_origins: impl Iterator<Item = &'a Config>,
        metrics: Arc<Metrics>,
        buffers: Arc<Buffers>,
    ) -> Result<Arc<Self>, OriginTlsError> {
        let (max_headers, max_header_size) = of_origins.fold((0, 0), |(headers, size), config| {
            (headers.max(config.max_headers), size.max(config.max_header_size))
        });
        let connections = Config {
            addresses: Vec::new(),
            tls: config.tls_of_nodes(),
            // The roster decides who is asked; the upstream's own breaker and retries are off.
            breaker_failures: 0,
            retry_budget: 0,
            connect_timeout: config.timeout,
            max_headers: max_headers + FURTHER_FIELDS,
            max_header_size: max_header_size + FURTHER_BYTES,
            ..Config::default()
        };
        let peers = Self {
            secrets: Secrets::new(&config.token),
            nodes: RwLock::new(Arc::new([])),
            connections,
            metrics,
            uncounted: Metrics::new(1),
            buffers,
            config,
        };
        let nodes = peers.config.list.iter().map(|address| peers.node(address.clone()));
        let nodes = nodes.collect::<Result<Vec<_>, _>>()?;
        *peers.nodes.write() = nodes.into();
        if let Some(name) = &peers.config.name {
            // Shows a file that can't be read now, and not when the name has addresses.
            peers.node(name.clone())?;
        }
        Ok(Arc::new(peers))
    }

    fn node(&self, address: Address) -> Result<Arc<Node>, OriginTlsError> {
        let config = Config { addresses: vec![Listed::from(address.clone())], ..self.connections.clone() };
        let upstream = Upstream::new(config, Arc::clone(&self.uncounted), Arc::clone(&self.buffers))?;
        Ok(Arc::new(Node { name: address.to_string(), address, upstream, state: RwLock::new(State::Unknown) }))
    }

    fn nodes(&self) -> Arc<[Arc<Node>]> {
        Arc::clone(&self.nodes.read())
    }

    /// Returns the address of every node, and what it counts as.
    pub(crate) fn states(&self) -> Vec<(String, PeerState)> {
        self.nodes().iter().map(|node| (node.name.clone(), node.state())).collect()
    }

    /// Returns the node whose share has the key with this hash, and what it counts as: the first that answers.
    pub(crate) fn named(&self, hash: u128) -> Option<(String, PeerState)> {
        let node = self.next(hash, &[])?;
        Some((node.name.clone(), node.state()))
    }

    /// Returns whether the key with this hash is in the share of another node that answers.
    pub(crate) fn belongs_elsewhere(&self, hash: u128) -> bool {
        self.next(hash, &[]).is_some_and(|node| node.state() == PeerState::Up)
    }

    /// Returns the first node that answers and is none of `tried`, in the order of the key with this hash (rendezvous
    /// hashing: every node works out the same order, and one that leaves moves its own keys alone).
    pub(super) fn next(&self, hash: u128, tried: &[Arc<Node>]) -> Option<Arc<Node>> {
        #[expect(clippy::cast_possible_truncation, reason = "both halves count")]
        let seed = (hash as u64) ^ ((hash >> 64) as u64);
        let nodes = self.nodes.read();
        let answering = nodes.iter().filter(|node| {
            matches!(node.state(), PeerState::Own | PeerState::Up)
                && !tried.iter().any(|other| Arc::ptr_eq(other, node))
        });
        answering.max_by_key(|node| (xxh3_64_with_seed(node.name.as_bytes(), seed), &node.name)).cloned()
    }

    /// Reads a message to this process, and removes the fields of peers from it.
    pub(crate) fn receive(&self, fields: &mut HeaderMap) -> Received {
        self.secrets.receive(fields)
    }

    /// Returns the counters.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Looks up the name and greets the nodes until the runtime ends.
    pub(crate) async fn watch(self: Arc<Self>) {
        tokio::join!(self.watch_name(), self.watch_nodes());
    }

    async fn watch_name(&self) {
        let Some(Address::Tcp { host, port, is_tls }) = &self.config.name else { return };
        let mut is_failing = false;
        loop {
            let found = look_up(host, *port, self.config.resolve_interval).await;
            match found {
                Ok(addresses) => {
                    is_failing = false;
                    let address = |found: SocketAddr| {
                        let host = found.ip().to_string();
                        Address::Tcp { host, port: *port, is_tls: *is_tls }
                    };
                    self.replace(addresses.into_iter().take(MAX_NODES).map(address).collect());
                }
                Err(error) if !is_failing => {
                    is_failing = true;
                    warn!("the name {host} (peers.name) can't be looked up, its last addresses hold: {error}");
                }
                Err(_) => {}
            }
            // Before the first addresses are known every request goes to the origin.
            let pause = if self.nodes().is_empty() { Duration::from_secs(1) } else { self.config.resolve_interval };
            tokio::time::sleep(pause.min(self.config.resolve_interval)).await;
        }
    }

    /// Takes these addresses for the nodes. Those that stay keep their state.
    fn replace(&self, addresses: Vec<Address>) {
        let before = self.nodes();
        if addresses.is_empty() || before.iter().map(|node| &node.address).eq(&addresses) {
            return;
        }
        let known = |address: &Address| before.iter().find(|node| node.address == *address).cloned();
        let node = |address: Address| known(&address).map_or_else(|| self.node(address), Ok);
        match addresses.into_iter().map(node).collect::<Result<Vec<_>, _>>() {
            Ok(nodes) => *self.nodes.write() = nodes.into(),
            Err(error) => warn!("the peers stay as they are: {error}"),
        }
    }

    async fn watch_nodes(self: &Arc<Self>) {
        let begun = Stopwatch::start();
        let (mut refused, mut is_told) = (HashSet::new(), false);
        loop {
            self.greet_all(&mut refused).await;
            let nodes = self.nodes();
            let is_found = nodes.iter().any(|node| node.state() == PeerState::Own);
            if !is_found && !is_told && begun.elapsed() > TO_FIND_ITSELF && !nodes.is_empty() {
                warn!(
                    "none of the peers is this node: name the address of peers.listen, as others reach it, in peers.list (or under peers.name)"
                );
            }
            is_told = !is_found && begun.elapsed() > TO_FIND_ITSELF;
            // Greets nodes that were slow at the start again soon: until then their share goes to the origin.
            let is_any_new = nodes.iter().any(|node| node.state() == PeerState::Unknown) || nodes.is_empty();
            let pause = if is_any_new { self.config.interval.min(SOON) } else { self.config.interval };
            tokio::time::sleep(pause).await;
        }
    }

    async fn greet_all(self: &Arc<Self>, refused: &mut HashSet<String>) {
        let mut greeted = JoinSet::new();
        for node in self.nodes().iter() {
            let (this, node) = (Arc::clone(self), Arc::clone(node));
            greeted.spawn(async move {
                let answer = this.greet(&node).await;
                (node, answer)
            });
        }
        while let Some(answered) = greeted.join_next().await {
            let Ok((node, answer)) = answered else { continue };
            match answer {
                Ok(Greeted::Answered(id, credential)) => {
                    refused.remove(&node.name);
                    node.set_up(id == self.secrets.id, credential);
                }
                Ok(Greeted::Refused) => {
                    if refused.insert(node.name.clone()) {
                        warn!("the peer {} does not know the token: set the same peers.token everywhere", node.name);
                    }
                    node.set_down("it does not know the token");
                }
                Ok(Greeted::Strange) => node.set_down("what listens there is no peer's listener (peers.listen)"),
                Err(error) => node.set_down(&error.to_string()),
            }
        }
    }

    /// Greets a node on a connection of its own.
    async fn greet(&self, node: &Node) -> io::Result<Greeted> {
        let (number, greeting) = self.secrets.greeting();
        let mut request = Request::builder().uri("/").header(header::HOST, "peer").header(header::CONNECTION, "close");
        for (name, value) in greeting {
            request = request.header(name, value);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
        let answered = async {
            let endpoints = node.upstream.endpoints();
            let endpoint = endpoints.first().ok_or_else(|| io::Error::other("it has no address"))?;
            let io = TokioIo::new(node.upstream.dial(endpoint).await?);
            let (mut sender, connection) = http1::handshake(io).await.map_err(io::Error::other)?;
            let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
            sender.send_request(request).await.map_err(io::Error::other)
        };
        let answer = timeout(self.config.timeout, answered)
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")))?;
        Ok(match (self.secrets.greeted(&number, answer.headers()), Verdict::of(answer.headers())) {
            (Some((id, credential)), _) => Greeted::Answered(id, credential),
            (None, Some(Verdict::Refused | Verdict::Greeting)) => Greeted::Refused,
            (None, _) => Greeted::Strange,
        })
    }
}

/// Pause before a node that was never heard of is greeted again.
const SOON: Duration = Duration::from_millis(200);

/// The nodes that were asked in vain.
pub(super) type Tried = SmallVec<[Arc<Node>; 2]>;
