//! Purges: an operator, or the application, names what is no longer to be served.

use std::fmt::{self, Write as _};

use http::Uri;
use serde_json::{Value, json};

use super::Proxy;
use crate::rfc9111::key::{CacheKey, normal_authority};
use crate::rfc9111::{groups, tags};
use crate::store::{EITHER, Purge, PurgeReceipt, PurgeTarget, StoreError};

/// The things to purge, as they are asked for.
#[derive(Clone, Copy, Debug)]
pub enum What<'a> {
    /// Every variant of an absolute URL, as clients see it.
    Url(&'a str),
    /// Everything whose absolute URL, or path on any host, begins so.
    Prefix(&'a str),
    /// Everything with this tag, byte for byte.
    Tag(&'a str),
    /// Everything.
    All,
}

impl What<'_> {
    /// Returns the body for `POST /purge`.
    pub fn to_json(self) -> Value {
        match self {
            Self::Url(url) => json!({"url": url}),
            Self::Prefix(prefix) => json!({"prefix": prefix}),
            Self::Tag(tag) => json!({"tag": tag}),
            Self::All => json!({"all": true}),
        }
    }
}

impl fmt::Display for What<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url),
            Self::Prefix(prefix) => write!(f, "what begins with {prefix}"),
            Self::Tag(tag) => write!(f, "what is tagged {tag}"),
            Self::All => f.write_str("everything"),
        }
    }
}

/// Says whether a URL or prefix is purged under its own scheme, or under both.
///
/// A proxy in front may not say that its client used https. Then a page that an operator sees as https is stored as
/// http.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Schemes {
    /// Purges under both.
    #[default]
    Both,
    /// Purges under its own.
    Exact,
}

impl Schemes {
    /// Returns the value for `POST /purge`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::Exact => "exact",
        }
    }
}

/// The options of a purge.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// True if purged responses stay, stale.
    pub is_soft: bool,
    /// The schemes to purge under.
    pub schemes: Schemes,
}

/// The tiers that held something for a URL when it was purged, by scheme.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held(Vec<(&'static str, Tiers)>);

/// The tiers that held something; see [`Held`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tiers {
    memory: bool,
    /// `None`: unknown, since the index of the durable tier is not loaded yet.
    durable: Option<bool>,
}

impl Held {
    /// Returns the tiers by scheme, for the answer to a purge.
    pub fn to_json(&self) -> Value {
        let of = |tiers: &Tiers| json!({"memory": tiers.memory, "durable": tiers.durable});
        self.0.iter().map(|(scheme, tiers)| ((*scheme).to_owned(), of(tiers))).collect()
    }

    fn add(&mut self, scheme: &'static str, found: Tiers) {
        match self.0.iter_mut().find(|(known, _)| *known == scheme) {
            Some((_, tiers)) => {
                tiers.memory |= found.memory;
                tiers.durable = match (tiers.durable, found.durable) {
                    (Some(true), _) | (_, Some(true)) => Some(true),
                    (Some(false), other) | (other, Some(false)) => other,
                    (None, None) => None,
                };
            }
            None => self.0.push((scheme, found)),
        }
    }
}

/// The reason why a purge failed.
#[derive(Debug)]
pub enum PurgeError {
    /// The request makes no sense; the sentence says why, and what would.
    Unclear(String),
    /// The purge is in force in this process, but not recorded where other processes and later ones read it. Recording
    /// is tried again until it succeeds.
    NotRecorded(StoreError),
}

/// The most bytes of a prefix.
const MAX_PREFIX: usize = 8192;

impl Proxy {
    /// Purges. When it returns, the purge is in force in this process and recorded in the journal. For a URL it
    /// returns which tiers held something; for the rest it does not search.
    pub async fn purge(&self, what: What<'_>, manner: Manner) -> Result<Option<Held>, PurgeError> {
        let Manner { is_soft, schemes } = manner;
        let purge = |target| Purge { target, is_soft };
        let mut held = None;
        let last = match what {
            What::Url(url) => {
                let url = Url::read(url).map_err(PurgeError::Unclear)?;
                self.metrics.purges.add_one();
                let (found, last) = self.purge_url(&url, manner);
                held = Some(found);
                last
            }
            What::Prefix(text) => {
                let prefixes = prefixes(text, schemes).map_err(PurgeError::Unclear)?;
                self.purge_all(prefixes.into_iter().map(|prefix| purge(PurgeTarget::Prefix(prefix))))
            }
            What::Tag(tag) if tag.is_empty() || tag.len() > tags::MAX_LEN => {
                return Err(PurgeError::Unclear(format!("a tag has 1 to {} bytes", tags::MAX_LEN)));
            }
            What::Tag(tag) if !may_be_tag(tag) => {
                return Err(PurgeError::Unclear(format!(
                    "\"{tag}\" is no tag: commas and white space separate tags; purge one at a time"
                )));
            }
            What::Tag(tag) => self.purge_all([purge(PurgeTarget::Tag(tag.to_owned()))]),
            What::All => self.purge_all([purge(PurgeTarget::All)]),
        };
        if let Some(last) = last {
            self.fetcher.store.recorded(last).await.map_err(PurgeError::NotRecorded)?;
        }
        Ok(held)
    }

    /// Purges a URL under each key that it may be stored under. A response for several queries of a path is purged
    /// with each of their URLs.
    fn purge_url(&self, url: &Url, Manner { is_soft, schemes }: Manner) -> (Held, Option<PurgeReceipt>) {
        let store = &self.fetcher.store;
        let (mut held, mut last) = (Held::default(), None);
        for (scheme, authority) in origins(url.scheme, &url.authority, schemes) {
            let key = self.keys.key(scheme, &authority, &url.path, url.query.as_deref());
            held.add(scheme, self.held(&key));
            if let Some(path) = key.path_hash() {
                store.purge(Purge { target: PurgeTarget::Url(path), is_soft }, None);
            }
            last = Some(store.purge(Purge { target: PurgeTarget::Url(key.hash()), is_soft }, Some(&key)));
            self.fetcher.flights.detach(key.hash());
            if is_soft {
                // A flight for several queries was also asked for before the purge.
                if let Some(searched) = self.fetcher.memories.searches.key(&key) {
                    self.fetcher.flights.detach(searched.hash());
                }
            } else {
                self.forget_searched(&key);
            }
        }
        (held, last)
    }

    fn purge_all(&self, purges: impl IntoIterator<Item = Purge>) -> Option<PurgeReceipt> {
        self.metrics.purges.add_one();
        let last = purges.into_iter().map(|purge| self.fetcher.store.purge(purge, None)).last();
        // The flights were asked for before the purge.
        self.fetcher.flights.detach_all();
        last
    }

    /// Returns the tiers that hold something for a key, or for the key that it shares with other queries.
    fn held(&self, key: &CacheKey) -> Tiers {
        let store = &self.fetcher.store;
        let searched = self.fetcher.memories.searches.key(key);
        let memory = [Some(key), searched.as_ref()].into_iter().flatten().any(|key| store.memory().holds(key.hash()));
        let durable = match store.durable() {
            Some(durable) if !durable.index().is_loaded() => None,
            Some(durable) => Some(durable.may_hold(key)),
            None => Some(false),
        };
        Tiers { memory, durable }
    }
}

/// Returns the origins whose pages count as the same as those of `scheme` and `authority`, which come first.
///
/// With both schemes these are the same port under the other scheme, or the other's default port for the default one.
/// A client of https may name its default port in `Host` where the proxy in front does not say that it used https.
fn origins(scheme: &'static str, authority: &str, schemes: Schemes) -> Vec<(&'static str, String)> {
    let mut origins = vec![(scheme, authority.to_owned())];
    if schemes == Schemes::Exact {
        return origins;
    }
    let (other, default) = if scheme == "http" { ("https", 80) } else { ("http", 443) };
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    if has_port {
        origins.extend(normal_authority(authority, other).map(|authority| (other, authority.into_owned())));
    } else {
        origins.extend([(other, authority.to_owned()), (other, format!("{authority}:{default}"))]);
    }
    origins
}

/// An absolute URL that an operator names, spelt as in keys.
pub(super) struct Url {
    pub(super) scheme: &'static str,
    pub(super) authority: String,
    pub(super) path: String,
    pub(super) query: Option<String>,
}

impl Url {
    /// Reads an absolute URL. An error says what is expected.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let read = || {
            let uri: Uri = escaped(text).parse().ok()?;
            let scheme = scheme_of(uri.scheme_str()?)?;
            let authority = normal_authority(uri.authority()?.as_str(), scheme)?.into_owned();
            let path = if uri.path().is_empty() { "/" } else { uri.path() }.to_owned();
            Some(Self { scheme, authority, path, query: uri.query().map(str::to_owned) })
        };
        read().ok_or_else(|| {
            format!("\"{text}\" is no absolute http or https URL; write it as clients see it: http://host/path")
        })
    }
}

fn scheme_of(text: &str) -> Option<&'static str> {
    ["http", "https"].into_iter().find(|scheme| text.eq_ignore_ascii_case(scheme))
}

/// Escapes what is not ASCII, and characters that a target may not have, as in keys.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii() && !matches!(byte, b'"' | b'<' | b'>' | b'`') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// Returns whether a response may have this tag. A cache group, which stands for one, may contain white space.
fn may_be_tag(tag: &str) -> bool {
    !tag.contains(',') && tag.trim() == tag && (!tag.contains(char::is_whitespace) || tag.starts_with(groups::TAG))
}

/// Returns the prefixes that a text means, spelt as in keys. A star at the end is dropped. An error says what is expected.
pub(crate) fn prefixes(text: &str, schemes: Schemes) -> Result<Vec<String>, String> {
    spelt(text, schemes).ok_or_else(|| {
        format!(
            "\"{text}\" is no prefix; write what URLs begin with, host and all: http://host/path, or a path of any host: /path (at most {MAX_PREFIX} bytes)"
        )
    })
}

fn spelt(text: &str, schemes: Schemes) -> Option<Vec<String>> {
    let text = &escaped(text.strip_suffix('*').unwrap_or(text));
    if text.len() > MAX_PREFIX || text.contains(|c: char| c.is_ascii_control() || c == ' ' || c == '#') {
        return None;
    }
    if text.starts_with('/') {
        return Some(vec![text.to_owned()]);
    }
    let (scheme, rest) = text.split_once("://")?;
    let scheme = scheme_of(scheme)?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let authority = normal_authority(authority, scheme)?;
    let slash = if path.starts_with('/') { "" } else { "/" };
    let origins = origins(scheme, &authority, schemes);
    // A prefix under both schemes is purged as one.
    let is_under_both = |authority: &str| origins.iter().filter(|(_, other)| other == authority).count() > 1;
    let mut prefixes: Vec<String> = origins
        .iter()
        .map(|(scheme, authority)| {
            let scheme = if is_under_both(authority) { EITHER } else { scheme };
            format!("{scheme}://{authority}{slash}{path}")
        })
        .collect();
    prefixes.dedup();
    Some(prefixes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_spelt_as_keys_are() {
        for (text, expected) in [
            ("/", Some("/")),
            ("/a/b?c=", Some("/a/b?c=")),
            ("HTTP://Host:80/A", Some("http://host/A")),
            ("https://host:8443", Some("https://host:8443/")),
            ("http://host?a", Some("http://host/?a")),
            ("http://", None),
            ("host/a", None),
            ("ftp://host/a", None),
            ("*://host/a", None),
            ("http://ho st/a", None),
            ("/a/*", Some("/a/")),
            ("/café", Some("/caf%C3%A9")),
            ("http://host/a\"<b>`", Some("http://host/a%22%3Cb%3E%60")),
            ("/a b", None),
            ("", None),
        ] {
            let expected = expected.map(|prefix| vec![prefix.to_owned()]);
            assert_eq!(prefixes(text, Schemes::Exact).ok(), expected, "{text}");
        }
    }

    #[test]
    fn a_page_is_one_under_both_schemes_whichever_is_named() {
        for (url, expected) in [
            ("http://h/", &["http://h", "https://h", "https://h:80"][..]),
            ("http://h:80/", &["http://h", "https://h", "https://h:80"]),
            ("https://h/", &["https://h", "http://h", "http://h:443"]),
            ("https://h:443/", &["https://h", "http://h", "http://h:443"]),
            ("http://h:443/", &["http://h:443", "https://h"]),
            ("https://h:80/", &["https://h:80", "http://h"]),
            ("http://h:8080/", &["http://h:8080", "https://h:8080"]),
            ("https://[::1]/", &["https://[::1]", "http://[::1]", "http://[::1]:443"]),
            ("http://[::1]:8080/", &["http://[::1]:8080", "https://[::1]:8080"]),
        ] {
            let read = Url::read(url).expect("a URL");
            let origins = |schemes| -> Vec<String> {
                let origins = origins(read.scheme, &read.authority, schemes).into_iter();
                origins.map(|(scheme, authority)| format!("{scheme}://{authority}")).collect()
            };
            assert_eq!(origins(Schemes::Both), expected, "{url}");
            assert_eq!(origins(Schemes::Exact), expected[..1], "{url}");
        }
        for (prefix, expected) in [
            ("http://h/a", &["*://h/a", "https://h:80/a"][..]),
            ("https://h:443/a", &["*://h/a", "http://h:443/a"]),
            ("http://h:443/a", &["http://h:443/a", "https://h/a"]),
            ("https://h:8443/a", &["*://h:8443/a"]),
            ("/a", &["/a"]),
        ] {
            let expected = expected.iter().map(|prefix| (*prefix).to_owned()).collect::<Vec<_>>();
            assert_eq!(prefixes(prefix, Schemes::Both), Ok(expected), "{prefix}");
        }
    }
}
