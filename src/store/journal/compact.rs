//! Compacting the journal: snapshots, and the deletion of the records that they replace.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::record::Snapshot;
use super::{AT_ONCE, Journal, outcome};
use crate::entry::{JournalTime, TICK_BITS};
use crate::store::error::StoreError;
use crate::store::index::PackInfo;
use crate::store::names::{JournalObject, ObjectNames};
use crate::store::place::Listed;

/// Number of records since the last snapshot that may make the journal long: a start reads them before it serves anything. They
/// do if they take as many bytes as the snapshot, or are many.
pub(super) const LONG: usize = 256;
const MANY: usize = 1024;

/// The least time between two snapshots, in milliseconds.
const APART: u64 = 60_000;

/// Number of packs since the last snapshot that make the journal long, or a quarter of all packs, if that is more.
const MANY_PACKS: usize = 1024;

/// Milliseconds after which a snapshot is written in any case, if there is anything new.
const DAY: u64 = 24 * 60 * 60_000;

impl Journal {
    /// Writes a snapshot if the journal is long, or `is_forced`, and deletes what it replaces.
    pub(in crate::store) async fn compact(&self, is_forced: bool) {
        let (unsaved, packs) = self.index.unsaved();
        let now = self.purges.journal_now();
        let (from, known, is_due, is_tidy) = {
            let mut tail = self.tail.lock().await;
            let since = tail.since_snapshot;
            let has_records = since >= MANY || since >= LONG && tail.bytes_since >= tail.snapshot_bytes;
            let is_long = tail.needs_snapshot || has_records || unsaved >= MANY_PACKS.max(packs / 4);
            let is_old = now.saturating_sub(tail.saved) > DAY << TICK_BITS;
            // Whichever way the clock was set meanwhile.
            let is_apart = tail.compacted.is_none_or(|last| now.abs_diff(last) >= APART << TICK_BITS);
            let is_due = is_apart && (is_long || (since + unsaved > 0 && is_old));
            let is_tidy = tail.tidy_at.take_if(|time| *time <= now).is_none();
            (tail.from, tail.snapshot, is_due || is_forced, is_tidy)
        };
        if !is_tidy && let Err(error) = self.delete_replaced().await {
            debug!("old records of the journal are still there: {error}");
        }
        // Nobody would believe the times in it.
        if !is_due || !self.index.is_loaded() || !self.purges.believes_itself() {
            return;
        }
        if let Err(error) = self.write_snapshot(from, known, is_forced).await
            && let Some(suppressed) = self.log.snapshot.is_due()
        {
            warn!("no snapshot of the journal was written, which is tried again: {error}{suppressed}");
        }
    }

    /// Writes a snapshot of all until `from`, unless another process has written one since the last `known`.
    pub(super) async fn write_snapshot(
        &self,
        from: JournalTime,
        known: JournalTime,
        is_forced: bool,
    ) -> Result<(), StoreError> {
        let listed = self.place.list_all(&self.names.snapshots(), "").await?;
        let times: Vec<JournalTime> = listed
            .iter()
            .filter_map(|listed| ObjectNames::parse_snapshot(&listed.name))
            .map(|(time, _)| time)
            .filter(|time| self.purges.believes(*time))
            .collect();
        let last = times.last().copied().unwrap_or(0);
        let mut bytes = listed.last().map_or(0, |listed| listed.size);
        let is_written = last <= known || is_forced;
        if is_written {
            let (index, packs) = self.index.is_loaded().then(|| self.index.encode()).unzip();
            let snapshot = Snapshot { until: from, purges: self.purges.snapshot(), index };
            let name = self.names.snapshot(from, self.purges.node());
            let object = Bytes::from(snapshot.encode());
            bytes = object.len() as u64;
            self.place.put(&name, &[object]).await?;
            packs.iter().flatten().for_each(|pack| pack.set_saved());
            self.metrics.snapshots.add_one();
            info!(
                keys = self.index.len(),
                purges = snapshot.purges.stamps.len(),
                "a snapshot of the journal is written"
            );
        }
        {
            let (mut tail, now) = (self.tail.lock().await, self.purges.journal_now());
            tail.snapshot = last.max(from);
            tail.saved = tail.snapshot;
            tail.snapshot_bytes = bytes;
            (tail.since_snapshot, tail.bytes_since, tail.needs_snapshot) = (0, 0, false);
            tail.compacted = Some(now);
            // Those that are too young now. In a bucket the next snapshot does.
            tail.tidy_at = (is_written && self.place.is_local()).then(|| now + (self.kept() << TICK_BITS));
        }
        if !is_written {
            let has = |pack: &Arc<PackInfo>| pack.name.time < last && !pack.is_open();
            self.index.all_packs().into_iter().filter(has).for_each(|pack| pack.set_saved());
        }
        if is_written { self.delete_replaced().await } else { Ok(()) }
    }

    /// Deletes all but the last two snapshots, and the records that both of them hold.
    async fn delete_replaced(&self) -> Result<(), StoreError> {
        let listed = self.place.list_all(&self.names.snapshots(), "").await?;
        let timed = |listed: &Listed| ObjectNames::parse_snapshot(&listed.name).map(|(time, _)| time);
        let Some(older) = listed.iter().filter_map(timed).rev().nth(1) else { return Ok(()) };
        let snapshots = listed.into_iter().filter(|listed| timed(listed).is_some_and(|time| time < older));
        let end = older.min(self.purges.journal_now().saturating_sub(self.kept() << TICK_BITS));
        let listed = self.place.list_all(&self.names.journal(), "").await?;
        let records = listed.into_iter().filter(|listed| match ObjectNames::parse_journal(&listed.name) {
            Some(JournalObject::Purges(name)) => name.time < end,
            Some(JournalObject::Pack(_) | JournalObject::OpenPack(_)) | None => false,
        });
        let mut deleting = JoinSet::new();
        for Listed { name, .. } in snapshots.chain(records) {
            if deleting.len() >= AT_ONCE {
                outcome(deleting.join_next().await)?;
            }
            let place = Arc::clone(&self.place);
            deleting.spawn(async move { place.delete(&name).await });
        }
        while let Some(deleted) = deleting.join_next().await {
            outcome(Some(deleted))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
