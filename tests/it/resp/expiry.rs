//! A value that has expired is not answered, to the millisecond, wherever it is.

use std::time::Duration;

use larder::base::Clock;

use super::starting::{at, in_each_tier, larder};
use crate::support::{START, file_url};

#[test]
fn a_value_is_there_up_to_its_moment_and_not_a_millisecond_longer() {
    in_each_tier(|larder, settle| {
        let mut redis = larder.redis();
        let advance = |millis| larder.clock.advance(Duration::from_millis(millis));
        assert_eq!(redis.say("SET k v PX 1500"), "OK");
        assert_eq!(redis.say("SET stays v"), "OK");
        settle();
        assert_eq!(redis.say("PTTL k"), ":1500");
        advance(1499);
        for (command, expected) in [
            ("GET k", "\"v\""),
            ("PTTL k", ":1"),
            ("TTL k", ":0"),
            ("EXISTS k stays", ":2"),
            ("MGET k stays", "[\"v\", \"v\"]"),
            ("DBSIZE", ":2"),
            ("KEYS k", "[\"k\"]"),
        ] {
            assert_eq!(redis.say(command), expected, "{command}");
        }
        advance(1);
        for (command, expected) in [
            ("GET k", "nil"),
            ("PTTL k", ":-2"),
            ("TYPE k", "none"),
            ("STRLEN k", ":0"),
            ("EXISTS k stays", ":1"),
            ("MGET k stays", "[nil, \"v\"]"),
            ("DBSIZE", ":1"),
            ("KEYS *", "[\"stays\"]"),
            ("SCAN 0", "[\"0\", [\"stays\"]]"),
            ("PERSIST k", ":0"),
            ("EXPIRE k 10", ":0"),
            ("SET k v XX", "nil"),
            ("SETNX k new", ":1"),
            ("TTL k", ":-1"),
            ("DEL k", ":1"),
            ("INCR k", ":1"),
        ] {
            assert_eq!(redis.say(command), expected, "{command}");
            settle();
        }
    });
}

#[test]
fn each_kind_of_first_read_after_the_moment_finds_nothing() {
    let reads =
        ["GET k", "GETDEL k", "GETEX k PERSIST", "STRLEN k", "EXISTS k", "TTL k", "APPEND k x", "INCR k", "DEL k"];
    let expected = ["nil", "nil", "nil", ":0", ":0", ":-2", ":1", ":1", ":0"];
    in_each_tier(|larder, settle| {
        let mut redis = larder.redis();
        for (read, expected) in reads.into_iter().zip(expected) {
            assert_eq!(redis.say("SET k 41 EX 5"), "OK");
            settle();
            larder.advance(5);
            assert_eq!(redis.say(read), expected, "{read}");
        }
    });
}

#[test]
fn the_moment_holds_across_a_restart_and_so_does_that_there_is_none() {
    let (directory, clock) = (tempfile::tempdir().expect("a directory"), Clock::manual(START));
    let config = file_url(directory.path());
    let larder = at(&config, &clock);
    let mut redis = larder.redis();
    for command in ["SET soon v PX 2000", "SET later v EX 100", "SET never v", "SET kept v EX 3", "SET cut v"] {
        assert_eq!(redis.say(command), "OK");
    }
    assert_eq!(redis.say("PERSIST kept"), ":1");
    assert_eq!(redis.say("PEXPIRE cut 1999"), ":1");
    larder.stop();
    clock.advance(Duration::from_millis(1999));
    let larder = at(&config, &clock);
    let mut redis = larder.redis();
    let all = redis.say("MGET soon later never kept cut");
    assert_eq!(all, "[\"v\", \"v\", \"v\", \"v\", nil]");
    assert_eq!(redis.say("PTTL later"), ":98001");
    larder.stop();
    clock.advance(Duration::from_millis(1));
    let larder = at(&config, &clock);
    let mut redis = larder.redis();
    assert_eq!(redis.say("MGET soon later never kept cut"), "[nil, \"v\", \"v\", \"v\", nil]");
    assert_eq!(redis.pipeline(&["TTL later", "TTL never", "TTL kept"]), [":98", ":-1", ":-1"]);
}

/// The older entry is in another pack, which may outlive that of the newer one.
#[test]
fn what_was_overwritten_does_not_come_back_when_its_successor_expires() {
    let (directory, clock) = (tempfile::tempdir().expect("a directory"), Clock::manual(START));
    let config = format!("{}\nmemory.capacity=0", file_url(directory.path()));
    let mut larder = at(&config, &clock);
    assert_eq!(larder.redis().say("SET k old"), "OK");
    assert_eq!(larder.redis().say("SET other stays"), "OK");
    larder.settle();
    assert_eq!(larder.redis().say("SET k new EX 10"), "OK");
    larder.settle();
    for seconds in [10, 100, 8 * 24 * 3600] {
        larder.advance(seconds);
        assert_eq!(larder.redis().pipeline(&["GET k", "GET other"]), ["nil", "\"stays\""]);
        larder.stop();
        larder = at(&config, &clock);
        assert_eq!(larder.redis().pipeline(&["GET k", "GET other"]), ["nil", "\"stays\""]);
    }
}

#[test]
fn a_clock_that_goes_back_brings_nothing_back_that_was_deleted() {
    let this = larder("");
    let mut redis = this.redis();
    assert_eq!(redis.say("SET k v EX 5"), "OK");
    assert_eq!(redis.say("SET k w"), "OK");
    this.advance(6);
    assert_eq!(redis.say("GET k"), "\"w\"");
    assert_eq!(redis.say("SET k x EXAT 1790000000"), "OK");
    assert_eq!(redis.say("GET k"), "nil", "the moment is past: the value is gone at once");
}
