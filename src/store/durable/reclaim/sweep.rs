//! `larder sweep`: all that is reclaimed in the background, at once.

use std::sync::Arc;
use std::time::Duration;

use super::super::{Config, Durable, Inner, open_place};
use super::bodies::Bodies;
use super::choose::replaced;
use super::{Done, GRACE, Upkeep};
use crate::base::{Clock, Metrics, readable_size};
use crate::store::error::StoreError;
use crate::store::index::PackTotals;
use crate::store::memory::{self, Memory};
use crate::store::purge::Purges;

/// The options of a sweep.
#[derive(Clone, Copy, Debug)]
pub struct Sweep {
    /// A younger separate body is kept: its head may be about to be written.
    pub min_age: Duration,
    /// True if nothing is removed or written.
    pub is_dry: bool,
}

/// What a sweep found, and did unless it was dry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swept {
    /// Packs and separate bodies before the sweep, and after it.
    before: PackTotals,
    after: PackTotals,
    /// Number and bytes of the packs that others have replaced, and that stay for a while.
    replaced: (u64, u64),
    done: Done,
    bodies: Bodies,
    /// Number of leftovers of interrupted writes; or the reason why they can't be looked for.
    unfinished: Result<u64, String>,
}

impl Swept {
    /// Returns lines for people.
    pub fn in_words(&self, is_dry: bool) -> Vec<String> {
        let Self { before, after, replaced: (replaced, replaced_bytes), done, bodies, unfinished } = self;
        let Done { completed, deleted, copied, written, purged } = done;
        let word = if is_dry { "to be removed" } else { "removed" };
        let copied = if is_dry {
            format!("{copied} to be merged or rewritten")
        } else {
            format!("{copied} merged or rewritten as {written}")
        };
        let unfinished = match unfinished {
            Ok(unfinished) => format!("unfinished writes: {unfinished} {word}"),
            Err(why) => format!("unfinished writes: left to the bucket's lifecycle rules: {why}"),
        };
        let mut lines = vec![
            format!("packs: {}; {deleted} of no use {word}, {copied}, {completed} completed", before.count),
            format!("responses: {purged} are purged; their bytes go with their packs"),
            format!("separate bodies: {}; {} unused, {word}", bodies.all, bodies.orphans),
            unfinished,
        ];
        if *replaced > 0 {
            let bytes = readable_size(*replaced_bytes);
            lines.push(format!(
                "{replaced} packs ({bytes}) are replaced, and stay for ten minutes, for other Larders; then a running Larder or another sweep removes them"
            ));
        }
        let (bytes, dead) = (readable_size(after.bytes), readable_size(after.dead));
        lines.push(if is_dry {
            format!("the packs have {bytes}, of which {dead} are of no use")
        } else {
            let was = readable_size(before.bytes);
            format!("the packs had {was}, and have {bytes}, of which {dead} are of no use")
        });
        lines
    }
}

impl Durable {
    /// The tier for a command: what is there is read, and nothing goes on in the background. `None` if it is off.
    async fn for_command(config: &Config, key_prefix: &str, clock: &Clock) -> Result<Option<Self>, StoreError> {
        let metrics = Metrics::new(1);
        let Some((place, names)) = open_place(config, key_prefix, &metrics, clock).await else { return Ok(None) };
        place.find_cache(names.root()).await?;
        let purges = Arc::new(Purges::new(clock.clone(), fastrand::u64(1..)));
        let memory = Arc::new(Memory::new(&memory::Config { capacity: 0, ..memory::Config::default() }));
        let this = Self::over(place, config, names, purges, memory, metrics);
        let inner = &this.inner;
        inner.journal.load_for_certain().await?;
        // In a bucket a snapshot may not have all.
        let listed = inner.place.list_all(&inner.names.journal(), "").await?;
        inner.journal.read_missed(&listed).await?;
        Ok(Some(this))
    }

    /// Reclaims all that can be reclaimed. `None` if the tier is off.
    pub async fn sweep(
        config: &Config,
        key_prefix: &str,
        sweep: Sweep,
        clock: &Clock,
    ) -> Result<Option<Swept>, StoreError> {
        let Some(this) = Self::for_command(config, key_prefix, clock).await? else { return Ok(None) };
        this.inner.sweep(sweep).await.map(Some)
    }

    pub(super) async fn opened_for_command(
        config: &Config,
        key_prefix: &str,
        clock: &Clock,
    ) -> Result<Option<Arc<Inner>>, StoreError> {
        Ok(Self::for_command(config, key_prefix, clock).await?.map(|this| this.inner))
    }
}

impl Inner {
    /// Makes passes until there is nothing left to do.
    async fn sweep(self: &Arc<Self>, sweep: Sweep) -> Result<Swept, StoreError> {
        let grace = sweep.min_age.min(GRACE);
        let (mut upkeep, before) = (Upkeep { grace: Some(grace), ..Upkeep::new() }, self.index.pack_totals());
        let (done, orphans) =
            if sweep.is_dry { self.foresee(&mut upkeep).await? } else { (self.pass_all(&mut upkeep).await?, 0) };
        let mut bodies = self.remove_orphans(sweep.min_age, sweep.is_dry).await?;
        bodies.orphans += orphans;
        let unfinished = self.place.remove_unfinished(self.names.root(), self.before(sweep.min_age), sweep.is_dry);
        let unfinished = unfinished.await.map_err(|error| error.to_string());
        let all = self.index.all_packs();
        let (replaced, _) = replaced(&all, 0);
        let left = all.iter().filter(|pack| replaced.contains(&pack.name));
        let replaced = left.fold((0, 0), |(count, bytes), pack| (count + 1, bytes + pack.size()));
        Ok(Swept { before, after: self.index.pack_totals(), replaced, done, bodies, unfinished })
    }

    async fn pass_all(self: &Arc<Self>, upkeep: &mut Upkeep) -> Result<Done, StoreError> {
        let mut all = Done { purged: self.recount(true).await?, ..Done::default() };
        loop {
            let done = self.reclaim_once(upkeep).await?;
            all.completed += done.completed;
            all.deleted += done.deleted;
            all.copied += done.copied;
            all.written += done.written;
            if done.copied + done.deleted == 0 {
                return Ok(all);
            }
        }
    }

    /// Returns what the next pass would do, and how many separate bodies would go with packs.
    async fn foresee(self: &Arc<Self>, upkeep: &mut Upkeep) -> Result<(Done, u64), StoreError> {
        let purged = self.recount(true).await?;
        let due = self.due(upkeep);
        let situation = self.situation(upkeep);
        let dead = situation.dead();
        let copied = situation.merge().len() + situation.rewrite(3).len() + dead.with_tombstones.len();
        let deleted = [due, dead.at_once].concat();
        let bodies = deleted.iter().chain(&dead.with_tombstones).flat_map(|pack| pack.references().bodies);
        let orphans = bodies.filter(|(id, _)| self.index.names_body_once(*id)).count() as u64;
        Ok((Done { deleted: deleted.len() as u64, copied: copied as u64, purged, ..Done::default() }, orphans))
    }
}
