//! The heads of requests, as they were read: where each begins and ends, and what hyper does not check in them.
//!
//! * hyper rejects `"`, `<`, `>` and `` ` `` in a target, which browsers and other servers accept. They are escaped
//!   here, so that both spellings have one key.
//! * hyper drops the `Content-Length` of a request that has `Transfer-Encoding` too. It is found here in the bytes, so
//!   that the request is refused (RFC 9112 §6.1).

use std::ops::Range;

use http::Method;
use memchr::memmem;

/// The most bytes of heads that are kept.
const MAX_RECENT: usize = 128 << 10;

/// The most bytes of capacity that an idle connection keeps for heads.
const KEPT_RECENT: usize = 4 << 10;

/// The heads of requests, as they were read. The body of a request that is being answered is skipped.
#[derive(Debug, Default)]
pub(super) struct Heads {
    recent: Vec<u8>,
    /// The number of heads at the beginning that have become requests, and are no longer needed.
    begun: usize,
    /// True if the body of the last of those requests follows them.
    pub(super) is_body: bool,
}

/// The part of a request line that the next bytes belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinePart {
    Method,
    Target,
}

/// Returns whether the first line in `read` may hold a character that hyper rejects in a target (RFC 9112 §3.2).
/// Nearly no line does. It tests eight bytes at a time, and may be misled by bytes behind the line's end.
#[inline]
pub(super) fn may_hold_unsafe(read: &[u8]) -> bool {
    const fn each(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    // True if a byte of the word is zero.
    let has_zero = |word: u64| word.wrapping_sub(each(1)) & !word & each(0x80) != 0;
    let start = match read.first() {
        Some(b'\r' | b'\n') => read.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(read.len()),
        _ => 0,
    };
    let (words, rest) = read[start..].as_chunks::<8>();
    for word in words {
        let word = u64::from_ne_bytes(*word);
        // One mask tests both `<` and `>`, which differ in one bit.
        let has_sign =
            has_zero(word ^ each(b'"')) | has_zero(word ^ each(b'`')) | has_zero(word & !each(2) ^ each(b'<'));
        if has_sign || has_zero(word ^ each(b'\n')) {
            return has_sign;
        }
    }
    rest.iter().any(|byte| is_unsafe(*byte))
}

const fn is_unsafe(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'`')
}

/// Returns the first line in `read` that is not empty, if it holds such a character.
pub(super) fn line_with_unsafe(read: &[u8]) -> Option<Range<usize>> {
    let start = read.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let end = start + memchr::memchr(b'\n', &read[start..]).unwrap_or(read.len() - start);
    read[start..end].iter().any(|byte| is_unsafe(*byte)).then_some(start..end)
}

/// Escapes those characters in the target that is in `line`. Leaves further heads in the same read as they are.
pub(super) fn escaped(read: &[u8], line: Range<usize>, from: LinePart) -> Option<Vec<u8>> {
    let Range { start, end } = line;
    let target = match from {
        LinePart::Method => start + memchr::memchr(b' ', &read[start..end])?,
        LinePart::Target => start,
    };
    let line = &read[target..end];
    let mut bytes = Vec::with_capacity(read.len() + 64);
    bytes.extend_from_slice(&read[..target]);
    for byte in line {
        if is_unsafe(*byte) {
            bytes.push(b'%');
            bytes.extend([byte >> 4, byte & 15].map(|digit| b"0123456789ABCDEF"[usize::from(digit)]));
        } else {
            bytes.push(*byte);
        }
    }
    bytes.extend_from_slice(&read[end..]);
    Some(bytes)
}

/// Returns the end of the first head in `bytes`, as hyper finds it: behind an empty line. Empty lines may precede a
/// head, and a line may end without a carriage return.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    memchr::memchr_iter(b'\n', &bytes[start..]).map(|at| start + at + 1).find_map(|next| match bytes[next..] {
        [b'\n', ..] => Some(next + 1),
        [b'\r', b'\n', ..] => Some(next + 2),
        _ => None,
    })
}

impl Heads {
    /// Notes that a head has become a request.
    pub(super) fn begin(&mut self, has_body: bool) {
        self.begun += 1;
        self.is_body = has_body;
    }

    /// Forgets the heads of answered requests when hyper reads on. hyper reads only when it has no complete head left,
    /// so nothing can follow an empty line.
    #[inline]
    pub(super) fn forget_answered(&mut self) {
        if self.begun > 0 && !self.is_body && (self.recent.ends_with(b"\n\r\n") || self.recent.ends_with(b"\n\n")) {
            self.begun = 0;
            self.recent.clear();
            if self.recent.capacity() > KEPT_RECENT {
                self.recent.shrink_to(KEPT_RECENT);
            }
        }
    }

    /// Adds what was read, and returns whether a head begins with it. A head in one read with the end of a body is not
    /// seen. If its framing contradicts itself hyper goes by `Transfer-Encoding`, and ends the connection behind it.
    #[inline]
    pub(super) fn read(&mut self, bytes: &[u8]) -> bool {
        self.forget_begun();
        if std::mem::take(&mut self.is_body) {
            self.recent.clear();
        }
        let begins = self.recent.is_empty();
        let room = MAX_RECENT - self.recent.len();
        self.recent.extend_from_slice(&bytes[..bytes.len().min(room)]);
        begins
    }

    /// Returns the part of the request line that the next bytes belong to; `None`: they belong to none.
    pub(super) fn line(&mut self) -> Option<LinePart> {
        self.forget_begun();
        if self.is_body {
            return None;
        }
        let start = self.recent.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(self.recent.len());
        let line = &self.recent[start..];
        if line.contains(&b'\n') {
            return None;
        }
        Some(if line.contains(&b' ') { LinePart::Target } else { LinePart::Method })
    }

    /// Returns whether a part of a head has been read.
    pub(super) fn is_in_head(&mut self) -> bool {
        self.forget_begun();
        !self.recent.is_empty() && !self.is_body
    }

    #[inline]
    fn forget_begun(&mut self) {
        if self.begun > 0 {
            self.drop_begun();
        }
    }

    fn drop_begun(&mut self) {
        let end = self.recent.len() - self.next().len();
        self.begun = 0;
        self.recent.drain(..end);
        if self.recent.capacity() > KEPT_RECENT {
            self.recent.shrink_to(KEPT_RECENT);
        }
    }

    /// Returns the head that becomes the next request, and what follows it.
    pub(super) fn next(&self) -> &[u8] {
        (0..self.begun).fold(&self.recent[..], |rest, _| &rest[end_of_head(rest).unwrap_or(rest.len())..])
    }
}

/// Returns whether the head of a request, as it was read, has a `Content-Length`. hyper removes that field where there
/// is `Transfer-Encoding`, so the bytes are searched.
pub(super) fn has_content_length(recent: &[u8], method: &Method) -> bool {
    let line = format!("{method} ");
    let Some(start) = memmem::find(recent, line.as_bytes()) else { return false };
    let head = &recent[start..];
    let head = &head[..end_of_head(head).unwrap_or(head.len())];
    head.split(|&byte| byte == b'\n').skip(1).any(|line| {
        let name = line.split(|&byte| byte == b':').next().unwrap_or_default();
        name.trim_ascii().eq_ignore_ascii_case(b"content-length")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_that_no_target_may_have_are_escaped_there_and_nowhere_else() {
        let escape = |read: &str, from| {
            let line = line_with_unsafe(read.as_bytes())?;
            escaped(read.as_bytes(), line, from).map(|bytes| String::from_utf8(bytes).expect("text"))
        };
        for (read, from, expected) in [
            ("GET /a HTTP/1.1\r\nA: \"<>\r\n\r\n", LinePart::Method, None),
            ("GET /\"<>` HTTP/1.1\r\nA: \"<\r\n", LinePart::Method, Some("GET /%22%3C%3E%60 HTTP/1.1\r\nA: \"<\r\n")),
            ("\r\nGET /?q=\"x\" HTTP/1.1\n", LinePart::Method, Some("\r\nGET /?q=%22x%22 HTTP/1.1\n")),
            ("x\"y HTTP/1.1\r\n", LinePart::Target, Some("x%22y HTTP/1.1\r\n")),
            ("G\"T /<", LinePart::Method, Some("G\"T /%3C")),
            ("G\"T", LinePart::Method, None),
            ("", LinePart::Method, None),
        ] {
            assert_eq!(escape(read, from).as_deref(), expected, "{read}");
            assert!(may_hold_unsafe(read.as_bytes()) || expected.is_none(), "{read}");
        }
    }
}
