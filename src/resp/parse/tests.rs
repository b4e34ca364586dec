//! Tests of the parser: tables of commands and of malformed input, cut at every place.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { is_authenticated: true, value: 1000, command: 10_000 };

/// Parses some bytes as a connection does.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Command(Vec<Bytes>),
    Skipped(Skipped),
    Error(String),
    /// A part of a command is left.
    Within,
}

/// Reads `pieces`, which arrive one after another.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limits: &Limits) -> Vec<Event> {
    let (mut parser, mut buffer, mut arguments) = (Parser::default(), BytesMut::new(), Vec::new());
    let mut events = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match parser.next(&mut buffer, &mut arguments, limits) {
                Ok(Next::Command | Next::Inline) => events.push(Event::Command(arguments.clone())),
                Ok(Next::Skipped(why)) => events.push(Event::Skipped(why)),
                Ok(Next::Unfinished) => break,
                Err(error) => {
                    events.push(Event::Error(error.0));
                    return events;
                }
            }
        }
    }
    if parser.is_within(&buffer) {
        events.push(Event::Within);
    }
    events
}

fn command(words: &[&str]) -> Event {
    Event::Command(words.iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect())
}

fn error(what: &str) -> Event {
    Event::Error(format!("Protocol error: {what}"))
}

/// Holds `input` to give `expected`, whole, cut at every place, and byte by byte.
fn hold(input: &[u8], limits: &Limits, expected: &[Event]) {
    let shown = String::from_utf8_lossy(&input[..input.len().min(100)]).into_owned();
    assert_eq!(read([input], limits), expected, "{shown:?}");
    assert_eq!(read(input.chunks(1), limits), expected, "byte by byte: {shown:?}");
    for at in 0..input.len().min(400) {
        let (one, other) = input.split_at(at);
        assert_eq!(read([one, other], limits), expected, "cut at {at}: {shown:?}");
    }
}

#[test]
fn commands_are_read_wherever_they_are_cut() {
    let long = "v".repeat(1000);
    let set = format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1000\r\n{long}\r\n");
    for (input, expected) in [
        ("", vec![]),
        ("*1\r\n$4\r\nPING\r\n", vec![command(&["PING"])]),
        ("*2\r\n$3\r\nGET\r\n$0\r\n\r\n", vec![command(&["GET", ""])]),
        ("*2\r\n$3\r\nGET\r\n$4\r\n\r\n\r\n\r\n", vec![command(&["GET", "\r\n\r\n"])]),
        ("*2\r\n$3\r\nGET\r\n$3\r\n\0*$\r\n", vec![command(&["GET", "\0*$"])]),
        ("*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nQUIT\r\n", vec![command(&["PING"]), command(&["QUIT"])]),
        ("PING\r\n", vec![command(&["PING"])]),
        ("PING\nECHO \"a b\"\n", vec![command(&["PING"]), command(&["ECHO", "a b"])]),
        ("\r\n\n  \r\nPING\r\n*1\r\n$4\r\nPING\r\n", vec![command(&["PING"]), command(&["PING"])]),
        ("*0\r\n*-1\r\n*-10\r\nPING\r\n", vec![command(&["PING"])]),
        (&set, vec![command(&["SET", "k", &long])]),
        ("*1\r\n$4\r\nPIN", vec![Event::Within]),
        ("*1", vec![Event::Within]),
        ("PIN", vec![Event::Within]),
        ("PING\0\r\n", vec![command(&["PING\0"])]),
    ] {
        hold(input.as_bytes(), &LIMITS, &expected);
    }
}

#[test]
fn what_is_not_the_protocol_gets_an_error_in_redis_words() {
    for (input, what) in [
        ("*a\r\n", "invalid multibulk length"),
        ("*\r\n", "invalid multibulk length"),
        ("*01\r\n", "invalid multibulk length"),
        ("*+1\r\n", "invalid multibulk length"),
        ("* 1\r\n", "invalid multibulk length"),
        ("*-\r\n", "invalid multibulk length"),
        ("*-0\r\n", "invalid multibulk length"),
        ("*1\n$4\nPING\n", "invalid multibulk length"),
        ("*1\rx", "invalid multibulk length"),
        ("*1048577\r\n", "invalid multibulk length"),
        ("*9223372036854775807\r\n", "invalid multibulk length"),
        ("*9223372036854775808\r\n", "invalid multibulk length"),
        ("*99999999999999999999999999999", "invalid multibulk length"),
        ("*1\r\nx", "expected '$', got 'x'"),
        ("*1\r\n*1\r\n$4\r\nPING\r\n", "expected '$', got '*'"),
        ("*1\r\n\r\n", "expected '$', got '\\r'"),
        ("*1\r\n\0", "expected '$', got '\\u{0}'"),
        ("*1\r\n:1\r\n", "expected '$', got ':'"),
        ("*1\r\n$-1\r\n", "invalid bulk length"),
        ("*1\r\n$a\r\n", "invalid bulk length"),
        ("*1\r\n$\r\n", "invalid bulk length"),
        ("*1\r\n$04\r\nPING\r\n", "invalid bulk length"),
        ("*1\r\n$536870913\r\n", "invalid bulk length"),
        ("*1\r\n$9223372036854775808\r\n", "invalid bulk length"),
        ("*1\r\n$4\r\nPINGxx", "expected a line break behind an argument"),
        ("*1\r\n$4\r\nPING\n\n", "expected a line break behind an argument"),
        ("*1\r\n$3\r\nPING\r\n", "expected a line break behind an argument"),
        ("SET a \"b\r\n", "unbalanced quotes in request"),
        ("SET a 'b'c\r\n", "unbalanced quotes in request"),
    ] {
        hold(input.as_bytes(), &LIMITS, &[error(what)]);
    }
    let endless = vec![b'x'; MAX_INLINE + 1];
    for pieces in [1, 1000, MAX_INLINE + 1] {
        assert_eq!(read(endless.chunks(pieces), &LIMITS), [error("too big inline request")]);
    }
    let longest = [&vec![b'x'; MAX_INLINE][..], b"\n"].concat();
    assert_eq!(read([&longest[..]], &LIMITS).len(), 1, "the longest is a command");
}

#[test]
fn before_auth_only_short_commands_are_read() {
    let early = Limits { is_authenticated: false, ..Limits { value: 1 << 20, command: 1 << 20, ..LIMITS } };
    for (input, what) in [
        ("*11\r\n", "unauthenticated multibulk length"),
        ("*2\r\n$4\r\nAUTH\r\n$16385\r\n", "unauthenticated bulk length"),
        ("*1\r\n$536870913\r\n", "invalid bulk length"),
    ] {
        hold(input.as_bytes(), &early, &[error(what)]);
    }
    let word = "w".repeat(16 << 10);
    let input = format!("*2\r\n$4\r\nECHO\r\n${}\r\n{word}\r\n", word.len());
    assert_eq!(read([input.as_bytes()], &early), [command(&["ECHO", &word])]);
}

#[test]
fn a_command_that_is_too_large_is_skipped_and_the_next_one_is_read() {
    let (long, fits) = ("v".repeat(1001), "w".repeat(1000));
    let ping = "*1\r\n$4\r\nPING\r\n";
    for input in [
        format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1001\r\n{long}\r\n{ping}"),
        format!("*5\r\n$3\r\nSET\r\n$1\r\nk\r\n$1001\r\n{long}\r\n$2\r\nEX\r\n$2\r\n10\r\n{ping}"),
        format!("*2\r\n$1001\r\n{long}\r\n$1001\r\n{long}\r\n{ping}"),
        format!("*11\r\n$4\r\nMSET\r\n{}{ping}", format!("$1000\r\n{fits}\r\n").repeat(10)),
    ] {
        hold(input.as_bytes(), &LIMITS, &[Event::Skipped(Skipped::TooLarge), command(&["PING"])]);
    }
    let unsound = format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1001\r\n{long}xx");
    hold(unsound.as_bytes(), &LIMITS, &[error("expected a line break behind an argument")]);
    let unsound = format!("*3\r\n$3\r\nSET\r\n$1001\r\n{long}\r\n$-1\r\n");
    hold(unsound.as_bytes(), &LIMITS, &[error("invalid bulk length")]);
}

#[test]
fn a_command_can_be_skipped_at_every_place() {
    let input = b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$5\r\nvalue\r\n*1\r\n$4\r\nPING\r\n";
    let end = input.len() - b"*1\r\n$4\r\nPING\r\n".len();
    for at in 1..end {
        let (mut parser, mut buffer, mut arguments) = (Parser::default(), BytesMut::from(&input[..at]), Vec::new());
        assert_eq!(parser.next(&mut buffer, &mut arguments, &LIMITS), Ok(Next::Unfinished));
        let is_skipped = parser.skip(&mut buffer, Skipped::NoRoom);
        assert_eq!(is_skipped, at >= 4, "the number of its arguments has to be known: {at}");
        if is_skipped {
            assert_eq!(parser.next(&mut buffer, &mut arguments, &LIMITS), Ok(Next::Unfinished));
            assert!(buffer.len() < 8, "no more than the head of an argument is kept: {at}");
            buffer.extend_from_slice(&input[at..]);
            assert_eq!(parser.next(&mut buffer, &mut arguments, &LIMITS), Ok(Next::Skipped(Skipped::NoRoom)));
        } else {
            buffer.extend_from_slice(&input[at..]);
            assert_eq!(parser.next(&mut buffer, &mut arguments, &LIMITS), Ok(Next::Command));
        }
        assert_eq!(parser.next(&mut buffer, &mut arguments, &LIMITS), Ok(Next::Command));
        assert_eq!(arguments, ["PING"]);
    }
}

#[test]
fn nothing_is_allocated_for_what_is_announced() {
    let limits = Limits { value: 512 << 20, command: 2 << 30, ..LIMITS };
    for (input, needs) in [
        (&b"*1048576\r\n$536870912\r\n"[..], 22 + (512 << 20) + 2),
        (b"*1048576\r\n", 11),
        (b"*1048576\r\n$536870912\r", 22),
    ] {
        let (mut parser, mut buffer, mut arguments) = (Parser::default(), BytesMut::from(input), Vec::new());
        assert_eq!(parser.next(&mut buffer, &mut arguments, &limits), Ok(Next::Unfinished));
        assert!(buffer.capacity() < 100 && arguments.capacity() == 0 && parser.spans.capacity() == 0);
        assert_eq!((parser.needs(&buffer), parser.overhead()), (needs, 0));
    }
}

#[test]
fn arguments_are_slices_of_what_was_read() {
    let mut buffer = BytesMut::from(&b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n"[..]);
    let (start, len) = (buffer.as_ptr().addr(), buffer.len());
    let mut arguments = Vec::new();
    assert_eq!(Parser::default().next(&mut buffer, &mut arguments, &LIMITS), Ok(Next::Command));
    assert!(arguments.iter().all(|argument| (start..start + len).contains(&argument.as_ptr().addr())));
}

#[test]
fn many_arguments_take_time_in_proportion() {
    // Read anew from the beginning with each piece, this would take hours.
    let count = 200_000;
    let input = format!("*{count}\r\n{}", "$1\r\na\r\n".repeat(count));
    let limits = Limits { command: 10 << 20, ..LIMITS };
    let events = read(input.as_bytes().chunks(100), &limits);
    assert!(matches!(&events[..], [Event::Command(arguments)] if arguments.len() == count));
}

proptest! {
    #[test]
    fn whatever_is_written_is_read_back_in_whatever_pieces(
        commands in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..6), 0..6),
        piece in 1_usize..50,
    ) {
        let mut input = Vec::new();
        for command in &commands {
            input.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
            for argument in command {
                input.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
                input.extend_from_slice(argument);
                input.extend_from_slice(b"\r\n");
            }
        }
        let expected: Vec<_> =
            commands.into_iter().map(|command| Event::Command(command.into_iter().map(Bytes::from).collect())).collect();
        prop_assert_eq!(read(input.chunks(piece), &LIMITS), expected);
    }

    #[test]
    fn any_bytes_mean_the_same_in_whatever_pieces(
        input in prop::collection::vec(prop::sample::select(b"*$012-\r\nGET \"'x\\".to_vec()), 0..80),
        piece in 1_usize..20,
    ) {
        prop_assert_eq!(read(input.chunks(piece), &LIMITS), read([&input[..]], &LIMITS));
    }
}
