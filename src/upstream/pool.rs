//! The addresses of an upstream: which of them a request goes to, and when.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::RwLock;
use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::balance::{Balancer, Candidates};
use super::endpoint::Endpoint;
use super::message::Errand;
use super::queue::Queue;
use super::{Config, UpstreamError};
use crate::base::{Admission, Probe, Stopwatch};

/// The addresses of an upstream.
#[derive(Debug)]
pub(super) struct Pool {
    /// Replaced whole when a name gets other addresses.
    endpoints: RwLock<Arc<[Arc<Endpoint>]>>,
    balancer: Balancer,
    /// The most requests under way at one address; 0: any number.
    most: u32,
    queue: Queue,
    budget: Budget,
}

/// The grounds on which a request gets an address.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    pub(super) errand: Errand,
    /// The time since which its client has waited; `None`: it came just now.
    pub(super) since: Option<Stopwatch>,
    /// The hash of what the choice goes by, under `balance = "hash"`.
    pub(super) affinity: u64,
    /// The address that its client is kept at, by the sticky cookie.
    pub(super) kept_at: Option<Arc<Endpoint>>,
    /// The addresses that it was sent to in vain.
    pub(super) tried: SmallVec<[u64; 2]>,
}

impl Choice {
    /// Returns the address that the client is kept at, unless that can't be asked.
    fn kept(&self) -> Option<&Arc<Endpoint>> {
        self.kept_at
            .as_ref()
            .filter(|kept| !kept.is_backup && !kept.is_down() && !kept.is_gone() && !self.tried.contains(&kept.id))
    }

    /// Returns whether an address with room is one for this request.
    pub(super) fn takes(&self, endpoint: &Arc<Endpoint>) -> bool {
        !self.tried.contains(&endpoint.id) && self.kept().is_none_or(|kept| Arc::ptr_eq(kept, endpoint))
    }
}

/// A place among the requests under way at an address. Gives it to the next that waits when it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    pool: Arc<Pool>,
    pub(super) endpoint: Arc<Endpoint>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.pool.queue.len() == 0 {
            self.endpoint.end();
            // One that has joined the queue since may have seen no room.
            if self.pool.queue.len() > 0 {
                self.pool.offer(&self.endpoint);
            }
        } else {
            self.pool.free(&self.endpoint);
        }
    }
}

/// What comes of looking for an address.
enum Found {
    Room(Arc<Endpoint>, Option<Probe>),
    /// Each that can be asked has `upstream.max_requests` under way.
    Full,
    /// Each is known to be down.
    Down {
        was_slow: bool,
    },
}

impl Pool {
    /// Makes a pool of `endpoints`.
    pub(super) fn new(config: &Config, endpoints: Vec<Arc<Endpoint>>) -> Arc<Self> {
        Arc::new(Self {
            endpoints: RwLock::new(endpoints.into()),
            balancer: Balancer::new(config.balance, config.slow_start),
            most: config.max_requests,
            queue: Queue::default(),
            budget: Budget::new(config.retry_budget),
        })
    }

    /// Returns all addresses.
    pub(super) fn endpoints(&self) -> Arc<[Arc<Endpoint>]> {
        Arc::clone(&self.endpoints.read())
    }

    /// Replaces the addresses. Requests under way at those that are gone go on.
    pub(super) fn replace(&self, endpoints: Vec<Arc<Endpoint>>) {
        let before = std::mem::replace(&mut *self.endpoints.write(), endpoints.into());
        let now = self.endpoints();
        for gone in before.iter().filter(|old| !now.iter().any(|new| Arc::ptr_eq(old, new))) {
            gone.set_gone();
        }
        now.iter().for_each(|endpoint| self.offer(endpoint));
    }

    /// Gives the room at an address that is new, up again or less busy to those that wait.
    pub(super) fn offer(&self, endpoint: &Arc<Endpoint>) {
        while self.queue.len() > 0 && self.may_ask(endpoint) {
            let joined = self.queue.joined();
            if !endpoint.begin(self.most) {
                return;
            }
            if !self.queue.hand_over(endpoint) {
                endpoint.end();
                // One that has joined since may have seen no room.
                if self.queue.joined() == joined {
                    return;
                }
            }
        }
    }

    /// Gives all room that there is to those that wait: one that waits for an address that went down may go elsewhere.
    pub(super) fn offer_all(&self) {
        self.endpoints().iter().for_each(|endpoint| self.offer(endpoint));
    }

    /// Returns whether an address has as many requests under way as it may.
    pub(super) fn is_full(&self, endpoint: &Endpoint) -> bool {
        self.most > 0 && endpoint.under_way() >= self.most
    }

    /// Returns whether an address is asked although not as a probe: it is up, or only its health checks fail and nothing
    /// better is left.
    fn may_ask(&self, endpoint: &Endpoint) -> bool {
        !endpoint.is_gone() && !endpoint.breaker.is_open() && (!endpoint.is_unhealthy() || self.is_down())
    }

    /// Returns the number of requests that wait for room.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Returns whether every address is known to be down.
    pub(super) fn is_down(&self) -> bool {
        self.endpoints.read().iter().all(|endpoint| endpoint.is_down())
    }

    /// Returns whether a request that no client waits for may be sent.
    pub(super) fn is_probe_due(&self) -> bool {
        self.endpoints.read().iter().any(|endpoint| !endpoint.is_unhealthy() && endpoint.breaker.is_probe_due())
    }

    /// Returns whether there is another address to try.
    pub(super) fn has_another(&self, choice: &Choice) -> bool {
        self.endpoints.read().iter().any(|endpoint| !endpoint.is_down() && !choice.tried.contains(&endpoint.id))
    }

    /// Finds a place for a request at an address that it may go to. Waits where all have as many as they may.
    pub(super) async fn seat(
        self: &Arc<Self>,
        config: &Config,
        choice: &Choice,
    ) -> Result<(Seat, Option<Probe>), UpstreamError> {
        match self.find(choice) {
            Found::Room(endpoint, probe) => Ok((Seat { pool: Arc::clone(self), endpoint }, probe)),
            Found::Down { was_slow } => Err(UpstreamError::Down { was_slow }),
            Found::Full => Box::pin(self.wait(config, choice)).await,
        }
    }

    /// Gives the room that a request leaves to the next that waits.
    #[cold]
    fn free(&self, endpoint: &Arc<Endpoint>) {
        if !self.may_ask(endpoint) || !self.queue.hand_over(endpoint) {
            endpoint.end();
            self.offer(endpoint);
        }
        if self.endpoints.read().iter().all(|endpoint| endpoint.breaker.is_open()) {
            self.queue.dismiss();
        }
    }

    /// Waits for room.
    async fn wait(self: &Arc<Self>, config: &Config, choice: &Choice) -> Result<(Seat, Option<Probe>), UpstreamError> {
        let Some(receiver) = self.queue.join(choice, config.max_waiting) else { return Err(UpstreamError::Busy) };
        // Whoever is handed an address and leaves at that moment must give it back.
        let mut place = Place { pool: self, errand: choice.errand, receiver, is_over: false };
        // Room may have come before this request was in the queue.
        match self.find(choice) {
            Found::Room(endpoint, probe) => return Ok((Seat { pool: Arc::clone(self), endpoint }, probe)),
            Found::Down { was_slow } => return Err(UpstreamError::Down { was_slow }),
            Found::Full => {}
        }
        let handed = timeout(config.queue_timeout, &mut place.receiver).await;
        place.is_over = handed.is_ok();
        match handed {
            Ok(Ok(endpoint)) => Ok((Seat { pool: Arc::clone(self), endpoint }, None)),
            Ok(Err(_)) => Err(UpstreamError::Down { was_slow: false }),
            Err(_) => Err(UpstreamError::Busy),
        }
    }

    /// Looks for an address: one that is up, else a backup that is up, else one of which only the health checks fail, else
    /// one that is due for a probe.
    fn find(&self, choice: &Choice) -> Found {
        let most = self.most;
        if let Some(kept) = choice.kept() {
            return if kept.begin(most) { Found::Room(Arc::clone(kept), None) } else { Found::Full };
        }
        let endpoints = self.endpoints.read();
        if let [only] = &endpoints[..]
            && !only.is_down()
            && choice.tried.is_empty()
            && only.begin(most)
        {
            return Found::Room(Arc::clone(only), None);
        }
        let mut is_full = false;
        for level in [Level::Up, Level::Backup, Level::Unhealthy] {
            let is_candidate = |endpoint: &&Arc<Endpoint>| level.has(endpoint) && !choice.tried.contains(&endpoint.id);
            let mut candidates: Candidates<'_> = endpoints.iter().filter(is_candidate).collect();
            let count = candidates.len();
            if most > 0 {
                candidates.retain(|endpoint| endpoint.under_way() < most);
            }
            is_full |= candidates.len() < count;
            while let Some(chosen) = self.balancer.choose(&candidates, choice.affinity) {
                if chosen.begin(most) {
                    return Found::Room(Arc::clone(chosen), None);
                }
                is_full = true;
                candidates.retain(|candidate| !Arc::ptr_eq(candidate, chosen));
            }
            if is_full {
                return Found::Full;
            }
        }
        find_down(&endpoints, most, choice)
    }

    /// Counts a request, which allows for a part of a repetition, in thousandths.
    pub(super) fn note_request(&self, part: u16) {
        self.budget.grow(i64::from(part));
    }

    /// Takes one repetition from what the requests of late allow for.
    pub(super) fn take_repeat(&self) -> bool {
        self.budget.take()
    }
}

/// The addresses that are chosen among while none of the levels before has any.
#[derive(Clone, Copy)]
enum Level {
    Up,
    Backup,
    /// Those of which only the health checks fail: they may be wrong, and nothing else is left.
    Unhealthy,
}

impl Level {
    fn has(self, endpoint: &Endpoint) -> bool {
        match self {
            Self::Up => !endpoint.is_backup && !endpoint.is_down(),
            Self::Backup => endpoint.is_backup && !endpoint.is_down(),
            Self::Unhealthy => endpoint.is_unhealthy() && !endpoint.breaker.is_open(),
        }
    }
}

/// Looks for an address that is known to be down and due for a probe.
#[cold]
fn find_down(endpoints: &[Arc<Endpoint>], most: u32, choice: &Choice) -> Found {
    let (mut was_any_slow, mut is_full) = (false, false);
    for endpoint in endpoints.iter().filter(|endpoint| !choice.tried.contains(&endpoint.id)) {
        let admission = match choice.errand {
            Errand::Client => endpoint.breaker.admit(),
            Errand::Background => endpoint.breaker.admit_in_background(),
            Errand::StandIn => Admission::Refused { was_slow: false },
        };
        let probe = match admission {
            // It has come up at this moment.
            Admission::Granted => None,
            Admission::Probe(probe) => Some(probe),
            Admission::Refused { was_slow } => {
                was_any_slow |= was_slow;
                continue;
            }
        };
        if endpoint.begin(most) {
            return Found::Room(Arc::clone(endpoint), probe);
        }
        is_full = true;
    }
    if is_full { Found::Full } else { Found::Down { was_slow: was_any_slow } }
}

/// A place in the queue.
struct Place<'a> {
    pool: &'a Arc<Pool>,
    errand: Errand,
    receiver: oneshot::Receiver<Arc<Endpoint>>,
    /// True once the queue has let it go: it was handed an address, or sent away.
    is_over: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        self.receiver.close();
        match self.receiver.try_recv() {
            Ok(endpoint) => drop(Seat { pool: Arc::clone(self.pool), endpoint }),
            Err(_) => self.pool.queue.leave(self.errand),
        }
    }
}

/// The repetitions that are allowed for, in thousandths.
#[derive(Debug)]
struct Budget(AtomicI64);

/// One repetition.
const ONE: i64 = 1000;

/// The most repetitions that are saved up; there are as many at the start.
const MOST: i64 = 100 * ONE;

impl Budget {
    /// Makes a full one, if any requests allow for a part of a repetition.
    fn new(part: u16) -> Self {
        Self(AtomicI64::new(if part == 0 { 0 } else { MOST }))
    }

    fn grow(&self, by: i64) {
        // Full is the usual case, and writes nothing that other threads read.
        if self.0.load(Ordering::Relaxed) < MOST {
            self.0.fetch_add(by, Ordering::Relaxed);
        }
    }

    fn take(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| (left >= ONE).then(|| left - ONE)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::endpoint::Target;
    use super::*;

    fn choice() -> Choice {
        Choice { errand: Errand::Client, since: None, affinity: 0, kept_at: None, tried: SmallVec::new() }
    }

    #[test]
    fn nobody_waits_while_there_is_room() {
        // Many that come and go at once: one that joins the queue at the moment at which the room is left must get it.
        let config = Config { max_requests: 1, queue_timeout: Duration::from_secs(5), ..Config::default() };
        let listed = &config.addresses[0];
        let pool = Pool::new(&config, vec![config.endpoint(0, listed, Target::of(&listed.address))]);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_time().build();
        runtime.expect("a runtime").block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..3 {
                let (pool, config) = (Arc::clone(&pool), config.clone());
                tasks.spawn(async move {
                    let choice = choice();
                    for _ in 0..100_000 {
                        drop(pool.seat(&config, &choice).await.expect("a place"));
                        tokio::task::yield_now().await;
                    }
                });
            }
            tasks.join_all().await;
        });
        assert_eq!((pool.waiting(), pool.endpoints()[0].under_way()), (0, 0));
    }
}
