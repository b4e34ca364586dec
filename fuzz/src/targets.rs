//! What is fuzzed: every reader of bytes that a client, an origin or a bucket chooses. Each target
//! takes any bytes, must return, and holds what must be true of the outcome. The tests of the main
//! package run them on the committed corpora.

use std::cell::RefCell;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use larder::entry;
use larder::entry::encoding;
use larder::rfc9111::directives::CacheControl;
use larder::rfc9111::freshness::{Freshness, LifetimePolicy};
use larder::rfc9111::key::{CacheKey, KeyParts};
use larder::rfc9111::partial::{Part, Parts};
use larder::rfc9111::range::RangeRequest;
use larder::rfc9111::reuse::Reuse;
use larder::rfc9111::search::SearchVariance;
use larder::rfc9111::storage::{Exchange, StoragePolicy, storable};
use larder::rfc9111::timestamp::Timestamp;
use larder::rfc9111::vary::{Nominated, Vary};
use larder::rfc9111::{conditional, date, groups, query, range, reuse, targeted, validation, vary};

const NOW: Timestamp = Timestamp::from_secs(1_790_000_000);

/// A message of fields, one a line, `name: value`; what is no field is left out.
fn message(data: &[u8]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for line in data.split(|&byte| byte == b'\n').take(200) {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let value = line[colon + 1..].strip_prefix(b" ").unwrap_or(&line[colon + 1..]);
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(value)) {
            fields.append(name, value);
        }
    }
    fields
}

/// A request and a response, with an empty line between them.
fn exchange(data: &[u8]) -> (HeaderMap, HeaderMap) {
    let end = data.windows(2).position(|pair| pair == b"\n\n").unwrap_or(data.len());
    (message(&data[..end]), message(data.get(end + 2..).unwrap_or_default()))
}

fn everything() -> LifetimePolicy {
    let targets = targeted::Targets { surrogate_control: true, x_accel_expires: true, ..targeted::Targets::default() };
    LifetimePolicy { targets: targets.into(), ..LifetimePolicy::default() }
}

/// Directives of a request and a response: what may be stored, for how long it is fresh, and how it
/// is reused.
pub(super) fn directives(data: &[u8]) {
    let (request, response) = exchange(data);
    let request_directives = CacheControl::of_request(&request);
    let policy = StoragePolicy { lifetimes: everything(), ..StoragePolicy::default() };
    let exchange = Exchange {
        method: &Method::GET,
        request: &request,
        status: StatusCode::OK,
        response: &response,
        request_time: NOW,
        response_time: NOW,
    };
    let governing = targeted::governing(&response, &policy.lifetimes.targets, NOW);
    if let Ok(storable) = storable(&exchange, &policy) {
        assert!(!governing.directives.private);
        assert!(!governing.directives.no_store || governing.directives.must_understand);
        for age in [0, 1, 60, 86_400, 1 << 31] {
            let now = NOW.plus_millis(age * 1000);
            let freshness = storable.freshness();
            if reuse::reuse(&request_directives, freshness, now) == Reuse::Fresh {
                assert!(freshness.is_fresh(now) && !freshness.no_cache);
            }
        }
    }
    let mut fresh = response.clone();
    validation::freshen(&mut fresh, &request);
    let once = fresh.clone();
    validation::freshen(&mut fresh, &request);
    assert_eq!(once, fresh);
    let _ = groups::listed(&response, &groups::CACHE_GROUPS);
}

/// HTTP dates.
pub(super) fn dates(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    if let Some(moment) = date::parse(&value, NOW) {
        let written = date::format(moment);
        // What was read can be written and read again, within what a date can hold.
        if (0..=253_402_300_799).contains(&moment.as_secs()) {
            assert_eq!(date::parse(&written, NOW), Some(moment));
        }
    }
    let mut fields = HeaderMap::new();
    for name in [header::DATE, header::EXPIRES, header::LAST_MODIFIED, header::AGE] {
        fields.insert(name, value.clone());
    }
    let freshness = Freshness::of(StatusCode::OK, &fields, NOW, NOW, &LifetimePolicy::default());
    let _ = freshness.age_seconds(NOW.plus_millis(i64::MAX));
    let _ = conditional::not_modified(&Method::GET, &fields, &fields, NOW);
}

/// What selects a variant.
pub(super) fn vary(data: &[u8]) {
    let (request, response) = exchange(data);
    if let Some(metadata) = query::metadata(&request) {
        assert_eq!(metadata.clone().digest(data), metadata.digest(data));
    }
    let Vary::Fields(names) = Vary::of(&response, &Nominated::default()) else { return };
    let selector = vary::selector(&names, &request);
    assert_eq!(selector, vary::selector(&names, &request));
    assert!(vary::selects(&selector, &response, &request), "a response is selected by its own request");
    let _ = vary::aliases_of_request(&names, &request);
    assert!(vary::aliases_of_response(&selector, &response).len() <= 3);
}

/// Ranges of a whole, and of parts.
pub(super) fn ranges(data: &[u8]) {
    let (request, response) = exchange(data);
    for len in [0, 1, 10, u64::MAX] {
        match range::requested(&request, len) {
            RangeRequest::Part(first, end) => assert!(first < end && end <= len),
            RangeRequest::Parts(mut ranges) => {
                assert!((2..=range::MAX_PARTS).contains(&ranges.len()));
                ranges.sort_unstable();
                assert!(ranges.iter().all(|(first, end)| first < end && *end <= len));
                assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "none touches another");
            }
            RangeRequest::Whole | RangeRequest::Unsatisfiable => {}
        }
    }
    let Some(part) = Part::of(&response) else { return };
    let held = Parts::from(part);
    for len in [held.len(), held.len() / 2, 0] {
        if let Some(slice) = held.slice(&request, len) {
            assert!(slice.first < slice.end && slice.end <= held.complete_len());
            assert!(slice.offset + (slice.end - slice.first) <= len);
        }
    }
    let other = Part { first: 0, end: part.complete.div_ceil(2), complete: part.complete };
    let (together, pieces) = held.with(other).expect("of one whole");
    assert_eq!(pieces.iter().map(|piece| piece.len).sum::<u64>(), together.len());
    assert!(together.gap().is_none_or(|(first, end)| first < end));
}

/// Structured fields.
pub(super) fn structured(data: &[u8]) {
    let fields = message(data);
    let _ = targeted::governing(&fields, &targeted::Targets::default(), NOW);
    for group in groups::listed(&fields, &groups::CACHE_GROUP_INVALIDATION) {
        assert!(group.len() <= groups::MAX_NAME);
    }
    if let Some(variance) = SearchVariance::of(&fields) {
        let query = fields.get("query").and_then(|query| query.to_str().ok());
        assert_eq!(variance.key(query), variance.key(query));
        assert!(variance.key(query).starts_with('\0'));
    }
}

thread_local! {
    static KEY: RefCell<CacheKey> = RefCell::new(CacheKey::new(KeyParts {
        prefix: "",
        scheme: "http",
        authority: "example.com",
        path: "/page",
        query: Some("a=1"),
    }));
}

/// Objects of the durable tier.
pub(super) fn object(data: &[u8]) {
    KEY.with_borrow(|key| {
        let bytes = Bytes::copy_from_slice(data);
        if let Ok(encoding::Object::Response { head, body: encoding::DurableBody::Inline(body) }) =
            encoding::decode(&bytes, key, &LifetimePolicy::default())
        {
            // A decoded response encodes to an object that decodes again.
            let response = entry::StoredResponse::new(*head, body.into());
            let again = Bytes::from(encoding::encode_response(&response, true));
            assert!(encoding::decode(&again, key, &LifetimePolicy::default()).is_ok());
        }
    });
}

/// Entries of a pack of the durable tier, which may be cut or torn.
pub(super) fn entry(data: &[u8]) {
    larder::store::hold_entries(data);
}

/// Packs of the durable tier, and footers alone.
pub(super) fn footer(data: &[u8]) {
    larder::store::hold_footer(data);
}

/// Plays what a Redis client sends, in pieces as long as the first byte says.
pub(super) fn resp(data: &[u8]) {
    larder::resp::hold_commands(data);
}

/// Reads what a load balancer sends before anything else, in one piece and in several.
pub(super) fn proxy_header(data: &[u8]) {
    larder::downstream::hold_proxy_header(data);
}
