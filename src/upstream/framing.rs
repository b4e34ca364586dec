//! Checks how the body of a response is framed (RFC 9112 §6), as far as hyper leaves that open: the lengths it states
//! are one number, or the response is refused.

use hyper::body::{Body, Incoming};

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use http::{Response, StatusCode};

use super::UpstreamError;
use crate::rfc9111::fields;

/// Marks a response whose body ends with its connection (RFC 9112 §6.3): cut short it looks the
/// same.
#[derive(Clone, Copy, Debug)]
pub struct EndsWithConnection;

/// Settles the fields of a response that say how it is framed. Whether its connection may be used again.
pub(super) fn settle(response: &mut Response<Incoming>) -> Result<bool, UpstreamError> {
    let (status, len) = (response.status(), response.body().size_hint().exact());
    let ends_with_connection = settle_fields(status, len, response.headers_mut())?;
    let is_kept = match ends_with_connection {
        Framing::Plain => true,
        Framing::Contradictory => false,
        Framing::EndsWithConnection => {
            response.extensions_mut().insert(EndsWithConnection);
            false
        }
    };
    Ok(is_kept)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Plain,
    /// More is said than may be: what follows on the connection can't be trusted.
    Contradictory,
    EndsWithConnection,
}

/// `len` is that of the body as hyper reads it, if that is known.
fn settle_fields(status: StatusCode, len: Option<u64>, fields: &mut HeaderMap) -> Result<Framing, UpstreamError> {
    if len.is_some() && is_plain(fields) && !status.is_informational() && status != StatusCode::NO_CONTENT {
        return Ok(Framing::Plain);
    }
    let has_codings = len != Some(0) || status.is_informational() || status == StatusCode::NO_CONTENT;
    let has_codings = has_codings && fields.contains_key(TRANSFER_ENCODING);
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        // RFC 9110 §8.6: such a response has no length.
        let stated = fields.remove(CONTENT_LENGTH);
        let is_empty = !has_codings && stated.is_none_or(|len| len == "0");
        // Bytes after a change of protocols are no HTTP in any case.
        let is_plain = is_empty || status == StatusCode::SWITCHING_PROTOCOLS;
        return Ok(if is_plain { Framing::Plain } else { Framing::Contradictory });
    }
    if !has_codings {
        if fields.contains_key(TRANSFER_ENCODING) {
            // Of a response to HEAD, or a 304: it speaks of another's body.
            fields.remove(CONTENT_LENGTH);
            return Ok(Framing::Plain);
        }
        settle_length(fields)?;
        return Ok(if len.is_none() { Framing::EndsWithConnection } else { Framing::Plain });
    }
    let mut ends_with_chunked = false;
    let members = fields.get_all(TRANSFER_ENCODING).into_iter();
    let members = members.flat_map(|line| fields::split_outside_quotes(line.as_bytes(), b',').map(fields::trim));
    for coding in members {
        // hyper reads to the end of the connection where nothing stands behind the last comma.
        if coding.is_empty() {
            ends_with_chunked = false;
            continue;
        }
        let is_chunked = coding.eq_ignore_ascii_case(b"chunked");
        if is_chunked && ends_with_chunked {
            return Err(UpstreamError::Unsupported("the application's answer is chunked twice"));
        }
        // RFC 9112 §7: a coding for the way that is not undone would be taken for the content's own.
        if !is_chunked && !coding.eq_ignore_ascii_case(b"identity") {
            return Err(UpstreamError::Unsupported(
                "the application uses a Transfer-Encoding that this server does not undo",
            ));
        }
        ends_with_chunked = is_chunked;
    }
    // RFC 9112 §6.3: Transfer-Encoding goes before Content-Length, and the two together end the connection.
    let has_length = fields.remove(CONTENT_LENGTH).is_some();
    Ok(match (ends_with_chunked, has_length) {
        (false, _) => Framing::EndsWithConnection,
        (true, true) => Framing::Contradictory,
        (true, false) => Framing::Plain,
    })
}

/// Returns whether the fields state at most one length, as nearly all do. One pass, without hashing.
fn is_plain(fields: &HeaderMap) -> bool {
    let mut lengths = 0;
    fields.iter().all(|(name, value)| match *name {
        TRANSFER_ENCODING => false,
        CONTENT_LENGTH => {
            lengths += 1;
            lengths == 1 && (1..20).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_digit)
        }
        _ => true,
    })
}

/// RFC 9110 §8.6: the same length said several times is said once; anything else is no length.
fn settle_length(fields: &mut HeaderMap) -> Result<(), UpstreamError> {
    let mut values = fields.get_all(CONTENT_LENGTH).iter();
    let Some(first) = values.next() else { return Ok(()) };
    let mut stated = None;
    for value in std::iter::once(first).chain(values) {
        for member in value.as_bytes().split(|byte| *byte == b',') {
            let len = length(fields::trim(member)).ok_or(UpstreamError::InvalidLength)?;
            if stated.replace(len).is_some_and(|other| other != len) {
                return Err(UpstreamError::InvalidLength);
            }
        }
    }
    if let Some(len) = stated {
        fields.insert(CONTENT_LENGTH, HeaderValue::from(len));
    }
    Ok(())
}

fn length(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let named = |(name, value): &(&'static str, &'static str)| {
            (http::HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        lines.iter().map(named).collect()
    }

    #[test]
    fn a_length_is_one_number_or_the_response_is_none() {
        const LEN: &str = "content-length";
        for (values, settled) in [
            (&["4"][..], Some("4")),
            (&["4, 4"], Some("4")),
            (&["4", "4"], Some("4")),
            (&["4,4", " 4 "], Some("4")),
            (&["0"], Some("0")),
            (&["18446744073709551615"], Some("18446744073709551615")),
            (&["4, 5"], None),
            (&["4", "5"], None),
            (&["+4"], None),
            (&["-4"], None),
            (&["4 4"], None),
            (&["0x4"], None),
            (&["4,"], None),
            (&[""], None),
            (&["4.0"], None),
            (&["18446744073709551616"], None),
            (&["99999999999999999999999"], None),
        ] {
            let lines: Vec<_> = values.iter().map(|value| (LEN, *value)).collect();
            for (status, len) in
                [(StatusCode::OK, Some(0)), (StatusCode::NOT_MODIFIED, Some(0)), (StatusCode::OK, Some(4))]
            {
                let mut fields = fields(&lines);
                let outcome = settle_fields(status, len, &mut fields);
                assert_eq!(outcome.is_ok(), settled.is_some(), "{values:?}");
                if settled.is_some() {
                    let all: Vec<_> = fields.get_all(LEN).iter().map(|value| value.to_str().ok()).collect();
                    assert_eq!(all, [settled], "{values:?}");
                }
            }
        }
    }

    #[test]
    fn what_has_no_content_has_no_length() {
        for status in [StatusCode::NO_CONTENT, StatusCode::SWITCHING_PROTOCOLS] {
            for (lines, expected) in [
                (&[][..], Framing::Plain),
                (&[("content-length", "0")], Framing::Plain),
                (&[("content-length", "4")], Framing::Contradictory),
                (&[("content-length", "x")], Framing::Contradictory),
                (&[("transfer-encoding", "chunked")], Framing::Contradictory),
            ] {
                let mut fields = fields(lines);
                let expected = if status == StatusCode::NO_CONTENT { expected } else { Framing::Plain };
                assert_eq!(settle_fields(status, Some(0), &mut fields).ok(), Some(expected), "{lines:?}");
                assert!(!fields.contains_key(CONTENT_LENGTH));
            }
        }
    }

    #[test]
    fn the_last_coding_decides() {
        for (codings, expected) in [
            (&["chunked"][..], Some(Framing::Plain)),
            (&["identity, Chunked"], Some(Framing::Plain)),
            (&["chunked, identity"], Some(Framing::EndsWithConnection)),
            (&["chunked", "identity"], Some(Framing::EndsWithConnection)),
            (&["identity"], Some(Framing::EndsWithConnection)),
            (&["chunked, chunked"], None),
            (&["gzip, chunked"], None),
            (&["chunked;q=1"], None),
            (&["xchunked"], None),
        ] {
            let lines: Vec<_> = codings.iter().map(|value| ("transfer-encoding", *value)).collect();
            let outcome = settle_fields(StatusCode::OK, None, &mut fields(&lines)).ok();
            assert_eq!(outcome, expected, "{codings:?}");
        }
        let mut both = fields(&[("transfer-encoding", "chunked"), ("content-length", "1")]);
        assert_eq!(settle_fields(StatusCode::OK, None, &mut both).ok(), Some(Framing::Contradictory));
        assert!(!both.contains_key(CONTENT_LENGTH));
        assert_eq!(settle_fields(StatusCode::OK, None, &mut fields(&[])).ok(), Some(Framing::EndsWithConnection));
    }
}
