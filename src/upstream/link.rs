//! Connections to the origin, and those of a thread that wait for a request.

use std::cell::RefCell;
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use tokio::task::AbortHandle;

use crate::clock::{Stopwatch, Timer};
use crate::request_body::RequestBody;

/// A connection to the origin.
#[derive(Debug)]
pub(super) struct Link {
    pub sender: SendRequest<RequestBody>,
    /// The task that reads and writes.
    pub task: AbortHandle,
    /// What it is waited for with.
    pub timer: Timer,
}

/// Ends a connection when it is dropped, unless its request was answered: hyper would first wait for the
/// origin to take what is on its way out.
pub(super) struct Cut(Option<AbortHandle>);

impl Cut {
    pub fn of(link: &Link) -> Self {
        Self(Some(link.task.clone()))
    }

    pub fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

struct Idle {
    link: Link,
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
/// `newer_than`. Those idle for longer than `limit` are closed.
pub(super) fn take_idle(id: u64, newer_than: Duration, limit: Duration) -> Option<Link> {
    IDLE.with_borrow_mut(|idle| {
        let idle = idle_of(idle, id);
        // From the newest on, and no further than need be: those below are looked at in their turn.
        let mut at = idle.len();
        while let Some(one) = at.checked_sub(1).and_then(|newest| idle.get(newest)) {
            at -= 1;
            if one.link.sender.is_closed() {
                idle.remove(at);
            } else if one.link.sender.is_ready() {
                let idle_for = one.since.elapsed();
                if idle_for > limit {
                    // Those below have been idle for longer still.
                    idle.drain(..=at);
                    return None;
                }
                return (idle_for <= newer_than).then(|| idle.remove(at).link);
            } else if one.since.elapsed() >= TO_BECOME_FREE {
                // Its last request is still going out (the origin answered before it had all of
                // it), and it had a moment to become free.
                idle.remove(at);
            }
        }
        None
    })
}

/// Keeps a connection to the origin `id` for another request, among at most `max_idle`.
pub(super) fn give_back(link: Link, id: u64, max_idle: usize) {
    if link.sender.is_closed() || max_idle == 0 {
        return;
    }
    // `try_with`: a body may be dropped while its thread is being torn down.
    let _ = IDLE.try_with(|idle| {
        if let Ok(mut idle) = idle.try_borrow_mut() {
            let idle = idle_of(&mut idle, id);
            if idle.len() >= max_idle {
                idle.remove(0);
            }
            idle.push(Idle { link, since: Stopwatch::start() });
        }
    });
}
