//! Request fields that an application could take for the word of a proxy in front of it: about the client's address,
//! host, scheme or path, about who the client is, or about which method it means.
//!
//! This is the only list of such names. It decides which fields are removed from a request, which select nothing, and
//! which become part of the key where `server.trusted_fields` lists them. It reads names only; `forwarding` decides
//! whose word counts.

use http::header::{self, HeaderName};

/// The subject that a field makes a claim about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// `X-Forwarded-For`: the addresses that a request came through.
    For,
    /// `X-Forwarded-Proto`: the client's scheme. It is in every key.
    Proto,
    /// `X-Forwarded-Host`: the client's host. It is in every key.
    Host,
    /// An older field that says whether the client uses TLS.
    Tls,
    /// The client's address, in one of the fields that hold nothing else.
    Address,
    /// A method that replaces that of the request line.
    Method,
    /// Anything else: path, port, server, identity, certificate.
    Other,
}

/// Returns the claim that a field of this name makes; `None`: it makes none. `name` is in lower case.
pub fn claim(name: &str) -> Option<Claim> {
    let found = match name.as_bytes() {
        [b'x', b'-', ..] => return claim_of_x(name),
        [b'f', ..] => match name {
            "front-end-https" | "fastly-ssl" => Claim::Other,
            "fastly-client-ip" | "fly-client-ip" => Claim::Address,
            _ if name.starts_with("forwarded") => Claim::Other,
            _ => return None,
        },
        [b'c', ..] => match name {
            "client-ip" | "cluster-client-ip" | "cf-connecting-ip" | "cf-connecting-ipv6" | "cf-pseudo-ipv4"
            | "cdn-src-ip" => Claim::Address,
            "cf-visitor" => Claim::Other,
            _ if name.starts_with("cf-access-") || name.starts_with("cloudfront-") => Claim::Other,
            // RFC 9440 §2: a proxy removes these from what clients send.
            "client-cert" | "client-cert-chain" => Claim::Other,
            _ => return None,
        },
        [b't', ..] => match name {
            "true-client-ip" => Claim::Address,
            _ if name.starts_with("tls-client-") || name.starts_with("tailscale-") => Claim::Other,
            _ => return None,
        },
        [b'h' | b'm' | b'o', ..] => match name {
            "http-method-override" | "method-override" => Claim::Method,
            "https" | "http-host" => Claim::Other,
            _ if name.starts_with("oidc-") => Claim::Other,
            _ => return None,
        },
        [b'r', ..] => match name {
            "remote-addr" => Claim::Address,
            "remote-user" | "remote-host" | "remote-groups" | "remote-name" | "remote-email" | "request-uri" => {
                Claim::Other
            }
            _ => return None,
        },
        [b'p', ..] => match name {
            // CGI makes HTTP_PROXY of it, which client libraries obey.
            "proxy" | "path-info" | "path-translated" => Claim::Other,
            "proxy-client-ip" => Claim::Address,
            _ => return None,
        },
        [b's', b's' | b'c' | b'm' | b'h', ..] => match name {
            "ssl" | "script-name" | "script-filename" | "sm-user" => Claim::Other,
            _ if name.starts_with("ssl-") || name.starts_with("shib-") => Claim::Other,
            _ => return None,
        },
        [b'a' | b'b' | b'd' | b'i' | b'w', ..] => match name {
            "ali-cdn-real-ip" | "do-connecting-ip" | "incap-client-ip" | "wl-proxy-client-ip" => Claim::Address,
            "base-url" | "auth-user" => Claim::Other,
            _ if name.starts_with("wl-proxy-") => Claim::Other,
            _ => return None,
        },
        _ => return None,
    };
    Some(found)
}

/// Returns the claim that a field makes whose name begins with `x-`.
fn claim_of_x(name: &str) -> Option<Claim> {
    match name {
        "x-forwarded-for" => Some(Claim::For),
        "x-forwarded-proto" => Some(Claim::Proto),
        "x-forwarded-host" => Some(Claim::Host),
        _ => match X_NAMES.binary_search_by(|(known, _)| (*known).cmp(name)) {
            Ok(at) => Some(X_NAMES[at].1),
            Err(_) => X_PREFIXES.iter().any(|prefix| name.starts_with(prefix)).then_some(Claim::Other),
        },
    }
}

/// The claims of names that begin with `x-`, sorted by name.
const X_NAMES: [(&str, Claim); 62] = [
    ("x-appengine-remote-addr", Claim::Address),
    ("x-appengine-user-ip", Claim::Address),
    ("x-arr-clientcert", Claim::Other),
    ("x-arr-ssl", Claim::Other),
    ("x-auth-email", Claim::Other),
    ("x-auth-user", Claim::Other),
    ("x-auth-username", Claim::Other),
    ("x-azure-clientip", Claim::Address),
    ("x-azure-socketip", Claim::Address),
    ("x-backend-host", Claim::Other),
    ("x-base-path", Claim::Other),
    ("x-base-url", Claim::Other),
    ("x-client-dn", Claim::Other),
    ("x-client-ip", Claim::Address),
    ("x-client-port", Claim::Other),
    ("x-client-scheme", Claim::Other),
    ("x-cluster-client-ip", Claim::Address),
    ("x-envoy-external-address", Claim::Address),
    ("x-forwarded-protocol", Claim::Tls),
    ("x-forwarded-scheme", Claim::Tls),
    ("x-forwarded-ssl", Claim::Tls),
    ("x-host", Claim::Other),
    ("x-host-override", Claim::Other),
    ("x-http-destinationurl", Claim::Other),
    ("x-http-host", Claim::Other),
    ("x-http-host-override", Claim::Other),
    ("x-http-method", Claim::Method),
    ("x-http-method-override", Claim::Method),
    ("x-http-path-override", Claim::Other),
    ("x-https", Claim::Other),
    ("x-ingress-path", Claim::Other),
    ("x-method-override", Claim::Method),
    ("x-mount-path", Claim::Other),
    ("x-nf-client-connection-ip", Claim::Address),
    ("x-original-forwarded-for", Claim::Address),
    ("x-original-remote-addr", Claim::Address),
    ("x-originating-ip", Claim::Address),
    ("x-path-info", Claim::Other),
    ("x-prefix", Claim::Other),
    ("x-proto", Claim::Other),
    ("x-protocol", Claim::Other),
    ("x-proxy-host", Claim::Other),
    ("x-proxy-url", Claim::Other),
    ("x-proxyuser-ip", Claim::Address),
    ("x-real-client-ip", Claim::Address),
    ("x-real-ip", Claim::Address),
    ("x-remote-addr", Claim::Address),
    ("x-remote-ip", Claim::Address),
    ("x-request-uri", Claim::Other),
    ("x-scheme", Claim::Other),
    ("x-script-name", Claim::Other),
    ("x-sendfile-type", Claim::Other),
    ("x-server-name", Claim::Other),
    ("x-server-port", Claim::Other),
    ("x-sucuri-clientip", Claim::Address),
    ("x-true-client-ip", Claim::Address),
    ("x-tunneled-method", Claim::Method),
    ("x-url-scheme", Claim::Other),
    ("x-userinfo", Claim::Other),
    ("x-vercel-forwarded-for", Claim::Address),
    ("x-vercel-ip", Claim::Address),
    ("x-wap-profile", Claim::Other),
];

/// The beginnings of further names, which make claims of the kind [`Claim::Other`].
const X_PREFIXES: [&str; 28] = [
    "x-forward",
    "x-envoy-",
    "x-ssl",
    "x-tls-client-",
    "x-client-cert",
    "x-client-verify",
    "x-auth-request-",
    "x-authenti",
    "x-remote-",
    "x-webauth-",
    "x-vouch-",
    "x-consumer-",
    "x-pomerium-",
    "x-ms-client-principal",
    "x-goog-authenticated-",
    "x-amzn-oidc-",
    "x-appengine-",
    "x-accel-",
    "x-original-",
    "x-rewrite-",
    "x-rewritten-",
    "x-real-",
    // Fields that route requests inside frameworks, and that the framework's own proxy sets.
    "x-middleware-",
    "x-invoke-",
    "x-now-",
    "x-react-router-",
    "x-astro-",
    "x-matched-",
];

/// Returns whether a name consists of letters, digits and hyphens. `name` is in lower case.
///
/// CGI and WSGI turn hyphens into underscores, and some applications any other character. A name with such characters,
/// which RFC 9110 §5.1 allows, could pass there for one of this list.
pub fn is_plain(name: &str) -> bool {
    name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

/// Returns the name that an application may take `name` for, with a hyphen for every character but letters and digits.
pub fn twin(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

/// Returns whether requests with a field of this name have to be examined. Common names are recognised without a look
/// at their letters.
pub fn stands_out(name: &HeaderName) -> bool {
    match *name {
        header::HOST
        | header::USER_AGENT
        | header::ACCEPT
        | header::ACCEPT_ENCODING
        | header::ACCEPT_LANGUAGE
        | header::COOKIE
        | header::REFERER
        | header::ORIGIN
        | header::CONTENT_TYPE
        | header::CONTENT_LENGTH
        | header::AUTHORIZATION
        | header::VIA
        | header::DNT
        | header::TE
        | header::EXPECT
        | header::UPGRADE_INSECURE_REQUESTS => false,
        _ => !is_plain(name.as_str()) || claim(name.as_str()).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order() {
        assert!(X_NAMES.is_sorted_by(|(a, _), (b, _)| a < b));
        for (name, expected) in X_NAMES {
            assert_eq!(claim(name), Some(expected), "{name}");
        }
    }

    #[test]
    fn claims_are_known_by_their_names() {
        for (name, expected) in [
            ("x-forwarded-for", Some(Claim::For)),
            ("x-forwarded-proto", Some(Claim::Proto)),
            ("x-forwarded-host", Some(Claim::Host)),
            ("x-forwarded-ssl", Some(Claim::Tls)),
            ("x-forwarded-protocol", Some(Claim::Tls)),
            ("x-forwarded-scheme", Some(Claim::Tls)),
            ("x-forwarded", Some(Claim::Other)),
            ("x-forwarded-prefix", Some(Claim::Other)),
            ("x-forwarded-anything-new", Some(Claim::Other)),
            ("x-forward-for", Some(Claim::Other)),
            ("forwarded-host", Some(Claim::Other)),
            ("x-original-prefix", Some(Claim::Other)),
            ("x-middleware-prefetch", Some(Claim::Other)),
            ("x-authentik-username", Some(Claim::Other)),
            ("https", Some(Claim::Other)),
            ("x-auth-token", None),
            ("forwarded", Some(Claim::Other)),
            ("x-real-ip", Some(Claim::Address)),
            ("x-cluster-client-ip", Some(Claim::Address)),
            ("true-client-ip", Some(Claim::Address)),
            ("x-remote-addr", Some(Claim::Address)),
            ("x-remote-user", Some(Claim::Other)),
            ("proxy", Some(Claim::Other)),
            ("remote-user", Some(Claim::Other)),
            ("ssl-client-s-dn", Some(Claim::Other)),
            ("x-ssl-client-verify", Some(Claim::Other)),
            ("x-http-method-override", Some(Claim::Method)),
            ("x-requested-with", None),
            ("x-csrf-token", None),
            ("x-request-id", None),
            ("proxy-authorization", None),
            ("sec-fetch-site", None),
            ("range", None),
            ("cookie", None),
            ("", None),
        ] {
            assert_eq!(claim(name), expected, "{name}");
            if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
                assert_eq!(stands_out(&name), expected.is_some(), "{name}");
            }
        }
    }

    #[test]
    fn names_that_could_pass_for_others_stand_out() {
        for (name, passes_for) in [
            ("accept_language", "accept-language"),
            ("x.forwarded.for", "x-forwarded-for"),
            ("a!b", "a-b"),
            ("content_length", "content-length"),
        ] {
            assert!(!is_plain(name) && stands_out(&HeaderName::from_static(name)), "{name}");
            assert_eq!(twin(name), passes_for);
        }
        assert!(is_plain("accept-language") && is_plain("x-3"));
    }
}
