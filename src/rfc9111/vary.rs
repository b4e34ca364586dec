//! Selecting among variants (RFC 9111 §4.1): which request fields a response depends on, and what
//! makes two requests equal in them.

use http::header::{self, HeaderMap, HeaderName};

use super::fields;

/// At most this many nominated fields; a response that names more is not stored.
pub const MAX_NOMINATED: usize = 32;

/// The `Vary` of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vary {
    /// No nominated fields: any request for the key matches.
    None,
    /// `*` is a member, or the field can't be read: no other request ever matches.
    Any,
    /// The nominated request fields, sorted, each once.
    Fields(Vec<HeaderName>),
}

impl Vary {
    /// Reads the `Vary` lines of a response.
    pub fn of(response: &HeaderMap) -> Self {
        let mut names = Vec::new();
        for member in fields::members(response, &header::VARY) {
            if member == b"*" {
                return Self::Any;
            }
            match HeaderName::from_bytes(member) {
                Ok(name) if is_in_the_key(&name) => {}
                Ok(name) if !is_of_the_path(&name) => names.push(name),
                Ok(_) | Err(_) => return Self::Any,
            }
        }
        names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        names.dedup();
        match names.len() {
            0 => Self::None,
            1..=MAX_NOMINATED => Self::Fields(names),
            _ => Self::Any,
        }
    }
}

/// Fields that this proxy writes itself, from what is part of every key.
fn is_in_the_key(name: &HeaderName) -> bool {
    matches!(name.as_str(), "x-forwarded-proto" | "x-forwarded-host" | "host")
}

/// Fields in which proxies speak of the path that a request took. The origin sees others than the
/// client sent, so what the client sent can't select a response by them.
fn is_of_the_path(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::CONNECTION | header::TE | header::UPGRADE | header::TRANSFER_ENCODING | header::VIA | header::FORWARDED
    ) || name.as_str().starts_with("x-forwarded")
        || matches!(
            name.as_str(),
            "x-real-ip"
                | "x-client-ip"
                | "true-client-ip"
                | "x-host"
                | "x-original-host"
                | "x-original-url"
                | "x-rewrite-url"
        )
}

/// The value that `request` has in each of `names`, in one string of bytes: two requests select
/// the same variant exactly when these bytes are equal. Each value is length-prefixed, and an
/// absent field differs from an empty one.
pub fn selector(names: &[HeaderName], request: &HeaderMap) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    for name in names {
        push(&mut bytes, name.as_str().as_bytes());
        if request.contains_key(name) {
            bytes.push(1);
            push(&mut bytes, &normal_value(name, request));
        } else {
            bytes.push(0);
        }
    }
    bytes
}

fn push(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(part);
}

/// The field's value with the differences taken out that its grammar gives no meaning to
/// (RFC 9111 §4.1: combined lines, white space; for fields of weighted tokens also order and case).
fn normal_value(name: &HeaderName, request: &HeaderMap) -> Vec<u8> {
    let lines = || request.get_all(name).iter().map(http::HeaderValue::as_bytes);
    match Grammar::of(name) {
        // Not a list: its bytes are its meaning, and a guess here could mix two users.
        Grammar::Opaque => lines().collect::<Vec<_>>().join(&b"\n"[..]),
        Grammar::List => lines().flat_map(fields::list_members).collect::<Vec<_>>().join(&b","[..]),
        Grammar::WeightedTokens => {
            let mut members: Vec<Vec<u8>> = lines().flat_map(fields::list_members).map(weighted_token).collect();
            members.sort();
            members.dedup();
            members.join(&b","[..])
        }
    }
}

/// `token;q=weight` in lower case, without white space, and without a weight of one.
fn weighted_token(member: &[u8]) -> Vec<u8> {
    let mut text: Vec<u8> =
        member.iter().filter(|byte| !matches!(byte, b' ' | b'\t')).map(u8::to_ascii_lowercase).collect();
    for suffix in [&b";q=1.000"[..], b";q=1.00", b";q=1.0", b";q=1.", b";q=1"] {
        if text.ends_with(suffix) {
            text.truncate(text.len() - suffix.len());
            break;
        }
    }
    text
}

enum Grammar {
    Opaque,
    List,
    WeightedTokens,
}

impl Grammar {
    fn of(name: &HeaderName) -> Self {
        match *name {
            header::ACCEPT_LANGUAGE | header::ACCEPT_ENCODING | header::ACCEPT_CHARSET => Self::WeightedTokens,
            header::COOKIE
            | header::AUTHORIZATION
            | header::PROXY_AUTHORIZATION
            | header::USER_AGENT
            | header::REFERER
            | header::ORIGIN
            | header::HOST
            | header::FROM => Self::Opaque,
            _ => Self::List,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn vary_table() {
        let names = |list: &[&'static str]| Vary::Fields(list.iter().map(|n| HeaderName::from_static(n)).collect());
        let table: &[(&[(&'static str, &'static str)], Vary)] = &[
            (&[], Vary::None),
            (&[("vary", "")], Vary::None),
            (&[("vary", "Foo, bar,foo")], names(&["bar", "foo"])),
            (&[("vary", "Foo"), ("vary", "bar")], names(&["bar", "foo"])),
            (&[("vary", "*")], Vary::Any),
            (&[("vary", ", *")], Vary::Any),
            (&[("vary", "foo"), ("vary", "*, a")], Vary::Any),
            (&[("vary", "fo o")], Vary::Any),
            (&[("vary", "X-Forwarded-Proto, Host, foo")], names(&["foo"])),
            (&[("vary", "X-Forwarded-For")], Vary::Any),
            (&[("vary", "Connection")], Vary::Any),
        ];
        for (fields, expected) in table {
            assert_eq!(Vary::of(&map(fields)), *expected, "{fields:?}");
        }
    }

    #[test]
    fn equal_and_unequal_selections() {
        type Fields = &'static [(&'static str, &'static str)];
        let table: &[(&'static str, Fields, Fields, bool)] = &[
            ("foo", &[("foo", "1, 2")], &[("foo", "1"), ("foo", "2")], true),
            ("foo", &[("foo", "1,2")], &[("foo", "1,  2")], true),
            ("foo", &[("foo", "1,2")], &[("foo", "2,1")], false),
            ("foo", &[("foo", "a")], &[("foo", "A")], false),
            ("foo", &[("foo", "\"a, b\"")], &[("foo", "\"a,b\"")], false),
            ("foo", &[], &[("foo", "")], false),
            ("foo", &[("bar", "1")], &[("bar", "2")], true),
            ("accept-language", &[("accept-language", "en, de")], &[("accept-language", "DE,en")], true),
            ("accept-language", &[("accept-language", "en;q=1.0")], &[("accept-language", "en")], true),
            ("accept-language", &[("accept-language", "en;q=0.5")], &[("accept-language", "en")], false),
            ("accept-language", &[("accept-language", "en;q=0.5, de")], &[("accept-language", "de, en; q=0.5")], true),
            ("accept-encoding", &[("accept-encoding", "gzip, br")], &[("accept-encoding", "br,gzip")], true),
            ("cookie", &[("cookie", "a=1,2")], &[("cookie", "a=1, 2")], false),
            ("cookie", &[("cookie", "s=a")], &[("cookie", "s=b")], false),
        ];
        for (name, a, b, equal) in table {
            let names = [HeaderName::from_static(name)];
            assert_eq!(selector(&names, &map(a)) == selector(&names, &map(b)), *equal, "{name} {a:?} {b:?}");
        }
    }
}
