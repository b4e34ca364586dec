//! Bounds the space that a directory takes.
//!
//! * Every write reserves its space before it begins, and waits a bounded time while eviction makes some
//!   (`directory/evict.rs`). One process therefore never exceeds the capacity, except by the journal's records and
//!   snapshots, which wait for nothing.
//! * Processes that share a directory do not tell each other what they write. Each scans the directory again after it has
//!   written a sixteenth of the capacity. That is the margin for each further process, and for writes before the first
//!   scan has ended.
//! * A disk that is full before the capacity is reached lowers the capacity for a minute.
//! * Space is counted in blocks of 4 KiB, with one for each directory, as a file system does.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::base::Stopwatch;

/// The unit that a file system allocates.
const BLOCK: u64 = 4096;

/// A scan is due after this fraction of the capacity was written.
const MARGIN: u64 = 16;

/// Eviction frees more than is needed: this fraction of the limit, and at most so many bytes.
const SLACK: u64 = 64;
const MAX_SLACK: u64 = 64 << 20;

/// The longest that a write waits for space.
const PATIENCE: Duration = Duration::from_secs(10);

/// Time for which a full disk lowers the capacity.
const FULL_FOR: Duration = Duration::from_secs(60);

/// Sorts files by how their space is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileClass {
    /// An object at a key.
    Object,
    /// A separate body.
    Body,
    /// A record of the journal, a snapshot, or the probe: never evicted.
    Journal,
}

/// The behaviour of a write if there is no space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnShortage {
    /// It waits for eviction, and fails after [`PATIENCE`].
    Wait,
    /// It goes ahead, past the capacity.
    Exceed,
}

/// The error of a write for which eviction can't make space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoSpace;

/// The account of one directory's space.
#[derive(Debug)]
pub(super) struct Capacity {
    /// In bytes; `u64::MAX`: unbounded.
    bytes: u64,
    /// Guarded by its lock, which is held for arithmetic only.
    account: Mutex<Account>,
    /// Wakes the evicting task.
    wake: Notify,
    /// Changes after each round of evicting; writes that wait for space watch it.
    rounds: watch::Sender<Round>,
}

/// All numbers are bytes, but those of `objects` and `bodies`.
#[derive(Debug, Default)]
struct Account {
    /// Taken by files.
    files: u64,
    objects: u64,
    bodies: u64,
    /// Reserved by writes that are under way.
    reserved: u64,
    /// Wanted by writes that wait.
    wanted: u64,
    /// Written since the last scan began.
    since_scan: u64,
    is_scanned: bool,
    /// True while a task evicts: otherwise no write waits for it.
    has_evictor: bool,
    /// The limit that a full disk has set, and when.
    ceiling: Option<(u64, Stopwatch)>,
}

/// The outcome of a round of evicting.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    number: u64,
    /// True if there was too little to evict.
    is_exhausted: bool,
}

/// Returns the space of a file of `len` bytes.
pub(super) fn size_of_file(len: u64) -> u64 {
    len.div_ceil(BLOCK) * BLOCK
}

/// Estimates the space of the directories for `names` names that spread at random over 256 times 256 of them.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "at most 65,792"
)]
fn size_of_directories(names: u64) -> u64 {
    let used = |all: f64| all * -(-(names as f64) / all).exp_m1();
    (used(65_536.0) + used(256.0)).ceil() as u64 * BLOCK
}

impl Account {
    fn total(&self) -> u64 {
        let directories = size_of_directories(self.objects) + size_of_directories(self.bodies);
        self.files + self.reserved + directories
    }

    fn limit(&self, capacity: u64) -> u64 {
        let ceiling = self.ceiling.filter(|(_, since)| since.elapsed() < FULL_FOR).map(|(ceiling, _)| ceiling);
        capacity.min(ceiling.unwrap_or(u64::MAX))
    }

    fn fits(&self, bytes: u64, capacity: u64) -> bool {
        if self.is_scanned {
            self.total().saturating_add(bytes) <= self.limit(capacity)
        } else {
            self.since_scan + self.reserved + bytes <= capacity / MARGIN
        }
    }

    fn count(&mut self, class: FileClass) -> Option<&mut u64> {
        match class {
            FileClass::Object => Some(&mut self.objects),
            FileClass::Body => Some(&mut self.bodies),
            FileClass::Journal => None,
        }
    }
}

impl Capacity {
    /// The account of a directory that may take `bytes`; 0: any number.
    pub(super) fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            bytes: if bytes == 0 { u64::MAX } else { bytes },
            account: Mutex::default(),
            wake: Notify::new(),
            rounds: watch::Sender::new(Round::default()),
        })
    }

    /// Returns the bytes that are taken. Before the first scan, counts only what this process wrote.
    pub(super) fn used(&self) -> u64 {
        self.account.lock().total()
    }

    /// Returns the capacity; 0: unbounded.
    pub(super) fn bytes(&self) -> u64 {
        if self.bytes == u64::MAX { 0 } else { self.bytes }
    }

    /// Returns the largest object that is kept: half of the capacity, so that none takes the place of all others.
    pub(super) fn largest(&self) -> u64 {
        if self.bytes == u64::MAX { u64::MAX } else { self.bytes / 2 }
    }

    /// Reserves space for a file of `len` bytes.
    pub(super) async fn reserve(
        self: &Arc<Self>,
        class: FileClass,
        len: u64,
        on_shortage: OnShortage,
    ) -> Result<Reservation, NoSpace> {
        let mut reservation = Reservation { capacity: Arc::clone(self), class, len: 0, bytes: 0 };
        reservation.grow(len, on_shortage).await?;
        Ok(reservation)
    }

    async fn take(&self, bytes: u64, on_shortage: OnShortage) -> Result<(), NoSpace> {
        if on_shortage == OnShortage::Exceed {
            self.account.lock().reserved += bytes;
            self.wake.notify_one();
            return Ok(());
        }
        if bytes > self.largest() {
            return Err(NoSpace);
        }
        let (mut rounds, watch, mut is_exhausted) = (self.rounds.subscribe(), Stopwatch::start(), false);
        let mut waiting: Option<WaitingWrite<'_>> = None;
        loop {
            {
                let mut account = self.account.lock();
                if account.fits(bytes, self.bytes) {
                    account.reserved += bytes;
                    return Ok(());
                }
                if is_exhausted || !account.has_evictor {
                    return Err(NoSpace);
                }
            }
            waiting.get_or_insert_with(|| WaitingWrite::of(self, bytes));
            let left = PATIENCE.saturating_sub(watch.elapsed());
            match tokio::time::timeout(left, rounds.changed()).await {
                Ok(Ok(())) => is_exhausted = rounds.borrow_and_update().is_exhausted,
                Ok(Err(_)) | Err(_) => return Err(NoSpace),
            }
        }
    }

    /// Lowers the capacity because the disk had no space for `bytes`, and waits for a round of evicting. Returns whether
    /// that freed some.
    pub(super) async fn lower(&self, bytes: u64) -> bool {
        {
            let mut account = self.account.lock();
            if !account.has_evictor {
                return false;
            }
            let limit = account.limit(self.bytes).min(account.total());
            account.ceiling = Some((limit.saturating_sub(bytes), Stopwatch::start()));
        }
        let mut rounds = self.rounds.subscribe();
        let _waiting = WaitingWrite::of(self, bytes);
        match tokio::time::timeout(PATIENCE, rounds.changed()).await {
            Ok(Ok(())) => !rounds.borrow().is_exhausted,
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// Records that a file of `len` bytes was removed.
    pub(super) fn removed(&self, class: FileClass, len: u64) {
        let mut account = self.account.lock();
        account.files = account.files.saturating_sub(size_of_file(len));
        if let Some(count) = account.count(class) {
            *count = count.saturating_sub(1);
        }
    }

    /// Records that a task evicts from now on, so that writes wait for it.
    pub(super) fn add_evictor(&self) {
        self.account.lock().has_evictor = true;
    }

    /// Waits until something may have to be evicted.
    pub(super) async fn wait(&self) {
        self.wake.notified().await;
    }

    /// Returns whether a scan of the directory is due.
    pub(super) fn needs_scan(&self) -> bool {
        let account = self.account.lock();
        !account.is_scanned || account.since_scan > self.bytes / MARGIN
    }

    /// Records that a scan begins.
    pub(super) fn begin_scan(&self) {
        self.account.lock().since_scan = 0;
    }

    /// Records the result of a scan. Adds what was written meanwhile, which the scan may have counted already.
    pub(super) fn end_scan(&self, scanned: &Scanned) {
        let mut account = self.account.lock();
        account.files = scanned.files + account.since_scan;
        (account.objects, account.bodies, account.is_scanned) = (scanned.objects, scanned.bodies, true);
    }

    /// Returns how many bytes are to be evicted now.
    pub(super) fn excess(&self) -> u64 {
        let account = self.account.lock();
        let (used, limit) = (account.total().saturating_add(account.wanted), account.limit(self.bytes));
        if used <= limit {
            return 0;
        }
        used - (limit - (limit / SLACK).min(MAX_SLACK))
    }

    /// Ends a round of evicting: wakes the writes that wait for space.
    pub(super) fn end_round(&self, is_exhausted: bool) {
        self.rounds.send_modify(|round| *round = Round { number: round.number + 1, is_exhausted });
    }
}

/// The result of a scan of the directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Scanned {
    /// The bytes of all files.
    pub files: u64,
    /// Number of objects.
    pub objects: u64,
    /// Number of separate bodies.
    pub bodies: u64,
}

/// A write that waits for space. Its bytes count as wanted until it is dropped.
struct WaitingWrite<'a> {
    capacity: &'a Capacity,
    bytes: u64,
}

impl<'a> WaitingWrite<'a> {
    fn of(capacity: &'a Capacity, bytes: u64) -> Self {
        capacity.account.lock().wanted += bytes;
        capacity.wake.notify_one();
        Self { capacity, bytes }
    }
}

impl Drop for WaitingWrite<'_> {
    fn drop(&mut self) {
        self.capacity.account.lock().wanted -= self.bytes;
    }
}

/// Space reserved by a write. Dropped before the file is in its place, it gives the space back.
#[derive(Debug)]
pub(super) struct Reservation {
    capacity: Arc<Capacity>,
    class: FileClass,
    /// Length of the file so far.
    len: u64,
    /// Space of that length.
    bytes: u64,
}

impl Reservation {
    /// Reserves space for `more` bytes of the same file.
    pub(super) async fn grow(&mut self, more: u64, on_shortage: OnShortage) -> Result<(), NoSpace> {
        let bytes = size_of_file(self.len + more) - self.bytes;
        if bytes > 0 {
            if self.bytes + bytes > self.capacity.largest() && on_shortage == OnShortage::Wait {
                return Err(NoSpace);
            }
            self.capacity.take(bytes, on_shortage).await?;
        }
        self.len += more;
        self.bytes += bytes;
        Ok(())
    }

    /// Lowers the capacity because the disk had no space for the file (see [`Capacity::lower`]).
    pub(super) async fn lower_capacity(&self) -> bool {
        self.capacity.lower(self.bytes).await
    }

    /// Turns the reservation into a file in its place. `replaced` is the length of the file that was there before.
    pub(super) fn settle(mut self, replaced: Option<u64>) {
        let mut account = self.capacity.account.lock();
        account.reserved -= self.bytes;
        account.files = (account.files + self.bytes).saturating_sub(replaced.map_or(0, size_of_file));
        account.since_scan += self.bytes;
        if let (Some(count), None) = (account.count(self.class), replaced) {
            *count += 1;
        }
        drop(account);
        self.bytes = 0;
        if self.capacity.needs_scan() {
            self.capacity.wake.notify_one();
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.capacity.account.lock().reserved -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_counted_as_they_are_used() {
        assert_eq!(size_of_directories(0), 0);
        assert_eq!(size_of_directories(1), 2 * BLOCK);
        assert!(size_of_directories(100) / BLOCK > 150);
        assert_eq!(size_of_directories(1 << 40) / BLOCK, 65_536 + 256);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_waits_for_space_and_gives_it_back() {
        let capacity = Capacity::new(10 * BLOCK);
        capacity.add_evictor();
        capacity.end_scan(&Scanned::default());
        let first = capacity.reserve(FileClass::Body, 4 * BLOCK, OnShortage::Wait).await.expect("there is space");
        let second = capacity.reserve(FileClass::Body, 4 * BLOCK, OnShortage::Wait).await.expect("there is space");
        assert_eq!(
            capacity.reserve(FileClass::Body, 6 * BLOCK, OnShortage::Wait).await.err(),
            Some(NoSpace),
            "too large"
        );
        let waiting = capacity.reserve(FileClass::Body, 4 * BLOCK, OnShortage::Wait);
        tokio::pin!(waiting);
        assert!(futures_poll(waiting.as_mut()).await.is_none());
        assert!(capacity.excess() > 0);
        drop(first);
        capacity.end_round(false);
        let third = waiting.await.expect("it was given back");
        second.settle(None);
        third.settle(None);
        // Two bodies, and their directories.
        assert_eq!(capacity.used(), 8 * BLOCK + 4 * BLOCK);
        capacity.removed(FileClass::Body, 4 * BLOCK);
        assert_eq!(capacity.used(), 4 * BLOCK + 2 * BLOCK);
        assert_eq!(
            capacity.reserve(FileClass::Object, 5 * BLOCK, OnShortage::Wait).await.err(),
            Some(NoSpace),
            "nobody evicts"
        );
        capacity.reserve(FileClass::Journal, 5 * BLOCK, OnShortage::Exceed).await.expect("the journal does not wait");
    }

    /// Polls a future once.
    async fn futures_poll<F: Future>(future: F) -> Option<F::Output> {
        tokio::time::timeout(Duration::ZERO, future).await.ok()
    }
}
