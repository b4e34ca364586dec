//! A reader of a fill.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::state::FillEnd;
use super::{Fill, Incomplete};

/// Reads the body of a fill. Leaves the fill when dropped.
#[derive(Debug)]
pub struct FillReader {
    fill: Arc<Fill>,
    /// Index of its cursor.
    slot: usize,
}

impl FillReader {
    /// Makes the reader of the cursor in `slot`.
    pub(super) fn new(fill: Arc<Fill>, slot: usize) -> Self {
        Self { fill, slot }
    }

    /// Polls for the next chunk; `None` at the end of a complete body.
    pub fn poll_chunk(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Incomplete>>> {
        let this = self.get_mut();
        let mut state = this.fill.state.lock();
        if state.readers[this.slot].as_ref().is_none_or(|reader| reader.is_expelled) {
            return Poll::Ready(Some(Err(Incomplete)));
        }
        if let Some(bytes) = state.next(this.slot) {
            state.trim(&this.fill.budget);
            let writer = (!state.is_full()).then(|| state.writer.take()).flatten();
            drop(state);
            if let Some(writer) = writer {
                writer.wake();
            }
            return Poll::Ready(Some(Ok(bytes)));
        }
        match state.end {
            FillEnd::Complete => Poll::Ready(None),
            FillEnd::Failed => Poll::Ready(Some(Err(Incomplete))),
            FillEnd::Open => {
                if let Some(reader) = &mut state.readers[this.slot] {
                    let is_client = reader.background.is_none();
                    if !reader.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                        reader.waker = Some(cx.waker().clone());
                    }
                    state.client_waits |= is_client;
                }
                Poll::Pending
            }
        }
    }

    /// Waits for the next chunk; `None` at the end of a complete body.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, Incomplete>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_chunk(cx)).await
    }

    /// Returns whether the body is complete and every byte of it was read.
    pub fn is_end(&self) -> bool {
        let state = self.fill.state.lock();
        let cursor = state.readers[self.slot].as_ref().filter(|cursor| !cursor.is_expelled);
        state.end == FillEnd::Complete && cursor.is_some_and(|cursor| cursor.read == state.len)
    }
}

impl Drop for FillReader {
    fn drop(&mut self) {
        let writer = {
            let mut state = self.fill.state.lock();
            state.leave(self.slot);
            if let Some(cursor) = state.readers[self.slot].take() {
                state.clients -= usize::from(cursor.background.is_none());
                state.free.push(self.slot);
            }
            state.trim(&self.fill.budget);
            state.writer.take()
        };
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}
