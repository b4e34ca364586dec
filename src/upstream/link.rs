//! Connections to the origin, and those of a thread that wait for a request.

use std::cell::RefCell;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use tokio::task::AbortHandle;

use super::Upstream;
use crate::base::{Stopwatch, Timer};
use crate::upstream::Transfer;
use crate::upstream::origin_io::Wire;
use crate::upstream::request_body::RequestBody;
use crate::upstream::upload::Upload;

/// A connection to the origin. It is boxed, since it goes with a response from hand to hand.
#[derive(Debug)]
pub(super) struct Link {
    pub sender: SendRequest<RequestBody>,
    /// The task that reads and writes.
    pub task: AbortHandle,
    /// What it is waited for with.
    pub timer: Timer,
    /// The origin.
    pub upstream: Arc<Upstream>,
    /// State of its bytes.
    pub wire: Arc<Wire>,
    /// Limits for the bytes of the request and its response.
    pub transfer: Transfer,
    /// Whether a request was sent that is not answered to the end.
    pub is_in_use: bool,
    /// True if another request may follow.
    pub may_be_kept: bool,
    /// The request's body, if it was not sent completely when the response came.
    pub upload: Option<Upload>,
    /// When it was last heard of, if nothing was waited for since.
    pub heard: Option<Stopwatch>,
    /// Since when the rest of a body is waited for, if it is.
    pub silent: Option<Stopwatch>,
}

impl Link {
    /// Ready when the rest of a body was waited for as long as it may be.
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

/// One that is in use ends when it is dropped: hyper would first wait for the origin to take what is on its
/// way out.
impl Drop for Link {
    fn drop(&mut self) {
        if self.is_in_use {
            self.task.abort();
        }
    }
}

struct Idle {
    link: Box<Link>,
    since: Stopwatch,
}

thread_local! {
    /// The idle connections of this thread, by origin. There is one, but in tests.
    static IDLE: RefCell<Vec<(u64, Vec<Idle>)>> = const { RefCell::new(Vec::new()) };
}

/// The idle connections to the origin `id`.
fn idle_of(all: &mut Vec<(u64, Vec<Idle>)>, id: u64) -> &mut Vec<Idle> {
    let at = all.iter().position(|(of, _)| *of == id).unwrap_or_else(|| {
        all.push((id, Vec::new()));
        all.len() - 1
    });
    &mut all[at].1
}

/// How long a connection whose last request is still going out is kept.
const TO_BECOME_FREE: Duration = Duration::from_secs(1);

/// The kept connection to the origin `id` that was used last, if any is open, free, and idle for less than
/// `newer_than` at `now`. Those idle for longer than `limit` are closed.
pub(super) fn take_idle(id: u64, now: Stopwatch, newer_than: Duration, limit: Duration) -> Option<Box<Link>> {
    IDLE.with_borrow_mut(|idle| {
        let idle = idle_of(idle, id);
        // From the newest on, and no further than need be: those below are looked at in their turn.
        let mut at = idle.len();
        while let Some(one) = at.checked_sub(1).and_then(|newest| idle.get(newest)) {
            at -= 1;
            if one.link.sender.is_closed() {
                idle.remove(at);
            } else if one.link.sender.is_ready() {
                let idle_for = now.since(one.since);
                if idle_for > limit {
                    // Those below have been idle for longer still.
                    idle.drain(..=at);
                    return None;
                }
                return (idle_for <= newer_than).then(|| idle.remove(at).link);
            } else if now.since(one.since) >= TO_BECOME_FREE {
                // Its last request is still going out (the origin answered before it had all of
                // it), and it had a moment to become free.
                idle.remove(at);
            }
        }
        None
    })
}

/// An upload that goes on behind its response may stand still for so long.
const UPLOAD_STALL: Duration = Duration::from_secs(10);

/// Pause between two looks at that.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Lets a client that is still sending go on as long as the origin takes it: many clients read no answer
/// before they are done. The connection ends with it.
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

/// Keeps a connection for another request, among at most `upstream.max_idle`, where there may be one.
pub(super) fn give_back(mut link: Box<Link>) {
    if !link.may_be_kept {
        if let Some(upload) = link.upload.take() {
            tokio::spawn(see_out(link, upload));
        }
        return;
    }
    let (id, max_idle) = (link.upstream.id, link.upstream.config.max_idle);
    link.is_in_use = false;
    if link.sender.is_closed() || max_idle == 0 {
        return;
    }
    link.silent = None;
    let since = link.heard.take().unwrap_or_else(Stopwatch::start);
    // `try_with`: a body may be dropped while its thread is being torn down.
    let _ = IDLE.try_with(|idle| {
        if let Ok(mut idle) = idle.try_borrow_mut() {
            let idle = idle_of(&mut idle, id);
            if idle.len() >= max_idle {
                idle.remove(0);
            }
            // By age: one that was heard of before others were given back goes below them.
            let at = idle.iter().rposition(|other| other.since <= since).map_or(0, |below| below + 1);
            idle.insert(at, Idle { link, since });
        }
    });
}
