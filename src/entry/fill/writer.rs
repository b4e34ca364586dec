//! The writer of a fill.

use std::fmt;
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;

use super::pace::{BlockedTime, LOOK_AGAIN};
use super::state::{FillEnd, FillMode};
use super::{Fill, FillReader, Unread};
use crate::base::Stopwatch;
use crate::entry::Body;

/// Called with a reader in the background once a body outgrows its limit.
type OnOverflow = Box<dyn FnOnce(FillReader) + Send>;

/// Appends to a fill. Fails the fill when it is dropped before [`FillWriter::complete`].
pub struct FillWriter {
    fill: Arc<Fill>,
    is_finished: bool,
    is_window: bool,
    /// The function to call when the body outgrows its limit, and the rate of its reader.
    on_overflow: Option<(u64, OnOverflow)>,
    blocked: BlockedTime,
    unread: Unread,
    /// Start of the time without a client.
    unread_since: Option<Stopwatch>,
}

impl fmt::Debug for FillWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FillWriter").field("fill", &self.fill).finish_non_exhaustive()
    }
}

impl FillWriter {
    /// Makes the writer of an empty fill.
    pub(super) fn new(fill: Arc<Fill>, unread: Unread) -> Self {
        Self {
            fill,
            is_finished: false,
            is_window: false,
            on_overflow: None,
            blocked: BlockedTime::default(),
            unread,
            unread_since: None,
        }
    }

    /// Returns the fill, for readers to join.
    pub fn fill(&self) -> &Arc<Fill> {
        &self.fill
    }

    /// Calls `take` when the body outgrows what is kept whole, with a background reader at its first byte (see
    /// [`Fill::background_reader`]).
    pub fn on_overflow(&mut self, rate: u64, take: impl FnOnce(FillReader) + Send + 'static) {
        self.on_overflow = Some((rate, Box::new(take)));
    }

    /// Returns whether the body is no longer kept whole: the writer may have to wait for readers.
    pub fn is_window(&self) -> bool {
        self.is_window
    }

    /// Appends `bytes`; in a window, first waits for the slowest reader.
    ///
    /// Returns `false` if there is no use in reading on: the body is no longer kept whole and has no reader, or it has
    /// had no client for longer than [`Unread`] allows.
    pub async fn push(&mut self, bytes: Bytes) -> bool {
        if bytes.is_empty() {
            return true;
        }
        self.wait_for_room().await;
        self.blocked.allow_for(bytes.len());
        let (wakers, overflow) = {
            let mut state = self.fill.state.lock();
            let state = &mut *state;
            let mut overflow = None;
            if state.mode == FillMode::Whole {
                let fits = state.kept + bytes.len() <= self.fill.limit;
                if !fits || !self.fill.budget.reserve(bytes.len()) {
                    state.mode = FillMode::Window;
                    self.is_window = true;
                    if let Some((rate, take)) = self.on_overflow.take()
                        && let Some(slot) = state.join(Some(rate.max(1)))
                    {
                        overflow = Some((slot, take));
                    }
                    state.trim(&self.fill.budget);
                    self.fill.budget.add(bytes.len());
                }
            } else {
                self.fill.budget.add(bytes.len());
            }
            if state.mode == FillMode::Window && !state.has_readers() {
                self.fill.budget.release(bytes.len());
                return false;
            }
            if state.is_unread_for_long(self.unread, &mut self.unread_since) {
                self.fill.budget.release(bytes.len());
                return false;
            }
            state.append(bytes);
            (state.take_wakers(), overflow)
        };
        if let Some((slot, take)) = overflow {
            take(FillReader::new(Arc::clone(&self.fill), slot));
        }
        wakers.into_iter().for_each(Waker::wake);
        true
    }

    /// Waits until another chunk may be appended, and expels readers that block clients for too long.
    async fn wait_for_room(&mut self) {
        loop {
            let blocker = {
                let mut state = self.fill.state.lock();
                state.trim(&self.fill.budget);
                if !state.is_full() {
                    return;
                }
                state.blocker()
            };
            let (fill, began) = (Arc::clone(&self.fill), Stopwatch::start());
            let room = std::future::poll_fn(|cx| fill.poll_room(cx));
            let _ = tokio::time::timeout(LOOK_AGAIN, room).await;
            // A reader that blocks no client keeps its own pace.
            let is_too_long = fill.state.lock().client_waits && self.blocked.add(blocker, began.elapsed());
            if is_too_long {
                self.fill.expel(blocker);
            }
        }
    }

    /// Returns the whole body, `last` included, if it was kept. Called before [`FillWriter::complete`], so that the
    /// body is stored before a client has read it to the end.
    pub fn whole(&self, last: &Bytes) -> Option<Body> {
        let state = self.fill.state.lock();
        if state.mode == FillMode::Window || state.kept + last.len() > self.fill.limit {
            return None;
        }
        let len = state.len + last.len() as u64;
        Some(Body::from_chunks(state.chunks.iter().map(|chunk| &chunk.bytes).chain(std::iter::once(last)), len))
    }

    /// Returns whether a body that ends with `last` can be kept whole.
    pub fn has_room_for(&self, last: &Bytes) -> bool {
        let state = self.fill.state.lock();
        state.mode == FillMode::Whole && state.kept + last.len() <= self.fill.limit
    }

    /// Appends `last`, which may be empty, and completes the fill. `stored` is the whole body as it is stored; with it,
    /// the fill frees its chunks.
    pub fn complete(mut self, last: Bytes, stored: Option<Body>) {
        self.is_finished = true;
        let wakers = {
            let mut state = self.fill.state.lock();
            if !last.is_empty() {
                self.fill.budget.add(last.len());
                state.append(last);
            }
            state.finish(FillEnd::Complete, stored, &self.fill.budget)
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Drop for FillWriter {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        let wakers = self.fill.state.lock().finish(FillEnd::Failed, None, &self.fill.budget);
        wakers.into_iter().for_each(Waker::wake);
    }
}
