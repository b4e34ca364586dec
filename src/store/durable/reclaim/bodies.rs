//! Removes separate bodies that no footer names, and what interrupted writes left.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::super::Inner;
use super::{HOUR, Upkeep};
use crate::base::Stopwatch;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::error::StoreError;

/// What a look at the bodies found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bodies {
    /// All of them.
    pub all: u64,
    /// Those that no footer names, and that are old enough.
    pub orphans: u64,
}

impl Inner {
    /// Looks once an hour for bodies that nothing leads to: in a directory among all, in a bucket among those that this
    /// process knows of. `larder sweep` alone lists a bucket's bodies.
    pub(super) async fn tend_bodies(self: &Arc<Self>, upkeep: &mut Upkeep) -> Result<(), StoreError> {
        if upkeep.bodies.is_some_and(|since| since.elapsed() < HOUR) {
            return Ok(());
        }
        upkeep.bodies = Some(Stopwatch::start());
        if self.place.is_local() {
            self.remove_orphans(HOUR, false).await?;
            self.place.remove_unfinished(self.names.root(), self.before(HOUR), false).await?;
            return Ok(());
        }
        self.room.forget_bodies(|id, _| self.index.names_body(id));
        for id in self.room.unnamed_for(HOUR) {
            if !self.queue.leads_to(id) {
                self.delete_body(id).await;
            }
        }
        Ok(())
    }

    /// Returns the time so long ago, by the clock of the place.
    pub(super) fn before(&self, ago: Duration) -> Timestamp {
        let ago = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
        self.purges.time().plus_millis(self.place.clock_offset()).plus_millis(ago.saturating_neg())
    }

    /// Removes the separate bodies that no footer names and that are `min_age` old, unless `is_dry`.
    pub(super) async fn remove_orphans(
        self: &Arc<Self>,
        min_age: Duration,
        is_dry: bool,
    ) -> Result<Bodies, StoreError> {
        let (mut found, mut seen) = (Bodies::default(), HashSet::new());
        let before = self.before(min_age);
        for first in 0..=u8::MAX {
            for listed in self.place.list_all(&self.names.bodies(first), "").await? {
                let Some(id) = self.names.parse_body(&listed.name) else { continue };
                found.all += 1;
                if self.index.names_body(id) {
                    continue;
                }
                if listed.modified >= before || self.queue.leads_to(id) {
                    seen.insert(id);
                    self.room.note_body(id, listed.size, false);
                    continue;
                }
                found.orphans += 1;
                if !is_dry {
                    self.place.delete(&listed.name).await?;
                }
            }
        }
        self.room.forget_bodies(|id, is_growing| !is_growing && !seen.contains(&id));
        Ok(found)
    }
}
