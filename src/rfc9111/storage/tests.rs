//! Tests which responses may be stored.

use super::NotStorable as N;
use super::*;
use crate::rfc9111::fields::of_list as map;

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

type Fields = &'static [(&'static str, &'static str)];

fn check(
    method: &Method,
    request: Fields,
    status: u16,
    response: Fields,
    set_cookie: SetCookie,
) -> Result<Storable, N> {
    let exchange = Exchange {
        method,
        request: &map(request),
        status: StatusCode::from_u16(status).expect("test status"),
        response: &map(response),
        request_time: NOW,
        response_time: NOW,
    };
    storable(&exchange, &StoragePolicy { set_cookie, ..StoragePolicy::default() })
}

#[test]
fn table_of_section_3() {
    const RANGE: Fields = &[("range", "bytes=0-4")];
    const AUTH: Fields = &[("authorization", "Basic x")];
    let table: &[(Method, Fields, u16, Fields, Result<(), N>)] = &[
        (Method::GET, &[], 200, &[("cache-control", "max-age=9")], Ok(())),
        (Method::GET, &[], 500, &[("cache-control", "max-age=9")], Ok(())),
        (Method::GET, &[], 599, &[("cache-control", "max-age=9")], Ok(())),
        (
            Method::GET,
            &[],
            200,
            &[("cache-control", "max-age=9"), ("content-type", "Text/Event-Stream; charset=utf-8")],
            Err(N::Stream),
        ),
        (
            Method::GET,
            &[],
            200,
            &[("cache-control", "max-age=9"), ("content-type", "multipart/x-mixed-replace;boundary=x")],
            Err(N::Stream),
        ),
        (Method::GET, &[], 302, &[("expires", "Fri, 01 Jan 2038 00:00:00 GMT")], Ok(())),
        (Method::GET, &[], 200, &[("etag", "\"a\"")], Ok(())),
        (Method::GET, &[], 200, &[("etag", "\"a\""), ("cache-control", "no-cache")], Ok(())),
        (Method::GET, &[], 404, &[("last-modified", "Fri, 01 Jan 2010 00:00:00 GMT")], Ok(())),
        (Method::POST, &[], 200, &[("cache-control", "max-age=9")], Ok(())),
        (Method::POST, &[], 200, &[("expires", "Fri, 01 Jan 2038 00:00:00 GMT")], Ok(())),
        (Method::POST, &[], 200, &[("last-modified", "Fri, 01 Jan 2010 00:00:00 GMT")], Err(N::Method)),
        (Method::POST, &[], 201, &[("cache-control", "max-age=9")], Err(N::Method)),
        (Method::PUT, &[], 200, &[("cache-control", "max-age=9")], Err(N::Method)),
        (Method::GET, RANGE, 206, &[("cache-control", "max-age=9"), ("content-range", "bytes 0-4/10")], Ok(())),
        (Method::GET, RANGE, 206, &[("cache-control", "max-age=9"), ("content-range", "bytes 0-4/*")], Err(N::Part)),
        (Method::GET, &[], 206, &[("cache-control", "max-age=9"), ("content-range", "bytes 0-4/10")], Err(N::Part)),
        (Method::GET, &[], 200, &[("cdn-cache-control", "max-age=9"), ("cache-control", "no-store")], Ok(())),
        (Method::GET, &[], 200, &[("cdn-cache-control", "no-store"), ("cache-control", "max-age=9")], Err(N::NoStore)),
        (Method::HEAD, &[], 200, &[("cache-control", "max-age=9")], Err(N::Method)),
        (Method::GET, RANGE, 206, &[("cache-control", "max-age=9")], Err(N::Part)),
        (Method::GET, &[], 304, &[("cache-control", "max-age=9")], Err(N::Status)),
        (Method::GET, &[], 599, &[("cache-control", "max-age=9, must-understand")], Err(N::Status)),
        (Method::GET, &[], 200, &[("cache-control", "max-age=9, must-understand, no-store")], Ok(())),
        (Method::GET, &[], 599, &[("cache-control", "max-age=9, must-understand, no-store")], Err(N::Status)),
        (Method::GET, &[], 200, &[("cache-control", "max-age=9, no-store")], Err(N::NoStore)),
        (Method::GET, &[("cache-control", "no-store")], 200, &[("cache-control", "max-age=9")], Err(N::RequestNoStore)),
        (Method::GET, &[], 200, &[("cache-control", "max-age=9, private")], Err(N::Private)),
        (Method::GET, &[], 200, &[("cache-control", "max-age=9, private=\"x\"")], Err(N::Private)),
        (Method::GET, AUTH, 200, &[("cache-control", "max-age=9")], Err(N::Authorization)),
        (Method::GET, AUTH, 200, &[("cache-control", "max-age=9, public")], Ok(())),
        (Method::GET, AUTH, 200, &[("cache-control", "s-maxage=9")], Ok(())),
        (Method::GET, AUTH, 200, &[("cache-control", "s-maxage=x"), ("etag", "\"a\"")], Err(N::Authorization)),
        (Method::GET, RANGE, 416, &[("cache-control", "max-age=9")], Err(N::Part)),
        (Method::GET, RANGE, 404, &[("cache-control", "max-age=9")], Err(N::Part)),
        (Method::GET, RANGE, 200, &[("cache-control", "max-age=9")], Ok(())),
        (Method::GET, AUTH, 200, &[("cache-control", "max-age=9, must-revalidate")], Ok(())),
        (Method::GET, &[], 200, &[("cache-control", "max-age=9"), ("vary", "*")], Err(N::Vary)),
        (Method::GET, &[], 200, &[], Err(N::NothingToReuse)),
        (Method::GET, &[], 200, &[("cache-control", "max-age=0")], Err(N::NothingToReuse)),
        (Method::GET, &[], 200, &[("cache-control", "max-age=0, stale-while-revalidate=9")], Ok(())),
        (Method::GET, &[], 200, &[("cache-control", "max-age=0, stale-if-error=9")], Ok(())),
        (
            Method::GET,
            &[],
            200,
            &[("cache-control", "max-age=0, stale-while-revalidate=9, must-revalidate")],
            Err(N::NothingToReuse),
        ),
        (Method::GET, &[], 200, &[("cache-control", "max-age=9, no-cache")], Err(N::NothingToReuse)),
        (Method::GET, &[], 200, &[("cache-control", "max-age=9"), ("age", "10")], Err(N::NothingToReuse)),
        (Method::GET, &[], 403, &[("last-modified", "Fri, 01 Jan 2010 00:00:00 GMT")], Err(N::NothingToReuse)),
    ];
    for (method, request, status, response, expected) in table {
        let got = check(method, request, *status, response, SetCookie::default()).map(|_| ());
        assert_eq!(got, *expected, "{method} {request:?} {status} {response:?}");
    }
}

#[test]
fn where_a_lifetime_has_to_be_stated_nothing_stands_in_for_it() {
    let lifetimes = LifetimePolicy {
        explicit_only: true,
        default_timeout: Some(60_000),
        override_timeout: Some(60_000),
        stale_while_revalidate: Some(60_000),
        stale_if_error: Some(60_000),
        ..LifetimePolicy::default()
    };
    let policy = StoragePolicy { lifetimes, ..StoragePolicy::default() };
    let loose = StoragePolicy {
        lifetimes: LifetimePolicy { explicit_only: false, ..policy.lifetimes.clone() },
        ..policy.clone()
    };
    let table: &[(Fields, bool)] = &[
        (&[], false),
        (&[("etag", "\"a\"")], false),
        (&[("last-modified", "Fri, 01 Jan 2010 00:00:00 GMT")], false),
        (&[("cache-control", "public")], false),
        (&[("cache-control", "no-cache"), ("etag", "\"a\"")], false),
        (&[("cache-control", "stale-while-revalidate=60")], false),
        (&[("cache-control", "max-age=9")], true),
        (&[("cache-control", "s-maxage=9")], true),
        (&[("cdn-cache-control", "max-age=9")], true),
        (&[("expires", "Fri, 01 Jan 2038 00:00:00 GMT")], true),
        (&[("cache-control", "max-age=0"), ("etag", "\"a\"")], true),
    ];
    for (response, expected) in table {
        let exchange = Exchange {
            method: &Method::GET,
            request: &HeaderMap::new(),
            status: StatusCode::OK,
            response: &map(response),
            request_time: NOW,
            response_time: NOW,
        };
        let got = storable(&exchange, &policy);
        assert_eq!(got.is_ok(), *expected, "{response:?} {got:?}");
        assert!(storable(&exchange, &loose).is_ok(), "{response:?}");
        if let Ok(storable) = got {
            assert_eq!(storable.freshness().lifetime, 60_000, "{response:?}: the rule's lifetime replaces it");
        }
    }
}

#[test]
fn cookies_are_shared_only_as_configured() {
    const PLAIN: Fields = &[("cache-control", "max-age=9"), ("set-cookie", "a=1")];
    const PUBLIC: Fields = &[("cache-control", "max-age=9, public"), ("set-cookie", "a=1")];
    const TARGETED: Fields = &[("cdn-cache-control", "max-age=9"), ("set-cookie", "a=1")];
    const NOTHING: Fields = &[("cache-control", "max-age=9, s-maxage=0"), ("set-cookie", "a=1"), ("etag", "\"a\"")];
    const JUNK: Fields = &[("cache-control", "s-maxage=x"), ("set-cookie", "a=1"), ("etag", "\"a\"")];
    const ASKED_ABOUT: Fields =
        &[("cdn-cache-control", "no-cache, max-age=9"), ("set-cookie", "a=1"), ("etag", "\"a\"")];
    const SHARED: Fields = &[("cache-control", "s-maxage=9"), ("set-cookie", "a=1")];
    const OF_A_CLIENT: Fields = &[("cache-control", "s-maxage=9"), ("set-cookie", "a=1"), ("vary", "Accept, Cookie")];
    for (policy, response, expected) in [
        (SetCookie::Explicit, PLAIN, Err(N::SetCookie)),
        (SetCookie::Explicit, PUBLIC, Err(N::SetCookie)),
        (SetCookie::Explicit, SHARED, Ok(())),
        (SetCookie::Explicit, TARGETED, Ok(())),
        (SetCookie::Explicit, NOTHING, Err(N::SetCookie)),
        (SetCookie::Explicit, JUNK, Err(N::SetCookie)),
        (SetCookie::Explicit, ASKED_ABOUT, Err(N::SetCookie)),
        (SetCookie::Explicit, OF_A_CLIENT, Err(N::SetCookie)),
        (SetCookie::Strip, PLAIN, Ok(())),
        (SetCookie::Strip, OF_A_CLIENT, Err(N::SetCookie)),
        (SetCookie::Rfc, PLAIN, Ok(())),
        (SetCookie::Rfc, OF_A_CLIENT, Ok(())),
        (SetCookie::Never, SHARED, Err(N::SetCookie)),
        (SetCookie::Never, TARGETED, Err(N::SetCookie)),
    ] {
        assert_eq!(check(&Method::GET, &[], 200, response, policy).map(|_| ()), expected, "{policy:?} {response:?}");
    }
}
