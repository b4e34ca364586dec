//! A response's body on its way to one client, read ahead of it.
//!
//! An application that serves one request at a time should not wait for a client that reads slowly. hyper
//! takes the first 128 KiB of a response whoever reads them; where there is more, a task reads on:
//!
//! * up to `buffer_response` bytes into memory, counted in [`Buffers`](crate::upstream::Buffers);
//! * what is behind them into a temporary file, up to `spool` bytes at a time. The file is written round and
//!   round, so that a response of any length takes no more;
//! * past both at the pace of the client, as always.
//!
//! A body that is to be kept, and turns out too large for memory, is read ahead of its readers from then on.
//!
//! Hands the client at once what comes. A body that ends early breaks off, behind all that was read of it. When the
//! client leaves, the task ends, and with it the connection to the origin.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::task::{AbortHandle, JoinHandle};

use super::UpstreamBodyError;
use super::body::UpstreamBody;
use crate::upstream::buffers::Lease;
use crate::upstream::spool::SpoolFile;
use crate::upstream::{Spools, Transfer};

/// So many bytes, or pieces, a client's connection takes of a body without a task that reads ahead. hyper
/// holds 128 KiB and 16 pieces for each.
const TAKEN_AT_ONCE: u64 = 64 << 10;
const PIECES_AT_ONCE: u32 = 8;

/// A body that ends within so many bytes it takes whole.
const TAKEN_WHOLE: u64 = 112 << 10;

/// Memory that each body may hold although the buffers are full.
const LEAST: usize = 64 << 10;

/// Smaller pieces are put together.
const SMALL: usize = 16 << 10;

/// So many bytes are written to the file at once.
const STAGE: usize = 64 << 10;

/// A response's body on its way to one client.
#[derive(Debug)]
pub struct Passing(State);

#[derive(Debug)]
enum State {
    /// Straight from the origin: the bytes and pieces so far.
    Direct {
        body: UpstreamBody,
        passed: u32,
        pieces: u32,
    },
    /// The same, until it is told otherwise.
    Held(UpstreamBody),
    /// Read by a task.
    Ahead(Box<Reader>),
    Ended,
}

impl From<UpstreamBody> for Passing {
    fn from(body: UpstreamBody) -> Self {
        Self(State::Direct { body, passed: 0, pieces: 0 })
    }
}

impl Passing {
    /// A body that is not read ahead before [`Passing::begin`].
    pub fn held(body: UpstreamBody) -> Self {
        Self(State::Held(body))
    }

    /// Has a body that is held back read ahead from now on.
    pub fn begin(&mut self) {
        match std::mem::replace(&mut self.0, State::Ended) {
            State::Held(body) => self.hand_over(body),
            state => self.0 = state,
        }
    }

    /// Hands the body to a task, where there is more of it than a client's connection takes at once.
    fn read_ahead(&mut self) {
        let State::Direct { body, passed, pieces } = &self.0 else { return };
        let (passed, pieces) = (u64::from(*passed), *pieces);
        if (passed < TAKEN_AT_ONCE && pieces < PIECES_AT_ONCE) || body.is_end_stream() {
            return;
        }
        let ends_soon = body.size_hint().upper().is_some_and(|left| passed.saturating_add(left) <= TAKEN_WHOLE);
        if ends_soon && pieces < PIECES_AT_ONCE {
            return;
        }
        match std::mem::replace(&mut self.0, State::Ended) {
            State::Direct { body, .. } => self.hand_over(body),
            state => self.0 = state,
        }
    }

    fn hand_over(&mut self, body: UpstreamBody) {
        let ahead = match body.link() {
            Some(link) if link.transfer.buffer_response > 0 => {
                Arc::new(Ahead::new(&link.transfer, Lease::new(link.upstream.buffers())))
            }
            Some(_) | None => {
                self.0 = State::Held(body);
                return;
            }
        };
        let task = tokio::spawn(Arc::clone(&ahead).read(body)).abort_handle();
        self.0 = State::Ahead(Box::new(Reader { ahead, task, reading: None }));
    }
}

impl Body for Passing {
    type Data = Bytes;
    type Error = UpstreamBodyError;

    #[inline]
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        let this = self.get_mut();
        match &mut this.0 {
            State::Direct { body, passed, pieces } => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                if let Some(Ok(data)) = frame.as_ref().map(|frame| frame.as_ref().map(Frame::data_ref)) {
                    let len = data.map_or(0, Bytes::len);
                    *passed = passed.saturating_add(u32::try_from(len).unwrap_or(u32::MAX));
                    *pieces = pieces.saturating_add(1);
                    this.read_ahead();
                }
                Poll::Ready(frame)
            }
            State::Held(body) => Pin::new(body).poll_frame(cx),
            State::Ahead(reader) => reader.poll_frame(cx),
            State::Ended => Poll::Ready(None),
        }
    }

    #[inline(never)]
    fn is_end_stream(&self) -> bool {
        match &self.0 {
            State::Direct { body, .. } | State::Held(body) => body.is_end_stream(),
            State::Ahead(reader) => reader.ahead.queue.lock().is_at_end(),
            State::Ended => true,
        }
    }

    #[inline(never)]
    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            State::Direct { body, .. } | State::Held(body) => body.size_hint(),
            // hyper has asked when it wrote the head.
            State::Ahead(_) | State::Ended => SizeHint::default(),
        }
    }
}

/// The client's end. Dropped, it ends the task.
#[derive(Debug)]
struct Reader {
    ahead: Arc<Ahead>,
    task: AbortHandle,
    /// A piece of the file that is being read.
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Reader {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        loop {
            if let Some(reading) = &mut self.reading {
                let read = ready!(Pin::new(reading).poll(cx));
                self.reading = None;
                let piece = match read.map_err(io::Error::other).flatten() {
                    Ok(piece) => piece,
                    Err(error) => return Poll::Ready(Some(Err(UpstreamBodyError::Lost(error)))),
                };
                self.ahead.queue.lock().was_read(piece.len());
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            let mut queue = self.ahead.queue.lock();
            match queue.next() {
                Next::Piece(piece) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                Next::InFile(file, at, len) => self.reading = Some(file.read(at, len)),
                Next::Trailers(trailers) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Next::Failed(error) => return Poll::Ready(Some(Err(error))),
                Next::Ended => return Poll::Ready(None),
                Next::NotYet => {
                    queue.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
    }
}

/// Holds the part of a body that was read and not yet handed on.
#[derive(Debug)]
struct Ahead {
    queue: Mutex<Queue>,
    /// The most bytes in memory, and in the file.
    limit: usize,
    spool: u64,
    spools: Arc<Spools>,
}

/// Guarded by its lock, which is held for a few instructions at a time. The body's bytes, in this order:
/// those in memory, in the file, in the tail.
#[derive(Debug)]
struct Queue {
    memory: VecDeque<Bytes>,
    ring: Option<Ring>,
    tail: BytesMut,
    /// Counts the bytes in memory and in the tail.
    lease: Lease,
    held: usize,
    /// True while the tail is being written to the file.
    is_writing: bool,
    /// True if no more is written to a file.
    is_without_file: bool,
    end: End,
    /// Woken when there is something to hand on.
    reader: Option<Waker>,
    /// Woken when something was handed on.
    writer: Option<Waker>,
}

/// A file that is written round and round.
#[derive(Debug)]
struct Ring {
    file: Arc<SpoolFile>,
    /// Its length, once it is as long as it may be.
    len: u64,
    /// Bytes written and read so far.
    written: u64,
    read: u64,
}

#[derive(Debug)]
enum End {
    Open,
    Complete,
    Trailers(HeaderMap),
    Failed(UpstreamBodyError),
}

enum Next {
    Piece(Bytes),
    InFile(Arc<SpoolFile>, u64, u64),
    Trailers(HeaderMap),
    Failed(UpstreamBodyError),
    Ended,
    NotYet,
}

/// Names the task's next step.
enum Step {
    /// There is room for another piece.
    Read,
    /// The tail is to go to the file, or to one that is to be made.
    Write(Bytes, Option<(Arc<SpoolFile>, u64, u64)>),
    /// Nothing, until something was handed on.
    Wait,
}

impl Ring {
    fn left(&self) -> u64 {
        self.written - self.read
    }
}

impl Queue {
    fn is_in_memory(&self) -> bool {
        self.ring.is_none() && !self.is_writing
    }

    fn is_at_end(&self) -> bool {
        matches!(self.end, End::Complete) && self.memory.is_empty() && self.tail.is_empty() && self.is_in_memory()
    }

    fn put(&mut self, data: Bytes) -> Option<Waker> {
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

    fn next(&mut self) -> Next {
        if let Some(piece) = self.memory.pop_front() {
            self.let_go(piece.len());
            return Next::Piece(piece);
        }
        if let Some(ring) = &self.ring
            && ring.left() > 0
        {
            let at = ring.read % ring.len;
            return Next::InFile(Arc::clone(&ring.file), at, ring.left().min(ring.len - at));
        }
        if self.is_writing {
            return Next::NotYet;
        }
        // All that is in the file was read: what is written next begins another.
        self.ring = None;
        if !self.tail.is_empty() {
            let piece = self.tail.split().freeze();
            self.let_go(piece.len());
            return Next::Piece(piece);
        }
        match std::mem::replace(&mut self.end, End::Complete) {
            End::Open => {
                self.end = End::Open;
                Next::NotYet
            }
            End::Complete => Next::Ended,
            End::Trailers(trailers) => Next::Trailers(trailers),
            End::Failed(error) => Next::Failed(error),
        }
    }

    /// Counts what was handed on of memory.
    fn let_go(&mut self, bytes: usize) {
        self.held -= bytes;
        self.lease.release(bytes);
        self.wake_writer();
    }

    /// Counts what was handed on of the file.
    fn was_read(&mut self, bytes: usize) {
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

    /// `limit` bytes may be in memory, `spool` in the file.
    fn step(&mut self, limit: usize, spool: u64) -> Step {
        let may_write = spool > 0 && !self.is_without_file;
        let limit = if self.lease.buffers().are_full() { limit.min(LEAST) } else { limit };
        let slack = if may_write { STAGE } else { 0 };
        let has_room = if self.is_in_memory() {
            self.held <= limit || (self.tail.len() < slack && self.held <= limit.saturating_add(slack))
        } else {
            self.tail.len() < slack
        };
        if has_room {
            return Step::Read;
        }
        if !may_write {
            return Step::Wait;
        }
        let place = match &self.ring {
            Some(ring) if ring.left() + self.tail.len() as u64 > ring.len => return Step::Wait,
            Some(ring) => Some((Arc::clone(&ring.file), ring.written % ring.len, ring.len)),
            None => None,
        };
        if self.tail.is_empty() {
            // Moves the newest piece of memory to the file, so that the order holds: pieces in memory are large.
            let Some(piece) = self.memory.pop_back() else { return Step::Wait };
            self.tail.extend_from_slice(&piece);
        }
        if self.tail.len() as u64 > spool {
            return Step::Wait;
        }
        self.is_writing = true;
        Step::Write(self.tail.split().freeze(), place)
    }

    /// Notes that `bytes` are in the file.
    fn has_written(&mut self, bytes: usize) {
        if let Some(ring) = &mut self.ring {
            ring.written += bytes as u64;
        }
        self.held -= bytes;
        self.lease.release(bytes);
    }

    /// Notes that `piece` is not: there is no room for it on the disk.
    fn has_not_written(&mut self, piece: Bytes) {
        self.tail = BytesMut::from(piece);
        match &mut self.ring {
            // It goes round from here on.
            Some(ring) if (1..ring.len).contains(&ring.written) => ring.len = ring.written,
            Some(_) | None => self.is_without_file = true,
        }
    }
}

impl Ahead {
    fn new(transfer: &Transfer, lease: Lease) -> Self {
        let spools = Arc::clone(&lease.buffers().spools);
        let queue = Queue {
            memory: VecDeque::new(),
            ring: None,
            tail: BytesMut::new(),
            lease,
            held: 0,
            is_writing: false,
            is_without_file: false,
            end: End::Open,
            reader: None,
            writer: None,
        };
        let limit = usize::try_from(transfer.buffer_response).unwrap_or(usize::MAX);
        Self { queue: Mutex::new(queue), limit, spool: transfer.spool, spools }
    }

    /// Reads `body` to its end.
    async fn read(self: Arc<Self>, mut body: UpstreamBody) {
        loop {
            self.make_room().await;
            let end = match body.frame().await {
                None => End::Complete,
                Some(Err(error)) => End::Failed(error),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        let mut queue = self.queue.lock();
                        let reader = queue.put(data);
                        let is_last = body.is_end_stream();
                        if is_last {
                            queue.end = End::Complete;
                        }
                        drop(queue);
                        wake(reader);
                        if is_last {
                            return;
                        }
                        continue;
                    }
                    Err(frame) => frame.into_trailers().map_or(End::Complete, End::Trailers),
                },
            };
            let mut queue = self.queue.lock();
            queue.end = end;
            let reader = queue.reader.take();
            drop(queue);
            return wake(reader);
        }
    }

    /// Waits until there is room for another piece, and writes what has to go to the file for that.
    async fn make_room(&self) {
        loop {
            let step = std::future::poll_fn(|cx| {
                let mut queue = self.queue.lock();
                match queue.step(self.limit, self.spool) {
                    Step::Wait => {
                        queue.writer = Some(cx.waker().clone());
                        Poll::Pending
                    }
                    step => Poll::Ready(step),
                }
            });
            match step.await {
                Step::Read | Step::Wait => return,
                Step::Write(piece, place) => self.write(piece, place).await,
            }
        }
    }

    async fn write(&self, piece: Bytes, place: Option<(Arc<SpoolFile>, u64, u64)>) {
        let (place, is_new) = match place {
            Some(place) => (Some(place), false),
            None => (self.spools.open().await.map(|file| (Arc::new(file), 0, self.spool)), true),
        };
        let mut is_written = false;
        if let Some((file, at, len)) = &place {
            let first = usize::try_from(len - at).unwrap_or(usize::MAX).min(piece.len());
            is_written = file.write(*at, vec![piece.slice(..first)]).await;
            if is_written && first < piece.len() {
                is_written = file.write(0, vec![piece.slice(first..)]).await;
            }
        }
        let mut queue = self.queue.lock();
        queue.is_writing = false;
        if let (true, true, Some((file, _, len))) = (is_written, is_new, place) {
            queue.ring = Some(Ring { file, len, written: 0, read: 0 });
        }
        if is_written {
            queue.has_written(piece.len());
        } else {
            queue.has_not_written(piece);
        }
        let reader = queue.reader.take();
        drop(queue);
        wake(reader);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
