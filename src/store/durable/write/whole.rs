//! Packs of a bucket: each is gathered in the queue, and written by one request.
//!
//! * What is gathered waits in the queue: it is answered for, and counts towards its bounds, until its pack is written.
//! * A pack is encoded when it is written. What a purge covers by then is left out.
//! * A request that failed may have been carried out, or be carried out late. It is sent again under the same name, and
//!   after [`ONE_NAME`] under another: readers look back for names only so far.
//! * A pack that does not go through in time, or is too large for the service, is written in halves.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::entries::{len_in_pack, slot_of};
use super::{Attempts, Work};
use crate::base::{DurableOp, Lost, Stopwatch};
use crate::store::durable::Inner;
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::names::PackName;
use crate::store::pack::PackBuilder;
use crate::store::queue::Op;

/// Time for which a pack is written under one name. Listings go back six minutes, of which clocks may take five: a name that
/// comes later would be missed.
const ONE_NAME: Duration = Duration::from_secs(50);

/// The longest that an attempt takes, besides a second for each [`LEAST_RATE`] bytes.
const TO_WRITE: Duration = Duration::from_secs(10);
const LEAST_RATE: u64 = 256 << 10;

/// A pack of fewer bytes is not written in halves.
const LEAST_TO_HALVE: u64 = 256 << 10;

/// A pack that waited for the budget, or for the bucket, grows to this many times `durable.pack_size`, and no further than
/// [`LARGEST`] bytes: the index has no places beyond 256 MiB.
const TIMES: u64 = 8;
const LARGEST: u64 = 128 << 20;

/// Time between two looks whether a bucket that was away takes writes again.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The wait without anything to write.
const LONG: Duration = Duration::from_secs(3600);

/// Gathers operations, and has them written as packs.
pub(super) struct WholeWriter {
    inner: Arc<Inner>,
    gathered: Vec<Op>,
    /// The bytes that the gathered operations take in a pack, about.
    len: u64,
    /// Since the first of the gathered operations came.
    since: Stopwatch,
    sending: JoinSet<()>,
}

impl WholeWriter {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self { inner, gathered: Vec::new(), len: 0, since: Stopwatch::start(), sending: JoinSet::new() }
    }

    /// Returns for how long operations are still gathered.
    pub(super) fn left(&self) -> Duration {
        let Inner { admission, config, .. } = &*self.inner;
        if self.gathered.is_empty() {
            return LONG;
        }
        if self.len >= self.inner.pack_size() {
            return admission.until_write();
        }
        if !self.inner.takes_writes() {
            // What comes until it does goes with it: one request instead of many.
            return LOOK_AGAIN;
        }
        let interval = admission.stretched(config.pack_interval());
        interval.saturating_sub(self.since.elapsed()).max(admission.until_write())
    }

    pub(super) fn carry_out(&mut self, work: Work) {
        while self.sending.try_join_next().is_some() {}
        match work {
            Work::Op(op) => {
                let Some(op) = self.inner.write_body_first(op) else { return };
                if self.gathered.is_empty() {
                    self.since = Stopwatch::start();
                }
                self.len += len_in_pack(&op);
                self.gathered.push(op);
                self.seal_if_due();
            }
            // A purge's answer waits for the journal, not for the pack.
            Work::Flush(done) => _ = done.send(()),
            Work::Seal(done) => {
                while !self.gathered.is_empty() {
                    self.send();
                }
                let sending = std::mem::take(&mut self.sending);
                self.inner.runtime.spawn(async move {
                    sending.join_all().await;
                    let _ = done.send(());
                });
            }
        }
    }

    /// Has what is gathered written, if it has waited long enough.
    pub(super) fn seal_if_due(&mut self) {
        while self.left().is_zero() {
            self.send();
        }
    }

    /// Has what is gathered written, whatever the budget says; the first of it, where it is too much for one pack.
    fn send(&mut self) {
        self.inner.admission.spend();
        let most = self.inner.pack_size().saturating_mul(TIMES).min(LARGEST);
        let (mut count, mut len) = (0, 0);
        for op in &self.gathered {
            let more = len_in_pack(op);
            if count > 0 && len + more > most {
                break;
            }
            (count, len) = (count + 1, len + more);
        }
        let rest = self.gathered.split_off(count);
        let ops = std::mem::replace(&mut self.gathered, rest);
        self.len = self.len.saturating_sub(len);
        self.sending.spawn_on(write_pack(Arc::clone(&self.inner), ops), &self.inner.runtime);
    }
}

/// The outcome of writing a pack under one name.
enum Outcome {
    /// It is written, or nothing of it was to be.
    Written,
    /// It may be written under another name. `is_slow` says whether the last attempt took too long.
    NotYet { len: u64, is_slow: bool },
    /// The bucket does not take it.
    NotTaken { len: u64, lost: Lost, error: StoreError },
}

/// Writes operations as one pack, or several if that can't be, however long it takes. Ends them.
async fn write_pack(inner: Arc<Inner>, ops: Vec<Op>) {
    let (mut parts, mut refusals) = (vec![ops], 0);
    while let Some(mut ops) = parts.pop() {
        let mut attempts = Attempts::default();
        while !ops.is_empty() {
            let outcome = {
                let _permit = inner.writing.acquire().await;
                write_named(&inner, &ops, &mut attempts).await
            };
            let is_halved = match &outcome {
                Outcome::Written => false,
                Outcome::NotYet { len, is_slow } => *is_slow && can_be_halved(&ops, *len),
                Outcome::NotTaken { len, error, .. } => {
                    error.kind() == StoreErrorKind::Unacceptable && can_be_halved(&ops, *len)
                }
            };
            if is_halved {
                attempts = Attempts::default();
                parts.push(ops.split_off(ops.len() / 2));
                continue;
            }
            match outcome {
                Outcome::Written => ops.drain(..).for_each(|op| inner.settle(&op)),
                Outcome::NotYet { .. } => {}
                Outcome::NotTaken { lost, error, .. } => {
                    // A deletion is never given up: what it deletes would come back.
                    ops.extract_if(.., |op| op.is_put()).for_each(|op| inner.lose(&op, lost, &error));
                    attempts = Attempts::default();
                    refusals += 1;
                    if !ops.is_empty() {
                        inner.back_off(refusals).await;
                    }
                }
            }
        }
    }
}

/// Returns whether a pack of `len` bytes is written in halves.
fn can_be_halved(ops: &[Op], len: u64) -> bool {
    ops.len() > 1 && len > LEAST_TO_HALVE
}

/// Tries to write operations as a pack, under one name.
async fn write_named(inner: &Arc<Inner>, ops: &[Op], attempts: &mut Attempts) -> Outcome {
    inner.wait_to_write().await;
    inner.purges.set_clock_offset(inner.place.clock_offset());
    // The pack's name is later than the order of all that is in it.
    ops.iter().for_each(Op::close);
    let name = PackName { time: inner.purges.take_order(), node: inner.purges.node() };
    let (builder, pack, count) = encode(inner, ops);
    if count == 0 {
        return Outcome::Written;
    }
    let (len, pack, object) = (pack.len() as u64, [pack], inner.names.pack(name));
    let (named, longest) = (Stopwatch::start(), (TO_WRITE + Duration::from_secs(len / LEAST_RATE)).min(ONE_NAME));
    loop {
        let writing = async {
            let _reserved = inner.make_room(len).await?;
            inner.place.put(&object, &pack).await
        };
        let written = tokio::time::timeout(longest, writing).await;
        let is_slow = written.is_err();
        let written = written.unwrap_or_else(|_| Err(StoreError::timed_out()));
        inner.report(DurableOp::Put, &written);
        let Err(error) = written else {
            inner.writes.succeeded();
            let info = inner.index.add_pack(name);
            inner.index.insert_all(&info, builder.entries());
            inner.room.forget_named(builder.entries());
            info.set_size(len, false);
            inner.metrics.entries_written.add(count);
            inner.metrics.packs_written.add_one();
            return Outcome::Written;
        };
        if let Some(lost) = inner.note_failure(&error, attempts) {
            return Outcome::NotTaken { len, lost, error };
        }
        inner.wait_for_next(attempts).await;
        inner.wait_to_write().await;
        if named.elapsed() + longest > ONE_NAME {
            return Outcome::NotYet { len, is_slow };
        }
    }
}

/// Encodes a pack. Leaves out what a purge covers by now, and all but the last operation on each slot. Returns the number of
/// operations in it as well.
fn encode(inner: &Inner, ops: &[Op]) -> (PackBuilder, Bytes, u64) {
    let wanted: Vec<&Op> = ops.iter().filter(|op| inner.is_to_be_written(op)).collect();
    let mut last: HashMap<(u128, u128), u64> = HashMap::new();
    for op in &wanted {
        let order = last.entry(slot_of(op)).or_default();
        *order = op.order().max(*order);
    }
    let expected: u64 = wanted.iter().map(|op| len_in_pack(op)).sum();
    let (mut builder, mut bytes) = (PackBuilder::default(), Vec::with_capacity(usize::try_from(expected).unwrap_or(0)));
    let mut count = 0;
    for op in wanted {
        // Its record goes with it, even if that of a later variant is newer.
        let is_last = last.get(&slot_of(op)).is_none_or(|order| *order <= op.order());
        if is_last && let Some(group) = inner.entries_of(op) {
            builder.push(group, &mut bytes);
            count += 1;
        }
    }
    if count > 0 {
        bytes.extend_from_slice(&builder.finish());
    }
    (builder, Bytes::from(bytes), count)
}

#[cfg(test)]
mod tests;
