//! HTTP dates (RFC 9110 §5.6.7) as [`Timestamp`]s.

use std::time::UNIX_EPOCH;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::clock::Timestamp;

/// A date field as found in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DateField {
    /// The message does not have the field.
    Absent,
    /// The field is there but is no HTTP date, or there are several that differ.
    Invalid,
    /// The moment it names.
    At(Timestamp),
}

impl DateField {
    /// The moment, when there is a valid one.
    pub fn valid(self) -> Option<Timestamp> {
        match self {
            Self::At(moment) => Some(moment),
            Self::Absent | Self::Invalid => None,
        }
    }
}

/// Parses any of the three forms of RFC 9110 §5.6.7; `None` for everything else.
pub fn parse(value: &HeaderValue) -> Option<Timestamp> {
    let text = value.to_str().ok()?.trim_matches([' ', '\t']);
    let moment = httpdate::parse_http_date(text).ok()?;
    let since = moment.duration_since(UNIX_EPOCH).ok()?;
    Some(Timestamp::from_secs(i64::try_from(since.as_secs()).ok()?))
}

/// Reads the date field `name`. A field repeated with the same value counts once; with differing
/// values it is invalid, since no one can tell which is meant (RFC 9111 §4.2.1).
pub fn field(fields: &HeaderMap, name: &HeaderName) -> DateField {
    let mut values = fields.get_all(name).iter();
    let Some(first) = values.next() else {
        return DateField::Absent;
    };
    if values.any(|other| other != first) {
        return DateField::Invalid;
    }
    parse(first).map_or(DateField::Invalid, DateField::At)
}

/// Writes `moment` as an IMF-fixdate.
pub fn format(moment: Timestamp) -> HeaderValue {
    let text = httpdate::fmt_http_date(moment.to_system_time());
    HeaderValue::from_maybe_shared(bytes::Bytes::from(text))
        .unwrap_or_else(|_| HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))
}

#[cfg(test)]
mod tests {
    use http::header::EXPIRES;

    use super::*;

    #[test]
    fn all_three_forms_name_the_same_moment() {
        for text in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(parse(&HeaderValue::from_static(text)), Some(Timestamp::from_secs(784_111_777)), "{text}");
        }
    }

    #[test]
    fn what_is_no_date_is_invalid_and_never_a_panic() {
        for text in ["0", "", "-1", "Sun, 06 Nov 1994 08:49:37 UTC", "Sun, 99 Nov 1994 08:49:37 GMT", "tomorrow"] {
            assert_eq!(parse(&HeaderValue::from_static(text)), None, "{text}");
        }
    }

    #[test]
    fn differing_repeats_are_invalid_equal_ones_are_one() {
        let mut fields = HeaderMap::new();
        assert_eq!(field(&fields, &EXPIRES), DateField::Absent);
        let date = HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT");
        fields.append(EXPIRES, date.clone());
        fields.append(EXPIRES, date);
        assert_eq!(field(&fields, &EXPIRES), DateField::At(Timestamp::from_secs(784_111_777)));
        fields.append(EXPIRES, HeaderValue::from_static("0"));
        assert_eq!(field(&fields, &EXPIRES), DateField::Invalid);
    }

    #[test]
    fn format_round_trips() {
        let moment = Timestamp::from_secs(784_111_777);
        assert_eq!(format(moment), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(parse(&format(moment)), Some(moment));
    }
}
