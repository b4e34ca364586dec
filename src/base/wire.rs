//! What all durable objects have in common: a preamble with version and checksum, little-endian
//! integers, and strings that begin with their length.

use bytes::BufMut;
use xxhash_rust::xxh3::xxh3_64;

/// Why bytes from the durable tier are not the object that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// It ends before it should.
    Truncated,
    /// It was not written by Larder.
    Foreign,
    /// It was written in a version that this build does not know.
    Version(u8),
    /// Its bytes are not those that were written.
    Checksum,
    /// It is whole, and makes no sense.
    Malformed,
    /// It is another key's object.
    OtherKey,
}

impl DecodeError {
    /// The word for it in logs and counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Foreign => "foreign",
            Self::Version(_) => "unknown-version",
            Self::Checksum => "checksum",
            Self::Malformed => "malformed",
            Self::OtherKey => "other-key",
        }
    }
}

const MAGIC: &[u8; 4] = b"LRDR";

/// The version that is written.
pub const VERSION: u8 = 3;

/// The oldest version that is read.
const OLDEST: u8 = 1;

/// The length of what comes before the head of an object.
pub const PREAMBLE: usize = 4 + 1 + 1 + 2 + 4 + 8;

/// An object, taken out of its frame: the checksum of its head holds.
#[derive(Clone, Copy, Debug)]
pub struct Framed<'a> {
    /// The version it was written in.
    pub version: u8,
    /// What it is.
    pub kind: u8,
    /// Its head.
    pub head: &'a [u8],
    /// What comes after the head.
    pub rest: &'a [u8],
}

/// Takes an object out of its frame.
pub fn unframe(object: &[u8]) -> Result<Framed<'_>, DecodeError> {
    let mut preamble = Reader(object);
    if preamble.take(MAGIC.len()).map_err(|_| DecodeError::Foreign)? != MAGIC {
        return Err(DecodeError::Foreign);
    }
    let version = preamble.u8()?;
    if !(OLDEST..=VERSION).contains(&version) {
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
    Ok(Framed { version, kind, head, rest: preamble.0 })
}

/// Puts a head into a frame.
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

/// Appends a string.
pub fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

/// Appends a count of two bytes.
pub fn put_count16(out: &mut Vec<u8>, count: usize) {
    out.put_u16_le(u16::try_from(count).unwrap_or(u16::MAX));
}

/// Takes integers and strings off the front of a slice. A length is believed only as far as there
/// are bytes, so nothing is allocated for what is not there.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    /// The next byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(u8::from_le_bytes)
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    /// The next eight bytes, signed.
    pub fn i64(&mut self) -> Result<i64, DecodeError> {
        self.array().map(i64::from_le_bytes)
    }

    /// The next sixteen bytes.
    pub fn u128(&mut self) -> Result<u128, DecodeError> {
        self.array().map(u128::from_le_bytes)
    }

    /// A length of four bytes.
    pub fn len32(&mut self) -> Result<usize, DecodeError> {
        usize::try_from(self.u32()?).map_err(|_| DecodeError::Malformed)
    }

    /// The next string.
    pub fn string(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.len32()?;
        self.take(len)
    }
}
