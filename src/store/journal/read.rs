//! Reading the journal: the last snapshot at the start, and then the new records.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::{debug, error, info, warn};

use super::Journal;
use super::record::Snapshot;
use super::waits::{Verdict, Waits, ends};
use crate::base::Stopwatch;
use crate::entry::{HORIZON, JournalTime, TICK_BITS};
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::names::{JournalObject, ObjectNames, PackName};
use crate::store::purge::{Purge, PurgeTarget, Scope};

/// Milliseconds that a listing goes back: more than the clocks of two processes may differ.
const LOOK_BACK: u64 = HORIZON + 60_000;

/// A process that has not read for longer, in milliseconds, reads a snapshot first. Measured by the time of day: the other
/// clock stands still while a machine sleeps.
const AWAY: u64 = 30 * 60_000;

/// In a directory, which is read more often, it is this many looks, and no less than so many milliseconds.
const LOOKS_AWAY: u64 = 120;
const LEAST_AWAY: u64 = 5 * 60_000;

/// Milliseconds for which a process counts as there after it named an object of the journal.
const PEER: u64 = 10 * 60_000;

/// Milliseconds for which the records of a bucket are kept at least.
pub(super) const KEPT: u64 = 60 * 60_000;

/// The bytes that a record takes at least.
pub(super) const BLOCK: u64 = 4 << 10;

/// The longest that a command waits for what can't be read: longer than the latter is tried again.
const CERTAIN_WITHIN: Duration = Duration::from_secs(60);

/// The most bytes of a snapshot.
const MAX_SNAPSHOT: u64 = 2 << 30;

/// The reader's position in the journal.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// All purges before this time were read.
    pub from: JournalTime,
    /// All packs named before this time were read.
    packs_from: JournalTime,
    /// Names of the records that were read since.
    pub read: BTreeSet<String>,
    /// Records since the last known snapshot.
    pub since_snapshot: usize,
    /// The bytes of those records, in whole blocks.
    pub bytes_since: u64,
    /// True if what a damaged pack may have held is known here alone.
    pub needs_snapshot: bool,
    /// The bytes of that snapshot.
    pub snapshot_bytes: u64,
    /// The time at which this process last wrote a snapshot, or found one of another.
    pub compacted: Option<JournalTime>,
    /// The time at which more records may be deleted.
    pub tidy_at: Option<JournalTime>,
    /// Time of that snapshot.
    pub snapshot: JournalTime,
    /// The time of that snapshot, or without one that of the first look: the next one is due a day later.
    pub saved: JournalTime,
    /// Time of the last complete read, by the clock that the processes share.
    last_read: Option<JournalTime>,
    /// Time at which a snapshot was taken over, or none was found.
    pub restored: Option<JournalTime>,
    /// The objects that can't be read.
    pub waits: Waits,
    /// By node the time of its last record, of which purges count as known once no earlier record waits.
    pub held: BTreeMap<u64, JournalTime>,
    /// Names of a time that can't be.
    pub unbelieved: HashSet<String>,
    /// Packs that grow and count as unreadable, as long as they have this length.
    pub given_up: HashMap<String, u64>,
}

impl Tail {
    /// Starts anew at a snapshot. What can't be read stays known.
    fn restart(&mut self, at: Self) {
        let old = std::mem::replace(self, at);
        self.needs_snapshot |= old.needs_snapshot;
        self.waits = old.waits;
        self.held = old.held;
        self.unbelieved = old.unbelieved;
        self.given_up = old.given_up;
    }
}

/// Says what of a snapshot is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holding {
    /// Its purges, and its index.
    Index,
    /// Its purges alone: a process that has an index lists the packs that are new to it.
    Purges,
}

impl Journal {
    /// Reads what is new, for good. No other work delays it.
    pub(in crate::store) async fn follow(self: Arc<Self>) {
        let mut is_failing = false;
        loop {
            let outcome = if self.index.is_loaded() { self.read().await } else { self.load().await };
            match outcome {
                Ok(()) => is_failing = false,
                Err(error) if is_failing => debug!("not all of the journal can be read: {error}"),
                Err(error) => {
                    is_failing = true;
                    warn!("not all of the journal can be read, which is tried again: {error}");
                }
            }
            self.sleep_until_poll().await;
        }
    }

    /// Reads the last snapshot, and what is new since.
    pub(in crate::store) async fn load(&self) -> Result<(), StoreError> {
        let watch = Stopwatch::start();
        {
            let mut tail = self.tail.lock().await;
            let oldest = self.purges.journal_now().saturating_sub(AWAY << TICK_BITS);
            // Another attempt, after one that failed, begins where that ended.
            if tail.restored.is_none_or(|restored| restored < oldest) {
                self.load_snapshot(&mut tail, Holding::Index).await?;
            }
            self.read_new(&mut tail).await?;
        }
        info!(
            entries = self.index.len(),
            ms = u64::try_from(watch.elapsed().as_millis()).unwrap_or(u64::MAX),
            "the index of the durable tier is complete"
        );
        Ok(())
    }

    /// Reads as [`Journal::load`] does. Waits for what can't be read, until it counts as unreadable; of what the place gives no
    /// answer, it returns the error.
    pub(in crate::store) async fn load_for_certain(&self) -> Result<(), StoreError> {
        let watch = Stopwatch::start();
        loop {
            let outcome = self.load().await;
            let waits = !self.tail.lock().await.waits.names().is_empty();
            match outcome {
                Err(error) if waits && !error.kind().is_outage() && watch.elapsed() < CERTAIN_WITHIN => {
                    self.sleep_until_poll().await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Reads the last snapshot that can be read: its purges, and of its index what `holding` says.
    async fn load_snapshot(&self, tail: &mut Tail, holding: Holding) -> Result<(), StoreError> {
        let mut listed = self.place.list_all(&self.names.snapshots(), "").await?;
        listed.reverse();
        let there: HashSet<&str> = listed.iter().map(|listed| listed.name.as_str()).collect();
        tail.waits.retain(|name| ObjectNames::parse_snapshot(name).is_none() || there.contains(name));
        let mut unreadable = 0;
        let mut is_taken = false;
        for listed in &listed {
            let Some((time, _)) = ObjectNames::parse_snapshot(&listed.name) else { continue };
            let snapshot = if self.purges.believes(time) {
                self.read_snapshot(tail, &listed.name).await?
            } else {
                Err("its time is more than an hour ahead of the clock".to_owned())
            };
            match snapshot {
                Ok(snapshot) if snapshot.until == time && self.purges.restore(&snapshot.purges) => {
                    let has_index = self.take_over(snapshot, holding);
                    // Without its index, the footers of all packs that are not known yet are read.
                    let packs_from = if has_index { time } else { tail.packs_from.min(time) };
                    tail.restart(Tail {
                        from: time,
                        packs_from,
                        snapshot: time,
                        saved: time,
                        snapshot_bytes: listed.size,
                        ..Tail::default()
                    });
                    is_taken = true;
                    break;
                }
                Ok(_) => self.note_unreadable_snapshot(&listed.name, "a part of it does not hold"),
                Err(why) => self.note_unreadable_snapshot(&listed.name, &why),
            }
            unreadable += 1;
        }
        // The records since the last but one are kept: that has all, and those before it may not.
        if unreadable > u64::from(is_taken) {
            error!("the last snapshots can't be read: purges may be in them, so all that is stored counts as purged");
            self.purges.purge(Purge::hard(PurgeTarget::All), false);
        }
        if !is_taken {
            tail.restart(Tail { saved: self.now(), ..Tail::default() });
        }
        tail.restored = Some(self.now());
        Ok(())
    }

    fn note_unreadable_snapshot(&self, name: &str, why: &str) {
        self.metrics.journal_unreadable.add_one();
        error!(object = name, "a snapshot can't be read; the one before it is: {why}");
    }

    /// Reads a snapshot. Returns the reason if it can't be, and that is certain.
    async fn read_snapshot(&self, tail: &mut Tail, name: &str) -> Result<Result<Snapshot, String>, StoreError> {
        match self.place.get(name, MAX_SNAPSHOT).await {
            Ok(object) => {
                tail.waits.remove(name);
                Ok(Snapshot::decode(&object).map_err(|error| error.as_str().to_owned()))
            }
            Err(error) if error.kind() == StoreErrorKind::Corrupt => Ok(Err(error.to_string())),
            Err(error) if ends(&error) => Err(error),
            Err(error) => {
                // Another process may have deleted it since it was listed: then it is not listed again.
                let failed = [(name.to_owned(), error)];
                let is_up = self.is_place_up(false, &failed).await;
                let [(_, error)] = failed;
                match tail.waits.note(name, &error, is_up) {
                    Verdict::Unreadable => Ok(Err(error.to_string())),
                    Verdict::WaitsFirst | Verdict::Waits => Err(error),
                }
            }
        }
    }

    /// Takes over a snapshot whose purges are restored: removes from memory what they cover. Returns whether the index has
    /// all that the snapshot's has.
    fn take_over(&self, snapshot: Snapshot, holding: Holding) -> bool {
        for (scope, stamp) in &snapshot.purges.stamps {
            if let (Scope::Url(hash), false) = (scope, stamp.is_soft) {
                self.memory.remove(*hash, || ());
            }
        }
        match snapshot
            .index
            .filter(|_| holding == Holding::Index)
            .map(|index| self.index.decode(&index, self.purges.latest_believed()))
        {
            Some(Ok(is_added)) => is_added,
            Some(Err(error)) => {
                warn!("the index in a snapshot can't be read: {}", error.as_str());
                false
            }
            None => false,
        }
    }

    /// Reads the new records.
    pub(in crate::store) async fn read(&self) -> Result<(), StoreError> {
        let mut tail = self.tail.lock().await;
        let now = self.purges.journal_now();
        if tail.last_read.is_some_and(|last| now.saturating_sub(last) > self.away() << TICK_BITS) {
            info!("the journal was not read for long: it is read from its last snapshot");
            self.load_snapshot(&mut tail, Holding::Purges).await?;
        }
        self.read_new(&mut tail).await
    }

    async fn read_new(&self, tail: &mut Tail) -> Result<(), StoreError> {
        let (start, watch) = (self.now(), Stopwatch::start());
        // A pack of a directory gets its complete name long after the time in that.
        let from = if self.place.is_local() { 0 } else { tail.from.min(tail.packs_from) };
        let listed = self.place.list_all(&self.names.journal(), &self.names.journal_from(from)).await?;
        // The answer told the place's time, which may correct the time at which the listing began.
        let took = u64::try_from(watch.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1) << TICK_BITS;
        let start = start.min(self.now().saturating_sub(took));
        self.disbelieve(tail, &listed);
        self.read_records(tail, &listed).await?;
        self.has_peers.store(listed.iter().any(|listed| self.is_of_a_peer(&listed.name)), Ordering::Release);
        // Deletions may be in packs that are not read yet.
        self.index.set_certain_from(start);
        let waiting = tail.waits.first_record(None);
        // Purges first: what a pack has is served from now on.
        if waiting.is_none() {
            self.is_loaded.send_if_modified(|is_loaded| !std::mem::replace(is_loaded, true));
        }
        self.read_packs(tail, &listed).await?;
        self.index.set_loaded();
        // A record that waits is not known, nor what its process wrote later.
        let until = waiting.map_or(start, |waiting| start.min(waiting));
        tail.from = until.saturating_sub(LOOK_BACK << TICK_BITS);
        tail.packs_from = start.saturating_sub(LOOK_BACK << TICK_BITS);
        let first = self.names.journal_from(tail.from);
        tail.read = tail.read.split_off(&first);
        tail.last_read = Some(start);
        self.purges.read_until(until);
        match tail.waits.record_error() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Returns for how many milliseconds a process may be away before it reads a snapshot first.
    pub(super) fn away(&self) -> u64 {
        if !self.place.is_local() {
            return AWAY;
        }
        let poll = u64::try_from(self.poll.as_millis()).unwrap_or(u64::MAX);
        poll.saturating_mul(LOOKS_AWAY).clamp(LEAST_AWAY, AWAY)
    }

    /// Returns for how many milliseconds records are kept at least: a process that was away for [`Journal::away`] finds all
    /// that its listing goes back to.
    pub(super) fn kept(&self) -> u64 {
        // In a bucket a delay of its own may come on top.
        if self.place.is_local() { self.away() + LOOK_BACK } else { KEPT }
    }

    /// Returns whether an object of the journal shows that another process uses the place now. For ten minutes after a restart
    /// that includes what this process was before: whether a writer that has no pack open is still there, nothing tells. That
    /// costs no more than the records that it would write for a peer.
    fn is_of_a_peer(&self, name: &str) -> bool {
        let lately = self.purges.journal_now().saturating_sub(PEER << TICK_BITS);
        let Some(object) = ObjectNames::parse_journal(name) else { return false };
        let name = object.name();
        let is_recent = matches!(object, JournalObject::OpenPack(_)) || name.time > lately;
        name.node != self.purges.node() && is_recent && self.purges.believes(name.time)
    }

    /// Returns the time by the place's clock.
    fn now(&self) -> JournalTime {
        self.purges.set_clock_offset(self.place.clock_offset());
        self.purges.journal_now()
    }
}

/// Returns the time and the writer in the name of a record.
pub(super) fn written(name: &str) -> Option<PackName> {
    match ObjectNames::parse_journal(name)? {
        JournalObject::Purges(name) => Some(name),
        JournalObject::Pack(_) | JournalObject::OpenPack(_) => None,
    }
}
