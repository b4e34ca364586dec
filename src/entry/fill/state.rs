//! The chunks of a fill, and the place of each reader among them.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::task::Waker;

use bytes::Bytes;

use super::pace::Blocker;
use super::{Budget, Unread, WINDOW};
use crate::base::Stopwatch;
use crate::entry::Body;

/// The state of a fill, guarded by its lock.
pub(super) struct FillState {
    /// The chunks that are kept.
    pub chunks: VecDeque<Chunk>,
    /// Number of chunks dropped from the front.
    pub dropped: u64,
    /// Bytes in `chunks`, each of them counted in the budget.
    pub kept: usize,
    /// Bytes appended so far.
    pub len: u64,
    /// Says whether every chunk is kept.
    pub mode: FillMode,
    /// Says whether the body has ended, and how.
    pub end: FillEnd,
    /// The stored body, once readers read it in place of the chunks.
    pub stored: Option<Body>,
    /// The readers' cursors, by slot.
    pub readers: Vec<Option<Cursor>>,
    /// The slots that are free.
    pub free: Vec<usize>,
    /// Number of readers that have read all there is so far.
    pub at_end: usize,
    /// Number of clients among these.
    pub clients_at_end: usize,
    /// Number of readers that are clients.
    pub clients: usize,
    /// True if a client has waited since the writer began to wait.
    pub client_waits: bool,
    /// Wakes the writer when there is room.
    pub writer: Option<Waker>,
}

/// A chunk of the body.
pub(super) struct Chunk {
    /// Its bytes.
    pub bytes: Bytes,
    /// Number of readers that read it next.
    pub readers: usize,
}

/// The place of a reader.
#[derive(Default)]
pub(super) struct Cursor {
    /// Number of its next chunk, from 0.
    next: u64,
    /// Bytes it has read.
    pub read: u64,
    /// Wakes the reader when its next chunk has come.
    pub waker: Option<Waker>,
    /// True if the reader blocked others for too long. It then gets an error.
    pub is_expelled: bool,
    /// The rate below which it may not hold clients, if the reader is in the background.
    pub background: Option<u64>,
}

/// Says whether every chunk of a body is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FillMode {
    /// Every chunk.
    Whole,
    /// Only the chunks that some reader has not read yet.
    Window,
}

/// Says how a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FillEnd {
    /// It has not.
    Open,
    /// Complete.
    Complete,
    /// Broken off.
    Failed,
}

impl FillState {
    /// Makes the state of an empty fill without readers.
    pub(super) fn new() -> Self {
        Self {
            chunks: VecDeque::new(),
            dropped: 0,
            kept: 0,
            len: 0,
            mode: FillMode::Whole,
            end: FillEnd::Open,
            stored: None,
            readers: Vec::new(),
            free: Vec::new(),
            at_end: 0,
            clients_at_end: 0,
            clients: 0,
            client_waits: false,
            writer: None,
        }
    }

    /// Adds a reader at the first byte, and returns its slot; `None` if that byte is no longer kept.
    pub(super) fn join(&mut self, background: Option<u64>) -> Option<usize> {
        // A new reader of a failed fill would get an error. Without one, its request is sent to the origin again.
        if self.end == FillEnd::Failed || (self.dropped > 0 && self.stored.is_none()) {
            return None;
        }
        let cursor = Cursor { background, ..Cursor::default() };
        let slot = if let Some(slot) = self.free.pop() {
            self.readers[slot] = Some(cursor);
            slot
        } else {
            self.readers.push(Some(cursor));
            self.readers.len() - 1
        };
        self.clients += usize::from(background.is_none());
        self.arrive(slot);
        Some(slot)
    }

    /// Appends a chunk.
    pub(super) fn append(&mut self, bytes: Bytes) {
        self.kept += bytes.len();
        self.len += bytes.len() as u64;
        let readers = std::mem::take(&mut self.at_end);
        self.clients_at_end = 0;
        self.chunks.push_back(Chunk { bytes, readers });
    }

    /// Returns the wakers of all readers that wait.
    pub(super) fn take_wakers(&mut self) -> Vec<Waker> {
        self.readers.iter_mut().flatten().filter_map(|reader| reader.waker.take()).collect()
    }

    /// Returns whether there is a reader.
    pub(super) fn has_readers(&self) -> bool {
        self.readers.len() > self.free.len()
    }

    /// Returns the next bytes for the reader in `slot`, if they have come.
    pub(super) fn next(&mut self, slot: usize) -> Option<Bytes> {
        let cursor = self.readers[slot].as_ref()?;
        if let Some(body) = &self.stored {
            let bytes = body.piece_from(cursor.read)?;
            self.readers[slot].as_mut()?.read += bytes.len() as u64;
            return Some(bytes);
        }
        let bytes = self.index(cursor.next).and_then(|at| self.chunks.get(at))?.bytes.clone();
        self.leave(slot);
        let cursor = self.readers[slot].as_mut()?;
        cursor.next += 1;
        cursor.read += bytes.len() as u64;
        self.arrive(slot);
        Some(bytes)
    }

    /// Counts the reader in `slot` at its next chunk, or at the end.
    fn arrive(&mut self, slot: usize) {
        let Some(cursor) = &self.readers[slot] else { return };
        let (next, is_client) = (cursor.next, cursor.background.is_none());
        match self.index(next).and_then(|at| self.chunks.get_mut(at)) {
            Some(chunk) => chunk.readers += 1,
            None => {
                self.at_end += 1;
                self.clients_at_end += usize::from(is_client);
            }
        }
    }

    /// Stops counting the reader in `slot` at its next chunk, or at the end.
    pub(super) fn leave(&mut self, slot: usize) {
        let Some(cursor) = self.readers[slot].as_ref().filter(|cursor| !cursor.is_expelled) else { return };
        let (next, is_client) = (cursor.next, cursor.background.is_none());
        match self.index(next).and_then(|at| self.chunks.get_mut(at)) {
            Some(chunk) => chunk.readers = chunk.readers.saturating_sub(1),
            None => {
                self.at_end = self.at_end.saturating_sub(1);
                self.clients_at_end = self.clients_at_end.saturating_sub(usize::from(is_client));
            }
        }
    }

    /// Returns the index of a chunk in `chunks`.
    fn index(&self, chunk: u64) -> Option<usize> {
        usize::try_from(chunk.checked_sub(self.dropped)?).ok()
    }

    /// Drops the chunks that every reader has read, unless the body is kept whole. Keeps up to [`WINDOW`] bytes: a
    /// request that was just told of the response may still join.
    pub(super) fn trim(&mut self, budget: &Budget) {
        if self.mode == FillMode::Whole && self.end == FillEnd::Open {
            return;
        }
        while self.kept >= WINDOW && self.chunks.front().is_some_and(|chunk| chunk.readers == 0) {
            if let Some(chunk) = self.chunks.pop_front() {
                self.kept -= chunk.bytes.len();
                budget.release(chunk.bytes.len());
                self.dropped += 1;
            }
        }
    }

    /// Ends the fill, and returns the wakers of the readers. With `stored`, readers read that from now on.
    pub(super) fn finish(&mut self, end: FillEnd, stored: Option<Body>, budget: &Budget) -> Vec<Waker> {
        self.end = end;
        if stored.is_some() {
            self.stored = stored;
            self.chunks = VecDeque::new();
            budget.release(std::mem::take(&mut self.kept));
            budget.lingering.fetch_add(self.lingering(), Ordering::Relaxed);
        } else {
            self.trim(budget);
        }
        self.take_wakers()
    }

    /// Returns the bytes of the stored body that readers read.
    pub(super) fn lingering(&self) -> usize {
        self.stored.as_ref().map_or(0, |body| usize::try_from(body.len()).unwrap_or(usize::MAX))
    }

    /// Returns whether the writer has to wait.
    pub(super) fn is_full(&self) -> bool {
        self.mode == FillMode::Window && self.kept >= WINDOW && self.has_readers()
    }

    /// Returns the cursors of the readers whose next chunk is the oldest.
    pub(super) fn slowest(&mut self) -> impl Iterator<Item = &mut Cursor> {
        let first = (!self.chunks.is_empty()).then_some(self.dropped);
        self.readers.iter_mut().flatten().filter(move |cursor| Some(cursor.next) == first && !cursor.is_expelled)
    }

    /// Returns the readers that block the writer. Begins anew to note whether a client waits.
    pub(super) fn blocker(&mut self) -> Blocker {
        self.client_waits = self.clients_at_end > 0;
        let mut rate = 0;
        for cursor in self.slowest() {
            match cursor.background {
                Some(least) => rate = rate.max(least),
                None => return Blocker::Client,
            }
        }
        Blocker::Background(rate)
    }

    /// Returns whether there has been no client for longer than `unread` allows. `since` is the start of that time.
    pub(super) fn is_unread_for_long(&self, unread: Unread, since: &mut Option<Stopwatch>) -> bool {
        if self.clients > 0 {
            *since = None;
            return false;
        }
        let since = *since.get_or_insert_with(Stopwatch::start);
        since.elapsed() > unread.limit(self.len)
    }
}
