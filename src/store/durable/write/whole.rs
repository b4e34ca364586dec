//! Packs of a bucket: each is gathered in the queue, and written by one request.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::{Attempts, Work};
use crate::base::{DurableOp, Stopwatch};
use crate::store::durable::Inner;
use crate::store::error::StoreError;
use crate::store::names::PackName;
use crate::store::pack::PackBuilder;
use crate::store::queue::Op;

/// Time for which a pack is written under one name. Listings go back six minutes: a name that comes later would be missed.
const ONE_NAME: Duration = Duration::from_secs(50);

/// The longest that writing a pack may take, besides a second for each [`LEAST_RATE`] bytes.
const TO_WRITE: Duration = Duration::from_secs(10);
const LEAST_RATE: u64 = 256 << 10;

/// Time between two looks at the budget, once it is spent.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Wait without anything to write.
const LONG: Duration = Duration::from_secs(3600);

/// Gathers operations, and has them written as packs.
pub(super) struct WholeWriter {
    inner: Arc<Inner>,
    gathered: Vec<Op>,
    bytes: u64,
    /// Since the first of the gathered operations came, or the budget was found spent.
    since: Stopwatch,
    /// Time until the pack is written.
    interval: Duration,
    sending: JoinSet<()>,
}

impl WholeWriter {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        let interval = inner.config.pack_interval();
        Self { inner, gathered: Vec::new(), bytes: 0, since: Stopwatch::start(), interval, sending: JoinSet::new() }
    }

    /// Returns for how long operations may still be gathered.
    pub(super) fn left(&self) -> Duration {
        if self.gathered.is_empty() { LONG } else { self.interval.saturating_sub(self.since.elapsed()) }
    }

    pub(super) fn carry_out(&mut self, work: Work) {
        while self.sending.try_join_next().is_some() {}
        match work {
            Work::Op(op) => {
                let Some(op) = self.inner.write_body_first(op) else { return };
                if self.gathered.is_empty() {
                    self.since = Stopwatch::start();
                    self.interval = self.inner.config.pack_interval();
                }
                self.bytes += op.bytes();
                self.gathered.push(op);
                if self.bytes >= self.inner.pack_size() {
                    self.seal();
                }
            }
            // A purge's answer waits for the journal, not for the pack.
            Work::Flush(done) => _ = done.send(()),
            Work::Seal(done) => {
                self.send();
                let sending = std::mem::take(&mut self.sending);
                self.inner.runtime.spawn(async move {
                    sending.join_all().await;
                    let _ = done.send(());
                });
            }
        }
    }

    /// Has the gathered operations written as a pack, if the month's budget allows.
    pub(super) fn seal(&mut self) {
        if self.inner.admission.admits_pack() {
            self.send();
        } else {
            self.since = Stopwatch::start();
            self.interval = LOOK_AGAIN;
        }
    }

    fn send(&mut self) {
        let ops = std::mem::take(&mut self.gathered);
        self.bytes = 0;
        if !ops.is_empty() {
            self.sending.spawn_on(write_pack(Arc::clone(&self.inner), ops), &self.inner.runtime);
        }
    }
}

/// Writes operations as one pack, however long that takes, and ends them.
async fn write_pack(inner: Arc<Inner>, ops: Vec<Op>) {
    let _permit = inner.writing.acquire().await;
    let mut attempts = Attempts::default();
    'names: loop {
        inner.wait_to_write().await;
        let name = PackName { time: inner.purges.take_order(), node: inner.purges.node() };
        let (builder, pack) = encode(&inner, &ops);
        if builder.entries().is_empty() {
            break;
        }
        if let Err(error) = inner.make_room(pack.len() as u64).await {
            if let Some(lost) = inner.note_failure(&error, &mut attempts) {
                ops.iter().for_each(|op| inner.lose(op, lost, &error));
                return;
            }
            inner.wait_for_next(&attempts).await;
            continue;
        }
        let (named, pack) = (Stopwatch::start(), [pack]);
        let deadline = TO_WRITE + Duration::from_secs(pack[0].len() as u64 / LEAST_RATE);
        while named.elapsed() < ONE_NAME {
            inner.purges.set_clock_offset(inner.place.clock_offset());
            let object = inner.names.pack(name);
            let written = tokio::time::timeout(deadline, inner.place.put(&object, &pack)).await;
            let written = written.unwrap_or_else(|_| Err(StoreError::timed_out()));
            inner.report(DurableOp::Put, &written);
            let Err(error) = written else {
                inner.writes.succeeded();
                let info = inner.index.add_pack(name);
                inner.index.insert_all(&info, builder.entries());
                info.set_size(pack[0].len() as u64, false);
                inner.metrics.entries_written.add(ops.len() as u64);
                inner.metrics.packs_written.add_one();
                break 'names;
            };
            if let Some(lost) = inner.note_failure(&error, &mut attempts) {
                ops.iter().for_each(|op| inner.lose(op, lost, &error));
                return;
            }
            inner.wait_for_next(&attempts).await;
            inner.wait_to_write().await;
        }
    }
    ops.iter().for_each(|op| inner.settle(op));
}

/// Encodes a pack. Leaves out what a purge covers by now, and all but the last entry of each slot.
fn encode(inner: &Inner, ops: &[Op]) -> (PackBuilder, Bytes) {
    let groups: Vec<_> = ops.iter().filter_map(|op| inner.entries_of(op)).collect();
    let mut last: HashMap<(u128, u128), u64> = HashMap::new();
    for entry in groups.iter().flatten() {
        let order = last.entry((entry.key.hash(), entry.variant)).or_default();
        *order = entry.order.max(*order);
    }
    let (mut builder, mut bytes) = (PackBuilder::default(), Vec::new());
    for group in groups {
        // A group counts by its last entry: its record may be older than that of a later variant.
        let is_last = |entry: &crate::store::pack::NewEntry| {
            last.get(&(entry.key.hash(), entry.variant)).is_none_or(|order| *order <= entry.order)
        };
        if group.last().is_some_and(is_last) {
            builder.push(group, &mut bytes);
        }
    }
    if !builder.entries().is_empty() {
        let footer = builder.finish();
        bytes.extend_from_slice(&footer);
    }
    (builder, Bytes::from(bytes))
}
