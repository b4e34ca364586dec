//! The index: where in which pack the durable tier holds what, in about 23 bytes an entry.
//!
//! * A **slot** is a key, or a variant of it. The index has at most one place for each: that of the entry with the
//!   greatest order; of two copies, that in the greater pack.
//! * A slot is found by a fingerprint of 64 bits, a keyed hash of its full key. The hash's secret is in the snapshots of
//!   the journal, so no client can search for two URLs with one fingerprint. The full key is compared when the entry is
//!   read.
//! * A tombstone has a place too: an older entry, found later, does not come back.
//! * What the index does not know is a miss. It costs a request to the origin, and nothing else.

mod packs;
mod pages;
mod places;
mod snapshot;

pub(super) use self::packs::PackInfo;
use self::packs::Packs;
pub(super) use self::places::{Fingerprint, Place};
use self::places::{Packed, PlaceTable};

use std::hash::Hasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use siphasher::sip::SipHasher13;

use super::names::PackName;
use super::pack::{EntryKind, FooterEntry};
use crate::entry::JournalTime;
use crate::rfc9111::key::CacheKey;

/// Number of locks that places are spread over, by the first byte of the fingerprint.
const SHARDS: usize = 256;

/// A place that was found, and the pack that it is in.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// The pack.
    pub pack: Arc<PackInfo>,
    /// The place.
    pub place: Place,
}

/// The secret of the fingerprints.
pub(super) type Seed = (u64, u64);

/// The places of the durable tier's entries.
#[derive(Debug)]
pub struct Index {
    seed: OnceLock<Seed>,
    /// Guarded by its lock: the packs. Taken before the lock of a shard.
    packs: RwLock<Packs>,
    /// Each guarded by its lock: the places whose fingerprints begin with one byte.
    shards: Box<[RwLock<PlaceTable>]>,
    /// Places whose packs are gone, as far as they were not removed.
    stale: AtomicU64,
    is_loaded: AtomicBool,
    /// Until the index is loaded, only entries of this order or a greater one are found (see [`Index::set_certain_from`]).
    certain_from: AtomicU64,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            seed: OnceLock::new(),
            packs: RwLock::default(),
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            stale: AtomicU64::new(0),
            is_loaded: AtomicBool::new(false),
            certain_from: AtomicU64::new(0),
        }
    }
}

/// Packs, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackTotals {
    /// Number of packs.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The bytes of responses that count.
    pub live: u64,
    /// The bytes of entries that are of no use, with separate bodies, as far as that is known.
    pub dead: u64,
    /// Number of separate bodies that packs name, and their bytes.
    pub bodies: (u64, u64),
}

impl Index {
    /// Returns the secret of the fingerprints; makes one up if there is none yet.
    pub(super) fn seed(&self) -> Seed {
        *self.seed.get_or_init(|| {
            let random = ahash::RandomState::new();
            (random.hash_one(0_u8), random.hash_one(1_u8))
        })
    }

    /// Takes over the secret of a snapshot. Returns `false` if the index has another: the snapshot's places are of no use
    /// then.
    pub(super) fn adopt_seed(&self, seed: Seed) -> bool {
        *self.seed.get_or_init(|| seed) == seed
    }

    /// Returns the fingerprint of a slot; `variant` is 0 for the key itself.
    pub(super) fn fingerprint(&self, key: &CacheKey, variant: u128) -> Fingerprint {
        let (first, second) = self.seed();
        let mut hasher = SipHasher13::new_with_keys(first, second);
        hasher.write(&variant.to_le_bytes());
        hasher.write(key.as_bytes());
        Fingerprint(hasher.finish())
    }

    fn shard(&self, fingerprint: Fingerprint) -> &RwLock<PlaceTable> {
        &self.shards[usize::from(fingerprint.first())]
    }

    /// Returns the place of a slot's entry. A slot that was deleted has none, nor has one of which a deletion may not be read
    /// yet.
    pub(super) fn find(&self, fingerprint: Fingerprint) -> Option<Found> {
        let place = self.shard(fingerprint).read().get(fingerprint).filter(|place| !place.is_tombstone)?;
        if !self.is_loaded() && place.order < self.certain_from.load(Ordering::Acquire) {
            return None;
        }
        let pack = self.packs.read().of(place.pack)?;
        Some(Found { pack, place })
    }

    /// Returns whether the tier may have something for the key. Returns `true` until the index is loaded.
    pub(crate) fn may_hold(&self, key: &CacheKey) -> bool {
        !self.is_loaded() || self.may_have(self.fingerprint(key, 0))
    }

    /// Returns whether the tier may have a response to QUERY, for whatever URL. Once it had one, it may have others.
    /// Returns `true` until the index is loaded.
    pub(crate) fn may_hold_queries(&self) -> bool {
        !self.is_loaded() || self.packs.read().totals().query_pages().has_any()
    }

    /// Returns whether the tier may have a response to a QUERY for the page whose key has this hash. Once it had one, it
    /// may have others. Returns `true` until the index is loaded.
    pub(crate) fn may_hold_queries_of(&self, page: u128) -> bool {
        !self.is_loaded() || self.packs.read().totals().query_pages().may_have(page)
    }

    /// Notes that a response to a QUERY for a page is stored.
    pub(super) fn note_query_of(&self, page: u128) {
        self.packs.read().totals().query_pages().add(page);
    }

    /// Returns whether a slot may have an entry. Returns `true` until the index is loaded.
    pub(super) fn may_have(&self, fingerprint: Fingerprint) -> bool {
        !self.is_loaded() || self.find(fingerprint).is_some()
    }

    /// Notes that the entry at a place was used, for whoever makes room.
    pub(super) fn note_use(&self, fingerprint: Fingerprint, place: Place) {
        if !place.is_used {
            self.shard(fingerprint).write().note_use(fingerprint, place);
        }
    }

    /// Adds a pack, or returns the one of this name that is known already. A new one counts as open until its size is set.
    pub(super) fn add_pack(&self, name: PackName) -> Arc<PackInfo> {
        self.packs.write().add(name)
    }

    /// Returns the pack of this name.
    pub(super) fn pack(&self, name: PackName) -> Option<Arc<PackInfo>> {
        self.packs.read().named(name)
    }

    /// Returns the number of complete packs that no known snapshot has, and that of all packs.
    pub(super) fn unsaved(&self) -> (usize, usize) {
        self.packs.read().unsaved()
    }

    /// Returns how many packs there are, and their bytes.
    pub(super) fn pack_totals(&self) -> PackTotals {
        let packs = self.all_packs();
        PackTotals {
            count: packs.len() as u64,
            bytes: packs.iter().map(|pack| pack.size()).sum(),
            live: packs.iter().map(|pack| pack.live()).sum(),
            dead: packs.iter().map(|pack| pack.dead()).sum(),
            bodies: self.named_bodies(),
        }
    }

    /// Returns all packs, in the order of their names.
    pub(super) fn all_packs(&self) -> Vec<Arc<PackInfo>> {
        self.packs.read().all()
    }

    /// Adds the entries of a pack. Returns how many of them count: no other entry of their slot has a greater order, and
    /// none of an equal order is in a greater pack.
    pub(super) fn insert_all<'a>(&self, pack: &PackInfo, entries: impl IntoIterator<Item = &'a FooterEntry>) -> u64 {
        let packs = self.packs.read();
        if packs.of(pack.id).is_none() {
            return 0;
        }
        let mut count = 0;
        for entry in entries {
            pack.note(entry);
            let fingerprint = self.fingerprint(&entry.key, entry.variant);
            count += u64::from(self.insert(&packs, pack, fingerprint, Place::of(pack.id, entry)));
        }
        count
    }

    fn insert(&self, packs: &Packs, pack: &PackInfo, fingerprint: Fingerprint, mut place: Place) -> bool {
        let mut shard = self.shard(fingerprint).write();
        if let Some(old) = shard.get(fingerprint) {
            match packs.of(old.pack) {
                Some(other) if outranks((&other, old), (pack, place)) => {
                    if old.pack != place.pack && old.order > place.order {
                        shard.set(fingerprint, Place { replaces: true, ..old });
                        other.note_precedence();
                    }
                    return false;
                }
                Some(other) => {
                    other.lose(old);
                    place.replaces |= old.pack != place.pack && old.order < place.order;
                }
                None => _ = self.stale.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |stale| stale.checked_sub(1)),
            }
            place.replaces |= old.replaces;
        }
        shard.set(fingerprint, place);
        pack.gain(place);
        true
    }

    /// Removes a place, unless the slot has another by now.
    pub(super) fn remove(&self, fingerprint: Fingerprint, place: Place) {
        let is_removed = self.shard(fingerprint).write().remove(fingerprint, place);
        if is_removed && let Some(pack) = self.packs.read().of(place.pack) {
            pack.lose(place);
        }
    }

    /// Returns the bytes of the packs that are known, and of the separate bodies that they name.
    pub(super) fn packed_bytes(&self) -> u64 {
        self.packs.read().totals().bytes()
    }

    /// Returns the number of separate bodies that packs name, and their bytes.
    pub(super) fn named_bodies(&self) -> (u64, u64) {
        self.packs.read().totals().bodies()
    }

    /// Returns whether a pack names a separate body.
    pub(super) fn names_body(&self, id: u128) -> bool {
        self.packs.read().totals().names(id)
    }

    /// Returns whether one pack alone names a separate body.
    pub(super) fn names_body_once(&self, id: u128) -> bool {
        self.packs.read().totals().names_of(id) == 1
    }

    /// Returns the place of a slot, also that of a tombstone. Its pack may be gone.
    pub(super) fn slot(&self, fingerprint: Fingerprint) -> Option<Place> {
        self.shard(fingerprint).read().get(fingerprint)
    }

    /// Returns whether the index has the pack with this number.
    pub(super) fn has_pack(&self, id: u32) -> bool {
        self.packs.read().of(id).is_some()
    }

    /// Marks the entry at a place as one that can't be read, unless the slot has another by now. It counts as a tombstone: an
    /// older entry does not come back in its stead.
    pub(super) fn bury(&self, fingerprint: Fingerprint, place: Place) {
        let packs = self.packs.read();
        let mut shard = self.shard(fingerprint).write();
        let Some(old) = shard.get(fingerprint).filter(|old| old.is_same(&place)) else { return };
        let buried = Place { is_tombstone: true, is_record: false, replaces: true, ..old };
        shard.set(fingerprint, buried);
        if let Some(pack) = packs.of(old.pack) {
            pack.lose(old);
            pack.gain(buried);
        }
    }

    /// Forgets a pack that is gone, and with it all places in it. Returns the separate bodies that no other pack names.
    pub(super) fn remove_pack(&self, name: PackName) -> Vec<(u128, u64)> {
        let removed = self.packs.write().remove(name);
        let Some((pack, bodies)) = removed else { return Vec::new() };
        let stale = self.stale.fetch_add(pack.places(), Ordering::Relaxed) + pack.places();
        if stale * 16 > self.len() + 1024 {
            self.remove_stale();
        }
        bodies
    }

    /// Removes the places whose packs are gone.
    fn remove_stale(&self) {
        self.stale.store(0, Ordering::Relaxed);
        for shard in &self.shards {
            let packs = self.packs.read();
            shard.write().retain(|place| packs.of(place.pack).is_some());
        }
    }

    /// Calls `each` with the places of each leaf, and the first two bytes of their fingerprints.
    fn each_leaf(&self, mut each: impl FnMut(u8, u8, &[Packed])) {
        for (first, shard) in (0..=u8::MAX).zip(&self.shards) {
            shard.read().leaves().for_each(|(second, leaf)| each(first, second, leaf));
        }
    }

    /// Returns whether the index knows all that was stored when this process began to load it.
    pub(crate) fn is_loaded(&self) -> bool {
        self.is_loaded.load(Ordering::Acquire)
    }

    /// Lets entries of this order or a greater one be found before the index is loaded: every pack is read that may hold a
    /// deletion of them.
    pub(super) fn set_certain_from(&self, order: JournalTime) {
        self.certain_from.store(order, Ordering::Release);
    }

    /// Marks the index as loaded.
    pub(super) fn set_loaded(&self) {
        self.is_loaded.store(true, Ordering::Release);
    }

    /// Returns the number of places.
    pub(crate) fn len(&self) -> u64 {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    /// Returns the bytes that the index takes in memory.
    pub(crate) fn bytes(&self) -> u64 {
        let places: u64 = self.shards.iter().map(|shard| shard.read().bytes()).sum();
        places + self.packs.read().bytes()
    }
}

/// Returns whether the first of two entries of one slot counts, rather than the second.
fn outranks((pack, place): (&PackInfo, Place), (other_pack, other): (&PackInfo, Place)) -> bool {
    (place.order, pack.name, place.offset) >= (other.order, other_pack.name, other.offset)
}

impl Place {
    /// Returns the place of an entry.
    pub(super) fn of(pack: u32, entry: &FooterEntry) -> Self {
        let place = Self::new(pack, entry.offset, entry.group_len, entry.order, entry.kind);
        Self { replaces: place.replaces || entry.replaces, ..place }
    }
}

impl EntryKind {
    fn is_tombstone(self) -> bool {
        matches!(self, Self::Tombstone)
    }
}

#[cfg(test)]
mod tests;
