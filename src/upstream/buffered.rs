//! The part of a request's body that was read before the origin is asked, in memory and in a temporary file.

use std::sync::Arc;

use bytes::Bytes;

use super::buffers::BufferLease;
use super::spool::SpoolFile;
use super::upload::Upload;

/// The part of a body that was read, in this order: memory, file, tail.
#[derive(Debug, Default)]
pub(super) struct Buffered {
    /// The first bytes.
    pub memory: Bytes,
    /// The file behind them, and its number of bytes.
    pub file: Option<(SpoolFile, u64)>,
    /// The bytes behind the file: too few to be written, or those that the file had no room for.
    pub tail: Bytes,
    /// True if trailers followed the body. They are dropped.
    pub had_trailers: bool,
    /// Counts the bytes in memory until they are freed.
    pub _lease: Option<BufferLease>,
}

impl Buffered {
    /// Returns the number of bytes in the file.
    pub(super) fn file_len(&self) -> u64 {
        self.file.as_ref().map_or(0, |(_, len)| *len)
    }

    /// Returns the number of bytes.
    pub(super) fn len(&self) -> u64 {
        self.memory.len() as u64 + self.file_len() + self.tail.len() as u64
    }
}

/// The content of a request, held in memory so that it can be part of a key, and sent as often as need be. Cheap to
/// clone. Its bytes count in `server.max_buffered` until the last clone is dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content(pub(super) Arc<Buffered>);

impl Content {
    /// Returns its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0.memory
    }
}

/// A body of which every byte is buffered, so that it can be sent again.
#[derive(Clone, Debug)]
pub(crate) struct BufferedBody {
    /// Its bytes.
    pub(super) buffered: Arc<Buffered>,
    /// Its progress.
    pub(super) upload: Upload,
}
