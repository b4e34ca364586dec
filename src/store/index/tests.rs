//! Tests of the index: which of several entries counts, what a snapshot holds, how many bytes it takes.

use super::*;
use crate::entry::VersionVector;
use crate::rfc9111::key::KeyParts;
use crate::rfc9111::timestamp::Timestamp;

fn key(path: &str) -> CacheKey {
    CacheKey::new(KeyParts { prefix: "", scheme: "http", authority: "h", path, query: None })
}

fn name(time: u64) -> PackName {
    PackName { time, node: 1 }
}

fn entry(path: &str, kind: EntryKind, order: u64, offset: u64) -> FooterEntry {
    FooterEntry {
        kind,
        replaces: false,
        offset,
        len: 1024,
        group_len: 1024,
        order: order << 10,
        key: key(path),
        variant: 0,
        vector: VersionVector::default(),
        tags: Vec::new(),
        fresh_until: Timestamp::from_secs(100),
        of_use_until: Timestamp::from_secs(200),
        body: None,
    }
}

fn place(index: &Index, path: &str) -> Option<(PackName, u64)> {
    index.find(index.fingerprint(&key(path), 0)).map(|found| (found.pack.name, found.place.offset))
}

/// Adds entries in every order: what counts does not depend on it.
#[test]
fn the_greatest_order_counts_then_the_greater_pack_then_the_later_entry() {
    let all = [
        (name(1), entry("/a", EntryKind::Response, 5, 0)),
        (name(1), entry("/a", EntryKind::Response, 7, 1024)),
        (name(1), entry("/a", EntryKind::Response, 7, 2048)),
        (name(3), entry("/a", EntryKind::Response, 7, 512)),
        (name(2), entry("/a", EntryKind::Response, 6, 0)),
    ];
    for rotation in 0..all.len() {
        for is_reversed in [false, true] {
            let mut all = all.clone();
            all.rotate_left(rotation);
            if is_reversed {
                all.reverse();
            }
            let index = Index::default();
            for (pack, entry) in &all {
                let pack = index.add_pack(*pack);
                pack.set_size(4096, false);
                index.insert_all(&pack, [entry]);
            }
            assert_eq!(place(&index, "/a"), Some((name(3), 512)));
            assert_eq!(index.len(), 1);
            let live: Vec<u64> = index.all_packs().iter().map(|pack| pack.live()).collect();
            assert_eq!(live, [0, 0, 1024], "{rotation} {is_reversed}");
        }
    }
}

#[test]
fn a_tombstone_keeps_what_is_older_away() {
    let index = Index::default();
    let (first, second) = (index.add_pack(name(1)), index.add_pack(name(2)));
    index.insert_all(&second, [&entry("/a", EntryKind::Tombstone, 5, 0)]);
    index.insert_all(&first, [&entry("/a", EntryKind::Response, 4, 0)]);
    assert_eq!(place(&index, "/a"), None);
    index.insert_all(&first, [&entry("/a", EntryKind::Response, 6, 4096)]);
    assert_eq!(place(&index, "/a"), Some((name(1), 4096)));
}

#[test]
fn a_pack_that_is_gone_takes_its_places_along_and_stands_in_nobodys_way() {
    let index = Index::default();
    let (first, second) = (index.add_pack(name(1)), index.add_pack(name(2)));
    index.insert_all(&second, [&entry("/a", EntryKind::Response, 5, 0)]);
    index.remove_pack(second.name);
    assert_eq!(place(&index, "/a"), None);
    index.insert_all(&first, [&entry("/a", EntryKind::Response, 4, 16)]);
    assert_eq!(place(&index, "/a"), Some((name(1), 16)));
    assert_eq!(index.insert_all(&second, [&entry("/b", EntryKind::Response, 5, 0)]), 0, "it is forgotten");
}

#[test]
fn a_snapshot_holds_all_but_what_still_grows() {
    let index = Index::default();
    let (sealed, open) = (index.add_pack(name(1)), index.add_pack(name(2)));
    sealed.set_size(1 << 20, false);
    let mut with_body = entry("/b", EntryKind::Response, 5, 4096);
    with_body.body = Some((7, 1 << 21));
    let entries = [entry("/a", EntryKind::Response, 5, 0), with_body, entry("/c", EntryKind::Tombstone, 5, 8192)];
    index.insert_all(&sealed, &entries);
    index.insert_all(&open, [&entry("/d", EntryKind::Response, 5, 0)]);
    let (encoded, saved) = index.encode();
    assert_eq!(saved.iter().map(|pack| pack.name).collect::<Vec<_>>(), [name(1)]);
    let other = Index::default();
    assert_eq!(other.decode(&encoded, u64::MAX), Ok(true));
    assert_eq!(place(&other, "/a"), Some((name(1), 0)));
    assert_eq!(place(&other, "/b"), Some((name(1), 4096)));
    assert_eq!((place(&other, "/c"), place(&other, "/d"), other.len()), (None, None, 3));
    let [pack] = &other.all_packs()[..] else { panic!("one pack") };
    assert_eq!((pack.size(), pack.live(), pack.least_order()), (1 << 20, 2048, 5 << 10));
    assert_eq!((pack.of_use_until(), pack.holds_down()), (Timestamp::from_secs(200), true));
    assert_eq!(pack.references().bodies, [(7, 1 << 21)]);
    let third = Index::default();
    third.seed();
    assert_eq!(third.decode(&encoded, u64::MAX), Ok(false), "another secret");
    for len in 0..encoded.len() {
        // Cut between two leaves, a snapshot decodes: its checksum is the journal's affair.
        let _ = Index::default().decode(&encoded[..len], u64::MAX);
    }
}

#[test]
fn which_pages_have_answers_to_queries_outlives_a_restart() {
    for (has_query, expected) in [(false, false), (true, true)] {
        let index = Index::default();
        assert!(index.may_hold_queries(), "nobody knows before it is loaded");
        index.set_loaded();
        let pack = index.add_pack(name(1));
        pack.set_size(1 << 20, false);
        let mut of_query = entry("/a", EntryKind::Response, 5, 0);
        let (page, other) = (of_query.key.hash(), entry("/b", EntryKind::Response, 5, 0).key.hash());
        let of_pages = |index: &Index| (index.may_hold_queries_of(page), index.may_hold_queries_of(other));
        if has_query {
            let fields = [(http::header::CONTENT_TYPE, http::HeaderValue::from_static("a/b"))].into_iter().collect();
            let content = crate::rfc9111::query::metadata(&fields).expect("it may be keyed").digest(b"q");
            of_query.key = of_query.key.with_content(&content);
        }
        index.insert_all(&pack, &[of_query]);
        assert_eq!((index.may_hold_queries(), of_pages(&index)), (expected, (expected, false)));
        let restored = Index::default();
        assert_eq!(restored.decode(&index.encode().0, u64::MAX), Ok(true));
        restored.set_loaded();
        assert_eq!((restored.may_hold_queries(), of_pages(&restored)), (expected, (expected, false)));
        if has_query {
            // Past a bound the pages of a pack are not listed: any may be one.
            (0..2000).for_each(|page| pack.note_query_of(page));
            let unlisted = Index::default();
            assert_eq!(unlisted.decode(&index.encode().0, u64::MAX), Ok(true));
            unlisted.set_loaded();
            assert_eq!(of_pages(&unlisted), (true, true));
        }
    }
}

#[test]
fn a_million_places_take_less_than_24_bytes_each() {
    let index = Index::default();
    let pack = index.add_pack(name(1));
    let mut random = fastrand::Rng::with_seed(7);
    let place = Place::new(pack.id, 0, 1024, 5, EntryKind::Response);
    for _ in 0..1_000_000 {
        index.insert(&index.packs.read(), &pack, Fingerprint(random.u64(..)), place);
    }
    assert_eq!(index.len(), 1_000_000);
    assert!(index.bytes() <= 24_000_000, "{}", index.bytes());
}

/// Pins version 1 of the index in a snapshot to the byte. `LARDER_WRITE_GOLDEN=1` writes the file if it is missing.
#[test]
fn the_golden_file_is_written_and_read_to_the_byte() {
    let index = Index::default();
    assert!(index.adopt_seed((1, 2)));
    let (first, second) = (index.add_pack(name(1)), index.add_pack(name(2)));
    let entries = [
        entry("/a", EntryKind::Response, 5, 0),
        entry("/b", EntryKind::Vary, 6, 1024),
        entry("/c", EntryKind::Tombstone, 7, 2048),
    ];
    index.insert_all(&first, &entries);
    let mut with_body = entry("/a", EntryKind::Response, 8, 0);
    with_body.body = Some((7, 1 << 21));
    index.insert_all(&second, [&with_body]);
    second.set_replaces(vec![name(0)]);
    first.set_size(4096, false);
    second.set_size(2048, false);
    first.set_damaged();
    let written = index.encode().0;
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1-index.bin");
    if std::env::var_os("LARDER_WRITE_GOLDEN").is_some() && !golden.exists() {
        std::fs::write(&golden, &written).expect("golden file is written");
    }
    let read = std::fs::read(golden).expect("golden file is there");
    assert_eq!(read, written);
    let other = Index::default();
    assert_eq!(other.decode(&read, u64::MAX), Ok(true));
    assert_eq!(other.encode().0, written);
    assert_eq!((place(&other, "/a"), place(&other, "/c")), (Some((name(2), 0)), None));
    let flags: Vec<_> = other.all_packs().iter().map(|pack| (pack.holds_down(), pack.is_damaged())).collect();
    assert_eq!(flags, [(true, true), (true, false)]);
}

/// Nothing of a malformed index is taken over.
#[test]
fn a_malformed_index_is_refused_whole() {
    let index = Index::default();
    assert!(index.adopt_seed((1, 2)));
    let pack = index.add_pack(name(1));
    index.insert_all(&pack, &[entry("/a", EntryKind::Response, 5, 0), entry("/b", EntryKind::Response, 5, 1024)]);
    pack.set_size(4096, false);
    let (encoded, _) = index.encode();
    let (leaf, last) = (16 + 4 + 55, encoded.len());
    assert_eq!(last, leaf + 2 * 26, "two leaves");
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let (mut changed, other) = (encoded.clone(), Index::default());
        change(&mut changed);
        assert!(other.decode(&changed, u64::MAX).is_err() && other.len() == 0 && other.all_packs().is_empty());
    };
    refused(&|bytes| bytes.truncate(last - 1));
    refused(&|bytes| bytes[last - 20 + 8] = 1);
    refused(&|bytes| bytes[leaf + 2] = 3);
    refused(&|bytes| bytes[leaf..].rotate_left(26));
    refused(&|bytes| bytes.extend_from_within(leaf..leaf + 26));
}

/// Prints what a start with a snapshot of a million places takes: `cargo test --lib -- --ignored --nocapture a_million`.
#[test]
#[ignore = "measures"]
fn a_million_places_are_restored_from_a_snapshot() {
    let index = Index::default();
    let mut random = fastrand::Rng::with_seed(7);
    let packs: Vec<_> = (0..1250).map(|n| index.add_pack(name(n))).collect();
    for pack in &packs {
        pack.set_size(8 << 20, false);
    }
    for n in 0..1_000_000_u64 {
        let pack = &packs[usize::try_from(n / 800).expect("it is small")];
        let place = Place::new(pack.id, n % 800 * 10_240, 10_240, n << 10, EntryKind::Response);
        index.insert(&index.packs.read(), pack, Fingerprint(random.u64(..)), place);
    }
    let watch = crate::base::Stopwatch::start();
    let (encoded, _) = index.encode();
    let encoding = watch.elapsed();
    let (watch, other) = (crate::base::Stopwatch::start(), Index::default());
    assert_eq!(other.decode(&encoded, u64::MAX), Ok(true));
    println!("{} bytes, encoded in {encoding:?}, restored in {:?}", encoded.len(), watch.elapsed());
    assert_eq!(other.len(), 1_000_000);
}
