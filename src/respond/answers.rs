//! Makes responses: from stored ones (the whole, a range, 304, 416), and refusals.

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

/// What is sent, and what is said of it.
pub(crate) type Answer = (CacheStatus, Response<ResponseBody>);

/// What of a request an answer from the store depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientRequest<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its fields.
    pub fields: &'a HeaderMap,
    /// Which of them decide something.
    pub present: Present,
}

impl<'a> ClientRequest<'a> {
    /// What `request` asks.
    pub(crate) fn of<B>(request: &'a Request<B>) -> Self {
        Self::noted(request, Present::of(request.headers()))
    }

    /// The same, with what is known of its fields.
    pub(crate) fn noted<B>(request: &'a Request<B>, present: Present) -> Self {
        Self { method: request.method(), fields: request.headers(), present }
    }

    /// Whether it asks for the whole, whatever the client has.
    fn is_plain_get(self) -> bool {
        *self.method == Method::GET && !self.present.has(Present::CONDITIONS.and(Present::RANGE))
    }
}

/// What a hit's fields say besides what is stored.
pub(crate) struct Label<L> {
    /// Puts it there.
    pub put: L,
    /// Whether it depends on nothing but the stored response and the time.
    pub is_steady: bool,
}

/// A hit in memory, fresh or not, with its label.
pub(crate) fn hit<L: FnOnce(&CacheStatus, &mut HeaderMap)>(
    asked: ClientRequest<'_>,
    stored: Arc<StoredResponse>,
    now: Timestamp,
    label: Label<L>,
) -> Answer {
    let head = &stored.head;
    let status = CacheStatus::hit(Tier::Memory, head.freshness.remaining(now));
    if !(asked.is_plain_get() && label.is_steady) {
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

fn of_stored(part: Part, stored: &Arc<StoredResponse>) -> ResponseBody {
    match part {
        Part::None => ResponseBody::empty(),
        Part::Whole => ResponseBody::stored(Arc::clone(stored)),
        Part::Range(first, end) => ResponseBody::stored_range(stored.body(), first, end),
        Part::Multipart(parts) => ResponseBody::multipart(&stored.body(), &parts.ranges, parts.before, parts.end),
    }
}

/// An answer from a stored response whose body may still be coming in; `None` when that needs a
/// reader and there is none.
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
    // A part on its way in is the answer to the request that asked for it, and to no other.
    let answer = if head.parts().is_some() { whole() } else { answer_head(asked, head, len, now) };
    // Several parts would need several readers: the whole is an answer, too (RFC 9110 §14.2).
    let answer = if matches!(answer.body(), Part::Multipart(_)) { whole() } else { answer };
    let (parts, part) = answer.into_parts();
    let body = match part {
        Part::None => ResponseBody::empty(),
        Part::Range(first, end) => ResponseBody::fill_range(reader?, first, end),
        Part::Whole | Part::Multipart(_) => ResponseBody::fill(reader?),
    };
    Some(Response::from_parts(parts, body))
}

/// The bytes of a stored body that answer a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// None: there is no body, or it is empty.
    None,
    /// All of them.
    Whole,
    /// Those from the first position up to the second.
    Range(u64, u64),
    /// Several such ranges, each behind its text, and the text that ends them.
    Multipart(Box<Multipart>),
}

/// See [`Part::Multipart`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Multipart {
    /// The ranges.
    pub ranges: Vec<(u64, u64)>,
    /// The text before each.
    pub before: Vec<Vec<u8>>,
    /// The text after the last.
    pub end: Vec<u8>,
    /// The length of it all.
    pub len: u64,
}

/// The response as it is stored, and its age.
fn whole_of(asked: ClientRequest<'_>, head: &StoredHead, now: Timestamp) -> Response<Part> {
    let mut response = Response::new(if *asked.method == Method::HEAD { Part::None } else { Part::Whole });
    *response.status_mut() = head.status;
    *response.headers_mut() = fields_of(head, now);
    response
}

fn fields_of(head: &StoredHead, now: Timestamp) -> HeaderMap {
    let mut fields = head.fields.to_map();
    fields.insert(header::AGE, HeaderValue::from(head.freshness.age_seconds(now)));
    fields
}

/// The head of an answer from a stored response of `len` bytes, and what of its body goes with it: the
/// whole, a range, several, or nothing (304, 416).
pub(crate) fn answer_head(
    asked: ClientRequest<'_>,
    head: &StoredHead,
    len: Option<u64>,
    now: Timestamp,
) -> Response<Part> {
    let ClientRequest { method, fields, present } = asked;
    // RFC 9110 §13.2.1: preconditions are for what would otherwise succeed.
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
            let bytes = Part::Range(slice.offset, slice.offset + (end - first));
            make_partial(&mut response, first, end, parts.complete_len(), bytes);
        }
        return response;
    }
    match range::requested(fields, len) {
        RangeRequest::Whole => {}
        RangeRequest::Part(first, end) => make_partial(&mut response, first, end, len, Part::Range(first, end)),
        RangeRequest::Parts(ranges) => make_multipart(&mut response, ranges, len),
        RangeRequest::Unsatisfiable => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            response.headers_mut().insert(header::CONTENT_RANGE, range::content_range_unsatisfied(len));
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(0));
            *response.body_mut() = Part::None;
        }
    }
    response
}

/// Makes a response the 206 with the positions from `first` up to `end` of `complete`.
fn make_partial(response: &mut Response<Part>, first: u64, end: u64, complete: u64, bytes: Part) {
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    partial::remove_digests(response.headers_mut());
    response.headers_mut().insert(header::CONTENT_RANGE, range::content_range(first, end, complete));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(end - first));
    *response.body_mut() = bytes;
}

/// Makes a response the 206 with several ranges of `len` bytes (RFC 9110 §15.3.7.2).
fn make_multipart(response: &mut Response<Part>, ranges: Vec<(u64, u64)>, len: u64) {
    // Nobody who writes a body knows the boundary beforehand.
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
    *response.body_mut() = Part::Multipart(Box::new(Multipart { ranges, before, end, len: total }));
}

/// RFC 9110 §15.4.5: a 304 has these fields of the response that it stands for.
fn not_modified(head: &StoredHead, age: HeaderValue) -> Response<Part> {
    const KEPT: [http::HeaderName; 7] = [
        header::CACHE_CONTROL,
        header::CONTENT_LOCATION,
        header::DATE,
        header::ETAG,
        header::EXPIRES,
        header::VARY,
        header::LAST_MODIFIED,
    ];
    let mut response = Response::new(Part::None);
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

/// Every response has an `Age`. One that comes straight from the origin is as old as it says.
pub(crate) fn add_age(fields: &mut HeaderMap) {
    fields.entry(header::AGE).or_insert_with(|| const { HeaderValue::from_static("0") });
}

/// The origin's response to a request that was forwarded because of `fwd`, as it is.
pub(crate) fn passed(mut response: Response<UpstreamBody>, fwd: Fwd) -> Answer {
    add_age(response.headers_mut());
    (CacheStatus::forward(fwd), response.map(ResponseBody::upstream))
}
