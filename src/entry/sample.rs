//! Makes heads of responses for tests, of this room and of those above it.

use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use super::{NewHead, StoredHead, VersionVector};
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::storage::{Exchange, StoragePolicy, storable};
use crate::rfc9111::tags::TagFields;
use crate::rfc9111::timestamp::Timestamp;

/// Returns the head of a 200 with `fields` that answers `request`, and that is fetched at `now` by who knows of the purges
/// `known`: a position, and a version vector.
pub(crate) fn sample_head(
    key: &CacheKey,
    request: &HeaderMap,
    fields: &[(&'static str, &str)],
    now: Timestamp,
    (position, version_vector): (u64, Arc<VersionVector>),
    tags: Vec<String>,
) -> StoredHead {
    let value = |text: &str| HeaderValue::from_str(text).expect("a value");
    let fields: HeaderMap = fields.iter().map(|(name, text)| (HeaderName::from_static(name), value(text))).collect();
    let exchange = Exchange {
        method: &Method::GET,
        request,
        status: StatusCode::OK,
        response: &fields,
        request_time: now,
        response_time: now,
    };
    let storable = storable(&exchange, &StoragePolicy::default()).expect("storable");
    let new = NewHead {
        key,
        request,
        status: StatusCode::OK,
        fields: &fields,
        request_time: now,
        response_time: now,
        position,
        version_vector,
        tags,
        hidden: &TagFields::default(),
    };
    StoredHead::new(&storable, new)
}
