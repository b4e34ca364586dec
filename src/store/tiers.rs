//! Both tiers as one: look-ups, insertions and purges go through here.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName};

use super::admission::Verdict;
use super::backend::BackendError;
use super::durable::{Durable, Found, Opening};
use super::journal::Urgency;
use super::memory::{Displaced, Kept, Lookup, Memory};
use super::purge::{Made, Purge, Purges, Target};
use crate::base::{Clock, Saved};
use crate::entry::{BodyObject, Covered, Replaced, StoredApart, StoredHead, StoredResponse, VaryRecord};
use crate::rfc9111::freshness::Freshness;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::storage::StoragePolicy;
use crate::rfc9111::timestamp::Timestamp;

/// How long a purge waits to be written before it says that it is not yet.
const PURGE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an invalidation waits for a directory.
const NEAR: Duration = Duration::from_millis(500);

/// Both tiers.
#[derive(Debug)]
pub struct Store {
    memory: Arc<Memory>,
    durable: Option<Durable>,
    purges: Arc<Purges>,
    clock: Clock,
}

/// What is known of a key's variants, from a look that began at a purge position.
#[derive(Clone, Debug)]
pub struct Known {
    /// The record.
    pub record: Arc<VaryRecord>,
    /// See [`Store::position`].
    pub position: u64,
}

/// Whether a response goes to the durable tier as well, as its rule has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// If it is fresh for long enough.
    Durable,
    /// Never.
    MemoryOnly,
}

impl Store {
    /// Puts the tiers together.
    pub fn new(memory: Arc<Memory>, durable: Option<Durable>, purges: Arc<Purges>, clock: Clock) -> Self {
        Self { memory, durable, purges, clock }
    }

    /// What memory has for a request.
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

    /// Compares a response in memory with the purges that came since it was last compared.
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
                // It may have been written since it was copied.
                if stored.head.marks.is_durable.load(Ordering::Acquire) {
                    expired.head.marks.is_durable.store(true, Ordering::Release);
                    expired.head.marks.awaits_uses.store(false, Ordering::Release);
                }
                Lookup::Found(expired)
            }
        }
    }

    /// Purges everything that has one of `tags`, because an unsafe request did. In force at once; ready when
    /// that is written down, or, in a bucket, at once.
    pub fn invalidate_tags(&self, tags: Vec<String>) -> impl Future<Output = ()> + use<'_> {
        let mut last = None;
        for tag in tags {
            last = Some(self.purges.purge(Purge::hard(Target::Tag(tag)), true));
        }
        async move {
            let (Some(durable), Some(last)) = (&self.durable, last) else { return };
            if durable.is_near() {
                durable.hurry(Urgency::Purge);
                let _ = durable.recorded(last.position, NEAR).await;
            } else {
                durable.hurry(Urgency::Invalidation);
            }
        }
    }

    /// Returns whether the durable tier may have something for `key`. `false` is certain; it costs no request.
    pub fn may_be_durable(&self, key: &CacheKey) -> bool {
        self.durable.as_ref().is_some_and(|durable| durable.may_hold(key.hash()))
    }

    /// The memory tier.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The durable tier, unless it is off.
    pub fn durable(&self) -> Option<&Durable> {
        self.durable.as_ref()
    }

    /// The position of a fetch that begins now; what it stores is covered by every later purge.
    pub fn position(&self) -> u64 {
        self.purges.position()
    }

    /// What the durable tier has. An object that is past its retention counts as not there.
    pub async fn lookup_durable(
        &self,
        key: &CacheKey,
        request: &HeaderMap,
        policy: Arc<StoragePolicy>,
        known: Option<Arc<VaryRecord>>,
        opening: Opening,
    ) -> Found {
        let Some(durable) = &self.durable else { return Found::Nothing };
        match durable.lookup(key, request, policy, known, opening).await {
            Found::Response(found)
                if found.head.freshness.remaining(self.clock.now()).saturating_add(durable.retain_millis()) < 0 =>
            {
                Found::Nothing
            }
            found => found,
        }
    }

    /// Keeps a response that was just fetched or freshened, in memory and, where it lasts and
    /// `durability` allows, behind. `known` is what is known of the key's variants: a response that
    /// varies is kept beside them. `replaced` is the stored response that it takes the place of, if
    /// that is known. `false` when a purge came since its fetch began.
    pub fn insert(
        &self,
        stored: &Arc<StoredResponse>,
        durability: Durability,
        known: Option<&Known>,
        replaced: Option<&Replaced>,
    ) -> bool {
        let key = &stored.head.key;
        let in_memory = self.memory.at(&stored.head);
        let replaced = replaced.cloned().or_else(|| in_memory.as_ref().map(Replaced::response));
        let known = || self.known_in_force(key, known);
        let record = match self.insert_memory(stored, &known) {
            Kept::No => return false,
            Kept::Alone => None,
            Kept::Under(record) => Some(record),
        };
        let Some(durable) = &self.durable else { return true };
        let is_put = self.is_worth_it(durable, stored, durability) && put(durable, stored, record.clone());
        if let Some(old) = replaced.filter(|old| !is_put && old.is_durable()) {
            // Its separate body goes as well, which the new response may have, too.
            let body = old.body_object;
            // What the durable tier has is history, and would come back with a restart.
            match (stored.head.variant(), &record) {
                (Some(variant), Some(record)) => {
                    durable.delete_variant(key, record.variant_hash(&variant.selector), variant, body);
                }
                _ => durable.delete(key, body),
            }
        }
        true
    }

    /// Whether a response is to be written now. One that was not used often enough is once it was.
    fn is_worth_it(&self, durable: &Durable, stored: &StoredResponse, durability: Durability) -> bool {
        let head = &stored.head;
        if let Some(why) = self.why_not_durable(durable, &head.freshness, durability) {
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

    /// Counts a use of a response that is in memory only, and has it written if that was the one.
    fn use_again(&self, stored: &Arc<StoredResponse>) {
        let head = &stored.head;
        let Some(durable) = self.durable.as_ref().filter(|durable| durable.has_room(stored.weight())) else { return };
        let verdict = durable.admit(head.uses_hash(), durable.requests_for(stored));
        // Where the budget is spent, it is no more asked for this one.
        let is_settled = verdict != Verdict::TooFewUses && head.marks.awaits_uses.swap(false, Ordering::AcqRel);
        if is_settled && verdict == Verdict::Admitted {
            let record = head.variant().and_then(|_| self.memory.record(&head.key, || ())).map(|(record, ())| record);
            // A variant that no record leads to any more is no use.
            if head.variant().is_none() || record.is_some() {
                put(durable, stored, record);
            }
        }
    }

    /// Keeps a response whose body is in the durable tier already, and nowhere else. What memory has in
    /// its place goes. Where it may not be kept, its body is deleted.
    pub fn insert_apart(&self, stored: StoredApart, known: Option<&Known>) {
        let Some(durable) = &self.durable else { return };
        let head = &stored.head;
        let known = || self.known_in_force(&head.key, known);
        let record = match self.memory.make_way(head, &known, &|| self.may_keep(head)) {
            Kept::No => return durable.forget_body(head.body_id()),
            Kept::Alone => None,
            Kept::Under(record) => Some(record),
        };
        durable.put_apart(Arc::new(stored), record);
    }

    /// Whether a response that was just received lasts long enough for the durable tier, and may go
    /// there.
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

    /// Whether the body of a response that only the durable tier takes is worth writing.
    pub fn admits_large(&self, hash: u128) -> bool {
        self.durable.as_ref().is_some_and(|durable| durable.admit(hash, 2) == Verdict::Admitted)
    }

    /// Names the object of a body of `len` bytes, if it needs one and has none yet.
    pub fn name_body(&self, head: &mut StoredHead, len: u64) {
        let is_separate = self.durable.as_ref().is_some_and(|durable| durable.is_separate(len));
        if is_separate && head.body_object.is_none() {
            head.body_object = Some(BodyObject::new(&head.key));
        }
    }

    /// The largest body that the durable tier takes as it comes in: 0 when there is none.
    pub fn max_durable_size(&self) -> u64 {
        self.durable.as_ref().map_or(0, Durable::max_object_size)
    }

    /// What is known of a key's variants, unless a purge came since. Asked for under the key's lock, so
    /// that no record of before a purge comes back after it.
    fn known_in_force(&self, key: &CacheKey, known: Option<&Known>) -> Option<Arc<VaryRecord>> {
        let is_in_force = |position| !self.purges.covers_fetch(key.hash(), position);
        let waiting = || self.durable.as_ref()?.waiting_record(key);
        match known.filter(|known| known.record.key == *key) {
            Some(known) if is_in_force(known.position) => Some(Arc::clone(&known.record)),
            Some(_) | None => waiting().filter(|(_, position)| is_in_force(*position)).map(|(record, _)| record),
        }
    }

    /// Keeps in memory a response that the durable tier had, under the record that led to it.
    pub fn promote(&self, stored: &Arc<StoredResponse>, record: Option<VaryRecord>) {
        if let Some(record) = record {
            self.adopt(record, stored.head.position);
        }
        self.insert_memory(stored, &|| None);
    }

    /// Takes over a record that a read of the durable tier found which began at `position`.
    pub fn adopt(&self, record: VaryRecord, position: u64) {
        let hash = record.key.hash();
        self.memory.adopt(record, self.clock.now(), &|| !self.purges.covers_fetch(hash, position));
    }

    /// A purge notes its position before it removes, so one that this does not see removes what
    /// is kept here.
    fn insert_memory(&self, stored: &Arc<StoredResponse>, known: &dyn Fn() -> Option<Arc<VaryRecord>>) -> Kept {
        self.memory.insert(stored, known, &|| self.may_keep(&stored.head))
    }

    fn may_keep(&self, head: &StoredHead) -> bool {
        !self.is_covered(head) && self.memory.displaced(head).is_none_or(|old| self.gives_way(&old, head))
    }

    /// Forgets everything stored for `key`; the durable tier follows behind, except for a
    /// directory, where it takes no longer than to say so.
    ///
    /// The durable tier is told first: from then on it has nothing for the key, and whoever looked
    /// there before began before the position that the purge takes.
    pub fn invalidate(&self, key: &CacheKey) {
        self.invalidate_here(key);
    }

    /// The same on behalf of a request that was sent at `position`, whose own response may take the
    /// place of what is forgotten: the position it is stored with, unless somebody else purged the
    /// key meanwhile.
    pub fn invalidate_by(&self, key: &CacheKey, position: u64) -> Option<u64> {
        let made = self.invalidate_here(key);
        made.before.is_none_or(|before| before <= position).then_some(made.position)
    }

    /// Other processes are told if there is, or may be, something that they could have.
    fn invalidate_here(&self, key: &CacheKey) -> Made {
        let hash = key.hash();
        let is_shared = self.durable.as_ref().is_some_and(|durable| self.memory.holds(hash) || durable.may_hold(hash));
        self.discard(key, None);
        let made = self.memory.remove(hash, || self.purges.purge(Purge::hard(Target::Url(hash)), is_shared));
        if let Some(durable) = self.durable.as_ref().filter(|_| is_shared) {
            durable.hurry(Urgency::Invalidation);
        }
        made
    }

    /// Forgets everything stored for `key` in memory; fetches under way store nothing of it.
    pub fn forget(&self, key: &CacheKey) {
        let purge = Purge::hard(Target::Url(key.hash()));
        self.memory.remove(key.hash(), || self.purges.purge(purge, false));
    }

    /// What memory knows of the key's variants.
    pub fn known(&self, key: &CacheKey) -> Option<Known> {
        let (record, position) = self.memory.record(key, || self.purges.position())?;
        Some(Known { record, position })
    }

    /// Purges. In force in this process when it returns; [`Store::recorded`] waits until the others can read
    /// of it. `key` is that of a URL.
    pub fn purge(&self, purge: Purge, key: Option<&CacheKey>) -> Made {
        let made = match (&purge, key) {
            (Purge { target: Target::Url(hash), is_soft: false }, Some(key)) => {
                self.discard(key, None);
                self.memory.remove(*hash, || self.purges.purge(purge.clone(), true))
            }
            _ => self.purges.purge(purge, true),
        };
        if let Some(durable) = &self.durable {
            durable.hurry(Urgency::Purge);
        }
        made
    }

    /// Waits until a purge that was made outlasts this process, and others can read of it.
    pub async fn recorded(&self, made: Made) -> Result<(), BackendError> {
        match &self.durable {
            Some(durable) => durable.recorded(made.position, PURGE_TIMEOUT).await,
            None => Ok(()),
        }
    }

    /// The purges that are known.
    pub fn purges(&self) -> &Purges {
        &self.purges
    }

    /// Forgets a response that has its successor under another key, wherever it is, and with it the
    /// other variants of its own.
    pub fn forget_replaced(&self, old: &Replaced) {
        if old.is_durable() {
            self.discard(&old.key, old.body_object.clone());
        }
        self.memory.remove(old.key.hash(), || ());
    }

    /// Has a response in memory count as stale from now on, and deletes it in the durable tier. `false` when memory
    /// does not have it.
    pub fn outdate(&self, old: &Replaced, known: Option<&Known>) -> bool {
        let Some(stored) = old.response_itself() else { return false };
        let mut head = stored.head.clone();
        head.outlives(Covered::Softly(self.clock.now()));
        head.marks.is_durable.store(false, Ordering::Release);
        head.body_object = None;
        let expired = Arc::new(StoredResponse::with_body_of(&stored, head));
        if !self.memory.replace(&stored, expired) {
            return false;
        }
        match (&old.variant, self.durable.as_ref().filter(|_| old.is_durable())) {
            (Some(variant), Some(durable)) => {
                let record = self.memory.record(&old.key, || ()).map(|(record, ())| record);
                if let Some(record) = record.or_else(|| self.known_in_force(&old.key, known)) {
                    let name = record.variant_hash(&variant.selector);
                    durable.delete_variant(&old.key, name, variant, old.body_object.clone());
                }
            }
            (None, Some(durable)) => durable.delete(&old.key, old.body_object.clone()),
            (_, None) => {}
        }
        true
    }

    /// Forgets one variant, wherever it is; the others for its URL stay. `known` is what is known of them, where
    /// memory has no record.
    pub fn forget_variant(&self, old: &Replaced, known: Option<&Known>) {
        let Some(variant) = &old.variant else { return };
        let record = self.memory.record(&old.key, || ()).map(|(record, ())| record);
        let record = record.or_else(|| self.known_in_force(&old.key, known));
        // Without a record nothing leads to it.
        let Some(record) = record else { return };
        let name = record.variant_hash(&variant.selector);
        if let Some(durable) = self.durable.as_ref().filter(|_| old.is_durable()) {
            durable.delete_variant(&old.key, name, variant, old.body_object.clone());
        }
        self.memory.remove_variant(old.key.hash(), name);
    }

    /// The fields that select among the responses for `key`, where any of those that vary may still be fresh:
    /// the newest set of them.
    pub fn names_in_force(&self, key: &CacheKey, known: Option<&Known>, now: Timestamp) -> Option<Vec<HeaderName>> {
        let in_memory = self.memory.names_in_force(key, now);
        in_memory
            .or_else(|| self.known_in_force(key, known).filter(|_| !self.memory.has_record(key))?.sets.first().cloned())
    }

    /// Whether `old` gives way to `new` in its place.
    fn gives_way(&self, old: &Displaced, new: &StoredHead) -> bool {
        let now = self.clock.now();
        match old {
            Displaced::Response(old) => !old.head.outranks(new, now),
            Displaced::Variants(newest) => *newest <= new.response_time() || *newest > now,
        }
    }

    /// Whether a purge came that covers a response as it is: of its URL, a prefix of it, a tag, or everything.
    pub fn is_covered(&self, head: &StoredHead) -> bool {
        self.purges.covers(head, head.position) != Covered::No
    }

    /// Whether a purge of one of `tags` came since `position`.
    pub fn are_purged(&self, tags: &[String], position: u64) -> bool {
        self.purges.covers_tags(tags, position)
    }

    /// Whether any URL was purged since a fetch that began at `position`.
    pub fn is_any_purged(&self, position: u64) -> bool {
        self.purges.is_any_since(position)
    }

    /// Whether a purge came for the key with this hash since a fetch that began at `position`.
    pub fn is_purged(&self, hash: u128, position: u64) -> bool {
        self.purges.covers_fetch(hash, position)
    }

    /// Has what the durable tier keeps for `key` deleted: it was found expired, or broken.
    ///
    /// `body` is the object of the body that goes with it, where that is known.
    pub fn discard(&self, key: &CacheKey, body: Option<Arc<BodyObject>>) {
        if let Some(durable) = &self.durable {
            durable.delete(key, body);
        }
    }
}

/// Has a response written. What there is no room for in the queue is tried again when it is used again.
fn put(durable: &Durable, stored: &Arc<StoredResponse>, record: Option<Arc<VaryRecord>>) -> bool {
    let is_put = durable.put(Arc::clone(stored), record);
    if !is_put {
        stored.head.marks.awaits_uses.store(true, Ordering::Release);
    }
    is_put
}
