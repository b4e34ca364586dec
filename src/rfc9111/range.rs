//! Byte ranges (RFC 9110 §14) of a stored whole: one, or several in one response.

use http::header::{self, HeaderMap, HeaderValue};

/// The most ranges in one response. Requests for more get the whole (RFC 9110 §14.2).
pub const MAX_PARTS: usize = 16;

/// The most ranges in one request that are parsed.
const MAX_SPECS: usize = 64;

/// The bytes that a part of a multipart body takes for itself. Ranges with smaller gaps are sent as one (RFC 9110
/// §15.3.7.2).
const PART_OVERHEAD: u64 = 80;

/// The bytes that a `Range` field selects of a representation of known length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangeRequest {
    /// The whole: there is no `Range`, or one that a server ignores (another unit, bad syntax, more
    /// ranges than [`MAX_PARTS`]).
    Whole,
    /// The bytes from the first position up to, not including, the second.
    Part(u64, u64),
    /// At least two such ranges, in the order in which they are to be sent: none touches another.
    Parts(Vec<(u64, u64)>),
    /// None: 416.
    Unsatisfiable,
}

/// Reads the `Range` of a request for a representation of `len` bytes.
pub fn requested(request: &HeaderMap, len: u64) -> RangeRequest {
    let Some(specs) = specs(request) else { return RangeRequest::Whole };
    let mut ranges = Vec::with_capacity(specs.len());
    for spec in &specs {
        match resolve(*spec, len) {
            Resolved::Range(first, end) => ranges.push((first, end)),
            Resolved::Nothing => {}
            // A suffix of an empty representation is the whole.
            Resolved::Invalid | Resolved::AllOfNothing => return RangeRequest::Whole,
        }
    }
    coalesce(&mut ranges);
    match ranges[..] {
        [] => RangeRequest::Unsatisfiable,
        [(first, end)] => RangeRequest::Part(first, end),
        [..] if ranges.len() > MAX_PARTS => RangeRequest::Whole,
        [..] => RangeRequest::Parts(ranges),
    }
}

enum Resolved {
    Range(u64, u64),
    Nothing,
    AllOfNothing,
    Invalid,
}

fn resolve(spec: Spec, len: u64) -> Resolved {
    let (first, end) = match spec {
        (Some(first), Some(last)) if last < first => return Resolved::Invalid,
        (Some(first), Some(last)) => (first, last.saturating_add(1).min(len)),
        (Some(first), None) => (first, len),
        (None, Some(0)) => return Resolved::Nothing,
        (None, Some(_)) if len == 0 => return Resolved::AllOfNothing,
        (None, Some(suffix)) => (len.saturating_sub(suffix), len),
        (None, None) => return Resolved::Invalid,
    };
    if first < len { Resolved::Range(first, end) } else { Resolved::Nothing }
}

/// Merges ranges that overlap or nearly touch. If any are merged, the ranges are sorted by position; otherwise they
/// keep their order.
fn coalesce(ranges: &mut Vec<(u64, u64)>) {
    if ranges.len() < 2 {
        return;
    }
    let mut sorted = ranges.clone();
    sorted.sort_unstable();
    let mut together: Vec<(u64, u64)> = Vec::with_capacity(sorted.len());
    for (first, end) in sorted {
        match together.last_mut() {
            Some(last) if first <= last.1.saturating_add(PART_OVERHEAD) => last.1 = last.1.max(end),
            Some(_) | None => together.push((first, end)),
        }
    }
    if together.len() < ranges.len() {
        *ranges = together;
    }
}

/// One range as requested: the first and the last position, or only the length of a suffix.
pub type Spec = (Option<u64>, Option<u64>);

/// Returns the one range that a request asks for; `None` if there is none, several, or no range of bytes.
pub fn spec(request: &HeaderMap) -> Option<Spec> {
    match specs(request)?[..] {
        [one] => Some(one),
        _ => None,
    }
}

/// Returns the ranges that a request asks for, at least one; `None` if there is none, or the field is to be ignored.
fn specs(request: &HeaderMap) -> Option<Vec<Spec>> {
    let mut values = request.get_all(header::RANGE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let text = value.to_str().ok()?;
    let (unit, set) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let mut specs = Vec::new();
    for spec in set.split(',').map(|spec| spec.trim_matches([' ', '\t'])).filter(|spec| !spec.is_empty()) {
        let (first, last) = spec.split_once('-')?;
        specs.push((position(first)?, position(last)?));
        if specs.len() > MAX_SPECS {
            return None;
        }
    }
    (!specs.is_empty()).then_some(specs)
}

/// Parses digits, or nothing. A position past `u64` becomes the largest one, which is past every representation.
fn position(digits: &str) -> Option<Option<u64>> {
    if digits.is_empty() {
        return Some(None);
    }
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(Some(digits.parse().unwrap_or(u64::MAX)))
}

/// Returns the `Content-Range` of a part (RFC 9110 §14.4).
pub fn content_range(first: u64, end: u64, len: u64) -> HeaderValue {
    value(&format!("bytes {first}-{}/{len}", end.saturating_sub(1)))
}

/// Returns the delimiter and fields before each part of a `multipart/byteranges` body, and the text that ends it (RFC
/// 9110 §14.6, RFC 2046 §5.1). `kind` is the `Content-Type` of the whole.
pub fn multipart(
    ranges: &[(u64, u64)],
    len: u64,
    kind: Option<&HeaderValue>,
    boundary: &str,
) -> (Vec<Vec<u8>>, Vec<u8>) {
    let before = |index: usize, (first, end): (u64, u64)| {
        let mut text = Vec::with_capacity(160);
        text.extend_from_slice(if index == 0 { b"--" } else { b"\r\n--" });
        text.extend_from_slice(boundary.as_bytes());
        if let Some(kind) = kind {
            text.extend_from_slice(b"\r\nContent-Type: ");
            text.extend_from_slice(kind.as_bytes());
        }
        text.extend_from_slice(b"\r\nContent-Range: ");
        text.extend_from_slice(content_range(first, end, len).as_bytes());
        text.extend_from_slice(b"\r\n\r\n");
        text
    };
    let delimiters = ranges.iter().enumerate().map(|(index, range)| before(index, *range)).collect();
    (delimiters, format!("\r\n--{boundary}--\r\n").into_bytes())
}

/// Returns the `Content-Type` of such a body.
pub fn multipart_type(boundary: &str) -> HeaderValue {
    value(&format!("multipart/byteranges; boundary={boundary}"))
}

/// Returns the `Content-Range` of a 416.
pub fn content_range_unsatisfied(len: u64) -> HeaderValue {
    value(&format!("bytes */{len}"))
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("bytes */*"))
}

#[cfg(test)]
mod tests {
    use super::RangeRequest::{Part, Parts, Unsatisfiable, Whole};
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
            ("bytes=1-2,4-5", 10, Part(1, 6)),
            ("bytes=0-0,500-500", 1000, Parts(vec![(0, 1), (500, 501)])),
            ("bytes=500-500, ,0-0", 1000, Parts(vec![(500, 501), (0, 1)])),
            ("bytes=-1,0-0,2000-", 1000, Parts(vec![(999, 1000), (0, 1)])),
            ("bytes=500-599,550-649,0-0", 1000, Parts(vec![(0, 1), (500, 650)])),
            ("bytes=0-499,500-", 1000, Part(0, 1000)),
            ("bytes=0-,0-,0-", 1000, Part(0, 1000)),
            ("bytes=2000-,-0", 1000, Unsatisfiable),
            ("bytes=0-1,4-2", 1000, Whole),
            ("bytes=0-1,x", 1000, Whole),
            ("bytes=,", 10, Whole),
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

    #[test]
    fn ranges_are_bounded_in_number() {
        for (count, expected) in [(MAX_PARTS, true), (MAX_PARTS + 1, false), (MAX_SPECS + 1, false)] {
            let list: Vec<String> = (0..count).map(|n| format!("{0}-{0}", n * 1000)).collect();
            let mut request = HeaderMap::new();
            let text = format!("bytes={}", list.join(","));
            request.insert(header::RANGE, HeaderValue::from_str(&text).expect("a value"));
            assert_eq!(matches!(requested(&request, 1 << 20), Parts(_)), expected, "{count}");
        }
        // However often they overlap.
        let list = vec!["0-99"; MAX_SPECS].join(",");
        let mut request = HeaderMap::new();
        request.insert(header::RANGE, HeaderValue::from_str(&format!("bytes={list}")).expect("a value"));
        assert_eq!(requested(&request, 1 << 20), Part(0, 100));
    }

    #[test]
    fn the_form_of_a_multipart_body() {
        let kind = HeaderValue::from_static("text/plain");
        let (before, end) = multipart(&[(0, 2), (500, 501)], 1000, Some(&kind), "XX");
        assert_eq!(before[0], b"--XX\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/1000\r\n\r\n");
        assert_eq!(before[1], b"\r\n--XX\r\nContent-Type: text/plain\r\nContent-Range: bytes 500-500/1000\r\n\r\n");
        assert_eq!(end, b"\r\n--XX--\r\n");
    }
}
