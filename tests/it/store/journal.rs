//! Tests the journal: purges reach every process that shares a place, and a start knows what is stored there.

use std::net::SocketAddr;

use crate::support::tagged::{KINDS, PATHS, others, soft, tagged};
use crate::support::{Answer, Larder, Origin, Place, Process, S3, START, bucket, eventually, metric, post};
use larder::base::Clock;

/// One of several on one place: here, with a clock of its own, or a process, with credentials of its own.
enum Node {
    Here(Larder),
    Process(Process),
}

impl Node {
    fn start(upstream: &str, config: &str, skew: i64) -> Self {
        if config.contains("s3://") {
            Self::Process(Process::start(upstream, &config.lines().collect::<Vec<_>>()))
        } else {
            Self::Here(Larder::at(upstream, config, Clock::manual(START.plus_millis(skew))))
        }
    }

    fn get(&self, path: &str) -> Answer {
        match self {
            Self::Here(larder) => larder.get(path, ""),
            Self::Process(larder) => larder.get(path, ""),
        }
    }

    fn admin(&self) -> SocketAddr {
        match self {
            Self::Here(larder) => larder.admin,
            Self::Process(larder) => larder.admin,
        }
    }

    fn metric(&self, line_start: &str) -> u64 {
        metric(self.admin(), line_start)
    }

    fn purge_of(&self, what: &str) -> Answer {
        post(self.admin(), "/purge", what)
    }

    fn settle(&self) {
        eventually("everything is written", || self.metric("larder_durable_queue_objects") == 0);
    }

    fn hits(&self) -> Vec<usize> {
        (0..PATHS.len()).filter(|n| self.get(PATHS[*n]).hit().is_some()).collect()
    }
}

/// Two on one place, where they are here with clocks ten seconds apart.
fn two(origin: &Origin, config: &str) -> [Node; 2] {
    let upstream = origin.url();
    [5000, -5000].map(|skew| Node::start(&upstream, config, skew))
}

#[test]
fn a_purge_on_one_process_is_a_purge_on_all() {
    for place in Place::all() {
        let config = place.sets.join("\n");
        let origin = tagged();
        for is_soft in [false, true] {
            let [here, there] = two(&origin, &config);
            here.hits();
            here.settle();
            assert_eq!(here.hits().len(), PATHS.len());
            here.settle();
            for (what, covered) in KINDS {
                there.hits();
                assert_eq!(there.hits().len(), PATHS.len());
                there.settle();
                let what = if is_soft { soft(what) } else { (*what).to_owned() };
                let known = there.metric("larder_purge_position");
                assert_eq!(here.purge_of(&what).status(), 200, "{what}");
                // Under both schemes there are three keys and two prefixes, unless a port is named; and each
                // key is two, since what is stored for several queries goes as well.
                let has_port = what.contains(":8080");
                let told = match (what.contains("\"url\""), what.contains("exact")) {
                    (true, true) => 2,
                    (true, false) => {
                        if has_port {
                            4
                        } else {
                            6
                        }
                    }
                    (false, false) if what.contains("://") => 2,
                    (false, _) => 1,
                };
                eventually("it is known there", || there.metric("larder_purge_position") >= known + told);
                assert_eq!(there.hits(), others(covered), "{what}");
            }
            // A new process knows of them, and of everything after them.
            there.settle();
            here.settle();
            drop(here);
            drop(there);
            let anew = Node::start("http://127.0.0.1:1", &config, 0);
            eventually("the index is loaded", || anew.metric("larder_index_loaded") == 1);
            assert_eq!(anew.hits().len(), PATHS.len());
            anew.purge_of(r#"{"all": true}"#);
        }
    }
}

#[test]
fn a_purge_that_cannot_be_recorded_is_in_force_and_recorded_when_it_can_be() {
    let directory = tempfile::tempdir().expect("a directory");
    bucket(directory.path());
    let mut s3 = S3::start(directory.path(), 0);
    let (origin, config) = (tagged(), s3.sets("larder-bucket").join("\n"));
    let [here, there] = two(&origin, &config);
    here.hits();
    here.settle();
    // Both have all of it in memory.
    there.hits();
    assert_eq!((here.hits().len(), there.hits().len()), (PATHS.len(), PATHS.len()));
    here.settle();
    there.settle();
    s3.stop();
    let admin = here.admin();
    let purge = std::thread::spawn(move || post(admin, "/purge", r#"{"tag": "blog"}"#));
    let answer = purge.join().expect("no panic");
    assert_eq!(answer.status(), 502, "{}", answer.text());
    assert!(answer.text().contains("purged here"), "{}", answer.text());
    assert_eq!(here.hits(), others(&[0, 1]), "in force here");
    let known = there.metric("larder_purge_position");
    s3.restart();
    eventually("it is known there", || there.metric("larder_purge_position") > known);
    eventually("the tier is in use again", || there.metric("larder_durable_down ") == 0);
    for path in &PATHS[..2] {
        assert_ne!(there.get(path).hit(), Some("memory"), "what it has from before is gone");
    }
    assert_eq!(there.get(PATHS[2]).hit(), Some("memory"));
}

#[test]
fn a_start_without_anything_of_its_own_is_warm_and_misses_ask_for_nothing() {
    for place in Place::all() {
        let origin = tagged();
        let larder = place.start(&origin, &[]);
        for n in 0..100 {
            larder.get(&format!("/warm/{n}"), "");
        }
        larder.settle();
        larder.kill_9();
        let asked = origin.count();
        let larder = place.start(&origin, &[]);
        for n in 0..100 {
            assert_eq!(larder.get(&format!("/warm/{n}"), "").hit(), Some("durable"), "{} {n}", place.name);
        }
        assert_eq!(origin.count(), asked);
        eventually("the index is loaded", || larder.metric("larder_index_loaded") == 1);
        // Of what this process looks for: what it reads to reclaim space is no miss's.
        let looked_for = || larder.metric("larder_durable_requests_total{class=\"read\",purpose=\"look-up\"}");
        let (before, saved) = (looked_for(), larder.metric("larder_durable_saved_total{why=\"index\"}"));
        for n in 0..100 {
            assert_eq!(larder.get(&format!("/cold/{n}"), "").fwd(), Some("uri-miss"));
        }
        assert_eq!(looked_for(), before, "no object was asked for");
        assert_eq!(larder.metric("larder_durable_saved_total{why=\"index\"}"), saved + 100);
    }
}
