//! Appends to packs of a simulated directory.

use std::time::Duration;

use super::*;
use crate::base::{Clock, Metrics};
use crate::entry::{StoredHead, StoredResponse, ValueKey};
use crate::rfc9111::timestamp::Timestamp;
use crate::store::durable::{Config, Durable};
use crate::store::memory::{self, Memory};
use crate::store::names::ObjectNames;
use crate::store::purge::Purges;
use crate::store::simulated::{Simulated, SimulatedBucket};

const PACK: u64 = 64 << 10;

fn value(number: usize) -> Arc<StoredResponse> {
    let key = ValueKey::new("", 0, number.to_string().as_bytes());
    let now = Timestamp::from_secs(1_700_000_000);
    let head = StoredHead::of_value(&key, None, now, 1, Arc::default());
    Arc::new(StoredResponse::with_own_body(head, vec![b'x'; 4096].as_slice().into()))
}

/// Stores values one after the other, and waits for each, until one is late. Returns how many were not.
async fn stored_in_time(durable: &Durable) -> usize {
    let late = || durable.inner.metrics.values_late.value();
    for number in 0..100 {
        durable.put_value(&value(number), None).expect("there is room");
        durable.values_written(Duration::from_millis(500)).await;
        if late() > 0 {
            return number;
        }
    }
    100
}

/// The disk does not sync. What is appended survives the process all the same.
#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_pack_to_be_completed_and_who_gets_a_reply_before_his_value_is_written_is_counted() {
    let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
    let bucket = Arc::new(SimulatedBucket::directory(clock.clone(), 7));
    let durable = Durable::over(
        Arc::new(Simulated::to(&bucket)),
        &Config { pack_size: PACK, ..Config::default() },
        ObjectNames::new("", ""),
        Arc::new(Purges::new(clock, 1)),
        Arc::new(Memory::new(&memory::Config::default())),
        Metrics::new(1),
    );
    durable.journal().load().await.expect("no faults yet");
    bucket.set_hanging_seals(true);
    let in_time = stored_in_time(&durable).await;
    let in_a_pack = usize::try_from(PACK / 4096).expect("a few");
    assert!(in_time > in_a_pack * (COMPLETING - 1), "{in_time}: some are being completed, and another one grows");
    assert!(in_time < in_a_pack * (COMPLETING + 2), "{in_time}: one more has to wait, and that is told");
}
