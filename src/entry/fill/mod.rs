//! A body that comes from the origin and is read by any number of clients meanwhile.
//!
//! One writer appends chunks as they arrive. Each reader reads them from the first on, at its own pace. Readers share
//! the chunks' bytes; none are copied.
//!
//! * While the body stays within its limits the fill keeps it **whole**. The writer never waits, a reader may join at
//!   any time, and at the end the body can be stored. Once it is stored, readers read the stored body, and the chunks
//!   are freed.
//! * A body that grows past its limits makes the fill a **window**. Chunks that every reader has read are dropped, and
//!   the writer waits for the slowest reader. Once the first chunk was dropped, no reader can join.
//!
//! A window expels a reader that holds the others below a least rate ([`pace`]). A reader in the background (a durable
//! upload) names the rate below which it is expelled.
//!
//! A fill ends [complete](FillWriter::complete) or failed. It fails when its writer is dropped before it completes:
//! readers then get an error, never a clean end.
//!
//! The [`Budget`] counts every byte that a fill keeps until it is freed.

mod budget;
mod pace;
mod reader;
mod state;
mod unread;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

pub use self::budget::Budget;
pub(crate) use self::budget::Reading;
use self::pace::Blocker;
pub use self::reader::FillReader;
use self::state::FillState;
pub use self::unread::Unread;
pub use self::writer::FillWriter;

/// Bytes that a window keeps before its writer waits.
const WINDOW: usize = 256 * 1024;

/// The body of a fetch, shared between its writer and its readers.
pub struct Fill {
    /// Locked for a few instructions at a time, never across an await or a wake.
    state: Mutex<FillState>,
    /// The most bytes that are kept whole.
    limit: usize,
    budget: Arc<Budget>,
}

/// The error of a body that ended before it was complete.
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
    /// Starts a fill that keeps at most `limit` bytes whole, and counts its bytes in `budget`.
    pub fn start(limit: usize, unread: Unread, budget: Arc<Budget>) -> FillWriter {
        FillWriter::new(Arc::new(Self { state: Mutex::new(FillState::new()), limit, budget }), unread)
    }

    /// Adds a reader that begins at the first byte. Returns `None` if that byte is no longer kept.
    pub fn reader(self: &Arc<Self>) -> Option<FillReader> {
        self.join(None)
    }

    /// Adds a reader that is no client, and that is expelled when it holds clients below `rate` bytes a second.
    pub fn background_reader(self: &Arc<Self>, rate: u64) -> Option<FillReader> {
        self.join(Some(rate.max(1)))
    }

    fn join(self: &Arc<Self>, background: Option<u64>) -> Option<FillReader> {
        let slot = self.state.lock().join(background)?;
        Some(FillReader::new(Arc::clone(self), slot))
    }

    /// Becomes ready when another chunk may be appended.
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        state.trim(&self.budget);
        if state.is_full() {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Expels the readers whose next chunk is the oldest: all of them, or only those in the background.
    fn expel(&self, blocker: Blocker) {
        let mut wakers = Vec::new();
        let mut state = self.state.lock();
        let mut left = 0;
        for cursor in state.slowest() {
            if blocker == Blocker::Client || cursor.background.is_some() {
                cursor.is_expelled = true;
                wakers.extend(cursor.waker.take());
            } else {
                left += 1;
            }
        }
        if let Some(chunk) = state.chunks.front_mut() {
            chunk.readers = left;
        }
        state.trim(&self.budget);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        self.budget.release(state.kept);
        self.budget.lingering.fetch_sub(state.lingering(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
