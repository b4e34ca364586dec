//! Reading what other processes stored: the footers of new packs, and in a directory the entries of packs that grow.
//!
//! * Footers are read newest first, several at once. Until all are read, an entry is found only if every pack is read that
//!   may hold a later deletion of it. In a bucket a pack is named after all that is in it came, so those are the packs with
//!   a later name. In a directory a pack is named when it is begun: there all of them are read first.
//! * A footer that can't be read is made anew from the entries, up to the first one that does not hold. If there may have
//!   been others after that, deletions may be lost with them: all that was stored before has to be validated, as after a
//!   soft purge of everything. (A purge or an invalidation has a record as well, so that its deletion is not lost.)

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tracing::error;

use super::compact::LONG;
use super::{AT_ONCE, Journal};
use crate::rfc9111::timestamp::Timestamp;
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::index::PackInfo;
use crate::store::names::{JournalObject, ObjectNames, PackName};
use crate::store::pack::{EntryHeader, Footer, FooterEntry, PackBuilder, TRAILER, Trailer, entries_of, is_footer};
use crate::store::place::{Listed, Place};
use crate::store::purge::{Purge, PurgeTarget};

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
    /// Reads the packs of a listing that are new, the newest first. Returns whether one of them is damaged.
    pub(super) async fn read_packs(&self, listed: &[Listed]) -> Result<bool, StoreError> {
        let mut complete = Vec::new();
        for object in listed.iter().rev() {
            match ObjectNames::parse_journal(&object.name) {
                Some(JournalObject::Pack(name)) if self.is_unread(name) => {
                    complete.push(ListedPack { name, listed: object.clone() });
                }
                Some(JournalObject::OpenPack(name)) if name.node != self.purges.node() => {
                    self.read_growing(name, object.size).await?;
                }
                Some(JournalObject::Pack(_) | JournalObject::OpenPack(_) | JournalObject::Purges(_)) | None => {}
            }
        }
        self.read_footers(&complete).await
    }

    /// Reads the footers of packs, which are in the order of reading.
    async fn read_footers(&self, packs: &[ListedPack]) -> Result<bool, StoreError> {
        let room = Arc::new(Semaphore::new(FOOTERS_AT_ONCE));
        let (mut reading, mut progress) = (JoinSet::new(), Progress::new(packs));
        for (number, pack) in packs.iter().enumerate() {
            if reading.len() >= AT_ONCE {
                self.take_footer(packs, reading.join_next().await, &mut progress).await?;
            }
            let (place, pack, room) = (Arc::clone(&self.place), pack.clone(), Arc::clone(&room));
            reading.spawn(async move {
                let found = find_footer(&*place, &pack.listed, Some(&room)).await;
                let (found, permit) =
                    found.map_or_else(|error| (Err(error), None), |(found, permit)| (Ok(found), permit));
                Reading { number, found, _permit: permit }
            });
        }
        while !reading.is_empty() {
            self.take_footer(packs, reading.join_next().await, &mut progress).await?;
        }
        Ok(progress.is_any_damaged)
    }

    /// Reads the packs of a listing that were missed.
    pub(in crate::store) async fn read_missed(&self, listed: &[Listed]) -> Result<(), StoreError> {
        let mut tail = self.tail.lock().await;
        if self.read_packs(listed).await? {
            tail.since_snapshot = tail.since_snapshot.max(LONG);
        }
        Ok(())
    }

    /// Returns whether a complete pack was not read since it is complete. One of this process may have been completed by
    /// another.
    fn is_unread(&self, name: PackName) -> bool {
        self.index.pack(name).is_none_or(|pack| pack.is_open())
    }

    async fn take_footer(
        &self,
        packs: &[ListedPack],
        joined: Option<Result<Reading, JoinError>>,
        progress: &mut Progress<'_>,
    ) -> Result<(), StoreError> {
        let Reading { number, found, _permit } = match joined {
            Some(Ok(read)) => read,
            Some(Err(_)) => return Err(StoreError::given_up("the journal")),
            None => return Ok(()),
        };
        let ListedPack { name, listed } = &packs[number];
        let found = match found {
            // One after the other: this reads the whole pack.
            Ok(FoundFooter::Unreadable) => rebuild(&*self.place, listed).await,
            found => found,
        };
        match found {
            Ok(FoundFooter::Whole(footer)) => self.take_pack(*name, listed.size, &footer),
            Ok(FoundFooter::Part(footer)) => {
                progress.is_any_damaged = true;
                self.take_damaged(*name, listed, &footer);
            }
            Ok(FoundFooter::Unreadable) => {
                progress.is_any_damaged = true;
                self.take_damaged(*name, listed, &Footer::default());
            }
            // It was deleted since it was listed.
            Err(error) if error.kind() == StoreErrorKind::Absent => {}
            Err(error) => return Err(error),
        }
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

    fn take_entries(&self, pack: &PackInfo, entries: &[FooterEntry]) {
        if let Some(last) = entries.iter().map(|entry| entry.order).max() {
            self.purges.note_order(last);
        }
        let is_copy = !pack.references().packs.is_empty();
        let news = entries.iter().filter(|entry| self.is_news(entry, is_copy));
        let news: Vec<u128> = news.map(|entry| entry.key.hash()).collect();
        self.index.insert_all(pack, entries);
        // Only now: what is read from an older place is not put into memory any more.
        for hash in news {
            self.memory.remove(hash, || ());
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

    /// Takes what could be read of a damaged pack. Has all that was stored before it was complete validated: deletions may be
    /// lost with the rest.
    fn take_damaged(&self, name: PackName, listed: &Listed, footer: &Footer) {
        self.metrics.journal_unreadable.add_one();
        error!(
            "the pack {} is damaged: a deletion may be lost with it, so all that was stored before is validated",
            listed.name
        );
        // A pack of a directory takes entries after the time in its name.
        let time =
            if self.place.is_local() { self.purges.journal_time(listed.modified).max(name.time) } else { name.time };
        self.purges.learn(&Purge { target: PurgeTarget::All, is_soft: true }, time, name.node);
        self.purges.learnt(name.node, time);
        self.index.add_pack(name).set_damaged();
        self.take_pack(name, listed.size, footer);
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
                Err(error) if error.kind() == StoreErrorKind::Absent => return Ok(()),
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
struct Progress<'a> {
    packs: &'a [ListedPack],
    is_done: Vec<bool>,
    /// The number of those at the beginning that are all read.
    first: usize,
    is_any_damaged: bool,
}

impl<'a> Progress<'a> {
    fn new(packs: &'a [ListedPack]) -> Self {
        Self { packs, is_done: vec![false; packs.len()], first: 0, is_any_damaged: false }
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
    let mut footer = Footer::default();
    let mut end = 0;
    loop {
        let found = read_entries(place, &pack.name, end, pack.size).await?;
        if found.len() == end {
            break;
        }
        end = found.len();
        footer.entries.extend(found.into_footer().entries);
    }
    // If the footer begins there, no entry is missing.
    let rest = read(place, &pack.name, end, (pack.size - end).min(TAIL)).await?;
    Ok(match (is_footer(&rest), footer.entries.is_empty()) {
        (true, _) => FoundFooter::Whole(footer),
        (false, false) => FoundFooter::Part(footer),
        (false, true) => FoundFooter::Unreadable,
    })
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
