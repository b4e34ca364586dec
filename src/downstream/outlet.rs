//! Informational responses (RFC 9110 §15.2) on a connection of HTTP/1.
//!
//! hyper's server sends none by itself. A connection has an outlet below hyper, and a request under way has a sender
//! into it. Each informational response goes out as soon as it arrives, before the response itself.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;

use http::StatusCode;
use http::header::HeaderMap;
use parking_lot::Mutex;

use crate::upstream::{Informational, InformationalSender};

/// The most bytes that wait to be written. More are dropped: informational responses are optional.
const MAX_PENDING: usize = 64 * 1024;

/// The informational responses that wait to go out on a connection.
#[derive(Debug, Default)]
pub(super) struct Outlet {
    /// Odd while a request is being answered; changes with each request.
    number: AtomicU64,
    /// True while something that hyper wrote may not be out yet. An informational response could then end up in the
    /// middle of the response before it.
    dirty: AtomicBool,
    has_pending: AtomicBool,
    /// The bytes to write, and the task to wake for it. Guarded by the lock.
    pending: Mutex<(Vec<u8>, Option<Waker>)>,
}

impl Outlet {
    /// Begins to answer a request. Informational responses to it go out until the guard is dropped.
    pub(super) fn open(&self) -> Open<'_> {
        self.number.fetch_add(1, Ordering::AcqRel);
        Open(self)
    }

    /// Wakes the connection when an informational response comes.
    pub(super) fn wake_on_informational(&self, waker: &Waker) {
        let mut pending = self.pending.lock();
        if !pending.1.as_ref().is_some_and(|known| known.will_wake(waker)) {
            pending.1 = Some(waker.clone());
        }
    }

    /// Returns a sender for the request that is being answered.
    pub(super) fn sender(self: &Arc<Self>) -> Informational {
        let sender = Arc::clone(self) as Arc<dyn InformationalSender>;
        Informational { sender, request: self.number.load(Ordering::Acquire) }
    }

    /// Notes that hyper has written something.
    pub(super) fn wrote(&self) {
        self.dirty.store(true, Ordering::Release);
    }

    /// Notes that everything hyper has written is out.
    pub(super) fn flushed(&self) {
        self.dirty.store(false, Ordering::Release);
    }

    /// Returns whether bytes wait to be written.
    pub(super) fn has_pending(&self) -> bool {
        self.has_pending.load(Ordering::Acquire)
    }

    /// Takes the bytes that wait to be written.
    pub(super) fn take(&self) -> Option<Vec<u8>> {
        if !self.has_pending() {
            return None;
        }
        let mut pending = self.pending.lock();
        self.has_pending.store(false, Ordering::Release);
        Some(std::mem::take(&mut pending.0))
    }
}

/// Guard of a request that is being answered.
#[derive(Debug)]
pub(super) struct Open<'a>(&'a Outlet);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.number.fetch_add(1, Ordering::AcqRel);
    }
}

impl InformationalSender for Outlet {
    fn send(&self, request: u64, status: StatusCode, fields: &HeaderMap) {
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

        let mut pending = self.pending.lock();
        let is_current = self.number.load(Ordering::Acquire) == request && request % 2 == 1;
        if !is_current || self.dirty.load(Ordering::Acquire) || pending.0.len() + text.len() > MAX_PENDING {
            return;
        }
        pending.0.extend_from_slice(&text);
        self.has_pending.store(true, Ordering::Release);
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

    fn send(to: &Informational) {
        to.sender.send(to.request, StatusCode::from_u16(103).expect("a status"), &hints());
    }

    fn hints() -> HeaderMap {
        let mut fields = HeaderMap::new();
        fields.insert(LINK, HeaderValue::from_static("</a.css>; rel=preload"));
        fields
    }

    #[test]
    fn hints_go_out_while_their_request_is_answered_and_not_after() {
        let outlet = Arc::new(Outlet::default());
        let early = StatusCode::from_u16(103).expect("a status");
        let informational = {
            let _open = outlet.open();
            let informational = outlet.sender();
            informational.sender.send(informational.request, early, &hints());
            informational
        };
        let text = outlet.take().map(|bytes| String::from_utf8(bytes).expect("text"));
        assert_eq!(text.as_deref(), Some("HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n"));
        informational.sender.send(informational.request, early, &hints());
        assert_eq!(outlet.take(), None, "its response has begun");
        let _open = outlet.open();
        informational.sender.send(informational.request, early, &hints());
        assert_eq!(outlet.take(), None, "another request is being answered");
    }

    #[test]
    fn nothing_goes_out_into_the_middle_of_another_response() {
        let outlet = Arc::new(Outlet::default());
        let _open = outlet.open();
        outlet.wrote();
        send(&outlet.sender());
        assert_eq!(outlet.take(), None);
        outlet.flushed();
        send(&outlet.sender());
        assert!(outlet.take().is_some());
    }
}
