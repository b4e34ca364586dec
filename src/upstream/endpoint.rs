//! One address of an upstream: its connections, its breaker, its load, and whether it is healthy.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

use super::Config;
use super::config::{Address, Listed};
use crate::base::{Breaker, OriginOutcome, Stopwatch};

/// The place that connections lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A name that is looked up for each connection, such as `localhost`.
    Name {
        /// The name.
        host: String,
        /// The port.
        port: u16,
    },
    /// An address.
    Socket(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl Target {
    /// Returns where connections to `address` lead, as long as its name was not looked up.
    pub(super) fn of(address: &Address) -> Self {
        match address {
            Address::Unix(path) => Self::Unix(path.clone()),
            Address::Tcp { host, port, .. } => match host.parse::<IpAddr>() {
                Ok(ip) => Self::Socket((ip, *port).into()),
                Err(_) => Self::Name { host: host.clone(), port: *port },
            },
        }
    }
}

impl Target {
    /// Returns whether it is a name, which is looked up for each connection.
    pub(super) fn is_name(&self) -> bool {
        matches!(self, Self::Name { .. })
    }
}

impl Config {
    /// Makes one of the addresses.
    pub(super) fn endpoint(&self, n: usize, listed: &Listed, target: Target) -> Arc<Endpoint> {
        Endpoint::new(n, listed, target, self.breaker_failures, self.breaker_pause)
    }
}

/// One address of an upstream.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Tells its idle connections from those of others.
    pub(super) id: u64,
    /// The number in `upstream.url` of the address that it is one of.
    pub(super) listed: usize,
    /// The address, as the configuration, the log and the metrics call it.
    pub(crate) name: String,
    pub(super) target: Target,
    /// True if it is spoken to by TLS.
    pub(super) is_tls: bool,
    pub(super) weight: u32,
    /// True if it is asked only when no other can be.
    pub(super) is_backup: bool,
    pub(super) breaker: Arc<Breaker>,
    /// The requests that were sent to it, and whose answers have not ended.
    under_way: AtomicU32,
    /// The requests to it so far, by outcome.
    outcomes: [AtomicU64; OriginOutcome::ALL.len()],
    /// True if its last health checks failed.
    is_unhealthy: AtomicBool,
    /// True once the name no longer has this address.
    is_gone: AtomicBool,
    /// True while it is given less than its share, after it was down.
    is_recovering: AtomicBool,
    recovered: Mutex<Option<Stopwatch>>,
    /// The lines that it counts as down.
    told: Mutex<Told>,
    /// The value of the sticky cookie that stands for it, once that was needed.
    pub(super) sticky: OnceLock<String>,
}

/// The lines of an address that it counts as down.
#[derive(Debug, Default)]
struct Told {
    /// The begin of the minute in which they are counted.
    since: Option<Stopwatch>,
    lines: u32,
    /// True if the last one was not followed by one that it answers again.
    is_open: bool,
}

const MINUTE: Duration = Duration::from_secs(60);

/// The most lines a minute that an address counts as down.
const LINES: u32 = 10;

/// The share of its weight that an address is given at least.
const LEAST_SHARE: f64 = 0.1;

impl Endpoint {
    /// Makes an address that is not known to be down.
    pub(super) fn new(n: usize, listed: &Listed, target: Target, failures: u32, pause: Duration) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let scheme = if listed.is_tls() { "https" } else { "http" };
        let name = match &target {
            Target::Socket(address) => format!("{scheme}://{address}"),
            Target::Name { .. } | Target::Unix(_) => listed.address.to_string(),
        };
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            listed: n,
            name,
            target,
            is_tls: listed.is_tls(),
            weight: listed.weight,
            is_backup: listed.is_backup,
            breaker: Breaker::new(failures, pause),
            under_way: AtomicU32::new(0),
            outcomes: Default::default(),
            is_unhealthy: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
            is_recovering: AtomicBool::new(false),
            recovered: Mutex::default(),
            told: Mutex::default(),
            sticky: OnceLock::new(),
        })
    }

    /// Returns the number of requests under way.
    pub(crate) fn under_way(&self) -> u32 {
        self.under_way.load(Ordering::SeqCst)
    }

    /// Counts a request that came to this.
    pub(super) fn note(&self, outcome: OriginOutcome) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of requests so far, by outcome in the order of [`OriginOutcome::ALL`].
    pub(crate) fn outcomes(&self) -> [u64; OriginOutcome::ALL.len()] {
        self.outcomes.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// Counts one more request; false: there are `most` already (0: any number).
    pub(super) fn begin(&self, most: u32) -> bool {
        if most == 0 {
            self.under_way.fetch_add(1, Ordering::SeqCst);
            return true;
        }
        // Never counts one too many, not even for a moment: another request would wait because of it.
        let one_more = |under_way: u32| (under_way < most).then_some(under_way + 1);
        self.under_way.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more).is_ok()
    }

    /// Counts one request less. Whoever counts looks at the queue afterwards: `SeqCst`, here and there, keeps the two in
    /// order.
    pub(super) fn end(&self) {
        self.under_way.fetch_sub(1, Ordering::SeqCst);
    }

    /// Returns whether it is known to be down.
    pub(crate) fn is_down(&self) -> bool {
        self.breaker.is_open() || self.is_unhealthy.load(Ordering::Relaxed)
    }

    /// Returns whether its health checks fail.
    pub(crate) fn is_unhealthy(&self) -> bool {
        self.is_unhealthy.load(Ordering::Relaxed)
    }

    /// Notes what its health checks say. Returns whether that changed something.
    pub(super) fn set_healthy(&self, is_healthy: bool) -> bool {
        let changed = self.is_unhealthy.swap(!is_healthy, Ordering::Relaxed) == is_healthy;
        if changed && is_healthy {
            self.begin_slowly();
        }
        changed
    }

    /// Gives it less than its share for a while: whoever was down has cold caches and no workers.
    pub(super) fn begin_slowly(&self) {
        *self.recovered.lock() = Some(Stopwatch::start());
        self.is_recovering.store(true, Ordering::Relaxed);
    }

    /// Returns its weight, less what it is spared within `slow_start` of its recovery.
    pub(super) fn share(&self, slow_start: Duration) -> f64 {
        let weight = f64::from(self.weight);
        if !self.is_recovering.load(Ordering::Relaxed) {
            return weight;
        }
        let since = self.recovered.lock().map_or(Duration::MAX, Stopwatch::elapsed);
        if since >= slow_start {
            self.is_recovering.store(false, Ordering::Relaxed);
            return weight;
        }
        weight * (since.as_secs_f64() / slow_start.as_secs_f64()).max(LEAST_SHARE)
    }

    /// Returns whether a line may tell that it counts as down. One client can make it go down and up again at will.
    pub(super) fn may_tell_down(&self) -> bool {
        let mut told = self.told.lock();
        if told.since.is_none_or(|since| since.elapsed() >= MINUTE) {
            *told = Told { since: Some(Stopwatch::start()), lines: 0, is_open: told.is_open };
        }
        told.lines += 1;
        let may_be_told = told.lines <= LINES;
        told.is_open |= may_be_told;
        may_be_told
    }

    /// Returns whether a line may tell that it answers again: one told that it counts as down.
    pub(super) fn may_tell_up(&self) -> bool {
        std::mem::take(&mut self.told.lock().is_open)
    }

    /// Returns whether the name still has this address.
    pub(super) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }

    /// Notes that the name no longer has this address: its connections end when they are idle.
    pub(super) fn set_gone(&self) {
        self.is_gone.store(true, Ordering::Relaxed);
    }
}

impl Listed {
    /// Returns host and port as the `Host` field has them.
    pub(super) fn host(&self) -> Option<String> {
        match &self.address {
            Address::Tcp { host, port, .. } if host.contains(':') => Some(format!("[{host}]:{port}")),
            Address::Tcp { host, port, .. } => Some(format!("{host}:{port}")),
            Address::Unix(_) => None,
        }
    }

    /// Returns whether the address is spoken to by TLS.
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self.address, Address::Tcp { is_tls: true, .. })
    }
}
