//! Limits a repeated log message to one a minute, and counts those it suppressed: what fails for one response mostly fails
//! for the next.

use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;

use crate::base::Stopwatch;

/// Time between two messages.
const PAUSE: Duration = Duration::from_secs(60);

/// Limits one message.
#[derive(Debug, Default)]
pub(super) struct LogThrottle {
    /// Guarded by its lock: when the message was last logged, and how often it was suppressed since.
    last: Mutex<(Option<Stopwatch>, u64)>,
}

/// Number of messages suppressed since the last one. Its text goes at the end of the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Suppressed(u64);

impl fmt::Display for Suppressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            1 => f.write_str(" (and once more since the last line)"),
            n => write!(f, " (and {n} times more since the last line)"),
        }
    }
}

impl LogThrottle {
    /// Returns the number of suppressed messages if the message is due now; otherwise counts it as suppressed.
    pub(super) fn is_due(&self) -> Option<Suppressed> {
        let mut last = self.last.lock();
        if last.0.is_some_and(|logged| logged.elapsed() < PAUSE) {
            last.1 += 1;
            return None;
        }
        let suppressed = Suppressed(last.1);
        *last = (Some(Stopwatch::start()), 0);
        Some(suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_message_is_due_once_a_minute_and_counts_the_suppressed_ones() {
        let throttle = LogThrottle::default();
        assert_eq!(throttle.is_due(), Some(Suppressed(0)));
        for _ in 0..3 {
            assert_eq!(throttle.is_due(), None);
        }
        tokio::time::advance(PAUSE).await;
        assert_eq!(
            throttle.is_due().map(|suppressed| suppressed.to_string()).as_deref(),
            Some(" (and 3 times more since the last line)")
        );
        assert_eq!(throttle.is_due(), None);
    }
}
