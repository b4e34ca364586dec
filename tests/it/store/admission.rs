//! Tests which responses are worth a write to the durable tier.

use crate::support::tagged::tagged;
use crate::support::{Larder, Origin, Place, eventually, file_url};

#[test]
fn what_is_used_often_enough_is_written_and_no_sooner() {
    let (origin, directory) = (tagged(), tempfile::tempdir().expect("a directory"));
    let config = format!("{}\ndurable.after_hits=3", file_url(directory.path()));
    let larder = Larder::new(&origin, &config);
    larder.get("/blog/1", "");
    larder.get("/blog/1", "");
    larder.get("/shop/1", "");
    larder.settle();
    let puts = || larder.metric("larder_durable_entries_total ");
    assert_eq!(puts(), 0);
    larder.get("/blog/1", "");
    larder.settle();
    assert_eq!(puts(), 1);
    larder.get("/blog/1", "");
    larder.settle();
    assert_eq!(puts(), 1, "once");
    assert!(larder.metric("larder_durable_saved_total{why=\"after-hits\"}") >= 2);
    drop(larder);
    let larder = Larder::new(&origin, &config);
    assert_eq!(larder.get("/blog/1", "").hit(), Some("durable"));
    assert_eq!(larder.get("/shop/1", "").hit(), None);
}

#[test]
fn uses_are_counted_of_a_variant() {
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=600\nVary: X-Theme", "page"));
    let directory = tempfile::tempdir().unwrap();
    let config = format!("durable.url=file:{}\ndurable.after_hits=3", directory.path().display());
    let larder = Larder::new(&origin, &config);
    for n in 0..5 {
        larder.get("/a", &format!("X-Theme: {n}"));
    }
    larder.settle();
    assert_eq!(larder.metric("larder_durable_entries_total "), 0, "each was used once");
    for _ in 0..2 {
        larder.get("/a", "X-Theme: 1");
    }
    larder.settle();
    assert_eq!(larder.metric("larder_durable_entries_total "), 1);
}

#[test]
fn a_budget_bounds_the_packs_and_nothing_else() {
    let (place, origin) = (Place::s3(), Origin::long_lived());
    let s3 = place.s3.as_ref().expect("a server");
    // A day's worth is two, and they come half a day apart.
    let larder = place.start(&origin, &["memory.capacity=0", "durable.monthly_writes=60", "durable.drain_timeout=20s"]);
    larder.get("/first", "");
    larder.settle();
    assert_eq!(s3.count("PUT", ".pack"), 1, "while there is budget, packs come as ever");
    for n in 0..20 {
        larder.get(&format!("/{n}"), "");
    }
    assert_eq!(larder.purge("http://site.example/first").status(), 200, "purges are written whatever it says");
    let listed = s3.count("GET", "list-type=2");
    eventually("many intervals have passed", || s3.count("GET", "list-type=2") > listed + 5);
    // The purge deletes as well.
    assert_eq!((s3.count("PUT", ".pack"), larder.metric("larder_durable_queue_objects")), (1, 21), "{}", larder.log());
    for n in 0..20 {
        assert_eq!(larder.get(&format!("/{n}"), "").hit(), Some("durable"), "what waits is served");
    }
    let mut larder = larder;
    larder.signal("-TERM");
    assert_eq!(larder.wait(), Some(0));
    assert_eq!(s3.count("PUT", ".pack"), 2, "at the stop it is written: {}", larder.log());
    let larder = place.start_before("http://127.0.0.1:1", &["memory.capacity=0"]);
    for n in 0..20 {
        assert_eq!(larder.get(&format!("/{n}"), "").hit(), Some("durable"));
    }
    assert_eq!(larder.get("/first", "").status(), 502);
}

#[test]
fn separate_bodies_count_towards_the_budget() {
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=600", &"x".repeat(100_000)));
    let place = Place::s3();
    let s3 = place.s3.as_ref().expect("a server");
    let larder = place.start(&origin, &["durable.monthly_writes=60", "durable.inline_size=50KiB"]);
    for n in 0..5 {
        assert_eq!(larder.get(&format!("/{n}"), "").status(), 200);
    }
    assert_eq!(larder.metric("larder_durable_saved_total{why=\"budget\"}"), 3);
    eventually("two bodies are written", || s3.count("PUT", "/b/") == 2);
}
