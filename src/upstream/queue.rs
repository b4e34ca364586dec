//! Requests that wait until an address has room (`upstream.max_requests`).
//!
//! What clients wait for goes first, then what has a stale response to fall back on, then what nobody waits for. Within
//! each, whose client came first goes first: one that has waited in vain for another's answer, which it could not share,
//! does not wait for everyone else again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::endpoint::Endpoint;
use super::message::Errand;
use super::pool::Choice;
use crate::base::Stopwatch;

/// The requests that wait for room.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: AtomicUsize,
    /// All that ever waited.
    joined: AtomicU64,
    /// By errand, the most urgent first. Guarded by the lock, which is held for one push, or one search.
    lines: Mutex<[VecDeque<Waiter>; 3]>,
}

/// A request that waits.
#[derive(Debug)]
struct Waiter {
    sender: oneshot::Sender<Arc<Endpoint>>,
    since: Stopwatch,
    choice: Choice,
}

/// The most requests that wait although no client waits for them.
const MAX_BACKGROUND: usize = 64;

impl Queue {
    /// Returns the number of requests that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Joins the line of the errand, behind those whose clients have waited for longer; `None`: `most` wait already.
    /// Whoever is there is handed an address that has room, one of whose requests under way it is then.
    pub(super) fn join(&self, choice: &Choice, most: usize) -> Option<oneshot::Receiver<Arc<Endpoint>>> {
        let mut lines = self.lines.lock();
        let line = &mut lines[rank(choice.errand)];
        if self.len() >= most || (choice.errand == Errand::Background && line.len() >= MAX_BACKGROUND) {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        let since = choice.since.unwrap_or_else(Stopwatch::start);
        let at = line.iter().rposition(|waiter| waiter.since <= since).map_or(0, |before| before + 1);
        line.insert(at, Waiter { sender, since, choice: choice.clone() });
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.joined.fetch_add(1, Ordering::SeqCst);
        Some(receiver)
    }

    /// Removes from the line of `errand` those that have closed their receivers.
    pub(super) fn leave(&self, errand: Errand) {
        let mut lines = self.lines.lock();
        let line = &mut lines[rank(errand)];
        let before = line.len();
        line.retain(|waiter| !waiter.sender.is_closed());
        self.waiting.fetch_sub(before - line.len(), Ordering::SeqCst);
    }

    /// Returns the number of requests that ever waited.
    pub(super) fn joined(&self) -> u64 {
        self.joined.load(Ordering::SeqCst)
    }

    /// Sends all away: every address is down.
    pub(super) fn dismiss(&self) {
        let mut lines = self.lines.lock();
        lines.iter_mut().for_each(VecDeque::clear);
        self.waiting.store(0, Ordering::SeqCst);
    }

    /// Hands an address that has room, and counts a request under way, to the first that still waits and may go there.
    /// Returns whether there was one.
    pub(super) fn hand_over(&self, endpoint: &Arc<Endpoint>) -> bool {
        if self.len() == 0 {
            return false;
        }
        let mut lines = self.lines.lock();
        for line in lines.iter_mut() {
            while let Some(at) = line.iter().position(|waiter| waiter.choice.takes(endpoint)) {
                let Some(first) = line.remove(at) else { break };
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                if first.sender.send(Arc::clone(endpoint)).is_ok() {
                    return true;
                }
            }
        }
        false
    }
}

/// Returns the place of an errand's line.
fn rank(errand: Errand) -> usize {
    match errand {
        Errand::Client => 0,
        Errand::StandIn => 1,
        Errand::Background => 2,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Config;
    use super::super::endpoint::Target;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whose_client_came_first_goes_first() {
        let config = Config::default();
        let endpoint = config.endpoint(0, &config.addresses[0], Target::of(&config.addresses[0].address));
        let queue = Queue::default();
        let mut times = Vec::new();
        for _ in 0..3 {
            times.push(Stopwatch::start());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let mut waiting: Vec<_> =
            [(Errand::Background, 0), (Errand::Client, 1), (Errand::Client, 2), (Errand::Client, 0)]
                .map(|(errand, since)| {
                    let since = Some(times[since]);
                    let choice = Choice { errand, since, affinity: 0, kept_at: None, tried: smallvec::SmallVec::new() };
                    queue.join(&choice, 10).expect("room in the queue")
                })
                .into();
        for expected in [3, 1, 2, 0] {
            assert!(queue.hand_over(&endpoint));
            assert!(waiting[expected].try_recv().is_ok(), "{expected}");
        }
        assert!(!queue.hand_over(&endpoint));
    }
}
