//! The state of a client's connection, which its stream and its requests share: its phase, the heads that were read,
//! and the outlet of informational responses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use http::{Request, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use parking_lot::Mutex;

use super::heads::{Heads, escaped, has_content_length, line_with_unsafe, may_hold_unsafe};
use super::outlet::Outlet;
use super::refusals::Witness;
use crate::base::Unparsed;
use crate::respond::{Carrier, ResponseBody};
use crate::rfc9111::present::Present;

/// The state that a connection's stream and its requests share.
#[derive(Debug)]
pub(crate) struct Connection {
    /// A [`Phase`]. Only the connection's own thread reads and writes it; it is atomic because the type is shared.
    phase: AtomicU8,
    /// The heads as they were read. Only the connection's own thread takes the lock, so nobody waits for it.
    heads: Mutex<Heads>,
    outlet: Arc<Outlet>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// Every response is out, and at most a part of the next head has been read.
    Waiting,
    /// A request is being answered.
    Answering,
    /// The body of the response has ended, and may not be written out yet.
    Flushing,
    /// The bytes are no longer HTTP, and are not looked at.
    Tunnel,
}

impl Connection {
    /// Makes the state of a connection that waits for its first request.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { phase: AtomicU8::new(Phase::Waiting as u8), heads: Mutex::default(), outlet: Arc::default() })
    }

    /// Notes that a request has begun, with the fields that are `present`. Returns whether it has both
    /// `Content-Length` and `Transfer-Encoding`.
    #[inline]
    pub(crate) fn begin(&self, request: &Request<Incoming>, present: Present) -> bool {
        self.enter(Phase::Answering);
        let mut heads = self.heads.lock();
        let conflict = present.has(Present::TRANSFER_ENCODING) && has_content_length(heads.next(), request.method());
        heads.begin(!request.body().is_end_stream());
        conflict
    }

    #[inline]
    fn is_in(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Relaxed) == phase as u8
    }

    #[inline]
    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Returns the outlet for the connection's informational responses.
    pub(super) fn outlet(&self) -> &Arc<Outlet> {
        &self.outlet
    }

    /// Makes the connection wait for the next request once `response` is out.
    #[inline]
    pub(crate) fn track(self: &Arc<Self>, response: &mut Response<ResponseBody>) {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            self.enter(Phase::Tunnel);
        }
        response.body_mut().track(Arc::clone(self) as Arc<dyn Carrier>);
    }

    /// Notes that everything written is out. Returns whether the connection waits for a request from now on.
    #[inline]
    pub(super) fn flushed(&self) -> bool {
        self.outlet.flushed();
        let waits = self.is_in(Phase::Flushing);
        if waits {
            self.enter(Phase::Waiting);
        }
        waits
    }

    /// Notes what was read. Returns whether a head begins with it.
    #[inline]
    pub(super) fn read(&self, bytes: &[u8]) -> bool {
        if self.is_in(Phase::Tunnel) {
            return false;
        }
        let mut heads = self.heads.lock();
        // Only behind a request without a body do these bytes begin the next head.
        if self.is_in(Phase::Answering) && heads.is_body {
            return false;
        }
        if self.is_waiting() {
            heads.forget_answered();
        }
        heads.read(bytes)
    }

    /// Returns escaped bytes for hyper to read in place of `read`; `None`: they need no escaping.
    #[inline]
    pub(super) fn escape_target(&self, read: &[u8]) -> Option<Vec<u8>> {
        if may_hold_unsafe(read) { self.escaped_in_target(read) } else { None }
    }

    #[cold]
    fn escaped_in_target(&self, read: &[u8]) -> Option<Vec<u8>> {
        let line = line_with_unsafe(read)?;
        if self.is_in(Phase::Tunnel) {
            return None;
        }
        let part = {
            let mut heads = self.heads.lock();
            if self.is_in(Phase::Answering) && heads.is_body {
                return None;
            }
            if self.is_waiting() {
                heads.forget_answered();
            }
            heads.line()?
        };
        escaped(read, line, part)
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.is_in(Phase::Waiting)
    }

    pub(super) fn is_in_head(&self) -> bool {
        self.heads.lock().is_in_head()
    }

    /// Returns whether more of the last request's body may come.
    pub(super) fn may_be_in_body(&self) -> bool {
        !self.is_in(Phase::Tunnel) && self.heads.lock().is_body
    }

    /// Reports to `witness` that the request whose head was read last is refused, and why.
    pub(super) fn report(&self, why: Unparsed, Witness { refusals, peer }: &Witness) {
        refusals.note(why, *peer, self.heads.lock().next());
    }
}

impl Carrier for Connection {
    fn body_has_ended(&self) {
        if self.is_in(Phase::Answering) {
            self.enter(Phase::Flushing);
        }
    }
}
