//! The proxy's state: what all workers share, and how much of it is in use.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::failures::Failures;
use super::https::Https;
use super::rules;
use super::target::Keys;
use crate::base::Metrics;
use crate::fetch::Fetcher;
use crate::store::Store;
use crate::tls::acme::Acme;
use crate::upstream::forwarding::Trust;
use crate::upstream::{PeerState, UploadLimits, Upstream, UpstreamName};

/// The proxy: the state that all workers share.
#[derive(Debug)]
pub struct Proxy {
    /// Makes fetches.
    pub fetcher: Arc<Fetcher>,
    /// Says whose word on a request counts, and in which fields.
    pub trust: Trust,
    /// The rules, and the keys made by them.
    pub keys: Keys,
    /// `[cache]`
    pub cache: rules::Config,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// True if every request is logged.
    pub access_log: bool,
    /// The failures that were logged lately.
    pub failures: Failures,
    /// Settings for the redirect to https, and for Strict-Transport-Security.
    pub https: Https,
    /// Answers the challenges of CAs; `None`: no certificate is got by ACME.
    pub(crate) acme: Option<Arc<Acme>>,
    /// The names of the cookies that keep clients at one address of an upstream.
    pub sticky_cookies: Vec<String>,
    /// Limits for the bodies of requests.
    pub upload_limits: UploadLimits,
    /// The time after which an idle tunnel ends.
    pub tunnel_timeout: Duration,
    /// The tunnels under way. They end when both sides have ended, or with the process.
    pub tunnels: TaskTracker,
}

/// The memory and tasks in use by fetches and by bodies that pass.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// The bytes of bodies that are coming in.
    pub filling: u64,
    /// Those, and the bytes of finished fetches that clients still read.
    pub held: u64,
    /// The fetches under way that can be shared.
    pub flights: u64,
    /// The requests that wait for one.
    pub waiting: u64,
    /// The requests that wait until an address of the origin has room.
    pub queued: u64,
    /// The fetches that may yet go on although nobody waits for them.
    pub unattended_left: u64,
    /// The bytes in memory of uploads and of what is read ahead of clients.
    pub buffered: u64,
    /// The bytes of the same in temporary files.
    pub spooled: u64,
}

impl Proxy {
    /// Returns the tasks of fetches under way.
    pub fn fetches(&self) -> &TaskTracker {
        &self.fetcher.tasks
    }

    /// Measures the memory and tasks in use by fetches and by bodies that pass.
    pub fn usage(&self) -> Usage {
        let (limits, flights) = (&self.fetcher.limits, &self.fetcher.flights);
        // All upstreams have the same ones.
        let buffers = self.fetcher.origins.named(UpstreamName::Default).upstream.buffers();
        Usage {
            filling: limits.budget.used() as u64,
            held: limits.budget.held() as u64,
            flights: flights.under_way() as u64,
            waiting: flights.waiting() as u64,
            queued: self.upstreams().map(|(_, upstream)| upstream.waiting() as u64).sum(),
            unattended_left: limits.unattended.available_permits() as u64,
            buffered: buffers.used() as u64,
            spooled: buffers.spools.used(),
        }
    }

    /// Returns the store, with both tiers.
    pub fn store(&self) -> &Store {
        &self.fetcher.store
    }

    /// Returns the address of each node, and what it counts as; none where there are no peers.
    pub(crate) fn peers(&self) -> Vec<(String, PeerState)> {
        self.fetcher.peers.as_ref().map(|peers| peers.states()).unwrap_or_default()
    }

    /// Returns the upstreams, each with its name. That of `[upstream]` comes first.
    pub(crate) fn upstreams(&self) -> impl Iterator<Item = (&str, &Arc<Upstream>)> {
        self.fetcher.origins.all().iter().map(|origin| (&*origin.name, &origin.upstream))
    }
}
