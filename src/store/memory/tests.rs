//! Tests of the memory tier.

mod values;

use std::collections::HashSet;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;

use super::*;
use crate::entry::{Body, sample_head};
use crate::rfc9111::fields::of_list as map;
use crate::rfc9111::key::KeyParts;

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

fn key(path: &str) -> CacheKey {
    CacheKey::new(KeyParts { prefix: "", scheme: "http", authority: "h", path, query: None })
}

fn stored(path: &str, vary: &'static str, request: &HeaderMap, body: &'static str) -> Arc<StoredResponse> {
    response(path, vary, request, Bytes::from_static(body.as_bytes()))
}

fn response(path: &str, vary: &'static str, request: &HeaderMap, body: Bytes) -> Arc<StoredResponse> {
    let fields = [("cache-control", "max-age=60"), ("vary", vary)];
    let head = sample_head(&key(path), request, &fields, NOW, (0, Arc::default()), Vec::new());
    Arc::new(StoredResponse::new(head, Body::from(body)))
}

/// Puts in a page of `len` bytes.
fn put(memory: &Memory, path: &str, len: usize) {
    let page = response(path, "", &HeaderMap::new(), Bytes::from(vec![b'x'; len]));
    memory.insert(&page, &|| None, &|| true);
}

fn asks(memory: &Memory, path: &str) -> bool {
    matches!(memory.lookup(&key(path), &HeaderMap::new()), Lookup::Found(_))
}

/// Asks for a page, and stores it if it is not there. Returns whether it was.
fn visit(memory: &Memory, path: &str, len: usize) -> bool {
    let is_there = asks(memory, path);
    if !is_there {
        put(memory, path, len);
    }
    is_there
}

/// Visits so many pages of 4 KiB.
fn visit_all(memory: &Memory, name: &str, pages: u32) {
    for n in 0..pages {
        visit(memory, &format!("/{name}/{n}"), 4096);
    }
}

fn is_there(memory: &Memory, path: &str) -> bool {
    matches!(memory.peek(&key(path), &HeaderMap::new()), Lookup::Found(_))
}

fn with(policy: MemoryPolicy, capacity: u64) -> Memory {
    Memory::new(&Config { capacity, policy, ..Config::default() })
}

const POLICIES: [MemoryPolicy; 2] = [MemoryPolicy::TinyLfu, MemoryPolicy::Lru];

/// A memory for about 200 pages of 4 KiB, full of pages that were asked for once each, after 40 that were used more often.
fn full(policy: MemoryPolicy) -> Memory {
    let memory = with(policy, 1 << 20);
    (0..4).for_each(|_| visit_all(&memory, "hot", 40));
    visit_all(&memory, "first", 300);
    memory
}

fn body_of(memory: &Memory, path: &str, request: &HeaderMap) -> Option<Bytes> {
    match memory.lookup(&key(path), request) {
        Lookup::Found(stored) => Some(stored.body().segments().concat().into()),
        Lookup::OtherVariants(_) | Lookup::Nothing => None,
    }
}

#[test]
fn variants_live_side_by_side_and_go_together() {
    let memory = Memory::new(&Config::default());
    let (en, de, fr) =
        (map(&[("accept-language", "en")]), map(&[("accept-language", "de")]), map(&[("accept-language", "fr")]));
    memory.insert(&stored("/a", "accept-language", &en, "english"), &|| None, &|| true);
    memory.insert(&stored("/a", "accept-language", &de, "deutsch"), &|| None, &|| true);
    assert_eq!(body_of(&memory, "/a", &en), Some(Bytes::from_static(b"english")));
    assert_eq!(body_of(&memory, "/a", &de), Some(Bytes::from_static(b"deutsch")));
    assert!(matches!(memory.lookup(&key("/a"), &fr), Lookup::OtherVariants(_)));
    assert!(matches!(memory.lookup(&key("/b"), &en), Lookup::Nothing));
    memory.remove(key("/a").hash(), || ());
    memory.insert(&stored("/a", "accept-language", &fr, "français"), &|| None, &|| true);
    assert_eq!(body_of(&memory, "/a", &en), None, "removed variants stay removed under a new record");
    assert_eq!(body_of(&memory, "/a", &fr), Some(Bytes::from_static("français".as_bytes())));
}

#[test]
fn a_changed_vary_keeps_what_it_had() {
    let memory = Memory::new(&Config::default());
    let both = map(&[("a", "1"), ("b", "1")]);
    let other = map(&[("a", "1"), ("b", "2")]);
    memory.insert(&stored("/a", "a, b", &both, "first"), &|| None, &|| true);
    memory.insert(&stored("/a", "b", &other, "second"), &|| None, &|| true);
    assert_eq!(body_of(&memory, "/a", &both), Some(Bytes::from_static(b"first")));
    assert_eq!(body_of(&memory, "/a", &other), Some(Bytes::from_static(b"second")));
}

#[test]
fn two_keys_with_one_hash_do_not_meet() {
    let memory = Memory::new(&Config::default());
    let none = HeaderMap::new();
    let mine = stored("/mine", "", &none, "mine");
    let yours = key("/yours").hash();
    memory.entries.change(yours).put(yours, MemoryEntry::Response(mine));
    assert_eq!(body_of(&memory, "/yours", &none), None);
}

#[test]
fn capacity_counts_fields_and_keys_too() {
    for policy in POLICIES {
        let memory = with(policy, 100_000);
        for n in 0..1000 {
            put(&memory, &format!("/{n}"), 0);
            let (objects, bytes) = memory.usage();
            assert!(bytes <= 100_000 && objects <= 180, "{policy:?}: {objects} of {bytes}");
        }
        assert!(memory.usage().0 > 100, "{policy:?}");
        assert!(is_there(&memory, "/999"), "{policy:?}: the newest stays");
        assert!(policy == MemoryPolicy::TinyLfu || !is_there(&memory, "/0"), "the least recently used goes");
    }
}

#[test]
fn no_capacity_keeps_nothing() {
    for policy in POLICIES {
        let memory = with(policy, 0);
        put(&memory, "/a", 1);
        assert!(!is_there(&memory, "/a"));
        assert_eq!(memory.usage(), (0, 0), "{policy:?}");
    }
}

/// moka's own admission refuses it as soon as it comes to it.
#[test]
fn what_was_just_stored_is_there_for_those_who_ask_next() {
    for policy in POLICIES {
        let memory = full(policy);
        for n in 0..300 {
            put(&memory, &format!("/new/{n}"), 4096);
            memory.usage();
            assert!((n - 3..=n).all(|n| n < 0 || is_there(&memory, &format!("/new/{n}"))), "{policy:?}: {n}");
        }
    }
}

#[test]
fn a_scan_leaves_what_is_used() {
    for (policy, stays) in [(MemoryPolicy::TinyLfu, 40), (MemoryPolicy::Lru, 0)] {
        let memory = full(policy);
        visit_all(&memory, "scan", 1000);
        memory.usage();
        assert_eq!((0..40).filter(|n| is_there(&memory, &format!("/hot/{n}"))).count(), stays, "{policy:?}");
    }
}

/// Old counts are halved, or what was popular once would keep out what is now.
#[test]
fn what_is_popular_now_takes_the_place_of_what_was() {
    let memory = full(MemoryPolicy::TinyLfu);
    (0..40).for_each(|_| visit_all(&memory, "hot", 40));
    (0..60).for_each(|_| visit_all(&memory, "now", 200));
    let now = (0..200).filter(|n| is_there(&memory, &format!("/now/{n}"))).count();
    assert!(now > 190, "{now}");
}

/// Evicts what was not used to make room for a record, whatever came first.
#[test]
fn what_was_used_is_spared() {
    let memory = full(MemoryPolicy::TinyLfu);
    let en = map(&[("accept-language", "en")]);
    for n in 0..1500 {
        assert_eq!((0..40).filter(|n| asks(&memory, &format!("/hot/{n}"))).count(), 40, "{n}");
        memory.insert(&stored(&format!("/v/{n}"), "accept-language", &en, ""), &|| None, &|| true);
    }
}

#[test]
fn uses_of_what_is_not_there_age_too() {
    let memory = full(MemoryPolicy::TinyLfu);
    let uses = |path: &str| match memory.peek(&key(path), &HeaderMap::new()) {
        Lookup::Found(stored) => memory.entries.uses_of_late(&stored.head.marks.uses),
        Lookup::OtherVariants(_) | Lookup::Nothing => 0,
    };
    let come_back = |path: &str| {
        memory.remove(key(path).hash(), || ());
        visit(&memory, path, 4096);
        uses(path)
    };
    assert_eq!(come_back("/hot/0"), 5);
    memory.remove(key("/hot/0").hash(), || ());
    visit_all(&memory, "scan", 8000);
    assert!(come_back("/hot/0") < 3);
}

#[test]
fn a_request_is_one_use() {
    let memory = with(MemoryPolicy::TinyLfu, 1 << 20);
    let uses = |memory: &Memory| match memory.peek(&key("/a"), &HeaderMap::new()) {
        Lookup::Found(stored) => stored.head.marks.uses.of_late(0),
        Lookup::OtherVariants(_) | Lookup::Nothing => 0,
    };
    assert!(!visit(&memory, "/a", 10));
    assert_eq!(uses(&memory), 1, "the miss");
    let page = stored("/a", "", &HeaderMap::new(), "page");
    for _ in 0..5 {
        assert!(is_there(&memory, "/a") && memory.at(&page.head).is_some() && memory.displaced(&page.head).is_some());
    }
    assert_eq!(uses(&memory), 1, "those were no uses");
    assert!(asks(&memory, "/a"));
    assert_eq!(uses(&memory), 2, "a hit");
    put(&memory, "/a", 20);
    assert_eq!(uses(&memory), 2, "the look-up of a response that is replaced was counted");
    memory.remove(key("/a").hash(), || ());
    assert!(!visit(&memory, "/a", 10));
    assert_eq!(uses(&memory), 3, "a miss after a removal");
}

#[test]
fn a_request_is_one_use_of_a_variant_and_of_its_record() {
    let memory = with(MemoryPolicy::TinyLfu, 1 << 20);
    let (en, de) = (map(&[("accept-language", "en")]), map(&[("accept-language", "de")]));
    let uses = |memory: &Memory, request: &HeaderMap| {
        let Some(MemoryEntry::Vary(_, times)) = memory.entries.get(key("/a").hash()) else { panic!("no record") };
        match memory.peek(&key("/a"), request) {
            Lookup::Found(stored) => (times.uses.of_late(0), stored.head.marks.uses.of_late(0)),
            Lookup::OtherVariants(_) | Lookup::Nothing => panic!("no variant"),
        }
    };
    for request in [&en, &de] {
        memory.lookup(&key("/a"), request);
        memory.insert(&stored("/a", "accept-language", request, "page"), &|| None, &|| true);
    }
    assert_eq!((uses(&memory, &en), uses(&memory, &de)), ((2, 1), (2, 1)));
    memory.lookup(&key("/a"), &de);
    assert_eq!((uses(&memory, &en), uses(&memory, &de)), ((3, 1), (3, 2)));
}

#[test]
fn vary_records_are_always_admitted() {
    let memory = full(MemoryPolicy::TinyLfu);
    (0..4).for_each(|_| visit_all(&memory, "first", 300));
    let en = map(&[("accept-language", "en")]);
    for n in 0..50 {
        let body = Bytes::from(vec![b'x'; 4096]);
        memory.insert(&response(&format!("/v/{n}"), "accept-language", &en, body), &|| None, &|| true);
    }
    (0..20).for_each(|n| put(&memory, &format!("/scan/{n}"), 4096));
    let has_record = |n: &i32| memory.has_record(&key(&format!("/v/{n}")));
    let has_variant = |n: &i32| matches!(memory.peek(&key(&format!("/v/{n}")), &en), Lookup::Found(_));
    assert_eq!((0..50).filter(has_record).count(), 50);
    assert_eq!((0..50).filter(has_variant).count(), 0);
}

#[test]
fn a_new_version_keeps_the_place_of_the_old_one() {
    let memory = full(MemoryPolicy::TinyLfu);
    for round in 0..20 {
        // Larger each time, and one at last that is too large for any place.
        put(&memory, "/hot/0", 4096 * (round + 1));
        (0..50).for_each(|n| put(&memory, &format!("/scan/{round}/{n}"), 4096));
        assert!(is_there(&memory, "/hot/0"), "{round}");
        assert!(memory.usage().1 <= 1 << 20);
    }
    put(&memory, "/hot/0", 1 << 20);
    assert!(!is_there(&memory, "/hot/0"), "nor is the old one there");
    memory.entries.audit();
}

/// Frequency alone would keep it out: thousands of small pages are used more together.
#[test]
fn a_large_page_that_is_used_all_the_time_displaces_many_that_are_not() {
    let memory = full(MemoryPolicy::TinyLfu);
    let large = |memory: &Memory, path: &str| visit(memory, path, 90 << 10);
    for n in 0..100 {
        large(&memory, &format!("/once/{n}"));
        visit_all(&memory, &format!("scan/{n}"), 3);
        large(&memory, "/often");
    }
    assert!(is_there(&memory, "/often"));
    assert!((0..40).all(|n| is_there(&memory, &format!("/hot/{n}"))));
    assert_eq!((0..98).filter(|n| is_there(&memory, &format!("/once/{n}"))).count(), 0);
}

/// A small memory, in which every entry is on the move: from the window to the main area, and out.
#[test]
fn no_move_undoes_a_purge() {
    const KEYS: usize = 16;
    for policy in POLICIES {
        let memory = with(policy, 25_000);
        // The purges of a key that have begun, and that have returned.
        let begun: [AtomicU64; KEYS] = std::array::from_fn(|_| AtomicU64::new(0));
        let returned: [AtomicU64; KEYS] = std::array::from_fn(|_| AtomicU64::new(0));
        let none = HeaderMap::new();
        std::thread::scope(|scope| {
            for seed in 0..6 {
                let (memory, begun, returned, none) = (&memory, &begun, &returned, &none);
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(seed);
                    for _ in 0..3000 {
                        let n = random.usize(..KEYS);
                        let path = format!("/{n}");
                        match random.u32(..20) {
                            0..2 => {
                                let purge = || begun[n].fetch_add(1, Ordering::SeqCst) + 1;
                                let made = memory.remove(key(&path).hash(), purge);
                                returned[n].fetch_max(made, Ordering::SeqCst);
                            }
                            2..8 => {
                                let fetched = begun[n].load(Ordering::SeqCst);
                                let body = Bytes::from(format!("{fetched:>len$}", len = random.usize(10..1500)));
                                let page = response(&path, "", none, body);
                                let may_keep = || begun[n].load(Ordering::SeqCst) == fetched;
                                memory.insert(&page, &|| None, &may_keep);
                            }
                            8 => {
                                if let Lookup::Found(old) = memory.lookup(&key(&path), none) {
                                    let new = StoredResponse::with_body_of(&old, old.head.clone());
                                    memory.replace(&old, Arc::new(new));
                                }
                            }
                            _ => {
                                let purged = returned[n].load(Ordering::SeqCst);
                                if let Some(body) = body_of(memory, &path, none) {
                                    let body = std::str::from_utf8(&body).expect("a number").trim();
                                    assert!(body.parse::<u64>().expect("a number") >= purged, "{policy:?}: {path}");
                                }
                            }
                        }
                    }
                });
            }
        });
        assert!(memory.usage().1 <= 25_000, "{policy:?}");
        memory.entries.audit();
    }
}

/// Evicts after the others are in, and spares what came in the place of the evicted meanwhile.
#[test]
fn what_came_in_place_of_what_has_to_leave_stays() {
    let memory = with(MemoryPolicy::TinyLfu, 30_000);
    let page = || MemoryEntry::Response(response("/", "", &HeaderMap::new(), Bytes::from(vec![b'x'; 700])));
    // Keys with different locks: two changes at once are those of two threads.
    for slot in 1..40 {
        memory.entries.change(slot).put(slot, page());
    }
    let record = MemoryEntry::Vary(Arc::new(VaryRecord::new(key("/"), 0, Vec::new())), Arc::default());
    let mut change = memory.entries.change(0);
    change.put(0, record);
    // The last page is not admitted when the record takes its place in the window.
    assert!(memory.entries.holds(39));
    memory.entries.change(39).put(39, page());
    drop(change);
    assert!(memory.entries.holds(39));
    memory.entries.audit();
}

/// A few more pages than there is room for: what leaves may come in again at the same moment.
#[test]
fn account_and_map_agree_whatever_comes_together() {
    let memory = with(MemoryPolicy::TinyLfu, 30_000);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let memory = &memory;
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..10_000 {
                    put(memory, &format!("/{}", random.u32(..16)), 700);
                }
            });
        }
    });
    memory.entries.audit();
}

/// The trace of `bench/hit_ratio.py`, a tenth as long: Zipf 0.9, and three in ten for what nobody asks for again.
#[test]
fn more_is_answered_than_by_the_order_of_use_alone() {
    let [tinylfu, lru] = POLICIES.map(|policy| {
        let memory = with(policy, 1_700_000);
        let mut random = fastrand::Rng::with_seed(7);
        let sums: Vec<f64> = (1..=20_000)
            .scan(0.0, |sum, n| {
                *sum += f64::from(n).powf(-0.9);
                Some(*sum)
            })
            .collect();
        let mut is_hit = |n: u32| {
            let wanted = random.f64() * sums[sums.len() - 1];
            let page = sums.partition_point(|sum| *sum < wanted);
            let path = if random.f64() < 0.3 { format!("/once/{n}") } else { format!("/{page}") };
            visit(&memory, &path, 4096)
        };
        (0..40_000).filter(|n| is_hit(*n)).count() * 1000 / 40_000
    });
    assert!((190..230).contains(&lru) && tinylfu > lru + 60, "per thousand: {tinylfu} and {lru}");
}

#[test]
fn the_account_knows_what_is_there() {
    let memory = with(MemoryPolicy::TinyLfu, 60_000);
    let mut random = fastrand::Rng::with_seed(3);
    let mut known = HashSet::new();
    for _ in 0..20_000 {
        let path = format!("/{}", random.u32(..60));
        match random.u32(..10) {
            0 => memory.remove(key(&path).hash(), || ()),
            1..4 => put(&memory, &path, random.usize(..20_000)),
            _ => _ = visit(&memory, &path, random.usize(..2_000)),
        }
        known.insert(path);
        assert!(memory.usage().1 <= 60_000);
    }
    memory.entries.audit();
    for path in &known {
        memory.remove(key(path).hash(), || ());
    }
    assert_eq!(memory.usage(), (0, 0));
}
