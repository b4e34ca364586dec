//! Invalidates and purges in both tiers, and says what purges cover.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Store;
use super::durable::Durable;
use super::error::StoreError;
use super::journal::Urgency;
use super::purge::{Purge, PurgeReceipt, PurgeStamp, PurgeTarget, Purges};
use super::tiers::{KnownRecord, LOCAL_TIMEOUT};
use crate::entry::{BodyObject, Covered, JournalTime, Replaced, StoredHead, StoredResponse, VersionVector};
use crate::rfc9111::key::CacheKey;

/// The longest that a purge waits to be written before the operator is told that it is not.
const PURGE_TIMEOUT: Duration = Duration::from_secs(10);

impl Store {
    /// Purges everything that has one of `tags`, for an unsafe request. In force at once. The future is ready when a
    /// directory's journal holds it; with a bucket, at once.
    pub fn invalidate_tags(&self, tags: Vec<String>) -> impl Future<Output = ()> + use<'_> {
        let mut last = None;
        for tag in tags {
            last = Some(self.purges.purge(Purge::hard(PurgeTarget::Tag(tag)), true));
        }
        async move {
            let (Some(durable), Some(last)) = (&self.durable, last) else { return };
            if durable.is_local() {
                durable.hurry(Urgency::Awaited);
                let _ = durable.recorded(last.position, LOCAL_TIMEOUT).await;
            } else {
                durable.hurry(Urgency::Invalidation);
            }
        }
    }

    /// Removes everything stored for `key`, with the answers to each QUERY for its URL. The durable tier deletes it in the
    /// background; [`Store::deletions_written`] waits for that, given what this returns.
    ///
    /// The durable tier is told first, and finds nothing from then on. A look-up that found something began before the
    /// position of the purge.
    pub fn invalidate(&self, key: &CacheKey) -> Option<u64> {
        self.invalidate_here(key).1
    }

    /// Removes everything stored for `key` on behalf of a request that was sent at `position`. Returns the position at which
    /// the request's own response may be stored, unless another purge of the key came meanwhile; and what
    /// [`Store::invalidate`] returns.
    pub fn invalidate_by(&self, key: &CacheKey, position: u64) -> (Option<u64>, Option<u64>) {
        let (made, awaited) = self.invalidate_here(key);
        (made.before.is_none_or(|before| before <= position).then_some(made.position), awaited)
    }

    /// Purges a key. Tells other processes if they may have something for it. Returns the number of the purge, too, if
    /// nothing but the journal has it.
    ///
    /// No deletion finds the answers to QUERY by their URL, only the record of the purge. So it is written where there may
    /// be some, and awaited in a directory.
    fn invalidate_here(&self, key: &CacheKey) -> (PurgeReceipt, Option<u64>) {
        let hash = key.hash();
        let tells_all = self.durable.as_ref().is_some_and(Durable::tells_all);
        let may_hold = || self.durable.as_ref().is_some_and(|durable| self.memory.holds(hash) || durable.may_hold(key));
        let has_queries = || self.durable.as_ref().is_some_and(|durable| durable.may_hold_queries_of(hash));
        let purge = |is_shared| self.purges.purge(Purge::hard(PurgeTarget::Url(hash)), is_shared);
        let mut of_queries = has_queries();
        let mut is_shared = tells_all || of_queries || may_hold();
        self.discard(key, None);
        let mut made = self.memory.remove(hash, || purge(is_shared));
        // One that was stored meanwhile was noted before it looked for purges: it has found this one, or is seen here.
        if !of_queries && has_queries() {
            made = PurgeReceipt { before: made.before, ..purge(true) };
            (of_queries, is_shared) = (true, true);
        }
        let Some(durable) = self.durable.as_ref().filter(|_| is_shared) else { return (made, None) };
        let is_awaited = tells_all || (of_queries && durable.is_local());
        durable.hurry(if is_awaited { Urgency::Awaited } else { Urgency::Invalidation });
        (made, is_awaited.then_some(made.position))
    }

    /// Removes everything stored for `key` in memory. Fetches under way store nothing for it.
    pub fn forget(&self, key: &CacheKey) {
        let purge = Purge::hard(PurgeTarget::Url(key.hash()));
        self.memory.remove(key.hash(), || self.purges.purge(purge, false));
    }

    /// Purges. In force in this process when it returns; [`Store::recorded`] waits until other processes can read of it.
    /// `key` is the key of a purged URL.
    pub fn purge(&self, purge: Purge, key: Option<&CacheKey>) -> PurgeReceipt {
        let made = match (&purge, key) {
            (Purge { target: PurgeTarget::Url(hash), is_soft: false }, Some(key)) => {
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

    /// Waits until a purge is in the journal, where other processes read it.
    pub async fn recorded(&self, receipt: PurgeReceipt) -> Result<(), StoreError> {
        let Some(durable) = &self.durable else { return Ok(()) };
        self.deletions_written(None).await;
        durable.recorded(receipt.position, PURGE_TIMEOUT).await
    }

    /// Waits until a directory has the deletions that were asked for before, so that they hold even if the process is killed
    /// the moment after, and its journal the purge with the number `awaited`. With a bucket, or after a bounded time, ends
    /// without that.
    pub async fn deletions_written(&self, awaited: Option<u64>) {
        if let Some(durable) = &self.durable {
            durable.written(awaited, LOCAL_TIMEOUT).await;
        }
    }

    /// Returns the known purges.
    pub fn purges(&self) -> &Purges {
        &self.purges
    }

    /// Removes a response whose successor is stored under another key, in both tiers, with the other variants of its key.
    pub fn forget_replaced(&self, old: &Replaced) {
        if old.is_durable() {
            self.discard(&old.key, old.body_object.clone());
        }
        self.memory.remove(old.key.hash(), || ());
    }

    /// Makes a response in memory stale from now on, and deletes it in the durable tier. Returns `false` if memory does not
    /// have it.
    pub fn outdate(&self, old: &Replaced, known: Option<&KnownRecord>) -> bool {
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

    /// Removes one variant in both tiers; the others for its URL stay. `known` is a record of them, for the case that memory
    /// has none.
    pub fn forget_variant(&self, old: &Replaced, known: Option<&KnownRecord>) {
        let Some(variant) = &old.variant else { return };
        let record = self.memory.record(&old.key, || ()).map(|(record, ())| record);
        let record = record.or_else(|| self.known_in_force(&old.key, known));
        // Without a record nothing leads to the variant.
        let Some(record) = record else { return };
        let name = record.variant_hash(&variant.selector);
        if let Some(durable) = self.durable.as_ref().filter(|_| old.is_durable()) {
            durable.delete_variant(&old.key, name, variant, old.body_object.clone());
        }
        self.memory.remove_variant(old.key.hash(), name);
    }

    /// Returns whether a purge since its fetch covers a response.
    pub fn is_covered(&self, head: &StoredHead) -> bool {
        self.purges.covers(head, head.position) != Covered::No
    }

    /// Returns whether a purge of one of `tags` came since `position`.
    pub fn are_purged(&self, tags: &[String], position: u64) -> bool {
        self.purges.covers_tags(tags, position)
    }

    /// Returns the purges that are known here and cover a response of another process, whose fetch knew those in
    /// `version_vector`.
    pub fn purges_of_foreign(
        &self,
        key: &CacheKey,
        tags: &[String],
        version_vector: &VersionVector,
    ) -> Vec<(PurgeTarget, PurgeStamp)> {
        self.purges.covering_entry(key, tags, version_vector)
    }

    /// Takes over a purge that `node` made at `time`, of which another process tells before the journal does. In force
    /// when it returns.
    pub fn take_over(&self, purge: &Purge, time: JournalTime, node: u64) {
        let learn = || self.purges.learn(purge, time, node);
        match purge {
            Purge { target: PurgeTarget::Url(hash), is_soft: false } => self.memory.remove(*hash, learn),
            _ => learn(),
        };
    }

    /// Returns whether any purge came since a fetch that began at `position`.
    pub fn is_any_purged(&self, position: u64) -> bool {
        self.purges.is_any_since(position)
    }

    /// Returns whether a purge of the URL with this hash came since a fetch that began at `position`.
    pub fn is_purged(&self, hash: u128, position: u64) -> bool {
        self.purges.covers_fetch(hash, position)
    }

    /// Deletes what the durable tier holds for `key`: it was found expired, or broken. `body` is the separate body that goes
    /// with it, where that is known.
    pub fn discard(&self, key: &CacheKey, body: Option<Arc<BodyObject>>) {
        if let Some(durable) = &self.durable {
            durable.delete(key, body);
        }
    }
}
