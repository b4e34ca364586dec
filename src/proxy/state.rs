//! What the workers share, and how much of it is in use.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::failures::Failures;
use super::rules;
use super::target::Keys;
use crate::base::Metrics;
use crate::fetch::Fetcher;
use crate::store::Store;
use crate::upstream::forwarding::Trust;
use crate::upstream::{Limits, Upstream};

/// The proxy: everything that the workers share.
#[derive(Debug)]
pub struct Proxy {
    /// What fetches.
    pub fetcher: Arc<Fetcher>,
    /// Whose word on a request counts, and in which fields.
    pub trust: Trust,
    /// What the configuration says of some paths, and the keys that come of it.
    pub keys: Keys,
    /// `[cache]`
    pub cache: rules::Config,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Whether every request is logged.
    pub access_log: bool,
    /// The failures that were logged lately.
    pub failures: Failures,
    /// What a request's body may be.
    pub upload_limits: Limits,
    /// Idle limit of a tunnel.
    pub tunnel_timeout: Duration,
    /// Connections that are no longer HTTP. They end when both sides have, or with the process.
    pub tunnels: TaskTracker,
}

/// What fetches, and bodies that pass, take now.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Bytes of bodies that are coming in.
    pub filling: u64,
    /// Those, and the bytes that clients of fetches that are done still read.
    pub held: u64,
    /// Fetches under way that can be shared.
    pub flights: u64,
    /// Requests that wait for one.
    pub waiting: u64,
    /// Fetches that may yet go on although nobody waits for them.
    pub unattended_left: u64,
    /// Bytes of uploads and of what is read ahead of clients, in memory.
    pub buffered: u64,
    /// The same in temporary files.
    pub spooled: u64,
}

impl Proxy {
    /// The tasks of fetches under way.
    pub fn fetches(&self) -> &TaskTracker {
        &self.fetcher.tasks
    }

    /// What fetches, and bodies that pass, take now.
    pub fn usage(&self) -> Usage {
        let (limits, flights) = (&self.fetcher.limits, &self.fetcher.flights);
        let buffers = self.upstream().buffers();
        Usage {
            filling: limits.budget.used() as u64,
            held: limits.budget.held() as u64,
            flights: flights.under_way() as u64,
            waiting: flights.waiting() as u64,
            unattended_left: limits.unattended.available_permits() as u64,
            buffered: buffers.used() as u64,
            spooled: buffers.spools.used(),
        }
    }

    /// Both tiers.
    pub fn store(&self) -> &Store {
        &self.fetcher.store
    }

    /// The origin.
    pub(crate) fn upstream(&self) -> &Upstream {
        &self.fetcher.origin.upstream
    }
}
