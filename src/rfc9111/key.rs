//! Cache keys (RFC 9111 §2): exact, length-prefixed, hashed to 128 bits.
//!
//! A key is the tuple (prefix, scheme, authority, path, query). Its bytes prefix each part with its length, so no
//! choice of parts can be read as another. The hash finds an entry. The bytes are compared on every use, in both
//! tiers: two keys with one hash cost a miss, and never a wrong response.
//!
//! The key of a QUERY has one part more: the digest of its content (RFC 10008 §2.7, [`super::query`]). So no GET has
//! such a key.

use std::borrow::Cow;
use std::sync::Arc;

use super::query::ContentDigest;
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_128;

/// The largest key, in bytes, that is put together on the stack.
const INLINE: usize = 192;

/// Begins the part with a content's digest if the URL has a query; otherwise the part before it is empty.
const WITH_QUERY: &str = "?";

/// The scheme of keys that no request has: those of values that clients of the listener `resp` store. Their authority is
/// the number of a database.
pub const VALUE_SCHEME: &str = "resp";

/// The primary key of a request: its effective URI within a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheKey {
    hash: u128,
    bytes: Arc<[u8]>,
}

/// The parts of a [`CacheKey`]. Scheme and authority are in lower case, without the default port. Path and query are
/// the bytes that the client sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyParts<'a> {
    /// The namespace of every key: `cache.key_prefix`, and the names of the fields that every response depends on.
    pub prefix: &'a str,
    /// The scheme that the client used: `http` or `https`; of a value, [`VALUE_SCHEME`].
    pub scheme: &'a str,
    /// The host, with the port unless it is the scheme's default.
    pub authority: &'a str,
    /// The path, with its slash.
    pub path: &'a str,
    /// The query without its question mark, rules applied; `None` if the URI has no question mark.
    pub query: Option<&'a str>,
}

impl CacheKey {
    /// Builds the key of `parts`.
    pub fn new(parts: KeyParts<'_>) -> Self {
        let KeyParts { prefix, scheme, authority, path, query } = parts;
        let all = [prefix, scheme, authority, path, query.unwrap_or_default()];
        let all = if query.is_some() { &all[..] } else { &all[..4] };
        let len: usize = all.iter().map(|part| 4 + part.len()).sum();
        let mut bytes: SmallVec<[u8; INLINE]> = SmallVec::from_elem(0, len);
        let mut rest = &mut bytes[..];
        for part in all {
            let (own, next) = rest.split_at_mut(4 + part.len());
            own[..4].copy_from_slice(&length_of(part));
            own[4..].copy_from_slice(part.as_bytes());
            rest = next;
        }
        Self::of(&bytes)
    }

    fn of(bytes: &[u8]) -> Self {
        Self { hash: xxh3_128(bytes), bytes: bytes.into() }
    }

    /// Reads a key back from its bytes; `None` if they are not those of a key.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let key = Self::of(bytes);
        key.parts().map(|_| ())?;
        Some(key)
    }

    /// Returns the key of a QUERY for this URL, whose content has the digest `content`.
    #[must_use]
    pub fn with_content(&self, content: &ContentDigest) -> Self {
        let mut bytes: SmallVec<[u8; 2 * INLINE]> = SmallVec::from_slice(self.page_bytes());
        let mark = match self.parts() {
            Some(KeyParts { query: Some(_), .. }) => WITH_QUERY,
            Some(_) | None => {
                bytes.extend_from_slice(&length_of(""));
                ""
            }
        };
        let content = [mark, content.as_str()].concat();
        bytes.extend_from_slice(&length_of(&content));
        bytes.extend_from_slice(content.as_bytes());
        Self::of(&bytes)
    }

    /// Returns the digest of the content of the QUERY whose key this is; `None`: it is the key of a GET.
    pub fn content(&self) -> Option<&str> {
        self.split().and_then(|(_, content)| content)
    }

    /// Returns whether this is the key of a QUERY.
    pub fn has_content(&self) -> bool {
        // Skips the parts without reading them: every entry of a pack is asked this when the pack is read.
        let behind_query = (0..5).try_fold(&*self.bytes, |rest, _| split_part(rest).map(|(_, rest)| rest));
        behind_query.is_some_and(|rest| !rest.is_empty())
    }

    /// Returns the hash of the key of a GET for the same URL, if this is the key of a QUERY.
    pub fn page_hash(&self) -> Option<u128> {
        self.has_content().then(|| xxh3_128(self.page_bytes()))
    }

    /// Returns the bytes of the key of a GET for the same URL.
    fn page_bytes(&self) -> &[u8] {
        let Some((parts, _)) = self.split() else { return &self.bytes };
        let KeyParts { prefix, scheme, authority, path, query } = parts;
        let texts = [Some(prefix), Some(scheme), Some(authority), Some(path), query];
        let len: usize = texts.into_iter().flatten().map(|part| 4 + part.len()).sum();
        self.bytes.get(..len).unwrap_or(&self.bytes)
    }

    /// Returns whether a purge of a URL may cover what has this key without removing it from memory at once: it is the
    /// key of several URLs, or one of several keys of a URL.
    pub fn is_found_otherwise(&self) -> bool {
        self.is_searched() || self.has_content()
    }

    /// Returns the hash that finds the key's entry.
    pub fn hash(&self) -> u128 {
        self.hash
    }

    /// Returns the exact bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the parts that the key was made of, without the content of a QUERY.
    pub fn parts(&self) -> Option<KeyParts<'_>> {
        self.split().map(|(parts, _)| parts)
    }

    /// Splits the key into its parts and the digest of a content, if it has one.
    fn split(&self) -> Option<(KeyParts<'_>, Option<&str>)> {
        let (prefix, rest) = take_part(&self.bytes)?;
        let (scheme, rest) = take_part(rest)?;
        let (authority, rest) = take_part(rest)?;
        let (path, rest) = take_part(rest)?;
        let (query, rest) = take_part_if_any(rest)?;
        let (content, rest) = take_part_if_any(rest)?;
        if !rest.is_empty() {
            return None;
        }
        let (query, content) = match (query, content) {
            (Some(query), Some(content)) => match content.strip_prefix(WITH_QUERY) {
                Some(content) => (Some(query), Some(content)),
                None if query.is_empty() => (None, Some(content)),
                None => return None,
            },
            found => found,
        };
        Some((KeyParts { prefix, scheme, authority, path, query }, content))
    }

    /// Returns whether this is the key of a value, and not of a page.
    pub fn is_value(&self) -> bool {
        let scheme = split_part(&self.bytes).and_then(|(_prefix, rest)| split_part(rest)).map(|(scheme, _)| scheme);
        scheme == Some(VALUE_SCHEME.as_bytes())
    }

    /// Returns the authority alone.
    pub fn authority(&self) -> Option<&str> {
        let (_prefix, rest) = split_part(&self.bytes)?;
        let (_scheme, rest) = split_part(rest)?;
        take_part(rest).map(|(authority, _)| authority)
    }

    /// Returns the URL of the key, without the prefix; empty if the bytes are those of no key.
    pub fn to_url(&self) -> String {
        let Some(parts) = self.parts() else { return String::new() };
        let query = parts.query.map_or_else(String::new, |query| format!("?{query}"));
        format!("{}://{}{}{query}", parts.scheme, parts.authority, parts.path)
    }

    /// Returns whether the key stands for several queries (No-Vary-Search): only such keys hold a NUL.
    pub fn is_searched(&self) -> bool {
        self.parts().is_some_and(|parts| parts.query.is_some_and(|query| query.contains('\0')))
    }

    /// Returns a hash that such a key has in common with all URLs that it may stand for: of everything but the query.
    pub fn searched_path(&self) -> Option<u128> {
        self.is_searched().then(|| self.path_hash())?
    }

    /// Returns a hash of everything but the query, which differs from that of any key.
    pub fn path_hash(&self) -> Option<u128> {
        let parts = self.parts()?;
        Some(Self::new(KeyParts { query: Some("\0path"), ..parts }).hash())
    }

    /// Returns the hash of this key with the selector of a variant.
    pub fn variant_hash(&self, selector: &[u8]) -> u128 {
        let mut bytes: SmallVec<[u8; 2 * INLINE]> = SmallVec::from_slice(&self.bytes);
        bytes.push(0xff);
        bytes.extend_from_slice(selector);
        xxh3_128(&bytes)
    }
}

fn length_of(part: &str) -> [u8; 4] {
    u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes()
}

fn take_part(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (part, rest) = split_part(bytes)?;
    Some((std::str::from_utf8(part).ok()?, rest))
}

fn take_part_if_any(bytes: &[u8]) -> Option<(Option<&str>, &[u8])> {
    if bytes.is_empty() { Some((None, bytes)) } else { take_part(bytes).map(|(part, rest)| (Some(part), rest)) }
}

fn split_part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_le_bytes(*len)).ok()?)
}

/// A rule's changes to a query before it becomes part of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryRules {
    /// The names of parameters that are left out of the key; `*` matches any run of characters.
    pub ignore: Vec<String>,
    /// True if the order of parameters is left out of the key.
    pub sort: bool,
}

impl QueryRules {
    /// Applies the rules to a query. Names are compared as they were sent, without decoding: two spellings of one name
    /// make two keys, which costs a hit and never mixes responses.
    ///
    /// Some applications also separate parameters by semicolons. So a parameter with a semicolon is never left out,
    /// and keeps its place.
    pub fn apply(&self, query: &str) -> Option<String> {
        let query = self.without_ignored(query)?;
        let mut kept: Vec<&str> = query.split('&').collect();
        // Sorting would change the order in which the application finds two spellings of one name.
        let is_spelt_out = query.contains(';') || kept.iter().any(|parameter| name_of(parameter).contains(['%', '+']));
        if !self.sort || is_spelt_out {
            return Some(query);
        }
        // Sorts by name only, and stably: the order of values under one name may matter.
        kept.sort_by_key(|parameter| name_of(parameter));
        Some(kept.join("&"))
    }

    /// Returns the query without the ignored parameters; `None` if there are no others.
    pub fn without_ignored(&self, query: &str) -> Option<String> {
        let kept: Vec<&str> = query.split('&').filter(|parameter| !self.ignores(parameter)).collect();
        if kept.is_empty() { None } else { Some(kept.join("&")) }
    }

    /// Returns whether the rules change nothing.
    pub fn is_empty(&self) -> bool {
        self.ignore.is_empty() && !self.sort
    }

    fn ignores(&self, parameter: &str) -> bool {
        !parameter.contains(';') && self.ignore.iter().any(|pattern| glob(pattern, name_of(parameter)))
    }
}

fn name_of(parameter: &str) -> &str {
    parameter.split('=').next().unwrap_or(parameter)
}

/// Returns whether `text` matches `pattern`. `*` matches any run of characters, also an empty one, and everything else
/// itself. Takes at most `pattern.len() × text.len()` steps.
pub fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // The place to retry from when the current attempt fails: after the last star, one byte later.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                retry = Some((p, t));
                continue;
            }
            Some(byte) if text.get(t) == Some(byte) => {
                p += 1;
                t += 1;
                continue;
            }
            None if t == text.len() => return true,
            Some(_) | None => {}
        }
        match retry {
            Some((star, from)) if from < text.len() => {
                p = star;
                t = from + 1;
                retry = Some((star, t));
            }
            Some(_) | None => return false,
        }
    }
}

/// Returns the authority as it enters a key: in lower case, without the default port of `scheme`. `None` if a request
/// may not name such an authority (empty, user information, white space, a bad port). Borrows if nothing changes, as
/// with nearly every `Host`.
pub fn normal_authority<'a>(authority: &'a str, scheme: &str) -> Option<Cow<'a, str>> {
    let (host, port) = split_port(authority)?;
    let classes = host.bytes().fold(SOUND | LOWER, |classes, byte| classes & CLASSES[usize::from(byte)]);
    if host.is_empty() || classes & SOUND == 0 {
        return None;
    }
    let default = if scheme == "https" { 443 } else { 80 };
    let port = port.filter(|port| *port != default);
    let is_lower = classes & LOWER != 0;
    // The port without a leading zero is already in normal form.
    let is_plain = !authority[host.len()..].starts_with(":0");
    match port {
        None if is_lower => Some(Cow::Borrowed(host)),
        None => Some(Cow::Owned(host.to_ascii_lowercase())),
        Some(_) if is_lower && is_plain => Some(Cow::Borrowed(authority)),
        Some(port) => Some(Cow::Owned(format!("{}:{port}", host.to_ascii_lowercase()))),
    }
}

/// Bits of [`CLASSES`]: a byte that a host may have, and one that enters a key unchanged.
const SOUND: u8 = 1;
const LOWER: u8 = 2;

const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        let at = byte as usize;
        if byte.is_ascii_uppercase() {
            classes[at] = SOUND;
        } else if byte.is_ascii_alphanumeric() {
            classes[at] = SOUND | LOWER;
        }
        byte += 1;
    }
    let others = b"-._~!$&'()*+,;=%:[]";
    let mut at = 0;
    while at < others.len() {
        classes[others[at] as usize] = SOUND | LOWER;
        at += 1;
    }
    classes
};

/// Splits an authority into its host and port, if it has one. `None`: it is neither.
pub(crate) fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let host_end = if authority.starts_with('[') {
        authority.find(']')? + 1
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    let (host, port) = authority.split_at(host_end);
    match port.strip_prefix(':') {
        None if port.is_empty() => Some((host, None)),
        None => None,
        Some("") => Some((host, None)),
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some((host, Some(digits.parse().ok()?))),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts<'a>(authority: &'a str, path: &'a str, query: Option<&'a str>) -> KeyParts<'a> {
        KeyParts { prefix: "p", scheme: "http", authority, path, query }
    }

    #[test]
    fn parts_cannot_be_shifted_into_each_other() {
        let a = CacheKey::new(parts("host", "/a/b", None));
        for other in [parts("host/a", "/b", None), parts("host", "/a", Some("/b")), parts("host", "/a/b", Some(""))] {
            let other = CacheKey::new(other);
            assert_ne!(a.as_bytes(), other.as_bytes());
            assert_ne!(a.hash(), other.hash());
        }
    }

    #[test]
    fn bytes_read_back() {
        for query in [None, Some(""), Some("a=1&b")] {
            let key = CacheKey::new(parts("host:8080", "/a", query));
            assert_eq!(key.parts(), Some(parts("host:8080", "/a", query)));
            assert_eq!(CacheKey::from_bytes(key.as_bytes()), Some(key));
        }
        for bytes in [&b""[..], b"\x01", b"\xff\xff\xff\xffa", b"\x01\x00\x00\x00\xff"] {
            assert_eq!(CacheKey::from_bytes(bytes), None);
        }
    }

    #[test]
    fn no_get_has_the_key_of_a_query_and_each_content_has_its_own() {
        let digest = |content: &[u8]| {
            let mut fields = http::HeaderMap::new();
            fields.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
            super::super::query::metadata(&fields).expect("it may be keyed").digest(content)
        };
        let (one, other) = (digest(b"a"), digest(b"b"));
        for query in [None, Some(""), Some("a=1&b"), Some("\0path")] {
            let get = CacheKey::new(parts("host:8080", "/a", query));
            let key = get.with_content(&one);
            assert_eq!(key.parts(), Some(parts("host:8080", "/a", query)));
            assert_eq!((key.content(), get.content()), (Some(one.as_str()), None));
            assert_eq!(key.page_hash(), Some(get.hash()));
            assert_eq!(get.page_hash(), None);
            assert_eq!(CacheKey::from_bytes(key.as_bytes()).as_ref(), Some(&key));
            assert_ne!(key, get.with_content(&other));
            assert_eq!(key.with_content(&other), get.with_content(&other), "it has one content");
            assert_eq!(key.to_url(), get.to_url());
            assert!(key.is_found_otherwise());
            // No URL makes the key of a QUERY, whatever a client writes into it.
            for written in [format!("/a{}", one.as_str()), format!("/a?{}", one.as_str())] {
                assert_ne!(CacheKey::new(parts("host:8080", &written, query)).as_bytes(), key.as_bytes());
            }
            for query in [Some(one.as_str().to_owned()), Some(format!("{}{}", query.unwrap_or(""), one.as_str()))] {
                assert_ne!(CacheKey::new(parts("host:8080", "/a", query.as_deref())).as_bytes(), key.as_bytes());
            }
        }
        let without = CacheKey::new(parts("h", "/a", None)).with_content(&one);
        assert_ne!(without, CacheKey::new(parts("h", "/a", Some(""))).with_content(&one));
        let mut other = CacheKey::new(parts("h", "/a", Some("b"))).as_bytes().to_vec();
        other.extend(b"\x01\x00\x00\x00a");
        assert_eq!(CacheKey::from_bytes(&other), None, "a content that does not know of the query before it");
    }

    #[test]
    fn the_key_of_a_value_is_told_from_that_of_a_page() {
        let value = KeyParts { prefix: "p", scheme: VALUE_SCHEME, authority: "0", path: "/a", query: None };
        assert!(CacheKey::new(value).is_value());
        for scheme in ["http", "https", "", "respx", "res"] {
            assert!(!CacheKey::new(KeyParts { scheme, ..value }).is_value(), "{scheme}");
        }
        let page = KeyParts {
            prefix: VALUE_SCHEME,
            scheme: "http",
            authority: VALUE_SCHEME,
            path: "/resp://0/a",
            query: None,
        };
        assert!(!CacheKey::new(page).is_value());
    }

    #[test]
    fn glob_table() {
        for (pattern, text, expected) in [
            ("/static/*", "/static/a/b.css", true),
            ("/static/*", "/static/", true),
            ("/static/*", "/static", false),
            ("*", "", true),
            ("utm_*", "utm_source", true),
            ("utm_*", "xutm_source", false),
            ("*.css", "/a.css.map", false),
            ("*.css", "/a.css.css", true),
            ("/a*b*c", "/aXXbYYbZc", true),
            ("/a*b*c", "/aXXc", false),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn query_rules_table() {
        let rules = QueryRules { ignore: vec!["utm_*".into(), "fbclid".into()], sort: true };
        for (query, expected) in [
            ("b=2&a=1", Some("a=1&b=2")),
            ("a=2&a=1", Some("a=2&a=1")),
            ("utm_source=x&a=1&fbclid=3", Some("a=1")),
            ("utm_source=x", None),
            ("", Some("")),
            ("a-b=1&a=2", Some("a=2&a-b=1")),
            ("b=1&%61=2&a=1", Some("b=1&%61=2&a=1")),
            ("a=1&utm_source=x;admin=1", Some("a=1&utm_source=x;admin=1")),
            ("utm_source;a=1&b=2&a=1", Some("utm_source;a=1&b=2&a=1")),
        ] {
            assert_eq!(rules.apply(query).as_deref(), expected, "{query}");
        }
    }

    #[test]
    fn authority_table() {
        for (authority, scheme, expected) in [
            ("Example.COM", "http", Some("example.com")),
            ("example.com:80", "http", Some("example.com")),
            ("example.com:80", "https", Some("example.com:80")),
            ("example.com:443", "https", Some("example.com")),
            ("example.com:", "http", Some("example.com")),
            ("example.com:08080", "http", Some("example.com:8080")),
            ("[::1]:8080", "http", Some("[::1]:8080")),
            ("[::1]", "http", Some("[::1]")),
            ("", "http", None),
            (":80", "http", None),
            ("user@example.com", "http", None),
            ("a b", "http", None),
            ("a/b", "http", None),
            ("a:99999", "http", None),
            ("a:8x", "http", None),
            ("[::1", "http", None),
            ("[::1]x", "http", None),
        ] {
            assert_eq!(normal_authority(authority, scheme).as_deref(), expected, "{authority}");
        }
    }
}
