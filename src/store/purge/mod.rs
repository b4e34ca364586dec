//! Purges, and which stored responses they cover.
//!
//! * Purges are numbered as they arrive in this process, those made here and those read from the journal alike. A fetch
//!   notes the number of the last one when it begins: its **position**. A purge covers what was fetched at a lower
//!   position, also if it comes in the middle of the fetch.
//! * A purge searches for nothing. A stored response is compared with the purges since its last comparison when it is next
//!   used. Where there are none, that is one comparison of integers.
//! * Positions mean nothing to another process, or to this one after a restart. What goes to the durable tier carries a
//!   [`VersionVector`] instead: there, a purge covers what does not contain it.
//! * A time that is far ahead of the clock is not believed ([`belief`]).

mod belief;
mod fingerprints;
mod outgoing;
mod snapshot;
mod stamps;
mod table;

pub(super) use self::outgoing::Batch;
use self::outgoing::Outgoing;
pub(super) use self::snapshot::{PurgeSnapshot, Scope};
pub(crate) use self::stamps::PurgeStamp;
use self::table::PurgeTable;
pub(crate) use self::table::begins_with;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use parking_lot::RwLock;
use tracing::warn;

use crate::base::Clock;
use crate::entry::{Covered, HORIZON, JournalTime, StoredHead, TICK_BITS, VersionVector};
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::timestamp::Timestamp;

/// Milliseconds after which a purge that is not written yet gets a later time.
const LATE: u64 = HORIZON / 6;

/// Stands for either scheme at the beginning of a prefix.
pub(crate) const EITHER: &str = "*";

/// The target of a purge.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PurgeTarget {
    /// The URL of the key with this hash: every variant.
    Url(u128),
    /// Every URL that begins with this: scheme (`*` for both), authority, path and query as they are in keys; or a
    /// path, of any authority.
    Prefix(String),
    /// Everything that has this tag, to the byte.
    Tag(String),
    /// Everything.
    All,
}

/// A purge.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Purge {
    /// Its target.
    pub target: PurgeTarget,
    /// True if what it covers stays as stale: good for validation, and in place of an error.
    pub is_soft: bool,
}

impl Purge {
    /// A purge after which nothing of `target` is left.
    pub fn hard(target: PurgeTarget) -> Self {
        Self { target, is_soft: false }
    }

    /// Returns whether memory removes what the purge covers when it comes, so that no comparison is needed later.
    fn removes_at_once(&self) -> bool {
        matches!(self, Self { target: PurgeTarget::Url(_), is_soft: false })
    }
}

/// The receipt of a purge that was made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PurgeReceipt {
    /// Its position.
    pub position: u64,
    /// The position of the last purge of the same URL before it, if that is known.
    pub before: Option<u64>,
}

/// The purges that a process knows of.
#[derive(Debug)]
pub struct Purges {
    clock: Clock,
    /// Milliseconds by which the clock that the processes share is ahead of `clock`.
    clock_offset: AtomicI64,
    /// The number that this process signs its purges with.
    node: u64,
    /// Position of the last purge.
    last: AtomicU64,
    /// Position of the last purge that did not remove at once what memory held.
    last_compared: AtomicU64,
    /// Position of the last purge that other processes are told of.
    last_shared: AtomicU64,
    /// True if purges of this process are written to a journal.
    is_written: AtomicBool,
    /// Guarded by its lock: read on a miss, and on the first use after a purge.
    table: RwLock<PurgeTable>,
}

impl Purges {
    /// No purges. `node` is a random number, not 0, of this process.
    pub fn new(clock: Clock, node: u64) -> Self {
        Self {
            clock,
            clock_offset: AtomicI64::new(0),
            node,
            last: AtomicU64::new(1),
            last_compared: AtomicU64::new(0),
            last_shared: AtomicU64::new(0),
            is_written: AtomicBool::new(false),
            table: RwLock::new(PurgeTable::new(node)),
        }
    }

    /// Returns the number that this process signs its purges with.
    pub fn node(&self) -> u64 {
        self.node
    }

    /// Keeps purges made from now on until they are written.
    pub(super) fn write_down(&self) {
        self.is_written.store(true, Ordering::Release);
    }

    /// Returns the position of a fetch that begins now.
    pub fn position(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    /// Returns the position of the last purge that other processes are told of.
    pub(super) fn last_shared(&self) -> u64 {
        self.last_shared.load(Ordering::Acquire)
    }

    /// Returns the version vector of a fetch that begins now. Later purges cover what it brings.
    pub fn version_vector(&self) -> Arc<VersionVector> {
        self.table.read().version_vector()
    }

    /// Returns the version vector of a fetch that begins now for another process, which knew the purges in `theirs` when it
    /// asked: all that either process knew were made before. `ours` is that of this process.
    pub fn known_to_both(&self, ours: &Arc<VersionVector>, theirs: &VersionVector) -> Arc<VersionVector> {
        Arc::new(ours.joined(&self.credible(theirs, 0)))
    }

    /// Returns the clock that times come from.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Returns the time of day.
    pub fn time(&self) -> Timestamp {
        self.clock.now()
    }

    /// Returns the time by the clock that the processes share.
    pub(super) fn journal_now(&self) -> JournalTime {
        let now = self.clock.now().plus_millis(self.clock_offset.load(Ordering::Relaxed));
        u64::try_from(now.as_millis()).unwrap_or(0) << TICK_BITS
    }

    /// Returns a time by that clock.
    pub(super) fn journal_time(&self, time: Timestamp) -> JournalTime {
        let time = time.plus_millis(self.clock_offset.load(Ordering::Relaxed));
        u64::try_from(time.as_millis()).unwrap_or(0) << TICK_BITS
    }

    /// Returns the order of an entry that is made now: later than any time known.
    pub(super) fn take_order(&self) -> JournalTime {
        self.table.write().next_time(self.journal_now())
    }

    /// Returns the order of an entry that is made of the one with this order: just later, so that whatever another process
    /// puts in that one's place counts instead. What is made here from now on is later than both.
    pub(super) fn take_order_after(&self, order: JournalTime) -> JournalTime {
        let next = order.saturating_add(1);
        self.note_order(next);
        next
    }

    /// Records the order of an entry that was read: entries made here from now on have greater ones, also if this process's
    /// clock is behind.
    pub(super) fn note_order(&self, order: JournalTime) {
        if self.believes(order) {
            self.table.write().note_time(order);
        }
    }

    /// Sets by how many milliseconds the clock that the processes share is ahead of this one's.
    pub(super) fn set_clock_offset(&self, offset: i64) {
        self.clock_offset.store(offset, Ordering::Relaxed);
    }

    /// Purges. In force when it returns. `is_shared` says whether other processes are told.
    pub fn purge(&self, purge: Purge, is_shared: bool) -> PurgeReceipt {
        let mut table = self.table.write();
        let time = table.next_time(self.journal_now());
        let mut removes_at_once = purge.removes_at_once();
        let arrival = self.last.load(Ordering::Acquire) + 1;
        let stamp = PurgeStamp { arrival, time, node: self.node, is_soft: purge.is_soft };
        let before = table.insert(&Scope::from(&purge.target), stamp);
        if is_shared && self.is_written.load(Ordering::Acquire) {
            self.last_shared.store(arrival, Ordering::Release);
            if !table.outgoing.push(purge, time, arrival) {
                warn!("too many purges wait to be written: everything counts as purged instead");
                table.insert(&Scope::All, PurgeStamp { is_soft: false, ..stamp });
                // Here as well: what memory holds is compared with it.
                removes_at_once = false;
            }
        }
        table.note_node(self.node, time);
        self.publish(arrival, removes_at_once);
        PurgeReceipt { position: arrival, before }
    }

    /// Takes over a purge that another process made. Returns `false` if it is known. One whose time can't be counts as made
    /// now.
    pub(super) fn learn(&self, purge: &Purge, time: JournalTime, node: u64) -> bool {
        let mut table = self.table.write();
        let time = if self.believes(time) { time } else { table.next_time(self.journal_now()) };
        table.note_time(time);
        let arrival = self.last.load(Ordering::Acquire) + 1;
        let (scope, stamp) = (Scope::from(&purge.target), PurgeStamp { arrival, time, node, is_soft: purge.is_soft });
        if table.has(&scope, &stamp) {
            return false;
        }
        table.insert(&scope, stamp);
        self.publish(arrival, purge.removes_at_once());
        true
    }

    /// Records that all purges which `node` made until `time` are known.
    pub(super) fn learnt(&self, node: u64, time: JournalTime) {
        if self.believes(time) {
            let mut table = self.table.write();
            table.note_time(time);
            table.note_node(node, time);
        }
    }

    /// Records that everything was read that the journal had at `time`, by this process's clock. Purges made here from now
    /// on get later times, also if this clock goes back.
    pub(super) fn read_until(&self, time: JournalTime) {
        let mut table = self.table.write();
        table.note_time(time);
        table.set_complete_until(time.saturating_sub(HORIZON << TICK_BITS));
    }

    fn publish(&self, arrival: u64, removes_at_once: bool) {
        if !removes_at_once {
            self.last_compared.store(arrival, Ordering::Release);
        }
        self.last.store(arrival, Ordering::Release);
    }

    /// Returns whether a response in memory has to be compared with purges. Purges of URLs remove at once what is found by
    /// its URL's key alone.
    pub fn is_due(&self, head: &StoredHead) -> bool {
        let counter = if head.is_found_otherwise { &self.last } else { &self.last_compared };
        let last = counter.load(Ordering::Acquire);
        head.marks.checked.load(Ordering::Acquire) < last && head.position < last
    }

    /// Compares a response in memory with the purges that it was not compared with yet.
    pub fn check(&self, head: &StoredHead) -> Covered {
        let last = self.last.load(Ordering::Acquire);
        let since = head.position.max(head.marks.checked.load(Ordering::Acquire));
        let covered = self.covers(head, since);
        if covered == Covered::No {
            head.marks.checked.fetch_max(last, Ordering::AcqRel);
        }
        covered
    }

    /// Returns how the purges after the position `since` affect a response.
    pub fn covers(&self, head: &StoredHead, since: u64) -> Covered {
        if since >= self.last.load(Ordering::Acquire) {
            return Covered::No;
        }
        let covered = self.table.read().covers(&head.key, head.tags(), Some(since), |stamp| stamp.arrival > since);
        self.not_ahead(covered)
    }

    /// Returns how purges affect a response that was read from the durable tier: those that its version vector lacks.
    pub fn covers_read(&self, head: &StoredHead) -> Covered {
        self.covers_entry(&head.key, head.tags(), &head.version_vector)
    }

    /// Returns how purges affect an entry of the durable tier: those that its version vector lacks.
    pub(super) fn covers_entry(&self, key: &CacheKey, tags: &[String], vector: &VersionVector) -> Covered {
        let is_believed = self.believes_vector(vector);
        let is_unknown = |stamp: &PurgeStamp| !is_believed || !vector.contains(stamp.node, stamp.time);
        self.not_ahead(self.table.read().covers(key, tags, None, is_unknown))
    }

    /// Returns the position of the last purge of more than one URL, or of a soft one.
    pub(super) fn last_compared(&self) -> u64 {
        self.last_compared.load(Ordering::Acquire)
    }

    /// Limits the moment of a soft purge to now: the clock of the process that made it may be ahead.
    fn not_ahead(&self, covered: Covered) -> Covered {
        match covered {
            Covered::Softly(moment) => Covered::Softly(moment.min(self.clock.now())),
            covered => covered,
        }
    }

    /// Returns the purges that cover a response, with their targets: those after the position `since`, or for a response
    /// read from the durable tier (`None`) those that its version vector lacks.
    pub fn covering(&self, head: &StoredHead, since: Option<u64>) -> Vec<(PurgeTarget, PurgeStamp)> {
        let is_believed = self.believes_vector(&head.version_vector);
        let counts = |stamp: &PurgeStamp| match since {
            Some(since) => stamp.arrival > since,
            None => !is_believed || !head.version_vector.contains(stamp.node, stamp.time),
        };
        let mut covering = Vec::new();
        self.table.read().each(&head.key, head.tags(), since, &mut |target: &dyn Fn() -> PurgeTarget, stamp| {
            if counts(stamp) {
                covering.push((target(), *stamp));
            }
        });
        covering
    }

    /// Returns the purges that cover an entry of another process, with their targets: those that its version vector lacks.
    pub(super) fn covering_entry(
        &self,
        key: &CacheKey,
        tags: &[String],
        vector: &VersionVector,
    ) -> Vec<(PurgeTarget, PurgeStamp)> {
        let is_believed = self.believes_vector(vector);
        let mut covering = Vec::new();
        self.table.read().each(key, tags, None, &mut |target: &dyn Fn() -> PurgeTarget, stamp| {
            if !is_believed || !vector.contains(stamp.node, stamp.time) {
                covering.push((target(), *stamp));
            }
        });
        covering
    }

    /// Returns whether any purge came since `position`.
    pub(super) fn is_any_since(&self, position: u64) -> bool {
        position < self.last.load(Ordering::Acquire)
    }

    /// Returns whether a purge of one of `tags` came since `position`.
    pub(super) fn covers_tags(&self, tags: &[String], position: u64) -> bool {
        !tags.is_empty() && self.is_any_since(position) && self.table.read().covers_tags(tags, position)
    }

    /// Returns whether a purge covers a fetch of the URL with `hash` that began at `position`.
    pub(super) fn covers_fetch(&self, hash: u128, position: u64) -> bool {
        self.is_any_since(position) && self.table.read().covers_url(hash, position)
    }

    /// Takes at most `most` purges that wait to be written. The caller writes them, or gives them back with
    /// [`Purges::give_back`], before it takes more.
    pub(super) fn take_outgoing(&self, most: usize) -> Batch {
        let mut table = self.table.write();
        let time = table.next_time(self.journal_now());
        let (mut purges, until) = table.outgoing.take(most);
        // A purge whose record turns up long after its time would count as known to readers that have not read it.
        let is_late = |outgoing: &&mut Outgoing| outgoing.time + (LATE << TICK_BITS) < time;
        table.restamp(purges.iter_mut().filter(is_late), time);
        // Those left over get a later time than this record.
        if table.outgoing.len() > 0 {
            let later = table.next_time(self.journal_now());
            let mut left = std::mem::take(&mut table.outgoing);
            table.restamp(left.iter_mut(), later);
            table.outgoing = left;
        }
        Batch { time, purges, until }
    }

    /// Gives back purges that could not be written. If they were written after all, the next record repeats them with the
    /// same times, or with that of a later purge of the same, which changes nothing.
    pub(super) fn give_back(&self, batch: Batch) {
        self.table.write().outgoing.give_back(batch.purges);
    }

    /// Returns the number of purges that wait to be written.
    pub(super) fn outgoing(&self) -> usize {
        self.table.read().outgoing.len()
    }
}

#[cfg(test)]
mod tests;
