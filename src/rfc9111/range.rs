//! Byte ranges (RFC 9110 §14) of a stored whole.

use http::header::{self, HeaderMap, HeaderValue};

/// What a `Range` field asks of a representation of known length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeRequest {
    /// The whole: there is no `Range`, or one that a server ignores (another unit, bad syntax,
    /// several ranges, which a server may answer with the whole).
    Whole,
    /// The bytes from the first position up to, not including, the second.
    Part(u64, u64),
    /// No byte of the representation: 416.
    Unsatisfiable,
}

/// Reads the `Range` of a request for a representation of `len` bytes.
pub fn requested(request: &HeaderMap, len: u64) -> RangeRequest {
    let Some(spec) = spec(request) else { return RangeRequest::Whole };
    let (first, last) = match spec {
        (Some(first), Some(last)) if last < first => return RangeRequest::Whole,
        (Some(first), Some(last)) => (first, last.saturating_add(1).min(len)),
        (Some(first), None) => (first, len),
        (None, Some(0)) => return RangeRequest::Unsatisfiable,
        // The last so many bytes of nothing are all of it.
        (None, Some(_)) if len == 0 => return RangeRequest::Whole,
        (None, Some(suffix)) => (len.saturating_sub(suffix), len),
        (None, None) => return RangeRequest::Whole,
    };
    if first < len { RangeRequest::Part(first, last) } else { RangeRequest::Unsatisfiable }
}

/// One range as it is asked for: the first and the last position, or only the last so many bytes.
pub type Spec = (Option<u64>, Option<u64>);

/// The one range that a request asks for; `None` when it asks for none, for several, or for what is
/// no range of bytes.
pub fn spec(request: &HeaderMap) -> Option<Spec> {
    let mut values = request.get_all(header::RANGE).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => single_spec(value),
        _ => None,
    }
}

fn single_spec(value: &HeaderValue) -> Option<Spec> {
    let text = value.to_str().ok()?;
    let (unit, set) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let mut specs = set.split(',').map(|spec| spec.trim_matches([' ', '\t'])).filter(|spec| !spec.is_empty());
    let (Some(spec), None) = (specs.next(), specs.next()) else { return None };
    let (first, last) = spec.split_once('-')?;
    Some((position(first)?, position(last)?))
}

/// Digits, or nothing. Positions past `u64` are past every representation.
fn position(digits: &str) -> Option<Option<u64>> {
    if digits.is_empty() {
        return Some(None);
    }
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(Some(digits.parse().unwrap_or(u64::MAX)))
}

/// `Content-Range` of a part (RFC 9110 §14.4).
pub fn content_range(first: u64, end: u64, len: u64) -> HeaderValue {
    value(&format!("bytes {first}-{}/{len}", end.saturating_sub(1)))
}

/// `Content-Range` of a 416.
pub fn content_range_unsatisfied(len: u64) -> HeaderValue {
    value(&format!("bytes */{len}"))
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("bytes */*"))
}

#[cfg(test)]
mod tests {
    use super::RangeRequest::{Part, Unsatisfiable, Whole};
    use super::*;

    #[test]
    fn range_table() {
        for (value, len, expected) in [
            ("bytes=0-4", 10, Part(0, 5)),
            ("bytes=5-", 10, Part(5, 10)),
            ("bytes=-3", 10, Part(7, 10)),
            ("bytes=-30", 10, Part(0, 10)),
            ("bytes=0-99999999999999999999999", 10, Part(0, 10)),
            ("Bytes=9-9", 10, Part(9, 10)),
            ("bytes= 1-2 ", 10, Part(1, 3)),
            ("bytes=10-", 10, Unsatisfiable),
            ("bytes=-0", 10, Unsatisfiable),
            ("bytes=0-", 0, Unsatisfiable),
            ("bytes=-5", 0, Whole),
            ("bytes=99999999999999999999999-", 10, Unsatisfiable),
            ("bytes=4-2", 10, Whole),
            ("bytes=-", 10, Whole),
            ("bytes=a-b", 10, Whole),
            ("bytes=1-2,4-5", 10, Whole),
            ("lines=1-2", 10, Whole),
            ("bytes", 10, Whole),
            ("", 10, Whole),
        ] {
            let mut request = HeaderMap::new();
            request.insert(header::RANGE, HeaderValue::from_static(value));
            assert_eq!(requested(&request, len), expected, "{value:?} of {len}");
        }
        assert_eq!(requested(&HeaderMap::new(), 10), Whole);
    }
}
