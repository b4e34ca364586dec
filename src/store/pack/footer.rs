//! The footer of a pack: what each of its entries is and where, so that nobody has to read them to know.
//!
//! ```text
//! the preamble of every durable object (base/wire.rs), kind 5, and then:
//! the packs that this one replaces (u16 count, each: time u64, node u64)
//! version vectors (u32 count, each as in entry/version_vector.rs)
//! entries (u32 count, in their order in the pack, each:
//!          kind u8, flags u8, offset u64, length u32, group length u32, order u64,
//!          key hash u128, variant u128, key string, number of its version vector u32,
//!          tags (u16 count, strings), fresh until i64 ms, of use until i64 ms,
//!          0u8, or 1u8 and its separate body: id u128, length u64)
//! Each entry begins where the one before it ends, the first at 0, and the footer where the last ends.
//! trailer, the last 32 bytes: "LRDF"  version u8 = 1  three zeros
//!          footer offset u64  footer length u64  checksum u64 of all before in the trailer
//! ```

use std::collections::HashMap;

use bytes::BufMut;
use xxhash_rust::xxh3::xxh3_64;

use super::entry::{ALIGNMENT, EntryKind};
use crate::base::wire::{DecodeError, Decoder, Framed, frame, kind_of, put_count16, put_string, unframe};
use crate::entry::{JournalTime, VersionVector};
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::names::PackName;

const KIND_FOOTER: u8 = 5;
const MAGIC: &[u8; 4] = b"LRDF";
const VERSION: u8 = 1;

/// Length of the trailer, with which a pack ends.
pub(in crate::store) const TRAILER: usize = 32;

const REPLACES: u8 = 1;

/// The description of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) struct FooterEntry {
    /// Its kind.
    pub kind: EntryKind,
    /// See [`super::EntryHeader::replaces`].
    pub replaces: bool,
    /// Its place in the pack.
    pub offset: u64,
    /// Its length, padding included.
    pub len: u32,
    /// See [`super::EntryHeader::group_len`].
    pub group_len: u32,
    /// See [`super::EntryHeader::order`].
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
    /// See [`super::EntryHeader::of_use_until`].
    pub of_use_until: Timestamp,
    /// The id and the length of its separate body.
    pub body: Option<(u128, u64)>,
}

/// The footer of a pack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Footer {
    /// The packs whose entries of use this one has copies of.
    pub replaces: Vec<PackName>,
    /// The entries.
    pub entries: Vec<FooterEntry>,
}

impl Footer {
    /// Encodes the footer and the trailer of a pack whose entries take `offset` bytes.
    pub(in crate::store) fn encode(&self, offset: u64) -> Vec<u8> {
        let mut vectors: HashMap<&VersionVector, u32> = HashMap::new();
        let mut distinct = Vec::new();
        for entry in &self.entries {
            let next = u32::try_from(distinct.len()).unwrap_or(u32::MAX);
            vectors.entry(&entry.vector).or_insert_with(|| {
                distinct.push(&entry.vector);
                next
            });
        }
        let mut out = Vec::with_capacity(64 + self.entries.len() * 160);
        put_count16(&mut out, self.replaces.len());
        for name in &self.replaces {
            out.put_u64_le(name.time);
            out.put_u64_le(name.node);
        }
        out.put_u32_le(u32::try_from(distinct.len()).unwrap_or(u32::MAX));
        for vector in &distinct {
            vector.encode(&mut out);
        }
        out.put_u32_le(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
        for entry in &self.entries {
            encode_entry(entry, vectors.get(&entry.vector).copied().unwrap_or(0), &mut out);
        }
        let mut footer = frame(KIND_FOOTER, &out);
        let len = footer.len() as u64;
        Trailer { offset, len }.encode(&mut footer);
        footer
    }

    /// Decodes a footer, without its trailer.
    pub(in crate::store) fn decode(footer: &[u8]) -> Result<Self, DecodeError> {
        let Framed { kind, head, rest } = unframe(footer)?;
        if kind != KIND_FOOTER || !rest.is_empty() {
            return Err(DecodeError::Malformed);
        }
        let mut head = Decoder(head);
        let mut replaces = Vec::new();
        for _ in 0..head.u16()? {
            replaces.push(PackName { time: head.u64()?, node: head.u64()? });
        }
        let mut vectors = Vec::new();
        for _ in 0..head.u32()? {
            vectors.push(VersionVector::decode(&mut head)?);
        }
        let mut entries = Vec::new();
        for _ in 0..head.u32()? {
            entries.push(decode_entry(&mut head, &vectors)?);
        }
        let footer = Self { replaces, entries };
        if head.0.is_empty() && footer.is_gapless() { Ok(footer) } else { Err(DecodeError::Malformed) }
    }

    /// Returns the length of the entries, which is where the footer begins.
    pub(in crate::store) fn offset(&self) -> u64 {
        self.entries.last().map_or(0, |last| last.offset + u64::from(last.len))
    }

    /// Returns whether each entry begins where the one before it ends, and no group ends past the last.
    fn is_gapless(&self) -> bool {
        let sum = self.entries.iter().try_fold(0_u64, |end, entry| {
            let is_next = entry.offset == end && entry.len > 0 && entry.len.is_multiple_of(ALIGNMENT);
            end.checked_add(u64::from(entry.len)).filter(|_| is_next)
        });
        sum.is_some_and(|sum| self.entries.iter().all(|entry| entry.offset + u64::from(entry.group_len) <= sum))
    }
}

/// Returns whether `bytes` begin as a footer does.
pub(in crate::store) fn is_footer(bytes: &[u8]) -> bool {
    kind_of(bytes) == Some(KIND_FOOTER)
}

fn encode_entry(entry: &FooterEntry, vector: u32, out: &mut Vec<u8>) {
    out.put_u8(entry.kind.number());
    out.put_u8(if entry.replaces { REPLACES } else { 0 });
    out.put_u64_le(entry.offset);
    out.put_u32_le(entry.len);
    out.put_u32_le(entry.group_len);
    out.put_u64_le(entry.order);
    out.put_u128_le(entry.key.hash());
    out.put_u128_le(entry.variant);
    put_string(out, entry.key.as_bytes());
    out.put_u32_le(vector);
    put_count16(out, entry.tags.len());
    for tag in &entry.tags {
        put_string(out, tag.as_bytes());
    }
    out.put_i64_le(entry.fresh_until.as_millis());
    out.put_i64_le(entry.of_use_until.as_millis());
    match entry.body {
        None => out.put_u8(0),
        Some((id, len)) => {
            out.put_u8(1);
            out.put_u128_le(id);
            out.put_u64_le(len);
        }
    }
}

fn decode_entry(head: &mut Decoder<'_>, vectors: &[VersionVector]) -> Result<FooterEntry, DecodeError> {
    let (kind, flags) = (EntryKind::from_number(head.u8()?)?, head.u8()?);
    let (offset, len, group_len, order) = (head.u64()?, head.u32()?, head.u32()?, head.u64()?);
    let (hash, variant) = (head.u128()?, head.u128()?);
    let key = CacheKey::from_bytes(head.string()?).filter(|key| key.hash() == hash).ok_or(DecodeError::Malformed)?;
    let number = head.len32()?;
    let vector = vectors.get(number).ok_or(DecodeError::Malformed)?.clone();
    let tag = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| DecodeError::Malformed);
    let count = head.u16()?;
    let tags = (0..count).map(|_| tag(head.string()?)).collect::<Result<_, _>>()?;
    let (fresh_until, of_use_until) = (Timestamp::from_millis(head.i64()?), Timestamp::from_millis(head.i64()?));
    let body = match head.u8()? {
        0 => None,
        1 => Some((head.u128()?, head.u64()?)),
        _ => return Err(DecodeError::Malformed),
    };
    let replaces = flags & REPLACES != 0;
    Ok(FooterEntry {
        kind,
        replaces,
        offset,
        len,
        group_len,
        order,
        key,
        variant,
        vector,
        tags,
        fresh_until,
        of_use_until,
        body,
    })
}

/// The end of a pack: where its footer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Trailer {
    /// The place of the footer: the length of all entries.
    pub offset: u64,
    /// The length of the footer.
    pub len: u64,
}

impl Trailer {
    fn encode(self, out: &mut Vec<u8>) {
        let start = out.len();
        out.put_slice(MAGIC);
        out.put_u8(VERSION);
        out.put_slice(&[0; 3]);
        out.put_u64_le(self.offset);
        out.put_u64_le(self.len);
        let checksum = xxh3_64(&out[start..]);
        out.put_u64_le(checksum);
    }

    /// Decodes the trailer of a pack of `size` bytes from its last [`TRAILER`] bytes.
    pub(in crate::store) fn decode(bytes: &[u8], size: u64) -> Result<Self, DecodeError> {
        let mut decoder = Decoder(bytes);
        if bytes.len() != TRAILER {
            return Err(DecodeError::Truncated);
        }
        if decoder.take(MAGIC.len())? != MAGIC {
            return Err(DecodeError::Foreign);
        }
        let version = decoder.u8()?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        decoder.take(3)?;
        let (offset, len) = (decoder.u64()?, decoder.u64()?);
        if decoder.u64()? != xxh3_64(&bytes[..TRAILER - 8]) {
            return Err(DecodeError::Checksum);
        }
        let end = offset.checked_add(len).and_then(|end| end.checked_add(TRAILER as u64));
        if end == Some(size) { Ok(Self { offset, len }) } else { Err(DecodeError::Malformed) }
    }
}
