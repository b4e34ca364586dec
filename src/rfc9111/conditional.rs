//! Evaluates a client's preconditions against a stored response (RFC 9111 §4.3.2, RFC 9110 §13).

use http::Method;
use http::header::{self, HeaderMap, HeaderName};

use super::{date, fields};
use crate::rfc9111::timestamp::Timestamp;

/// The request fields that make a request conditional.
pub const PRECONDITIONS: [HeaderName; 5] =
    [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::IF_MATCH, header::IF_UNMODIFIED_SINCE, header::IF_RANGE];

/// An entity tag (RFC 9110 §8.8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntityTag<'a> {
    /// True if it is marked `W/`.
    pub weak: bool,
    /// The text between the quotes; the whole value if the origin forgot the quotes.
    pub opaque: &'a [u8],
}

impl<'a> EntityTag<'a> {
    /// Reads one entity tag; `None` if there is nothing in it.
    pub fn parse(text: &'a [u8]) -> Option<Self> {
        let text = fields::trim(text);
        let (weak, text) = match text {
            [b'W', b'/', rest @ ..] => (true, rest),
            strong => (false, strong),
        };
        match text {
            [b'"', opaque @ .., b'"'] => Some(Self { weak, opaque }),
            [] => None,
            unquoted => Some(Self { weak, opaque: unquoted }),
        }
    }

    /// Returns the entity tag of a response.
    pub fn of(response: &'a HeaderMap) -> Option<Self> {
        Self::parse(response.get(header::ETAG)?.as_bytes())
    }
}

/// The fields of a stored response that decide on a client's preconditions.
pub const VALIDATORS: [HeaderName; 3] = [header::ETAG, header::LAST_MODIFIED, header::DATE];

/// Returns whether the client already has what `stored` would give it, so that 304 answers the request.
/// `response_time` stands in for a missing `Date`.
pub fn not_modified(method: &Method, request: &HeaderMap, stored: &HeaderMap, response_time: Timestamp) -> bool {
    if method != Method::GET && method != Method::HEAD {
        return false;
    }
    // RFC 9110 §13.1.3: If-Modified-Since is ignored where there is If-None-Match.
    if request.contains_key(header::IF_NONE_MATCH) {
        return none_match_fails(request, stored);
    }
    if !request.contains_key(header::IF_MODIFIED_SINCE) {
        return false;
    }
    let Some(since) = date::field(request, &header::IF_MODIFIED_SINCE, response_time).valid() else { return false };
    // RFC 9111 §4.3.2: uses Last-Modified, else Date, else the time at which the response was received.
    let modified = date::field(stored, &header::LAST_MODIFIED, response_time)
        .valid()
        .or_else(|| date::field(stored, &header::DATE, response_time).valid())
        .unwrap_or(response_time);
    modified.as_secs() <= since.as_secs()
}

/// RFC 9110 §13.1.2: compares each listed tag weakly. Returns whether one matches.
fn none_match_fails(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let stored = EntityTag::of(stored);
    fields::members(request, &header::IF_NONE_MATCH).any(|member| {
        member == b"*" || matches!((EntityTag::parse(member), stored), (Some(a), Some(b)) if a.opaque == b.opaque)
    })
}

/// Returns whether a range may be served from `stored` (RFC 9110 §13.1.5): there is no `If-Range`, or it names the
/// stored response, received at `response_time`, by a strong validator.
pub fn if_range_holds(request: &HeaderMap, stored: &HeaderMap, response_time: Timestamp) -> bool {
    let Some(value) = request.get(header::IF_RANGE) else { return true };
    if let Some(since) = date::parse(value, response_time) {
        return strong_date(stored, response_time) == Some(since);
    }
    match (EntityTag::parse(value.as_bytes()), EntityTag::of(stored)) {
        (Some(a), Some(b)) => !a.weak && !b.weak && a.opaque == b.opaque,
        _ => false,
    }
}

/// Returns `Last-Modified` if it is a strong validator: at least a second, here a minute, older than the response (RFC
/// 9110 §8.8.2.2).
pub fn strong_date(response: &HeaderMap, response_time: Timestamp) -> Option<Timestamp> {
    let modified = date::field(response, &header::LAST_MODIFIED, response_time).valid()?;
    let made = date::field(response, &header::DATE, response_time).valid()?;
    (made.millis_since(modified) >= 60_000).then_some(modified)
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::rfc9111::fields::of_list as map;

    type Fields = &'static [(&'static str, &'static str)];

    #[test]
    fn not_modified_table() {
        const OLD: &str = "Fri, 01 Jan 2010 00:00:00 GMT";
        const NEW: &str = "Fri, 01 Jan 2021 00:00:00 GMT";
        let table: &[(Fields, Fields, bool)] = &[
            (&[], &[("etag", "\"a\"")], false),
            (&[("if-none-match", "\"a\"")], &[("etag", "\"a\"")], true),
            (&[("if-none-match", "W/\"a\"")], &[("etag", "\"a\"")], true),
            (&[("if-none-match", "\"a\"")], &[("etag", "W/\"a\"")], true),
            (&[("if-none-match", "\"b\"")], &[("etag", "\"a\"")], false),
            (&[("if-none-match", "\"b\", \"x,y\" , W/\"a\"")], &[("etag", "\"a\"")], true),
            (&[("if-none-match", "\"b\""), ("if-none-match", "\"a\"")], &[("etag", "\"a\"")], true),
            (&[("if-none-match", "*")], &[], true),
            (&[("if-none-match", "\"a\"")], &[], false),
            (&[("if-none-match", "a")], &[("etag", "\"a\"")], true),
            // If-None-Match decides alone.
            (
                &[("if-none-match", "\"b\""), ("if-modified-since", NEW)],
                &[("etag", "\"a\""), ("last-modified", OLD)],
                false,
            ),
            (&[("if-modified-since", OLD)], &[("last-modified", OLD)], true),
            (&[("if-modified-since", NEW)], &[("last-modified", OLD)], true),
            (&[("if-modified-since", OLD)], &[("last-modified", NEW)], false),
            (&[("if-modified-since", "yesterday")], &[("last-modified", OLD)], false),
            (&[("if-modified-since", "Friday, 01-Jan-10 00:00:00 GMT")], &[("last-modified", OLD)], true),
            (&[("if-modified-since", "fri, 01 JAN 2021 00:00:00 gmt")], &[("last-modified", OLD)], true),
            (&[("if-modified-since", NEW)], &[("date", OLD)], true),
            (&[("if-modified-since", OLD)], &[("date", NEW)], false),
        ];
        for (request, stored, expected) in table {
            let received = Timestamp::from_secs(1_700_000_000);
            assert_eq!(
                not_modified(&Method::GET, &map(request), &map(stored), received),
                *expected,
                "{request:?} {stored:?}"
            );
            assert!(!not_modified(&Method::POST, &map(request), &map(stored), received));
        }
    }

    #[test]
    fn if_range_takes_strong_validators_only() {
        const MADE: &str = "Fri, 01 Jan 2021 00:00:00 GMT";
        const MODIFIED: &str = "Thu, 31 Dec 2020 00:00:00 GMT";
        let table: &[(Fields, Fields, bool)] = &[
            (&[], &[], true),
            (&[("if-range", "\"a\"")], &[("etag", "\"a\"")], true),
            (&[("if-range", "\"a\"")], &[("etag", "\"b\"")], false),
            (&[("if-range", "W/\"a\"")], &[("etag", "W/\"a\"")], false),
            (&[("if-range", "\"a\"")], &[], false),
            (&[("if-range", MODIFIED)], &[("last-modified", MODIFIED), ("date", MADE)], true),
            (&[("if-range", MODIFIED)], &[("last-modified", MADE), ("date", MADE)], false),
            (&[("if-range", MADE)], &[("last-modified", MADE), ("date", MADE)], false),
        ];
        for (request, stored, expected) in table {
            let received = Timestamp::from_secs(1_700_000_000);
            assert_eq!(if_range_holds(&map(request), &map(stored), received), *expected, "{request:?} {stored:?}");
        }
    }
}
