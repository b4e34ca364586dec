//! Finds the directives that govern a response here: those of a targeted field (RFC 9213), or of `Cache-Control` and
//! `Expires`.
//!
//! It also reads two older fields that applications behind Varnish and nginx send: `Surrogate-Control`, as in the W3C
//! note on the Edge Architecture, and `X-Accel-Expires`. Both are off unless the configuration turns them on.

use http::header::{self, HeaderMap, HeaderName};

use super::directives::{CacheControl, Delta, parse_delta};
use super::fields;
use super::structured::{self, Bare, Member};
use crate::rfc9111::timestamp::Timestamp;

/// `Surrogate-Control`.
pub const SURROGATE_CONTROL: HeaderName = HeaderName::from_static("surrogate-control");

/// `X-Accel-Expires`.
pub const X_ACCEL_EXPIRES: HeaderName = HeaderName::from_static("x-accel-expires");

/// The name by which `Surrogate-Control` addresses this cache.
pub const DEVICE: &str = "larder";

/// The targeted fields that this cache obeys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets {
    /// The target list of RFC 9213 §2.2, in order of precedence.
    pub list: Vec<HeaderName>,
    /// True if `Surrogate-Control` counts, after the list.
    pub surrogate_control: bool,
    /// True if `X-Accel-Expires` counts, after both.
    pub x_accel_expires: bool,
}

impl Default for Targets {
    /// Returns `Larder-Cache-Control`, then `CDN-Cache-Control`.
    fn default() -> Self {
        Self {
            list: vec![HeaderName::from_static("larder-cache-control"), HeaderName::from_static("cdn-cache-control")],
            surrogate_control: false,
            x_accel_expires: false,
        }
    }
}

impl Targets {
    /// Returns every field that counts as addressed to this cache.
    pub fn names(&self) -> impl Iterator<Item = HeaderName> {
        let surrogate = self.surrogate_control.then_some(SURROGATE_CONTROL);
        let accel = self.x_accel_expires.then_some(X_ACCEL_EXPIRES);
        self.list.iter().cloned().chain(surrogate).chain(accel)
    }
}

/// The directives that govern a response, with their source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Governing {
    /// The directives.
    pub directives: CacheControl,
    /// True if they come from a field addressed to this cache: `Cache-Control` and `Expires` then do not count here.
    pub targeted: bool,
    /// True if that field is in the target list: the origin addresses a shared cache by it.
    pub by_list: bool,
}

impl Governing {
    /// Returns whether the response itself states a lifetime.
    pub fn states_lifetime(&self, response: &HeaderMap) -> bool {
        self.directives.s_maxage.is_some()
            || self.directives.max_age.is_some()
            || (!self.targeted && response.contains_key(header::EXPIRES))
    }
}

/// RFC 9213 §2.2: takes the first field of the target list with a valid value that is not empty, else `Cache-Control`.
/// A moment in `X-Accel-Expires` is counted from `response_time`.
pub fn governing(response: &HeaderMap, targets: &Targets, response_time: Timestamp) -> Governing {
    let targeted = |directives| Governing { directives, targeted: true, by_list: false };
    let is_listed = response.keys().any(|name| targets.list.contains(name));
    for name in targets.list.iter().filter(|_| is_listed) {
        if let Some(directives) = of_target(response, name) {
            return Governing { by_list: true, ..targeted(directives) };
        }
    }
    if targets.surrogate_control
        && let Some(directives) = of_surrogate(response)
    {
        return targeted(directives);
    }
    if targets.x_accel_expires
        && let Some(directives) = of_accel(response, response_time)
    {
        return targeted(directives);
    }
    Governing { directives: CacheControl::of(response), targeted: false, by_list: false }
}

/// Returns a targeted field's directives; `None` if it is absent, empty, or no Dictionary.
fn of_target(response: &HeaderMap, name: &HeaderName) -> Option<CacheControl> {
    let mut directives = CacheControl::default();
    if structured::is_too_long(response, name) {
        // The field is too long to be read, and may restrict: nothing is stored.
        directives.no_store = true;
        return Some(directives);
    }
    let members = structured::dictionary(response, name).filter(|members| !members.is_empty())?;
    for (name, member) in &members {
        match member {
            Member::Item(item) => set(&mut directives, name, item),
            Member::List(_) => set(&mut directives, name, &Bare::Other),
        }
    }
    Some(directives)
}

/// Sets one directive. A value of another type than the directive's own is ignored (RFC 9213 §2.1), but a directive
/// that restricts holds with any value but false.
fn set(directives: &mut CacheControl, name: &str, value: &Bare) {
    let restricts = *value != Bare::Boolean(false);
    let permits = *value == Bare::Boolean(true);
    let delta = match value {
        Bare::Integer(seconds) => Some(delta(*seconds)),
        Bare::Boolean(_) | Bare::String(_) | Bare::Token(_) | Bare::Other => None,
    };
    match name {
        "no-store" => directives.no_store = restricts,
        "no-cache" => directives.no_cache = restricts,
        "private" => directives.private = restricts,
        "must-revalidate" => directives.must_revalidate = restricts,
        "proxy-revalidate" => directives.proxy_revalidate = restricts,
        // must-understand restricts by itself, and lifts no-store for a status that is understood.
        "must-understand" => directives.must_understand = permits,
        "public" => directives.public = permits,
        "immutable" => directives.immutable = permits,
        "max-age" => directives.max_age = delta,
        "s-maxage" => directives.s_maxage = delta,
        "stale-while-revalidate" => directives.stale_while_revalidate = delta,
        "stale-if-error" => directives.stale_if_error = delta,
        _ => {}
    }
}

fn delta(seconds: i64) -> Delta {
    match u32::try_from(seconds.min(i64::from(super::directives::DELTA_MAX))) {
        Ok(seconds) => Delta::Seconds(seconds),
        Err(_) => Delta::Invalid,
    }
}

/// Reads `Surrogate-Control: max-age=600+60;larder, no-store;other`. A parameter without a value addresses a directive
/// to one device. Of the note's directives only these two concern freshness. A field with neither for this cache
/// counts as absent.
fn of_surrogate(response: &HeaderMap) -> Option<CacheControl> {
    let mut found: Option<CacheControl> = None;
    for member in fields::members(response, &SURROGATE_CONTROL) {
        let mut parts = fields::split_outside_quotes(member, b';').map(fields::trim);
        let directive = parts.next().unwrap_or_default();
        let is_for_us = parts.all(|device| device.contains(&b'=') || device.eq_ignore_ascii_case(DEVICE.as_bytes()));
        if !is_for_us {
            continue;
        }
        let (name, argument) = match directive.iter().position(|&byte| byte == b'=') {
            Some(at) => (&directive[..at], Some(&directive[at + 1..])),
            None => (directive, None),
        };
        if name.eq_ignore_ascii_case(b"no-store") {
            found.get_or_insert_default().no_store = true;
        } else if name.eq_ignore_ascii_case(b"max-age") {
            let mut seconds = argument.unwrap_or_default().splitn(2, |&byte| byte == b'+');
            let lifetime = parse_delta(seconds.next().unwrap_or_default()).map_or(Delta::Invalid, Delta::Seconds);
            let stale = seconds.next().and_then(parse_delta).map(Delta::Seconds);
            let directives = found.get_or_insert_default();
            directives.max_age = Some(match directives.max_age {
                Some(other) if other != lifetime => Delta::Invalid,
                Some(_) | None => lifetime,
            });
            directives.stale_while_revalidate = stale;
        }
    }
    found
}

/// Reads `X-Accel-Expires: 600` or `@1790000000`. `0`, or a moment in the past, turns caching off.
fn of_accel(response: &HeaderMap, response_time: Timestamp) -> Option<CacheControl> {
    let mut values = response.get_all(X_ACCEL_EXPIRES).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let seconds = match fields::trim(value.as_bytes()) {
        [b'@', digits @ ..] => {
            let moment: i64 = std::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'))?.parse().ok()?;
            moment.saturating_sub(response_time.as_secs()).max(0)
        }
        digits => i64::from(parse_delta(digits)?),
    };
    let no_store = seconds == 0;
    Some(CacheControl { no_store, max_age: Some(delta(seconds)), ..CacheControl::default() })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::rfc9111::fields::of_list as map;

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    fn max_age(seconds: u32) -> CacheControl {
        CacheControl { max_age: Some(Delta::Seconds(seconds)), ..CacheControl::default() }
    }

    #[test]
    fn the_first_valid_target_governs_alone() {
        let none = CacheControl::default();
        let no_store = CacheControl { no_store: true, ..CacheControl::default() };
        let table: &[(&[(&'static str, &'static str)], CacheControl, bool)] = &[
            (&[("cache-control", "max-age=1")], max_age(1), false),
            (&[("cache-control", "max-age=1"), ("cdn-cache-control", "max-age=9")], max_age(9), true),
            (
                &[
                    ("larder-cache-control", "max-age=5"),
                    ("cdn-cache-control", "max-age=9"),
                    ("cache-control", "private"),
                ],
                max_age(5),
                true,
            ),
            (&[("cdn-cache-control", "no-store"), ("cache-control", "max-age=9")], no_store.clone(), true),
            // Invalid or empty: as if it were not there.
            (&[("larder-cache-control", ""), ("cdn-cache-control", "max-age=9")], max_age(9), true),
            (&[("cdn-cache-control", "max-age=9, &&&"), ("cache-control", "no-store")], no_store.clone(), false),
            (&[("cdn-cache-control", "MaX-aGe=9"), ("cache-control", "no-store")], no_store, false),
            (&[("cdn-cache-control", "max-age =9"), ("cache-control", "max-age=1")], max_age(1), false),
            // Valid, with values of the wrong type: those are ignored, and the field governs.
            (&[("cdn-cache-control", "max-age=\"9\""), ("cache-control", "max-age=1")], none.clone(), true),
            (&[("cdn-cache-control", "max-age=9.5")], none.clone(), true),
            (&[("cdn-cache-control", "max-age")], none.clone(), true),
            (&[("cdn-cache-control", "max-age=(9)")], none.clone(), true),
            (&[("cdn-cache-control", "public=1, immutable=x")], none.clone(), true),
            (&[("cdn-cache-control", "unknown, other=3")], none, true),
            // Restrictions hold in any type; false is no restriction.
            (
                &[("cdn-cache-control", "private=\"x\", no-cache=1, no-store=?0")],
                CacheControl { private: true, no_cache: true, ..CacheControl::default() },
                true,
            ),
            // Parameters are ignored, the last of a repeated key counts, lines are one field.
            (&[("cdn-cache-control", "max-age=1;x=2"), ("cdn-cache-control", "max-age=7")], max_age(7), true),
            (&[("cdn-cache-control", "max-age=99999999999")], max_age(1 << 31), true),
            (
                &[("cdn-cache-control", "max-age=-5")],
                CacheControl { max_age: Some(Delta::Invalid), ..CacheControl::default() },
                true,
            ),
        ];
        for (fields, expected, targeted) in table {
            let got = governing(&map(fields), &Targets::default(), NOW);
            assert_eq!((&got.directives, got.targeted), (expected, *targeted), "{fields:?}");
        }
    }

    #[test]
    fn a_target_that_is_too_long_to_read_restricts() {
        let mut fields = map(&[("cache-control", "max-age=9")]);
        let long = format!("max-age=9, x=\"{}\"", "x".repeat(structured::MAX_LEN));
        fields.insert("cdn-cache-control", HeaderValue::from_str(&long).expect("test value"));
        assert!(governing(&fields, &Targets::default(), NOW).directives.no_store);
    }

    #[test]
    fn expires_says_nothing_beside_a_target() {
        let fields = map(&[("cdn-cache-control", "must-revalidate"), ("expires", "Fri, 01 Jan 2038 00:00:00 GMT")]);
        assert!(!governing(&fields, &Targets::default(), NOW).states_lifetime(&fields));
        let no_targets = Targets { list: Vec::new(), ..Targets::default() };
        assert!(governing(&fields, &no_targets, NOW).states_lifetime(&fields));
    }

    #[test]
    fn surrogate_control_when_it_is_listened_to() {
        let targets = Targets { surrogate_control: true, ..Targets::default() };
        let with = |value: &'static str| map(&[("surrogate-control", value), ("cache-control", "max-age=1")]);
        let swr = CacheControl { stale_while_revalidate: Some(Delta::Seconds(60)), ..max_age(600) };
        for (value, expected, targeted) in [
            ("max-age=600", max_age(600), true),
            ("MAX-AGE=600, content=\"ESI/1.0\"", max_age(600), true),
            ("max-age=600;larder", max_age(600), true),
            ("max-age=600;other", max_age(1), false),
            ("max-age=600;other, max-age=30", max_age(30), true),
            ("max-age=600+60", swr, true),
            ("no-store", CacheControl { no_store: true, ..CacheControl::default() }, true),
            ("content=\"ESI/1.0\"", max_age(1), false),
            ("max-age=x", CacheControl { max_age: Some(Delta::Invalid), ..CacheControl::default() }, true),
            ("", max_age(1), false),
        ] {
            let got = governing(&with(value), &targets, NOW);
            assert_eq!((&got.directives, got.targeted), (&expected, targeted), "{value}");
            assert!(!governing(&with(value), &Targets::default(), NOW).targeted, "off by default");
        }
    }

    #[test]
    fn x_accel_expires_when_it_is_listened_to() {
        let targets = Targets { x_accel_expires: true, ..Targets::default() };
        let off = CacheControl { no_store: true, ..max_age(0) };
        for (value, expected) in [
            ("600", Some(max_age(600))),
            ("0", Some(off.clone())),
            ("@1700000100", Some(max_age(100))),
            ("@1600000000", Some(off)),
            ("@x", None),
            ("@+1700000100", None),
            ("-1", None),
            ("", None),
        ] {
            let fields = map(&[("x-accel-expires", value), ("cache-control", "no-store")]);
            let got = governing(&fields, &targets, NOW);
            assert_eq!(got.targeted.then_some(got.directives), expected, "{value}");
        }
    }
}
