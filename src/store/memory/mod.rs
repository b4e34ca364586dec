//! The memory tier: complete responses by key and variant, weighed in bytes.
//!
//! Nothing expires here: a stale response still serves validation and stale-if-error, and freshness belongs to the rules.
//! What leaves for others is decided by how it was used of late ([`TinyLfu`](tinylfu::TinyLfu)), or by when it was used last
//! (moka).

mod entries;
mod nodes;
mod seed;
mod sketch;
#[cfg(test)]
mod tests;
mod tinylfu;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use http::header::{HeaderMap, HeaderName};

use self::entries::{Change, Entries, Leaving};
use crate::entry::{StoredHead, StoredResponse, Uses, VaryRecord};
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::timestamp::Timestamp;

/// `[memory]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Capacity in bytes, with keys and fields. 0: nothing is kept in memory.
    pub capacity: u64,
    /// Decides what leaves when memory is full.
    pub policy: MemoryPolicy,
    /// A larger body is not kept in memory.
    pub max_object_size: u64,
    /// The most bytes that all fetches under way hold together before they stop keeping whole bodies.
    pub fill_budget: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { capacity: 256 << 20, policy: MemoryPolicy::TinyLfu, max_object_size: 16 << 20, fill_budget: 256 << 20 }
    }
}

/// Decides what leaves memory when it is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryPolicy {
    /// What was used least of late leaves, and what was just stored stays only if it is used more than that.
    TinyLfu,
    /// What was used longest ago leaves.
    Lru,
}

/// An entry under one hash.
#[derive(Clone, Debug)]
enum MemoryEntry {
    Response(Arc<StoredResponse>),
    /// A record, and the times of the variants that it leads to.
    Vary(Arc<VaryRecord>, Arc<Times>),
}

/// Times of the variants that a record leads to, in milliseconds since the epoch, and the record's uses.
#[derive(Debug, Default)]
struct Times {
    /// Time at which the newest was received.
    newest: AtomicI64,
    /// Time at which the last of those whose own `Vary` says so ceases to be fresh.
    fresh_until: AtomicI64,
    uses: Uses,
}

/// Milliseconds for which a record's fields go on selecting after its variants are stale. While they are validated, an
/// answer that names fewer fields must not take their place.
const GRACE: i64 = 600_000;

/// Freshness in milliseconds that is assumed of the variants of a record that was read without them.
const UNKNOWN_FRESHNESS: i64 = 3_600_000;

/// The content that a new response would displace.
#[derive(Clone, Debug)]
pub enum Displaced {
    /// A response.
    Response(Arc<StoredResponse>),
    /// Variants; the newest was received at this time.
    Variants(Timestamp),
}

/// The result of a look-up in memory.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// A response that the key and `Vary` select.
    Found(Arc<StoredResponse>),
    /// Responses for the key, none for this request. The record names the fields that select.
    OtherVariants(Arc<VaryRecord>),
    /// Nothing for the key.
    Nothing,
}

/// The outcome of an insertion.
#[derive(Clone, Debug)]
pub enum Insertion {
    /// The response was not inserted.
    Refused,
    /// The response was inserted as the only one for its key.
    Alone,
    /// The response was inserted as a variant, and this record leads to it.
    Under(Arc<VaryRecord>),
}

/// The memory tier.
#[derive(Debug)]
pub struct Memory {
    entries: Entries,
    /// See [`Config::max_object_size`].
    max_object_size: u64,
}

impl Memory {
    /// An empty tier.
    pub fn new(config: &Config) -> Self {
        Self { entries: Entries::new(config), max_object_size: config.max_object_size }
    }

    /// Looks for a response to `request`, and counts that as a use of what it finds.
    pub fn lookup(&self, key: &CacheKey, request: &HeaderMap) -> Lookup {
        self.find(key, request, |uses| self.entries.count(uses))
    }

    /// Looks for a response to `request` as [`Memory::lookup`] does, but counts no use.
    pub fn peek(&self, key: &CacheKey, request: &HeaderMap) -> Lookup {
        self.find(key, request, |_| ())
    }

    #[inline]
    fn find(&self, key: &CacheKey, request: &HeaderMap, count: impl Fn(&Uses)) -> Lookup {
        match self.entries.get(key.hash()).or_else(|| self.entries.get_settled(key.hash())) {
            Some(MemoryEntry::Response(stored)) if stored.head.key == *key && stored.head.is_selected_by(request) => {
                count(&stored.head.marks.uses);
                Lookup::Found(stored)
            }
            Some(MemoryEntry::Vary(record, times)) if record.key == *key => {
                count(&times.uses);
                let found = record.candidates(request).find_map(|hash| match self.entries.get(hash) {
                    Some(MemoryEntry::Response(stored))
                        if stored.head.key == *key && stored.head.is_selected_by(request) =>
                    {
                        count(&stored.head.marks.uses);
                        Some(stored)
                    }
                    Some(_) | None => None,
                });
                found.map_or(Lookup::OtherVariants(record), Lookup::Found)
            }
            Some(_) | None => Lookup::Nothing,
        }
    }

    /// Inserts a response, if `may_keep` says so under the key's lock: a removal of the key that follows removes it too. A
    /// response that varies goes under the key's record, which is made if there is none, and returned for the durable
    /// tier. `known` returns a record known from elsewhere; it is asked under the lock.
    pub fn insert(
        &self,
        stored: &Arc<StoredResponse>,
        known: &dyn Fn() -> Option<Arc<VaryRecord>>,
        may_keep: &dyn Fn() -> bool,
    ) -> Insertion {
        self.insert_or_remove(&stored.head, Some(stored), known, may_keep)
    }

    /// Removes what is in the place of a response that is kept elsewhere, under the conditions of [`Memory::insert`].
    pub fn make_way(
        &self,
        head: &StoredHead,
        known: &dyn Fn() -> Option<Arc<VaryRecord>>,
        may_keep: &dyn Fn() -> bool,
    ) -> Insertion {
        self.insert_or_remove(head, None, known, may_keep)
    }

    /// Inserts `stored`, or without it removes what has its place.
    fn insert_or_remove(
        &self,
        head: &StoredHead,
        stored: Option<&Arc<StoredResponse>>,
        known: &dyn Fn() -> Option<Arc<VaryRecord>>,
        may_keep: &dyn Fn() -> bool,
    ) -> Insertion {
        let hash = head.key.hash();
        let put = |change: &mut Change<'_>, slot| match stored {
            Some(stored) => _ = change.put(slot, MemoryEntry::Response(Arc::clone(stored))),
            None => change.remove(slot),
        };
        let Some(variant) = head.variant() else {
            let mut change = self.entries.change(hash);
            if !may_keep() {
                return Insertion::Refused;
            }
            put(&mut change, hash);
            return Insertion::Alone;
        };
        let leading_to = |record: VaryRecord| record.leading_to(variant, head);
        let new_record = || match known() {
            Some(known) if known.key == head.key => (*known).clone(),
            Some(_) | None => VaryRecord::new(head.key.clone(), fastrand::u128(..), variant.names.clone()),
        };
        let Some(record) =
            self.change_record(&head.key, may_keep, |current| leading_to(current.cloned().unwrap_or_else(new_record)))
        else {
            return Insertion::Refused;
        };
        if let Some(MemoryEntry::Vary(_, times)) = self.entries.get(head.key.hash()) {
            times.newest.fetch_max(head.response_time().as_millis(), Ordering::AcqRel);
            if head.states_vary() {
                times.fresh_until.fetch_max(head.freshness.fresh_until().as_millis(), Ordering::AcqRel);
            }
        }
        // If the record was removed since, nothing leads to the variant.
        put(&mut self.entries.change(hash), record.variant_hash(&variant.selector));
        Insertion::Under(record)
    }

    /// Takes over a record of the durable tier, so that both tiers name variants alike, if `may_keep` says so as in
    /// [`Memory::insert`].
    pub fn adopt(&self, record: VaryRecord, now: Timestamp, may_keep: &dyn Fn() -> bool) {
        let key = record.key.clone();
        self.change_record(&key, may_keep, move |current| match current {
            Some(current) => current.clone().merged_with(&record),
            None => record.clone(),
        });
        if let Some(MemoryEntry::Vary(record, times)) = self.entries.get(key.hash())
            && record.key == key
        {
            times.fresh_until.fetch_max(now.as_millis().saturating_add(UNKNOWN_FRESHNESS), Ordering::AcqRel);
        }
    }

    /// Returns the newest set of fields that select among the responses for `key`, if any variant whose `Vary` names fields
    /// is fresh, or was within the last ten minutes.
    pub fn names_in_force(&self, key: &CacheKey, now: Timestamp) -> Option<Vec<HeaderName>> {
        match self.entries.get(key.hash()) {
            Some(MemoryEntry::Vary(record, times))
                if record.key == *key
                    && times.fresh_until.load(Ordering::Acquire).saturating_add(GRACE) > now.as_millis() =>
            {
                record.sets.first().cloned()
            }
            Some(_) | None => None,
        }
    }

    /// Returns whether there is a record of the variants of `key`.
    pub fn has_record(&self, key: &CacheKey) -> bool {
        matches!(self.entries.get(key.hash()), Some(MemoryEntry::Vary(record, _)) if record.key == *key)
    }

    /// Changes the key's record by `change`. An existing record keeps its generation, since variants are kept under it. A
    /// record that does not change takes no lock.
    fn change_record(
        &self,
        key: &CacheKey,
        may_keep: &dyn Fn() -> bool,
        change: impl Fn(Option<&VaryRecord>) -> VaryRecord,
    ) -> Option<Arc<VaryRecord>> {
        if let Some(MemoryEntry::Vary(current, _)) = self.entries.get(key.hash())
            && current.key == *key
            && change(Some(&current)) == *current
        {
            return may_keep().then_some(current);
        }
        let hash = key.hash();
        let mut entry = self.entries.change(hash);
        if !may_keep() {
            return None;
        }
        let (record, times) = match self.entries.get(hash) {
            Some(MemoryEntry::Vary(current, times)) if current.key == *key => (change(Some(&current)), times),
            Some(_) | None => (change(None), Arc::default()),
        };
        let record = Arc::new(record);
        entry.put(hash, MemoryEntry::Vary(Arc::clone(&record), times));
        Some(record)
    }

    /// Returns the response that one with `head` would replace.
    pub fn at(&self, head: &StoredHead) -> Option<Arc<StoredResponse>> {
        let slot = match (head.variant(), self.entries.get(head.key.hash())) {
            (Some(variant), Some(MemoryEntry::Vary(record, _))) => {
                self.entries.get(record.variant_hash(&variant.selector))
            }
            (None, slot) => slot,
            (Some(_), _) => None,
        };
        match slot {
            Some(MemoryEntry::Response(stored)) if stored.head.key == head.key => Some(stored),
            Some(_) | None => None,
        }
    }

    /// Returns what a response with `head` would displace.
    pub fn displaced(&self, head: &StoredHead) -> Option<Displaced> {
        match (self.at(head), self.entries.get(head.key.hash())) {
            (Some(stored), _) => Some(Displaced::Response(stored)),
            (None, Some(MemoryEntry::Response(stored))) if stored.head.key == head.key => {
                Some(Displaced::Response(stored))
            }
            (None, Some(MemoryEntry::Vary(record, times))) if record.key == head.key && head.variant().is_none() => {
                Some(Displaced::Variants(Timestamp::from_millis(times.newest.load(Ordering::Acquire))))
            }
            (None, _) => None,
        }
    }

    /// Removes everything kept for the key with this hash, and calls `note` under the key's lock. Does not search for
    /// variants: without their record nothing leads to them, and they are evicted in their turn. Another key with the same
    /// hash goes with it.
    pub fn remove<T>(&self, hash: u128, note: impl FnOnce() -> T) -> T {
        let mut change = self.entries.change(hash);
        let noted = note();
        change.remove(hash);
        noted
    }

    /// Replaces `old` by `new`, if it is still there. Returns whether it was.
    pub fn replace(&self, old: &Arc<StoredResponse>, new: Arc<StoredResponse>) -> bool {
        let mut change = self.entries.change(old.head.key.hash());
        let slot = self.slot_of(old);
        if let Some(slot) = slot {
            change.put(slot, MemoryEntry::Response(new));
        }
        slot.is_some()
    }

    /// Removes one response, if it is still there. Other variants of its key stay.
    pub fn remove_response(&self, old: &Arc<StoredResponse>) {
        let mut change = self.entries.change(old.head.key.hash());
        if let Some(slot) = self.slot_of(old) {
            change.remove(slot);
        }
    }

    /// Removes the variant `name` of the key with this hash.
    pub fn remove_variant(&self, key: u128, name: u128) {
        self.entries.change(key).remove(name);
    }

    /// Returns the hash that a response is kept under, if it is. The caller holds the key's lock.
    fn slot_of(&self, stored: &Arc<StoredResponse>) -> Option<u128> {
        let hash = stored.head.key.hash();
        let slot = match (stored.head.variant(), self.entries.get(hash)) {
            (Some(variant), Some(MemoryEntry::Vary(record, _))) => record.variant_hash(&variant.selector),
            (Some(_), _) => return None,
            (None, _) => hash,
        };
        matches!(self.entries.get(slot), Some(MemoryEntry::Response(current)) if Arc::ptr_eq(&current, stored))
            .then_some(slot)
    }

    /// Returns whether anything is kept for the key with this hash.
    pub fn holds(&self, hash: u128) -> bool {
        self.entries.holds(hash)
    }

    /// Puts a value in, if `may_keep` says so under the key's lock, and removes any other of its key. Returns whether memory
    /// has it afterwards.
    pub fn put_value(&self, stored: &Arc<StoredResponse>, may_keep: &dyn Fn() -> bool) -> bool {
        let slot = stored.head.key.hash();
        let mut change = self.entries.change(slot);
        if stored.len() <= self.max_object_size && may_keep() {
            return change.put(slot, MemoryEntry::Response(Arc::clone(stored)));
        }
        change.remove(slot);
        false
    }

    /// Puts a value in that was read from the durable tier, if memory has none for its key, and `is_current` says under the
    /// key's lock that the durable tier still has this one.
    pub fn promote_value(&self, stored: &Arc<StoredResponse>, is_current: &dyn Fn() -> bool) {
        let slot = stored.head.key.hash();
        let mut change = self.entries.change(slot);
        if stored.len() <= self.max_object_size && !self.entries.holds(slot) && is_current() {
            change.put(slot, MemoryEntry::Response(Arc::clone(stored)));
        }
    }

    /// Calls `each` with every value. What comes or goes meanwhile may be among them or not.
    pub fn each_value(&self, mut each: impl FnMut(&Arc<StoredResponse>)) {
        self.entries.each(|entry| match entry {
            MemoryEntry::Response(stored) if stored.head.key.is_value() => each(stored),
            MemoryEntry::Response(_) | MemoryEntry::Vary(..) => {}
        });
    }

    /// Returns the record of the key's variants, and what `note` returns under the key's lock.
    pub fn record<T>(&self, key: &CacheKey, note: impl FnOnce() -> T) -> Option<(Arc<VaryRecord>, T)> {
        let _change = self.entries.change(key.hash());
        match self.entries.get(key.hash()) {
            Some(MemoryEntry::Vary(record, _)) if record.key == *key => Some((record, note())),
            Some(_) | None => None,
        }
    }

    /// Returns whether an insertion would probably evict nothing.
    pub fn has_room(&self) -> bool {
        self.entries.has_room()
    }

    /// Returns the number of objects, and their bytes.
    pub fn usage(&self) -> (u64, u64) {
        self.entries.usage()
    }
}

impl MemoryEntry {
    /// Returns the bytes that the entry takes.
    fn weight(&self) -> u64 {
        let weight = match self {
            Self::Response(stored) => stored.weight(),
            Self::Vary(record, _) => {
                512 + record.key.as_bytes().len()
                    + record.sets.iter().map(|set| 24 + set.len() * 48).sum::<usize>()
                    + record.aliases.len() * 32
            }
        };
        weight as u64
    }

    fn uses(&self) -> &Uses {
        match self {
            Self::Response(stored) => &stored.head.marks.uses,
            Self::Vary(_, times) => &times.uses,
        }
    }
}
