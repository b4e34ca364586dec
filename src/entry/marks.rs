//! What happens to a stored response while it is kept, and to the object of its body.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use http::header::{self, HeaderMap};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::StoredResponse;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::reuse::Failure;
use crate::rfc9111::timestamp::Timestamp;

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
    /// Time of the last validation in vain, in milliseconds, with its outcome and client; 0: never.
    tried: AtomicI64,
    /// True while it is being validated in the background.
    is_validating: AtomicBool,
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
            tried: AtomicI64::new(self.tried.load(Ordering::Relaxed)),
            is_validating: AtomicBool::new(false),
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

    /// Notes that it was tried in vain to validate it for a client like `who`.
    pub fn note_tried(&self, how: Tried, who: Who, now: Timestamp) {
        let noted = now.as_millis().saturating_mul(1 << TRIED_BITS) | i64::from(how.number()) << 16 | i64::from(who.0);
        self.tried.store(noted, Ordering::Relaxed);
    }

    /// Returns whether it is time to try again, for a client like `who`, where tries are `pause` milliseconds apart.
    /// A client that asks otherwise than the one of the last try waits a quarter of that: who has each try fail must
    /// not have all of them.
    pub fn is_due(&self, pause: i64, who: Who, now: Timestamp) -> bool {
        let tried = self.tried.load(Ordering::Relaxed);
        let since = now.as_millis().saturating_sub(tried >> TRIED_BITS);
        let wait = if tried & 0xffff == i64::from(who.0) { pause } else { pause / 4 };
        tried == 0 || !(0..wait).contains(&since)
    }

    /// Returns how the last validation in vain for a client like `who` went, if that is no longer ago than `within`
    /// milliseconds.
    pub fn tried(&self, within: i64, who: Who, now: Timestamp) -> Option<Tried> {
        let tried = self.tried.load(Ordering::Relaxed);
        let since = now.as_millis().saturating_sub(tried >> TRIED_BITS);
        if tried == 0 || tried & 3 != i64::from(who.0 & 3) || !(0..=within).contains(&since) {
            return None;
        }
        Some(match tried >> 16 & 3 {
            0 => Tried::Failed(Failure::Unreachable),
            1 => Tried::Failed(Failure::Status),
            _ => Tried::NotStored,
        })
    }
}

/// The bits below the time in a mark: how it went, and for whom.
const TRIED_BITS: u32 = 18;

/// Says how a validation went that brought nothing to store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    /// The origin failed.
    Failed(Failure),
    /// It answered with what may not be stored.
    NotStored,
}

impl Tried {
    const fn number(self) -> u8 {
        match self {
            Self::Failed(Failure::Unreachable) => 0,
            Self::Failed(Failure::Status) => 1,
            Self::NotStored => 2,
        }
    }
}

/// For whom a response was validated, as far as one client's failure is told apart from another's: by the
/// presence of `Cookie` and of `Authorization` (two bits), and for the pace by all fields (a hash in the others).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who(u16);

impl Who {
    /// Reads it off a request's fields.
    pub fn of(request: &HeaderMap) -> Self {
        let has = |name| u16::from(request.contains_key(name));
        let all = request.iter().fold(0_u64, |sum, (name, value)| {
            let name = xxh3_64(name.as_str().as_bytes());
            sum.wrapping_add(xxh3_64_with_seed(value.as_bytes(), name))
        });
        let hash = u16::try_from(all & 0xfffc).unwrap_or(0);
        Self(hash | has(header::COOKIE) | has(header::AUTHORIZATION) << 1)
    }
}

/// Held while a response is validated in the background: nobody else begins to.
#[derive(Debug)]
pub struct Validating(Arc<StoredResponse>);

impl Validating {
    /// `None` when it is under way already.
    pub fn begin(stored: &Arc<StoredResponse>) -> Option<Self> {
        let was_under_way = stored.head.marks.is_validating.swap(true, Ordering::AcqRel);
        (!was_under_way).then(|| Self(Arc::clone(stored)))
    }
}

impl Drop for Validating {
    fn drop(&mut self) {
        self.0.head.marks.is_validating.store(false, Ordering::Release);
    }
}
