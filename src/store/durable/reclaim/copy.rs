//! Copies what counts of some packs into a new one.
//!
//! * An entry is copied if the index has exactly this place for its slot, it is still of use, and no purge covers it. A copy
//!   keeps order and version vector, so it is worth what the entry was, whatever happens while it is written.
//! * What is left behind, and held older entries down, leaves a tombstone while another pack may have one of those.
//! * The new pack is complete before any of the others goes: a process that is killed in between leaves copies, no gaps.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::super::Inner;
use super::{CHUNK, HOUR, elsewhere, ticks};
use crate::base::{DurableOp, RequestPurpose};
use crate::entry::encoding::encode_tombstone;
use crate::entry::{Covered, JournalTime, VersionVector};
use crate::rfc9111::timestamp::Timestamp;
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::index::PackInfo;
use crate::store::journal::read_footer;
use crate::store::names::PackName;
use crate::store::pack::{EntryKind, Footer, FooterEntry, NewEntry, PackBuilder};
use crate::store::place::GrowingPack;
use crate::store::purpose::asking_for;

/// The longest that writing a pack to a bucket may take, besides a second for each [`LEAST_RATE`] bytes.
const TO_WRITE: Duration = Duration::from_secs(30);
const LEAST_RATE: u64 = 256 << 10;

/// Says which of the entries that count are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// All.
    All,
    /// Those that were used since they were written.
    Used {
        /// The most bytes, with separate bodies.
        most: u64,
        /// True if others are copied as well while there is room, the last of each pack.
        fills: bool,
    },
}

/// The outcome of copying.
#[derive(Debug, Default)]
pub(super) struct Copied {
    /// The new pack; none if nothing was to be copied.
    pub pack: Option<Arc<PackInfo>>,
    /// The packs that are copied: they are of no use any more.
    pub emptied: Vec<Arc<PackInfo>>,
}

/// The fate of an entry whose pack goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Copied,
    LeavesTombstone,
    Forgotten,
}

/// What decides over the entries of one pack.
struct Judge<'a> {
    inner: &'a Inner,
    pack: &'a PackInfo,
    now: Timestamp,
    keep: Keep,
    /// The greatest order below which some other pack may have an entry: tombstones of greater orders are needed.
    least_elsewhere: JournalTime,
    /// Deletions since then leave a tombstone in any case: a pack with older entries may be on its way.
    recent: JournalTime,
}

impl Judge<'_> {
    /// Returns whether a group is copied as far as it counts: an entry, or a Vary record and the variant behind it.
    fn is_kept(&self, group: &[FooterEntry]) -> bool {
        self.keep == Keep::All || group.iter().any(|entry| self.is_used(entry))
    }

    /// Returns the bytes that a group takes if it is copied.
    fn weight(&self, group: &[FooterEntry]) -> u64 {
        let copied = group.iter().filter(|entry| self.fate(entry, true) == Fate::Copied);
        copied.map(|entry| u64::from(entry.len) + entry.body.map_or(0, |(_, len)| len)).sum()
    }

    fn fate(&self, entry: &FooterEntry, is_kept: bool) -> Fate {
        let index = &self.inner.index;
        let place = index.slot(index.fingerprint(&entry.key, entry.variant));
        let counts = place.is_some_and(|place| place.pack == self.pack.id && place.offset == entry.offset);
        let is_readable = place.is_some_and(|place| !place.is_tombstone);
        if is_kept
            && counts
            && is_readable
            && entry.kind != EntryKind::Tombstone
            && self.inner.is_useful(entry, self.now)
        {
            return Fate::Copied;
        }
        let is_tombstone = entry.kind == EntryKind::Tombstone;
        let holds_down = is_tombstone || entry.replaces || place.is_some_and(|place| counts && place.replaces);
        let is_last = counts || place.is_none_or(|place| !index.has_pack(place.pack));
        let is_needed = self.least_elsewhere < entry.order || (is_tombstone && entry.order > self.recent);
        if holds_down && is_last && is_needed { Fate::LeavesTombstone } else { Fate::Forgotten }
    }

    /// Returns whether older entries may come back without this one, which counts.
    fn holds_down(&self, entry: &FooterEntry) -> bool {
        let index = &self.inner.index;
        entry.replaces || index.slot(index.fingerprint(&entry.key, entry.variant)).is_some_and(|place| place.replaces)
    }

    /// Returns whether an entry was used since it was written: read from its pack, or in memory.
    fn is_used(&self, entry: &FooterEntry) -> bool {
        let (index, memory) = (&self.inner.index, &self.inner.memory);
        let place = index.slot(index.fingerprint(&entry.key, entry.variant));
        let name = if entry.variant == 0 { entry.key.hash() } else { entry.variant };
        place.is_some_and(|place| place.is_used && place.pack == self.pack.id && place.offset == entry.offset)
            || memory.holds(name)
    }
}

impl Inner {
    /// Returns whether an entry is of use: it has not expired, no purge covers it, and something leads to it.
    pub(super) fn is_useful(&self, entry: &FooterEntry, now: Timestamp) -> bool {
        if entry.of_use_until <= now {
            return false;
        }
        if entry.variant != 0 {
            let record = self.index.slot(self.index.fingerprint(&entry.key, 0));
            if record.is_none_or(|place| !place.is_record || !self.index.has_pack(place.pack)) {
                return false;
            }
        }
        entry.kind != EntryKind::Response
            || self.purges.covers_entry(&entry.key, &entry.tags, &entry.vector) != Covered::Wholly
    }

    /// Copies what counts of `sources` into a new pack, which says that it replaces them. Takes no more of them than fill
    /// it.
    pub(super) async fn copy(self: &Arc<Self>, sources: &[Arc<PackInfo>], keep: Keep) -> Result<Copied, StoreError> {
        asking_for(RequestPurpose::Reclaiming, self.copy_all(sources, keep)).await
    }

    async fn copy_all(self: &Arc<Self>, sources: &[Arc<PackInfo>], keep: Keep) -> Result<Copied, StoreError> {
        let sources = self.fitting(sources);
        let own: HashSet<PackName> = sources.iter().map(|pack| pack.name).collect();
        let others: Vec<_> = self.index.all_packs().into_iter().filter(|pack| !own.contains(&pack.name)).collect();
        let mut left = match keep {
            Keep::All => u64::MAX,
            Keep::Used { most, .. } => most,
        };
        let mut writer = CopyWriter::new(Arc::clone(self));
        // The newest first: if not all fits, it is the oldest that goes.
        for pack in sources.iter().rev() {
            let footer = match read_footer(&*self.place, &self.names.pack(pack.name), pack.size()).await {
                Ok(footer) => footer,
                // Somebody else was faster: nothing is to be copied.
                Err(error) if error.kind() == StoreErrorKind::Absent => match self.is_gone(pack).await {
                    Ok(()) => Footer::default(),
                    Err(error) => return Err(writer.give_up(error).await),
                },
                // Nothing of it can be read.
                Err(error) if error.kind() == StoreErrorKind::Corrupt => {
                    self.report_error(DurableOp::Get, &error);
                    Footer::default()
                }
                Err(error) => return Err(writer.give_up(error).await),
            };
            let judge = Judge {
                inner: self,
                pack,
                now: self.purges.time(),
                keep,
                least_elsewhere: elsewhere(pack, &others),
                recent: self.purges.journal_now().saturating_sub(ticks(HOUR)),
            };
            if let Err(error) = writer.take(&judge, &footer, &mut left).await {
                return Err(writer.give_up(error).await);
            }
        }
        let pack = writer.finish(sources.iter().map(|pack| pack.name).collect()).await?;
        Ok(Copied { pack, emptied: sources.to_vec() })
    }

    /// Succeeds if a pack is gone of which a read said so: a bucket that refuses a read may say the same, and what is copied
    /// of a pack is all that is left of it.
    async fn is_gone(&self, pack: &PackInfo) -> Result<(), StoreError> {
        let name = self.names.pack(pack.name);
        if !self.place.is_listed(&name).await? {
            return Ok(());
        }
        let text = format!("{name}: it is listed, and can't be read; nothing of it is copied");
        Err(StoreError::new(StoreErrorKind::Refused, text))
    }

    /// Returns the first of `sources` whose responses fit into one pack, and at least one.
    pub(super) fn fitting<'a>(&self, sources: &'a [Arc<PackInfo>]) -> &'a [Arc<PackInfo>] {
        let (mut sum, most) = (0_u64, self.pack_size().saturating_mul(3) / 2);
        let fits = |pack: &&Arc<PackInfo>| {
            sum = sum.saturating_add(pack.copy_len());
            sum <= most
        };
        let count = sources.iter().take_while(fits).count().max(1).min(sources.len());
        &sources[..count]
    }
}

/// Writes the new pack: to a file as it grows, or to a bucket once it is complete.
struct CopyWriter {
    inner: Arc<Inner>,
    builder: PackBuilder,
    /// What is not appended yet.
    pending: Vec<u8>,
    file: Option<(PackName, Box<dyn GrowingPack>)>,
}

/// The groups of a pack that lie near each other, and are read at once.
type Run = Vec<Vec<FooterEntry>>;

impl CopyWriter {
    fn new(inner: Arc<Inner>) -> Self {
        Self { inner, builder: PackBuilder::default(), pending: Vec::new(), file: None }
    }

    /// Copies what is to be copied of one pack. `left` bounds the bytes of entries and of the bodies that they lead to.
    async fn take(&mut self, judge: &Judge<'_>, footer: &Footer, left: &mut u64) -> Result<(), StoreError> {
        let groups: Vec<_> = groups(&footer.entries).map(|group| (group, judge.is_kept(group))).collect();
        let fills = matches!(judge.keep, Keep::Used { fills: true, .. });
        let mut is_copied = vec![false; groups.len()];
        let mut try_copy = |number: usize, (group, _): &(&[FooterEntry], bool)| {
            let weight = judge.weight(group);
            if weight > 0 && weight <= *left {
                *left -= weight;
                is_copied[number] = true;
            }
        };
        groups
            .iter()
            .enumerate()
            .filter(|(_, (_, is_kept))| *is_kept)
            .for_each(|(number, group)| try_copy(number, group));
        let others = groups.iter().enumerate().rev().filter(|(_, (_, is_kept))| fills && !is_kept);
        others.for_each(|(number, group)| try_copy(number, group));
        let (mut copied, mut tombstones): (Vec<Vec<FooterEntry>>, Vec<&FooterEntry>) = (Vec::new(), Vec::new());
        for ((group, _), is_copied) in groups.iter().zip(is_copied) {
            let fates = group.iter().map(|entry| (entry, judge.fate(entry, is_copied)));
            let (kept, others): (Vec<_>, Vec<_>) = fates.partition(|(_, fate)| *fate == Fate::Copied);
            tombstones
                .extend(others.iter().filter(|(_, fate)| *fate == Fate::LeavesTombstone).map(|(entry, _)| *entry));
            copied.extend((!kept.is_empty()).then(|| kept.into_iter().map(|(entry, _)| entry.clone()).collect()));
        }
        for run in runs(copied, self.inner.place.is_local()) {
            self.copy_run(judge, run).await?;
        }
        for entry in tombstones {
            let cost = 2 * entry.key.as_bytes().len() as u64 + 192;
            if cost <= *left {
                *left -= cost;
                self.builder.push(vec![tombstone(entry)], &mut self.pending);
            }
        }
        self.append().await
    }

    async fn copy_run(&mut self, judge: &Judge<'_>, run: Run) -> Result<(), StoreError> {
        let (Some(first), Some(last)) =
            (run.first().and_then(|group| group.first()), run.last().and_then(|group| group.last()))
        else {
            return Ok(());
        };
        let (start, end) = (first.offset, last.offset + u64::from(last.len));
        let len = u32::try_from(end - start).unwrap_or(u32::MAX);
        let name = self.inner.names.pack(judge.pack.name);
        let bytes = match self.inner.place.read_pack(&name, start, len).await {
            Ok(bytes) => bytes,
            // Another process was faster: it has copied what counts.
            Err(error) if error.kind() == StoreErrorKind::Absent => return self.inner.is_gone(judge.pack).await,
            Err(error) => return Err(error),
        };
        for group in run {
            let at = |entry: &FooterEntry| {
                let from = usize::try_from(entry.offset - start).unwrap_or(usize::MAX).min(bytes.len());
                let to = from.saturating_add(usize::try_from(entry.len).unwrap_or(usize::MAX)).min(bytes.len());
                bytes.slice(from..to)
            };
            let group: Vec<(FooterEntry, Bytes)> = group.into_iter().map(|entry| (entry.clone(), at(&entry))).collect();
            if !self.builder.copy(&group, &mut self.pending)
                && let Some((entry, _)) = group.first()
            {
                let place = format!("{} at {}", judge.pack.name, entry.offset);
                self.inner.report_unreadable(&place, &"its checksum does not hold");
                // What it took the place of does not come back.
                for (entry, _) in group.iter().filter(|(entry, _)| judge.holds_down(entry)) {
                    self.builder.push(vec![tombstone(entry)], &mut self.pending);
                }
            }
            if self.pending.len() as u64 >= CHUNK {
                self.append().await?;
            }
        }
        Ok(())
    }

    /// Appends what is pending to the file. In a bucket all is written at the end.
    async fn append(&mut self) -> Result<(), StoreError> {
        if !self.inner.place.is_local() || self.pending.is_empty() {
            return Ok(());
        }
        let bytes = Bytes::from(std::mem::take(&mut self.pending));
        let (_, file) = match &mut self.file {
            Some(file) => file,
            None => {
                let name = self.inner.new_name();
                let file = self.inner.place.begin_pack(&self.inner.names.pack(name)).await?;
                self.file.insert((name, file))
            }
        };
        file.append(bytes).await
    }

    /// Completes the pack, and adds it to the index. Returns it; `None` if nothing was copied.
    async fn finish(mut self, replaces: Vec<PackName>) -> Result<Option<Arc<PackInfo>>, StoreError> {
        if self.builder.entries().is_empty() {
            return Ok(None);
        }
        self.builder.set_replaces(replaces.clone());
        let footer = Bytes::from(self.builder.finish());
        let size = self.builder.len() + footer.len() as u64;
        let (inner, name) = (Arc::clone(&self.inner), self.file.as_ref().map(|(name, _)| *name));
        let name = match self.file.take() {
            Some((name, file)) => {
                // One that can't be completed is completed by whoever finds it: its copies do no harm.
                file.seal(footer).await?;
                name
            }
            None => {
                let name = name.unwrap_or_else(|| inner.new_name());
                let pack = [Bytes::from(std::mem::take(&mut self.pending)), footer];
                let deadline = TO_WRITE + Duration::from_secs(size / LEAST_RATE);
                let object = inner.names.pack(name);
                let written = tokio::time::timeout(deadline, inner.place.put(&object, &pack)).await;
                written.unwrap_or_else(|_| Err(StoreError::timed_out()))?;
                name
            }
        };
        let pack = inner.index.add_pack(name);
        pack.set_replaces(replaces);
        inner.index.insert_all(&pack, self.builder.entries());
        pack.set_size(size, false);
        inner.metrics.packs_rewritten.add_one();
        inner.metrics.bytes_rewritten.add(size);
        Ok(Some(pack))
    }

    /// Removes what was written so far. Returns the error for which.
    async fn give_up(self, error: StoreError) -> StoreError {
        if let Some((name, file)) = self.file {
            // Not before the file is gone does its lock go: nobody completes it.
            let removed = self.inner.place.delete(&self.inner.names.open_pack(name)).await;
            drop(file);
            if let Err(error) = removed {
                self.inner.report_error(DurableOp::Delete, &error);
            }
        }
        error
    }
}

/// Splits the entries of a pack into groups: an entry alone, or a Vary record and the variant behind it.
fn groups(entries: &[FooterEntry]) -> impl Iterator<Item = &[FooterEntry]> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let first = rest.first()?;
        let is_pair = first.group_len > first.len && rest.len() > 1;
        let (group, after) = rest.split_at(if is_pair { 2 } else { 1 });
        rest = after;
        Some(group)
    })
}

/// Joins groups that lie near each other, as far as they are read at once.
fn runs(groups: Vec<Vec<FooterEntry>>, is_local: bool) -> Vec<Run> {
    // A request costs more than a few bytes too many: in a bucket much more.
    let (gap, most) = if is_local { (16 << 10, CHUNK) } else { (1 << 20, 8 * CHUNK) };
    let mut runs: Vec<(u64, u64, Run)> = Vec::new();
    for group in groups {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
        let (start, end) = (first.offset, last.offset + u64::from(last.len));
        match runs.last_mut() {
            Some((from, to, run)) if start >= *to && start - *to <= gap && end - *from <= most => {
                *to = end;
                run.push(group);
            }
            _ => runs.push((start, end, vec![group])),
        }
    }
    runs.into_iter().map(|(_, _, run)| run).collect()
}

fn tombstone(entry: &FooterEntry) -> NewEntry {
    NewEntry {
        kind: EntryKind::Tombstone,
        replaces: true,
        order: entry.order,
        key: entry.key.clone(),
        variant: entry.variant,
        vector: VersionVector::default(),
        tags: Vec::new(),
        fresh_until: Timestamp::default(),
        of_use_until: Timestamp::default(),
        body: None,
        object: encode_tombstone(&entry.key),
    }
}
