//! Validation with the origin (RFC 9111 §4.3): makes the conditional request, and updates the stored response by a 304
//! (§3.2, §4.3.4).

use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName};

use super::conditional::{self, EntityTag};
use super::partial;
use crate::rfc9111::timestamp::Timestamp;

/// The outcome of the validation of a stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {
    /// 304: the stored response is fresh again, its fields updated.
    Freshened,
    /// A full response replaces it.
    Replaced,
    /// A 304 about another response: its strong validator differs.
    Mismatched,
    /// A server error, for which a stale response may stand in (§4.3.3).
    Failed,
}

/// Returns what the head of the origin's answer to a conditional request means for `stored`.
pub fn outcome(status: StatusCode, answer: &HeaderMap, stored: &HeaderMap) -> Validation {
    if status == StatusCode::NOT_MODIFIED {
        return if selects(answer, stored) { Validation::Freshened } else { Validation::Mismatched };
    }
    if is_failure(status) { Validation::Failed } else { Validation::Replaced }
}

/// Returns whether a status says that the origin failed, so that a stale response may stand in (RFC 5861 §4).
pub fn is_failure(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

/// §4.3.4: returns whether a 304 updates the stored response. One with a strong validator updates only the response
/// that has the same one, one with a weak validator only what that corresponds to. One without any is trusted: it
/// answers the validators that were sent.
///
/// Departs in one case: a strong tag that differs from the stored one only by its weakness counts as the same, if the
/// dates agree where there is one. It was the only tag that was sent. nginx makes tags weak when it compresses, and
/// answers the validation before it does.
fn selects(answer: &HeaderMap, stored: &HeaderMap) -> bool {
    let is_same_date = match (answer.get(header::LAST_MODIFIED), stored.get(header::LAST_MODIFIED)) {
        (Some(new), Some(old)) => Some(new == old),
        (Some(_), None) | (None, _) => None,
    };
    match (EntityTag::of(answer), EntityTag::of(stored)) {
        (Some(new), Some(old)) if !new.weak && old.weak => {
            let states_date = answer.contains_key(header::LAST_MODIFIED);
            new.opaque == old.opaque && (is_same_date == Some(true) || !states_date)
        }
        (Some(new), Some(old)) if !new.weak => new.opaque == old.opaque,
        (Some(new), Some(old)) => new.opaque == old.opaque && is_same_date != Some(false),
        (Some(new), None) if !new.weak => is_same_date == Some(true),
        (Some(_) | None, _) => is_same_date != Some(false),
    }
}

/// Removes the client's preconditions and range from `request`, which are answered from the stored response
/// afterwards, and adds the validators of `stored` (§4.3.1).
pub fn make_conditional(request: &mut HeaderMap, stored: &HeaderMap) {
    remove_preconditions(request);
    if let Some(etag) = stored.get(header::ETAG) {
        request.insert(header::IF_NONE_MATCH, etag.clone());
    }
    if let Some(modified) = stored.get(header::LAST_MODIFIED) {
        request.insert(header::IF_MODIFIED_SINCE, modified.clone());
    }
}

/// Does the same for a stored part, but keeps the client's range, for which the origin is asked.
pub fn make_conditional_range(request: &mut HeaderMap, stored: &HeaderMap, response_time: Timestamp) {
    let range = request.get(header::RANGE).cloned();
    let had_if_range = request.contains_key(header::IF_RANGE);
    make_conditional(request, stored);
    // A client that has a part of this representation does not want a part of another one.
    let if_range = partial::if_range(stored, response_time).filter(|_| had_if_range);
    if had_if_range && if_range.is_none() {
        return;
    }
    if let Some(range) = range {
        request.insert(header::RANGE, range);
    }
    if let Some(validator) = if_range {
        request.insert(header::IF_RANGE, validator);
    }
}

/// Makes `request` ask for the whole representation, whatever its client already has.
pub fn remove_preconditions(request: &mut HeaderMap) {
    for name in conditional::PRECONDITIONS {
        request.remove(name);
    }
    request.remove(header::RANGE);
}

/// Returns whether a stored response has a validator.
pub fn has_validator(stored: &HeaderMap) -> bool {
    stored.contains_key(header::ETAG) || stored.contains_key(header::LAST_MODIFIED)
}

/// §3.2: replaces the stored fields by those of a 304. Keeps what describes the stored content: its length, coding,
/// digest and range, and the validator that it was stored with.
pub fn freshen(stored: &mut HeaderMap, not_modified: &HeaderMap) {
    for name in not_modified.keys() {
        if !describes_content(name) {
            stored.remove(name);
        }
    }
    for (name, value) in not_modified {
        if !describes_content(name) {
            stored.append(name.clone(), value.clone());
        }
    }
    // `Age` and cookies belong to one exchange: an old `Age` would age the response twice.
    if !not_modified.contains_key(header::AGE) {
        stored.remove(header::AGE);
    }
}

/// Says what the 200 to a HEAD means for a stored response to GET (§4.3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadOutcome {
    /// The response is still the same: the fields of the 200 update it.
    Updates,
    /// The response is outdated.
    Outdates,
    /// Nothing: they have no validator in common.
    Neither,
}

/// Compares the 200 to a HEAD with the stored response, whose body has `len` bytes.
///
/// §4.3.5 would update a response without any validator as well. Its body may have changed all the same, and would
/// become fresh unseen, so that response is left as it is.
pub fn head_outcome(answer: &HeaderMap, stored: &HeaderMap, len: u64) -> HeadOutcome {
    let mut is_matched = false;
    for name in [header::ETAG, header::LAST_MODIFIED] {
        match (answer.get(&name), stored.get(&name)) {
            (Some(new), Some(old)) if new == old => is_matched = true,
            (Some(_), _) => return HeadOutcome::Outdates,
            (None, _) => {}
        }
    }
    let stated = answer.get(header::CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse::<u64>().ok());
    match stated {
        Some(stated) if stated != len => HeadOutcome::Outdates,
        Some(_) | None if is_matched => HeadOutcome::Updates,
        Some(_) | None => HeadOutcome::Neither,
    }
}

fn describes_content(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::CONTENT_LENGTH | header::CONTENT_ENCODING | header::CONTENT_RANGE | header::ETAG | header::TRAILER
    ) || matches!(name.as_str(), "content-md5" | "content-digest" | "repr-digest" | "digest")
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::rfc9111::fields::of_list as map;

    #[test]
    fn a_304_updates_adds_and_keeps() {
        let mut stored = map(&[
            ("cache-control", "max-age=1"),
            ("x-kept", "old"),
            ("x-many", "1"),
            ("x-many", "2"),
            ("content-length", "5"),
            ("content-encoding", "gzip"),
            ("etag", "\"a\""),
            ("age", "7"),
        ]);
        let answer = map(&[
            ("cache-control", "max-age=9"),
            ("x-many", "3"),
            ("x-many", "4"),
            ("x-new", "new"),
            ("content-length", "0"),
            ("content-encoding", "br"),
            ("etag", "\"a\""),
        ]);
        freshen(&mut stored, &answer);
        let once = stored.clone();
        freshen(&mut stored, &answer);
        assert_eq!(stored, once, "applied twice equals once");
        let expected = map(&[
            ("cache-control", "max-age=9"),
            ("x-kept", "old"),
            ("x-many", "3"),
            ("x-many", "4"),
            ("content-length", "5"),
            ("content-encoding", "gzip"),
            ("etag", "\"a\""),
            ("x-new", "new"),
        ]);
        assert_eq!(stored, expected);
    }

    #[test]
    fn outcome_table() {
        for (status, answer, stored, expected) in [
            (304, "\"a\"", "\"a\"", Validation::Freshened),
            (304, "", "\"a\"", Validation::Freshened),
            (304, "W/\"a\"", "\"a\"", Validation::Freshened),
            (304, "\"b\"", "\"a\"", Validation::Mismatched),
            (304, "\"a\"", "W/\"a\"", Validation::Freshened),
            (304, "\"b\"", "W/\"a\"", Validation::Mismatched),
            (304, "\"a\"", "\"a-gzip\"", Validation::Mismatched),
            (304, "\"a\"", "", Validation::Mismatched),
            (304, "W/\"b\"", "W/\"a\"", Validation::Mismatched),
            (304, "W/\"a\"", "W/\"a\"", Validation::Freshened),
            (200, "\"a\"", "\"a\"", Validation::Replaced),
            (404, "", "\"a\"", Validation::Replaced),
            (501, "", "\"a\"", Validation::Replaced),
            (500, "", "\"a\"", Validation::Failed),
            (503, "", "\"a\"", Validation::Failed),
        ] {
            let tag = |value: &'static str| if value.is_empty() { map(&[]) } else { map(&[("etag", value)]) };
            let status = StatusCode::from_u16(status).expect("test status");
            assert_eq!(outcome(status, &tag(answer), &tag(stored)), expected, "{status} {answer} {stored}");
        }
    }

    #[test]
    fn a_304_with_another_date_is_about_something_else() {
        const OLD: &str = "Fri, 01 Jan 2010 00:00:00 GMT";
        const NEW: &str = "Fri, 01 Jan 2021 00:00:00 GMT";
        type Fields = &'static [(&'static str, &'static str)];
        let table: &[(Fields, Fields, bool)] = &[
            (&[("last-modified", OLD)], &[("last-modified", OLD)], true),
            (&[("last-modified", NEW)], &[("last-modified", OLD)], false),
            (&[], &[("last-modified", OLD)], true),
            (&[("last-modified", NEW)], &[("etag", "\"a\"")], true),
            (&[("etag", "\"a\""), ("last-modified", OLD)], &[("last-modified", OLD)], true),
            (&[("etag", "\"a\""), ("last-modified", NEW)], &[("etag", "\"a\""), ("last-modified", OLD)], true),
            (&[("etag", "W/\"a\""), ("last-modified", NEW)], &[("etag", "W/\"a\""), ("last-modified", OLD)], false),
            // Only weakness differs.
            (&[("etag", "\"a\""), ("last-modified", OLD)], &[("etag", "W/\"a\""), ("last-modified", OLD)], true),
            (&[("etag", "\"a\"")], &[("etag", "W/\"a\""), ("last-modified", OLD)], true),
            (&[("etag", "\"a\""), ("last-modified", NEW)], &[("etag", "W/\"a\""), ("last-modified", OLD)], false),
            (&[("etag", "\"a\""), ("last-modified", NEW)], &[("etag", "W/\"a\"")], false),
        ];
        for (answer, stored, expected) in table {
            assert_eq!(selects(&map(answer), &map(stored)), *expected, "{answer:?} {stored:?}");
        }
    }

    #[test]
    fn head_table() {
        use HeadOutcome::{Neither, Outdates, Updates};
        type Fields = &'static [(&'static str, &'static str)];
        const DAY: &str = "Fri, 01 Jan 2010 00:00:00 GMT";
        let table: &[(Fields, Fields, HeadOutcome)] = &[
            (&[("etag", "\"a\"")], &[("etag", "\"a\"")], Updates),
            (&[("etag", "\"a\""), ("content-length", "5")], &[("etag", "\"a\"")], Updates),
            (&[("etag", "\"a\""), ("content-length", "6")], &[("etag", "\"a\"")], Outdates),
            (&[("etag", "\"b\"")], &[("etag", "\"a\"")], Outdates),
            (&[("etag", "\"a\"")], &[], Outdates),
            (&[("last-modified", DAY)], &[("last-modified", DAY)], Updates),
            (&[("last-modified", DAY), ("etag", "\"b\"")], &[("last-modified", DAY), ("etag", "\"a\"")], Outdates),
            (&[("content-length", "5")], &[("etag", "\"a\"")], Neither),
            (&[("content-length", "6")], &[], Outdates),
            (&[], &[], Neither),
        ];
        for (answer, stored, expected) in table {
            assert_eq!(head_outcome(&map(answer), &map(stored), 5), *expected, "{answer:?} {stored:?}");
        }
    }

    #[test]
    fn the_clients_conditions_give_way_to_ours() {
        let mut request = map(&[
            ("if-none-match", "\"theirs\""),
            ("if-modified-since", "Fri, 01 Jan 2010 00:00:00 GMT"),
            ("if-range", "\"theirs\""),
            ("range", "bytes=0-1"),
            ("x", "1"),
        ]);
        make_conditional(&mut request, &map(&[("etag", "\"ours\"")]));
        assert_eq!(request, map(&[("x", "1"), ("if-none-match", "\"ours\"")]));
    }
}
