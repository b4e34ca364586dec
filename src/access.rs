//! The access log: one line a request, written when its response has ended.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, Uri};
use hyper::body::Incoming;
use ipnet::IpNet;
use tracing::info;

use crate::body::ResponseBody;
use crate::clock::Stopwatch;
use crate::forwarding::Peer;
use crate::log;
use crate::rfc9111::cache_status::CacheStatus;
use crate::rfc9111::fields;

/// The most bytes of a field's value, and of a target, that a line has.
const MAX_VALUE: usize = 1024;

/// The number of a request, which its lines have in common. It is made when the first of them is.
#[derive(Clone, Copy, Debug)]
pub struct RequestId(u128);

impl RequestId {
    /// One that no other request has.
    pub fn random() -> Self {
        Self(fastrand::u128(..))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The access log, where there is one.
#[derive(Debug)]
pub struct AccessLog {
    /// Proxies in front of this one, whose word on the client counts.
    trusted: Vec<IpNet>,
}

/// A line that is being put together.
#[derive(Debug)]
pub struct Line {
    client: Option<IpAddr>,
    peer: Option<IpAddr>,
    method: Method,
    uri: Uri,
    host: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    referer: Option<HeaderValue>,
    watch: Stopwatch,
}

impl AccessLog {
    /// One that believes proxies in these networks.
    pub fn new(trusted: Vec<IpNet>) -> Self {
        Self { trusted }
    }

    /// Notes who asked for what.
    pub fn begin(&self, peer: &Peer, request: &Request<Incoming>) -> Line {
        let fields = request.headers();
        let named = if peer.trusted { client_of(fields, &self.trusted) } else { None };
        Line {
            client: named.or(peer.ip),
            peer: peer.ip,
            method: request.method().clone(),
            uri: request.uri().clone(),
            host: fields.get(header::HOST).cloned(),
            user_agent: fields.get(header::USER_AGENT).cloned(),
            referer: fields.get(header::REFERER).cloned(),
            watch: Stopwatch::start(),
        }
    }
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The client, as trusted proxies name it: the rightmost address that is none of theirs. What stands left of
/// that, or of what is no address, is anybody's claim.
fn client_of(request: &HeaderMap, trusted: &[IpNet]) -> Option<IpAddr> {
    let named: Vec<&[u8]> = fields::members(request, &X_FORWARDED_FOR).collect();
    let mut client = None;
    for member in named.into_iter().rev() {
        let Some(ip) = std::str::from_utf8(member).ok().and_then(address) else { break };
        client = Some(ip);
        if !trusted.iter().any(|net| net.contains(&ip)) {
            break;
        }
    }
    client
}

/// An address, which may have a port.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let ip = text.trim_matches(['[', ']']).parse().ok().or_else(|| text.parse().ok().map(|it: SocketAddr| it.ip()))?;
    Some(ip.to_canonical())
}

impl Line {
    /// Has the line written once the response has been sent, or given up.
    pub fn finish(self, response: Response<ResponseBody>, status: &CacheStatus) -> Response<ResponseBody> {
        let code = response.status().as_u16();
        let cache_status = status.to_value(None);
        // One that failed has one already, which is in the line that says why.
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
                    method = %self.method,
                    host = text(self.host.as_ref()).as_deref(),
                    uri = &*cut(Cow::Borrowed(&uri)),
                    status = code,
                    bytes,
                    duration_us = u64::try_from(self.watch.elapsed().as_micros()).unwrap_or(u64::MAX),
                    cache_status = cache_status.to_str().unwrap_or_default(),
                    user_agent = text(self.user_agent.as_ref()).as_deref(),
                    referer = text(self.referer.as_ref()).as_deref(),
                    "request"
                );
            })
        })
    }
}

/// A field's value as text. What of it is not UTF-8 is replaced.
fn text(value: Option<&HeaderValue>) -> Option<Cow<'_, str>> {
    value.map(|value| cut(String::from_utf8_lossy(value.as_bytes())))
}

fn cut(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.len() <= MAX_VALUE {
        return text;
    }
    Cow::Owned(format!("{}…", &text[..text.floor_char_boundary(MAX_VALUE)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_whom_the_last_trusted_proxy_names() {
        let trusted: Vec<IpNet> = ["10.0.0.0/8", "fd00::/8"].iter().map(|net| net.parse().expect("a net")).collect();
        for (lines, expected) in [
            (&["203.0.113.7"][..], Some("203.0.113.7")),
            (&["1.1.1.1, 203.0.113.7"], Some("203.0.113.7")),
            (&["1.1.1.1, 203.0.113.7, 10.0.0.3"], Some("203.0.113.7")),
            (&["1.1.1.1", "203.0.113.7, 10.0.0.3"], Some("203.0.113.7")),
            (&["203.0.113.7:4711"], Some("203.0.113.7")),
            (&["[2001:db8::1]:4711, fd00::2"], Some("2001:db8::1")),
            (&["2001:db8::1"], Some("2001:db8::1")),
            (&["::ffff:203.0.113.7"], Some("203.0.113.7")),
            (&["10.0.0.2, 10.0.0.3"], Some("10.0.0.2")),
            (&["1.1.1.1, unknown, 10.0.0.3"], Some("10.0.0.3")),
            (&["1.1.1.1, unknown"], None),
            (&["evil\", client=1.1.1.1"], None),
            (&[""], None),
            (&[], None),
        ] {
            let mut request = HeaderMap::new();
            for line in lines {
                request.append(X_FORWARDED_FOR, line.parse().expect("a value"));
            }
            let expected = expected.map(|ip| ip.parse::<IpAddr>().expect("an address"));
            assert_eq!(client_of(&request, &trusted), expected, "{lines:?}");
        }
    }

    #[test]
    fn values_are_cut_at_a_character() {
        let long = "é".repeat(MAX_VALUE);
        let short = cut(Cow::Borrowed(&long));
        assert!(short.len() <= MAX_VALUE + '…'.len_utf8() && short.ends_with("é…"), "{}", short.len());
        assert_eq!(cut(Cow::Borrowed("a")), "a");
    }
}
