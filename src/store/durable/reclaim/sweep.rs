//! `larder sweep`: all that is reclaimed in the background, at once.

use std::sync::Arc;
use std::time::Duration;

use super::super::{Config, Durable, Inner, open_place};
use super::bodies::Bodies;
use super::choose::Situation;
use super::{Done, Upkeep};
use crate::base::{Clock, Metrics};
use crate::store::error::StoreError;
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
    /// Number of packs that there were.
    packs: u64,
    done: Done,
    bodies: Bodies,
    /// Number of leftovers of interrupted writes; or the reason why they can't be looked for.
    unfinished: Result<u64, String>,
}

impl Swept {
    /// Returns lines for people.
    pub fn in_words(&self, is_dry: bool) -> Vec<String> {
        let Self { packs, done, bodies, unfinished } = self;
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
        vec![
            format!("packs: {packs}; {deleted} of no use {word}, {copied}, {completed} completed"),
            format!("responses: {purged} purged"),
            format!("separate bodies: {}; {} that nothing leads to {word}", bodies.all, bodies.orphans),
            unfinished,
        ]
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
        inner.journal.load().await?;
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
        let (mut upkeep, packs) = (Upkeep::default(), self.index.all_packs().len() as u64);
        let done = if sweep.is_dry { self.foresee(&mut upkeep).await? } else { self.pass_all(&mut upkeep).await? };
        let bodies = self.remove_orphans(sweep.min_age, sweep.is_dry).await?;
        let unfinished = self.place.remove_unfinished(self.names.root(), self.before(sweep.min_age), sweep.is_dry);
        let unfinished = unfinished.await.map_err(|error| error.to_string());
        Ok(Swept { packs, done, bodies, unfinished })
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

    /// Returns what the next pass would do.
    async fn foresee(self: &Arc<Self>, upkeep: &mut Upkeep) -> Result<Done, StoreError> {
        let purged = self.recount(true).await?;
        let due = self.due(upkeep).len();
        let (dead, copied) = self.with_situation(upkeep, |situation: &Situation<'_>| {
            let dead = situation.dead();
            let copied = situation.merge().len() + situation.rewrite().len();
            (dead.at_once.len() + dead.with_tombstones.len(), copied)
        });
        Ok(Done { deleted: (due + dead) as u64, copied: copied as u64, purged, ..Done::default() })
    }
}
