//! Finds out whether the client of a command that waits is still there.
//!
//! A connection reads nothing while a command waits, so it would not see its client go. It looks for it now and then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;
use std::time::Duration;

use crate::base::{Stopwatch, Timer, Transport};

/// A client is looked for after this time. It is gone if it was so often found to send no more: one that has only ended its
/// own side, as `nc -N` does, waits so long for its replies.
const LOOK: Duration = Duration::from_millis(250);
const LOOKS: u32 = 8;

/// Says whether the client is still there.
#[derive(Debug)]
pub(super) struct Presence {
    /// True once it is not. Commands that take long read it.
    is_gone: Arc<AtomicBool>,
    /// Runs since it was looked for.
    looked: Stopwatch,
    /// The number of looks in a row that found it to send no more.
    left: u32,
}

impl Presence {
    /// Begins with a client that is there. Sets `is_gone` once it is not, or once nobody looks for it any more.
    pub(super) fn new(is_gone: &Arc<AtomicBool>) -> Self {
        Self { is_gone: Arc::clone(is_gone), looked: Stopwatch::start(), left: 0 }
    }

    /// Returns whether the client is gone.
    pub(super) fn is_gone(&self) -> bool {
        self.left >= LOOKS
    }

    /// Looks for the client when it is time, and wakes the task when it is time again. Returns whether it is gone.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, timer: &mut Timer, transport: &Transport) -> bool {
        while timer.poll(cx, self.looked, LOOK).is_ready() {
            self.looked = Stopwatch::start();
            self.left = if transport.is_read_closed(cx) { self.left.saturating_add(1) } else { 0 };
            if self.is_gone() {
                self.is_gone.store(true, Ordering::Relaxed);
            }
        }
        self.is_gone()
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.is_gone.store(true, Ordering::Relaxed);
    }
}
