//! Tests what several processes see that share a directory or a bucket.

use larder::base::Clock;

use super::starting::{at, process_over};
use crate::support::{Place, Redis, eventually};

/// Two processes have no order within one millisecond.
fn next_millisecond() {
    let (clock, now) = (Clock::system(), Clock::system().now());
    while clock.now() == now {
        std::thread::yield_now();
    }
}

fn becomes(redis: &mut Redis, command: &str, expected: &str) {
    eventually(&format!("{command} is {expected}"), || redis.say(command) == expected);
}

#[test]
fn a_change_reaches_the_memory_of_others() {
    for place in [Place::file(), Place::s3()] {
        let directory = tempfile::tempdir().expect("a directory");
        let (_one, socket) = process_over(&place, directory.path(), "a", &[]);
        let (_other, other) = process_over(&place, directory.path(), "b", &[]);
        let (mut a, mut b) = (Redis::at(&socket), Redis::at(&other));
        assert_eq!(a.say("SET k 1"), "OK");
        becomes(&mut b, "GET k", "\"1\"");
        // Now both have it in memory.
        assert_eq!(b.say("GET k"), "\"1\"");
        assert_eq!(a.say("SET k 2"), "OK");
        becomes(&mut b, "GET k", "\"2\"");
        assert_eq!(b.say("INCR k"), ":3");
        becomes(&mut a, "GET k", "\"3\"");
        assert_eq!(a.say("EXPIRE k 1000"), ":1");
        becomes(&mut b, "TTL k", ":1000");
        assert_eq!(b.say("DEL k"), ":1");
        becomes(&mut a, "GET k", "nil");
        assert_eq!(a.say("MSET x 1 y 2"), "OK");
        becomes(&mut b, "MGET x y", "[\"1\", \"2\"]");
        assert_eq!(b.say("FLUSHDB"), "OK");
        becomes(&mut a, "MGET x y", "[nil, nil]");
        becomes(&mut a, "DBSIZE", ":0");
    }
}

/// Another process has overwritten or deleted a value, and this one has not learnt of it yet.
#[test]
fn what_is_made_of_an_old_value_takes_the_place_of_no_newer_one() {
    const NEWER: [(&str, &str); 3] = [("SET {} 20 EX 4000", "\"20\""), ("DEL {}", "nil"), ("SET {} 20 PX 1", "nil")];
    const CHANGES: [&str; 5] = ["EXPIRE {} 5000", "GETEX {} EX 5000", "PERSIST {}", "APPEND {} 0", "INCR {}"];
    for memory in ["", "\nmemory.capacity=0"] {
        let place = Place::file();
        let config = format!("{}{memory}", place.sets.join("\n"));
        let (one, other) = (at(&config, &Clock::system()), at(&config, &Clock::system()));
        let (mut a, mut b) = (one.redis(), other.redis());
        let pairs = NEWER.iter().flat_map(|newer| CHANGES.iter().map(move |change| (newer, change)));
        let cases: Vec<_> = pairs.enumerate().map(|(number, pair)| (format!("k{number}"), pair)).collect();
        for (key, _) in &cases {
            assert_eq!(a.say(&format!("SET {key} 10 EX 3000")), "OK");
        }
        for (key, _) in &cases {
            becomes(&mut b, &format!("GET {key}"), "\"10\"");
        }
        next_millisecond();
        for (key, ((newer, _), change)) in &cases {
            a.say(&newer.replace("{}", key));
            b.say(&change.replace("{}", key));
        }
        assert_eq!((a.say("SET a 1"), b.say("SET b 1")), ("OK".to_owned(), "OK".to_owned()));
        becomes(&mut a, "GET b", "\"1\"");
        becomes(&mut b, "GET a", "\"1\"");
        for (key, ((newer, expected), change)) in &cases {
            let both = [&mut a, &mut b].map(|redis| redis.say(&format!("GET {key}")));
            // It may have learnt of the newer one just before.
            let made = ["\"200\"", "\"21\"", "\"0\"", "\"1\""].contains(&both[0].as_str());
            assert!(both[0] == *expected || made, "{newer}, and then {change}: {both:?}");
            assert_eq!(both[0], both[1], "{newer}, and then {change}");
        }
    }
}

#[test]
fn a_deletion_reaches_what_another_has_just_stored() {
    let place = Place::file();
    let config = place.sets.join("\n");
    let (one, other) = (at(&config, &Clock::system()), at(&config, &Clock::system()));
    let (mut a, mut b) = (one.redis(), other.redis());
    // Each has to know that the other is there.
    assert_eq!(a.say("SET seen 1"), "OK");
    becomes(&mut b, "GET seen", "\"1\"");
    assert_eq!(b.say("SET back 1"), "OK");
    becomes(&mut a, "GET back", "\"1\"");
    for n in 0..20 {
        assert_eq!(b.say(&format!("SET k{n} v")), "OK");
        next_millisecond();
        // It may be unknown here still.
        a.say(&format!("DEL k{n}"));
        becomes(&mut b, &format!("GET k{n}"), "nil");
    }
}

/// Within a millisecond either may be the last: then all agree which one is.
#[test]
fn of_several_writers_the_same_one_counts_everywhere() {
    let place = Place::file();
    let config = place.sets.join("\n");
    let larders: Vec<_> = (0..3).map(|_| at(&config, &Clock::system())).collect();
    let mut clients: Vec<Redis> = larders.iter().map(crate::support::Larder::redis).collect();
    for round in 0..10 {
        for (number, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.say(&format!("SET k {round}-{number}")), "OK");
        }
        eventually("all agree", || {
            let found: Vec<String> = clients.iter_mut().map(|client| client.say("GET k")).collect();
            found.iter().all(|value| *value == found[0] && value.starts_with(&format!("\"{round}-")))
        });
    }
}
