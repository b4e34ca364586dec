//! No-Vary-Search (draft-ietf-httpbis-no-vary-search): the differences between queries that an origin says do not
//! matter.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use http::header::{HeaderMap, HeaderName};

use super::structured::{self, Bare, Member};

/// The field.
pub const NO_VARY_SEARCH: HeaderName = HeaderName::from_static("no-vary-search");

/// The most parameter names that are followed. A field with more counts as absent.
pub const MAX_NAMES: usize = 64;

/// The most bytes of all names together. A field with more counts as absent.
pub const MAX_NAMES_LEN: usize = 4096;

/// The differences between queries that matter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SearchVariance {
    params: Params,
    /// True if the order of parameters matters.
    order_matters: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Params {
    /// All parameters but these matter.
    AllBut(BTreeSet<String>),
    /// Only these parameters matter.
    NoneBut(BTreeSet<String>),
}

impl SearchVariance {
    /// Reads the field of a response. `None` if there is none, it can't be read, or it states the default: then every
    /// difference matters.
    pub fn of(response: &HeaderMap) -> Option<Self> {
        if !response.contains_key(&NO_VARY_SEARCH) {
            return None;
        }
        let members = structured::dictionary(response, &NO_VARY_SEARCH)?;
        let value = |name: &str| members.iter().find(|(key, _)| key == name).map(|(_, member)| member);
        let order_matters = match value("key-order") {
            None => true,
            Some(Member::Item(Bare::Boolean(ignored))) => !ignored,
            Some(_) => return None,
        };
        let except = match value("except") {
            None => None,
            Some(Member::List(names)) => Some(strings(names)?),
            Some(_) => return None,
        };
        let params = match (value("params"), except) {
            (Some(Member::Item(Bare::Boolean(true))), except) => Params::NoneBut(except.unwrap_or_default()),
            // "except" has a meaning only beside "params" that is true.
            (_, Some(_)) => return None,
            (None | Some(Member::Item(Bare::Boolean(false))), None) => Params::AllBut(BTreeSet::new()),
            (Some(Member::List(names)), None) => Params::AllBut(strings(names)?),
            (Some(_), None) => return None,
        };
        let variance = Self { params, order_matters };
        (variance != Self { params: Params::AllBut(BTreeSet::new()), order_matters: true }).then_some(variance)
    }

    /// Returns a text that is equal for two queries exactly if a response to one, with this variance, answers the
    /// other. It begins with a byte that no query has.
    pub fn key(&self, query: Option<&str>) -> String {
        let mut pairs: Vec<(String, String)> = parse(query.unwrap_or_default());
        pairs.retain(|(name, _)| self.matters(name));
        if !self.order_matters {
            // The sort is stable: the order of values under one name is kept.
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
        }
        let mut key = String::from("\0");
        let (word, names) = match &self.params {
            Params::AllBut(names) => ("all", names),
            Params::NoneBut(names) => ("none", names),
        };
        let _ = write!(key, "{word},{},{}", self.order_matters, names.len());
        for name in names {
            push(&mut key, name);
        }
        for (name, value) in &pairs {
            push(&mut key, name);
            push(&mut key, value);
        }
        key
    }

    fn matters(&self, name: &str) -> bool {
        match &self.params {
            Params::AllBut(names) => !names.contains(name),
            Params::NoneBut(names) => names.contains(name),
        }
    }
}

/// Adds a text behind its length, so that no sequence of texts reads as another.
fn push(key: &mut String, text: &str) {
    let _ = write!(key, "\0{}:{text}", text.len());
}

/// Returns the names decoded, as a query's names are.
fn strings(names: &[Bare]) -> Option<BTreeSet<String>> {
    if names.len() > MAX_NAMES {
        return None;
    }
    let len: usize = names.iter().map(|name| if let Bare::String(text) = name { text.len() } else { 0 }).sum();
    if len > MAX_NAMES_LEN {
        return None;
    }
    names
        .iter()
        .map(|name| match name {
            Bare::String(text) => Some(decode(text.as_bytes())),
            Bare::Integer(_) | Bare::Boolean(_) | Bare::Token(_) | Bare::Other => None,
        })
        .collect()
}

/// Parses `application/x-www-form-urlencoded`, as the URL standard does.
fn parse(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name.as_bytes()), decode(value.as_bytes()))
        })
        .collect()
}

/// Undoes escapes. Bytes that are not UTF-8 become U+FFFD, as in the URL standard.
fn decode(text: &[u8]) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let escaped = match (byte, text.get(at + 1), text.get(at + 2)) {
            (b'%', Some(high), Some(low)) => hex(*high).zip(hex(*low)).map(|(high, low)| high * 16 + low),
            _ => None,
        };
        match escaped {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(if byte == b'+' { b' ' } else { byte });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of(value: &str) -> Option<SearchVariance> {
        let mut fields = HeaderMap::new();
        fields.append(NO_VARY_SEARCH, HeaderValue::from_str(value).expect("test value"));
        SearchVariance::of(&fields)
    }

    #[test]
    fn equivalence_table() {
        for (field, a, b, same) in [
            ("params=(\"utm\")", "a=1&utm=x", "a=1", true),
            ("params=(\"utm\")", "a=1&utm=x", "a=1&utm=y&utm=z", true),
            ("params=(\"utm\")", "a=1", "a=2", false),
            ("params=(\"utm\")", "utm=1", "", true),
            ("params=(\"utm\")", "Utm=1", "", false),
            ("params=(\"u m\")", "u+m=1&a", "a&u%20m=2", true),
            ("params=(\"u+m\")", "u%20m=1", "", true),
            ("params=(\"ü\")", "", "", true),
            ("params=(\"%C3%BC\")", "%c3%bc=1", "", true),
            ("params", "a=1&b=2", "", true),
            ("params, except=(\"id\")", "id=1&b=2", "c=3&id=1", true),
            ("params, except=(\"id\")", "id=1", "id=2", false),
            ("params, except=()", "id=1", "", true),
            ("key-order", "a=1&b=2", "b=2&a=1", true),
            ("key-order", "a=1&a=2", "a=2&a=1", false),
            ("key-order", "a=1&b=2", "b=2", false),
            ("params=(\"u\"), key-order", "a=1&u=0&b=2", "b=2&a=1", true),
            ("params=(\"u\")", "a=1&b=2", "b=2&a=1", false),
            ("params=(\"u\")", "a=%31", "a=1", true),
            ("params=(\"u\")", "a=1&&b=2", "a=1&b=2", true),
            ("params=(\"u\")", "a", "a=", true),
            ("params=(\"u\")", "a=b=c", "a=b%3Dc", true),
            ("params=(\"u\")", "a=1:b", "a=1&b", false),
            ("params=(\"u\")", "a=%zz", "a=%zz", true),
            ("params, except=(\"%EF%BF%BD\")", "%f6=1", "%f6=2", false),
        ] {
            let Some(variance) = of(field) else {
                assert_eq!(field, "params=(\"ü\")", "{field} should parse");
                continue;
            };
            assert_eq!(variance.key(Some(a)) == variance.key(Some(b)), same, "{field}: {a} {b}");
        }
        let variance = of("params").expect("valid");
        assert_eq!(variance.key(None), variance.key(Some("x=1")));
        assert!(variance.key(None).starts_with('\0'));
    }

    #[test]
    fn what_says_nothing_or_nonsense_is_the_default() {
        for field in [
            "",
            "params=?0",
            "params=()",
            "key-order=?0",
            "params=\"a\"",
            "params=(a)",
            "params=(\"a\" 1)",
            "key-order=1",
            "except=(\"a\")",
            "params=?0, except=(\"a\")",
            "params=(\"a\"), except=(\"b\")",
            "params, except=\"a\"",
            "params, except=(a)",
            "Params",
            "params=(\"a\"",
            "other",
        ] {
            assert_eq!(of(field), None, "{field}");
        }
        let many: Vec<String> = (0..=MAX_NAMES).map(|n| format!("\"p{n}\"")).collect();
        assert_eq!(of(&format!("params=({})", many.join(" "))), None);
    }

    #[test]
    fn variances_do_not_share_keys() {
        let (a, b) = (of("params=(\"a\")").expect("valid"), of("params=(\"b\")").expect("valid"));
        assert_ne!(a.key(Some("")), b.key(Some("")));
    }
}
