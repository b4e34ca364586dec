//! Packs of a directory: files that grow by appends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::{Attempts, Work};
use crate::base::{DurableOp, Stopwatch};
use crate::store::durable::Inner;
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::index::PackInfo;
use crate::store::names::PackName;
use crate::store::pack::PackBuilder;
use crate::store::place::GrowingPack;
use crate::store::queue::Op;

/// The longest that a pack grows.
const LONGEST: Duration = Duration::from_secs(3600);

/// Bytes that are encoded before they are appended.
const MOST_AT_ONCE: u64 = 1 << 20;

/// The most packs that are completed at once.
const COMPLETING: usize = 4;

/// Appends to the open pack of a directory. Those before are completed meanwhile: that syncs them, which takes seconds on a
/// busy disk, and clients wait for their values to be appended.
pub(super) struct GrowingWriter {
    inner: Arc<Inner>,
    open: Option<OpenPack>,
    /// The completions of packs before.
    completing: JoinSet<()>,
}

/// The pack that grows.
struct OpenPack {
    file: Box<dyn GrowingPack>,
    builder: PackBuilder,
    info: Arc<PackInfo>,
    since: Stopwatch,
}

impl GrowingWriter {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self { inner, open: None, completing: JoinSet::new() }
    }

    /// Returns for how long the open pack may still grow.
    pub(super) fn left(&self) -> Duration {
        self.open.as_ref().map_or(LONGEST, |open| LONGEST.saturating_sub(open.since.elapsed()))
    }

    /// Carries out work in its order.
    pub(super) async fn carry_out(&mut self, work: impl Iterator<Item = Work>) {
        let (mut ops, mut bytes, mut waiting) = (Vec::new(), 0, Vec::new());
        for work in work {
            match work {
                Work::Op(op) => {
                    let Some(op) = self.inner.write_body_first(op) else { continue };
                    bytes += op.bytes();
                    ops.push(op);
                    if bytes >= MOST_AT_ONCE.min(self.room()) {
                        self.append(std::mem::take(&mut ops)).await;
                        bytes = 0;
                        answer(&mut waiting);
                        self.seal_if_full().await;
                    }
                }
                // One append for all that wait.
                Work::Flush(done) => waiting.push(done),
                Work::Seal(done) => {
                    self.append(std::mem::take(&mut ops)).await;
                    self.seal().await;
                    let _ = done.send(());
                }
            }
        }
        self.append(ops).await;
        answer(&mut waiting);
        self.seal_if_full().await;
    }

    /// Returns the bytes that the open pack still takes.
    fn room(&self) -> u64 {
        let taken = self.open.as_ref().map_or(0, |open| self.inner.pack_weight(&open.info));
        self.inner.pack_size().saturating_sub(taken)
    }

    /// Appends the entries of operations, however long that takes, and ends the operations.
    async fn append(&mut self, mut ops: Vec<Op>) {
        let (mut attempts, mut refusals) = (Attempts::default(), 0);
        while !ops.is_empty() {
            self.inner.wait_to_write().await;
            match self.try_append(&ops).await {
                Ok(()) => {
                    self.inner.writes.succeeded();
                    for op in &ops {
                        self.inner.settle(op);
                    }
                    break;
                }
                // A pack that is being completed can't be dropped yet.
                Err(error) if error.kind() == StoreErrorKind::Full && !self.completing.is_empty() => {
                    self.completed().await;
                }
                Err(error) => {
                    self.inner.report_error(DurableOp::Put, &error);
                    if self.inner.makes_space(&error, &mut attempts).await {
                        continue;
                    }
                    // Whatever is wrong with it: its entries are sound, and the next attempt has a pack of its own.
                    self.seal().await;
                    if let Some(lost) = self.inner.note_failure(&error, &mut attempts) {
                        // A deletion is never given up: what it deletes would come back.
                        for op in ops.extract_if(.., |op| op.is_put()) {
                            self.inner.lose(&op, lost, &error);
                        }
                        attempts = Attempts::default();
                        refusals += 1;
                        if refusals > 1 && !ops.is_empty() {
                            self.inner.back_off(refusals).await;
                        }
                        continue;
                    }
                    self.inner.wait_for_next(&attempts).await;
                }
            }
        }
    }

    async fn seal_if_full(&mut self) {
        if self.open.as_ref().is_some_and(|open| self.inner.pack_weight(&open.info) >= self.inner.pack_size()) {
            self.seal_behind().await;
        }
    }

    async fn try_append(&mut self, ops: &[Op]) -> Result<(), StoreError> {
        let inner = Arc::clone(&self.inner);
        ops.iter().for_each(Op::close);
        let groups: Vec<_> = ops.iter().filter_map(|op| inner.entries_of(op)).collect();
        if groups.is_empty() {
            return Ok(());
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => self.open.insert(begin(&inner).await?),
        };
        let (before, mut bytes, count) = (open.builder.entries().len(), Vec::new(), groups.len());
        for group in groups {
            open.builder.push(group, &mut bytes);
        }
        let len = bytes.len() as u64;
        let appended = match inner.make_room(len).await {
            Ok(_reserved) => open.file.append(Bytes::from(bytes)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = appended {
            open.builder.truncate(before);
            return Err(error);
        }
        open.info.set_size(open.builder.len(), true);
        let entries = &open.builder.entries()[before..];
        inner.index.insert_all(&open.info, entries);
        inner.room.forget_named(entries);
        inner.metrics.entries_written.add(count as u64);
        Ok(())
    }

    /// Completes the open pack, and waits until no pack is open.
    pub(super) async fn seal(&mut self) {
        self.seal_behind().await;
        self.completed().await;
    }

    /// Begins to complete the open pack.
    async fn seal_behind(&mut self) {
        let Some(open) = self.open.take() else { return };
        if open.builder.entries().is_empty() {
            return self.remove_empty(open).await;
        }
        while self.completing.len() >= COMPLETING {
            let _ = self.completing.join_next().await;
        }
        self.completing.spawn_on(complete(Arc::clone(&self.inner), open), &self.inner.runtime);
    }

    /// Waits until the packs before are complete.
    async fn completed(&mut self) {
        while self.completing.join_next().await.is_some() {}
    }
}

/// Completes a pack. One that can't be completed is completed by whoever finds it.
async fn complete(inner: Arc<Inner>, open: OpenPack) {
    let footer = Bytes::from(open.builder.finish());
    let size = open.builder.len() + footer.len() as u64;
    match open.file.seal(footer).await {
        Ok(()) => {
            open.info.set_size(size, false);
            inner.metrics.packs_written.add_one();
        }
        Err(error) => inner.report_error(DurableOp::Put, &error),
    }
}

impl GrowingWriter {
    /// Removes a pack to which nothing could be appended.
    async fn remove_empty(&mut self, open: OpenPack) {
        let OpenPack { file, info, .. } = open;
        let removed = self.inner.place.delete(&self.inner.names.open_pack(info.name)).await;
        // Its lock goes after it.
        drop(file);
        drop(self.inner.index.remove_pack(info.name));
        if let Err(error) = removed {
            self.inner.report_error(DurableOp::Delete, &error);
        }
    }
}

/// Tells those who wait that all work before theirs is appended.
fn answer(waiting: &mut Vec<oneshot::Sender<()>>) {
    for done in waiting.drain(..) {
        let _ = done.send(());
    }
}

/// Begins a pack.
async fn begin(inner: &Arc<Inner>) -> Result<OpenPack, StoreError> {
    let name = PackName { time: inner.purges.take_order(), node: inner.purges.node() };
    let file = inner.place.begin_pack(&inner.names.pack(name)).await?;
    let info = inner.index.add_pack(name);
    Ok(OpenPack { file, builder: PackBuilder::default(), info, since: Stopwatch::start() })
}

#[cfg(test)]
mod tests;
