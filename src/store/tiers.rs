//! Both tiers as one: look-ups and insertions go through here; invalidations and purges through `invalidation`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::header::{HeaderMap, HeaderName};

use super::admission::Verdict;
use super::durable::{Came, Durable, DurableLookup, FoundResponse, Opening};
use super::memory::{Displaced, Insertion, Lookup, Memory};
use super::purge::Purges;
use super::second_use::SecondUse;
use crate::base::{Clock, Saved};
use crate::entry::{BodyObject, Covered, Replaced, StoredApart, StoredHead, StoredResponse, VaryRecord};
use crate::rfc9111::freshness::Freshness;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::storage::StoragePolicy;
use crate::rfc9111::timestamp::Timestamp;

/// The longest that an invalidation waits for a directory.
pub(super) const LOCAL_TIMEOUT: Duration = Duration::from_millis(500);

/// Both tiers.
#[derive(Debug)]
pub struct Store {
    pub(super) memory: Arc<Memory>,
    pub(super) durable: Option<Durable>,
    pub(super) purges: Arc<Purges>,
    pub(super) clock: Clock,
    /// Uses of what is read at hand.
    pub(super) at_hand: SecondUse,
    /// True once a response to QUERY was stored.
    have_queries: AtomicBool,
}

/// A record of a key's variants, and the purge position at the beginning of its look-up.
#[derive(Clone, Debug)]
pub struct KnownRecord {
    /// The record.
    pub record: Arc<VaryRecord>,
    /// See [`Store::position`].
    pub position: u64,
}

/// The tiers that a response may go to, by its rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// To the durable tier too, if it is fresh for long enough.
    Durable,
    /// To memory only.
    MemoryOnly,
    /// To memory. Of a durable tier that all nodes share, another node takes care, which fetched it.
    ByPeer,
}

impl Store {
    /// Puts the tiers together.
    pub fn new(memory: Arc<Memory>, durable: Option<Durable>, purges: Arc<Purges>, clock: Clock) -> Self {
        Self { memory, durable, purges, clock, at_hand: SecondUse::default(), have_queries: AtomicBool::new(false) }
    }

    /// Looks for a response in memory.
    pub fn lookup(&self, key: &CacheKey, request: &HeaderMap) -> Lookup {
        match self.memory.lookup(key, request) {
            Lookup::Found(stored) if self.purges.is_due(&stored.head) => self.compare(stored),
            Lookup::Found(stored) => {
                if stored.head.marks.awaits_uses.load(Ordering::Relaxed) {
                    self.use_again(&stored);
                }
                Lookup::Found(stored)
            }
            found => found,
        }
    }

    /// Looks in memory once more for a request that has looked before. Counts no second use.
    pub fn look_again(&self, key: &CacheKey, request: &HeaderMap) -> Lookup {
        match self.memory.peek(key, request) {
            Lookup::Found(stored) if self.purges.is_due(&stored.head) => self.compare(stored),
            found => found,
        }
    }

    /// Compares a response in memory with the purges since it was last compared.
    fn compare(&self, stored: Arc<StoredResponse>) -> Lookup {
        let position = self.purges.position();
        match self.purges.check(&stored.head) {
            Covered::No => Lookup::Found(stored),
            Covered::Wholly => {
                self.memory.remove_response(&stored);
                Lookup::Nothing
            }
            softly @ Covered::Softly(_) => {
                let mut head = stored.head.clone();
                head.outlives(softly);
                head.position = position;
                let expired = Arc::new(StoredResponse::with_body_of(&stored, head));
                self.memory.replace(&stored, Arc::clone(&expired));
                // The response may have been written after its marks were copied.
                if stored.head.marks.is_durable.load(Ordering::Acquire) {
                    expired.head.marks.is_durable.store(true, Ordering::Release);
                    expired.head.marks.awaits_uses.store(false, Ordering::Release);
                }
                Lookup::Found(expired)
            }
        }
    }

    /// Returns whether the durable tier may have something for `key`. `false` is certain; it costs no request.
    pub fn may_be_durable(&self, key: &CacheKey) -> bool {
        self.durable.as_ref().is_some_and(|durable| durable.may_hold(key))
    }

    /// Returns the memory tier.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Returns the durable tier, unless it is off.
    pub fn durable(&self) -> Option<&Durable> {
        self.durable.as_ref()
    }

    /// Returns the position of a fetch that begins now. Every later purge covers what it stores.
    pub fn position(&self) -> u64 {
        self.purges.position()
    }

    /// Looks for a response in the durable tier. One past its retention counts as absent.
    pub async fn lookup_durable(
        &self,
        key: &CacheKey,
        request: &HeaderMap,
        policy: Arc<StoragePolicy>,
        known: Option<Arc<VaryRecord>>,
        opening: Opening,
    ) -> DurableLookup {
        let Some(durable) = &self.durable else { return DurableLookup::Nothing };
        match durable.lookup(key, request, policy, known, opening).await {
            DurableLookup::Response(found)
                if found.head.freshness.remaining(self.clock.now()).saturating_add(durable.retain_millis()) < 0 =>
            {
                DurableLookup::Nothing
            }
            found => found,
        }
    }

    /// Looks for a response in the durable tier, if that is possible without waiting. `None` says nothing.
    pub fn look_at_hand(
        &self,
        key: &CacheKey,
        request: &HeaderMap,
        policy: &StoragePolicy,
        known: Option<&VaryRecord>,
    ) -> Option<FoundResponse> {
        let durable = self.durable.as_ref()?;
        let found = durable.look_at_hand(key, request, &policy.lifetimes, known)?;
        let left = found.head.freshness.remaining(self.clock.now()).saturating_add(durable.retain_millis());
        (left >= 0).then_some(found)
    }

    /// Stores a response that was just fetched or freshened: in memory, and in the durable tier if it lasts long enough and
    /// `durability` allows. `known` is a record of the key's variants: a response that varies is stored beside them.
    /// `replaced` is the stored response whose place it takes, if that is known. Returns `false` if a purge came since its
    /// fetch began.
    pub fn insert(
        &self,
        stored: &Arc<StoredResponse>,
        durability: Durability,
        known: Option<&KnownRecord>,
        replaced: Option<&Replaced>,
    ) -> bool {
        let key = &stored.head.key;
        self.note_kind(key);
        let in_memory = self.memory.at(&stored.head);
        let replaced = replaced.cloned().or_else(|| in_memory.as_ref().map(Replaced::response));
        let known = || self.known_in_force(key, known);
        let record = match self.insert_memory(stored, &known) {
            Insertion::Refused => return false,
            Insertion::Alone => None,
            Insertion::Under(record) => Some(record),
        };
        let Some(durable) = &self.durable else { return true };
        let durability = match durability {
            // Whoever fetched it has written or deleted what there is to. A deletion from here could come later.
            Durability::ByPeer if !durable.is_local() => return true,
            // A directory is this node's own.
            Durability::ByPeer => Durability::Durable,
            durability => durability,
        };
        let is_put =
            self.is_worth_it(durable, stored, durability) && put(durable, stored, record.clone(), Came::JustNow);
        if let Some(old) = replaced.filter(|old| !is_put && old.is_durable()) {
            // The separate body goes as well, even if the new response shares it.
            let body = old.body_object;
            // Left in the durable tier, the old response would come back with a restart.
            match (stored.head.variant(), &record) {
                (Some(variant), Some(record)) => {
                    durable.delete_variant(key, record.variant_hash(&variant.selector), variant, body);
                }
                _ => durable.delete(key, body),
            }
        }
        true
    }

    /// Returns whether a response is to be written now. Marks one that was not used often enough, to be written later.
    fn is_worth_it(&self, durable: &Durable, stored: &StoredResponse, durability: Durability) -> bool {
        let head = &stored.head;
        let too_large = (stored.len() > durable.max_object_size()).then_some(Saved::Size);
        if let Some(why) = self.why_not_durable(durable, &head.freshness, durability).or(too_large) {
            durable.saved(why);
            return false;
        }
        match durable.admit(head.uses_hash(), durable.requests_for(stored)) {
            Verdict::Admitted => true,
            Verdict::TooFewUses => {
                head.marks.awaits_uses.store(true, Ordering::Release);
                false
            }
            Verdict::NoBudget => false,
        }
    }

    /// Counts a use of a response that is in memory only, and has it written once it was used often enough.
    fn use_again(&self, stored: &Arc<StoredResponse>) {
        let head = &stored.head;
        let Some(durable) = self.durable.as_ref().filter(|durable| durable.has_room(stored.weight())) else { return };
        let verdict = durable.admit(head.uses_hash(), durable.requests_for(stored));
        // A response that the budget refuses is not asked for again.
        let is_settled = verdict != Verdict::TooFewUses && head.marks.awaits_uses.swap(false, Ordering::AcqRel);
        if is_settled && verdict == Verdict::Admitted {
            let record = head.variant().and_then(|_| self.memory.record(&head.key, || ())).map(|(record, ())| record);
            // A variant without a record is of no use: nothing leads to it.
            if head.variant().is_none() || record.is_some() {
                put(durable, stored, record, Came::Before);
            }
        }
    }

    /// Stores a response whose body is written to the durable tier already, and removes what memory has in its place.
    /// Deletes the body if the response may not be stored.
    pub fn insert_apart(&self, stored: StoredApart, known: Option<&KnownRecord>) {
        let Some(durable) = &self.durable else { return };
        let head = &stored.head;
        self.note_kind(&head.key);
        let known = || self.known_in_force(&head.key, known);
        let record = match self.memory.make_way(head, &known, &|| self.may_keep(head)) {
            Insertion::Refused => return durable.delete_body(head.body_id()),
            Insertion::Alone => None,
            Insertion::Under(record) => Some(record),
        };
        durable.put_apart(Arc::new(stored), record);
    }

    /// Notes that a response to QUERY is about to be stored: from then on invalidations of its URL are told to other
    /// processes, and to those that come after this one. Noted before the purges are asked whether one covers it, so that
    /// none is missed: see [`Store::invalidate`].
    fn note_kind(&self, key: &CacheKey) {
        let Some(page) = key.page_hash() else { return };
        self.have_queries.store(true, Ordering::Release);
        if let Some(durable) = &self.durable {
            durable.note_query_of(page);
        }
    }

    /// Returns whether a response to QUERY may be stored, for whatever URL.
    pub fn may_hold_queries(&self) -> bool {
        self.have_queries.load(Ordering::Acquire) || self.durable.as_ref().is_some_and(Durable::may_hold_queries)
    }

    /// Returns whether a response that was just received may go to the durable tier, and lasts long enough for it.
    pub fn is_for_durable(&self, freshness: &Freshness, durability: Durability) -> bool {
        self.durable.as_ref().is_some_and(|durable| self.why_not_durable(durable, freshness, durability).is_none())
    }

    fn why_not_durable(&self, durable: &Durable, freshness: &Freshness, durability: Durability) -> Option<Saved> {
        let least = durable.min_lifetime_millis();
        if durability == Durability::MemoryOnly {
            return Some(Saved::Rule);
        }
        (least > 0 && freshness.remaining(self.clock.now()) < least).then_some(Saved::MinLifetime)
    }

    /// Returns the reason why a response in memory that the durable tier does not have is not written, in words.
    pub fn why_not_written(&self, head: &StoredHead, len: u64, durability: Durability) -> Option<String> {
        let durable = self.durable.as_ref()?;
        let too_large = || (len > durable.max_object_size()).then_some(Saved::Size);
        let lifetime = Duration::from_millis(u64::try_from(head.freshness.lifetime).unwrap_or(0));
        let least = Duration::from_millis(u64::try_from(durable.min_lifetime_millis()).unwrap_or(0));
        Some(match self.why_not_durable(durable, &head.freshness, durability).or_else(too_large) {
            Some(Saved::Rule) => "its rule says durable = false".to_owned(),
            Some(Saved::MinLifetime) if lifetime < least => {
                format!("its lifetime of {lifetime:?} is below durable.min_lifetime, {least:?}")
            }
            Some(Saved::MinLifetime) => {
                format!("it is fresh for less than durable.min_lifetime, {least:?}, from now on")
            }
            Some(Saved::Size) => {
                format!("it is larger than the {} bytes that the tier keeps of a response", durable.max_object_size())
            }
            Some(Saved::Index | Saved::AfterHits | Saved::Budget | Saved::Breaker) | None => {
                let awaits_uses = head.marks.awaits_uses.load(Ordering::Relaxed);
                awaits_uses.then(|| "it was not used often enough yet (durable.after_hits)".to_owned())?
            }
        })
    }

    /// Returns whether the body of a response that only the durable tier takes is worth writing.
    pub fn admits_large(&self, hash: u128) -> bool {
        self.durable.as_ref().is_some_and(|durable| durable.admit(hash, 2) == Verdict::Admitted)
    }

    /// Gives a body of `len` bytes an object of its own, if it needs one and has none yet.
    pub fn name_body(&self, head: &mut StoredHead, len: u64) {
        let is_separate = self.durable.as_ref().is_some_and(|durable| durable.is_separate(len));
        if is_separate && head.body_object.is_none() {
            head.body_object = Some(BodyObject::new(&head.key));
        }
    }

    /// Returns the largest body that the durable tier takes as it arrives; 0 without the tier.
    pub fn max_durable_size(&self) -> u64 {
        self.durable.as_ref().map_or(0, Durable::max_object_size)
    }

    /// Returns the known or waiting record of a key's variants, unless a purge came since. Called under the key's lock, so
    /// that no record from before a purge comes back after it.
    pub(super) fn known_in_force(&self, key: &CacheKey, known: Option<&KnownRecord>) -> Option<Arc<VaryRecord>> {
        let is_in_force = |position| !self.purges.covers_fetch(key.hash(), position);
        let waiting = || self.durable.as_ref()?.waiting_record(key);
        match known.filter(|known| known.record.key == *key) {
            Some(known) if is_in_force(known.position) => Some(Arc::clone(&known.record)),
            Some(_) | None => waiting().filter(|(_, position)| is_in_force(*position)).map(|(record, _)| record),
        }
    }

    /// Puts a response of the durable tier into memory, under the record that led to it.
    pub fn promote(&self, stored: &Arc<StoredResponse>, record: Option<VaryRecord>) {
        if let Some(record) = record {
            self.adopt(record, stored.head.position);
        }
        self.insert_memory(stored, &|| None);
    }

    /// Puts a response that was read at hand into memory, as [`Store::promote`] does. While memory is full, only on its second
    /// use within a short while: to read it again costs less than what would have to go for it.
    pub fn promote_at_hand(&self, stored: &Arc<StoredResponse>, record: Option<VaryRecord>) {
        let is_second = self.at_hand.note(stored.head.uses_hash());
        if is_second || self.memory.has_room() {
            self.promote(stored, record);
        }
    }

    /// Takes over a record that a look-up in the durable tier found. The look-up began at `position`.
    pub fn adopt(&self, record: VaryRecord, position: u64) {
        let hash = record.key.hash();
        self.memory.adopt(record, self.clock.now(), &|| !self.purges.covers_fetch(hash, position));
    }

    /// Inserts a response into memory unless a purge covers it. A purge gets its position before it removes: one that is not
    /// seen here removes the response afterwards.
    fn insert_memory(&self, stored: &Arc<StoredResponse>, known: &dyn Fn() -> Option<Arc<VaryRecord>>) -> Insertion {
        self.memory.insert(stored, known, &|| self.may_keep(&stored.head))
    }

    fn may_keep(&self, head: &StoredHead) -> bool {
        !self.is_covered(head) && self.memory.displaced(head).is_none_or(|old| self.gives_way(&old, head))
    }

    /// Returns the record of the key's variants that memory has.
    pub fn known(&self, key: &CacheKey) -> Option<KnownRecord> {
        let (record, position) = self.memory.record(key, || self.purges.position())?;
        Some(KnownRecord { record, position })
    }

    /// Returns the newest set of fields that select among the responses for `key`, if any that varies may still be fresh.
    pub fn names_in_force(
        &self,
        key: &CacheKey,
        known: Option<&KnownRecord>,
        now: Timestamp,
    ) -> Option<Vec<HeaderName>> {
        let in_memory = self.memory.names_in_force(key, now);
        in_memory
            .or_else(|| self.known_in_force(key, known).filter(|_| !self.memory.has_record(key))?.sets.first().cloned())
    }

    /// Returns whether `old` gives way to `new`.
    fn gives_way(&self, old: &Displaced, new: &StoredHead) -> bool {
        let now = self.clock.now();
        match old {
            Displaced::Response(old) => !old.head.outranks(new, now),
            Displaced::Variants(newest) => *newest <= new.response_time() || *newest > now,
        }
    }
}

/// Queues a response to be written. If the queue is full, marks it to be tried again on its next use.
fn put(durable: &Durable, stored: &Arc<StoredResponse>, record: Option<Arc<VaryRecord>>, came: Came) -> bool {
    let is_put = durable.put(Arc::clone(stored), record, came);
    if !is_put {
        stored.head.marks.awaits_uses.store(true, Ordering::Release);
    }
    is_put
}
