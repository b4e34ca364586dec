//! Reads commands: RESP2 arrays of bulk strings, and inline commands.

use bytes::{Buf, Bytes, BytesMut};

/// Input that is not the protocol. The text is Redis's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtocolError(pub String);

/// Takes the next command out of `buffer` into `arguments`; `false`: it has not arrived whole.
pub(super) fn next(buffer: &mut BytesMut, arguments: &mut Vec<Bytes>) -> Result<bool, ProtocolError> {
    arguments.clear();
    let Some((kind, count, mut at)) = number(buffer, 0)? else { return Ok(false) };
    if kind != b'*' {
        return Err(ProtocolError("Protocol error: invalid multibulk length".into()));
    }
    let mut spans = Vec::new();
    for _ in 0..count {
        let Some((_, len, start)) = number(buffer, at)? else { return Ok(false) };
        if buffer.len() < start + len + 2 {
            return Ok(false);
        }
        spans.push((start, len));
        at = start + len + 2;
    }
    let frame = buffer.split_to(at).freeze();
    arguments.extend(spans.into_iter().map(|(start, len)| frame.slice(start..start + len)));
    Ok(true)
}

fn number(buffer: &[u8], at: usize) -> Result<Option<(u8, usize, usize)>, ProtocolError> {
    let rest = &buffer[at..];
    let Some(end) = memchr::memchr(b'\n', rest) else { return Ok(None) };
    let text = std::str::from_utf8(&rest[1..end.saturating_sub(1).max(1)]).unwrap_or_default();
    let number = text.parse().map_err(|_| ProtocolError("Protocol error: invalid bulk length".into()))?;
    Ok(Some((rest.chunk()[0], number, at + end + 1)))
}
