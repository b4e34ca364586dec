//! The bytes of a response's body that were read ahead of its client: in memory, and in a file written in a circle.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

use super::UpstreamBodyError;
use super::buffers::BufferLease;
use super::spool::SpoolFile;

/// Memory that each body may hold even while the buffers are full.
const LEAST: usize = 64 << 10;

/// Pieces smaller than this are joined.
const SMALL: usize = 16 << 10;

/// Bytes that are written to the file at once.
const STAGE: usize = 64 << 10;

/// The bytes of a body that were read and not yet handed to the client, in this order: memory, file, tail.
///
/// Guarded by the lock in [`Ahead`](super::ahead::Ahead), which is held for a few instructions at a time.
#[derive(Debug)]
pub(super) struct AheadQueue {
    memory: VecDeque<Bytes>,
    ring: Option<FileRing>,
    tail: BytesMut,
    /// Counts the bytes in memory and in the tail, and while it is written, of the piece for the file.
    lease: BufferLease,
    /// The bytes that `lease` counts.
    held: usize,
    /// True while a piece is being written to the file.
    is_writing: bool,
    /// True once a write failed, so that nothing more goes to a file.
    has_given_up_file: bool,
    /// The end of the body, once it was read.
    pub end: BodyEnd,
    /// Wakes the client's end when there is something to hand to it.
    pub reader: Option<Waker>,
    /// Wakes the task that reads ahead when something was handed to the client.
    pub writer: Option<Waker>,
}

/// A file that is written in a circle: behind its last byte comes its first.
#[derive(Debug)]
struct FileRing {
    file: Arc<SpoolFile>,
    /// Bytes of the file, once it was written to its end.
    len: u64,
    /// Bytes written so far.
    written: u64,
    /// Bytes read so far.
    read: u64,
}

/// The end of a body.
#[derive(Debug)]
pub(super) enum BodyEnd {
    /// It was not reached yet.
    Open,
    /// The body is complete.
    Complete,
    /// The body is complete, and has trailers.
    Trailers(HeaderMap),
    /// The body broke off.
    Failed(UpstreamBodyError),
}

/// The thing that the client gets next.
pub(super) enum NextPart {
    /// Bytes from memory.
    Piece(Bytes),
    /// Bytes of a file: where they begin, and how many there are.
    InFile(Arc<SpoolFile>, u64, u64),
    /// The trailers.
    Trailers(HeaderMap),
    /// The error that the body broke off with.
    Failed(UpstreamBodyError),
    /// Nothing: the body has ended.
    Ended,
    /// Nothing, until more was read.
    NotYet,
}

/// The next step of the task that reads ahead.
pub(super) enum AheadStep {
    /// Reads another piece, for which there is room.
    Read,
    /// Writes a piece to a file. The place is the file, the offset and the length of the circle; `None`: a new file.
    Write(Bytes, Option<FilePlace>),
    /// Waits until something was handed to the client.
    Wait,
}

/// A file, an offset in it, and the length of its circle.
pub(super) type FilePlace = (Arc<SpoolFile>, u64, u64);

impl FileRing {
    /// Returns the number of bytes written and not yet read.
    fn left(&self) -> u64 {
        self.written - self.read
    }
}

impl AheadQueue {
    /// Makes an empty queue.
    pub(super) fn new(lease: BufferLease) -> Self {
        Self {
            memory: VecDeque::new(),
            ring: None,
            tail: BytesMut::new(),
            lease,
            held: 0,
            is_writing: false,
            has_given_up_file: false,
            end: BodyEnd::Open,
            reader: None,
            writer: None,
        }
    }

    /// Returns whether no byte is in the file, or on its way there.
    fn is_in_memory(&self) -> bool {
        self.ring.is_none() && !self.is_writing
    }

    /// Returns whether the client has had everything.
    pub(super) fn is_at_end(&self) -> bool {
        matches!(self.end, BodyEnd::Complete) && self.memory.is_empty() && self.tail.is_empty() && self.is_in_memory()
    }

    /// Adds a piece, and returns the waker of the client's end.
    pub(super) fn put(&mut self, data: Bytes) -> Option<Waker> {
        self.held += data.len();
        if !self.lease.try_add(data.len()) {
            self.lease.add(data.len());
        }
        if self.is_in_memory() && self.tail.is_empty() && data.len() >= SMALL {
            self.memory.push_back(data);
        } else {
            self.tail.extend_from_slice(&data);
            if self.is_in_memory() && self.tail.len() >= SMALL {
                self.memory.push_back(self.tail.split().freeze());
            }
        }
        self.reader.take()
    }

    /// Takes the thing that the client gets next.
    pub(super) fn next(&mut self) -> NextPart {
        if let Some(piece) = self.memory.pop_front() {
            self.note_taken(piece.len());
            return NextPart::Piece(piece);
        }
        if let Some(ring) = &self.ring
            && ring.left() > 0
        {
            let at = ring.read % ring.len;
            return NextPart::InFile(Arc::clone(&ring.file), at, ring.left().min(ring.len - at));
        }
        if self.is_writing {
            return NextPart::NotYet;
        }
        // Every byte in the file was read. The next write begins another file.
        self.ring = None;
        if !self.tail.is_empty() {
            let piece = self.tail.split().freeze();
            self.note_taken(piece.len());
            return NextPart::Piece(piece);
        }
        match std::mem::replace(&mut self.end, BodyEnd::Complete) {
            BodyEnd::Open => {
                self.end = BodyEnd::Open;
                NextPart::NotYet
            }
            BodyEnd::Complete => NextPart::Ended,
            BodyEnd::Trailers(trailers) => NextPart::Trailers(trailers),
            BodyEnd::Failed(error) => NextPart::Failed(error),
        }
    }

    /// Notes that `bytes` in memory were handed to the client.
    fn note_taken(&mut self, bytes: usize) {
        self.held -= bytes;
        self.lease.release(bytes);
        self.wake_writer();
    }

    /// Notes that `bytes` in the file were handed to the client.
    pub(super) fn note_read(&mut self, bytes: usize) {
        if let Some(ring) = &mut self.ring {
            ring.read += bytes as u64;
        }
        self.wake_writer();
    }

    fn wake_writer(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    /// Returns the next step of the task. At most `limit` bytes may be in memory, and `spool` in the file.
    pub(super) fn step(&mut self, limit: usize, spool: u64) -> AheadStep {
        let may_write = spool > 0 && !self.has_given_up_file;
        let limit = if self.lease.buffers().are_full() { limit.min(LEAST) } else { limit };
        let slack = if may_write { STAGE } else { 0 };
        let has_room = if self.is_in_memory() {
            self.held <= limit || (self.tail.len() < slack && self.held <= limit.saturating_add(slack))
        } else {
            self.tail.len() < slack
        };
        if has_room {
            return AheadStep::Read;
        }
        if !may_write {
            return AheadStep::Wait;
        }
        let place = match &self.ring {
            Some(ring) if ring.left() + self.tail.len() as u64 > ring.len => return AheadStep::Wait,
            Some(ring) => Some((Arc::clone(&ring.file), ring.written % ring.len, ring.len)),
            None => None,
        };
        if self.tail.is_empty() {
            // Moves the newest piece in memory to the file, which keeps the order. Pieces in memory are large.
            let Some(piece) = self.memory.pop_back() else { return AheadStep::Wait };
            self.tail.extend_from_slice(&piece);
        }
        if self.tail.len() as u64 > spool {
            return AheadStep::Wait;
        }
        self.is_writing = true;
        AheadStep::Write(self.tail.split().freeze(), place)
    }

    /// Notes that `bytes` were written to the file.
    fn note_written(&mut self, bytes: usize) {
        if let Some(ring) = &mut self.ring {
            ring.written += bytes as u64;
        }
        self.held -= bytes;
        self.lease.release(bytes);
    }

    /// Notes that `piece` was not written, for want of room.
    fn note_unwritten(&mut self, piece: Bytes) {
        self.tail = BytesMut::from(piece);
        match &mut self.ring {
            // The file stays as long as it is, and is written in a circle from here on.
            Some(ring) if (1..ring.len).contains(&ring.written) => ring.len = ring.written,
            Some(_) | None => self.has_given_up_file = true,
        }
    }

    /// Notes that the write of `piece` has ended. `new_file` is the file that was made for it, with its length. Returns
    /// the waker of the client's end.
    pub(super) fn end_write(
        &mut self,
        piece: Bytes,
        is_written: bool,
        new_file: Option<(Arc<SpoolFile>, u64)>,
    ) -> Option<Waker> {
        self.is_writing = false;
        if is_written {
            if let Some((file, len)) = new_file {
                self.ring = Some(FileRing { file, len, written: 0, read: 0 });
            }
            self.note_written(piece.len());
        } else {
            self.note_unwritten(piece);
        }
        self.reader.take()
    }
}
