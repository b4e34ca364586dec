//! One entry of a pack: a response, a Vary record, or a tombstone.
//!
//! ```text
//! "LRDE"  version u8 = 1  kind u8  flags u8  zero u8
//! object length u32  group length u32  order u64  variant u128
//! fresh until i64 ms  of use until i64 ms  checksum u64 of all before
//! object  zeros up to a multiple of 16 bytes
//! ```
//!
//! * The object has the encoding of `entry/encoding.rs`, with the full key and checksums of its own.
//! * *Kind* is 0 for a response, 1 for a Vary record, 4 for a tombstone, as in the object.
//! * *Flag* 1: the entry took the place of another. *Variant* is the name of the variant; 0: the entry belongs to the key
//!   itself.
//! * *Group length* is the length of this entry and of those after it that belong to it: a Vary record is followed by the
//!   variant that it was written with, and one read fetches both.
//! * *Order* decides which of several entries for one slot counts: the greatest. It is a journal time, taken when the
//!   response came. A copy keeps it.

use bytes::{BufMut, Bytes};
use xxhash_rust::xxh3::xxh3_64;

use crate::base::wire::{DecodeError, Decoder};
use crate::entry::JournalTime;
use crate::rfc9111::timestamp::Timestamp;

/// Length of an entry's header.
pub(in crate::store) const HEADER: usize = 64;

/// Entries begin at multiples of this many bytes.
pub(in crate::store) const ALIGNMENT: u32 = 16;

const MAGIC: &[u8; 4] = b"LRDE";
const VERSION: u8 = 1;

/// The flag of an entry that took the place of another.
const REPLACES: u8 = 1;

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum EntryKind {
    /// A response, with its body or without it.
    Response,
    /// The record of a key whose responses vary.
    Vary,
    /// A deletion of everything older in its slot.
    Tombstone,
}

impl EntryKind {
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Response => 0,
            Self::Vary => 1,
            Self::Tombstone => 4,
        }
    }

    pub(super) fn from_number(number: u8) -> Result<Self, DecodeError> {
        match number {
            0 => Ok(Self::Response),
            1 => Ok(Self::Vary),
            4 => Ok(Self::Tombstone),
            _ => Err(DecodeError::Malformed),
        }
    }
}

/// The header of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct EntryHeader {
    /// The kind.
    pub kind: EntryKind,
    /// True if the entry took the place of another.
    pub replaces: bool,
    /// The length of the object.
    pub object_len: u32,
    /// The length of this entry and of those that belong to it, padding included.
    pub group_len: u32,
    /// See the file's head.
    pub order: JournalTime,
    /// The name of the variant; 0: none.
    pub variant: u128,
    /// The end of the response's freshness.
    pub fresh_until: Timestamp,
    /// The moment from which the response is of no use, not even for validation.
    pub of_use_until: Timestamp,
}

impl EntryHeader {
    /// Returns the length of the whole entry, padding included.
    pub(in crate::store) fn len(&self) -> u64 {
        padded(HEADER as u64 + u64::from(self.object_len))
    }

    /// Appends the header.
    pub(in crate::store) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.put_slice(MAGIC);
        out.put_u8(VERSION);
        out.put_u8(self.kind.number());
        out.put_u8(if self.replaces { REPLACES } else { 0 });
        out.put_u8(0);
        out.put_u32_le(self.object_len);
        out.put_u32_le(self.group_len);
        out.put_u64_le(self.order);
        out.put_u128_le(self.variant);
        out.put_i64_le(self.fresh_until.as_millis());
        out.put_i64_le(self.of_use_until.as_millis());
        let checksum = xxh3_64(&out[start..]);
        out.put_u64_le(checksum);
    }

    /// Reads the header at the beginning of `bytes`.
    pub(in crate::store) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (header, _) = bytes.split_at_checked(HEADER).ok_or(DecodeError::Truncated)?;
        let mut decoder = Decoder(header);
        if decoder.take(MAGIC.len())? != MAGIC {
            return Err(DecodeError::Foreign);
        }
        let version = decoder.u8()?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let (kind, flags, _zero) = (decoder.u8()?, decoder.u8()?, decoder.u8()?);
        let (object_len, group_len) = (decoder.u32()?, decoder.u32()?);
        let (order, variant) = (decoder.u64()?, decoder.u128()?);
        let (fresh_until, of_use_until) = (decoder.i64()?, decoder.i64()?);
        if decoder.u64()? != xxh3_64(&header[..HEADER - 8]) {
            return Err(DecodeError::Checksum);
        }
        Ok(Self {
            kind: EntryKind::from_number(kind)?,
            replaces: flags & REPLACES != 0,
            object_len,
            group_len,
            order,
            variant,
            fresh_until: Timestamp::from_millis(fresh_until),
            of_use_until: Timestamp::from_millis(of_use_until),
        })
    }
}

/// An entry: its header and its object, whose checksums are not verified.
#[derive(Clone, Debug)]
pub(in crate::store) struct Entry {
    /// The header.
    pub header: EntryHeader,
    /// The object.
    pub object: Bytes,
}

impl Entry {
    /// Takes the entry at the beginning of `bytes`, which may be followed by others. `bytes` then begins with those.
    pub(in crate::store) fn take(bytes: &mut Bytes) -> Result<Self, DecodeError> {
        let header = EntryHeader::decode(bytes)?;
        let end = usize::try_from(header.len()).unwrap_or(usize::MAX);
        if bytes.len() < end {
            return Err(DecodeError::Truncated);
        }
        let object = bytes.slice(HEADER..HEADER + usize::try_from(header.object_len).unwrap_or(0));
        *bytes = bytes.slice(end..);
        Ok(Self { header, object })
    }
}

/// Returns `len` rounded up to the alignment of entries.
pub(super) fn padded(len: u64) -> u64 {
    len.next_multiple_of(u64::from(ALIGNMENT))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::store::pack) fn header() -> EntryHeader {
        EntryHeader {
            kind: EntryKind::Response,
            replaces: true,
            object_len: 5,
            group_len: 80,
            order: 7 << 10 | 3,
            variant: u128::MAX - 1,
            fresh_until: Timestamp::from_millis(-1),
            of_use_until: Timestamp::from_millis(1 << 45),
        }
    }

    #[test]
    fn an_entry_is_read_back_and_leaves_what_follows() {
        let mut out = Vec::new();
        header().encode(&mut out);
        assert_eq!(out.len(), HEADER);
        out.extend_from_slice(b"12345");
        out.resize(80, 0);
        out.extend_from_slice(b"next");
        let mut bytes = Bytes::from(out);
        let entry = Entry::take(&mut bytes).expect("an entry");
        assert_eq!((entry.header, &entry.object[..], &bytes[..]), (header(), &b"12345"[..], &b"next"[..]));
        assert_eq!(entry.header.len(), 80);
    }

    #[test]
    fn a_cut_or_changed_header_does_not_decode() {
        let mut out = Vec::new();
        header().encode(&mut out);
        for len in 0..HEADER {
            assert!(EntryHeader::decode(&out[..len]).is_err());
        }
        for at in 0..HEADER {
            let mut changed = out.clone();
            changed[at] ^= 1;
            assert!(EntryHeader::decode(&changed).is_err(), "{at}");
        }
        out[4] = 2;
        assert_eq!(EntryHeader::decode(&out), Err(DecodeError::Version(2)));
    }
}
