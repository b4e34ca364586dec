//! Waiting until a directory has what was written: one wait for all connections of a worker.
//!
//! If each connection waited by itself, each would have to be woken from the writer's thread, and set a timer. Under load
//! that costs more than the writing. So those that have to wait gather. A task of the worker waits for all of them at once,
//! and wakes them. Meanwhile others gather for the next wait: what they wrote may have come after this one began.

use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The connections of a worker that wait.
#[derive(Debug, Default)]
pub(super) struct Settling {
    waiting: Mutex<Waiting>,
    /// Tells the worker's task that the first one of a batch is there.
    begun: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// The number of the batch that gathers.
    batch: u64,
    gathered: Vec<Waker>,
    /// The connections of the batch before, while the task waits for it.
    under_way: Vec<Waker>,
    is_under_way: bool,
}

/// A connection's place in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    batch: u64,
    number: usize,
}

impl Settling {
    /// Takes a seat in the batch that gathers.
    pub(super) fn join(&self, cx: &Context<'_>) -> Seat {
        let mut waiting = self.waiting.lock();
        let seat = Seat { batch: waiting.batch, number: waiting.gathered.len() };
        waiting.gathered.push(cx.waker().clone());
        if seat.number == 0 {
            self.begun.notify_one();
        }
        seat
    }

    /// Ready once what was written before the seat was taken is where it survives the process.
    pub(super) fn poll(&self, seat: Seat, cx: &Context<'_>) -> Poll<()> {
        let mut waiting = self.waiting.lock();
        let wakers = if seat.batch == waiting.batch {
            &mut waiting.gathered
        } else if waiting.is_under_way && seat.batch + 1 == waiting.batch {
            &mut waiting.under_way
        } else {
            return Poll::Ready(());
        };
        if let Some(waker) = wakers.get_mut(seat.number) {
            waker.clone_from(cx.waker());
        }
        Poll::Pending
    }

    /// Waits by `settle` for one batch after the other, for good.
    pub(super) async fn serve<F: Future<Output = ()>>(&self, settle: impl Fn() -> F) {
        let mut wakers = Vec::new();
        loop {
            self.begun.notified().await;
            {
                let mut waiting = self.waiting.lock();
                let waiting = &mut *waiting;
                waiting.under_way.append(&mut waiting.gathered);
                waiting.batch += 1;
                waiting.is_under_way = true;
            }
            settle().await;
            {
                let mut waiting = self.waiting.lock();
                waiting.is_under_way = false;
                std::mem::swap(&mut waiting.under_way, &mut wakers);
            }
            wakers.drain(..).for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    /// Each wait ends when the test adds a permit.
    #[tokio::test]
    async fn one_wait_serves_all_that_gathered_before_it_and_nobody_that_came_later() {
        let (settling, ends) = (Arc::new(Settling::default()), Arc::new(Semaphore::new(0)));
        let waits = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn({
            let (settling, ends, waits) = (Arc::clone(&settling), Arc::clone(&ends), Arc::clone(&waits));
            async move {
                let settle = || async {
                    waits.fetch_add(1, Ordering::SeqCst);
                    ends.acquire().await.expect("open").forget();
                };
                settling.serve(settle).await;
            }
        });
        let connection = |seat: Seat| {
            let settling = Arc::clone(&settling);
            tokio::spawn(async move { poll_fn(|cx| settling.poll(seat, cx)).await })
        };
        let join = async || poll_fn(|cx| Poll::Ready(settling.join(cx))).await;
        let first = [join().await, join().await, join().await].map(connection);
        while waits.load(Ordering::SeqCst) < 1 {
            tokio::task::yield_now().await;
        }
        let late = join().await;
        let mut is_late_done = pin!(connection(late));
        ends.add_permits(1);
        for done in first {
            done.await.expect("no panic");
        }
        while waits.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        assert!(!is_late_done.is_finished(), "what it wrote came after the first wait had begun");
        ends.add_permits(1);
        is_late_done.as_mut().await.expect("no panic");
        assert_eq!(waits.load(Ordering::SeqCst), 2);
        task.abort();
    }
}
