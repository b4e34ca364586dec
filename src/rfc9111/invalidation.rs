//! Invalidation by unsafe requests (RFC 9111 §4.4).

use http::header::{self, HeaderMap, HeaderName};
use http::{Method, StatusCode, Uri};

use super::key::normal_authority;

/// A URI on the request's own origin whose stored responses are invalidated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedTarget {
    /// The path, with its slash.
    pub path: String,
    /// The query, without the question mark.
    pub query: Option<String>,
}

/// Returns whether a method is registered as safe (RFC 9110 §9.2.1, §16.1.1). An unknown method counts as unsafe.
pub fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::QUERY | Method::TRACE)
        || matches!(method.as_str(), "PROPFIND" | "REPORT" | "SEARCH")
}

/// Returns whether the response to an unsafe request says that it changed something: 2xx or 3xx.
pub fn is_non_error(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}

/// Returns the URIs that `Location` and `Content-Location` of a response name on the origin (`scheme`, `authority`) of
/// the request for `base_path`. URIs on other origins are left out, so that no response invalidates another owner's.
pub fn named_targets(response: &HeaderMap, scheme: &str, authority: &str, base_path: &str) -> Vec<NamedTarget> {
    [header::LOCATION, header::CONTENT_LOCATION]
        .iter()
        .filter_map(|name| named_target(response, name, scheme, authority, base_path))
        .collect()
}

/// Returns whether the response to a POST of (`base_path`, `query`) may answer a later GET of the same target: its
/// `Content-Location` names that target (RFC 9110 §9.3.3).
pub fn answers_get(response: &HeaderMap, scheme: &str, authority: &str, base_path: &str, query: Option<&str>) -> bool {
    let mut values = response.get_all(header::CONTENT_LOCATION).iter();
    let (Some(_), None) = (values.next(), values.next()) else { return false };
    named_target(response, &header::CONTENT_LOCATION, scheme, authority, base_path)
        .is_some_and(|target| target.path == base_path && target.query.as_deref() == query)
}

fn named_target(
    response: &HeaderMap,
    name: &HeaderName,
    scheme: &str,
    authority: &str,
    base_path: &str,
) -> Option<NamedTarget> {
    let reference = response.get(name)?.to_str().ok()?.trim();
    // A field of white space names nothing.
    if reference.is_empty() {
        return None;
    }
    resolve(reference, scheme, authority, base_path)
}

/// Resolves `reference` (RFC 3986 §5) against the request's URI; `None` if it leads to another origin.
fn resolve(reference: &str, scheme: &str, authority: &str, base_path: &str) -> Option<NamedTarget> {
    let reference = reference.split('#').next().unwrap_or_default();
    if let Some(rest) = reference.strip_prefix("//") {
        return resolve(&format!("{scheme}://{rest}"), scheme, authority, base_path);
    }
    let is_absolute = reference.split(['/', '?']).next().is_some_and(|first| first.contains(':'));
    if is_absolute {
        let uri: Uri = reference.parse().ok()?;
        let same_scheme = uri.scheme_str().is_some_and(|own| own.eq_ignore_ascii_case(scheme));
        let own = normal_authority(uri.authority()?.as_str(), scheme)?;
        if !same_scheme || own != authority {
            return None;
        }
        let path = if uri.path().is_empty() { "/" } else { uri.path() };
        return Some(NamedTarget { path: remove_dot_segments(path), query: uri.query().map(str::to_owned) });
    }
    let (path, query) = match reference.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (reference, None),
    };
    let path = if path.is_empty() {
        base_path.to_owned()
    } else if path.starts_with('/') {
        path.to_owned()
    } else {
        let directory = base_path.rfind('/').map_or("/", |at| &base_path[..=at]);
        format!("{directory}{path}")
    };
    Some(NamedTarget { path: remove_dot_segments(&path), query })
}

/// Removes dot segments (RFC 3986 §5.2.4).
fn remove_dot_segments(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if is_last {
                    kept.push("");
                }
            }
            _ => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolve_table() {
        let same =
            |path: &str, query: Option<&str>| Some(NamedTarget { path: path.into(), query: query.map(str::to_owned) });
        for (reference, expected) in [
            ("/b", same("/b", None)),
            ("/b?x=1#frag", same("/b", Some("x=1"))),
            ("b", same("/dir/b", None)),
            ("../b", same("/b", None)),
            ("./", same("/dir/", None)),
            ("", same("/dir/page", None)),
            ("?q", same("/dir/page", Some("q"))),
            ("http://host/b", same("/b", None)),
            ("HTTP://HOST:80/b/../c", same("/c", None)),
            ("//host/b", same("/b", None)),
            ("http://host", same("/", None)),
            ("https://host/b", None),
            ("http://other/b", None),
            ("//other/b", None),
            ("http://host:81/b", None),
            ("http://user@host/b", None),
            ("mailto:a@b", None),
            ("http://[bad/b", None),
        ] {
            assert_eq!(resolve(reference, "http", "host", "/dir/page"), expected, "{reference}");
        }
    }

    #[test]
    fn a_post_answers_get_only_for_its_own_target() {
        for (reference, query, expected) in [
            ("/dir/page", None, true),
            ("page", None, true),
            ("http://host/dir/page", None, true),
            ("/dir/page?a=1", Some("a=1"), true),
            ("/dir/page", Some("a=1"), false),
            ("/dir/page?a=1", None, false),
            ("/dir/other", None, false),
            ("http://other/dir/page", None, false),
            ("", None, false),
        ] {
            let mut response = HeaderMap::new();
            response.insert(header::CONTENT_LOCATION, http::HeaderValue::from_static(reference));
            assert_eq!(answers_get(&response, "http", "host", "/dir/page", query), expected, "{reference} {query:?}");
        }
        assert!(!answers_get(&HeaderMap::new(), "http", "host", "/", None));
    }

    #[test]
    fn unknown_methods_are_unsafe() {
        assert!(is_safe(&Method::OPTIONS));
        assert!(is_safe(&Method::from_bytes(b"REPORT").expect("a token")));
        assert!(!is_safe(&Method::PATCH));
        assert!(!is_safe(&Method::from_bytes(b"M-SEARCH").expect("a token")));
    }
}
