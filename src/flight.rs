//! Flights: one fetch, shared by everyone who wants the same thing at the same time.
//!
//! A flight is found by its key. The first to ask for it leads: it starts the fetch as a task of
//! its own, which outlives every client. The others follow, and are told what came of it as soon
//! as that is known: when the response's head has arrived, not when its body is complete.
//!
//! Waiting is by event, and ends however the flight ends: a flight whose task dies tells its
//! followers so.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::fill::Fill;
use crate::rfc9111::cache_status::{Fwd, Tier};
use crate::stored::{Body, StoredHead};
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

/// A response that passed RFC 9111 §3: its head, and its body as far as it has come.
#[derive(Debug)]
pub struct Shared {
    /// Its head.
    pub head: Arc<StoredHead>,
    /// Its body.
    pub body: SharedBody,
    /// Where it came from.
    pub source: Source,
}

/// The body of a shared response.
#[derive(Debug)]
pub enum SharedBody {
    /// Complete.
    Stored(Body),
    /// Coming in.
    Filling(Arc<Fill>),
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
}

#[derive(Debug)]
struct Flight {
    variant: u128,
    outcome: watch::Sender<Option<Outcome>>,
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").field("under_way", &self.under_way()).finish()
    }
}

impl Default for Flights {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

/// The part one has in a flight.
#[derive(Debug)]
pub enum Joined {
    /// The flight is new, and this its only handle.
    Leader(Landing),
    /// The flight was under way.
    Follower(Follower),
}

impl Flights {
    /// Joins the flight for a key and variant, or begins it.
    pub fn join(self: &Arc<Self>, key: u128, variant: u128) -> Joined {
        let mut shard = self.shard(key).lock();
        let flights = shard.entry(key).or_default();
        if let Some(flight) = flights.iter().find(|flight| flight.variant == variant) {
            return Joined::Follower(Follower(flight.outcome.subscribe()));
        }
        let (outcome, _) = watch::channel(None);
        flights.push(Flight { variant, outcome: outcome.clone() });
        Joined::Leader(Landing { flights: Arc::clone(self), key, variant, outcome })
    }

    /// Lets nobody join the flights for a key any more; who has joined stays. For a purge: what
    /// is under way was asked for before it.
    pub fn detach(&self, key: u128) {
        self.shard(key).lock().remove(&key);
    }

    /// The number of flights that can be joined.
    pub fn under_way(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().values().map(Vec::len).sum::<usize>()).sum()
    }

    /// The number of those who wait for one.
    pub fn followers(&self) -> usize {
        let waiting = |flights: &Vec<Flight>| -> usize { flights.iter().map(|f| f.outcome.receiver_count()).sum() };
        self.shards.iter().map(|shard| shard.lock().values().map(waiting).sum::<usize>()).sum()
    }

    fn shard(&self, key: u128) -> &Shard {
        &self.shards[usize::try_from(key % SHARDS as u128).unwrap_or(0)]
    }
}

/// The leader's end of a flight. Dropped, it takes the flight off; if nothing was published by
/// then, followers learn that it failed.
#[derive(Debug)]
pub struct Landing {
    flights: Arc<Flights>,
    key: u128,
    variant: u128,
    outcome: watch::Sender<Option<Outcome>>,
}

impl Landing {
    /// Tells the followers what came of it, and those who join from now on.
    pub fn publish(&self, outcome: Outcome) {
        self.outcome.send_replace(Some(outcome));
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut shard = self.flights.shard(self.key).lock();
        let Some(flights) = shard.get_mut(&self.key) else { return };
        // A flight that was detached may have a successor under the same key: that one stays.
        flights.retain(|flight| flight.variant != self.variant || !flight.outcome.same_channel(&self.outcome));
        if flights.is_empty() {
            shard.remove(&self.key);
        }
    }
}

/// A follower's end of a flight.
#[derive(Debug)]
pub struct Follower(watch::Receiver<Option<Outcome>>);

impl Follower {
    /// What came of the flight. One whose task died shared nothing.
    pub async fn outcome(mut self) -> Outcome {
        match self.0.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Outcome::NotShared),
            Err(_) => Outcome::NotShared,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn followers_learn_the_outcome_whenever_they_join() {
        let flights = Arc::new(Flights::default());
        let Joined::Leader(landing) = flights.join(1, 0) else { panic!("the first leads") };
        let Joined::Follower(early) = flights.join(1, 0) else { panic!("the second follows") };
        assert!(matches!(flights.join(1, 7), Joined::Leader(_)), "another variant is another flight");
        landing.publish(Outcome::NotShared);
        let Joined::Follower(late) = flights.join(1, 0) else { panic!("still under way") };
        assert!(matches!(early.outcome().await, Outcome::NotShared));
        assert!(matches!(late.outcome().await, Outcome::NotShared));
        drop(landing);
        assert_eq!(flights.under_way(), 0);
    }

    #[tokio::test]
    async fn a_flight_that_dies_releases_its_followers() {
        let flights = Arc::new(Flights::default());
        let Joined::Leader(landing) = flights.join(1, 0) else { panic!("the first leads") };
        let Joined::Follower(follower) = flights.join(1, 0) else { panic!("the second follows") };
        drop(landing);
        assert!(matches!(follower.outcome().await, Outcome::NotShared));
        assert_eq!(flights.under_way(), 0);
    }

    #[tokio::test]
    async fn a_detached_flight_does_not_take_its_successor_off() {
        let flights = Arc::new(Flights::default());
        let Joined::Leader(old) = flights.join(1, 0) else { panic!("the first leads") };
        flights.detach(1);
        let Joined::Leader(new) = flights.join(1, 0) else { panic!("the old one can't be joined") };
        drop(old);
        assert_eq!(flights.under_way(), 1);
        drop(new);
        assert_eq!(flights.under_way(), 0);
    }
}
