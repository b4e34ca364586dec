//! Replies, and their encoding in RESP2 and RESP3.

use std::borrow::Cow;

use bytes::Bytes;

/// The version of the protocol that a client speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Protocol {
    /// The version that every client begins with.
    #[default]
    Resp2,
    /// After `HELLO 3`.
    Resp3,
}

/// The reply to a command.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reply {
    /// A short text such as `OK`, without line breaks.
    Simple(Cow<'static, str>),
    /// An error that begins with its code, such as `ERR` or `WRONGTYPE`. Line breaks become spaces.
    Error(Cow<'static, str>),
    /// A number.
    Integer(i64),
    /// Bytes.
    Bulk(Bytes),
    /// Nothing, in place of bytes.
    Null,
    /// Nothing, in place of an array. Differs from [`Reply::Null`] in RESP2 only.
    NullArray,
    /// Several replies.
    Array(Vec<Reply>),
    /// Pairs; in RESP2 an array in which names and values alternate.
    Map(Vec<(Reply, Reply)>),
    /// Members in no order; in RESP2 an array.
    Set(Vec<Reply>),
    /// Text for people; in RESP2 bytes.
    Verbatim(String),
}

impl Reply {
    /// `OK`
    pub(super) const OK: Self = Self::Simple(Cow::Borrowed("OK"));

    /// Makes a reply of bytes that are always there.
    pub(super) const fn text(text: &'static str) -> Self {
        Self::Bulk(Bytes::from_static(text.as_bytes()))
    }

    /// Makes an error. `text` begins with its code.
    pub(super) fn error(text: impl Into<Cow<'static, str>>) -> Self {
        Self::Error(text.into())
    }

    /// Returns whether it is an error.
    pub(super) const fn is_error(&self) -> bool {
        matches!(self, Self::Error(_))
    }

    /// Returns the bytes of what it holds; 0 for what is short in any case.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Bulk(bytes) => bytes.len(),
            Self::Array(items) | Self::Set(items) => items.iter().map(|item| item.size() + HEAD).sum(),
            Self::Map(pairs) => pairs.iter().map(|(name, value)| name.size() + value.size() + 2 * HEAD).sum(),
            Self::Verbatim(text) => text.len(),
            Self::Simple(_) | Self::Error(_) | Self::Integer(_) | Self::Null | Self::NullArray => 0,
        }
    }

    /// Appends it to `out`.
    pub(super) fn encode(&self, protocol: Protocol, out: &mut Vec<u8>) {
        match (self, protocol) {
            (Self::Simple(text), _) => line(b'+', text, out),
            (Self::Error(text), _) => line(b'-', text, out),
            (Self::Integer(number), _) => number_line(b':', *number, out),
            (Self::Bulk(bytes), _) => bulk(bytes, out),
            (Self::Null, Protocol::Resp2) => out.extend_from_slice(b"$-1\r\n"),
            (Self::NullArray, Protocol::Resp2) => out.extend_from_slice(b"*-1\r\n"),
            (Self::Null | Self::NullArray, Protocol::Resp3) => out.extend_from_slice(b"_\r\n"),
            (Self::Array(items), _) => all(b'*', items, protocol, out),
            (Self::Set(items), Protocol::Resp2) => all(b'*', items, protocol, out),
            (Self::Set(items), Protocol::Resp3) => all(b'~', items, protocol, out),
            (Self::Map(pairs), _) => map(pairs, protocol, out),
            (Self::Verbatim(text), Protocol::Resp2) => bulk(text.as_bytes(), out),
            (Self::Verbatim(text), Protocol::Resp3) => {
                count_line(b'=', text.len() + 4, out);
                out.extend_from_slice(b"txt:");
                out.extend_from_slice(text.as_bytes());
                out.extend_from_slice(b"\r\n");
            }
        }
    }
}

/// The bytes of a reply inside another one, beside what it holds: about what its head and line break take.
const HEAD: usize = 8;

fn map(pairs: &[(Reply, Reply)], protocol: Protocol, out: &mut Vec<u8>) {
    let (kind, count) = match protocol {
        Protocol::Resp2 => (b'*', 2 * pairs.len()),
        Protocol::Resp3 => (b'%', pairs.len()),
    };
    count_line(kind, count, out);
    for (name, value) in pairs {
        name.encode(protocol, out);
        value.encode(protocol, out);
    }
}

fn all(kind: u8, items: &[Reply], protocol: Protocol, out: &mut Vec<u8>) {
    count_line(kind, items.len(), out);
    for item in items {
        item.encode(protocol, out);
    }
}

/// Writes a line of text, in which a line break would end the reply: it becomes a space.
fn line(kind: u8, text: &str, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend(text.bytes().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte }));
    out.extend_from_slice(b"\r\n");
}

fn number_line(kind: u8, number: i64, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn count_line(kind: u8, count: usize, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(itoa::Buffer::new().format(count).as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn bulk(bytes: &[u8], out: &mut Vec<u8>) {
    count_line(b'$', bytes.len(), out);
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(reply: &Reply, protocol: Protocol) -> String {
        let mut out = Vec::new();
        reply.encode(protocol, &mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn each_reply_is_written_as_the_client_s_protocol_has_it() {
        let text = Reply::text;
        for (reply, resp2, resp3) in [
            (Reply::OK, "+OK\r\n", ""),
            (Reply::error("ERR no"), "-ERR no\r\n", ""),
            (Reply::error("ERR a\r\n+OK\nb"), "-ERR a  +OK b\r\n", ""),
            (Reply::Integer(i64::MIN), ":-9223372036854775808\r\n", ""),
            (text("a\r\nb"), "$4\r\na\r\nb\r\n", ""),
            (text(""), "$0\r\n\r\n", ""),
            (Reply::Null, "$-1\r\n", "_\r\n"),
            (Reply::NullArray, "*-1\r\n", "_\r\n"),
            (Reply::Array(vec![]), "*0\r\n", ""),
            (
                Reply::Array(vec![Reply::Integer(1), Reply::Array(vec![Reply::Null])]),
                "*2\r\n:1\r\n*1\r\n$-1\r\n",
                "*2\r\n:1\r\n*1\r\n_\r\n",
            ),
            (Reply::Map(vec![(text("a"), Reply::Integer(1))]), "*2\r\n$1\r\na\r\n:1\r\n", "%1\r\n$1\r\na\r\n:1\r\n"),
            (Reply::Set(vec![Reply::Integer(1)]), "*1\r\n:1\r\n", "~1\r\n:1\r\n"),
            (Reply::Verbatim("a".into()), "$1\r\na\r\n", "=5\r\ntxt:a\r\n"),
        ] {
            assert_eq!(encoded(&reply, Protocol::Resp2), resp2);
            assert_eq!(encoded(&reply, Protocol::Resp3), if resp3.is_empty() { resp2 } else { resp3 });
        }
    }

    #[test]
    fn the_size_of_a_reply_is_what_it_holds() {
        let bulk = |len: usize| Reply::Bulk(vec![0; len].into());
        for (reply, least) in [
            (bulk(1000), 1000),
            (Reply::Array(vec![bulk(10), bulk(20), Reply::Null]), 30),
            (Reply::Array(vec![Reply::Array(vec![bulk(70)])]), 70),
            (Reply::Map(vec![(bulk(3), bulk(4))]), 7),
            (Reply::Integer(1), 0),
        ] {
            let mut out = Vec::new();
            reply.encode(Protocol::Resp2, &mut out);
            assert!((least..=out.len() + 16).contains(&reply.size()), "{reply:?}");
        }
    }
}
