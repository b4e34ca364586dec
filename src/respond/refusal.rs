//! The one table of answers that are made here in place of the application's, and never stored.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};

use super::answers::Answer;
use super::body::ResponseBody;
use crate::rfc9111::cache_status::{CacheStatus, Fwd};
use crate::upstream::{Fault, UpstreamError};

/// The reason why a request gets no answer of the application's. Each has a row in [`Refusal::row`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// CONNECT or TRACE.
    Method,
    /// PURGE, on a public listener.
    Purge,
    /// A transfer coding that is not known here.
    TransferCoding,
    /// A target that is neither a path nor a URL.
    Target,
    /// More than one Host.
    Hosts,
    /// No Host.
    NoHost,
    /// A Host that is no host name.
    Host,
    /// A Host that is not the `:authority` of the same request.
    OtherHost,
    /// An X-Forwarded-Host that is no host name.
    ForwardedHost,
    /// A request that this process has forwarded before (RFC 9110 §7.6.3).
    Loop,
    /// `only-if-cached`, where nothing stored will do.
    OnlyIfCached,
    /// Too much is under way.
    Overloaded,
    /// A fault of the request's body.
    Body(Fault),
    /// No connection to the application could be made.
    Unreachable,
    /// No connection was made in time.
    ConnectTimeout,
    /// No answer came in time.
    ResponseTimeout,
    /// The answer broke off.
    Broken,
    /// The answer is not HTTP.
    Malformed,
    /// The head of the answer is too large.
    LargeHead,
    /// The answer has too many fields.
    ManyFields,
    /// The length of the answer is no number.
    Length,
    /// The answer is one that can't be passed on.
    Unsupported(&'static str),
    /// The application is known to be down.
    Down,
    /// The application is known to be slow.
    Slow,
    /// The request was lost here.
    RequestLost,
    /// The response was lost here.
    ResponseLost,
}

/// One row: the status, the `detail` of `Cache-Status`, and a sentence for the client.
struct Row(u16, &'static str, &'static str);

impl Refusal {
    const fn row(self) -> Row {
        match self {
            Self::Method => Row(405, "method-not-allowed", "this server does not answer CONNECT or TRACE"),
            Self::Purge => Row(405, "method-not-allowed", "purges are taken on the admin listener, and not here"),
            Self::TransferCoding => {
                Row(501, "transfer-coding", "this server knows no transfer coding other than chunked, once")
            }
            Self::Target => Row(400, "bad-target", "the request's target is neither a path nor a URL"),
            Self::Hosts => Row(400, "bad-host", "the request has more than one Host field"),
            Self::NoHost => Row(400, "bad-host", "the request has no Host field"),
            Self::Host => Row(400, "bad-host", "the Host field is not a host name"),
            Self::OtherHost => Row(400, "bad-host", "the Host field and :authority name two hosts"),
            Self::ForwardedHost => Row(400, "bad-host", "the X-Forwarded-Host field is not a host name"),
            Self::Loop => Row(508, "loop", "this request has passed this server before: upstream.url leads back to it"),
            Self::OnlyIfCached => {
                Row(504, "only-if-cached", "nothing stored answers this request, and it asks for nothing else")
            }
            Self::Overloaded => Row(503, "overloaded", "this server has too much under way; try again shortly"),
            Self::Body(Fault::Broken) => Row(400, "request-body", "the request's body broke off"),
            Self::Body(Fault::TooSlow) => Row(408, "request-timeout", "the request's body did not arrive in time"),
            Self::Body(Fault::NoRoom) => Row(503, "overloaded", "this server has no room for the request's body now"),
            Self::Body(Fault::TooLarge) => {
                Row(413, "request-too-large", "the request's body is larger than this server takes")
            }
            Self::Body(Fault::Lost) => {
                Row(500, "request-body-lost", "the request's body can't be read back from its temporary file")
            }
            Self::Unreachable => Row(502, "connect-failed", "the application can't be reached"),
            Self::ConnectTimeout => Row(504, "connect-timeout", "the application can't be reached in time"),
            Self::ResponseTimeout => Row(504, "response-timeout", "the application did not answer in time"),
            Self::Broken => Row(502, "origin-broken", "the application's answer broke off"),
            Self::Malformed => Row(502, "origin-broken", "the application's answer is not one that HTTP allows"),
            Self::LargeHead => Row(
                502,
                "origin-head-too-large",
                "the head of the application's answer is larger than this server takes",
            ),
            Self::ManyFields => {
                Row(502, "origin-too-many-fields", "the application's answer has more fields than this server takes")
            }
            Self::Length => {
                Row(502, "origin-broken", "the Content-Length of the application's answer is not one number")
            }
            Self::Unsupported(why) => Row(502, "origin-unsupported", why),
            Self::Down => Row(502, "origin-down", "the application can't be reached"),
            Self::Slow => Row(504, "origin-down", "the application does not answer in time"),
            Self::RequestLost => Row(502, "internal", "the request to the application was lost"),
            Self::ResponseLost => Row(502, "internal", "the response was lost"),
        }
    }

    /// Returns the seconds after which the client may try again, if that is known.
    const fn retry_after(self) -> Option<u32> {
        match self {
            Self::Overloaded | Self::Body(Fault::NoRoom) | Self::Down | Self::Slow => Some(1),
            _ => None,
        }
    }

    /// Returns whether the connection ends with the answer: the client may still be sending what nobody reads.
    const fn ends_connection(self) -> bool {
        matches!(self, Self::Body(_))
    }

    /// Makes the answer to a request that is not forwarded.
    pub(crate) fn answer(self) -> Answer {
        let Row(_, detail, _) = self.row();
        (CacheStatus::refused(detail), self.response())
    }

    /// Makes the answer to a request that was forwarded because of `fwd`, and failed here.
    pub(crate) fn failed(self, fwd: Fwd) -> Answer {
        let Row(_, _, sentence) = self.row();
        self.failed_of(fwd, Cause::Internal(sentence))
    }

    fn failed_of(self, fwd: Fwd, cause: Cause) -> Answer {
        let Row(_, detail, _) = self.row();
        let mut response = self.response();
        response.extensions_mut().insert(cause);
        (CacheStatus::forward(fwd).with_detail(detail), response)
    }

    fn response(self) -> Response<ResponseBody> {
        let Row(status, _, sentence) = self.row();
        let mut response = Response::new(ResponseBody::whole(Bytes::from(format!("{sentence}\n"))));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let fields = response.headers_mut();
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        fields.insert(header::AGE, HeaderValue::from(0));
        if status == 405 {
            // RFC 9110 §15.5.6 requires it. The methods of this resource are not known here, so it lists those that
            // are forwarded.
            fields.insert(header::ALLOW, HeaderValue::from_static(METHODS));
        }
        if self.ends_connection() {
            fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(seconds) = self.retry_after() {
            fields.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// The methods that are forwarded.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

impl From<&UpstreamError> for Refusal {
    fn from(error: &UpstreamError) -> Self {
        match error {
            UpstreamError::Connect(_) => Self::Unreachable,
            UpstreamError::ConnectTimeout => Self::ConnectTimeout,
            UpstreamError::ResponseTimeout => Self::ResponseTimeout,
            UpstreamError::Broken(_) => Self::Broken,
            UpstreamError::Malformed(_) => Self::Malformed,
            UpstreamError::TooLargeHead(_) => Self::LargeHead,
            UpstreamError::TooManyFields(_) => Self::ManyFields,
            UpstreamError::InvalidLength => Self::Length,
            UpstreamError::Unsupported(why) => Self::Unsupported(why),
            UpstreamError::RequestBody(fault) => Self::Body(*fault),
            UpstreamError::Down { was_slow: false } => Self::Down,
            UpstreamError::Down { was_slow: true } => Self::Slow,
        }
    }
}

/// The reason why an answer is a 502 or 504 made here. Goes with the response to the log.
#[derive(Clone, Debug)]
pub(crate) enum Cause {
    /// The origin gave no answer.
    Upstream(UpstreamError),
    /// The answer was lost here.
    Internal(&'static str),
}

/// Makes the answer to a request that was forwarded because of `fwd`, and failed with `error`.
pub(crate) fn unanswered(error: &UpstreamError, fwd: Fwd) -> Answer {
    Refusal::from(error).failed_of(fwd, Cause::Upstream(error.clone()))
}

/// Makes the answer that sends a client to `location`, with the same method and content.
pub(crate) fn redirect(location: &str) -> Answer {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    let fields = response.headers_mut();
    if let Ok(location) = HeaderValue::from_str(location) {
        fields.insert(header::LOCATION, location);
    }
    fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert(header::AGE, HeaderValue::from(0));
    (CacheStatus::refused("https"), response)
}

/// Makes the answer to a CA that checks who answers for a name (RFC 8555 §8.3).
pub(crate) fn challenge(authorization: Bytes) -> Answer {
    let mut response = Response::new(ResponseBody::whole(authorization));
    let fields = response.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert(header::AGE, HeaderValue::from(0));
    (CacheStatus::refused("acme-challenge"), response)
}

/// Makes the answer to an OPTIONS request that may be forwarded no further: the methods that are forwarded.
pub(crate) fn options() -> Answer {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(METHODS));
    response.headers_mut().insert(header::AGE, HeaderValue::from(0));
    (CacheStatus::refused("max-forwards"), response)
}
