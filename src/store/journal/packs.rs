//! Reading what other processes stored: the footers of new packs, and in a directory the entries of packs that grow.
//!
//! * Footers are read newest first, several at once. Until all are read, an entry is found only if every pack is read that
//!   may hold a later deletion of it. In a bucket a pack is named after all that is in it came, so those are the packs with
//!   a later name. In a directory a pack is named when it is begun: there all of them are read first.
//! * A pack that can't be read waits ([`super::waits`]), unless it is gone: others replaced it. Then it counts as damaged.
//! * A footer that is damaged is made anew from the entries, up to the first one that does not hold. If there may have
//!   been others after that, deletions may be lost with them: all that was stored before has to be validated, as after a
//!   soft purge of everything. (A purge or an invalidation has a record as well, so that its deletion is not lost.)

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tracing::error;

use super::read::Tail;
use super::waits::{Verdict, ends, grows, is_pack};
use super::{AT_ONCE, Journal};
use crate::base::RequestPurpose;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::index::PackInfo;
use crate::store::names::{JournalObject, ObjectNames, PackName};
use crate::store::pack::{EntryHeader, Footer, FooterEntry, PackBuilder, TRAILER, Trailer, entries_of, is_footer};
use crate::store::place::{Listed, Place};
use crate::store::purge::{Purge, PurgeTarget};
use crate::store::purpose::asking_for;

/// Bytes at the end of a pack that are read first: mostly its whole footer.
const TAIL: u64 = 64 << 10;

/// The longest footer.
const MAX_FOOTER: u64 = 64 << 20;

/// The most bytes of footers that are held at once, a footer longer than this alone.
const FOOTERS_AT_ONCE: usize = 16 << 20;

/// Bytes of entries that are read at once to make a footer anew.
const PIECE: u64 = 1 << 20;

/// The most bytes of one entry: those of the largest object that is kept within a pack.
const MAX_ENTRY: u64 = 66 << 20;

/// A complete pack of a listing.
#[derive(Clone, Debug)]
struct ListedPack {
    name: PackName,
    listed: Listed,
}

/// A footer that was read, and the right to hold it.
struct Reading {
    /// The number of its pack among those that are read.
    number: usize,
    found: Result<FoundFooter, StoreError>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Journal {
    /// Reads the packs of a listing that are new, the newest first. Those that can't be read wait; then the first error is
    /// returned once the others are read.
    pub(super) async fn read_packs(&self, tail: &mut Tail, listed: &[Listed]) -> Result<(), StoreError> {
        let mut progress = Progress::default();
        for object in listed.iter().rev() {
            match ObjectNames::parse_journal(&object.name) {
                Some(object) if !self.purges.believes(object.name().time) => {}
                Some(JournalObject::Pack(name)) if self.is_unread(name) => {
                    progress.packs.push(ListedPack { name, listed: object.clone() });
                }
                Some(JournalObject::OpenPack(name)) if name.node != self.purges.node() => {
                    let is_given_up = tail.given_up.get(&object.name).is_some_and(|size| *size == object.size);
                    match if is_given_up { Ok(()) } else { self.read_growing(name, object.size).await } {
                        Ok(()) => progress.is_up = true,
                        Err(error) if ends(&error) => return Err(error),
                        Err(error) => progress.failed.push((ListedPack { name, listed: object.clone() }, error)),
                    }
                }
                Some(JournalObject::Pack(_) | JournalObject::OpenPack(_) | JournalObject::Purges(_)) | None => {}
            }
        }
        self.read_footers(&mut progress).await?;
        let down = progress.failed.last().filter(|_| progress.is_cut_short).map(|(_, error)| error.clone());
        let error = self.judge_packs(tail, listed, progress.failed, progress.is_up).await?.or(down);
        for (node, time) in std::mem::take(&mut *self.lost.lock()) {
            tail.hold(node, time);
            // A snapshot keeps the note of the loss once the damaged pack is gone.
            tail.needs_snapshot = true;
        }
        self.release_held(tail);
        error.map_or(Ok(()), Err)
    }

    /// Reads the footers of packs, which are in the order of reading.
    async fn read_footers(&self, progress: &mut Progress) -> Result<(), StoreError> {
        let room = Arc::new(Semaphore::new(FOOTERS_AT_ONCE));
        let mut reading = JoinSet::new();
        progress.is_done = vec![false; progress.packs.len()];
        for number in 0..progress.packs.len() {
            if reading.len() >= AT_ONCE {
                self.take_footer(reading.join_next().await, progress).await?;
            }
            // The rest would mostly fail as well.
            if progress.down_in_turn >= AT_ONCE && !self.is_place_up(false, &progress.errors()).await {
                progress.is_up = false;
                progress.is_cut_short = true;
                break;
            }
            let (place, pack, room) = (Arc::clone(&self.place), progress.packs[number].clone(), Arc::clone(&room));
            reading.spawn(asking_for(RequestPurpose::Journal, async move {
                let found = find_footer(&*place, &pack.listed, Some(&room)).await;
                let (found, permit) =
                    found.map_or_else(|error| (Err(error), None), |(found, permit)| (Ok(found), permit));
                Reading { number, found, _permit: permit }
            }));
        }
        while !reading.is_empty() {
            self.take_footer(reading.join_next().await, progress).await?;
        }
        Ok(())
    }

    /// Has the packs that could not be read wait, or count as damaged. Returns the error of one that waits.
    async fn judge_packs(
        &self,
        tail: &mut Tail,
        listed: &[Listed],
        mut failed: Vec<(ListedPack, StoreError)>,
        is_up: bool,
    ) -> Result<Option<StoreError>, StoreError> {
        if failed.iter().any(|(_, error)| error.kind() == StoreErrorKind::Absent) {
            // Packs are deleted once others have replaced them. One that is still listed is there, and hidden.
            let again = self.place.list_all(&self.names.journal(), "").await?;
            let there: HashSet<&str> = again.iter().map(|listed| listed.name.as_str()).collect();
            failed.retain(|(pack, error)| {
                error.kind() != StoreErrorKind::Absent || there.contains(pack.listed.name.as_str())
            });
        }
        let errors: Vec<_> = failed.iter().map(|(pack, error)| (pack.listed.name.clone(), error.clone())).collect();
        let is_up = self.is_place_up(is_up, &errors).await;
        let names: HashSet<&str> = errors.iter().map(|(name, _)| name.as_str()).collect();
        tail.waits.retain(|name| names.contains(name) || !is_pack(name));
        let there: HashSet<&str> = listed.iter().map(|listed| listed.name.as_str()).collect();
        tail.given_up.retain(|name, _| there.contains(name.as_str()));
        let mut waiting = None;
        for (ListedPack { name, listed }, error) in failed {
            // It has another owner, or is no file: that does not pass.
            let is_certain = self.place.is_local()
                && match error.kind() {
                    StoreErrorKind::Corrupt => true,
                    // One that grows would count as unreadable again at every look.
                    StoreErrorKind::Refused => !grows(&listed.name),
                    _ => false,
                };
            let verdict = if is_certain { Verdict::Unreadable } else { tail.waits.note(&listed.name, &error, is_up) };
            match verdict {
                Verdict::Unreadable => {
                    error!("{error}; the file has to be a pack that Larder may read");
                    if grows(&listed.name) {
                        self.note_loss(name, &listed);
                        tail.given_up.insert(listed.name, listed.size);
                    } else {
                        self.take_damaged(name, &listed, &Footer::default());
                    }
                }
                Verdict::WaitsFirst | Verdict::Waits => {
                    if verdict == Verdict::WaitsFirst {
                        self.log_wait("pack", &listed.name, &error);
                    }
                    waiting = waiting.or(Some(error));
                }
            }
        }
        Ok(waiting)
    }

    /// Reads the packs of a listing that were missed.
    pub(in crate::store) async fn read_missed(&self, listed: &[Listed]) -> Result<(), StoreError> {
        let mut tail = self.tail.lock().await;
        self.read_packs(&mut tail, listed).await
    }

    /// Returns whether a complete pack was not read since it is complete. One of this process may have been completed by
    /// another.
    fn is_unread(&self, name: PackName) -> bool {
        self.index.pack(name).is_none_or(|pack| pack.is_open())
    }

    async fn take_footer(
        &self,
        joined: Option<Result<Reading, JoinError>>,
        progress: &mut Progress,
    ) -> Result<(), StoreError> {
        let Reading { number, found, _permit } = match joined {
            Some(Ok(read)) => read,
            Some(Err(_)) => return Err(StoreError::given_up("the journal")),
            None => return Ok(()),
        };
        let ListedPack { name, listed } = progress.packs[number].clone();
        let found = match found {
            // One after the other: this reads the whole pack.
            Ok(FoundFooter::Unreadable) => rebuild(&*self.place, &listed).await,
            found => found,
        };
        progress.is_up |= found.is_ok();
        match found {
            Ok(FoundFooter::Whole(footer)) => self.take_pack(name, listed.size, &footer),
            Ok(FoundFooter::Part(footer)) => self.take_damaged(name, &listed, &footer),
            Ok(FoundFooter::Unreadable) => self.take_damaged(name, &listed, &Footer::default()),
            Err(error) if ends(&error) => return Err(error),
            Err(error) => {
                progress.down_in_turn = if error.kind().is_outage() { progress.down_in_turn + 1 } else { 0 };
                progress.failed.push((ListedPack { name, listed }, error));
                return Ok(());
            }
        }
        progress.down_in_turn = 0;
        progress.note(number);
        if !self.index.is_loaded() && !self.place.is_local() {
            self.index.set_certain_from(progress.certain_from());
        }
        Ok(())
    }

    fn take_pack(&self, name: PackName, size: u64, footer: &Footer) {
        // A pack made here from now on has a greater name: its copies count rather than these.
        self.purges.note_order(name.time);
        let pack = self.index.add_pack(name);
        pack.set_replaces(footer.replaces.clone());
        self.take_entries(&pack, &footer.entries);
        pack.set_size(size, false);
    }

    /// Takes the entries of a pack, but those of a time that can't be.
    fn take_entries(&self, pack: &PackInfo, entries: &[FooterEntry]) {
        let latest = self.purges.latest_believed();
        let believed = || entries.iter().filter(|entry| entry.order <= latest);
        if let Some(last) = believed().map(|entry| entry.order).max() {
            self.purges.note_order(last);
        }
        let is_copy = !pack.references().packs.is_empty();
        let news = believed().filter(|entry| self.is_news(entry, is_copy));
        let news: Vec<u128> = news.map(|entry| entry.key.hash()).collect();
        self.index.insert_all(pack, believed());
        // Only now: what is read from an older place is not put into memory any more.
        for hash in news {
            self.memory.remove(hash, || ());
        }
        let left_out = entries.len() - believed().count();
        if left_out > 0 {
            self.metrics.journal_unreadable.add_one();
            error!(
                "{left_out} entries of the pack {} have a time that is more than an hour ahead of the clock: they are not taken, and a deletion may be among them, so all that is stored is validated",
                pack.name
            );
            self.purges.purge(Purge { target: PurgeTarget::All, is_soft: true }, false);
            self.lost.lock().push((self.purges.node(), 0));
        }
    }

    /// Returns whether an entry may say that a value has changed: memory may have the one before, or be about to. Of pages
    /// there are purges. Two processes may have written at the same time, with the same order; a copy has that of its
    /// original.
    fn is_news(&self, entry: &FooterEntry, is_copy: bool) -> bool {
        if !entry.key.is_value() {
            return false;
        }
        let known = self.index.slot(self.index.fingerprint(&entry.key, 0));
        known.is_none_or(|known| known.is_before(entry.order) || (!is_copy && !known.is_after(entry.order)))
    }

    /// Takes what could be read of a damaged pack.
    fn take_damaged(&self, name: PackName, listed: &Listed, footer: &Footer) {
        self.note_loss(name, listed);
        self.index.add_pack(name).set_damaged();
        self.take_pack(name, listed.size, footer);
    }

    /// Has all that was stored before a damaged pack was complete validated: deletions may be lost with it.
    fn note_loss(&self, name: PackName, listed: &Listed) {
        self.metrics.journal_unreadable.add_one();
        error!(
            "the pack {} is damaged: a deletion may be lost with it, so all that was stored before is validated",
            listed.name
        );
        // A pack of a directory takes entries after the time in its name.
        let written = self.purges.journal_time(listed.modified).min(self.purges.journal_now());
        let time = if self.place.is_local() { written.max(name.time) } else { name.time };
        self.purges.learn(&Purge { target: PurgeTarget::All, is_soft: true }, time, name.node);
        self.lost.lock().push((name.node, time));
    }

    /// Reads what another process appended to a pack since the last look. An incomplete entry is not there yet.
    async fn read_growing(&self, name: PackName, size: u64) -> Result<(), StoreError> {
        let pack: Arc<PackInfo> = self.index.add_pack(name);
        let object = self.names.pack(name);
        loop {
            let from = pack.size();
            if size <= from || !pack.is_open() {
                return Ok(());
            }
            let found = match read_entries(&*self.place, &object, from, size).await {
                Ok(found) => found,
                Err(error) => return Err(error),
            };
            self.take_entries(&pack, found.entries());
            // It may have been completed meanwhile.
            if pack.is_open() {
                pack.set_size(found.len(), true);
            }
            if found.len() == from {
                return Ok(());
            }
        }
    }
}

/// The packs whose footers are read so far.
#[derive(Default)]
struct Progress {
    packs: Vec<ListedPack>,
    is_done: Vec<bool>,
    /// The number of those at the beginning that are all read.
    first: usize,
    /// Those that could not be read, also of those that grow.
    failed: Vec<(ListedPack, StoreError)>,
    /// True if any was read.
    is_up: bool,
    /// The number of reads at the end that the place did not answer.
    down_in_turn: usize,
    /// True if not all were tried, since the place is down.
    is_cut_short: bool,
}

impl Progress {
    fn errors(&self) -> Vec<(String, StoreError)> {
        self.failed.iter().map(|(pack, error)| (pack.listed.name.clone(), error.clone())).collect()
    }

    fn note(&mut self, number: usize) {
        self.is_done[number] = true;
        while self.is_done.get(self.first) == Some(&true) {
            self.first += 1;
        }
    }

    /// Returns the least order of which no deletion is unread: what is not read yet was named before it.
    fn certain_from(&self) -> u64 {
        self.packs.get(self.first).map_or(0, |pack| pack.name.time)
    }
}

/// What was found of a footer.
#[derive(Debug)]
pub(in crate::store) enum FoundFooter {
    /// All entries of the pack.
    Whole(Footer),
    /// The entries up to one that does not hold. There may be others after it.
    Part(Footer),
    /// There is none. It may be made anew.
    Unreadable,
}

/// Reads the footer of a complete pack of `size` bytes. Makes one that can't be read anew from the entries.
pub(in crate::store) async fn read_footer(place: &dyn Place, name: &str, size: u64) -> Result<Footer, StoreError> {
    let listed = Listed { name: name.to_owned(), size, modified: Timestamp::default() };
    let mut found = find_footer(place, &listed, None).await?.0;
    if matches!(found, FoundFooter::Unreadable) {
        found = rebuild(place, &listed).await?;
    }
    match found {
        FoundFooter::Whole(footer) | FoundFooter::Part(footer) => Ok(footer),
        FoundFooter::Unreadable => {
            Err(StoreError::corrupt(format!("{name}: neither its footer nor its first entry holds")))
        }
    }
}

/// Reads a footer. Takes permits from `room` for one that is longer than the bytes that are read first.
async fn find_footer(
    place: &dyn Place,
    pack: &Listed,
    room: Option<&Arc<Semaphore>>,
) -> Result<(FoundFooter, Option<OwnedSemaphorePermit>), StoreError> {
    let first = pack.size.saturating_sub(TAIL);
    let tail = read(place, &pack.name, first, pack.size - first).await?;
    let trailer = tail.len().checked_sub(TRAILER).and_then(|at| Trailer::decode(&tail[at..], pack.size).ok());
    let Some(trailer) = trailer.filter(|trailer| trailer.len <= MAX_FOOTER) else {
        return Ok((FoundFooter::Unreadable, None));
    };
    let (footer, permit) = if trailer.offset >= first {
        let start = usize::try_from(trailer.offset - first).unwrap_or(usize::MAX);
        (tail.slice(start.min(tail.len() - TRAILER)..tail.len() - TRAILER), None)
    } else {
        let permits = u32::try_from(trailer.len.min(FOOTERS_AT_ONCE as u64)).unwrap_or(u32::MAX);
        let permit = match room {
            Some(room) => Arc::clone(room).acquire_many_owned(permits).await.ok(),
            None => None,
        };
        (read(place, &pack.name, trailer.offset, trailer.len).await?, permit)
    };
    let footer = Footer::decode(&footer).ok().filter(|footer| footer.offset() == trailer.offset);
    Ok((footer.map_or(FoundFooter::Unreadable, FoundFooter::Whole), permit))
}

/// Makes the footer of a complete pack anew from its entries.
async fn rebuild(place: &dyn Place, pack: &Listed) -> Result<FoundFooter, StoreError> {
    let found = all_entries(place, &pack.name, pack.size).await?;
    let (end, footer) = (found.len(), found.into_footer());
    // If the footer begins there, no entry is missing.
    let rest = read(place, &pack.name, end, (pack.size - end).min(TAIL)).await?;
    Ok(match (is_footer(&rest), footer.entries.is_empty()) {
        (true, _) => FoundFooter::Whole(footer),
        (false, false) => FoundFooter::Part(footer),
        (false, true) => FoundFooter::Unreadable,
    })
}

/// Reads the entries of a pack of `size` bytes that has no footer, piece by piece, up to the first one that does not hold.
pub(in crate::store) async fn all_entries(place: &dyn Place, name: &str, size: u64) -> Result<PackBuilder, StoreError> {
    let mut all = PackBuilder::default();
    loop {
        let found = read_entries(place, name, all.len(), size).await?;
        if found.len() == all.len() {
            return Ok(all);
        }
        all.extend(found);
    }
}

/// Reads some entries of a pack from `from` on, at least one if there is a sound one. Verifies them.
async fn read_entries(place: &dyn Place, name: &str, from: u64, size: u64) -> Result<PackBuilder, StoreError> {
    let left = size.saturating_sub(from);
    let mut bytes = read(place, name, from, left.min(PIECE)).await?;
    let mut found = entries_of(bytes.clone(), from);
    if found.len() == from && left > PIECE {
        let first = EntryHeader::decode(&bytes).map_or(0, |header| header.len());
        if (PIECE..=MAX_ENTRY).contains(&first) {
            bytes = read(place, name, from, first).await?;
            found = entries_of(bytes, from);
        }
    }
    Ok(found)
}

async fn read(place: &dyn Place, name: &str, from: u64, len: u64) -> Result<Bytes, StoreError> {
    place.read_pack(name, from, u32::try_from(len).unwrap_or(u32::MAX)).await
}

#[cfg(test)]
mod tests;
