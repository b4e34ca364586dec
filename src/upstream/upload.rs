//! The progress of a request's body, for those who wait for the answer.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Fault;
use super::buffered::Buffered;
use crate::base::Stopwatch;

/// The progress of a request's body, shared by the body and by those who wait for the answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upload(Arc<Mutex<Progress>>);

#[derive(Debug)]
struct Progress {
    /// Time of the last byte.
    moved: Stopwatch,
    /// True while the client is to send the next byte.
    waits_for_client: bool,
    /// True once all of the body was handed to the connection.
    is_sent: bool,
    fault: Option<Fault>,
    /// The part that was buffered before the origin was asked. Kept with the progress, so that it stays counted while
    /// the connection may still be writing it.
    buffered: Option<Arc<Buffered>>,
}

impl Default for Progress {
    fn default() -> Self {
        Self { moved: Stopwatch::start(), waits_for_client: false, is_sent: false, fault: None, buffered: None }
    }
}

impl Upload {
    /// Returns the time of the last byte that came from the client or went to the connection.
    pub(crate) fn moved(&self) -> Stopwatch {
        self.0.lock().moved
    }

    /// Returns whether the client is to send the next byte.
    pub(crate) fn waits_for_client(&self) -> bool {
        self.0.lock().waits_for_client
    }

    /// Returns whether all of the body was handed to the connection.
    pub(crate) fn is_sent(&self) -> bool {
        self.0.lock().is_sent
    }

    /// Returns why the body ended early, if it did.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.0.lock().fault
    }

    /// Notes that bytes moved.
    pub(super) fn note_moved(&self) {
        self.0.lock().moved = Stopwatch::start();
    }

    /// Notes that the client is to send the next byte.
    pub(super) fn note_waiting(&self) {
        self.0.lock().waits_for_client = true;
    }

    /// Notes that the body does not wait for its client any more.
    pub(super) fn note_not_waiting(&self) {
        self.0.lock().waits_for_client = false;
    }

    /// Notes that the client sent what it was waited for.
    pub(super) fn note_received(&self) {
        let mut progress = self.0.lock();
        progress.moved = Stopwatch::start();
        progress.waits_for_client = false;
    }

    /// Notes the part that was buffered before the origin is asked.
    pub(super) fn note_buffered(&self, buffered: &Arc<Buffered>) {
        let mut progress = self.0.lock();
        progress.moved = Stopwatch::start();
        progress.waits_for_client = false;
        progress.buffered = Some(Arc::clone(buffered));
    }

    /// Notes that a piece was handed to the connection, and whether it was the last.
    pub(super) fn note_handed_on(&self, is_last: bool) {
        let mut progress = self.0.lock();
        progress.moved = Stopwatch::start();
        progress.is_sent |= is_last;
    }

    /// Notes whether all of the body was handed to the connection.
    pub(super) fn set_sent(&self, is_sent: bool) {
        self.0.lock().is_sent = is_sent;
    }

    /// Notes that the body ended early, and returns why.
    pub(super) fn fail(&self, fault: Fault) -> Fault {
        self.0.lock().fault = Some(fault);
        fault
    }
}
