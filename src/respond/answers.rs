//! Makes responses from stored ones: the whole, a range, 304, 416.

use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};

use crate::entry::{FillReader, StoredHead, StoredResponse, ready};
use crate::fetch::SharedResponse;
use crate::respond::ResponseBody;
use crate::rfc9111::cache_status::{CacheStatus, Fwd, Tier};
use crate::rfc9111::present::Present;
use crate::rfc9111::range::RangeRequest;
use crate::rfc9111::timestamp::Timestamp;
use crate::rfc9111::{conditional, partial, range};
use crate::upstream::UpstreamBody;

/// A response, with its `Cache-Status`.
pub(crate) type Answer = (CacheStatus, Response<ResponseBody>);

/// The properties of a request that an answer from the store depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientRequest<'a> {
    /// The method.
    pub method: &'a Method,
    /// The fields.
    pub fields: &'a HeaderMap,
    /// The fields among them that matter.
    pub present: Present,
}

impl<'a> ClientRequest<'a> {
    /// Returns the properties of `request`.
    pub(crate) fn of<B>(request: &'a Request<B>) -> Self {
        Self::noted(request, Present::of(request.headers()))
    }

    /// Returns the properties of `request`, with `present` worked out already.
    pub(crate) fn noted<B>(request: &'a Request<B>, present: Present) -> Self {
        Self { method: request.method(), fields: request.headers(), present }
    }

    /// Returns whether it is a GET for the whole, without preconditions.
    fn is_plain_get(self) -> bool {
        *self.method == Method::GET && !self.present.has(Present::CONDITIONS.and(Present::RANGE))
    }
}

/// Labels a hit: adds fields, and removes those that clients do not see.
pub(crate) struct Label<L> {
    /// Changes the fields.
    pub put: L,
    /// True if the label depends only on the stored response and the time.
    pub is_steady: bool,
}

/// Makes the answer of a hit in `tier`, fresh or stale, with its label.
#[inline]
pub(crate) fn hit<L: FnOnce(&CacheStatus, &mut HeaderMap)>(
    asked: ClientRequest<'_>,
    stored: Arc<StoredResponse>,
    tier: Tier,
    now: Timestamp,
    label: Label<L>,
) -> Answer {
    let head = &stored.head;
    let status = CacheStatus::hit(tier, head.freshness.remaining(now));
    // What the durable tier had is labelled otherwise at its next use: its fields are not kept.
    if !(asked.is_plain_get() && label.is_steady && tier == Tier::Memory) {
        let mut response = answer_head(asked, head, Some(stored.len()), now);
        (label.put)(&status, response.headers_mut());
        return (status, response.map(|part| of_stored(part, &stored)));
    }
    let (code, fields) = (
        head.status,
        ready::fields(&stored, now, || {
            let mut fields = fields_of(head, now);
            (label.put)(&status, &mut fields);
            fields
        }),
    );
    let mut response = Response::new(ResponseBody::stored(stored));
    *response.status_mut() = code;
    *response.headers_mut() = fields;
    (status, response)
}

fn of_stored(part: Portion, stored: &Arc<StoredResponse>) -> ResponseBody {
    match part {
        Portion::None => ResponseBody::empty(),
        Portion::Whole => ResponseBody::stored(Arc::clone(stored)),
        Portion::Range(first, end) => ResponseBody::stored_range(stored.body(), first, end),
        Portion::Multipart(parts) => ResponseBody::multipart(&stored.body(), &parts.ranges, parts.before, parts.end),
    }
}

/// Makes an answer from a stored response whose body may still be coming in. `None`: it needs a reader, and there is
/// none.
pub(crate) fn build(
    asked: ClientRequest<'_>,
    shared: &SharedResponse,
    reader: Option<FillReader>,
    now: Timestamp,
) -> Option<Response<ResponseBody>> {
    let head = match shared {
        SharedResponse::Stored(stored) => {
            let answer = answer_head(asked, &stored.head, Some(stored.len()), now);
            return Some(answer.map(|part| of_stored(part, stored)));
        }
        SharedResponse::Filling(head, _) => head,
    };
    let len = head.fields.get(&header::CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse().ok());
    let whole = || whole_of(asked, head, now);
    // A part that is coming in answers only the request that asked for it.
    let answer = if head.parts().is_some() { whole() } else { answer_head(asked, head, len, now) };
    // Several ranges would need several readers, so the whole is sent, which is allowed (RFC 9110 §14.2).
    let answer = if matches!(answer.body(), Portion::Multipart(_)) { whole() } else { answer };
    let (parts, part) = answer.into_parts();
    let body = match part {
        Portion::None => ResponseBody::empty(),
        Portion::Range(first, end) => ResponseBody::fill_range(reader?, first, end),
        Portion::Whole | Portion::Multipart(_) => ResponseBody::fill(reader?),
    };
    Some(Response::from_parts(parts, body))
}

/// Says which bytes of a stored body an answer has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Portion {
    /// None: there is no body, or it is empty.
    None,
    /// All.
    Whole,
    /// Those from the first position up to the second.
    Range(u64, u64),
    /// Several ranges, each behind its text, and a last text.
    Multipart(Box<Multipart>),
}

/// The bytes of a multipart answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Multipart {
    /// The ranges.
    pub ranges: Vec<(u64, u64)>,
    /// The text before each range.
    pub before: Vec<Vec<u8>>,
    /// The text after the last range.
    pub end: Vec<u8>,
    /// The length of the whole body.
    pub len: u64,
}

/// Makes the response as it is stored, with its age.
fn whole_of(asked: ClientRequest<'_>, head: &StoredHead, now: Timestamp) -> Response<Portion> {
    let mut response = Response::new(if *asked.method == Method::HEAD { Portion::None } else { Portion::Whole });
    *response.status_mut() = head.status;
    *response.headers_mut() = fields_of(head, now);
    response
}

fn fields_of(head: &StoredHead, now: Timestamp) -> HeaderMap {
    let mut fields = head.fields.to_map();
    fields.insert(header::AGE, HeaderValue::from(head.freshness.age_seconds(now)));
    fields
}

/// Makes the head of an answer from a stored response of `len` bytes, and says which bytes of its body go with it.
pub(crate) fn answer_head(
    asked: ClientRequest<'_>,
    head: &StoredHead,
    len: Option<u64>,
    now: Timestamp,
) -> Response<Portion> {
    let ClientRequest { method, fields, present } = asked;
    // RFC 9110 §13.2.1: preconditions apply only to what would otherwise succeed.
    let is_ok = matches!(head.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT);
    if is_ok && present.has(Present::CONDITIONS) && is_not_modified(method, fields, head) {
        return not_modified(head, HeaderValue::from(head.freshness.age_seconds(now)));
    }
    let mut response = whole_of(asked, head, now);
    if *method == Method::HEAD {
        if let Some(len) = len
            && has_content(head.status)
        {
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(len));
        }
        return response;
    }
    if !is_ok || *method != Method::GET || !present.has(Present::RANGE) || !head.if_range_holds(fields) {
        return response;
    }
    let Some(len) = len else { return response };
    if let Some(parts) = head.parts() {
        if let Some(slice) = parts.slice(fields, len) {
            let (first, end) = (slice.first, slice.end);
            let bytes = Portion::Range(slice.offset, slice.offset + (end - first));
            make_partial(&mut response, first, end, parts.complete_len(), bytes);
        }
        return response;
    }
    match range::requested(fields, len) {
        RangeRequest::Whole => {}
        RangeRequest::Part(first, end) => make_partial(&mut response, first, end, len, Portion::Range(first, end)),
        RangeRequest::Parts(ranges) => make_multipart(&mut response, ranges, len),
        RangeRequest::Unsatisfiable => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            response.headers_mut().insert(header::CONTENT_RANGE, range::content_range_unsatisfied(len));
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(0));
            *response.body_mut() = Portion::None;
        }
    }
    response
}

/// Turns a response into the 206 with the bytes from `first` up to `end` of `complete`.
fn make_partial(response: &mut Response<Portion>, first: u64, end: u64, complete: u64, bytes: Portion) {
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    partial::remove_digests(response.headers_mut());
    response.headers_mut().insert(header::CONTENT_RANGE, range::content_range(first, end, complete));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(end - first));
    *response.body_mut() = bytes;
}

/// Turns a response into the 206 with several ranges of `len` bytes (RFC 9110 §15.3.7.2).
fn make_multipart(response: &mut Response<Portion>, ranges: Vec<(u64, u64)>, len: u64) {
    // Random, so that no stored body can contain it.
    let boundary = format!("{:032x}", fastrand::u128(..));
    let fields = response.headers_mut();
    let (before, end) = range::multipart(&ranges, len, fields.get(header::CONTENT_TYPE), &boundary);
    let texts: usize = before.iter().map(Vec::len).sum::<usize>() + end.len();
    let bytes: u64 = ranges.iter().map(|(first, end)| end - first).sum();
    let total = bytes + texts as u64;
    partial::remove_digests(fields);
    fields.insert(header::CONTENT_TYPE, range::multipart_type(&boundary));
    fields.insert(header::CONTENT_LENGTH, HeaderValue::from(total));
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    *response.body_mut() = Portion::Multipart(Box::new(Multipart { ranges, before, end, len: total }));
}

/// Makes a 304 (RFC 9110 §15.4.5), with these fields of the response that it stands for.
fn not_modified(head: &StoredHead, age: HeaderValue) -> Response<Portion> {
    const KEPT: [http::HeaderName; 7] = [
        header::CACHE_CONTROL,
        header::CONTENT_LOCATION,
        header::DATE,
        header::ETAG,
        header::EXPIRES,
        header::VARY,
        header::LAST_MODIFIED,
    ];
    let mut response = Response::new(Portion::None);
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    *response.headers_mut() = head.fields.to_map_of(|name| KEPT.contains(name));
    response.headers_mut().insert(header::AGE, age);
    response
}

fn is_not_modified(method: &Method, fields: &HeaderMap, head: &StoredHead) -> bool {
    let validators = head.fields.to_map_of(|name| conditional::VALIDATORS.contains(name));
    conditional::not_modified(method, fields, &validators, head.response_time())
}

fn has_content(status: StatusCode) -> bool {
    status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED
}

/// Adds `Age`, if the origin sent none, to a response straight from the origin. Every response has that field.
pub(crate) fn add_age(fields: &mut HeaderMap) {
    fields.entry(header::AGE).or_insert_with(|| const { HeaderValue::from_static("0") });
}

/// Makes an answer of the origin's response to a request that was forwarded because of `fwd`.
pub(crate) fn passed(mut response: Response<UpstreamBody>, fwd: Fwd) -> Answer {
    add_age(response.headers_mut());
    (CacheStatus::forward(fwd), response.map(ResponseBody::upstream))
}
