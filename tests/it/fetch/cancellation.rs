//! Tests leaving at every point: seeded interleavings of joining, leaving, failing, expiring, purging and
//! stopping. In the end there is no flight, no reader and no byte of budget left, and every page can
//! still be asked for.
//!
//! `LARDER_TEST_SEED` begins somewhere else.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::support::{Client, Head, Larder, Origin, Reply, Seen, eventually, file_url};
use bytes::Bytes;
use fastrand::Rng;
use larder::entry::{Budget, Fill, FillReader, FillWriter, Unread};
use larder::fetch::{FlightName, Flights, Follower, Joined, Lease, Outcome, Watch};
use larder::rfc9111::key::{CacheKey, KeyParts};
use larder::rfc9111::query::metadata;
use larder::upstream::UpstreamError;

fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let first: u64 = std::env::var("LARDER_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    first..first + count
}

type Step<T> = Pin<Box<dyn Future<Output = T>>>;

fn poll<T>(step: &mut Step<T>) -> Option<T> {
    match step.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

/// One who takes part, at whatever point it is.
enum Part {
    Pilot(Lease, Option<Watch>),
    Waits(Step<(Outcome, Follower)>),
    Boards(Step<Lease>),
    Writes(Step<Option<FillWriter>>),
    HasWriter(FillWriter),
    Reads(FillReader),
}

/// The parts by themselves, one poll at a time: whoever takes part goes a step on, or is dropped.
#[tokio::test(start_paused = true)]
async fn nothing_is_left_of_flights_and_fills_wherever_one_leaves() {
    let key = |path| CacheKey::new(KeyParts { prefix: "", scheme: "http", authority: "h", path, query: None });
    let fields = [(http::header::CONTENT_TYPE, http::HeaderValue::from_static("a/b"))].into_iter().collect();
    let content = metadata(&fields).expect("it may be keyed").digest(b"q");
    let keys = [key("/a"), key("/b"), key("/a").with_content(&content)];
    for seed in seeds(20_000) {
        let mut rng = Rng::with_seed(seed);
        let flights = Flights::new(rng.usize(1..4));
        let budget = Budget::new(rng.usize(0..2_000_000));
        let mut parts: Vec<Part> = Vec::new();
        for _ in 0..rng.usize(5..60) {
            if parts.is_empty() || rng.u8(..) < 60 {
                parts.push(match flights.join(FlightName::new(&keys[rng.usize(0..3)], 0)) {
                    Joined::Leader(landing) => {
                        let watch = rng.bool().then(|| landing.watch());
                        Part::Pilot(landing, watch)
                    }
                    Joined::Follower(follower) if rng.u8(..) < 60 => Part::Boards(Box::pin(follower.permits().take())),
                    Joined::Follower(follower) => Part::Waits(wait(follower)),
                });
                continue;
            }
            match rng.u8(0..20) {
                0 => flights.detach(keys[rng.usize(0..2)].hash()),
                1 => tokio::time::advance(Duration::from_secs(rng.u64(0..20))).await,
                _ => {}
            }
            let part = parts.swap_remove(rng.usize(..parts.len()));
            if rng.u8(..) < 40 {
                continue;
            }
            step(part, &mut rng, &budget, &mut parts);
        }
        while !parts.is_empty() {
            drop(parts.swap_remove(rng.usize(..parts.len())));
        }
        assert_eq!((flights.under_way(), flights.waiting()), (0, 0), "seed {seed}");
        assert_eq!(budget.held(), 0, "seed {seed}");
    }
}

fn wait(mut follower: Follower) -> Step<(Outcome, Follower)> {
    Box::pin(async move { (follower.outcome().await, follower) })
}

fn step(part: Part, rng: &mut Rng, budget: &Arc<Budget>, parts: &mut Vec<Part>) {
    match part {
        Part::Pilot(landing, Some(watch)) if rng.u8(..) < 30 => {
            watch.cancel();
            drop(landing);
        }
        Part::Pilot(mut landing, watch) => match rng.u8(0..5) {
            0 => landing.end(Outcome::Failed(UpstreamError::ResponseTimeout)),
            1 => landing.end(Outcome::NotShared),
            2 => {
                parts.push(Part::Waits(wait(landing.others())));
                parts.push(Part::Pilot(landing, watch));
            }
            _ => {
                let mut writer = Fill::start(rng.usize(0..1_000_000), Unread::Finite, Arc::clone(budget));
                if rng.bool() {
                    writer.on_overflow(rng.u64(..1 << 20), drop);
                }
                parts.extend((0..rng.usize(0..3)).filter_map(|_| writer.fill().reader()).map(Part::Reads));
                landing.publish(Outcome::NotShared);
                parts.push(Part::HasWriter(writer));
                parts.push(Part::Pilot(landing, watch));
            }
        },
        Part::Waits(mut waits) => match poll(&mut waits) {
            Some((_, follower)) if rng.bool() => parts.push(Part::Boards(Box::pin(follower.permits().take()))),
            Some(_) => {}
            None => parts.push(Part::Waits(waits)),
        },
        Part::Boards(mut boards) => match poll(&mut boards) {
            Some(landing) => parts.push(Part::Pilot(landing, None)),
            None => parts.push(Part::Boards(boards)),
        },
        Part::HasWriter(mut writer) => {
            let bytes = Bytes::from(vec![7; rng.usize(0..300_000)]);
            if rng.u8(..) < 50 {
                let body = writer.whole(&bytes).filter(|_| rng.bool());
                return writer.complete(bytes, body);
            }
            if rng.bool() {
                parts.extend(writer.fill().reader().map(Part::Reads));
            } else {
                parts.extend(writer.fill().background_reader(1 << 20).map(Part::Reads));
            }
            parts.push(Part::Writes(Box::pin(async move { writer.push(bytes).await.then_some(writer) })));
        }
        Part::Writes(mut writes) => match poll(&mut writes) {
            Some(writer) => parts.extend(writer.map(Part::HasWriter)),
            None => parts.push(Part::Writes(writes)),
        },
        Part::Reads(mut reader) => {
            let polled = Pin::new(&mut reader).poll_chunk(&mut Context::from_waker(Waker::noop()));
            if !matches!(polled, Poll::Ready(None | Some(Err(_)))) || rng.bool() {
                parts.push(Part::Reads(reader));
            }
        }
    }
}

/// An origin that does as it likes, sooner or later.
fn moody(seed: u64) -> impl Fn(&Seen, &mut Reply) + Send + Sync + 'static {
    let rng = std::sync::Mutex::new(Rng::with_seed(seed));
    move |seen, reply| {
        let (mood, pause) = {
            let mut rng = rng.lock().unwrap();
            (rng.u8(0..12), rng.u64(0..3))
        };
        std::thread::sleep(Duration::from_millis(pause));
        let etag = "Cache-Control: max-age=5, stale-while-revalidate=5, stale-if-error=20\nETag: \"v\"";
        match mood {
            0 => reply.hang_up(),
            1 => reply.send(200, "Cache-Control: no-store", "mine"),
            2 => reply.send(503, "", "busy"),
            3 => {
                reply.raw("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 100\r\n\r\nonly this");
                reply.hang_up();
            }
            4 => {
                reply.begin("Cache-Control: max-age=60\nVary: Accept-Language");
                for _ in 0..3 {
                    reply.chunk(&"x".repeat(30_000));
                }
                reply.end();
            }
            5 | 6 => reply.send(200, "Cache-Control: max-age=60", &"x".repeat(300_000)),
            7 => reply.send(200, etag, &"x".repeat(90_000)),
            _ if seen.head.get("if-none-match").is_some() => reply.send(304, etag, ""),
            _ => reply.send(200, etag, "small"),
        }
    }
}

/// Sends a request; whether its answer has no body.
fn ask(client: &mut Client, rng: &mut Rng) -> bool {
    let path = format!("/{}", rng.u8(0..4));
    let kind = rng.u8(0..10);
    match kind {
        0 => client.ask("HEAD", &path, ""),
        1 => client.ask("POST", &path, "Content-Length: 0"),
        2 => client.ask("GET", &path, "Cache-Control: no-cache"),
        3 => client.ask("GET", &path, "Range: bytes=10-20000"),
        4 => client.ask("GET", &path, "Authorization: me"),
        5 => client.ask("GET", &path, &format!("Accept-Language: {}", rng.u8(0..3))),
        _ => client.ask("GET", &path, ""),
    }
    kind == 0
}

/// The whole of it, over sockets.
#[test]
fn nothing_is_left_of_requests_wherever_their_clients_leave() {
    for (round, seed) in seeds(40).enumerate() {
        let mut rng = Rng::with_seed(seed);
        let origin = Origin::new(moody(seed));
        let directory = tempfile::tempdir().expect("a directory");
        let mut config = String::from(
            "memory.max_object_size=128KiB\nmemory.fill_budget=512KiB\ncache.collapse_timeout=1ms\nupstream.breaker_pause=1ms\ndurable.min_lifetime=0s\nserver.drain_timeout=30s\n",
        );
        if round % 2 == 0 {
            config += &file_url(directory.path());
        }
        let larder = Larder::new(&origin, &config);
        let proxy = Arc::clone(larder.running().proxy());
        let mut clients: Vec<(Client, bool)> = Vec::new();
        for _ in 0..150 {
            match rng.u8(0..20) {
                0 => drop(larder.purge(&format!("http://site.example/{}", rng.u8(0..4)))),
                1 => larder.advance(rng.u64(1..8)),
                2..=9 => {
                    let mut client = larder.client();
                    let is_head = ask(&mut client, &mut rng);
                    clients.push((client, is_head));
                }
                _ if clients.is_empty() => {}
                10..=12 => {
                    let (mut client, is_head) = clients.swap_remove(rng.usize(..clients.len()));
                    let has_body = |head: Head| head.line.contains(" 200") && head.get("content-length") != Some("0");
                    if client.head().is_some_and(has_body) && !is_head && rng.bool() {
                        let _ = client.bytes(1);
                    }
                }
                13 => {
                    let (mut client, is_head) = clients.swap_remove(rng.usize(..clients.len()));
                    let _ = if is_head { client.head().is_some() } else { client.try_answer().is_ok() };
                }
                _ => drop(clients.swap_remove(rng.usize(..clients.len()))),
            }
        }
        if round % 4 == 3 {
            // Stopped in the middle of it all.
            drop(clients);
            larder.stop();
        } else {
            drop(clients);
            eventually("all tasks end", || proxy.fetches().is_empty());
            // Nothing is in the way of anybody.
            origin.script(|_, reply| reply.send(200, "Cache-Control: no-store", "well"));
            for path in 0..4 {
                let status = larder.get(&format!("/{path}"), "").status();
                assert!(status == 200, "seed {seed}: {status}");
            }
            eventually("all tasks end", || proxy.fetches().is_empty());
        }
        let usage = proxy.usage();
        assert_eq!((usage.flights, usage.waiting), (0, 0), "seed {seed}");
        eventually("nothing is held", || proxy.usage().held == 0);
        assert_eq!(proxy.usage().unattended_left, larder::fetch::MAX_UNATTENDED as u64, "seed {seed}");
    }
}
