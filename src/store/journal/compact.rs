//! Compacting the journal: snapshots, and the deletion of the records that they replace.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::record::Snapshot;
use super::{AT_ONCE, Journal, outcome};
use crate::entry::{JournalTime, TICK_BITS};
use crate::store::error::StoreError;
use crate::store::index::PackInfo;
use crate::store::names::{JournalObject, ObjectNames};
use crate::store::place::Listed;

/// Milliseconds for which records are kept at least: a process that was away finds them.
pub(super) const KEPT: u64 = 60 * 60_000;

/// Number of records since the last snapshot that make the journal long: a start reads them before it serves anything.
pub(super) const LONG: usize = 256;

/// Number of packs since the last snapshot that make the journal long, or a quarter of all packs, if that is more.
const MANY_PACKS: usize = 1024;

/// Milliseconds after which a snapshot is written in any case, if there is anything new.
const DAY: u64 = 24 * 60 * 60_000;

impl Journal {
    /// Writes a snapshot if the journal is long, or `is_forced`, and deletes what it replaces.
    pub(in crate::store) async fn compact(&self, is_forced: bool) {
        let (from, since, known, saved) = {
            let tail = self.tail.lock().await;
            (tail.from, tail.since_snapshot, tail.snapshot, tail.saved)
        };
        let (unsaved, packs) = self.index.unsaved();
        let is_long = since >= LONG || unsaved >= MANY_PACKS.max(packs / 4);
        let is_old = self.purges.journal_now().saturating_sub(saved) > DAY << TICK_BITS;
        let is_due = is_forced || is_long || (since + unsaved > 0 && is_old);
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
        let is_written = last <= known || is_forced;
        if is_written {
            let (index, packs) = self.index.is_loaded().then(|| self.index.encode()).unzip();
            let snapshot = Snapshot { until: from, purges: self.purges.snapshot(), index };
            let name = self.names.snapshot(from, self.purges.node());
            self.place.put(&name, &[Bytes::from(snapshot.encode())]).await?;
            packs.iter().flatten().for_each(|pack| pack.set_saved());
            self.metrics.snapshots.add_one();
            info!(
                keys = self.index.len(),
                purges = snapshot.purges.stamps.len(),
                "a snapshot of the journal is written"
            );
        }
        {
            let mut tail = self.tail.lock().await;
            tail.snapshot = last.max(from);
            tail.saved = tail.snapshot;
            tail.since_snapshot = 0;
        }
        if !is_written {
            let has = |pack: &Arc<PackInfo>| pack.name.time < last && !pack.is_open();
            self.index.all_packs().into_iter().filter(has).for_each(|pack| pack.set_saved());
        }
        if is_written { self.delete_replaced(&times).await } else { Ok(()) }
    }

    /// Deletes all but the last two snapshots, and the records that both of them hold. `before` are the times of the
    /// snapshots before the one that was just written.
    async fn delete_replaced(&self, before: &[JournalTime]) -> Result<(), StoreError> {
        let Some(&older) = before.last() else { return Ok(()) };
        let listed = self.place.list_all(&self.names.snapshots(), "").await?;
        let snapshots = listed
            .into_iter()
            .filter(|listed| ObjectNames::parse_snapshot(&listed.name).is_some_and(|(time, _)| time < older));
        let end = older.min(self.purges.journal_now().saturating_sub(KEPT << TICK_BITS));
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
