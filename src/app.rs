//! Puts the parts together, runs them, and takes them down in order.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::admin::Admin;
use crate::base::{Clock, Metrics};
use crate::config::Config;
use crate::downstream::{Listen, ListenError, Refusals, Sockets, Worker, bind};
use crate::entry::Budget;
use crate::fetch::{self, Fetcher, Flights, Memories, Origin};
use crate::proxy::{Failures, Keys, Proxy, Rules};
use crate::store::{Durable, Memory, Purges, Store, StoreError, report_drain, s3};
use crate::upstream::forwarding::Signature;
use crate::upstream::{Buffers, Limits, Spools, Upstream};

/// Why Larder did not start. Each says what to do.
#[derive(Debug)]
pub enum StartError {
    /// An address can't be listened on.
    Listen(ListenError),
    /// The durable tier can't be used.
    Durable(StoreError),
    /// A thread or runtime can't be made.
    Runtime(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(error) => error.fmt(f),
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
    proxy: Arc<Proxy>,
    stop: CancellationToken,
    workers: Vec<JoinHandle<()>>,
    /// The threads of the durable tier, the admin listener and signals. Taken at the stop.
    control: Runtime,
    unix_sockets: Vec<std::path::PathBuf>,
}

/// Starts Larder: binds its listeners, checks the durable tier, and serves.
pub fn start(config: Config, clock: Clock) -> Result<Running, StartError> {
    let threads = match config.server.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    // Three a client at the most: its own connection, one to the origin or the durable tier, a temporary file.
    if let Err(error) = rlimit::increase_nofile_limit(3 * config.server.max_connections + 1024) {
        warn!("the number of open files could not be raised: {error}");
    }
    let control = Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("larder-control")
        // A write keeps one busy. Without a bound more are begun whenever all are.
        .max_blocking_threads(config.durable.writers + SPARE_THREADS)
        // With a thread goes what its allocator kept.
        .thread_keep_alive(Duration::from_secs(2))
        .enable_all()
        .build()
        .map_err(StartError::Runtime)?;
    let metrics = Metrics::new(threads);
    let purges = Arc::new(Purges::new(clock.clone(), fastrand::u64(1..)));
    let memory = Arc::new(Memory::new(&config.memory));
    let opened = Durable::open(
        &config.durable,
        &config.cache.key_prefix,
        Arc::clone(&purges),
        Arc::clone(&memory),
        Arc::clone(&metrics),
    );
    let durable = control.block_on(opened).map_err(StartError::Durable)?;
    if let Some(durable) = &durable {
        durable.prepare(threads);
    }
    // Bound last: nobody connects to a Larder that may not come up.
    let (sockets, addresses) =
        bind("server.listen", &config.server.listen, threads, config.server.socket_mode).map_err(StartError::Listen)?;
    let admin = config.admin.listen.as_ref().map(Admin::bind).transpose().map_err(StartError::Listen)?.flatten();
    let store = Store::new(memory, durable, purges, clock.clone());
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let (budget, max_buffered) = (Budget::new(size(config.memory.fill_budget)), size(config.server.max_buffered));
    let buffers = Buffers::new(max_buffered, Arc::clone(&budget), spools(&config));
    let upstream = Upstream::new(config.upstream.clone(), Arc::clone(&metrics), buffers);
    let surrogate_control = config.cache.targets.surrogate_control;
    let fetcher = Fetcher {
        store,
        origin: Origin { upstream, surrogate_control, signature: Signature::random() },
        clock: clock.clone(),
        memories: Memories::new(config.cache.pass_memory),
        flights: Flights::new(config.cache.collapse_limit),
        limits: fetch::Limits::new(budget, max_buffered, config.memory.clone()),
        purge_expired_on_read: config.cache.purge_expired_on_read,
        tasks: TaskTracker::new(),
    };
    let trust = config.server.trust();
    let proxy = Arc::new(Proxy {
        fetcher: Arc::new(fetcher),
        keys: Keys {
            rules: Rules::new(&config.cache, &config.transfer(), config.rules.clone(), trust.nominated()),
            prefix: config.cache.key_prefix.clone(),
        },
        trust,
        cache: config.cache.clone(),
        metrics,
        access_log: config.log.access,
        failures: Failures::new(),
        upload_limits: Limits { patience: config.server.body_timeout, size: config.server.max_body_size },
        tunnel_timeout: config.server.tunnel_timeout,
        tunnels: TaskTracker::new(),
    });

    let stop = CancellationToken::new();
    let unix_sockets = unix_paths(addresses.iter().chain(admin.iter().map(|(_, bound)| bound)));
    let mut admin_address = None;
    let server_config = Arc::new(config.server);
    let refusals = Arc::new(Refusals::new(Arc::clone(&proxy.metrics), clock));
    if let Some((sockets, bound)) = admin {
        let (limits, refusals) = (Arc::clone(&server_config), Arc::clone(&refusals));
        let admin = Admin::new(Arc::clone(&proxy), &config.admin, limits, refusals, stop.clone());
        let _guard = control.enter();
        control.spawn(async move {
            if let Err(why) = admin.run(sockets).await {
                error!("the admin listener ended: {why}");
            }
        });
        admin_address = Some(bound);
    }
    let mut workers = Vec::new();
    for (index, sockets) in sockets.into_iter().enumerate() {
        let worker = Worker {
            proxy: Arc::clone(&proxy),
            config: Arc::clone(&server_config),
            metrics: proxy.metrics.worker(index),
            refusals: Arc::clone(&refusals),
            stop: stop.clone(),
        };
        workers.push(start_worker(index, worker, sockets).map_err(StartError::Runtime)?);
    }
    Ok(Running { addresses, admin_address, proxy, stop, workers, control, unix_sockets })
}

/// After so many turns of tasks a worker looks at its sockets again: often enough that none waits for more
/// than a few milliseconds, seldom enough that what is sent goes out in bunches, which costs the kernel less.
const TURNS: u32 = 128;

/// The threads that may wait for the disk besides those that write: for the journal, listings, names.
const SPARE_THREADS: usize = 32;

fn start_worker(index: usize, worker: Worker, sockets: Sockets) -> io::Result<JoinHandle<()>> {
    let runtime = Builder::new_current_thread().enable_all().event_interval(TURNS).build()?;
    std::thread::Builder::new().name(format!("larder-worker-{index}")).spawn(move || {
        s3::use_reader(index);
        if let Err(why) = runtime.block_on(worker.run(sockets)) {
            error!("a worker ended: {why}");
        }
        runtime.shutdown_timeout(Duration::from_millis(100));
    })
}

fn spools(config: &Config) -> Arc<Spools> {
    Spools::new(config.server.spool_dir.clone(), config.server.max_spooled)
}

fn unix_paths<'a>(addresses: impl Iterator<Item = &'a Listen>) -> Vec<std::path::PathBuf> {
    addresses
        .filter_map(|address| match address {
            Listen::Unix(path) => Some(path.clone()),
            Listen::Tcp(_) => None,
        })
        .collect()
}

impl Running {
    /// Where clients connect, ports filled in.
    pub fn addresses(&self) -> &[Listen] {
        &self.addresses
    }

    /// Where the operator connects, if anywhere.
    pub fn admin_address(&self) -> Option<&Listen> {
        self.admin_address.as_ref()
    }

    /// The proxy that is running.
    pub fn proxy(&self) -> &Arc<Proxy> {
        &self.proxy
    }

    /// The threads that are not workers, for whoever waits for a signal.
    pub fn control(&self) -> &Runtime {
        &self.control
    }

    /// Stops: no new connections, requests under way to their end or to the deadline, then the
    /// durable tier's queue.
    pub fn stop(self) {
        self.stop.cancel();
        for worker in self.workers {
            // One that panicked has ended as well.
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
