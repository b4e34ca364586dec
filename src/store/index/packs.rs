//! The packs that the index has places in.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::places::Place;
use crate::entry::JournalTime;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::names::PackName;
use crate::store::pack::{EntryKind, FooterEntry};

/// A pack, and what the index knows of it.
#[derive(Debug)]
pub(in crate::store) struct PackInfo {
    /// Its number in this process. Numbers are not used again.
    pub id: u32,
    /// Its name.
    pub name: PackName,
    /// True while it grows.
    is_open: AtomicBool,
    /// Its length in bytes, with the footer once it has one.
    size: AtomicU64,
    /// The bytes of its responses that count.
    live: AtomicU64,
    /// Places in it.
    places: AtomicU64,
    /// The least order of its entries.
    least_order: AtomicU64,
    /// The moment from which none of its responses is of use, in milliseconds since the epoch.
    of_use_until: AtomicI64,
    /// True if it has a tombstone, or an entry that took the place of another: older entries may come back without it.
    holds_down: AtomicBool,
    /// True once a snapshot has it.
    is_saved: AtomicBool,
    /// Guarded by its lock: what it says of other packs and of separate bodies.
    refers: Mutex<References>,
}

/// What a pack leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct References {
    /// The packs that it replaces.
    pub packs: Vec<PackName>,
    /// The ids and lengths of the separate bodies that its footer names.
    pub bodies: Vec<(u128, u64)>,
}

impl PackInfo {
    fn new(id: u32, name: PackName, is_open: bool) -> Self {
        Self {
            id,
            name,
            is_open: AtomicBool::new(is_open),
            size: AtomicU64::new(0),
            live: AtomicU64::new(0),
            places: AtomicU64::new(0),
            least_order: AtomicU64::new(u64::MAX),
            of_use_until: AtomicI64::new(i64::MIN),
            holds_down: AtomicBool::new(false),
            is_saved: AtomicBool::new(false),
            refers: Mutex::default(),
        }
    }

    /// Takes what a footer, or an entry appended to the pack, says of it.
    pub(super) fn note(&self, entry: &FooterEntry) {
        self.note_bounds(entry.order, entry.of_use_until, entry.replaces || entry.kind == EntryKind::Tombstone);
        if let Some(body) = entry.body {
            let mut refers = self.refers.lock();
            if !refers.bodies.contains(&body) {
                refers.bodies.push(body);
            }
        }
    }

    /// Takes what a snapshot says of the pack, or one of its entries.
    pub(in crate::store) fn note_bounds(&self, least_order: JournalTime, of_use_until: Timestamp, holds_down: bool) {
        self.least_order.fetch_min(least_order, Ordering::AcqRel);
        self.of_use_until.fetch_max(of_use_until.as_millis(), Ordering::AcqRel);
        self.holds_down.fetch_or(holds_down, Ordering::AcqRel);
    }

    /// Notes that an entry of this pack counts rather than one of `other`, which its writer may not have known of.
    pub(super) fn note_precedence(&self, other: &Self) {
        if self.id != other.id {
            self.holds_down.store(true, Ordering::Release);
        }
    }

    /// Notes that a snapshot has the pack.
    pub(in crate::store) fn set_saved(&self) {
        self.is_saved.store(true, Ordering::Release);
    }

    /// Sets what the pack leads to.
    pub(in crate::store) fn set_references(&self, refers: References) {
        *self.refers.lock() = refers;
    }

    /// Sets the packs that this one replaces.
    pub(in crate::store) fn set_replaces(&self, packs: Vec<PackName>) {
        self.refers.lock().packs = packs;
    }

    /// Returns what the pack leads to.
    pub(in crate::store) fn references(&self) -> References {
        self.refers.lock().clone()
    }

    /// Sets the pack's length, and whether it still grows.
    pub(in crate::store) fn set_size(&self, size: u64, is_open: bool) {
        self.size.store(size, Ordering::Release);
        self.is_open.store(is_open, Ordering::Release);
    }

    pub(super) fn gain(&self, place: Place) {
        self.places.fetch_add(1, Ordering::AcqRel);
        self.live.fetch_add(place.weight(), Ordering::AcqRel);
    }

    pub(super) fn lose(&self, place: Place) {
        let less = |by: u64| move |count: u64| Some(count.saturating_sub(by));
        let _ = self.places.fetch_update(Ordering::AcqRel, Ordering::Acquire, less(1));
        let _ = self.live.fetch_update(Ordering::AcqRel, Ordering::Acquire, less(place.weight()));
    }

    /// Returns whether the pack still grows.
    pub(in crate::store) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// Returns the pack's length in bytes.
    pub(in crate::store) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Returns the bytes of its responses that count.
    pub(in crate::store) fn live(&self) -> u64 {
        self.live.load(Ordering::Acquire).min(self.size())
    }

    /// Returns the number of places in it, tombstones included.
    pub(in crate::store) fn places(&self) -> u64 {
        self.places.load(Ordering::Acquire)
    }

    /// Returns the least order of its entries.
    pub(in crate::store) fn least_order(&self) -> JournalTime {
        self.least_order.load(Ordering::Acquire)
    }

    /// Returns the moment from which none of its responses is of use.
    pub(in crate::store) fn of_use_until(&self) -> Timestamp {
        Timestamp::from_millis(self.of_use_until.load(Ordering::Acquire))
    }

    /// Returns whether older entries elsewhere may come back without this pack.
    pub(in crate::store) fn holds_down(&self) -> bool {
        self.holds_down.load(Ordering::Acquire)
    }
}

/// All packs, by number and by name.
#[derive(Debug, Default)]
pub(in crate::store) struct Packs {
    by_id: HashMap<u32, Arc<PackInfo>>,
    by_name: BTreeMap<PackName, u32>,
    next: u32,
}

impl Packs {
    pub(super) fn add(&mut self, name: PackName, is_open: bool) -> Arc<PackInfo> {
        if let Some(known) = self.named(name) {
            return known;
        }
        // A number has 24 bits in a place. They last for 16 million packs, after which numbers are free again.
        let id = loop {
            self.next = (self.next + 1) & 0x00ff_ffff;
            if !self.by_id.contains_key(&self.next) {
                break self.next;
            }
        };
        let pack = Arc::new(PackInfo::new(id, name, is_open));
        self.by_id.insert(id, Arc::clone(&pack));
        self.by_name.insert(name, id);
        pack
    }

    pub(super) fn of(&self, id: u32) -> Option<Arc<PackInfo>> {
        self.by_id.get(&id).cloned()
    }

    pub(super) fn named(&self, name: PackName) -> Option<Arc<PackInfo>> {
        self.of(*self.by_name.get(&name)?)
    }

    pub(super) fn all(&self) -> Vec<Arc<PackInfo>> {
        self.by_name.values().filter_map(|id| self.of(*id)).collect()
    }

    pub(super) fn unsaved(&self) -> (usize, usize) {
        let is_unsaved = |pack: &&Arc<PackInfo>| !pack.is_open() && !pack.is_saved.load(Ordering::Acquire);
        (self.by_id.values().filter(is_unsaved).count(), self.by_id.len())
    }

    pub(super) fn remove(&mut self, name: PackName) -> Option<Arc<PackInfo>> {
        let id = self.by_name.remove(&name)?;
        self.by_id.remove(&id)
    }

    pub(super) fn bytes(&self) -> u64 {
        let refers = |pack: &Arc<PackInfo>| pack.refers.lock().bodies.capacity() * size_of::<(u128, u64)>();
        let own = size_of::<PackInfo>() + 2 * size_of::<u128>() + 48;
        self.by_id.values().map(|pack| (own + refers(pack)) as u64).sum()
    }
}
