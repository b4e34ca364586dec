//! The requests of HTTP/2 as the proxy takes them, and its responses as HTTP/2 sends them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use h2::ext::Protocol;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, StatusCode, Uri, Version};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;

use super::outlet::Outlet;
use super::tunnel::{Tunnel, promise};
use crate::rfc9111::fields;
use crate::upstream::{ClientBody, InformationalSender as _};

/// A request as the proxy takes it.
pub(super) struct Received {
    pub(super) request: Request<ClientBody>,
    /// What becomes of the stream if it is to be a tunnel.
    pub(super) upgrade: Option<Upgrade>,
}

/// The stream of a request that asks for a tunnel.
pub(super) struct Upgrade {
    pub(super) receive: RecvStream,
    pub(super) tunnel: oneshot::Sender<Tunnel>,
}

/// Makes of a request of HTTP/2 what the proxy takes.
pub(super) fn received(request: Request<RecvStream>, outlet: &Arc<Outlet>, stream: u64) -> Received {
    let (mut parts, body) = request.into_parts();
    join_cookies(&mut parts.headers);
    if let Some(target) = escaped_target(&parts.uri) {
        parts.uri = target;
    }
    if parts.method == Method::CONNECT
        && let Some(protocol) = parts.extensions.remove::<Protocol>()
    {
        return extended_connect(parts, body, protocol.as_str());
    }
    if body.is_end_stream() {
        return Received { request: Request::from_parts(parts, ClientBody::none()), upgrade: None };
    }
    let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let expects = fields::has_member(&parts.headers, &header::EXPECT, "100-continue");
    let expects = expects.then(|| {
        outlet.open(stream);
        (Arc::clone(outlet), stream)
    });
    let body = ClientBody::new(Http2Body { receive: body, left: length, expects });
    Received { request: Request::from_parts(parts, body), upgrade: None }
}

/// Makes of an extended CONNECT (RFC 8441 §4) the request to upgrade that HTTP/1.1 has for the same.
fn extended_connect(mut parts: http::request::Parts, receive: RecvStream, protocol: &str) -> Received {
    let Ok(protocol) = HeaderValue::from_str(protocol) else {
        return Received { request: Request::from_parts(parts, ClientBody::none()), upgrade: None };
    };
    parts.method = Method::GET;
    parts.version = Version::HTTP_11;
    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    // RFC 8441 §5: HTTP/2 has no key, since nobody could take the request for another.
    parts.headers.insert(header::SEC_WEBSOCKET_KEY, websocket_key());
    parts.headers.insert(header::UPGRADE, protocol);
    if let Some(authority) = parts.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok())
    {
        parts.headers.entry(header::HOST).or_insert(authority);
    }
    let (tunnel, pending) = promise();
    parts.extensions.insert(pending);
    let upgrade = Upgrade { receive, tunnel };
    Received { request: Request::from_parts(parts, ClientBody::none()), upgrade: Some(upgrade) }
}

/// Makes the random key of a request for a WebSocket: 16 bytes in Base64 (RFC 6455 §4.1).
fn websocket_key() -> HeaderValue {
    const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = fastrand::u128(..);
    let mut key: Vec<u8> = (0..21).map(|n| SIGNS[((bits >> (122 - 6 * n)) & 63) as usize]).collect();
    // The last sign has the two bits that are left.
    key.push(SIGNS[((bits & 3) << 4) as usize]);
    key.extend_from_slice(b"==");
    HeaderValue::from_bytes(&key).unwrap_or(HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="))
}

/// Joins the parts of a `Cookie` field that HTTP/2 may split (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(header::COOKIE).iter();
    if cookies.next().is_none() || cookies.next().is_none() {
        return;
    }
    let parts: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&parts.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Escapes the signs in a target that `http` takes and RFC 3986 does not, as is done to those of HTTP/1.
fn escaped_target(uri: &Uri) -> Option<Uri> {
    let target = uri.path_and_query()?.as_str();
    if !target.bytes().any(|byte| matches!(byte, b'"' | b'`' | b'<' | b'>')) {
        return None;
    }
    let mut escaped = String::with_capacity(target.len() + 16);
    for sign in target.chars() {
        match sign {
            '"' => escaped.push_str("%22"),
            '`' => escaped.push_str("%60"),
            '<' => escaped.push_str("%3C"),
            '>' => escaped.push_str("%3E"),
            sign => escaped.push(sign),
        }
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(escaped).ok()?);
    Uri::from_parts(parts).ok()
}

/// Makes the head of a response one that HTTP/2 may have (RFC 9113 §8.2.2). `length` is that of its body, if known.
pub(super) fn fit(headers: &mut HeaderMap, length: Option<u64>) {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
    for name in [header::CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
        headers.remove(name);
    }
    if let Some(length) = length
        && !headers.contains_key(header::CONTENT_LENGTH)
    {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// Returns whether responses with this status have no content (RFC 9110 §6.4.1).
pub(super) fn has_no_content(status: StatusCode) -> bool {
    status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// The content of a request.
struct Http2Body {
    receive: RecvStream,
    /// The bytes to come, if that is known. `h2` resets a stream that has more or fewer.
    left: Option<u64>,
    /// The stream that waits for leave to send (RFC 9110 §10.1.1).
    expects: Option<(Arc<Outlet>, u64)>,
}

impl Body for Http2Body {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let this = self.get_mut();
        if let Some((outlet, stream)) = this.expects.take() {
            outlet.send(stream, StatusCode::CONTINUE, &HeaderMap::new());
        }
        // Trailers are not passed on.
        Poll::Ready(match ready!(this.receive.poll_data(cx)) {
            None => None,
            Some(Ok(data)) => {
                // What is read is held by whoever reads it, which has bounds of its own.
                let _ = this.receive.flow_control().release_capacity(data.len());
                this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
                Some(Ok(Frame::data(data)))
            }
            Some(Err(error)) => Some(Err(error)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.receive.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map(SizeHint::with_exact).unwrap_or_default()
    }
}
