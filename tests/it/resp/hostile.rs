//! Tests malformed input: each kind gets a clear error in Redis's words, memory stays bounded, and others are served.

use std::io::Write;
use std::time::Duration;

use larder::base::Stopwatch;

use super::protocol::{raw, to_end};
use super::starting::{NOBODY, larder};
use crate::support::{Larder, Process, Redis, eventually};

/// Sends `input`, and returns all that comes back until the connection is closed.
fn answer_to(larder: &Larder, input: &[u8]) -> String {
    let mut client = raw(larder);
    // It may be refused before it is sent whole.
    let _ = client.write_all(input);
    to_end(&mut client)
}

#[test]
fn what_is_not_the_protocol_gets_an_error_and_ends_its_connection_only() {
    let larder = larder("");
    let mut other = larder.redis();
    let error = |what: &str| format!("-ERR Protocol error: {what}\r\n");
    let long = |begin: &str| [begin.as_bytes(), &vec![b'1'; 100_000]].concat();
    for (input, expected) in [
        (&b"*a\r\n"[..], error("invalid multibulk length")),
        (b"*9223372036854775808\r\n", error("invalid multibulk length")),
        (b"*9223372036854775807\r\n", error("invalid multibulk length")),
        (b"*1048577\r\n", error("invalid multibulk length")),
        (&long("*"), error("invalid multibulk length")),
        (b"*1\r\n$-1\r\n", error("invalid bulk length")),
        (b"*1\r\n$abc\r\n", error("invalid bulk length")),
        (b"*1\r\n$1073741824\r\n", error("invalid bulk length")),
        (&long("*1\r\n$"), error("invalid bulk length")),
        (b"*1\r\n*1\r\n$4\r\nPING\r\n", error("expected '$', got '*'")),
        (b"*2\r\n$3\r\nGET\r\n:1\r\n", error("expected '$', got ':'")),
        (b"*1\r\n\0\r\n", error("expected '$', got '\\u{0}'")),
        (b"*1\r\n$4\r\nPING*1\r\n", error("expected a line break behind an argument")),
        (b"*1\r\n$2\r\nPING\r\n", error("expected a line break behind an argument")),
        (b"SET a \"b\r\n", error("unbalanced quotes in request")),
        (&long("x"), error("too big inline request")),
        (b"PING\r\nPING\r\n*x\r\nPING\r\n", format!("+PONG\r\n+PONG\r\n{}", error("invalid multibulk length"))),
    ] {
        assert_eq!(answer_to(&larder, input), expected, "{}", String::from_utf8_lossy(&input[..input.len().min(40)]));
        assert_eq!(other.say("PING"), "PONG");
    }
    // Nested arrays, as deep as they may be sent, are refused at the second.
    assert_eq!(answer_to(&larder, &b"*1\r\n".repeat(10_000)), error("expected '$', got '*'"));
    // NUL bytes are bytes like others.
    assert_eq!(other.command(&[b"SET", b"a\0b", b"\0"]), "OK");
    assert_eq!(other.command(&[b"GET", b"a\0b"]), "\"\\x00\"");
    assert_eq!(other.command(&[b"G\0T", b"a"]), "-ERR unknown command 'G\0T', with args beginning with: 'a'");
    eventually("all are gone but one", || larder.metric("larder_resp_connections ") == 1);
    assert_eq!(larder.metric("larder_resp_refused_total{reason=\"protocol\"}"), 18);
}

#[test]
fn empty_commands_get_no_reply() {
    let larder = larder("");
    let empty = [&b"\r\n"[..], b"\n", b"   \r\n", b"*0\r\n", b"*-1\r\n", b"*-99\r\n"].concat().repeat(1000);
    assert_eq!(answer_to(&larder, &[&empty[..], b"PING\r\nQUIT\r\n"].concat()), "+PONG\r\n+OK\r\n");
}

#[test]
fn http_is_ended_at_once_and_none_of_it_is_carried_out() {
    let larder = larder("");
    for request in [
        "POST / HTTP/1.1\r\nHost: 127.0.0.1:6379\r\n\r\nSET stolen 1\r\n",
        "GET / HTTP/1.1\r\nHost: 127.0.0.1:6379\r\n\r\nSET stolen 1\r\n",
        "PUT /a HTTP/1.0\r\n\r\nSET stolen 1\r\n",
        "Host: a\r\nSET stolen 1\r\n",
        "post /\r\nSET stolen 1\r\n",
        "*1\r\n$4\r\nPOST\r\n*3\r\n$3\r\nSET\r\n$6\r\nstolen\r\n$1\r\n1\r\n",
    ] {
        let mut client = raw(&larder);
        let _ = client.write_all(request.as_bytes());
        let mut read = Vec::new();
        // It may be reset, since what it sent is not read.
        let _ = std::io::Read::read_to_end(&mut client, &mut read);
        assert_eq!(String::from_utf8_lossy(&read), "", "{request}");
    }
    let mut client = larder.redis();
    assert_eq!(client.say("EXISTS stolen"), ":0");
    assert_eq!(larder.metric("larder_resp_refused_total{reason=\"http\"}"), 6);
    assert_eq!(client.command(&[b"SET", b"page", b"HTTP/1.1 200 OK"]), "OK", "a value may be HTTP");
    assert_eq!(client.command(&[b"GET", b"page"]), "\"HTTP/1.1 200 OK\"");
}

#[test]
fn memory_grows_with_what_arrives_and_never_with_what_is_announced() {
    let larder = Process::start(NOBODY, &["durable.url=off", "server.threads=2", "resp.listen=127.0.0.1:0"]);
    let address: std::net::SocketAddr = larder
        .log()
        .split("Redis clients on ")
        .nth(1)
        .and_then(|rest| rest.split('\n').next()?.trim().parse().ok())
        .expect("an address");
    let mut other = Redis::connect(address);
    assert_eq!(other.say("PING"), "PONG");
    let before = larder.resident().1;
    let mut clients: Vec<_> = (0..200).map(|_| std::net::TcpStream::connect(address).expect("it listens")).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        let announced: &[u8] = match n % 4 {
            0 => b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$67108864\r\nbegin",
            1 => b"*1048576\r\n$3\r\nDEL\r\n",
            2 => b"*1048576\r\n$67108864\r\n",
            // Past what a value may have: it is skipped as it comes.
            _ => b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$536870912\r\nbegin",
        };
        client.write_all(announced).expect("it reads");
    }
    eventually("all of it is read", || larder.metric("larder_resp_received_bytes_total") >= 200 * 20);
    assert_eq!(other.say("SET a b"), "OK");
    let grown = larder.resident().1 - before;
    assert!(grown < 8 << 20, "{} KiB for 200 clients", grown >> 10);
}

const TOO_LONG: &str = "-ERR pattern is too long";

#[test]
fn a_pattern_that_is_too_long_gets_an_error_wherever_it_comes() {
    let larder = larder("");
    let mut redis = larder.redis();
    for pattern in ["[]".repeat(513), "[]".repeat(2 << 20)] {
        assert_eq!(redis.command(&[b"KEYS", pattern.as_bytes()]), TOO_LONG);
        assert_eq!(redis.command(&[b"SCAN", b"0", b"MATCH", pattern.as_bytes()]), TOO_LONG);
        assert_eq!(redis.command(&[b"CONFIG", b"GET", b"save", pattern.as_bytes()]), TOO_LONG);
        let script = format!("for i, k in ipairs(redis.call('KEYS', '{pattern}')) do redis.call('DEL', k); end");
        let reply = redis.command(&[b"EVAL", script.as_bytes(), b"0"]);
        assert!(reply == TOO_LONG || reply.starts_with("-ERR Larder runs no scripts"), "{reply}");
        assert_eq!(redis.say("MULTI"), "OK");
        assert_eq!(redis.command(&[b"KEYS", pattern.as_bytes()]), "QUEUED");
        assert_eq!(redis.say("EXEC"), format!("[{TOO_LONG}]"));
    }
    assert_eq!(redis.command(&[b"KEYS", "[]".repeat(512).as_bytes()]), "[]");
    let many = [&[&b"CONFIG"[..], b"GET"][..], &[&b"a"[..]; 65]].concat();
    assert_eq!(redis.command(&many), "-ERR CONFIG GET takes at most 64 patterns");
}

/// A pattern whose beginning is found at each place of a name of many `a`, and its end at none.
fn costly() -> Vec<u8> {
    ["*", &"a".repeat(1000), "b"].concat().into_bytes()
}

fn fill_for_costly(redis: &mut Redis) {
    for n in 0..300 {
        assert_eq!(redis.say(&format!("SET {}{n} v", "a".repeat(16_000))), "OK");
    }
}

#[test]
fn costly_patterns_do_not_keep_others_from_listing() {
    let larder = larder("");
    let mut redis = larder.redis();
    fill_for_costly(&mut redis);
    let mut clients = [larder.redis(), larder.redis()];
    for client in &mut clients {
        client.send(&[vec![b"KEYS".to_vec(), costly()]]);
    }
    let begun = Stopwatch::start();
    assert_eq!(redis.say("DBSIZE"), ":300");
    assert!(begun.elapsed() < Duration::from_secs(15), "it took {:?}", begun.elapsed());
}

#[test]
fn lists_end_with_the_client_that_asked_for_them() {
    let larder = larder("");
    let mut redis = larder.redis();
    fill_for_costly(&mut redis);
    let keys = || vec![b"KEYS".to_vec(), costly()];
    for _ in 0..2 {
        larder.redis().send(&(0..1000).map(|_| keys()).collect::<Vec<_>>());
    }
    // One is within a transaction, which holds turns.
    let word = |word: &str| word.as_bytes().to_vec();
    let one = || [vec![word("MULTI")], vec![word("SET"), word("t"), word("v")], keys(), vec![word("EXEC")]];
    larder.redis().send(&(0..1000).flat_map(|_| one()).collect::<Vec<_>>());
    eventually("their connections have ended", || larder.metric("larder_resp_connections ") == 1);
    assert_eq!(redis.say("SET t other"), "OK");
    assert_eq!(redis.say("DBSIZE"), ":301");
}

#[test]
fn a_client_that_sends_no_more_still_gets_its_replies() {
    let larder = larder("");
    let mut client = raw(&larder);
    client.write_all(b"SET a b\r\nKEYS *\r\nDBSIZE\r\n").expect("it reads");
    client.shutdown(std::net::Shutdown::Write).expect("a socket");
    assert_eq!(to_end(&mut client), "+OK\r\n*1\r\n$1\r\na\r\n:1\r\n");
}
