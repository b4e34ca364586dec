//! `Cache-Control` of requests and responses (RFC 9111 §5.2), parsed once into integers.
//!
//! A directive that restricts (no-store, private, no-cache, …) is recognised in every spelling that a sender may have
//! meant. One that permits counts only if it is well formed. So a malformed field can cost a hit, but never extends
//! what is stored or reused.

use http::header::{self, HeaderMap};

use super::fields;
use super::timestamp::Timestamp;

/// The largest delta-seconds that a cache has to tell apart (RFC 9111 §1.2.2). Larger values become this one.
pub const DELTA_MAX: u32 = 1 << 31;

/// The length of the longest name of a known directive.
const LONGEST: usize = "stale-while-revalidate".len();

/// The argument of a directive that takes delta-seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delta {
    /// That many seconds, at most [`DELTA_MAX`].
    Seconds(u32),
    /// The directive has no usable argument: no digits, or it is repeated with different values. RFC 9111 §4.2.1
    /// considers such a response stale.
    Invalid,
}

impl Delta {
    /// Returns the seconds; an invalid argument grants none.
    pub fn granted(self) -> u32 {
        match self {
            Self::Seconds(seconds) => seconds,
            Self::Invalid => 0,
        }
    }
}

/// The staleness that a client accepts (RFC 9111 §5.2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxStale {
    /// Any: `max-stale` without an argument.
    Any,
    /// At most that many seconds past its freshness lifetime.
    Seconds(u32),
}

/// The directives in all `Cache-Control` field lines of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheControl {
    /// §5.2.1.5, §5.2.2.5
    pub no_store: bool,
    /// §5.2.1.4, §5.2.2.4. The qualified form (`no-cache="field"`) counts as the plain one.
    pub no_cache: bool,
    /// §5.2.2.7. The qualified form counts as the plain one.
    pub private: bool,
    /// §5.2.2.9
    pub public: bool,
    /// §5.2.2.2
    pub must_revalidate: bool,
    /// §5.2.2.8
    pub proxy_revalidate: bool,
    /// §5.2.2.3
    pub must_understand: bool,
    /// §5.2.1.7
    pub only_if_cached: bool,
    /// RFC 8246
    pub immutable: bool,
    /// §5.2.1.1, §5.2.2.1
    pub max_age: Option<Delta>,
    /// §5.2.2.10
    pub s_maxage: Option<Delta>,
    /// §5.2.1.3
    pub min_fresh: Option<Delta>,
    /// §5.2.1.2
    pub max_stale: Option<MaxStale>,
    /// RFC 5861 §3, in seconds
    pub stale_while_revalidate: Option<Delta>,
    /// RFC 5861 §4, in seconds
    pub stale_if_error: Option<Delta>,
}

impl CacheControl {
    /// Parses every `Cache-Control` line of a message.
    pub fn of(message: &HeaderMap) -> Self {
        let mut parsed = Self::default();
        for member in fields::members(message, &header::CACHE_CONTROL) {
            parsed.add(member);
        }
        parsed
    }

    /// Parses the directives of a request. Without `Cache-Control`, `Pragma: no-cache` counts, for HTTP/1.0 clients
    /// that know nothing else (RFC 9111 §5.4).
    pub fn of_request(message: &HeaderMap) -> Self {
        let mut parsed = Self::of(message);
        if !message.contains_key(header::CACHE_CONTROL) && fields::has_member(message, &header::PRAGMA, "no-cache") {
            parsed.no_cache = true;
        }
        parsed
    }

    fn add(&mut self, member: &[u8]) {
        let (name, argument) = match member.iter().position(|&byte| byte == b'=') {
            Some(at) => (&member[..at], Some(&member[at + 1..])),
            None => (member, None),
        };
        // White space round "=" is not allowed. The directive is still recognised, so that a restriction holds, but
        // its argument is not used.
        let well_formed = fields::trim(name).len() == name.len();
        let name = fields::trim(name);
        let delta = || if well_formed { delta_seconds(argument) } else { Delta::Invalid };
        let mut lower = [0; LONGEST];
        let Some(lower) = lower.get_mut(..name.len()) else { return };
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        match &*lower {
            b"no-store" => self.no_store = true,
            b"no-cache" => self.no_cache = true,
            b"private" => self.private = true,
            b"public" => self.public |= well_formed,
            b"must-revalidate" => self.must_revalidate = true,
            b"proxy-revalidate" => self.proxy_revalidate = true,
            // must-understand lifts no-store as well, so it has to be well formed.
            b"must-understand" => self.must_understand |= well_formed && argument.is_none(),
            b"only-if-cached" => self.only_if_cached = true,
            b"immutable" => self.immutable |= well_formed,
            b"max-age" => merge(&mut self.max_age, delta()),
            b"s-maxage" => merge(&mut self.s_maxage, delta()),
            b"min-fresh" => merge(&mut self.min_fresh, delta()),
            b"max-stale" => self.max_stale = Some(max_stale(argument, well_formed)),
            b"stale-while-revalidate" => merge(&mut self.stale_while_revalidate, delta()),
            b"stale-if-error" => merge(&mut self.stale_if_error, delta()),
            _ => {}
        }
    }
}

/// Merges a repeated directive: the same value counts once, and different values are invalid.
fn merge(slot: &mut Option<Delta>, new: Delta) {
    *slot = Some(match *slot {
        Some(old) if old != new => Delta::Invalid,
        Some(_) | None => new,
    });
}

fn max_stale(argument: Option<&[u8]>, well_formed: bool) -> MaxStale {
    match (argument, well_formed) {
        (None, true) => MaxStale::Any,
        (_, false) => MaxStale::Seconds(0),
        (Some(_), true) => MaxStale::Seconds(delta_seconds(argument).granted()),
    }
}

/// Parses digits, bare or as a quoted string: RFC 9111 §5.2 asks recipients to accept both.
fn delta_seconds(argument: Option<&[u8]>) -> Delta {
    let Some(argument) = argument else { return Delta::Invalid };
    let digits = match argument {
        [b'"', inner @ .., b'"'] => inner,
        bare => bare,
    };
    parse_delta(digits).map_or(Delta::Invalid, Delta::Seconds)
}

/// Parses delta-seconds (RFC 9111 §1.2.2): one or more digits. Values are capped at [`DELTA_MAX`].
pub fn parse_delta(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value =
        digits.iter().fold(0_u64, |value, digit| (value * 10 + u64::from(digit - b'0')).min(u64::from(DELTA_MAX)));
    Some(u32::try_from(value).unwrap_or(DELTA_MAX))
}

/// `cache.request_directives`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestDirectives {
    /// They count as in RFC 9111 §5.2.1.
    Honour,
    /// They count, but do not cause a validation of a response that was received or validated within the last
    /// [`BOUND_PERIOD`].
    Bound,
    /// They are passed on, and do not count.
    Ignore,
}

impl RequestDirectives {
    /// Returns the directives of a request that count for a response received or validated at `received`.
    pub fn bounded(self, directives: CacheControl, received: Timestamp, now: Timestamp) -> CacheControl {
        let is_recent = (0..BOUND_PERIOD).contains(&now.millis_since(received));
        if self == Self::Bound && is_recent {
            return CacheControl { no_cache: false, max_age: None, min_fresh: None, ..directives };
        }
        directives
    }
}

/// The milliseconds in which clients cause at most one validation of a response, with `request_directives = "bound"`.
pub const BOUND_PERIOD: i64 = 10_000;

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn parse(lines: &[&'static str]) -> CacheControl {
        let mut fields = HeaderMap::new();
        for line in lines {
            fields.append(header::CACHE_CONTROL, HeaderValue::from_bytes(line.as_bytes()).expect("test value"));
        }
        CacheControl::of(&fields)
    }

    #[test]
    fn max_age_table() {
        let table: &[(&[&str], Option<Delta>)] = &[
            (&["max-age=60"], Some(Delta::Seconds(60))),
            (&["MaX-aGe=60"], Some(Delta::Seconds(60))),
            (&["public , max-age=60,"], Some(Delta::Seconds(60))),
            (&["max-age=\"60\""], Some(Delta::Seconds(60))),
            (&["max-age=007"], Some(Delta::Seconds(7))),
            (&["max-age=2147483649"], Some(Delta::Seconds(DELTA_MAX))),
            (&["max-age=99999999999999999999999999"], Some(Delta::Seconds(DELTA_MAX))),
            (&["max-age=60, max-age=60"], Some(Delta::Seconds(60))),
            (&["max-age=60", "max-age=61"], Some(Delta::Invalid)),
            (&["max-age=60, max-age=1, max-age=60"], Some(Delta::Invalid)),
            (&["max-age"], Some(Delta::Invalid)),
            (&["max-age="], Some(Delta::Invalid)),
            (&["max-age=-1"], Some(Delta::Invalid)),
            (&["max-age=+1"], Some(Delta::Invalid)),
            (&["max-age=1.0"], Some(Delta::Invalid)),
            (&["max-age='60'"], Some(Delta::Invalid)),
            (&["max-age=60a"], Some(Delta::Invalid)),
            (&["max-age =60"], Some(Delta::Invalid)),
            (&["max-age= 60"], Some(Delta::Invalid)),
            (&["x=\"max-age=60\""], None),
            (&["x=\"a\\\", max-age=60\""], None),
            (&["x=\"max-age=1\", max-age=60"], Some(Delta::Seconds(60))),
            (&["xmax-age=60"], None),
            (&[""], None),
        ];
        for (lines, expected) in table {
            assert_eq!(parse(lines).max_age, *expected, "{lines:?}");
        }
    }

    #[test]
    fn restrictions_hold_however_they_are_spelled() {
        for line in ["no-store", "NO-STORE", "no-store=1", "a, no-store", "no-store =x", "no-store=\"x\""] {
            assert!(parse(&[line]).no_store, "{line}");
        }
        assert!(parse(&["private=\"set-cookie, x\""]).private);
        assert!(parse(&["no-cache=\"set-cookie\""]).no_cache);
        assert!(!parse(&["x=\"no-store\""]).no_store);
    }

    #[test]
    fn max_stale_with_and_without_argument() {
        assert_eq!(parse(&["max-stale"]).max_stale, Some(MaxStale::Any));
        assert_eq!(parse(&["max-stale=5"]).max_stale, Some(MaxStale::Seconds(5)));
        assert_eq!(parse(&["max-stale=x"]).max_stale, Some(MaxStale::Seconds(0)));
    }

    #[test]
    fn pragma_counts_only_without_cache_control() {
        let mut fields = HeaderMap::new();
        fields.insert(header::PRAGMA, HeaderValue::from_static("x, No-Cache"));
        assert!(CacheControl::of_request(&fields).no_cache);
        fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=5"));
        assert!(!CacheControl::of_request(&fields).no_cache);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_parse(value in proptest::collection::vec(32_u8..=255, 0..200)) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let mut fields = HeaderMap::new();
                fields.insert(header::CACHE_CONTROL, value);
                CacheControl::of(&fields);
            }
        }

        #[test]
        fn splitting_over_lines_and_case_change_nothing(
            members in proptest::collection::vec("(no-store|no-cache|public|private|max-age=[0-9]{1,3}|s-maxage=[0-9]{1,3}|x=\"a,b\")", 0..6)
        ) {
            let joined = members.join(" ,\t").to_uppercase();
            let mut one = HeaderMap::new();
            one.insert(header::CACHE_CONTROL, HeaderValue::from_str(&joined).expect("test value"));
            let mut many = HeaderMap::new();
            for member in &members {
                many.append(header::CACHE_CONTROL, HeaderValue::from_str(member).expect("test value"));
            }
            proptest::prop_assert_eq!(CacheControl::of(&one), CacheControl::of(&many));
        }
    }
}
