//! Reclaims space in a simulated bucket: nothing that counts is lost, nothing comes back, and it costs few requests.

use bytes::Bytes;
use http::header::HeaderMap;

use super::*;
use crate::base::{Clock, Metrics};
use crate::entry::{Body, StoredResponse, sample_head};
use crate::rfc9111::key::{CacheKey, KeyParts};
use crate::rfc9111::timestamp::Timestamp;
use crate::store::durable::{Came, Config, Durable, DurableLookup, FoundBody, Opening};
use crate::store::memory::{self, Memory};
use crate::store::purge::{Purge, PurgeTarget, Purges};
use crate::store::simulated::{Simulated, SimulatedBucket};

const LONG: u64 = 30 * 24 * 3600;

/// A bucket, and the time that all processes go by.
struct World {
    clock: Clock,
    bucket: Arc<SimulatedBucket>,
    config: Config,
}

/// A process.
struct Node {
    clock: Clock,
    durable: Durable,
    upkeep: Upkeep,
}

impl World {
    fn new() -> Self {
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let bucket = Arc::new(SimulatedBucket::new(clock.clone(), 7));
        Self { clock, bucket, config: Config { retain: Duration::ZERO, ..Config::default() } }
    }

    /// Starts a process, which reads what is there.
    async fn start(&self, node: u64) -> Node {
        let durable = Durable::over(
            Arc::new(Simulated::to(&self.bucket)),
            &self.config,
            ObjectNames::new("", ""),
            Arc::new(Purges::new(self.clock.clone(), node)),
            Arc::new(Memory::new(&memory::Config::default())),
            Metrics::new(1),
        );
        durable.journal().load().await.expect("no faults");
        Node { clock: self.clock.clone(), durable, upkeep: Upkeep::new() }
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
        tokio::time::sleep(time).await;
    }

    fn packs(&self) -> usize {
        let is_pack = |name: &&String| matches!(ObjectNames::parse_journal(name), Some(JournalObject::Pack(_)));
        self.bucket.names().iter().filter(is_pack).count()
    }
}

fn key(path: &str) -> CacheKey {
    CacheKey::new(KeyParts { prefix: "", scheme: "http", authority: "h", path, query: None })
}

impl Node {
    fn inner(&self) -> &Arc<Inner> {
        &self.durable.inner
    }

    fn response(&self, path: &str, body: &[u8], max_age: u64, tag: &str) -> Arc<StoredResponse> {
        let (lifetime, purges) = (format!("max-age={max_age}"), &self.inner().purges);
        let (fields, known) = ([("cache-control", &*lifetime)], (purges.position(), purges.version_vector()));
        let tags = vec![tag.to_owned()];
        let head = sample_head(&key(path), &HeaderMap::new(), &fields, self.clock.now(), known, tags);
        Arc::new(StoredResponse::new(head, Body::from(Bytes::copy_from_slice(body))))
    }

    fn put(&self, path: &str, body: &[u8], max_age: u64) {
        assert!(self.durable.put(self.response(path, body, max_age, "tag"), None, Came::JustNow), "there is room");
    }

    /// Stores a response, and waits until it is in a pack of its own.
    async fn store(&self, world: &World, path: &str, body: &[u8], max_age: u64) {
        self.put(path, body, max_age);
        world.pass(Duration::from_secs(6)).await;
        self.inner().queue.empty().await;
    }

    async fn find(&self, path: &str) -> Option<Vec<u8>> {
        match self.durable.lookup(&key(path), &HeaderMap::new(), Arc::default(), None, Opening::AtOnce).await {
            DurableLookup::Response(found) => match found.body {
                FoundBody::Whole(body) => Some(body.segments().concat()),
                FoundBody::Streamed(..) | FoundBody::Separate(_) => panic!("it is inline"),
            },
            DurableLookup::OtherVariants(_) | DurableLookup::Nothing | DurableLookup::Unknown => None,
        }
    }

    async fn reclaim(&mut self) -> Done {
        self.durable.inner.reclaim_once(&mut self.upkeep).await.expect("no faults")
    }

    async fn read(&self) {
        self.durable.journal().read().await.expect("no faults");
    }
}

#[tokio::test(start_paused = true)]
async fn small_packs_are_merged_and_every_reader_finds_what_they_had() {
    let world = World::new();
    let (mut maker, reader) = (world.start(1).await, world.start(2).await);
    for n in 0..40 {
        maker.store(&world, &format!("/{n}"), format!("page {n}").as_bytes(), LONG).await;
    }
    reader.read().await;
    assert_eq!(world.packs(), 40);
    let done = maker.reclaim().await;
    assert_eq!((done.copied, done.written, done.deleted), (40, 1, 0));
    assert_eq!(world.packs(), 41, "who knows no others still finds them");
    for (node, of) in [(&maker, "the maker"), (&reader, "a reader"), (&world.start(3).await, "a new one")] {
        for n in 0..40 {
            assert_eq!(node.find(&format!("/{n}")).await, Some(format!("page {n}").into_bytes()), "{of} of {n}");
        }
    }
    world.pass(Duration::from_secs(601)).await;
    assert_eq!(maker.reclaim().await.deleted, 40);
    assert_eq!(world.packs(), 1);
    // The reader's index leads to packs that are gone.
    assert_eq!(reader.find("/7").await, None);
    reader.read().await;
    assert_eq!(reader.find("/8").await, Some(b"page 8".to_vec()));
    assert_eq!(world.start(4).await.find("/9").await, Some(b"page 9".to_vec()));
}

#[tokio::test(start_paused = true)]
async fn others_merge_the_packs_of_a_process_once_it_is_silent() {
    let world = World::new();
    let (maker, mut other) = (world.start(1).await, world.start(2).await);
    for n in 0..40 {
        maker.store(&world, &format!("/{n}"), b"page", LONG).await;
    }
    other.read().await;
    assert_eq!(other.reclaim().await, Done::default());
    world.pass(Duration::from_secs(3601)).await;
    assert_eq!(other.reclaim().await.copied, 40);
}

#[tokio::test(start_paused = true)]
async fn what_a_deleted_pack_held_down_does_not_come_back() {
    let world = World::new();
    let mut node = world.start(1).await;
    node.put("/kept", b"kept", LONG);
    node.put("/b", b"to be deleted", LONG);
    node.store(&world, "/a", b"old", LONG).await;
    node.store(&world, "/a", b"new", 60).await;
    node.durable.delete(&key("/b"), None);
    world.pass(Duration::from_secs(6)).await;
    assert_eq!(world.packs(), 3);
    // The new one expires, and with it all that its pack has.
    world.pass(Duration::from_secs(3 * 3600)).await;
    let done = node.reclaim().await;
    assert!(done.copied >= 1 && done.written == 1, "{done:?}");
    world.pass(Duration::from_secs(601)).await;
    node.reclaim().await;
    let names = world.bucket.names();
    let other = world.start(2).await;
    for node in [&node, &other] {
        assert_eq!(node.find("/a").await, None, "{names:?}");
        assert_eq!(node.find("/b").await, None, "{names:?}");
        assert_eq!(node.find("/kept").await, Some(b"kept".to_vec()));
    }
    // Once nothing older is left, the tombstones go as well.
    world.pass(Duration::from_secs(2 * LONG)).await;
    for _ in 0..3 {
        node.reclaim().await;
        world.pass(Duration::from_secs(601)).await;
    }
    assert_eq!(world.packs(), 0, "{:?}", world.bucket.names());
}

#[tokio::test(start_paused = true)]
async fn the_deadest_packs_are_rewritten_once_a_third_is_dead() {
    let mut world = World::new();
    world.config.pack_size = 64 << 10;
    let mut node = world.start(1).await;
    for n in 0..600 {
        node.put(&format!("/{n}"), &[b'x'; 1000], LONG);
        if n % 40 == 39 {
            world.pass(Duration::from_secs(6)).await;
        }
    }
    node.inner().queue.empty().await;
    let all = node.inner().used();
    assert_eq!(node.reclaim().await, Done::default());
    for n in (0..600).filter(|n| n % 4 != 0) {
        node.durable.delete(&key(&format!("/{n}")), None);
    }
    world.pass(Duration::from_secs(6)).await;
    node.inner().queue.empty().await;
    let done = node.reclaim().await;
    assert!(done.copied > 0, "{done:?}");
    world.pass(Duration::from_secs(601)).await;
    for _ in 0..3 {
        node.reclaim().await;
    }
    let left = node.inner().used();
    assert!(left < all / 8 * 5, "{left} of {all}");
    let settled = node.reclaim().await;
    assert_eq!(settled, Done::default(), "nothing is rewritten for nothing");
    let other = world.start(2).await;
    for n in 0..600 {
        let expected = (n % 4 == 0).then(|| vec![b'x'; 1000]);
        assert_eq!(node.find(&format!("/{n}")).await, expected, "{n}");
        assert_eq!(other.find(&format!("/{n}")).await, expected, "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn two_processes_that_reclaim_at_once_do_no_harm() {
    let mut world = World::new();
    world.config.pack_size = 64 << 10;
    let (mut one, mut two) = (world.start(1).await, world.start(2).await);
    for n in 0..200 {
        one.store(&world, &format!("/{}", n % 90), format!("page {n}").as_bytes(), LONG).await;
    }
    // Silent for so long that both may merge.
    world.pass(Duration::from_secs(2 * 3600)).await;
    two.read().await;
    for _ in 0..6 {
        let (first, second) = (Arc::clone(one.inner()), Arc::clone(two.inner()));
        let (first, second) = tokio::join!(first.reclaim_once(&mut one.upkeep), second.reclaim_once(&mut two.upkeep));
        first.and(second).expect("no faults");
        world.pass(Duration::from_secs(400)).await;
        one.read().await;
        two.read().await;
    }
    assert!(world.packs() < 40, "{}", world.packs());
    let three = world.start(3).await;
    for n in 110..200 {
        for node in [&one, &two, &three] {
            assert_eq!(node.find(&format!("/{}", n % 90)).await, Some(format!("page {n}").into_bytes()), "{n}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_purge_covers_copies_and_what_it_covers_is_dead() {
    let world = World::new();
    let (mut node, other) = (world.start(1).await, world.start(2).await);
    for n in 0..40 {
        node.store(&world, &format!("/{n}"), b"page", LONG).await;
    }
    // Made elsewhere, and not known here when the packs are merged.
    other.inner().purges.purge(Purge::hard(PurgeTarget::Tag("tag".into())), true);
    other.durable.journal().write().await.expect("no faults");
    assert_eq!(node.reclaim().await.written, 1);
    node.read().await;
    let new = world.start(3).await;
    for node in [&node, &new] {
        assert_eq!(node.find("/1").await, None);
    }
    node.store(&world, "/after", b"page", LONG).await;
    world.pass(Duration::from_secs(3601)).await;
    let done = node.reclaim().await;
    assert_eq!(done.purged, 40, "{done:?}");
    world.pass(Duration::from_secs(3 * 3600)).await;
    node.reclaim().await;
    assert_eq!(world.packs(), 1, "{:?}", world.bucket.names());
    assert_eq!(world.start(4).await.find("/after").await, Some(b"page".to_vec()));
}

/// An exact LRU of bodies of one length.
struct Lru {
    most: usize,
    uses: u64,
    last: HashMap<String, u64>,
    order: std::collections::BTreeMap<u64, String>,
}

impl Lru {
    /// Uses `path`. Returns whether it was there.
    fn touch(&mut self, path: &str) -> bool {
        self.uses += 1;
        let before = self.last.insert(path.to_owned(), self.uses);
        before.map(|before| self.order.remove(&before));
        self.order.insert(self.uses, path.to_owned());
        if self.last.len() > self.most
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.last.remove(&oldest);
        }
        before.is_some()
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_kept_to_the_capacity_and_does_not_evict_what_is_read() {
    let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
    flood(SimulatedBucket::directory(clock.clone(), 7), clock.clone()).await;
    flood(SimulatedBucket::new(clock.clone(), 7), clock).await;
}

async fn flood(bucket: SimulatedBucket, clock: Clock) {
    const CAPACITY: u64 = 4 << 20;
    const URLS: u32 = 4000;
    let bucket = Arc::new(bucket);
    let config = Config { capacity: Some(CAPACITY), ..Config::default() };
    let (world, body) = (World { clock, bucket, config }, [b'x'; 4096]);
    let mut node = world.start(1).await;
    let mut random = fastrand::Rng::with_seed(3);
    // Zipf's law with an exponent of 0.9.
    let mut sum = 0.0;
    let zipf: Vec<f64> = (1..=URLS)
        .map(|rank| {
            sum += f64::from(rank).powf(-0.9);
            sum
        })
        .collect();
    let most = usize::try_from(CAPACITY).expect("a size") / body.len();
    let mut lru = Lru { most, uses: 0, last: HashMap::new(), order: std::collections::BTreeMap::new() };
    let (mut hits, mut ideal, mut reads, mut stored, mut largest) = (0_u32, 0_u32, 0_u32, 0_u64, 0);
    for n in 0.. {
        if stored > 10 * CAPACITY {
            break;
        }
        let flood = format!("/flood/{n}");
        let dice = random.f64() * sum;
        let path = format!("/{}", zipf.partition_point(|until| *until < dice));
        lru.touch(&flood);
        let (is_found, is_ideal) = (node.find(&path).await.is_some(), lru.touch(&path));
        // Not before it is full.
        if stored > 2 * CAPACITY {
            (reads, hits, ideal) = (reads + 1, hits + u32::from(is_found), ideal + u32::from(is_ideal));
        }
        for path in [Some(flood), (!is_found).then_some(path)].into_iter().flatten() {
            node.put(&path, &body, LONG);
            stored += body.len() as u64;
        }
        world.pass(Duration::from_millis(3)).await;
        if node.inner().place.is_local() {
            node.inner().queue.empty().await;
        }
        if n % 50 == 0 {
            node.reclaim().await;
            let listed = node.inner().place.list_all("larder-1/", "").await.expect("no faults");
            largest = listed.iter().map(|listed| listed.size).sum::<u64>().max(largest);
        }
    }
    let (part, ideal) = (f64::from(hits) / f64::from(reads), f64::from(ideal) / f64::from(reads));
    println!("hits {part:.3}, of an LRU {ideal:.3}, at most {largest} bytes of {CAPACITY}");
    assert!(part > ideal - 0.03, "{part} of {ideal}");
    assert!(largest <= CAPACITY + 4 * node.inner().pack_size(), "{largest}");
    assert!(node.inner().metrics.losses().is_empty());
}

/// The worked example, with bodies and packs an eighth as long: ratios are the same.
#[tokio::test(start_paused = true)]
async fn one_response_a_second_for_a_day_costs_few_requests_and_leaves_few_packs() {
    let mut world = World::new();
    world.config.pack_size = 1 << 20;
    let mut node = world.start(1).await;
    let body = [b'x'; 1000];
    for second in (0..86_400).step_by(5) {
        for n in 0..5 {
            node.put(&format!("/{}", second + n), &body, LONG);
        }
        world.pass(Duration::from_secs(5)).await;
        if second % 60 == 0 {
            node.read().await;
            node.durable.journal().compact(false).await;
            node.reclaim().await;
        }
    }
    world.pass(Duration::from_secs(601)).await;
    node.inner().queue.empty().await;
    let puts = world.bucket.puts().len();
    node.reclaim().await;
    println!("{puts} PUTs, {} packs", world.packs());
    assert!(puts <= 18_500, "{puts}");
    assert!(world.packs() <= 200, "{}", world.packs());
    let other = world.start(2).await;
    for n in (0..86_400).step_by(997) {
        assert_eq!(other.find(&format!("/{n}")).await.as_deref(), Some(&body[..]), "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn deletions_of_long_urls_are_not_copied_again_and_again() {
    let mut world = World::new();
    world.config.pack_size = 1 << 20;
    let mut node = world.start(1).await;
    for n in 0..300 {
        node.put(&format!("/{n}/{}", "x".repeat(20_000)), b"page", LONG);
    }
    world.pass(Duration::from_secs(6)).await;
    node.inner().queue.empty().await;
    for n in 0..300 {
        node.durable.delete(&key(&format!("/{n}/{}", "x".repeat(20_000))), None);
    }
    world.pass(Duration::from_secs(6)).await;
    node.inner().queue.empty().await;
    for _ in 0..30 {
        node.reclaim().await;
        world.pass(Duration::from_secs(60)).await;
    }
    let largest = node.inner().index.all_packs().iter().map(|pack| pack.size()).max();
    assert!(largest.is_some_and(|size| size < 3 << 20), "{largest:?}: no copy takes more than a pack");
    // The tombstones have their keys twice, in 300 × 40 KB.
    let rewritten = node.inner().metrics.bytes_rewritten.value();
    assert!(rewritten < 3 * 300 * 40_000, "{rewritten} bytes were copied");
    node.store(&world, "/kept", b"kept", LONG).await;
    // Hours later nothing rests on them: they go.
    for _ in 0..4 {
        world.pass(Duration::from_secs(3600)).await;
        node.upkeep = Upkeep::new();
        node.reclaim().await;
    }
    let left: u64 = node.inner().index.all_packs().iter().map(|pack| pack.size()).sum();
    assert!(left < 300 * 20_000, "{left} bytes are left");
    assert_eq!(node.find("/kept").await.as_deref(), Some(&b"kept"[..]));
}

#[tokio::test(start_paused = true)]
async fn the_bytes_of_an_older_pack_are_not_taken_for_those_of_a_newer_one() {
    let world = World::new();
    let node = world.start(1).await;
    node.store(&world, "/page", b"old", LONG).await;
    let old = node.inner().index.all_packs();
    node.store(&world, "/page", b"new", LONG).await;
    let new = node.inner().index.all_packs().into_iter().find(|pack| pack.name != old[0].name).expect("another pack");
    let (place, names) = (&node.inner().place, &node.inner().names);
    let bytes = place.get(&names.pack(old[0].name), 1 << 20).await.expect("it is there");
    assert_eq!(node.find("/page").await.as_deref(), Some(&b"new"[..]));
    place.put(&names.pack(new.name), &[bytes]).await.expect("it is written");
    assert_eq!(node.find("/page").await, None, "a lying bucket costs a miss");
}

/// A bucket may refuse a read, and say that there is no such object: what is in it is not copied, and must not be deleted.
#[tokio::test(start_paused = true)]
async fn a_pack_that_is_listed_and_seems_absent_is_not_replaced_by_nothing() {
    let world = World::new();
    let mut maker = world.start(1).await;
    for n in 0..40 {
        maker.store(&world, &format!("/{n}"), b"page", LONG).await;
    }
    let hidden = world.bucket.names().into_iter().find(|name| name.contains("/j/")).expect("a pack");
    world.bucket.fail_reads_of(Some(&hidden), StoreErrorKind::Absent);
    let error = maker.durable.inner.reclaim_once(&mut maker.upkeep).await.expect_err("it can't be read");
    assert_eq!(error.kind(), StoreErrorKind::Refused);
    world.bucket.fail_reads_of(None, StoreErrorKind::Absent);
    world.pass(Duration::from_secs(601)).await;
    maker.reclaim().await;
    world.pass(Duration::from_secs(601)).await;
    maker.reclaim().await;
    let anew = world.start(2).await;
    for n in 0..40 {
        assert_eq!(anew.find(&format!("/{n}")).await, Some(b"page".to_vec()), "{n}");
    }
}
