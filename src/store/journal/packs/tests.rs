//! Reads packs that are damaged, can't be read, or hold deletions: nothing comes back, and no more is lost than must be.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderMap;

use crate::base::{Clock, Metrics};
use crate::entry::{Body, StoredResponse, TICK_BITS, sample_head};
use crate::rfc9111::key::{CacheKey, KeyParts};
use crate::rfc9111::timestamp::Timestamp;
use crate::store::durable::{Came, Config, Durable, DurableLookup, Opening};
use crate::store::error::StoreErrorKind;
use crate::store::memory::{self, Memory};
use crate::store::names::{JournalObject, ObjectNames, PackName};
use crate::store::place::Place;
use crate::store::purge::Purges;
use crate::store::simulated::{Simulated, SimulatedBucket};

const START: Timestamp = Timestamp::from_secs(1_700_000_000);

/// A place, and the time that all processes go by.
struct World {
    clock: Clock,
    place: Arc<SimulatedBucket>,
}

impl World {
    fn bucket() -> Self {
        let clock = Clock::manual(START);
        Self { place: Arc::new(SimulatedBucket::new(clock.clone(), 7)), clock }
    }

    fn directory() -> Self {
        let clock = Clock::manual(START);
        Self { place: Arc::new(SimulatedBucket::directory(clock.clone(), 7)), clock }
    }

    /// A process that has not read the journal yet.
    fn process(&self, node: u64) -> Durable {
        Durable::over(
            Arc::new(Simulated::to(&self.place)),
            &Config::default(),
            ObjectNames::new("", ""),
            Arc::new(Purges::new(self.clock.clone(), node)),
            Arc::new(Memory::new(&memory::Config::default())),
            Metrics::new(1),
        )
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
        tokio::time::sleep(time).await;
    }

    /// Writes all that waits, into a pack of its own. Returns the pack's name.
    async fn seal(&self, process: &Durable) -> String {
        assert_eq!(process.drain(Duration::from_secs(60)).await.left(), 0);
        let is_pack = |name: &String| matches!(ObjectNames::parse_journal(name), Some(JournalObject::Pack(_)));
        let last = self.place.names().into_iter().rfind(is_pack).expect("a pack");
        self.pass(Duration::from_secs(10)).await;
        last
    }

    /// Stores a page in a pack of its own. Returns the pack's name.
    async fn store(&self, process: &Durable, path: &str) -> String {
        let (fields, known) = ([("cache-control", "max-age=604800")], (u64::MAX, Arc::default()));
        let head = sample_head(&key(path), &HeaderMap::new(), &fields, self.clock.now(), known, Vec::new());
        let body = Body::from(Bytes::copy_from_slice(path.as_bytes()));
        let stored = Arc::new(StoredResponse::new(head, body));
        assert!(process.put(stored, None, Came::JustNow), "there is room");
        self.seal(process).await
    }

    /// Returns whether a process finds a page, and whether it is fresh.
    async fn finds(&self, process: &Durable, path: &str) -> Option<bool> {
        match process.lookup(&key(path), &HeaderMap::new(), Arc::default(), None, Opening::AtOnce).await {
            DurableLookup::Response(found) => Some(found.head.freshness.is_fresh(self.clock.now())),
            DurableLookup::OtherVariants(_) | DurableLookup::Nothing | DurableLookup::Unknown => None,
        }
    }
}

fn key(path: &str) -> CacheKey {
    CacheKey::new(KeyParts { prefix: "", scheme: "http", authority: "h", path, query: None })
}

/// Tells what a process finds of four pages while the pack with a deletion can't be read, and after it is: an old page, the
/// deleted one, and a new one.
async fn around_a_deletion(world: &World) -> [[Option<bool>; 3]; 2] {
    let writer = world.process(1);
    writer.journal().load().await.expect("no faults");
    world.store(&writer, "/old").await;
    world.store(&writer, "/deleted").await;
    writer.delete(&key("/deleted"), None);
    let deletion = world.seal(&writer).await;
    world.store(&writer, "/new").await;
    let reader = world.process(2);
    // In a directory a refusal would be of one file for good.
    world.place.fail_reads_of(Some(&deletion), StoreErrorKind::Unavailable);
    assert!(reader.journal().load().await.is_err(), "the pack can't be read");
    let mut found = [[None; 3]; 2];
    for found in &mut found {
        for (found, path) in found.iter_mut().zip(["/old", "/deleted", "/new"]) {
            *found = world.finds(&reader, path).await;
        }
        world.place.refuse_reads_of(None);
        reader.journal().load().await.expect("no faults");
    }
    found
}

#[tokio::test(start_paused = true)]
async fn an_entry_is_served_only_once_every_pack_is_read_that_may_delete_it() {
    let (none, fresh) = (None, Some(true));
    assert_eq!(around_a_deletion(&World::bucket()).await, [[none, none, fresh], [fresh, none, fresh]]);
    // There the name of a pack does not say how new its entries are.
    assert_eq!(around_a_deletion(&World::directory()).await, [[none, none, none], [fresh, none, fresh]]);
}

#[tokio::test(start_paused = true)]
async fn what_was_stored_before_a_damaged_pack_is_validated() {
    for world in [World::bucket(), World::directory()] {
        let writer = world.process(1);
        writer.journal().load().await.expect("no faults");
        world.store(&writer, "/old").await;
        let damaged = world.store(&writer, "/damaged").await;
        world.place.damage(&damaged, |bytes| bytes.truncate(100));
        world.pass(Duration::from_secs(600)).await;
        let reader = world.process(2);
        reader.journal().load().await.expect("no faults");
        assert_eq!(world.finds(&reader, "/damaged").await, None);
        assert_eq!(world.finds(&reader, "/old").await, Some(false), "stale, and there");
        reader.journal().compact(false).await;
        assert!(world.place.names().iter().any(|name| name.starts_with("larder-1/s/")), "a snapshot has it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_footer_is_made_anew_and_nothing_is_lost() {
    let world = World::bucket();
    let writer = world.process(1);
    writer.journal().load().await.expect("no faults");
    world.store(&writer, "/old").await;
    let damaged = world.store(&writer, "/damaged").await;
    world.place.damage(&damaged, |bytes| {
        let at = bytes.len() - 60;
        bytes[at] ^= 1;
    });
    let reader = world.process(2);
    reader.journal().load().await.expect("no faults");
    assert_eq!(world.finds(&reader, "/damaged").await, Some(true));
    assert_eq!(world.finds(&reader, "/old").await, Some(true));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_slept_finds_the_packs_that_a_snapshot_has() {
    let world = World::bucket();
    let (writer, sleeper) = (world.process(1), world.process(2));
    for process in [&writer, &sleeper] {
        process.journal().load().await.expect("no faults");
    }
    world.store(&writer, "/a").await;
    for _ in 0..3 {
        world.pass(Duration::from_secs(1200)).await;
        writer.journal().read().await.expect("no faults");
    }
    writer.journal().compact(true).await;
    sleeper.journal().read().await.expect("no faults");
    assert_eq!(world.finds(&sleeper, "/a").await, Some(true));
    // So does one that starts.
    let anew = world.process(3);
    anew.journal().load().await.expect("no faults");
    assert_eq!(world.finds(&anew, "/a").await, Some(true));
}

#[tokio::test(start_paused = true)]
async fn a_days_packs_of_ones_own_are_worth_a_snapshot_and_nothing_is_not() {
    let world = World::bucket();
    let writer = world.process(1);
    writer.journal().load().await.expect("no faults");
    let snapshots = || world.place.names().iter().filter(|name| name.contains("/s/")).count();
    for (is_stored, expected) in [(false, 0), (true, 1), (false, 1), (true, 2)] {
        if is_stored {
            world.store(&writer, "/a").await;
        }
        for _ in 0..75 {
            world.pass(Duration::from_secs(1200)).await;
            writer.journal().read().await.expect("no faults");
        }
        writer.journal().compact(false).await;
        assert_eq!(snapshots(), expected);
    }
}

/// A bucket may refuse a read, and say that there is no such object.
#[tokio::test(start_paused = true)]
async fn a_pack_that_is_listed_and_seems_absent_is_not_taken_for_one_that_is_gone() {
    for kind in [StoreErrorKind::Absent, StoreErrorKind::Refused, StoreErrorKind::Corrupt] {
        let world = World::bucket();
        let writer = world.process(1);
        writer.journal().load().await.expect("no faults");
        world.store(&writer, "/old").await;
        world.store(&writer, "/deleted").await;
        writer.delete(&key("/deleted"), None);
        let deletion = world.seal(&writer).await;
        world.store(&writer, "/new").await;
        let (once, long) = (world.process(2), world.process(3));
        world.place.fail_reads_of(Some(&deletion), kind);
        assert_eq!(once.journal().load().await.expect_err("it can't be read").kind(), kind);
        assert!(long.journal().load().await.is_err());
        // The newer packs were read; of the rest a deletion may be missing.
        for (path, found) in [("/old", None), ("/deleted", None), ("/new", Some(true))] {
            assert_eq!(world.finds(&once, path).await, found, "{kind:?} {path}");
        }
        for _ in 0..25 {
            assert!(long.journal().load().await.is_err(), "{kind:?}");
            world.pass(Duration::from_secs(1)).await;
        }
        for _ in 0..10 {
            let _ = long.journal().load().await;
            world.pass(Duration::from_secs(1)).await;
        }
        // It counts as damaged: what it may have deleted is validated. (None of the pages knew of any purge.)
        for path in ["/old", "/deleted", "/new"] {
            assert_eq!(world.finds(&long, path).await, Some(false), "{kind:?} {path}");
        }
        world.place.fail_reads_of(None, kind);
        once.journal().load().await.expect("no faults");
        for (path, found) in [("/old", Some(true)), ("/deleted", None), ("/new", Some(true))] {
            assert_eq!(world.finds(&once, path).await, found, "{kind:?} {path}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_growing_pack_that_cannot_be_read_holds_up_no_others() {
    let world = World::directory();
    let (writer, reader) = (world.process(1), world.process(2));
    for process in [&writer, &reader] {
        process.journal().load().await.expect("no faults");
    }
    world.store(&writer, "/old").await;
    let time = u64::try_from(world.clock.now().as_millis()).expect("after 1970") << TICK_BITS;
    let strange = ObjectNames::new("", "").open_pack(PackName { time, node: 170 });
    world.place.plant(&strange, Bytes::from_static(b"something"));
    world
        .place
        .fail_reads_of(Some(&ObjectNames::new("", "").pack(PackName { time, node: 170 })), StoreErrorKind::Corrupt);
    for _ in 0..40 {
        let _ = reader.journal().read().await;
        world.pass(Duration::from_secs(1)).await;
    }
    assert_eq!(world.finds(&reader, "/old").await, Some(false), "a deletion may be in it");
    reader.journal().read().await.expect("it is given up");
    world.store(&writer, "/new").await;
    reader.journal().read().await.expect("it is given up");
    assert!(world.finds(&reader, "/new").await.is_some());
}

#[tokio::test(start_paused = true)]
async fn no_entry_of_a_time_to_come_is_taken() {
    let world = World::bucket();
    // A process whose clock is a year ahead, and whose pack got a sane name.
    let wrong = World { clock: Clock::manual(START.plus_millis(365 * 86_400_000)), place: Arc::clone(&world.place) };
    let (writer, sane) = (wrong.process(1), world.process(3));
    for process in [&writer, &sane] {
        process.journal().load().await.expect("no faults");
    }
    world.store(&sane, "/old").await;
    let name = wrong.store(&writer, "/ahead").await;
    let reader = world.process(2);
    reader.journal().load().await.expect("no faults");
    assert_eq!(world.finds(&reader, "/ahead").await, None, "the name is not believed");
    assert_eq!(world.finds(&reader, "/old").await, Some(false), "a deletion may be in the pack");
    let object = Place::get(&Simulated::to(&world.place), &name, u64::MAX).await.expect("it is there");
    world.place.remove(&name);
    let time = u64::try_from(world.clock.now().as_millis()).expect("after 1970") << TICK_BITS;
    world.place.plant(&ObjectNames::new("", "").pack(PackName { time, node: 1 }), object);
    let reader = world.process(4);
    reader.journal().load().await.expect("no faults");
    assert_eq!(world.finds(&reader, "/ahead").await, None, "the order is not believed");
    assert_eq!(world.finds(&reader, "/old").await, Some(false));
    world.pass(Duration::from_secs(600)).await;
    // A snapshot has nothing of it.
    world.store(&reader, "/new").await;
    reader.journal().read().await.expect("no faults");
    reader.journal().compact(true).await;
    assert!(world.place.names().iter().any(|name| name.contains("/s/")));
    let anew = world.process(5);
    anew.journal().load().await.expect("no faults");
    assert!(world.finds(&anew, "/new").await.is_some() && world.finds(&anew, "/ahead").await.is_none());
}
