//! Values over both tiers: what the listener `resp` reads and writes.
//!
//! * A value that has expired is not served, to the millisecond, wherever it is.
//! * A value goes to both tiers. One that neither takes is refused, never dropped in silence.
//! * Whoever writes asks the durable tier first, and memory then. Memory takes over what was read from the durable tier only
//!   while that still has it. So what was overwritten or deleted does not come back.
//! * What is made of a value (its expiry, a sum) counts only if nothing else was put in that value's place meanwhile, here or
//!   by another process, and no purge covers it.
//! * Other processes that use the place learn of a change from its entry, and drop what memory has.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderMap;

use super::durable::{Durable, DurableLookup, FoundBody, FoundResponse, Opening};
use super::error::{StoreError, StoreErrorKind};
use super::index::Place;
use super::listing::{Gathering, ValueList, Wanted};
use super::memory::Lookup;
use super::purge::{Purge, PurgeReceipt, PurgeTarget};
use super::tiers::{LOCAL_TIMEOUT, Store};
use crate::entry::{Body, Covered, StoredHead, StoredResponse, ValueKey};
use crate::rfc9111::storage::StoragePolicy;
use crate::rfc9111::timestamp::Timestamp;

/// The longest that reading a value takes whose body is apart, besides a second for each [`LEAST_RATE`] bytes.
const TO_READ: Duration = Duration::from_secs(2);
const LEAST_RATE: u64 = 1 << 20;

/// A value that was found.
#[derive(Clone, Debug)]
pub struct FoundValue {
    stored: Arc<StoredResponse>,
    is_durable: bool,
}

impl FoundValue {
    /// Returns its bytes, which keep the value in memory.
    pub fn bytes(&self) -> Bytes {
        self.stored.body().into_one().unwrap_or_else(|body| body.segments().concat().into())
    }

    /// Returns the number of its bytes.
    pub fn len(&self) -> u64 {
        self.stored.len()
    }

    /// Returns whether the durable tier had it, and not memory.
    pub fn is_durable(&self) -> bool {
        self.is_durable
    }

    /// Returns the moment at which it expires; `None`: never.
    pub fn expires(&self) -> Option<Timestamp> {
        self.stored.head.expires()
    }
}

/// The result of a look-up that does not wait.
#[derive(Clone, Debug)]
pub enum LookedUp {
    /// The value.
    Found(FoundValue),
    /// There is none.
    Nothing,
    /// The durable tier may have one: see [`Store::find_value`].
    Unknown,
}

/// Says that neither tier takes a value. There is none under its key now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueRefused;

impl fmt::Display for ValueRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("neither memory nor the durable tier takes this value")
    }
}

impl Store {
    /// Looks for a value as far as that is possible without waiting: in memory, and in what the page cache has.
    pub fn look_up_value(&self, key: &ValueKey) -> LookedUp {
        let now = self.clock.now();
        match self.lookup(key.key(), &HeaderMap::new()) {
            Lookup::Found(stored) if stored.head.is_live(now) => {
                return LookedUp::Found(FoundValue { stored, is_durable: false });
            }
            Lookup::Found(stored) => {
                // The durable tier has no other: memory would have been told.
                self.memory.remove_response(&stored);
                return LookedUp::Nothing;
            }
            Lookup::OtherVariants(_) | Lookup::Nothing => {}
        }
        let Some(durable) = self.durable.as_ref().filter(|durable| durable.may_hold(key.key())) else {
            return LookedUp::Nothing;
        };
        let place = durable.place_of_value(key.key());
        let policy = StoragePolicy::default();
        match durable.look_at_hand(key.key(), &HeaderMap::new(), &policy.lifetimes, None) {
            Some(FoundResponse { head, body: FoundBody::Whole(body), .. }) => {
                let is_promoted = self.at_hand.note(key.key().hash()) || self.memory.has_room();
                let found = self.take_value(durable, head, body, place, is_promoted);
                found.map_or(LookedUp::Nothing, LookedUp::Found)
            }
            Some(_) | None => LookedUp::Unknown,
        }
    }

    /// Looks for a value wherever it may be. `Unknown`: the durable tier may have one that could not be read in time.
    pub async fn find_value(&self, key: &ValueKey) -> LookedUp {
        match self.look_up_value(key) {
            LookedUp::Unknown => {}
            known => return known,
        }
        let Some(durable) = &self.durable else { return LookedUp::Nothing };
        let place = durable.place_of_value(key.key());
        let found = durable.lookup(key.key(), &HeaderMap::new(), Arc::default(), None, Opening::AtOnce).await;
        let found = match found {
            DurableLookup::Response(found) => found,
            DurableLookup::OtherVariants(_) | DurableLookup::Nothing => return LookedUp::Nothing,
            DurableLookup::Unknown => return LookedUp::Unknown,
        };
        let FoundResponse { head, body, .. } = *found;
        let body = match body {
            FoundBody::Whole(body) => body,
            FoundBody::Streamed(first, mut reader) => {
                let len = first.len() as u64 + reader.left();
                let within = TO_READ + Duration::from_secs(len / LEAST_RATE);
                let mut whole = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
                whole.extend_from_slice(&first);
                let rest = async {
                    while let Some(piece) = reader.next().await? {
                        whole.extend_from_slice(&piece);
                    }
                    Ok::<(), StoreError>(())
                };
                match tokio::time::timeout(within, rest).await {
                    Ok(Ok(())) => Body::from(Bytes::from(whole)),
                    // A body that is gone or can't be believed leaves the index; any other may be there.
                    Ok(Err(error)) if matches!(error.kind(), StoreErrorKind::Corrupt | StoreErrorKind::Absent) => {
                        durable.report_broken_value(key.key(), place, &error);
                        return LookedUp::Nothing;
                    }
                    Ok(Err(_)) | Err(_) => return LookedUp::Unknown,
                }
            }
            FoundBody::Separate(_) => return LookedUp::Unknown,
        };
        self.take_value(durable, head, body, place, true).map_or(LookedUp::Nothing, LookedUp::Found)
    }

    /// Takes a value that was read from the durable tier, at `place` unless it still waits to be written there.
    fn take_value(
        &self,
        durable: &Durable,
        head: StoredHead,
        body: Body,
        place: Option<Place>,
        is_promoted: bool,
    ) -> Option<FoundValue> {
        if !head.is_live(self.clock.now()) {
            if let Some(place) = place {
                durable.bury_value(&head.key, place);
            }
            return None;
        }
        let stored = Arc::new(StoredResponse::new(head, body));
        if let Some(place) = place.filter(|_| is_promoted) {
            let key = &stored.head.key;
            self.memory.promote_value(&stored, &|| durable.is_value_at(key, &place) && !self.is_covered(&stored.head));
        }
        Some(FoundValue { stored, is_durable: true })
    }

    /// Stores a value in place of any other, until `expires`. In force at once; [`Store::values_written`] waits until a
    /// directory has it. Whoever changes a value that was read holds its key's turn meanwhile, and names it as `base`: what
    /// another process has put in its place counts instead.
    pub fn put_value(
        &self,
        key: &ValueKey,
        value: &[u8],
        expires: Option<Timestamp>,
        base: Option<&FoundValue>,
    ) -> Result<(), ValueRefused> {
        self.store_value(key, base, || {
            let head = self.value_head(key, expires, value.len() as u64);
            Arc::new(StoredResponse::with_own_body(head, value.into()))
        })
    }

    fn store_value(
        &self,
        key: &ValueKey,
        base: Option<&FoundValue>,
        make: impl Fn() -> Arc<StoredResponse>,
    ) -> Result<(), ValueRefused> {
        let mut stored = make();
        // A purge that came since it was read covers what is made of it, too.
        if base.is_some_and(|base| self.purges.check(&base.stored.head) != Covered::No) {
            return Ok(());
        }
        let mut order = None;
        if let Some(durable) = &self.durable {
            order = durable.put_value(&stored, base.and_then(|base| base.stored.head.marks.order()));
            // The one before must not come back from there.
            if order.is_none() && !durable.delete_value(key.key()) {
                self.invalidate(key.key());
                stored = make();
            }
        }
        // A reader that learns of a later value from another process removes what memory has, before or after this.
        let is_overtaken = || {
            let known = self.durable.as_ref().zip(order);
            known.is_some_and(|(durable, order)| durable.is_overtaken(key.key(), order))
        };
        let is_in_memory = self.memory.put_value(&stored, &|| !self.is_covered(&stored.head) && !is_overtaken());
        // A purge that covers it by now came after it was stored.
        if order.is_some() || is_in_memory || self.is_covered(&stored.head) { Ok(()) } else { Err(ValueRefused) }
    }

    fn value_head(&self, key: &ValueKey, expires: Option<Timestamp>, len: u64) -> StoredHead {
        // The position before the vector: a purge in between covers it.
        let (position, now) = (self.purges.position(), self.clock.now());
        let mut head = StoredHead::of_value(key, expires, now, position, self.purges.version_vector());
        self.name_body(&mut head, len);
        head
    }

    /// Has a value that was found expire at another moment; `None`: never. Its bytes are shared, not copied.
    pub fn retime_value(
        &self,
        key: &ValueKey,
        found: &FoundValue,
        expires: Option<Timestamp>,
    ) -> Result<(), ValueRefused> {
        self.store_value(key, Some(found), || {
            let mut head = self.value_head(key, expires, found.len());
            head.body_object = found.stored.head.body_object.clone().or(head.body_object);
            Arc::new(StoredResponse::with_body_of(&found.stored, head))
        })
    }

    /// Deletes a value in both tiers. In force at once; [`Store::values_written`] waits until a directory has it.
    pub fn delete_value(&self, key: &ValueKey) {
        if self.durable.as_ref().is_none_or(|durable| durable.delete_value(key.key())) {
            self.memory.remove(key.key().hash(), || ());
        } else {
            self.invalidate(key.key());
        }
    }

    /// Deletes all values of a database, or without one of all. It is a purge: a position, and no search.
    /// [`Store::recorded`] waits until others can read of it.
    pub fn flush_values(&self, database: Option<u8>) -> PurgeReceipt {
        self.purge(Purge::hard(PurgeTarget::Prefix(ValueKey::beginning(database))), None)
    }

    /// Returns whether [`Store::values_written`] would wait.
    pub fn has_unwritten_values(&self) -> bool {
        self.durable.as_ref().is_some_and(|durable| durable.is_local() && durable.queue_depth().0 > 0)
    }

    /// Waits until a directory has the values and deletions that were queued before, so that they hold even if the process is
    /// killed the moment after. Ends at once with a bucket, and after a bounded time without that.
    pub async fn values_written(&self) {
        if let Some(durable) = &self.durable {
            durable.values_written(LOCAL_TIMEOUT).await;
        }
    }

    /// Returns whether a value of `len` bytes is written apart, so that [`Store::values_written`] does not wait for it.
    pub fn is_large_value(&self, len: u64) -> bool {
        self.durable.as_ref().is_some_and(|durable| durable.is_local() && durable.is_separate(len))
    }

    /// Waits for such a value as [`Store::values_written`] does for others.
    pub async fn large_value_written(&self, key: &ValueKey, len: u64) {
        if let Some(durable) = &self.durable {
            durable.large_value_written(key.key(), len, LOCAL_TIMEOUT).await;
        }
    }

    /// Returns whether this process takes another value of `len` bytes into the durable tier's queue at once.
    pub fn has_room_for_value(&self, len: usize) -> bool {
        self.durable.as_ref().is_none_or(|durable| durable.has_room(len + 1024))
    }

    /// Returns whether a purge of more than one URL came since the position.
    pub fn is_flushed_since(&self, position: u64) -> bool {
        self.purges.last_compared() > position
    }

    /// Returns whether either tier may have a value. `false` is certain; it costs no request.
    pub fn may_have_value(&self, key: &ValueKey) -> bool {
        self.memory.holds(key.key().hash()) || self.durable.as_ref().is_some_and(|durable| durable.may_hold(key.key()))
    }

    /// Lists the values of both tiers that `wanted` names, in the order of their hashes, from the hash `from` on. The list
    /// takes at most `most` bytes, and says where it ends if there are more.
    pub async fn list_values(&self, wanted: Wanted, from: u64, most: usize) -> Result<ValueList, StoreError> {
        let position = self.purges.position();
        let gathering = Gathering::new(wanted, from, most);
        let (memory, purges, clock) = (Arc::clone(&self.memory), Arc::clone(&self.purges), self.clock.clone());
        let in_memory = gathering.clone();
        let walk = tokio::task::spawn_blocking(move || {
            let now = clock.now();
            memory.each_value(|stored| {
                let head = &stored.head;
                if head.is_live(now) && purges.covers(head, head.position) == Covered::No {
                    in_memory.add(&head.key, head.expires());
                }
            });
        });
        walk.await.map_err(|_| StoreError::given_up("the listing"))?;
        if let Some(durable) = &self.durable {
            let in_packs = gathering.clone();
            durable.each_value(move |listed| in_packs.add(&listed.key, listed.expires)).await?;
        }
        Ok(gathering.finish(position))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Clock;
    use crate::store::memory::{Config, Memory};
    use crate::store::purge::Purges;

    #[test]
    fn what_is_made_of_a_value_that_was_flushed_meanwhile_is_flushed_too() {
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let purges = Arc::new(Purges::new(clock.clone(), 1));
        let store = Store::new(Arc::new(Memory::new(&Config::default())), None, purges, clock);
        let key = ValueKey::new("", 0, b"k");
        let found = || match store.look_up_value(&key) {
            LookedUp::Found(found) => Some(found),
            LookedUp::Nothing | LookedUp::Unknown => None,
        };
        for is_retimed in [false, true] {
            assert_eq!(store.put_value(&key, b"1", None, None), Ok(()));
            let before = found().expect("it was stored");
            store.flush_values(Some(0));
            let made = if is_retimed {
                store.retime_value(&key, &before, None)
            } else {
                store.put_value(&key, b"2", None, Some(&before))
            };
            assert!(made.is_ok() && found().is_none(), "as if it had been made before the flush");
            assert_eq!(store.put_value(&key, b"3", None, None), Ok(()));
            assert_eq!(found().map(|found| found.bytes()), Some(Bytes::from_static(b"3")));
        }
    }
}
