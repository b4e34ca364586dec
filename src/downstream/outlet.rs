//! Informational responses (RFC 9110 §15.2) on a connection of HTTP/1.
//!
//! hyper's server sends none by itself. A connection has an outlet below hyper; a request under way has a sender into it.
//! What is sent goes out before anything else of the response, as soon as it arrives.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;

use http::StatusCode;
use http::header::HeaderMap;
use parking_lot::Mutex;

use crate::upstream::InformationalSender;

/// The most bytes that wait to be written; more are dropped, as any interim response may be.
const MAX_PENDING: usize = 64 * 1024;

/// Where a connection's interim responses go out.
#[derive(Debug, Default)]
pub(super) struct Outlet {
    /// Odd while a request is being answered; another one for each request.
    number: AtomicU64,
    /// Whether something that hyper wrote is not known to be out yet: then an interim response could
    /// come to stand in the middle of the response before it.
    dirty: AtomicBool,
    has_pending: AtomicBool,
    /// Guarded by its lock: what is to be written, and whose turn it is to write it.
    pending: Mutex<(Vec<u8>, Option<Waker>)>,
}

impl Outlet {
    /// Begins to answer a request: until the guard is dropped interim responses to it are let out.
    pub(super) fn open(&self) -> Open<'_> {
        self.number.fetch_add(1, Ordering::AcqRel);
        Open(self)
    }

    /// Has the connection woken when an interim response comes.
    pub(super) fn wake_for_interim(&self, waker: &Waker) {
        let mut pending = self.pending.lock();
        if !pending.1.as_ref().is_some_and(|known| known.will_wake(waker)) {
            pending.1 = Some(waker.clone());
        }
    }

    /// A handle for the request that is being answered.
    pub(super) fn sender(self: &Arc<Self>) -> Sender {
        Sender { outlet: Arc::clone(self), number: self.number.load(Ordering::Acquire) }
    }

    /// Notes that hyper has written something.
    pub(super) fn wrote(&self) {
        self.dirty.store(true, Ordering::Release);
    }

    /// Notes that all that hyper has written is out.
    pub(super) fn flushed(&self) {
        self.dirty.store(false, Ordering::Release);
    }

    /// Returns whether something is to be written.
    pub(super) fn has_pending(&self) -> bool {
        self.has_pending.load(Ordering::Acquire)
    }

    /// Takes what is to be written now, if anything is.
    pub(super) fn take(&self) -> Option<Vec<u8>> {
        if !self.has_pending() {
            return None;
        }
        let mut pending = self.pending.lock();
        self.has_pending.store(false, Ordering::Release);
        Some(std::mem::take(&mut pending.0))
    }
}

/// While it lives, a request is being answered.
#[derive(Debug)]
pub(super) struct Open<'a>(&'a Outlet);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.number.fetch_add(1, Ordering::AcqRel);
    }
}

/// Sends the informational responses to one request.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    outlet: Arc<Outlet>,
    number: u64,
}

impl InformationalSender for Sender {
    fn send(&self, status: StatusCode, fields: &HeaderMap) {
        let mut text = Vec::with_capacity(256);
        let reason = status.canonical_reason().unwrap_or("Interim");
        let _ = write!(text, "HTTP/1.1 {} {reason}\r\n", status.as_u16());
        for (name, value) in fields {
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(b": ");
            text.extend_from_slice(value.as_bytes());
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"\r\n");

        let mut pending = self.outlet.pending.lock();
        let is_current = self.outlet.number.load(Ordering::Acquire) == self.number && self.number % 2 == 1;
        if !is_current || self.outlet.dirty.load(Ordering::Acquire) || pending.0.len() + text.len() > MAX_PENDING {
            return;
        }
        pending.0.extend_from_slice(&text);
        self.outlet.has_pending.store(true, Ordering::Release);
        let waker = pending.1.take();
        drop(pending);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use http::header::{HeaderValue, LINK};

    use super::*;

    fn hints() -> HeaderMap {
        let mut fields = HeaderMap::new();
        fields.insert(LINK, HeaderValue::from_static("</a.css>; rel=preload"));
        fields
    }

    #[test]
    fn hints_go_out_while_their_request_is_answered_and_not_after() {
        let outlet = Arc::new(Outlet::default());
        let early = StatusCode::from_u16(103).expect("a status");
        let interim = {
            let _open = outlet.open();
            let interim = outlet.sender();
            interim.send(early, &hints());
            interim
        };
        let text = outlet.take().map(|bytes| String::from_utf8(bytes).expect("text"));
        assert_eq!(text.as_deref(), Some("HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n"));
        interim.send(early, &hints());
        assert_eq!(outlet.take(), None, "its response has begun");
        let _open = outlet.open();
        interim.send(early, &hints());
        assert_eq!(outlet.take(), None, "another request is being answered");
    }

    #[test]
    fn nothing_goes_out_into_the_middle_of_another_response() {
        let outlet = Arc::new(Outlet::default());
        let early = StatusCode::from_u16(103).expect("a status");
        let _open = outlet.open();
        outlet.wrote();
        outlet.sender().send(early, &hints());
        assert_eq!(outlet.take(), None);
        outlet.flushed();
        outlet.sender().send(early, &hints());
        assert!(outlet.take().is_some());
    }
}
