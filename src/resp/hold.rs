//! States what holds for all bytes that clients send, for the fuzz target: the parser returns, takes what it found from the bytes,
//! and finds the same wherever they are cut.

use bytes::{Bytes, BytesMut};

use super::parse::{Limits, Next, Parser, ProtocolError};
use super::reply::{Protocol, Reply};

/// Small, so that short inputs reach them.
const LIMITS: Limits = Limits { is_authenticated: true, value: 64, command: 256 };

/// The result of parsing some bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    commands: Vec<Vec<Bytes>>,
    skipped: usize,
    error: Option<ProtocolError>,
}

/// Reads `bytes` as what a client sends, in pieces as long as its first byte says.
///
/// # Panics
/// If the parser finds something else when the bytes arrive in pieces, or other arguments than were sent.
pub fn hold_commands(bytes: &[u8]) {
    let (size, bytes) = bytes.split_first().map_or((1, bytes), |(first, rest)| (usize::from(*first).max(1), rest));
    for is_authenticated in [true, false] {
        let limits = Limits { is_authenticated, ..LIMITS };
        let whole = read([bytes], &limits);
        assert_eq!(read(bytes.chunks(size), &limits), whole, "in pieces of {size}");
        let arguments = whole.commands.iter().flatten();
        assert!(arguments.map(Bytes::len).sum::<usize>() <= bytes.len(), "what was read was sent");
    }
    let whole = read([bytes], &LIMITS);
    // An array of bulk strings is what a client sends, too.
    let mut sent = Vec::new();
    for command in whole.commands.iter().filter(|command| command.iter().all(|word| word.len() <= LIMITS.value)) {
        let reply = Reply::Array(command.iter().cloned().map(Reply::Bulk).collect());
        let mut one = Vec::new();
        reply.encode(Protocol::Resp2, &mut one);
        if one.len() > LIMITS.command {
            continue;
        }
        assert!(reply.size() <= one.len() + 16 * command.len() && reply.size() >= command.iter().map(Bytes::len).sum());
        sent.extend_from_slice(&one);
        let again = read([&one[..]], &LIMITS);
        assert_eq!((&again.commands[..], again.skipped, again.error), (std::slice::from_ref(command), 0, None));
    }
    assert_eq!(read(sent.chunks(size), &LIMITS).error, None);
}

fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limits: &Limits) -> Read {
    let (mut parser, mut buffer, mut arguments) = (Parser::default(), BytesMut::new(), Vec::new());
    let mut read = Read::default();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match parser.next(&mut buffer, &mut arguments, limits) {
                Ok(Next::Command | Next::Inline) => {
                    assert!(!arguments.is_empty(), "a command has a name");
                    read.commands.push(arguments.clone());
                }
                Ok(Next::Skipped(_)) => read.skipped += 1,
                Ok(Next::Unfinished) => break,
                Err(error) => {
                    read.error = Some(error);
                    return read;
                }
            }
        }
        assert!(parser.needs(&buffer) > buffer.len(), "it asks for more");
    }
    read
}
