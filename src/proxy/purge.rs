//! Purges: what an operator, or the application, says is no longer to be served.

use std::fmt::{self, Write as _};

use http::Uri;
use serde_json::{Value, json};

use super::Proxy;
use crate::rfc9111::key::{CacheKey, normal_authority};
use crate::rfc9111::tags;
use crate::store::backend::BackendError;
use crate::store::purge::{Made, Purge, Target};

/// What is to be purged, as it is asked for.
#[derive(Clone, Copy, Debug)]
pub enum What<'a> {
    /// An absolute URL, as clients see it: every variant.
    Url(&'a str),
    /// What absolute URLs begin with, or paths, of whatever host.
    Prefix(&'a str),
    /// A tag, to the byte.
    Tag(&'a str),
    /// Everything.
    All,
}

impl What<'_> {
    /// As `POST /purge` takes it.
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

/// Why a purge was not done.
#[derive(Debug)]
pub enum PurgeError {
    /// What is asked for makes no sense: what, and what would.
    Unclear(String),
    /// It is in force in this process, and not where others can read it and where it outlasts this one. That is
    /// tried again until it succeeds.
    NotRecorded(BackendError),
}

/// The longest prefix, in bytes.
const MAX_PREFIX: usize = 8192;

impl Proxy {
    /// Purges. In force in this process, and in the journal, when it returns.
    pub async fn purge(&self, what: What<'_>, is_soft: bool) -> Result<(), PurgeError> {
        let purges = self.understand(what, is_soft)?;
        self.metrics.purges.add_one();
        let mut last: Option<Made> = None;
        for (purge, key) in purges {
            last = Some(self.fetcher.store.purge(purge, key.as_ref()));
            match key {
                Some(key) => {
                    self.fetcher.flights.detach(key.hash());
                    if !is_soft {
                        self.forget_searched(&key);
                    }
                }
                // What is under way was asked for before.
                None => self.fetcher.flights.detach_all(),
            }
        }
        match last {
            Some(last) => self.fetcher.store.recorded(last).await.map_err(PurgeError::NotRecorded),
            None => Ok(()),
        }
    }

    /// What a purge is made of. What is stored for several queries of a path goes with each of their URLs.
    fn understand(&self, what: What<'_>, is_soft: bool) -> Result<Vec<(Purge, Option<CacheKey>)>, PurgeError> {
        let purge = |target| (Purge { target, is_soft }, None);
        Ok(match what {
            What::All => vec![purge(Target::All)],
            What::Tag(tag) if tag.is_empty() || tag.len() > tags::MAX_LEN => {
                return Err(PurgeError::Unclear(format!("a tag has 1 to {} bytes", tags::MAX_LEN)));
            }
            What::Tag(tag) if tag.contains(',') || tag.trim() != tag => {
                return Err(PurgeError::Unclear(format!(
                    "\"{tag}\" is no tag: one has no comma, and no white space at its ends; purge one at a time"
                )));
            }
            What::Tag(tag) => vec![purge(Target::Tag(tag.to_owned()))],
            What::Url(url) => {
                let Url { scheme, authority, path, query } = Url::read(url).map_err(PurgeError::Unclear)?;
                let key = self.keys.key(scheme, &authority, &path, query.as_deref());
                let searched = key.path_hash().map(|hash| purge(Target::Url(hash)));
                let of_url = (Purge { target: Target::Url(key.hash()), is_soft }, Some(key));
                searched.into_iter().chain([of_url]).collect()
            }
            What::Prefix(text) => {
                let prefix = normal_prefix(text).ok_or_else(|| {
                    PurgeError::Unclear(format!(
                        "\"{text}\" is no prefix; write what URLs begin with, host and all: http://host/path, or a path of any host: /path (at most {MAX_PREFIX} bytes)"
                    ))
                })?;
                vec![purge(Target::Prefix(prefix))]
            }
        })
    }
}

/// An absolute URL that an operator names, in the spelling of keys.
pub(super) struct Url {
    pub(super) scheme: &'static str,
    pub(super) authority: String,
    pub(super) path: String,
    pub(super) query: Option<String>,
}

impl Url {
    /// An error says what it should be.
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

/// What is not ASCII as clients send it.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii() {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// A prefix in the spelling of keys. A star at its end says what it is anyway.
fn normal_prefix(text: &str) -> Option<String> {
    let text = &escaped(text.strip_suffix('*').unwrap_or(text));
    if text.len() > MAX_PREFIX || text.contains(|c: char| c.is_ascii_control() || c == ' ' || c == '#') {
        return None;
    }
    if text.starts_with('/') {
        return Some(text.to_owned());
    }
    let (scheme, rest) = text.split_once("://")?;
    let scheme = scheme_of(scheme)?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let authority = normal_authority(authority, scheme)?;
    let slash = if path.starts_with('/') { "" } else { "/" };
    Some(format!("{scheme}://{authority}{slash}{path}"))
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
            ("http://ho st/a", None),
            ("/a/*", Some("/a/")),
            ("/café", Some("/caf%C3%A9")),
            ("/a b", None),
            ("", None),
        ] {
            assert_eq!(normal_prefix(text).as_deref(), expected, "{text}");
        }
    }
}
