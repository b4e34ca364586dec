//! Limits log lines of one kind to one a minute, so that no client can fill the log.

use std::collections::HashMap;
use std::hash::Hash;

use parking_lot::Mutex;

/// Time for which a line suppresses others of its kind, in milliseconds.
const PAUSE: i64 = 60_000;

/// The most kinds that are remembered. Lines of further kinds are counted, and not logged.
const MAX_KINDS: usize = 1024;

/// Limits the lines of each kind to one a minute.
#[derive(Debug)]
pub struct OncePerMinute<K> {
    /// Locked for one look-up and one insertion.
    state: Mutex<LimitState<K>>,
}

/// The lines of the last minute.
#[derive(Debug)]
struct LimitState<K> {
    /// For each kind, the time of its last line in milliseconds, and the number of lines suppressed since.
    logged: HashMap<K, (i64, u64)>,
    /// Number of suppressed lines whose kinds are not remembered.
    others: u64,
}

/// Permit to log a line. Counts the lines that were suppressed before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Suppressed lines of the same kind.
    pub same: u64,
    /// Suppressed lines of kinds that were not remembered, because there were too many.
    pub others: u64,
}

impl<K: Eq + Hash> OncePerMinute<K> {
    /// Begins with no lines logged.
    pub fn new() -> Self {
        Self { state: Mutex::new(LimitState { logged: HashMap::new(), others: 0 }) }
    }

    /// Returns a permit to log a line of `kind` at `now`, in milliseconds; `None` within a minute of the last.
    pub fn turn(&self, kind: K, now: i64) -> Option<Turn> {
        let mut state = self.state.lock();
        let LimitState { logged, others } = &mut *state;
        // A clock that was set back ends the pause.
        let is_over = |at: i64| !(0..PAUSE).contains(&now.saturating_sub(at));
        if let Some((at, same)) = logged.get_mut(&kind) {
            if !is_over(*at) {
                *same += 1;
                return None;
            }
            *at = now;
            return Some(Turn { same: std::mem::take(same), others: std::mem::take(others) });
        }
        if logged.len() >= MAX_KINDS {
            logged.retain(|_, (at, _)| !is_over(*at));
        }
        if logged.len() >= MAX_KINDS {
            *others += 1;
            return None;
        }
        logged.insert(kind, (now, 0));
        Some(Turn { same: 0, others: std::mem::take(others) })
    }
}

impl<K: Eq + Hash> Default for OncePerMinute<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl Turn {
    /// Returns a note on the suppressed lines to append to the line; empty if there are none.
    pub fn in_words(self) -> String {
        match self {
            Self { same: 0, others: 0 } => String::new(),
            Self { same, others: 0 } => format!(" (and {same} more like it since the last such line)"),
            Self { same: 0, others } => format!(" (and {others} others that were not logged one by one)"),
            Self { same, others } => format!(
                " (and {same} more like it since the last such line, and {others} others that were not logged one by one)"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_kind_and_minute_and_a_bounded_number_of_kinds() {
        let limit = OncePerMinute::new();
        assert_eq!(limit.turn(1, 0), Some(Turn::default()));
        assert_eq!((limit.turn(1, 1), limit.turn(1, 59_999)), (None, None));
        assert_eq!(limit.turn(2, 59_999), Some(Turn::default()));
        assert_eq!(limit.turn(1, 60_000), Some(Turn { same: 2, others: 0 }));
        assert!(limit.turn(1, 59_000).is_some(), "the clock was set back");
        let told = (10..10_000).filter(|kind| limit.turn(*kind, 100_000).is_some()).count();
        assert!(told <= MAX_KINDS, "{told}");
        let untold = (10..10_000).len() - told;
        assert_eq!(limit.turn(0, 200_000).map(|turn| turn.others), Some(untold as u64));
        assert!(limit.state.lock().logged.len() <= MAX_KINDS);
    }
}
