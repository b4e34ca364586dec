//! Compacting the journal: listings that fill the index, snapshots, and the deletion of what they replace.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::record::Snapshot;
use super::{AT_ONCE, Journal, outcome};
use crate::base::Stopwatch;
use crate::entry::{JournalTime, TICK_BITS};
use crate::store::error::StoreError;
use crate::store::index::{Fingerprint, Index};
use crate::store::names::{Namespace, ObjectNames};
use crate::store::place::{Listed, Place};

/// Milliseconds for which records are kept at least: a process that was away finds them.
pub(super) const KEPT: u64 = 60 * 60_000;

/// Number of records since the last snapshot that make the journal long.
const LONG: usize = 256;

/// Time between two messages about a long listing.
const LOG_EVERY: Duration = Duration::from_secs(5);

impl Journal {
    /// Fills the index from a listing of all objects.
    pub(super) async fn list_objects(&self) -> Result<(), StoreError> {
        info!("the index is made from a listing of the durable tier; it is asked for everything until then");
        let watch = Stopwatch::start();
        let mut logged = watch;
        let mut listing = JoinSet::new();
        for first in 0..=u8::MAX {
            if listing.len() >= AT_ONCE {
                outcome(listing.join_next().await)?;
            }
            let (place, names, index) = (Arc::clone(&self.place), self.names.clone(), Arc::clone(&self.index));
            listing.spawn(async move { list_shard(&*place, &names, &index, first).await });
            if logged.elapsed() >= LOG_EVERY {
                logged = Stopwatch::start();
                info!(objects = self.index.listed(), "the listing is at {} %", u32::from(first) * 100 / 256);
            }
        }
        while let Some(listed) = listing.join_next().await {
            outcome(Some(listed))?;
        }
        self.index.set_loaded();
        info!(
            keys = self.index.len(),
            ms = u64::try_from(watch.elapsed().as_millis()).unwrap_or(u64::MAX),
            "the index is complete"
        );
        Ok(())
    }

    /// Writes a snapshot if the journal is long, or `is_forced`, and deletes what it replaces.
    pub(super) async fn compact(&self, is_forced: bool) {
        let (from, since, known) = {
            let tail = self.tail.lock().await;
            (tail.from, tail.since_snapshot, tail.snapshot)
        };
        if !(is_forced || since >= LONG) || !self.index.is_loaded() {
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
        let times: Vec<JournalTime> =
            listed.iter().filter_map(|listed| ObjectNames::parse_timed(&listed.name)).map(|(time, _)| time).collect();
        let last = times.last().copied().unwrap_or(0);
        let is_written = last <= known || is_forced;
        if is_written {
            let snapshot = Snapshot {
                until: from,
                purges: self.purges.snapshot(),
                index: self.index.is_loaded().then(|| self.index.encode()),
            };
            let name = self.names.snapshot(from, self.purges.node());
            self.place.put(&name, &[Bytes::from(snapshot.encode())]).await?;
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
            tail.since_snapshot = 0;
        }
        if is_written { self.delete_replaced(&times).await } else { Ok(()) }
    }

    /// Deletes all but the last two snapshots, and the records that both of them hold. `before` are the times of the
    /// snapshots before the one that was just written.
    async fn delete_replaced(&self, before: &[JournalTime]) -> Result<(), StoreError> {
        let Some(&older) = before.last() else { return Ok(()) };
        let timed = |listed: Vec<Listed>| {
            listed.into_iter().filter_map(|listed| Some((ObjectNames::parse_timed(&listed.name)?.0, listed.name)))
        };
        let snapshots = timed(self.place.list_all(&self.names.snapshots(), "").await?);
        let end = older.min(self.purges.journal_now().saturating_sub(KEPT << TICK_BITS));
        let records = timed(self.place.list_all(&self.names.journal(), "").await?);
        let snapshots = snapshots.filter(|(time, _)| *time < older);
        let mut deleting = JoinSet::new();
        for (_, name) in snapshots.chain(records.filter(|(time, _)| *time < end)) {
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

/// Adds to the index the keys whose hash begins with `first`.
async fn list_shard(place: &dyn Place, names: &ObjectNames, index: &Index, first: u8) -> Result<(), StoreError> {
    let prefix = names.shard(Namespace::Objects, first);
    let mut after = String::new();
    loop {
        let page = place.list(&prefix, &after).await?;
        index.note_listed(page.listed.len() as u64);
        let hashes = page.listed.iter().filter_map(|listed| names.parse(Namespace::Objects, &listed.name));
        index.insert_all(hashes.filter(|(_, is_variant)| !is_variant).map(|(hash, _)| Fingerprint::of(hash)));
        match page.listed.last() {
            Some(last) if !page.is_last => after.clone_from(&last.name),
            Some(_) | None => return Ok(()),
        }
    }
}
