//! Chooses what to delete, merge and rewrite. Pure: it asks no place.
//!
//! Merging goes in two tiers, so that each byte is copied twice at most: the smallest packs to packs of just under a
//! quarter of the full size, and those to full ones.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{HOUR, elsewhere, ticks};
use crate::entry::JournalTime;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::index::PackInfo;
use crate::store::names::PackName;

/// The most packs that are merged at once.
pub(super) const MOST: usize = 64;

/// The number of the smallest packs that are worth a merge.
const ENOUGH: usize = 32;

/// What is known when choosing.
pub(super) struct Situation {
    /// The packs that are complete, in the order of their names.
    pub packs: Vec<Arc<PackInfo>>,
    /// All packs.
    pub all: Vec<Arc<PackInfo>>,
    /// Bytes of all separate bodies that packs name.
    pub bodies: u64,
    /// True if packs are dropped, and separate bodies with them: those count as in the packs then.
    pub is_bounded: bool,
    /// The length at which a pack is complete.
    pub pack_size: u64,
    /// This process.
    pub node: u64,
    /// For each process the last time in a name that it gave.
    pub heard: HashMap<u64, JournalTime>,
    /// The time of day.
    pub now: Timestamp,
    /// The time by the clock that the processes share.
    pub journal_now: JournalTime,
}

/// Returns the packs that others have replaced, and of those the ones whose replacement is named before `until`.
pub(super) fn replaced(all: &[Arc<PackInfo>], until: JournalTime) -> (HashSet<PackName>, HashSet<PackName>) {
    let (mut replaced, mut due) = (HashSet::new(), HashSet::new());
    for pack in all.iter().filter(|pack| !pack.is_open() && pack.is_replacing()) {
        let packs = pack.references().packs;
        if pack.name.time < until {
            due.extend(packs.iter().copied());
        }
        replaced.extend(packs);
    }
    (replaced, due)
}

/// The packs of which nothing is of use.
#[derive(Debug, Default)]
pub(super) struct Dead {
    /// Those that may go unread.
    pub at_once: Vec<Arc<PackInfo>>,
    /// Those that leave tombstones.
    pub with_tombstones: Vec<Arc<PackInfo>>,
}

impl Situation {
    /// Returns the packs of which nothing is of use.
    pub(super) fn dead(&self) -> Dead {
        let mut dead = Dead::default();
        for pack in self.packs.iter().filter(|pack| pack.live() == 0 || pack.of_use_until() <= self.now) {
            let others: Vec<_> = self.all.iter().filter(|other| other.name != pack.name).cloned().collect();
            if !pack.holds_down() || elsewhere(pack, &others) > pack.greatest_order() && self.is_settled(pack) {
                dead.at_once.push(Arc::clone(pack));
            } else if pack.responses() > 0 || pack.dead() > pack.size() / 2 {
                dead.with_tombstones.push(Arc::clone(pack));
            }
        }
        dead
    }

    /// Returns whether older entries than a pack's can't turn up any more.
    fn is_settled(&self, pack: &PackInfo) -> bool {
        pack.name.time.saturating_add(2 * ticks(HOUR)) < self.journal_now
    }

    /// Returns small packs that are worth a merge; empty if there are too few.
    pub(super) fn merge(&self) -> Vec<Arc<PackInfo>> {
        let silent = self.journal_now.saturating_sub(ticks(HOUR));
        let is_ours = |pack: &PackInfo| {
            pack.name.node == self.node || self.heard.get(&pack.name.node).is_none_or(|last| *last < silent)
        };
        let (quarter, least) = (self.pack_size / 4, self.pack_size / 32);
        let small: Vec<_> = self.packs.iter().filter(|pack| self.weight(pack) < quarter && is_ours(pack)).collect();
        let (smallest, others): (Vec<_>, Vec<_>) = small.into_iter().partition(|pack| self.weight(pack) < least);
        for (packs, enough) in [(others, MOST), (smallest, ENOUGH)] {
            let sum: u64 = packs.iter().map(|pack| self.live(pack)).sum();
            let chosen = if sum >= self.pack_size / 4 * 3 {
                self.first(&packs, self.pack_size)
            } else if packs.len() >= enough {
                self.first(&packs, quarter - quarter / 16)
            } else {
                Vec::new()
            };
            if chosen.len() > 1 {
                return chosen;
            }
        }
        Vec::new()
    }

    /// Returns the packs with the most dead bytes, once one part in `parts` of all bytes is dead; otherwise none.
    pub(super) fn rewrite(&self, parts: u64) -> Vec<Arc<PackInfo>> {
        let total: u64 = self.packs.iter().map(|pack| pack.size()).sum();
        let mut dead: u64 = self.packs.iter().map(|pack| self.dead_of(pack)).sum();
        let total = total.saturating_add(self.bodies);
        if dead.saturating_mul(parts) <= total || dead < self.pack_size / 16 {
            return Vec::new();
        }
        let mut packs: Vec<_> = self.packs.iter().filter(|pack| self.dead_of(pack) > self.weight(pack) / 8).collect();
        // By the part of it that is dead, in thousandths.
        packs.sort_by_key(|pack| {
            std::cmp::Reverse(self.dead_of(pack).saturating_mul(1000) / (pack.size() + pack.named()).max(1))
        });
        let (mut chosen, mut live) = (Vec::new(), 0);
        for pack in packs.into_iter().take(MOST) {
            if !chosen.is_empty() && (live + self.live(pack) > self.pack_size || dead.saturating_mul(4) <= total) {
                break;
            }
            live += self.live(pack);
            dead = dead.saturating_sub(self.dead_of(pack));
            chosen.push(Arc::clone(pack));
        }
        chosen.sort_by_key(|pack| pack.name);
        chosen
    }

    /// Returns the bytes of a pack that a copy would leave out: of no use, or tombstones below which nothing can be left.
    fn dead_of(&self, pack: &Arc<PackInfo>) -> u64 {
        let tombstones = pack.tombstone_bytes();
        let is_spent = tombstones > pack.size() / 8 && self.is_settled(pack) && {
            let others: Vec<_> = self.all.iter().filter(|other| other.name != pack.name).cloned().collect();
            elsewhere(pack, &others) > pack.greatest_order()
        };
        pack.dead() + if is_spent { tombstones } else { 0 }
    }

    /// Returns the length of a pack, with the separate bodies that go with it.
    fn weight(&self, pack: &PackInfo) -> u64 {
        pack.size() + if self.is_bounded { pack.named() } else { 0 }
    }

    /// Returns about how many bytes a copy of a pack takes, with separate bodies.
    fn live(&self, pack: &PackInfo) -> u64 {
        pack.copy_len() + if self.is_bounded { pack.named() } else { 0 }
    }

    /// Returns the first packs whose responses fit into `most` bytes.
    fn first(&self, packs: &[&Arc<PackInfo>], most: u64) -> Vec<Arc<PackInfo>> {
        let mut sum = 0;
        let fitting = packs.iter().take(MOST).take_while(|pack| {
            sum += self.live(pack);
            sum <= most
        });
        fitting.map(|pack| Arc::clone(pack)).collect()
    }
}
