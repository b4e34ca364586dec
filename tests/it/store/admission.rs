//! Tests which responses are worth a write to the durable tier.

use crate::support::tagged::{PATHS, fill, hits, tagged};
use crate::support::{Larder, Origin, file_url};

#[test]
fn what_is_used_often_enough_is_written_and_no_sooner() {
    let (origin, directory) = (tagged(), tempfile::tempdir().expect("a directory"));
    let config = format!("{}\ndurable.after_hits=3", file_url(directory.path()));
    let larder = Larder::new(&origin, &config);
    larder.get("/blog/1", "");
    larder.get("/blog/1", "");
    larder.get("/shop/1", "");
    larder.settle();
    let puts = || larder.metric("larder_durable_operations_total{op=\"put\",outcome=\"ok\"}");
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
    assert_eq!(larder.metric("larder_durable_operations_total{op=\"put\",outcome=\"ok\"}"), 0, "each was used once");
    for _ in 0..2 {
        larder.get("/a", "X-Theme: 1");
    }
    larder.settle();
    assert_ne!(larder.metric("larder_durable_operations_total{op=\"put\",outcome=\"ok\"}"), 0);
}

#[test]
fn a_budget_bounds_the_writes_and_nothing_else() {
    let (origin, directory) = (tagged(), tempfile::tempdir().expect("a directory"));
    // A day's worth is two.
    let config = format!("{}\ndurable.monthly_writes=60", file_url(directory.path()));
    let larder = Larder::new(&origin, &config);
    fill(&larder);
    larder.settle();
    assert_eq!(larder.metric("larder_durable_operations_total{op=\"put\",outcome=\"ok\"}"), 2);
    assert_eq!(larder.metric("larder_durable_saved_total{why=\"budget\"}"), 3);
    assert_eq!(hits(&larder).len(), PATHS.len());
    assert_eq!(larder.purge_of(r#"{"all": true}"#).status(), 200, "purges are written whatever it says");
}
