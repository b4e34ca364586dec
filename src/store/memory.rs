//! The memory tier: complete responses by key and variant, weighed in bytes, evicted least recently used first. The only
//! file that names moka.
//!
//! Nothing expires here: a stale response still serves validation and stale-if-error, and freshness belongs to the rules.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use http::header::{HeaderMap, HeaderName};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::{Mutex, MutexGuard};

use crate::entry::{StoredHead, StoredResponse, VaryRecord};
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::timestamp::Timestamp;

/// `[memory]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Capacity in bytes, with keys and fields. 0: nothing is kept in memory.
    pub capacity: u64,
    /// A larger body is not kept in memory.
    pub max_object_size: u64,
    /// The most bytes that all fetches under way hold together before they stop keeping whole bodies.
    pub fill_budget: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { capacity: 256 << 20, max_object_size: 16 << 20, fill_budget: 256 << 20 }
    }
}

/// An entry under one hash.
#[derive(Clone, Debug)]
enum MemoryEntry {
    Response(Arc<StoredResponse>),
    /// A record, and the times of the variants that it leads to.
    Vary(Arc<VaryRecord>, Arc<Times>),
}

/// Times of the variants that a record leads to, in milliseconds since the epoch.
#[derive(Debug, Default)]
struct Times {
    /// Time at which the newest was received.
    newest: AtomicI64,
    /// Time at which the last of those whose own `Vary` says so ceases to be fresh.
    fresh_until: AtomicI64,
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
    cache: Cache<u128, MemoryEntry, Seed>,
    has_capacity: bool,
    /// Bytes under which nothing has to be evicted soon.
    roomy: u64,
    /// Held while it is decided whether something may be inserted for a key and it is, and while a key is removed. Each
    /// lock serves the keys of one remainder. Readers take none.
    locks: [Mutex<()>; LOCKS],
}

/// Number of locks that keys are spread over.
const LOCKS: usize = 64;

impl Memory {
    /// An empty tier.
    pub fn new(config: &Config) -> Self {
        let cache = Cache::builder()
            .max_capacity(config.capacity)
            .weigher(|_: &u128, entry: &MemoryEntry| u32::try_from(entry.weight()).unwrap_or(u32::MAX))
            .eviction_policy(EvictionPolicy::lru())
            .build_with_hasher(Seed::random());
        Self {
            cache,
            has_capacity: config.capacity > 0,
            roomy: config.capacity / 8 * 7,
            locks: std::array::from_fn(|_| Mutex::new(())),
        }
    }

    fn lock(&self, hash: u128) -> MutexGuard<'_, ()> {
        self.locks[usize::try_from(hash % LOCKS as u128).unwrap_or(0)].lock()
    }

    /// Looks for a response to `request`.
    pub fn lookup(&self, key: &CacheKey, request: &HeaderMap) -> Lookup {
        match self.cache.get(&key.hash()) {
            Some(MemoryEntry::Response(stored)) if stored.head.key == *key && stored.head.is_selected_by(request) => {
                Lookup::Found(stored)
            }
            Some(MemoryEntry::Vary(record, _)) if record.key == *key => {
                let found = record.candidates(request).find_map(|hash| match self.cache.get(&hash) {
                    Some(MemoryEntry::Response(stored))
                        if stored.head.key == *key && stored.head.is_selected_by(request) =>
                    {
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
        let put = |hash| match stored {
            Some(stored) => self.put(hash, MemoryEntry::Response(Arc::clone(stored))),
            None => drop(self.cache.remove(&hash)),
        };
        let Some(variant) = head.variant() else {
            let hash = head.key.hash();
            let _lock = self.lock(hash);
            if !may_keep() {
                return Insertion::Refused;
            }
            put(hash);
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
        if let Some(MemoryEntry::Vary(_, times)) = self.cache.get(&head.key.hash()) {
            times.newest.fetch_max(head.response_time().as_millis(), Ordering::AcqRel);
            if head.states_vary() {
                times.fresh_until.fetch_max(head.freshness.fresh_until().as_millis(), Ordering::AcqRel);
            }
        }
        // If the record was removed since, nothing leads to the variant.
        put(record.variant_hash(&variant.selector));
        Insertion::Under(record)
    }

    /// Puts an entry in. Without capacity keeps nothing, not even until moka evicts it.
    fn put(&self, hash: u128, entry: MemoryEntry) {
        if self.has_capacity {
            self.cache.insert(hash, entry);
        }
    }

    /// Takes over a record of the durable tier, so that both tiers name variants alike, if `may_keep` says so as in
    /// [`Memory::insert`].
    pub fn adopt(&self, record: VaryRecord, now: Timestamp, may_keep: &dyn Fn() -> bool) {
        let key = record.key.clone();
        self.change_record(&key, may_keep, move |current| match current {
            Some(current) => current.clone().merged_with(&record),
            None => record.clone(),
        });
        if let Some(MemoryEntry::Vary(record, times)) = self.cache.get(&key.hash())
            && record.key == key
        {
            times.fresh_until.fetch_max(now.as_millis().saturating_add(UNKNOWN_FRESHNESS), Ordering::AcqRel);
        }
    }

    /// Returns the newest set of fields that select among the responses for `key`, if any variant whose `Vary` names fields
    /// is fresh, or was within the last ten minutes.
    pub fn names_in_force(&self, key: &CacheKey, now: Timestamp) -> Option<Vec<HeaderName>> {
        match self.cache.get(&key.hash()) {
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
        matches!(self.cache.get(&key.hash()), Some(MemoryEntry::Vary(record, _)) if record.key == *key)
    }

    /// Changes the key's record by `change`. An existing record keeps its generation, since variants are kept under it. A
    /// record that does not change takes no lock.
    fn change_record(
        &self,
        key: &CacheKey,
        may_keep: &dyn Fn() -> bool,
        change: impl Fn(Option<&VaryRecord>) -> VaryRecord,
    ) -> Option<Arc<VaryRecord>> {
        if let Some(MemoryEntry::Vary(current, _)) = self.cache.get(&key.hash())
            && current.key == *key
            && change(Some(&current)) == *current
        {
            return may_keep().then_some(current);
        }
        let hash = key.hash();
        let _lock = self.lock(hash);
        if !may_keep() {
            return None;
        }
        let (record, times) = match self.cache.get(&hash) {
            Some(MemoryEntry::Vary(current, times)) if current.key == *key => (change(Some(&current)), times),
            Some(_) | None => (change(None), Arc::default()),
        };
        let record = Arc::new(record);
        self.put(hash, MemoryEntry::Vary(Arc::clone(&record), times));
        Some(record)
    }

    /// Returns the response that one with `head` would replace.
    pub fn at(&self, head: &StoredHead) -> Option<Arc<StoredResponse>> {
        let slot = match (head.variant(), self.cache.get(&head.key.hash())) {
            (Some(variant), Some(MemoryEntry::Vary(record, _))) => {
                self.cache.get(&record.variant_hash(&variant.selector))
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
        match (self.at(head), self.cache.get(&head.key.hash())) {
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
        let _lock = self.lock(hash);
        let noted = note();
        self.cache.remove(&hash);
        noted
    }

    /// Replaces `old` by `new`, if it is still there. Returns whether it was.
    pub fn replace(&self, old: &Arc<StoredResponse>, new: Arc<StoredResponse>) -> bool {
        let _lock = self.lock(old.head.key.hash());
        let slot = self.slot_of(old);
        if let Some(slot) = slot {
            self.put(slot, MemoryEntry::Response(new));
        }
        slot.is_some()
    }

    /// Removes one response, if it is still there. Other variants of its key stay.
    pub fn remove_response(&self, old: &Arc<StoredResponse>) {
        let _lock = self.lock(old.head.key.hash());
        if let Some(slot) = self.slot_of(old) {
            self.cache.remove(&slot);
        }
    }

    /// Removes the variant `name` of the key with this hash.
    pub fn remove_variant(&self, key: u128, name: u128) {
        let _lock = self.lock(key);
        self.cache.remove(&name);
    }

    /// Returns the hash that a response is kept under, if it is. The caller holds the key's lock.
    fn slot_of(&self, stored: &Arc<StoredResponse>) -> Option<u128> {
        let hash = stored.head.key.hash();
        let slot = match (stored.head.variant(), self.cache.get(&hash)) {
            (Some(variant), Some(MemoryEntry::Vary(record, _))) => record.variant_hash(&variant.selector),
            (Some(_), _) => return None,
            (None, _) => hash,
        };
        matches!(self.cache.get(&slot), Some(MemoryEntry::Response(current)) if Arc::ptr_eq(&current, stored))
            .then_some(slot)
    }

    /// Returns whether anything is kept for the key with this hash.
    pub fn holds(&self, hash: u128) -> bool {
        self.cache.contains_key(&hash)
    }

    /// Returns the record of the key's variants, and what `note` returns under the key's lock.
    pub fn record<T>(&self, key: &CacheKey, note: impl FnOnce() -> T) -> Option<(Arc<VaryRecord>, T)> {
        let _lock = self.lock(key.hash());
        match self.cache.get(&key.hash()) {
            Some(MemoryEntry::Vary(record, _)) if record.key == *key => Some((record, note())),
            Some(_) | None => None,
        }
    }

    /// Returns whether an insertion would probably evict nothing.
    pub fn has_room(&self) -> bool {
        self.cache.weighted_size() < self.roomy
    }

    /// Returns the number of objects, and their bytes.
    pub fn usage(&self) -> (u64, u64) {
        self.cache.run_pending_tasks();
        (self.cache.entry_count(), self.cache.weighted_size())
    }
}

impl MemoryEntry {
    fn weight(&self) -> usize {
        match self {
            Self::Response(stored) => stored.weight(),
            Self::Vary(record, _) => {
                512 + record.key.as_bytes().len()
                    + record.sets.iter().map(|set| 24 + set.len() * 48).sum::<usize>()
                    + record.aliases.len() * 32
            }
        }
    }
}

/// Hashes keys, which are hashes, with a secret: a client that picks URLs can't choose which slots they fall into.
#[derive(Clone, Debug)]
struct Seed(u64);

impl Seed {
    fn random() -> Self {
        Self(ahash::RandomState::new().hash_one(0_u8) | 1)
    }
}

impl BuildHasher for Seed {
    type Hasher = SeedHasher;

    fn build_hasher(&self) -> SeedHasher {
        SeedHasher { seed: self.0, state: 0 }
    }
}

#[derive(Debug)]
struct SeedHasher {
    seed: u64,
    state: u64,
}

impl Hasher for SeedHasher {
    fn finish(&self) -> u64 {
        self.state
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "folding the halves of a product is the point")]
    fn write_u64(&mut self, word: u64) {
        let product = u128::from(word ^ self.state ^ self.seed) * u128::from(self.seed.rotate_left(32) | 1);
        self.state = (product as u64) ^ ((product >> 64) as u64);
    }

    #[expect(clippy::cast_possible_truncation, reason = "the halves are hashed one after the other")]
    fn write_u128(&mut self, value: u128) {
        self.write_u64(value as u64);
        self.write_u64((value >> 64) as u64);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::header::{HeaderName, HeaderValue};
    use http::{Method, StatusCode};

    use super::*;
    use crate::entry::{Body, NewHead};
    use crate::rfc9111::key::KeyParts;
    use crate::rfc9111::storage::{Exchange, StoragePolicy, storable};
    use crate::rfc9111::tags::TagFields;

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    fn map(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    fn key(path: &str) -> CacheKey {
        CacheKey::new(KeyParts { prefix: "", scheme: "http", authority: "h", path, query: None })
    }

    fn stored(path: &str, vary: &'static str, request: &HeaderMap, body: &'static str) -> Arc<StoredResponse> {
        let fields = map(&[("cache-control", "max-age=60"), ("vary", vary)]);
        let exchange = Exchange {
            method: &Method::GET,
            request,
            status: StatusCode::OK,
            response: &fields,
            request_time: NOW,
            response_time: NOW,
        };
        let storable = storable(&exchange, &StoragePolicy::default()).expect("storable");
        let new = NewHead {
            key: &key(path),
            request,
            status: StatusCode::OK,
            fields: &fields,
            request_time: NOW,
            response_time: NOW,
            position: 0,
            version_vector: Arc::default(),
            tags: Vec::new(),
            hidden: &TagFields::default(),
        };
        let body = Body::from(Bytes::from_static(body.as_bytes()));
        Arc::new(StoredResponse::new(StoredHead::new(&storable, new), body))
    }

    fn body_of(memory: &Memory, path: &str, request: &HeaderMap) -> Option<Bytes> {
        match memory.lookup(&key(path), request) {
            Lookup::Found(stored) => Some(stored.body().segments().concat().into()),
            Lookup::OtherVariants(_) | Lookup::Nothing => None,
        }
    }

    #[test]
    fn variants_live_side_by_side_and_go_together() {
        let memory = Memory::new(&Config::default());
        let (en, de, fr) =
            (map(&[("accept-language", "en")]), map(&[("accept-language", "de")]), map(&[("accept-language", "fr")]));
        memory.insert(&stored("/a", "accept-language", &en, "english"), &|| None, &|| true);
        memory.insert(&stored("/a", "accept-language", &de, "deutsch"), &|| None, &|| true);
        assert_eq!(body_of(&memory, "/a", &en), Some(Bytes::from_static(b"english")));
        assert_eq!(body_of(&memory, "/a", &de), Some(Bytes::from_static(b"deutsch")));
        assert!(matches!(memory.lookup(&key("/a"), &fr), Lookup::OtherVariants(_)));
        assert!(matches!(memory.lookup(&key("/b"), &en), Lookup::Nothing));
        memory.remove(key("/a").hash(), || ());
        memory.insert(&stored("/a", "accept-language", &fr, "français"), &|| None, &|| true);
        assert_eq!(body_of(&memory, "/a", &en), None, "removed variants stay removed under a new record");
        assert_eq!(body_of(&memory, "/a", &fr), Some(Bytes::from_static("français".as_bytes())));
    }

    #[test]
    fn a_changed_vary_keeps_what_it_had() {
        let memory = Memory::new(&Config::default());
        let both = map(&[("a", "1"), ("b", "1")]);
        let other = map(&[("a", "1"), ("b", "2")]);
        memory.insert(&stored("/a", "a, b", &both, "first"), &|| None, &|| true);
        memory.insert(&stored("/a", "b", &other, "second"), &|| None, &|| true);
        assert_eq!(body_of(&memory, "/a", &both), Some(Bytes::from_static(b"first")));
        assert_eq!(body_of(&memory, "/a", &other), Some(Bytes::from_static(b"second")));
    }

    #[test]
    fn two_keys_with_one_hash_do_not_meet() {
        let memory = Memory::new(&Config::default());
        let none = HeaderMap::new();
        let mine = stored("/mine", "", &none, "mine");
        memory.cache.insert(key("/yours").hash(), MemoryEntry::Response(mine));
        assert_eq!(body_of(&memory, "/yours", &none), None);
    }

    #[test]
    fn capacity_counts_fields_and_keys_too() {
        let memory = Memory::new(&Config { capacity: 100_000, ..Config::default() });
        let none = HeaderMap::new();
        for n in 0..1000 {
            memory.insert(&stored(&format!("/{n}"), "", &none, ""), &|| None, &|| true);
        }
        let (objects, bytes) = memory.usage();
        assert!(bytes <= 100_000, "{bytes}");
        assert!((10..1000).contains(&objects), "{objects}");
        assert!(body_of(&memory, "/999", &none).is_some(), "the newest stays");
        assert!(body_of(&memory, "/0", &none).is_none(), "the least recently used goes");
    }

    #[test]
    fn no_capacity_keeps_nothing() {
        let memory = Memory::new(&Config { capacity: 0, ..Config::default() });
        memory.insert(&stored("/a", "", &HeaderMap::new(), "a"), &|| None, &|| true);
        assert_eq!(memory.usage().0, 0);
    }
}
