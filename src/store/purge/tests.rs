//! Tests which purges cover which responses: those of this process, those of other nodes, and evicted ones.

use std::time::Duration;

use super::outgoing::MAX_OUTGOING;
use super::table::{MAX_PREFIXES, MAX_TAGS, MAX_URLS};
use super::*;
use crate::entry::sample_head;
use crate::rfc9111::key::{CacheKey, KeyParts};

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

fn key(path: &str) -> CacheKey {
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    CacheKey::new(KeyParts { prefix: "p", scheme: "http", authority: "h:8080", path, query })
}

/// Returns the head of a response that is fetched now.
fn head(purges: &Purges, path: &str, tags: &[&str]) -> StoredHead {
    let (fields, known) = ([("cache-control", "max-age=3600")], (purges.position(), purges.version_vector()));
    let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
    sample_head(&key(path), &http::HeaderMap::new(), &fields, NOW, known, tags)
}

fn of(target: PurgeTarget) -> Purge {
    Purge::hard(target)
}

fn url(path: &str) -> PurgeTarget {
    PurgeTarget::Url(key(path).hash())
}

/// Returns how purges affect a response in memory, and one that was read from the durable tier.
fn covered(purges: &Purges, head: &StoredHead) -> (Covered, Covered) {
    (purges.covers(head, head.position), purges.covers_read(head))
}

const GONE: (Covered, Covered) = (Covered::Wholly, Covered::Wholly);
const GOOD: (Covered, Covered) = (Covered::No, Covered::No);

#[test]
fn a_purge_covers_what_it_names_and_began_before() {
    let page = ("/a/b?c=d", &["t", "T u"][..]);
    for (target, covers) in [
        (url("/a/b?c=d"), true),
        (url("/a/b"), false),
        (PurgeTarget::All, true),
        (PurgeTarget::Tag("t".into()), true),
        (PurgeTarget::Tag("T u".into()), true),
        (PurgeTarget::Tag("T".into()), false),
        (PurgeTarget::Tag("*".into()), false),
        (PurgeTarget::Prefix("/".into()), true),
        (PurgeTarget::Prefix("/a/b?c=d".into()), true),
        (PurgeTarget::Prefix("/a/b?c=dd".into()), false),
        (PurgeTarget::Prefix("/a/b?".into()), true),
        (PurgeTarget::Prefix("/a/c".into()), false),
        (PurgeTarget::Prefix("http://h:8080/".into()), true),
        (PurgeTarget::Prefix("http://h:8080/a/b?c".into()), true),
        (PurgeTarget::Prefix("http://h:808/".into()), false),
        (PurgeTarget::Prefix("https://h:8080/".into()), false),
        (PurgeTarget::Prefix("http://h:8080".into()), true),
    ] {
        let purges = Purges::new(Clock::manual(NOW), 1);
        let before = head(&purges, page.0, page.1);
        purges.purge(of(target.clone()), true);
        let after = head(&purges, page.0, page.1);
        assert_eq!(covered(&purges, &before), if covers { GONE } else { GOOD }, "{target:?}");
        assert_eq!(covered(&purges, &after), GOOD, "{target:?}, within one tick of the clock");
        // A second comparison is not due.
        assert!(!purges.is_due(&after));
        let is_removed_at_once = matches!(target, PurgeTarget::Url(_));
        assert_eq!(purges.is_due(&before), !is_removed_at_once, "{target:?}");
        if !covers && !is_removed_at_once {
            assert_eq!(purges.check(&before), Covered::No);
            assert!(!purges.is_due(&before));
        }
    }
}

#[test]
fn a_response_for_several_queries_is_covered_by_a_purge_of_any_of_their_urls() {
    let purges = Purges::new(Clock::manual(NOW), 1);
    let searched = head(&purges, "/a?x\0g1", &[]);
    purges.purge(of(PurgeTarget::Url(key("/b?x").path_hash().expect("a key"))), true);
    purges.purge(of(PurgeTarget::Prefix("/b?x".into())), true);
    assert_eq!(covered(&purges, &searched), GOOD);
    assert!(purges.is_due(&searched), "no key of an URL finds it");
    purges.purge(of(PurgeTarget::Url(key("/a?y").path_hash().expect("a key"))), true);
    assert_eq!(covered(&purges, &searched), GONE);
    let another = head(&purges, "/a?x\0g1", &[]);
    purges.purge(of(PurgeTarget::Prefix("/a?y=1".into())), true);
    assert_eq!(covered(&purges, &another), GONE, "nobody can tell how its query begins");
}

#[test]
fn a_response_to_a_query_is_covered_by_a_purge_of_its_url() {
    let fields = [(http::header::CONTENT_TYPE, http::HeaderValue::from_static("a/b"))].into_iter().collect();
    let content = crate::rfc9111::query::metadata(&fields).expect("it may be keyed").digest(b"q");
    let purges = Purges::new(Clock::manual(NOW), 1);
    let head = |path: &str| {
        let (fields, known) = ([("cache-control", "max-age=3600")], (purges.position(), purges.version_vector()));
        sample_head(&key(path).with_content(&content), &http::HeaderMap::new(), &fields, NOW, known, Vec::new())
    };
    let (page, below) = (head("/a?x"), head("/a"));
    purges.purge(of(url("/a?y")), true);
    purges.purge(of(PurgeTarget::Prefix("/b".into())), true);
    assert_eq!((covered(&purges, &page), covered(&purges, &below)), (GOOD, GOOD));
    purges.purge(of(url("/a?x")), true);
    assert!(purges.is_due(&page), "the URL's key does not find it in memory");
    assert_eq!((covered(&purges, &page), covered(&purges, &below)), (GONE, GOOD));
    assert_eq!(covered(&purges, &head("/a?x")), GOOD, "fetched after the purge");
    purges.purge(of(PurgeTarget::Prefix("http://h:8080/a".into())), true);
    assert_eq!(covered(&purges, &below), GONE);
    // Also where the purge of the URL has been evicted.
    let old = head("/old");
    purges.purge(of(url("/old")), true);
    for n in 0..=MAX_URLS {
        purges.purge(of(PurgeTarget::Url(n as u128)), true);
    }
    assert_eq!(covered(&purges, &old), GONE);
}

#[test]
fn a_hard_purge_outweighs_soft_ones() {
    let clock = Clock::manual(NOW);
    let purges = Purges::new(clock.clone(), 1);
    let page = head(&purges, "/a", &["t"]);
    let soft = |target| Purge { target, is_soft: true };
    purges.purge(soft(PurgeTarget::Tag("t".into())), true);
    assert_eq!(covered(&purges, &page), (Covered::Softly(NOW), Covered::Softly(NOW)));
    clock.advance(Duration::from_secs(5));
    purges.purge(soft(url("/a")), true);
    let later = Covered::Softly(NOW.plus_millis(5000));
    assert_eq!(covered(&purges, &page), (later, later));
    purges.purge(of(PurgeTarget::All), true);
    purges.purge(soft(PurgeTarget::All), true);
    assert_eq!(covered(&purges, &page), GONE);
}

#[test]
fn another_nodes_purge_covers_responses_whose_version_vector_lacks_it() {
    let (here, there) = (Purges::new(Clock::manual(NOW), 1), Purges::new(Clock::manual(NOW.plus_millis(-5000)), 2));
    for purges in [&here, &there] {
        purges.write_down();
        purges.read_until(purges.journal_now());
    }
    let before = head(&here, "/a", &[]);
    there.purge(of(PurgeTarget::All), true);
    let unaware = head(&here, "/a", &[]);
    let batch = there.take_outgoing(10);
    let [told] = &batch.purges[..] else { panic!("one purge") };
    assert!(here.learn(&told.purge, told.time, 2));
    assert!(!here.learn(&told.purge, told.time, 2), "told twice is told once");
    here.learnt(2, batch.time);
    let aware = head(&here, "/a", &[]);
    for (page, expected) in [(&before, GONE), (&unaware, GONE), (&aware, GOOD)] {
        assert_eq!(covered(&here, page), expected);
        assert_eq!(there.covers_read(page), expected.1, "whoever reads it");
    }
    // A new process that restores the snapshot decides alike.
    let anew = Purges::new(Clock::manual(NOW), 3);
    assert!(anew.restore(&there.snapshot()));
    assert_eq!((anew.covers_read(&unaware), anew.covers_read(&aware)), (Covered::Wholly, Covered::No));
    assert_eq!(anew.snapshot().stamps.len(), 1);
    assert!(anew.restore(&there.snapshot()) && anew.snapshot().stamps.len() == 1);
    // Its own purges are later than all that it read, although its clock is behind.
    anew.learnt(9, anew.journal_now() + (3_600_000 << TICK_BITS));
    assert!(anew.take_outgoing(1).time > anew.journal_now() + (3_600_000 << TICK_BITS));
}

#[test]
fn only_a_purge_that_is_written_late_gets_a_later_time() {
    let clock = Clock::manual(NOW);
    let purges = Purges::new(clock.clone(), 1);
    purges.write_down();
    purges.purge(of(PurgeTarget::All), true);
    let first = purges.take_outgoing(10);
    purges.give_back(first.clone());
    clock.advance(Duration::from_millis(LATE / 2));
    let again = purges.take_outgoing(10);
    assert_eq!((again.purges.len(), again.purges[0].time), (1, first.purges[0].time));
    assert!(again.time > first.time, "under a name of its own");
    purges.give_back(again);
    clock.advance(Duration::from_millis(LATE));
    let late = purges.take_outgoing(10);
    assert_eq!(late.purges[0].time, late.time);
}

#[test]
fn an_evicted_purge_still_covers() {
    let clock = Clock::manual(NOW);
    let purges = Purges::new(clock.clone(), 1);
    purges.write_down();
    purges.read_until(purges.journal_now());
    let (purged, other) = (head(&purges, "/purged", &[]), head(&purges, "/other", &[]));
    let tagged = head(&purges, "/tagged", &["t"]);
    let position = purges.position();
    purges.purge(of(url("/purged")), true);
    for hash in 0..=u128::try_from(MAX_URLS).expect("it fits") {
        purges.purge(of(PurgeTarget::Url(hash << 64 | 1)), false);
    }
    let is_known = |(scope, _): &(Scope, PurgeStamp)| *scope == Scope::Url(key("/purged").hash());
    assert!(!purges.snapshot().stamps.iter().any(is_known), "only its fingerprint is left");
    assert_eq!((covered(&purges, &purged), covered(&purges, &other)), (GONE, GOOD));
    assert!(purges.covers_fetch(0, position), "what was under way is covered");
    let anew = Purges::new(clock.clone(), 2);
    assert!(anew.restore(&purges.snapshot()));
    assert_eq!((anew.covers_read(&purged), anew.covers_read(&other)), (Covered::Wholly, Covered::No));
    assert_eq!(purges.covers_read(&tagged), Covered::No, "URLs say nothing of tags");
    for tag in 0..=MAX_TAGS {
        purges.purge(of(PurgeTarget::Tag(format!("tag {tag}"))), false);
    }
    assert_eq!(covered(&purges, &tagged), GONE, "one that had its tag may be among the forgotten");
    assert_eq!(covered(&purges, &other), GOOD, "it has none");
    for n in 0..=MAX_PREFIXES {
        purges.purge(of(PurgeTarget::Prefix(format!("/{n}/"))), false);
    }
    assert_eq!(covered(&purges, &other), GONE);
    // A floor has no node: version vectors contain it once it is before their horizon.
    clock.advance(Duration::from_millis(HORIZON + 1000));
    purges.read_until(purges.journal_now());
    assert_eq!(covered(&purges, &head(&purges, "/other", &["t"])), GOOD, "what came since is good");
}

/// Returns what a batch tells of, and up to which number purges are written with it.
fn told(batch: &Batch) -> (Vec<&Purge>, u64) {
    (batch.purges.iter().map(|outgoing| &outgoing.purge).collect(), batch.until)
}

#[test]
fn repeats_of_a_target_wait_as_one() {
    let purges = Purges::new(Clock::manual(NOW), 1);
    purges.write_down();
    let page = head(&purges, "/a", &[]);
    let soft = Purge { target: url("/a"), is_soft: true };
    let kinds = [
        of(url("/a")),
        of(PurgeTarget::Tag("t".into())),
        of(PurgeTarget::Prefix("/b".into())),
        of(PurgeTarget::Prefix("/c".into())),
        soft,
    ];
    let mut last = purges.position();
    for _ in 0..2 * MAX_OUTGOING / kinds.len() {
        last = kinds.iter().map(|purge| purges.purge(purge.clone(), true).position).last().expect("some");
    }
    assert_eq!(purges.covers_read(&head(&purges, "/other", &[])), Covered::No, "nothing else is purged");
    let since = head(&purges, "/a", &[]);
    let batch = purges.take_outgoing(usize::MAX);
    assert_eq!(told(&batch), (kinds.iter().collect(), last));
    // The later time counts: it covers what was fetched between the first and the last.
    let reader = Purges::new(Clock::manual(NOW), 2);
    for outgoing in &batch.purges {
        assert!(reader.learn(&outgoing.purge, outgoing.time, 1));
    }
    assert_eq!((reader.covers_read(&page), reader.covers_read(&since)), (Covered::Wholly, Covered::No));
}

#[test]
fn whoever_waits_for_a_purge_is_answered_once_its_last_repeat_is_written() {
    let purges = Purges::new(Clock::manual(NOW), 1);
    purges.write_down();
    let [a, b, c] = ["/a", "/b", "/c"].map(|path| of(url(path)));
    let make = |purge: &Purge| purges.purge(purge.clone(), true).position;
    let (first, second) = (make(&a), make(&b));
    let repeated = make(&a);
    let batch = purges.take_outgoing(1);
    assert_eq!(told(&batch), (vec![&a], second - 1), "not yet the one that still waits");
    assert!((first..repeated).contains(&batch.until));
    let batch = purges.take_outgoing(1);
    assert_eq!(told(&batch), (vec![&b], repeated), "and all that was written before");
    // Repeated while its record was being written, which failed.
    let third = make(&c);
    let failed = purges.take_outgoing(1);
    assert_eq!(told(&failed), (vec![&c], third));
    let (again, other) = (make(&c), make(&a));
    purges.give_back(failed);
    let batch = purges.take_outgoing(1);
    assert_eq!(told(&batch), (vec![&c], other - 1));
    assert_eq!((batch.purges[0].arrival, purges.outgoing()), (again, 1));
    assert_eq!(told(&purges.take_outgoing(9)), (vec![&a], other));
}

#[test]
fn repeats_of_a_url_push_out_no_other() {
    let purges = Purges::new(Clock::manual(NOW), 1);
    let position = purges.position();
    purges.purge(of(url("/one")), false);
    for _ in 0..=MAX_URLS {
        purges.purge(of(url("/many times")), false);
    }
    let stamps = purges.snapshot().stamps;
    assert!(stamps.iter().any(|(scope, _)| *scope == Scope::Url(key("/one").hash())), "it is known by itself");
    assert!(!purges.covers_fetch(key("/other").hash(), position), "what is under way is not covered");
    // The one that is purged over and over is not the oldest.
    for hash in 0..=u128::try_from(MAX_URLS - 2).expect("it fits") {
        purges.purge(of(PurgeTarget::Url(hash << 64 | 1)), false);
    }
    let stamps = purges.snapshot().stamps;
    let is_known = |path| stamps.iter().any(|(scope, _)| *scope == Scope::Url(key(path).hash()));
    assert!(!is_known("/one") && is_known("/many times"));
}

#[test]
fn too_many_waiting_purges_become_one_of_everything() {
    let purges = Purges::new(Clock::manual(NOW), 1);
    purges.write_down();
    let page = head(&purges, "/a", &[]);
    for n in 0..=MAX_OUTGOING as u128 {
        assert!(!purges.is_due(&page), "{n}: memory loses purged URLs at once");
        purges.purge(of(PurgeTarget::Url(n << 64 | 1)), true);
    }
    assert_eq!(covered(&purges, &page), GONE);
    assert!(purges.is_due(&page), "what this process holds in memory is purged as well");
    let last = purges.position();
    assert_eq!(told(&purges.take_outgoing(usize::MAX)), (vec![&of(PurgeTarget::All)], last));
}

#[test]
fn a_time_far_ahead_of_the_clock_is_neither_taken_over_nor_passed_on() {
    let purges = Purges::new(Clock::manual(NOW), 1);
    let (now, minute) = (purges.journal_now(), 60_000 << TICK_BITS);
    let page = head(&purges, "/a", &[]);
    for far in [u64::MAX, now + 61 * minute] {
        purges.note_order(far);
        purges.learnt(2, far);
        assert!(purges.learn(&of(url("/a")), far, 2), "it purges nevertheless");
        assert!(!purges.restore(&PurgeSnapshot { latest: far, ..PurgeSnapshot::default() }));
        assert!(!purges.restore(&PurgeSnapshot { nodes: vec![(3, far)], ..PurgeSnapshot::default() }));
    }
    assert_eq!(covered(&purges, &page), GONE);
    let known = purges.snapshot();
    assert!(known.latest < now + minute && known.nodes.iter().all(|(_, time)| *time < now + minute));
    assert!(known.stamps.iter().all(|(_, stamp)| stamp.time < now + minute));
    // A clock may be ahead by less.
    purges.note_order(now + 59 * minute);
    let (first, second) = (purges.take_order(), purges.take_order());
    assert!(first > now + 59 * minute && second > first);
    // A vector that claims to know of all purges to come knows of none.
    let all = VersionVector { complete_until: u64::MAX, recent: vec![] };
    let one = VersionVector { complete_until: 0, recent: vec![(2, u64::MAX)] };
    for vector in [all, one] {
        assert_eq!(purges.covers_entry(&key("/a"), &[], &vector), Covered::Wholly);
    }
}

#[test]
fn a_clock_that_is_set_back_far_gives_later_times_and_is_not_believed() {
    let purges = Purges::new(Clock::manual(NOW), 1);
    let before = purges.take_order();
    assert!(purges.believes_itself());
    purges.set_clock_offset(-365 * 86_400_000);
    assert!(!purges.believes_itself());
    let (first, second) = (purges.take_order(), purges.take_order());
    assert!(before < first && first < second, "what is made later counts as later");
    assert!(!purges.believes(first));
}
