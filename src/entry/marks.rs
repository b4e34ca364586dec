//! The state of a stored response that changes while it is kept, and of the object of its body.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use http::header::{self, HeaderMap};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{JournalTime, StoredResponse, Uses};
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::reuse::Failure;
use crate::rfc9111::timestamp::Timestamp;

/// The durable tier's object of a body that is kept apart from its head.
#[derive(Debug)]
pub struct BodyObject {
    /// The name of the object.
    pub id: u128,
    is_written: AtomicBool,
}

impl BodyObject {
    /// Names an object that is still to be written, for the body of a response with `key`. The name begins with the
    /// key's hash, so that the upkeep of the tier can find the head that belongs to it. The rest is random.
    pub fn new(key: &CacheKey) -> Arc<Self> {
        let id = key.hash() >> 64 << 64 | u128::from(fastrand::u64(..));
        Arc::new(Self { id, is_written: AtomicBool::new(false) })
    }

    /// Returns whether it was written.
    pub fn is_written(&self) -> bool {
        self.is_written.load(Ordering::Acquire)
    }

    /// Notes whether the object exists.
    pub fn note(&self, is_written: bool) {
        self.is_written.store(is_written, Ordering::Release);
    }

    /// Returns the object of that name, which was written.
    pub fn written(id: u128) -> Arc<Self> {
        Arc::new(Self { id, is_written: AtomicBool::new(true) })
    }
}

/// The state of a stored response that changes while it is kept.
#[derive(Debug, Default)]
pub struct Marks {
    /// True if the durable tier has this response, or is about to.
    pub is_durable: AtomicBool,
    /// Time of the last validation that brought nothing to store, in milliseconds, with its outcome and its client's
    /// class in the [`TRIED_BITS`] below; 0: never. Of a value, which is never validated, the order of its entry.
    tried: AtomicI64,
    /// True while it is being validated in the background.
    is_validating: AtomicBool,
    /// True if it is to be written to the durable tier once it was used often enough.
    pub awaits_uses: AtomicBool,
    /// Purge position up to which no purge covers it.
    pub checked: AtomicU64,
    /// Its uses while memory keeps it.
    pub(crate) uses: Uses,
}

/// A head made from another begins with a copy of its state, but for a validation under way, and its uses: memory counts
/// those on when it replaces one by the other.
impl Clone for Marks {
    fn clone(&self) -> Self {
        Self {
            is_durable: AtomicBool::new(self.is_durable.load(Ordering::Acquire)),
            tried: AtomicI64::new(self.tried.load(Ordering::Relaxed)),
            is_validating: AtomicBool::new(false),
            awaits_uses: AtomicBool::new(self.awaits_uses.load(Ordering::Acquire)),
            checked: AtomicU64::new(self.checked.load(Ordering::Acquire)),
            uses: Uses::default(),
        }
    }
}

impl Marks {
    /// Returns the marks of a response that the durable tier has.
    pub fn durable() -> Self {
        Self { is_durable: AtomicBool::new(true), ..Self::default() }
    }

    /// Notes the order of a value's entry in the durable tier.
    pub(crate) fn note_order(&self, order: JournalTime) {
        self.tried.store(order.cast_signed(), Ordering::Relaxed);
    }

    /// Returns the order of a value's entry in the durable tier; `None`: it has none.
    pub(crate) fn order(&self) -> Option<JournalTime> {
        Some(self.tried.load(Ordering::Relaxed).cast_unsigned()).filter(|order| *order > 0)
    }

    /// Notes that a validation for a client like `who` brought nothing to store.
    pub fn note_tried(&self, how: Tried, who: Who, now: Timestamp) {
        let noted = now.as_millis().saturating_mul(1 << TRIED_BITS) | i64::from(how.number()) << 16 | i64::from(who.0);
        self.tried.store(noted, Ordering::Relaxed);
    }

    /// Returns whether another validation is due, for a client like `who`, `pause` milliseconds after the last. A client
    /// of another class waits only a quarter of the pause: a client whose validations always fail must not use up the
    /// turns of all the others.
    pub fn is_due(&self, pause: i64, who: Who, now: Timestamp) -> bool {
        let tried = self.tried.load(Ordering::Relaxed);
        let since = now.as_millis().saturating_sub(tried >> TRIED_BITS);
        let wait = if tried & 0xffff == i64::from(who.0) { pause } else { pause / 4 };
        tried == 0 || !(0..wait).contains(&since)
    }

    /// Returns the outcome of the last validation that brought nothing to store, if it was for a client like `who` and
    /// at most `within` milliseconds ago.
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

/// Bits below the time in `tried`: two for the outcome, sixteen for the client's class.
const TRIED_BITS: u32 = 18;

/// The outcome of a validation that brought nothing to store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    /// The origin failed.
    Failed(Failure),
    /// The origin's answer may not be stored.
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

/// The class of a client, by which the failures of some clients are told from those of others. Two bits say whether the
/// request has `Cookie` and `Authorization`; the rest is a hash of all fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who(u16);

impl Who {
    /// Returns the class of the client that sent these fields.
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

/// Permit to validate a response in the background. No other permit is given until it is dropped.
#[derive(Debug)]
pub struct Validating(Arc<StoredResponse>);

impl Validating {
    /// Returns the permit, unless a validation is under way.
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
