//! The access log: one line a request, written when its response has ended.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, Uri};
use tracing::info;

use super::target::origin_form;
use crate::base::Stopwatch;
use crate::base::log::{self, cut};
use crate::respond::ResponseBody;
use crate::rfc9111::cache_status::CacheStatus;
use crate::rfc9111::storage::NotStorable;
use crate::upstream::ClientBody;
use crate::upstream::forwarding::{Peer, Trust};

/// The id of a request, shared by its lines. It is made when the first of them is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestId(u128);

impl RequestId {
    /// Returns an id that no other request has.
    pub(super) fn random() -> Self {
        Self(fastrand::u128(..))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A line of the access log, before the response has ended.
#[derive(Debug)]
pub(super) struct AccessLine {
    client: Option<IpAddr>,
    peer: Option<IpAddr>,
    is_http2: bool,
    method: Method,
    uri: Uri,
    host: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    referer: Option<HeaderValue>,
    watch: Stopwatch,
}

impl AccessLine {
    /// Notes the client, as far as trusted proxies name it, and the request.
    pub(super) fn begin(trust: &Trust, peer: &Peer, request: &Request<ClientBody>) -> Self {
        let fields = request.headers();
        Self {
            client: trust.client(peer, fields),
            peer: peer.ip,
            is_http2: peer.is_http2,
            method: request.method().clone(),
            uri: origin_form(request.uri()).into_owned(),
            host: host(request),
            user_agent: fields.get(header::USER_AGENT).cloned(),
            referer: fields.get(header::REFERER).cloned(),
            watch: Stopwatch::start(),
        }
    }

    /// Writes the line when the response has been sent or has broken off.
    pub(super) fn finish(self, response: Response<ResponseBody>, status: &CacheStatus) -> Response<ResponseBody> {
        let code = response.status().as_u16();
        let (cache_status, not_stored) = (status.to_value(None), status.not_stored.map(NotStorable::as_str));
        // A response that failed has an id already, which the line with the reason shows.
        let id = response.extensions().get::<RequestId>().copied().unwrap_or_else(RequestId::random);
        response.map(|body| {
            body.on_end(move |bytes| {
                let ip = |ip: Option<IpAddr>| ip.map_or_else(|| "unix".to_owned(), |ip| ip.to_string());
                let uri = self.uri.to_string();
                info!(
                    target: log::ACCESS,
                    request_id = %id,
                    client = ip(self.client),
                    peer = ip(self.peer),
                    protocol = if self.is_http2 { "HTTP/2" } else { "HTTP/1" },
                    method = &*cut(Cow::Borrowed(self.method.as_str())),
                    host = text(self.host.as_ref()).as_deref(),
                    uri = &*cut(Cow::Borrowed(&uri)),
                    status = code,
                    bytes,
                    duration_us = u64::try_from(self.watch.elapsed().as_micros()).unwrap_or(u64::MAX),
                    cache_status = cache_status.to_str().unwrap_or_default(),
                    not_stored,
                    user_agent = text(self.user_agent.as_ref()).as_deref(),
                    referer = text(self.referer.as_ref()).as_deref(),
                    "request"
                );
            })
        })
    }
}

/// Returns the host that a request names. HTTP/2 has it in the target, and so has HTTP/1.1 in absolute form.
fn host(request: &Request<ClientBody>) -> Option<HeaderValue> {
    match request.uri().authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => request.headers().get(header::HOST).cloned(),
    }
}

/// Returns a field's value as text, with the replacement character for what is not UTF-8.
fn text(value: Option<&HeaderValue>) -> Option<Cow<'_, str>> {
    value.map(|value| cut(String::from_utf8_lossy(value.as_bytes())))
}
