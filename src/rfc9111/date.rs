//! HTTP dates (RFC 9110 §5.6.7) as [`Timestamp`]s.
//!
//! The parser is written here since RFC 9111 §4.2 asks a cache to ignore the case of dates and to accept no zone but
//! GMT, and RFC 9110 counts the two-digit years of RFC 850 from now.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::rfc9111::timestamp::Timestamp;

/// A date field as found in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DateField {
    /// The message has no such field.
    Absent,
    /// The field is not an HTTP date, or occurs with different values.
    Invalid,
    /// The field is a date.
    At(Timestamp),
}

impl DateField {
    /// Returns the date if there is a valid one.
    pub fn valid(self) -> Option<Timestamp> {
        match self {
            Self::At(moment) => Some(moment),
            Self::Absent | Self::Invalid => None,
        }
    }
}

/// Parses any of the three forms of RFC 9110 §5.6.7, in any case of letters; `None` for everything else. The day's
/// name has to be one, but need not fit the date. `now` decides the century of a two-digit year: a year more than
/// fifty years ahead is a past one.
pub fn parse(value: &HeaderValue, now: Timestamp) -> Option<Timestamp> {
    parse_text(super::fields::trim(value.as_bytes()), now)
}

fn parse_text(text: &[u8], now: Timestamp) -> Option<Timestamp> {
    let first_space = text.iter().position(|&byte| byte == b' ')?;
    let (day_name, rest) = text.split_at(first_space);
    let rest = &rest[1..];
    match day_name.strip_suffix(b",") {
        Some(name) if is_one_of(name, &DAYS) => imf_fixdate(rest),
        Some(name) if is_one_of(name, &LONG_DAYS) => rfc850(rest, now),
        None if is_one_of(day_name, &DAYS) => asctime(rest),
        Some(_) | None => None,
    }
}

const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const LONG_DAYS: [&str; 7] = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];
const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

fn is_one_of(text: &[u8], names: &[&str]) -> bool {
    names.iter().any(|name| text.eq_ignore_ascii_case(name.as_bytes()))
}

/// `06 Nov 1994 08:49:37 GMT`
fn imf_fixdate(text: &[u8]) -> Option<Timestamp> {
    let [d1, d2, b' ', m1, m2, m3, b' ', y1, y2, y3, y4, b' ', time @ .., b' ', z1, z2, z3] = text else {
        return None;
    };
    is_gmt([*z1, *z2, *z3])?;
    moment(number(&[*y1, *y2, *y3, *y4])?, month([*m1, *m2, *m3])?, number(&[*d1, *d2])?, time)
}

/// `06-Nov-94 08:49:37 GMT`
fn rfc850(text: &[u8], now: Timestamp) -> Option<Timestamp> {
    let [d1, d2, b'-', m1, m2, m3, b'-', y1, y2, b' ', time @ .., b' ', z1, z2, z3] = text else { return None };
    is_gmt([*z1, *z2, *z3])?;
    let (month, day) = (month([*m1, *m2, *m3])?, number(&[*d1, *d2])?);
    let this_year = 1970 + now.as_secs().div_euclid(31_556_952);
    // Takes the latest year with these last digits that is at most fifty years ahead.
    let latest = this_year + 50;
    let year = latest - (latest - number(&[*y1, *y2])?).rem_euclid(100);
    moment(year, month, day, time)
}

/// `Nov  6 08:49:37 1994`
fn asctime(text: &[u8]) -> Option<Timestamp> {
    let [m1, m2, m3, b' ', d1, d2, b' ', time @ .., b' ', y1, y2, y3, y4] = text else { return None };
    let day = if *d1 == b' ' { number(&[*d2])? } else { number(&[*d1, *d2])? };
    moment(number(&[*y1, *y2, *y3, *y4])?, month([*m1, *m2, *m3])?, day, time)
}

fn is_gmt(zone: [u8; 3]) -> Option<()> {
    zone.eq_ignore_ascii_case(b"gmt").then_some(())
}

fn month(name: [u8; 3]) -> Option<i64> {
    let index = MONTHS.iter().position(|month| name.eq_ignore_ascii_case(month.as_bytes()))?;
    i64::try_from(index + 1).ok()
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |value, digit| digit.is_ascii_digit().then(|| value * 10 + i64::from(digit - b'0')))
}

fn moment(year: i64, month: i64, day: i64, time: &[u8]) -> Option<Timestamp> {
    let [h1, h2, b':', m1, m2, b':', s1, s2] = time else { return None };
    let (hour, minute, second) = (number(&[*h1, *h2])?, number(&[*m1, *m2])?, number(&[*s1, *s2])?);
    // Second 60 is a leap second.
    if hour > 23 || minute > 59 || second > 60 || day < 1 || day > days_in(year, month) {
        return None;
    }
    Some(Timestamp::from_secs(days_since_epoch(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second))
}

fn days_in(year: i64, month: i64) -> i64 {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => 28 + i64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Counts the days from 1970-01-01 in the Gregorian calendar. Years begin in March, so that the leap day is a year's
/// last.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468
}

/// Reads the date field `name`. Repeated with the same value it counts once. Repeated with different values it is
/// invalid, since none of them can be relied on (RFC 9111 §4.2.1).
pub fn field(fields: &HeaderMap, name: &HeaderName, now: Timestamp) -> DateField {
    let mut values = fields.get_all(name).iter();
    let Some(first) = values.next() else {
        return DateField::Absent;
    };
    if values.any(|other| other != first) {
        return DateField::Invalid;
    }
    parse(first, now).map_or(DateField::Invalid, DateField::At)
}

/// Formats `moment` as an IMF-fixdate; a moment out of its range becomes the nearest one in it.
pub fn format(moment: Timestamp) -> HeaderValue {
    const LAST: Timestamp = Timestamp::from_secs(253_402_300_799);
    let moment = moment.clamp(Timestamp::from_secs(0), LAST);
    let text = httpdate::fmt_http_date(moment.to_system_time());
    HeaderValue::from_maybe_shared(bytes::Bytes::from(text))
        .unwrap_or_else(|_| HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))
}

#[cfg(test)]
mod tests {
    use http::header::EXPIRES;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_790_000_000);

    fn of(text: &'static str) -> Option<i64> {
        parse(&HeaderValue::from_static(text), NOW).map(Timestamp::as_secs)
    }

    #[test]
    fn all_three_forms_name_the_same_moment_in_any_case() {
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "SUN, 06 nov 1994 08:49:37 gmt",
            "sUNDAY, 06-NOV-94 08:49:37 Gmt",
            " Sun, 06 Nov 1994 08:49:37 GMT\t",
            // The day's name need not fit the date.
            "Mon, 06 Nov 1994 08:49:37 GMT",
        ] {
            assert_eq!(of(text), Some(784_111_777), "{text}");
        }
    }

    #[test]
    fn extremes() {
        for (text, expected) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Wed, 31 Dec 1969 23:59:59 GMT", -1),
            ("Sat, 01 Jan 0000 00:00:00 GMT", -62_167_219_200),
            ("Fri, 31 Dec 9999 23:59:59 GMT", 253_402_300_799),
            ("Tue, 19 Jan 2038 03:14:08 GMT", 1 << 31),
            ("Sat, 29 Feb 2020 00:00:00 GMT", 1_582_934_400),
            ("Fri, 31 Dec 2016 23:59:60 GMT", 1_483_228_800),
            // Fifty years ahead of 2026 is still the future; a year more is the past.
            ("Wednesday, 01-Jan-76 00:00:00 GMT", 3_345_062_400),
            ("Saturday, 01-Jan-77 00:00:00 GMT", 220_924_800),
        ] {
            assert_eq!(of(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_date_is_invalid_and_never_a_panic() {
        for text in [
            "0",
            "",
            "-1",
            "tomorrow",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49:37 AEST",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Nov 1994 08:49:37 +0000",
            "Sun, 99 Nov 1994 08:49:37 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Sun, 29 Feb 2021 08:49:37 GMT",
            "Sun, 06 Nov 94 08:49:37 GMT",
            "Sun 06 Nov 1994 08:49:37 GMT",
            "Sun,06 Nov 1994 08:49:37 GMT",
            "Sun, 06  Nov  1994 08:49:37 GMT",
            "Sun, 06-Nov-1994 08:49:37 GMT",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 8:49:37 GMT",
            "Sun, 06 Nov 1994 08.49.37 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Son, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nvm 1994 08:49:37 GMT",
            "Sunday, 06-Nov-1994 08:49:37 GMT",
            "Sun Nov 6 08:49:37 1994",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn differing_repeats_are_invalid_equal_ones_are_one() {
        let mut fields = HeaderMap::new();
        assert_eq!(field(&fields, &EXPIRES, NOW), DateField::Absent);
        let date = HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT");
        fields.append(EXPIRES, date.clone());
        fields.append(EXPIRES, date);
        assert_eq!(field(&fields, &EXPIRES, NOW), DateField::At(Timestamp::from_secs(784_111_777)));
        fields.append(EXPIRES, HeaderValue::from_static("0"));
        assert_eq!(field(&fields, &EXPIRES, NOW), DateField::Invalid);
    }

    #[test]
    fn what_no_date_can_hold_is_written_as_the_nearest() {
        assert_eq!(format(Timestamp::from_millis(i64::MAX)), "Fri, 31 Dec 9999 23:59:59 GMT");
        assert_eq!(format(Timestamp::from_millis(i64::MIN)), "Thu, 01 Jan 1970 00:00:00 GMT");
    }

    proptest::proptest! {
        /// Checks that every date which httpdate can write reads back as the same second.
        #[test]
        fn format_round_trips(secs in 0_i64..253_402_300_800) {
            let moment = Timestamp::from_secs(secs);
            proptest::prop_assert_eq!(parse(&format(moment), NOW), Some(moment));
        }

        #[test]
        fn no_text_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let _ = parse_text(&bytes, NOW);
        }
    }
}
