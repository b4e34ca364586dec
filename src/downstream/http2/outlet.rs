//! Informational responses (RFC 9110 §15.2) to the streams of a connection.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

use http::StatusCode;
use http::header::HeaderMap;
use parking_lot::Mutex;

use crate::upstream::{Informational, InformationalSender};

/// The most informational responses that wait to go out on a stream. More are dropped, as is allowed for any.
const MAX_PENDING: usize = 16;

/// The informational responses that wait to go out on a connection.
#[derive(Debug, Default)]
pub(super) struct Outlet {
    has_pending: AtomicBool,
    /// The streams that wait for their responses, by number.
    streams: Mutex<HashMap<u64, Waiting>>,
}

/// A stream that waits for its response.
#[derive(Debug, Default)]
struct Waiting {
    pending: Vec<(StatusCode, HeaderMap)>,
    waker: Option<Waker>,
}

impl Outlet {
    /// Lets informational responses to a stream wait from now on, until [`Outlet::close`].
    pub(super) fn open(&self, stream: u64) {
        self.streams.lock().entry(stream).or_default();
    }

    /// Wakes the task of a stream when an informational response to it comes.
    pub(super) fn wake_on_informational(&self, stream: u64, waker: &Waker) {
        let mut streams = self.streams.lock();
        let known = &mut streams.entry(stream).or_default().waker;
        if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *known = Some(waker.clone());
        }
    }

    /// Makes a sender for a stream.
    pub(super) fn sender(self: &Arc<Self>, stream: u64) -> Informational {
        Informational { sender: Arc::clone(self) as Arc<dyn InformationalSender>, request: stream }
    }

    /// Takes what waits for a stream.
    pub(super) fn take(&self, stream: u64) -> Vec<(StatusCode, HeaderMap)> {
        if !self.has_pending.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut streams = self.streams.lock();
        let taken = streams.get_mut(&stream).map(|waiting| std::mem::take(&mut waiting.pending)).unwrap_or_default();
        if streams.values().all(|waiting| waiting.pending.is_empty()) {
            self.has_pending.store(false, Ordering::Release);
        }
        taken
    }

    /// Drops what comes for a stream from now on: its response has begun, or it has ended.
    pub(super) fn close(&self, stream: u64) {
        self.streams.lock().remove(&stream);
    }
}

impl InformationalSender for Outlet {
    fn send(&self, request: u64, status: StatusCode, fields: &HeaderMap) {
        let mut streams = self.streams.lock();
        let Entry::Occupied(mut waiting) = streams.entry(request) else { return };
        let waiting = waiting.get_mut();
        if waiting.pending.len() >= MAX_PENDING {
            return;
        }
        waiting.pending.push((status, fields.clone()));
        self.has_pending.store(true, Ordering::Release);
        let waker = waiting.waker.clone();
        drop(streams);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
