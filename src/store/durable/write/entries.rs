//! Turns operations into entries of a pack.

use crate::entry::encoding::{BODY_CHUNK, encode_response, encode_separate, encode_tombstone, encode_vary};
use crate::entry::{JournalTime, StoredHead, VaryRecord, VersionVector};
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::durable::Inner;
use crate::store::pack::{EntryKind, NewEntry};
use crate::store::queue::{Op, Put};

/// Returns about how many bytes an operation takes in a pack, its part of the footer included.
pub(super) fn len_in_pack(op: &Op) -> u64 {
    match op {
        Op::Put { stored, .. } => {
            let head = stored.head();
            let body = match stored {
                Put::Whole(whole) if head.body_object.is_none() => whole.len(),
                Put::Whole(whole) => whole.len() / BODY_CHUNK as u64 * 8,
                Put::Apart(apart) => apart.checksums.len() as u64 * 8,
            };
            // A head is about as large encoded, with its part of the footer, as in memory.
            (head.weight() + head.key.as_bytes().len()) as u64 + body
        }
        Op::Delete(deletion) => TOMBSTONE + 2 * deletion.key.as_bytes().len() as u64,
    }
}

/// The bytes that a tombstone takes besides its key, which the footer has as well.
const TOMBSTONE: u64 = 200;

/// Returns the slot that an operation is about: the hash of its key, and the name of the variant.
pub(super) fn slot_of(op: &Op) -> (u128, u128) {
    let variant = match op {
        Op::Put { stored, record, .. } => name_of(stored.head(), record.as_deref()),
        Op::Delete(deletion) => deletion.name(),
    };
    (op.key().hash(), variant)
}

/// Returns the name of a variant under its record; 0 for a response that does not vary.
fn name_of(head: &StoredHead, record: Option<&VaryRecord>) -> u128 {
    head.variant().zip(record).map_or(0, |(variant, record)| record.variant_hash(&variant.selector))
}

/// Returns a deletion of everything older in a slot.
fn tombstone(key: &CacheKey, variant: u128, order: JournalTime) -> NewEntry {
    NewEntry {
        kind: EntryKind::Tombstone,
        replaces: true,
        order,
        key: key.clone(),
        variant,
        vector: VersionVector::default(),
        tags: Vec::new(),
        fresh_until: Timestamp::default(),
        of_use_until: Timestamp::default(),
        body: None,
        object: encode_tombstone(key),
    }
}

impl Inner {
    /// Returns whether an operation is still to be written: its response is not purged, or took the place of another.
    pub(super) fn is_to_be_written(&self, op: &Op) -> bool {
        match op {
            Op::Put { stored, record, .. } => {
                let head = stored.head();
                self.is_wanted(head) || self.is_taken(&head.key, name_of(head, record.as_deref()))
            }
            Op::Delete(_) => true,
        }
    }

    /// Returns the entries of an operation, which belong together; `None` if there is nothing to write any more.
    pub(super) fn entries_of(&self, op: &Op) -> Option<Vec<NewEntry>> {
        match op {
            Op::Put { stored, record, order } => {
                let head = stored.head();
                let name = name_of(head, record.as_deref());
                if !self.is_wanted(head) {
                    // What it took the place of does not come back: a purge may cover the one and not the other.
                    return self.is_taken(&head.key, name).then(|| vec![tombstone(&head.key, name, *order)]);
                }
                let response = self.response(stored, name, *order);
                let record = record.as_deref().filter(|_| head.variant().is_some());
                let record = record.map(|record| self.record(record, head, &response));
                Some(record.into_iter().chain([response]).collect())
            }
            Op::Delete(deletion) => Some(vec![tombstone(&deletion.key, deletion.name(), deletion.order())]),
        }
    }

    fn response(&self, stored: &Put, variant: u128, order: u64) -> NewEntry {
        let head = stored.head();
        let (object, body) = match stored {
            Put::Whole(whole) => {
                let is_inline = head.body_object.is_none();
                let body = (!is_inline).then(|| (head.body_id(), whole.len()));
                (encode_response(whole, is_inline), body)
            }
            Put::Apart(apart) => {
                (encode_separate(head, apart.len, &apart.checksums), Some((head.body_id(), apart.len)))
            }
        };
        let fresh_until = head.freshness.fresh_until();
        // A value serves nothing once it has expired.
        let retain = if head.key.is_value() { 0 } else { self.config.retain.as_millis() };
        let retain = i64::try_from(retain).unwrap_or(i64::MAX);
        NewEntry {
            kind: EntryKind::Response,
            replaces: self.is_taken(&head.key, variant),
            order,
            key: head.key.clone(),
            variant,
            vector: (*head.version_vector).clone(),
            tags: head.tags().to_vec(),
            fresh_until,
            of_use_until: Timestamp::from_millis(fresh_until.as_millis().saturating_add(retain)),
            body,
            object,
        }
    }

    fn record(&self, record: &VaryRecord, head: &StoredHead, response: &NewEntry) -> NewEntry {
        // It leads to other variants as well, which may be of use for longer: all were written with the record before it.
        let before = self.index.find(self.index.fingerprint(&head.key, 0));
        let until = before.map_or(response.of_use_until, |found| found.pack.of_use_until());
        NewEntry {
            kind: EntryKind::Vary,
            replaces: self.is_taken(&head.key, 0),
            order: response.order,
            key: head.key.clone(),
            variant: 0,
            vector: response.vector.clone(),
            tags: Vec::new(),
            fresh_until: response.fresh_until,
            of_use_until: until.max(response.of_use_until),
            body: None,
            object: encode_vary(record),
        }
    }

    /// Returns whether a slot may have an entry, which the new one takes the place of.
    fn is_taken(&self, key: &CacheKey, variant: u128) -> bool {
        self.index.may_have(self.index.fingerprint(key, variant))
    }
}
