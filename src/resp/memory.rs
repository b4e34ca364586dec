//! The memory that clients hold: commands that arrive, transactions that wait, replies that wait to be read.
//!
//! What a connection holds for a moment, while its commands run, is not counted: there is one such connection a thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::base::Metrics;

/// Counts the memory that all clients hold, and limits it.
#[derive(Debug)]
pub(super) struct ClientMemory {
    /// In [`Metrics`], so that it is told.
    used: Arc<AtomicUsize>,
    /// `resp.max_buffered`
    limit: usize,
}

impl ClientMemory {
    /// Begins with nothing held.
    pub(super) fn new(limit: usize, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self { used: Arc::clone(&metrics.resp_buffered), limit })
    }

    /// Returns the bytes that are held now.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// Counts what one connection holds for one purpose, until it is dropped.
#[derive(Debug, Default)]
pub(super) struct Lease {
    /// `None`: nothing can be held.
    memory: Option<Arc<ClientMemory>>,
    bytes: usize,
}

impl Lease {
    /// Begins with no bytes.
    pub(super) fn new(memory: &Arc<ClientMemory>) -> Self {
        Self { memory: Some(Arc::clone(memory)), bytes: 0 }
    }

    /// Returns the bytes that it counts.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes the count to `bytes`, unless that needs more than there is. Returns whether it counts so many now.
    pub(super) fn set(&mut self, bytes: usize) -> bool {
        let Some(memory) = &self.memory else { return bytes == 0 };
        if let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) {
            let before = memory.used.fetch_add(more, Ordering::Relaxed);
            if before.saturating_add(more) > memory.limit {
                memory.used.fetch_sub(more, Ordering::Relaxed);
                return false;
            }
        } else if bytes < self.bytes {
            memory.used.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
        true
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_leases_together_stay_within_the_limit_and_give_back_what_they_had() {
        let memory = ClientMemory::new(100, &Metrics::new(1));
        let (mut a, mut b) = (Lease::new(&memory), Lease::new(&memory));
        assert!(a.set(60) && b.set(40) && !b.set(41) && !a.set(61));
        assert_eq!((a.bytes(), b.bytes(), memory.used()), (60, 40, 100));
        assert!(a.set(10) && b.set(90));
        drop(b);
        assert_eq!(memory.used(), 10);
        assert!(!a.set(usize::MAX) && a.set(100));
        drop(a);
        assert_eq!(memory.used(), 0);
        assert!(Lease::default().set(0) && !Lease::default().set(1), "without a memory nothing can be held");
    }
}
