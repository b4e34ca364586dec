//! Keeps the tier within its capacity: the oldest packs go first, and what was used of them is appended again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tracing::debug;

use super::super::Inner;
use super::copy::Keep;
use crate::base::DurableOp;
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::index::PackInfo;
use crate::store::names::ObjectNames;

/// A pack of a bounded tier takes at most this part of its capacity, so that one that goes is not missed.
const PACKS: u64 = 32;

/// The smallest pack that is complete by its size.
const LEAST_PACK: u64 = 64 << 10;

/// The most packs that are dropped at once.
const AT_ONCE: usize = 64;

/// The bytes that the tier takes besides packs and the bodies that they name, and the right to drop packs.
#[derive(Debug, Default)]
pub(in crate::store::durable) struct Room {
    /// Held while packs are copied, dropped, or deleted.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// Guarded by its lock: the separate bodies that no pack names: their lengths, and whether they are being written.
    unnamed: Mutex<HashMap<u128, (u64, bool)>>,
    unnamed_bytes: AtomicU64,
    /// Bytes of the journal's records and snapshots.
    journal: AtomicU64,
}

impl Room {
    /// Counts a separate body that no pack names yet, with so many bytes by now.
    pub(in crate::store::durable) fn note_body(&self, id: u128, bytes: u64, is_growing: bool) {
        let old = self.unnamed.lock().insert(id, (bytes, is_growing)).map_or(0, |(old, _)| old);
        self.unnamed_bytes.fetch_add(bytes.wrapping_sub(old), Ordering::Relaxed);
    }

    /// Counts a separate body no longer: it is gone.
    pub(in crate::store::durable) fn forget_body(&self, id: u128) {
        self.forget_bodies(|other, _| other == id);
    }

    /// Counts no longer the bodies for which `is_other` says that they are gone, or counted otherwise. It gets their ids,
    /// and whether they are being written.
    pub(super) fn forget_bodies(&self, is_other: impl Fn(u128, bool) -> bool) {
        self.unnamed.lock().retain(|id, (bytes, is_growing)| {
            let is_kept = !is_other(*id, *is_growing);
            if !is_kept {
                self.unnamed_bytes.fetch_sub(*bytes, Ordering::Relaxed);
            }
            is_kept
        });
    }

    /// Sets the bytes of the journal's records and snapshots.
    pub(super) fn set_journal(&self, bytes: u64) {
        self.journal.store(bytes, Ordering::Relaxed);
    }
}

impl Inner {
    /// Returns the bytes that the tier takes.
    pub(in crate::store::durable) fn used(&self) -> u64 {
        let others = self.room.unnamed_bytes.load(Ordering::Relaxed) + self.room.journal.load(Ordering::Relaxed);
        self.index.packed_bytes().saturating_add(others)
    }

    /// Returns the length at which a pack is complete.
    pub(in crate::store::durable) fn pack_size(&self) -> u64 {
        match self.config.capacity() {
            0 => self.config.pack_size,
            capacity => self.config.pack_size.min((capacity / PACKS).max(LEAST_PACK)),
        }
    }

    fn has_room(&self, bytes: u64) -> bool {
        let capacity = self.config.capacity();
        capacity == 0 || self.used().saturating_add(bytes) <= capacity
    }

    /// Makes room for `bytes` within the capacity.
    pub(in crate::store::durable) async fn make_room(self: &Arc<Self>, bytes: u64) -> Result<(), StoreError> {
        if self.has_room(bytes) {
            return Ok(());
        }
        // One after the other: others find the room that the first one made.
        let _changing = self.room.changing.lock().await;
        self.room.forget_bodies(|id, _| self.index.names_body(id));
        while !self.has_room(bytes) {
            let needed = self.used().saturating_add(bytes).saturating_sub(self.config.capacity());
            if !self.drop_oldest(needed, true).await? {
                let text = "durable.capacity is reached, and nothing can be dropped";
                return Err(StoreError::new(StoreErrorKind::Full, text));
            }
        }
        Ok(())
    }

    /// Makes space on a full disk. Returns whether there is any now.
    pub(in crate::store::durable) async fn make_space(self: &Arc<Self>) -> bool {
        let _changing = self.room.changing.lock().await;
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
            match self.copy(&emptied, Keep::Used(size / 2)).await {
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
        pack.size() + alone.map(|(_, len)| len).sum::<u64>()
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
            bodies.iter().for_each(|(id, len)| self.room.note_body(*id, *len, false));
        }
        Ok(())
    }
}

/// Returns the bytes of objects that are no packs, of a listing of the journal.
pub(super) fn others(listed: &[crate::store::place::Listed]) -> u64 {
    use crate::store::names::JournalObject::Purges;
    let is_other = |name: &str| matches!(ObjectNames::parse_journal(name), Some(Purges(_)));
    listed.iter().filter(|listed| is_other(&listed.name)).map(|listed| listed.size).sum()
}
