//! The requests of HTTP/2 as the proxy takes them, and its responses as HTTP/2 sends them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use h2::ext::Protocol;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;

use super::outlet::Outlet;
use super::tunnel::{Tunnel, promise};
use crate::base::Unparsed;
use crate::downstream::refusals::unfit_request;
use crate::respond::ResponseBody;
use crate::rfc9111::fields;
use crate::upstream::{ClientBody, InformationalSender as _};

/// A request as the proxy takes it.
pub(super) struct Received {
    pub(super) request: Request<ClientBody>,
    /// The two ends of a tunnel, if the request asks for one.
    pub(super) upgrade: Option<Upgrade>,
}

/// The stream of a request that asks for a tunnel.
pub(super) struct Upgrade {
    pub(super) receive: RecvStream,
    pub(super) tunnel: oneshot::Sender<Tunnel>,
}

/// The reason why a request of HTTP/2 is not even looked at. `h2` has refused others by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// It has more fields than `server.max_headers`.
    ManyFields,
    /// The value of a field begins or ends with a blank (RFC 9113 §8.2.1).
    Blanks,
    /// Its `Content-Length` is empty, or there are several.
    Length,
    /// `:path` does not begin with a slash (RFC 9113 §8.3.1).
    Path,
    /// `Host` and `:authority` of an extended CONNECT differ.
    OtherHost,
    /// It asks for a tunnel of another protocol than WebSocket.
    Protocol,
}

impl Unfit {
    /// Returns the reason that it is counted under.
    pub(super) fn reason(self) -> Unparsed {
        match self {
            Self::ManyFields => Unparsed::HeadTooLarge,
            Self::Length => Unparsed::Framing,
            Self::Blanks | Self::Path | Self::OtherHost | Self::Protocol => Unparsed::Malformed,
        }
    }

    /// Makes the answer to such a request.
    pub(super) fn answer(self) -> Response<ResponseBody> {
        let (status, sentence) = match self {
            Self::ManyFields => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the request has more fields than this server takes\n")
            }
            Self::Blanks => (StatusCode::BAD_REQUEST, "the value of a field begins or ends with a blank\n"),
            Self::Length => (StatusCode::BAD_REQUEST, "the request's Content-Length is not one number\n"),
            Self::Path => (StatusCode::BAD_REQUEST, "the request's target does not begin with a slash\n"),
            Self::OtherHost => (StatusCode::BAD_REQUEST, "the request names two hosts\n"),
            Self::Protocol => (StatusCode::NOT_IMPLEMENTED, "this server makes tunnels for WebSocket alone\n"),
        };
        unfit_request(status, sentence)
    }
}

/// Returns why a request is not looked at, if it is not. `most` is the number of fields that it may have.
pub(super) fn unfit<B>(request: &Request<B>, most: usize) -> Option<Unfit> {
    let fields = request.headers();
    if fields.len() > most {
        // The parts of a split `Cookie` are one field (RFC 9113 §8.2.3).
        let crumbs = fields.get_all(header::COOKIE).iter().count().saturating_sub(1);
        if fields.len() - crumbs > most {
            return Some(Unfit::ManyFields);
        }
    }
    let mut has_length = false;
    for (name, value) in fields {
        if *name == header::CONTENT_LENGTH && (value.is_empty() || std::mem::replace(&mut has_length, true)) {
            // `h2` takes an empty one for 0, and an application may take it for anything.
            return Some(Unfit::Length);
        }
        match value.as_bytes() {
            [b' ' | b'\t', ..] | [.., b' ' | b'\t'] => return Some(Unfit::Blanks),
            _ => {}
        }
    }
    if request.uri().path_and_query().is_some_and(|target| !has_path(target)) {
        return Some(Unfit::Path);
    }
    let protocol = request.extensions().get::<Protocol>()?;
    if !protocol.as_str().eq_ignore_ascii_case("websocket") {
        return Some(Unfit::Protocol);
    }
    let authority = request.uri().authority()?.as_str();
    let mut hosts = fields.get_all(header::HOST).iter();
    hosts.any(|host| !host.as_bytes().eq_ignore_ascii_case(authority.as_bytes())).then_some(Unfit::OtherHost)
}

/// Returns whether a target has a path. One that is a fragment and nothing else is empty, and reads as a slash.
fn has_path(target: &PathAndQuery) -> bool {
    const ROOT: &str = "/";
    match target.as_str() {
        ROOT => *target == PathAndQuery::from_static(ROOT),
        target => target.starts_with(['/', '*']),
    }
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
        parts.headers.insert(header::HOST, authority);
    }
    if let Some(target) = parts.uri.path_and_query() {
        parts.uri = Uri::from(target.clone());
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
        Poll::Ready(match ready!(this.receive.poll_data(cx)) {
            // Trailers are not passed on, but tell that there is more than the content.
            None => ready!(this.receive.poll_trailers(cx)).map(|trailers| trailers.map(Frame::trailers)).transpose(),
            Some(Ok(data)) => {
                // Gives the window back at once: the reader bounds what it holds.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, fields: &[(&'static str, &'static str)]) -> Request<()> {
        let mut request = Request::new(());
        *request.uri_mut() = uri.parse().expect("a target");
        for (name, value) in fields {
            request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        request
    }

    #[test]
    fn what_http2_does_not_allow_is_unfit() {
        const SITE: &str = "http://site.example/a";
        for (uri, fields, expected) in [
            (SITE, &[][..], None),
            (SITE, &[("a", ""), ("b", "x y"), ("content-length", "5")], None),
            (SITE, &[("a", " x")], Some(Unfit::Blanks)),
            (SITE, &[("a", "x\t")], Some(Unfit::Blanks)),
            (SITE, &[("a", " ")], Some(Unfit::Blanks)),
            (SITE, &[("content-length", "")], Some(Unfit::Length)),
            (SITE, &[("content-length", "0"), ("content-length", "0")], Some(Unfit::Length)),
            ("http://site.example/", &[], None),
            (SITE, &[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")], Some(Unfit::ManyFields)),
            (SITE, &[("a", "1"), ("b", "2"), ("cookie", "3"), ("cookie", "4"), ("cookie", "5")], None),
            (SITE, &[("a", "1"), ("a", "2"), ("a", "3"), ("cookie", "4")], Some(Unfit::ManyFields)),
            ("*", &[], None),
            ("/a", &[("host", "site.example")], None),
        ] {
            assert_eq!(unfit(&request(uri, fields), 3), expected, "{uri} {fields:?}");
        }
    }

    #[test]
    fn a_target_has_a_path() {
        for (target, expected) in
            [("/", true), ("/a?b", true), ("*", true), ("/#a", true), ("?a", false), ("#a", false), ("?", false)]
        {
            assert_eq!(has_path(&target.parse().expect("a target")), expected, "{target}");
        }
    }

    #[test]
    fn tunnels_are_for_websocket_and_for_one_host() {
        for (protocol, fields, expected) in [
            ("websocket", &[][..], None),
            ("WebSocket", &[("host", "SITE.example")], None),
            ("websocket", &[("host", "evil.example")], Some(Unfit::OtherHost)),
            ("h2c", &[], Some(Unfit::Protocol)),
            ("websocket, h2c", &[], Some(Unfit::Protocol)),
            ("", &[], Some(Unfit::Protocol)),
        ] {
            let mut request = request("http://site.example/ws", fields);
            request.extensions_mut().insert(Protocol::from(protocol));
            assert_eq!(unfit(&request, 3), expected, "{protocol} {fields:?}");
        }
    }

    #[test]
    fn cookies_are_joined_and_targets_escaped() {
        let mut fields = request("/", &[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")]).headers().clone();
        join_cookies(&mut fields);
        assert_eq!(fields.get_all(header::COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
        let escaped = |target: &str| escaped_target(&target.parse().expect("a target")).map(|uri| uri.to_string());
        assert_eq!(escaped("http://site.example/a\"b?`"), Some("http://site.example/a%22b?%60".into()));
        assert_eq!(escaped("http://site.example/a%22b?c"), None);
    }

    #[test]
    fn a_websocket_key_is_sixteen_bytes_in_base64() {
        let keys: Vec<HeaderValue> = (0..100).map(|_| websocket_key()).collect();
        for key in &keys {
            let (signs, padding) = key.as_bytes().split_at(22);
            assert!(signs.iter().all(|sign| sign.is_ascii_alphanumeric() || matches!(sign, b'+' | b'/')), "{key:?}");
            assert!(padding == b"==" && matches!(signs[21], b'A' | b'Q' | b'g' | b'w'), "{key:?}");
        }
        assert!(keys.windows(2).all(|two| two[0] != two[1]));
    }
}
