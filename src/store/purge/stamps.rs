//! The stamp of a purge, and tables of targets with their stamps.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use smallvec::SmallVec;

use crate::entry::{HORIZON, JournalTime, TICK_BITS};
use crate::rfc9111::timestamp::Timestamp;

/// The most stamps of one target. Past it the two oldest are merged.
const MAX_STAMPS: usize = 64;

/// The stamp of a purge: its time, and the node that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PurgeStamp {
    /// Its number in this process: purges are numbered as they arrive.
    pub arrival: u64,
    /// The time at which it was made.
    pub time: JournalTime,
    /// The node that made it; 0: no single one, so that no version vector contains it by node.
    pub node: u64,
    /// See [`super::Purge::is_soft`].
    pub is_soft: bool,
}

impl PurgeStamp {
    /// Returns whether this purge leaves nothing for `other`, which came before it, to cover.
    pub(super) fn is_as_hard_as(&self, other: &Self) -> bool {
        other.is_soft || !self.is_soft
    }

    /// Returns the time at which it was made, by the clock that the processes share.
    pub fn moment(&self) -> Timestamp {
        Timestamp::from_millis(i64::try_from(self.time >> TICK_BITS).unwrap_or(i64::MAX))
    }
}

/// The stamps of one target, in the order of their arrival.
pub(super) type Stamps = SmallVec<[PurgeStamp; 1]>;

/// Adds a stamp to those of its target, and removes those that it supersedes.
pub(super) fn add(stamps: &mut Stamps, stamp: PurgeStamp) {
    stamps.retain(|old| {
        // A process that knew of a stamp so much later has read the old one as well.
        let is_long_ago = old.time.saturating_add((2 * HORIZON) << TICK_BITS) < stamp.time;
        let is_superseded = (old.node == stamp.node && old.time <= stamp.time) || is_long_ago;
        !(is_superseded && stamp.is_as_hard_as(old))
    });
    stamps.push(stamp);
    while stamps.len() > MAX_STAMPS {
        let (a, b) = (stamps.remove(0), stamps.remove(0));
        stamps.insert(0, merge(a, b));
    }
}

/// Returns one stamp that covers what either does.
fn merge(a: PurgeStamp, b: PurgeStamp) -> PurgeStamp {
    PurgeStamp { arrival: a.arrival.max(b.arrival), time: a.time.max(b.time), node: 0, is_soft: a.is_soft && b.is_soft }
}

/// Raises a floor to cover an evicted stamp. A floor belongs to no node: no reader is known to have known of what was
/// evicted, so every reader treats it as unknown.
pub(super) fn raise(floor: &mut Option<PurgeStamp>, stamp: PurgeStamp) {
    *floor = Some(floor.map_or(PurgeStamp { node: 0, ..stamp }, |floor| merge(floor, stamp)));
}

/// Returns whether `stamps` have one of the same node that supersedes this.
pub(super) fn supersede(stamps: &[PurgeStamp], stamp: &PurgeStamp) -> bool {
    stamps.iter().any(|own| own.node == stamp.node && own.time >= stamp.time && own.is_as_hard_as(stamp))
}

/// Targets of one kind and their stamps. Evicts the oldest targets past its limit.
#[derive(Debug)]
pub(super) struct StampTable<K> {
    stamps: HashMap<K, Stamps>,
    /// Targets and the arrival of a stamp of each, oldest first: one for each stamp that made those of its target more.
    order: VecDeque<(K, u64)>,
    limit: usize,
}

impl<K: Clone + Eq + Hash> StampTable<K> {
    /// An empty table of at most `limit` stamps.
    pub(super) fn new(limit: usize) -> Self {
        Self { stamps: HashMap::new(), order: VecDeque::new(), limit }
    }

    /// Adds a stamp. Returns the arrival of the target's last one before it, and what is evicted for it.
    pub(super) fn insert(&mut self, target: K, stamp: PurgeStamp) -> (Option<u64>, Vec<(K, PurgeStamp)>) {
        let stamps = self.stamps.entry(target.clone()).or_default();
        let before = stamps.iter().map(|stamp| stamp.arrival).max();
        let count = stamps.len();
        add(stamps, stamp);
        // Repeats of one target take the place of nothing but its own older stamps.
        if stamps.len() > count {
            self.order.push_back((target, stamp.arrival));
        }
        let mut evicted = Vec::new();
        while self.order.len() > self.limit {
            let Some((target, arrival)) = self.order.pop_front() else { break };
            let Some(stamps) = self.stamps.get(&target) else { continue };
            let last = stamps.iter().map(|stamp| stamp.arrival).max().unwrap_or(0);
            if last > arrival {
                // Purged again since.
                self.order.push_back((target, last));
                continue;
            }
            let stamps = self.stamps.remove(&target).unwrap_or_default();
            evicted.extend(stamps.into_iter().map(|stamp| (target.clone(), stamp)));
        }
        (before, evicted)
    }

    /// Returns the stamps of a target.
    pub(super) fn of(&self, target: &K) -> &[PurgeStamp] {
        self.stamps.get(target).map_or(&[], |stamps| stamps)
    }

    /// Returns the stamps of a target, to be changed.
    pub(super) fn of_mut(&mut self, target: &K) -> impl Iterator<Item = &mut PurgeStamp> {
        self.stamps.get_mut(target).into_iter().flatten()
    }

    /// Returns all targets and their stamps.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &PurgeStamp)> {
        self.stamps.iter().flat_map(|(target, stamps)| stamps.iter().map(move |stamp| (target, stamp)))
    }
}
