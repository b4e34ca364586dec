//! Field syntax that the caching rules share: comma-separated lists (RFC 9110 §5.6.1), and fields that belong to a
//! connection rather than to a message (RFC 9110 §7.6.1).

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use super::claims;

/// Splits `value` at the commas outside quoted strings. Trims optional white space, and skips empty members, as RFC
/// 9110 §5.6.1.2 asks of a recipient.
pub fn list_members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    split_outside_quotes(value, b',').map(trim).filter(|member| !member.is_empty())
}

/// Returns the members of all field lines of `name`, in order.
pub fn members<'a>(fields: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    fields.get_all(name).into_iter().flat_map(|value| list_members(value.as_bytes()))
}

/// Returns fields with these names and values.
#[cfg(test)]
pub(crate) fn of_list(list: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for (name, value) in list {
        fields.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    fields
}

/// Splits `value` at each `separator` outside a quoted string. An unterminated quoted string runs to the end.
pub fn split_outside_quotes(value: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(value);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = separator_outside_quotes(text, separator);
        rest = end.map(|at| &text[at + 1..]);
        Some(&text[..end.unwrap_or(text.len())])
    })
}

fn separator_outside_quotes(text: &[u8], separator: u8) -> Option<usize> {
    let mut quoted = false;
    let mut bytes = text.iter().enumerate();
    while let Some((at, &byte)) = bytes.next() {
        match byte {
            b'"' => quoted = !quoted,
            // A quoted-pair: the next byte is data, whichever it is.
            b'\\' if quoted => {
                bytes.next();
            }
            _ if byte == separator && !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// Trims optional white space (space and tab) at both ends.
pub fn trim(text: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = text.iter().position(|byte| !is_space(byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !is_space(byte)).map_or(start, |at| at + 1);
    &text[start..end]
}

/// Returns whether `token` is a member of the list field `name`, in any case of letters.
pub fn has_member(fields: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    members(fields, name).any(|member| member.eq_ignore_ascii_case(token.as_bytes()))
}

/// Removes the hop-by-hop fields and every field that `Connection` lists.
///
/// Keeps names that the message needs end to end, even if `Connection` lists them. With `Connection: Host` from a
/// client, or `Cache-Control` listed by an origin, this proxy would otherwise drop what decides who may see a
/// response.
pub fn remove_hop_by_hop(fields: &mut HeaderMap) {
    remove_listed(fields);
    let present: SmallVec<[HeaderName; 4]> = fields.keys().filter(|name| is_hop_by_hop(name)).cloned().collect();
    for name in present {
        fields.remove(name);
    }
}

/// Returns whether `Connection` may list fields. Nearly every client sends `close`, `keep-alive` or no such field.
pub fn lists_fields(fields: &HeaderMap) -> bool {
    let mut values = fields.get_all(header::CONNECTION).iter();
    match (values.next(), values.next()) {
        (None, _) => false,
        (Some(one), None) => one != "keep-alive" && one != "close",
        (Some(_), Some(_)) => true,
    }
}

/// Removes the fields that `Connection` lists, but not those that HTTP itself defines for a connection. Keeps what
/// [`remove_hop_by_hop`] keeps. `Connection` then lists none of them any more, so that a field of the same name that this
/// proxy adds stays.
pub fn remove_listed(fields: &mut HeaderMap) {
    if !lists_fields(fields) {
        return;
    }
    let listed: Vec<HeaderValue> = fields.get_all(header::CONNECTION).iter().cloned().collect();
    for connection in &listed {
        drop_listed(fields, connection);
    }
    let options = listed.iter().flat_map(|connection| list_members(connection.as_bytes())).filter(|member| {
        member.eq_ignore_ascii_case(b"close") || HeaderName::from_bytes(member).is_ok_and(|name| is_hop_by_hop(&name))
    });
    match HeaderValue::from_bytes(&options.collect::<Vec<_>>().join(&b", "[..])) {
        Ok(left) if !left.is_empty() => drop(fields.insert(header::CONNECTION, left)),
        Ok(_) | Err(_) => drop(fields.remove(header::CONNECTION)),
    }
}

/// Returns whether a field concerns one connection only, and is neither stored nor forwarded (RFC 9110 §7.6.1, RFC
/// 9111 §3.1).
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    match *name {
        header::CONNECTION
        | header::TE
        | header::TRANSFER_ENCODING
        | header::UPGRADE
        | header::PROXY_AUTHENTICATE
        | header::PROXY_AUTHORIZATION => true,
        _ => {
            matches!(name.as_str(), "http2-settings" | "keep-alive" | "proxy-connection" | "proxy-authentication-info")
        }
    }
}

fn drop_listed(fields: &mut HeaderMap, connection: &HeaderValue) {
    for member in list_members(connection.as_bytes()) {
        let Ok(name) = HeaderName::from_bytes(member) else { continue };
        if !is_end_to_end(&name) && !is_hop_by_hop(&name) {
            fields.remove(name);
        }
    }
}

/// Returns whether the removal of a field would change who may see a message, how it is framed, or for whom a proxy
/// says that it is.
fn is_end_to_end(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::HOST
            | header::CONTENT_LENGTH
            | header::CONTENT_TYPE
            | header::CONTENT_ENCODING
            | header::CONTENT_RANGE
            | header::CACHE_CONTROL
            | header::VARY
            | header::SET_COOKIE
            | header::COOKIE
            | header::AUTHORIZATION
            | header::DATE
            | header::EXPIRES
            | header::AGE
            | header::RANGE
            | header::PRAGMA
            | header::VIA
    ) || claims::claim(name.as_str()).is_some()
        || name.as_str().ends_with("-cache-control")
        || matches!(
            name.as_str(),
            "surrogate-control" | "x-accel-expires" | "cache-groups" | "cache-group-invalidation"
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(value: &str) -> Vec<String> {
        list_members(value.as_bytes()).map(|m| String::from_utf8_lossy(m).into_owned()).collect()
    }

    #[test]
    fn lists_split_outside_quotes_only() {
        let table: &[(&str, &[&str])] = &[
            ("", &[]),
            (" , ,", &[]),
            ("a", &["a"]),
            ("a,b", &["a", "b"]),
            (" a\t, b ", &["a", "b"]),
            (r#"x="1,2", b"#, &[r#"x="1,2""#, "b"]),
            (r#"x="1\",2", b"#, &[r#"x="1\",2""#, "b"]),
            (r#"x="1\\", b"#, &[r#"x="1\\""#, "b"]),
            (r#"x="open, b"#, &[r#"x="open, b"#]),
            (r"x\,b", &["x\\", "b"]),
        ];
        for (value, expected) in table {
            assert_eq!(list(value), *expected, "{value}");
        }
    }

    #[test]
    fn hop_by_hop_fields_and_listed_ones_go_others_stay() {
        let mut fields = HeaderMap::new();
        for (name, value) in [
            ("connection", "x-hop, keep-alive"),
            ("connection", "X-Second"),
            ("x-hop", "1"),
            ("x-second", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("proxy-authenticate", "Basic"),
            ("proxy-connection", "keep-alive"),
            ("x-stays", "1"),
        ] {
            fields.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        remove_hop_by_hop(&mut fields);
        let left: Vec<_> = fields.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["x-stays"]);
    }

    #[test]
    fn connection_lists_no_field_after_those_that_it_listed_are_removed() {
        for (before, after) in [
            ("x-a, Upgrade, HTTP2-Settings, X-B", Some("Upgrade, HTTP2-Settings")),
            ("Close, x-a", Some("Close")),
            ("x-a,,cookie", None),
            ("keep-alive", Some("keep-alive")),
        ] {
            let mut fields = HeaderMap::new();
            fields.insert(header::CONNECTION, HeaderValue::from_static(before));
            fields.insert("x-a", HeaderValue::from_static("1"));
            remove_listed(&mut fields);
            let left = fields.get(header::CONNECTION).map(|value| value.to_str().expect("text"));
            assert_eq!(left, after, "{before}");
        }
    }

    #[test]
    fn connection_cannot_remove_what_protects_a_response() {
        let mut fields = HeaderMap::new();
        fields.insert(header::CONNECTION, HeaderValue::from_static("close, host, cache-control, cookie, vary, x"));
        fields.insert(header::HOST, HeaderValue::from_static("a"));
        fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("private"));
        fields.insert(header::COOKIE, HeaderValue::from_static("s=1"));
        fields.insert("x", HeaderValue::from_static("1"));
        remove_hop_by_hop(&mut fields);
        assert_eq!(fields.len(), 3);
        assert!(!fields.contains_key("x"));
    }
}
