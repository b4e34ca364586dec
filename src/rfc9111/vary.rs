//! Selects among variants (RFC 9111 §4.1): which request fields a response depends on, and when two requests are equal
//! in them.

use http::header::{self, HeaderMap, HeaderName};
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_128;

use super::claims::{self, Claim};
use super::fields;

/// The most nominated fields; a response that names more is not stored.
pub const MAX_NOMINATED: usize = 32;

/// The most members of a field of weighted tokens. A field with more is compared as it is, and prefers none.
const MAX_WEIGHTED: usize = 64;

/// The `Vary` of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vary {
    /// No nominated fields: every request for the key matches.
    None,
    /// A `*`, or a field that can't be read: no other request ever matches.
    Any,
    /// The nominated request fields, sorted, each once.
    Fields(Vec<HeaderName>),
}

/// The request fields that the configuration nominates for every response, or treats as one with another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nominated {
    /// The fields that every response depends on, as if its `Vary` named them.
    pub always: Vec<HeaderName>,
    /// Pairs of names that an application may take for one field. If one is nominated, both are.
    pub twins: Vec<(HeaderName, HeaderName)>,
}

impl Vary {
    /// Reads the `Vary` lines of a response, and adds the fields that the configuration nominates.
    pub fn of(response: &HeaderMap, nominated: &Nominated) -> Self {
        let mut names = nominated.always.clone();
        for member in fields::members(response, &header::VARY) {
            if member == b"*" {
                return Self::Any;
            }
            match HeaderName::from_bytes(member) {
                Ok(name) if is_in_the_key(&name) || nominated.always.contains(&name) => {}
                Ok(name) if !is_of_the_path(&name) => names.push(name),
                Ok(_) | Err(_) => return Self::Any,
            }
        }
        for (one, other) in &nominated.twins {
            match (names.contains(one), names.contains(other)) {
                (true, false) => names.push(other.clone()),
                (false, true) => names.push(one.clone()),
                (true, true) | (false, false) => {}
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

/// Returns whether a field is written by this proxy itself, from parts of every key.
fn is_in_the_key(name: &HeaderName) -> bool {
    *name == header::HOST || matches!(claims::claim(name.as_str()), Some(Claim::Proto | Claim::Host))
}

/// Returns whether the client's value of a field can't select a response: fields of the connection, and claims that do
/// not reach the origin as the client sent them.
fn is_of_the_path(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::CONNECTION | header::TE | header::UPGRADE | header::TRANSFER_ENCODING | header::TRAILER | header::VIA
    ) || claims::claim(name.as_str()).is_some()
}

/// Returns the values that `request` has in each of `names`, as bytes that are equal for two requests exactly if they
/// select the same variant. Each value is length-prefixed, and an absent field differs from an empty one.
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

/// Returns whether a stored response, selected by `selector` and with the fields `response`, answers `request` (§4.1,
/// last paragraph).
///
/// It does if every nominated field is equal, or if the response is in the one language, or the one coding, that the
/// request prefers to all others. A server that has the representation which a client prefers has no other to choose.
pub fn selects(selector: &[u8], response: &HeaderMap, request: &HeaderMap) -> bool {
    let Some(entries) = entries(selector) else { return false };
    entries.iter().all(|(name, value)| {
        let own = request.contains_key(name).then(|| normal_value(name, request));
        own.as_deref() == *value || is_preferred((name, *value), response, request)
    })
}

fn is_preferred(stored: SelectorEntry<'_>, response: &HeaderMap, request: &HeaderMap) -> bool {
    match (chosen(stored, response), preferred(stored.0, request)) {
        (Some(chosen), Some(preferred)) => chosen == preferred,
        _ => false,
    }
}

/// Returns further selectors that find a stored response, by the one language, or the one coding, that it is in. Empty
/// for nearly every response.
pub fn aliases_of_response(selector: &[u8], response: &HeaderMap) -> Vec<u128> {
    let Some(entries) = entries(selector) else { return Vec::new() };
    aliases(&entries, |stored| chosen(stored, response))
}

/// Returns the selectors of a response in the one language, or the one coding, that `request` prefers.
pub fn aliases_of_request(names: &[HeaderName], request: &HeaderMap) -> Vec<u128> {
    if !names.iter().any(is_negotiated) {
        return Vec::new();
    }
    let selector = selector(names, request);
    let Some(entries) = entries(&selector) else { return Vec::new() };
    aliases(&entries, |(name, _)| preferred(name, request))
}

/// One nominated field, and its normalised value where the request had it.
type SelectorEntry<'a> = (&'a HeaderName, Option<&'a [u8]>);

/// One entry read from a selector.
type OwnedSelectorEntry<'a> = (HeaderName, Option<&'a [u8]>);

/// Makes a selector for each choice of negotiated fields that are named by the chosen value instead of the requested
/// one.
fn aliases(entries: &[OwnedSelectorEntry<'_>], choice: impl Fn(SelectorEntry<'_>) -> Option<Vec<u8>>) -> Vec<u128> {
    let choices: SmallVec<[(usize, Vec<u8>); 2]> = entries
        .iter()
        .enumerate()
        .filter(|(_, (name, _))| is_negotiated(name))
        .filter_map(|(at, (name, value))| choice((name, *value)).map(|chosen| (at, chosen)))
        .collect();
    (1..1_usize << choices.len())
        .map(|mask| {
            let mut bytes = Vec::with_capacity(64);
            for (at, (name, value)) in entries.iter().enumerate() {
                let chosen = choices.iter().enumerate().find(|(n, (of, _))| *of == at && mask & (1 << n) != 0);
                push(&mut bytes, name.as_str().as_bytes());
                match (chosen, value) {
                    (Some((_, (_, chosen))), _) => {
                        bytes.push(2);
                        push(&mut bytes, chosen);
                    }
                    (None, Some(value)) => {
                        bytes.push(1);
                        push(&mut bytes, value);
                    }
                    (None, None) => bytes.push(0),
                }
            }
            xxh3_128(&bytes)
        })
        .collect()
}

/// Reads the entries of a selector.
fn entries(selector: &[u8]) -> Option<Vec<OwnedSelectorEntry<'_>>> {
    let mut rest = selector;
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let name = HeaderName::from_bytes(take(&mut rest)?).ok()?;
        let (&is_there, after) = rest.split_first()?;
        rest = after;
        let value = if is_there == 0 { None } else { Some(take(&mut rest)?) };
        entries.push((name, value));
    }
    Some(entries)
}

fn take<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (part, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*len)).ok()?)?;
    *bytes = rest;
    Some(part)
}

fn is_negotiated(name: &HeaderName) -> bool {
    *name == header::ACCEPT_LANGUAGE || *name == header::ACCEPT_ENCODING
}

/// Returns the one language, or the one coding, that a response is in. `None` if its own request did not ask by a
/// plain list: the response may repeat what was asked, and is for requests that ask the same.
fn chosen((name, asked): SelectorEntry<'_>, response: &HeaderMap) -> Option<Vec<u8>> {
    if !asked.is_none_or(|asked| fields::list_members(asked).all(|member| is_plain_member(name, member))) {
        return None;
    }
    let stated = if *name == header::ACCEPT_LANGUAGE { header::CONTENT_LANGUAGE } else { header::CONTENT_ENCODING };
    let mut members = fields::members(response, &stated);
    match (members.next(), members.next()) {
        (Some(member), None) => Some(canonical(name, member)),
        (None, _) if *name == header::ACCEPT_ENCODING => Some(b"identity".to_vec()),
        _ => None,
    }
}

/// Returns the value to which a request gives a higher weight than to all others; `None` if there is none, or it is
/// "*".
fn preferred(name: &HeaderName, request: &HeaderMap) -> Option<Vec<u8>> {
    let mut best: Option<(u16, &[u8])> = None;
    let mut is_tied = false;
    for (n, member) in fields::members(request, name).enumerate() {
        if n == MAX_WEIGHTED || !is_plain_member(name, member) {
            return None;
        }
        let mut parts = member.split(|&byte| byte == b';').map(fields::trim);
        let range = parts.next()?;
        let weight = match (parts.next(), parts.next()) {
            (None, _) => 1000,
            (Some(parameter), None) => weight(parameter)?,
            (Some(_), Some(_)) => return None,
        };
        match best {
            Some((top, _)) if weight < top => {}
            Some((top, _)) if weight == top => is_tied = true,
            Some(_) | None => (best, is_tied) = (Some((weight, range)), false),
        }
    }
    best.filter(|(weight, range)| !is_tied && *weight > 0 && *range != b"*").map(|(_, range)| canonical(name, range))
}

/// Returns whether `member` is a language range (RFC 4647 §2.1) or a coding that is known, with a weight or without.
fn is_plain_member(name: &HeaderName, member: &[u8]) -> bool {
    let mut parts = member.split(|&byte| byte == b';').map(fields::trim);
    let range = parts.next().unwrap_or_default();
    let is_known = match range {
        b"*" => true,
        range if *name == header::ACCEPT_LANGUAGE => is_language_range(range),
        range => CODINGS.iter().any(|coding| range.eq_ignore_ascii_case(coding)),
    };
    is_known && parts.next().is_none_or(|parameter| weight(parameter).is_some()) && parts.next().is_none()
}

/// Returns whether `range` is subtags of one to eight letters and digits, the first of letters alone.
fn is_language_range(range: &[u8]) -> bool {
    range.split(|&byte| byte == b'-').enumerate().all(|(n, subtag)| {
        (1..=8).contains(&subtag.len())
            && subtag.iter().all(|byte| byte.is_ascii_alphabetic() || (n > 0 && byte.is_ascii_digit()))
    })
}

/// The content codings of the registry that browsers and servers speak.
const CODINGS: [&[u8]; 10] =
    [b"gzip", b"br", b"zstd", b"deflate", b"identity", b"compress", b"x-gzip", b"x-compress", b"dcb", b"dcz"];

/// Parses `q=0.5` into thousandths (RFC 9110 §12.4.2).
fn weight(parameter: &[u8]) -> Option<u16> {
    let [b'q' | b'Q', b'=', value @ ..] = parameter else { return None };
    let (whole, fraction) = match value {
        [whole] => (*whole, &[][..]),
        [whole, b'.', fraction @ ..] if fraction.len() <= 3 => (*whole, fraction),
        _ => return None,
    };
    let mut thousandths = match whole {
        b'0' => 0,
        b'1' => 1000,
        _ => return None,
    };
    for (digit, unit) in fraction.iter().zip([100, 10, 1]) {
        thousandths += u16::from(digit.checked_sub(b'0').filter(|digit| *digit <= 9)?) * unit;
    }
    (thousandths <= 1000).then_some(thousandths)
}

/// Converts to lower case, and the old names of two codings to their new ones (RFC 9110 §8.4.1).
fn canonical(name: &HeaderName, text: &[u8]) -> Vec<u8> {
    let text = text.to_ascii_lowercase();
    match text.as_slice() {
        b"x-gzip" if *name == header::ACCEPT_ENCODING => b"gzip".to_vec(),
        b"x-compress" if *name == header::ACCEPT_ENCODING => b"compress".to_vec(),
        _ => text,
    }
}

fn push(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(part);
}

/// Returns the field's value without the differences that its grammar gives no meaning to (RFC 9111 §4.1): combined
/// lines, and white space; for fields of weighted tokens also order and case.
fn normal_value(name: &HeaderName, request: &HeaderMap) -> Vec<u8> {
    let lines = || request.get_all(name).iter().map(http::HeaderValue::as_bytes);
    match Grammar::of(name) {
        // The field is no list. Every byte may matter, and a wrong guess could mix two users' responses.
        Grammar::Opaque => lines().collect::<Vec<_>>().join(&b"\n"[..]),
        // The field may be a list: only white space round commas, and the split into lines, is ignored.
        Grammar::List => {
            let split = |line| fields::split_outside_quotes(line, b',').map(fields::trim);
            lines().flat_map(split).collect::<Vec<_>>().join(&b","[..])
        }
        // A list that is longer than anyone sends, or is not plain, is read differently by each application.
        Grammar::WeightedTokens if !is_plain_list(name, request) => lines().collect::<Vec<_>>().join(&b"\n"[..]),
        Grammar::WeightedTokens => {
            let mut members: Vec<Vec<u8>> = lines().flat_map(fields::list_members).map(weighted_token).collect();
            // The order of codings does not matter. Of languages with equal weight some servers take the first (RFC
            // 9110 §12.5.4).
            if *name == header::ACCEPT_ENCODING {
                members.sort();
                members.dedup();
            }
            members.join(&b","[..])
        }
    }
}

/// Returns whether a field is a list of plain members, at most [`MAX_WEIGHTED`], and none of them empty.
fn is_plain_list(name: &HeaderName, request: &HeaderMap) -> bool {
    let mut count = 0;
    request.get_all(name).iter().all(|line| {
        fields::split_outside_quotes(line.as_bytes(), b',').map(fields::trim).all(|member| {
            count += 1;
            count <= MAX_WEIGHTED && is_plain_member(name, member)
        })
    })
}

/// Returns `token;q=weight` in lower case, without white space round the semicolon, and without a weight of one.
fn weighted_token(member: &[u8]) -> Vec<u8> {
    let parts = member.split(|&byte| byte == b';').map(fields::trim);
    let mut text = parts.collect::<Vec<_>>().join(&b";"[..]).to_ascii_lowercase();
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
            (&[("vary", "X-Real-IP")], Vary::Any),
            (&[("vary", "X-Cluster-Client-IP")], Vary::Any),
            (&[("vary", "Forwarded")], Vary::Any),
            (&[("vary", "Remote-User")], Vary::Any),
        ];
        for (fields, expected) in table {
            assert_eq!(Vary::of(&map(fields), &Nominated::default()), *expected, "{fields:?}");
        }
    }

    #[test]
    fn the_configuration_nominates_fields_as_well() {
        let name = HeaderName::from_static;
        let nominated = Nominated {
            always: vec![name("x-forwarded-prefix")],
            twins: vec![(name("accept_language"), name("accept-language"))],
        };
        for (vary, expected) in [
            ("", Vary::Fields(vec![name("x-forwarded-prefix")])),
            ("X-Forwarded-Prefix", Vary::Fields(vec![name("x-forwarded-prefix")])),
            ("foo", Vary::Fields(vec![name("foo"), name("x-forwarded-prefix")])),
            (
                "Accept-Language",
                Vary::Fields(vec![name("accept-language"), name("accept_language"), name("x-forwarded-prefix")]),
            ),
            (
                "accept_language",
                Vary::Fields(vec![name("accept-language"), name("accept_language"), name("x-forwarded-prefix")]),
            ),
            ("X-Real-IP", Vary::Any),
            ("*", Vary::Any),
        ] {
            assert_eq!(Vary::of(&map(&[("vary", vary)]), &nominated), expected, "{vary}");
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
            ("foo", &[("foo", "a,")], &[("foo", "a")], false),
            ("foo", &[("foo", ",")], &[("foo", "")], false),
            ("foo", &[("foo", "\"a, b\"")], &[("foo", "\"a,b\"")], false),
            ("foo", &[], &[("foo", "")], false),
            ("foo", &[("bar", "1")], &[("bar", "2")], true),
            ("accept-language", &[("accept-language", "en, de")], &[("accept-language", "EN,de")], true),
            ("accept-language", &[("accept-language", "en, de")], &[("accept-language", "de, en")], false),
            ("accept-language", &[("accept-language", "d e")], &[("accept-language", "de")], false),
            ("accept-language", &[("accept-language", ",de")], &[("accept-language", "de")], false),
            ("accept-language", &[("accept-language", "de;q=1;x")], &[("accept-language", "de")], false),
            ("accept-encoding", &[("accept-encoding", "g zip")], &[("accept-encoding", "gzip")], false),
            (
                "accept-encoding",
                &[("accept-encoding", "gzip;q=0.5, evil")],
                &[("accept-encoding", "evil, gzip;q=0.5")],
                false,
            ),
            ("accept-language", &[("accept-language", "en;q=1.0")], &[("accept-language", "en")], true),
            ("accept-language", &[("accept-language", "en;q=0.5")], &[("accept-language", "en")], false),
            ("accept-language", &[("accept-language", "de, en;q=0.5")], &[("accept-language", "de, en; q=0.5")], true),
            ("accept-encoding", &[("accept-encoding", "gzip, br")], &[("accept-encoding", "br,gzip")], true),
            ("cookie", &[("cookie", "a=1,2")], &[("cookie", "a=1, 2")], false),
            ("cookie", &[("cookie", "s=a")], &[("cookie", "s=b")], false),
        ];
        for (name, a, b, equal) in table {
            let names = [HeaderName::from_static(name)];
            assert_eq!(selector(&names, &map(a)) == selector(&names, &map(b)), *equal, "{name} {a:?} {b:?}");
        }
    }

    #[test]
    fn a_language_or_coding_that_is_preferred_selects() {
        type Fields = &'static [(&'static str, &'static str)];
        // (stored request, stored response, new request, selected)
        let table: &[(Fields, Fields, Fields, bool)] = &[
            (&[("al", "en, de")], &[("cl", "de")], &[("al", "fr;q=0.5, de;q=1.0")], true),
            (&[("al", "en, de")], &[("cl", "DE")], &[("al", "de")], true),
            (&[("al", "en, de")], &[("cl", "de")], &[("al", "fr, de")], false),
            (&[("al", "en, de")], &[("cl", "de")], &[("al", "fr, de;q=0.9")], false),
            (&[("al", "en, de")], &[("cl", "de")], &[("al", "de-AT, de;q=0.9")], false),
            (&[("al", "en, de")], &[("cl", "de")], &[], false),
            (&[("al", "en, de")], &[("cl", "de")], &[("al", "*")], false),
            (&[("al", "en, de")], &[("cl", "de")], &[("al", "de;q=0")], false),
            (&[("al", "en, de")], &[("cl", "de")], &[("al", "de;q=2")], false),
            (&[("al", "en, de")], &[("cl", "de")], &[("al", "de;level=1")], false),
            (&[("al", "en, de")], &[("cl", "de, en")], &[("al", "de")], false),
            (&[("al", "en, de")], &[], &[("al", "de")], false),
            // Only plain lists select, and are selected, by what was chosen.
            (&[("al", "\"><script>, de")], &[("cl", "de")], &[("al", "de")], false),
            (&[("al", "de, x_y")], &[("cl", "de")], &[("al", "de")], false),
            (&[("al", "de;a=b")], &[("cl", "de")], &[("al", "de")], false),
            (&[("al", "de-verylongsubtag")], &[("cl", "de")], &[("al", "de")], false),
            (&[("al", "de-AT, *;q=0.1")], &[("cl", "de")], &[("al", "de")], true),
            (&[("al", "en, de")], &[("cl", "de")], &[("al", "de, <script>;q=0.1")], false),
            (&[("ae", "gzip, evil")], &[("ce", "gzip")], &[("ae", "gzip")], false),
            (&[("ae", "gzip, zstd;q=0.5")], &[("ce", "gzip")], &[("ae", "gzip, dcb;q=0.1")], true),
            (&[("al", "en, de"), ("foo", "1")], &[("cl", "de")], &[("al", "de"), ("foo", "1")], true),
            (&[("al", "en, de"), ("foo", "1")], &[("cl", "de")], &[("al", "de"), ("foo", "2")], false),
            (&[("ae", "gzip, br")], &[("ce", "gzip")], &[("ae", "x-gzip, br;q=0.1")], true),
            (&[("ae", "gzip, br")], &[("ce", "x-gzip")], &[("ae", "gzip")], true),
            (&[("ae", "gzip, br")], &[("ce", "gzip")], &[("ae", "br")], false),
            (&[("ae", "gzip, br")], &[], &[("ae", "identity")], true),
            (&[("ae", "gzip, br")], &[], &[("ae", "gzip")], false),
            (
                &[("al", "en, de"), ("ae", "gzip, br")],
                &[("cl", "de"), ("ce", "br")],
                &[("al", "de"), ("ae", "br")],
                true,
            ),
            (
                &[("al", "en, de"), ("ae", "gzip, br")],
                &[("cl", "de"), ("ce", "br")],
                &[("al", "de"), ("ae", "gzip, br")],
                true,
            ),
        ];
        let long = |name: &str| match name {
            "al" => header::ACCEPT_LANGUAGE,
            "ae" => header::ACCEPT_ENCODING,
            "cl" => header::CONTENT_LANGUAGE,
            "ce" => header::CONTENT_ENCODING,
            other => HeaderName::from_bytes(other.as_bytes()).expect("a name"),
        };
        let map = |list: Fields| -> HeaderMap {
            list.iter().map(|(name, value)| (long(name), HeaderValue::from_static(value))).collect()
        };
        for (stored, response, request, expected) in table {
            let (stored, response, request) = (map(stored), map(response), map(request));
            let mut names: Vec<HeaderName> = stored.keys().cloned().collect();
            names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
            let selector = selector(&names, &stored);
            assert_eq!(selects(&selector, &response, &request), *expected, "{response:?} {request:?}");
            assert!(selects(&selector, &response, &stored), "its own request selects it");
            let found = aliases_of_request(&names, &request)
                .iter()
                .any(|alias| aliases_of_response(&selector, &response).contains(alias));
            assert_eq!(found, *expected, "what selects is found: {response:?} {request:?}");
        }
    }
}
