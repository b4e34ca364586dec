//! A body on its way in, read by any number of clients on its way out.
//!
//! One writer appends chunks as they arrive; every reader walks them from the first at its own
//! pace. A chunk is shared, never copied, between readers.
//!
//! * While the body stays within its limits it is kept **whole**: the writer never waits, a reader
//!   may join at any time before the end, and at the end the body can be stored.
//! * Once it grows past them the fill becomes a **window**: chunks that every reader has passed
//!   are dropped, the writer waits for the slowest reader, and who comes late is turned away.
//!
//! A fill ends [`FillWriter::complete`]d or failed. A writer that is dropped before it completes
//! has failed: readers then see an error, never a clean end.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::stored::Body;

/// How long a reader may hold up others before it is turned out.
const STALL: Duration = Duration::from_secs(5);

/// How many bytes a window holds before its writer waits.
const WINDOW: usize = 256 * 1024;

/// Bytes that all fills together may keep. Shared by every fill of a proxy.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit })
    }

    /// Bytes that fills keep now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn reserve(&self, bytes: usize) -> bool {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.limit {
            self.release(bytes);
            return false;
        }
        true
    }

    fn release(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The body of a fetch, shared between its writer and its readers.
pub struct Fill {
    state: Mutex<State>,
    /// The most bytes kept whole.
    limit: usize,
    budget: Arc<Budget>,
}

/// Guarded by the fill's lock, which is held for a few instructions at a time and never across
/// an await or a wake.
struct State {
    /// The chunks kept, and how many readers have each as their next.
    chunks: VecDeque<Chunk>,
    /// The number of chunks dropped from the front.
    dropped: u64,
    /// Bytes in `chunks`.
    kept: usize,
    /// Bytes reserved from the budget.
    reserved: usize,
    /// Bytes appended so far.
    len: u64,
    mode: Mode,
    end: End,
    /// The readers, by slot.
    readers: Vec<Option<Place>>,
    free: Vec<usize>,
    /// Readers that have read all there is so far.
    at_end: usize,
    writer: Option<Waker>,
}

struct Chunk {
    bytes: Bytes,
    readers: usize,
}

/// Where a reader is.
#[derive(Default)]
struct Place {
    /// The number of its next chunk.
    next: u64,
    /// Woken when that has come.
    waker: Option<Waker>,
    /// It held up others for too long, and gets no more.
    turned_out: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Whole,
    Window,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    Complete,
    Failed,
}

/// The body ended before it was complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incomplete;

impl fmt::Display for Incomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the origin's response ended before it was complete")
    }
}

impl std::error::Error for Incomplete {}

impl fmt::Debug for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Fill").field("len", &state.len).field("mode", &state.mode).field("end", &state.end).finish()
    }
}

impl Fill {
    /// A fill that keeps at most `limit` bytes whole, and counts them against `budget`.
    pub fn start(limit: usize, budget: Arc<Budget>) -> FillWriter {
        let state = State {
            chunks: VecDeque::new(),
            dropped: 0,
            kept: 0,
            reserved: 0,
            len: 0,
            mode: Mode::Whole,
            end: End::Open,
            readers: Vec::new(),
            free: Vec::new(),
            at_end: 0,
            writer: None,
        };
        FillWriter { fill: Arc::new(Self { state: Mutex::new(state), limit, budget }), finished: false }
    }

    /// Joins as a reader from the first byte; `None` when that byte is no longer kept.
    pub fn reader(self: &Arc<Self>) -> Option<FillReader> {
        let mut state = self.state.lock();
        if state.dropped > 0 {
            return None;
        }
        match state.chunks.front_mut() {
            Some(chunk) => chunk.readers += 1,
            None => state.at_end += 1,
        }
        let slot = match state.free.pop() {
            Some(slot) => {
                state.readers[slot] = Some(Place::default());
                slot
            }
            None => {
                state.readers.push(Some(Place::default()));
                state.readers.len() - 1
            }
        };
        drop(state);
        Some(FillReader { fill: Arc::clone(self), slot })
    }
}

impl State {
    fn append(&mut self, bytes: Bytes) {
        self.kept += bytes.len();
        self.len += bytes.len() as u64;
        let readers = std::mem::take(&mut self.at_end);
        self.chunks.push_back(Chunk { bytes, readers });
    }

    fn take_wakers(&mut self) -> Vec<Waker> {
        self.readers.iter_mut().flatten().filter_map(|reader| reader.waker.take()).collect()
    }

    fn active_readers(&self) -> usize {
        self.readers.len() - self.free.len()
    }

    /// Moves the reader in `slot` from chunk `from` to the next.
    fn advance(&mut self, slot: usize, from: u64) {
        self.leave(from);
        if let Some(reader) = &mut self.readers[slot] {
            reader.next = from + 1;
        }
        match self.index(from + 1).and_then(|at| self.chunks.get_mut(at)) {
            Some(chunk) => chunk.readers += 1,
            None => self.at_end += 1,
        }
        self.trim();
    }

    fn leave(&mut self, from: u64) {
        match self.index(from).and_then(|at| self.chunks.get_mut(at)) {
            Some(chunk) => chunk.readers -= 1,
            None => self.at_end -= 1,
        }
    }

    fn index(&self, chunk: u64) -> Option<usize> {
        usize::try_from(chunk.checked_sub(self.dropped)?).ok()
    }

    /// In a window, drops what every reader has passed, and lets the writer go on.
    fn trim(&mut self) {
        if self.mode == Mode::Whole {
            return;
        }
        while self.chunks.front().is_some_and(|chunk| chunk.readers == 0) {
            if let Some(chunk) = self.chunks.pop_front() {
                self.kept -= chunk.bytes.len();
                self.dropped += 1;
            }
        }
    }
}

/// The one that appends to a fill. Dropped before [`FillWriter::complete`], it fails the fill.
#[derive(Debug)]
pub struct FillWriter {
    fill: Arc<Fill>,
    finished: bool,
}

impl FillWriter {
    /// The fill, for readers to join.
    pub fn fill(&self) -> &Arc<Fill> {
        &self.fill
    }

    /// Appends `bytes`; in a window, first waits for the slowest reader. `false`: the body is no
    /// longer kept whole and nobody reads it, so there is no use in going on.
    pub async fn push(&mut self, bytes: Bytes) -> bool {
        if bytes.is_empty() {
            return true;
        }
        while tokio::time::timeout(STALL, std::future::poll_fn(|cx| self.poll_room(cx))).await.is_err() {
            self.turn_out_the_slowest();
        }
        let wakers = {
            let mut state = self.fill.state.lock();
            let state = &mut *state;
            if state.mode == Mode::Whole {
                let fits = state.kept + bytes.len() <= self.fill.limit;
                if fits && self.fill.budget.reserve(bytes.len()) {
                    state.reserved += bytes.len();
                } else {
                    state.mode = Mode::Window;
                    self.fill.budget.release(std::mem::take(&mut state.reserved));
                    state.trim();
                }
            }
            if state.mode == Mode::Window && state.active_readers() == 0 {
                return false;
            }
            state.append(bytes);
            state.take_wakers()
        };
        wakers.into_iter().for_each(Waker::wake);
        true
    }

    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.fill.state.lock();
        state.trim();
        let full = state.mode == Mode::Window && state.kept >= WINDOW && state.active_readers() > 0;
        if full {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Fails the readers that have not moved while others wait for what comes next. One that reads
    /// alone is left its own pace.
    fn turn_out_the_slowest(&self) {
        let wakers = {
            let mut state = self.fill.state.lock();
            if state.at_end == 0 {
                return;
            }
            let first = state.dropped;
            let mut wakers = Vec::new();
            for reader in state.readers.iter_mut().flatten() {
                if reader.next == first {
                    reader.turned_out = true;
                    wakers.extend(reader.waker.take());
                }
            }
            if let Some(chunk) = state.chunks.front_mut() {
                chunk.readers = 0;
            }
            state.trim();
            wakers
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The whole body, `last` included, if it was kept: what is to be stored. To be asked for
    /// before [`FillWriter::complete`], so that a client that has read to the end finds it stored.
    pub fn whole(&self, last: &Bytes) -> Option<Body> {
        let state = self.fill.state.lock();
        if state.mode == Mode::Window || state.kept + last.len() > self.fill.limit {
            return None;
        }
        let len = state.len + last.len() as u64;
        Some(Body::from_chunks(state.chunks.iter().map(|chunk| &chunk.bytes).chain(std::iter::once(last)), len))
    }

    /// Appends `last`, which may be empty, and ends the fill well.
    pub fn complete(mut self, last: Bytes) {
        self.finished = true;
        let wakers = {
            let mut state = self.fill.state.lock();
            if !last.is_empty() {
                state.append(last);
            }
            state.end = End::Complete;
            self.fill.budget.release(std::mem::take(&mut state.reserved));
            state.take_wakers()
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Drop for FillWriter {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let wakers = {
            let mut state = self.fill.state.lock();
            state.end = End::Failed;
            self.fill.budget.release(std::mem::take(&mut state.reserved));
            state.take_wakers()
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// One reader of a fill.
#[derive(Debug)]
pub struct FillReader {
    fill: Arc<Fill>,
    slot: usize,
}

impl FillReader {
    /// The next chunk; `None` at the end of a complete body.
    pub fn poll_chunk(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Incomplete>>> {
        let this = self.get_mut();
        let mut state = this.fill.state.lock();
        let next = match &state.readers[this.slot] {
            Some(reader) if !reader.turned_out => reader.next,
            Some(_) | None => return Poll::Ready(Some(Err(Incomplete))),
        };
        let chunk = state.index(next).and_then(|at| state.chunks.get(at)).map(|chunk| chunk.bytes.clone());
        if let Some(bytes) = chunk {
            state.advance(this.slot, next);
            let writer = (state.kept < WINDOW).then(|| state.writer.take()).flatten();
            drop(state);
            if let Some(writer) = writer {
                writer.wake();
            }
            return Poll::Ready(Some(Ok(bytes)));
        }
        match state.end {
            End::Complete => Poll::Ready(None),
            End::Failed => Poll::Ready(Some(Err(Incomplete))),
            End::Open => {
                if let Some(reader) = &mut state.readers[this.slot]
                    && !reader.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()))
                {
                    reader.waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }

    /// Whether every byte was read and the body is complete.
    pub fn is_end(&self) -> bool {
        let state = self.fill.state.lock();
        let next = state.readers[self.slot].as_ref().filter(|reader| !reader.turned_out).map(|reader| reader.next);
        state.end == End::Complete && next.and_then(|next| state.index(next)) == Some(state.chunks.len())
    }
}

impl Drop for FillReader {
    fn drop(&mut self) {
        let writer = {
            let mut state = self.fill.state.lock();
            if let Some(reader) = state.readers[self.slot].take()
                && !reader.turned_out
            {
                state.leave(reader.next);
            }
            state.free.push(self.slot);
            state.trim();
            state.writer.take()
        };
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn next(reader: &mut FillReader) -> Option<Result<Bytes, Incomplete>> {
        poll_fn(|cx| Pin::new(&mut *reader).poll_chunk(cx)).await
    }

    fn is_pending(reader: &mut FillReader) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(reader).poll_chunk(&mut cx).is_pending()
    }

    #[tokio::test]
    async fn every_reader_sees_every_byte_whenever_it_joins() {
        let budget = Budget::new(1000);
        let mut writer = Fill::start(100, Arc::clone(&budget));
        let mut early = writer.fill().reader().expect("nothing dropped");
        assert!(is_pending(&mut early));
        assert!(writer.push(Bytes::from_static(b"one")).await);
        let mut late = writer.fill().reader().expect("nothing dropped");
        assert_eq!(next(&mut early).await, Some(Ok(Bytes::from_static(b"one"))));
        assert!(writer.push(Bytes::from_static(b"two")).await);
        assert_eq!(budget.used(), 6);
        let fill = Arc::clone(writer.fill());
        let last = Bytes::from_static(b"three");
        let body = writer.whole(&last).expect("kept whole");
        assert_eq!(body.segments(), [Bytes::from_static(b"onetwothree")]);
        writer.complete(last);
        assert_eq!(budget.used(), 0);
        let mut after = fill.reader().expect("nothing dropped");
        for reader in [&mut late, &mut after] {
            assert_eq!(next(reader).await, Some(Ok(Bytes::from_static(b"one"))));
            assert_eq!(next(reader).await, Some(Ok(Bytes::from_static(b"two"))));
            assert_eq!(next(reader).await, Some(Ok(Bytes::from_static(b"three"))));
            assert_eq!(next(reader).await, None);
            assert!(reader.is_end());
        }
    }

    #[tokio::test]
    async fn a_dropped_writer_is_a_failure_never_an_end() {
        let mut writer = Fill::start(100, Budget::new(1000));
        let mut reader = writer.fill().reader().expect("nothing dropped");
        writer.push(Bytes::from_static(b"half")).await;
        drop(writer);
        assert_eq!(next(&mut reader).await, Some(Ok(Bytes::from_static(b"half"))));
        assert_eq!(next(&mut reader).await, Some(Err(Incomplete)));
    }

    #[tokio::test]
    async fn past_its_limit_it_follows_the_slowest_reader_and_keeps_a_window_only() {
        let budget = Budget::new(usize::MAX);
        let mut writer = Fill::start(WINDOW, Arc::clone(&budget));
        let mut slow = writer.fill().reader().expect("nothing dropped");
        let mut quick = writer.fill().reader().expect("nothing dropped");
        let chunk = Bytes::from(vec![7; WINDOW / 2]);
        for _ in 0..3 {
            assert!(writer.push(chunk.clone()).await);
        }
        assert_eq!(budget.used(), 0, "a window is bounded by itself");
        for _ in 0..3 {
            assert_eq!(next(&mut quick).await, Some(Ok(chunk.clone())));
        }
        let mut cx = Context::from_waker(Waker::noop());
        assert!(writer.poll_room(&mut cx).is_pending(), "the slow reader holds it back");
        assert_eq!(next(&mut slow).await, Some(Ok(chunk.clone())));
        assert!(writer.fill().reader().is_none(), "the head is gone");
        assert_eq!(next(&mut slow).await, Some(Ok(chunk.clone())));
        assert!(writer.poll_room(&mut cx).is_ready());
        drop(slow);
        assert!(writer.push(chunk.clone()).await);
        drop(quick);
        assert!(!writer.push(chunk).await, "nobody reads, nothing is kept: no use in going on");
        assert!(writer.whole(&Bytes::new()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stands_still_is_turned_out_when_others_wait() {
        let mut writer = Fill::start(0, Budget::new(usize::MAX));
        let mut stuck = writer.fill().reader().expect("nothing dropped");
        let mut quick = writer.fill().reader().expect("nothing dropped");
        let chunk = Bytes::from(vec![7; WINDOW]);
        assert!(writer.push(chunk.clone()).await);
        assert_eq!(next(&mut quick).await, Some(Ok(chunk.clone())));
        // Time is the test's own: it moves on by itself while nothing else can.
        assert!(writer.push(chunk.clone()).await);
        assert_eq!(next(&mut quick).await, Some(Ok(chunk.clone())));
        assert_eq!(next(&mut stuck).await, Some(Err(Incomplete)));
        drop(stuck);
        writer.complete(Bytes::new());
        assert_eq!(next(&mut quick).await, None);
    }

    #[tokio::test]
    async fn the_budget_bounds_all_fills_together() {
        let budget = Budget::new(10);
        let mut a = Fill::start(100, Arc::clone(&budget));
        let mut b = Fill::start(100, Arc::clone(&budget));
        let _reader = b.fill().reader();
        assert!(a.push(Bytes::from_static(b"12345678")).await);
        assert!(b.push(Bytes::from_static(b"12345678")).await);
        assert_eq!(budget.used(), 8);
        assert!(a.whole(&Bytes::new()).is_some());
        assert!(b.whole(&Bytes::new()).is_none(), "over budget: streamed, not stored");
        a.complete(Bytes::new());
        b.complete(Bytes::new());
        assert_eq!(budget.used(), 0);
    }
}
