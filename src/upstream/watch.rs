//! Watches the addresses of an upstream from one place a process: looks their names up again, and asks those that are to be
//! checked, or are known to be down.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::Upstream;
use super::config::{Address, Listed};
use super::endpoint::{Endpoint, Target};
use crate::base::Stopwatch;

/// The results on end of one kind that change what an address counts as.
const ON_END: u32 = 2;

/// The least time between two look-ups, however many requests fail.
const LEAST_PAUSE: Duration = Duration::from_millis(100);

/// The longest wait of a request for a look-up.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The most addresses of one name.
const MAX_ADDRESSES: usize = 256;

/// The pause between two looks at which checks are due, if those are further apart.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What is known of an address from its checks.
#[derive(Debug, Default)]
struct Checked {
    last: Option<Stopwatch>,
    /// True while a check of it is under way.
    is_asked: bool,
    /// True if the address had as many requests under way as it may when it was asked.
    was_full: bool,
    /// The results on end that differ from what it counts as.
    against: u32,
}

/// The checks of the addresses, by their ids.
#[derive(Default)]
struct Checks {
    of: HashMap<u64, Checked>,
    under_way: JoinSet<(Arc<Endpoint>, io::Result<StatusCode>)>,
}

/// The looking up of an upstream's names.
#[derive(Debug, Default)]
pub(super) struct LookUps {
    /// Wakes the task that looks them up.
    wanted: Notify,
    /// The number of those begun, and of those ended.
    begun: AtomicU64,
    ended: watch::Sender<u64>,
    /// The number of the one that is to come soon, or came.
    hastened: AtomicU64,
}

impl LookUps {
    /// Has the names looked up soon: one of their addresses can't be reached. What is under way already does not count.
    pub(super) fn hasten(&self) {
        self.hastened.fetch_max(self.begun.load(Ordering::SeqCst) + 1, Ordering::SeqCst);
        self.wanted.notify_one();
    }

    /// Returns whether the names are looked up soon, since one of their addresses could not be reached.
    pub(super) fn are_hastened(&self) -> bool {
        self.hastened.load(Ordering::SeqCst) > *self.ended.borrow()
    }

    /// Waits until they have been looked up, but not for long.
    pub(super) async fn settle(&self) {
        let hastened = self.hastened.load(Ordering::SeqCst);
        let mut ended = self.ended.subscribe();
        let _ = timeout(LONGEST_WAIT, ended.wait_for(|ended| *ended >= hastened)).await;
    }
}

impl Upstream {
    /// Watches until the runtime ends. A resolver that does not answer keeps no address from being checked.
    pub(crate) async fn watch(self: Arc<Self>) {
        tokio::join!(self.watch_names(), self.watch_health());
    }

    /// Looks names up, again and again.
    async fn watch_names(&self) {
        if self.config.addresses.iter().all(|listed| name_of(listed).is_none()) {
            return;
        }
        let mut failing = HashSet::new();
        let interval = self.config.resolve_interval;
        let least = LEAST_PAUSE.min(interval);
        loop {
            self.look_ups.begun.fetch_add(1, Ordering::SeqCst);
            self.resolve(&mut failing).await;
            self.look_ups.ended.send_modify(|ended| *ended += 1);
            tokio::time::sleep(least).await;
            let _ = timeout(interval.saturating_sub(least), self.look_ups.wanted.notified()).await;
        }
    }

    /// Returns whether the application may be at another address by now: the name that this one is of is looked up.
    pub(super) fn may_have_moved(&self, endpoint: &Endpoint) -> bool {
        !endpoint.target.is_name()
            && self.config.addresses.get(endpoint.listed).is_some_and(|one| name_of(one).is_some())
    }

    /// Asks addresses, again and again.
    async fn watch_health(self: &Arc<Self>) {
        let mut checks = Checks::default();
        loop {
            let next = self.begin_checks(&mut checks);
            let pause = tokio::time::sleep(next);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    Some(answered) = checks.under_way.join_next() => {
                        match answered {
                            Ok((endpoint, answer)) => self.learn(&endpoint, &mut checks, &answer),
                            // Nobody knows whose check it was.
                            Err(_) => checks.of.values_mut().for_each(|state| state.is_asked = false),
                        }
                    }
                    () = &mut pause => break,
                }
            }
        }
    }

    /// Looks the names up, and takes the addresses that they have now. Those of a name that can't be looked up stay.
    async fn resolve(&self, failing: &mut HashSet<String>) {
        let before = self.endpoints();
        let mut now: Vec<Arc<Endpoint>> = Vec::new();
        for (n, listed) in self.config.addresses.iter().enumerate() {
            let of_this = before.iter().filter(|endpoint| endpoint.listed == n);
            let Some((host, port)) = name_of(listed) else {
                now.extend(of_this.cloned());
                continue;
            };
            match look_up(host, port, self.config.resolve_interval).await {
                Ok(addresses) => {
                    if failing.remove(host) {
                        info!("the name {host} (upstream.url) can be looked up again");
                    }
                    for address in addresses {
                        let target = Target::Socket(address);
                        let known = before.iter().find(|known| known.listed == n && known.target == target);
                        now.push(known.cloned().unwrap_or_else(|| self.config.endpoint(n, listed, target)));
                    }
                }
                Err(error) => {
                    if failing.insert(host.to_owned()) {
                        warn!("the name {host} (upstream.url) can't be looked up, its last addresses hold: {error}");
                    }
                    now.extend(of_this.cloned());
                }
            }
        }
        let has_changed = now.len() != before.len() || now.iter().zip(before.iter()).any(|(a, b)| !Arc::ptr_eq(a, b));
        if has_changed && !now.is_empty() {
            let names: Vec<&str> = now.iter().map(|endpoint| &*endpoint.name).collect();
            info!("the application is at {}", names.join(", "));
            self.pool.replace(now);
        }
    }

    /// Asks the addresses whose turn it is. One that does not answer delays no check of another. Returns the time until the
    /// next turn.
    fn begin_checks(self: &Arc<Self>, checks: &mut Checks) -> Duration {
        let endpoints = self.endpoints();
        checks.of.retain(|id, _| endpoints.iter().any(|endpoint| endpoint.id == *id));
        let is_checked = !self.config.health_path.is_empty();
        let interval = if is_checked { self.config.health_interval } else { self.config.breaker_pause };
        let mut next = interval.min(LOOK_AGAIN);
        for endpoint in endpoints.iter() {
            let state = checks.of.entry(endpoint.id).or_default();
            // Of a single address the requests themselves tell whether it is up: there is no other to send them to.
            let is_due = is_checked || (endpoints.len() > 1 && endpoint.breaker.is_open());
            if !is_due || state.is_asked {
                continue;
            }
            let left = state.last.map_or(Duration::ZERO, |last| interval.saturating_sub(last.elapsed()));
            if !left.is_zero() {
                next = next.min(left);
                continue;
            }
            state.last = Some(Stopwatch::start());
            state.is_asked = true;
            state.was_full = self.pool.is_full(endpoint);
            let (this, endpoint) = (Arc::clone(self), Arc::clone(endpoint));
            checks.under_way.spawn(async move {
                let answer = this.ask(&endpoint).await;
                (endpoint, answer)
            });
        }
        next
    }

    /// Learns from the answer to a check.
    fn learn(&self, endpoint: &Arc<Endpoint>, checks: &mut Checks, answer: &io::Result<StatusCode>) {
        let Some(state) = checks.of.get_mut(&endpoint.id) else { return };
        state.is_asked = false;
        if !self.config.health_path.is_empty() {
            self.learn_health(endpoint, state, answer);
        } else if answer.is_ok() {
            self.note_answer(endpoint);
        }
    }

    /// Notes the answer to a health check. None in time says nothing of an address that has as many requests under way as it
    /// may: the check waits behind them.
    fn learn_health(&self, endpoint: &Arc<Endpoint>, state: &mut Checked, answer: &io::Result<StatusCode>) {
        let is_late = answer.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut);
        if is_late && !endpoint.is_unhealthy() && (state.was_full || self.pool.is_full(endpoint)) {
            return;
        }
        let (least, most) = self.config.health_status;
        let is_healthy = answer.as_ref().is_ok_and(|status| (least..=most).contains(&status.as_u16()));
        if is_healthy && endpoint.breaker.is_open() {
            self.note_answer(endpoint);
        }
        if is_healthy != endpoint.is_unhealthy() {
            state.against = 0;
            return;
        }
        state.against += 1;
        if state.against < ON_END || !endpoint.set_healthy(is_healthy) {
            return;
        }
        state.against = 0;
        self.pool.offer_all();
        let path = &self.config.health_path;
        match answer {
            Ok(_) if is_healthy => info!("the application at {} is healthy again", endpoint.name),
            Ok(status) => {
                warn!(
                    "the application at {} answers {path} with {status}: it gets requests only where no other is left",
                    endpoint.name
                );
            }
            Err(error) => {
                warn!(
                    "the application at {} does not answer {path}: {error}: it gets requests only where no other is left",
                    endpoint.name
                );
            }
        }
    }

    /// Asks for the health of an address. Without a path for it, asks what needs nothing of the application (RFC 9110
    /// §9.3.7).
    async fn ask(&self, endpoint: &Endpoint) -> io::Result<StatusCode> {
        let path = &*self.config.health_path;
        let (method, path) = if path.is_empty() { (Method::OPTIONS, "*") } else { (Method::GET, path) };
        let host = self.config.host.clone().or_else(|| self.config.addresses.get(endpoint.listed)?.host());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, host.as_deref().unwrap_or("localhost"))
            .header(header::USER_AGENT, "larder-health-check")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(io::Error::other)?;
        let answered = async {
            let io = TokioIo::new(self.dial(endpoint).await?);
            let (mut sender, connection) = http1::handshake(io).await.map_err(io::Error::other)?;
            let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
            sender.send_request(request).await.map(|answer| answer.status()).map_err(io::Error::other)
        };
        let limit = self.config.health_timeout;
        timeout(limit, answered)
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")))
    }
}

/// Returns the name that is looked up for an address. `localhost` is not: it is this machine, by whichever of its
/// addresses answers.
fn name_of(listed: &Listed) -> Option<(&str, u16)> {
    match &listed.address {
        Address::Tcp { host, port, .. } if Target::of(&listed.address).is_name() && host != "localhost" => {
            Some((host, *port))
        }
        Address::Tcp { .. } | Address::Unix(_) => None,
    }
}

/// Returns the addresses of a name, in order.
pub(super) async fn look_up(host: &str, port: u16, limit: Duration) -> io::Result<Vec<SocketAddr>> {
    let found = timeout(limit.max(Duration::from_secs(1)), tokio::net::lookup_host((host, port)))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))??;
    let mut addresses: Vec<SocketAddr> = found.take(MAX_ADDRESSES).collect();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() { Err(io::Error::other("it has no address")) } else { Ok(addresses) }
}
