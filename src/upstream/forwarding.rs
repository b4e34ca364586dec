//! Makes the fields of a request to the origin: removes claims that the sender may not make and hop-by-hop fields, adds
//! `Via` and the `X-Forwarded` fields, and sets `Host` as configured.
//!
//! Applications believe some fields because they expect a proxy to set them. Such a field either comes from Larder, or is
//! part of the cache key, or does not reach the application. [`receive`] removes the others before anything is looked up,
//! so that a response is selected by the fields that the application gets.

use std::net::IpAddr;
use std::time::Duration;

use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use smallvec::SmallVec;

use crate::rfc9111::claims::Claim;
use crate::rfc9111::timestamp::Timestamp;
use crate::rfc9111::vary::Nominated;
use crate::rfc9111::{claims, fields};

/// The proxies that are trusted, and the fields that they are believed in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// `server.trusted_proxies`: the networks of the trusted proxies.
    pub proxies: Vec<IpNet>,
    /// `server.trusted_fields`: further fields that trusted proxies are believed in.
    pub fields: Vec<HeaderName>,
    /// `server.allowed_fields`: names that pass although they have characters other than letters, digits and hyphens.
    pub allowed: Vec<HeaderName>,
    /// `tls.client_subject_field`: the field in which Larder, and nobody else, names the subject of the client's
    /// certificate.
    pub subject: Option<HeaderName>,
}

impl Trust {
    /// Returns the fields that are part of every cache key, and the pairs of names that count as one in `Vary`.
    pub fn nominated(&self) -> Nominated {
        let is_keyed = |name: &&HeaderName| claims::claim(name.as_str()) != Some(Claim::Address);
        let twin = |name: &HeaderName| Some((name.clone(), HeaderName::try_from(claims::twin(name.as_str())).ok()?));
        Nominated {
            always: self.fields.iter().filter(is_keyed).chain(&self.subject).cloned().collect(),
            twins: self.allowed.iter().filter_map(twin).collect(),
        }
    }

    /// Returns the fields that Larder writes the client's address to.
    fn addresses(&self) -> impl Iterator<Item = &HeaderName> {
        self.fields.iter().filter(|name| claims::claim(name.as_str()) == Some(Claim::Address))
    }

    /// Returns whether there are further fields that trusted proxies are believed in, or that Larder writes, so that every
    /// request must be checked for them.
    pub fn has_fields(&self) -> bool {
        !self.fields.is_empty() || self.subject.is_some()
    }

    /// Returns whether `ip` is a trusted proxy's.
    fn holds(&self, ip: IpAddr) -> bool {
        self.proxies.iter().any(|net| net.contains(&ip))
    }

    /// Returns the address of the client: the rightmost in `X-Forwarded-For` that is not a trusted proxy's. Without
    /// `X-Forwarded-For`, or if the peer is not trusted, it is the peer's own; `None` for a peer on a unix socket.
    pub fn client(&self, peer: &Peer, request: &HeaderMap) -> Option<IpAddr> {
        if !peer.trusted {
            return peer.ip;
        }
        let mut client = peer.ip;
        let members: Vec<&[u8]> = fields::members(request, &X_FORWARDED_FOR).collect();
        for member in members.into_iter().rev() {
            // Whoever wrote an unreadable member is unknown, so that nothing to the left of it can be trusted.
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

/// The name of this process in `Via` (RFC 9110 §7.6.3), by which it recognises a request that it forwarded before. No
/// other process has the same.
#[derive(Clone, Copy, Debug)]
pub struct Signature(&'static Values);

#[derive(Debug)]
struct Values {
    name: String,
    /// The values for requests that came by HTTP/1.1, and by HTTP/2.
    http1: HeaderValue,
    http2: HeaderValue,
}

impl Signature {
    /// Makes a random name. It is never freed, so that copies for each request need no reference count.
    pub fn random() -> Self {
        Self::named(format!("larder-{:08x}", fastrand::u32(..)))
    }

    /// Makes a signature of `name`.
    fn named(name: String) -> Self {
        let value = |version| HeaderValue::from_str(&format!("{version} {name}"));
        let fallback = || HeaderValue::from_static("1.1 larder");
        let http1 = value("1.1").unwrap_or_else(|_| fallback());
        let http2 = value("2.0").unwrap_or_else(|_| fallback());
        Self(Box::leak(Box::new(Values { name, http1, http2 })))
    }

    /// Returns whether this process has forwarded a request with these fields before, by whatever version it came.
    pub fn is_in(self, request: &HeaderMap) -> bool {
        let name = self.0.name.as_bytes();
        fields::members(request, &header::VIA).any(|member| member.split(|byte| *byte == b' ').nth(1) == Some(name))
    }

    /// Returns the value for `Via` of a request that came from `peer`.
    fn to_value(self, peer: &Peer) -> HeaderValue {
        if peer.is_http2 { self.0.http2.clone() } else { self.0.http1.clone() }
    }
}

/// The sender of a request: the other end of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address; `None` on a unix socket.
    pub ip: Option<IpAddr>,
    /// The address as a field value.
    ip_value: Option<HeaderValue>,
    /// True if it is a trusted proxy, which is believed in what it says about the client.
    pub trusted: bool,
    /// The scheme of its connection.
    pub scheme: &'static str,
    /// True if it speaks HTTP/2.
    pub is_http2: bool,
    /// The subject of the certificate that it has shown, as a field value.
    pub subject: Option<HeaderValue>,
    /// The end of that certificate.
    pub valid_until: Option<Timestamp>,
}

impl Peer {
    /// Makes a peer at `ip`, trusted if one of `proxies` contains it. The file system decides who can connect to a unix
    /// socket, so that a peer there is trusted if any proxy is.
    pub fn new(ip: Option<IpAddr>, scheme: &'static str, proxies: &[IpNet]) -> Self {
        let ip = ip.map(|ip| ip.to_canonical());
        let trusted = match ip {
            Some(ip) => proxies.iter().any(|net| net.contains(&ip)),
            None => !proxies.is_empty(),
        };
        let ip_value = ip.and_then(|ip| HeaderValue::from_str(&ip.to_string()).ok());
        Self { ip, ip_value, trusted, scheme, is_http2: false, subject: None, valid_until: None }
    }

    /// Returns the time that is left to its certificate at `now`; `None`: it has shown none.
    pub fn lasts(&self, now: Timestamp) -> Option<Duration> {
        let left = self.valid_until?.millis_since(now);
        Some(Duration::from_millis(u64::try_from(left).unwrap_or(0)))
    }

    /// Makes the client of another node, which has made sure of what its client says: it is told in the fields. Its own
    /// address is none that the origin is told.
    pub fn of_peer(subject: Option<HeaderValue>) -> Self {
        Self { subject, ..Self::of_operator() }
    }

    /// Makes a peer for a question of the operator: trusted, and without an address.
    pub fn of_operator() -> Self {
        Self {
            ip: None,
            ip_value: None,
            trusted: true,
            scheme: "http",
            is_http2: false,
            subject: None,
            valid_until: None,
        }
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
    /// The host that the client asked for, if the peer states it.
    pub host: Option<HeaderValue>,
}

impl Original {
    /// Describes the peer's own connection, in the absence of a trusted description.
    pub(crate) const fn of_peer(peer: &Peer) -> Self {
        Self { scheme: peer.scheme, host: None }
    }
}

/// Removes from a request every claim that `peer` may not make, and every field whose name an application could take for
/// another. Returns what a trusted peer states about the client's connection.
///
/// The field of [`Trust::subject`] is believed of nobody: it is removed, and written if the peer has shown a certificate.
///
/// A trusted peer is believed in `X-Forwarded-For`, `-Proto` and `-Host`, and in `server.trusted_fields`. Fields that
/// override the method are removed from safe requests, since their answers are stored for the method of the request.
pub fn receive(trust: &Trust, peer: &Peer, method: &Method, request: &mut HeaderMap) -> Original {
    let original = if peer.trusted { original(peer, request) } else { Original::of_peer(peer) };
    let client = trust.addresses().next().and_then(|_| trust.client(peer, request));
    let is_safe = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::QUERY);
    let may_stay = |name: &HeaderName| {
        if !claims::is_plain(name.as_str()) {
            return trust.allowed.contains(name);
        }
        if trust.subject.as_ref() == Some(name) {
            return false;
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
    if let (Some(name), Some(subject)) = (&trust.subject, &peer.subject) {
        request.insert(name, subject.clone());
    }
    original
}

/// Returns what a trusted peer states about the client's connection.
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
    // Takes the first of a list: the host that the client asked for, before any proxy.
    let host = fields::members(request, &X_FORWARDED_HOST).next().and_then(|host| HeaderValue::from_bytes(host).ok());
    Original { scheme, host }
}

/// The properties of a request that the origin is told besides the client's fields.
#[derive(Clone, Copy, Debug)]
pub struct Onward<'a> {
    /// The sender of the request.
    pub peer: &'a Peer,
    /// The scheme that the client used.
    pub scheme: &'a str,
    /// The host that the client asked for.
    pub authority: &'a str,
    /// `upstream.host`: the `Host` for the origin, if not the client's.
    pub host: Option<&'a str>,
    /// True if Larder obeys `Surrogate-Control`.
    pub surrogate_control: bool,
    /// The name of this process in `Via`.
    pub signature: Signature,
}

impl Onward<'_> {
    /// Returns the fields of the request to the origin, made from those of the client's request.
    pub fn fields(self, request: &HeaderMap) -> HeaderMap {
        if !fields::lists_fields(request) {
            return self.made_of(request);
        }
        let mut request = request.clone();
        fields::remove_listed(&mut request);
        self.made_of(&request)
    }

    /// Returns the fields, made from those of a request without fields that `Connection` lists.
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
            // RFC 9110 §10.1.4: `TE` applies to one connection. It is sent to the origin as well, since trailers are passed on.
            fields.insert(header::TE, const { HeaderValue::from_static("trailers") });
            fields.insert(header::CONNECTION, const { HeaderValue::from_static("te") });
        }
        append_client(&mut fields, self.peer);
        match self.scheme {
            "http" => drop(fields.insert(X_FORWARDED_PROTO, const { HeaderValue::from_static("http") })),
            scheme => set(&mut fields, X_FORWARDED_PROTO, HeaderValue::from_str(scheme).ok()),
        }
        set(&mut fields, X_FORWARDED_HOST, asked);
        fields.append(header::VIA, self.signature.to_value(self.peer));
        if self.surrogate_control {
            fields.append(SURROGATE_CAPABILITY, const { HeaderValue::from_static(CAPABILITY) });
        }
        fields
    }

    /// Returns whether a field of the client's request is not passed on as it is.
    fn stays_here(name: &HeaderName) -> bool {
        // `Expect` is for this server, which answers it when it reads the body. The trailers of requests are not passed
        // on, so `Trailer` is not either.
        matches!(*name, header::HOST | header::EXPECT | header::TRAILER) || fields::is_hop_by_hop(name)
    }
}

/// Tells the origin that Larder obeys `Surrogate-Control`, and by which name.
const SURROGATE_CAPABILITY: HeaderName = HeaderName::from_static("surrogate-capability");
const CAPABILITY: &str = "larder=\"Surrogate/1.0\"";

/// The most fields that are added to a request.
const ADDED: usize = 7;

/// Appends the peer's address to `X-Forwarded-For`.
fn append_client(fields: &mut HeaderMap, peer: &Peer) {
    // The field of an untrusted peer was removed, or is replaced here.
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

/// Sets a field, or removes it if there is no value.
fn set(fields: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    match value {
        Some(value) => drop(fields.insert(name, value)),
        None => drop(fields.remove(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rfc9111::fields::of_list as map;

    fn peer(trusted: &str) -> Peer {
        let proxies: Vec<IpNet> = trusted.split(',').filter_map(|net| net.parse().ok()).collect();
        Peer::new(Some("10.0.0.9".parse().expect("an address")), "http", &proxies)
    }

    fn onward<'a>(peer: &'a Peer, scheme: &'a str, authority: &'a str, host: Option<&'a str>) -> Onward<'a> {
        Onward {
            peer,
            scheme,
            authority,
            host,
            surrogate_control: false,
            signature: Signature::named("larder-1".into()),
        }
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
        Trust { proxies, fields: names(fields), allowed: names(allowed), subject: None }
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
    fn via_names_the_version_that_a_request_came_by_and_loops_are_found_across_versions() {
        let signature = Signature::named("larder-1".into());
        for (is_http2, expected) in [(false, "1.1 larder-1"), (true, "2.0 larder-1")] {
            let peer = Peer { is_http2, ..peer("") };
            let fields = onward(&peer, "http", "site.example", None).fields(&HeaderMap::new());
            assert_eq!(fields[header::VIA], expected);
        }
        for (via, expected) in [
            ("1.1 larder-1", true),
            ("2.0 larder-1", true),
            ("HTTP/2 larder-1 (a comment)", true),
            ("1.0 fred, 2.0 larder-1, 1.1 other", true),
            ("2.0 larder-12", false),
            ("2.0 other (larder-1)", false),
            ("larder-1", false),
        ] {
            assert_eq!(signature.is_in(&map(&[("via", via)])), expected, "{via}");
        }
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
    fn a_clients_subject_is_written_by_nobody_but_larder_and_is_keyed() {
        const FIELD: HeaderName = HeaderName::from_static("x-client-subject");
        let trust = Trust { subject: Some(FIELD), ..trust("10.0.0.0/8", &[], &[]) };
        assert_eq!(trust.nominated().always, [FIELD]);
        assert!(trust.has_fields());
        let shown = Peer { subject: Some(HeaderValue::from_static("CN=a")), ..peer("") };
        for (peer, expected) in
            [(peer(""), None), (peer("10.0.0.0/8"), None), (Peer::of_operator(), None), (shown, Some("CN=a"))]
        {
            for spelling in ["x-client-subject", "x_client_subject", "x-client_subject", "x.client.subject"] {
                let mut request = map(&[(spelling, "CN=evil"), ("x-country", "de")]);
                request.append(HeaderName::from_static(spelling), HeaderValue::from_static("CN=evil"));
                receive(&trust, &peer, &Method::POST, &mut request);
                let values: Vec<_> = request.get_all(FIELD).iter().map(|value| value.to_str().expect("text")).collect();
                assert_eq!(values, expected.into_iter().collect::<Vec<_>>(), "{spelling} {peer:?}");
                assert_eq!(request.len(), 1 + values.len(), "{request:?}");
            }
        }
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
        for (method, stays) in [
            (Method::GET, false),
            (Method::HEAD, false),
            (Method::OPTIONS, false),
            (Method::QUERY, false),
            (Method::POST, true),
        ] {
            let mut request = map(&[("x-http-method-override", "DELETE")]);
            receive(&Trust::default(), &peer(""), &method, &mut request);
            assert_eq!(request.contains_key("x-http-method-override"), stays, "{method}");
        }
    }
}
