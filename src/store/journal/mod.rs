//! The journal: how processes that share a bucket tell each other what they purged and stored.
//!
//! * A **record** is an object under a name of its own, which begins with its time and is never written
//!   again. Everybody lists the names after those he has seen, and reads what is new. No service has to
//!   honour a condition for that, and none runs besides the bucket.
//! * A process writes one record at a time. Who has seen one has seen all that its maker made before.
//! * Times are those of the writer's clock, set right by what the bucket says the time is, and later than
//!   any that the writer has read. A listing goes back six minutes, so that a record whose writer's
//!   clock is behind, or that took long to be written, is found.
//! * A record that could not be written is tried again under a later time, so that nobody can miss
//!   it. Told twice is told once.
//! * A **snapshot** is all that the journal told until some time: the purges that still matter, and the
//!   index. Whoever finds the journal long writes one; it does no harm if two do. The last two are kept,
//!   and the records since the older one, and at least those of the last hour.
//! * In what can't be read a purge may have been: then everything counts as purged.

pub(super) mod record;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use self::record::{Record, Snapshot};
use super::backend::{Backend, BackendError, Listed};
use super::index::{Index, Print};
use super::memory::Memory;
use super::names::{Kind, Names};
use super::purge::{Kept, Purge, Purges, Target};
use super::seldom::Seldom;
use crate::base::{Metrics, Stopwatch};
use crate::entry::{HORIZON, JournalTime, TICK_BITS};

/// How far back a listing goes, in milliseconds: by so much may the clocks of two processes differ.
const LOOK_BACK: u64 = HORIZON + 60_000;

/// For how long records are kept at the least, in milliseconds, so that a process that was away finds
/// them.
const KEPT: u64 = 60 * 60_000;

/// Whoever has not read for longer, in milliseconds, reads a snapshot first. By the time of day: the other
/// clock stands still while a machine sleeps.
const AWAY: u64 = 30 * 60_000;

/// So many records make the journal long.
const LONG: usize = 256;

/// How long a record may take to be written before it is tried again as another.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// The most purges and keys of one record.
const MAX_PURGES: usize = 4096;
const MAX_KEYS: usize = 65_536;

/// The most keys that wait to be announced while the journal can't be written.
const MAX_UNANNOUNCED: usize = 1 << 20;

/// The most bytes of a record and of a snapshot.
const MAX_RECORD: u64 = 64 << 20;
const MAX_SNAPSHOT: u64 = 2 << 30;

/// How many records are read at once, and how many parts of the bucket are listed.
const AT_ONCE: usize = 16;

/// How long an invalidation waits for others before it is written.
const INVALIDATION_DELAY: Duration = Duration::from_secs(1);

/// How often a long listing says how far it is.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// The longest pause between two attempts to write.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// How soon something is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// With others, within [`Timing::announce`].
    Announcement = 1,
    /// With others, within a second.
    Invalidation = 2,
    /// At once: someone waits for it.
    Purge = 3,
}

/// How often the journal is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timing {
    /// Between two looks for new records.
    pub poll: Duration,
    /// How long a newly stored key may wait to be announced.
    pub announce: Duration,
}

/// One process's end of the journal.
#[derive(Debug)]
pub(super) struct Journal {
    backend: Arc<Backend>,
    names: Names,
    purges: Arc<Purges>,
    index: Arc<Index>,
    /// Where what another process purged by its URL is removed.
    memory: Arc<Memory>,
    metrics: Arc<Metrics>,
    timing: Timing,
    /// Guarded by its lock: keys that something was stored for and the others do not know of.
    unannounced: Mutex<Vec<Print>>,
    /// What of that is on its way.
    under_way: AtomicU64,
    urgency: AtomicU8,
    wake: Notify,
    /// The number of the last purge that is in the journal.
    written: watch::Sender<u64>,
    /// Why the last attempt to write failed.
    trouble: Mutex<Option<String>>,
    said: Said,
    /// Held while a record is written.
    writing: tokio::sync::Mutex<()>,
    /// Held while records are read.
    tail: tokio::sync::Mutex<Tail>,
    is_loaded: AtomicBool,
}

/// Remembers which messages were logged recently.
#[derive(Debug, Default)]
struct Said {
    writing: Seldom,
    listing: Seldom,
    snapshot: Seldom,
}

#[derive(Debug, Default)]
struct Tail {
    /// Everything of before was read.
    from: JournalTime,
    /// What was read since.
    read: BTreeSet<String>,
    /// The records since the last snapshot that is known of.
    since_snapshot: usize,
    /// Of when that is.
    snapshot: JournalTime,
    /// When everything was read last, by the clock that the processes share.
    last_read: Option<JournalTime>,
}

impl Journal {
    /// The journal of a place. Nothing is read or written yet.
    pub(super) fn new(
        backend: Arc<Backend>,
        names: Names,
        purges: Arc<Purges>,
        index: Arc<Index>,
        memory: Arc<Memory>,
        metrics: Arc<Metrics>,
        timing: Timing,
    ) -> Self {
        purges.write_down();
        Self {
            backend,
            names,
            purges,
            index,
            memory,
            metrics,
            timing,
            unannounced: Mutex::default(),
            under_way: AtomicU64::new(0),
            urgency: AtomicU8::new(0),
            wake: Notify::new(),
            written: watch::Sender::new(0),
            trouble: Mutex::default(),
            said: Said::default(),
            writing: tokio::sync::Mutex::default(),
            tail: tokio::sync::Mutex::default(),
            is_loaded: AtomicBool::new(false),
        }
    }

    /// Whether the purges of before are known: until then, nothing that the tier has can be served.
    pub(super) fn is_loaded(&self) -> bool {
        self.is_loaded.load(Ordering::Acquire)
    }

    /// What waits to be written, and would be lost with the process: purges, and in a bucket keys. A directory is
    /// listed at every start.
    pub(super) fn outstanding(&self) -> u64 {
        let keys = if self.backend.is_near() { 0 } else { self.unannounced.lock().len() as u64 };
        keys + self.purges.outgoing() as u64 + self.under_way.load(Ordering::Acquire)
    }

    /// Something was stored for the key with this hash.
    pub(super) fn announce(&self, hash: u128) {
        self.index.insert(hash);
        let mut unannounced = self.unannounced.lock();
        // What nobody hears of costs a request to the application.
        if unannounced.len() < MAX_UNANNOUNCED {
            unannounced.push(Print::of(hash));
        }
        drop(unannounced);
        self.hurry(Urgency::Announcement);
    }

    /// Something waits to be written.
    pub(super) fn hurry(&self, urgency: Urgency) {
        let before = self.urgency.fetch_max(urgency as u8, Ordering::AcqRel);
        if before < urgency as u8 {
            self.wake.notify_one();
        }
    }

    /// Waits until the purge with this number is in the journal. An error says what keeps it from being
    /// written, after `within`; it will be, if it can be at all.
    pub(super) async fn wait_for(&self, arrival: u64, within: Duration) -> Result<(), BackendError> {
        let mut written = self.written.subscribe();
        match tokio::time::timeout(within, written.wait_for(|written| *written >= arrival)).await {
            Ok(_) => Ok(()),
            Err(_) => {
                let trouble = self.trouble.lock().clone();
                Err(BackendError::failing(trouble.unwrap_or_else(|| "it does not answer in time".into())))
            }
        }
    }

    /// Writes down what waits until nothing does. At most one record is on its way at any time.
    pub(super) async fn write(&self) -> Result<(), BackendError> {
        let _one = self.writing.lock().await;
        loop {
            self.purges.set_clock_offset(self.backend.clock_offset());
            let stored: Vec<Print> = {
                let mut unannounced = self.unannounced.lock();
                let count = unannounced.len().min(MAX_KEYS);
                self.under_way.store((count + self.purges.outgoing().min(MAX_PURGES)) as u64, Ordering::Release);
                unannounced.drain(..count).collect()
            };
            let batch = self.purges.take_outgoing(MAX_PURGES);
            if stored.is_empty() && batch.purges.is_empty() {
                self.under_way.store(0, Ordering::Release);
                return Ok(());
            }
            self.under_way.store((stored.len() + batch.purges.len()) as u64, Ordering::Release);
            let purges = batch.purges.iter().map(|outgoing| (outgoing.purge.clone(), outgoing.time)).collect();
            let record = Record { maker: self.purges.maker(), time: batch.time, purges, stored };
            let object = Bytes::from(record.encode());
            let name = self.names.record(batch.time, record.maker);
            let written = tokio::time::timeout(WRITE_TIMEOUT, self.backend.put(&name, &[object])).await;
            match written.unwrap_or_else(|_| Err(BackendError::failing("it does not answer in time"))) {
                Ok(()) => {
                    *self.trouble.lock() = None;
                    self.metrics.journal_written.add_one();
                    if let Some(last) = batch.purges.last() {
                        self.written.send_if_modified(|written| {
                            let is_newer = last.arrival > *written;
                            *written = last.arrival.max(*written);
                            is_newer
                        });
                    }
                }
                Err(error) => {
                    *self.trouble.lock() = Some(error.to_string());
                    self.purges.give_back(batch);
                    self.unannounced.lock().splice(..0, record.stored);
                    self.under_way.store(0, Ordering::Release);
                    return Err(error);
                }
            }
        }
    }

    /// Writes when there is something to write, for good.
    pub(super) async fn write_behind(self: Arc<Self>) {
        let mut pause = Duration::ZERO;
        loop {
            self.wake.notified().await;
            let watch = Stopwatch::start();
            loop {
                let left = self.delay().saturating_sub(watch.elapsed());
                if left.is_zero() {
                    break;
                }
                // Something more urgent may come.
                let _ = tokio::time::timeout(left, self.wake.notified()).await;
            }
            let urgency = self.urgency.swap(0, Ordering::AcqRel);
            match self.write().await {
                Ok(()) => pause = Duration::ZERO,
                Err(error) => {
                    if let Some(left_out) = self.said.writing.is_due() {
                        warn!("the journal can't be written, which is tried again: {error}{left_out}");
                    }
                    pause = (pause * 2).clamp(Duration::from_millis(250), MAX_PAUSE);
                    tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                    self.urgency.fetch_max(urgency, Ordering::AcqRel);
                    self.wake.notify_one();
                }
            }
        }
    }

    fn delay(&self) -> Duration {
        match self.urgency.load(Ordering::Acquire) {
            0 | 1 => self.timing.announce,
            2 => INVALIDATION_DELAY.min(self.timing.announce),
            _ => Duration::ZERO,
        }
    }

    /// Reads what is new, for good. Nothing else delays it.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut is_failing = false;
        loop {
            let outcome = if self.is_loaded() { self.read().await } else { self.load().await };
            match outcome {
                Ok(()) => is_failing = false,
                Err(error) if is_failing => debug!("the journal can't be read: {error}"),
                Err(error) => {
                    is_failing = true;
                    warn!("the journal can't be read, which is tried again: {error}");
                }
            }
            tokio::time::sleep(self.timing.poll.mul_f64(0.9 + fastrand::f64() / 5.0)).await;
        }
    }

    /// Fills the index by a listing, where no snapshot did, and writes a snapshot when the journal is long,
    /// for good.
    pub(super) async fn tend(self: Arc<Self>) {
        loop {
            if self.is_loaded() && !self.index.is_loaded() {
                match self.list_objects().await {
                    Ok(()) => self.compact(!self.backend.is_near()).await,
                    Err(error) => {
                        if let Some(left_out) = self.said.listing.is_due() {
                            warn!("the index can't be made from a listing, which is tried again: {error}{left_out}");
                        }
                    }
                }
            } else if self.is_loaded() {
                self.compact(false).await;
            }
            tokio::time::sleep(self.timing.poll.mul_f64(0.9 + fastrand::f64() / 5.0)).await;
        }
    }

    /// Reads the last snapshot, and what was written since.
    pub(super) async fn load(&self) -> Result<(), BackendError> {
        let watch = Stopwatch::start();
        {
            let mut tail = self.tail.lock().await;
            self.load_snapshot(&mut tail).await?;
            self.read_new(&mut tail).await?;
        }
        self.is_loaded.store(true, Ordering::Release);
        let index = if self.index.is_loaded() { "known" } else { "being listed" };
        info!(
            keys = self.index.len(),
            ms = u64::try_from(watch.elapsed().as_millis()).unwrap_or(u64::MAX),
            "the journal is read; what the durable tier holds is {index}"
        );
        Ok(())
    }

    async fn load_snapshot(&self, tail: &mut Tail) -> Result<(), BackendError> {
        let mut listed = self.backend.list_all(&self.names.snapshots(), "").await?;
        listed.reverse();
        let mut is_unreadable = false;
        for listed in listed {
            let Some((time, _)) = Names::parse_timed(&listed.name) else { continue };
            let Some(object) = self.backend.get(&listed.name, MAX_SNAPSHOT).await? else { continue };
            match Snapshot::decode(&object) {
                Ok(snapshot) if snapshot.until == time && self.purges.remember(&snapshot.remembered) => {
                    for (kept, mark) in &snapshot.remembered.marks {
                        if let (Kept::Url(hash), false) = (kept, mark.is_soft) {
                            self.memory.remove(*hash, || ());
                        }
                    }
                    // A directory is listed at every start: that costs nothing, and finds what a process that
                    // was killed had no time to announce.
                    let index = snapshot.index.filter(|_| !self.backend.is_near());
                    if index.is_some_and(|index| self.index.take_over(&index)) {
                        self.index.loaded();
                    }
                    *tail = Tail { from: time, snapshot: time, ..Tail::default() };
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
            self.purges.purge(Purge::hard(Target::All), false);
        }
        *tail = Tail::default();
        Ok(())
    }

    /// Reads what is new.
    pub(super) async fn read(&self) -> Result<(), BackendError> {
        let mut tail = self.tail.lock().await;
        let now = self.purges.journal_now();
        if tail.last_read.is_some_and(|last| now.saturating_sub(last) > AWAY << TICK_BITS) {
            info!("the journal was not read for long: it is read from its last snapshot");
            self.load_snapshot(&mut tail).await?;
        }
        self.read_new(&mut tail).await
    }

    async fn read_new(&self, tail: &mut Tail) -> Result<(), BackendError> {
        let (start, watch) = (self.now(), Stopwatch::start());
        let journal = self.names.journal();
        let listed = self.backend.list_all(&journal, &format!("{journal}{:016x}", tail.from)).await?;
        // The answer said what the time is, which this process may have taken for another.
        let took = u64::try_from(watch.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1) << TICK_BITS;
        let start = start.min(self.now().saturating_sub(took));
        let is_new = |name: &String| !tail.read.contains(name) && Names::parse_timed(name).is_some();
        let new: Vec<String> = listed.into_iter().map(|listed| listed.name).filter(is_new).collect();
        for names in new.chunks(AT_ONCE) {
            let mut reading = JoinSet::new();
            for (index, name) in names.iter().enumerate() {
                // What this process wrote it knows.
                if Names::parse_timed(name).is_none_or(|(_, maker)| maker == self.purges.maker()) {
                    continue;
                }
                let (backend, name) = (Arc::clone(&self.backend), name.clone());
                reading.spawn(async move { (index, backend.get(&name, MAX_RECORD).await) });
            }
            let mut objects = Vec::new();
            while let Some(read) = reading.join_next().await {
                let (index, object) = read.map_err(|_| BackendError::failing("a record was not read"))?;
                objects.push((index, object?));
            }
            objects.sort_unstable_by_key(|(index, _)| *index);
            for (index, object) in objects {
                // One that is gone is in a snapshot, and its like were read long ago.
                if let Some(object) = object {
                    self.apply(&names[index], &object);
                }
            }
            tail.read.extend(names.iter().cloned());
            tail.since_snapshot += names.len();
        }
        tail.from = start.saturating_sub(LOOK_BACK << TICK_BITS);
        let first = format!("{journal}{:016x}", tail.from);
        tail.read = tail.read.split_off(&first);
        tail.last_read = Some(start);
        self.purges.read_until(start);
        Ok(())
    }

    /// The time, as the place says it is.
    fn now(&self) -> JournalTime {
        self.purges.set_clock_offset(self.backend.clock_offset());
        self.purges.journal_now()
    }

    fn apply(&self, name: &str, object: &[u8]) {
        let record = match Record::decode(object) {
            Ok(record) if Names::parse_timed(name) == Some((record.time, record.maker)) => record,
            Ok(_) | Err(_) => {
                self.metrics.journal_unreadable.add_one();
                let Some((time, maker)) = Names::parse_timed(name) else { return };
                error!(
                    "the record {name} can't be read: a purge may be in it, so all that was stored before counts as purged"
                );
                self.purges.learn(&Purge::hard(Target::All), time, maker);
                self.purges.learnt(maker, time);
                return;
            }
        };
        for (purge, time) in &record.purges {
            let learn = || self.purges.learn(purge, *time, record.maker);
            match purge {
                Purge { target: Target::Url(hash), is_soft: false } => self.memory.remove(*hash, learn),
                _ => learn(),
            };
        }
        self.purges.learnt(record.maker, record.time);
        self.index.insert_all(record.stored);
        self.metrics.journal_read.add_one();
    }

    /// Fills the index from a listing of everything.
    async fn list_objects(&self) -> Result<(), BackendError> {
        info!("the index is made from a listing of the durable tier; it is asked for everything until then");
        let watch = Stopwatch::start();
        let mut said = watch;
        let mut listing = JoinSet::new();
        for first in 0..=u8::MAX {
            if listing.len() >= AT_ONCE {
                settle(listing.join_next().await)?;
            }
            let (backend, names, index) = (Arc::clone(&self.backend), self.names.clone(), Arc::clone(&self.index));
            listing.spawn(async move { list_shard(&backend, &names, &index, first).await });
            if said.elapsed() >= SAY_EVERY {
                said = Stopwatch::start();
                info!(objects = self.index.listed(), "the listing is at {} %", u32::from(first) * 100 / 256);
            }
        }
        while let Some(listed) = listing.join_next().await {
            settle(Some(listed))?;
        }
        self.index.loaded();
        info!(
            keys = self.index.len(),
            ms = u64::try_from(watch.elapsed().as_millis()).unwrap_or(u64::MAX),
            "the index is complete"
        );
        Ok(())
    }

    /// Writes a snapshot when the journal is long, or `now`, and deletes what nobody needs any more.
    async fn compact(&self, now: bool) {
        let (from, since, known) = {
            let tail = self.tail.lock().await;
            (tail.from, tail.since_snapshot, tail.snapshot)
        };
        if !(now || since >= LONG) || !self.index.is_loaded() {
            return;
        }
        if let Err(error) = self.write_snapshot(from, known, now).await
            && let Some(left_out) = self.said.snapshot.is_due()
        {
            warn!("no snapshot of the journal was written, which is tried again: {error}{left_out}");
        }
    }

    /// Writes one of all until `from`, unless there is one that is newer than what this process `known`.
    pub(super) async fn write_snapshot(
        &self,
        from: JournalTime,
        known: JournalTime,
        now: bool,
    ) -> Result<(), BackendError> {
        let listed = self.backend.list_all(&self.names.snapshots(), "").await?;
        let times: Vec<JournalTime> =
            listed.iter().filter_map(|listed| Names::parse_timed(&listed.name)).map(|(time, _)| time).collect();
        let last = times.last().copied().unwrap_or(0);
        let is_written = last <= known || now;
        if is_written {
            let snapshot = Snapshot {
                until: from,
                remembered: self.purges.remembered(),
                index: self.index.is_loaded().then(|| self.index.encode()),
            };
            let name = self.names.snapshot(from, self.purges.maker());
            self.backend.put(&name, &[Bytes::from(snapshot.encode())]).await?;
            self.metrics.snapshots.add_one();
            info!(
                keys = self.index.len(),
                purges = snapshot.remembered.marks.len(),
                "a snapshot of the journal is written"
            );
        }
        {
            let mut tail = self.tail.lock().await;
            tail.snapshot = last.max(from);
            tail.since_snapshot = 0;
        }
        if is_written { self.clear_away(&times).await } else { Ok(()) }
    }

    /// Deletes all but two snapshots, and the records that both of them have.
    async fn clear_away(&self, before: &[JournalTime]) -> Result<(), BackendError> {
        // The last one of before is one of the two.
        let Some(&older) = before.last() else { return Ok(()) };
        let timed = |listed: Vec<Listed>| {
            listed.into_iter().filter_map(|listed| Some((Names::parse_timed(&listed.name)?.0, listed.name)))
        };
        let snapshots = timed(self.backend.list_all(&self.names.snapshots(), "").await?);
        let end = older.min(self.purges.journal_now().saturating_sub(KEPT << TICK_BITS));
        let records = timed(self.backend.list_all(&self.names.journal(), "").await?);
        let snapshots = snapshots.filter(|(time, _)| *time < older);
        let mut deleting = JoinSet::new();
        for (_, name) in snapshots.chain(records.filter(|(time, _)| *time < end)) {
            if deleting.len() >= AT_ONCE {
                settle(deleting.join_next().await)?;
            }
            let backend = Arc::clone(&self.backend);
            deleting.spawn(async move { backend.delete(&name).await });
        }
        while let Some(deleted) = deleting.join_next().await {
            settle(Some(deleted))?;
        }
        Ok(())
    }
}

/// Lists the objects whose hash begins with `first`.
async fn list_shard(backend: &Backend, names: &Names, index: &Index, first: u8) -> Result<(), BackendError> {
    let prefix = names.shard(Kind::Object, first);
    let mut after = String::new();
    loop {
        let page = backend.list(&prefix, &after).await?;
        index.note_listed(page.listed.len() as u64);
        let hashes = page.listed.iter().filter_map(|listed| names.parse(Kind::Object, &listed.name));
        index.insert_all(hashes.filter(|(_, is_variant)| !is_variant).map(|(hash, _)| Print::of(hash)));
        match page.listed.last() {
            Some(last) if !page.is_last => after.clone_from(&last.name),
            Some(_) | None => return Ok(()),
        }
    }
}

fn settle(listed: Option<Result<Result<(), BackendError>, tokio::task::JoinError>>) -> Result<(), BackendError> {
    match listed {
        Some(Ok(outcome)) => outcome,
        Some(Err(_)) => Err(BackendError::failing("it was given up")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
