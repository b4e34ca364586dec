//! Flights: one fetch, shared by everyone who wants the same thing at the same time.
//!
//! A flight is found by its key. The first to ask for it leads: it starts the fetch as a task of
//! its own, which outlives every client. The others follow, and are told what came of it as soon
//! as that is known: when the response's head has arrived, not when its body is complete.
//!
//! Waiting is by event, and ends however the flight ends: a flight whose task dies tells its
//! followers so. A follower that has waited for long may ask the origin as well, for the flight and
//! not for itself: a bounded number may at once, and the first to have an answer speaks for all.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::entry::{Fill, StoredHead, StoredResponse, Validating};
use crate::rfc9111::cache_status::{Fwd, Tier};
use crate::upstream::UpstreamError;

/// What came of a flight, for everyone who waited.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A response that others may be given as well.
    Shared(Arc<Shared>),
    /// A response for the one who led. Everyone else asks for themselves, at once.
    NotShared,
    /// None.
    Failed(UpstreamError),
}

/// A response that passed RFC 9111 §3.
#[derive(Debug)]
pub struct Shared {
    /// Its head, and its body as far as it has come.
    pub response: SharedResponse,
    /// Where it came from.
    pub source: Source,
}

/// A shared response.
#[derive(Debug)]
pub enum SharedResponse {
    /// Complete.
    Stored(Arc<StoredResponse>),
    /// Its body is coming in.
    Filling(Arc<StoredHead>, Arc<Fill>),
}

impl Shared {
    /// Its head.
    pub fn head(&self) -> &StoredHead {
        match &self.response {
            SharedResponse::Stored(stored) => &stored.head,
            SharedResponse::Filling(head, _) => head,
        }
    }
}

/// Where a shared response came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A tier had it.
    Tier(Tier),
    /// The origin was asked, because of `fwd`.
    Origin {
        /// Why.
        fwd: Fwd,
        /// Its status, where it differs from the response's: 304.
        status: Option<u16>,
        /// Whether the response is kept.
        stored: bool,
    },
    /// A tier had it, stale, and the origin is known to fail.
    StandIn(Tier),
    /// The origin was asked, because of `fwd`, and failed: a stale response stands in for it.
    InPlaceOfError {
        /// Why.
        fwd: Fwd,
        /// Its status, if it gave one.
        status: Option<u16>,
    },
}

/// The number of locks that flights are spread over.
const SHARDS: usize = 64;

type Shard = Mutex<HashMap<u128, Vec<Flight>>>;

/// All flights under way.
pub struct Flights {
    /// By the key's hash; under it, by variant. Each lock guards its shard's map, for a look-up or
    /// an insertion.
    shards: Box<[Shard]>,
    /// How many requests to the origin one flight may have under way at once.
    limit: usize,
}

#[derive(Debug)]
struct Flight {
    variant: u128,
    state: Arc<FlightState>,
}

/// What everyone in a flight has in common.
#[derive(Debug)]
struct FlightState {
    /// What came of it, and who brought it.
    outcome: watch::Sender<Option<(u64, Outcome)>>,
    /// Those who may still publish, and the number of the last who joined them.
    leaders: AtomicUsize,
    last: AtomicU64,
    /// One for each further request to the origin that may be under way.
    permits: Arc<Semaphore>,
}

impl FlightState {
    fn leader(&self) -> u64 {
        self.leaders.fetch_add(1, Ordering::AcqRel);
        self.last.fetch_add(1, Ordering::Relaxed)
    }

    /// Only the first word counts.
    fn publish(&self, leader: u64, outcome: Outcome) -> bool {
        self.outcome.send_if_modified(|slot| {
            let is_first = slot.is_none();
            if is_first {
                *slot = Some((leader, outcome));
            }
            is_first
        })
    }
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").field("under_way", &self.under_way()).finish()
    }
}

/// The part one has in a flight.
#[derive(Debug)]
pub enum Joined {
    /// The flight is new, and this its only handle.
    Leader(Lease),
    /// The flight was under way.
    Follower(Follower),
}

impl Flights {
    /// No flights yet; each may have `limit` requests to the origin under way at once, at least one.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), limit })
    }

    /// Joins the flight for a key and variant, or begins it.
    pub fn join(self: &Arc<Self>, key: u128, variant: u128) -> Joined {
        let mut shard = self.shard(key).lock();
        let flights = shard.entry(key).or_default();
        if let Some(flight) = flights.iter().find(|flight| flight.variant == variant) {
            let entry = Entry { flights: Arc::clone(self), key, variant, state: Arc::clone(&flight.state) };
            return Joined::Follower(Follower { outcome: flight.state.outcome.subscribe(), entry, own: None });
        }
        let state = Arc::new(FlightState {
            outcome: watch::Sender::new(None),
            leaders: AtomicUsize::new(0),
            last: AtomicU64::new(0),
            permits: Arc::new(Semaphore::new(self.limit.saturating_sub(1))),
        });
        flights.push(Flight { variant, state: Arc::clone(&state) });
        Joined::Leader(Lease::new(Entry { flights: Arc::clone(self), key, variant, state }, None))
    }

    /// Lets nobody join the flights for a key any more; who has joined stays. For a purge: what
    /// is under way was asked for before it.
    pub fn detach(&self, key: u128) {
        self.shard(key).lock().remove(&key);
    }

    /// The same for every key.
    pub fn detach_all(&self) {
        for shard in &self.shards {
            shard.lock().clear();
        }
    }

    /// The number of flights that can be joined.
    pub fn under_way(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().values().map(Vec::len).sum::<usize>()).sum()
    }

    /// The number of those who wait for one.
    pub fn waiting(&self) -> usize {
        let waiting =
            |flights: &Vec<Flight>| -> usize { flights.iter().map(|f| f.state.outcome.receiver_count()).sum() };
        self.shards.iter().map(|shard| shard.lock().values().map(waiting).sum::<usize>()).sum()
    }

    fn shard(&self, key: u128) -> &Shard {
        &self.shards[usize::try_from(key % SHARDS as u128).unwrap_or(0)]
    }
}

/// Where a flight is found.
#[derive(Clone, Debug)]
struct Entry {
    flights: Arc<Flights>,
    key: u128,
    variant: u128,
    state: Arc<FlightState>,
}

impl Entry {
    /// Takes the flight off if `is_over`, which is asked while nobody can join it. One that was
    /// detached may have a successor under the same key: that one stays.
    fn remove_if(&self, is_over: impl FnOnce() -> bool) -> bool {
        let mut shard = self.flights.shard(self.key).lock();
        let is_over = is_over();
        if is_over && let Some(flights) = shard.get_mut(&self.key) {
            flights.retain(|flight| flight.variant != self.variant || !Arc::ptr_eq(&flight.state, &self.state));
            if flights.is_empty() {
                shard.remove(&self.key);
            }
        }
        is_over
    }
}

/// The end of a flight that one holds who asks the origin. When it is dropped after it has published,
/// or is the last one, the flight is taken off; if nothing was published by then, followers learn
/// that nothing is shared.
#[derive(Debug)]
pub struct Lease {
    entry: Entry,
    leader: u64,
    has_published: bool,
    has_left: bool,
    /// Held for as long as the flight lasts.
    validating: Option<Validating>,
    /// Given back when it is dropped.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Lease {
    fn new(entry: Entry, permit: Option<OwnedSemaphorePermit>) -> Self {
        let leader = entry.state.leader();
        Self { entry, leader, has_published: false, has_left: false, validating: None, _permit: permit }
    }

    /// Holds `validating` until the flight is over, and what came is stored.
    pub fn hold(&mut self, validating: Validating) {
        self.validating = Some(validating);
    }

    /// Tells the followers what came of it, and those who join from now on, unless another one has.
    pub fn publish(&mut self, outcome: Outcome) {
        self.has_published |= self.entry.state.publish(self.leader, outcome);
    }

    /// Takes the flight off and tells the followers what came of it. That the origin failed is said by the
    /// last who asked it.
    pub fn end(mut self, outcome: Outcome) {
        self.leave(Some(outcome));
    }

    /// What comes of the flight through others.
    pub fn others(&self) -> Follower {
        let outcome = self.entry.state.outcome.subscribe();
        Follower { outcome, entry: self.entry.clone(), own: Some(self.leader) }
    }

    /// Who is told when nobody waits any more.
    pub fn watch(&self) -> Watch {
        Watch(self.entry.clone())
    }

    fn leave(&mut self, outcome: Option<Outcome>) {
        if std::mem::replace(&mut self.has_left, true) {
            return;
        }
        let state = &self.entry.state;
        let is_last = state.leaders.fetch_sub(1, Ordering::AcqRel) == 1;
        let speaks = is_last || !matches!(outcome, Some(Outcome::Failed(_)) | None);
        // Off first: whoever hears that it failed, and asks again, must not find it.
        if speaks || self.has_published {
            self.entry.remove_if(|| true);
        }
        if speaks {
            state.publish(self.leader, outcome.unwrap_or(Outcome::NotShared));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leave(None);
    }
}

/// Watches whether anybody waits for a flight.
#[derive(Debug)]
pub struct Watch(Entry);

impl Watch {
    /// Ready when nobody waits for the flight. Somebody may join it the moment after.
    pub async fn deserted(&self) {
        self.0.state.outcome.closed().await;
    }

    /// Takes the flight off if still nobody waits for it.
    pub fn cancel(&self) -> bool {
        self.0.remove_if(|| self.0.state.outcome.is_closed())
    }
}

/// A follower's end of a flight.
#[derive(Debug)]
pub struct Follower {
    outcome: watch::Receiver<Option<(u64, Outcome)>>,
    entry: Entry,
    /// What this one brings itself is not what it waits for.
    own: Option<u64>,
}

impl Follower {
    /// What came of the flight. To be cancelled as one likes.
    pub async fn outcome(&mut self) -> Outcome {
        let own = self.own;
        let is_there = |slot: &Option<(u64, Outcome)>| slot.as_ref().is_some_and(|(leader, _)| Some(*leader) != own);
        match self.outcome.wait_for(is_there).await.map(|slot| slot.clone()) {
            Ok(Some((_, outcome))) => outcome,
            Ok(None) | Err(_) => Outcome::NotShared,
        }
    }

    /// Leave to ask the origin as well, to be waited for.
    pub fn permits(&self) -> SecondTries {
        SecondTries(self.entry.clone())
    }
}

/// See [`Follower::permits`].
#[derive(Debug)]
pub struct SecondTries(Entry);

impl SecondTries {
    /// Waits for leave to ask the origin as well, for this flight.
    pub async fn take(self) -> Lease {
        match Arc::clone(&self.0.state.permits).acquire_owned().await {
            Ok(permit) => Lease::new(self.0, Some(permit)),
            // They are never closed.
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lead(flights: &Arc<Flights>, key: u128) -> Lease {
        match flights.join(key, 0) {
            Joined::Leader(lease) => lease,
            Joined::Follower(_) => panic!("there is a flight"),
        }
    }

    fn follow(flights: &Arc<Flights>, key: u128) -> Follower {
        match flights.join(key, 0) {
            Joined::Follower(follower) => follower,
            Joined::Leader(_) => panic!("there is no flight"),
        }
    }

    fn failure() -> Outcome {
        Outcome::Failed(UpstreamError::ConnectTimeout)
    }

    fn is_ready(future: impl Future) -> bool {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::pin!(future).poll(&mut cx).is_ready()
    }

    #[tokio::test]
    async fn followers_learn_the_outcome_whenever_they_join() {
        let flights = Flights::new(4);
        let mut lease = lead(&flights, 1);
        let mut early = follow(&flights, 1);
        assert!(matches!(flights.join(1, 7), Joined::Leader(_)), "another variant is another flight");
        assert!(!is_ready(early.outcome()));
        lease.publish(failure());
        let mut late = follow(&flights, 1);
        assert!(matches!(early.outcome().await, Outcome::Failed(_)));
        assert!(matches!(late.outcome().await, Outcome::Failed(_)));
        drop(lease);
        assert_eq!(flights.under_way(), 0);
    }

    #[tokio::test]
    async fn a_flight_that_dies_releases_its_followers() {
        let flights = Flights::new(4);
        let lease = lead(&flights, 1);
        let mut follower = follow(&flights, 1);
        drop(lease);
        assert!(matches!(follower.outcome().await, Outcome::NotShared));
        assert_eq!(flights.under_way(), 0);
    }

    #[tokio::test]
    async fn a_flight_that_failed_is_off_before_anyone_hears_of_it() {
        let flights = Flights::new(4);
        let lease = lead(&flights, 1);
        let mut follower = follow(&flights, 1);
        lease.end(failure());
        assert!(matches!(follower.outcome().await, Outcome::Failed(_)));
        drop(lead(&flights, 1));
    }

    #[tokio::test]
    async fn a_detached_flight_does_not_take_its_successor_off() {
        let flights = Flights::new(4);
        let old = lead(&flights, 1);
        flights.detach(1);
        let new = lead(&flights, 1);
        drop(old);
        assert_eq!(flights.under_way(), 1);
        drop(new);
        assert_eq!(flights.under_way(), 0);
    }

    #[tokio::test]
    async fn the_origin_is_asked_again_for_a_flight_within_its_limit() {
        let flights = Flights::new(3);
        let first = lead(&flights, 1);
        let mut follower = follow(&flights, 1);
        let mut others = first.others();
        let mut second = follower.permits().take().await;
        let third = follower.permits().take().await;
        assert!(!is_ready(follower.permits().take()), "three are under way");
        first.end(failure());
        assert!(!is_ready(follower.outcome()), "two are still under way");
        drop(third);
        assert!(is_ready(follower.permits().take()), "a permit was given back");
        second.publish(Outcome::Failed(UpstreamError::ResponseTimeout));
        assert!(!is_ready(second.others().outcome()), "that was its own");
        assert!(matches!(others.outcome().await, Outcome::Failed(UpstreamError::ResponseTimeout)));
        assert!(matches!(follower.outcome().await, Outcome::Failed(UpstreamError::ResponseTimeout)));
        assert_eq!(flights.under_way(), 1);
        drop(second);
        assert_eq!(flights.under_way(), 0);
    }

    #[tokio::test]
    async fn a_flight_that_nobody_waits_for_can_be_called_off() {
        let flights = Flights::new(4);
        let lease = lead(&flights, 1);
        let watch = lease.watch();
        let follower = follow(&flights, 1);
        assert!(!is_ready(watch.deserted()));
        assert!(!watch.cancel());
        drop(follower);
        watch.deserted().await;
        assert!(watch.cancel());
        assert_eq!(flights.under_way(), 0);
        drop(lease);
    }
}
