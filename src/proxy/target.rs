//! The target of a request: its key, its rule, and the form in which the origin is asked for it.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use http::header;
use http::{Method, Request, Uri, Version};

use crate::proxy::Rules;
use crate::proxy::access::RequestId;
use crate::proxy::rules::{Ambiguous, Resolved};
use crate::respond::Refusal;
use crate::rfc9111::fields;
use crate::rfc9111::key::{CacheKey, KeyParts, QueryRules, normal_authority};
use crate::rfc9111::present::Present;
use crate::rfc9111::storage::StoragePolicy;
use crate::upstream::forwarding::Original;
use crate::upstream::{ClientBody, Content};

/// The target of a request, worked out once.
#[derive(Debug)]
pub(crate) struct RequestTarget<'a> {
    /// The scheme that the client used.
    pub scheme: &'static str,
    /// The key of its URI.
    pub key: CacheKey,
    /// The rule for its host, path and method.
    pub rule: &'a Resolved,
    /// The rules by which its query is in the key.
    pub query: &'a QueryRules,
    /// The content of a QUERY whose digest is in the key. Such a request goes on as a GET, and is a QUERY to the origin.
    pub content: Option<Content>,
    /// The id that all log lines of the request have, once one has needed it.
    pub(super) id: OnceLock<Box<RequestId>>,
}

impl RequestTarget<'_> {
    /// Returns the method of the request to the origin, where `method` is that of the request here.
    pub(super) fn method<'m>(&self, method: &'m Method) -> &'m Method {
        if self.content.is_some() { &Method::QUERY } else { method }
    }

    /// Returns the policy by which a response is stored.
    pub(super) fn policy(&self) -> &Arc<StoragePolicy> {
        if self.content.is_some() { &self.rule.policy_of_query } else { &self.rule.policy }
    }

    /// Returns the host as it is in the key and as the origin is told. One client's own spelling must not come back in
    /// a page that others get.
    pub(crate) fn authority(&self) -> &str {
        self.key.authority().unwrap_or_default()
    }

    /// Returns the id of the request, which is made at the first call.
    pub(super) fn id(&self) -> RequestId {
        **self.id.get_or_init(|| Box::new(RequestId::random()))
    }
}

/// Makes keys.
#[derive(Debug)]
pub struct Keys {
    /// The rules.
    pub rules: Rules,
    /// `cache.key_prefix`
    pub prefix: String,
}

impl Keys {
    /// Works out the target of a request, or the refusal that it gets.
    pub(crate) fn target(
        &self,
        original: &Original,
        request: &Request<ClientBody>,
        present: Present,
    ) -> Result<RequestTarget<'_>, Refusal> {
        if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
            return Err(Refusal::Method);
        }
        if request.method().as_str() == "PURGE" {
            return Err(Refusal::Purge);
        }
        let is_other = |(n, coding): (usize, &[u8])| n > 0 || !coding.eq_ignore_ascii_case(b"chunked");
        if present.has(Present::TRANSFER_ENCODING)
            && fields::members(request.headers(), &header::TRANSFER_ENCODING).enumerate().any(is_other)
        {
            return Err(Refusal::TransferCoding);
        }
        let is_in_form = match request.uri().path() {
            "*" => *request.method() == Method::OPTIONS,
            path => path.starts_with('/') || (path.is_empty() && request.uri().scheme().is_some()),
        };
        if !is_in_form {
            return Err(Refusal::Target);
        }
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (_, Some(_)) => return Err(Refusal::Hosts),
            (Some(host), None) => host.to_str().map_err(|_| Refusal::Host)?,
            // RFC 9113 §8.3.1: `:authority` stands for Host.
            (None, None) if request.version() == Version::HTTP_10 => "",
            (None, None) if request.version() >= Version::HTTP_2 && request.uri().authority().is_some() => "",
            (None, None) => return Err(Refusal::NoHost),
        };
        // RFC 9113 §8.3.1: both name one host, so that nobody goes by the other one.
        if request.version() == Version::HTTP_2
            && !host.is_empty()
            && request.uri().authority().is_some_and(|authority| !authority.as_str().eq_ignore_ascii_case(host))
        {
            return Err(Refusal::OtherHost);
        }
        // RFC 9112 §3.2.2: the authority of a target in absolute form goes before Host.
        let host = match request.uri().authority() {
            Some(authority) => authority.as_str(),
            None => host,
        };
        let host = match &original.host {
            Some(told) if !told.is_empty() => told.to_str().map_err(|_| Refusal::ForwardedHost)?,
            Some(_) | None => host,
        };
        let authority = if host.is_empty() && request.version() == Version::HTTP_10 {
            "".into()
        } else {
            normal_authority(host, original.scheme).ok_or(Refusal::Host)?
        };
        let path = request.uri().path();
        let method = request.method();
        let rule = self.rules.matching(&authority, method, path).map_err(|Ambiguous| Refusal::Path)?;
        let by_get = self.rules.differ_from_get(method).then(|| self.rules.query(&authority, path));
        let query = by_get.unwrap_or(&rule.rule.query);
        let key = self.key_with(query, original.scheme, &authority, path, request.uri().query());
        Ok(RequestTarget { scheme: original.scheme, key, rule, query, content: None, id: OnceLock::new() })
    }

    /// Returns the key of a URI.
    pub fn key(&self, scheme: &str, authority: &str, path: &str, query: Option<&str>) -> CacheKey {
        self.key_with(self.rules.query(authority, path), scheme, authority, path, query)
    }

    /// Returns whether GET has the same rule for the path of `target` as the request.
    pub(super) fn has_rule_of_get(&self, target: &RequestTarget<'_>, path: &str) -> bool {
        let of_get = self.rules.matching(target.authority(), &Method::GET, path);
        of_get.is_ok_and(|rule| std::ptr::eq(rule, target.rule))
    }

    fn key_with(&self, rules: &QueryRules, scheme: &str, authority: &str, path: &str, query: Option<&str>) -> CacheKey {
        let prefix = &self.prefix;
        match query {
            Some(query) if !rules.is_empty() => {
                let query = rules.apply(query);
                CacheKey::new(KeyParts { prefix, scheme, authority, path, query: query.as_deref() })
            }
            query => CacheKey::new(KeyParts { prefix, scheme, authority, path, query }),
        }
    }
}

/// Returns whether a request asks for a change of protocols that is passed on. Otherwise its `Upgrade` is dropped, and
/// it is an ordinary request.
pub(super) fn is_upgrade(request: &Request<ClientBody>, present: Present) -> bool {
    present.has(Present::UPGRADE)
        && *request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && request.body().is_none()
        && fields::has_member(request.headers(), &header::CONNECTION, "upgrade")
        // HTTP/2 in clear text would carry further requests past this proxy.
        && !fields::members(request.headers(), &header::UPGRADE).any(|protocol| {
            protocol.to_ascii_lowercase().starts_with(b"h2")
        })
}

/// Returns the target for a request to the origin on behalf of everybody: without the parameters that the key ignores.
/// An application could repeat them in a page that others get.
pub(super) fn shared_form<'a>(uri: &'a Uri, rules: &QueryRules) -> Cow<'a, Uri> {
    let uri = origin_form(uri);
    let Some((query, kept)) = uri.query().map(|query| (query, rules.without_ignored(query))) else { return uri };
    if kept.as_deref() == Some(query) {
        return uri;
    }
    let target = kept.map_or_else(|| uri.path().to_owned(), |kept| format!("{}?{kept}", uri.path()));
    target.parse().map_or(uri, Cow::Owned)
}

/// Returns the target in origin form.
pub(super) fn origin_form(uri: &Uri) -> Cow<'_, Uri> {
    match uri.path_and_query() {
        // Behind an authority may be nothing but a fragment, which leaves no path.
        Some(target) if uri.authority().is_some() && target.as_str() == "/" => Cow::Owned(Uri::default()),
        Some(target) if uri.authority().is_some() => Cow::Owned(Uri::from(target.clone())),
        _ => Cow::Borrowed(uri),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_in_origin_form_is_never_empty() {
        for (target, expected) in [
            ("http://site.example", "/"),
            ("http://site.example/", "/"),
            ("http://site.example#a", "/"),
            ("http://site.example/#a", "/"),
            ("http://site.example?a", "/?a"),
            ("http://site.example/a?b#c", "/a?b"),
            ("/a?b", "/a?b"),
            ("*", "*"),
        ] {
            let uri = target.parse().expect("a target");
            assert_eq!(origin_form(&uri).to_string(), expected, "{target}");
        }
    }
}
