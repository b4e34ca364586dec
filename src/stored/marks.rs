//! What happens to a stored response while it is kept, and to the object of its body.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use crate::clock::Timestamp;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::reuse::Failure;

/// The object of a separate body in the durable tier.
#[derive(Debug)]
pub struct BodyObject {
    /// Names it.
    pub id: u128,
    is_written: AtomicBool,
}

impl BodyObject {
    /// One that is still to be written, for the body of a response with `key`: its name begins with the key's
    /// hash, so that whoever finds it knows where its head would be, and is random otherwise.
    pub fn new(key: &CacheKey) -> Arc<Self> {
        let id = key.hash() >> 64 << 64 | u128::from(fastrand::u64(..));
        Arc::new(Self { id, is_written: AtomicBool::new(false) })
    }

    /// Whether it was written.
    pub fn is_written(&self) -> bool {
        self.is_written.load(Ordering::Acquire)
    }

    /// Notes that it is there, or is not any more.
    pub fn note(&self, is_written: bool) {
        self.is_written.store(is_written, Ordering::Release);
    }

    /// One that was written, with its name.
    pub fn written(id: u128) -> Arc<Self> {
        Arc::new(Self { id, is_written: AtomicBool::new(true) })
    }
}

/// What happens to a stored response while it is kept.
#[derive(Debug, Default)]
pub struct Marks {
    /// Whether the durable tier has this response, or is about to.
    pub is_durable: AtomicBool,
    /// When the origin last failed to validate it, in milliseconds, and how; 0: never.
    failed: AtomicI64,
    /// Whether it goes to the durable tier once it was used often enough.
    pub awaits_uses: AtomicBool,
    /// The purge position up to which it is known that no purge covers it.
    pub checked: AtomicU64,
}

/// A head that is made from another begins with what happened to that.
impl Clone for Marks {
    fn clone(&self) -> Self {
        Self {
            is_durable: AtomicBool::new(self.is_durable.load(Ordering::Acquire)),
            failed: AtomicI64::new(self.failed.load(Ordering::Relaxed)),
            awaits_uses: AtomicBool::new(self.awaits_uses.load(Ordering::Acquire)),
            checked: AtomicU64::new(self.checked.load(Ordering::Acquire)),
        }
    }
}

impl Marks {
    /// Those of a response that the durable tier has.
    pub fn durable() -> Self {
        Self { is_durable: AtomicBool::new(true), ..Self::default() }
    }

    /// Notes that the origin failed to validate it.
    pub fn note_failure(&self, failure: Failure, now: Timestamp) {
        let how = i64::from(failure == Failure::Status);
        self.failed.store(now.as_millis().saturating_mul(2).saturating_add(how), Ordering::Relaxed);
    }

    /// How the origin failed to validate it last, if that is no longer ago than `within`
    /// milliseconds.
    pub fn failure(&self, within: i64, now: Timestamp) -> Option<Failure> {
        let failed = self.failed.load(Ordering::Relaxed);
        let since = now.as_millis().saturating_sub(failed >> 1);
        if failed == 0 || !(0..=within).contains(&since) {
            return None;
        }
        Some(if failed & 1 == 1 { Failure::Status } else { Failure::Unreachable })
    }
}
