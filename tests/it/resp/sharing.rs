//! What several processes see that share a directory or a bucket.

use larder::base::Clock;

use super::at;
use crate::support::{Place, Redis, START, eventually};

fn becomes(redis: &mut Redis, command: &str, expected: &str) {
    eventually(&format!("{command} is {expected}"), || redis.say(command) == expected);
}

#[test]
fn a_change_reaches_the_memory_of_others() {
    for place in [Place::file(), Place::s3()] {
        let clock = Clock::system();
        let config = place.sets.join("\n");
        let (one, other) = (at(&config, &clock), at(&config, &clock));
        let (mut a, mut b) = (one.redis(), other.redis());
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

#[test]
fn a_deletion_reaches_what_another_has_just_stored() {
    let place = Place::file();
    let config = place.sets.join("\n");
    let (one, other) = (at(&config, &Clock::system()), at(&config, &Clock::system()));
    let (mut a, mut b) = (one.redis(), other.redis());
    // Each has to know that the other is there.
    assert_eq!(a.say("FLUSHDB"), "OK");
    assert_eq!(b.say("FLUSHDB"), "OK");
    assert_eq!(a.say("SET seen 1"), "OK");
    becomes(&mut b, "GET seen", "\"1\"");
    assert_eq!(b.say("SET back 1"), "OK");
    becomes(&mut a, "GET back", "\"1\"");
    for n in 0..20 {
        assert_eq!(b.say(&format!("SET k{n} v")), "OK");
        // It may be unknown here still.
        a.say(&format!("DEL k{n}"));
        becomes(&mut b, &format!("GET k{n}"), "nil");
    }
}

#[test]
fn the_last_of_several_writers_counts_everywhere() {
    let place = Place::file();
    let config = place.sets.join("\n");
    let clock = Clock::manual(START);
    let larders: Vec<_> = (0..3).map(|_| at(&config, &Clock::system())).collect();
    let mut clients: Vec<Redis> = larders.iter().map(crate::support::Larder::redis).collect();
    for round in 0..10 {
        for (number, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.say(&format!("SET k {round}-{number}")), "OK");
        }
        for client in &mut clients {
            becomes(client, "GET k", &format!("\"{round}-2\""));
        }
    }
    drop(clock);
}
