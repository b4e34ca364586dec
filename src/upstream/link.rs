//! Connections to the origin, and the idle ones of each thread.

use std::cell::RefCell;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use tokio::task::AbortHandle;

use super::Upstream;
use super::endpoint::Endpoint;
use super::pool::Seat;
use crate::base::{Stopwatch, Timer};
use crate::upstream::Transfer;
use crate::upstream::origin_io::Wire;
use crate::upstream::request_body::RequestBody;
use crate::upstream::upload::Upload;

/// A connection to the origin. Boxed, since it is moved with each response.
#[derive(Debug)]
pub(super) struct Link {
    /// Sends requests.
    pub sender: SendRequest<RequestBody>,
    /// The task that reads and writes the connection.
    pub task: AbortHandle,
    /// Limits the wait for the next bytes.
    pub timer: Timer,
    /// The origin that it leads to.
    pub upstream: Arc<Upstream>,
    /// The address of the origin.
    pub endpoint: Arc<Endpoint>,
    /// Its place among the requests under way there, from the start of a request to the end of its response.
    pub seat: Option<Seat>,
    /// State of its bytes.
    pub wire: Arc<Wire>,
    /// Limits for the bytes of the request and its response.
    pub transfer: Transfer,
    /// True from the start of a request to the end of its response.
    pub is_in_use: bool,
    /// True if another request may be sent after this one.
    pub may_be_kept: bool,
    /// Progress of the request's body, if that was not sent completely when the response came.
    pub upload: Option<Upload>,
    /// Time of the last bytes from the origin, unless the body was waited for since.
    pub heard: Option<Stopwatch>,
    /// Start of the current wait for the rest of a body.
    pub silent: Option<Stopwatch>,
}

impl Link {
    /// Becomes ready when the wait for the rest of a body is as long as `body_timeout`.
    pub(super) fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.heard = None;
        let silent = *self.silent.get_or_insert_with(Stopwatch::start);
        self.timer.poll(cx, silent, self.transfer.body_timeout)
    }

    /// Begins a request.
    pub(super) fn begin(&mut self, transfer: &Transfer) {
        self.is_in_use = true;
        self.transfer = *transfer;
        self.wire.begin();
    }
}

/// Aborts a connection that is in use. hyper would first wait until the origin has taken all that was written.
impl Drop for Link {
    fn drop(&mut self) {
        if self.is_in_use {
            self.task.abort();
        }
    }
}

/// A connection that waits for a request.
struct Idle {
    link: Box<Link>,
    /// Start of the idle time.
    since: Stopwatch,
}

thread_local! {
    /// The idle connections of this thread, by the id of the address.
    static IDLE: RefCell<Vec<(u64, Vec<Idle>)>> = const { RefCell::new(Vec::new()) };
}

/// Returns the idle connections to the address `id`.
fn idle_of(all: &mut Vec<(u64, Vec<Idle>)>, id: u64) -> &mut Vec<Idle> {
    let at = all.iter().position(|(of, _)| *of == id).unwrap_or_else(|| {
        // A new address is a good moment to close the connections to those that are gone.
        for (_, idle) in all.iter_mut() {
            idle.retain(|one| !one.link.endpoint.is_gone());
        }
        all.retain(|(_, idle)| !idle.is_empty());
        all.push((id, Vec::new()));
        all.len() - 1
    });
    &mut all[at].1
}

/// Time for which an idle connection may still be sending its last request.
const TO_BECOME_FREE: Duration = Duration::from_secs(1);

/// Takes the idle connection to the address `id` that was used last, if it is ready and was idle for at most `newer_than`
/// at `now`. Closes those that were idle for longer than `limit`.
pub(super) fn take_idle(id: u64, now: Stopwatch, newer_than: Duration, limit: Duration) -> Option<Box<Link>> {
    IDLE.with_borrow_mut(|idle| {
        let idle = idle_of(idle, id);
        // Begins with the newest, and stops at the first that is ready. The older ones are checked by later calls.
        let mut at = idle.len();
        while let Some(one) = at.checked_sub(1).and_then(|newest| idle.get(newest)) {
            at -= 1;
            if one.link.sender.is_closed() || one.link.endpoint.is_gone() {
                idle.remove(at);
            } else if one.link.sender.is_ready() {
                let idle_for = now.since(one.since);
                if idle_for > limit {
                    // Those before it have been idle for longer still.
                    idle.drain(..=at);
                    return None;
                }
                return (idle_for <= newer_than).then(|| idle.remove(at).link);
            } else if now.since(one.since) >= TO_BECOME_FREE {
                // The origin answered before it had all of the request, and the rest has not been sent since.
                idle.remove(at);
            }
        }
        None
    })
}

/// The longest stall of an upload that goes on behind its response.
const UPLOAD_STALL: Duration = Duration::from_secs(10);

/// Pause between two looks at the progress of such an upload.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Keeps a connection until its upload has ended, or does not move any more: many clients read no answer before they have
/// sent all of their request. Then closes the connection.
async fn see_out(link: Box<Link>, upload: Upload) {
    let is_over = || {
        (upload.is_sent() && link.wire.is_sent())
            || link.wire.is_broken()
            || link.task.is_finished()
            || upload.moved().elapsed() >= UPLOAD_STALL
    };
    while !is_over() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Puts a connection back among the idle ones, of which there are at most `upstream.max_idle`, or closes it if it may not
/// be used again.
pub(super) fn give_back(mut link: Box<Link>) {
    if !link.may_be_kept {
        if let Some(upload) = link.upload.take() {
            tokio::spawn(see_out(link, upload));
        }
        return;
    }
    let (id, max_idle) = (link.endpoint.id, link.upstream.config.max_idle);
    link.is_in_use = false;
    link.seat = None;
    if link.sender.is_closed() || max_idle == 0 || link.endpoint.is_gone() {
        return;
    }
    link.silent = None;
    let since = link.heard.take().unwrap_or_else(Stopwatch::start);
    // `try_with`, since a body may be dropped while its thread ends.
    let _ = IDLE.try_with(|idle| {
        if let Ok(mut idle) = idle.try_borrow_mut() {
            let idle = idle_of(&mut idle, id);
            if idle.len() >= max_idle {
                idle.remove(0);
            }
            // Sorts by age: a connection that was last heard of before others goes before them.
            let at = idle.iter().rposition(|other| other.since <= since).map_or(0, |below| below + 1);
            idle.insert(at, Idle { link, since });
        }
    });
}
