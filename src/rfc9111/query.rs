//! QUERY (RFC 10008): which requests may be answered from a cache, and the digest of their content, which is part of
//! the key.
//!
//! §2.7: "The cache key for a QUERY request MUST incorporate the request content and related metadata." The digest is
//! SHA-256 over the bytes of the content and over every field that says something of it, so that no client finds two
//! contents with one key. Only the spelling of a media type, of content codings and of languages is normalised, as far
//! as RFC 9110 §8.3 to §8.5 says that it does not matter; the content itself never is. The origin gets the request as
//! its client sent it.

use std::fmt::Write as _;

use aws_lc_rs::digest::{Context, SHA256};
use http::header::{self, HeaderMap, HeaderName};
use http::{HeaderValue, Method};

use super::fields;

/// Returns whether a method is QUERY.
pub fn is_query(method: &Method) -> bool {
    *method == Method::QUERY
}

/// The digest of the content of a QUERY, with what its fields say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentDigest(String);

impl ContentDigest {
    /// Returns it in hexadecimal.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The fields of a QUERY that say something of its content: a digest that has begun, and takes the content next.
#[derive(Clone)]
pub struct Metadata(Context);

impl std::fmt::Debug for Metadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metadata")
    }
}

impl Metadata {
    /// Adds a piece of the content.
    pub fn add(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// Returns the digest of the fields and of the content that was added.
    pub fn finish(self) -> ContentDigest {
        let digest = self.0.finish();
        let mut text = String::with_capacity(2 * digest.as_ref().len());
        for byte in digest.as_ref() {
            let _ = write!(text, "{byte:02x}");
        }
        ContentDigest(text)
    }

    /// Returns the digest of the fields and of `content`.
    pub fn digest(mut self, content: &[u8]) -> ContentDigest {
        self.add(content);
        self.finish()
    }
}

/// Reads the fields of a QUERY that say something of its content. `None`: no stored response may answer it, since it
/// does not say what its content is (§2.1: a server fails such a request), says so twice, or sends a part of a content.
pub fn metadata(request: &HeaderMap) -> Option<Metadata> {
    let mut types = request.get_all(header::CONTENT_TYPE).iter();
    let (Some(content_type), None) = (types.next(), types.next()) else { return None };
    if fields::trim(content_type.as_bytes()).is_empty() || request.contains_key(header::CONTENT_RANGE) {
        return None;
    }
    let mut names: Vec<&HeaderName> = request.keys().filter(|name| says_something(name)).collect();
    names.sort_unstable_by_key(|name| name.as_str());
    let mut context = Context::new(&SHA256);
    // The content comes last and is not followed by anything, so each part before it has its length.
    part(&mut context, b"larder query 1");
    part(&mut context, &media_type(content_type.as_bytes()));
    context.update(&count(names.len()));
    for name in names {
        part(&mut context, name.as_str().as_bytes());
        let values = values_of(request, name);
        context.update(&count(values.len()));
        for value in &values {
            part(&mut context, value);
        }
    }
    Some(Metadata(context))
}

/// Returns whether a field says something of the content, besides its type and how it is framed.
fn says_something(name: &HeaderName) -> bool {
    let is_metadata = name.as_str().starts_with("content-") || matches!(name.as_str(), "digest" | "repr-digest");
    is_metadata && !matches!(*name, header::CONTENT_TYPE | header::CONTENT_LENGTH)
}

/// Returns the values of a field: those of a list of tokens without regard to their case (RFC 9110 §8.4, §8.5).
fn values_of(request: &HeaderMap, name: &HeaderName) -> Vec<Vec<u8>> {
    if matches!(*name, header::CONTENT_ENCODING | header::CONTENT_LANGUAGE) {
        return fields::members(request, name).map(<[u8]>::to_ascii_lowercase).collect();
    }
    request.get_all(name).iter().map(HeaderValue::as_bytes).map(<[u8]>::to_vec).collect()
}

fn count(n: usize) -> [u8; 8] {
    (n as u64).to_le_bytes()
}

fn part(context: &mut Context, bytes: &[u8]) {
    context.update(&count(bytes.len()));
    context.update(bytes);
}

/// Returns a media type in its normal form (RFC 9110 §8.3.1): type, subtype, names of parameters and the value of
/// `charset` in lower case, without white space around them, each value quoted. One that is not well-formed stays as it
/// is, and so does one with a backslash: applications differ in how they read those, and two that they tell apart must
/// not share a key.
fn media_type(text: &[u8]) -> Vec<u8> {
    normal_media_type(text).unwrap_or_else(|| fields::trim(text).to_vec())
}

fn normal_media_type(text: &[u8]) -> Option<Vec<u8>> {
    let mut rest = text;
    let essence = take(&mut rest, |byte| byte != b';');
    let (kind, subtype) = split_once(fields::trim(essence), b'/')?;
    let mut normal = token(kind)?.to_ascii_lowercase();
    normal.push(b'/');
    normal.extend(token(subtype)?.to_ascii_lowercase());
    while let Some(behind) = rest.strip_prefix(b";") {
        rest = behind.trim_ascii_start();
        let name = take(&mut rest, |byte| byte != b'=' && byte != b';');
        if fields::trim(name).is_empty() && !rest.starts_with(b"=") {
            continue;
        }
        rest = rest.strip_prefix(b"=")?;
        let name = token(name)?.to_ascii_lowercase();
        let value = if rest.starts_with(b"\"") {
            let value = quoted(&mut rest)?;
            rest = rest.trim_ascii_start();
            value
        } else {
            let value = take(&mut rest, |byte| byte != b';');
            token(value.trim_ascii_end())?.to_vec()
        };
        normal.push(b';');
        normal.extend(&name);
        normal.extend(b"=\"");
        for byte in value {
            normal.push(if name == b"charset" { byte.to_ascii_lowercase() } else { byte });
        }
        normal.push(b'"');
    }
    rest.is_empty().then_some(normal)
}

/// Takes the bytes at the beginning for which `is_part` says so.
fn take<'a>(rest: &mut &'a [u8], is_part: impl Fn(u8) -> bool) -> &'a [u8] {
    let end = rest.iter().position(|byte| !is_part(*byte)).unwrap_or(rest.len());
    let (taken, left) = rest.split_at(end);
    *rest = left;
    taken
}

/// Takes a quoted string without quoted pairs, and returns what is between the quotes.
fn quoted(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let mut text = &rest[1..];
    let value = take(&mut text, |byte| !matches!(byte, b'"' | b'\\'));
    *rest = text.strip_prefix(b"\"")?;
    Some(value.to_vec())
}

fn split_once(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == separator)?;
    Some((&text[..at], &text[at + 1..]))
}

/// Returns `text` if it is a token (RFC 9110 §5.6.2).
fn token(text: &[u8]) -> Option<&[u8]> {
    let is_tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    (!text.is_empty() && text.iter().all(is_tchar)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(list: &[(&'static str, &str)], content: &str) -> Option<String> {
        let mut fields = HeaderMap::new();
        for (name, value) in list {
            fields.append(HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"));
        }
        Some(metadata(&fields)?.digest(content.as_bytes()).0)
    }

    fn of_type(text: &str) -> String {
        digest(&[("content-type", text)], "q").expect("it has a type")
    }

    #[test]
    fn spellings_of_one_media_type_are_one_and_others_are_not() {
        for same in [
            &[
                "text/html;charset=utf-8",
                "Text/HTML;Charset=\"utf-8\"",
                "text/html; charset=\"utf-8\"",
                "text/html;charset=UTF-8",
                "text/html ;\tcharset=utf-8",
                "text/html;charset=utf-8;",
                "text/html;; charset=utf-8 ",
            ][..],
            &["application/json", "APPLICATION/json", "application/json;", "application/json ; "],
            &["text/plain;a=\"b c\"", "text/plain; A=\"b c\""],
        ] {
            for other in same {
                assert_eq!(of_type(other), of_type(same[0]), "{other}");
            }
        }
        let others = [
            "text/html",
            "text/html;charset=utf-8",
            "text/html;charset=utf-16",
            "text/html;charset=\"ut\\f-8\"",
            "text/html;a=\"\\b\"",
            "text/html;a=\"\\\"\"",
            "text/html;a=\"\\\"\";",
            "text/html;a=b",
            "text/html;a=B",
            "text/html;a=\"b;c=d\"",
            "text/html;a=b;c=d",
            "text/html;c=d;a=b",
            "text/html;a=b;a=b",
            "text/html;a=\"\"",
            "text/html;a",
            "text/html;a=",
            "text/html;a =b",
            "text/html;charset=utf-8;charset=utf-16",
            "text/html,application/json",
            "text",
            "TEXT",
            "text/",
            "/html",
            "text/html x",
            "text/html;a=\"b",
            "text/html;a=\"b\"c",
            "text/html;a=b c",
            "text/x-html",
        ];
        for (at, one) in others.iter().enumerate() {
            for other in &others[at + 1..] {
                assert_ne!(of_type(one), of_type(other), "{one} {other}");
            }
            // No type that is not well-formed is taken for the normal form of another.
            let normal = media_type(one.as_bytes());
            assert_eq!(media_type(&normal), normal, "{one}");
        }
    }

    #[test]
    fn all_that_says_something_of_the_content_counts_and_nothing_else() {
        const TYPE: (&str, &str) = ("content-type", "text/plain");
        let plain = digest(&[TYPE], "q").expect("it has a type");
        for neutral in
            [("accept", "text/csv"), ("content-length", "1"), ("cookie", "a=1"), ("authorization", "Basic x")]
        {
            assert_eq!(digest(&[TYPE, neutral], "q").as_ref(), Some(&plain), "{neutral:?}");
        }
        let others: &[&[(&'static str, &str)]] = &[
            &[("content-encoding", "gzip")],
            &[("content-encoding", "gzip"), ("content-encoding", "br")],
            &[("content-encoding", "identity")],
            &[("content-language", "gzip")],
            &[("content-language", "en")],
            &[("content-location", "/a")],
            &[("content-location", "/A")],
            &[("content-disposition", "inline")],
            &[("content-digest", "sha-256=:YQ==:")],
            &[("repr-digest", "sha-256=:YQ==:")],
            &[("content-future", "1")],
        ];
        let of = |list: &[(&'static str, &str)]| digest(&[&[TYPE], list].concat(), "q").expect("it has a type");
        for (at, one) in others.iter().enumerate() {
            assert_ne!(of(one), plain, "{one:?}");
            for other in &others[at + 1..] {
                assert_ne!(of(one), of(other), "{one:?} {other:?}");
            }
        }
        assert_eq!(
            of(&[("content-encoding", "GZip , br")]),
            of(&[("content-encoding", "gzip"), ("content-encoding", "br")])
        );
        assert_eq!(of(&[("content-language", "EN")]), of(&[("content-language", "en")]));
    }

    #[test]
    fn no_content_can_be_taken_for_fields_or_for_another() {
        let contents = ["", "q", "Q", "q ", " q", "q\n", "larder query 1", "content-encoding", "\0\0\0\0"];
        for (at, one) in contents.iter().enumerate() {
            for other in &contents[at + 1..] {
                assert_ne!(
                    digest(&[("content-type", "a/b")], one),
                    digest(&[("content-type", "a/b")], other),
                    "{one} {other}"
                );
            }
        }
        assert_ne!(digest(&[("content-type", "a/b")], "c"), digest(&[("content-type", "a/bc")], ""));
        assert_ne!(
            digest(&[("content-type", "a/b"), ("content-x", "y")], "z"),
            digest(&[("content-type", "a/b"), ("content-x", "yz")], "")
        );
    }

    #[test]
    fn a_content_that_does_not_say_what_it_is_has_no_key() {
        for list in [
            &[][..],
            &[("content-type", "")],
            &[("content-type", " ")],
            &[("content-type", "a/b"), ("content-type", "a/b")],
            &[("content-type", "a/b"), ("content-range", "bytes 0-1/2")],
            &[("content-encoding", "gzip")],
        ] {
            assert_eq!(digest(list, "q"), None, "{list:?}");
        }
    }
}
