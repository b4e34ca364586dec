//! Parts of a representation: stored, served, combined, completed (RFC 9111 §3.3 and §3.4, RFC 9110 §15.3.7.3).
//!
//! A partly stored representation is a list of ranges in order, with gaps between them. The stored body has their
//! bytes, one range after the other.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::conditional::{self, EntityTag};
use super::{date, fields, range};
use crate::rfc9111::timestamp::Timestamp;

/// The most ranges of one representation that are stored. A further part replaces them.
pub const MAX_RANGES: usize = 32;

/// The part that one 206 brings, as its `Content-Range` states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The position of its first byte.
    pub first: u64,
    /// The position after its last byte.
    pub end: u64,
    /// The length of the whole.
    pub complete: u64,
}

impl Part {
    /// Reads the part from a 206. `None` if it does not say which part of what length it is, says what can't be (RFC
    /// 9110 §14.4), or has several parts.
    pub fn of(response: &HeaderMap) -> Option<Self> {
        let mut values = response.get_all(header::CONTENT_RANGE).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        let is_multipart = response.get(header::CONTENT_TYPE).is_some_and(|kind| {
            fields::trim(kind.as_bytes()).to_ascii_lowercase().starts_with(b"multipart/byteranges")
        });
        if is_multipart {
            return None;
        }
        let text = value.to_str().ok()?.trim_matches([' ', '\t']);
        let (unit, rest) = text.split_once(' ')?;
        let (positions, complete) = rest.split_once('/')?;
        let (first, last) = positions.split_once('-')?;
        let (first, last, complete) = (number(first)?, number(last)?, number(complete)?);
        let is_sound = unit.eq_ignore_ascii_case("bytes") && first <= last && last < complete;
        is_sound.then_some(Self { first, end: last + 1, complete })
    }
}

/// Parses digits; `None` for a number of 2⁶³ or more.
fn number(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|number| i64::try_from(*number).is_ok())
}

/// The parts of a representation that are stored, where the whole is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    complete: u64,
    /// The first position of each range and the one after its last, in order, not touching.
    ranges: Vec<(u64, u64)>,
}

impl From<Part> for Parts {
    fn from(part: Part) -> Self {
        Self { complete: part.complete, ranges: vec![(part.first, part.end)] }
    }
}

/// The bytes of a stored body that answer a request, and their place in the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The offset of the first one in the stored body.
    pub offset: u64,
    /// The position of the first one in the whole.
    pub first: u64,
    /// The position after the last one.
    pub end: u64,
}

/// A run of bytes of which a combined body is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// True if the run is in the new part's body, false if in the stored one's.
    pub is_new: bool,
    /// The offset in that body.
    pub offset: u64,
    /// The number of bytes.
    pub len: u64,
}

impl Parts {
    /// Makes parts of ranges read from a stored head; `None` if they break the rules of this type.
    pub fn from_ranges(complete: u64, ranges: Vec<(u64, u64)>) -> Option<Self> {
        let is_sound = !ranges.is_empty()
            && ranges.len() <= MAX_RANGES
            && i64::try_from(complete).is_ok()
            && ranges.iter().all(|&(first, end)| first < end && end <= complete)
            && ranges.windows(2).all(|pair| pair[0].1 < pair[1].0);
        is_sound.then_some(Self { complete, ranges })
    }

    /// Returns the ranges: the first position, and the one after the last.
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    /// Returns the length of the whole, in bytes.
    pub fn complete_len(&self) -> u64 {
        self.complete
    }

    /// Returns the number of bytes in these ranges.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|(first, end)| end - first).sum()
    }

    /// Returns whether there is no byte, which never is the case.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Returns whether no byte is missing.
    pub fn is_complete(&self) -> bool {
        self.ranges == [(0, self.complete)]
    }

    /// Returns the bytes of a stored body of `len` bytes that answer the one range a request asks for, if all of them
    /// are stored.
    ///
    /// Some origins send fewer bytes than their `Content-Range` says. Such a part answers what the origin would answer
    /// with it: positions count from its beginning, a suffix counts from its end, and no bytes are invented.
    pub fn slice(&self, request: &HeaderMap, len: u64) -> Option<Slice> {
        let is_exact = self.len() == len;
        match range::spec(request)? {
            (None, Some(suffix)) if !is_exact => {
                let (_, end) = *self.ranges.last()?;
                let is_held = end == self.complete && suffix > 0 && suffix <= len.min(self.complete);
                is_held.then(|| Slice { offset: len - suffix, first: self.complete - suffix, end: self.complete })
            }
            (None, Some(suffix)) => self.held(self.complete.saturating_sub(suffix), self.complete, len),
            (Some(first), Some(last)) if first <= last => {
                self.held(first, last.saturating_add(1).min(self.complete), len)
            }
            (Some(first), None) => self.held(first, self.complete, len),
            (Some(_), Some(_)) | (None, None) => None,
        }
    }

    fn held(&self, first: u64, end: u64, len: u64) -> Option<Slice> {
        let mut before = 0;
        for &(held_first, held_end) in &self.ranges {
            if held_first <= first && first < end && end <= held_end {
                let offset = before + (first - held_first);
                // A part shorter than it says answers up to its end, if the range extends to the end.
                let end = if end == self.complete { end.min(first + len.checked_sub(offset)?) } else { end };
                let is_there = first < end && offset + (end - first) <= len;
                return is_there.then_some(Slice { offset, first, end });
            }
            before += held_end - held_first;
        }
        None
    }

    /// Returns the missing range, if there is exactly one.
    pub fn gap(&self) -> Option<(u64, u64)> {
        let ends = std::iter::once(0).chain(self.ranges.iter().map(|range| range.1));
        let starts = self.ranges.iter().map(|range| range.0).chain([self.complete]);
        let mut gaps = ends.zip(starts).filter(|(end, start)| end < start);
        let gap = gaps.next()?;
        gaps.next().is_none().then_some(gap)
    }

    /// Adds a part of the same whole. Returns the parts with it, and the runs of which their body is made. `None` if
    /// the lengths of the wholes differ, or there would be too many ranges.
    pub fn with(&self, part: Part) -> Option<(Self, Vec<Piece>)> {
        if part.complete != self.complete {
            return None;
        }
        let mut runs = vec![(part.first, part.end, Piece { is_new: true, offset: 0, len: part.end - part.first })];
        let mut before = 0;
        for &(first, end) in &self.ranges {
            for (from, to) in [(first, end.min(part.first)), (first.max(part.end), end)] {
                if from < to {
                    let piece = Piece { is_new: false, offset: before + (from - first), len: to - from };
                    runs.push((from, to, piece));
                }
            }
            before += end - first;
        }
        runs.sort_by_key(|run| run.0);
        let mut ranges: Vec<(u64, u64)> = Vec::with_capacity(runs.len());
        for &(from, to, _) in &runs {
            match ranges.last_mut() {
                Some(last) if last.1 == from => last.1 = to,
                Some(_) | None => ranges.push((from, to)),
            }
        }
        let together = Self::from_ranges(self.complete, ranges)?;
        Some((together, runs.into_iter().map(|run| run.2).collect()))
    }
}

/// Returns the `Range` for the missing bytes.
pub fn range_of(gap: (u64, u64), complete: u64) -> HeaderValue {
    let (first, end) = gap;
    let text =
        if end == complete { format!("bytes={first}-") } else { format!("bytes={first}-{}", end.saturating_sub(1)) };
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("bytes=0-"))
}

/// Returns the validator for `If-Range`, if the stored part has a strong one (RFC 9110 §13.1.5).
pub fn if_range(stored: &HeaderMap, response_time: Timestamp) -> Option<HeaderValue> {
    if stored.contains_key(header::ETAG) {
        return stored.get(header::ETAG).filter(|_| EntityTag::of(stored).is_some_and(|tag| !tag.weak)).cloned();
    }
    conditional::strong_date(stored, response_time).map(date::format)
}

/// Returns whether two responses, each with the time at which it was received, are of one representation: they have
/// the same strong validator (RFC 9110 §15.3.7.3).
pub fn is_same_representation(a: (&HeaderMap, Timestamp), b: (&HeaderMap, Timestamp)) -> bool {
    let (a_fields, b_fields) = (a.0, b.0);
    match (EntityTag::of(a_fields), EntityTag::of(b_fields)) {
        (Some(a), Some(b)) => !a.weak && !b.weak && a.opaque == b.opaque,
        (None, None) => {
            let strong = conditional::strong_date(a_fields, a.1);
            strong.is_some() && strong == conditional::strong_date(b_fields, b.1)
        }
        _ => false,
    }
}

/// RFC 9111 §3.4: replaces the stored fields by those of the new part, except those that are about the part alone. The
/// caller sets the length of the outcome.
pub fn combine(stored: &mut HeaderMap, new: &HeaderMap) {
    let is_of_the_part = |name: &HeaderName| {
        *name == header::CONTENT_RANGE || *name == header::CONTENT_LENGTH || CONTENT_DIGESTS.contains(name)
    };
    stored.remove(header::CONTENT_RANGE);
    stored.remove(header::CONTENT_LENGTH);
    stored.remove(header::AGE);
    remove_digests(stored);
    for name in new.keys().filter(|name| !is_of_the_part(name)) {
        stored.remove(name);
    }
    for (name, value) in new.iter().filter(|(name, _)| !is_of_the_part(name)) {
        stored.append(name.clone(), value.clone());
    }
}

/// The fields with digests of the content of one message (RFC 9530 §2), which hold for no other part or whole.
const CONTENT_DIGESTS: [HeaderName; 2] =
    [HeaderName::from_static("content-digest"), HeaderName::from_static("content-md5")];

/// Removes fields about the content as it was sent, rather than about the representation.
pub fn remove_digests(fields: &mut HeaderMap) {
    for name in CONTENT_DIGESTS {
        fields.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rfc9111::fields::of_list as map;

    #[test]
    fn content_range_table() {
        let part = |first, end, complete| Some(Part { first, end, complete });
        for (value, expected) in [
            ("bytes 0-4/10", part(0, 5, 10)),
            ("Bytes 9-9/10", part(9, 10, 10)),
            (" bytes 0-0/1 ", part(0, 1, 1)),
            ("bytes 0-4/*", None),
            ("bytes */10", None),
            ("bytes 5-4/10", None),
            ("bytes 0-10/10", None),
            ("bytes 0-4", None),
            ("bytes=0-4/10", None),
            ("lines 0-4/10", None),
            ("bytes -4/10", None),
            ("bytes 0-4/99999999999999999999", None),
            ("bytes +0-4/10", None),
            ("", None),
        ] {
            assert_eq!(Part::of(&map(&[("content-range", value)])), expected, "{value}");
        }
        let multipart = map(&[("content-range", "bytes 0-4/10"), ("content-type", "Multipart/ByteRanges; boundary=x")]);
        assert_eq!(Part::of(&multipart), None);
        let mut twice = map(&[("content-range", "bytes 0-4/10")]);
        twice.append(header::CONTENT_RANGE, HeaderValue::from_static("bytes 0-4/10"));
        assert_eq!(Part::of(&twice), None);
    }

    #[test]
    fn slice_table() {
        let parts = Parts::from_ranges(20, vec![(2, 6), (10, 20)]).expect("sound");
        let slice = |offset, first, end| Some(Slice { offset, first, end });
        for (range, expected) in [
            ("bytes=2-5", slice(0, 2, 6)),
            ("bytes=3-4", slice(1, 3, 5)),
            ("bytes=10-19", slice(4, 10, 20)),
            ("bytes=10-99", slice(4, 10, 20)),
            ("bytes=15-", slice(9, 15, 20)),
            ("bytes=-1", slice(13, 19, 20)),
            ("bytes=-10", slice(4, 10, 20)),
            ("bytes=-11", None),
            ("bytes=-0", None),
            ("bytes=1-5", None),
            ("bytes=2-6", None),
            ("bytes=5-12", None),
            ("bytes=20-", None),
            ("bytes=5-3", None),
            ("bytes=2-3,4-5", None),
            ("", None),
        ] {
            assert_eq!(parts.slice(&map(&[("range", range)]), parts.len()), expected, "{range}");
        }
        assert_eq!(parts.slice(&HeaderMap::new(), parts.len()), None);
    }

    #[test]
    fn a_part_that_is_shorter_than_it_says_gives_what_it_has() {
        let parts = Parts::from(Part { first: 4, end: 10, complete: 10 });
        let slice = |offset, first, end| Some(Slice { offset, first, end });
        for (range, expected) in [
            ("bytes=6-8", slice(2, 6, 9)),
            ("bytes=6-", slice(2, 6, 9)),
            ("bytes=-5", slice(0, 5, 10)),
            ("bytes=-1", slice(4, 9, 10)),
            ("bytes=-6", None),
            ("bytes=9-", None),
            ("bytes=4-8", slice(0, 4, 9)),
        ] {
            assert_eq!(parts.slice(&map(&[("range", range)]), 5), expected, "{range}");
        }
    }

    #[test]
    fn parts_are_combined_from_runs_of_both() {
        let old = Parts::from_ranges(20, vec![(2, 6), (10, 14)]).expect("sound");
        let runs = |parts: Option<(Parts, Vec<Piece>)>| {
            parts.map(|(parts, pieces)| {
                let pieces: Vec<_> = pieces.iter().map(|piece| (piece.is_new, piece.offset, piece.len)).collect();
                (parts.ranges, pieces)
            })
        };
        let part = |first, end| Part { first, end, complete: 20 };
        for (new, ranges, pieces) in [
            (part(6, 10), vec![(2, 14)], vec![(false, 0, 4), (true, 0, 4), (false, 4, 4)]),
            (part(0, 20), vec![(0, 20)], vec![(true, 0, 20)]),
            (part(16, 20), vec![(2, 6), (10, 14), (16, 20)], vec![(false, 0, 4), (false, 4, 4), (true, 0, 4)]),
            (part(4, 12), vec![(2, 14)], vec![(false, 0, 2), (true, 0, 8), (false, 6, 2)]),
            (part(3, 4), vec![(2, 6), (10, 14)], vec![(false, 0, 1), (true, 0, 1), (false, 2, 2), (false, 4, 4)]),
        ] {
            assert_eq!(runs(old.with(new)), Some((ranges, pieces)), "{new:?}");
        }
        assert_eq!(old.with(Part { first: 0, end: 2, complete: 21 }), None);
    }

    #[test]
    fn the_gap_is_asked_for() {
        for (ranges, gap) in [
            (vec![(0, 5)], Some((5, 20))),
            (vec![(5, 20)], Some((0, 5))),
            (vec![(0, 5), (9, 20)], Some((5, 9))),
            (vec![(5, 9)], None),
            (vec![(0, 20)], None),
        ] {
            assert_eq!(Parts::from_ranges(20, ranges.clone()).expect("sound").gap(), gap, "{ranges:?}");
        }
        assert_eq!(range_of((5, 20), 20), "bytes=5-");
        assert_eq!(range_of((5, 9), 20), "bytes=5-8");
        for bad in [vec![], vec![(5, 5)], vec![(0, 21)], vec![(0, 5), (5, 9)], vec![(6, 9), (0, 2)]] {
            assert_eq!(Parts::from_ranges(20, bad), None);
        }
    }

    #[test]
    fn only_a_strong_validator_makes_parts_of_one_whole() {
        const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);
        const OLD: &str = "Fri, 01 Jan 2010 00:00:00 GMT";
        const NEW: &str = "Fri, 01 Jan 2021 00:00:00 GMT";
        type Fields = &'static [(&'static str, &'static str)];
        let table: &[(Fields, Fields, bool)] = &[
            (&[("etag", "\"a\"")], &[("etag", "\"a\"")], true),
            (&[("etag", "\"a\"")], &[("etag", "\"b\"")], false),
            (&[("etag", "W/\"a\"")], &[("etag", "W/\"a\"")], false),
            (&[("etag", "\"a\""), ("last-modified", OLD)], &[("last-modified", OLD), ("date", NEW)], false),
            (&[("last-modified", OLD), ("date", NEW)], &[("last-modified", OLD), ("date", NEW)], true),
            (&[("last-modified", NEW), ("date", NEW)], &[("last-modified", NEW), ("date", NEW)], false),
            (&[], &[], false),
        ];
        for (a, b, expected) in table {
            assert_eq!(is_same_representation((&map(a), NOW), (&map(b), NOW)), *expected, "{a:?} {b:?}");
        }
        assert_eq!(if_range(&map(&[("etag", "\"a\"")]), NOW), Some(HeaderValue::from_static("\"a\"")));
        assert_eq!(if_range(&map(&[("etag", "W/\"a\""), ("last-modified", OLD), ("date", NEW)]), NOW), None);
        assert_eq!(if_range(&map(&[("last-modified", OLD), ("date", NEW)]), NOW), Some(HeaderValue::from_static(OLD)));
    }
}
