//! Reading what other processes stored: the footers of new packs, and in a directory the entries of packs that grow.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;
use tracing::warn;

use super::{AT_ONCE, Journal};
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::index::PackInfo;
use crate::store::names::{JournalObject, ObjectNames, PackName};
use crate::store::pack::{Footer, TRAILER, Trailer, entries_of};
use crate::store::place::{Listed, Place};

/// Bytes at the end of a pack that are read first: mostly its whole footer.
const TAIL: u64 = 64 << 10;

/// The longest footer.
const MAX_FOOTER: u64 = 64 << 20;

/// The largest pack.
const MAX_PACK: u64 = 1 << 30;

impl Journal {
    /// Reads the packs of a listing that are new, the newest first. Returns how many were.
    pub(super) async fn read_packs(&self, listed: &[Listed]) -> Result<usize, StoreError> {
        let mut complete = Vec::new();
        for object in listed.iter().rev() {
            match ObjectNames::parse_journal(&object.name) {
                Some(JournalObject::Pack(name)) if self.is_unread(name) => complete.push((name, object.size)),
                Some(JournalObject::OpenPack(name)) if name.node != self.purges.node() => {
                    self.read_growing(name, object.size).await?;
                }
                Some(JournalObject::Pack(_) | JournalObject::OpenPack(_) | JournalObject::Purges(_)) | None => {}
            }
        }
        let count = complete.len();
        let mut reading = JoinSet::new();
        for (name, size) in complete {
            if reading.len() >= AT_ONCE {
                self.take_footer(reading.join_next().await)?;
            }
            let (place, object) = (Arc::clone(&self.place), self.names.pack(name));
            reading.spawn(async move { (name, size, read_footer(&*place, &object, size).await) });
        }
        while !reading.is_empty() {
            self.take_footer(reading.join_next().await)?;
        }
        Ok(count)
    }

    /// Reads the packs of a listing that were missed.
    pub(in crate::store) async fn read_missed(&self, listed: &[Listed]) -> Result<(), StoreError> {
        let mut tail = self.tail.lock().await;
        tail.since_snapshot += self.read_packs(listed).await?;
        Ok(())
    }

    /// Returns whether a complete pack was not read since it is complete. This process knows its own.
    fn is_unread(&self, name: PackName) -> bool {
        self.index.pack(name).is_none_or(|pack| pack.is_open() && name.node != self.purges.node())
    }

    fn take_footer(&self, joined: Option<Result<ReadFooter, tokio::task::JoinError>>) -> Result<(), StoreError> {
        let (name, size, footer) = match joined {
            Some(Ok(read)) => read,
            Some(Err(_)) => return Err(StoreError::given_up("the journal")),
            None => return Ok(()),
        };
        let footer = match footer {
            Ok(footer) => footer,
            // It was deleted since it was listed.
            Err(error) if error.kind() == StoreErrorKind::Absent => return Ok(()),
            Err(error) if error.kind() == StoreErrorKind::Corrupt => {
                self.metrics.journal_unreadable.add_one();
                warn!("a pack of the durable tier can't be read, and counts as empty: {error}");
                Footer::default()
            }
            Err(error) => return Err(error),
        };
        let pack = self.index.add_pack(name);
        pack.set_replaces(footer.replaces.clone());
        self.index.insert_all(&pack, &footer.entries);
        pack.set_size(size, false);
        Ok(())
    }

    /// Reads what another process appended to a pack since the last look. An incomplete entry is not there yet.
    async fn read_growing(&self, name: PackName, size: u64) -> Result<(), StoreError> {
        let pack: Arc<PackInfo> = self.index.add_pack(name);
        let from = pack.size();
        if size <= from {
            return Ok(());
        }
        let len = u32::try_from(size - from).unwrap_or(u32::MAX);
        let bytes = match self.place.read_pack(&self.names.pack(name), from, len).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == StoreErrorKind::Absent => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut found = entries_of(bytes).into_footer();
        for entry in &mut found.entries {
            entry.offset += from;
        }
        let end = found.entries.last().map_or(from, |last| last.offset + u64::from(last.len));
        self.index.insert_all(&pack, &found.entries);
        // It may have been completed meanwhile.
        if pack.is_open() {
            pack.set_size(end, true);
        }
        Ok(())
    }
}

type ReadFooter = (PackName, u64, Result<Footer, StoreError>);

/// Reads the footer of a complete pack of `size` bytes. Rebuilds one that can't be read from the entries.
pub(in crate::store) async fn read_footer(place: &dyn Place, name: &str, size: u64) -> Result<Footer, StoreError> {
    let first = size.saturating_sub(TAIL);
    let tail = place.read_pack(name, first, u32::try_from(size - first).unwrap_or(u32::MAX)).await?;
    let trailer = tail.len().checked_sub(TRAILER).and_then(|at| Trailer::decode(&tail[at..], size).ok());
    if let Some(trailer) = trailer.filter(|trailer| trailer.len <= MAX_FOOTER) {
        let footer = if trailer.offset >= first {
            let start = usize::try_from(trailer.offset - first).unwrap_or(usize::MAX);
            tail.slice(start.min(tail.len())..tail.len() - TRAILER)
        } else {
            place.read_pack(name, trailer.offset, u32::try_from(trailer.len).unwrap_or(u32::MAX)).await?
        };
        if let Ok(footer) = Footer::decode(&footer) {
            return Ok(footer);
        }
    }
    let whole: Bytes = place.get(name, MAX_PACK).await?;
    let footer = entries_of(whole).into_footer();
    if footer.entries.is_empty() {
        return Err(StoreError::corrupt(format!("{name}: neither its footer nor its first entry holds")));
    }
    Ok(footer)
}
