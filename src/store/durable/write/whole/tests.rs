//! Writes packs to a simulated bucket that hangs, fails, or is away.

use http::header::{HeaderMap, HeaderValue};

use super::*;
use crate::base::{Clock, Metrics};
use crate::entry::tests::sample;
use crate::entry::{Body, StoredResponse};
use crate::rfc9111::key::{CacheKey, KeyParts};
use crate::rfc9111::timestamp::Timestamp;
use crate::store::durable::{Came, Config, Durable, DurableLookup, FoundBody, Opening};
use crate::store::memory::{self, Memory};
use crate::store::names::{JournalObject, ObjectNames};
use crate::store::purge::{Purge, PurgeTarget, Purges};
use crate::store::simulated::{Faults, Simulated, SimulatedBucket};

struct Tier {
    bucket: Arc<SimulatedBucket>,
    durable: Durable,
}

impl Tier {
    async fn new(config: Config) -> Self {
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let bucket = Arc::new(SimulatedBucket::new(clock.clone(), 7));
        let this = Self { durable: over(&bucket, &config, 1), bucket };
        this.durable.journal().load().await.expect("no faults yet");
        this
    }

    fn store(&self, path: &str, body: &[u8]) {
        assert!(self.durable.put(response(path, body), None, Came::JustNow), "there is room");
    }

    async fn settle(&self) {
        self.durable.inner.queue.empty().await;
    }

    /// The names of the packs that are there.
    fn packs(&self) -> Vec<String> {
        self.bucket.names().into_iter().filter(|name| is_pack(name)).collect()
    }

    /// The names under which packs were written, or were to be.
    fn tried(&self) -> Vec<String> {
        self.bucket.puts().into_iter().filter(|name| is_pack(name)).collect()
    }

    async fn pack(&self, name: &str) -> Bytes {
        self.durable.inner.place.get(name, u64::MAX).await.expect("it is there")
    }

    fn lost(&self) -> u64 {
        self.durable.inner.metrics.losses().iter().map(|(_, count)| count).sum()
    }
}

fn over(bucket: &Arc<SimulatedBucket>, config: &Config, node: u64) -> Durable {
    let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
    Durable::over(
        Arc::new(Simulated::to(bucket)),
        config,
        ObjectNames::new("", ""),
        Arc::new(Purges::new(clock, node)),
        Arc::new(Memory::new(&memory::Config::default())),
        Metrics::new(1),
    )
}

/// Returns the body that a process finds.
async fn found(durable: &Durable, path: &str) -> Option<Vec<u8>> {
    let mut request = HeaderMap::new();
    request.insert("accept-language", HeaderValue::from_static("de, en"));
    match durable.lookup(&key(path), &request, Arc::default(), None, Opening::AtOnce).await {
        DurableLookup::Response(found) => match found.body {
            FoundBody::Whole(body) => Some(body.segments().concat()),
            FoundBody::Streamed(..) | FoundBody::Separate(_) => panic!("it is inline"),
        },
        DurableLookup::OtherVariants(_) | DurableLookup::Nothing | DurableLookup::Unknown => None,
    }
}

fn is_pack(name: &str) -> bool {
    matches!(ObjectNames::parse_journal(name), Some(JournalObject::Pack(_)))
}

fn key(path: &str) -> CacheKey {
    CacheKey::new(KeyParts { prefix: "", scheme: "http", authority: "h", path, query: None })
}

fn response(path: &str, body: &[u8]) -> Arc<StoredResponse> {
    let mut head = sample().head.clone();
    (head.key, head.body_object, head.position) = (key(path), None, 0);
    Arc::new(StoredResponse::new(head, Body::from(Bytes::copy_from_slice(body))))
}

fn patient() -> Config {
    Config { breaker_failures: 0, ..Config::default() }
}

#[tokio::test(start_paused = true)]
async fn a_pack_whose_request_hangs_is_written_under_another_name_in_time() {
    let tier = Tier::new(patient()).await;
    tier.bucket.set_hanging(true);
    tier.store("/a", b"page");
    tokio::time::sleep((Duration::from_secs(5) + ONE_NAME).saturating_sub(2 * TO_WRITE)).await;
    let first = tier.tried();
    assert!(first.len() > 1, "it is tried again");
    assert!(first.iter().all(|name| *name == first[0]), "under one name while that is not too late: {first:?}");
    assert_eq!(found(&tier.durable, "/a").await.as_deref(), Some(&b"page"[..]), "it is served meanwhile");
    tokio::time::sleep(2 * TO_WRITE).await;
    tier.bucket.set_hanging(false);
    tier.settle().await;
    let packs = tier.packs();
    assert!(packs.len() == 1 && packs[0] > first[0], "{packs:?} {first:?}");
    assert_eq!(found(&tier.durable, "/a").await.as_deref(), Some(&b"page"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_pack_that_does_not_go_through_in_time_is_written_in_halves() {
    let tier = Tier::new(patient()).await;
    tier.bucket.set_hanging(true);
    for n in 0..40 {
        tier.store(&format!("/{n}"), &vec![b'x'; 100 << 10]);
    }
    tokio::time::sleep(Duration::from_secs(5) + ONE_NAME).await;
    tier.bucket.set_hanging(false);
    tier.settle().await;
    assert!(tier.packs().len() > 1, "{:?}", tier.tried());
    assert_eq!(tier.lost(), 0);
    for n in 0..40 {
        assert!(found(&tier.durable, &format!("/{n}")).await.is_some(), "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_while_the_bucket_is_away_waits_and_is_written_in_few_packs() {
    let tier = Tier::new(Config { queue_objects: 500, ..Config::default() }).await;
    tier.bucket.set_faults(Faults { fail: 1000, ..Faults::default() });
    for n in 0..600 {
        let path = format!("/{n}");
        let is_taken = tier.durable.put(response(&path, path.as_bytes()), None, Came::JustNow);
        assert_eq!(is_taken, n < 500, "the queue is bounded");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(found(&tier.durable, "/499").await.as_deref(), Some(&b"/499"[..]), "it is served meanwhile");
    tier.bucket.set_faults(Faults::default());
    tier.settle().await;
    assert_eq!(tier.lost(), 100, "those that found no room");
    assert!(tier.packs().len() < 10, "{}", tier.packs().len());
    let other = over(&tier.bucket, &Config::default(), 2);
    other.journal().load().await.expect("no faults any more");
    for n in 0..500 {
        let path = format!("/{n}");
        assert_eq!(found(&other, &path).await.as_deref(), Some(path.as_bytes()));
    }
}

/// The request is carried out, and its answer is lost; or it is carried out after it failed.
#[tokio::test(start_paused = true)]
async fn packs_that_are_written_twice_lead_to_one_answer() {
    for faults in [Faults { lost_answer: 1000, ..Faults::default() }, Faults { late: 1000, ..Faults::default() }] {
        let tier = Tier::new(patient()).await;
        tier.bucket.set_faults(faults);
        tier.store("/a", b"older");
        tokio::time::sleep(ONE_NAME * 3).await;
        tier.store("/a", b"newer");
        tokio::time::sleep(ONE_NAME * 2).await;
        tier.bucket.set_faults(Faults::default());
        tier.settle().await;
        assert!(tier.lost() == 0 && tier.tried().len() > 4);
        let other = over(&tier.bucket, &Config::default(), 2);
        for durable in [&tier.durable, &other] {
            durable.journal().load().await.expect("no faults any more");
            assert_eq!(found(durable, "/a").await.as_deref(), Some(&b"newer"[..]));
        }
        assert_eq!(other.index().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_purged_or_replaced_while_it_waits_is_not_written() {
    let tier = Tier::new(patient()).await;
    tier.store("/purged", b"the purged one");
    tier.store("/stays", b"the older one");
    tier.store("/stays", b"the newer one");
    tier.durable.inner.purges.purge(Purge::hard(PurgeTarget::Url(key("/purged").hash())), false);
    assert_eq!(found(&tier.durable, "/purged").await, None);
    tier.settle().await;
    let packs = tier.packs();
    assert_eq!(packs.len(), 1);
    let pack = tier.pack(&packs[0]).await;
    let holds = |text: &[u8]| pack.windows(text.len()).any(|window| window == text);
    assert!(holds(b"the newer one") && !holds(b"the older one") && !holds(b"the purged one"));
    assert_eq!(tier.durable.inner.metrics.entries_written.value(), 1);
}

#[tokio::test(start_paused = true)]
async fn at_full_rate_packs_are_full() {
    let tier = Tier::new(patient()).await;
    for n in 0..2000 {
        tier.store(&format!("/{n}"), &[b'x'; 10 << 10]);
    }
    tier.settle().await;
    let packs = tier.packs();
    // A million of them in at most 2,000 requests.
    assert!(packs.len() <= 4, "{}", packs.len());
    let pack_size = Config::default().pack_size;
    for name in &packs[..packs.len() - 1] {
        let len = tier.pack(name).await.len() as u64;
        assert!(len > pack_size * 9 / 10 && len < pack_size * 11 / 10, "{len}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_budget_makes_packs_fewer_and_larger() {
    let config = Config { monthly_writes: 300, pack_size: 64 << 10, ..patient() };
    let tier = Tier::new(config).await;
    let begun = Stopwatch::start();
    // A day's worth is ten; half of it is spent at once, since those are full.
    for n in 0..2000 {
        tier.store(&format!("/{n}"), &[b'x'; 1 << 10]);
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    let count = tier.packs().len() as u64;
    let allowed = 10 + begun.elapsed().as_secs() * 300 / (30 * 24 * 3600) + 1;
    assert!(count <= allowed && count * 2 > allowed, "{count} of {allowed}");
    assert_eq!(tier.lost(), 0);
    for n in [0, 1999] {
        assert!(found(&tier.durable, &format!("/{n}")).await.is_some(), "written or waiting, it is served");
    }
    tier.durable.drain(Duration::from_secs(60)).await;
    assert_eq!(tier.durable.queue_depth().0, 0, "at the stop all is written, whatever the budget says");
    let other = over(&tier.bucket, &Config::default(), 2);
    other.journal().load().await.expect("no faults");
    assert_eq!(other.index().len(), 2000);
}

#[tokio::test(start_paused = true)]
async fn deletions_of_one_url_wait_as_one_and_the_last_one_counts() {
    let tier = Tier::new(patient()).await;
    tier.store("/a", b"the first");
    tier.settle().await;
    tier.bucket.set_hanging(true);
    let (queue, page) = (&tier.durable.inner.queue, key("/a"));
    for n in 0..500 {
        tier.durable.delete(&page, None);
        if n % 5 == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    // Those in packs under way can't be changed: there are as many as writers, at most.
    let (deletions, writers) = (queue.deletions().0, patient().writers as u64);
    assert!(deletions <= writers + 1, "{deletions}");
    // Written after what waits, and before what is deleted again.
    tier.store("/a", b"the second");
    tier.durable.delete(&page, None);
    assert_eq!(found(&tier.durable, "/a").await, None);
    tier.bucket.set_hanging(false);
    tier.settle().await;
    let other = over(&tier.bucket, &patient(), 2);
    other.journal().load().await.expect("no faults");
    assert_eq!(found(&other, "/a").await, None);
    // A write after all of them stays.
    tier.store("/a", b"the third");
    tier.settle().await;
    other.journal().read().await.expect("no faults");
    assert_eq!(found(&other, "/a").await.as_deref(), Some(&b"the third"[..]));
}

#[tokio::test(start_paused = true)]
async fn deletions_are_bounded_in_bytes_and_keep_no_write_out() {
    // Its index is not loaded: it may hold anything.
    let bucket = Arc::new(SimulatedBucket::new(Clock::manual(Timestamp::from_secs(1_700_000_000)), 7));
    let config = Config { queue_bytes: 1 << 20, ..patient() };
    let durable = over(&bucket, &config, 1);
    let queue = &durable.inner.queue;
    let long = "x".repeat(10_000);
    for n in 0..1000 {
        for _ in 0..3 {
            durable.delete(&key(&format!("/{n}/{long}")), None);
        }
    }
    let (deletions, bytes) = queue.deletions();
    assert!((95..=105).contains(&deletions) && bytes <= 1 << 20, "{deletions} {bytes}");
    assert!(durable.put(response("/a", b"page"), None, Came::JustNow), "writes have a bound of their own");
    assert_eq!(queue.puts().0, 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_stored_is_known_at_every_moment_while_it_is_written() {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    let tier = Arc::new(Tier::new(patient()).await);
    let (latest, is_over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    tier.store("/0", b"page");
    // Asks all the time, so that it also asks at the moment at which a response leaves the queue for the index.
    let asking: [_; 8] = std::array::from_fn(|_| {
        let (tier, latest, is_over) = (Arc::clone(&tier), Arc::clone(&latest), Arc::clone(&is_over));
        std::thread::spawn(move || {
            while !is_over.load(Ordering::Acquire) {
                let number = latest.load(Ordering::Acquire);
                let key = key(&format!("/{number}"));
                for _ in 0..100 {
                    assert!(tier.durable.may_hold(&key), "/{number} is there");
                }
            }
        })
    });
    for number in 1..=1000 {
        tier.settle().await;
        tier.store(&format!("/{number}"), b"page");
        latest.store(number, Ordering::Release);
    }
    is_over.store(true, Ordering::Release);
    for asking in asking {
        asking.join().expect("each was there whenever it was asked for");
    }
}
