//! Tests what a purge covers: what is stored, what is under way, and what is read back after a restart.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use larder::base::Stopwatch;

use crate::support::tagged::{KINDS, PATHS, fill, hits, others, soft, tagged};
use crate::support::{Gate, Larder, Origin, Place, Process, at_once, eventually, file_url, post};

#[test]
fn a_purge_covers_what_it_names_and_nothing_else() {
    for durable in [false, true] {
        let (origin, directory) = (tagged(), tempfile::tempdir().expect("a directory"));
        let config = if durable { file_url(directory.path()) } else { String::new() };
        let larder = Larder::new(&origin, &config);
        fill(&larder);
        for (what, covered) in KINDS {
            let answer = larder.purge_of(what);
            assert_eq!(answer.status(), 200, "{what}: {}", answer.text());
            assert_eq!(hits(&larder), others(covered), "{what}");
            assert_eq!(hits(&larder).len(), PATHS.len(), "stored after the purge, it is good: {what}");
        }
    }
}

#[test]
fn a_soft_purge_leaves_what_can_be_validated_or_stand_in() {
    let (origin, directory) = (tagged(), tempfile::tempdir().expect("a directory"));
    let larder = Larder::new(&origin, &file_url(directory.path()));
    fill(&larder);
    for (what, covered) in KINDS {
        assert_eq!(larder.purge_of(&soft(what)).status(), 200, "{what}");
        for (n, path) in PATHS.iter().enumerate() {
            let answer = larder.get(path, "");
            if covered.contains(&n) {
                let status = answer.cache_status();
                assert!(status.starts_with("larder; fwd=stale; fwd-status=304; stored"), "{what} {path}: {status}");
            } else {
                assert!(answer.hit().is_some(), "{what} {path}: {}", answer.cache_status());
            }
            assert_eq!(answer.text(), *path);
        }
    }
    larder.purge_of(r#"{"all": true, "soft": true}"#);
    origin.script(|_, reply| reply.hang_up());
    let answer = larder.get("/shop/1", "");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "/shop/1"), "{}", answer.cache_status());
    larder.purge_of(r#"{"all": true}"#);
    assert_eq!(larder.get("/shop/1", "").status(), 502, "a hard one leaves nothing");
}

#[test]
fn no_client_undoes_a_soft_purge() {
    let up = Arc::new(AtomicBool::new(true));
    let is_up = Arc::clone(&up);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let origin = Origin::new(move |_, reply| {
        count.fetch_add(1, Ordering::SeqCst);
        let fields = "Cache-Control: max-age=60, stale-if-error=600";
        if is_up.load(Ordering::SeqCst) { reply.send(200, fields, "page") } else { reply.send(500, "", "down") }
    });
    let larder = Larder::new(&origin, "");
    for fields in
        ["Cache-Control: max-stale", "Cache-Control: max-stale=3600", "Cache-Control: max-stale, only-if-cached"]
    {
        larder.get("/a", "");
        larder.purge_of("{\"url\": \"http://site.example/a\", \"soft\": true}");
        let before = asked.load(Ordering::SeqCst);
        let answer = larder.get("/a", fields);
        let is_only_if_cached = fields.contains("only-if-cached");
        assert_eq!((answer.hit(), answer.status()), (None, if is_only_if_cached { 504 } else { 200 }), "{fields}");
        assert_eq!(asked.load(Ordering::SeqCst) - before, usize::from(!is_only_if_cached), "{fields}");
    }
    // For an origin that fails it still stands in.
    larder.get("/a", "");
    larder.purge_of("{\"url\": \"http://site.example/a\", \"soft\": true}");
    up.store(false, Ordering::SeqCst);
    assert_eq!(larder.get("/a", "").text(), "page");
}

#[test]
fn what_is_under_way_is_covered_by_purges_of_every_kind() {
    let origin = tagged();
    let larder = Larder::new(&origin, "");
    for what in [r#"{"tag": "t"}"#, r#"{"prefix": "/a"}"#, r#"{"all": true}"#, r#"{"tag": "t", "soft": true}"#] {
        let gate = Gate::default();
        let held = gate.clone();
        origin.script(move |_, reply| {
            held.wait();
            reply.send(200, "Cache-Control: max-age=600\nxkey: t", "before");
        });
        let asked = origin.count();
        let client = {
            let mut client = larder.client();
            std::thread::spawn(move || client.get("/a", "").text())
        };
        origin.requests.wait_for(asked + 1);
        assert_eq!(larder.purge_of(what).status(), 200);
        gate.open();
        assert_eq!(client.join().expect("no panic"), "before");
        origin.script(|_, reply| reply.send(200, "Cache-Control: max-age=600\nxkey: t", "after"));
        assert_eq!(larder.get("/a", "").text(), "after", "{what}");
        larder.purge_of(r#"{"all": true}"#);
    }
}

#[test]
fn what_is_under_way_is_covered_by_a_purge_of_the_other_scheme() {
    for what in ["{\"url\": \"https://site.example/slow\"}", "{\"prefix\": \"https://site.example/\"}"] {
        let (origin, gate) = Origin::gated();
        let larder = Larder::new(&origin, "");
        let mut client = larder.client();
        client.ask("GET", "/slow", "");
        origin.requests.wait_for(1);
        assert_eq!(larder.purge_of(what).status(), 200);
        gate.open();
        assert_eq!(client.answer().status(), 200);
        assert_eq!(larder.get("/slow", "").hit(), None, "{what}");
    }
}

#[test]
fn a_follower_gets_nothing_that_was_purged_while_it_waited() {
    for answer in [304, 0] {
        let gate = Gate::default();
        let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=1\nETag: \"a\"", "purged"));
        let larder = Arc::new(Larder::new(&origin, ""));
        larder.get("/a", "");
        larder.advance(2);
        origin.script({
            let gate = gate.clone();
            move |seen, reply| match seen.head.get("x-led") {
                Some(_) => {
                    gate.wait();
                    reply.send(500, "", "broken");
                }
                None if answer == 304 && seen.head.get("if-none-match").is_some() => {
                    reply.send(304, "Cache-Control: max-age=60\nETag: \"a\"", "");
                }
                None if answer == 304 => reply.send(200, "Cache-Control: max-age=60", "new"),
                None => reply.hang_up(),
            }
        });
        let mut leader = larder.client();
        leader.ask("GET", "/a", "X-Led: 1");
        origin.requests.wait_for(2);
        let follower = {
            let larder = Arc::clone(&larder);
            std::thread::spawn(move || larder.get("/a", "").text())
        };
        larder.wait_for_waiting(2);
        assert_eq!(larder.purge("http://site.example/a").status(), 200);
        gate.open();
        assert_eq!(leader.answer().status(), 500);
        assert_ne!(follower.join().expect("no panic"), "purged", "{answer}");
        assert_ne!(larder.get("/a", "").text(), "purged", "{answer}");
    }
}

#[test]
fn a_purge_during_a_durable_lookup_is_not_undone() {
    let directory = tempfile::tempdir().expect("a directory");
    let origin = Origin::new(|seen, reply| match seen.method() {
        "GET" => {
            let variant = seen.head.get("x-l").unwrap_or("none").to_owned();
            reply.send(200, "Cache-Control: max-age=600\nVary: X-L", &variant);
        }
        _ => reply.send(204, "", ""),
    });
    let larder = Arc::new(Larder::new(&origin, &file_url(directory.path())));
    for round in 0..40 {
        let path = format!("/{round}");
        larder.get(&path, "X-L: kept");
        // Lookups of other variants, under way while the URL is invalidated.
        let misses = {
            let (larder, path) = (Arc::clone(&larder), path.clone());
            std::thread::spawn(move || at_once(6, move |n| drop(larder.get(&path, &format!("X-L: {n}")))))
        };
        larder.client().send("POST", &path, "Content-Length: 0");
        let asked =
            origin.seen().iter().filter(|seen| seen.path() == path && seen.head.get("x-l") == Some("kept")).count();
        larder.get(&path, "X-L: kept");
        let again =
            origin.seen().iter().filter(|seen| seen.path() == path && seen.head.get("x-l") == Some("kept")).count();
        assert_eq!(again, asked + 1, "round {round}: what was invalidated came back");
        misses.join().expect("no panic");
    }
}

#[test]
fn an_invalidation_survives_kill_9_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let origin = Origin::new(|seen, reply| match seen.method() {
        "GET" => reply.send(200, "Cache-Control: max-age=600", "page"),
        _ => reply.send(204, "", ""),
    });
    let upstream = origin.url();
    let url = file_url(directory.path());
    for _ in 0..5 {
        let larder = Process::start(&upstream, &[&url]);
        larder.get("/a", "");
        larder.settle();
        assert_eq!(larder.client().send("DELETE", "/a", "").status(), 204);
        larder.kill_9();
        let larder = Process::start(&upstream, &[&url]);
        assert_eq!(larder.get("/a", "").hit(), None);
        larder.settle();
        larder.kill_9();
    }
}

/// Another process has just stored the page, which this one does not know yet.
#[test]
fn an_invalidation_covers_what_another_process_has_just_stored() {
    let directory = tempfile::tempdir().expect("a directory");
    let origin = Origin::new(|seen, reply| match seen.method() {
        "GET" => reply.send(200, "Cache-Control: max-age=600", "page"),
        _ => reply.send(204, "", ""),
    });
    let (upstream, url) = (origin.url(), file_url(directory.path()));
    let other = Process::start(&upstream, &[&url]);
    other.get("/first", "");
    other.settle();
    // Looks at its start, and then no more.
    let unaware = ["durable.poll_interval=1h", "durable.pack_interval=1h"];
    let larder = Process::start(&upstream, &[&[url.as_str()], &unaware[..]].concat());
    other.get("/a", "");
    other.settle();
    assert_eq!(larder.client().send("DELETE", "/a", "").status(), 204);
    larder.kill_9();
    other.kill_9();
    let larder = Process::start(&upstream, &[&url]);
    assert_eq!(larder.get("/first", "").hit(), Some("durable"));
    assert_eq!(larder.get("/a", "").hit(), None, "it was invalidated");
}

/// Clients ask two processes that share a directory to invalidate URLs that nothing has stored, as fast as they can.
#[test]
fn a_flood_of_invalidations_fills_a_shared_directory_with_few_records() {
    let directory = tempfile::tempdir().expect("a directory");
    let origin = Origin::new(|seen, reply| match seen.method() {
        "GET" => reply.send(200, "Cache-Control: max-age=600", "page"),
        _ => reply.send(204, "", ""),
    });
    let (upstream, url) = (origin.url(), file_url(directory.path()));
    let other = Process::start(&upstream, &[&url]);
    other.get("/shared", "");
    other.settle();
    let larder = Arc::new(Process::start(&upstream, &[&url]));
    eventually("it knows what the other stored", || larder.get("/shared", "").is_hit());
    let (begun, flooding) = (Stopwatch::start(), Arc::clone(&larder));
    at_once(16, move |client| {
        let mut connection = flooding.client();
        for n in 0..40 {
            assert_eq!(connection.send("POST", &format!("/never-stored/{client}/{n}"), "").status(), 204);
        }
    });
    let most = 60 + 5 * (begun.elapsed().as_secs() + 2);
    let records = larder.metric("larder_journal_written_total");
    assert!(records <= most, "{records} of {most}");
    assert_eq!(larder.client().send("POST", "/shared", "").status(), 204);
    eventually("the other follows", || other.get("/shared", "").hit().is_none());
}

#[test]
fn a_purge_outlives_the_process_that_took_it() {
    for place in Place::all() {
        let config = place.sets.join("\n");
        let origin = tagged();
        let sets: Vec<&str> = config.lines().collect();
        let start = || Process::start(&origin.url(), &sets);
        for what in [r#"{"tag": "blog"}"#, r#"{"prefix": "/blog/"}"#, r#"{"all": true}"#, KINDS[0].0] {
            let larder = start();
            larder.get("/blog/1", "");
            larder.settle();
            let answer = post(larder.admin, "/purge", what);
            assert_eq!(answer.status(), 200, "{}", answer.text());
            larder.kill_9();
            let larder = start();
            let answer = larder.get("/blog/1", "");
            assert_eq!(answer.hit(), None, "{what}: {}", answer.cache_status());
            larder.settle();
            larder.kill_9();
            let larder = start();
            eventually("the index is loaded", || larder.metric("larder_index_loaded") == 1);
            assert_eq!(larder.get("/blog/1", "").hit(), Some("durable"), "stored after {what}");
        }
    }
}
