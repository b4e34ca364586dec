//! Says the same thing once a minute at the most: what fails for one response mostly fails for the next.

use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;

use crate::base::Stopwatch;

/// Between two lines.
const PAUSE: Duration = Duration::from_secs(60);

/// One thing that is said from time to time.
#[derive(Debug, Default)]
pub(super) struct Seldom {
    /// Guarded by its lock: when it was last said, and how often it was not since.
    state: Mutex<(Option<Stopwatch>, u64)>,
}

/// Counts the messages left out since the last line; shown at the end of the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeftOut(u64);

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            1 => f.write_str(" (and once more since the last line)"),
            n => write!(f, " (and {n} times more since the last line)"),
        }
    }
}

impl Seldom {
    /// Returns whether the message is due now.
    pub(super) fn is_due(&self) -> Option<LeftOut> {
        let mut state = self.state.lock();
        if state.0.is_some_and(|last| last.elapsed() < PAUSE) {
            state.1 += 1;
            return None;
        }
        let left_out = LeftOut(state.1);
        *state = (Some(Stopwatch::start()), 0);
        Some(left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_said_once_a_minute_and_how_often_it_was_not() {
        let seldom = Seldom::default();
        assert_eq!(seldom.is_due(), Some(LeftOut(0)));
        for _ in 0..3 {
            assert_eq!(seldom.is_due(), None);
        }
        tokio::time::advance(PAUSE).await;
        assert_eq!(
            seldom.is_due().map(|left| left.to_string()).as_deref(),
            Some(" (and 3 times more since the last line)")
        );
        assert_eq!(seldom.is_due(), None);
    }
}
