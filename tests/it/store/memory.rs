//! Tests what memory keeps when it is full.

use std::array;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::{Client, Larder, Origin, at_once, file_url};

const POLICIES: [&str; 2] = ["tinylfu", "lru"];

/// The policy, and room for about 200 pages.
fn config(policy: &str) -> String {
    format!("memory.capacity=1MiB\nmemory.policy={policy}")
}

/// Pages of 4 KiB. Those below `/vary/` are in two languages.
fn pages() -> Origin {
    let body = "x".repeat(4096);
    Origin::new(move |seen, reply| {
        let vary = if seen.path().starts_with("/vary/") { "Vary: Accept-Language\n" } else { "" };
        reply.send(200, &format!("{vary}Cache-Control: max-age=600"), &body);
    })
}

/// Asks for so many pages, and returns how many memory had.
fn visit(client: &mut Client, name: &str, pages: usize) -> usize {
    (0..pages).filter(|n| client.get(&format!("/{name}/{n}"), "").hit() == Some("memory")).count()
}

/// Fills memory with pages that are asked for once, after 40 that are asked for more often.
fn fill(client: &mut Client) {
    for _ in 0..4 {
        visit(client, "hot", 40);
    }
    visit(client, "first", 300);
}

#[test]
fn what_was_just_stored_is_there_for_whoever_asks_next() {
    let origin = pages();
    for policy in POLICIES {
        let larder = Larder::new(&origin, &config(policy));
        let mut client = larder.client();
        fill(&mut client);
        for n in 0..100 {
            let path = format!("/new/{n}");
            assert_eq!(client.get(&path, "").hit(), None);
            let answers = (0..3).map(|_| larder.get(&path, "").hit());
            assert_eq!(answers.collect::<Vec<_>>(), [Some("memory"); 3], "{policy}: {path}");
        }
        let (objects, bytes) = (larder.metric("larder_memory_objects"), larder.metric("larder_memory_bytes"));
        assert!((150..260).contains(&objects) && bytes <= 1 << 20, "{policy}: {objects} of {bytes}");
    }
}

#[test]
fn one_clients_scan_does_not_evict_what_others_use() {
    let origin = pages();
    for (policy, stays) in [("tinylfu", 40), ("lru", 0)] {
        let larder = Larder::new(&origin, &config(policy));
        let mut client = larder.client();
        fill(&mut client);
        assert_eq!(visit(&mut larder.client(), "scan", 600), 0);
        assert_eq!(visit(&mut client, "hot", 40), stays, "{policy}");
    }
}

#[test]
fn what_memory_does_not_admit_is_in_the_durable_tier() {
    let (origin, directory) = (pages(), tempfile::tempdir().expect("a directory"));
    let durable = format!("{}\ndurable.min_lifetime=0s\ndurable.lookup_timeout=20s", file_url(directory.path()));
    let larder = Larder::new(&origin, &format!("{durable}\n{}", config("tinylfu")));
    let mut client = larder.client();
    fill(&mut client);
    visit(&mut client, "scan", 100);
    larder.settle();
    let asked = origin.requests.value();
    let found: Vec<_> = (0..80).map(|n| client.get(&format!("/scan/{n}"), "").hit()).collect();
    assert!(found.iter().all(Option::is_some));
    let durable = found.iter().filter(|tier| **tier == Some("durable")).count();
    assert!(durable > 60, "{durable}: memory admits few of a scan");
    assert_eq!(visit(&mut client, "hot", 40), 40, "what was read from there does not evict them either");
    assert_eq!(origin.requests.value(), asked);
}

#[test]
fn variants_are_found_among_scans() {
    let origin = pages();
    let larder = Larder::new(&origin, &config("tinylfu"));
    let mut client = larder.client();
    fill(&mut client);
    let languages = ["Accept-Language: en", "Accept-Language: de"];
    let hits = |client: &mut Client| {
        let asked = languages.iter().flat_map(|fields| (0..10).map(move |n| (format!("/vary/{n}"), *fields)));
        asked.filter(|(path, fields)| client.get(path, fields).hit() == Some("memory")).count()
    };
    for _ in 0..8 {
        hits(&mut client);
    }
    visit(&mut client, "scan", 600);
    assert_eq!(hits(&mut client), 20);
}

/// A small memory, in which entries are on the move all the time. Pages are purged by URL and, all at once, by tag.
#[test]
fn no_move_in_memory_undoes_a_purge() {
    const PAGES: usize = 8;
    for policy in POLICIES {
        let versions: Arc<[AtomicUsize; PAGES]> = Arc::new(array::from_fn(|_| AtomicUsize::new(0)));
        let origin = Origin::new({
            let versions = Arc::clone(&versions);
            move |seen, reply| {
                let n: usize = seen.path()[1..].parse().expect("a number");
                let version = versions.get(n).map_or(0, |version| version.load(Ordering::SeqCst));
                reply.send(200, "Cache-Control: max-age=600\nCache-Tag: page", &format!("{version:<4000}"));
            }
        });
        let larder = Arc::new(Larder::new(&origin, &format!("memory.capacity=64KiB\nmemory.policy={policy}")));
        let purged: Arc<[AtomicUsize; PAGES]> = Arc::new(array::from_fn(|_| AtomicUsize::new(0)));
        let is_over = Arc::new(AtomicBool::new(false));
        at_once(4, move |thread| {
            let mut client = larder.client();
            let mut random = fastrand::Rng::with_seed(thread as u64);
            if thread == 0 {
                for round in 1..80 {
                    let n = random.usize(..PAGES);
                    let by_tag = round % 8 == 0;
                    let covered = if by_tag { 0..PAGES } else { n..n + 1 };
                    let is_now = covered.clone().map(|n| versions[n].fetch_add(1, Ordering::SeqCst) + 1);
                    let is_now: Vec<usize> = is_now.collect();
                    let answer = if by_tag {
                        larder.purge_of(r#"{"tag": "page"}"#)
                    } else {
                        larder.purge(&format!("http://site.example/{n}"))
                    };
                    assert_eq!(answer.status(), 200, "{}", answer.text());
                    covered.zip(is_now).for_each(|(n, version)| purged[n].store(version, Ordering::SeqCst));
                }
                is_over.store(true, Ordering::SeqCst);
            }
            let mut scanned = PAGES + thread * 1_000_000;
            while !is_over.load(Ordering::SeqCst) {
                let n = random.usize(..PAGES);
                let least = purged[n].load(Ordering::SeqCst);
                let version: usize = client.get(&format!("/{n}"), "").text().trim().parse().expect("a version");
                assert!(version >= least, "{policy}: version {version} of page {n}, after {least} was purged");
                scanned += 1;
                client.get(&format!("/{scanned}"), "");
            }
        });
    }
}
