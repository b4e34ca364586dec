//! The memory of bodies that pass: request bodies before the origin is asked, and responses read ahead of their clients.
//!
//! * Buffers hold at most half of `server.max_buffered`. Buffers and fetches together hold at most all of it.
//! * Each byte is counted until it is freed.
//! * While the buffers are full, request bodies go to temporary files or are refused, and less is read ahead. A request without a body
//!   is never refused because of buffers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::entry::Budget;
use crate::upstream::Spools;

/// Counts the memory that all passing bodies hold, and limits it.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// Bytes held now.
    used: AtomicUsize,
    /// The most bytes of buffers.
    limit: usize,
    /// The most bytes of buffers and fetches: `server.max_buffered`.
    total: usize,
    /// Counts the bytes that fetches hold.
    fills: Arc<Budget>,
    /// The temporary files.
    pub spools: Arc<Spools>,
}

impl Buffers {
    /// Makes buffers of half of `total` bytes. `fills` counts the bytes of fetches.
    pub(crate) fn new(total: usize, fills: Arc<Budget>, spools: Arc<Spools>) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit: total / 2, total, fills, spools })
    }

    /// Returns the bytes that are held now.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns whether there is no room for another body.
    pub(crate) fn are_full(&self) -> bool {
        !self.may_hold(self.used().saturating_add(1))
    }

    /// Returns whether the buffers may hold `bytes` in all.
    fn may_hold(&self, bytes: usize) -> bool {
        bytes <= self.limit && bytes.saturating_add(self.fills.held()) <= self.total
    }
}

/// Counts the memory that one body holds, until it is dropped.
#[derive(Debug)]
pub(super) struct BufferLease {
    buffers: Arc<Buffers>,
    bytes: usize,
}

impl BufferLease {
    /// Begins with no bytes.
    pub(super) fn new(buffers: &Arc<Buffers>) -> Self {
        Self { buffers: Arc::clone(buffers), bytes: 0 }
    }

    /// Returns the buffers that the lease belongs to.
    pub(super) fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    /// Counts `bytes` more if there is room, and returns whether there is.
    pub(super) fn try_add(&mut self, bytes: usize) -> bool {
        let before = self.buffers.used.fetch_add(bytes, Ordering::Relaxed);
        let has_room = self.buffers.may_hold(before.saturating_add(bytes));
        if has_room {
            self.bytes += bytes;
        } else {
            self.buffers.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        has_room
    }

    /// Counts `bytes` more, whatever the limit: the few that each body needs in any case.
    pub(super) fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.buffers.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts `bytes` less.
    pub(super) fn release(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.buffers.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for BufferLease {
    fn drop(&mut self) {
        self.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_take_half_and_with_fetches_no_more_than_all() {
        let fills = Budget::new(1000);
        let buffers = Buffers::new(100, Arc::clone(&fills), Spools::new(std::path::PathBuf::new(), 0));
        let (mut a, mut b) = (BufferLease::new(&buffers), BufferLease::new(&buffers));
        assert!(a.try_add(30) && b.try_add(20));
        assert!(!a.try_add(1) && buffers.are_full());
        a.add(10);
        assert_eq!(buffers.used(), 60);
        drop(a);
        assert_eq!(buffers.used(), 20);
        fills.add(75);
        assert!(b.try_add(5));
        assert!(!b.try_add(1), "fetches hold the rest");
        drop(b);
        assert_eq!(buffers.used(), 0);
    }
}
