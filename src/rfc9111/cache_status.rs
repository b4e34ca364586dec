//! `Cache-Status` (RFC 9211): says what this cache did, in the standard's words.

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{HeaderName, HeaderValue};

use super::key::CacheKey;
use super::storage::NotStorable;

/// The field.
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// The reason why a request went forward to the origin (RFC 9211 §2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fwd {
    /// The configuration says not to handle this request.
    Bypass,
    /// The method requires it to be forwarded.
    Method,
    /// Nothing is stored for the URI.
    UriMiss,
    /// Responses are stored for the URI, but for requests that differ in a nominated field.
    VaryMiss,
    /// No stored response can be used, for no more specific reason.
    Miss,
    /// The client's directives or preconditions do not allow a stored response.
    Request,
    /// The stored response is stale.
    Stale,
    /// Only a part of what is asked for is stored.
    Partial,
}

impl Fwd {
    /// Every reason, in the order of [`Fwd::index`].
    pub const ALL: [Self; 8] = [
        Self::Bypass,
        Self::Method,
        Self::UriMiss,
        Self::VaryMiss,
        Self::Miss,
        Self::Request,
        Self::Stale,
        Self::Partial,
    ];

    /// Returns the token of RFC 9211.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Miss => "miss",
            Self::Request => "request",
            Self::Stale => "stale",
            Self::Partial => "partial",
        }
    }

    /// Returns the whole value for a request that went forward for this reason, where nothing else is said.
    fn alone(self) -> HeaderValue {
        match self {
            Self::Bypass => const { HeaderValue::from_static("larder; fwd=bypass") },
            Self::Method => const { HeaderValue::from_static("larder; fwd=method") },
            Self::UriMiss => const { HeaderValue::from_static("larder; fwd=uri-miss") },
            Self::VaryMiss => const { HeaderValue::from_static("larder; fwd=vary-miss") },
            Self::Miss => const { HeaderValue::from_static("larder; fwd=miss") },
            Self::Request => const { HeaderValue::from_static("larder; fwd=request") },
            Self::Stale => const { HeaderValue::from_static("larder; fwd=stale") },
            Self::Partial => const { HeaderValue::from_static("larder; fwd=partial") },
        }
    }

    /// Returns the reason's position in [`Fwd::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// The tier that a stored response came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// The in-process cache.
    Memory,
    /// The bucket or directory.
    Durable,
}

impl Tier {
    /// Returns the word in `detail=`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Durable => "durable",
        }
    }
}

/// One member of the `Cache-Status` list: this cache's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheStatus {
    /// Says whether the request was answered here or forwarded.
    pub handling: Handling,
    /// Remaining freshness in seconds, negative once stale (§2.4).
    pub ttl: Option<i32>,
    /// A token for further detail (§2.8): the tier of a hit, or what failed.
    pub detail: Option<&'static str>,
    /// The reason why the response was not stored. It is sent only together with the cache key.
    pub not_stored: Option<NotStorable>,
}

/// Says whether a request was answered from the store or forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handling {
    /// Answered without going forward (§2.1).
    Hit,
    /// Went forward (§2.2).
    Forward {
        /// The reason.
        fwd: Fwd,
        /// The status of the origin, where the client sees another one (§2.3).
        fwd_status: Option<u16>,
        /// True if the response was stored (§2.5).
        stored: bool,
        /// True if the request shared the fetch of another one (§2.6).
        collapsed: bool,
    },
    /// Neither: refused, or failed before anything was asked.
    Refused,
}

impl CacheStatus {
    /// Makes the status of a hit in `tier` with `remaining` milliseconds of freshness left.
    pub fn hit(tier: Tier, remaining: i64) -> Self {
        Self {
            handling: Handling::Hit,
            ttl: Some(ttl_seconds(remaining)),
            detail: Some(tier.as_str()),
            not_stored: None,
        }
    }

    /// Makes the status of a request that was forwarded because of `fwd`, and whose response was not stored.
    pub fn forward(fwd: Fwd) -> Self {
        Self {
            handling: Handling::Forward { fwd, fwd_status: None, stored: false, collapsed: false },
            ttl: None,
            detail: None,
            not_stored: None,
        }
    }

    /// Makes the status of a request that was neither a hit nor forwarded, because of `detail`.
    pub fn refused(detail: &'static str) -> Self {
        Self { handling: Handling::Refused, ttl: None, detail: Some(detail), not_stored: None }
    }

    /// Adds the reason why the response was not stored.
    pub fn not_stored(self, why: NotStorable) -> Self {
        Self { not_stored: Some(why), ..self }
    }

    /// Adds `detail`.
    pub fn with_detail(self, detail: &'static str) -> Self {
        Self { detail: Some(detail), ..self }
    }

    /// Returns the field value, a Structured Field, with the cache key if one is given (§2.7).
    pub fn to_value(self, key: Option<&CacheKey>) -> HeaderValue {
        if let (Handling::Forward { fwd, .. }, None) = (self.handling, key)
            && self == (Self { not_stored: self.not_stored, ..Self::forward(fwd) })
        {
            return fwd.alone();
        }
        let mut text = BytesMut::with_capacity(64);
        text.put_slice(b"larder");
        match self.handling {
            Handling::Hit => text.put_slice(b"; hit"),
            Handling::Forward { fwd, fwd_status, stored, collapsed } => {
                text.put_slice(b"; fwd=");
                text.put_slice(fwd.as_str().as_bytes());
                if let Some(status) = fwd_status {
                    text.put_slice(b"; fwd-status=");
                    text.put_slice(itoa::Buffer::new().format(status).as_bytes());
                }
                if stored {
                    text.put_slice(b"; stored");
                }
                if collapsed {
                    text.put_slice(b"; collapsed");
                }
            }
            Handling::Refused => {}
        }
        if let Some(ttl) = self.ttl {
            text.put_slice(b"; ttl=");
            text.put_slice(itoa::Buffer::new().format(ttl).as_bytes());
        }
        if let Some((key, parts)) = key.and_then(|key| Some((key, key.parts()?))) {
            text.put_slice(b"; key=\"");
            if let Some(content) = key.content() {
                text.put_slice(b"QUERY ");
                put_escaped(&mut text, content);
                text.put_u8(b' ');
            }
            for part in [parts.scheme, "://", parts.authority, parts.path] {
                put_escaped(&mut text, part);
            }
            if let Some(query) = parts.query {
                text.put_u8(b'?');
                put_escaped(&mut text, query);
            }
            text.put_u8(b'"');
        }
        let why = self.not_stored.filter(|_| key.is_some()).map(NotStorable::as_str);
        if let Some(detail) = self.detail.or(why) {
            text.put_slice(b"; detail=");
            text.put_slice(detail.as_bytes());
        }
        // Only ASCII was written.
        HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or_else(|_| HeaderValue::from_static("larder"))
    }
}

/// Writes what a String may hold unchanged, and percent-encodes the rest.
fn put_escaped(text: &mut BytesMut, part: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in part.as_bytes() {
        if matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\') {
            text.put_u8(byte);
        } else {
            text.put_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

/// Converts milliseconds to whole seconds. A fresh response never shows a negative ttl, nor a stale one a positive
/// ttl.
pub fn ttl_seconds(remaining: i64) -> i32 {
    let seconds = remaining.div_euclid(1000);
    i32::try_from(seconds).unwrap_or(if seconds < 0 { i32::MIN } else { i32::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rfc9111::key::KeyParts;

    #[test]
    fn values_are_structured_fields_in_the_standards_words() {
        let forward = |fwd, fwd_status, stored, collapsed| CacheStatus {
            not_stored: None,
            handling: Handling::Forward { fwd, fwd_status, stored, collapsed },
            ttl: None,
            detail: None,
        };
        for (status, expected) in [
            (CacheStatus::hit(Tier::Memory, 59_999), "larder; hit; ttl=59; detail=memory"),
            (CacheStatus::hit(Tier::Durable, -1), "larder; hit; ttl=-1; detail=durable"),
            (CacheStatus::forward(Fwd::UriMiss), "larder; fwd=uri-miss"),
            (forward(Fwd::Stale, Some(304), true, true), "larder; fwd=stale; fwd-status=304; stored; collapsed"),
            (CacheStatus::refused("bad-request"), "larder; detail=bad-request"),
        ] {
            let value = status.to_value(None);
            assert_eq!(value, expected);
            sfv::Parser::new(value.as_bytes()).parse::<sfv::List>().expect("a structured field list");
        }
    }

    #[test]
    fn a_key_is_a_string_whatever_the_target_holds() {
        for (path, query, expected) in [
            ("/a", None, "larder; fwd=miss; key=\"http://h/a\""),
            ("/a\"b\\", Some("x=é"), "larder; fwd=miss; key=\"http://h/a%22b%5C?x=%C3%A9\""),
        ] {
            let key = CacheKey::new(KeyParts { prefix: "p", scheme: "http", authority: "h", path, query });
            let value = CacheStatus::forward(Fwd::Miss).to_value(Some(&key));
            assert_eq!(value, expected);
            sfv::Parser::new(value.as_bytes()).parse::<sfv::List>().expect("a structured field list");
        }
    }
}
