//! Checks how the body of a response is framed (RFC 9112 §6), where hyper does not. Refuses a response whose stated
//! lengths are not one number.

use hyper::body::{Body, Incoming};

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use http::{Response, StatusCode};

use super::UpstreamError;
use crate::rfc9111::fields;

/// Marks a response whose body ends with its connection (RFC 9112 §6.3), so that a truncated body can't be told from a
/// complete one.
#[derive(Clone, Copy, Debug)]
pub struct EndsWithConnection;

/// Corrects the fields that frame a response. Returns whether its connection may be used again.
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

/// The framing of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// Its end is certain.
    Plain,
    /// Its fields contradict each other. The bytes that follow on the connection can't be trusted.
    Contradictory,
    /// It ends with the connection.
    EndsWithConnection,
}

/// Corrects the fields, and returns the framing. `len` is the length that hyper reads, if known.
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
        // Bytes after a change of protocols are not HTTP in any case.
        let is_plain = is_empty || status == StatusCode::SWITCHING_PROTOCOLS;
        return Ok(if is_plain { Framing::Plain } else { Framing::Contradictory });
    }
    if !has_codings {
        if fields.contains_key(TRANSFER_ENCODING) {
            // The response answers HEAD, or is a 304: the field describes the body that another response would have.
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
        // If the list ends with a comma, hyper reads to the end of the connection.
        if coding.is_empty() {
            ends_with_chunked = false;
            continue;
        }
        let is_chunked = coding.eq_ignore_ascii_case(b"chunked");
        if is_chunked && ends_with_chunked {
            return Err(UpstreamError::Unsupported("the application's answer is chunked twice"));
        }
        // RFC 9112 §7: a transfer coding that is not removed would be taken for a part of the content.
        if !is_chunked && !coding.eq_ignore_ascii_case(b"identity") {
            return Err(UpstreamError::Unsupported(
                "the application uses a Transfer-Encoding that this server does not undo",
            ));
        }
        ends_with_chunked = is_chunked;
    }
    // RFC 9112 §6.3: Transfer-Encoding overrides Content-Length. With both, the connection is closed.
    let has_length = fields.remove(CONTENT_LENGTH).is_some();
    Ok(match (ends_with_chunked, has_length) {
        (false, _) => Framing::EndsWithConnection,
        (true, true) => Framing::Contradictory,
        (true, false) => Framing::Plain,
    })
}

/// Returns whether the fields state at most one length and no transfer coding, as nearly all do. Takes one pass, without
/// hashing.
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

/// Replaces a length that is stated several times by one (RFC 9110 §8.6). Fails if the lengths differ or are not numbers.
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

/// Returns the number that consists of `digits`.
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
