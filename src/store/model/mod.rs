//! Plays thousands of turns of events on processes that share a bucket or a directory, beside a model of what they may
//! answer.
//!
//! * A body that is served is one that was stored for that page and variant, to the byte.
//! * What was purged, deleted or replaced is not served by a process that knows of it for certain.
//! * What was written is found by every process that has read it, also after a crash, unless it was purged, deleted or
//!   replaced since.
//!
//! `node` is a process, `events` is the model. A failure names its seed; `LARDER_TEST_SEEDS=from..to` plays others.

mod events;
mod node;

use std::sync::Arc;
use std::time::Duration;

use self::events::{Doing, Event, Model};
use self::node::{Node, Page, pages};
use super::names::{JournalObject, ObjectNames};
use super::purge::{Purge, PurgeTarget};
use super::simulated::{Faults, SimulatedBucket};
use super::{Durability, KnownRecord};
use crate::base::Clock;
use crate::entry::VersionVector;
use crate::rfc9111::timestamp::Timestamp;

const START: Timestamp = Timestamp::from_secs(1_700_000_000);

/// Variants of a page that varies.
const VARIANTS: usize = 3;

/// A fetch that began.
struct Fetch {
    page: usize,
    variant: usize,
    what: Option<KnownRecord>,
    node: usize,
    life: usize,
    /// The step, and the purges and removals known for certain, at its beginning.
    at: usize,
    known: (Vec<usize>, Vec<usize>),
    /// Position and version vector at its beginning.
    began: (u64, Arc<VersionVector>),
}

/// One turn of events.
struct World {
    random: fastrand::Rng,
    time: Clock,
    place: Arc<SimulatedBucket>,
    is_local: bool,
    pages: Vec<Page>,
    nodes: Vec<Node>,
    skews: Vec<i64>,
    under_way: Vec<Fetch>,
    model: Model,
    next_node: u64,
    /// True if packs are damaged: then what was written may be lost.
    is_damaging: bool,
    has_faults: bool,
}

impl World {
    async fn new(seed: u64, is_damaging: bool) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let time = Clock::manual(START);
        let is_local = random.bool();
        let seed = random.u64(..);
        let place = if is_local {
            SimulatedBucket::directory(time.clone(), seed)
        } else {
            SimulatedBucket::new(time.clone(), seed)
        };
        let skews = match random.u32(0..5) {
            0 => vec![0],
            1 => vec![0, 0],
            2 => vec![5000, -5000],
            3 => vec![-100_000, 100_000],
            _ => vec![0, 5000, -5000],
        };
        let most = skews.iter().map(|skew: &i64| skew.abs()).max().unwrap_or(0);
        let mut world = Self {
            random,
            time,
            place: Arc::new(place),
            is_local,
            pages: pages(),
            nodes: Vec::new(),
            skews,
            under_way: Vec::new(),
            model: Model::new(2 * most, is_damaging),
            next_node: 1,
            is_damaging,
            has_faults: false,
        };
        for node in 0..world.skews.len() {
            let started = world.start(node, 0).await;
            world.nodes.push(started);
        }
        world
    }

    async fn start(&mut self, node: usize, life: usize) -> Node {
        let clock = Clock::manual(self.time.now().plus_millis(self.skews[node]));
        self.next_node += 1;
        let mut started = Node::start(&self.place, clock, self.next_node * 0x1_0001, life);
        started.tail(self.model.step).await;
        started
    }

    async fn pass(&mut self, time: Duration) {
        self.time.advance(time);
        for node in &self.nodes {
            node.clock.advance(time);
        }
        tokio::time::advance(time).await;
        // What waits behind gets its turn.
        for _ in 0..40 {
            tokio::task::yield_now().await;
        }
        self.model.note_written(&self.nodes, self.time.now());
    }

    async fn act(&mut self) {
        self.model.step += 1;
        let node = self.random.usize(0..self.nodes.len());
        match self.random.u32(0..100) {
            0..20 => self.begin_fetch(node),
            20..45 if !self.under_way.is_empty() => self.end_fetch().await,
            45..52 => self.purge(node),
            52..57 => self.invalidate(node).await,
            57..71 => self.tail(node).await,
            71..75 => self.forget_memory(node),
            75..78 => _ = self.nodes[node].journal().write().await,
            78..82 => self.restart(node).await,
            82..84 => self.nodes[node].compact().await,
            84..87 => self.change_faults(),
            87..88 => {
                let long = self.random.u64(60..5000);
                self.pass(Duration::from_secs(long)).await;
            }
            88..90 => self.calm_down().await,
            90..94 => self.reclaim(node).await,
            94..96 if self.is_damaging => self.damage(),
            // Packs that others have replaced go after ten minutes.
            96..98 => self.pass(Duration::from_secs(700)).await,
            _ => {}
        }
        let time = Duration::from_millis(1 + self.random.u64(0..1500));
        self.pass(time).await;
        let (node, page) = (self.random.usize(0..self.nodes.len()), self.random.usize(0..self.pages.len()));
        self.look(node, page).await;
    }

    fn change_faults(&mut self) {
        let faults = match self.random.u32(0..4) {
            0 => Faults { fail: 100, lost_answer: 50, late: 100, torn: 100, ..Faults::default() },
            1 => Faults { fail: 300, lost_answer: 100, late: 200, torn: 200, ..Faults::default() },
            _ => Faults::default(),
        };
        self.has_faults = faults.fail > 0;
        self.place.set_faults(faults);
    }

    async fn tail(&mut self, node: usize) {
        let step = self.model.step;
        self.nodes[node].tail(step).await;
    }

    fn begin_fetch(&mut self, node: usize) {
        let page = self.random.usize(0..self.pages.len());
        let variant = if self.pages[page].varies { self.random.usize(0..VARIANTS) } else { 0 };
        let at = &self.nodes[node];
        self.under_way.push(Fetch {
            page,
            variant,
            what: at.store.known(&self.pages[page].key),
            node,
            life: at.life,
            at: self.model.step,
            known: self.model.known(node, at),
            began: at.now(),
        });
    }

    /// Ends a fetch: its response is stored, in both tiers or in memory only.
    async fn end_fetch(&mut self) {
        let fetch = self.under_way.swap_remove(self.random.usize(0..self.under_way.len()));
        let node = &self.nodes[fetch.node];
        if node.life != fetch.life {
            return;
        }
        let page = &self.pages[fetch.page];
        let len = match self.random.u32(0..10) {
            0 => 20_000,
            1..4 => 3000,
            _ => 10,
        };
        let body = events::body(fetch.at, fetch.page, fetch.variant, self.random.usize(0..len));
        // What the durable tier has of it is in memory, as in service: the fetch looked there first.
        let before = node.look(page, fetch.variant).await;
        let stored = node.response(page, fetch.variant, body.clone(), fetch.began.clone());
        let is_durable = self.random.u32(0..4) > 0;
        let durability = if is_durable { Durability::Durable } else { Durability::MemoryOnly };
        if node.store.insert(&stored, durability, fetch.what.as_ref(), None) {
            let deletes = before.is_some_and(|before| self.model.is_durable(&before.body));
            let doing = Doing::Stored { body, is_durable, deletes };
            let mut event = self.event(fetch.node, doing, fetch.page, Some(fetch.variant));
            (event.began, event.known) = (fetch.at, fetch.known);
            self.model.events.push(event);
        }
    }

    fn event(&self, node: usize, doing: Doing, page: usize, variant: Option<usize>) -> Event {
        let at = &self.nodes[node];
        Event {
            doing,
            page,
            variant,
            node,
            life: at.life,
            began: self.model.step,
            at: self.model.step,
            time: self.time.now(),
            read_at: at.read_at,
            known: (Vec::new(), Vec::new()),
            written: None,
            is_late: false,
        }
    }

    fn purge(&mut self, node: usize) {
        let page = &self.pages[self.random.usize(0..self.pages.len())];
        let target = match self.random.u32(0..10) {
            0..4 => PurgeTarget::Url(page.key.hash()),
            4..6 => PurgeTarget::Prefix(["http://h/a/", "/b", "/a/b/"][self.random.usize(0..3)].into()),
            6..9 => PurgeTarget::Tag(["x", "y", "z"][self.random.usize(0..3)].into()),
            _ => PurgeTarget::All,
        };
        let purge = Purge { target, is_soft: self.random.u32(0..4) == 0 };
        let made = self.nodes[node].store.purge(purge.clone(), Some(&page.key));
        self.model.purged(purge, node, &self.nodes[node], made.position, self.time.now());
    }

    /// Does what an unsafe request does. In a directory its answer waits until the deletion is written.
    async fn invalidate(&mut self, node: usize) {
        let page = self.random.usize(0..self.pages.len());
        let at = &self.nodes[node];
        let awaited = at.store.invalidate(&self.pages[page].key);
        let mut event = self.event(node, Doing::Removed, page, None);
        if self.is_local && !self.has_faults && at.journal().is_loaded() {
            let store = &self.nodes[node].store;
            tokio::time::timeout(Duration::from_secs(60), store.deletions_written(awaited))
                .await
                .expect("it is bounded");
            // Nobody waits for a writer that rests after failures.
            let is_written = self.nodes[node].durable().queue_depth().1 == 0;
            event.written = is_written.then_some(self.model.step);
        }
        self.model.events.push(event);
        if self.random.u32(0..4) == 0 {
            self.kill(node).await;
        }
    }

    /// Has memory lose a page, as when others take its room.
    fn forget_memory(&mut self, node: usize) {
        let page = &self.pages[self.random.usize(0..self.pages.len())];
        self.nodes[node].store.memory().remove(page.key.hash(), || ());
    }

    async fn restart(&mut self, node: usize) {
        if self.random.bool() {
            self.nodes[node].durable().drain(Duration::from_secs(60)).await;
            self.model.note_written(&self.nodes, self.time.now());
        }
        self.kill(node).await;
    }

    async fn kill(&mut self, node: usize) {
        self.nodes[node].place.cut();
        let life = self.nodes[node].life + 1;
        let started = self.start(node, life).await;
        self.nodes[node] = started;
    }

    /// Has a node reclaim space, once it has read what there is.
    async fn reclaim(&self, node: usize) {
        let durable = self.nodes[node].durable();
        if durable.index().is_loaded() {
            let reclaiming = tokio::time::timeout(Duration::from_secs(600), durable.reclaim_once()).await;
            let outcome = reclaiming.expect("it is bounded");
            assert!(outcome.is_ok() || self.has_faults, "{outcome:?}");
        }
    }

    /// Cuts a pack, or changes a byte of it.
    fn damage(&mut self) {
        // A pack that grows may end early: that is no damage.
        let names: Vec<String> = self
            .place
            .names()
            .into_iter()
            .filter(|name| !matches!(ObjectNames::parse_journal(name), Some(JournalObject::OpenPack(_))))
            .collect();
        if names.is_empty() {
            return;
        }
        let name = &names[self.random.usize(0..names.len())];
        let (at, is_cut, bit) = (self.random.usize(..), self.random.bool(), self.random.u8(0..8));
        self.place.damage(name, |bytes| {
            let at = at % bytes.len().max(1);
            match bytes.get_mut(at) {
                Some(byte) if !is_cut => *byte ^= 1 << bit,
                Some(_) | None => bytes.truncate(at),
            }
        });
    }

    /// Checks what a node serves for a page: from memory, and from the durable tier alone.
    async fn look(&self, node: usize, page: usize) {
        let (at, variant) = (&self.nodes[node], self.random_variant(page));
        let cold = at.look_durable(&self.pages[page], variant).await;
        self.model.check(node, at, page, &self.pages, variant, cold.as_ref(), true);
        let warm = at.look(&self.pages[page], variant).await;
        self.model.check(node, at, page, &self.pages, variant, warm.as_ref(), false);
    }

    fn random_variant(&self, page: usize) -> usize {
        if self.pages[page].varies { self.model.step % VARIANTS } else { 0 }
    }

    /// Has one node read all there is, and checks that it finds what it must.
    async fn calm_down(&mut self) {
        self.place.set_faults(Faults::default());
        self.has_faults = false;
        let node = self.random.usize(0..self.nodes.len());
        // Writers that failed try again.
        self.pass(Duration::from_secs(20)).await;
        self.model.step += 1;
        assert!(self.nodes[node].tail(self.model.step).await, "nothing fails");
        self.check_found(node).await;
    }

    async fn check_found(&self, node: usize) {
        let at = &self.nodes[node];
        for page in 0..self.pages.len() {
            self.look(node, page).await;
            if self.is_damaging {
                continue;
            }
            let Some((variant, body)) = self.model.must_find(node, at, page, &self.pages) else { continue };
            let found = at.look_durable(&self.pages[page], variant).await;
            assert_eq!(
                found.map(|found| found.body),
                Some(body),
                "step {}: {} {variant} is lost to node {node}, which read at {}: {}",
                self.model.step,
                self.pages[page].url,
                at.read_at,
                self.model.history(page),
            );
        }
    }

    /// Lets everything be written and read. Checks that every process, and a new one, finds what it must.
    async fn settle(&mut self) {
        self.calm_down().await;
        for node in 0..self.nodes.len() {
            self.tail(node).await;
            let mut left = self.nodes[node].durable().drain(Duration::from_secs(600)).await.left();
            for _ in 0..20 {
                if left > 0 {
                    self.pass(Duration::from_secs(30)).await;
                    left = self.nodes[node].durable().drain(Duration::from_secs(600)).await.left();
                }
            }
            assert_eq!(left, 0, "node {node} writes everything");
        }
        self.model.note_written(&self.nodes, self.time.now());
        self.model.step += 1;
        for node in 0..self.nodes.len() {
            self.tail(node).await;
            self.check_found(node).await;
        }
        self.skews.push(0);
        let anew = self.start(self.skews.len() - 1, 0).await;
        self.nodes.push(anew);
        self.check_found(self.nodes.len() - 1).await;
    }
}

fn run(seeds: std::ops::Range<u64>, is_damaging: bool) {
    for seed in seeds {
        // Seeds the tier's own randomness as well.
        fastrand::seed(seed);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
        let outcome = std::panic::catch_unwind(|| {
            runtime.block_on(async {
                let mut world = World::new(seed, is_damaging).await;
                for _ in 0..80 {
                    world.act().await;
                }
                world.settle().await;
            });
        });
        assert!(outcome.is_ok(), "seed {seed}");
    }
}

/// Returns the seeds of `LARDER_TEST_SEEDS`, or so many.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let given = std::env::var("LARDER_TEST_SEEDS").ok();
    let given = given.as_deref().and_then(|text| text.split_once(".."));
    match given.map(|(from, to)| (from.parse().expect("a seed"), to.parse().expect("a seed"))) {
        Some((from, to)) => from..to,
        None => 0..count,
    }
}

#[test]
fn what_is_stored_is_found_and_what_is_gone_is_not_whatever_happens() {
    run(seeds(600), false);
}

#[test]
fn damaged_packs_never_bring_back_what_is_gone_nor_other_bytes() {
    run(seeds(300), true);
}
