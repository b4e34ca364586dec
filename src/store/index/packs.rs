//! The packs that the index has places in.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::pages::QueryPages;
use super::places::{MAX_PACK, Place};
use crate::entry::JournalTime;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::names::PackName;
use crate::store::pack::{EntryKind, FooterEntry};

/// Sums over all packs that are known.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// Bytes of packs.
    packs: AtomicU64,
    /// Bytes of separate bodies that a pack names.
    bodies: AtomicU64,
    /// Number of those bodies.
    count: AtomicU64,
    /// Guarded by its lock: for each of those bodies its length, and the number of packs that name it.
    named: Mutex<HashMap<u128, (u64, u32)>>,
    /// The pages of which a response to QUERY was ever known.
    query_pages: QueryPages,
}

impl Totals {
    /// Returns the bytes of packs, and of the bodies that they name.
    pub(super) fn bytes(&self) -> u64 {
        self.packs.load(Ordering::Relaxed).saturating_add(self.bodies.load(Ordering::Relaxed))
    }

    /// Returns the number of separate bodies that packs name, and their bytes.
    pub(super) fn bodies(&self) -> (u64, u64) {
        (self.count.load(Ordering::Relaxed), self.bodies.load(Ordering::Relaxed))
    }

    /// Returns the pages of which a response to QUERY was ever known.
    pub(super) fn query_pages(&self) -> &QueryPages {
        &self.query_pages
    }

    /// Returns whether a pack names a body.
    pub(super) fn names(&self, id: u128) -> bool {
        self.named.lock().contains_key(&id)
    }

    /// Returns the number of packs that name a body.
    pub(super) fn names_of(&self, id: u128) -> u32 {
        self.named.lock().get(&id).map_or(0, |(_, packs)| *packs)
    }

    fn resize(&self, old: u64, new: u64) {
        // Wraps in the middle of two calls at most: what is subtracted was added before.
        self.packs.fetch_add(new.wrapping_sub(old), Ordering::Relaxed);
    }

    fn name(&self, (id, len): (u128, u64)) {
        let mut named = self.named.lock();
        let (_, packs) = named.entry(id).or_insert((len, 0));
        *packs += 1;
        if *packs == 1 {
            self.bodies.fetch_add(len, Ordering::Relaxed);
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a pack that names a body no longer. Returns whether it was the last one.
    fn unname(&self, id: u128) -> bool {
        let mut named = self.named.lock();
        let Some((len, packs)) = named.get_mut(&id) else { return false };
        *packs -= 1;
        let (len, is_last) = (*len, *packs == 0);
        if is_last {
            named.remove(&id);
            self.bodies.fetch_sub(len, Ordering::Relaxed);
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        is_last
    }
}

/// A pack, and what the index knows of it.
#[derive(Debug)]
pub(in crate::store) struct PackInfo {
    /// Its number in this process. Numbers are not used again.
    pub id: u32,
    /// Its name.
    pub name: PackName,
    /// True while it grows, or its entries are being added.
    is_open: AtomicBool,
    /// Its length in bytes, with the footer once it has one.
    size: AtomicU64,
    /// The length of its entries.
    filled: AtomicU64,
    /// The bytes of its responses that count.
    live: AtomicU64,
    /// Places in it.
    places: AtomicU64,
    /// Those of tombstones.
    tombstones: AtomicU64,
    /// The bytes of those tombstones.
    tombstone_bytes: AtomicU64,
    /// The least order of its entries, without tombstones: those bring nothing back.
    least_order: AtomicU64,
    /// The greatest order of its entries that count, or counted.
    greatest_order: AtomicU64,
    /// The moment from which none of its responses is of use, in milliseconds since the epoch.
    of_use_until: AtomicI64,
    /// True if it has a tombstone, or an entry that took the place of another: older entries may come back without it.
    holds_down: AtomicBool,
    /// Guarded by its lock: the pages that it has responses to QUERY of.
    queries: Mutex<Queries>,
    /// Bytes of separate bodies that it names.
    named: AtomicU64,
    /// Bytes of separate bodies that it names, and that none of its responses that count leads to.
    dead_bodies: AtomicU64,
    /// True if not all of its entries could be read.
    is_damaged: AtomicBool,
    /// True once a snapshot has it.
    is_saved: AtomicBool,
    /// Guarded by its lock: what it says of other packs and of separate bodies; `None` once the index has forgotten it.
    refers: Mutex<Option<References>>,
    totals: Arc<Totals>,
}

/// The pages that a pack has responses to QUERY of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Queries {
    /// Those whose keys have these hashes.
    Of(HashSet<u128>),
    /// Too many to list, or not known.
    OfAny,
}

impl Default for Queries {
    fn default() -> Self {
        Self::Of(HashSet::new())
    }
}

impl Queries {
    /// The most pages of a pack that are listed.
    const MAX: usize = 1024;

    fn add(&mut self, page: u128) {
        if let Self::Of(pages) = self {
            pages.insert(page);
            if pages.len() > Self::MAX {
                *self = Self::OfAny;
            }
        }
    }
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
    fn new(id: u32, name: PackName, totals: Arc<Totals>) -> Self {
        Self {
            id,
            name,
            is_open: AtomicBool::new(true),
            size: AtomicU64::new(0),
            filled: AtomicU64::new(0),
            live: AtomicU64::new(0),
            places: AtomicU64::new(0),
            tombstones: AtomicU64::new(0),
            tombstone_bytes: AtomicU64::new(0),
            least_order: AtomicU64::new(u64::MAX),
            greatest_order: AtomicU64::new(0),
            of_use_until: AtomicI64::new(i64::MIN),
            holds_down: AtomicBool::new(false),
            queries: Mutex::default(),
            is_damaged: AtomicBool::new(false),
            is_saved: AtomicBool::new(false),
            named: AtomicU64::new(0),
            dead_bodies: AtomicU64::new(0),
            refers: Mutex::new(Some(References::default())),
            totals,
        }
    }

    /// Takes what a footer, or an entry appended to the pack, says of it.
    pub(super) fn note(&self, entry: &FooterEntry) {
        let is_tombstone = entry.kind == EntryKind::Tombstone;
        let least_order = if is_tombstone { JournalTime::MAX } else { entry.order };
        self.note_filled(entry.offset + u64::from(entry.len));
        self.note_bounds(least_order, entry.of_use_until, entry.replaces || is_tombstone);
        if let Some(body) = entry.body {
            self.note_bodies(&[body]);
        }
        if let Some(page) = entry.key.page_hash() {
            self.note_query_of(page);
        }
    }

    /// Notes that the pack has a response to a QUERY for a page.
    pub(super) fn note_query_of(&self, page: u128) {
        self.queries.lock().add(page);
        self.totals.query_pages.add(page);
    }

    /// Notes that the pack has responses to QUERY, of whatever pages.
    pub(super) fn note_queries_of_any(&self) {
        *self.queries.lock() = Queries::OfAny;
        self.totals.query_pages.add_all();
    }

    /// Returns the pages that the pack has responses to QUERY of.
    pub(super) fn queries(&self) -> Queries {
        self.queries.lock().clone()
    }

    /// Takes what a snapshot says of the pack, or one of its entries.
    pub(in crate::store) fn note_bounds(&self, least_order: JournalTime, of_use_until: Timestamp, holds_down: bool) {
        self.least_order.fetch_min(least_order, Ordering::AcqRel);
        self.of_use_until.fetch_max(of_use_until.as_millis(), Ordering::AcqRel);
        self.holds_down.fetch_or(holds_down, Ordering::AcqRel);
    }

    /// Notes that the pack's entries take at least so many bytes.
    pub(in crate::store) fn note_filled(&self, bytes: u64) {
        self.filled.fetch_max(bytes, Ordering::AcqRel);
    }

    /// Notes separate bodies that the pack's footer names.
    pub(in crate::store) fn note_bodies(&self, bodies: &[(u128, u64)]) {
        if let Some(refers) = &mut *self.refers.lock() {
            for body in bodies {
                if !refers.bodies.contains(body) {
                    refers.bodies.push(*body);
                    self.named.fetch_add(body.1, Ordering::AcqRel);
                    self.totals.name(*body);
                }
            }
        }
    }

    /// Notes that an entry of this pack counts rather than an older one of another, which its writer may not have known of.
    pub(super) fn note_precedence(&self) {
        self.holds_down.store(true, Ordering::Release);
    }

    /// Notes that not all of its entries could be read. It stays until every process has found that out.
    pub(in crate::store) fn set_damaged(&self) {
        self.is_damaged.store(true, Ordering::Release);
    }

    /// Returns whether not all of its entries could be read.
    pub(in crate::store) fn is_damaged(&self) -> bool {
        self.is_damaged.load(Ordering::Acquire)
    }

    /// Notes that a snapshot has the pack.
    pub(in crate::store) fn set_saved(&self) {
        self.is_saved.store(true, Ordering::Release);
    }

    /// Sets the packs that this one replaces.
    pub(in crate::store) fn set_replaces(&self, packs: Vec<PackName>) {
        if let Some(refers) = &mut *self.refers.lock() {
            refers.packs = packs;
        }
    }

    /// Returns what the pack leads to.
    pub(in crate::store) fn references(&self) -> References {
        self.refers.lock().clone().unwrap_or_default()
    }

    /// Returns whether the pack replaces others.
    pub(in crate::store) fn is_replacing(&self) -> bool {
        self.refers.lock().as_ref().is_some_and(|refers| !refers.packs.is_empty())
    }

    /// Sets the pack's length, and whether it still grows. One that does not has all of its entries in the index.
    pub(in crate::store) fn set_size(&self, size: u64, is_open: bool) {
        // Under the lock, so that a pack that is forgotten counts no more.
        let refers = self.refers.lock();
        if refers.is_some() {
            self.totals.resize(self.size.swap(size, Ordering::AcqRel), size);
        }
        drop(refers);
        self.is_open.store(is_open, Ordering::Release);
    }

    /// Takes the pack out of the sums. Returns the separate bodies that no pack names any more.
    fn forget(&self) -> Vec<(u128, u64)> {
        let Some(refers) = self.refers.lock().take() else { return Vec::new() };
        self.totals.resize(self.size(), 0);
        refers.bodies.into_iter().filter(|(id, _)| self.totals.unname(*id)).collect()
    }

    /// Sets the bytes of separate bodies that only dead entries of the pack lead to.
    pub(in crate::store) fn set_dead_bodies(&self, bytes: u64) {
        self.dead_bodies.store(bytes, Ordering::Release);
    }

    /// Returns the length of the pack's entries.
    pub(in crate::store) fn filled(&self) -> u64 {
        self.filled.load(Ordering::Acquire)
    }

    /// Returns the bytes of entries that are of no use, with separate bodies, as far as that is known.
    pub(in crate::store) fn dead(&self) -> u64 {
        let dead = self.filled().saturating_sub(self.live()).saturating_sub(self.tombstone_bytes());
        dead.saturating_add(self.dead_bodies.load(Ordering::Acquire))
    }

    /// Returns the bytes of its tombstones that count. Somebody else's deletion may rest on them.
    pub(in crate::store) fn tombstone_bytes(&self) -> u64 {
        self.tombstone_bytes.load(Ordering::Acquire)
    }

    pub(super) fn gain(&self, place: Place) {
        self.holds_down.fetch_or(place.replaces, Ordering::AcqRel);
        self.greatest_order.fetch_max(place.order, Ordering::AcqRel);
        self.places.fetch_add(1, Ordering::AcqRel);
        if place.is_tombstone {
            self.tombstones.fetch_add(1, Ordering::AcqRel);
            self.tombstone_bytes.fetch_add(u64::from(place.len), Ordering::AcqRel);
        }
        self.live.fetch_add(place.weight(), Ordering::AcqRel);
    }

    pub(super) fn lose(&self, place: Place) {
        let less = |by: u64| move |count: u64| Some(count.saturating_sub(by));
        let _ = self.places.fetch_update(Ordering::AcqRel, Ordering::Acquire, less(1));
        if place.is_tombstone {
            let _ = self.tombstones.fetch_update(Ordering::AcqRel, Ordering::Acquire, less(1));
            let _ = self.tombstone_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, less(u64::from(place.len)));
        }
        let _ = self.live.fetch_update(Ordering::AcqRel, Ordering::Acquire, less(place.weight()));
    }

    /// Returns whether the pack still grows.
    pub(in crate::store) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// Returns the bytes of separate bodies that the pack names.
    pub(in crate::store) fn named(&self) -> u64 {
        self.named.load(Ordering::Acquire)
    }

    /// Returns the pack's length in bytes.
    pub(in crate::store) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Returns the bytes of its responses that count.
    pub(in crate::store) fn live(&self) -> u64 {
        self.live.load(Ordering::Acquire).min(self.size())
    }

    /// Returns about how many bytes a copy takes: what counts, tombstones included, with its part of the footer.
    pub(in crate::store) fn copy_len(&self) -> u64 {
        let (size, filled) = (self.size(), self.filled().max(1));
        let kept = self.live().saturating_add(self.tombstone_bytes()).min(filled);
        u64::try_from(u128::from(size) * u128::from(kept) / u128::from(filled)).unwrap_or(size)
    }

    /// Returns the number of places in it, tombstones included.
    pub(in crate::store) fn places(&self) -> u64 {
        self.places.load(Ordering::Acquire)
    }

    /// Returns the number of its entries that count, without tombstones.
    pub(in crate::store) fn responses(&self) -> u64 {
        self.places().saturating_sub(self.tombstones.load(Ordering::Acquire))
    }

    /// Returns the least order of its entries.
    pub(in crate::store) fn least_order(&self) -> JournalTime {
        self.least_order.load(Ordering::Acquire)
    }

    /// Returns the greatest order of its entries that count, or counted.
    pub(in crate::store) fn greatest_order(&self) -> JournalTime {
        self.greatest_order.load(Ordering::Acquire)
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
    totals: Arc<Totals>,
}

impl Packs {
    pub(super) fn add(&mut self, name: PackName) -> Arc<PackInfo> {
        if let Some(known) = self.named(name) {
            return known;
        }
        // A number has 23 bits in a place. They last for 8 million packs, after which numbers are free again.
        let id = loop {
            self.next = (self.next + 1) & MAX_PACK;
            if !self.by_id.contains_key(&self.next) {
                break self.next;
            }
        };
        let pack = Arc::new(PackInfo::new(id, name, Arc::clone(&self.totals)));
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

    /// Removes a pack. Returns it, and the separate bodies that no other pack names.
    pub(super) fn remove(&mut self, name: PackName) -> Option<(Arc<PackInfo>, Vec<(u128, u64)>)> {
        let id = self.by_name.remove(&name)?;
        let pack = self.by_id.remove(&id)?;
        let bodies = pack.forget();
        Some((pack, bodies))
    }

    pub(super) fn totals(&self) -> &Totals {
        &self.totals
    }

    pub(super) fn bytes(&self) -> u64 {
        let bodies_of = |refers: &References| refers.bodies.capacity() * 2 * size_of::<(u128, u64)>();
        let refers = |pack: &Arc<PackInfo>| pack.refers.lock().as_ref().map_or(0, bodies_of);
        let own = size_of::<PackInfo>() + 2 * size_of::<u128>() + 48;
        self.by_id.values().map(|pack| (own + refers(pack)) as u64).sum()
    }
}
