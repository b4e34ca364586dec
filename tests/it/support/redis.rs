//! A client of the listener `resp`, byte-exact, and one line for each reply.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

use larder::downstream::Listen;

use super::proxy::Larder;
use super::wait::{PATIENCE, eventually};

/// A connection of a Redis client.
pub(crate) struct Redis {
    reader: BufReader<Box<dyn Connection>>,
}

trait Connection: Read + Write + Send {}
impl<T: Read + Write + Send> Connection for T {}

impl Redis {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_nodelay(true).expect("a socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Self { reader: BufReader::new(Box::new(stream)) }
    }

    /// Waits until somebody listens.
    pub(crate) fn at(path: &Path) -> Self {
        eventually("a socket accepts clients", || UnixStream::connect(path).is_ok());
        let stream = UnixStream::connect(path).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Self { reader: BufReader::new(Box::new(stream)) }
    }

    /// Sends a command, given as words: a word in quotes may have spaces, and `\xff`.
    pub(crate) fn say(&mut self, command: &str) -> String {
        self.send(&[words(command)]);
        shown(&self.reply())
    }

    pub(crate) fn command(&mut self, arguments: &[&[u8]]) -> String {
        self.send(&[arguments.iter().map(|argument| argument.to_vec()).collect()]);
        shown(&self.reply())
    }

    /// Sends several commands in one write, and reads their replies.
    pub(crate) fn pipeline(&mut self, commands: &[&str]) -> Vec<String> {
        self.send(&commands.iter().map(|command| words(command)).collect::<Vec<_>>());
        commands.iter().map(|_| shown(&self.reply())).collect()
    }

    pub(crate) fn send(&mut self, commands: &[Vec<Vec<u8>>]) {
        let mut bytes = Vec::new();
        for arguments in commands {
            bytes.extend_from_slice(format!("*{}\r\n", arguments.len()).as_bytes());
            for argument in arguments {
                bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
                bytes.extend_from_slice(argument);
                bytes.extend_from_slice(b"\r\n");
            }
        }
        self.reader.get_mut().write_all(&bytes).expect("it reads");
    }

    /// Reads the bytes of one reply.
    pub(crate) fn reply(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.read_into(&mut bytes);
        bytes
    }

    fn read_into(&mut self, bytes: &mut Vec<u8>) {
        let from = bytes.len();
        assert!(self.reader.read_until(b'\n', bytes).expect("a reply in time") > 0, "the connection was closed");
        let line = &bytes[from..];
        let number = std::str::from_utf8(&line[1..]).ok().and_then(|text| text.trim().parse::<i64>().ok());
        match (line[0], number) {
            (b'$', Some(len)) if len >= 0 => {
                let mut rest = vec![0; usize::try_from(len).expect("a length") + 2];
                self.reader.read_exact(&mut rest).expect("the rest of a reply");
                bytes.extend_from_slice(&rest);
            }
            (b'*' | b'~', Some(count)) => (0..count).for_each(|_| self.read_into(bytes)),
            (b'%', Some(count)) => (0..2 * count).for_each(|_| self.read_into(bytes)),
            _ => {}
        }
    }
}

impl Larder {
    /// A client of its listener `resp`.
    pub(crate) fn redis(&self) -> Redis {
        match self.running().resp_address().expect("resp.listen") {
            Listen::Tcp(text) => Redis::connect(text.parse().expect("an address")),
            Listen::Unix(path) => Redis::at(path),
            Listen::Tls(_) => panic!("no Redis client speaks TLS here"),
        }
    }
}

/// Splits a command into its arguments.
pub(crate) fn words(command: &str) -> Vec<Vec<u8>> {
    let (mut words, mut rest) = (Vec::new(), command.trim_start());
    while let Some(first) = rest.chars().next() {
        let (word, after) = if first == '"' { quoted(&rest[1..]) } else { plain(rest) };
        words.push(word);
        rest = after.trim_start();
    }
    words
}

fn plain(text: &str) -> (Vec<u8>, &str) {
    let (word, rest) = text.split_at(text.find(' ').unwrap_or(text.len()));
    (word.as_bytes().to_vec(), rest)
}

fn quoted(text: &str) -> (Vec<u8>, &str) {
    let (mut word, mut at) = (Vec::new(), 0);
    let bytes = text.as_bytes();
    while bytes[at] != b'"' {
        let (byte, len) = match &bytes[at..] {
            [b'\\', b'x', ..] => (u8::from_str_radix(&text[at + 2..at + 4], 16).expect("digits"), 4),
            [b'\\', b'r', ..] => (b'\r', 2),
            [b'\\', b'n', ..] => (b'\n', 2),
            [b'\\', escaped, ..] => (*escaped, 2),
            [byte, ..] => (*byte, 1),
            [] => panic!("a quote without its end: {text}"),
        };
        word.push(byte);
        at += len;
    }
    (word, &text[at + 1..])
}

/// Shows a reply in one line: `OK`, `:1`, `"bytes"`, `nil`, `-ERR …`, `[…]`.
pub(crate) fn shown(reply: &[u8]) -> String {
    let (text, rest) = show(reply);
    assert!(rest.is_empty(), "one reply: {reply:?}");
    text
}

fn show(reply: &[u8]) -> (String, &[u8]) {
    let end = reply.iter().position(|byte| *byte == b'\n').expect("a line");
    let (line, rest) = (String::from_utf8_lossy(&reply[1..end]).trim_end().to_owned(), &reply[end + 1..]);
    match (reply[0], line.parse::<i64>()) {
        (b'+', _) => (line, rest),
        (b'-', _) => (format!("-{line}"), rest),
        (b':', _) => (format!(":{line}"), rest),
        (b'_', _) | (b'$' | b'*', Ok(-1)) => ("nil".to_owned(), rest),
        (b'$', Ok(len)) => {
            let len = usize::try_from(len).expect("a length");
            (format!("\"{}\"", rest[..len].escape_ascii()), &rest[len + 2..])
        }
        (b'*', Ok(count)) => {
            let (mut items, mut rest) = (Vec::new(), rest);
            for _ in 0..count {
                let (item, after) = show(rest);
                items.push(item);
                rest = after;
            }
            (format!("[{}]", items.join(", ")), rest)
        }
        _ => panic!("no reply: {reply:?}"),
    }
}
