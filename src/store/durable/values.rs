//! Values in the durable tier. They are written as responses are, but for three things:
//!
//! * A value is written whatever its lifetime and uses: nobody can ask an application for it again.
//! * What was asked for last counts, whatever the clock says: no value outranks a later one.
//! * What is made of a value comes just after it. If another process has put something else in that value's place, or
//!   deleted it, that counts: what is made of what was overwritten does not come back either.
//! * A look-up says which place it read. Memory takes the value over only while the index leads there: another process may
//!   have written a later one meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderMap;
use tokio::sync::oneshot;

use super::write::Work;
use super::{Durable, Inner};
use crate::base::{DurableOp, Lost, Saved};
use crate::entry::{Covered, JournalTime, StoredHead, StoredResponse};
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::index::{PackInfo, Place};
use crate::store::journal::read_footer;
use crate::store::pack::{EntryKind, FooterEntry, entries_of};
use crate::store::queue::{Op, Put, Waiting};

/// The longest that a client waits for a directory to have a small value, while what is written there arrives.
const TO_WRITE: Duration = Duration::from_secs(2);

/// Bytes that are written in a second at least, where a client waits for a large value.
const LEAST_RATE: u64 = 16 << 20;

/// A value that a listing shows.
#[derive(Clone, Debug)]
pub struct ListedValue {
    /// Its key.
    pub key: CacheKey,
    /// The moment at which it expires, as [`StoredHead::expires`] says.
    pub expires: Option<Timestamp>,
}

impl Durable {
    /// Queues a value to be written. `base` is the order of the value that it is made of, if it is made of one. Returns its
    /// order; `None` if the tier does not take it: the queue is full, the budget is spent, or it is too large.
    pub(in crate::store) fn put_value(
        &self,
        stored: &Arc<StoredResponse>,
        base: Option<JournalTime>,
    ) -> Option<JournalTime> {
        let inner = &self.inner;
        if stored.len() > inner.max_object_size() {
            return None;
        }
        if !self.has_room(stored.weight()) {
            inner.report_lost(Lost::QueueFull, &stored.head.key, &"the queue is full");
            return None;
        }
        if !inner.admission.affords(self.requests_for(stored)) {
            inner.metrics.saved(Saved::Budget);
            return None;
        }
        stored.head.marks.is_durable.store(true, Ordering::Release);
        let purges = &inner.purges;
        let order = base.map_or_else(|| purges.take_order(), |base| purges.take_order_after(base));
        stored.head.marks.note_order(order);
        inner.enqueue(Op::Put { stored: Put::Whole(Arc::clone(stored)), record: None, order });
        Some(order)
    }

    /// Returns whether another process has written a value of the key that may count instead of one with this order.
    pub(in crate::store) fn is_overtaken(&self, key: &CacheKey, order: JournalTime) -> bool {
        let index = &self.inner.index;
        index.slot(index.fingerprint(key, 0)).is_some_and(|known| !known.is_before(order))
    }

    /// Queues a value to be deleted, whether or not the tier is known to hold it: another process that uses the place may
    /// have just written it. Returns `false` if the queue is full.
    pub fn delete_value(&self, key: &CacheKey) -> bool {
        if !self.may_hold(key) && !self.inner.journal.has_peers() {
            return true;
        }
        self.delete_named(key, None, None)
    }

    /// Returns the place that holds the value of a key, unless an operation on it is outstanding.
    pub(in crate::store) fn place_of_value(&self, key: &CacheKey) -> Option<Place> {
        let index = &self.inner.index;
        // In this order: what is settled is in the index already.
        let is_settled = !self.inner.queue.is_pending(key.hash());
        index.slot(index.fingerprint(key, 0)).filter(|place| is_settled && !place.is_tombstone)
    }

    /// Returns whether that is still the place, and nothing is outstanding.
    pub(in crate::store) fn is_value_at(&self, key: &CacheKey, place: &Place) -> bool {
        self.place_of_value(key).is_some_and(|current| current.is_same(place))
    }

    /// Takes a value that has expired out of the index, so that nobody reads it again.
    pub(in crate::store) fn bury_value(&self, key: &CacheKey, place: Place) {
        self.inner.index.bury(self.inner.index.fingerprint(key, 0), place);
    }

    /// Waits until a directory has all small values and deletions that were queued before. Tells if that takes too long, or
    /// longer than `least` while writes fail. With a bucket ends at once.
    pub async fn values_written(&self, least: Duration) {
        if !self.is_local() || self.inner.queue.depth().0 == 0 {
            return;
        }
        let (sender, is_written) = oneshot::channel();
        if self.inner.writer.send(Work::Flush(sender)).is_ok() {
            self.wait_for_value(is_written, least, Duration::ZERO).await;
        }
    }

    /// Waits in the same way until a directory has a value of `len` bytes whose body is written apart; longer, the longer it
    /// is.
    pub async fn large_value_written(&self, key: &CacheKey, len: u64, least: Duration) {
        if self.is_local() && self.is_separate(len) {
            let longer = Duration::from_secs(len / LEAST_RATE);
            self.wait_for_value(self.inner.queue.settled(key.hash()), least, longer).await;
        }
    }

    async fn wait_for_value(&self, is_written: impl Future, least: Duration, longer: Duration) {
        let within = longer + if self.inner.writes.is_closed() { TO_WRITE } else { least };
        if tokio::time::timeout(within, is_written).await.is_err() {
            self.inner.report_late(within);
        }
    }

    /// Counts a value whose body can't be read, and takes it out of the index.
    pub(in crate::store) fn report_broken_value(&self, key: &CacheKey, place: Option<Place>, error: &StoreError) {
        self.inner.report_unreadable(&key.to_url(), error);
        if let Some(place) = place {
            self.bury_value(key, place);
        }
    }

    /// Calls `each` with every value that waits to be written, and then with those that packs hold. A value may come twice.
    /// Runs on the tier's own threads, and yields between packs.
    pub async fn each_value<F>(&self, each: F) -> Result<(), StoreError>
    where
        F: FnMut(ListedValue) + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        let listing = self.runtime.spawn(async move { inner.each_value(each).await });
        listing.await.unwrap_or_else(|_| Err(StoreError::given_up("the listing")))
    }
}

impl Inner {
    async fn each_value<F>(self: Arc<Self>, mut each: F) -> Result<(), StoreError>
    where
        F: FnMut(ListedValue) + Send + 'static,
    {
        self.queue.each_value(|head| {
            if let Some(listed) = self.listed_head(head) {
                each(listed);
            }
        });
        if !self.journal.is_loaded() {
            return Ok(());
        }
        let began = self.purges.take_order();
        // A pack may be copied to one that is not among those seen so far: looks again until there is no other.
        let mut seen = std::collections::HashSet::new();
        loop {
            let packs: Vec<_> = self.index.all_packs().into_iter().filter(|pack| seen.insert(pack.name)).collect();
            if packs.is_empty() {
                return Ok(());
            }
            for pack in packs {
                let Some(entries) = self.entries_in(&pack).await? else { continue };
                let this = Arc::clone(&self);
                let walked = tokio::task::spawn_blocking(move || {
                    entries.iter().filter_map(|entry| this.listed(&pack, entry, began)).for_each(&mut each);
                    each
                });
                each = walked.await.map_err(|_| StoreError::given_up("the listing"))?;
            }
        }
    }

    /// Returns what is listed of a value that waits to be written.
    fn listed_head(&self, head: &StoredHead) -> Option<ListedValue> {
        let counts = head.is_live(self.purges.time()) && self.purges.covers(head, head.position) == Covered::No;
        counts.then(|| ListedValue { key: head.key.clone(), expires: head.expires() })
    }

    /// Returns what is listed of an entry, if it is a value that counts, or did when the listing began: what takes its place
    /// meanwhile may be where the listing has been.
    fn listed(&self, pack: &PackInfo, entry: &FooterEntry, began: JournalTime) -> Option<ListedValue> {
        if entry.kind != EntryKind::Response || !entry.key.is_value() || entry.fresh_until <= self.purges.time() {
            return None;
        }
        match self.queue.look(&entry.key, &HeaderMap::new()) {
            Waiting::Nothing => {}
            Waiting::Found(put, _) => return self.listed_head(put.head()),
            Waiting::Other(_) => return None,
        }
        let place = self.index.slot(self.index.fingerprint(&entry.key, 0)).filter(|place| !place.is_tombstone)?;
        if place.pack != pack.id || place.offset != entry.offset {
            let is_new = !place.is_before(began);
            return is_new.then(|| ListedValue { key: entry.key.clone(), expires: None });
        }
        let covered = self.purges.covers_entry(&entry.key, &entry.tags, &entry.vector);
        let expires = (entry.fresh_until != Timestamp::from_millis(i64::MAX)).then_some(entry.fresh_until);
        (covered == Covered::No).then(|| ListedValue { key: entry.key.clone(), expires })
    }

    /// Returns what the footer of a pack says, or would; `None` if the pack is gone, or can't be read.
    pub(super) async fn entries_in(&self, pack: &PackInfo) -> Result<Option<Vec<FooterEntry>>, StoreError> {
        let entries = if pack.is_open() {
            let whole = self.place.get(&self.names.open_pack(pack.name), u64::MAX).await;
            match whole {
                // It may have been completed meanwhile.
                Err(error) if error.kind() == StoreErrorKind::Absent => self.footer_of(pack).await,
                whole => whole.map(|whole: Bytes| entries_of(whole, 0).into_footer().entries),
            }
        } else {
            self.footer_of(pack).await
        };
        match entries {
            Ok(entries) => Ok(Some(entries)),
            Err(error) if matches!(error.kind(), StoreErrorKind::Absent | StoreErrorKind::Corrupt) => Ok(None),
            Err(error) => {
                self.report_error(DurableOp::Get, &error);
                Err(error)
            }
        }
    }

    async fn footer_of(&self, pack: &PackInfo) -> Result<Vec<FooterEntry>, StoreError> {
        read_footer(&*self.place, &self.names.pack(pack.name), pack.size()).await.map(|footer| footer.entries)
    }
}
