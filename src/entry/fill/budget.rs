//! The memory that all fills together keep.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::entry::StoredResponse;

/// Counts the bytes that all fills keep together, and limits those of bodies kept whole. All fills share one.
#[derive(Debug)]
pub struct Budget {
    /// Bytes that fills keep.
    used: AtomicUsize,
    /// Bytes of stored bodies that clients still read.
    pub(super) lingering: AtomicUsize,
    /// The number of clients that read each large stored body, by the body's address. Locked for one look-up.
    readers: Mutex<HashMap<usize, usize>>,
    limit: usize,
}

/// Stored bodies up to this length are not counted while they are read.
const SMALL: u64 = 256 << 10;

/// Counts a stored body until it is dropped: held while a client reads it.
#[derive(Debug)]
pub struct Reading {
    budget: Arc<Budget>,
    stored: Arc<StoredResponse>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        let key = Arc::as_ptr(&self.stored).addr();
        let mut counts = self.budget.readers.lock();
        let readers = counts.get_mut(&key).map(|readers| {
            *readers -= 1;
            *readers
        });
        if readers == Some(0) {
            counts.remove(&key);
            self.budget
                .lingering
                .fetch_sub(usize::try_from(self.stored.len()).unwrap_or(usize::MAX), Ordering::Relaxed);
        }
    }
}

impl Budget {
    /// Makes a budget of `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), lingering: AtomicUsize::new(0), readers: Mutex::default(), limit })
    }

    /// Returns the bytes that fills keep now. Windows count, and may exceed the limit: the size of each is bounded.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns the bytes that fills keep now, and those of the stored bodies that clients still read. Memory may have
    /// evicted these.
    pub fn held(&self) -> usize {
        self.used().saturating_add(self.lingering.load(Ordering::Relaxed))
    }

    /// Counts a large stored body for as long as a client reads it, since memory may evict it meanwhile. A body that
    /// several clients read counts once.
    #[inline]
    pub fn reading(self: &Arc<Self>, stored: &Arc<StoredResponse>) -> Option<Reading> {
        if stored.len() <= SMALL { None } else { Some(self.begin_reading(stored)) }
    }

    #[cold]
    fn begin_reading(self: &Arc<Self>, stored: &Arc<StoredResponse>) -> Reading {
        let len = usize::try_from(stored.len()).unwrap_or(usize::MAX);
        let mut counts = self.readers.lock();
        let readers = counts.entry(Arc::as_ptr(stored).addr()).or_insert(0);
        *readers += 1;
        if *readers == 1 {
            self.lingering.fetch_add(len, Ordering::Relaxed);
        }
        drop(counts);
        Reading { budget: Arc::clone(self), stored: Arc::clone(stored) }
    }

    /// Counts `bytes` in if the sum stays within the limit, and returns whether it does.
    pub(super) fn reserve(&self, bytes: usize) -> bool {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.limit {
            self.release(bytes);
            return false;
        }
        true
    }

    /// Counts `bytes` in, whatever the limit.
    pub fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts `bytes` out.
    pub fn release(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}
