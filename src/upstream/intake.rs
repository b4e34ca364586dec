//! Reads a request's body into memory and, past that, into a temporary file.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::buffered::Buffered;
use super::buffers::BufferLease;
use super::spool::SpoolFile;
use super::{Buffers, Transfer};

/// A body that is being read into memory and a temporary file.
#[derive(Debug)]
pub(super) struct Intake {
    /// The whole body, if it came in one piece.
    whole: Bytes,
    /// The first bytes, at most `limit`.
    memory: BytesMut,
    limit: usize,
    /// The file behind them, and its number of bytes, at most `spool`.
    file: Option<(SpoolFile, u64)>,
    spool: u64,
    /// The bytes that are to be written to the file next.
    tail: BytesMut,
    /// True if the file could not grow: the temporary files have reached their limit, or the disk is full.
    pub found_no_room: bool,
    /// True if trailers followed the body.
    pub had_trailers: bool,
    lease: BufferLease,
}

/// Bytes that are written to a file at once.
pub(super) const STAGE: usize = 64 << 10;

impl Intake {
    /// Begins with nothing read.
    pub(super) fn new(transfer: &Transfer, buffers: &Arc<Buffers>) -> Self {
        Self {
            whole: Bytes::new(),
            memory: BytesMut::new(),
            limit: usize::try_from(transfer.buffer_request).unwrap_or(usize::MAX),
            file: None,
            spool: transfer.spool,
            tail: BytesMut::new(),
            found_no_room: false,
            had_trailers: false,
            lease: BufferLease::new(buffers),
        }
    }

    /// Returns whether nothing was read yet.
    fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.tail.is_empty() && self.file.is_none()
    }

    /// Adds the only piece of a body without copying it, if nothing came before and there is room in memory.
    pub(super) fn add_whole(&mut self, data: &mut Bytes) -> bool {
        let is_added = self.is_empty() && self.lease.try_add(data.len());
        if is_added {
            self.whole = std::mem::take(data);
        }
        is_added
    }

    /// Adds a piece. `more` is the number of bytes that follow at most, if known. Returns whether there is room for
    /// another piece.
    pub(super) async fn add(&mut self, data: &Bytes, more: Option<u64>) -> bool {
        let is_in_memory = self.file.is_none() && self.tail.is_empty();
        let has_room = self.lease.try_add(data.len());
        if !has_room {
            self.lease.add(data.len());
        }
        if is_in_memory && has_room && self.memory.len() + data.len() <= self.limit {
            self.make_room(data.len(), more);
            self.memory.extend_from_slice(data);
            return true;
        }
        self.tail.extend_from_slice(data);
        let in_file = self.file.as_ref().map_or(0, |(_, len)| *len);
        if in_file + self.tail.len() as u64 > self.spool {
            return false;
        }
        (has_room && self.tail.len() < STAGE) || self.write().await
    }

    /// Makes room in memory for `len` bytes, and for some of the `more` that follow: for no more than have come, which
    /// are counted. A client that only says it sends much takes no memory.
    fn make_room(&mut self, len: usize, more: Option<u64>) {
        let needed = self.memory.len() + len;
        if needed > self.memory.capacity() {
            let more = more.map_or(needed, |more| usize::try_from(more).unwrap_or(usize::MAX).min(needed));
            self.memory.reserve((needed + more).min(self.limit) - self.memory.len());
        }
    }

    /// Returns the bytes of memory that are taken.
    #[cfg(test)]
    pub(super) fn reserved(&self) -> usize {
        self.memory.capacity()
    }

    /// Writes the tail to the file. Returns `false` if there is no room for it.
    async fn write(&mut self) -> bool {
        if self.file.is_none() {
            let Some(file) = self.lease.buffers().spools.open().await else { return false };
            self.file = Some((file, 0));
        }
        let Some((file, len)) = &mut self.file else { return false };
        let tail = self.tail.split().freeze();
        let bytes = tail.len();
        if !file.write(*len, vec![tail.clone()]).await {
            self.tail = BytesMut::from(tail);
            self.found_no_room = true;
            return false;
        }
        *len += bytes as u64;
        self.lease.release(bytes);
        true
    }

    /// Returns the part that was read.
    pub(super) fn into_buffered(self) -> Arc<Buffered> {
        Arc::new(Buffered {
            memory: if self.whole.is_empty() { self.memory.freeze() } else { self.whole },
            file: self.file,
            tail: self.tail.freeze(),
            had_trailers: self.had_trailers,
            _lease: Some(self.lease),
        })
    }
}
