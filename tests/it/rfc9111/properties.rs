//! Tests what holds for every message, not only for those in the tables.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use larder::rfc9111::directives::{CacheControl, MaxStale};
use larder::rfc9111::freshness::{Freshness, LifetimePolicy};
use larder::rfc9111::reuse::{Failure, Reuse};
use larder::rfc9111::search::{NO_VARY_SEARCH, SearchVariance};
use larder::rfc9111::storage::{Exchange, SetCookie, StoragePolicy, storable};
use larder::rfc9111::targeted::{Targets, governing};
use larder::rfc9111::timestamp::Timestamp;
use larder::rfc9111::vary::{Nominated, Vary};
use larder::rfc9111::{conditional, groups, partial, range, reuse, validation, vary};
use proptest::prelude::*;

const NOW: Timestamp = Timestamp::from_secs(1_790_000_000);

fn fields(list: &[(HeaderName, String)]) -> HeaderMap {
    list.iter().filter_map(|(name, value)| Some((name.clone(), HeaderValue::from_bytes(value.as_bytes()).ok()?))).fold(
        HeaderMap::new(),
        |mut map, (name, value)| {
            map.append(name, value);
            map
        },
    )
}

fn response_directive() -> impl Strategy<Value = String> {
    prop_oneof![
        "(max-age|s-maxage|stale-while-revalidate|stale-if-error)=[0-9]{1,4}",
        "(no-cache|must-revalidate|proxy-revalidate|public|immutable|must-understand)",
        "(max-age|s-maxage|stale-if-error)=(\"[0-9]{1,3}\"|-1|x|)",
        "[a-z]{1,8}(=\"[a-z, =]{0,8}\")?",
    ]
}

fn request_directive() -> impl Strategy<Value = String> {
    prop_oneof!["(max-age|min-fresh|max-stale|stale-if-error)=[0-9]{1,4}", "(no-cache|max-stale|only-if-cached)"]
}

fn list(members: &[String]) -> HeaderMap {
    fields(&[(header::CACHE_CONTROL, members.join(", "))])
}

/// Field names and values as strangers may send them.
fn any_fields() -> impl Strategy<Value = HeaderMap> {
    let names = prop::sample::select(vec![
        "cache-control",
        "cdn-cache-control",
        "surrogate-control",
        "x-accel-expires",
        "age",
        "date",
        "expires",
        "last-modified",
        "etag",
        "vary",
        "range",
        "if-range",
        "content-range",
        "if-none-match",
        "if-modified-since",
        "accept-language",
        "accept-encoding",
        "content-language",
        "content-encoding",
        "no-vary-search",
        "cache-groups",
        "set-cookie",
        "authorization",
        "content-location",
    ]);
    let value = prop_oneof![
        prop::collection::vec(prop_oneof![Just(b'"'), Just(b','), Just(b'\\'), Just(b'='), 32_u8..=255], 0..40),
        "[a-z0-9=,;\" ()?*/-]{0,60}".prop_map(String::into_bytes),
    ];
    prop::collection::vec((names, value), 0..12).prop_map(|list| {
        let mut map = HeaderMap::new();
        for (name, value) in list {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                map.append(HeaderName::from_static(name), value);
            }
        }
        map
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing is reused past its lifetime unless a directive or the configuration allows it.
    #[test]
    fn nothing_is_reused_past_its_lifetime_unless_it_may(
        response in prop::collection::vec(response_directive(), 0..5),
        request in prop::collection::vec(request_directive(), 0..3),
        age in 0_i64..20_000,
        unreachable in 0_i64..20_000,
    ) {
        let policy = LifetimePolicy { stale_if_unreachable: unreachable * 1000, ..LifetimePolicy::default() };
        let response = list(&response);
        let request = CacheControl::of_request(&list(&request));
        let directives = CacheControl::of(&response);
        let freshness = Freshness::of(StatusCode::OK, &response, NOW, NOW, &policy);
        let now = NOW.plus_millis(age * 1000);
        let is_fresh = age * 1000 < freshness.lifetime;
        let forbids_stale = directives.must_revalidate || directives.proxy_revalidate || directives.no_cache;
        match reuse::reuse(&request, &freshness, now) {
            Reuse::Fresh => prop_assert!(is_fresh && !directives.no_cache && !request.no_cache),
            Reuse::Stale => {
                prop_assert!(!is_fresh && !forbids_stale && directives.s_maxage.is_none());
                let late = age * 1000 - freshness.lifetime;
                match request.max_stale {
                    Some(MaxStale::Any) => {}
                    Some(MaxStale::Seconds(limit)) => prop_assert!(late <= i64::from(limit) * 1000),
                    None => prop_assert!(false, "stale, and nobody asked for it"),
                }
            }
            Reuse::StaleWhileRevalidate => {
                let granted = directives.stale_while_revalidate.map_or(0, |delta| i64::from(delta.granted()) * 1000);
                prop_assert!(!is_fresh && !forbids_stale && age * 1000 - freshness.lifetime <= granted);
            }
            Reuse::Validate(_) => prop_assert!(!request.only_if_cached),
            Reuse::GatewayTimeout => prop_assert!(request.only_if_cached),
        }
        for failure in [Failure::Status, Failure::Unreachable] {
            if !is_fresh && reuse::stale_if_error(&request, &freshness, failure, now) {
                prop_assert!(!forbids_stale);
                let late = age * 1000 - freshness.lifetime;
                let stated = |directives: &CacheControl| directives.stale_if_error.map_or(0, |d| i64::from(d.granted()) * 1000);
                let configured = if failure == Failure::Unreachable { unreachable * 1000 } else { 0 };
                prop_assert!(late <= stated(&directives).max(stated(&request)).max(configured));
            }
        }
    }

    /// Nothing with no-store or private is stored, in any spelling, wherever it stands.
    #[test]
    fn nothing_that_forbids_it_is_stored(
        before in prop::collection::vec(response_directive(), 0..4),
        after in prop::collection::vec(response_directive(), 0..4),
        word in "([nN][oO]-[sS][tT][oO][rR][eE]|[pP][rR][iI][vV][aA][tT][eE])",
        argument in prop_oneof![Just(""), Just("=\"a, b\""), Just("=1"), Just(" ")],
        split in any::<bool>(),
    ) {
        let forbidding = format!("{word}{argument}");
        let has_must_understand = before.iter().chain(&after).any(|member| member == "must-understand");
        let members = [&before[..], &[forbidding][..], &after[..]].concat();
        let response = if split {
            fields(&members.iter().map(|member| (header::CACHE_CONTROL, member.clone())).collect::<Vec<_>>())
        } else {
            list(&members)
        };
        let exchange = Exchange {
            method: &Method::GET,
            request: &HeaderMap::new(),
            status: StatusCode::OK,
            response: &response,
            request_time: NOW,
            response_time: NOW,
        };
        let policy = StoragePolicy { set_cookie: SetCookie::Rfc, ..StoragePolicy::default() };
        // §5.2.2.3: must-understand lifts no-store where the status is understood.
        if !(has_must_understand && word.eq_ignore_ascii_case("no-store")) {
            prop_assert!(storable(&exchange, &policy).is_err(), "{response:?}");
        }
    }

    /// A 304 applied twice equals once.
    #[test]
    fn a_304_applied_twice_equals_once(stored in any_fields(), answer in any_fields()) {
        let mut once = stored;
        validation::freshen(&mut once, &answer);
        let mut twice = once.clone();
        validation::freshen(&mut twice, &answer);
        prop_assert_eq!(once, twice);
    }

    /// Case, white space, and how a list is split over field lines change nothing.
    #[test]
    fn lists_mean_the_same_however_they_are_written(
        members in prop::collection::vec(prop_oneof![response_directive(), Just("no-store".to_owned())], 0..6),
        names in prop::collection::vec("[a-z]{1,6}", 0..5),
        languages in prop::collection::vec("[a-z]{2}(;q=0\\.[0-9]{1,3})?", 0..5),
    ) {
        let split = |name: &HeaderName, members: &[String]| {
            fields(&members.iter().map(|member| (name.clone(), member.clone())).collect::<Vec<_>>())
        };
        let joined = |name: &HeaderName, members: &[String], case: fn(&str) -> String| {
            fields(&[(name.clone(), case(&members.join(" ,\t")))])
        };
        let same: fn(&str) -> String = str::to_owned;
        let upper: fn(&str) -> String = str::to_uppercase;
        // An argument in quotes keeps its case; none here is looked at but digits.
        prop_assert_eq!(
            CacheControl::of(&split(&header::CACHE_CONTROL, &members)),
            CacheControl::of(&joined(&header::CACHE_CONTROL, &members, upper))
        );
        prop_assert_eq!(
            Vary::of(&split(&header::VARY, &names), &Nominated::default()),
            Vary::of(&joined(&header::VARY, &names, upper), &Nominated::default())
        );
        if !languages.is_empty() {
            let nominated = [header::ACCEPT_LANGUAGE];
            let one = vary::selector(&nominated, &split(&header::ACCEPT_LANGUAGE, &languages));
            prop_assert_eq!(&one, &vary::selector(&nominated, &joined(&header::ACCEPT_LANGUAGE, &languages, upper)));
            prop_assert_eq!(&one, &vary::selector(&nominated, &joined(&header::ACCEPT_LANGUAGE, &languages, same)));
        }
    }

    /// Two queries have one key exactly when one has the parameters of the other, as far as they matter.
    #[test]
    fn search_variance_is_an_equivalence(
        a in prop::collection::vec(("[abu]", "[12]"), 0..5),
        b in prop::collection::vec(("[abu]", "[12]"), 0..5),
        order in any::<bool>(),
    ) {
        let field = if order { "params=(\"u\"), key-order" } else { "params=(\"u\")" };
        let mut response = HeaderMap::new();
        response.insert(NO_VARY_SEARCH, HeaderValue::from_static(field));
        let variance = SearchVariance::of(&response).expect("valid");
        let query = |pairs: &[(String, String)]| {
            pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
        };
        let matters = |pairs: &[(String, String)]| {
            let mut pairs: Vec<_> = pairs.iter().filter(|(name, _)| name != "u").cloned().collect();
            if order {
                pairs.sort_by(|a, b| a.0.cmp(&b.0));
            }
            pairs
        };
        prop_assert_eq!(variance.key(Some(&query(&a))) == variance.key(Some(&query(&b))), matters(&a) == matters(&b));
    }

    /// Whatever the fields hold, every rule gives an answer.
    #[test]
    fn every_rule_is_total(request in any_fields(), response in any_fields(), status in 200_u16..=599) {
        let status = StatusCode::from_u16(status).expect("a status");
        let targets = Targets { surrogate_control: true, x_accel_expires: true, ..Targets::default() };
        let policy = StoragePolicy {
            set_cookie: SetCookie::Rfc,
            lifetimes: LifetimePolicy { targets: targets.clone().into(), ..LifetimePolicy::default() },
            ..StoragePolicy::default()
        };
        let exchange = Exchange {
            method: &Method::GET,
            request: &request,
            status,
            response: &response,
            request_time: NOW,
            response_time: NOW,
        };
        let _ = storable(&exchange, &policy);
        let _ = governing(&response, &targets, NOW);
        let freshness = Freshness::of(status, &response, NOW, NOW, &policy.lifetimes);
        let _ = reuse::reuse(&CacheControl::of_request(&request), &freshness, NOW);
        let _ = conditional::not_modified(&Method::GET, &request, &response, NOW);
        let _ = conditional::if_range_holds(&request, &response, NOW);
        let _ = range::requested(&request, 100);
        let _ = partial::Part::of(&response).map(|part| partial::Parts::from(part).slice(&request, 10));
        let _ = SearchVariance::of(&response).map(|variance| variance.key(Some("a=1&%zz")));
        let _ = groups::listed(&response, &groups::CACHE_GROUPS);
        if let Vary::Fields(names) = Vary::of(&response, &Nominated::default()) {
            let selector = vary::selector(&names, &request);
            prop_assert!(vary::selects(&selector, &response, &request));
        }
        let _ = validation::outcome(status, &response, &request);
        let _ = validation::head_outcome(&response, &request, 5);
    }
}

/// A field of a megabyte is read in a moment, however it nests and quotes.
#[test]
fn long_fields_take_linear_time() {
    for unit in ["\"", "\\\"", "(", ",", "a=\"", "a=(\"b\" ", "max-age=1,", ";q=", "%2", "bytes=0-,"] {
        let value = HeaderValue::from_str(&unit.repeat((1 << 20) / unit.len())).expect("test value");
        let names = ["cache-control", "cdn-cache-control", "vary", "range", "content-range", "no-vary-search", "age"];
        let map: HeaderMap = names.iter().map(|name| (HeaderName::from_static(name), value.clone())).collect();
        let exchange = Exchange {
            method: &Method::GET,
            request: &map,
            status: StatusCode::OK,
            response: &map,
            request_time: NOW,
            response_time: NOW,
        };
        let _ = storable(&exchange, &StoragePolicy::default());
        let _ = range::requested(&map, 100);
        let _ = SearchVariance::of(&map);
        let _ = groups::listed(&map, &NO_VARY_SEARCH);
        let names = [HeaderName::from_static("accept-language"), HeaderName::from_static("vary")];
        let _ = vary::aliases_of_request(&names, &map);
    }
}
