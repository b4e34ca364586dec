//! `KEYS`, `SCAN` and `DBSIZE` over both tiers.

use std::collections::BTreeSet;

use larder::base::Clock;

use super::starting::{at, larder, process_over};
use crate::support::{Place, Redis, START, file_url};

/// Goes through a `SCAN`, and calls `between` after each part.
fn scan(redis: &mut Redis, options: &str, mut between: impl FnMut(&mut Redis)) -> (BTreeSet<String>, usize) {
    let (mut found, mut cursor, mut parts) = (BTreeSet::new(), "0".to_owned(), 0);
    loop {
        let reply = redis.say(&format!("SCAN {cursor} {options}"));
        let (next, listed) = reply.trim_matches(['[', ']']).split_once(", [").expect("a cursor and names");
        next.trim_matches('"').clone_into(&mut cursor);
        found.extend(names(listed));
        parts += 1;
        if cursor == "0" {
            return (found, parts);
        }
        between(redis);
    }
}

fn fill(redis: &mut Redis, count: usize) -> BTreeSet<String> {
    for from in (0..count).step_by(500) {
        let commands: Vec<String> = (from..(from + 500).min(count)).map(|n| format!("SET key:{n} v")).collect();
        redis.pipeline(&commands.iter().map(String::as_str).collect::<Vec<_>>());
    }
    (0..count).map(|n| format!("key:{n}")).collect()
}

#[test]
fn lists_have_what_is_in_either_tier_and_nothing_else() {
    for (place, memory) in
        [(Place::file(), "64KiB"), (Place::file(), "0"), (Place::s3(), "64KiB"), (Place::s3(), "256MiB")]
    {
        let (directory, memory) = (tempfile::tempdir().expect("a directory"), format!("memory.capacity={memory}"));
        let (larder, socket) = process_over(&place, directory.path(), "a", &[&memory]);
        let mut redis = Redis::at(&socket);
        let mut expected = fill(&mut redis, 1500);
        larder.settle();
        // In a pack of their own, in the queue, and in memory.
        for n in (0..1500).step_by(3) {
            redis.say(&format!("DEL key:{n}"));
            expected.remove(&format!("key:{n}"));
        }
        larder.settle();
        redis.pipeline(&["SET key:new v", "SET gone v PXAT 1", "SELECT 1", "SET key:elsewhere v", "SELECT 0"]);
        expected.insert("key:new".to_owned());
        assert!(names(&redis.say("KEYS *")) == expected, "{} {memory}", place.name);
        assert_eq!(redis.say("DBSIZE"), format!(":{}", expected.len()));
        for options in ["", "COUNT 100", "COUNT 100000", "MATCH * COUNT 7", "TYPE string COUNT 50"] {
            let (found, _) = scan(&mut redis, options, |_| ());
            assert!(found == expected, "{} {memory} {options}", place.name);
        }
        let some = ["key:1000", "key:1100", "key:1300", "key:1400"].map(str::to_owned);
        assert_eq!(names(&redis.say("KEYS key:1?00")), BTreeSet::from(some));
        let (found, _) = scan(&mut redis, "MATCH key:1?[0]0", |_| ());
        assert_eq!(found.len(), 4);
    }
}

/// The names in a reply.
fn names(reply: &str) -> BTreeSet<String> {
    reply.split('"').filter(|text| text.contains(':')).map(str::to_owned).collect()
}

#[test]
fn a_scan_finds_whatever_is_there_from_its_beginning_to_its_end() {
    let directory = tempfile::tempdir().expect("a directory");
    let larder = larder(&format!("{}\nmemory.capacity=64KiB", file_url(directory.path())));
    let mut redis = larder.redis();
    let expected = fill(&mut redis, 2000);
    let mut n = 0;
    let (found, parts) = scan(&mut redis, "COUNT 50", |redis| {
        n += 1;
        // Written anew, deleted, added, and moved between packs meanwhile.
        redis.pipeline(&[&format!("SET key:{n} again"), &format!("SET other:{n} v"), &format!("DEL other:{n}")]);
        if n % 10 == 0 {
            larder.settle();
        }
        larder.advance(7);
    });
    assert!(parts > 30);
    assert!(found.is_superset(&expected), "{} of {}", found.len(), expected.len());
    assert!(found.iter().all(|name| expected.contains(name) || name.starts_with("other:")));
}

#[test]
fn what_goes_during_a_scan_is_not_listed_any_more() {
    for memory in ["256MiB", "0"] {
        let directory = tempfile::tempdir().expect("a directory");
        let larder = larder(&format!("{}\nmemory.capacity={memory}", file_url(directory.path())));
        let mut redis = larder.redis();
        fill(&mut redis, 300);
        let first = redis.say("SCAN 0 COUNT 100");
        let cursor = first.split('"').nth(1).expect("a cursor").to_owned();
        let deleted: Vec<String> = (0..300).step_by(2).map(|n| format!("DEL key:{n}")).collect();
        redis.pipeline(&deleted.iter().map(String::as_str).collect::<Vec<_>>());
        let rest = redis.say(&format!("SCAN {cursor} COUNT 1000"));
        let is_odd = |name: &str| name.trim_matches('"').parse::<u32>().is_ok_and(|n| n % 2 == 1);
        assert!(rest.split("key:").skip(1).all(|name| is_odd(name.split('"').next().unwrap_or(""))), "{rest}");
        assert_eq!(redis.say("FLUSHDB"), "OK");
        assert_eq!(redis.say(&format!("SCAN {cursor} COUNT 1000")), "[\"0\", []]");
    }
}

#[test]
fn a_cursor_holds_after_a_restart_and_in_another_process() {
    let (place, clock) = (Place::file(), Clock::manual(START));
    let config = place.sets.join("\n");
    let larder = at(&config, &clock);
    let mut redis = larder.redis();
    let expected = fill(&mut redis, 500);
    let first = redis.say("SCAN 0 COUNT 200");
    let cursor = first.split('"').nth(1).expect("a cursor").to_owned();
    larder.stop();
    let larder = at(&config, &clock);
    let rest = larder.redis().say(&format!("SCAN {cursor} COUNT 100000"));
    assert!(rest.starts_with("[\"0\""));
    let all: BTreeSet<String> = names(&first).union(&names(&rest)).cloned().collect();
    assert_eq!(all, expected);
    assert_eq!(names(&first).len() + names(&rest).len(), expected.len(), "each once");
}

#[test]
fn larder_keys_lists_the_values_of_a_database() {
    let (place, directory) = (Place::file(), tempfile::tempdir().expect("a directory"));
    let (mut larder, socket) = process_over(&place, directory.path(), "keys", &[]);
    let mut redis = Redis::at(&socket);
    assert_eq!(redis.pipeline(&["SET first v", "SELECT 1", "SET second v"]), ["OK", "OK", "OK"]);
    larder.signal("-TERM");
    assert_eq!(larder.wait(), Some(0));
    let sets: Vec<&str> = place.sets.iter().flat_map(|set| ["--set", set]).collect();
    for (prefix, expected) in [("resp://0/", [true, false]), ("resp://", [true, true]), ("http://0/", [false, false])] {
        let ran = crate::support::larder(&[]).args(["keys", "--prefix", prefix]).args(&sets).output().expect("it runs");
        let told = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success(), "{ran:?}");
        let found = ["resp://0/first", "resp://1/second"].map(|url| told.contains(url));
        assert_eq!(found, expected, "{prefix}: {told}");
    }
}
