//! The entries in memory by their hash, and the locks of keys. The only file that names moka.
//!
//! moka is a map that readers look into without a lock. Under [`MemoryPolicy::Lru`] it evicts as well. Under
//! [`MemoryPolicy::TinyLfu`] it keeps what it is given, and [`TinyLfu`] says what leaves.
//!
//! What is kept under a hash changes only in a [`Change`], which holds the key's lock.
//!
//! A value that takes the place of another under its key goes into the entry that is there. moka's insertion costs more than
//! all the rest of storing a small value.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::{Mutex, MutexGuard};

use super::nodes::Ticket;
use super::seed::Seed;
use super::tinylfu::TinyLfu;
use super::{Config, MemoryEntry, MemoryPolicy};
use crate::entry::{StoredResponse, Uses};

/// All entries in memory.
#[derive(Debug)]
pub(super) struct Entries {
    map: Cache<u128, Held, Seed>,
    /// `None`: moka evicts.
    keeper: Option<Keeper>,
    has_capacity: bool,
    capacity: u64,
    /// Bytes under which nothing has to leave soon.
    roomy: u64,
    /// Held while it is decided whether something may be put in for a key and it is, and while a key is removed. Each lock
    /// serves the keys of one remainder. Readers take none.
    locks: [Mutex<()>; LOCKS],
}

/// An entry, and what the account knows it by.
#[derive(Clone, Debug)]
struct Held {
    content: Content,
    ticket: Option<Ticket>,
}

/// The content of an entry.
#[derive(Clone, Debug)]
enum Content {
    /// One that stays as it is.
    Fixed(MemoryEntry),
    /// A value, whose place the next one of its key takes. It is set under the key's lock, and only while the map has the
    /// entry: who got the entry before it was removed sees nothing that came after that.
    Value(Arc<Mutex<Arc<StoredResponse>>>),
}

impl Content {
    fn new(entry: MemoryEntry) -> Self {
        match entry {
            MemoryEntry::Response(stored) if stored.head.key.is_value() => Self::Value(Arc::new(Mutex::new(stored))),
            entry => Self::Fixed(entry),
        }
    }

    /// Returns the entry as it is now.
    #[inline]
    fn into_entry(self) -> MemoryEntry {
        match self {
            Self::Fixed(entry) => entry,
            Self::Value(value) => MemoryEntry::Response(Arc::clone(&value.lock())),
        }
    }

    fn weight(&self) -> u64 {
        match self {
            Self::Fixed(entry) => entry.weight(),
            Self::Value(value) => value.lock().weight() as u64,
        }
    }

    /// Has `entry` take the place of a value. Returns `false`, and changes nothing, if that can't be.
    fn set(&self, entry: &MemoryEntry) -> bool {
        let (Self::Value(value), MemoryEntry::Response(new)) = (self, entry) else { return false };
        let old = std::mem::replace(&mut *value.lock(), Arc::clone(new));
        // Freed without the lock.
        drop(old);
        true
    }
}

/// Says what leaves.
#[derive(Debug)]
struct Keeper {
    /// Locked after a key's lock, and for no longer than the account takes. Readers do not lock it.
    account: Mutex<TinyLfu>,
    /// The account's epoch, for readers, who count uses by it.
    epoch: AtomicU16,
}

/// An entry that has to leave, unless another has come in its place.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) slot: u128,
    /// The number of its key's lock.
    pub(super) lock: u8,
    pub(super) ticket: Ticket,
}

/// Number of locks that keys are spread over.
const LOCKS: usize = 64;

/// Changes what is kept for a key, under the key's lock. When it ends, and the lock is free again, what has to leave for
/// what it put in does so, each under its own key's lock.
#[derive(Debug)]
pub(super) struct Change<'a> {
    entries: &'a Entries,
    lock: u8,
    guard: Option<MutexGuard<'a, ()>>,
    leaving: Vec<Leaving>,
}

impl Entries {
    pub(super) fn new(config: &Config) -> Self {
        let map = Cache::builder().eviction_policy(EvictionPolicy::lru());
        let (map, keeper) = match config.policy {
            MemoryPolicy::TinyLfu => {
                let account = Mutex::new(TinyLfu::new(config.capacity, Seed::random()));
                (map, Some(Keeper { account, epoch: AtomicU16::new(0) }))
            }
            MemoryPolicy::Lru => {
                let weigh = |_: &u128, held: &Held| u32::try_from(held.content.weight()).unwrap_or(u32::MAX);
                (map.max_capacity(config.capacity).weigher(weigh), None)
            }
        };
        Self {
            map: map.build_with_hasher(Seed::random()),
            keeper,
            has_capacity: config.capacity > 0,
            capacity: config.capacity,
            roomy: config.capacity / 8 * 7,
            locks: std::array::from_fn(|_| Mutex::new(())),
        }
    }

    /// Returns what is kept under a hash. Counts no use.
    #[inline]
    pub(super) fn get(&self, slot: u128) -> Option<MemoryEntry> {
        self.map.get(&slot).map(|held| held.content.into_entry())
    }

    /// Looks again for what was not there, once whoever replaces it has done so. Under [`MemoryPolicy::Lru`] nothing is
    /// there for a moment, and a value that is overwritten must not be taken for absent.
    #[inline]
    pub(super) fn get_settled(&self, key: u128) -> Option<MemoryEntry> {
        if self.keeper.is_some() {
            return None;
        }
        let _change = self.change(key);
        self.get(key)
    }

    /// Calls `each` with every entry.
    pub(super) fn each(&self, mut each: impl FnMut(&MemoryEntry)) {
        for (_, held) in &self.map {
            each(&held.content.into_entry());
        }
    }

    /// Returns whether anything is kept under a hash.
    pub(super) fn holds(&self, slot: u128) -> bool {
        self.map.contains_key(&slot)
    }

    /// Counts a use.
    #[inline]
    pub(super) fn count(&self, uses: &Uses) {
        if let Some(keeper) = &self.keeper {
            uses.count(keeper.epoch.load(Ordering::Relaxed));
        }
    }

    /// Begins a change of what is kept for the key with this hash.
    pub(super) fn change(&self, key: u128) -> Change<'_> {
        let lock = u8::try_from(key % LOCKS as u128).unwrap_or(0);
        Change { entries: self, lock, guard: Some(self.locks[usize::from(lock)].lock()), leaving: Vec::new() }
    }

    /// Removes an entry that has to leave, if it is still there.
    fn let_go(&self, leaving: &Leaving) {
        let _lock = self.locks[usize::from(leaving.lock)].lock();
        if self.map.get(&leaving.slot).is_some_and(|held| held.ticket == Some(leaving.ticket)) {
            self.map.remove(&leaving.slot);
        }
    }

    /// Returns whether nothing has to leave for a small entry.
    pub(super) fn has_room(&self) -> bool {
        let bytes =
            self.keeper.as_ref().map_or_else(|| self.map.weighted_size(), |keeper| keeper.account.lock().usage().1);
        bytes < self.roomy
    }

    /// Returns the number of entries, and their bytes.
    pub(super) fn usage(&self) -> (u64, u64) {
        match &self.keeper {
            Some(keeper) => keeper.account.lock().usage(),
            None => {
                self.map.run_pending_tasks();
                (self.map.entry_count(), self.map.weighted_size())
            }
        }
    }
}

impl Change<'_> {
    /// Puts an entry in, in place of what is kept under the hash. Without capacity keeps nothing. Returns whether memory has
    /// it when the change ends.
    pub(super) fn put(&mut self, slot: u128, entry: MemoryEntry) -> bool {
        let Entries { map, keeper, has_capacity, capacity, .. } = self.entries;
        if !has_capacity {
            return false;
        }
        let Some(keeper) = keeper else {
            let fits = entry.weight() <= *capacity;
            // moka weighs an entry once, when it is put in. Where a lighter one took its place and was removed before moka
            // looked at either, moka (0.12.16) would count the difference for ever.
            map.invalidate(&slot);
            map.insert(slot, Held { content: Content::Fixed(entry), ticket: None });
            return fits;
        };
        let old = map.get(&slot);
        let known = old.as_ref().and_then(|old| old.ticket);
        let ticket = {
            let mut account = keeper.account.lock();
            let ticket = account.put(slot, self.lock, entry.clone(), known, &mut self.leaving);
            keeper.epoch.store(account.epoch(), Ordering::Relaxed);
            ticket
        };
        // An old entry with another ticket has left, or is about to.
        let is_set = || old.is_some_and(|old| old.ticket == ticket && old.content.set(&entry));
        if ticket.is_none() {
            drop(map.remove(&slot));
        } else if !is_set() {
            map.insert(slot, Held { content: Content::new(entry), ticket });
        }
        // It may have to leave at once for what is there.
        ticket.is_some_and(|ticket| self.leaving.iter().all(|leaving| leaving.ticket != ticket))
    }

    /// Removes what is kept under a hash.
    pub(super) fn remove(&mut self, slot: u128) {
        let removed = self.entries.map.remove(&slot);
        if let (Some(keeper), Some(ticket)) = (&self.entries.keeper, removed.and_then(|held| held.ticket)) {
            keeper.account.lock().remove(ticket);
        }
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        // Two keys' locks are never held at once.
        drop(self.guard.take());
        for leaving in &self.leaving {
            self.entries.let_go(leaving);
        }
    }
}

#[cfg(test)]
impl Entries {
    pub(super) fn uses_of_late(&self, uses: &Uses) -> u8 {
        self.keeper.as_ref().map_or(0, |keeper| uses.of_late(keeper.epoch.load(Ordering::Relaxed)))
    }

    /// Returns the place of the value under a hash.
    pub(super) fn place_of_value(&self, slot: u128) -> Option<Arc<Mutex<Arc<StoredResponse>>>> {
        match self.map.get(&slot)?.content {
            Content::Value(value) => Some(value),
            Content::Fixed(_) => None,
        }
    }

    /// Asserts that the account and the map have the same entries.
    pub(super) fn audit(&self) {
        self.map.run_pending_tasks();
        let Some(keeper) = &self.keeper else { return };
        let account = keeper.account.lock();
        let is_known =
            |held: &Held| held.ticket.is_some_and(|ticket| account.knows(ticket, &held.content.clone().into_entry()));
        assert!(self.map.iter().all(|(_, held)| is_known(&held)));
        assert_eq!(account.usage().0, self.map.iter().count() as u64);
    }
}
