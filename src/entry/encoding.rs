//! The encoding of the durable tier's responses and Vary records.
//!
//! # Version 1
//!
//! All integers are little-endian. A *string* is a `u32` length and that many bytes.
//!
//! ```text
//! "LRDR"  version u8 = 1  kind u8  zero u16  head length u32  head checksum u64  head  body
//! kind 0, a response: key string, nominated names (u16 count, strings), selector string,
//!         status u16, request time i64 ms, response time i64 ms,
//!         version vector: complete until u64, u16 count, each the node u64 and its last time u64,
//!         tags (u16 count, strings),
//!         parts (u16 count, 0 for a whole; else the length of the whole u64, and for each part
//!         its first position u64 and the one after its last u64),
//!         fields (u32 count, name and value strings), body length u64,
//!         then 0u8 and the checksum u64 of the body that follows the head,
//!         or 1u8, the body object's id u128, its chunk size u32 and a checksum u64 a chunk
//! kind 1, a Vary record: key string, generation u128,
//!         u16 count of sets, each set a u16 count and names,
//!         u16 count of aliases, each an alias u128 and the variant's name u128
//! kinds 2 and 3, the journal's: see `store/journal/record.rs`
//! kind 4, a tombstone: key string
//! kind 5, the footer of a pack: see `store/pack/footer.rs`
//! ```
//!
//! Checksums are XXH3-64. A decoder refuses every other version with [`DecodeError::Version`], which counts as a miss.
//! A change of the format is a new version with golden files of its own in `tests/golden`.

use std::sync::Arc;

use bytes::{BufMut, Bytes};
use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::fields::Fields;
use super::head::{Rare, took};
use super::value;
use super::version_vector::VersionVector;
use super::{BodyObject, Marks, StoredHead, StoredResponse, Variant, VaryRecord};
pub use crate::base::wire::DecodeError;
use crate::base::wire::{Decoder, Framed, frame, put_count16, put_string, unframe};
use crate::rfc9111::freshness::{Freshness, LifetimePolicy};
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::partial::Parts;
use crate::rfc9111::timestamp::Timestamp;
use crate::rfc9111::vary;

pub(super) const KIND_RESPONSE: u8 = 0;
pub(super) const KIND_VARY: u8 = 1;
const KIND_TOMBSTONE: u8 = 4;

/// Size of the chunks of a separate body. Each has a checksum.
pub const BODY_CHUNK: usize = 256 * 1024;

/// A decoded object of the durable tier.
#[derive(Debug)]
pub enum Object {
    /// A response.
    Response {
        /// Its head.
        head: Box<StoredHead>,
        /// Its body, or the description of its separate body.
        body: DurableBody,
    },
    /// The record of a key whose responses vary.
    Vary(VaryRecord),
}

/// The body of a durable response.
#[derive(Clone, Debug)]
pub enum DurableBody {
    /// A body in the same object, after the head. Its checksum is verified.
    Inline(Bytes),
    /// A separate object, which [`StoredHead::body_object`] names.
    Separate {
        /// Its length in bytes.
        len: u64,
        /// The checksum of each [`BODY_CHUNK`] of it, in order.
        checksums: Arc<[u64]>,
    },
}

/// Returns the checksum of each [`BODY_CHUNK`] of a body that is in memory.
pub fn chunk_checksums<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<u64> {
    // Segments of the size of a chunk, as a fill makes them, are hashed in place. Others are gathered into chunks.
    let mut checksums = Vec::new();
    let mut pending: Vec<u8> = Vec::new();
    for segment in pieces {
        if pending.is_empty() && segment.len() == BODY_CHUNK {
            checksums.push(xxh3_64(segment));
            continue;
        }
        pending.extend_from_slice(segment);
        while pending.len() >= BODY_CHUNK {
            checksums.push(xxh3_64(&pending[..BODY_CHUNK]));
            pending.drain(..BODY_CHUNK);
        }
    }
    if !pending.is_empty() {
        checksums.push(xxh3_64(&pending));
    }
    checksums
}

/// Returns the checksum of one chunk of a separate body.
pub fn chunk_checksum(chunk: &[u8]) -> u64 {
    xxh3_64(chunk)
}

/// Encodes a response: with its body if `is_inline`, otherwise with the checksums of its separate body.
pub fn encode_response(response: &StoredResponse, is_inline: bool) -> Vec<u8> {
    if !is_inline {
        return encode_separate(&response.head, response.len(), &chunk_checksums(response.pieces()));
    }
    let mut out = encode_head(&response.head, response.len());
    let mut hasher = Xxh3Default::new();
    response.pieces().for_each(|piece| hasher.update(piece));
    out.put_u8(0);
    out.put_u64_le(hasher.digest());
    let mut object = frame(KIND_RESPONSE, &out);
    response.pieces().for_each(|piece| object.extend_from_slice(piece));
    object
}

/// Encodes the head of a response whose body is a separate object of `len` bytes.
pub fn encode_separate(head: &StoredHead, len: u64, checksums: &[u64]) -> Vec<u8> {
    let mut out = encode_head(head, len);
    out.put_u8(1);
    out.put_u128_le(head.body_id());
    out.put_u32_le(u32::try_from(BODY_CHUNK).unwrap_or(u32::MAX));
    for checksum in checksums {
        out.put_u64_le(*checksum);
    }
    frame(KIND_RESPONSE, &out)
}

/// Encodes the part that both layouts share: everything up to and including the body's length.
fn encode_head(head: &StoredHead, len: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    put_string(&mut out, head.key.as_bytes());
    let (names, selector) = head.variant().map_or((&[][..], &[][..]), |v| (&v.names[..], &v.selector[..]));
    put_names(&mut out, names);
    put_string(&mut out, selector);
    out.put_u16_le(head.status.as_u16());
    out.put_i64_le(head.request_time().as_millis());
    out.put_i64_le(head.response_time().as_millis());
    head.version_vector.encode(&mut out);
    put_count16(&mut out, head.tags().len());
    for tag in head.tags() {
        put_string(&mut out, tag.as_bytes());
    }
    let parts = head.parts();
    put_count16(&mut out, parts.map_or(0, |parts| parts.ranges().len()));
    if let Some(parts) = parts {
        out.put_u64_le(parts.complete_len());
        for (first, end) in parts.ranges() {
            out.put_u64_le(*first);
            out.put_u64_le(*end);
        }
    }
    out.put_u32_le(u32::try_from(head.fields.len()).unwrap_or(u32::MAX));
    for (name, value) in head.fields.iter() {
        put_string(&mut out, name.as_str().as_bytes());
        put_string(&mut out, value);
    }
    out.put_u64_le(len);
    out
}

/// Computes the checksum of each [`BODY_CHUNK`] of a body while it arrives.
#[derive(Default)]
pub struct Checksums {
    done: Vec<u64>,
    chunk: Xxh3Default,
    /// Bytes hashed of the current chunk.
    filled: usize,
    len: u64,
}

impl std::fmt::Debug for Checksums {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checksums").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Checksums {
    /// Hashes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BODY_CHUNK - self.filled));
            self.chunk.update(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == BODY_CHUNK {
                self.finish_chunk();
            }
        }
    }

    fn finish_chunk(&mut self) {
        self.done.push(self.chunk.digest());
        self.chunk.reset();
        self.filled = 0;
    }

    /// Returns the number of bytes hashed.
    pub fn hashed(&self) -> u64 {
        self.len
    }

    /// Returns the checksum of each chunk.
    pub fn finish(mut self) -> Vec<u64> {
        if self.filled > 0 {
            self.finish_chunk();
        }
        self.done
    }
}

/// Encodes a Vary record.
pub fn encode_vary(record: &VaryRecord) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    put_string(&mut out, record.key.as_bytes());
    out.put_u128_le(record.generation);
    put_count16(&mut out, record.sets.len());
    for set in &record.sets {
        put_names(&mut out, set);
    }
    put_count16(&mut out, record.aliases.len());
    for (alias, variant) in &record.aliases {
        out.put_u128_le(*alias);
        out.put_u128_le(*variant);
    }
    frame(KIND_VARY, &out)
}

/// Encodes a tombstone: the deletion of what is stored for `key`.
pub fn encode_tombstone(key: &CacheKey) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + key.as_bytes().len());
    put_string(&mut out, key.as_bytes());
    frame(KIND_TOMBSTONE, &out)
}

fn put_names(out: &mut Vec<u8>, names: &[HeaderName]) {
    put_count16(out, names.len());
    for name in names {
        put_string(out, name.as_str().as_bytes());
    }
}

/// Returns the key that an object names as its own.
pub fn key_of(object: &[u8]) -> Result<CacheKey, DecodeError> {
    let framed = unframe(object)?;
    let key = Decoder(framed.head).string()?;
    CacheKey::from_bytes(key)
        .filter(|_| matches!(framed.kind, KIND_RESPONSE | KIND_VARY | KIND_TOMBSTONE))
        .ok_or(DecodeError::Malformed)
}

/// Returns the id of the separate body that an object leads to.
pub fn separate_body_of(object: &Bytes) -> Option<u128> {
    let key = key_of(object).ok()?;
    match decode(object, &key, &LifetimePolicy::default()).ok()? {
        Object::Response { head, body: DurableBody::Separate { .. } } => Some(head.body_id()),
        Object::Response { .. } | Object::Vary(_) => None,
    }
}

/// Largest inline body in bytes that is copied out of its object's buffer. A larger one shares that buffer, which should
/// hold nothing but the object.
pub const SMALL: usize = 16 << 10;

/// Decodes an object that should belong to `key`. Computes freshness under the current configuration's lifetimes.
pub fn decode(object: &Bytes, key: &CacheKey, policy: &LifetimePolicy) -> Result<Object, DecodeError> {
    let Framed { kind, head, rest } = unframe(object)?;
    let mut head = Decoder(head);
    if head.string()? != key.as_bytes() {
        return Err(DecodeError::OtherKey);
    }
    match kind {
        KIND_RESPONSE => decode_response(head, rest, object, key, policy),
        KIND_VARY => decode_vary(head, key).map(Object::Vary),
        _ => Err(DecodeError::Malformed),
    }
}

fn decode_response(
    mut head: Decoder<'_>,
    rest: &[u8],
    object: &Bytes,
    key: &CacheKey,
    policy: &LifetimePolicy,
) -> Result<Object, DecodeError> {
    let names = decode_names(&mut head)?;
    let selector = head.string()?.to_vec();
    let status = StatusCode::from_u16(head.u16()?).map_err(|_| DecodeError::Malformed)?;
    let request_time = Timestamp::from_millis(head.i64()?);
    let response_time = Timestamp::from_millis(head.i64()?);
    let version_vector = VersionVector::decode(&mut head)?;
    let tags = decode_tags(&mut head)?;
    let parts = decode_parts(&mut head)?;
    let fields = decode_fields(&mut head)?;
    let len = head.u64()?;
    let (body_object, body) = decode_body(&mut head, len, rest, object)?;
    if parts.is_some() != (status == StatusCode::PARTIAL_CONTENT)
        || !parts.as_ref().is_none_or(|parts| holds_parts(len, parts))
    {
        return Err(DecodeError::Malformed);
    }
    let variant = (!names.is_empty()).then_some(Variant { names, selector });
    let freshness = if key.is_value() {
        value::freshness(&fields, response_time)?
    } else {
        Freshness::of(status, &fields, request_time, response_time, policy)
    };
    let is_found_otherwise = variant.is_some() || key.is_found_otherwise();
    let head = StoredHead {
        key: key.clone(),
        fields: Fields::new(fields.iter()),
        freshness,
        // The caller sets the position at which it read the object.
        position: 0,
        version_vector: Arc::new(version_vector),
        rare: Rare { variant, parts, tags: tags.into(), inherits_vary: false }.boxed(),
        body_object,
        marks: Marks::durable(),
        took: took(request_time, response_time),
        status,
        is_found_otherwise,
    };
    if !head.is_of_length(len) {
        return Err(DecodeError::Malformed);
    }
    Ok(Object::Response { head: Box::new(head), body })
}

/// Decodes the end of a response's head: the checksum of the inline body in `rest`, or the separate body's object.
fn decode_body(
    head: &mut Decoder<'_>,
    len: u64,
    rest: &[u8],
    object: &Bytes,
) -> Result<(Option<Arc<BodyObject>>, DurableBody), DecodeError> {
    match head.u8()? {
        0 => {
            let checksum = head.u64()?;
            if (rest.len() as u64) < len {
                return Err(DecodeError::Truncated);
            }
            if rest.len() as u64 != len || xxh3_64(rest) != checksum {
                return Err(DecodeError::Checksum);
            }
            let body = if rest.len() > SMALL { object.slice_ref(rest) } else { Bytes::copy_from_slice(rest) };
            Ok((None, DurableBody::Inline(body)))
        }
        1 => {
            let body_id = head.u128()?;
            if head.len32()? != BODY_CHUNK {
                return Err(DecodeError::Malformed);
            }
            let mut checksums = Vec::new();
            while !head.0.is_empty() {
                checksums.push(head.u64()?);
            }
            if checksums.len() as u64 != len.div_ceil(BODY_CHUNK as u64) {
                return Err(DecodeError::Malformed);
            }
            Ok((Some(BodyObject::written(body_id)), DurableBody::Separate { len, checksums: checksums.into() }))
        }
        _ => Err(DecodeError::Malformed),
    }
}

/// Returns whether a body of `len` bytes can be these parts: exactly them, or the beginning of a single one.
fn holds_parts(len: u64, parts: &Parts) -> bool {
    len == parts.len() || (len < parts.len() && parts.ranges().len() == 1)
}

fn decode_tags(head: &mut Decoder<'_>) -> Result<Vec<String>, DecodeError> {
    let count = head.u16()?;
    let tag = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| DecodeError::Malformed);
    (0..count).map(|_| tag(head.string()?)).collect()
}

fn decode_fields(head: &mut Decoder<'_>) -> Result<HeaderMap, DecodeError> {
    let mut fields = HeaderMap::new();
    let (text, end) = (Bytes::copy_from_slice(head.0), head.0.len());
    for _ in 0..head.u32()? {
        let name = HeaderName::from_bytes(head.string()?).map_err(|_| DecodeError::Malformed)?;
        let len = head.string()?.len();
        let at = end - head.0.len();
        let value = HeaderValue::from_maybe_shared(text.slice(at - len..at)).map_err(|_| DecodeError::Malformed)?;
        fields.try_append(name, value).map_err(|_| DecodeError::Malformed)?;
    }
    Ok(fields)
}

fn decode_parts(head: &mut Decoder<'_>) -> Result<Option<Parts>, DecodeError> {
    let count = usize::from(head.u16()?);
    if count == 0 {
        return Ok(None);
    }
    let complete = head.u64()?;
    let mut ranges = Vec::new();
    for _ in 0..count {
        ranges.push((head.u64()?, head.u64()?));
    }
    Parts::from_ranges(complete, ranges).map(Some).ok_or(DecodeError::Malformed)
}

fn decode_vary(mut head: Decoder<'_>, key: &CacheKey) -> Result<VaryRecord, DecodeError> {
    let generation = head.u128()?;
    let count = usize::from(head.u16()?);
    if count == 0 || count > VaryRecord::MAX_SETS {
        return Err(DecodeError::Malformed);
    }
    let mut sets = Vec::with_capacity(count);
    for _ in 0..count {
        sets.push(decode_names(&mut head)?);
    }
    let count = usize::from(head.u16()?);
    if count > VaryRecord::MAX_ALIASES {
        return Err(DecodeError::Malformed);
    }
    let mut aliases = Vec::with_capacity(count);
    for _ in 0..count {
        aliases.push((head.u128()?, head.u128()?));
    }
    Ok(VaryRecord { key: key.clone(), generation, sets, aliases })
}

fn decode_names(decoder: &mut Decoder<'_>) -> Result<Vec<HeaderName>, DecodeError> {
    let count = usize::from(decoder.u16()?);
    if count > vary::MAX_NOMINATED {
        return Err(DecodeError::Malformed);
    }
    (0..count).map(|_| HeaderName::from_bytes(decoder.string()?).map_err(|_| DecodeError::Malformed)).collect()
}
