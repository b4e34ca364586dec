//! Decides which requests the admin listener answers.
//!
//! A token is proof. Without one the listener is for people on this machine, but not for web pages in their browsers.
//!
//! A page of another site is told by `Sec-Fetch-Site` or `Origin`. A page whose host name was pointed at this machine
//! (DNS rebinding) counts as same-site, but its browser sends that name as `Host`. Such an attack needs a name, so
//! addresses are admitted as `Host`.

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, StatusCode};
use subtle::ConstantTimeEq;

use super::Config;
use crate::downstream::Listen;
use crate::rfc9111::fields;
use crate::rfc9111::key::normal_authority;

/// Admits requests or denies them.
#[derive(Debug)]
pub(super) struct Gate {
    token: String,
    hosts: Vec<String>,
}

/// The answer to a request that is denied.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Denied {
    pub(super) status: StatusCode,
    pub(super) sentence: String,
}

fn deny<T>(status: StatusCode, sentence: impl Into<String>) -> Result<T, Denied> {
    Err(Denied { status, sentence: sentence.into() })
}

const SEC_FETCH_SITE: header::HeaderName = header::HeaderName::from_static("sec-fetch-site");

impl Gate {
    pub(super) fn new(config: &Config) -> Self {
        // The operator chose the name that it listens on.
        let own = match &config.listen {
            Some(Listen::Tcp(text) | Listen::Tls(text)) => Some(host_of(text).to_ascii_lowercase()),
            Some(Listen::Unix(_)) | None => None,
        };
        Self { token: config.token.clone(), hosts: config.hosts.iter().cloned().chain(own).collect() }
    }

    /// Admits `request`, or says why not. A unix socket's file mode has checked its client already.
    pub(super) fn admit<B>(&self, request: &Request<B>, is_unix: bool) -> Result<(), Denied> {
        if !self.token.is_empty() {
            return if self.has_token(request.headers()) {
                Ok(())
            } else {
                deny(StatusCode::UNAUTHORIZED, "this needs the admin token: Authorization: Bearer <admin.token>")
            };
        }
        if is_unix {
            return Ok(());
        }
        let is_of_another_site =
            |site: &[u8]| [&b"cross-site"[..], b"same-site"].iter().any(|other| site.eq_ignore_ascii_case(other));
        if fields::members(request.headers(), &SEC_FETCH_SITE).any(is_of_another_site)
            || request.headers().contains_key(header::ORIGIN)
        {
            return deny(
                StatusCode::FORBIDDEN,
                "this was asked by a web page of another site, which needs the admin token (admin.token)",
            );
        }
        let is_purge = request.method().as_str() == "PURGE";
        // The target of a `PURGE` in origin form is the URL that Host and path make.
        if is_purge && request.uri().authority().is_none() {
            return Ok(());
        }
        let mut hosts = request.headers().get_all(header::HOST).iter();
        match (hosts.next().map(HeaderValue::to_str), hosts.next()) {
            (_, Some(_)) => return deny(StatusCode::BAD_REQUEST, "the request has more than one Host field"),
            (None, None) => return deny(StatusCode::BAD_REQUEST, "the request has no Host field"),
            (Some(Err(_)), None) => return deny(StatusCode::BAD_REQUEST, "the Host field is not a host name"),
            (Some(Ok(host)), None) => self.admit_host(host)?,
        }
        match request.uri().authority() {
            // RFC 9112 §3.2.2: the target's authority overrides Host. That of a purge names what is purged.
            Some(authority) if !is_purge => self.admit_host(authority.as_str()),
            Some(_) | None => Ok(()),
        }
    }

    fn has_token(&self, request: &HeaderMap) -> bool {
        let given = request.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let (scheme, given) = given.split_at_checked(7).unwrap_or_default();
        // Compares in constant time, so that a token can't be guessed byte by byte.
        scheme.eq_ignore_ascii_case(b"bearer ") && bool::from(given.ct_eq(self.token.as_bytes()))
    }

    fn admit_host(&self, authority: &str) -> Result<(), Denied> {
        if normal_authority(authority, "http").is_none() {
            return deny(StatusCode::BAD_REQUEST, "the Host field is not a host name");
        }
        let host = host_of(authority).to_ascii_lowercase();
        let name = host.strip_suffix('.').unwrap_or(&host);
        // Only an address in brackets may have a zone.
        let address = if authority.starts_with('[') { name.split('%').next().unwrap_or_default() } else { name };
        if address.parse::<IpAddr>().is_ok() || name == "localhost" || self.hosts.iter().any(|host| host == name) {
            return Ok(());
        }
        deny(
            StatusCode::FORBIDDEN,
            format!(
                "the admin listener does not answer to the name \"{name}\": ask it by its address or as localhost, or list the name in admin.hosts"
            ),
        )
    }
}

/// Returns the host of an authority, without brackets and port.
fn host_of(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(token: &str, hosts: &[&str]) -> Gate {
        let listen = Some(Listen::Tcp("larder.internal:9090".into()));
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        Gate::new(&Config { listen, token: token.into(), hosts })
    }

    fn request(method: &str, target: &str, fields: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request")
    }

    fn status(gate: &Gate, request: &Request<()>, is_unix: bool) -> u16 {
        gate.admit(request, is_unix).map_or_else(|denied| denied.status.as_u16(), |()| 200)
    }

    #[test]
    fn a_name_that_is_not_its_own_is_refused_in_every_form() {
        let gate = gate("", &["metrics.example"]);
        for (host, expected) in [
            ("localhost", 200),
            ("LOCALHOST:9090", 200),
            ("localhost.", 200),
            ("127.0.0.1:9090", 200),
            ("192.0.2.7", 200),
            ("[::1]:9090", 200),
            ("[fe80::1%25eth0]", 200),
            ("metrics.example", 200),
            ("Metrics.Example:1", 200),
            ("larder.internal:9090", 200),
            ("evil.example", 403),
            ("localhost.evil.example", 403),
            ("127.0.0.1.evil.example", 403),
            ("metrics.example.evil.example", 403),
            ("evil.metrics.example", 403),
            ("2130706433", 403),
            ("a b", 400),
            ("user@localhost", 400),
            ("", 400),
        ] {
            for (method, target) in [("GET", "/metrics"), ("POST", "/purge"), ("PURGE", "http://site.example/a")] {
                assert_eq!(
                    status(&gate, &request(method, target, &[("host", host)]), false),
                    expected,
                    "{method} {host}"
                );
            }
            let absolute = format!("http://{host}/metrics");
            if absolute.parse::<http::Uri>().is_ok_and(|uri| uri.authority().is_some()) {
                let asked = request("GET", &absolute, &[("host", "localhost")]);
                assert_eq!(status(&gate, &asked, false), expected, "{absolute}");
            }
        }
        for fields in [&[][..], &[("host", "localhost"), ("host", "localhost")]] {
            assert_eq!(status(&gate, &request("GET", "/metrics", fields), false), 400, "{fields:?}");
        }
        let told = gate.admit(&request("GET", "/metrics", &[("host", "evil.example")]), false);
        assert!(told.is_err_and(|denied| denied.sentence.contains("admin.hosts")));
    }

    #[test]
    fn a_page_of_another_site_is_refused_whatever_it_asks() {
        let gate = gate("", &[]);
        for (name, value, expected) in [
            ("sec-fetch-site", "cross-site", 403),
            ("sec-fetch-site", "Same-Site", 403),
            ("sec-fetch-site", "none, cross-site", 403),
            ("origin", "null", 403),
            ("sec-fetch-site", "none", 200),
            ("sec-fetch-site", "same-origin", 200),
        ] {
            for (method, target, host) in [("GET", "/metrics", "127.0.0.1"), ("PURGE", "/a", "site.example")] {
                let asked = request(method, target, &[("host", host), (name, value)]);
                assert_eq!(status(&gate, &asked, false), expected, "{method} {name}: {value}");
            }
        }
    }

    #[test]
    fn a_token_a_unix_socket_and_a_purge_whose_target_is_its_host_are_let_in() {
        let asked = request("GET", "/metrics", &[("host", "evil.example"), ("sec-fetch-site", "cross-site")]);
        assert_eq!(status(&gate("", &[]), &asked, true), 200);
        assert_eq!(status(&gate("", &[]), &request("PURGE", "/a", &[("host", "site.example")]), false), 200);
        let gate = gate("secret", &[]);
        for (authorization, expected) in [
            ("Bearer secret", 200),
            ("bearer secret", 200),
            ("Bearer secre", 401),
            ("Bearer secrets", 401),
            ("Bearer ", 401),
            ("secret", 401),
            ("Basic secret", 401),
        ] {
            let mut asked = asked.clone();
            asked.headers_mut().insert(header::AUTHORIZATION, HeaderValue::from_static(authorization));
            for is_unix in [false, true] {
                assert_eq!(status(&gate, &asked, is_unix), expected, "{authorization}");
            }
        }
    }
}
