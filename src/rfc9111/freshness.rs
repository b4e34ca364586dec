//! The lifetime and the age of a response (RFC 9111 §4.2), computed once when it is stored and compared as integers on
//! every use.

use std::sync::Arc;

use http::StatusCode;
use http::header::{self, HeaderMap};

use super::date::{self, DateField};
use super::directives::{CacheControl, Delta, parse_delta};
use super::targeted::{Governing, Targets, governing};
use crate::rfc9111::timestamp::Timestamp;

/// The divisor of the time since the last modification, which gives the heuristic lifetime (RFC 9111 §4.2.2 suggests
/// 10 %).
const HEURISTIC_DIVISOR: i64 = 10;

/// The longest heuristic lifetime: one day, in milliseconds.
pub const HEURISTIC_MAX: i64 = 24 * 3600 * 1000;

/// The configuration's settings for freshness; durations in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LifetimePolicy {
    /// The targeted fields that this cache obeys.
    pub targets: Arc<Targets>,
    /// The lifetime of a response that states none, where RFC 9111 §4.2.2 leaves it to the cache.
    pub default_timeout: Option<i64>,
    /// The lifetime that replaces any that a response states.
    pub override_timeout: Option<i64>,
    /// True if a response that states no lifetime has none and is not stored, whatever else the settings say.
    pub explicit_only: bool,
    /// `stale-while-revalidate` for a response that does not have it.
    pub stale_while_revalidate: Option<i64>,
    /// `stale-if-error` for a response that does not have it.
    pub stale_if_error: Option<i64>,
    /// The time past its lifetime for which a response may stand in for an unreachable origin, where nothing in it
    /// forbids that (§4.2.4).
    pub stale_if_unreachable: i64,
}

/// The source of a freshness lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifetimeSource {
    /// `s-maxage`, `max-age` or `Expires`.
    Origin,
    /// `default_timeout`, `timeout` or `override_timeout`.
    Configuration,
    /// The heuristic of RFC 9111 §4.2.2.
    Heuristic,
    /// None: the response is stale from the start.
    None,
}

/// Says whether a response may be used once it is stale (RFC 9111 §4.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleUse {
    /// Allowed if a client accepts it, or the origin can't be reached.
    Allowed,
    /// Only where an extension allows it by name: `no-cache`, `s-maxage`.
    ByExtension,
    /// Not even then: `must-revalidate`, `proxy-revalidate`.
    Never,
}

/// A duration in four bytes: in milliseconds up to 24 days, in seconds up to 68 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span(u32);

impl Span {
    /// The bit that says that the others count seconds.
    const SECONDS: u32 = 1 << 31;

    /// Returns the longest span that is no longer than `millis`; zero for a negative number.
    pub fn from_millis(millis: i64) -> Self {
        let below = |n: i64| u32::try_from(n.max(0)).ok().filter(|n| *n < Self::SECONDS);
        Self(below(millis).unwrap_or_else(|| Self::SECONDS | below(millis / 1000).unwrap_or(Self::SECONDS - 1)))
    }

    /// Returns the span in milliseconds.
    pub fn millis(self) -> i64 {
        if self.0 < Self::SECONDS { i64::from(self.0) } else { i64::from(self.0 - Self::SECONDS) * 1000 }
    }

    /// Returns whether the span is zero.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }
}

/// The freshness of a stored response: everything that depends on time. Times are in milliseconds. It takes 40 bytes
/// of each stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// `freshness_lifetime` of §4.2.1.
    pub lifetime: i64,
    /// The source of the lifetime.
    pub source: LifetimeSource,
    /// `corrected_initial_age` of §4.2.3.
    pub initial_age: i64,
    /// The time at which the response was received.
    pub response_time: Timestamp,
    /// `no-cache`: the response is never reused without validation, however fresh.
    pub no_cache: bool,
    /// Says whether the response may be used stale.
    pub stale_use: StaleUse,
    /// RFC 5861 §3.
    pub stale_while_revalidate: Span,
    /// RFC 5861 §4.
    pub stale_if_error: Span,
    /// The time past its lifetime for which it may stand in for an unreachable origin (§4.2.4).
    pub stale_if_unreachable: Span,
    /// RFC 8246: while the response is fresh, a validation would bring the same one.
    pub immutable: bool,
}

impl Freshness {
    /// Works out the freshness of a response received at `response_time` to a request sent at
    /// `request_time`.
    pub fn of(
        status: StatusCode,
        fields: &HeaderMap,
        request_time: Timestamp,
        response_time: Timestamp,
        policy: &LifetimePolicy,
    ) -> Self {
        let governing = governing(fields, &policy.targets, response_time);
        let (lifetime, source) = freshness_lifetime(status, fields, &governing, response_time, policy);
        let directives = governing.directives;
        let millis = |delta: Delta| i64::from(delta.granted()) * 1000;
        let stale_use = if directives.must_revalidate || directives.proxy_revalidate {
            StaleUse::Never
        } else if directives.no_cache || directives.s_maxage.is_some() {
            StaleUse::ByExtension
        } else {
            StaleUse::Allowed
        };
        let stated = directives.stale_if_error.map(millis);
        let stale_if_error = stated.or(policy.stale_if_error).unwrap_or(0);
        let stale_while_revalidate =
            directives.stale_while_revalidate.map(millis).or(policy.stale_while_revalidate).unwrap_or(0);
        // An origin's own stale-if-error holds for every kind of error.
        let stale_if_unreachable = if stated.is_some() || stale_use != StaleUse::Allowed {
            stale_if_error
        } else {
            stale_if_error.max(policy.stale_if_unreachable)
        };
        Self {
            lifetime,
            source,
            initial_age: corrected_initial_age(fields, request_time, response_time),
            response_time,
            no_cache: directives.no_cache && overridden(status, policy).is_none(),
            stale_use,
            stale_while_revalidate: Span::from_millis(stale_while_revalidate),
            stale_if_error: Span::from_millis(stale_if_error),
            stale_if_unreachable: Span::from_millis(stale_if_unreachable),
            immutable: directives.immutable,
        }
    }

    /// The freshness of a value, which is no response of an origin: fresh until `expires`, for good without it, and never
    /// used stale.
    pub fn of_value(stored: Timestamp, expires: Option<Timestamp>) -> Self {
        Self {
            lifetime: expires.map_or(i64::MAX, |expires| expires.millis_since(stored)),
            source: LifetimeSource::Origin,
            initial_age: 0,
            response_time: stored,
            no_cache: false,
            stale_use: StaleUse::Never,
            stale_while_revalidate: Span::default(),
            stale_if_error: Span::default(),
            stale_if_unreachable: Span::default(),
            immutable: false,
        }
    }

    /// Returns the `current_age` of §4.2.3, in milliseconds. A clock that went back counts as standing still.
    pub fn current_age(&self, now: Timestamp) -> i64 {
        self.initial_age.saturating_add(now.millis_since(self.response_time).max(0))
    }

    /// Returns the milliseconds until the response is stale; zero or less once it is.
    pub fn remaining(&self, now: Timestamp) -> i64 {
        self.lifetime.saturating_sub(self.current_age(now))
    }

    /// Returns the moment from which on the response is stale.
    pub fn fresh_until(&self) -> Timestamp {
        self.response_time.plus_millis(self.remaining(self.response_time))
    }

    /// Returns the `response_is_fresh` of §4.2.
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        self.remaining(now) > 0
    }

    /// Makes the response stale from `moment` on, if it is not stale already. It may then only be validated, or stand
    /// in for an origin that fails: no client's `max-stale` brings it back.
    pub fn expire(&mut self, moment: Timestamp) {
        self.lifetime = self.lifetime.min(self.current_age(moment));
        self.stale_while_revalidate = Span::default();
        if self.stale_use == StaleUse::Allowed {
            self.stale_use = StaleUse::ByExtension;
        }
    }

    /// Returns whether a request without directives is answered without waiting for a validation.
    pub fn is_reusable_as_it_is(&self, now: Timestamp) -> bool {
        let staleness = self.remaining(now).saturating_neg();
        !self.no_cache
            && (self.is_fresh(now) || (self.is_while_revalidate(staleness) && self.stale_use != StaleUse::Never))
    }

    /// Returns whether `stale-while-revalidate` covers a response that has been stale for `staleness` milliseconds.
    pub fn is_while_revalidate(&self, staleness: i64) -> bool {
        !self.stale_while_revalidate.is_zero() && staleness <= self.stale_while_revalidate.millis()
    }

    /// Returns the moment up to which, from `now` on, neither [`Freshness::age_seconds`] nor the remaining whole
    /// seconds change.
    pub fn steady_until(&self, now: Timestamp) -> Timestamp {
        let until_older = 1000 - self.current_age(now).rem_euclid(1000);
        let until_nearer = self.remaining(now).rem_euclid(1000) + 1;
        now.plus_millis(until_older.min(until_nearer))
    }

    /// Returns the value of the `Age` field (§5.1), in seconds.
    pub fn age_seconds(&self, now: Timestamp) -> u64 {
        u64::try_from(self.current_age(now) / 1000).unwrap_or(0).min(u64::from(super::directives::DELTA_MAX))
    }
}

/// §4.2.1: takes the lifetime from the first of these sources that is there.
fn freshness_lifetime(
    status: StatusCode,
    fields: &HeaderMap,
    governing: &Governing,
    response_time: Timestamp,
    policy: &LifetimePolicy,
) -> (i64, LifetimeSource) {
    let directives = &governing.directives;
    if policy.explicit_only && !governing.states_lifetime(fields) {
        return (0, LifetimeSource::None);
    }
    if let Some(lifetime) = overridden(status, policy) {
        return (lifetime, LifetimeSource::Configuration);
    }
    if let Some(delta) = directives.s_maxage.or(directives.max_age) {
        return (i64::from(delta.granted()) * 1000, LifetimeSource::Origin);
    }
    let date = date::field(fields, &header::DATE, response_time).valid().unwrap_or(response_time);
    let expires =
        if governing.targeted { DateField::Absent } else { date::field(fields, &header::EXPIRES, response_time) };
    match expires {
        DateField::At(expires) => return (expires.millis_since(date).max(0), LifetimeSource::Origin),
        // §5.3: an invalid date, especially "0", is a time in the past.
        DateField::Invalid => return (0, LifetimeSource::Origin),
        DateField::Absent => {}
    }
    if !allows_heuristic(status, directives) {
        return (0, LifetimeSource::None);
    }
    if let Some(lifetime) = policy.default_timeout.filter(|_| takes_configured(status)) {
        return (lifetime, LifetimeSource::Configuration);
    }
    match date::field(fields, &header::LAST_MODIFIED, response_time) {
        DateField::At(modified) => {
            let lifetime = (date.millis_since(modified) / HEURISTIC_DIVISOR).clamp(0, HEURISTIC_MAX);
            (lifetime, LifetimeSource::Heuristic)
        }
        DateField::Absent | DateField::Invalid => (0, LifetimeSource::None),
    }
}

/// Returns the configured lifetime that replaces whatever a response with this status states.
fn overridden(status: StatusCode, policy: &LifetimePolicy) -> Option<i64> {
    policy.override_timeout.filter(|_| takes_configured(status))
}

/// Returns whether responses with this status get configured lifetimes. Errors do not, since one client's request may
/// have caused them, and neither do redirects that may be for one client.
fn takes_configured(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 410)
}

/// §4.2.2: returns whether a cache may choose a lifetime: the status is defined as heuristically cacheable (RFC 9110
/// §15.1), or the response says `public`.
pub fn allows_heuristic(status: StatusCode, directives: &CacheControl) -> bool {
    directives.public
        || matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// Returns the `corrected_initial_age` of §4.2.3, in milliseconds.
fn corrected_initial_age(fields: &HeaderMap, request_time: Timestamp, response_time: Timestamp) -> i64 {
    let apparent_age = match date::field(fields, &header::DATE, response_time) {
        DateField::At(date) => {
            // `Date` counts whole seconds: a response made within this second has the age zero.
            Timestamp::from_secs(response_time.as_secs()).millis_since(date).max(0)
        }
        DateField::Absent | DateField::Invalid => 0,
    };
    let response_delay = response_time.millis_since(request_time).max(0);
    apparent_age.max(age_value(fields).saturating_add(response_delay))
}

/// Returns the `Age` field (§5.1) in milliseconds: its first member, if there are several. Zero if it is absent or not
/// a non-negative integer.
fn age_value(fields: &HeaderMap) -> i64 {
    let first = super::fields::members(fields, &header::AGE).next();
    first.and_then(parse_delta).map_or(0, |seconds| i64::from(seconds) * 1000)
}

#[cfg(test)]
mod tests {
    use http::header::{HeaderName, HeaderValue};

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    fn fields(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in list {
            map.append(HeaderName::from_static(name), HeaderValue::from_str(value).expect("test value"));
        }
        map
    }

    fn at(offset: i64) -> String {
        date::format(NOW.plus_millis(offset * 1000)).to_str().expect("ascii").to_owned()
    }

    fn lifetime(status: u16, list: &[(&'static str, &str)], policy: &LifetimePolicy) -> (i64, LifetimeSource) {
        let status = StatusCode::from_u16(status).expect("test status");
        let freshness = Freshness::of(status, &fields(list), NOW, NOW, policy);
        (freshness.lifetime / 1000, freshness.source)
    }

    #[test]
    fn lifetime_table() {
        use LifetimeSource::{Configuration, Heuristic, None, Origin};
        let (now, later, earlier) = (at(0), at(100), at(-1000));
        let d = LifetimePolicy::default();
        let configured = LifetimePolicy { default_timeout: Some(7000), ..d.clone() };
        let overriding = LifetimePolicy { override_timeout: Some(9000), ..d.clone() };
        let table: &[(u16, &[(&'static str, &str)], &LifetimePolicy, i64, LifetimeSource)] = &[
            (200, &[("cache-control", "max-age=5")], &d, 5, Origin),
            (200, &[("cache-control", "max-age=5, s-maxage=9")], &d, 9, Origin),
            (200, &[("cache-control", "s-maxage=0, max-age=9")], &d, 0, Origin),
            (200, &[("cache-control", "max-age=x"), ("expires", &later)], &d, 0, Origin),
            (200, &[("cache-control", "max-age=5"), ("expires", "0")], &d, 5, Origin),
            (200, &[("expires", &later), ("date", &now)], &d, 100, Origin),
            (200, &[("expires", "sat, 01 JAN 2000 00:00:00 gmt"), ("date", &now)], &d, 0, Origin),
            (200, &[("cdn-cache-control", "max-age=5"), ("expires", &later), ("date", &now)], &d, 5, Origin),
            (200, &[("cdn-cache-control", "public"), ("expires", &later), ("cache-control", "max-age=9")], &d, 0, None),
            (200, &[("expires", &later), ("date", "nonsense")], &d, 100, Origin),
            (200, &[("expires", &earlier), ("date", &now)], &d, 0, Origin),
            (200, &[("expires", "0")], &configured, 0, Origin),
            (200, &[("last-modified", &earlier), ("date", &now)], &d, 100, Heuristic),
            (404, &[("last-modified", &earlier)], &d, 100, Heuristic),
            (403, &[("last-modified", &earlier)], &d, 0, None),
            (599, &[("last-modified", &earlier), ("cache-control", "public")], &d, 100, Heuristic),
            (200, &[("last-modified", "Tue, 01 Jan 1980 00:00:00 GMT")], &d, 86400, Heuristic),
            (200, &[("last-modified", &later)], &d, 0, Heuristic),
            (200, &[], &d, 0, None),
            (200, &[], &configured, 7, Configuration),
            (500, &[], &configured, 0, None),
            (200, &[("cache-control", "max-age=5")], &configured, 5, Origin),
            (200, &[("cache-control", "max-age=5")], &overriding, 9, Configuration),
            (500, &[], &overriding, 0, None),
            (500, &[("cache-control", "max-age=5")], &overriding, 5, Origin),
            (404, &[("cache-control", "max-age=5")], &overriding, 9, Configuration),
            (414, &[], &configured, 0, None),
            (302, &[("cache-control", "max-age=5")], &overriding, 5, Origin),
        ];
        for (status, list, policy, expected, source) in table {
            assert_eq!(lifetime(*status, list, policy), (*expected, *source), "{status} {list:?}");
        }
    }

    #[test]
    fn age_table() {
        let (now, earlier, later) = (at(0), at(-30), at(30));
        let table: &[(&[(&'static str, &str)], i64)] = &[
            (&[], 2),
            (&[("date", &now)], 2),
            (&[("date", &earlier)], 32),
            (&[("date", &later)], 2),
            (&[("age", "10")], 12),
            (&[("age", "010")], 12),
            (&[("age", "10"), ("date", &earlier)], 32),
            (&[("age", "100"), ("date", &earlier)], 102),
            // The first member of several.
            (&[("age", "10, 7200")], 12),
            (&[("age", "10"), ("age", "7200")], 12),
            (&[("age", "7200,10")], 7202),
            // Ignored, and with it what follows.
            (&[("age", "-1")], 2),
            (&[("age", "+1")], 2),
            (&[("age", "1.5")], 2),
            (&[("age", "7;x=1")], 2),
            (&[("age", "abc, 7")], 2),
            (&[("age", "\"7\"")], 2),
            (&[("age", "")], 2),
            (&[("age", "2147483647")], (1 << 31) + 1),
            (&[("age", "99999999999999999999")], (1 << 31) + 2),
        ];
        for (list, expected) in table {
            // Two seconds on the way.
            let response_time = NOW.plus_millis(2000);
            let freshness =
                Freshness::of(StatusCode::OK, &fields(list), NOW, response_time, &LifetimePolicy::default());
            assert_eq!(freshness.initial_age / 1000, *expected, "{list:?}");
        }
    }

    #[test]
    fn stale_terms_come_from_the_response_then_from_the_configuration() {
        let policy = LifetimePolicy {
            stale_while_revalidate: Some(7000),
            stale_if_error: Some(8000),
            stale_if_unreachable: 9000,
            ..LifetimePolicy::default()
        };
        let terms = |directives: &str, policy: &LifetimePolicy| {
            let fields = fields(&[("cache-control", directives)]);
            let freshness = Freshness::of(StatusCode::OK, &fields, NOW, NOW, policy);
            [freshness.stale_while_revalidate, freshness.stale_if_error, freshness.stale_if_unreachable]
                .map(|span| span.millis() / 1000)
        };
        assert_eq!(terms("max-age=1", &LifetimePolicy::default()), [0, 0, 0]);
        assert_eq!(terms("max-age=1", &policy), [7, 8, 9]);
        assert_eq!(terms("max-age=1, stale-while-revalidate=1, stale-if-error=2", &policy), [1, 2, 2]);
        assert_eq!(terms("max-age=1, stale-while-revalidate=0, stale-if-error=0", &policy), [0, 0, 0]);
        assert_eq!(terms("s-maxage=1", &policy), [7, 8, 8], "s-maxage forbids what nobody grants by name");
        assert_eq!(terms("max-age=1, stale-if-error=x", &policy), [7, 0, 0]);
    }

    #[test]
    fn a_span_is_as_long_as_it_can_say_and_never_longer() {
        assert_eq!(size_of::<Freshness>(), 40);
        let exact = [0, 1, 250, 1000, (1 << 31) - 1, 3 << 31, 365 * 24 * 3600 * 1000];
        for millis in exact.map(|millis: i64| if millis < 1 << 31 { millis } else { millis / 1000 * 1000 }) {
            assert_eq!(Span::from_millis(millis).millis(), millis);
        }
        assert_eq!(Span::from_millis((1 << 31) + 999).millis(), ((1 << 31) + 999) / 1000 * 1000);
        assert_eq!(Span::from_millis(-1), Span::default());
        assert_eq!(Span::from_millis(i64::MAX).millis(), ((1 << 31) - 1) * 1000);
        // What a directive may say at most.
        let most = i64::from(super::super::directives::DELTA_MAX) * 1000;
        assert!(most - Span::from_millis(most).millis() <= 1000);
        assert!(Span::default().is_zero() && !Span::from_millis(1).is_zero() && !Span::from_millis(1 << 31).is_zero());
    }

    #[test]
    fn what_is_said_in_seconds_is_steady_up_to_the_moment_named() {
        let policy = LifetimePolicy::default();
        let said = |freshness: &Freshness, now: Timestamp| {
            (freshness.age_seconds(now), freshness.remaining(now).div_euclid(1000))
        };
        for age in ["0", "7", "90"] {
            let fields = fields(&[("cache-control", "max-age=60"), ("age", age)]);
            let received = NOW.plus_millis(321);
            let freshness = Freshness::of(StatusCode::OK, &fields, NOW, received, &policy);
            for millis in (-1500..2500).chain(58_000..62_000) {
                let now = received.plus_millis(millis);
                let until = freshness.steady_until(now);
                assert!(until > now);
                for later in [now.plus_millis(1), until.plus_millis(-1)].into_iter().filter(|later| *later < until) {
                    assert_eq!(said(&freshness, later), said(&freshness, now), "{age} {millis}");
                }
                if millis >= 0 {
                    assert_ne!(
                        said(&freshness, until),
                        said(&freshness, now),
                        "no sooner than need be: {age} {millis}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_response_is_fresh_up_to_its_lifetime_and_not_a_millisecond_longer() {
        let freshness = Freshness::of(
            StatusCode::OK,
            &fields(&[("cache-control", "max-age=10")]),
            NOW,
            NOW,
            &LifetimePolicy::default(),
        );
        assert!(freshness.is_fresh(NOW.plus_millis(9_999)));
        assert!(!freshness.is_fresh(NOW.plus_millis(10_000)));
        assert_eq!(freshness.age_seconds(NOW.plus_millis(9_999)), 9);
        // A clock set back neither ages nor rejuvenates.
        assert_eq!(freshness.current_age(NOW.plus_millis(-5_000)), 0);
    }
}
