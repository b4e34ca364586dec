//! A complete body in memory.

use std::sync::Arc;

use bytes::Bytes;

use crate::rfc9111::partial::Piece;

/// The most bytes in one piece of a body.
pub const SEGMENT: usize = 256 * 1024;

/// A complete body in memory. Clones share its bytes.
#[derive(Clone, Debug, Default)]
pub struct Body {
    pub(super) segments: Segments,
    pub(super) len: u64,
}

/// The pieces of a body.
#[derive(Clone, Debug)]
pub(super) enum Segments {
    /// One, which may be empty.
    One(Bytes),
    /// Several.
    Many(Arc<[Bytes]>),
}

impl Default for Segments {
    fn default() -> Self {
        Self::One(Bytes::new())
    }
}

impl Body {
    /// Copies `chunks` into new pieces, so that a stored body does not keep the larger network buffers that its bytes
    /// arrived in.
    pub fn from_chunks<'a>(chunks: impl Iterator<Item = &'a Bytes>, len: u64) -> Self {
        let mut segments = Vec::new();
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        let mut current = Vec::with_capacity(left.min(SEGMENT));
        for chunk in chunks {
            let mut rest = &chunk[..];
            while !rest.is_empty() {
                let take = rest.len().min(SEGMENT - current.len());
                current.extend_from_slice(&rest[..take]);
                rest = &rest[take..];
                left = left.saturating_sub(take);
                if current.len() == SEGMENT {
                    segments.push(Bytes::from(std::mem::replace(&mut current, Vec::with_capacity(left.min(SEGMENT)))));
                }
            }
        }
        if !current.is_empty() {
            segments.push(Bytes::from(current.into_boxed_slice()));
        }
        Self::from_segments(segments)
    }

    fn from_segments(mut segments: Vec<Bytes>) -> Self {
        let len = segments.iter().map(|segment| segment.len() as u64).sum();
        let segments = match segments.len() {
            0 | 1 => Segments::One(segments.pop().unwrap_or_default()),
            _ => Segments::Many(segments.into()),
        };
        Self { segments, len }
    }

    /// Makes a body of `pieces` of two others.
    pub fn combined(old: &Self, new: &Self, pieces: &[Piece]) -> Self {
        let mut chunks = Vec::new();
        for piece in pieces {
            let from = if piece.is_new { new } else { old };
            from.cut(piece.offset, piece.len, &mut chunks);
        }
        let len = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        Self::from_chunks(chunks.iter(), len)
    }

    /// Appends to `chunks` the `len` bytes from `offset` on, or as many as there are.
    pub fn cut(&self, offset: u64, len: u64, chunks: &mut Vec<Bytes>) {
        let (mut skip, mut left) = (offset, len);
        for segment in self.segments() {
            let size = segment.len() as u64;
            let start = skip.min(size);
            skip -= start;
            let take = (size - start).min(left);
            left -= take;
            // Always fits: both are at most the segment's length, which is a usize.
            if let (Ok(from), Ok(to)) = (usize::try_from(start), usize::try_from(start + take))
                && from < to
            {
                chunks.push(segment.slice(from..to));
            }
        }
    }

    /// Returns the bytes from `offset` to the end of their piece; `None` at the end of the body.
    pub fn piece_from(&self, offset: u64) -> Option<Bytes> {
        let offset = usize::try_from(offset).ok().filter(|_| offset < self.len)?;
        match self.segments() {
            [one] => Some(one.slice(offset..)),
            // `from_chunks` made these pieces: all but the last have `SEGMENT` bytes.
            many => Some(many.get(offset / SEGMENT)?.slice(offset % SEGMENT..)),
        }
    }

    /// Returns the number of bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the bytes if they are in one piece, otherwise the body.
    pub fn into_one(self) -> Result<Bytes, Self> {
        match self.segments {
            Segments::One(bytes) => Ok(bytes),
            Segments::Many(_) => Err(self),
        }
    }

    /// Returns the pieces, in order. Those of a body from a fill have at most [`SEGMENT`] bytes each.
    pub fn segments(&self) -> &[Bytes] {
        match &self.segments {
            Segments::One(segment) => std::slice::from_ref(segment),
            Segments::Many(segments) => segments,
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::from_segments(vec![bytes])
    }
}
