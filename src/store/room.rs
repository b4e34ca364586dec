//! Counts the space that a directory uses, and bounds it.
//!
//! * Every write takes its room before it begins, and waits, for a bounded time, while what was least recently used
//!   is evicted (`durable/evict.rs`). So one process never takes the directory past its capacity, but for the journal's
//!   records and snapshots, which wait for nothing.
//! * Processes that share a directory do not tell each other what they write. Each looks through all of it again after
//!   it has written a sixteenth of the capacity: that is the margin for each further process, and for what is written
//!   before the first look has ended.
//! * A disk that is full before the capacity is reached counts as the capacity, for a minute.
//! * A read is noted in memory, in a table of fixed size, without a lock. The file's own time follows once an hour at
//!   the most: that is what another process, or the next one, goes by.
//! * Counted are blocks of 4 KiB, and one for each directory, as a file system does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use xxhash_rust::xxh3::xxh3_64;

use crate::base::{Clock, Stopwatch};
use crate::rfc9111::timestamp::Timestamp;

/// The unit that a file system gives room in.
const BLOCK: u64 = 4096;

/// After a part of the capacity was written, the directory is looked through anew.
const MARGIN: u64 = 16;

/// So much more than needed is evicted at once: a part of the limit, and at most so many bytes.
const SLACK: u64 = 64;
const MAX_SLACK: u64 = 64 << 20;

/// Wait limit of a write for room.
const PATIENCE: Duration = Duration::from_secs(10);

/// For so long a full disk counts as the capacity.
const FULL_FOR: Duration = Duration::from_secs(60);

/// The number of uses that are remembered.
const USES: usize = 1 << 18;

/// The bits of a remembered use that hold its time, and from when that counts, in milliseconds: 2020.
const TIME_BITS: u32 = 40;
const SINCE: i64 = 1_577_836_800_000;

/// Sorts files by how their space is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// An object at a key.
    Object,
    /// A separate body.
    Body,
    /// A record of the journal, a snapshot, or the probe: never evicted.
    Journal,
}

/// Says whether a write waits for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// It does.
    Waits,
    /// It does not, and may go past the capacity.
    AtOnce,
}

/// There is no room, and none can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom;

/// The room of one directory.
#[derive(Debug)]
pub(crate) struct Room {
    capacity: u64,
    /// Guarded by its lock, which is held for arithmetic only.
    held: Mutex<Held>,
    /// The last use of names, by a hash: some bits of it, and the time.
    uses: Box<[AtomicU64]>,
    /// Wakes whoever evicts.
    wake: Notify,
    /// Told after each round of evicting.
    rounds: watch::Sender<Round>,
}

#[derive(Debug, Default)]
struct Held {
    files: u64,
    objects: u64,
    bodies: u64,
    /// By writes that are under way.
    reserved: u64,
    /// By writes that wait.
    wanted: u64,
    /// Written since the directory was looked through.
    since_scan: u64,
    is_scanned: bool,
    /// True if a task evicts.
    is_tended: bool,
    /// The limit that a full disk has set, and when.
    ceiling: Option<(u64, Stopwatch)>,
}

/// Reports how evicting went.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    number: u64,
    /// There was not enough to evict.
    is_exhausted: bool,
}

/// Returns the space that a file of `len` bytes takes.
pub(super) fn size_of_file(len: u64) -> u64 {
    len.div_ceil(BLOCK) * BLOCK
}

/// Estimates the space of the directories for so many names, spread at random over 256 times 256 of them.
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

impl Held {
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

    fn count(&mut self, content: Content) -> Option<&mut u64> {
        match content {
            Content::Object => Some(&mut self.objects),
            Content::Body => Some(&mut self.bodies),
            Content::Journal => None,
        }
    }
}

impl Room {
    /// The room of a directory that may take `capacity` bytes; 0: any number.
    pub(crate) fn new(capacity: u64) -> Arc<Self> {
        Arc::new(Self {
            capacity: if capacity == 0 { u64::MAX } else { capacity },
            held: Mutex::default(),
            uses: (0..USES).map(|_| AtomicU64::new(0)).collect(),
            wake: Notify::new(),
            rounds: watch::Sender::new(Round::default()),
        })
    }

    /// Bytes that are held, as far as is known.
    pub(crate) fn bytes(&self) -> u64 {
        self.held.lock().total()
    }

    /// The largest object that is kept: one half of the capacity, so that no single one takes the place of all.
    pub(crate) fn largest(&self) -> u64 {
        if self.capacity == u64::MAX { u64::MAX } else { self.capacity / 2 }
    }

    /// Takes room for a file of `len` bytes.
    pub(crate) async fn reserve(
        self: &Arc<Self>,
        content: Content,
        len: u64,
        how: Patience,
    ) -> Result<Reserved, NoRoom> {
        let mut reserved = Reserved { room: Arc::clone(self), content, len: 0, bytes: 0 };
        reserved.grow(len, how).await?;
        Ok(reserved)
    }

    async fn take(&self, bytes: u64, how: Patience) -> Result<(), NoRoom> {
        if how == Patience::AtOnce {
            let mut held = self.held.lock();
            held.reserved += bytes;
            drop(held);
            self.wake.notify_one();
            return Ok(());
        }
        if bytes > self.largest() {
            return Err(NoRoom);
        }
        let (mut rounds, watch, mut is_exhausted) = (self.rounds.subscribe(), Stopwatch::start(), false);
        let mut waiting: Option<Wanted<'_>> = None;
        loop {
            {
                let mut held = self.held.lock();
                if held.fits(bytes, self.capacity) {
                    held.reserved += bytes;
                    return Ok(());
                }
                if is_exhausted || !held.is_tended {
                    return Err(NoRoom);
                }
            }
            waiting.get_or_insert_with(|| Wanted::of(self, bytes));
            let left = PATIENCE.saturating_sub(watch.elapsed());
            match tokio::time::timeout(left, rounds.changed()).await {
                Ok(Ok(())) => is_exhausted = rounds.borrow_and_update().is_exhausted,
                Ok(Err(_)) | Err(_) => return Err(NoRoom),
            }
        }
    }

    /// The disk had no room for `bytes`, whatever the capacity is. Whether some was made.
    pub(crate) async fn press(&self, bytes: u64) -> bool {
        {
            let mut held = self.held.lock();
            if !held.is_tended {
                return false;
            }
            let limit = held.limit(self.capacity).min(held.total());
            held.ceiling = Some((limit.saturating_sub(bytes), Stopwatch::start()));
        }
        let mut rounds = self.rounds.subscribe();
        let _waiting = Wanted::of(self, bytes);
        match tokio::time::timeout(PATIENCE, rounds.changed()).await {
            Ok(Ok(())) => !rounds.borrow().is_exhausted,
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// A file of `len` bytes was removed.
    pub(crate) fn removed(&self, content: Content, len: u64) {
        let mut held = self.held.lock();
        held.files = held.files.saturating_sub(size_of_file(len));
        if let Some(count) = held.count(content) {
            *count = count.saturating_sub(1);
        }
    }

    /// Notes that the object `name` was used.
    pub(crate) fn note_use(&self, name: &str) {
        let (slot, tag) = self.slot(name);
        let millis = Clock::system().now().as_millis().saturating_sub(SINCE);
        let time = u64::try_from(millis).unwrap_or(0) & ((1 << TIME_BITS) - 1);
        slot.store(tag << TIME_BITS | time, Ordering::Relaxed);
    }

    /// Returns when this process last used the object `name`, if that is remembered.
    pub(crate) fn last_use(&self, name: &str) -> Option<Timestamp> {
        let (slot, tag) = self.slot(name);
        let noted = slot.load(Ordering::Relaxed);
        let time = i64::try_from(noted & ((1 << TIME_BITS) - 1)).unwrap_or(0);
        (noted != 0 && noted >> TIME_BITS == tag).then(|| Timestamp::from_millis(SINCE + time))
    }

    fn slot(&self, name: &str) -> (&AtomicU64, u64) {
        let hash = xxh3_64(name.as_bytes());
        let slot = usize::try_from(hash & (USES as u64 - 1)).unwrap_or(0);
        (&self.uses[slot], hash >> TIME_BITS)
    }

    /// From now on somebody evicts.
    pub(crate) fn tend(&self) {
        self.held.lock().is_tended = true;
    }

    /// Waits until something may have to be evicted.
    pub(crate) async fn wait(&self) {
        self.wake.notified().await;
    }

    /// Returns whether the directory is to be looked through before anything else.
    pub(crate) fn needs_scan(&self) -> bool {
        let held = self.held.lock();
        !held.is_scanned || held.since_scan > self.capacity / MARGIN
    }

    /// A look through the directory begins.
    pub(crate) fn begin_scan(&self) {
        self.held.lock().since_scan = 0;
    }

    /// It has found so much. What was written meanwhile may be part of that, and is added to be sure.
    pub(crate) fn end_scan(&self, found: &Found) {
        let mut held = self.held.lock();
        held.files = found.files + held.since_scan;
        (held.objects, held.bodies, held.is_scanned) = (found.objects, found.bodies, true);
    }

    /// Returns how many bytes are to be evicted now.
    pub(crate) fn excess(&self) -> u64 {
        let held = self.held.lock();
        let (used, limit) = (held.total().saturating_add(held.wanted), held.limit(self.capacity));
        if used <= limit {
            return 0;
        }
        used - (limit - (limit / SLACK).min(MAX_SLACK))
    }

    /// Something was evicted, or nothing can be.
    pub(crate) fn end_round(&self, is_exhausted: bool) {
        self.rounds.send_modify(|round| *round = Round { number: round.number + 1, is_exhausted });
    }
}

/// Reports what a look through the directory found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// The bytes of all files.
    pub files: u64,
    /// Number of objects.
    pub objects: u64,
    /// Number of separate bodies.
    pub bodies: u64,
}

/// A write that waits for room.
struct Wanted<'a> {
    room: &'a Room,
    bytes: u64,
}

impl<'a> Wanted<'a> {
    fn of(room: &'a Room, bytes: u64) -> Self {
        room.held.lock().wanted += bytes;
        room.wake.notify_one();
        Self { room, bytes }
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.room.held.lock().wanted -= self.bytes;
    }
}

/// Room that a write has taken. Dropped before the file is in its place, it is given back.
#[derive(Debug)]
pub(crate) struct Reserved {
    room: Arc<Room>,
    content: Content,
    /// Of the file, so far.
    len: u64,
    /// Space that they take.
    bytes: u64,
}

impl Reserved {
    /// Takes room for `more` bytes of the same file.
    pub(crate) async fn grow(&mut self, more: u64, how: Patience) -> Result<(), NoRoom> {
        let bytes = size_of_file(self.len + more) - self.bytes;
        if bytes > 0 {
            if self.bytes + bytes > self.room.largest() && how == Patience::Waits {
                return Err(NoRoom);
            }
            self.room.take(bytes, how).await?;
        }
        self.len += more;
        self.bytes += bytes;
        Ok(())
    }

    /// The disk had no room for as much as was taken last: see [`Room::press`].
    pub(crate) async fn press(&self) -> bool {
        self.room.press(self.bytes).await
    }

    /// The file is in its place, where there was one of so many bytes before.
    pub(crate) fn settle(mut self, replaced: Option<u64>) {
        let mut held = self.room.held.lock();
        held.reserved -= self.bytes;
        held.files = (held.files + self.bytes).saturating_sub(replaced.map_or(0, size_of_file));
        held.since_scan += self.bytes;
        if let (Some(count), None) = (held.count(self.content), replaced) {
            *count += 1;
        }
        drop(held);
        self.bytes = 0;
        if self.room.needs_scan() {
            self.room.wake.notify_one();
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.room.held.lock().reserved -= self.bytes;
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

    #[test]
    fn a_use_is_remembered_of_the_name_that_was_used() {
        let room = Room::new(0);
        assert_eq!(room.last_use("a"), None);
        room.note_use("a");
        let since = Clock::system().now().millis_since(room.last_use("a").expect("it was used"));
        assert!((0..60_000).contains(&since), "{since}");
        assert_eq!(room.last_use("b"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_waits_for_room_and_gives_it_back() {
        let room = Room::new(10 * BLOCK);
        room.tend();
        room.end_scan(&Found::default());
        let first = room.reserve(Content::Body, 4 * BLOCK, Patience::Waits).await.expect("there is room");
        let second = room.reserve(Content::Body, 4 * BLOCK, Patience::Waits).await.expect("there is room");
        assert_eq!(room.reserve(Content::Body, 6 * BLOCK, Patience::Waits).await.err(), Some(NoRoom), "too large");
        let waiting = room.reserve(Content::Body, 4 * BLOCK, Patience::Waits);
        tokio::pin!(waiting);
        assert!(futures_poll(waiting.as_mut()).await.is_none());
        assert!(room.excess() > 0);
        drop(first);
        room.end_round(false);
        let third = waiting.await.expect("it was given back");
        second.settle(None);
        third.settle(None);
        // Two bodies, and their directories.
        assert_eq!(room.bytes(), 8 * BLOCK + 4 * BLOCK);
        room.removed(Content::Body, 4 * BLOCK);
        assert_eq!(room.bytes(), 4 * BLOCK + 2 * BLOCK);
        assert_eq!(
            room.reserve(Content::Object, 5 * BLOCK, Patience::Waits).await.err(),
            Some(NoRoom),
            "nobody evicts"
        );
        room.reserve(Content::Journal, 5 * BLOCK, Patience::AtOnce).await.expect("the journal does not wait");
    }

    /// Polls a future once.
    async fn futures_poll<F: Future>(future: F) -> Option<F::Output> {
        tokio::time::timeout(Duration::ZERO, future).await.ok()
    }
}
