//! Tests what each command answers: byte for byte what a real `redis-server` answers, in each tier.
//!
//! `semantics.txt` has the commands and the answers. With `LARDER_TEST_WRITE=1` the `redis-server` of this machine gives them
//! anew.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::starting::{larder, process_over};
use crate::support::redis::words;
use crate::support::{Larder, Place, Redis, file_url};

fn transcript() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/resp/semantics.txt")
}

/// A command, and the bytes of its answer.
fn read() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(transcript()).expect("the transcript");
    let mut pairs: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            pairs.push((command.to_owned(), String::new()));
        } else if let (Some(answer), Some(last)) = (line.strip_prefix("< "), pairs.last_mut()) {
            answer.clone_into(&mut last.1);
        }
    }
    assert!(pairs.len() > 250);
    pairs
}

fn ask(redis: &mut Redis, command: &str) -> String {
    redis.send(&[words(command)]);
    redis.reply().escape_ascii().to_string()
}

/// Has a real server answer.
fn record() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("redis.sock");
    let mut server = Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--unixsocket"])
        .arg(&socket)
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is installed");
    let mut redis = Redis::at(&socket);
    let mut text = "# Commands, and what redis-server 7.0.15 answers (bytes, escaped). See semantics.rs.\n".to_owned();
    for (command, _) in read() {
        let answer = ask(&mut redis, &command);
        writeln!(text, "> {command}\n< {answer}").expect("a text");
    }
    server.kill().expect("it is there");
    server.wait().expect("it ends");
    std::fs::write(transcript(), text).expect("the transcript");
}

fn compare(larder: &Larder, before_each: impl Fn()) {
    compare_all(&mut larder.redis(), before_each);
}

fn compare_all(redis: &mut Redis, before_each: impl Fn()) {
    for (command, expected) in read() {
        before_each();
        assert_eq!(ask(redis, &command), expected, "{command}");
    }
}

#[test]
fn every_command_answers_as_redis_does_from_memory() {
    if std::env::var_os("LARDER_TEST_WRITE").is_some() {
        record();
    }
    compare(&larder(""), || ());
}

#[test]
fn every_command_answers_as_redis_does_from_a_directory() {
    for more in ["", "memory.capacity=0", "memory.capacity=0\ndurable.inline_size=0"] {
        let directory = tempfile::tempdir().expect("a directory");
        compare(&larder(&format!("{}\n{more}", file_url(directory.path()))), || ());
    }
}

#[test]
fn every_command_answers_as_redis_does_from_packs_that_are_complete() {
    let directory = tempfile::tempdir().expect("a directory");
    let larder = larder(&format!("{}\nmemory.capacity=0", file_url(directory.path())));
    compare(&larder, || larder.settle());
}

#[test]
fn every_command_answers_as_redis_does_from_a_bucket() {
    let (place, directory) = (Place::s3(), tempfile::tempdir().expect("a directory"));
    // While the values wait to be written, and then read back.
    for (name, more) in [("a", "durable.pack_interval=1h"), ("b", "durable.pack_interval=1ms")] {
        let prefix = format!("cache.key_prefix={name}");
        let sets = ["memory.capacity=0", more, &prefix];
        let (larder, socket) = process_over(&place, directory.path(), name, &sets);
        compare_all(&mut Redis::at(&socket), || {
            if name == "b" {
                larder.settle();
            }
        });
    }
}
