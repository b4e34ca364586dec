//! Tests the bounds: values, commands, connections, the memory of all clients, and the time that a client may take.

use std::io::{Read, Write};

use super::protocol::{expect, raw, to_end};
use super::starting::larder;
use crate::support::eventually;

#[test]
fn a_value_that_is_too_large_gets_an_error_and_the_connection_goes_on() {
    let larder = larder("resp.max_value_size=1KiB");
    let mut client = larder.redis();
    let (fits, large) = ("v".repeat(1024), "w".repeat(1025));
    let refused = "-ERR the value is larger than 1KiB (resp.max_value_size)";
    assert_eq!(client.say(&format!("SET a {fits}")), "OK");
    for command in [
        format!("SET a {large}"),
        format!("SET a {} EX 10", "w".repeat(3_000_000)),
        format!("MSET b 1 a {large} c 2"),
        format!("GET {large}"),
        format!("{large} a"),
    ] {
        assert_eq!(client.say(&command), refused);
    }
    assert_eq!(client.say("GET a"), format!("\"{fits}\""), "what was there stays");
    assert_eq!(client.say("EXISTS b c"), ":0", "nothing of the command was done");
    assert_eq!(
        client.pipeline(&["MULTI", "SET a 1", &format!("SET a {large}"), "EXEC", "STRLEN a"]),
        ["OK", "QUEUED", refused, "-EXECABORT Transaction discarded because of previous errors.", ":1024"]
    );
    assert_eq!(larder.metric("larder_resp_refused_total{reason=\"too-large\"}"), 6);
}

const NO_ROOM: &str = "-OOM command not allowed: the clients together hold as much as they may (resp.max_buffered)";

#[test]
fn past_the_memory_of_all_clients_a_command_gets_an_error_and_small_ones_are_served() {
    let larder = larder("resp.max_buffered=1MiB");
    let held = || larder.metric("larder_resp_buffered_bytes");
    // One client has sent most of a large value.
    let mut first = raw(&larder);
    first
        .write_all(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$700000\r\n")
        .and_then(|()| first.write_all(&vec![b'v'; 699_000]))
        .expect("it reads");
    eventually("it is held", || held() > 600_000);
    let mut other = larder.redis();
    assert_eq!(other.say(&format!("SET b {}", "w".repeat(600_000))), NO_ROOM);
    assert_eq!(other.say("SET c small"), "OK");
    let queued = format!("SET b {}", "w".repeat(60_000));
    let mut transaction = vec!["MULTI"];
    transaction.extend([&queued[..]; 10]);
    transaction.push("EXEC");
    let replies = other.pipeline(&transaction);
    assert!(replies.contains(&NO_ROOM.to_owned()) && replies.contains(&"QUEUED".to_owned()), "{replies:?}");
    assert_eq!(
        replies.last().map(String::as_str),
        Some("-EXECABORT Transaction discarded because of previous errors.")
    );
    first.write_all(&[&vec![b'v'; 1000][..], b"\r\n"].concat()).expect("it reads");
    expect(&mut first, "+OK\r\n");
    eventually("nothing is held", || held() == 0);
    assert_eq!(other.say(&format!("SET b {}", "w".repeat(600_000))), "OK");
    assert!(larder.metric("larder_resp_refused_total{reason=\"memory\"}") >= 2);
}

#[test]
fn one_connection_too_many_is_told_so() {
    let larder = larder("resp.max_connections=2");
    let (mut one, mut two) = (larder.redis(), larder.redis());
    assert_eq!((one.say("PING"), two.say("PING")), ("PONG".into(), "PONG".into()));
    assert_eq!(to_end(&mut raw(&larder)), "-ERR max number of clients reached\r\n");
    drop(one);
    eventually("there is room again", || larder.metric("larder_resp_connections ") == 1);
    assert_eq!(larder.redis().say("PING"), "PONG");
    assert_eq!(two.say("PING"), "PONG");
    assert_eq!(larder.metric("larder_resp_refused_total{reason=\"too-many-connections\"}"), 1);
}

#[test]
fn who_does_not_read_is_ended_and_holds_no_more_than_its_bound() {
    let larder = larder("resp.timeout=300ms\nresp.max_value_size=1MiB\nmemory.max_object_size=4MiB");
    let mut other = larder.redis();
    assert_eq!(other.say(&format!("SET a {}", "v".repeat(1_000_000))), "OK");
    let mut deaf = raw(&larder);
    let gets = b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n".repeat(10_000);
    deaf.set_nonblocking(true).expect("a socket");
    let _ = deaf.write(&gets);
    eventually("it is ended", || larder.metric("larder_resp_refused_total{reason=\"slow-reader\"}") == 1);
    assert_eq!(other.say("PING"), "PONG");
    let sent = larder.metric("larder_resp_sent_bytes_total");
    assert!(sent < 64 << 20, "{sent} of 10 GB were written, to buffers of the system");
    let ran = larder.metric("larder_resp_commands_total{class=\"read\",outcome=\"ok\"}");
    assert!(ran < 100, "{ran} commands were carried out whose replies nobody takes");
    eventually("nothing is held", || larder.metric("larder_resp_buffered_bytes") == 0);
}

#[test]
fn a_command_that_does_not_arrive_in_time_ends_its_connection() {
    let larder = larder("resp.timeout=200ms\nresp.idle_timeout=1h");
    let mut idle = larder.redis();
    assert_eq!(idle.say("PING"), "PONG");
    for begin in [&b"*2\r\n$3\r\nGET\r\n"[..], b"*", b"PIN", b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$100000\r\nabc"] {
        let mut slow = raw(&larder);
        slow.write_all(begin).expect("it reads");
        assert_eq!(to_end(&mut slow), "");
    }
    assert_eq!(larder.metric("larder_resp_refused_total{reason=\"slow-command\"}"), 4);
    assert_eq!(idle.say("PING"), "PONG", "who sends nothing has time");
}

#[test]
fn a_connection_without_commands_ends_after_its_time() {
    let larder = larder("resp.idle_timeout=200ms");
    let mut idle = raw(&larder);
    idle.write_all(b"PING\r\n").expect("it reads");
    assert_eq!(to_end(&mut idle), "+PONG\r\n");
}

#[test]
fn who_reads_late_gets_every_reply_of_a_large_pipeline() {
    let larder = larder("");
    let mut client = raw(&larder);
    client
        .write_all(&[b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$10000\r\n", &vec![b'v'; 10_000][..], b"\r\n"].concat())
        .expect("it reads");
    expect(&mut client, "+OK\r\n");
    // As clients do: all is sent before anything is read. Their replies are 40 MB.
    client.write_all(&b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n".repeat(4000)).expect("it reads on although nobody reads");
    client.write_all(b"QUIT\r\n").expect("it reads");
    let mut read = Vec::new();
    client.read_to_end(&mut read).expect("all replies");
    assert_eq!(read.len(), 4000 * (8 + 10_000 + 2) + 5);
}

const ABORTED: &str = "-EXECABORT Transaction discarded because of previous errors.";

#[test]
fn a_transaction_lists_once_and_flushes_once() {
    let larder = larder("");
    let mut redis = larder.redis();
    let refused = "-ERR a transaction has one of KEYS, SCAN and DBSIZE at most";
    for second in ["KEYS *", "SCAN 0", "DBSIZE"] {
        assert_eq!(
            redis.pipeline(&["MULTI", "SET a b", "KEYS nothing*", second, "SET a c", "EXEC", "EXISTS a"]),
            ["OK", "QUEUED", "QUEUED", refused, "QUEUED", ABORTED, ":0"]
        );
    }
    let refused = "-ERR a transaction has one of FLUSHDB and FLUSHALL at most";
    assert_eq!(redis.pipeline(&["MULTI", "FLUSHDB", "FLUSHALL", "EXEC"]), ["OK", "QUEUED", refused, ABORTED]);
    // The list has what it changed.
    assert_eq!(redis.pipeline(&["MULTI", "FLUSHDB", "SET a b", "KEYS *", "EXEC"])[4], "[OK, OK, [\"a\"]]");
}

#[test]
fn a_transaction_has_so_many_commands_and_no_more() {
    let larder = larder("");
    let mut redis = larder.redis();
    let refused = "-ERR a transaction has at most 16384 commands and 131072 arguments";
    for (count, last) in [(16_384, "QUEUED"), (16_385, refused)] {
        assert_eq!(redis.say("MULTI"), "OK");
        let replies = redis.pipeline(&vec!["INCR n"; count]);
        assert_eq!(replies.last().map(String::as_str), Some(last));
        let reply = redis.say("EXEC");
        assert_eq!(reply == ABORTED, last == refused, "{}", reply.len());
    }
    assert_eq!(redis.say("GET n"), "\"16384\"");
    let large = format!("MSET {}", "k v ".repeat(65_536));
    assert_eq!(redis.pipeline(&["MULTI", &large, "EXEC"]), ["OK", refused, ABORTED]);
}
