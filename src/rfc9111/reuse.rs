//! Decides whether a stored response may answer a request (RFC 9111 §4), and after what.

use super::directives::{CacheControl, MaxStale};
use super::freshness::{Freshness, StaleUse};
use crate::rfc9111::timestamp::Timestamp;

/// The way to answer a request for which a response is stored that its key and `Vary` select.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// Answer from the store.
    Fresh,
    /// Answer from the store although it is stale: the client accepts that (`max-stale`).
    Stale,
    /// Answer from the store, and validate in the background (RFC 5861 §3).
    StaleWhileRevalidate,
    /// Validate first.
    Validate(Why),
    /// Answer 504: the client accepts only a stored response, and this one will not do (§5.2.1.7).
    GatewayTimeout,
}

/// The reason why a stored response needs validation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The response is stale, or says `no-cache`.
    Stale,
    /// The client's directives rule it out.
    Request,
}

/// RFC 9111 §4: applies its last three conditions, and §5.2.1 for the client's directives.
pub fn reuse(request: &CacheControl, stored: &Freshness, now: Timestamp) -> Reuse {
    match verdict(request, stored, now) {
        Reuse::Validate(_) if request.only_if_cached => Reuse::GatewayTimeout,
        verdict => verdict,
    }
}

fn verdict(request: &CacheControl, stored: &Freshness, now: Timestamp) -> Reuse {
    if stored.no_cache {
        return Reuse::Validate(Why::Stale);
    }
    if request.no_cache {
        return Reuse::Validate(Why::Request);
    }
    let age = stored.current_age(now);
    let remaining = stored.lifetime.saturating_sub(age);
    // §5.2.1.1: "the client prefers a response whose age is less than or equal to" max-age —
    // "unless the max-stale request directive is also present, the client does not wish to
    // receive a stale response".
    let too_old =
        request.max_age.is_some_and(|limit| age / 1000 > i64::from(limit.granted()) || (limit.granted() == 0));
    // §5.2.1.3
    let too_close = request.min_fresh.is_some_and(|least| remaining < i64::from(least.granted()) * 1000);
    if remaining > 0 {
        // RFC 8246 §2: a validation would bring the same response.
        let too_old = too_old && !stored.immutable;
        return if too_old || too_close { Reuse::Validate(Why::Request) } else { Reuse::Fresh };
    }
    // §4.2.4: "A cache MUST NOT generate a stale response unless … doing so is explicitly permitted by the client or
    // origin server".
    if too_old || too_close || stored.stale_use == StaleUse::Never {
        return Reuse::Validate(Why::Stale);
    }
    let staleness = remaining.saturating_neg();
    let wants_fresh = request.max_age.is_some() && request.max_stale.is_none();
    if stored.is_while_revalidate(staleness) && !wants_fresh {
        return Reuse::StaleWhileRevalidate;
    }
    let client_accepts = match request.max_stale {
        Some(MaxStale::Any) => true,
        Some(MaxStale::Seconds(limit)) => staleness <= i64::from(limit) * 1000,
        None => false,
    };
    if client_accepts && stored.stale_use == StaleUse::Allowed { Reuse::Stale } else { Reuse::Validate(Why::Stale) }
}

/// The way in which the origin failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It answered with 500, 502, 503 or 504.
    Status,
    /// It gave no answer: this cache is disconnected (§4.2.4).
    Unreachable,
}

/// Returns whether a stale response may stand in for an error of the origin (RFC 5861 §4, RFC 9111 §4.2.4), for a
/// client that would take the response if it were fresh.
pub fn stale_if_error(request: &CacheControl, stored: &Freshness, failure: Failure, now: Timestamp) -> bool {
    let granted = match failure {
        Failure::Status => stored.stale_if_error,
        Failure::Unreachable => stored.stale_if_unreachable,
    };
    let asked = request
        .stale_if_error
        .filter(|_| stored.stale_use == StaleUse::Allowed)
        .map_or(0, |asked| i64::from(asked.granted()) * 1000);
    let limit = granted.millis().max(asked);
    let staleness = stored.remaining(now).saturating_neg();
    !stored.no_cache
        && stored.stale_use != StaleUse::Never
        && limit > 0
        && staleness <= limit
        && matches!(reuse(request, stored, now), Reuse::Validate(Why::Stale) | Reuse::StaleWhileRevalidate)
        && request.max_age.is_none()
        && request.min_fresh.is_none()
        && !request.no_cache
        && !matches!(request.max_stale, Some(MaxStale::Seconds(most)) if staleness > i64::from(most) * 1000)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use http::header::{CACHE_CONTROL, HeaderMap, HeaderValue};

    use super::super::freshness::LifetimePolicy;
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    fn fields(directives: &str) -> HeaderMap {
        let mut map = HeaderMap::new();
        if !directives.is_empty() {
            map.insert(CACHE_CONTROL, HeaderValue::from_str(directives).expect("test value"));
        }
        map
    }

    #[test]
    fn table_of_section_4() {
        use Reuse::{Fresh, GatewayTimeout, Stale, StaleWhileRevalidate, Validate};
        // (request, response, age in seconds, verdict)
        for (request, response, age, expected) in [
            ("", "max-age=10", 5, Fresh),
            ("", "max-age=10", 10, Validate(Why::Stale)),
            ("", "max-age=10, no-cache", 0, Validate(Why::Stale)),
            ("no-cache", "max-age=10", 5, Validate(Why::Request)),
            ("no-store", "max-age=10", 5, Fresh),
            ("max-age=5", "max-age=10", 5, Fresh),
            ("max-age=5", "max-age=10", 6, Validate(Why::Request)),
            ("max-age=0", "max-age=10", 0, Validate(Why::Request)),
            ("max-age=0", "max-age=10, immutable", 5, Fresh),
            ("no-cache", "max-age=10, immutable", 5, Validate(Why::Request)),
            ("max-age=0", "max-age=10, immutable", 11, Validate(Why::Stale)),
            ("min-fresh=5", "max-age=10", 5, Fresh),
            ("min-fresh=5", "max-age=10", 6, Validate(Why::Request)),
            ("max-stale", "max-age=10", 5000, Stale),
            ("max-stale=10", "max-age=10", 20, Stale),
            ("max-stale=10", "max-age=10", 21, Validate(Why::Stale)),
            ("max-stale", "max-age=10, must-revalidate", 11, Validate(Why::Stale)),
            ("max-stale", "max-age=10, proxy-revalidate", 11, Validate(Why::Stale)),
            ("max-stale", "s-maxage=10", 11, Validate(Why::Stale)),
            ("max-stale", "max-age=10, no-cache", 11, Validate(Why::Stale)),
            ("max-stale, max-age=5", "max-age=10", 11, Validate(Why::Stale)),
            ("only-if-cached", "max-age=10", 5, Fresh),
            ("only-if-cached", "max-age=10", 15, GatewayTimeout),
            ("only-if-cached, max-stale", "max-age=10", 15, Stale),
            ("", "max-age=10, stale-while-revalidate=5", 15, StaleWhileRevalidate),
            ("", "max-age=10, stale-while-revalidate=5", 16, Validate(Why::Stale)),
            ("", "max-age=10, stale-while-revalidate=5, must-revalidate", 12, Validate(Why::Stale)),
            ("no-cache", "max-age=10, stale-while-revalidate=5", 12, Validate(Why::Request)),
            ("max-age=3", "max-age=10, stale-while-revalidate=5", 12, Validate(Why::Stale)),
            ("max-age=60", "max-age=10, stale-while-revalidate=5", 12, Validate(Why::Stale)),
            ("max-age=60, max-stale", "max-age=10, stale-while-revalidate=5", 12, StaleWhileRevalidate),
        ] {
            let stored = Freshness::of(StatusCode::OK, &fields(response), NOW, NOW, &LifetimePolicy::default());
            let request_directives = CacheControl::of_request(&fields(request));
            let got = reuse(&request_directives, &stored, NOW.plus_millis(age * 1000));
            assert_eq!(got, expected, "request {request:?}, response {response:?}, age {age}");
        }
    }

    #[test]
    fn nothing_stands_in_for_an_error_unless_it_may() {
        use Failure::{Status, Unreachable};
        let policy = LifetimePolicy { stale_if_unreachable: 30_000, ..LifetimePolicy::default() };
        for (request, response, age, failure, expected) in [
            ("", "max-age=10", 11, Status, false),
            ("", "max-age=10", 11, Unreachable, true),
            ("", "max-age=10", 41, Unreachable, false),
            ("", "max-age=10, stale-if-error=60", 11, Status, true),
            ("", "max-age=10, stale-if-error=60", 70, Unreachable, true),
            ("", "max-age=10, stale-if-error=60", 71, Status, false),
            ("", "max-age=10, stale-if-error=0", 11, Unreachable, false),
            ("", "max-age=10, stale-if-error=60, must-revalidate", 11, Status, false),
            ("", "max-age=10, must-revalidate", 11, Unreachable, false),
            ("", "max-age=10, proxy-revalidate", 11, Unreachable, false),
            ("", "s-maxage=10", 11, Unreachable, false),
            ("", "max-age=10, stale-if-error=60, no-cache", 11, Unreachable, false),
            // A client may ask for it as well, where the origin does not forbid it.
            ("stale-if-error=60", "max-age=10", 70, Status, true),
            ("stale-if-error=60", "max-age=10", 71, Status, false),
            ("stale-if-error=60", "s-maxage=10", 11, Status, false),
            // A client that wants it fresh gets no stale one.
            ("no-cache", "max-age=10", 11, Unreachable, false),
            ("max-age=60", "max-age=10", 11, Unreachable, false),
            ("max-stale=1", "max-age=10", 12, Unreachable, false),
            ("min-fresh=1", "max-age=10, stale-if-error=60", 11, Status, false),
        ] {
            let stored = Freshness::of(StatusCode::OK, &fields(response), NOW, NOW, &policy);
            let request = CacheControl::of_request(&fields(request));
            let now = NOW.plus_millis(age * 1000);
            assert_eq!(
                stale_if_error(&request, &stored, failure, now),
                expected,
                "{request:?} {response} {age} {failure:?}"
            );
        }
    }
}
