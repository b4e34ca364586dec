//! What becomes of a request's fields on the way to the origin: hop-by-hop fields out, `Via` and
//! the `X-Forwarded` fields in, `Host` as configured.

use std::borrow::Cow;
use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::rfc9111::fields;

/// Who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address; `None` on a unix socket.
    pub ip: Option<IpAddr>,
    /// The same as a field's value.
    ip_value: Option<HeaderValue>,
    /// Whether it is a proxy of ours, whose word on the client counts.
    pub trusted: bool,
}

impl Peer {
    /// A peer at `ip`, trusted when one of `proxies` holds it. Who reaches a unix socket was let
    /// in by the file system, and counts as one of ours when any proxy is trusted at all.
    pub fn new(ip: Option<IpAddr>, proxies: &[IpNet]) -> Self {
        let ip = ip.map(|ip| ip.to_canonical());
        let trusted = match ip {
            Some(ip) => proxies.iter().any(|net| net.contains(&ip)),
            None => !proxies.is_empty(),
        };
        let ip_value = ip.and_then(|ip| HeaderValue::from_str(&ip.to_string()).ok());
        Self { ip, ip_value, trusted }
    }
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// What a trusted peer says of the client's own connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original<'a> {
    /// The scheme that the client used.
    pub scheme: &'static str,
    /// The host that the client asked, where the peer says so.
    pub host: Option<&'a str>,
}

/// Reads what a trusted peer says of the client's connection; an untrusted one is not listened to.
pub fn original<'a>(peer: &Peer, request: &'a HeaderMap) -> Original<'a> {
    if !peer.trusted {
        return Original { scheme: "http", host: None };
    }
    let scheme = match fields::members(request, &X_FORWARDED_PROTO).next() {
        Some(value) if value.eq_ignore_ascii_case(b"https") => "https",
        Some(_) | None => "http",
    };
    // The first of a list: what the client asked, before any proxy.
    let host = fields::members(request, &X_FORWARDED_HOST).next().and_then(|host| std::str::from_utf8(host).ok());
    Original { scheme, host }
}

/// What the origin is told of a request besides what its client said.
#[derive(Clone, Copy, Debug)]
pub struct Onward<'a> {
    /// Who sent it.
    pub peer: &'a Peer,
    /// The scheme that the client used.
    pub scheme: &'a str,
    /// The host that the client asked.
    pub authority: &'a str,
    /// `upstream.host`, where the origin is to see another.
    pub host: Option<&'a str>,
    /// Whether `Surrogate-Control` is listened to.
    pub surrogate_control: bool,
}

impl Onward<'_> {
    /// Makes of the fields of a client's request those of the request to the origin.
    pub fn fields(self, request: &HeaderMap) -> HeaderMap {
        if !fields::lists_fields(request) {
            return self.made_of(request);
        }
        let mut request = request.clone();
        fields::remove_listed(&mut request);
        self.made_of(&request)
    }

    fn made_of(self, request: &HeaderMap) -> HeaderMap {
        let mut fields = HeaderMap::with_capacity(request.len() + ADDED);
        let sent = request.get(header::HOST).filter(|sent| *sent == self.authority).cloned();
        let asked = sent.or_else(|| HeaderValue::from_str(self.authority).ok());
        let host = self.host.map_or_else(|| asked.clone(), |host| HeaderValue::from_str(host).ok());
        set(&mut fields, header::HOST, host);
        let mut has_te = false;
        for (name, value) in request {
            if !self.stays_here(name) {
                fields.append(name.clone(), value.clone());
            }
            has_te |= *name == header::TE;
        }
        if has_te && fields::has_member(request, &header::TE, "trailers") {
            // RFC 9110 §10.1.4: on this connection as well, since trailers are passed on.
            fields.insert(header::TE, const { HeaderValue::from_static("trailers") });
            fields.insert(header::CONNECTION, const { HeaderValue::from_static("te") });
        }
        append_client(&mut fields, self.peer);
        match self.scheme {
            "http" => drop(fields.insert(X_FORWARDED_PROTO, const { HeaderValue::from_static("http") })),
            scheme => set(&mut fields, X_FORWARDED_PROTO, HeaderValue::from_str(scheme).ok()),
        }
        set(&mut fields, X_FORWARDED_HOST, asked);
        append_via(&mut fields);
        if self.surrogate_control {
            fields.append(SURROGATE_CAPABILITY, const { HeaderValue::from_static(CAPABILITY) });
        }
        fields
    }

    /// Whether the origin does not see a field as it came.
    fn stays_here(&self, name: &HeaderName) -> bool {
        // The expectation was of this server, which meets it when it reads the body.
        matches!(*name, header::HOST | header::EXPECT)
            || fields::is_hop_by_hop(name)
            || (!self.peer.trusted && is_claim(name.as_str()))
    }
}

/// Tells the origin that `Surrogate-Control` is listened to, and by which name.
const SURROGATE_CAPABILITY: HeaderName = HeaderName::from_static("surrogate-capability");
const CAPABILITY: &str = "larder=\"Surrogate/1.0\"";

/// The fields that a request may get on the way.
const ADDED: usize = 7;

/// Whether a field is one with which proxies describe the client. From anyone else they are claims, and
/// applications that believe them can be led to answer for another host or path.
fn is_claim(name: &str) -> bool {
    // All but a few fields can't be.
    if !matches!(name.as_bytes().first(), Some(b'x' | b'f' | b't')) {
        return false;
    }
    // CGI and WSGI write hyphens as underscores, so that both spellings are one field to them.
    let name = if name.contains('_') { Cow::Owned(name.replace('_', "-")) } else { Cow::Borrowed(name) };
    name.starts_with("x-forwarded")
        || matches!(
            &*name,
            "forwarded"
                | "x-real-ip"
                | "x-client-ip"
                | "true-client-ip"
                | "x-cluster-client-ip"
                | "x-host"
                | "x-original-url"
                | "x-rewrite-url"
                | "x-original-host"
        )
}

fn append_client(fields: &mut HeaderMap, peer: &Peer) {
    // A stranger's is not among them any more.
    if !peer.trusted || !fields.contains_key(X_FORWARDED_FOR) {
        if let Some(ip) = &peer.ip_value {
            fields.insert(X_FORWARDED_FOR, ip.clone());
        }
        return;
    }
    let before: Vec<&[u8]> = fields::members(fields, &X_FORWARDED_FOR).collect();
    let mut list = before.join(&b", "[..]);
    if let Some(ip) = &peer.ip_value {
        if !list.is_empty() {
            list.extend_from_slice(b", ");
        }
        list.extend_from_slice(ip.as_bytes());
    }
    match HeaderValue::from_bytes(&list) {
        Ok(value) if !list.is_empty() => {
            fields.insert(X_FORWARDED_FOR, value);
        }
        Ok(_) | Err(_) => {
            fields.remove(X_FORWARDED_FOR);
        }
    }
}

/// RFC 9110 §7.6.3: a gateway must say that it forwarded a request.
fn append_via(fields: &mut HeaderMap) {
    fields.append(header::VIA, const { HeaderValue::from_static("1.1 larder") });
}

fn set(fields: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    match value {
        Some(value) => drop(fields.insert(name, value)),
        None => drop(fields.remove(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn peer(trusted: &str) -> Peer {
        let proxies: Vec<IpNet> = trusted.split(',').filter_map(|net| net.parse().ok()).collect();
        Peer::new(Some("10.0.0.9".parse().expect("an address")), &proxies)
    }

    fn onward<'a>(peer: &'a Peer, scheme: &'a str, authority: &'a str, host: Option<&'a str>) -> Onward<'a> {
        Onward { peer, scheme, authority, host, surrogate_control: false }
    }

    const CLAIMS: &[(&str, &str)] = &[
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-prefix", "/admin"),
        ("x_forwarded_prefix", "/admin"),
        ("forwarded", "for=1.2.3.4"),
        ("expect", "100-continue"),
        ("te", "trailers"),
        ("via", "1.0 other"),
    ];

    #[test]
    fn claims_of_strangers_are_replaced() {
        let peer = peer("");
        assert_eq!(original(&peer, &map(CLAIMS)), Original { scheme: "http", host: None });
        let fields = onward(&peer, "http", "site.example", None).fields(&map(CLAIMS));
        let mut expected = map(&[
            ("x-forwarded-for", "10.0.0.9"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "site.example"),
            ("host", "site.example"),
            ("te", "trailers"),
            ("connection", "te"),
            ("via", "1.0 other"),
        ]);
        expected.append(header::VIA, HeaderValue::from_static("1.1 larder"));
        assert_eq!(fields, expected);
    }

    #[test]
    fn the_word_of_a_trusted_proxy_counts() {
        let peer = peer("10.0.0.0/8");
        let request = map(CLAIMS);
        let original = original(&peer, &request);
        assert_eq!(original, Original { scheme: "https", host: Some("evil.example") });
        let fields = onward(&peer, original.scheme, "evil.example", Some("inner")).fields(&request);
        assert_eq!(fields["x-forwarded-for"], "1.2.3.4, 10.0.0.9");
        assert_eq!(fields["x-forwarded-proto"], "https");
        assert_eq!(fields["x-forwarded-prefix"], "/admin");
        assert_eq!(fields["host"], "inner");
    }
}
