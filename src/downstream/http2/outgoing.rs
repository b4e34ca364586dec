//! Bounds the bytes that a connection has handed to `h2` and its client has not taken.
//!
//! `h2` bounds that by stream only. A client with many streams that does not read could make it hold that many times as
//! much, so that the connection as a whole has a bound as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::buf::Take;
use bytes::{Buf, Bytes};
use parking_lot::Mutex;

use crate::base::{Stopwatch, Timer};
use crate::respond::Piece;

/// The bytes that may wait before streams hand over no more.
const MOST: usize = 256 << 10;

/// The data of a connection that waits to be written.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    waiting: AtomicUsize,
    written: AtomicU64,
    /// The streams that wait for room.
    streams: Mutex<Vec<Waker>>,
}

impl Outgoing {
    /// Makes data of the first `len` bytes of a piece, which count until they are written or dropped.
    pub(super) fn data(self: &Arc<Self>, piece: Piece, len: usize) -> Data {
        let piece = piece.take(len);
        self.waiting.fetch_add(piece.remaining(), Ordering::Relaxed);
        Data { piece, outgoing: Some(Arc::clone(self)) }
    }

    /// Waits until there is room for more.
    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        if self.waiting() < MOST {
            return Poll::Ready(());
        }
        {
            let mut streams = self.streams.lock();
            if !streams.iter().any(|known| known.will_wake(cx.waker())) {
                streams.push(cx.waker().clone());
            }
        }
        // Looks again: room may have come before this task was known.
        if self.waiting() < MOST { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Returns the bytes that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Returns the bytes that were written since the connection began.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Notes that so many bytes wait no more.
    fn release(&self, count: usize) {
        let before = self.waiting.fetch_sub(count, Ordering::Relaxed);
        if before >= MOST && before - count < MOST {
            self.streams.lock().drain(..).for_each(Waker::wake);
        }
    }
}

/// The time for which a stream gets nothing out.
#[derive(Debug, Default)]
pub(super) struct Stall {
    wait: Option<Wait>,
    timer: Timer,
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    since: Stopwatch,
    /// The bytes that the connection had written when the stream began to wait, and at `since`.
    first: u64,
    last: u64,
}

impl Stall {
    /// Notes that something has gone out.
    pub(super) fn end(&mut self) {
        self.wait = None;
    }

    /// Waits until the client has taken nothing for `patience`. While it takes what other streams have, that is no
    /// fault of its own until these have had so much that this stream has had its turn: `fair` bytes.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        outgoing: &Outgoing,
        patience: Duration,
        fair: u64,
    ) -> Poll<()> {
        loop {
            let written = outgoing.written();
            let begun = || Wait { since: Stopwatch::start(), first: written, last: written };
            let wait = self.wait.get_or_insert_with(begun);
            ready!(self.timer.poll(cx, wait.since, patience));
            if written == wait.last || written - wait.first >= fair {
                return Poll::Ready(());
            }
            *wait = Wait { since: Stopwatch::start(), last: written, ..*wait };
        }
    }
}

/// A part of a piece of a body: as much of it as the client has room for.
#[derive(Debug)]
pub(super) struct Data {
    piece: Take<Piece>,
    /// `None`: there are no bytes.
    outgoing: Option<Arc<Outgoing>>,
}

impl Data {
    /// Makes data without bytes, for the end of a stream.
    pub(super) fn empty() -> Self {
        Self { piece: Piece::from(Bytes::new()).take(0), outgoing: None }
    }
}

impl Buf for Data {
    fn remaining(&self) -> usize {
        self.piece.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.piece.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.piece.advance(count);
        if let Some(outgoing) = &self.outgoing {
            outgoing.written.fetch_add(count as u64, Ordering::Relaxed);
            outgoing.release(count);
        }
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        let left = self.piece.remaining();
        if left > 0
            && let Some(outgoing) = &self.outgoing
        {
            outgoing.release(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_finds_no_room_is_woken_once_bytes_were_written_or_dropped() {
        for is_written in [true, false] {
            let outgoing = Arc::new(Outgoing::default());
            let woken = Arc::new(Woken::default());
            let waker = Waker::from(Arc::clone(&woken));
            let cx = Context::from_waker(&waker);
            let piece = || Piece::from(Bytes::from(vec![0; MOST]));
            let mut small = outgoing.data(piece(), 10);
            assert_eq!((small.remaining(), outgoing.poll_room(&cx)), (10, Poll::Ready(())));
            let large = outgoing.data(piece(), MOST);
            assert_eq!(outgoing.poll_room(&cx), Poll::Pending);
            small.advance(10);
            assert!(!woken.0.load(Ordering::Relaxed), "as much as may wait does");
            let mut large = large;
            if is_written {
                large.advance(1);
            } else {
                drop(std::mem::replace(&mut large, Data::empty()));
            }
            assert!(woken.0.load(Ordering::Relaxed));
            assert_eq!(outgoing.poll_room(&cx), Poll::Ready(()));
            drop((small, large));
            assert_eq!((outgoing.waiting(), outgoing.written()), (0, if is_written { 11 } else { 10 }));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_waits_for_its_turn_has_not_stalled() {
        // Returns the seconds after which a stream counts as stalled while another writes so much every second.
        let stalls_after = |written: usize, seconds: u64, fair: u64| async move {
            let outgoing = Arc::new(Outgoing::default());
            let mut stall = Stall::default();
            let started = Stopwatch::start();
            for second in 0..1000 {
                let poll = std::future::poll_fn(|cx| stall.poll(cx, &outgoing, Duration::from_secs(10), fair));
                if tokio::time::timeout(Duration::from_secs(1), poll).await.is_ok() {
                    return started.elapsed().as_secs();
                }
                if second < seconds {
                    let len = written;
                    outgoing.data(Piece::from(Bytes::from(vec![0; len])), len).advance(len);
                }
            }
            u64::MAX
        };
        assert_eq!(stalls_after(0, 0, 1000).await, 10, "nothing goes out");
        assert_eq!(stalls_after(10, 15, u64::MAX).await, 30, "others go out for a while");
        assert_eq!(stalls_after(100, 1000, 2500).await, 30, "it has had its turn");
        assert_eq!(stalls_after(100, 1000, u64::MAX).await, u64::MAX, "others go out");
    }
}
