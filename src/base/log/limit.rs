//! Lines that are told once a minute, so that no client fills the log.

use std::collections::HashMap;
use std::hash::Hash;

use parking_lot::Mutex;

/// Time for which a line of one kind suppresses others of its kind, in milliseconds.
const PAUSE: i64 = 60_000;

/// The most kinds that are remembered. Those past it are counted, and not told.
const MAX_KINDS: usize = 1024;

/// Which lines were told lately.
#[derive(Debug)]
pub struct OncePerMinute<K> {
    /// The lock guards one look and one insertion.
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    /// Time of the last line of each kind, in milliseconds of some clock, and the number suppressed since.
    told: HashMap<K, (i64, u64)>,
    /// Lines of kinds for which there was no room.
    others: u64,
}

/// Leave to tell a line, with those that were kept back before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Of its kind.
    pub same: u64,
    /// Of kinds that are not told because there were too many of them.
    pub others: u64,
}

impl<K: Eq + Hash> OncePerMinute<K> {
    /// Nothing was told yet.
    pub fn new() -> Self {
        Self { state: Mutex::new(State { told: HashMap::new(), others: 0 }) }
    }

    /// Leave to tell a line of `kind` at `now`, unless one was told within the last minute.
    pub fn turn(&self, kind: K, now: i64) -> Option<Turn> {
        let mut state = self.state.lock();
        let State { told, others } = &mut *state;
        // A clock that was set back ends the pause.
        let is_over = |at: i64| !(0..PAUSE).contains(&now.saturating_sub(at));
        if let Some((at, same)) = told.get_mut(&kind) {
            if !is_over(*at) {
                *same += 1;
                return None;
            }
            *at = now;
            return Some(Turn { same: std::mem::take(same), others: std::mem::take(others) });
        }
        if told.len() >= MAX_KINDS {
            told.retain(|_, (at, _)| !is_over(*at));
        }
        if told.len() >= MAX_KINDS {
            *others += 1;
            return None;
        }
        told.insert(kind, (now, 0));
        Some(Turn { same: 0, others: std::mem::take(others) })
    }
}

impl<K: Eq + Hash> Default for OncePerMinute<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl Turn {
    /// In words, to be put behind the line; empty when nothing was kept back.
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
        assert!(limit.state.lock().told.len() <= MAX_KINDS);
    }
}
