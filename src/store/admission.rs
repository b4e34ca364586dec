//! Decides which responses are worth a write to the durable tier: those used often enough, within the month's budget. The
//! less of the budget is left, the longer packs wait, and the more each holds.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::base::Stopwatch;

/// Admits responses to the durable tier.
#[derive(Debug)]
pub(super) struct WriteAdmission {
    /// The use on which a response is written.
    after_hits: u8,
    uses: Option<Sketch>,
    budget: Option<WriteBudget>,
}

/// The decision about one response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The response is written.
    Admitted,
    /// The response was not used often enough yet.
    TooFewUses,
    /// The month's budget is spent.
    NoBudget,
}

impl WriteAdmission {
    /// Admits a response on its use number `after_hits` (1: the first), and `monthly_writes` write requests a month
    /// (0: any number).
    pub(super) fn new(after_hits: u8, monthly_writes: u64) -> Self {
        Self {
            after_hits,
            uses: (after_hits > 1).then(Sketch::default),
            budget: (monthly_writes > 0).then(|| WriteBudget::new(monthly_writes)),
        }
    }

    /// Counts a use of the response with this hash, and decides whether it is worth `requests` write requests.
    pub(super) fn admit(&self, hash: u128, requests: u32) -> Verdict {
        if self.uses.as_ref().is_some_and(|uses| uses.count(hash) < self.after_hits) {
            return Verdict::TooFewUses;
        }
        if self.budget.as_ref().is_some_and(|budget| !budget.take(requests)) {
            return Verdict::NoBudget;
        }
        Verdict::Admitted
    }
}

impl WriteAdmission {
    /// Decides whether the budget allows `requests` write requests, whatever the uses.
    pub(super) fn affords(&self, requests: u32) -> bool {
        requests == 0 || self.budget.as_ref().is_none_or(|budget| budget.take(requests))
    }

    /// Returns for how long a pack gathers responses that may do so for `interval`.
    pub(super) fn stretched(&self, interval: Duration) -> Duration {
        self.budget.as_ref().map_or(interval, |budget| budget.stretched(interval))
    }

    /// Returns the time until the budget allows a pack.
    pub(super) fn until_write(&self) -> Duration {
        self.budget.as_ref().map_or(Duration::ZERO, WriteBudget::until_write)
    }

    /// Counts a pack that is written now, whether the budget allows it or not.
    pub(super) fn spend(&self) {
        if let Some(budget) = &self.budget {
            budget.spend();
        }
    }
}

/// A count-min sketch of uses: never counts too few, and too many only where each of a key's four counters is shared.
/// Halves all counters from time to time, so that old uses count less.
#[derive(Debug)]
struct Sketch {
    counters: Box<[AtomicU8]>,
    counted: AtomicU32,
}

const ROWS: usize = 4;
const WIDTH: usize = 1 << 16;

/// Number of uses after which the counters are halved.
const AGE: u32 = 10 * 65_536;

impl Default for Sketch {
    fn default() -> Self {
        let counters = (0..ROWS * WIDTH).map(|_| AtomicU8::new(0)).collect();
        Self { counters, counted: AtomicU32::new(0) }
    }
}

impl Sketch {
    /// Counts a use. Returns the estimated number of uses.
    fn count(&self, hash: u128) -> u8 {
        let mut least = u8::MAX;
        for row in 0..ROWS {
            let column = usize::try_from(hash >> (16 * row) & (WIDTH as u128 - 1)).unwrap_or(0);
            let counter = &self.counters[row * WIDTH + column];
            let add = |count: u8| Some(count.saturating_add(1));
            let before = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).unwrap_or(u8::MAX);
            least = least.min(before.saturating_add(1));
        }
        if self.counted.fetch_add(1, Ordering::Relaxed) >= AGE {
            self.counted.store(0, Ordering::Relaxed);
            for counter in &self.counters {
                let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| Some(count / 2));
            }
        }
        least
    }
}

const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

/// A token bucket, one token a request. It fills at the monthly rate, and holds a day's worth.
#[derive(Debug)]
struct WriteBudget {
    /// Time in which one token comes.
    apart: Duration,
    most: f64,
    /// Guarded by its lock: the tokens, and when they were counted. Fewer than none after writes that did not wait.
    tokens: Mutex<(f64, Stopwatch)>,
}

impl WriteBudget {
    #[expect(clippy::cast_precision_loss, reason = "requests a month")]
    fn new(monthly: u64) -> Self {
        let most = (monthly as f64 / 30.0).max(1.0);
        Self { apart: MONTH.div_f64(monthly as f64), most, tokens: Mutex::new((most, Stopwatch::start())) }
    }

    fn take(&self, requests: u32) -> bool {
        let mut tokens = self.tokens.lock();
        self.fill(&mut tokens);
        let is_enough = tokens.0 >= f64::from(requests);
        if is_enough {
            tokens.0 -= f64::from(requests);
        }
        is_enough
    }

    fn spend(&self) {
        let mut tokens = self.tokens.lock();
        self.fill(&mut tokens);
        tokens.0 = (tokens.0 - 1.0).max(-self.most);
    }

    /// Returns `interval` with a full bucket, the time in which one token comes with an empty one, and in between what lies
    /// in between.
    fn stretched(&self, interval: Duration) -> Duration {
        let missing = 1.0 - (self.count() / self.most).clamp(0.0, 1.0);
        interval + self.apart.saturating_sub(interval).mul_f64(missing)
    }

    fn until_write(&self) -> Duration {
        self.apart.mul_f64((1.0 - self.count()).max(0.0))
    }

    fn count(&self) -> f64 {
        let mut tokens = self.tokens.lock();
        self.fill(&mut tokens);
        tokens.0
    }

    fn fill(&self, tokens: &mut (f64, Stopwatch)) {
        let came = tokens.1.elapsed().div_duration_f64(self.apart);
        *tokens = ((tokens.0 + came).min(self.most), Stopwatch::start());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_use_admits() {
        let admission = WriteAdmission::new(3, 0);
        let verdicts: Vec<Verdict> = (0..4).map(|_| admission.admit(7, 1)).collect();
        assert_eq!(verdicts, [Verdict::TooFewUses, Verdict::TooFewUses, Verdict::Admitted, Verdict::Admitted]);
        assert_eq!(admission.admit(u128::MAX, 1), Verdict::TooFewUses, "each key for itself");
        assert_eq!(WriteAdmission::new(1, 0).admit(7, 1), Verdict::Admitted);
    }

    #[test]
    fn old_uses_count_less() {
        let sketch = Sketch::default();
        for _ in 0..200 {
            sketch.count(7);
        }
        for n in 0..=AGE {
            sketch.count(u128::from(n) << 64 | u128::from(n % 1000 + 8) << 32);
        }
        assert!(sketch.count(7) < 150);
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_is_spent_and_fills_again() {
        let admission = WriteAdmission::new(1, 3000);
        for _ in 0..50 {
            assert_eq!(admission.admit(1, 2), Verdict::Admitted);
        }
        assert_eq!(admission.admit(1, 1), Verdict::NoBudget, "a day's worth is spent");
        tokio::time::advance(Duration::from_secs(24 * 3600 / 10)).await;
        for _ in 0..9 {
            assert_eq!(admission.admit(1, 1), Verdict::Admitted);
        }
        assert_eq!(admission.admit(1, 2), Verdict::NoBudget);
    }

    /// Packs of a month in which there is always something to write.
    #[tokio::test(start_paused = true)]
    async fn packs_come_ever_more_slowly_until_they_keep_to_the_budget() {
        let (admission, interval, begun) = (WriteAdmission::new(1, 3000), Duration::from_secs(5), Stopwatch::start());
        let mut waits = Vec::new();
        while begun.elapsed() < MONTH {
            let wait = admission.stretched(interval).max(admission.until_write());
            tokio::time::advance(wait).await;
            admission.spend();
            waits.push(wait);
        }
        assert_eq!(waits.first(), Some(&interval), "the bucket is full");
        assert!(waits.len() <= 3100, "a day's worth besides the month's: {}", waits.len());
        assert!(waits.len() > 2950, "what may be spent is: {}", waits.len());
        let apart = Duration::from_secs(30 * 24 * 3600 / 3000);
        assert!(waits.iter().all(|wait| *wait <= apart + interval), "never longer than the budget says");
        assert!(waits.windows(2).all(|pair| pair[1] <= pair[0] + apart / 20), "without a leap");
        assert!(waits.last().is_some_and(|wait| *wait > apart.mul_f64(0.98)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_did_not_wait_is_made_up_for() {
        let admission = WriteAdmission::new(1, 300);
        for _ in 0..12 {
            admission.spend();
        }
        let apart = Duration::from_secs(30 * 24 * 3600 / 300);
        let left = admission.until_write().as_secs_f64();
        assert!((left - 3.0 * apart.as_secs_f64()).abs() < 1.0, "{left}");
        assert_eq!(WriteAdmission::new(1, 0).until_write(), Duration::ZERO);
        assert_eq!(WriteAdmission::new(1, 0).stretched(apart), apart);
    }
}
