//! Reclaims space, in the background and beside other processes: nobody waits for it.
//!
//! * A pack of which nothing is of use any more is deleted. Small packs are merged, and once a third of all bytes is dead
//!   the deadest packs are rewritten (`choose`, `copy`). What was purged counts as dead (`recount`).
//! * A pack that grows, and whose writer is gone, is completed (`takeover`).
//! * Within `durable.capacity` the oldest packs go first (`room`).
//! * A separate body goes once no footer names it (`bodies`).
//!
//! Two processes that do the same at once do no harm: they leave copies, of which those in the greater pack count.

mod bodies;
mod choose;
mod copy;
mod keys;
mod recount;
mod room;
mod sweep;
mod takeover;
#[cfg(test)]
mod tests;

pub(crate) use self::keys::KeptKey;
pub(super) use self::room::Room;
pub(crate) use self::sweep::Sweep;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use self::choose::{Situation, replaced};
use self::copy::Keep;
use super::Inner;
use crate::base::{DurableOp, Stopwatch};
use crate::entry::{JournalTime, TICK_BITS};
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::index::PackInfo;
use crate::store::names::{JournalObject, ObjectNames, PackName};
use crate::store::place::Listed;

/// Time between two passes over a directory, and over a bucket.
const PAUSE_LOCAL: Duration = Duration::from_secs(10);
const PAUSE_REMOTE: Duration = Duration::from_secs(60);

/// Time after which a process that gave no name to anything counts as gone.
const HOUR: Duration = Duration::from_secs(3600);

/// Time for which packs stay that others have replaced: processes read the footers of those meanwhile. In a directory that
/// others use, they do so every second.
const GRACE: Duration = Duration::from_secs(600);
const GRACE_LOCAL: Duration = Duration::from_secs(30);

/// Time for which nothing is rewritten after packs did not get much smaller by it.
const REST: Duration = Duration::from_secs(600);

/// The most merges and rewritings of a pass.
const MOST_COPIES: usize = 16;

/// The most bytes that are read or appended at once.
const CHUNK: u64 = 1 << 20;

/// What is remembered from pass to pass.
#[derive(Debug)]
pub(super) struct Upkeep {
    started: Stopwatch,
    /// Since the last full listing of packs.
    listed: Option<Stopwatch>,
    /// For each process the last time in a name that it gave.
    heard: HashMap<u64, JournalTime>,
    /// Since the last look for what was purged, and the purge position then.
    recounted: Option<(Stopwatch, u64)>,
    /// Time for which replaced packs stay, if it is not as usual.
    grace: Option<Duration>,
    /// Since the last look for bodies that nothing leads to.
    bodies: Option<Stopwatch>,
    /// Since packs were rewritten that did not get much smaller.
    rewritten_in_vain: Option<Stopwatch>,
}

/// The aim of copying packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// Fewer packs.
    Fewer,
    /// Less bytes.
    Smaller,
}

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    /// Packs completed whose writers were gone.
    pub completed: u64,
    /// Packs deleted: nothing of them was of use, or others had replaced them.
    pub deleted: u64,
    /// Packs copied, merged or alone.
    pub copied: u64,
    /// Packs written for those.
    pub written: u64,
    /// Entries found purged.
    pub purged: u64,
}

impl Inner {
    /// Reclaims space for good.
    pub(super) async fn reclaim(self: Arc<Self>) {
        self.journal.loaded().await;
        let pause = if self.place.is_local() { PAUSE_LOCAL } else { PAUSE_REMOTE };
        let mut upkeep = Upkeep::new();
        loop {
            self.wait_to_write().await;
            if self.index.is_loaded() {
                if let Err(error) = self.reclaim_once(&mut upkeep).await {
                    self.report_error(DurableOp::Delete, &error);
                }
                if let Err(error) = self.tend_bodies(&mut upkeep).await {
                    self.report_error(DurableOp::Delete, &error);
                }
            }
            // Processes that started together drift apart.
            tokio::time::sleep(pause.mul_f64(0.9 + fastrand::f64() / 5.0)).await;
        }
    }

    /// Makes one pass over the packs and the separate bodies.
    #[cfg(test)]
    pub(super) async fn reclaim_now(self: &Arc<Self>) -> Result<(), StoreError> {
        let mut upkeep = Upkeep::new();
        self.reclaim_once(&mut upkeep).await?;
        self.tend_bodies(&mut upkeep).await
    }

    /// Makes one pass over the packs.
    pub(super) async fn reclaim_once(self: &Arc<Self>, upkeep: &mut Upkeep) -> Result<Done, StoreError> {
        let mut done = Done::default();
        if self.place.is_local() || upkeep.listed.is_none_or(|listed| listed.elapsed() >= HOUR) {
            done.completed = self.compare_with_listing(upkeep).await?;
            upkeep.listed = Some(Stopwatch::start());
        }
        self.measure_disk().await?;
        done.purged = self.recount_if_due(upkeep).await?;
        match self.make_room(0).await {
            Err(error) if error.kind() != StoreErrorKind::Full => return Err(error),
            Ok(_) | Err(_) => {}
        }
        done.deleted += self.delete_replaced(upkeep).await?;
        self.delete_dead(upkeep, &mut done).await?;
        self.replace_chosen(upkeep, &mut done, Aim::Fewer, |situation, _| situation.merge()).await?;
        if upkeep.rewritten_in_vain.is_none_or(|since| since.elapsed() >= REST) {
            // Begins when a third is dead, and goes on until a quarter is.
            let choose = |situation: &Situation, is_first| situation.rewrite(if is_first { 3 } else { 4 });
            let (before, after) = self.replace_chosen(upkeep, &mut done, Aim::Smaller, choose).await?;
            upkeep.rewritten_in_vain = (after > before / 8 * 7).then(Stopwatch::start);
        }
        Ok(done)
    }

    /// Copies what counts of the packs that are chosen, again and again. Tells `choose` whether it is the first time. Ends
    /// past the capacity, since the sources may stay for a while, and where a copy saves little. Returns the bytes of the
    /// last sources and of their copy.
    async fn replace_chosen(
        self: &Arc<Self>,
        upkeep: &Upkeep,
        done: &mut Done,
        aim: Aim,
        choose: fn(&Situation, bool) -> Vec<Arc<PackInfo>>,
    ) -> Result<(u64, u64), StoreError> {
        let mut last = (0, 0);
        for turn in 0..MOST_COPIES {
            let _changing = self.room.changing.lock().await;
            let chosen = choose(&self.situation(upkeep), turn == 0);
            let live = chosen.iter().map(|pack| pack.copy_len()).sum();
            if chosen.is_empty() || !self.has_room_for_copy(live) {
                break;
            }
            last = self.replace(&chosen, done).await?;
            if aim == Aim::Smaller && last.1 > last.0 / 8 * 7 {
                break;
            }
        }
        Ok(last)
    }

    /// Copies what counts of packs. Those stay for a while, for processes that know no others. Returns their bytes, and those
    /// of the copy.
    async fn replace(self: &Arc<Self>, chosen: &[Arc<PackInfo>], done: &mut Done) -> Result<(u64, u64), StoreError> {
        let copied = self.copy(chosen, Keep::All).await?;
        let before = copied.emptied.iter().map(|pack| pack.size()).sum();
        let after = copied.pack.as_ref().map_or(0, |pack| pack.size());
        done.copied += copied.emptied.len() as u64;
        done.written += u64::from(copied.pack.is_some());
        if copied.pack.is_none() {
            // Nothing of them is of use, and nothing names them as replaced.
            for pack in copied.emptied {
                self.delete_useless(&pack, done).await?;
            }
        }
        Ok((before, after))
    }

    async fn delete_useless(&self, pack: &PackInfo, done: &mut Done) -> Result<(), StoreError> {
        self.delete_pack(pack, false).await?;
        self.metrics.packs_deleted.add_one();
        done.deleted += 1;
        Ok(())
    }

    /// Returns what is known now.
    fn situation(&self, upkeep: &Upkeep) -> Situation {
        let all = self.index.all_packs();
        let (replaced, _) = replaced(&all, 0);
        let journal_now = self.purges.journal_now();
        // Every process finds a damaged pack itself.
        let is_known =
            |pack: &PackInfo| !pack.is_damaged() || pack.name.time.saturating_add(2 * ticks(HOUR)) < journal_now;
        let is_choice = |pack: &&Arc<PackInfo>| !pack.is_open() && !replaced.contains(&pack.name) && is_known(pack);
        let packs = all.iter().filter(is_choice).cloned().collect();
        Situation {
            packs,
            heard: upkeep.heard_from(&all),
            all,
            bodies: self.index.named_bodies().1,
            is_bounded: self.is_bounded(),
            pack_size: self.pack_size(),
            node: self.purges.node(),
            now: self.purges.time(),
            journal_now,
        }
    }

    /// Deletes the packs that others have replaced for long enough.
    async fn delete_replaced(self: &Arc<Self>, upkeep: &Upkeep) -> Result<u64, StoreError> {
        let _changing = self.room.changing.lock().await;
        let due = self.due(upkeep);
        for pack in &due {
            self.delete_useless(pack, &mut Done::default()).await?;
        }
        Ok(due.len() as u64)
    }

    /// Returns the packs that others have replaced for long enough.
    fn due(&self, upkeep: &Upkeep) -> Vec<Arc<PackInfo>> {
        let grace = if let Some(grace) = upkeep.grace {
            grace
        } else if !self.place.is_local() {
            GRACE
        } else if self.is_alone(upkeep) {
            Duration::ZERO
        } else {
            GRACE_LOCAL
        };
        let all = self.index.all_packs();
        let (_, due) = replaced(&all, self.purges.journal_now().saturating_sub(ticks(grace)));
        all.into_iter().filter(|pack| due.contains(&pack.name) && !pack.is_open()).collect()
    }

    /// Returns whether no other process was heard of within an hour.
    fn is_alone(&self, upkeep: &Upkeep) -> bool {
        let (own, silent) = (self.purges.node(), self.purges.journal_now().saturating_sub(ticks(HOUR)));
        upkeep.heard_from(&self.index.all_packs()).iter().all(|(node, last)| *node == own || *last < silent)
    }

    /// Deletes the packs of which nothing is of use.
    async fn delete_dead(self: &Arc<Self>, upkeep: &Upkeep, done: &mut Done) -> Result<(), StoreError> {
        let _changing = self.room.changing.lock().await;
        let dead = self.situation(upkeep).dead();
        for pack in &dead.at_once {
            self.delete_useless(pack, done).await?;
        }
        let mut left = &dead.with_tombstones[..];
        while !left.is_empty() {
            let (packs, others) = left.split_at(self.fitting(left).len());
            if !self.has_room_for_copy(packs.iter().map(|pack| pack.copy_len()).sum()) {
                break;
            }
            self.replace(packs, done).await?;
            left = others;
        }
        Ok(())
    }

    /// Compares what the index has with what is there: reads packs that were missed, forgets those that are gone, and
    /// completes those whose writers are. Returns how many it completed.
    async fn compare_with_listing(self: &Arc<Self>, upkeep: &mut Upkeep) -> Result<u64, StoreError> {
        let known = self.index.all_packs();
        let listed = self.place.list_all(&self.names.journal(), "").await?;
        let snapshots: Vec<Listed> =
            if self.place.is_local() { self.place.list_all(&self.names.snapshots(), "").await? } else { Vec::new() };
        self.room.set_journal(room::others(&snapshots, &listed));
        let mut completed = 0;
        let mut there: HashSet<PackName> = HashSet::new();
        for object in &listed {
            match ObjectNames::parse_journal(&object.name) {
                Some(JournalObject::Pack(name)) => _ = there.insert(name),
                // Not taken, and left alone.
                Some(object) if !self.purges.believes(object.name().time) => _ = there.insert(object.name()),
                Some(JournalObject::OpenPack(name)) => {
                    there.insert(name);
                    match self.complete(name).await {
                        Ok(is_completed) => completed += u64::from(is_completed),
                        // One file that can't be read keeps nothing else from being reclaimed.
                        Err(error) if matches!(error.kind(), StoreErrorKind::Refused | StoreErrorKind::Corrupt) => {
                            self.report_error(DurableOp::Get, &error);
                        }
                        Err(error) => return Err(error),
                    }
                }
                Some(JournalObject::Purges(name)) => hear(&mut upkeep.heard, name),
                None => {}
            }
        }
        self.journal.read_missed(&listed).await?;
        for pack in known.into_iter().filter(|pack| !there.contains(&pack.name)) {
            self.forget_if_gone(&pack).await?;
        }
        Ok(completed)
    }

    /// Forgets a pack that a listing did not show, if it is not there: it may have got its complete name meanwhile.
    async fn forget_if_gone(&self, pack: &PackInfo) -> Result<(), StoreError> {
        let (complete, open) = (self.names.pack(pack.name), self.names.open_pack(pack.name));
        let is_local = self.place.is_local();
        for name in [&complete, &open, &complete].into_iter().take(if is_local { 3 } else { 1 }) {
            match self.place.read(name, pack.size()).await {
                Err(error) if error.kind() == StoreErrorKind::Absent => {}
                Err(error) if error.kind() == StoreErrorKind::Corrupt => return Ok(()),
                Err(error) => return Err(error),
                Ok(_) => return Ok(()),
            }
        }
        if is_local {
            // Closes the file, whose space is free only then.
            self.place.delete(&complete).await?;
        }
        for (id, len) in self.index.remove_pack(pack.name) {
            self.room.note_body(id, len, false);
        }
        Ok(())
    }
}

impl Upkeep {
    fn new() -> Self {
        let (started, heard) = (Stopwatch::start(), HashMap::new());
        Self { started, listed: None, heard, recounted: None, grace: None, bodies: None, rewritten_in_vain: None }
    }

    /// Returns for each process the last time in a name that it gave, those of packs among them.
    fn heard_from(&self, packs: &[Arc<PackInfo>]) -> HashMap<u64, JournalTime> {
        let mut heard = self.heard.clone();
        for pack in packs {
            hear(&mut heard, pack.name);
        }
        heard
    }
}

fn hear(heard: &mut HashMap<u64, JournalTime>, name: PackName) {
    let last = heard.entry(name.node).or_default();
    *last = name.time.max(*last);
}

/// Returns a duration in the units of journal times.
fn ticks(duration: Duration) -> JournalTime {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).saturating_mul(1 << TICK_BITS)
}

/// Returns the least order of an entry that one of `others` may have, and `pack` may hold down. A pack that was named long
/// after it has none: whoever wrote it knew of `pack`.
fn elsewhere(pack: &PackInfo, others: &[Arc<PackInfo>]) -> JournalTime {
    let until = pack.name.time.saturating_add(2 * ticks(HOUR));
    let older = others.iter().filter(|other| other.name.time < until);
    older.map(|other| other.least_order()).min().unwrap_or(JournalTime::MAX)
}

impl Inner {
    /// Returns whether something that was named at `time` is old enough that no footer is under way that names its bodies.
    fn is_old(&self, time: JournalTime) -> bool {
        time.saturating_add(ticks(HOUR)) < self.purges.journal_now()
    }

    /// Returns a name for a pack that is made now.
    fn new_name(&self) -> PackName {
        PackName { time: self.purges.take_order(), node: self.purges.node() }
    }
}
