//! A response's body on its way to one client, read ahead of it.
//!
//! An application that serves one request at a time should not wait for a client that reads slowly. hyper buffers the
//! first 128 KiB of a response by itself. A task reads the rest of a longer one:
//!
//! * up to `buffer_response` bytes into memory, counted in [`Buffers`](crate::upstream::Buffers);
//! * further bytes into a temporary file, up to `spool` at a time. The file is written in a circle, so that it does not
//!   grow with the response;
//! * at the pace of the client once both are full.
//!
//! A body that is to be stored is not read ahead, unless it turns out too large for memory.
//!
//! The client gets each piece as soon as it was read. If the origin breaks off, the client gets all that was read, and
//! then the error. When the client leaves, the task ends, and the connection to the origin with it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::task::{AbortHandle, JoinHandle};

use super::ahead_queue::{AheadQueue, AheadStep, BodyEnd, FilePlace, NextPart};
use super::body::UpstreamBody;
use super::buffers::BufferLease;
use super::{Spools, Transfer, UpstreamBodyError};

/// Bytes of a body after which a task begins to read ahead. hyper buffers 128 KiB for each connection.
const DIRECT_BYTES: u64 = 64 << 10;

/// Pieces of a body after which a task begins to read ahead. hyper buffers 16 for each connection.
const DIRECT_PIECES: u32 = 8;

/// The longest body that is never read ahead, since hyper's buffer takes all of it.
const DIRECT_WHOLE: u64 = 112 << 10;

/// A response's body on its way to one client.
#[derive(Debug)]
pub struct Passing(PassingState);

#[derive(Debug)]
enum PassingState {
    /// Read from the origin as the client reads; `passed` bytes in `pieces` so far. A task takes over when there is more.
    Direct { body: UpstreamBody, passed: u32, pieces: u32 },
    /// Read from the origin as the client reads.
    OnDemand(UpstreamBody),
    /// Read by a task.
    Ahead(Box<AheadReader>),
    /// Ended.
    Ended,
}

impl From<UpstreamBody> for Passing {
    fn from(body: UpstreamBody) -> Self {
        Self(PassingState::Direct { body, passed: 0, pieces: 0 })
    }
}

impl Passing {
    /// Passes a body that is not read ahead before [`Passing::begin`].
    pub fn on_demand(body: UpstreamBody) -> Self {
        Self(PassingState::OnDemand(body))
    }

    /// Starts to read ahead a body made with [`Passing::on_demand`].
    pub fn begin(&mut self) {
        match std::mem::replace(&mut self.0, PassingState::Ended) {
            PassingState::OnDemand(body) => self.hand_over(body),
            state => self.0 = state,
        }
    }

    /// Hands the body to a task if hyper's buffer does not take all of it.
    fn read_ahead(&mut self) {
        let PassingState::Direct { body, passed, pieces } = &self.0 else { return };
        let (passed, pieces) = (u64::from(*passed), *pieces);
        if (passed < DIRECT_BYTES && pieces < DIRECT_PIECES) || body.is_end_stream() {
            return;
        }
        let ends_soon = body.size_hint().upper().is_some_and(|left| passed.saturating_add(left) <= DIRECT_WHOLE);
        if ends_soon && pieces < DIRECT_PIECES {
            return;
        }
        match std::mem::replace(&mut self.0, PassingState::Ended) {
            PassingState::Direct { body, .. } => self.hand_over(body),
            state => self.0 = state,
        }
    }

    /// Spawns the task that reads `body`, if it may be read ahead.
    fn hand_over(&mut self, body: UpstreamBody) {
        let ahead = match body.link() {
            Some(link) if link.transfer.buffer_response > 0 => {
                Arc::new(Ahead::new(&link.transfer, BufferLease::new(link.upstream.buffers())))
            }
            Some(_) | None => {
                self.0 = PassingState::OnDemand(body);
                return;
            }
        };
        let task = tokio::spawn(Arc::clone(&ahead).read(body)).abort_handle();
        self.0 = PassingState::Ahead(Box::new(AheadReader { ahead, task, reading: None }));
    }
}

impl Body for Passing {
    type Data = Bytes;
    type Error = UpstreamBodyError;

    #[inline]
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        let this = self.get_mut();
        match &mut this.0 {
            PassingState::Direct { body, passed, pieces } => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                if let Some(Ok(data)) = frame.as_ref().map(|frame| frame.as_ref().map(Frame::data_ref)) {
                    let len = data.map_or(0, Bytes::len);
                    *passed = passed.saturating_add(u32::try_from(len).unwrap_or(u32::MAX));
                    *pieces = pieces.saturating_add(1);
                    this.read_ahead();
                }
                Poll::Ready(frame)
            }
            PassingState::OnDemand(body) => Pin::new(body).poll_frame(cx),
            PassingState::Ahead(reader) => reader.poll_frame(cx),
            PassingState::Ended => Poll::Ready(None),
        }
    }

    #[inline(never)]
    fn is_end_stream(&self) -> bool {
        match &self.0 {
            PassingState::Direct { body, .. } | PassingState::OnDemand(body) => body.is_end_stream(),
            PassingState::Ahead(reader) => reader.ahead.queue.lock().is_at_end(),
            PassingState::Ended => true,
        }
    }

    #[inline(never)]
    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            PassingState::Direct { body, .. } | PassingState::OnDemand(body) => body.size_hint(),
            // hyper asked when it wrote the head.
            PassingState::Ahead(_) | PassingState::Ended => SizeHint::default(),
        }
    }
}

/// The client's end of a body that is read ahead. Aborts the task when dropped.
#[derive(Debug)]
struct AheadReader {
    ahead: Arc<Ahead>,
    task: AbortHandle,
    /// The read of a piece of the file, while it is under way.
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

impl Drop for AheadReader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl AheadReader {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        loop {
            if let Some(reading) = &mut self.reading {
                let read = ready!(Pin::new(reading).poll(cx));
                self.reading = None;
                let piece = match read.map_err(io::Error::other).flatten() {
                    Ok(piece) => piece,
                    Err(error) => return Poll::Ready(Some(Err(UpstreamBodyError::Lost(error)))),
                };
                self.ahead.queue.lock().note_read(piece.len());
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            let mut queue = self.ahead.queue.lock();
            match queue.next() {
                NextPart::Piece(piece) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                NextPart::InFile(file, at, len) => self.reading = Some(file.read(at, len)),
                NextPart::Trailers(trailers) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                NextPart::Failed(error) => return Poll::Ready(Some(Err(error))),
                NextPart::Ended => return Poll::Ready(None),
                NextPart::NotYet => {
                    queue.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
    }
}

/// A body that is read ahead, shared by the task and the client's end.
#[derive(Debug)]
pub(super) struct Ahead {
    /// The bytes read and not yet handed to the client. Locked for a few instructions at a time.
    queue: Mutex<AheadQueue>,
    /// The most bytes in memory.
    limit: usize,
    /// The most bytes in the file.
    spool: u64,
    spools: Arc<Spools>,
}

impl Ahead {
    fn new(transfer: &Transfer, lease: BufferLease) -> Self {
        let spools = Arc::clone(&lease.buffers().spools);
        let limit = usize::try_from(transfer.buffer_response).unwrap_or(usize::MAX);
        let queue = Mutex::new(AheadQueue::new(lease));
        Self { queue, limit, spool: transfer.spool, spools }
    }

    /// Reads `body` to its end.
    async fn read(self: Arc<Self>, mut body: UpstreamBody) {
        loop {
            self.make_room().await;
            let end = match body.frame().await {
                None => BodyEnd::Complete,
                Some(Err(error)) => BodyEnd::Failed(error),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        let mut queue = self.queue.lock();
                        let reader = queue.put(data);
                        let is_last = body.is_end_stream();
                        if is_last {
                            queue.end = BodyEnd::Complete;
                        }
                        drop(queue);
                        wake(reader);
                        if is_last {
                            return;
                        }
                        continue;
                    }
                    Err(frame) => frame.into_trailers().map_or(BodyEnd::Complete, BodyEnd::Trailers),
                },
            };
            let mut queue = self.queue.lock();
            queue.end = end;
            let reader = queue.reader.take();
            drop(queue);
            return wake(reader);
        }
    }

    /// Waits until there is room for another piece, and writes pieces to the file to make it.
    async fn make_room(&self) {
        loop {
            let step = std::future::poll_fn(|cx| {
                let mut queue = self.queue.lock();
                match queue.step(self.limit, self.spool) {
                    AheadStep::Wait => {
                        queue.writer = Some(cx.waker().clone());
                        Poll::Pending
                    }
                    step => Poll::Ready(step),
                }
            });
            match step.await {
                AheadStep::Read | AheadStep::Wait => return,
                AheadStep::Write(piece, place) => self.write(piece, place).await,
            }
        }
    }

    /// Writes `piece` to the file at `place`, or to a new file.
    async fn write(&self, piece: Bytes, place: Option<FilePlace>) {
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
        let new_file = place.filter(|_| is_new).map(|(file, _, len)| (file, len));
        let reader = self.queue.lock().end_write(piece, is_written, new_file);
        wake(reader);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
