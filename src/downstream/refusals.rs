//! Requests that are refused before they can be parsed: counted by reason, and logged now and then.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use tracing::info;

use crate::base::log::OncePerMinute;
use crate::base::{Clock, Metrics, Unparsed};
use crate::respond::ResponseBody;

/// Counts and logs requests that are refused before they can be parsed.
#[derive(Debug)]
pub(crate) struct Refusals {
    metrics: Arc<Metrics>,
    clock: Clock,
    told: OncePerMinute<Unparsed>,
}

/// The most bytes of such a request that are logged.
const SHOWN: usize = 80;

impl Refusals {
    /// Makes a counter that has logged nothing yet.
    pub(crate) fn new(metrics: Arc<Metrics>, clock: Clock) -> Self {
        Self { metrics, clock, told: OncePerMinute::new() }
    }

    /// Counts a refused request of `peer` that begins with `bytes`. Logs one a minute for each reason.
    pub(crate) fn note(&self, why: Unparsed, peer: Option<IpAddr>, bytes: &[u8]) {
        self.metrics.unparsed(why);
        let Some(turn) = self.told.turn(why, self.clock.now().as_millis()) else { return };
        let peer = peer.map_or_else(|| "unix".to_owned(), |ip| ip.to_canonical().to_string());
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let begins = String::from_utf8_lossy(&line[..line.len().min(SHOWN)]);
        // A TLS record of type handshake, version 3.
        let hint = if bytes.starts_with(&[0x16, 3]) { "; it looks like TLS" } else { "" };
        info!(
            peer,
            reason = why.as_str(),
            begins = Some(&*begins).filter(|begins| !begins.is_empty()),
            "a request was refused before it could be read{hint}{}",
            turn.in_words()
        );
    }
}

/// Reports refused requests of one connection.
#[derive(Clone, Debug)]
pub(crate) struct Witness {
    /// Counts those of its listener.
    pub refusals: Arc<Refusals>,
    /// The client's address; `None`: the connection is a unix socket.
    pub peer: Option<IpAddr>,
}

/// Makes the answer to a request with both Content-Length and Transfer-Encoding. hyper ends the connection with it.
pub(crate) fn conflicting_framing() -> Response<ResponseBody> {
    const SENTENCE: &str = "the request has both Content-Length and Transfer-Encoding\n";
    let mut response = refusal(StatusCode::BAD_REQUEST, "larder; detail=bad-request", SENTENCE);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Makes the answer to a request of HTTP/2 that has more fields than `server.max_headers`.
pub(super) fn too_many_fields() -> Response<ResponseBody> {
    const SENTENCE: &str = "the request has more fields than this server takes\n";
    refusal(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "larder; detail=bad-request", SENTENCE)
}

/// Makes the answer to a request past `server.max_requests`.
pub(super) fn too_many_requests() -> Response<ResponseBody> {
    const SENTENCE: &str = "too many requests are under way here\n";
    let mut response = refusal(StatusCode::SERVICE_UNAVAILABLE, "larder; detail=too-many-requests", SENTENCE);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(1));
    response
}

fn refusal(status: StatusCode, cache_status: &'static str, sentence: &'static str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::whole(Bytes::from_static(sentence.as_bytes())));
    *response.status_mut() = status;
    let fields = response.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert(header::AGE, HeaderValue::from_static("0"));
    fields.insert("cache-status", HeaderValue::from_static(cache_status));
    response
}
