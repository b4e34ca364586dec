//! Puts the parts together, runs them, and stops them in order.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use http::HeaderValue;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::admin::Admin;
use crate::base::{Clock, Metrics};
use crate::config::Config;
use crate::downstream::{Audience, Listen, ListenError, Refusals, ServerConfig, Sockets, Worker, bind};
use crate::entry::Budget;
use crate::fetch::{FetchLimits, Fetcher, Flights, Memories, Origins};
use crate::proxy::{Failures, Https, Keys, Proxy, Rules};
use crate::resp;
use crate::store::{Durable, Memory, Purges, Store, StoreError, report_drain, s3};
use crate::tls::acme::{Acme, Doors};
use crate::tls::{Tls, TlsError};
use crate::upstream::{Buffers, OriginTlsError, Peers, Spools, UploadLimits, Upstream};

/// The reason why Larder did not start. Each says what to do.
#[derive(Debug)]
pub enum StartError {
    /// An address can't be listened on.
    Listen(ListenError),
    /// TLS can't be set up.
    Tls(TlsError),
    /// TLS to the origin can't be set up.
    OriginTls {
        /// The section of the upstream.
        section: String,
        /// The key in it, and what is wrong.
        error: OriginTlsError,
    },
    /// The durable tier can't be used.
    Durable(StoreError),
    /// A thread or runtime can't be made.
    Runtime(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(error) => error.fmt(f),
            Self::Tls(error) => error.fmt(f),
            Self::OriginTls { section, error } => write!(f, "{section}.{error}"),
            Self::Durable(failure) => write!(f, "durable.url: {failure}"),
            Self::Runtime(error) => write!(f, "a thread could not be started: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// Larder, running.
#[derive(Debug)]
pub struct Running {
    addresses: Vec<Listen>,
    admin_address: Option<Listen>,
    resp_address: Option<Listen>,
    peers_address: Option<Listen>,
    proxy: Arc<Proxy>,
    /// `None`: there is no listener with TLS.
    tls: Option<Arc<Tls>>,
    stop: CancellationToken,
    workers: Vec<JoinHandle<()>>,
    /// The task that renews certificates by ACME, if any is got so. Ends in `stop`.
    acme: Option<tokio::task::JoinHandle<()>>,
    /// The runtime of the durable tier, the admin listener and signals. Ends in `stop`.
    control: Runtime,
    unix_sockets: Vec<std::path::PathBuf>,
}

/// Starts Larder: checks the durable tier, binds the listeners, and serves.
pub fn start(config: Config, clock: Clock) -> Result<Running, StartError> {
    let threads = match config.server.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let resp_connections = config.resp.listen.as_ref().map_or(0, |_| config.resp.max_connections);
    // Three for each client at most: its own connection, one to the origin or the durable tier, and a temporary file.
    if let Err(error) = rlimit::increase_nofile_limit(3 * config.server.max_connections + resp_connections + 1024) {
        warn!("the number of open files could not be raised: {error}");
    }
    let control = control_runtime().map_err(StartError::Runtime)?;
    let metrics = Metrics::new(threads);
    let store = open_store(&config, &control, &metrics, threads, &clock)?;
    let tls = open_tls(&config, &control, &metrics, &clock)?;
    // Bound last: nobody connects to a Larder that may not come up.
    let (sockets, addresses) =
        bind("server.listen", &config.server.listen, threads, config.server.socket_mode).map_err(StartError::Listen)?;
    let resp = bind_resp(&config, threads).map_err(StartError::Listen)?;
    let peers = bind_peers(&config, threads).map_err(StartError::Listen)?;
    let admin = config.admin.listen.as_ref().map(Admin::bind).transpose().map_err(StartError::Listen)?.flatten();
    let others = admin.iter().map(|(_, bound)| bound).chain(resp.iter().map(|(_, bound)| bound));
    let unix_sockets = unix_paths(addresses.iter().chain(others));
    let store = Arc::new(store);
    let (resp_sockets, resp_address) = resp.unzip();
    let (peer_sockets, peers_address) = peers.unzip();
    let objects = resp::Server::new(
        config.resp.clone(),
        resp_address.clone(),
        config.memory.capacity,
        Arc::clone(&store),
        &config.cache.key_prefix,
        Arc::clone(&metrics),
        clock.clone(),
    );
    let acme = open_acme(&config, &control, &store, tls.as_ref(), &metrics, &addresses, &clock)?;
    let https = https(&config, &addresses);
    let proxy = Arc::new(make_proxy(&config, https, acme.clone(), store, metrics, &clock)?);

    let stop = CancellationToken::new();
    let acme = acme.map(|acme| control.spawn(acme.run(stop.clone())));
    let for_peers = ForPeers::new(&config.server, threads, &clock);
    let server = Arc::new(config.server);
    let refusals = Arc::new(Refusals::new(Arc::clone(&proxy.metrics), clock));
    let mut admin_address = None;
    if let Some((sockets, bound)) = admin {
        let (limits, refusals) = (Arc::clone(&server), Arc::clone(&refusals));
        start_admin(&control, Admin::new(Arc::clone(&proxy), &config.admin, limits, refusals, stop.clone()), sockets);
        admin_address = Some(bound);
    }
    let under_way = Arc::default();
    for (_, upstream) in proxy.upstreams() {
        control.spawn(Arc::clone(upstream).watch());
    }
    if let Some(peers) = &proxy.fetcher.peers {
        control.spawn(Arc::clone(peers).watch());
    }
    let mut workers = Vec::new();
    let mut peer_sockets = peer_sockets.into_iter().flatten();
    let mut resp_sockets = resp_sockets.into_iter().flatten();
    for (index, sockets) in sockets.into_iter().enumerate() {
        let objects = resp_sockets.next().map(|sockets| {
            let counters = proxy.metrics.resp(index);
            let (drain_timeout, stop) = (server.drain_timeout, stop.clone());
            (resp::Worker { server: Arc::clone(&objects), counters, drain_timeout, stop }, sockets)
        });
        let clients = Worker {
            audience: Audience::Clients,
            proxy: Arc::clone(&proxy),
            config: Arc::clone(&server),
            metrics: proxy.metrics.worker(index),
            tls: tls.clone(),
            under_way: Arc::clone(&under_way),
            refusals: Arc::clone(&refusals),
            stop: stop.clone(),
        };
        let peers = peer_sockets.next().map(|sockets| (for_peers.worker(index, &clients), sockets));
        workers.push(start_worker(index, (clients, sockets), peers, objects).map_err(StartError::Runtime)?);
    }
    Ok(Running {
        addresses,
        admin_address,
        resp_address,
        peers_address,
        proxy,
        tls,
        stop,
        workers,
        acme,
        control,
        unix_sockets,
    })
}

/// Makes the runtime of everything but the workers: the durable tier, the admin listener, signals.
fn control_runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("larder-control")
        // Without a bound tokio begins another thread whenever all are busy.
        .max_blocking_threads(DISK_THREADS)
        // A thread that ends gives back what its allocator kept.
        .thread_keep_alive(Duration::from_secs(2))
        .enable_all()
        .build()
}

/// The threads that wait for the disk of a directory: eight for reads, the others for the rest.
const DISK_THREADS: usize = 12;

/// Opens both tiers, and checks that the durable one can be used.
fn open_store(
    config: &Config,
    control: &Runtime,
    metrics: &Arc<Metrics>,
    threads: usize,
    clock: &Clock,
) -> Result<Store, StartError> {
    let purges = Arc::new(Purges::new(clock.clone(), fastrand::u64(1..)));
    let memory = Arc::new(Memory::new(&config.memory));
    let opened = Durable::open(
        &config.durable,
        &config.cache.key_prefix,
        Arc::clone(&purges),
        Arc::clone(&memory),
        Arc::clone(metrics),
    );
    let durable = control.block_on(opened).map_err(StartError::Durable)?;
    if let Some(durable) = &durable {
        durable.prepare(threads);
    }
    Ok(Store::new(memory, durable, purges, clock.clone()))
}

/// Opens the certificates, if there is a listener with TLS or some are got by ACME, and looks after them on the control
/// runtime.
fn open_tls(
    config: &Config,
    control: &Runtime,
    metrics: &Arc<Metrics>,
    clock: &Clock,
) -> Result<Option<Arc<Tls>>, StartError> {
    let mut listeners = config.server.listen.iter().chain(&config.peers_listen);
    let has_listener = listeners.any(|listen| matches!(listen, Listen::Tls(_)));
    if !has_listener && !config.tls.acme.is_on() {
        return Ok(None);
    }
    let tls = Tls::open(&config.tls, clock.clone(), Arc::clone(metrics)).map_err(StartError::Tls)?;
    control.spawn(Arc::clone(&tls).watch());
    Ok(Some(tls))
}

/// Opens the state of ACME, if certificates are got by that, and uses what it has. Does not wait for the CA.
fn open_acme(
    config: &Config,
    control: &Runtime,
    store: &Store,
    tls: Option<&Arc<Tls>>,
    metrics: &Arc<Metrics>,
    addresses: &[Listen],
    clock: &Clock,
) -> Result<Option<Arc<Acme>>, StartError> {
    let (true, Some(tls)) = (config.tls.acme.is_on(), tls) else { return Ok(None) };
    let is_plain = |listen: &&Listen| matches!(listen, Listen::Tcp(_));
    let doors = Doors {
        has_port_80: addresses.iter().filter(is_plain).any(|listen| listen.to_string().ends_with(":80")),
        has_http: addresses.iter().any(|listen| is_plain(&listen)),
        has_https: addresses.iter().any(|listen| matches!(listen, Listen::Tls(_))),
    };
    let (tls, metrics) = (Arc::clone(tls), Arc::clone(metrics));
    let opened = Acme::open(&config.tls.acme, doors, store.durable(), tls, metrics, clock.clone());
    control.block_on(opened).map(Some).map_err(StartError::Tls)
}

/// Returns what is said to clients about https. A port that is mapped to another one is 443 outside.
fn https(config: &Config, addresses: &[Listen]) -> Https {
    let port = addresses.iter().find_map(|listen| match listen {
        Listen::Tls(address) => address.rsplit_once(':')?.1.parse().ok(),
        Listen::Tcp(_) | Listen::Unix(_) => None,
    });
    Https {
        redirect: config.server.redirect_to_https.then(|| port.unwrap_or(443)),
        hsts: HeaderValue::from_str(&config.server.hsts).ok().filter(|value| !value.is_empty()),
    }
}

/// Makes the proxy that all workers share.
fn make_proxy(
    config: &Config,
    https: Https,
    acme: Option<Arc<Acme>>,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    clock: &Clock,
) -> Result<Proxy, StartError> {
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let (budget, max_buffered) = (Budget::new(size(config.memory.fill_budget)), size(config.server.max_buffered));
    let spools = Spools::new(config.server.spool_dir.clone(), config.server.max_spooled);
    let buffers = Buffers::new(max_buffered, Arc::clone(&budget), spools);
    let upstreams = config.all_upstreams().map(|(name, upstream)| {
        // All share the memory and the temporary files of the bodies that pass.
        let made = Upstream::new(upstream.clone(), Arc::clone(&metrics), Arc::clone(&buffers));
        let made = made.map_err(|error| StartError::OriginTls { section: Config::section_of(name), error })?;
        Ok((name.to_owned(), made))
    });
    let upstreams = upstreams.collect::<Result<Vec<_>, StartError>>()?;
    let sticky_cookies = config.all_upstreams().map(|(_, upstream)| upstream.sticky_cookie.clone());
    let peers = config.peers.is_on().then(|| {
        let of_origins = config.all_upstreams().map(|(_, upstream)| upstream);
        Peers::new(config.peers.clone(), of_origins, Arc::clone(&metrics), Arc::clone(&buffers))
            .map_err(|error| StartError::OriginTls { section: "peers".into(), error })
    });
    let peers = peers.transpose()?;
    let fetcher = Fetcher {
        store,
        origins: Origins::new(upstreams, config.cache.targets.surrogate_control),
        peers,
        clock: clock.clone(),
        memories: Memories::new(config.cache.pass_memory),
        flights: Flights::new(config.cache.collapse_limit),
        limits: FetchLimits::new(budget, max_buffered, config.memory.clone()),
        purge_expired_on_read: config.cache.purge_expired_on_read,
        tasks: TaskTracker::new(),
    };
    let trust = config.trust();
    Ok(Proxy {
        fetcher: Arc::new(fetcher),
        keys: Keys {
            rules: Rules::new(&config.cache, &config.transfers(), config.rules.clone(), trust.nominated()),
            prefix: config.key_namespace(),
        },
        trust,
        cache: config.cache.clone(),
        metrics,
        access_log: config.log.access,
        failures: Failures::new(),
        https,
        acme,
        sticky_cookies: sticky_cookies.filter(|name| !name.is_empty()).collect(),
        upload_limits: UploadLimits { patience: config.server.body_timeout, size: config.server.max_body_size },
        tunnel_timeout: config.server.tunnel_timeout,
        tunnels: TaskTracker::new(),
    })
}

/// Serves the admin listener on the control runtime.
fn start_admin(control: &Runtime, admin: Admin, sockets: Sockets) {
    let _guard = control.enter();
    control.spawn(async move {
        if let Err(why) = admin.run(sockets).await {
            error!("the admin listener ended: {why}");
        }
    });
}

/// The number of task polls after which a worker looks at its sockets again. It is small enough that no socket waits
/// for more than a few milliseconds, and large enough that writes go out in bunches, which costs the kernel less.
const TURNS: u32 = 128;

/// The threads of a worker that wait for what blocks: temporary files, and the names of origins.
const SPARE_THREADS: usize = 8;

/// Binds the listener of Redis's protocol, if there is one, once for each of `workers`.
fn bind_resp(config: &Config, workers: usize) -> Result<Option<(Vec<Sockets>, Listen)>, ListenError> {
    let Some(listen) = &config.resp.listen else { return Ok(None) };
    let (sockets, bound) = bind("resp.listen", std::slice::from_ref(listen), workers, config.server.socket_mode)?;
    Ok(bound.into_iter().next().map(|bound| (sockets, bound)))
}

/// Binds the listener of the peers, if there is one, once for each of `workers`.
fn bind_peers(config: &Config, workers: usize) -> Result<Option<(Vec<Sockets>, Listen)>, ListenError> {
    let Some(listen) = &config.peers_listen else { return Ok(None) };
    let (sockets, bound) = bind("peers.listen", std::slice::from_ref(listen), workers, config.server.socket_mode)?;
    Ok(bound.into_iter().next().map(|bound| (sockets, bound)))
}

/// The workers' own state for the peers' listener. A peer's question is no request of a client, and counts apart.
struct ForPeers {
    config: Arc<ServerConfig>,
    metrics: Arc<Metrics>,
    refusals: Arc<Refusals>,
}

impl ForPeers {
    /// Takes the settings of the public listeners, with room for the fields that a node adds to those of its client.
    fn new(server: &ServerConfig, threads: usize, clock: &Clock) -> Self {
        let metrics = Metrics::new(threads);
        let config = ServerConfig {
            max_headers: server.max_headers + 16,
            max_header_size: server.max_header_size + (16 << 10),
            proxy_protocol: Vec::new(),
            h2c: false,
            ..server.clone()
        };
        let refusals = Arc::new(Refusals::new(Arc::clone(&metrics), clock.clone()));
        Self { config: Arc::new(config), metrics, refusals }
    }

    /// Makes the worker for peers on the thread of a public one.
    fn worker(&self, index: usize, clients: &Worker) -> Worker {
        Worker {
            audience: Audience::Peers,
            proxy: Arc::clone(&clients.proxy),
            config: Arc::clone(&self.config),
            metrics: self.metrics.worker(index),
            tls: clients.tls.clone(),
            under_way: Arc::default(),
            refusals: Arc::clone(&self.refusals),
            stop: clients.stop.clone(),
        }
    }
}

fn start_worker(
    index: usize,
    (worker, sockets): (Worker, Sockets),
    peers: Option<(Worker, Sockets)>,
    objects: Option<(resp::Worker, Sockets)>,
) -> io::Result<JoinHandle<()>> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .event_interval(TURNS)
        .max_blocking_threads(SPARE_THREADS)
        .thread_keep_alive(Duration::from_secs(2))
        .build()?;
    std::thread::Builder::new().name(format!("larder-worker-{index}")).spawn(move || {
        s3::use_reader(index);
        let objects = async {
            match objects {
                Some((worker, sockets)) => worker.run(sockets).await,
                None => Ok(()),
            }
        };
        let peers = async {
            match peers {
                Some((worker, sockets)) => worker.run(sockets).await,
                None => Ok(()),
            }
        };
        let all = async { tokio::try_join!(worker.run(sockets), peers, objects) };
        if let Err(why) = runtime.block_on(all) {
            error!("a worker ended: {why}");
        }
        runtime.shutdown_timeout(Duration::from_millis(100));
    })
}

fn unix_paths<'a>(addresses: impl Iterator<Item = &'a Listen>) -> Vec<std::path::PathBuf> {
    addresses
        .filter_map(|address| match address {
            Listen::Unix(path) => Some(path.clone()),
            Listen::Tcp(_) | Listen::Tls(_) => None,
        })
        .collect()
}

impl Running {
    /// Returns the addresses that clients connect to, with ports filled in.
    pub fn addresses(&self) -> &[Listen] {
        &self.addresses
    }

    /// Returns the address that peers connect to, if there is one.
    pub fn peers_address(&self) -> Option<&Listen> {
        self.peers_address.as_ref()
    }

    /// Returns the address that the operator connects to, if there is one.
    pub fn admin_address(&self) -> Option<&Listen> {
        self.admin_address.as_ref()
    }

    /// Returns the address that Redis clients connect to, if there is one.
    pub fn resp_address(&self) -> Option<&Listen> {
        self.resp_address.as_ref()
    }

    /// Returns the proxy.
    pub fn proxy(&self) -> &Arc<Proxy> {
        &self.proxy
    }

    /// Returns what reads the files of certificates again, if there are any. It does not wait.
    pub fn reloader(&self) -> Option<Box<dyn Fn() + Send>> {
        let (tls, control) = (Arc::clone(self.tls.as_ref()?), self.control.handle().clone());
        Some(Box::new(move || {
            let tls = Arc::clone(&tls);
            control.spawn_blocking(move || tls.reload());
        }))
    }

    /// Returns the runtime of everything but the workers, on which signals are waited for.
    pub fn control(&self) -> &Runtime {
        &self.control
    }

    /// Stops: accepts no more, lets requests under way end until the deadline, then drains the durable tier's queue.
    pub fn stop(self) {
        self.stop.cancel();
        if let Some(acme) = self.acme {
            // It gives back its claim to order, so that others need not wait until that is dead.
            let _ = self.control.block_on(async { tokio::time::timeout(Duration::from_secs(2), acme).await });
        }
        for worker in self.workers {
            // A worker that panicked has ended as well.
            let _ = worker.join();
        }
        if let Some(durable) = self.proxy.store().durable() {
            let drained = self.control.block_on(durable.drain(durable.drain_timeout()));
            report_drain(&drained, durable.drain_timeout());
        }
        for path in &self.unix_sockets {
            let _ = std::fs::remove_file(path);
        }
        self.control.shutdown_timeout(Duration::from_millis(500));
        info!("stopped");
    }
}
