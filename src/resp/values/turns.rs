//! Turns: what changes a value waits for its key's turn, and nobody else's change comes in between.
//!
//! A turn may be held while the durable tier is read, so it is a permit in a queue and not a lock. Keys share a fixed number
//! of turns. Whoever needs several takes them in the order of their numbers, so that no two wait for each other.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::entry::ValueKey;

/// Number of turns that keys are spread over.
const TURNS: usize = 1024;

/// The turns of all keys.
#[derive(Debug)]
pub(in crate::resp) struct Turns {
    turns: Box<[KeyTurn]>,
    /// Number of times that all values of a database were deleted.
    flushes: AtomicU64,
}

#[derive(Debug)]
struct KeyTurn {
    queue: Semaphore,
    /// Number of changes of values with this turn.
    changes: AtomicU64,
}

/// A key's turn, while it is held.
#[derive(Debug)]
pub(in crate::resp) struct Turn<'a> {
    _permit: SemaphorePermit<'a>,
}

/// The state of a key's values, for whoever wants to know whether it has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::resp) struct Version {
    changes: u64,
    flushes: u64,
}

impl Default for Turns {
    fn default() -> Self {
        let turn = || KeyTurn { queue: Semaphore::new(1), changes: AtomicU64::new(0) };
        Self { turns: (0..TURNS).map(|_| turn()).collect(), flushes: AtomicU64::new(0) }
    }
}

impl Turns {
    /// Returns the number of a key's turn.
    pub(in crate::resp) fn number(key: &ValueKey) -> usize {
        usize::try_from(key.key().hash() % TURNS as u128).unwrap_or(0)
    }

    /// Takes a turn, if nobody has it.
    pub(in crate::resp) fn try_take(&self, number: usize) -> Option<Turn<'_>> {
        self.turns[number].queue.try_acquire().ok().map(|permit| Turn { _permit: permit })
    }

    /// Waits for a turn.
    pub(in crate::resp) async fn take(&self, number: usize) -> Turn<'_> {
        let permit = self.turns[number].queue.acquire().await.expect("the queue is never closed");
        Turn { _permit: permit }
    }

    /// Waits for several turns.
    pub(in crate::resp) async fn take_all(&self, mut numbers: Vec<usize>) -> Vec<Turn<'_>> {
        numbers.sort_unstable();
        numbers.dedup();
        let mut turns = Vec::with_capacity(numbers.len());
        for number in numbers {
            turns.push(self.take(number).await);
        }
        turns
    }

    /// Takes several turns, if nobody has any of them.
    pub(in crate::resp) fn try_take_all(&self, mut numbers: Vec<usize>) -> Option<Vec<Turn<'_>>> {
        numbers.sort_unstable();
        numbers.dedup();
        numbers.into_iter().map(|number| self.try_take(number)).collect()
    }

    /// Notes that a value has changed. The caller holds its turn.
    pub(super) fn note_change(&self, key: &ValueKey) {
        self.turns[Self::number(key)].changes.fetch_add(1, Ordering::Release);
    }

    /// Notes that the values of a database were deleted.
    pub(super) fn note_flush(&self) {
        self.flushes.fetch_add(1, Ordering::Release);
    }

    /// Returns the version of the values with a turn. It differs after each change of one of them.
    pub(in crate::resp) fn version(&self, number: usize) -> Version {
        let changes = self.turns[number].changes.load(Ordering::Acquire);
        Version { changes, flushes: self.flushes.load(Ordering::Acquire) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn who_needs_several_turns_waits_for_nobody_that_waits_for_him() {
        let turns = Arc::new(Turns::default());
        let mut tasks = tokio::task::JoinSet::new();
        for seed in 0..200_usize {
            let turns = Arc::clone(&turns);
            tasks.spawn(async move {
                let held = turns.take_all((0..5).map(|n| (seed * 7 + n * 31) % 11).collect()).await;
                tokio::task::yield_now().await;
                drop(held);
            });
        }
        tasks.join_all().await;
        assert!((0..TURNS).all(|number| turns.try_take(number).is_some()));
    }

    #[tokio::test]
    async fn a_turn_is_one_holders_at_a_time() {
        let turns = Turns::default();
        let held = turns.take(3).await;
        assert!(turns.try_take(3).is_none() && turns.try_take(4).is_some());
        assert!(turns.try_take_all(vec![2, 3]).is_none());
        assert!(turns.try_take(2).is_some(), "what could not be had whole is given back");
        drop(held);
        assert!(turns.try_take_all(vec![3, 2, 3]).is_some());
    }
}
