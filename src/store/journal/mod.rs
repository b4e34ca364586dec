//! The journal: how processes that share a place tell each other what they purged and stored.
//!
//! * A pack is its own announcement: packs and records lie under one prefix, and one listing finds what is new of both.
//! * A **record** tells of purges. It is an object under a name of its own, which begins with its time, and is never written again. Every
//!   process lists the names after those that it has read, and reads the new ones. That needs no condition of a service,
//!   and no server besides the place.
//! * A process (a **node**) writes one record at a time. A reader of one has read all that its node wrote before.
//! * A record's time is that of its writer's clock, corrected by the place's clock, and later than any time that the writer
//!   has read. A listing goes back six minutes: it finds records whose writer's clock is behind, or that took long.
//! * A record that could not be written is tried again under a later time, so that no reader misses it. What a record
//!   repeats changes nothing.
//! * A **snapshot** is all that the journal told until some time: the purges that still matter, and the index. A process
//!   that finds the journal long writes one; it does no harm if two do. The last two are kept, with the records since the
//!   older one, and at least those that a process may still read that was away ([`Journal::kept`]).
//! * A record that can't be read is tried again, and holds up no others ([`waits`]). Until it is read, nothing counts as
//!   known that was purged later. If that takes too long, it may hold a purge: everything stored before counts as purged.
//!   The same goes for the last two snapshots, and in its own way for packs ([`packs`]).
//! * A time that is far ahead of the clock is not believed. What has such a name is not taken, and counts as unreadable.

mod compact;
mod pace;
mod packs;
mod read;
pub(super) mod record;
mod records;
mod waits;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinError;

pub(super) use self::packs::{all_entries, read_footer};
use self::read::Tail;
use super::error::StoreError;
use super::index::Index;
use super::memory::Memory;
use super::names::ObjectNames;
use super::place::Place;
use super::purge::Purges;
use super::throttle::LogThrottle;
use crate::base::Metrics;
use crate::entry::JournalTime;

/// The most records and footers that are read, and objects that are deleted, at once.
const AT_ONCE: usize = 16;

/// The urgency of writing what waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// With others, within a second.
    Invalidation = 1,
    /// At once, unless many come: a client waits for it, but any client can cause it.
    Awaited = 2,
    /// At once: the operator waits for it.
    Purge = 3,
}

/// One process's end of the journal.
#[derive(Debug)]
pub(super) struct Journal {
    place: Arc<dyn Place>,
    names: ObjectNames,
    purges: Arc<Purges>,
    index: Arc<Index>,
    /// Loses at once what another process purged by its URL.
    memory: Arc<Memory>,
    metrics: Arc<Metrics>,
    /// Time between two looks for what is new.
    poll: Duration,
    /// Purges in the record that is being written.
    under_way: AtomicU64,
    urgency: AtomicU8,
    wake: Notify,
    /// The number of the last purge that is in the journal.
    written: watch::Sender<u64>,
    /// Guarded by its lock: why the last attempt to write failed.
    last_error: Mutex<Option<StoreError>>,
    log: JournalLog,
    /// Held while a record is written.
    writing: tokio::sync::Mutex<()>,
    /// Held while records are read.
    tail: tokio::sync::Mutex<Tail>,
    /// True if other processes seem to use the place.
    has_peers: AtomicBool,
    /// Guarded by its lock: the packs with which deletions were lost since that was last looked at. Of each the writer, and
    /// the time at which the loss counts as a purge.
    lost: Mutex<Vec<(u64, JournalTime)>>,
    /// True once earlier purges are known.
    is_loaded: watch::Sender<bool>,
}

/// Limits the journal's log messages.
#[derive(Debug, Default)]
struct JournalLog {
    reading: LogThrottle,
    writing: LogThrottle,
    snapshot: LogThrottle,
}

impl Journal {
    /// The journal of a place. Reads and writes nothing yet.
    pub(super) fn new(
        place: Arc<dyn Place>,
        names: ObjectNames,
        purges: Arc<Purges>,
        index: Arc<Index>,
        memory: Arc<Memory>,
        metrics: Arc<Metrics>,
        poll: Duration,
    ) -> Self {
        purges.write_down();
        Self {
            place,
            names,
            purges,
            index,
            memory,
            metrics,
            poll,
            under_way: AtomicU64::new(0),
            urgency: AtomicU8::new(0),
            wake: Notify::new(),
            written: watch::Sender::new(0),
            last_error: Mutex::default(),
            log: JournalLog::default(),
            writing: tokio::sync::Mutex::default(),
            tail: tokio::sync::Mutex::default(),
            has_peers: AtomicBool::new(false),
            lost: Mutex::default(),
            is_loaded: watch::Sender::new(false),
        }
    }

    /// Returns whether earlier purges are known. Until then nothing of the tier may be served.
    pub(super) fn is_loaded(&self) -> bool {
        *self.is_loaded.borrow()
    }

    /// Returns the number of the last purge that is in the journal.
    #[cfg(test)]
    pub(super) fn written(&self) -> u64 {
        *self.written.borrow()
    }

    /// Returns the number of purges that wait to be written, and would be lost with the process.
    pub(super) fn outstanding(&self) -> u64 {
        self.purges.outgoing() as u64 + self.under_way.load(Ordering::Acquire)
    }

    /// Returns whether other processes seemed to use the place at the last look.
    pub(super) fn has_peers(&self) -> bool {
        self.has_peers.load(Ordering::Acquire)
    }

    /// Has what waits written as soon as `urgency` says.
    pub(super) fn hurry(&self, urgency: Urgency) {
        let before = self.urgency.fetch_max(urgency as u8, Ordering::AcqRel);
        if before < urgency as u8 {
            self.wake.notify_one();
        }
    }

    /// Waits until the purge with this number is in the journal. Returns after `within` the error that keeps it from being
    /// written; attempts go on.
    pub(super) async fn wait_for(&self, arrival: u64, within: Duration) -> Result<(), StoreError> {
        let mut written = self.written.subscribe();
        match tokio::time::timeout(within, written.wait_for(|written| *written >= arrival)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(self.last_error.lock().clone().unwrap_or_else(StoreError::timed_out)),
        }
    }

    /// Writes a snapshot whenever the journal is long, for good.
    pub(super) async fn tend(self: Arc<Self>) {
        loop {
            if self.is_loaded() {
                self.compact(false).await;
            }
            self.sleep_until_poll().await;
        }
    }

    /// Waits until earlier purges are known.
    pub(super) async fn loaded(&self) {
        let _ = self.is_loaded.subscribe().wait_for(|is_loaded| *is_loaded).await;
    }

    /// Sleeps until the next look: processes that started together drift apart.
    async fn sleep_until_poll(&self) {
        tokio::time::sleep(self.poll.mul_f64(0.9 + fastrand::f64() / 5.0)).await;
    }
}

/// Returns the outcome of a task that has ended.
fn outcome(joined: Option<Result<Result<(), StoreError>, JoinError>>) -> Result<(), StoreError> {
    match joined {
        Some(Ok(outcome)) => outcome,
        Some(Err(_)) => Err(StoreError::given_up("the journal")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
