//! Heads of answers that a worker gives over and over, ready to be sent.
//!
//! What a hit's head says changes once a second, with its `Age` and the `ttl` of its `Cache-Status`. To
//! put the fields together for each hit anew is most of what a hit costs; to copy them is a fraction of
//! it. So each worker keeps those of the responses that it has just used, as they were made last.
//!
//! Whether a response may be used is never decided here: what is kept is found by the stored response
//! that was looked up, and by nothing else. It can't be another's, since it keeps that one alive.
//!
//! Bounds: 1,024 heads a thread, each of at most 6 KiB with all that it keeps alive. A response that is
//! used less often than another in its slot is not kept.

use std::cell::RefCell;
use std::sync::Arc;

use http::header::HeaderMap;

use crate::clock::Timestamp;
use crate::stored::StoredHead;

/// The heads that a thread keeps.
const SLOTS: usize = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 10;

/// The most bytes that a stored response's head takes, key and tags included, whose fields are kept.
const MAX_WEIGHT: usize = 6 << 10;

/// How often in a row others may be asked for in vain before one of them has the slot.
const PATIENCE: u8 = 3;

thread_local! {
    static READY: RefCell<Vec<Slot>> = const { RefCell::new(Vec::new()) };
}

/// One kept head.
#[derive(Default)]
struct Slot {
    /// Whose fields they are.
    head: Option<Arc<StoredHead>>,
    /// They hold from the first moment up to the second.
    from: Timestamp,
    until: Timestamp,
    fields: HeaderMap,
    /// How often another one was asked for since this one was.
    passed_over: u8,
}

/// The fields of an answer from `head` at `now`, which `make` makes, and which depend on nothing but those
/// two; from one moment to the next only as `Age` and `ttl` do.
pub fn fields(head: &Arc<StoredHead>, now: Timestamp, make: impl FnOnce() -> HeaderMap) -> HeaderMap {
    READY.with_borrow_mut(|slots| {
        if slots.is_empty() {
            slots.resize_with(SLOTS, Slot::default);
        }
        let Some(slot) = slots.get_mut(place(head)) else { return make() };
        if !slot.head.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, head)) {
            slot.pass_over(head);
            return make();
        }
        slot.passed_over = 0;
        if !(slot.from <= now && now < slot.until) {
            slot.fields = make();
            slot.from = now;
            slot.until = head.freshness.steady_until(now);
        }
        slot.fields.clone()
    })
}

impl Slot {
    /// Notes that `head` was asked for, which has the slot from now on if this happens often. Its fields
    /// are kept when it is asked for again.
    fn pass_over(&mut self, head: &Arc<StoredHead>) {
        self.passed_over += 1;
        if (self.head.is_none() || self.passed_over > PATIENCE) && head.weight() <= MAX_WEIGHT {
            *self = Self { head: Some(Arc::clone(head)), ..Self::default() };
        }
        self.passed_over = self.passed_over.min(PATIENCE);
    }
}

/// Where the fields of `head` are kept, if they are.
fn place(head: &Arc<StoredHead>) -> usize {
    let address = Arc::as_ptr(head).addr() as u64;
    // What is allocated in a row differs in the middle bits only: all of them have a say in the upper ones.
    usize::try_from(address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - SLOT_BITS)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use http::header::{AGE, HeaderValue};

    use super::*;
    use crate::stored::tests::sample;

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    fn made(times: &Cell<u32>, head: &Arc<StoredHead>, now: Timestamp) -> HeaderMap {
        fields(head, now, || {
            times.set(times.get() + 1);
            let mut made = head.fields.to_map();
            made.insert(AGE, HeaderValue::from(head.freshness.age_seconds(now)));
            made
        })
    }

    #[test]
    fn what_is_asked_for_again_is_made_once_for_each_second_and_always_right() {
        let (head, times) = (sample().head, Cell::new(0));
        for millis in (0..5000).chain([4000, 10_000, 0]) {
            let now = head.response_time.plus_millis(millis);
            let fields = made(&times, &head, now);
            assert_eq!(fields[AGE], head.freshness.age_seconds(now).to_string(), "{millis}");
        }
        // Age and ttl each change once a second; then come three jumps, and the first one is not kept yet.
        assert!(times.get() <= 2 * 6 + 3 + 1, "{} times", times.get());
    }

    #[test]
    fn nobody_gets_anothers() {
        let times = Cell::new(0);
        let heads: Vec<Arc<StoredHead>> = (0..4 * SLOTS)
            .map(|n| {
                let mut head = (*sample().head).clone();
                let mut fields = head.fields.to_map();
                fields.insert("x-number", HeaderValue::from(n));
                head.fields = crate::stored::fields::Fields::new(fields.iter());
                Arc::new(head)
            })
            .collect();
        for round in 0..6 {
            for (n, head) in heads.iter().enumerate() {
                assert_eq!(made(&times, head, NOW.plus_millis(round))["x-number"], n.to_string());
            }
        }
        // Those that were dropped make room for others at the same addresses.
        for n in 0..100 {
            let mut head = (*heads[0]).clone();
            head.response_time = head.response_time.plus_millis(n * 1000);
            head.freshness.response_time = head.response_time;
            let head = Arc::new(head);
            for _ in 0..8 {
                let now = head.response_time.plus_millis(500);
                assert_eq!(made(&times, &head, now)[AGE], head.freshness.age_seconds(now).to_string());
            }
        }
    }

    #[test]
    fn one_that_is_used_stays_and_large_ones_are_not_kept() {
        let (head, times) = (sample().head, Cell::new(0));
        for _ in 0..3 {
            made(&times, &head, NOW);
        }
        assert_eq!(times.replace(0), 2, "for the first time, and to be kept");
        let rare = Arc::new((*head).clone());
        READY.with_borrow_mut(|slots| {
            for _ in 0..100 {
                slots[place(&head)].pass_over(&rare);
                slots[place(&head)].passed_over = 0;
            }
        });
        made(&times, &head, NOW);
        assert_eq!(times.get(), 0);

        let mut large = (*head).clone();
        let mut fields = large.fields.to_map();
        fields.insert("x-large", HeaderValue::from_str(&"x".repeat(MAX_WEIGHT)).expect("a value"));
        large.fields = crate::stored::fields::Fields::new(fields.iter());
        let large = Arc::new(large);
        for _ in 0..10 {
            made(&times, &large, NOW);
        }
        assert_eq!(times.get(), 10);
    }
}
