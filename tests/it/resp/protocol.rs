//! Tests the protocol: both versions, authentication, the commands about connection and server, pipelines, the stop.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;

use larder::downstream::Listen;

use super::starting::{NOBODY, larder};
use crate::support::{Larder, PATIENCE, Process, Redis, eventually};

/// A connection whose bytes a test writes and reads itself.
pub(super) fn raw(larder: &Larder) -> TcpStream {
    let Listen::Tcp(address) = larder.running().resp_address().expect("resp.listen") else { panic!("a TCP listener") };
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream
}

/// Reads as many bytes as `expected` has.
#[track_caller]
pub(super) fn expect(stream: &mut impl Read, expected: &str) {
    let mut read = vec![0; expected.len()];
    stream.read_exact(&mut read).expect("a reply");
    assert_eq!(String::from_utf8_lossy(&read), expected);
}

/// Reads to the end. A reset is no end.
pub(super) fn to_end(stream: &mut impl Read) -> String {
    let mut read = Vec::new();
    stream.read_to_end(&mut read).expect("an end");
    String::from_utf8_lossy(&read).into_owned()
}

#[test]
fn a_client_gets_the_version_of_the_protocol_that_it_asks_for() {
    let larder = larder("");
    let mut client = raw(&larder);
    client.write_all(b"HELLO\r\nCONFIG GET databases\r\nGET none\r\nCOMMAND INFO none\r\n").expect("it reads");
    expect(
        &mut client,
        "*14\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.2.4\r\n$5\r\nproto\r\n:2\r\n$2\r\nid\r\n:1\r\n",
    );
    expect(&mut client, "$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n");
    expect(&mut client, "*2\r\n$9\r\ndatabases\r\n$2\r\n16\r\n$-1\r\n*1\r\n$-1\r\n");
    client.write_all(b"HELLO 3 SETNAME me\r\nCONFIG GET databases\r\nGET none\r\nINFO cluster\r\n").expect("it reads");
    expect(
        &mut client,
        "%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.2.4\r\n$5\r\nproto\r\n:3\r\n$2\r\nid\r\n:1\r\n",
    );
    expect(&mut client, "$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n");
    expect(&mut client, "%1\r\n$9\r\ndatabases\r\n$2\r\n16\r\n_\r\n=34\r\ntxt:# Cluster\r\ncluster_enabled:0\r\n\r\n");
    client.write_all(b"CLIENT GETNAME\r\nRESET\r\nCLIENT GETNAME\r\nGET none\r\n").expect("it reads");
    expect(&mut client, "$2\r\nme\r\n+RESET\r\n$-1\r\n$-1\r\n");
    for (hello, refusal) in [
        ("HELLO 4", "-NOPROTO unsupported protocol version\r\n"),
        ("HELLO 1", "-NOPROTO unsupported protocol version\r\n"),
        ("HELLO x", "-ERR Protocol version is not an integer or out of range\r\n"),
        ("HELLO 3 X", "-ERR Syntax error in HELLO option 'X'\r\n"),
        ("HELLO 3 SETNAME", "-ERR Syntax error in HELLO option 'SETNAME'\r\n"),
        ("HELLO 3 AUTH a", "-ERR Syntax error in HELLO option 'AUTH'\r\n"),
        ("HELLO 3 SETNAME 'a b'", "-ERR Client names cannot contain spaces, newlines or special characters.\r\n"),
    ] {
        client.write_all(format!("{hello}\r\nGET none\r\n").as_bytes()).expect("it reads");
        expect(&mut client, refusal);
        expect(&mut client, "$-1\r\n");
    }
}

const NOAUTH: &str = "-NOAUTH Authentication required.";
const WRONG: &str = "-WRONGPASS invalid username-password pair or user is disabled.";

#[test]
fn without_the_password_nothing_is_done() {
    let larder = larder("resp.password=open sesame");
    let mut client = larder.redis();
    for command in [
        "GET a",
        "SET a b",
        "PING",
        "ECHO a",
        "MULTI",
        "EXEC",
        "SELECT 1",
        "INFO",
        "CONFIG GET save",
        "KEYS *",
        "CLIENT ID",
    ] {
        assert_eq!(client.say(command), NOAUTH, "{command}");
    }
    for (command, reply) in [
        ("AUTH x", WRONG),
        ("AUTH \"open sesam\"", WRONG),
        ("AUTH \"open sesame \"", WRONG),
        ("AUTH \"\"", WRONG),
        ("AUTH default x", WRONG),
        ("AUTH other \"open sesame\"", WRONG),
        ("AUTH a b c", "-ERR syntax error"),
        ("HELLO 3 AUTH default x", WRONG),
        ("FOO", "-ERR unknown command 'FOO', with args beginning with:"),
        ("GET", "-ERR wrong number of arguments for 'get' command"),
        ("GET a", NOAUTH),
    ] {
        assert_eq!(client.say(command), reply, "{command}");
    }
    let refused = client.say("HELLO 3");
    assert!(refused.starts_with("-NOAUTH HELLO must be called with the client already authenticated"), "{refused}");
    assert_eq!(client.say("AUTH \"open sesame\""), "OK");
    assert_eq!(client.say("PING"), "PONG");
    assert_eq!(client.say("AUTH x"), WRONG);
    assert_eq!(client.say("PING"), "PONG", "it stays authenticated, as in Redis");
    assert_eq!(client.say("RESET"), "RESET");
    assert_eq!(client.say("PING"), NOAUTH);
    for login in ["AUTH default \"open sesame\"", "HELLO 2 AUTH default \"open sesame\""] {
        let mut client = larder.redis();
        assert!(!client.say(login).starts_with('-'));
        assert_eq!(client.say("SET a b"), "OK");
    }
    assert!(larder.metric("larder_resp_refused_total{reason=\"password\"}") >= 8);
    let mut stranger = raw(&larder);
    stranger.write_all(b"*11\r\n").expect("it reads");
    assert_eq!(to_end(&mut stranger), "-ERR Protocol error: unauthenticated multibulk length\r\n");
    let mut stranger = raw(&larder);
    stranger.write_all(b"*2\r\n$4\r\nAUTH\r\n$16385\r\n").expect("it reads");
    assert_eq!(to_end(&mut stranger), "-ERR Protocol error: unauthenticated bulk length\r\n");
}

#[test]
fn without_a_password_auth_says_so() {
    let larder = larder("");
    let mut client = larder.redis();
    assert!(client.say("AUTH x").starts_with("-ERR AUTH <password> called without any password configured"));
    assert_eq!(client.say("AUTH default x"), "OK");
    assert!(client.say("AUTH other x").starts_with("-WRONGPASS"));
}

#[test]
fn commands_about_connection_and_server_answer_as_clients_expect() {
    let larder = larder("memory.capacity=64MiB");
    let mut client = larder.redis();
    for (command, reply) in [
        ("ping", "PONG"),
        ("PING a", "\"a\""),
        ("PING a b", "-ERR wrong number of arguments for 'ping' command"),
        ("ECHO \"a\\r\\nb\"", "\"a\\r\\nb\""),
        ("SELECT 15", "OK"),
        ("SELECT 16", "-ERR DB index is out of range"),
        ("SELECT -1", "-ERR DB index is out of range"),
        ("SELECT 99999999999", "-ERR value is out of range, value must between -2147483648 and 2147483647"),
        ("SELECT 01", "-ERR value is not an integer or out of range"),
        ("SELECT a", "-ERR value is not an integer or out of range"),
        ("SELECT 0", "OK"),
        ("CLIENT", "-ERR wrong number of arguments for 'client' command"),
        ("CLIENT FOO", "-ERR unknown subcommand 'FOO'. Try CLIENT HELP."),
        ("CLIENT ID", ":1"),
        ("CLIENT ID x", "-ERR wrong number of arguments for 'client|id' command"),
        ("CLIENT GETNAME", "nil"),
        ("CLIENT SETNAME \"a b\"", "-ERR Client names cannot contain spaces, newlines or special characters."),
        ("CLIENT SETNAME me", "OK"),
        ("CLIENT GETNAME", "\"me\""),
        ("CLIENT SETINFO LIB-NAME redis-py", "OK"),
        ("CLIENT SETINFO lib-ver 1.0", "OK"),
        ("CLIENT SETINFO x 1.0", "-ERR Unrecognized option 'x'"),
        ("CLIENT NO-EVICT on", "OK"),
        ("CLIENT NO-TOUCH off", "OK"),
        ("CLIENT NO-EVICT x", "-ERR syntax error"),
        ("CONFIG GET save", "[\"save\", \"\"]"),
        ("CONFIG GET appendonly", "[\"appendonly\", \"no\"]"),
        (
            "CONFIG GET MAXMEM* save",
            "[\"maxmemory\", \"67108864\", \"maxmemory-clients\", \"268435456\", \"maxmemory-policy\", \"allkeys-lru\", \"save\", \"\"]",
        ),
        ("CONFIG GET requirepass", "[]"),
        ("CONFIG GET", "-ERR wrong number of arguments for 'config|get' command"),
        ("CONFIG SET save x", "-ERR unknown subcommand 'SET'. Try CONFIG HELP."),
        ("COMMAND INFO get none", "[[\"get\", :2, [readonly, fast], :1, :1, :1, [], [], [], []], nil]"),
        ("COMMAND FOO", "-ERR unknown subcommand 'FOO'. Try COMMAND HELP."),
        ("FOO a b", "-ERR unknown command 'FOO', with args beginning with: 'a' 'b'"),
        ("SUBSCRIBE a", "-ERR unknown command 'SUBSCRIBE', with args beginning with: 'a'"),
        ("INFO none", "\"\""),
    ] {
        assert_eq!(client.say(command), reply, "{command}");
    }
    let described = client.say("CLIENT INFO");
    for part in ["id=1 addr=127.0.0.1:", " name=me ", " db=0 ", " lib-name=redis-py lib-ver=1.0 resp=2"] {
        assert!(described.contains(part), "{part} in {described}");
    }
    let all = client.say("COMMAND");
    let count = client.say("COMMAND COUNT");
    assert_eq!(format!(":{}", all.matches(", [], [], [], []]").count()), count);
    assert_eq!(client.say("COMMAND LIST").matches('"').count() / 2, count[1..].parse::<usize>().expect("a number"));
    let info = client.say("INFO");
    for line in [
        "redis_version:7.2.4",
        "redis_mode:standalone",
        "process_id:",
        "connected_clients:1",
        "maxmemory:67108864",
        "loading:0",
        "role:master",
        "cluster_enabled:0",
        "total_commands_processed:",
        "keyspace_hits:0",
    ] {
        assert!(info.contains(line), "{line} in {info}");
    }
    assert!(!client.say("INFO Server").contains("Clients") && client.say("INFO server clients").contains("# Clients"));
}

#[test]
fn what_a_pipeline_brings_is_answered_in_its_order() {
    let larder = larder("");
    let mut client = raw(&larder);
    let count = 10_000;
    let mut sent = String::new();
    for n in 0..count {
        let _ = write!(sent, "*3\r\n$3\r\nSET\r\n$5\r\n{n:05}\r\n$5\r\n{:05}\r\n", count - n);
        let _ = write!(sent, "*2\r\n$3\r\nGET\r\n$5\r\n{n:05}\r\n");
    }
    let mut writer = client.try_clone().expect("a socket");
    let writing = std::thread::spawn(move || writer.write_all(sent.as_bytes()).expect("it reads"));
    for n in 0..count {
        expect(&mut client, &format!("+OK\r\n$5\r\n{:05}\r\n", count - n));
    }
    writing.join().expect("all was sent");
    let commands =
        |outcome: &str| larder.metric(&format!("larder_resp_commands_total{{class=\"read\",outcome=\"{outcome}\"}}"));
    assert_eq!((commands("ok"), commands("error")), (count, 0));
    assert_eq!(larder.metric("larder_resp_reads_total{tier=\"memory\"}"), count);
}

#[test]
fn a_large_value_goes_in_and_out_whole_however_it_arrives() {
    let larder = larder("memory.max_object_size=32MiB");
    let value: String =
        (0..20_000_000_u32).map(|n| char::from(b'a' + u8::try_from(n * 7 % 26).expect("a letter"))).collect();
    for size in [16_300, 16_384, 65_400, 65_536, 100_000, 1 << 20, 20_000_000] {
        let value = &value[..size];
        let mut client = raw(&larder);
        let mut writer = client.try_clone().expect("a socket");
        let sent = format!(
            "*5\r\n$3\r\nSET\r\n$1\r\nk\r\n${size}\r\n{value}\r\n$2\r\nEX\r\n$4\r\n1000\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\nPING\r\n"
        );
        let writing = std::thread::spawn(move || {
            let (first, rest) = sent.as_bytes().split_at(sent.len() / 3);
            writer.write_all(first).and_then(|()| writer.write_all(rest)).expect("it reads");
        });
        expect(&mut client, &format!("+OK\r\n${size}\r\n"));
        let mut read = vec![0; size];
        client.read_exact(&mut read).expect("the value");
        assert!(read == value.as_bytes(), "{size}");
        expect(&mut client, "\r\n+PONG\r\n");
        writing.join().expect("all was sent");
    }
}

#[test]
fn quit_and_the_end_of_input_come_after_what_was_sent_before() {
    let larder = larder("");
    let mut client = raw(&larder);
    client.write_all(b"SET a b\r\nGET a\r\nQUIT\r\nGET a\r\n").expect("it reads");
    assert_eq!(to_end(&mut client), "+OK\r\n$1\r\nb\r\n+OK\r\n");
    let mut client = raw(&larder);
    client.write_all(b"GET a\r\nGET a\r\n*2\r\n$3\r\nGET\r\n$1\r\n").expect("it reads");
    client.shutdown(std::net::Shutdown::Write).expect("a socket");
    assert_eq!(to_end(&mut client), "$1\r\nb\r\n$1\r\nb\r\n");
    let mut client = raw(&larder);
    client.write_all(b"MULTI\r\nSET a c\r\n").expect("it reads");
    expect(&mut client, "+OK\r\n+QUEUED\r\n");
    drop(client);
    eventually("it is gone", || larder.metric("larder_resp_connections ") == 0);
    assert_eq!(larder.redis().say("GET a"), "\"b\"", "a transaction without its EXEC does nothing");
}

#[test]
fn sigterm_answers_what_has_arrived_and_closes() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("resp.sock");
    let set = format!("resp.listen=unix:{}", socket.display());
    let mut larder = Process::start(NOBODY, &["durable.url=off", &set]);
    let mode = std::fs::symlink_metadata(&socket).expect("a socket");
    assert!(mode.file_type().is_socket() && mode.permissions().mode() & 0o777 == 0o660);
    let mut idle = UnixStream::connect(&socket).expect("it listens");
    let mut busy = UnixStream::connect(&socket).expect("it listens");
    busy.write_all(b"*2\r\n$3\r\nGET\r\n").expect("it reads");
    assert_eq!(Redis::at(&socket).say("PING"), "PONG");
    larder.signal("-TERM");
    assert_eq!((to_end(&mut idle), to_end(&mut busy)), (String::new(), String::new()));
    assert_eq!(larder.wait(), Some(0), "{}", larder.log());
    assert!(!socket.exists(), "its file is gone");
    assert!(larder.log().contains(&format!("Redis clients on unix:{}", socket.display())), "{}", larder.log());
}

#[test]
fn it_listens_only_where_a_password_or_the_machine_keeps_strangers_out() {
    for (sets, told) in [
        (
            &["resp.listen=0.0.0.0:6379"][..],
            "resp.password: it is empty, and resp.listen = \"0.0.0.0:6379\" can be reached",
        ),
        (&["resp.listen=[::]:6379"], "resp.password: it is empty"),
        (&["resp.listen=redis.example:6379"], "resp.password: it is empty"),
        (&["resp.listen=0.0.0.0:6379", "resp.password=x"], ""),
        (&["resp.listen=127.0.0.1:6379"], ""),
        (&["resp.listen=localhost:6379"], ""),
        (&["resp.listen=unix:/run/larder-resp.sock"], ""),
        (&["resp.listen=off"], ""),
        (&["resp.listen=127.0.0.1"], "is not host:port"),
        (&["resp.listen=127.0.0.1:8080"], "are one address"),
        (&["resp.listen=127.0.0.1:9090"], "are one address"),
        (&["resp.password=a\nb"], "resp.password"),
    ] {
        let sets: Vec<_> = sets.iter().map(|set| (*set).to_owned()).collect();
        let loaded = larder::config::Config::load(None, std::iter::empty(), &sets);
        match loaded {
            Ok(_) => assert_eq!(told, "", "{sets:?}"),
            Err(errors) => assert!(!told.is_empty() && errors.to_string().contains(told), "{sets:?}: {errors}"),
        }
    }
}
