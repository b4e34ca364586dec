//! Reads commands: arrays of bulk strings, and inline commands.
//!
//! * Reads on where it stopped: no byte is looked at twice, however the input is cut.
//! * Copies nothing of an array: arguments are slices of the buffer.
//! * Nothing is allocated for what is only announced.
//! * Errors have Redis's own words where Redis has some. Unlike Redis it demands the line break behind an argument.

use bytes::{Buf, Bytes, BytesMut};

use self::Header::{Invalid, Number, Unfinished};
use super::inline::words;

/// The most bytes of an inline command.
pub(super) const MAX_INLINE: usize = 64 << 10;

/// The most arguments of a command.
pub(super) const MAX_ARGUMENTS: u64 = 1 << 20;

/// The most bytes that an argument may announce. As Redis's `proto-max-bulk-len`.
pub(super) const MAX_ANNOUNCED: u64 = 512 << 20;

/// The most arguments before `AUTH`.
const MAX_EARLY_ARGUMENTS: u64 = 10;

/// The most bytes of an argument before `AUTH`.
const MAX_EARLY_ANNOUNCED: u64 = 16 << 10;

/// The memory that an argument takes beside its bytes: its place in the buffer, and a slice of it.
const ARGUMENT_OVERHEAD: usize = size_of::<(u32, u32)>() + size_of::<Bytes>();

/// The bounds on what a client may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// False before `AUTH`, when only short commands are read.
    pub(super) is_authenticated: bool,
    /// The most bytes of an argument. A command with a longer one is skipped.
    pub(super) value: usize,
    /// The most bytes of a command. A longer one is skipped.
    pub(super) command: usize,
}

/// Input that is not the protocol, in Redis's words. The connection ends with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProtocolError(pub(super) String);

/// The reason why a command is skipped: its bytes are dropped as they arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Skipped {
    /// An argument or the command is longer than its limit.
    TooLarge,
    /// There was no room for it.
    NoRoom,
}

/// The beginning of the buffer, as far as it is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A command, whose arguments were taken out. There is at least one.
    Command,
    /// The same, of an inline command.
    Inline,
    /// The end of a command that was skipped.
    Skipped(Skipped),
    /// A part of a command, or nothing.
    Unfinished,
}

/// Reads the commands of one connection.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// The bytes at the beginning of the buffer that were read, and are kept.
    at: usize,
    /// The arguments that are still to come; 0: a command begins at `at`, or an inline command is in the buffer.
    left: u64,
    /// The bytes of the argument under way, without its line break.
    argument: Option<usize>,
    /// Start and length of the arguments that have arrived.
    spans: Vec<(u32, u32)>,
    /// Set while a command is skipped. The buffer then begins with what was not looked at.
    skipped: Option<Skipped>,
}

impl Parser {
    /// Takes the next command out of `buffer`. Between two calls bytes may only be added to it.
    pub(super) fn next(
        &mut self,
        buffer: &mut BytesMut,
        arguments: &mut Vec<Bytes>,
        limits: &Limits,
    ) -> Result<Next, ProtocolError> {
        arguments.clear();
        loop {
            if self.left == 0 {
                match buffer.first().copied() {
                    None => return Ok(Next::Unfinished),
                    Some(b'*') => {
                        if !self.begin(buffer, limits)? {
                            return Ok(Next::Unfinished);
                        }
                    }
                    Some(_) => {
                        if !self.inline(buffer, arguments)? {
                            return Ok(Next::Unfinished);
                        }
                        // An empty line gets no reply.
                        if !arguments.is_empty() {
                            return Ok(Next::Inline);
                        }
                    }
                }
            } else {
                if !self.arguments(buffer, limits)? {
                    return Ok(Next::Unfinished);
                }
                if let Some(why) = self.skipped.take() {
                    return Ok(Next::Skipped(why));
                }
                self.take(buffer, arguments);
                return Ok(Next::Command);
            }
        }
    }

    /// Skips the command under way: what has arrived of it is dropped, and what is to come.
    /// Returns `false` if that can't be: only its first line is arriving, so that nobody knows its end.
    pub(super) fn skip(&mut self, buffer: &mut BytesMut, why: Skipped) -> bool {
        if self.left > 0 && self.skipped.is_none() {
            self.skipped = Some(why);
            buffer.advance(self.at);
            self.at = 0;
            self.spans = Vec::new();
        }
        self.left > 0
    }

    /// Returns whether a part of a command has arrived, with `buffer` what is left.
    pub(super) fn is_within(&self, buffer: &[u8]) -> bool {
        self.left > 0 || !buffer.is_empty()
    }

    /// Returns whether the command under way is skipped.
    pub(super) fn is_skipping(&self) -> bool {
        self.skipped.is_some()
    }

    /// Returns the least number of bytes that `buffer` has to have before the command under way goes on.
    pub(super) fn needs(&self, buffer: &[u8]) -> usize {
        match self.argument {
            Some(len) if self.skipped.is_none() => self.at + len + 2,
            Some(_) | None => buffer.len() + 1,
        }
    }

    /// Returns the memory that the arguments of the command under way take beside their bytes.
    pub(super) fn overhead(&self) -> usize {
        self.spans.len() * ARGUMENT_OVERHEAD
    }

    /// Reads the head of an array. `false`: it has not arrived whole.
    fn begin(&mut self, buffer: &mut BytesMut, limits: &Limits) -> Result<bool, ProtocolError> {
        let (count, end) = match header(buffer) {
            Number(count, end) => (count, end),
            Unfinished => return Ok(false),
            Invalid => return error("invalid multibulk length"),
        };
        // Redis has no use for an empty array, and gives it no reply.
        let Ok(count @ 1..) = u64::try_from(count) else {
            buffer.advance(end);
            return Ok(true);
        };
        if count > MAX_ARGUMENTS {
            return error("invalid multibulk length");
        }
        if count > MAX_EARLY_ARGUMENTS && !limits.is_authenticated {
            return error("unauthenticated multibulk length");
        }
        (self.left, self.at) = (count, end);
        Ok(true)
    }

    /// Reads the arguments of an array. `false`: not all have arrived.
    fn arguments(&mut self, buffer: &mut BytesMut, limits: &Limits) -> Result<bool, ProtocolError> {
        while self.left > 0 {
            let Some(len) = self.argument else {
                match Self::announced(&buffer[self.at..], limits)? {
                    Some((len, end)) => {
                        self.argument = Some(len);
                        self.at += end;
                    }
                    None => return Ok(false),
                }
                let is_too_large = |len: usize| len > limits.value || self.at.saturating_add(len) > limits.command;
                if self.skipped.is_none() && self.argument.is_some_and(is_too_large) {
                    self.skip(buffer, Skipped::TooLarge);
                }
                continue;
            };
            if self.skipped.is_some() {
                if !self.drop_argument(buffer, len)? {
                    return Ok(false);
                }
            } else {
                let end = self.at + len;
                let Some(behind) = buffer.get(end..end + 2) else { return Ok(false) };
                ends_line(behind)?;
                self.spans.push(span(self.at, len));
                self.at = end + 2;
            }
            self.argument = None;
            self.left -= 1;
        }
        Ok(true)
    }

    /// Reads the head of an argument: its length, and the length of the head.
    fn announced(rest: &[u8], limits: &Limits) -> Result<Option<(usize, usize)>, ProtocolError> {
        match rest.first() {
            None => return Ok(None),
            Some(b'$') => {}
            Some(other) => return error(&format!("expected '$', got '{}'", char::from(*other).escape_default())),
        }
        let (len, end) = match header(rest) {
            Number(len, end) => (len, end),
            Unfinished => return Ok(None),
            Invalid => return error("invalid bulk length"),
        };
        match u64::try_from(len) {
            Ok(len) if len > MAX_ANNOUNCED => error("invalid bulk length"),
            Ok(len) if len > MAX_EARLY_ANNOUNCED && !limits.is_authenticated => error("unauthenticated bulk length"),
            Ok(len) => match usize::try_from(len) {
                Ok(len) => Ok(Some((len, end))),
                Err(_) => error("invalid bulk length"),
            },
            Err(_) => error("invalid bulk length"),
        }
    }

    /// Drops what has arrived of an argument of which `len` bytes and the line break are left. `false`: more is to come.
    fn drop_argument(&mut self, buffer: &mut BytesMut, len: usize) -> Result<bool, ProtocolError> {
        // The head of the argument was looked at in the buffer, and kept until here.
        buffer.advance(self.at);
        self.at = 0;
        let dropped = len.min(buffer.len());
        buffer.advance(dropped);
        self.argument = Some(len - dropped);
        if dropped < len || buffer.len() < 2 {
            return Ok(false);
        }
        ends_line(&buffer[..2])?;
        buffer.advance(2);
        Ok(true)
    }

    /// Takes a command that has arrived whole.
    fn take(&mut self, buffer: &mut BytesMut, arguments: &mut Vec<Bytes>) {
        let frame = buffer.split_to(std::mem::take(&mut self.at)).freeze();
        let slice = |(start, len): (u32, u32)| {
            let start = start as usize;
            frame.slice(start..start + len as usize)
        };
        arguments.extend(self.spans.drain(..).map(slice));
        if self.spans.capacity() > KEPT_ARGUMENTS {
            self.spans = Vec::new();
        }
    }

    /// Reads an inline command: a line of words. `false`: it has not arrived whole.
    fn inline(&mut self, buffer: &mut BytesMut, arguments: &mut Vec<Bytes>) -> Result<bool, ProtocolError> {
        let end = memchr::memchr(b'\n', &buffer[self.at..]).map(|end| self.at + end);
        if end.unwrap_or(buffer.len()) > MAX_INLINE {
            return error("too big inline request");
        }
        let Some(end) = end else {
            self.at = buffer.len();
            return Ok(false);
        };
        self.at = 0;
        let line = buffer.split_to(end + 1).freeze();
        let line = line[..end].strip_suffix(b"\r").unwrap_or(&line[..end]);
        match words(line, arguments) {
            Some(()) => Ok(true),
            None => error("unbalanced quotes in request"),
        }
    }
}

/// The arguments for which a parser keeps room.
const KEPT_ARGUMENTS: usize = 64;

fn error<T>(what: &str) -> Result<T, ProtocolError> {
    Err(ProtocolError(format!("Protocol error: {what}")))
}

fn ends_line(two: &[u8]) -> Result<(), ProtocolError> {
    if two == b"\r\n" { Ok(()) } else { error("expected a line break behind an argument") }
}

/// A command has fewer bytes than four GiB, for `Limits::command` is less.
fn span(start: usize, len: usize) -> (u32, u32) {
    let narrow = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
    (narrow(start), narrow(len))
}

/// The head of an array or argument.
enum Header {
    /// The number, and the bytes that the head takes.
    Number(i64, usize),
    Unfinished,
    Invalid,
}

/// Reads a line of one sign and a number, as strictly as Redis: no plus, no leading zeros, no spaces.
fn header(bytes: &[u8]) -> Header {
    let is_negative = bytes.get(1) == Some(&b'-');
    let first = if is_negative { 2 } else { 1 };
    let (mut at, mut number) = (first, 0_i64);
    loop {
        match bytes.get(at) {
            None => return Unfinished,
            Some(digit @ b'0'..=b'9') => {
                let has_leading_zero = at == first + 1 && number == 0;
                match number.checked_mul(10).and_then(|tens| tens.checked_add(i64::from(digit - b'0'))) {
                    Some(next) if !has_leading_zero => number = next,
                    Some(_) | None => return Invalid,
                }
            }
            Some(b'\r') if at > first && !(is_negative && number == 0) => break,
            Some(_) => return Invalid,
        }
        at += 1;
    }
    match bytes.get(at + 1) {
        None => Unfinished,
        Some(b'\n') => Number(if is_negative { -number } else { number }, at + 2),
        Some(_) => Invalid,
    }
}

#[cfg(test)]
mod tests;
