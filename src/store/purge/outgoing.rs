//! The purges of this process that wait to be written, one of each target.
//!
//! A purge that repeats a waiting one takes its place and moves its time on: the later covers all that the earlier did. So
//! the memory that this takes depends on the number of targets alone.

use std::collections::{BTreeMap, HashMap};

use super::{Purge, PurgeTarget};
use crate::entry::JournalTime;

/// The most purges that wait to be written. Past it they become one of everything.
pub(super) const MAX_OUTGOING: usize = 65_536;

/// A purge of this process that is not in the journal yet.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    /// The purge.
    pub purge: Purge,
    /// The time at which it was last made.
    pub time: JournalTime,
    /// Its number in this process.
    pub arrival: u64,
    /// The number of the first waiting purge that it repeats; without one its own.
    first: u64,
}

/// The purges of one record of the journal.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// Time of the record: not before that of any purge in it, and before that of every later purge.
    pub time: JournalTime,
    /// The purges.
    pub purges: Vec<Outgoing>,
    /// Once these are written, so are all purges up to this number.
    pub until: u64,
}

/// Purges that wait, in the order in which they began to.
#[derive(Debug, Default)]
pub(super) struct OutgoingQueue {
    /// By [`Outgoing::first`].
    waiting: BTreeMap<u64, Outgoing>,
    /// The place of each purge.
    places: HashMap<Purge, u64>,
    /// The number of the last purge that was added.
    last: u64,
}

impl OutgoingQueue {
    /// Returns the number of purges that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Adds a purge that was just made. Returns `false` if there were too many: all are one of everything then.
    pub(super) fn push(&mut self, purge: Purge, time: JournalTime, arrival: u64) -> bool {
        self.last = arrival;
        if let Some(waiting) = self.places.get(&purge).and_then(|first| self.waiting.get_mut(first)) {
            (waiting.time, waiting.arrival) = (time, arrival);
            return true;
        }
        if self.len() < MAX_OUTGOING {
            self.insert(Outgoing { purge, time, arrival, first: arrival });
            return true;
        }
        let first = self.waiting.first_key_value().map_or(arrival, |(first, _)| *first);
        *self = Self { last: self.last, ..Self::default() };
        self.insert(Outgoing { purge: Purge::hard(PurgeTarget::All), time, arrival, first });
        false
    }

    fn insert(&mut self, outgoing: Outgoing) {
        self.places.insert(outgoing.purge.clone(), outgoing.first);
        self.waiting.insert(outgoing.first, outgoing);
    }

    /// Takes at most `most` purges, those that have waited longest, and the number up to which all are written with them.
    pub(super) fn take(&mut self, most: usize) -> (Vec<Outgoing>, u64) {
        let mut taken = Vec::with_capacity(most.min(self.len()));
        while taken.len() < most
            && let Some((_, outgoing)) = self.waiting.pop_first()
        {
            self.places.remove(&outgoing.purge);
            taken.push(outgoing);
        }
        // One that was taken, now or before, may be later than some that are left.
        let until = self.waiting.first_key_value().map_or(self.last, |(first, _)| first - 1);
        if self.waiting.is_empty() {
            // Gives back the memory that a burst needed.
            self.places = HashMap::new();
        }
        (taken, until)
    }

    /// Gives back purges that were taken last.
    pub(super) fn give_back(&mut self, purges: Vec<Outgoing>) {
        for mut outgoing in purges {
            // Repeated meanwhile: the later one counts, in the place of the first.
            if let Some(later) = self.places.get(&outgoing.purge).and_then(|first| self.waiting.remove(first)) {
                (outgoing.time, outgoing.arrival) = (later.time, later.arrival);
            }
            self.insert(outgoing);
        }
    }

    /// Returns all that wait, to be changed.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Outgoing> {
        self.waiting.values_mut()
    }
}
