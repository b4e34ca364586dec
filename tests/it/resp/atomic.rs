//! Tests what is atomic in a process, across connections and worker threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::starting::{in_each_tier, larder};
use crate::support::{Larder, Redis, at_once, file_url};

const CLIENTS: usize = 8;

/// Runs `each` on several connections at once.
fn crowd<T: Send + 'static>(larder: &Larder, each: impl Fn(usize, &mut Redis) -> T + Send + Sync + 'static) -> Vec<T> {
    let clients: Vec<_> = (0..CLIENTS).map(|_| std::sync::Mutex::new(larder.redis())).collect();
    at_once(CLIENTS, move |number| each(number, &mut clients[number].lock().expect("one thread each")))
}

#[test]
fn no_increment_is_lost() {
    in_each_tier(|larder, settle| {
        crowd(larder, |number, redis| {
            for _ in 0..100 {
                redis.say("INCR sum");
                redis.say(if number % 2 == 0 { "INCRBY even 3" } else { "DECRBY odd 2" });
                redis.say("APPEND text x");
            }
        });
        settle();
        let mut redis = larder.redis();
        assert_eq!(redis.say("MGET sum even odd"), "[\"800\", \"1200\", \"-800\"]");
        assert_eq!(redis.say("STRLEN text"), ":800");
    });
}

#[test]
fn of_those_who_ask_at_once_exactly_one_wins() {
    in_each_tier(|larder, settle| {
        for round in 0..20 {
            for (command, won) in [("SET lock{} me NX EX 100", "OK"), ("SETNX other{} me", ":1")] {
                let command = command.replace("{}", &round.to_string());
                let winners = crowd(larder, move |_, redis| redis.say(&command));
                assert_eq!(winners.iter().filter(|reply| *reply == won).count(), 1, "{winners:?}");
            }
            settle();
            let taken = crowd(larder, move |_, redis| redis.say(&format!("GETDEL lock{round}")));
            assert_eq!(taken.iter().filter(|reply| *reply == "\"me\"").count(), 1, "{taken:?}");
            let deleted = crowd(larder, move |_, redis| redis.say(&format!("DEL other{round}")));
            assert_eq!(deleted.iter().filter(|reply| *reply == ":1").count(), 1, "{deleted:?}");
        }
    });
}

#[test]
fn a_transaction_is_carried_out_as_one() {
    in_each_tier(|larder, _| {
        assert_eq!(larder.redis().say("MSET a 1000 b 1000"), "OK");
        crowd(larder, |number, redis| {
            for _ in 0..30 {
                let moved = number + 1;
                let (take, give) = (format!("DECRBY a {moved}"), format!("INCRBY b {moved}"));
                redis.pipeline(&["MULTI", &take, &give, "EXEC"]);
                let seen = redis.pipeline(&["MULTI", "GET a", "GET b", "EXEC"]);
                let sum: i64 =
                    seen[3].split(['"', ',', '[', ']', ' ']).filter_map(|text| text.parse::<i64>().ok()).sum();
                assert_eq!(sum, 2000, "{seen:?}");
            }
        });
        let moved = 30 * (1..=CLIENTS).sum::<usize>();
        assert_eq!(
            larder.redis().say("MGET a b"),
            format!("[\"{}\", \"{}\"]", 1000 - i64::try_from(moved).expect("few"), 1000 + moved)
        );
    });
}

#[test]
fn exec_does_nothing_if_what_is_watched_was_changed() {
    in_each_tier(|larder, settle| {
        let (mut a, mut b) = (larder.redis(), larder.redis());
        assert_eq!(a.say("SET k 1"), "OK");
        settle();
        for change in ["SET k 2", "DEL k", "INCR n", "EXPIRE k 100", "FLUSHDB"] {
            assert_eq!(a.pipeline(&["SET k 1", "SET n 1", "WATCH k n", "MULTI", "SET k mine"])[4], "QUEUED");
            b.say(change);
            assert_eq!(a.say("EXEC"), "nil", "{change}");
            assert_ne!(b.say("GET k"), "\"mine\"", "{change}");
        }
        assert_eq!(a.pipeline(&["WATCH k", "MULTI", "SET k mine"])[2], "QUEUED");
        b.say("GET k");
        assert_eq!(a.say("EXEC"), "[OK]");
        // The watch ends with the transaction.
        b.say("SET k 3");
        assert_eq!(a.pipeline(&["MULTI", "GET k", "EXEC"])[2], "[\"3\"]");
    });
}

/// The optimistic counter of the books: what is watched, read, and written.
#[test]
fn a_counter_by_watch_loses_nothing() {
    let larder = larder("");
    crowd(&larder, |_, redis| {
        for _ in 0..20 {
            loop {
                let seen = redis.pipeline(&["WATCH n", "GET n"]);
                let next = seen[1].trim_matches('"').parse::<u64>().unwrap_or(0) + 1;
                if redis.pipeline(&["MULTI", &format!("SET n {next}"), "EXEC"])[2] != "nil" {
                    break;
                }
            }
        }
    });
    assert_eq!(larder.redis().say("GET n"), format!("\"{}\"", 20 * CLIENTS));
}

/// Memory is so small that values come and go between the tiers all the time.
#[test]
fn nobody_reads_a_value_that_was_overwritten_before_he_asked() {
    let directory = tempfile::tempdir().expect("a directory");
    let larder = larder(&format!("{}\nmemory.capacity=64KiB", file_url(directory.path())));
    let written: Arc<Vec<AtomicU64>> = Arc::new((0..40).map(|_| AtomicU64::new(0)).collect());
    let is_done = Arc::new(AtomicBool::new(false));
    let (known, done) = (Arc::clone(&written), Arc::clone(&is_done));
    let reads = crowd(&larder, move |number, redis| {
        let filler = "f".repeat(1000);
        if number < 2 {
            for round in 1..=60 {
                for key in (number..40).step_by(2) {
                    assert_eq!(redis.say(&format!("SET k{key} {round}-{filler}")), "OK");
                    known[key].store(round, Ordering::SeqCst);
                }
            }
            done.store(true, Ordering::SeqCst);
            return 0;
        }
        let mut reads = 0;
        while !done.load(Ordering::SeqCst) || reads < 100 {
            let key = fastrand::usize(..40);
            let before = known[key].load(Ordering::SeqCst);
            let found = redis.say(&format!("GET k{key}"));
            let found: u64 = found.trim_matches('"').split('-').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            assert!(found >= before, "k{key} was {before}, and then {found}");
            reads += 1;
        }
        reads
    });
    assert!(reads.iter().sum::<u64>() > 500);
}
