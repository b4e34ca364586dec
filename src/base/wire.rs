//! The frame of every durable object: a preamble with version, kind and checksum, then a head, then what follows it.
//!
//! Integers are little-endian. Strings begin with their length. A decoder allocates nothing for a length that the bytes
//! do not bear out.

use bytes::BufMut;
use xxhash_rust::xxh3::xxh3_64;

/// The reason why bytes from the durable tier are not the object that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes end early.
    Truncated,
    /// Larder did not write them.
    Foreign,
    /// They are of a version that this build does not read.
    Version(u8),
    /// They are not the bytes that were written.
    Checksum,
    /// The checksum holds, but the content is not valid.
    Malformed,
    /// The object belongs to another key.
    OtherKey,
    /// The object is of the key, and not the one that was written there.
    OtherOrder,
}

impl DecodeError {
    /// Returns the word for it in logs and counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Foreign => "foreign",
            Self::Version(_) => "unknown-version",
            Self::Checksum => "checksum",
            Self::Malformed => "malformed",
            Self::OtherKey => "other-key",
            Self::OtherOrder => "other-order",
        }
    }
}

const MAGIC: &[u8; 4] = b"LRDR";

/// The version that is written, and the only one that is read.
const VERSION: u8 = 1;

/// Length of the preamble: the bytes before the head.
pub const PREAMBLE: usize = 4 + 1 + 1 + 2 + 4 + 8;

/// An object without its frame. The checksum of its head is verified.
#[derive(Clone, Copy, Debug)]
pub struct Framed<'a> {
    /// The kind of object: each encoding numbers its own.
    pub kind: u8,
    /// Its head.
    pub head: &'a [u8],
    /// The bytes after the head.
    pub rest: &'a [u8],
}

/// Verifies an object's preamble and the checksum of its head.
pub fn unframe(object: &[u8]) -> Result<Framed<'_>, DecodeError> {
    let mut preamble = Decoder(object);
    if preamble.take(MAGIC.len()).map_err(|_| DecodeError::Foreign)? != MAGIC {
        return Err(DecodeError::Foreign);
    }
    let version = preamble.u8()?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let kind = preamble.u8()?;
    let _zero = preamble.u16()?;
    let head_len = preamble.len32()?;
    let checksum = preamble.u64()?;
    let head = preamble.take(head_len)?;
    if xxh3_64(head) != checksum {
        return Err(DecodeError::Checksum);
    }
    Ok(Framed { kind, head, rest: preamble.0 })
}

/// Returns the kind of the object that `bytes` begin with, if they begin as an object does. Verifies nothing else.
pub fn kind_of(bytes: &[u8]) -> Option<u8> {
    let rest = bytes.strip_prefix(MAGIC)?;
    (*rest.first()? == VERSION).then_some(*rest.get(1)?)
}

/// Writes the preamble for a head, and the head.
pub fn frame(kind: u8, head: &[u8]) -> Vec<u8> {
    let mut object = Vec::with_capacity(PREAMBLE + head.len());
    object.put_slice(MAGIC);
    object.put_u8(VERSION);
    object.put_u8(kind);
    object.put_u16_le(0);
    object.put_u32_le(u32::try_from(head.len()).unwrap_or(u32::MAX));
    object.put_u64_le(xxh3_64(head));
    object.put_slice(head);
    object
}

/// Appends a string: its length as a `u32`, and its bytes.
pub fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

/// Appends a count as a `u16`.
pub fn put_count16(out: &mut Vec<u8>, count: usize) {
    out.put_u16_le(u16::try_from(count).unwrap_or(u16::MAX));
}

/// Takes integers and strings off the front of a slice.
#[derive(Clone, Copy, Debug)]
pub struct Decoder<'a>(pub &'a [u8]);

impl<'a> Decoder<'a> {
    /// Takes `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    /// Takes `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    /// Takes one byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(u8::from_le_bytes)
    }

    /// Takes a `u16`.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    /// Takes a `u32`.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    /// Takes a `u64`.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Takes an `i64`.
    pub fn i64(&mut self) -> Result<i64, DecodeError> {
        self.array().map(i64::from_le_bytes)
    }

    /// Takes a `u128`.
    pub fn u128(&mut self) -> Result<u128, DecodeError> {
        self.array().map(u128::from_le_bytes)
    }

    /// Takes a length of four bytes.
    pub fn len32(&mut self) -> Result<usize, DecodeError> {
        usize::try_from(self.u32()?).map_err(|_| DecodeError::Malformed)
    }

    /// Takes a string.
    pub fn string(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.len32()?;
        self.take(len)
    }
}
