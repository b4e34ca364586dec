//! Requests that wait until an address has room (`upstream.max_requests`).
//!
//! What clients wait for goes first, then what has a stale response to fall back on, then what nobody waits for. Within
//! each, who came first goes first.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::endpoint::Endpoint;
use super::message::Errand;
use super::pool::Choice;

/// The requests that wait for room.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: AtomicUsize,
    /// By errand, the most urgent first. Guarded by the lock, which is held for one push, or one search.
    lines: Mutex<[VecDeque<Waiter>; 3]>,
}

/// A request that waits.
#[derive(Debug)]
struct Waiter {
    sender: oneshot::Sender<Arc<Endpoint>>,
    choice: Choice,
}

/// The most requests that wait although no client waits for them.
const MAX_BACKGROUND: usize = 64;

impl Queue {
    /// Returns the number of requests that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Joins the line of the errand; `None`: `most` wait already. Whoever is there is handed an address that has room, one
    /// of whose requests under way it is then.
    pub(super) fn join(&self, choice: &Choice, most: usize) -> Option<oneshot::Receiver<Arc<Endpoint>>> {
        let mut lines = self.lines.lock();
        if self.len() >= most {
            // Those whose clients have left make room.
            lines.iter_mut().for_each(|line| line.retain(|waiter| !waiter.sender.is_closed()));
            self.waiting.store(lines.iter().map(VecDeque::len).sum(), Ordering::Relaxed);
        }
        let line = &mut lines[rank(choice.errand)];
        if self.len() >= most || (choice.errand == Errand::Background && line.len() >= MAX_BACKGROUND) {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        line.push_back(Waiter { sender, choice: choice.clone() });
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Some(receiver)
    }

    /// Sends all away: every address is down.
    pub(super) fn dismiss(&self) {
        let mut lines = self.lines.lock();
        lines.iter_mut().for_each(VecDeque::clear);
        self.waiting.store(0, Ordering::Relaxed);
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
                self.waiting.fetch_sub(1, Ordering::Relaxed);
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
