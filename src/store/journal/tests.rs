//! Plays thousands of turns of events on processes that share a bucket: none serves what was purged, none loses what was
//! not.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::*;
use crate::base::Clock;
use crate::entry::{Body, StoredResponse, TICK_BITS, VersionVector, sample_head};
use crate::rfc9111::key::{CacheKey, KeyParts};
use crate::rfc9111::storage::StoragePolicy;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::names::{JournalObject, ObjectNames, PackName};
use crate::store::pack::Entry;
use crate::store::purge::{Purge, PurgeTarget};
use crate::store::simulated::{Faults, Simulated, SimulatedBucket};
use crate::store::{
    Durability, Durable, DurableLookup, FoundBody, KnownRecord, Lookup, Opening, Store, durable, memory,
};

mod events;

const START: Timestamp = Timestamp::from_secs(1_700_000_000);

/// A process: both tiers over the bucket, and a clock of its own.
struct Node {
    clock: Clock,
    place: Arc<Simulated>,
    store: Store,
    /// The step at which it last read the journal.
    read_at: usize,
}

impl Node {
    fn start(bucket: &Arc<SimulatedBucket>, clock: Clock, node: u64) -> Self {
        let purges = Arc::new(Purges::new(clock.clone(), node));
        let memory = Arc::new(Memory::new(&memory::Config::default()));
        let place = Arc::new(Simulated::to(bucket));
        let config = durable::Config {
            lookup_timeout: Duration::from_secs(60),
            min_lifetime: Duration::ZERO,
            writers: 2,
            breaker_failures: 0,
            pack_interval: Some(Duration::from_secs(1)),
            ..durable::Config::default()
        };
        let durable = Durable::over(
            Arc::clone(&place) as Arc<dyn Place>,
            &config,
            ObjectNames::new("", ""),
            Arc::clone(&purges),
            Arc::clone(&memory),
            Metrics::new(1),
        );
        let store = Store::new(memory, Some(durable), purges, clock.clone());
        Self { clock, place, store, read_at: 0 }
    }

    fn durable(&self) -> &Durable {
        self.store.durable().expect("a durable tier")
    }

    fn journal(&self) -> &Journal {
        self.durable().journal()
    }

    fn cut(&self) {
        self.place.cut();
    }

    /// Returns the position and version vector of a fetch that begins now.
    fn now(&self) -> (u64, Arc<VersionVector>) {
        (self.store.position(), self.store.purges().version_vector())
    }

    /// Returns what a client would get: the step at which it was fetched, and whether it is fresh.
    async fn look(&self, page: &Page, variant: usize) -> Option<(usize, bool)> {
        let request = page.request(variant);
        let fetched_at = |stored: &StoredResponse| {
            let text = String::from_utf8(stored.pieces().collect::<Vec<_>>().concat()).expect("text");
            (text.parse().expect("a step"), stored.head.freshness.is_fresh(self.clock.now()))
        };
        if let Lookup::Found(stored) = self.store.lookup(&page.key, &request) {
            return Some(fetched_at(&stored));
        }
        let (policy, position) = (Arc::new(StoragePolicy::default()), self.store.position());
        let known = self.store.known(&page.key).map(|known| known.record);
        match self.store.lookup_durable(&page.key, &request, policy, known, Opening::AtOnce).await {
            DurableLookup::Response(found) => {
                let FoundBody::Whole(body) = found.body else { panic!("bodies are small") };
                let stored = Arc::new(StoredResponse::new(found.head, body));
                let seen = fetched_at(&stored);
                self.store.promote(&stored, found.record);
                Some(seen)
            }
            DurableLookup::OtherVariants(record) => {
                self.store.adopt(record, position);
                None
            }
            DurableLookup::Nothing | DurableLookup::Unknown => None,
        }
    }

    /// Reads the journal, at a step in which nothing else happens. Returns whether that succeeded.
    async fn tail(&mut self, step: usize) -> bool {
        let read = if self.journal().is_loaded() { self.journal().read().await } else { self.journal().load().await };
        if read.is_ok() {
            self.read_at = step;
        }
        read.is_ok()
    }
}

/// A URL and its tags.
#[derive(Clone)]
struct Page {
    key: CacheKey,
    url: String,
    tags: Vec<String>,
    varies: bool,
}

impl Page {
    /// Returns a request for one of its variants.
    fn request(&self, variant: usize) -> HeaderMap {
        let mut request = HeaderMap::new();
        if self.varies {
            request.insert(HeaderName::from_static("x"), HeaderValue::from(variant));
        }
        request
    }
}

fn pages() -> Vec<Page> {
    let list = [("/a/1", "x"), ("/a/2", "x y"), ("/a/b/3", "y"), ("/b/4", ""), ("/b/vary", "x"), ("/vary", "z")];
    list.iter()
        .map(|(path, tags)| Page {
            key: CacheKey::new(KeyParts { prefix: "", scheme: "http", authority: "h", path, query: None }),
            url: format!("http://h{path}"),
            tags: tags.split_whitespace().map(str::to_owned).collect(),
            varies: path.ends_with("vary"),
        })
        .collect()
}

fn response(
    page: &Page,
    variant: usize,
    fetched_at: usize,
    node: &Node,
    (position, version_vector): (u64, Arc<VersionVector>),
) -> Arc<StoredResponse> {
    let fields = [("cache-control", "max-age=604800"), ("vary", if page.varies { "x" } else { "" })];
    let (request, known) = (page.request(variant), (position, version_vector));
    let head = sample_head(&page.key, &request, &fields, node.clock.now(), known, page.tags.clone());
    let body = Body::from(Bytes::from(fetched_at.to_string()));
    Arc::new(StoredResponse::new(head, body))
}

/// A purge that was made.
struct Made {
    purge: Purge,
    node: usize,
    /// Of which life of its node.
    life: usize,
    at: usize,
    /// Its position in that life, and the step by which it was in the journal.
    position: u64,
    recorded: Option<usize>,
    time: Timestamp,
    /// True if writing it took so long that it got a later time.
    is_late: bool,
    /// True if no other process has to know of it.
    is_local: bool,
}

impl Made {
    fn is_of(&self, page: &Page) -> bool {
        match &self.purge.target {
            PurgeTarget::Url(hash) => *hash == page.key.hash(),
            PurgeTarget::Prefix(prefix) => {
                page.url.starts_with(prefix) || page.url["http://h".len()..].starts_with(prefix)
            }
            PurgeTarget::Tag(tag) => page.tags.contains(tag),
            PurgeTarget::All => true,
        }
    }
}

/// A fetch that began.
struct Fetch {
    page: usize,
    variant: usize,
    what: Option<KnownRecord>,
    node: usize,
    life: usize,
    at: usize,
    /// Position and version vector at its beginning.
    began: (u64, Arc<VersionVector>),
    /// The purges that its node knew of for certain at its beginning.
    known: Vec<usize>,
}

/// One turn of events.
struct World {
    random: fastrand::Rng,
    time: Clock,
    bucket: Arc<SimulatedBucket>,
    pages: Vec<Page>,
    nodes: Vec<Node>,
    lives: Vec<usize>,
    skews: Vec<i64>,
    made: Vec<Made>,
    under_way: Vec<Fetch>,
    /// By the step of each fetch: the purges that its node knew of, and that node's life.
    fetched: HashMap<usize, (Vec<usize>, (usize, usize))>,
    /// The lives that ended without notice.
    killed: Vec<(usize, usize)>,
    step: usize,
    next_node: u64,
}

fn run(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        // Seeds the tier's own randomness as well.
        fastrand::seed(seed);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
        let outcome = std::panic::catch_unwind(|| {
            runtime.block_on(async {
                let mut world = World::new(seed).await;
                for _ in 0..60 {
                    world.act().await;
                }
                world.settle().await;
            });
        });
        assert!(outcome.is_ok(), "seed {seed}");
    }
}

/// `LARDER_TEST_SEEDS=from..to` runs other seeds.
#[test]
fn no_process_serves_what_was_purged_or_loses_what_was_not() {
    let given = std::env::var("LARDER_TEST_SEEDS").ok();
    let given = given.as_deref().and_then(|text| text.split_once(".."));
    match given.map(|(from, to)| (from.parse().expect("a seed"), to.parse().expect("a seed"))) {
        Some((from, to)) => run(from..to),
        None => run(0..2000),
    }
}

fn on_a_paused_clock<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(work)
}

impl World {
    /// A world of one process, without faults.
    async fn of_one() -> Self {
        let mut world = Self::new(0).await;
        world.nodes.truncate(1);
        world.lives.truncate(1);
        world.skews = vec![0];
        world
    }

    /// Purges a tag, and writes that into the journal.
    async fn purge_tag(&mut self, tag: String) {
        self.nodes[0].store.purge(Purge::hard(PurgeTarget::Tag(tag)), None);
        self.nodes[0].journal().write().await.expect("no faults");
    }
}

#[test]
fn the_journal_stays_short_also_across_restarts() {
    on_a_paused_clock(async {
        let mut world = World::of_one().await;
        for life in 0..3 {
            for hour in 0..8 {
                for n in 0..300 {
                    world.purge_tag(format!("{life} {hour} {n}")).await;
                    world.pass(Duration::from_secs(12)).await;
                }
                assert!(world.nodes[0].tail(0).await);
                world.nodes[0].journal().compact(false).await;
            }
            let names = world.bucket.names();
            let records = names.iter().filter(|name| name.contains("/j/")).count();
            assert!(records < 1000, "{records} in life {life}");
            assert!(names.iter().filter(|name| name.contains("/s/")).count() <= 2);
            world.nodes[0].cut();
            let started = world.start(0).await;
            world.nodes[0] = started;
            assert_eq!(world.nodes[0].store.purges().snapshot().stamps.len(), (life + 1) * 8 * 300);
        }
    });
}

#[test]
fn a_process_that_slept_while_the_journal_was_compacted_reads_the_snapshot() {
    on_a_paused_clock(async {
        let mut world = World::of_one().await;
        let clock = Clock::manual(world.time.now());
        let mut sleeper = Node::start(&world.bucket, clock.clone(), 99);
        assert!(sleeper.tail(0).await);
        let page = world.pages[0].clone();
        let stored = response(&page, 0, 1, &sleeper, sleeper.now());
        sleeper.store.insert(&stored, Durability::MemoryOnly, None, None);
        assert!(sleeper.look(&page, 0).await.is_some());
        world.purge_tag("x".into()).await;
        for hour in 0..6 {
            for n in 0..300 {
                world.purge_tag(format!("{hour} {n}")).await;
                // The sleeper's clocks: one goes on, the other stands still.
                world.time.advance(Duration::from_secs(12));
                world.nodes[0].clock.advance(Duration::from_secs(12));
                clock.advance(Duration::from_secs(12));
            }
            assert!(world.nodes[0].tail(0).await);
            world.nodes[0].journal().compact(false).await;
        }
        let first = world.bucket.names().into_iter().find(|name| name.ends_with(".purges")).expect("a record");
        let time = read::written(&first).expect("a record").time;
        assert!(
            time > world.nodes[0].store.purges().journal_now() - ((2 * world.nodes[0].journal().kept()) << TICK_BITS),
            "the old ones are gone"
        );
        assert!(sleeper.tail(0).await);
        assert_eq!(sleeper.look(&page, 0).await, None);
    });
}

#[test]
fn an_unreadable_record_covers_what_was_stored_before_it_and_no_more() {
    on_a_paused_clock(async {
        let mut world = World::of_one().await;
        let page = world.pages[0].clone();
        let before = response(&page, 0, 1, &world.nodes[0], world.nodes[0].now());
        world.pass(Duration::from_secs(10)).await;
        let now = world.nodes[0].store.purges().journal_now();
        world
            .bucket
            .plant(&ObjectNames::new("", "").purges(PackName { time: now, node: 7 }), Bytes::from_static(b"nonsense"));
        assert!(world.nodes[0].tail(0).await);
        world.pass(Duration::from_secs(10)).await;
        let after = response(&page, 0, 2, &world.nodes[0], world.nodes[0].now());
        for _ in 0..3 {
            let purges = world.nodes[0].store.purges();
            assert_eq!(purges.covers_read(&before.head), crate::entry::Covered::Wholly);
            assert_eq!(purges.covers_read(&after.head), crate::entry::Covered::No, "also after a restart");
            let started = world.start(0).await;
            world.nodes[0] = started;
        }
        // One readable snapshot is enough. Without any, everything counts as purged.
        for n in 1..3 {
            world.bucket.plant(&ObjectNames::new("", "").snapshot(now + n, 7), Bytes::from_static(b"nonsense"));
        }
        let started = world.start(0).await;
        assert_eq!(started.store.purges().covers_read(&after.head), crate::entry::Covered::Wholly);
    });
}
