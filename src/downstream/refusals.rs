//! Requests that are refused before they can be parsed: counted by reason, and logged now and then.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use tracing::info;

use super::proxy_protocol::{self, Fault};
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
        self.note_because(why, peer, bytes, "");
    }

    /// Counts and logs a connection of `peer` that should have begun with a PROXY header. One that ends before its first
    /// byte only tests whether the port is open, and is not counted.
    pub(super) fn note_proxy_header(&self, peer: Option<IpAddr>, fault: &Fault) {
        if let Fault::Bad { read, .. } = fault {
            self.note_because(Unparsed::ProxyHeader, peer, read, &format!(": {fault}"));
        }
    }

    /// Counts and logs, with `because` behind the line's first words.
    fn note_because(&self, why: Unparsed, peer: Option<IpAddr>, bytes: &[u8], because: &str) {
        self.metrics.unparsed(why);
        let Some(turn) = self.told.turn(why, self.clock.now().as_millis()) else { return };
        let peer = peer.map_or_else(|| "unix".to_owned(), |ip| ip.to_canonical().to_string());
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let begins = String::from_utf8_lossy(&line[..line.len().min(SHOWN)]);
        // A TLS record of type handshake, version 3.
        let is_proxied = bytes.starts_with(proxy_protocol::PREFIX) || bytes.starts_with(proxy_protocol::SIGNATURE);
        let hint = match why {
            _ if bytes.starts_with(&[0x16, 3]) => "; it looks like TLS",
            Unparsed::Malformed if is_proxied => {
                "; it looks like a PROXY header, which server.proxy_protocol does not allow there"
            }
            _ => "",
        };
        info!(
            peer,
            reason = why.as_str(),
            begins = Some(&*begins).filter(|begins| !begins.is_empty()),
            "a request was refused before it could be read{because}{hint}{}",
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

/// Makes the answer to a request of HTTP/2 that is not looked at.
pub(super) fn unfit_request(status: StatusCode, sentence: &'static str) -> Response<ResponseBody> {
    refusal(status, "larder; detail=bad-request", sentence)
}

/// Makes the answer to a request for a tunnel that the application answers by a page.
pub(super) fn no_tunnel() -> Response<ResponseBody> {
    const SENTENCE: &str = "the application does not make a tunnel of this request\n";
    refusal(StatusCode::BAD_GATEWAY, "larder; fwd=bypass; detail=no-tunnel", SENTENCE)
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
