//! A cache of the fields of answers from memory.
//!
//! The fields of a hit change once a second, with `Age` and the `ttl` of `Cache-Status`. Making them is most of the
//! cost of a hit; copying them costs a fraction of it. So each worker thread keeps the fields that it made last for
//! the responses it used last.
//!
//! Nothing is decided here: fields are found by the stored response that was already selected. They can't be those of
//! another response. A slot holds a weak reference to its response, so that no other one has the same address.
//!
//! A thread keeps at most 1,024 heads of at most 6 KiB. Each keeps the allocation of its response, 192 bytes, but not
//! its body or fields. Of the responses that share a slot, the one used most often has it.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use http::header::HeaderMap;

use crate::entry::StoredResponse;
use crate::rfc9111::timestamp::Timestamp;

/// The number of heads that a thread keeps.
const SLOTS: usize = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 10;

/// The largest [weight](crate::entry::StoredHead::weight) of a head whose fields are kept.
const MAX_WEIGHT: usize = 6 << 10;

/// Number of consecutive uses of other responses after which one of them takes over the slot.
const PATIENCE: u8 = 3;

thread_local! {
    /// The slots of this thread, by the hash of the response's address. Empty until first used.
    static READY: RefCell<Vec<Slot>> = const { RefCell::new(Vec::new()) };
}

/// The kept fields of one response.
#[derive(Default)]
struct Slot {
    /// The response that the fields are for.
    response: Weak<StoredResponse>,
    /// First moment at which the fields are right.
    from: Timestamp,
    /// First moment at which they are not any more.
    until: Timestamp,
    fields: HeaderMap,
    /// Number of uses of other responses since this one was used.
    passed_over: u8,
}

/// Returns the fields of an answer from `stored` at `now`. Calls `make` for them unless they are kept. `make` must depend
/// on `stored` and `now` only, and on `now` only as `Age` and `ttl` do.
pub fn fields(stored: &Arc<StoredResponse>, now: Timestamp, make: impl FnOnce() -> HeaderMap) -> HeaderMap {
    READY.with_borrow_mut(|slots| {
        if slots.is_empty() {
            slots.resize_with(SLOTS, Slot::default);
        }
        let Some(slot) = slots.get_mut(place(stored)) else { return make() };
        if !std::ptr::eq(slot.response.as_ptr(), Arc::as_ptr(stored)) {
            slot.pass_over(stored);
            return make();
        }
        slot.passed_over = 0;
        if !(slot.from <= now && now < slot.until) {
            slot.fields = make();
            slot.from = now;
            slot.until = stored.head.freshness.steady_until(now);
        }
        slot.fields.clone()
    })
}

impl Slot {
    /// Notes a use of `stored`, which does not have the slot. Gives it the slot if that is free, or if the slot's
    /// response was passed over too often. The fields are kept at the next use.
    fn pass_over(&mut self, stored: &Arc<StoredResponse>) {
        self.passed_over += 1;
        let is_free = self.response.strong_count() == 0;
        if (is_free || self.passed_over > PATIENCE) && stored.head.weight() <= MAX_WEIGHT {
            *self = Self { response: Arc::downgrade(stored), ..Self::default() };
        }
        self.passed_over = self.passed_over.min(PATIENCE);
    }
}

/// Returns the index of the slot that may have the fields of `stored`.
fn place(stored: &Arc<StoredResponse>) -> usize {
    let address = Arc::as_ptr(stored).addr() as u64;
    // Addresses of neighbouring allocations differ in the middle bits only. The product spreads these to the upper bits.
    usize::try_from(address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - SLOT_BITS)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use http::header::{AGE, HeaderValue};

    use super::*;
    use crate::entry::Fields;
    use crate::entry::tests::sample;

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    fn made(times: &Cell<u32>, stored: &Arc<StoredResponse>, now: Timestamp) -> HeaderMap {
        fields(stored, now, || {
            times.set(times.get() + 1);
            let mut made = stored.head.fields.to_map();
            made.insert(AGE, HeaderValue::from(stored.head.freshness.age_seconds(now)));
            made
        })
    }

    /// A response with one field more.
    fn with(name: &'static str, value: &str) -> Arc<StoredResponse> {
        let mut stored = sample();
        let mut fields = stored.head.fields.to_map();
        fields.insert(name, HeaderValue::from_str(value).expect("a value"));
        stored.head.fields = Fields::new(fields.iter());
        Arc::new(stored)
    }

    #[test]
    fn what_is_asked_for_again_is_made_once_for_each_second_and_always_right() {
        let (stored, times) = (Arc::new(sample()), Cell::new(0));
        for millis in (0..5000).chain([4000, 10_000, 0]) {
            let now = stored.head.response_time().plus_millis(millis);
            let fields = made(&times, &stored, now);
            assert_eq!(fields[AGE], stored.head.freshness.age_seconds(now).to_string(), "{millis}");
        }
        // Age and ttl each change once a second; then come three jumps, and the first one is not kept yet.
        assert!(times.get() <= 2 * 6 + 3 + 1, "{} times", times.get());
    }

    #[test]
    fn nobody_gets_anothers() {
        let times = Cell::new(0);
        let all: Vec<_> = (0..4 * SLOTS).map(|n| with("x-number", &n.to_string())).collect();
        for round in 0..6 {
            for (n, stored) in all.iter().enumerate() {
                assert_eq!(made(&times, stored, NOW.plus_millis(round))["x-number"], n.to_string());
            }
        }
        // Those that were dropped would make room for others at the same addresses.
        for n in 0..100 {
            let mut stored = sample();
            stored.head.freshness.response_time = NOW.plus_millis(n * 1000);
            let stored = Arc::new(stored);
            for _ in 0..8 {
                let now = stored.head.response_time().plus_millis(500);
                assert_eq!(made(&times, &stored, now)[AGE], stored.head.freshness.age_seconds(now).to_string());
            }
        }
    }

    #[test]
    fn what_is_kept_holds_no_body() {
        let (stored, times) = (Arc::new(sample()), Cell::new(0));
        for _ in 0..3 {
            made(&times, &stored, NOW);
        }
        assert_eq!((times.get(), Arc::strong_count(&stored)), (2, 1));
        // Nor does it stand in the way of the next one.
        let address = place(&stored);
        drop(stored);
        let next = Arc::new(sample());
        READY.with_borrow_mut(|slots| {
            slots[address].pass_over(&next);
            assert!(std::ptr::eq(slots[address].response.as_ptr(), Arc::as_ptr(&next)));
        });
    }

    #[test]
    fn one_that_is_used_stays_and_large_ones_are_not_kept() {
        let (stored, times) = (Arc::new(sample()), Cell::new(0));
        for _ in 0..3 {
            made(&times, &stored, NOW);
        }
        assert_eq!(times.replace(0), 2, "for the first time, and to be kept");
        let rare = Arc::new(sample());
        READY.with_borrow_mut(|slots| {
            for _ in 0..100 {
                slots[place(&stored)].pass_over(&rare);
                slots[place(&stored)].passed_over = 0;
            }
        });
        made(&times, &stored, NOW);
        assert_eq!(times.get(), 0);

        let large = with("x-large", &"x".repeat(MAX_WEIGHT));
        for _ in 0..10 {
            made(&times, &large, NOW);
        }
        assert_eq!(times.get(), 10);
    }
}
