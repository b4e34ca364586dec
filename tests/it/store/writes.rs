//! Tests writes that the durable tier does not take: they wait, are tried again, and what is lost is told.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::support::{Origin, Place, Process, S3, eventually, larder, packs};

const SETS: &[&str] = &["durable.breaker_pause=100ms", "durable.drain_timeout=1s"];

const ALL_IS_WRITTEN: &str = "every response that was to be written to the durable tier is written";

/// Stops it, and gives what it said.
fn stopped(mut larder: Process) -> String {
    larder.signal("-TERM");
    assert_eq!(larder.wait(), Some(0), "{}", larder.log());
    eventually("it has said that it stopped", || larder.log().contains("stopped"));
    larder.log()
}

fn store(larder: &Process, count: usize) {
    let mut client = larder.client();
    for n in 0..count {
        assert_eq!(client.get(&format!("/{n}"), "").status(), 200);
    }
}

fn waiting(larder: &Process) -> bool {
    larder.metric("larder_durable_down ") == 1
}

/// Returns what another process finds, after this one's end by `kill -9`.
fn found(place: &Place, count: usize) -> usize {
    let larder = place.start_before("http://127.0.0.1:1", &["memory.capacity=0"]);
    eventually("the index is loaded", || larder.metric("larder_index_loaded") == 1);
    (0..count).filter(|n| larder.get(&format!("/{n}"), "").hit() == Some("durable")).count()
}

#[test]
fn what_is_stored_while_the_bucket_is_away_is_written_when_it_is_back() {
    let (mut place, origin) = (Place::s3(), Origin::long_lived());
    let larder = place.start(&origin, SETS);
    place.s3.as_mut().expect("a server").stop();
    store(&larder, 30);
    eventually("it counts as down", || waiting(&larder));
    assert_eq!(larder.get("/7", "").hit(), Some("memory"));
    place.s3.as_mut().expect("a server").restart();
    larder.settle();
    eventually("nothing waits", || !waiting(&larder));
    let log = larder.log();
    assert!(log.matches("WARN").count() < 10, "a line a minute, not one a response: {log}");
    assert!(stopped(larder).contains(ALL_IS_WRITTEN));
    assert_eq!(found(&place, 30), 30);
}

/// The bucket goes away, refuses, and fails for writes alone: in each case the stop tells the truth.
#[test]
fn what_still_waits_at_the_stop_is_told() {
    for what in ["away", "refuses", "fails"] {
        let (mut place, origin) = (Place::s3(), Origin::long_lived());
        let larder = place.start(&origin, SETS);
        let s3 = place.s3.as_mut().expect("a server");
        match what {
            "away" => s3.stop(),
            "refuses" => s3.refuse(|method, _| (method == "PUT").then_some((403, "AccessDenied", "Not today"))),
            _ => s3.refuse(|method, _| (method == "PUT").then_some((503, "SlowDown", "Not now"))),
        }
        store(&larder, 30);
        eventually("writes wait", || waiting(&larder));
        let log = stopped(larder);
        assert!(!log.contains(ALL_IS_WRITTEN), "{what}: {log}");
        assert!(log.contains("30 responses were not written to the durable tier"), "{what}: {log}");
        assert!(log.contains("30 responses still waited when durable.drain_timeout (1 s) had passed"), "{what}: {log}");
        assert!(what != "refuses" || log.contains("403 AccessDenied: Not today"), "{log}");
        assert!(log.matches("WARN").count() < 12, "{what}: {log}");
    }
}

#[test]
fn a_bucket_that_is_back_at_the_stop_gets_what_waits() {
    let (mut place, origin) = (Place::s3(), Origin::long_lived());
    let sets = ["durable.breaker_pause=10m", "durable.drain_timeout=20s"];
    let larder = place.start(&origin, &sets);
    place.s3.as_mut().expect("a server").stop();
    store(&larder, 10);
    eventually("writes wait", || waiting(&larder));
    place.s3.as_mut().expect("a server").restart();
    assert!(stopped(larder).contains(ALL_IS_WRITTEN));
    assert_eq!(found(&place, 10), 10);
}

#[test]
fn a_refused_write_is_found_at_the_start() {
    for (status, code, message) in [
        (403, "AccessDenied", "User is not authorized to perform: kms:GenerateDataKey"),
        (400, "KMS.DisabledException", "The key is disabled"),
        (
            400,
            "InvalidRequest",
            "Content-MD5 HTTP header is required for Put Object requests with Object Lock parameters",
        ),
    ] {
        let (place, origin) = (Place::s3(), Origin::long_lived());
        let s3 = place.s3.as_ref().expect("a server");
        s3.refuse(move |method, _| (method == "PUT").then_some((status, code, message)));
        let sets: Vec<&str> = place.sets.iter().map(String::as_str).collect();
        let all = [&["server.listen=127.0.0.1:0", "admin.listen=off"], &sets[..]].concat();
        let ran = larder(&all).output().expect("it runs");
        let told = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!((ran.status.code(), told.lines().count()), (Some(1), 1), "{told}");
        assert!(told.contains(code) && told.contains(message), "{told}");
        let probes = s3.count("PUT", "any/prefix/larder-1/probe");
        assert!(probes > 0 && s3.count("PUT", "") == probes, "by one name, below its own prefix");

        let larder = place.start(&origin, &[SETS, &["durable.required=false"]].concat());
        assert!(larder.log().contains("going on without it") && larder.log().contains(message), "{}", larder.log());
        store(&larder, 30);
        assert!(waiting(&larder));
        assert_eq!(s3.count("PUT", ".pack"), 0, "nothing but the probe is tried");
        assert!(larder.log().matches("WARN").count() < 6, "{}", larder.log());
        s3.allow();
        larder.settle();
        larder.kill_9();
        assert_eq!(found(&place, 30), 30);
    }
}

/// Has the next pack refused for good: all requests for its name. Returns that name, once it was asked for.
fn refuse_next_pack(s3: &S3, status: u16, code: &'static str, message: &'static str) -> Arc<OnceLock<String>> {
    let refused = Arc::new(OnceLock::new());
    let name = Arc::clone(&refused);
    s3.refuse(move |method, path| {
        if method != "PUT" || !path.contains(".pack") {
            return None;
        }
        let path = path.split('?').next().expect("a path");
        (name.get_or_init(|| path.to_owned()) == path).then_some((status, code, message))
    });
    refused
}

#[test]
fn a_pack_that_is_not_taken_is_dropped_alone() {
    for (status, code) in
        [(400, "InvalidRequest"), (413, "EntityTooLarge"), (500, "InternalError"), (403, "AccessDenied")]
    {
        let (place, origin) = (Place::s3(), Origin::long_lived());
        let s3 = place.s3.as_ref().expect("a server");
        let larder = place.start(&origin, &[SETS, &["durable.writers=2"]].concat());
        let refused = refuse_next_pack(s3, status, code, "Not this one");
        larder.get("/bad", "");
        eventually("it is refused", || refused.get().is_some());
        store(&larder, 30);
        larder.settle();
        let lost = larder.metric("larder_durable_lost_total{why=\"not-taken\"}");
        assert_eq!(lost, 1, "{code}: {}", larder.log());
        let log = stopped(larder);
        assert!(log.contains("1 were not taken by the tier") && !log.contains(ALL_IS_WRITTEN), "{code}: {log}");
        assert_eq!(found(&place, 30), 30, "{code}");
    }
}

#[test]
fn a_separate_body_that_is_not_taken_is_dropped_alone() {
    let (place, origin) = (Place::s3(), Origin::long_lived());
    let s3 = place.s3.as_ref().expect("a server");
    let larder = place.start(&origin, &[SETS, &["durable.inline_size=1KiB"]].concat());
    s3.refuse(|method, path| {
        (method == "PUT" && path.contains("/b/")).then_some((413, "EntityTooLarge", "Not this one"))
    });
    let long = format!("/{}", "long".repeat(20));
    assert_eq!(larder.get(&long, "").status(), 200);
    store(&larder, 30);
    larder.settle();
    assert_eq!(larder.metric("larder_durable_lost_total{why=\"not-taken\"}"), 1, "{}", larder.log());
    assert!(stopped(larder).contains("1 were not taken by the tier"));
    assert_eq!(found(&place, 30), 30);
}

/// As a proxy before the service does, that bounds the length of what it passes on.
#[test]
fn a_pack_that_is_too_large_for_the_service_is_written_in_halves() {
    let origin = Origin::new(|seen, reply| reply.send(200, "Cache-Control: max-age=6000", &seen.path().repeat(10_000)));
    let place = Place::s3();
    let s3 = place.s3.as_ref().expect("a server");
    let larder = place.start(&origin, &[SETS, &["durable.pack_interval=10m", "durable.drain_timeout=20s"]].concat());
    store(&larder, 30);
    let refused = refuse_next_pack(s3, 413, "EntityTooLarge", "Not so much");
    assert!(stopped(larder).contains(ALL_IS_WRITTEN));
    assert!(refused.get().is_some());
    assert_eq!(packs(&place).len(), 2);
    assert_eq!(found(&place, 30), 30);
}

#[test]
fn what_finds_the_queue_full_is_counted_and_told() {
    let (mut place, origin) = (Place::s3(), Origin::long_lived());
    let larder = place.start(&origin, &[SETS, &["durable.queue_objects=5"]].concat());
    place.s3.as_mut().expect("a server").stop();
    store(&larder, 20);
    assert_eq!(larder.metric("larder_durable_lost_total{why=\"queue-full\"}"), 15);
    assert_eq!(larder.metric("larder_durable_operations_total{op=\"put\",outcome=\"dropped\"}"), 15);
    place.s3.as_mut().expect("a server").restart();
    larder.settle();
    let log = stopped(larder);
    assert!(log.contains("15 found the queue full") && !log.contains(ALL_IS_WRITTEN), "{log}");
    assert_eq!(found(&place, 20), 5);
}

#[test]
fn what_waits_is_answered_for_purged_and_written_in_its_order() {
    let (mut place, origin) = (Place::s3(), Origin::long_lived());
    let larder = place.start(&origin, &[SETS, &["memory.capacity=0"]].concat());
    place.s3.as_mut().expect("a server").stop();
    store(&larder, 4);
    let asked = origin.count();
    assert_eq!(larder.get("/1", "").hit(), Some("durable"), "the queue has it");
    assert_eq!(origin.count(), asked);
    origin.script(|_, reply| reply.send(200, "Cache-Control: max-age=6000", "newer"));
    assert_eq!(larder.get("/1", "Cache-Control: no-cache").text(), "newer");
    // In force, and not recorded yet.
    larder.client().send("DELETE", "/2", "");
    assert_eq!(larder.get("/2", "Cache-Control: no-store").hit(), None);
    place.s3.as_mut().expect("a server").restart();
    larder.settle();
    larder.kill_9();
    let larder = place.start_before("http://127.0.0.1:1", &["memory.capacity=0"]);
    eventually("the index is loaded", || larder.metric("larder_index_loaded") == 1);
    assert_eq!((larder.get("/1", "").hit(), larder.get("/1", "").text().as_str()), (Some("durable"), "newer"));
    assert_eq!(larder.get("/2", "").status(), 502);
    assert_eq!(larder.get("/3", "").hit(), Some("durable"));
}

#[test]
fn a_deletion_is_tried_until_it_succeeds_and_holds_up_nothing() {
    let (place, origin) = (Place::s3(), Origin::long_lived());
    let s3 = place.s3.as_ref().expect("a server");
    let larder = place.start(&origin, &[SETS, &["durable.writers=1", "memory.capacity=0"]].concat());
    store(&larder, 5);
    larder.settle();
    // A response would be given up by then.
    let tried = AtomicUsize::new(0);
    s3.refuse(move |method, path| {
        let is_refused = method == "PUT" && path.contains(".pack") && tried.fetch_add(1, Ordering::SeqCst) < 5;
        is_refused.then_some((400, "InvalidRequest", "Nothing is deleted here"))
    });
    let before = s3.count("PUT", ".pack");
    larder.client().send("DELETE", "/1", "");
    eventually("it is tried again and again", || s3.count("PUT", ".pack") > before + 2);
    assert_eq!(larder.get("/1", "Cache-Control: no-store").hit(), None, "in force all the while");
    assert_eq!(larder.get("/2", "").hit(), Some("durable"));
    assert_eq!(larder.purge("http://site.example/3").status(), 200, "it is recorded");
    larder.settle();
    assert!(s3.count("PUT", ".pack") > before + 5);
    assert_eq!(larder.log().matches("Nothing is deleted here").count(), 1, "{}", larder.log());
    assert!(stopped(larder).contains(ALL_IS_WRITTEN));
    assert_eq!(found(&place, 5), 3);
}
