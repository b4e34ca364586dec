//! Reading the journal: the last snapshot at the start, and then the new records.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use super::record::{Record, Snapshot};
use super::{AT_ONCE, Journal};
use crate::base::Stopwatch;
use crate::entry::{HORIZON, JournalTime, TICK_BITS};
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::names::{JournalObject, ObjectNames, PackName};
use crate::store::place::Listed;
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
const KEPT: u64 = 60 * 60_000;

/// The bytes that a record takes at least.
const BLOCK: u64 = 4 << 10;

/// The most bytes of a record and of a snapshot.
const MAX_RECORD: u64 = 64 << 20;
const MAX_SNAPSHOT: u64 = 2 << 30;

/// The reader's position in the journal.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// All purges before this time were read.
    pub from: JournalTime,
    /// All packs named before this time were read.
    packs_from: JournalTime,
    /// Names of the records that were read since.
    read: BTreeSet<String>,
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
                Err(error) if is_failing => debug!("the journal can't be read: {error}"),
                Err(error) => {
                    is_failing = true;
                    warn!("the journal can't be read, which is tried again: {error}");
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
            self.load_snapshot(&mut tail, Holding::Index).await?;
            self.read_new(&mut tail).await?;
        }
        info!(
            entries = self.index.len(),
            ms = u64::try_from(watch.elapsed().as_millis()).unwrap_or(u64::MAX),
            "the index of the durable tier is complete"
        );
        Ok(())
    }

    /// Reads the last snapshot that can be read: its purges, and of its index what `holding` says.
    async fn load_snapshot(&self, tail: &mut Tail, holding: Holding) -> Result<(), StoreError> {
        let mut listed = self.place.list_all(&self.names.snapshots(), "").await?;
        listed.reverse();
        let mut is_unreadable = false;
        for listed in listed {
            let Some((time, _)) = ObjectNames::parse_snapshot(&listed.name) else { continue };
            let Some(object) = self.read_object(&listed.name, MAX_SNAPSHOT).await? else { continue };
            match Snapshot::decode(&object) {
                Ok(snapshot) if snapshot.until == time && self.purges.restore(&snapshot.purges) => {
                    let has_index = self.take_over(snapshot, holding);
                    // Without its index, the footers of all packs that are not known yet are read.
                    let packs_from = if has_index { time } else { tail.packs_from.min(time) };
                    *tail = Tail {
                        from: time,
                        packs_from,
                        snapshot: time,
                        saved: time,
                        snapshot_bytes: object.len() as u64,
                        needs_snapshot: tail.needs_snapshot,
                        ..Tail::default()
                    };
                    return Ok(());
                }
                Ok(_) | Err(_) => {
                    is_unreadable = true;
                    self.metrics.journal_unreadable.add_one();
                    error!(object = listed.name, "a snapshot can't be read; the one before it is");
                }
            }
        }
        if is_unreadable {
            error!("no snapshot can be read: purges may be in them, so all that is stored counts as purged");
            self.purges.purge(Purge::hard(PurgeTarget::All), false);
        }
        *tail = Tail { saved: self.now(), needs_snapshot: tail.needs_snapshot, ..Tail::default() };
        Ok(())
    }

    /// Takes over a snapshot whose purges are restored: removes from memory what they cover. Returns whether the index has
    /// all that the snapshot's has.
    fn take_over(&self, snapshot: Snapshot, holding: Holding) -> bool {
        for (scope, stamp) in &snapshot.purges.stamps {
            if let (Scope::Url(hash), false) = (scope, stamp.is_soft) {
                self.memory.remove(*hash, || ());
            }
        }
        match snapshot.index.filter(|_| holding == Holding::Index).map(|index| self.index.decode(&index)) {
            Some(Ok(is_added)) => is_added,
            Some(Err(error)) => {
                warn!("the index in a snapshot can't be read: {}", error.as_str());
                false
            }
            None => false,
        }
    }

    /// Reads an object of the journal; `None` if it is gone, as when another process has deleted it.
    async fn read_object(&self, name: &str, limit: u64) -> Result<Option<Bytes>, StoreError> {
        match self.place.get(name, limit).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.kind() == StoreErrorKind::Absent => Ok(None),
            Err(error) => Err(error),
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
        let is_new = |listed: &&Listed| match ObjectNames::parse_journal(&listed.name) {
            Some(JournalObject::Purges(name)) => name.time >= tail.from && !tail.read.contains(&listed.name),
            Some(JournalObject::Pack(_) | JournalObject::OpenPack(_)) | None => false,
        };
        let bytes: u64 = listed.iter().filter(is_new).map(|listed| listed.size.div_ceil(BLOCK) * BLOCK).sum();
        let new: Vec<String> = listed.iter().filter(is_new).map(|listed| listed.name.clone()).collect();
        for names in new.chunks(AT_ONCE) {
            self.read_records(names).await?;
            tail.read.extend(names.iter().cloned());
            tail.since_snapshot += names.len();
        }
        tail.bytes_since += bytes;
        self.has_peers.store(listed.iter().any(|listed| self.is_of_a_peer(&listed.name)), Ordering::Release);
        // Deletions may be in packs that are not read yet.
        self.index.set_certain_from(start);
        // Purges first: what a pack has is served from now on.
        self.is_loaded.send_if_modified(|is_loaded| !std::mem::replace(is_loaded, true));
        if self.read_packs(&listed).await? {
            // What was lost is known from a snapshot once the damaged pack is gone.
            tail.needs_snapshot = true;
        }
        self.index.set_loaded();
        tail.from = start.saturating_sub(LOOK_BACK << TICK_BITS);
        tail.packs_from = tail.from;
        let first = self.names.journal_from(tail.from);
        tail.read = tail.read.split_off(&first);
        tail.last_read = Some(start);
        self.purges.read_until(start);
        Ok(())
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
        match ObjectNames::parse_journal(name) {
            Some(JournalObject::OpenPack(name)) => name.node != self.purges.node(),
            Some(JournalObject::Pack(name) | JournalObject::Purges(name)) => {
                name.node != self.purges.node() && name.time > lately
            }
            None => false,
        }
    }

    /// Reads records at once, and applies them in their order.
    async fn read_records(&self, names: &[String]) -> Result<(), StoreError> {
        let mut reading = JoinSet::new();
        for (index, name) in names.iter().enumerate() {
            // This process knows what it wrote itself.
            if written(name).is_none_or(|name| name.node == self.purges.node()) {
                continue;
            }
            let (place, name) = (Arc::clone(&self.place), name.clone());
            reading.spawn(async move { (index, place.get(&name, MAX_RECORD).await) });
        }
        let mut objects = Vec::new();
        while let Some(read) = reading.join_next().await {
            let (index, object) = read.map_err(|_| StoreError::given_up("the journal"))?;
            match object {
                Ok(object) => objects.push((index, object)),
                // A record that is gone is in a snapshot, and its like were read long ago.
                Err(error) if error.kind() == StoreErrorKind::Absent => {}
                Err(error) => return Err(error),
            }
        }
        objects.sort_unstable_by_key(|(index, _)| *index);
        for (index, object) in objects {
            self.apply(&names[index], &object);
        }
        Ok(())
    }

    /// Returns the time by the place's clock.
    fn now(&self) -> JournalTime {
        self.purges.set_clock_offset(self.place.clock_offset());
        self.purges.journal_now()
    }

    fn apply(&self, name: &str, object: &[u8]) {
        let record = match Record::decode(object) {
            Ok(record) if written(name) == Some(PackName { time: record.time, node: record.node }) => record,
            Ok(_) | Err(_) => {
                self.metrics.journal_unreadable.add_one();
                let Some(PackName { time, node }) = written(name) else { return };
                error!(
                    "the record {name} can't be read: a purge may be in it, so all that was stored before counts as purged"
                );
                self.purges.learn(&Purge::hard(PurgeTarget::All), time, node);
                self.purges.learnt(node, time);
                return;
            }
        };
        for (purge, time) in &record.purges {
            let learn = || self.purges.learn(purge, *time, record.node);
            match purge {
                Purge { target: PurgeTarget::Url(hash), is_soft: false } => self.memory.remove(*hash, learn),
                _ => learn(),
            };
        }
        self.purges.learnt(record.node, record.time);
        self.metrics.journal_read.add_one();
    }
}

/// Returns the time and the writer in the name of a record.
pub(super) fn written(name: &str) -> Option<PackName> {
    match ObjectNames::parse_journal(name)? {
        JournalObject::Purges(name) => Some(name),
        JournalObject::Pack(_) | JournalObject::OpenPack(_) => None,
    }
}
