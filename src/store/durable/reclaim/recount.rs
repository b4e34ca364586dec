//! Finds what purges of tags and prefixes, or of everything, have made useless. A purge is a position, and searches for
//! nothing: the index counts what it covers as live until the footers are compared with it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::super::Inner;
use super::super::write::Work;
use super::{HOUR, Upkeep};
use crate::base::Stopwatch;
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::index::PackInfo;
use crate::store::journal::read_footer;
use crate::store::pack::{EntryKind, FooterEntry};

/// Time between two looks in a directory.
const PAUSE_LOCAL: Duration = Duration::from_secs(600);

impl Inner {
    /// Compares all footers with the purges, if there are new ones and the last look is long ago. Returns how many entries
    /// are of no use.
    pub(super) async fn recount_if_due(self: &Arc<Self>, upkeep: &mut Upkeep) -> Result<u64, StoreError> {
        let (position, pause) = (self.purges.last_compared(), if self.place.is_local() { PAUSE_LOCAL } else { HOUR });
        let has_bodies = self.index.all_packs().iter().any(|pack| !pack.references().bodies.is_empty());
        let is_due = match upkeep.recounted {
            None => upkeep.started.elapsed() >= pause && (position > 0 || has_bodies),
            Some((since, last)) => since.elapsed() >= pause && (position > last || has_bodies),
        };
        if !is_due {
            return Ok(0);
        }
        self.complete_what_purges_may_cover(upkeep.recounted.map_or(0, |(_, last)| last), position).await;
        let found = self.recount(position > upkeep.recounted.map_or(0, |(_, last)| last)).await?;
        upkeep.recounted = Some((Stopwatch::start(), position));
        Ok(found)
    }

    /// Completes the pack that this process appends to, if there were purges between two positions: what they cover of it is
    /// only reclaimed then.
    async fn complete_what_purges_may_cover(&self, from: u64, to: u64) {
        let own = self.purges.node();
        if to > from && self.index.all_packs().iter().any(|pack| pack.is_open() && pack.name.node == own) {
            let (sender, is_complete) = oneshot::channel();
            if self.writer.send(Work::Seal(sender)).is_ok() {
                let _ = is_complete.await;
            }
        }
    }

    /// Compares the footers of all packs with the purges, or only of those that name separate bodies. Takes entries of no
    /// use out of the index, and counts the bodies that those lead to as dead. Returns the number of these entries.
    pub(super) async fn recount(self: &Arc<Self>, all: bool) -> Result<u64, StoreError> {
        let mut found = 0;
        for pack in self.index.all_packs() {
            if pack.is_open() || (!all && pack.references().bodies.is_empty()) {
                continue;
            }
            let footer = match read_footer(&*self.place, &self.names.pack(pack.name), pack.size()).await {
                Ok(footer) => footer,
                Err(error) if matches!(error.kind(), StoreErrorKind::Absent | StoreErrorKind::Corrupt) => continue,
                Err(error) => return Err(error),
            };
            found += self.recount_pack(&pack, &footer.entries);
        }
        Ok(found)
    }

    fn recount_pack(&self, pack: &PackInfo, entries: &[FooterEntry]) -> u64 {
        let (now, mut found, mut led_to) = (self.purges.time(), 0, Vec::new());
        for entry in entries.iter().filter(|entry| entry.kind != EntryKind::Tombstone) {
            let fingerprint = self.index.fingerprint(&entry.key, entry.variant);
            let place = self.index.slot(fingerprint);
            let Some(place) = place.filter(|place| place.pack == pack.id && place.offset == entry.offset) else {
                continue;
            };
            if self.is_useful(entry, now) {
                led_to.extend(entry.body.map(|(id, _)| id));
            } else if entry.of_use_until > now {
                self.index.remove(fingerprint, place);
                found += 1;
            }
        }
        let bodies = pack.references().bodies;
        let dead = bodies.iter().filter(|(id, _)| !led_to.contains(id) && self.index.names_body_once(*id));
        pack.set_dead_bodies(dead.map(|(_, len)| len).sum());
        found
    }
}
