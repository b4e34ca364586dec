//! Makes the content of a pack, and its footer.

use bytes::Bytes;

use super::entry::{Entry, EntryHeader, EntryKind, HEADER, padded};
use super::footer::{Footer, FooterEntry};
use crate::base::wire::{DecodeError, kind_of};
use crate::entry::encoding::{DurableBody, Object, decode, key_of};
use crate::entry::{JournalTime, VersionVector};
use crate::rfc9111::freshness::LifetimePolicy;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::names::PackName;

/// What is to be appended to a pack.
#[derive(Clone, Debug)]
pub(in crate::store) struct NewEntry {
    /// Its kind.
    pub kind: EntryKind,
    /// See [`EntryHeader::replaces`].
    pub replaces: bool,
    /// See [`EntryHeader::order`].
    pub order: JournalTime,
    /// The full key.
    pub key: CacheKey,
    /// The name of the variant; 0: none.
    pub variant: u128,
    /// The purges that were known when its fetch began.
    pub vector: VersionVector,
    /// Its tags.
    pub tags: Vec<String>,
    /// The end of its freshness.
    pub fresh_until: Timestamp,
    /// See [`EntryHeader::of_use_until`].
    pub of_use_until: Timestamp,
    /// The id and the length of its separate body.
    pub body: Option<(u128, u64)>,
    /// The encoded object.
    pub object: Vec<u8>,
}

/// A pack in the making: the footer so far, and the length of its entries.
#[derive(Debug, Default)]
pub(in crate::store) struct PackBuilder {
    footer: Footer,
    len: u64,
}

impl PackBuilder {
    /// Says which packs this one replaces.
    pub(in crate::store) fn set_replaces(&mut self, packs: Vec<PackName>) {
        self.footer.replaces = packs;
    }

    /// Returns the length of the entries.
    pub(in crate::store) fn len(&self) -> u64 {
        self.len
    }

    /// Returns the descriptions of the entries.
    pub(in crate::store) fn entries(&self) -> &[FooterEntry] {
        &self.footer.entries
    }

    /// Appends the bytes of a group of entries to `out`: an entry alone, or a Vary record and the variant it leads to.
    /// The caller has written all bytes before, or will.
    pub(in crate::store) fn push(&mut self, group: Vec<NewEntry>, out: &mut Vec<u8>) {
        let len_of = |entry: &NewEntry| padded((HEADER + entry.object.len()) as u64);
        let mut left: u64 = group.iter().map(len_of).sum();
        for entry in group {
            let len = len_of(&entry);
            let header = EntryHeader {
                kind: entry.kind,
                replaces: entry.replaces,
                object_len: u32::try_from(entry.object.len()).unwrap_or(u32::MAX),
                group_len: u32::try_from(left).unwrap_or(u32::MAX),
                order: entry.order,
                variant: entry.variant,
                fresh_until: entry.fresh_until,
                of_use_until: entry.of_use_until,
            };
            header.encode(out);
            out.extend_from_slice(&entry.object);
            let padding = usize::try_from(len).unwrap_or(0).saturating_sub(HEADER + entry.object.len());
            out.resize(out.len() + padding, 0);
            self.note(&header, entry.key, entry.vector, entry.tags, entry.body);
            left -= len;
        }
    }

    fn note(
        &mut self,
        header: &EntryHeader,
        key: CacheKey,
        vector: VersionVector,
        tags: Vec<String>,
        body: Option<(u128, u64)>,
    ) {
        let len = header.len();
        self.footer.entries.push(FooterEntry {
            kind: header.kind,
            replaces: header.replaces,
            offset: self.len,
            len: u32::try_from(len).unwrap_or(u32::MAX),
            group_len: header.group_len,
            order: header.order,
            key,
            variant: header.variant,
            vector,
            tags,
            fresh_until: header.fresh_until,
            of_use_until: header.of_use_until,
            body,
        });
        self.len += len;
    }

    /// Appends a copy of a group of entries to `out`. Each keeps all that its header says but the length of the group, whose
    /// other entries may be left behind. Verifies all checksums; returns `false`, and appends nothing, if one does not hold.
    pub(in crate::store) fn copy(&mut self, group: &[(FooterEntry, Bytes)], out: &mut Vec<u8>) -> bool {
        if !group.iter().all(|(entry, bytes)| is_sound(entry, bytes.clone())) {
            return false;
        }
        let mut left: u64 = group.iter().map(|(entry, _)| u64::from(entry.len)).sum();
        for (entry, bytes) in group {
            let Ok(header) = EntryHeader::decode(bytes) else { return false };
            let header = EntryHeader { group_len: u32::try_from(left).unwrap_or(u32::MAX), ..header };
            header.encode(out);
            out.extend_from_slice(&bytes[HEADER..]);
            let (key, vector, tags) = (entry.key.clone(), entry.vector.clone(), entry.tags.clone());
            self.note(&header, key, vector, tags, entry.body);
            left -= header.len();
        }
        true
    }

    /// Takes back what was pushed since the pack had `entries` entries: it could not be written.
    pub(in crate::store) fn truncate(&mut self, entries: usize) {
        self.footer.entries.truncate(entries);
        self.len = self.footer.entries.last().map_or(0, |last| last.offset + u64::from(last.len));
    }

    /// Adds the entries behind these, as [`entries_of`] found them.
    pub(in crate::store) fn extend(&mut self, later: Self) {
        self.footer.entries.extend(later.footer.entries);
        self.len = later.len;
    }

    /// Returns the footer and trailer, with which the pack ends.
    pub(in crate::store) fn finish(&self) -> Vec<u8> {
        self.footer.encode(self.len)
    }

    /// Returns the descriptions of all entries.
    pub(in crate::store) fn into_footer(self) -> Footer {
        self.footer
    }
}

/// Describes the entries in `bytes`, which begin at the offset `from` of a pack without a footer, up to the first one that
/// does not hold. Verifies all checksums. The length of the builder is where the sound entries end.
pub(in crate::store) fn entries_of(mut bytes: Bytes, from: u64) -> PackBuilder {
    let mut builder = PackBuilder { footer: Footer::default(), len: from };
    while let Ok(entry) = Entry::take(&mut bytes) {
        let Ok((key, vector, tags, body)) = describe(&entry) else { break };
        builder.note(&entry.header, key, vector, tags, body);
    }
    builder
}

/// Returns whether these are the bytes of an entry, and its checksums hold.
fn is_sound(entry: &FooterEntry, mut bytes: Bytes) -> bool {
    let len = bytes.len();
    let Ok(read) = Entry::take(&mut bytes) else { return false };
    let header = (read.header.kind, read.header.order, read.header.variant, len as u64);
    let expected = (entry.kind, entry.order, entry.variant, u64::from(entry.len));
    header == expected && bytes.is_empty() && describe(&read).is_ok_and(|(key, ..)| key == entry.key)
}

type Description = (CacheKey, VersionVector, Vec<String>, Option<(u128, u64)>);

/// Verifies an entry, and returns what its footer says of it beside the header.
fn describe(entry: &Entry) -> Result<Description, DecodeError> {
    if kind_of(&entry.object) != Some(entry.header.kind.number()) {
        return Err(DecodeError::Malformed);
    }
    let key = key_of(&entry.object)?;
    if entry.header.kind == EntryKind::Tombstone {
        return Ok((key, VersionVector::default(), Vec::new(), None));
    }
    match decode(&entry.object, &key, &LifetimePolicy::default())? {
        Object::Vary(_) => Ok((key, VersionVector::default(), Vec::new(), None)),
        Object::Response { head, body } => {
            let body = match body {
                DurableBody::Inline(_) => None,
                DurableBody::Separate { len, .. } => Some((head.body_id(), len)),
            };
            Ok((key, (*head.version_vector).clone(), head.tags().to_vec(), body))
        }
    }
}
