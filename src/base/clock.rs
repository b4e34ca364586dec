//! Clocks and timers. Only this module reads the machine's clocks.
//!
//! Everything else takes a [`Timestamp`] or asks a [`Clock`] that it was given. So a test can set the time of the whole
//! proxy, and advance it by an hour without waiting. Clippy bans the standard clocks in every other file.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::rfc9111::timestamp::Timestamp;

/// Tells the time of day: the machine's, or one that a test sets.
#[derive(Clone, Debug, Default)]
pub struct Clock(ClockKind);

/// The source of a clock's time.
#[derive(Clone, Debug, Default)]
enum ClockKind {
    /// The machine's clock.
    #[default]
    System,
    /// Milliseconds since the epoch, set by a test.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// Returns the machine's clock.
    pub const fn system() -> Self {
        Self(ClockKind::System)
    }

    /// Returns a clock that stays at `start` until [`Clock::advance`] moves it. Clones share the time.
    pub fn manual(start: Timestamp) -> Self {
        Self(ClockKind::Manual(Arc::new(AtomicI64::new(start.as_millis()))))
    }

    /// Returns the current time.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the time of day")]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            ClockKind::System => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
            }
            ClockKind::Manual(millis) => Timestamp::from_millis(millis.load(Ordering::SeqCst)),
        }
    }

    /// Advances a manual clock. Has no effect on the machine's clock.
    pub fn advance(&self, by: Duration) {
        if let ClockKind::Manual(millis) = &self.0 {
            millis.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::SeqCst);
        }
    }
}

/// A moment of the monotonic clock, to measure durations from. Earlier ones are less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts measuring.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the monotonic clock")]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Returns the time since the start.
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }

    /// Returns the time from the start of `earlier` to that of this one; zero if this one was started first.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }
}

/// A timer for many timeouts in turn, nearly all of which never expire. It is not moved for each: when it expires too
/// early, it is set to the deadline of that moment. So most timeouts cost one comparison.
#[derive(Debug, Default)]
pub(crate) struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Waker of the task that polled `sleep` last, which need not be polled again for the same task.
    waker: Option<Waker>,
}

impl Timer {
    /// Becomes ready `limit` after `since`.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, since: Stopwatch, limit: Duration) -> Poll<()> {
        // A deadline past the end of the clock's range never comes.
        let Some(until) = since.0.checked_add(limit) else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if sleep.deadline() > until {
            sleep.as_mut().reset(until);
        } else if !sleep.is_elapsed() && self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        loop {
            if sleep.as_mut().poll(cx).is_pending() {
                self.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            if sleep.deadline() >= until {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(until);
        }
    }
}
