//! The writer: it appends what waits to packs, in the background.
//!
//! In a directory the pack is a file that grows (`growing`), in a bucket it is written whole (`whole`). The order of two
//! operations on one slot is in their entries, not in the order of writing.

mod entries;
mod growing;
mod whole;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use self::growing::GrowingWriter;
use self::whole::WholeWriter;
use super::{Inner, MAX_PAUSE};
use crate::base::{DurableOp, Lost};
use crate::entry::{Covered, StoredHead};
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::queue::{Op, Put};

/// Number of failures, while others succeed, after which a write is given up: the place does not take the object.
const OWN_FAILURES: u32 = 6;

/// Number of times that packs are dropped for one write that finds the disk full.
const MOST_FULL: u32 = 8;

/// The first pause between two attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause while Larder stops, so that there is time for several attempts.
const LAST_PAUSE: Duration = Duration::from_millis(250);

/// The most operations that are taken at once.
const AT_ONCE: usize = 1024;

/// Time for which a directory's writer gathers operations before it appends them. A process that is killed loses what came
/// within it.
const GATHER: Duration = Duration::from_millis(1);

/// Time for which a bucket's writer rests after it took operations: whoever queues one meanwhile need not wake it, which
/// would cost more than the rest of queueing.
const REST: Duration = Duration::from_millis(10);

/// Work for the writer.
#[derive(Debug)]
pub(super) enum Work {
    /// An operation.
    Op(Op),
    /// Answers once all work before it is appended.
    Flush(oneshot::Sender<()>),
    /// Answers once all work before it is written, and no pack is open.
    Seal(oneshot::Sender<()>),
}

/// The attempts at one write.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    made: u32,
    /// Writes of any object that had succeeded by the last attempt.
    done: u64,
    /// Attempts that failed while others succeeded.
    own: u32,
    /// Attempts for which packs were dropped from a full disk.
    full: u32,
}

impl Attempts {
    /// Counts a failed attempt. `done` is the number of writes that succeeded so far.
    fn note(&mut self, done: u64) {
        self.own += u32::from(self.made > 0 && done > self.done);
        self.made = self.made.saturating_add(1);
        self.done = done;
    }
}

/// Carries out work for good. Ends with the runtime: `inner` holds the sender.
pub(super) async fn write_behind(inner: Arc<Inner>, mut work: mpsc::UnboundedReceiver<Work>) {
    // Entries are compared with those that the tier has.
    inner.journal.loaded().await;
    if inner.place.is_local() {
        let mut writer = GrowingWriter::new(Arc::clone(&inner));
        let mut taken = Vec::new();
        loop {
            let Ok(count) = tokio::time::timeout(writer.left(), work.recv_many(&mut taken, AT_ONCE)).await else {
                writer.seal().await;
                continue;
            };
            if count == 0 {
                return;
            }
            if taken.iter().all(|work| matches!(work, Work::Op(_))) {
                tokio::time::sleep(GATHER).await;
                while taken.len() < AT_ONCE
                    && let Ok(more) = work.try_recv()
                {
                    taken.push(more);
                }
            }
            writer.carry_out(taken.drain(..)).await;
        }
    }
    let (mut writer, mut taken) = (WholeWriter::new(inner), Vec::new());
    loop {
        match tokio::time::timeout(writer.left(), work.recv_many(&mut taken, AT_ONCE)).await {
            Ok(0) => return,
            Ok(_) => {
                taken.drain(..).for_each(|work| writer.carry_out(work));
                tokio::time::sleep(REST).await;
            }
            Err(_) => writer.seal_if_due(),
        }
    }
}

impl Inner {
    /// Deletes a separate body that no head leads to.
    pub(super) async fn delete_body(&self, id: u128) {
        let outcome = self.place.delete(&self.names.body(id)).await;
        if outcome.is_ok() {
            self.room.forget_body(id);
        }
        self.report(DurableOp::Delete, &outcome);
    }

    /// Returns whether a response is still to be written: no purge leaves nothing of it.
    fn is_wanted(&self, head: &StoredHead) -> bool {
        self.purges.covers(head, head.position) != Covered::Wholly
    }

    /// Gives up an operation whose write failed for good.
    fn lose(&self, op: &Op, lost: Lost, error: &StoreError) {
        if let Op::Put { stored, .. } = op {
            let head = stored.head();
            self.report_lost(lost, &head.key, error);
            head.marks.is_durable.store(false, Ordering::Release);
        }
        self.settle(op);
    }

    /// Makes space if the disk is full, a few times for each write. Returns whether the write may be tried again.
    async fn makes_space(self: &Arc<Self>, error: &StoreError, attempts: &mut Attempts) -> bool {
        let is_full = error.kind() == StoreErrorKind::Full && attempts.full < MOST_FULL;
        attempts.full += u32::from(is_full);
        is_full && self.make_space().await
    }

    /// Counts a failed write. Returns the reason for giving it up; `None`: it is tried again.
    fn note_failure(self: &Arc<Self>, error: &StoreError, attempts: &mut Attempts) -> Option<Lost> {
        match error.kind() {
            StoreErrorKind::Full => return Some(Lost::NoRoom),
            StoreErrorKind::Unacceptable => return Some(Lost::NotTaken),
            StoreErrorKind::Absent
            | StoreErrorKind::Refused
            | StoreErrorKind::Unavailable
            | StoreErrorKind::Corrupt
            | StoreErrorKind::Overloaded
            | StoreErrorKind::GivenUp => {}
        }
        attempts.note(self.writes.done());
        if attempts.own >= OWN_FAILURES {
            return Some(Lost::NotTaken);
        }
        self.note_failed_write(error);
        None
    }

    /// Waits before the next attempt, and has the probe tell whether the place or the object is at fault.
    async fn wait_for_next(self: &Arc<Self>, attempts: &Attempts) {
        if self.writes.is_closed() {
            self.back_off(attempts.made).await;
            self.test_with_probe(attempts).await;
        }
    }

    /// Writes the probe where no other write tells whether the place or the object is at fault.
    async fn test_with_probe(self: &Arc<Self>, attempts: &Attempts) {
        if attempts.made > 1 && self.writes.done() == attempts.done && self.writes.is_closed() {
            match self.write_probe().await {
                Ok(()) => self.writes.succeeded(),
                Err(error) => self.note_failed_write(&error),
            }
        }
    }

    /// Waits before the next attempt; longer, the more were made.
    async fn back_off(&self, attempts: u32) {
        let most = if self.writes.is_stopping() { LAST_PAUSE } else { MAX_PAUSE };
        let pause = FIRST_PAUSE.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(most);
        self.writes.pause(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    }

    /// Writes the separate body of a response, and queues its head after that. Returns the operation if there is no body to
    /// write first.
    fn write_body_first(self: &Arc<Self>, op: Op) -> Option<Op> {
        let Op::Put { stored: Put::Whole(stored), .. } = &op else { return Some(op) };
        let Some(object) = stored.head.body_object.clone().filter(|object| !object.is_written()) else {
            return Some(op);
        };
        if !self.is_wanted(&stored.head) {
            return Some(op);
        }
        let (inner, stored) = (Arc::clone(self), Arc::clone(stored));
        self.runtime.spawn(async move {
            let _permit = inner.writing.acquire().await;
            let mut attempts = Attempts::default();
            loop {
                inner.wait_to_write().await;
                if !inner.is_wanted(&stored.head) {
                    // What it took the place of is deleted.
                    _ = inner.writer.send(Work::Op(op));
                    return;
                }
                let pieces = stored.body();
                let reserved = inner.make_room(stored.len() + inner.around_body()).await;
                let written = match &reserved {
                    Ok(_) => inner.place.put(&inner.names.body(object.id), pieces.segments()).await,
                    Err(error) => Err(error.clone()),
                };
                inner.report(DurableOp::Put, &written);
                match written {
                    Ok(()) => {
                        inner.writes.succeeded();
                        object.note(true);
                        inner.room.note_body(object.id, stored.len(), false);
                        // It keeps its place among the operations on its key: that is in its order.
                        let _ = inner.writer.send(Work::Op(op));
                        return;
                    }
                    Err(error) => {
                        if inner.makes_space(&error, &mut attempts).await {
                            continue;
                        }
                        if let Some(lost) = inner.note_failure(&error, &mut attempts) {
                            return inner.lose(&op, lost, &error);
                        }
                        inner.wait_for_next(&attempts).await;
                    }
                }
            }
        });
        None
    }
}
