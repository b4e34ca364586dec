//! Keeps the tier within its capacity: the oldest packs go first, and what was used of them is appended again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::debug;

use super::super::Inner;
use super::super::config::PACKS;
use super::copy::Keep;
use crate::base::{DurableOp, Stopwatch};
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::index::PackInfo;
use crate::store::names::JournalObject::Purges;
use crate::store::names::ObjectNames;
use crate::store::pack::FooterEntry;
use crate::store::place::Listed;

/// The bytes that a separate body takes on a disk besides its own: directories, and the rest of its last block.
const AROUND_BODY: u64 = 10 << 10;

/// Number of looks for room while others write, and the time between two.
const LOOKS: u32 = 40;
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The most packs that are dropped at once.
const AT_ONCE: usize = 64;

/// The bytes that the tier takes besides packs and the bodies that they name, and the right to drop packs.
#[derive(Debug, Default)]
pub(in crate::store::durable) struct Room {
    /// Held while packs are copied, dropped, or deleted.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// Guarded by its lock: the separate bodies that no pack names.
    unnamed: Mutex<HashMap<u128, Unnamed>>,
    unnamed_bytes: AtomicU64,
    /// Number of those bodies.
    unnamed_count: AtomicU64,
    /// Bytes for which room is made, and that are not written yet.
    reserved: AtomicU64,
    /// Bytes of the journal's records and snapshots.
    journal: AtomicU64,
    /// The bytes that the tier may take on this disk; 0: not known.
    on_disk: AtomicU64,
}

/// A separate body that no pack names: it is being written, waits for its head, or is of no use.
#[derive(Debug)]
struct Unnamed {
    bytes: u64,
    is_growing: bool,
    since: Stopwatch,
}

impl Room {
    /// Counts a separate body that no pack names yet, with so many bytes by now.
    pub(in crate::store::durable) fn note_body(&self, id: u128, bytes: u64, is_growing: bool) {
        let mut unnamed = self.unnamed.lock();
        let body = unnamed.entry(id).or_insert(Unnamed { bytes: 0, is_growing, since: Stopwatch::start() });
        let old = std::mem::replace(&mut body.bytes, bytes);
        body.is_growing = is_growing;
        self.unnamed_count.store(unnamed.len() as u64, Ordering::Relaxed);
        drop(unnamed);
        self.unnamed_bytes.fetch_add(bytes.wrapping_sub(old), Ordering::Relaxed);
    }

    /// Counts a separate body no longer: it is gone.
    pub(in crate::store::durable) fn forget_body(&self, id: u128) {
        self.forget_bodies(|other, _| other == id);
    }

    /// Counts no longer the bodies for which `is_other` says that they are gone, or counted otherwise. It gets their ids,
    /// and whether they are being written.
    pub(super) fn forget_bodies(&self, is_other: impl Fn(u128, bool) -> bool) {
        let mut unnamed = self.unnamed.lock();
        unnamed.retain(|id, body| {
            let is_kept = !is_other(*id, body.is_growing);
            if !is_kept {
                self.unnamed_bytes.fetch_sub(body.bytes, Ordering::Relaxed);
            }
            is_kept
        });
        self.unnamed_count.store(unnamed.len() as u64, Ordering::Relaxed);
    }

    /// Counts no longer the bodies that these entries name: they count with their pack.
    pub(in crate::store::durable) fn forget_named(&self, entries: &[FooterEntry]) {
        if entries.iter().any(|entry| entry.body.is_some()) {
            self.forget_bodies(|id, _| entries.iter().any(|entry| entry.body.is_some_and(|(named, _)| named == id)));
        }
    }

    /// Returns the bodies that no pack has named for `age`, and that are written.
    pub(super) fn unnamed_for(&self, age: Duration) -> Vec<u128> {
        let unnamed = self.unnamed.lock();
        let old = unnamed.iter().filter(|(_, body)| !body.is_growing && body.since.elapsed() >= age);
        old.map(|(id, _)| *id).collect()
    }

    /// Returns whether anything is being written that no pack names yet.
    fn is_in_use(&self) -> bool {
        self.reserved.load(Ordering::Relaxed) + self.unnamed_count.load(Ordering::Relaxed) > 0
    }

    /// Sets the bytes of the journal's records and snapshots.
    pub(super) fn set_journal(&self, bytes: u64) {
        self.journal.store(bytes, Ordering::Relaxed);
    }
}

/// Bytes for which room is made.
pub(in crate::store::durable) struct Reserved {
    inner: Arc<Inner>,
    bytes: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.inner.room.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Inner {
    /// Returns the bytes that the tier takes.
    pub(in crate::store::durable) fn used(&self) -> u64 {
        let Room { unnamed_bytes, reserved, journal, .. } = &self.room;
        let others: u64 = [unnamed_bytes, reserved, journal].map(|bytes| bytes.load(Ordering::Relaxed)).iter().sum();
        let bodies = self.index.named_bodies().0 + self.room.unnamed_count.load(Ordering::Relaxed);
        self.index.packed_bytes().saturating_add(others).saturating_add(bodies.saturating_mul(self.around_body()))
    }

    /// Returns the bytes that a separate body takes besides its own.
    pub(in crate::store::durable) fn around_body(&self) -> u64 {
        if self.place.is_local() { AROUND_BODY } else { 0 }
    }

    /// Returns the length at which a pack is complete.
    pub(in crate::store::durable) fn pack_size(&self) -> u64 {
        self.config.pack_size_within(self.bound())
    }

    /// Returns the bytes that the tier may take: its capacity, or less on a small disk; `u64::MAX`: any number.
    fn bound(&self) -> u64 {
        let unless_0 = |bytes: u64| if bytes == 0 { u64::MAX } else { bytes };
        unless_0(self.config.capacity()).min(unless_0(self.room.on_disk.load(Ordering::Relaxed)))
    }

    /// Returns whether the tier is bounded, so that packs are dropped.
    pub(super) fn is_bounded(&self) -> bool {
        self.bound() < u64::MAX
    }

    /// Returns the bytes that go with a pack when it is dropped, at most: in a bounded tier separate bodies count as in it.
    pub(in crate::store::durable) fn pack_weight(&self, pack: &PackInfo) -> u64 {
        pack.size() + if self.is_bounded() { pack.named() } else { 0 }
    }

    /// Looks how much the disk still takes.
    pub(super) async fn measure_disk(&self) -> Result<(), StoreError> {
        if let Some(space) = self.place.space().await? {
            let all = self.used().saturating_add(space);
            self.room.on_disk.store((all - all / PACKS).max(1), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Makes room for `bytes` within the capacity. They count as taken until they are written, or are not to be: as long as
    /// what this returns is there.
    pub(in crate::store::durable) async fn make_room(self: &Arc<Self>, bytes: u64) -> Result<Reserved, StoreError> {
        if let Some(reserved) = self.try_reserve(bytes) {
            return Ok(reserved);
        }
        for _ in 0..LOOKS {
            {
                // One after the other: others find the room that the first one made.
                let _changing = self.room.changing.lock().await;
                self.room.forget_bodies(|id, _| self.index.names_body(id));
                loop {
                    if let Some(reserved) = self.try_reserve(bytes) {
                        return Ok(reserved);
                    }
                    let needed = self.used().saturating_add(bytes).saturating_sub(self.bound());
                    if !self.drop_oldest(needed, true).await? {
                        break;
                    }
                }
            }
            if !self.room.is_in_use() {
                break;
            }
            // What is being written can be dropped once it is.
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let text = "durable.capacity is reached, or the disk is full, and nothing can be dropped";
        Err(StoreError::new(StoreErrorKind::Full, text))
    }

    /// Returns whether a copy of `bytes` keeps the tier within its capacity and two packs.
    pub(super) fn has_room_for_copy(&self, bytes: u64) -> bool {
        let most = self.bound().saturating_add(self.pack_size().saturating_mul(2));
        self.used().saturating_add(bytes) <= most
    }

    /// Counts `bytes` as taken if there is room for them.
    fn try_reserve(self: &Arc<Self>, bytes: u64) -> Option<Reserved> {
        self.room.reserved.fetch_add(bytes, Ordering::Relaxed);
        let reserved = Reserved { inner: Arc::clone(self), bytes };
        (self.used() <= self.bound()).then_some(reserved)
    }

    /// Makes space on a full disk. Returns whether there is any now.
    pub(in crate::store::durable) async fn make_space(self: &Arc<Self>) -> bool {
        let _changing = self.room.changing.lock().await;
        if let Err(error) = self.measure_disk().await {
            self.report_error(DurableOp::Put, &error);
        }
        // Without copies, which would find no space.
        match self.drop_oldest(1, false).await {
            Ok(is_dropped) => is_dropped,
            Err(error) => {
                self.report_error(DurableOp::Delete, &error);
                false
            }
        }
    }

    /// Drops the oldest packs, at least `needed` bytes and somewhat more, so that the next call is not soon. What was used
    /// of them is appended again if `copies`. Returns whether any was dropped. The caller holds the lock.
    async fn drop_oldest(self: &Arc<Self>, needed: u64, copies: bool) -> Result<bool, StoreError> {
        let enough = needed.saturating_add(self.pack_size());
        let (mut dropped, mut size) = (Vec::new(), 0_u64);
        for pack in self.index.all_packs() {
            if size >= enough || dropped.len() >= AT_ONCE {
                break;
            }
            if pack.is_open() && !self.complete(pack.name).await? {
                continue;
            }
            size += self.weight_of(&pack);
            dropped.push(pack);
        }
        if dropped.is_empty() {
            return Ok(false);
        }
        let mut emptied = dropped;
        if copies {
            // Of packs with far more than is needed the newest stays as well.
            let most = size / 2;
            let fills = size.saturating_sub(enough) > 4 * self.pack_size();
            let keep = Keep::Used { most: if fills { most.min(size - enough) } else { most }, fills };
            match self.copy(&emptied, keep).await {
                Ok(copied) => emptied = copied.emptied,
                // The disk is full before the capacity is reached.
                Err(error) if error.kind() == StoreErrorKind::Full => {}
                Err(error) => return Err(error),
            }
        }
        for pack in emptied {
            let bytes = self.weight_of(&pack);
            self.delete_pack(&pack, true).await?;
            self.metrics.packs_evicted.add_one();
            self.metrics.bytes_evicted.add(bytes);
            debug!(pack = %pack.name, bytes, "a pack was dropped to make room");
        }
        Ok(true)
    }

    /// Returns the bytes that go with a pack.
    fn weight_of(&self, pack: &PackInfo) -> u64 {
        let bodies = pack.references().bodies;
        let alone = bodies.iter().filter(|(id, _)| self.index.names_body_once(*id));
        pack.size() + alone.map(|(_, len)| len + self.around_body()).sum::<u64>()
    }

    /// Deletes a pack, and forgets it. The separate bodies that only it named go with it: at once if `with_bodies`, or else
    /// if they are old enough that no footer under way names them.
    pub(super) async fn delete_pack(&self, pack: &PackInfo, with_bodies: bool) -> Result<(), StoreError> {
        self.place.delete(&self.names.pack(pack.name)).await?;
        let bodies = self.index.remove_pack(pack.name);
        if with_bodies || self.is_old(pack.name.time) {
            for (id, _) in bodies {
                self.delete_body(id).await;
            }
        } else {
            for (id, len) in bodies {
                self.room.note_body(id, len, false);
            }
        }
        Ok(())
    }
}

/// A file takes whole blocks of so many bytes.
const BLOCK: u64 = 4 << 10;

/// Returns the bytes that these snapshots take on a disk, and of a listing of the journal what are no packs.
pub(super) fn others(snapshots: &[Listed], journal: &[Listed]) -> u64 {
    let is_other = |listed: &&Listed| matches!(ObjectNames::parse_journal(&listed.name), Some(Purges(_)));
    let others = snapshots.iter().chain(journal.iter().filter(is_other));
    others.map(|listed| listed.size.div_ceil(BLOCK) * BLOCK).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rfc9111::timestamp::Timestamp;
    use crate::store::names::PackName;

    #[test]
    fn records_count_in_whole_blocks() {
        let (names, name) = (ObjectNames::new("", ""), PackName { time: 1, node: 2 });
        let listed = |name: String, size| Listed { name, size, modified: Timestamp::default() };
        let journal =
            [listed(names.purges(name), 100), listed(names.pack(name), 1 << 20), listed(names.purges(name), 5000)];
        assert_eq!(others(&[listed(names.snapshot(1, 2), 1)], &journal), 4 * BLOCK);
    }
}
