//! Flights: one fetch, shared by everyone who asks for the same response at the same time.
//!
//! A flight is found by its key, next to those of all other contents that a QUERY for its URL may have, so that what
//! changes the URL detaches them all. The first request for it leads: it starts the fetch as a task of its own, which
//! outlives every client. The others follow. They are told the outcome when the response's head has arrived, not when
//! its body is complete.
//!
//! A follower waits for an event, which comes however the flight ends: a flight whose task dies tells its followers
//! so. A follower that has waited for long may ask the origin as well, on behalf of the flight. A bounded number may
//! do so at once, and the first answer counts for all.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::entry::{Fill, StoredHead, StoredResponse, Validating};
use crate::rfc9111::cache_status::{Fwd, Tier};
use crate::rfc9111::key::CacheKey;
use crate::upstream::UpstreamError;

/// The outcome of a flight, for everyone who waits.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A response that others may be given as well.
    Shared(Arc<Shared>),
    /// The response is for the leader alone. Each follower asks for itself, at once.
    NotShared,
    /// An error; there is no response.
    Failed(UpstreamError),
}

/// A response that passed RFC 9111 §3.
#[derive(Debug)]
pub struct Shared {
    /// The head, and the body as far as it has come.
    pub response: SharedResponse,
    /// The way that it was obtained.
    pub source: Provenance,
}

/// A shared response, complete or not.
#[derive(Debug)]
pub enum SharedResponse {
    /// A complete one.
    Stored(Arc<StoredResponse>),
    /// One whose body is coming in.
    Filling(Arc<StoredHead>, Arc<Fill>),
}

impl Shared {
    /// Returns the response's head.
    pub fn head(&self) -> &StoredHead {
        match &self.response {
            SharedResponse::Stored(stored) => &stored.head,
            SharedResponse::Filling(head, _) => head,
        }
    }
}

/// The way that a shared response was obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provenance {
    /// Found in this tier.
    Tier(Tier),
    /// Fetched from the origin.
    Origin {
        /// The reason for asking the origin.
        fwd: Fwd,
        /// The status of the origin, where the response has another (304).
        status: Option<u16>,
        /// True if the response is kept.
        stored: bool,
        /// True if a peer asked the origin.
        by_peer: bool,
    },
    /// Found in this tier, stale; the origin counts as down.
    StandIn(Tier),
    /// Found stale, in place of an error of the origin.
    InPlaceOfError {
        /// The reason for asking the origin.
        fwd: Fwd,
        /// The status of the error; `None`: there was no response.
        status: Option<u16>,
    },
}

/// The number of locks that flights are spread over.
const SHARDS: usize = 64;

type Shard = Mutex<HashMap<u128, Vec<Flight>>>;

/// The flights under way.
pub struct Flights {
    /// The flights by the hash of their page's key, and under it by their own key and variant. Each lock guards its
    /// shard's map, for a look-up or an insertion.
    shards: Box<[Shard]>,
    /// The most requests to the origin that one flight may have under way at once.
    limit: usize,
}

/// The name that requests find a flight by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlightName {
    /// The hash of the key of a GET for the same URL.
    page: u128,
    /// The hash of the key.
    key: u128,
    variant: u128,
}

impl FlightName {
    /// Names the flight for a key and variant.
    pub fn new(key: &CacheKey, variant: u128) -> Self {
        Self { page: key.page_hash().unwrap_or_else(|| key.hash()), key: key.hash(), variant }
    }
}

#[derive(Debug)]
struct Flight {
    name: FlightName,
    state: Arc<FlightState>,
}

/// The state that everyone in a flight shares.
#[derive(Debug)]
struct FlightState {
    /// The outcome, and the number of the leader that brought it.
    outcome: watch::Sender<Option<(u64, Outcome)>>,
    /// The number of leases on the flight, whose holders may still publish.
    leaders: AtomicUsize,
    last: AtomicU64,
    /// One permit for each further request to the origin that may be under way.
    permits: Arc<Semaphore>,
}

impl FlightState {
    fn leader(&self) -> u64 {
        self.leaders.fetch_add(1, Ordering::AcqRel);
        self.last.fetch_add(1, Ordering::Relaxed)
    }

    /// Publishes an outcome, unless one is published already. Returns whether it did.
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

/// The role of a request in a flight.
#[derive(Debug)]
pub enum Joined {
    /// Leads a new flight, as its only member.
    Leader(Lease),
    /// Follows a flight that was under way.
    Follower(Follower),
}

impl Flights {
    /// Makes an empty table. Each flight may have `limit` requests to the origin under way at once, and at least one.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), limit })
    }

    /// Joins the flight with a name, or begins one.
    pub fn join(self: &Arc<Self>, name: FlightName) -> Joined {
        let mut shard = self.shard(name.page).lock();
        let flights = shard.entry(name.page).or_default();
        if let Some(flight) = flights.iter().find(|flight| flight.name == name) {
            let slot = FlightSlot { flights: Arc::clone(self), name, state: Arc::clone(&flight.state) };
            return Joined::Follower(Follower { outcome: flight.state.outcome.subscribe(), slot, own: None });
        }
        let state = Arc::new(FlightState {
            outcome: watch::Sender::new(None),
            leaders: AtomicUsize::new(0),
            last: AtomicU64::new(0),
            permits: Arc::new(Semaphore::new(self.limit.saturating_sub(1))),
        });
        flights.push(Flight { name, state: Arc::clone(&state) });
        Joined::Leader(Lease::new(FlightSlot { flights: Arc::clone(self), name, state }, None))
    }

    /// Detaches the flights for a URL, whose key has this hash: nobody joins them any more, and those who joined stay.
    /// Those for QUERY are among them, whatever their contents. A purge calls this, since the flights were asked for
    /// before it.
    pub fn detach(&self, page: u128) {
        self.shard(page).lock().remove(&page);
    }

    /// Detaches every flight.
    pub fn detach_all(&self) {
        for shard in &self.shards {
            shard.lock().clear();
        }
    }

    /// Returns the number of flights that can be joined.
    pub fn under_way(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().values().map(Vec::len).sum::<usize>()).sum()
    }

    /// Returns the number of requests that wait for a flight.
    pub fn waiting(&self) -> usize {
        let waiting =
            |flights: &Vec<Flight>| -> usize { flights.iter().map(|f| f.state.outcome.receiver_count()).sum() };
        self.shards.iter().map(|shard| shard.lock().values().map(waiting).sum::<usize>()).sum()
    }

    fn shard(&self, page: u128) -> &Shard {
        &self.shards[usize::try_from(page % SHARDS as u128).unwrap_or(0)]
    }
}

/// The place of a flight in the table.
#[derive(Clone, Debug)]
struct FlightSlot {
    flights: Arc<Flights>,
    name: FlightName,
    state: Arc<FlightState>,
}

impl FlightSlot {
    /// Removes the flight from the table if `is_over`, which is called under the lock, while nobody can join. Leaves a
    /// flight in place that has followed a detached one under the same key.
    fn remove_if(&self, is_over: impl FnOnce() -> bool) -> bool {
        let page = self.name.page;
        let mut shard = self.flights.shard(page).lock();
        let is_over = is_over();
        if is_over && let Some(flights) = shard.get_mut(&page) {
            if let Some(at) = flights.iter().position(|flight| Arc::ptr_eq(&flight.state, &self.state)) {
                flights.swap_remove(at);
            }
            if flights.is_empty() {
                shard.remove(&page);
            }
        }
        is_over
    }
}

/// The lease of a flight, held by whoever asks the origin for it. Dropping the last one, or one that has published,
/// ends the flight. If nothing was published by then, the followers are told that nothing is shared.
#[derive(Debug)]
pub struct Lease {
    slot: FlightSlot,
    leader: u64,
    has_published: bool,
    has_left: bool,
    /// Held for as long as the flight lasts.
    validating: Option<Validating>,
    /// Returned when the lease is dropped.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Lease {
    fn new(slot: FlightSlot, permit: Option<OwnedSemaphorePermit>) -> Self {
        let leader = slot.state.leader();
        Self { slot, leader, has_published: false, has_left: false, validating: None, _permit: permit }
    }

    /// Holds `validating` until the flight is over, and its response is stored.
    pub fn hold(&mut self, validating: Validating) {
        self.validating = Some(validating);
    }

    /// Publishes an outcome to the followers, and to those who join from now on, unless another leader has.
    pub fn publish(&mut self, outcome: Outcome) {
        self.has_published |= self.slot.state.publish(self.leader, outcome);
    }

    /// Ends this lease with an outcome, which removes the flight from the table. A failure counts only if this is the
    /// last lease.
    pub fn end(mut self, outcome: Outcome) {
        self.leave(Some(outcome));
    }

    /// Returns a follower of what other leaders bring.
    pub fn others(&self) -> Follower {
        let outcome = self.slot.state.outcome.subscribe();
        Follower { outcome, slot: self.slot.clone(), own: Some(self.leader) }
    }

    /// Returns a watch on whether anybody waits for the flight.
    pub fn watch(&self) -> Watch {
        Watch(self.slot.clone())
    }

    fn leave(&mut self, outcome: Option<Outcome>) {
        if std::mem::replace(&mut self.has_left, true) {
            return;
        }
        let state = &self.slot.state;
        let is_last = state.leaders.fetch_sub(1, Ordering::AcqRel) == 1;
        let speaks = is_last || !matches!(outcome, Some(Outcome::Failed(_)) | None);
        // Removes the flight before it publishes: a follower that hears of the failure, and asks again, must not find
        // it.
        if speaks || self.has_published {
            self.slot.remove_if(|| true);
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
pub struct Watch(FlightSlot);

impl Watch {
    /// Waits until nobody waits for the flight. Somebody may join it right after.
    pub async fn deserted(&self) {
        self.0.state.outcome.closed().await;
    }

    /// Removes the flight from the table if still nobody waits for it. Returns whether it did.
    pub fn cancel(&self) -> bool {
        self.0.remove_if(|| self.0.state.outcome.is_closed())
    }
}

/// A follower's handle on a flight.
#[derive(Debug)]
pub struct Follower {
    outcome: watch::Receiver<Option<(u64, Outcome)>>,
    slot: FlightSlot,
    /// The number of the leader that this follower is itself: its own outcome is not waited for.
    own: Option<u64>,
}

impl Follower {
    /// Waits for the outcome of the flight. Is cancel-safe.
    pub async fn outcome(&mut self) -> Outcome {
        let own = self.own;
        let is_there = |slot: &Option<(u64, Outcome)>| slot.as_ref().is_some_and(|(leader, _)| Some(*leader) != own);
        match self.outcome.wait_for(is_there).await.map(|slot| slot.clone()) {
            Ok(Some((_, outcome))) => outcome,
            Ok(None) | Err(_) => Outcome::NotShared,
        }
    }

    /// Returns a handle by which leave to ask the origin as well is waited for.
    pub fn permits(&self) -> SecondTries {
        SecondTries(self.slot.clone())
    }
}

/// Waits for leave to ask the origin as well; see [`Follower::permits`].
#[derive(Debug)]
pub struct SecondTries(FlightSlot);

impl SecondTries {
    /// Waits for leave to ask the origin as well, for this flight.
    pub async fn take(self) -> Lease {
        match Arc::clone(&self.0.state.permits).acquire_owned().await {
            Ok(permit) => Lease::new(self.0, Some(permit)),
            // The semaphore is never closed.
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(key: u128, variant: u128) -> FlightName {
        FlightName { page: key, key, variant }
    }

    fn lead(flights: &Arc<Flights>, key: u128) -> Lease {
        match flights.join(name(key, 0)) {
            Joined::Leader(lease) => lease,
            Joined::Follower(_) => panic!("there is a flight"),
        }
    }

    fn follow(flights: &Arc<Flights>, key: u128) -> Follower {
        match flights.join(name(key, 0)) {
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
        assert!(matches!(flights.join(name(1, 7)), Joined::Leader(_)), "another variant is another flight");
        assert!(!is_ready(early.outcome()));
        lease.publish(failure());
        let mut late = follow(&flights, 1);
        assert!(matches!(early.outcome().await, Outcome::Failed(_)));
        assert!(matches!(late.outcome().await, Outcome::Failed(_)));
        drop(lease);
        assert_eq!(flights.under_way(), 0);
    }

    #[tokio::test]
    async fn what_changes_a_page_detaches_the_flights_of_each_content_and_no_other_pages() {
        let flights = Flights::new(4);
        let of = |page, key| FlightName { page, key, variant: 0 };
        let old: Vec<Joined> = [of(1, 1), of(1, 7), of(1, 8), of(2, 2), of(2, 9)].map(|name| flights.join(name)).into();
        assert!(old.iter().all(|joined| matches!(joined, Joined::Leader(_))), "no two are one flight");
        assert!(matches!(flights.join(of(1, 7)), Joined::Follower(_)));
        flights.detach(1);
        let new = [of(1, 1), of(1, 7), of(1, 8)].map(|name| flights.join(name));
        assert!(new.iter().all(|joined| matches!(joined, Joined::Leader(_))));
        assert!([of(2, 2), of(2, 9)].iter().all(|name| matches!(flights.join(*name), Joined::Follower(_))));
        drop(old);
        assert_eq!(flights.under_way(), 3, "what was detached takes no other off");
        drop(new);
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
