//! Reads records and snapshots that can't be read for a while or for good, and names of times that can't be: no purge is
//! missed for good, and none becomes void.

use std::time::Duration;

use bytes::Bytes;

use crate::base::{Clock, Metrics};
use crate::rfc9111::timestamp::Timestamp;
use crate::store::durable::{Config, Durable};
use crate::store::error::StoreErrorKind;
use crate::store::memory::{self, Memory};
use crate::store::simulated::{Simulated, SimulatedBucket};

use super::super::compact::LONG;
use super::super::record::Snapshot;
use super::*;
use crate::store::purge::{PurgeSnapshot, Purges, Scope};

const START: Timestamp = Timestamp::from_secs(1_700_000_000);
const SECOND: Duration = Duration::from_secs(1);
const YEAR: u64 = 365 * 86_400_000;

/// A bucket, and the time that all processes go by.
struct World {
    clock: Clock,
    place: Arc<SimulatedBucket>,
    names: ObjectNames,
}

/// A process that shares the bucket.
struct Process {
    durable: Durable,
    purges: Arc<Purges>,
}

impl World {
    fn new() -> Self {
        let clock = Clock::manual(START);
        let place = Arc::new(SimulatedBucket::new(clock.clone(), 7));
        Self { place, clock, names: ObjectNames::new("", "") }
    }

    /// A process that has not read the journal yet.
    fn process(&self, node: u64) -> Process {
        let purges = Arc::new(Purges::new(self.clock.clone(), node));
        let durable = Durable::over(
            Arc::new(Simulated::to(&self.place)),
            &Config::default(),
            self.names.clone(),
            Arc::clone(&purges),
            Arc::new(Memory::new(&memory::Config::default())),
            Metrics::new(1),
        );
        Process { durable, purges }
    }

    /// A process that has read the journal.
    async fn loaded(&self, node: u64) -> Process {
        let process = self.process(node);
        process.journal().load().await.expect("no faults");
        process
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
        tokio::time::advance(time).await;
    }

    /// Returns the name of the last record of a node.
    fn last_record(&self, node: u64) -> String {
        let is_of_it = |name: &String| written(name).is_some_and(|name| name.node == node);
        self.place.names().into_iter().rfind(is_of_it).expect("a record")
    }

    /// A time of the journal, so many milliseconds from now.
    fn ahead(&self, millis: u64) -> JournalTime {
        (u64::try_from(self.clock.now().as_millis()).expect("after 1970") + millis) << TICK_BITS
    }
}

impl Process {
    fn journal(&self) -> &Journal {
        self.durable.journal()
    }

    /// Purges a tag. Returns the name of the record, and the time of the purge.
    async fn purge(&self, world: &World, tag: &str) -> (String, JournalTime) {
        let before = world.place.names().len();
        self.purges.purge(Purge::hard(PurgeTarget::Tag(tag.to_owned())), true);
        self.journal().write().await.expect("no faults");
        assert_eq!(world.place.names().len(), before + 1);
        let time = self.purges.snapshot().stamps.last().expect("a purge").1.time;
        (world.last_record(self.purges.node()), time)
    }

    fn knows(&self, tag: &str) -> bool {
        self.has(&Scope::from(&PurgeTarget::Tag(tag.to_owned())))
    }

    /// Returns whether everything counts as purged.
    fn lost_all(&self) -> bool {
        self.has(&Scope::All)
    }

    fn has(&self, scope: &Scope) -> bool {
        self.purges.snapshot().stamps.iter().any(|(other, _)| other == scope)
    }

    fn vector_has(&self, node: u64, time: JournalTime) -> bool {
        self.purges.version_vector().contains(node, time)
    }
}

const KINDS: [StoreErrorKind; 5] = [
    StoreErrorKind::Absent,
    StoreErrorKind::Refused,
    StoreErrorKind::Corrupt,
    StoreErrorKind::Unavailable,
    StoreErrorKind::Overloaded,
];

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_for_a_while_is_read_later_and_holds_up_no_others() {
    for kind in KINDS {
        let world = World::new();
        let (a, b, c) = (world.loaded(1).await, world.loaded(2).await, world.loaded(3).await);
        let (failing, first) = a.purge(&world, "first").await;
        world.pass(SECOND).await;
        let (_, second) = a.purge(&world, "second").await;
        let (_, third) = c.purge(&world, "third").await;
        world.place.fail_reads_of(Some(&failing), kind);
        for _ in 0..20 {
            assert_eq!(b.journal().read().await.expect_err("one can't be read").kind(), kind);
            assert_eq!((b.knows("first"), b.knows("second"), b.knows("third")), (false, true, true));
            // A later purge of the same process says nothing of the earlier one.
            assert!(!b.vector_has(1, first) && !b.vector_has(1, second) && b.vector_has(3, third), "{kind:?}");
            world.pass(SECOND).await;
        }
        world.place.fail_reads_of(None, kind);
        b.journal().read().await.expect("no faults");
        assert!(b.knows("first") && b.vector_has(1, first) && b.vector_has(1, second), "{kind:?}");
        assert!(!b.lost_all(), "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_no_record_says_is_not_taken_for_known_however_long_it_takes() {
    let world = World::new();
    let (a, b) = (world.loaded(1).await, world.loaded(2).await);
    let (failing, time) = a.purge(&world, "first").await;
    world.place.fail_reads_of(Some(""), StoreErrorKind::Unavailable);
    // All reads fail: that is the place, and no reason to give up one object.
    for _ in 0..1000 {
        assert!(b.journal().read().await.is_err());
        world.pass(SECOND).await;
    }
    assert!(!b.lost_all() && !b.vector_has(1, time), "in spite of the time that went by");
    world.place.fail_reads_of(None, StoreErrorKind::Unavailable);
    b.journal().read().await.expect("no faults");
    assert!(b.knows("first") && !b.lost_all(), "{failing}");
}

#[tokio::test(start_paused = true)]
async fn a_record_that_stays_unreadable_counts_as_a_purge_of_everything() {
    for kind in KINDS {
        let world = World::new();
        let (a, b) = (world.loaded(1).await, world.loaded(2).await);
        let (failing, time) = a.purge(&world, "first").await;
        world.place.fail_reads_of(Some(&failing), kind);
        let limit = if kind.is_outage() { 300 } else { 30 };
        for second in 0..limit {
            assert!(b.journal().read().await.is_err(), "{kind:?}");
            assert!(!b.lost_all(), "{kind:?} after {second} s");
            world.pass(SECOND).await;
        }
        let _ = b.journal().read().await;
        world.pass(SECOND).await;
        b.journal().read().await.expect("it is not tried again");
        assert!(b.lost_all() && !b.knows("first"), "{kind:?}");
        // It is of the time of the record: what is fetched from now on is good.
        assert!(b.vector_has(1, time), "{kind:?}");
        assert!(!world.place.names().iter().any(|name| name.contains("/s/")));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_durable_is_served_by_a_process_that_starts_before_every_record_is_read() {
    let world = World::new();
    let a = world.loaded(1).await;
    let (failing, _) = a.purge(&world, "first").await;
    a.purge(&world, "second").await;
    world.place.fail_reads_of(Some(&failing), StoreErrorKind::Absent);
    let b = world.process(2);
    for _ in 0..25 {
        let index = b.durable.index().is_loaded();
        assert!(if index { b.journal().read().await } else { b.journal().load().await }.is_err());
        assert!(!b.journal().is_loaded() && b.knows("second"));
        world.pass(SECOND).await;
    }
    for _ in 0..10 {
        let _ = b.journal().read().await;
        world.pass(SECOND).await;
    }
    assert!(b.journal().is_loaded() && b.lost_all());
}

#[tokio::test(start_paused = true)]
async fn a_record_that_was_compacted_is_no_loss() {
    let world = World::new();
    let a = world.loaded(1).await;
    let (first, _) = a.purge(&world, "first").await;
    world.place.fail_reads_of(Some(&first), StoreErrorKind::Absent);
    let b = world.process(2);
    assert!(b.journal().load().await.is_err());
    // Meanwhile it goes into a snapshot.
    world.place.fail_reads_of(None, StoreErrorKind::Absent);
    world.pass(Duration::from_secs(3600)).await;
    a.journal().read().await.expect("no faults");
    a.journal().compact(true).await;
    world.place.remove(&first);
    for _ in 0..3 {
        let _ = if b.durable.index().is_loaded() { b.journal().read().await } else { b.journal().load().await };
        let _ = b.journal().load().await;
    }
    assert!(b.journal().is_loaded() && b.knows("first") && !b.lost_all());
    // One that is young can't have been.
    let (young, _) = a.purge(&world, "young").await;
    world.place.remove(&young);
    b.journal().read().await.expect("it was never listed");
    let (young, _) = a.purge(&world, "young").await;
    world.place.fail_reads_of(Some(&young), StoreErrorKind::Unavailable);
    assert!(b.journal().read().await.is_err());
    world.place.remove(&young);
    for _ in 0..40 {
        let _ = b.journal().read().await;
        world.pass(SECOND).await;
    }
    assert!(b.lost_all());
}

#[tokio::test(start_paused = true)]
async fn snapshots_that_are_listed_and_cannot_be_read_are_unreadable() {
    for kind in [StoreErrorKind::Absent, StoreErrorKind::Refused] {
        let world = World::new();
        let a = world.loaded(1).await;
        a.purge(&world, "first").await;
        world.pass(Duration::from_secs(3600)).await;
        let snapshot = |names: Vec<String>| names.into_iter().rfind(|name| name.contains("/s/")).expect("a snapshot");
        a.journal().read().await.expect("no faults");
        a.journal().compact(true).await;
        let only = snapshot(world.place.names());
        world.place.fail_reads_of(Some(&only), kind);
        let b = world.process(2);
        for _ in 0..25 {
            assert!(b.journal().load().await.is_err() && !b.lost_all(), "it is tried again");
            world.pass(SECOND).await;
        }
        for _ in 0..10 {
            let _ = b.journal().load().await;
            world.pass(SECOND).await;
        }
        assert!(b.journal().is_loaded() && b.lost_all(), "{kind:?}");
        // The one before the last is as good, with the records since.
        world.place.fail_reads_of(None, kind);
        world.pass(Duration::from_secs(3600)).await;
        a.purge(&world, "second").await;
        world.pass(Duration::from_secs(600)).await;
        a.journal().read().await.expect("no faults");
        a.journal().compact(true).await;
        let last = snapshot(world.place.names());
        assert_ne!(last, only);
        world.place.fail_reads_of(Some(&last), kind);
        let c = world.process(3);
        for _ in 0..40 {
            let _ = c.journal().load().await;
            world.pass(SECOND).await;
        }
        assert!(c.journal().is_loaded() && c.knows("first") && c.knows("second") && !c.lost_all(), "{kind:?}");
    }
}

/// Names that a stranger, a damaged clock or a damaged disk leaves.
#[tokio::test(start_paused = true)]
async fn no_name_of_a_time_to_come_makes_purges_void() {
    for time in [u64::MAX, (START.as_millis().cast_unsigned() + YEAR) << TICK_BITS] {
        for kind in ["purges", "pack", "open", "s"] {
            let world = World::new();
            let (a, b) = (world.loaded(1).await, world.loaded(2).await);
            let name = PackName { time, node: 170 };
            let name = match kind {
                "purges" => world.names.purges(name),
                "pack" => world.names.pack(name),
                "open" => world.names.open_pack(name),
                _ => world.names.snapshot(time, 170),
            };
            let (before_a, before_b) = (a.purges.position(), b.purges.position());
            world.place.plant(&name, Bytes::new());
            for _ in 0..3 {
                a.journal().read().await.expect("no faults");
                b.journal().read().await.expect("no faults");
            }
            let once = u64::from(kind != "s");
            assert_eq!((a.purges.position(), b.purges.position()), (before_a + once, before_b + once), "{kind}");
            // Hard if it may have held purges.
            let hard = |process: &Process| process.purges.snapshot().stamps.iter().any(|(_, stamp)| !stamp.is_soft);
            assert_eq!((hard(&a), hard(&b)), (kind == "purges", kind == "purges"));
            let (mut record, mut last) = (String::new(), 0);
            for n in 0..3 {
                let vector = b.purges.version_vector();
                let (name, time) = a.purge(&world, &format!("{n}")).await;
                assert!(!vector.contains(1, time) && time > last && name > record, "{kind}: it is a new time");
                assert!(written(&name).expect("a record").time < world.ahead(60_000), "{kind}");
                b.journal().read().await.expect("no faults");
                assert!(b.knows(&format!("{n}")));
                (record, last) = (name, time);
                world.pass(SECOND).await;
            }
            // Nor does it keep snapshots from being written, or have them deleted.
            world.pass(Duration::from_secs(600)).await;
            a.journal().read().await.expect("no faults");
            a.journal().compact(true).await;
            let own = |name: &String| name.contains("/s/") && name.ends_with('1');
            assert_eq!(world.place.names().iter().filter(|name| own(name)).count(), 1, "{kind}");
            let c = world.loaded(3).await;
            assert!(c.knows("2"), "{kind}");
            assert!(c.purges.snapshot().latest < world.ahead(60_000), "{kind}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_time_to_come_within_a_record_or_snapshot_is_taken_over() {
    let world = World::new();
    let (now, far) = (world.ahead(0), world.ahead(YEAR));
    let b = world.loaded(2).await;
    let record = Record { node: 7, time: now, purges: vec![(Purge::hard(PurgeTarget::Tag("x".into())), far)] };
    world.place.plant(&world.names.purges(PackName { time: now, node: 7 }), Bytes::from(record.encode()));
    b.journal().read().await.expect("no faults");
    assert!(b.lost_all() && b.purges.snapshot().latest < world.ahead(60_000));
    let stamps = [vec![], vec![(7, far)]];
    for (nodes, latest) in stamps.into_iter().zip([far, now]) {
        let world = World::new();
        let purges = PurgeSnapshot { nodes, latest, ..PurgeSnapshot::default() };
        let snapshot = Snapshot { until: now, purges, index: None };
        world.place.plant(&world.names.snapshot(now, 7), Bytes::from(snapshot.encode()));
        let c = world.loaded(3).await;
        assert!(c.lost_all() && c.purges.snapshot().latest < world.ahead(60_000));
        assert!(!c.vector_has(7, now));
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_is_believed_by_nobody_and_voids_nothing() {
    let world = World::new();
    let wrong = Clock::manual(START.plus_millis(i64::try_from(YEAR).expect("it fits")));
    let a = Process {
        purges: Arc::new(Purges::new(wrong.clone(), 1)),
        durable: {
            let purges = Arc::new(Purges::new(wrong.clone(), 9));
            Durable::over(
                Arc::new(Simulated::to(&world.place)),
                &Config::default(),
                world.names.clone(),
                purges,
                Arc::new(Memory::new(&memory::Config::default())),
                Metrics::new(1),
            )
        },
    };
    let b = world.loaded(2).await;
    // A record of a process whose clock is a year ahead.
    let batch = {
        a.purges.write_down();
        a.purges.purge(Purge::hard(PurgeTarget::Tag("x".into())), true);
        a.purges.take_outgoing(10)
    };
    let purges = batch.purges.iter().map(|outgoing| (outgoing.purge.clone(), outgoing.time)).collect();
    let record = Record { node: 1, time: batch.time, purges };
    world.place.plant(&world.names.purges(PackName { time: batch.time, node: 1 }), Bytes::from(record.encode()));
    b.journal().read().await.expect("no faults");
    assert!(b.lost_all(), "it may hold any purge");
    assert!(b.purges.snapshot().latest < world.ahead(60_000));
    // A fetch with such a version vector knew of no purge.
    a.purges.read_until(a.purges.journal_now());
    let vector = a.purges.version_vector();
    assert!(vector.contains(2, world.ahead(0)));
    let key = crate::rfc9111::key::CacheKey::new(crate::rfc9111::key::KeyParts {
        prefix: "",
        scheme: "http",
        authority: "h",
        path: "/",
        query: None,
    });
    b.purges.purge(Purge::hard(PurgeTarget::Tag("y".into())), false);
    assert_eq!(b.purges.covers_entry(&key, &["y".into()], &vector), crate::entry::Covered::Wholly);
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_bounded() {
    let world = World::new();
    let b = world.loaded(2).await;
    let node = 7;
    for n in 0..u64::try_from(5 * LONG).expect("it fits") {
        world.place.plant(&world.names.purges(PackName { time: world.ahead(0) + n, node }), Bytes::new());
    }
    world.place.fail_reads_of(Some(""), StoreErrorKind::Refused);
    for _ in 0..40 {
        let _ = b.journal().read().await;
        world.pass(SECOND).await;
    }
    assert!(b.lost_all());
    let tail = b.journal().tail.lock().await;
    assert!(tail.waits.names().is_empty() && tail.held.is_empty());
}
