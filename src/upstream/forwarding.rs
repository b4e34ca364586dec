//! Fields of a request on the way to the origin: claims that its sender may not make out, hop-by-hop fields
//! out, `Via` and the `X-Forwarded` fields in, `Host` as configured.
//!
//! A field that the application could take for somebody else's word either comes from Larder, or is part of the
//! key, or does not reach the application. [`receive`] sees to that once a request, before anything is looked up:
//! the fields that it leaves are those that select a response.

use std::net::IpAddr;

use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use smallvec::SmallVec;

use crate::rfc9111::claims::Claim;
use crate::rfc9111::vary::Nominated;
use crate::rfc9111::{claims, fields};

/// The fields of requests that are believed, and from whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// `server.trusted_proxies`
    pub proxies: Vec<IpNet>,
    /// `server.trusted_fields`: further fields that those are believed in.
    pub fields: Vec<HeaderName>,
    /// `server.allowed_fields`: names with other characters than letters, digits and hyphens that pass.
    pub allowed: Vec<HeaderName>,
}

impl Trust {
    /// The fields that are part of every key, and those that count as one in `Vary`.
    pub fn nominated(&self) -> Nominated {
        let is_keyed = |name: &&HeaderName| claims::claim(name.as_str()) != Some(Claim::Address);
        let twin = |name: &HeaderName| Some((name.clone(), HeaderName::try_from(claims::twin(name.as_str())).ok()?));
        Nominated {
            always: self.fields.iter().filter(is_keyed).cloned().collect(),
            twins: self.allowed.iter().filter_map(twin).collect(),
        }
    }

    /// The fields that Larder writes the client's address to.
    fn addresses(&self) -> impl Iterator<Item = &HeaderName> {
        self.fields.iter().filter(|name| claims::claim(name.as_str()) == Some(Claim::Address))
    }

    /// Returns whether further fields are believed of trusted proxies, so that every request has to be looked at.
    pub fn has_fields(&self) -> bool {
        !self.fields.is_empty()
    }

    fn holds(&self, ip: IpAddr) -> bool {
        self.proxies.iter().any(|net| net.contains(&ip))
    }

    /// The address of the client: the rightmost in `X-Forwarded-For` that is not a trusted proxy's, as far as
    /// trusted proxies vouch for it; without one the peer's own. `None` on a unix socket where nobody says.
    pub fn client(&self, peer: &Peer, request: &HeaderMap) -> Option<IpAddr> {
        if !peer.trusted {
            return peer.ip;
        }
        let mut client = peer.ip;
        let members: Vec<&[u8]> = fields::members(request, &X_FORWARDED_FOR).collect();
        for member in members.into_iter().rev() {
            // Nobody vouches for anything to the left of what can't be read.
            let Some(ip) = address(member) else { break };
            client = Some(ip);
            if !self.holds(ip) {
                break;
            }
        }
        client
    }
}

/// Reads an address as proxies write it, with or without a port.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let ip = match text.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']')?.0.parse().ok()?,
        None => match text.parse() {
            Ok(ip) => ip,
            Err(_) => text.rsplit_once(':')?.0.parse().ok()?,
        },
    };
    Some(IpAddr::to_canonical(&ip))
}

/// The name by which this process signs what it forwards (RFC 9110 §7.6.3), so that it knows a request that comes
/// round again. No other process, and no other Larder, has the same.
#[derive(Clone, Copy, Debug)]
pub struct Signature(&'static HeaderValue);

impl Signature {
    /// A new one. It lives as long as the process: to copy it with each request would cost a count.
    pub fn random() -> Self {
        Self::named(Box::leak(format!("1.1 larder-{:08x}", fastrand::u32(..)).into_boxed_str()))
    }

    fn named(name: &'static str) -> Self {
        Self(Box::leak(Box::new(HeaderValue::from_static(name))))
    }

    /// Returns whether this process has forwarded a request with these fields before.
    pub fn is_in(self, request: &HeaderMap) -> bool {
        fields::members(request, &header::VIA).any(|member| member == self.0.as_bytes())
    }

    fn to_value(self) -> HeaderValue {
        self.0.clone()
    }
}

/// Who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address; `None` on a unix socket.
    pub ip: Option<IpAddr>,
    /// The same as a field's value.
    ip_value: Option<HeaderValue>,
    /// Whether it is a proxy of ours, whose word on the client counts.
    pub trusted: bool,
    /// The scheme of its connection.
    pub scheme: &'static str,
}

impl Peer {
    /// A peer at `ip`, trusted when one of `proxies` holds it. Who reaches a unix socket was let
    /// in by the file system, and counts as one of ours when any proxy is trusted at all.
    pub fn new(ip: Option<IpAddr>, scheme: &'static str, proxies: &[IpNet]) -> Self {
        let ip = ip.map(|ip| ip.to_canonical());
        let trusted = match ip {
            Some(ip) => proxies.iter().any(|net| net.contains(&ip)),
            None => !proxies.is_empty(),
        };
        let ip_value = ip.and_then(|ip| HeaderValue::from_str(&ip.to_string()).ok());
        Self { ip, ip_value, trusted, scheme }
    }

    /// One that is believed, and has no address.
    pub fn of_operator() -> Self {
        Self { ip: None, ip_value: None, trusted: true, scheme: "http" }
    }
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The client's own connection, as a trusted peer describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Original {
    /// The scheme that the client used.
    pub scheme: &'static str,
    /// The host that the client asked, where the peer says so.
    pub host: Option<HeaderValue>,
}

impl Original {
    /// The peer's own, where nobody describes it.
    pub(crate) const fn of_peer(peer: &Peer) -> Self {
        Self { scheme: peer.scheme, host: None }
    }
}

/// Takes out of a request's fields every claim that `peer` may not make, and every name that an application
/// could take for another, and reads what a trusted peer says of the client's connection.
///
/// A trusted peer is believed in `X-Forwarded-For`, `-Proto` and `-Host`, and in `server.trusted_fields`. An
/// override of the method is taken out of safe requests: their answers are stored for the method that they name.
pub fn receive(trust: &Trust, peer: &Peer, method: &Method, request: &mut HeaderMap) -> Original {
    let original = if peer.trusted { original(peer, request) } else { Original::of_peer(peer) };
    let client = trust.addresses().next().and_then(|_| trust.client(peer, request));
    let is_safe = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    let may_stay = |name: &HeaderName| {
        if !claims::is_plain(name.as_str()) {
            return trust.allowed.contains(name);
        }
        match claims::claim(name.as_str()) {
            Some(Claim::For | Claim::Proto | Claim::Host) => peer.trusted,
            Some(Claim::Tls | Claim::Address) => false,
            Some(Claim::Method) if !is_safe => true,
            Some(Claim::Method | Claim::Other) => peer.trusted && trust.fields.contains(name),
            None => peer.trusted || !trust.fields.contains(name),
        }
    };
    let others: SmallVec<[HeaderName; 4]> = request.keys().filter(|name| !may_stay(name)).cloned().collect();
    for name in others {
        request.remove(name);
    }
    if let Some(client) = client.and_then(|ip| HeaderValue::from_str(&ip.to_string()).ok()) {
        for name in trust.addresses() {
            request.insert(name, client.clone());
        }
    }
    original
}

fn original(peer: &Peer, request: &HeaderMap) -> Original {
    let says = |name: &'static str, words: &[&str]| {
        let mut members = fields::members(request, &HeaderName::from_static(name));
        members.next().is_some_and(|value| words.iter().any(|word| value.eq_ignore_ascii_case(word.as_bytes())))
    };
    let scheme = match fields::members(request, &X_FORWARDED_PROTO).next() {
        Some(value) if value.eq_ignore_ascii_case(b"https") => "https",
        Some(_) => "http",
        None if says("x-forwarded-ssl", &["on"])
            || says("x-forwarded-protocol", &["ssl", "https"])
            || says("x-forwarded-scheme", &["https"]) =>
        {
            "https"
        }
        None => peer.scheme,
    };
    // The first of a list: what the client asked, before any proxy.
    let host = fields::members(request, &X_FORWARDED_HOST).next().and_then(|host| HeaderValue::from_bytes(host).ok());
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
    /// See [`Signature`].
    pub signature: Signature,
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
            if !Self::stays_here(name) {
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
        fields.append(header::VIA, self.signature.to_value());
        if self.surrogate_control {
            fields.append(SURROGATE_CAPABILITY, const { HeaderValue::from_static(CAPABILITY) });
        }
        fields
    }

    /// Whether the origin does not see a field as it came.
    fn stays_here(name: &HeaderName) -> bool {
        // The expectation was of this server, which meets it when it reads the body. Trailers go no further,
        // and neither does what announces them.
        matches!(*name, header::HOST | header::EXPECT | header::TRAILER) || fields::is_hop_by_hop(name)
    }
}

/// Tells the origin that `Surrogate-Control` is listened to, and by which name.
const SURROGATE_CAPABILITY: HeaderName = HeaderName::from_static("surrogate-capability");
const CAPABILITY: &str = "larder=\"Surrogate/1.0\"";

/// The fields that a request may get on the way.
const ADDED: usize = 7;

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
        Peer::new(Some("10.0.0.9".parse().expect("an address")), "http", &proxies)
    }

    fn onward<'a>(peer: &'a Peer, scheme: &'a str, authority: &'a str, host: Option<&'a str>) -> Onward<'a> {
        Onward { peer, scheme, authority, host, surrogate_control: false, signature: Signature::named("1.1 larder-1") }
    }

    const CLAIMS: &[(&str, &str)] = &[
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-prefix", "/admin"),
        ("x_forwarded_prefix", "/admin"),
        ("x-real-ip", "1.2.3.4"),
        ("x-country", "de"),
        ("script_name", "/admin"),
        ("forwarded", "for=1.2.3.4"),
        ("expect", "100-continue"),
        ("trailer", "x-checksum"),
        ("te", "trailers"),
        ("via", "1.0 other"),
    ];

    fn trust(proxies: &str, fields: &[&'static str], allowed: &[&'static str]) -> Trust {
        let names = |list: &[&'static str]| list.iter().map(|name| HeaderName::from_static(name)).collect();
        let proxies = proxies.split(',').filter_map(|net| net.parse().ok()).collect();
        Trust { proxies, fields: names(fields), allowed: names(allowed) }
    }

    fn received(trust: &Trust, peer: &Peer, method: &Method) -> (Original, HeaderMap) {
        let mut request = map(CLAIMS);
        let original = receive(trust, peer, method, &mut request);
        (original, request)
    }

    #[test]
    fn claims_of_strangers_are_replaced() {
        let peer = peer("");
        let trust = trust("", &["x-country", "x-forwarded-prefix"], &[]);
        let (original, request) = received(&trust, &peer, &Method::GET);
        assert_eq!(original, Original { scheme: "http", host: None });
        let fields = onward(&peer, "http", "site.example", None).fields(&request);
        let mut expected = map(&[
            ("x-forwarded-for", "10.0.0.9"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "site.example"),
            ("host", "site.example"),
            ("te", "trailers"),
            ("connection", "te"),
            ("via", "1.0 other"),
        ]);
        expected.append(header::VIA, HeaderValue::from_static("1.1 larder-1"));
        assert_eq!(fields, expected);
    }

    #[test]
    fn a_trusted_proxy_is_believed_in_what_is_listed_and_no_more() {
        let peer = peer("10.0.0.0/8");
        let (original, request) = received(&trust("10.0.0.0/8", &[], &[]), &peer, &Method::GET);
        assert_eq!(
            (original.scheme, original.host.as_ref().map(HeaderValue::as_bytes)),
            ("https", Some(&b"evil.example"[..]))
        );
        let fields = onward(&peer, original.scheme, "evil.example", Some("inner")).fields(&request);
        assert_eq!(fields["x-forwarded-for"], "1.2.3.4, 10.0.0.9");
        assert_eq!(fields["x-forwarded-proto"], "https");
        assert_eq!(fields["host"], "inner");
        assert_eq!(fields["x-country"], "de", "no claim, and not listed");
        for name in ["x-forwarded-prefix", "x_forwarded_prefix", "x-real-ip", "script_name", "forwarded"] {
            assert!(!fields.contains_key(name), "{name}");
        }

        let listed = trust("10.0.0.0/8", &["x-forwarded-prefix", "x-real-ip"], &["script_name"]);
        let (_, request) = received(&listed, &peer, &Method::GET);
        assert_eq!(request["x-forwarded-prefix"], "/admin");
        assert_eq!(request["script_name"], "/admin", "the operator's own choice");
        assert_eq!(request["x-real-ip"], "1.2.3.4", "from X-Forwarded-For");
        let nominated = listed.nominated();
        assert_eq!(nominated.always, [HeaderName::from_static("x-forwarded-prefix")]);
        assert_eq!(
            nominated.twins,
            [("script_name", "script-name")].map(|(a, b)| (HeaderName::from_static(a), HeaderName::from_static(b)))
        );
    }

    #[test]
    fn the_client_is_the_rightmost_address_that_is_no_trusted_proxys() {
        let trust = trust("10.0.0.0/8", &[], &[]);
        for (peer_ip, chain, expected) in [
            ("10.0.0.9", "1.2.3.4", "1.2.3.4"),
            ("10.0.0.9", "6.6.6.6, 1.2.3.4, 10.0.0.1", "1.2.3.4"),
            ("10.0.0.9", "6.6.6.6, 1.2.3.4:4711, 10.0.0.1", "1.2.3.4"),
            ("10.0.0.9", "[2001:db8::1]:80", "2001:db8::1"),
            ("10.0.0.9", "6.6.6.6, nonsense, 10.0.0.1", "10.0.0.1"),
            ("10.0.0.9", "10.0.0.2, 10.0.0.1", "10.0.0.2"),
            ("10.0.0.9", "2001:db8::1", "2001:db8::1"),
            ("10.0.0.9", "::ffff:203.0.113.7", "203.0.113.7"),
            ("10.0.0.9", "evil\", client=1.1.1.1", "10.0.0.9"),
            ("10.0.0.9", "", "10.0.0.9"),
            ("192.0.2.1", "1.2.3.4", "192.0.2.1"),
        ] {
            let peer = Peer::new(peer_ip.parse().ok(), "http", &trust.proxies);
            let mut request = HeaderMap::new();
            request.insert(X_FORWARDED_FOR, HeaderValue::from_static(chain));
            assert_eq!(trust.client(&peer, &request), expected.parse().ok(), "{peer_ip} {chain}");
        }
    }

    #[test]
    fn older_fields_say_that_the_client_uses_tls_where_there_is_no_proto() {
        let peer = peer("10.0.0.0/8");
        for (name, value, expected) in [
            ("x-forwarded-ssl", "on", "https"),
            ("x-forwarded-ssl", "off", "http"),
            ("x-forwarded-protocol", "ssl", "https"),
            ("x-forwarded-protocol", "HTTPS", "https"),
            ("x-forwarded-scheme", "https", "https"),
            ("x-forwarded-scheme", "http", "http"),
        ] {
            let mut request = map(&[(name, value)]);
            let original = receive(&trust("10.0.0.0/8", &[], &[]), &peer, &Method::GET, &mut request);
            assert_eq!((original.scheme, request.len()), (expected, 0), "{name}: {value}");
            let mut request = map(&[(name, value), ("x-forwarded-proto", "http")]);
            let original = receive(&trust("10.0.0.0/8", &[], &[]), &peer, &Method::GET, &mut request);
            assert_eq!(original.scheme, "http", "Proto goes before {name}");
        }
    }

    #[test]
    fn a_method_is_overridden_only_where_the_answer_is_not_stored() {
        for (method, stays) in
            [(Method::GET, false), (Method::HEAD, false), (Method::OPTIONS, false), (Method::POST, true)]
        {
            let mut request = map(&[("x-http-method-override", "DELETE")]);
            receive(&Trust::default(), &peer(""), &method, &mut request);
            assert_eq!(request.contains_key("x-http-method-override"), stays, "{method}");
        }
    }
}
