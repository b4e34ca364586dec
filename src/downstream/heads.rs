//! The heads of requests, as they were read: where each begins and ends, and what hyper does not check in them.
//!
//! * hyper takes no `"`, `<`, `>` and `` ` `` in a target; browsers and other servers do. They are escaped here, so that
//!   both spellings have one key.
//! * hyper drops the `Content-Length` of a request that has `Transfer-Encoding` too. It is found here in the bytes, so
//!   that the request is refused (RFC 9112 §6.1).

use std::ops::Range;

use http::Method;
use memchr::memmem;

/// The most bytes of a request head that are kept to look at.
const MAX_RECENT: usize = 128 << 10;

/// What of that a connection keeps room for while it waits.
const KEPT_RECENT: usize = 4 << 10;

/// The heads of requests, as they were read; what comes while a request with a body is answered is that.
#[derive(Debug, Default)]
pub(super) struct Heads {
    recent: Vec<u8>,
    /// How many of the heads at the beginning have become requests, and are of no more use.
    begun: usize,
    /// Whether what is behind them is the body of the last of those requests.
    pub(super) is_body: bool,
}

/// The part of a request line that comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinePart {
    Method,
    Target,
}

/// Returns whether the first line in `read` may hold signs that hyper takes in no target (RFC 9112 §3.2). It nearly
/// never does, and is short: eight bytes at a time, and what is behind it in the last of them counts as well.
#[inline]
pub(super) fn may_hold_unsafe_signs(read: &[u8]) -> bool {
    const fn each(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    // Finds a zero byte in a word.
    let has_zero = |word: u64| word.wrapping_sub(each(1)) & !word & each(0x80) != 0;
    let start = match read.first() {
        Some(b'\r' | b'\n') => read.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(read.len()),
        _ => 0,
    };
    let (words, rest) = read[start..].as_chunks::<8>();
    for word in words {
        let word = u64::from_ne_bytes(*word);
        // `<` and `>` differ in one bit.
        let has_sign =
            has_zero(word ^ each(b'"')) | has_zero(word ^ each(b'`')) | has_zero(word & !each(2) ^ each(b'<'));
        if has_sign || has_zero(word ^ each(b'\n')) {
            return has_sign;
        }
    }
    rest.iter().any(|byte| is_unsafe_sign(*byte))
}

const fn is_unsafe_sign(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'`')
}

/// The first line in `read` that is not empty, if it holds such signs.
pub(super) fn line_with_unsafe_signs(read: &[u8]) -> Option<Range<usize>> {
    let start = read.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let end = start + memchr::memchr(b'\n', &read[start..]).unwrap_or(read.len() - start);
    read[start..end].iter().any(|byte| is_unsafe_sign(*byte)).then_some(start..end)
}

/// `read` with those signs escaped in the target that is in `line`. A head behind another one in the same read is
/// left as it is.
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
        if is_unsafe_sign(*byte) {
            bytes.push(b'%');
            bytes.extend([byte >> 4, byte & 15].map(|digit| b"0123456789ABCDEF"[usize::from(digit)]));
        } else {
            bytes.push(*byte);
        }
    }
    bytes.extend_from_slice(&read[end..]);
    Some(bytes)
}

/// Where the first head in `bytes` ends, as hyper sees it: with an empty line, behind any at the
/// beginning; a line may end without a carriage return.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    memchr::memchr_iter(b'\n', &bytes[start..]).map(|at| start + at + 1).find_map(|next| match bytes[next..] {
        [b'\n', ..] => Some(next + 1),
        [b'\r', b'\n', ..] => Some(next + 2),
        _ => None,
    })
}

impl Heads {
    /// Notes a head that has become a request.
    pub(super) fn begin(&mut self, has_body: bool) {
        self.begun += 1;
        self.is_body = has_body;
    }

    /// Forgets heads whose requests are all answered, when hyper reads on: it does so once it has no whole
    /// head any more, so that behind an empty line there is nothing.
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

    /// Adds what was read, and returns whether a head begins with it. A head that began behind a body in one read
    /// with that is not looked at: where its framing contradicts itself hyper ends the connection with it, and goes by
    /// `Transfer-Encoding`.
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

    /// Returns the part of the request line that the next bytes belong to, if they belong to one.
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

    /// Whether there is a part of a head.
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

    /// The head that becomes the next request, and what is behind it.
    pub(super) fn next(&self) -> &[u8] {
        (0..self.begun).fold(&self.recent[..], |rest, _| &rest[end_of_head(rest).unwrap_or(rest.len())..])
    }
}

/// Whether the head of `request`, as it was read, has a `Content-Length`. hyper takes that field
/// out where there is a `Transfer-Encoding`, so the bytes are looked at.
pub(super) fn has_content_length(recent: &[u8], method: &Method) -> bool {
    let line = format!("{} ", method);
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
            let line = line_with_unsafe_signs(read.as_bytes())?;
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
            assert!(may_hold_unsafe_signs(read.as_bytes()) || expected.is_none(), "{read}");
        }
    }
}
