//! The pace of the records that clients wait for: the first are written at once, and under a flood each holds what has come
//! since the one before.

use std::time::Duration;

/// The most records on end that are written at once. One more may be for each second that passes.
const AT_ONCE: u32 = 60;
const RENEWED: Duration = Duration::from_secs(1);

/// Beyond those, the time from one record to the next.
const GATHER: Duration = Duration::from_millis(250);

/// Says when the next record may be written. Times are those since its start.
#[derive(Debug)]
pub(super) struct Pace {
    /// Records that may still be written at once.
    left: u32,
    /// The time up to which passed seconds are counted.
    counted: Duration,
    /// The time of the last record.
    last: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { left: AT_ONCE, counted: Duration::ZERO, last: Duration::ZERO }
    }
}

impl Pace {
    /// Returns how long the next record has to wait.
    pub(super) fn wait(&mut self, now: Duration) -> Duration {
        let passed = u32::try_from(now.saturating_sub(self.counted).as_secs()).unwrap_or(u32::MAX);
        self.counted += RENEWED.saturating_mul(passed);
        self.left = self.left.saturating_add(passed).min(AT_ONCE);
        if self.left > 0 { Duration::ZERO } else { (self.last + GATHER).saturating_sub(now) }
    }

    /// Counts a record.
    pub(super) fn note(&mut self, now: Duration) {
        self.left = self.left.saturating_sub(1);
        self.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes records as soon as they may be, from `now` to `end`. Returns their number.
    fn flood(pace: &mut Pace, mut now: Duration, end: Duration) -> u32 {
        let mut records = 0;
        loop {
            now += pace.wait(now).max(Duration::from_millis(1));
            if now >= end {
                return records;
            }
            pace.note(now);
            records += 1;
        }
    }

    #[test]
    fn the_first_records_are_written_at_once_and_no_more_than_five_a_second_after() {
        let (mut pace, second) = (Pace::default(), Duration::from_secs(1));
        let first = flood(&mut pace, Duration::ZERO, second);
        assert!((AT_ONCE..AT_ONCE + 5).contains(&first), "{first}");
        let later = flood(&mut pace, second, 101 * second);
        assert!((400..=505).contains(&later), "{later}");
        assert!(pace.wait(101 * second) <= GATHER);
        // A minute without any later they are written at once again.
        assert_eq!(pace.wait(162 * second), Duration::ZERO);
        assert!(flood(&mut pace, 162 * second, 163 * second) >= AT_ONCE);
    }
}
