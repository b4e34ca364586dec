//! Tests when a snapshot is written, and how long the records stay that it replaces.

use std::time::Duration;

use super::*;
use crate::base::{Clock, Metrics};
use crate::rfc9111::timestamp::Timestamp;
use crate::store::durable::{Config, Durable};
use crate::store::memory::{self, Memory};
use crate::store::purge::{Purge, PurgeTarget, Purges};
use crate::store::simulated::{Simulated, SimulatedBucket};

/// One process, and its place.
struct World {
    clock: Clock,
    place: Arc<SimulatedBucket>,
    process: Durable,
    purges: Arc<Purges>,
}

impl World {
    async fn new(is_directory: bool) -> Self {
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let make = if is_directory { SimulatedBucket::directory } else { SimulatedBucket::new };
        let place = Arc::new(make(clock.clone(), 7));
        let purges = Arc::new(Purges::new(clock.clone(), 1));
        let process = Durable::over(
            Arc::new(Simulated::to(&place)),
            &Config::default(),
            ObjectNames::new("", ""),
            Arc::clone(&purges),
            Arc::new(Memory::new(&memory::Config::default())),
            Metrics::new(1),
        );
        process.journal().load().await.expect("no faults");
        Self { clock, place, process, purges }
    }

    /// Writes records of one purge each, a second apart, and reads them.
    async fn write(&self, records: usize) {
        for n in 0..records {
            self.purges.purge(Purge::hard(PurgeTarget::Tag(n.to_string())), true);
            self.process.journal().write().await.expect("no faults");
            self.pass(1).await;
        }
    }

    async fn pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
        self.process.journal().read().await.expect("no faults");
        self.process.journal().compact(false).await;
    }

    /// Returns the numbers of records and of snapshots that were written until now.
    fn written(&self) -> (usize, usize) {
        let puts = self.place.puts();
        let of = |part: &str| puts.iter().filter(|name| name.contains(part)).count();
        (of("/j/"), of("/s/"))
    }

    /// Returns the number of records that are there.
    fn records(&self) -> usize {
        self.place.names().iter().filter(|name| name.ends_with(".purges")).count()
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_written_for_records_that_take_as_much_and_no_more_than_one_a_minute() {
    let world = World::new(true).await;
    world.write(LONG - 1).await;
    assert_eq!(world.written(), (LONG - 1, 0));
    world.write(1).await;
    assert_eq!(world.written(), (LONG, 1));
    // Of a large index it takes as many bytes as two times as many records.
    world.process.journal().tail.lock().await.snapshot_bytes = 2 * LONG as u64 * 4096;
    world.write(2 * LONG - 1).await;
    assert_eq!(world.written().1, 1);
    world.write(1).await;
    assert_eq!(world.written().1, 2);
    // However large: a start has to read the records.
    world.process.journal().tail.lock().await.snapshot_bytes = u64::MAX;
    world.write(MANY).await;
    assert_eq!(world.written().1, 3);
    world.process.journal().tail.lock().await.needs_snapshot = true;
    world.pass(APART / 1000 - 1).await;
    assert_eq!(world.written().1, 3, "not so soon after another");
    world.pass(1).await;
    assert_eq!(world.written().1, 4);
}

#[tokio::test(start_paused = true)]
async fn records_of_a_directory_go_as_soon_as_no_process_needs_them() {
    let world = World::new(true).await;
    let kept = usize::try_from(world.process.journal().kept() / 1000).expect("it fits");
    assert!((600..900).contains(&kept), "some minutes");
    world.write(4 * kept).await;
    assert!(world.written().1 >= 2);
    assert!(world.records() <= kept + 2 * LONG, "{}", world.records());
    assert!(world.records() >= kept, "whoever was away finds them");
    // Nothing more comes: those that were too young go as well, without another snapshot.
    let (before, snapshots) = (world.records(), world.written().1);
    for _ in 0..2 * kept / 10 {
        world.pass(10).await;
    }
    assert_eq!(world.written().1, snapshots);
    assert!(world.records() < before, "{} of {before}", world.records());
    // A bucket is read less often.
    let world = World::new(false).await;
    world.write(4 * kept).await;
    assert_eq!(world.records(), 4 * kept);
}

#[tokio::test(start_paused = true)]
async fn what_many_clients_cause_is_gathered_and_what_the_operator_purges_is_not_held_up() {
    let world = World::new(true).await;
    let journal = world.process.journal();
    // Real time, by which records are paced, stands still for this task alone.
    let invalidate = async |n: usize| {
        let made = world.purges.purge(Purge::hard(PurgeTarget::Url(n as u128)), true);
        journal.hurry(super::super::Urgency::Awaited);
        made.position
    };
    for n in 0..60 {
        let position = invalidate(n).await;
        journal.wait_for(position, Duration::from_secs(60)).await.expect("it is written");
    }
    let before = world.written().0;
    assert!(before >= 60, "{before}: the first ones at once");
    let mut last = 0;
    for n in 60..1060 {
        last = invalidate(n).await;
        tokio::task::yield_now().await;
    }
    assert!(world.written().0 <= before + 5, "{}", world.written().0);
    let purge = world.purges.purge(Purge::hard(PurgeTarget::All), true);
    journal.hurry(super::super::Urgency::Purge);
    journal.wait_for(purge.position, Duration::from_millis(100)).await.expect("at once");
    assert!(journal.written() >= last, "and what waited goes with it");
}
