//! The names of durable objects: everything that this process may ever write or delete.
//!
//! | name | what |
//! | --- | --- |
//! | `o/aa/bb/…` | the object at a key: a response, or the record of one that varies |
//! | `o/aa/bb/….<variant>` | a variant |
//! | `b/aa/bb/…` | a separate body |
//! | `j/<time>-<maker>` | a record of the journal |
//! | `s/<time>-<maker>` | a snapshot |
//! | `probe` | written to find out whether that is allowed |
//!
//! All lie below `<prefix of the URL>/<key prefix>/larder-1/`.

use crate::entry::JournalTime;
use crate::rfc9111::key::CacheKey;

/// The names below one root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    root: String,
}

impl Names {
    /// Those for a URL's prefix and a key prefix.
    pub(crate) fn new(url_prefix: &str, key_prefix: &str) -> Self {
        let mut root = String::new();
        for part in [url_prefix, &escape(key_prefix)] {
            if !part.is_empty() {
                root.push_str(part);
                root.push('/');
            }
        }
        root.push_str("larder-1/");
        Self { root }
    }

    /// What all names begin with.
    pub(crate) fn root(&self) -> &str {
        &self.root
    }

    /// The object at a key: a response, or the record of one that varies.
    pub(crate) fn primary(&self, key: &CacheKey) -> String {
        self.spread("o", key.hash())
    }

    /// A variant of what is at a key.
    pub(crate) fn variant(&self, key: &CacheKey, variant: u128) -> String {
        format!("{}.{variant:032x}", self.primary(key))
    }

    /// A separate body.
    pub(crate) fn body(&self, id: u128) -> String {
        self.spread("b", id)
    }

    /// What the names of objects, or of bodies, whose hash begins with this byte begin with.
    pub(crate) fn shard(&self, kind: Kind, first: u8) -> String {
        format!("{}{}/{first:02x}/", self.root, kind.letter())
    }

    /// The hash that the name of an object or a separate body was made of, and whether it is a variant's.
    pub(crate) fn parse(&self, kind: Kind, name: &str) -> Option<(u128, bool)> {
        let rest = name.strip_prefix(&self.root)?.strip_prefix(kind.letter())?.strip_prefix('/')?;
        let (rest, is_variant) = match rest.split_once('.') {
            Some((rest, variant)) if variant.len() == 32 => (rest, true),
            Some(_) => return None,
            None => (rest, false),
        };
        let mut parts = rest.split('/');
        let hex = [parts.next()?, parts.next()?, parts.next()?].concat();
        let is_whole = parts.next().is_none() && hex.len() == 32;
        u128::from_str_radix(&hex, 16).ok().filter(|_| is_whole).map(|hash| (hash, is_variant))
    }

    /// Spreads names over 65,536 prefixes, which S3 partitions by and directories stay small by.
    fn spread(&self, kind: &str, hash: u128) -> String {
        let hex = format!("{hash:032x}");
        format!("{}{kind}/{}/{}/{}", self.root, &hex[..2], &hex[2..4], &hex[4..])
    }

    /// What the names of the journal's records begin with.
    pub(crate) fn journal(&self) -> String {
        format!("{}j/", self.root)
    }

    /// Returns the name of the object that is written to find out whether that is allowed.
    pub(crate) fn probe(&self) -> String {
        format!("{}probe", self.root)
    }

    /// What the names of snapshots begin with.
    pub(crate) fn snapshots(&self) -> String {
        format!("{}s/", self.root)
    }

    /// The record that `maker` wrote at `time`.
    pub(crate) fn record(&self, time: JournalTime, maker: u64) -> String {
        format!("{}j/{time:016x}-{maker:016x}", self.root)
    }

    /// The snapshot that `maker` wrote of all until `time`.
    pub(crate) fn snapshot(&self, time: JournalTime, maker: u64) -> String {
        format!("{}s/{time:016x}-{maker:016x}", self.root)
    }

    /// Time and maker in the name of a record or a snapshot.
    pub(crate) fn parse_timed(name: &str) -> Option<(JournalTime, u64)> {
        let (time, maker) = name.rsplit('/').next()?.split_once('-')?;
        let hex = |text: &str| u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 16);
        Some((hex(time)?, hex(maker)?))
    }
}

/// What lies under spread names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Objects.
    Object,
    /// Separate bodies.
    Body,
}

impl Kind {
    fn letter(self) -> &'static str {
        match self {
            Self::Object => "o",
            Self::Body => "b",
        }
    }
}

/// A key prefix as one path segment that can't climb out of its directory.
fn escape(prefix: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(prefix.len());
    for byte in prefix.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => out.push(char::from(byte)),
            _ => {
                out.push('%');
                out.push(char::from(HEX[usize::from(byte >> 4)]));
                out.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rfc9111::key::KeyParts;

    #[test]
    fn names_never_leave_our_own_prefix() {
        for (url_prefix, key_prefix, root) in [
            ("", "", "larder-1/"),
            ("any/prefix", "", "any/prefix/larder-1/"),
            ("any", "../..", "any/%2E%2E%2F%2E%2E/larder-1/"),
            ("", "a b/é", "a%20b%2F%C3%A9/larder-1/"),
        ] {
            let names = Names::new(url_prefix, key_prefix);
            assert_eq!(names.root(), root);
            assert!(names.body(1).starts_with(root));
        }
    }

    #[test]
    fn names_are_read_back() {
        let names = Names::new("any", "p");
        let key = CacheKey::new(KeyParts { prefix: "p", scheme: "http", authority: "h", path: "/", query: None });
        assert_eq!(names.parse(Kind::Object, &names.primary(&key)), Some((key.hash(), false)));
        assert_eq!(names.parse(Kind::Object, &names.variant(&key, 3)), Some((key.hash(), true)));
        assert_eq!(names.parse(Kind::Body, &names.body(u128::MAX)), Some((u128::MAX, false)));
        assert!(names.primary(&key).starts_with(&names.shard(Kind::Object, (key.hash() >> 120) as u8)));
        assert_eq!(Names::parse_timed(&names.record(5, u64::MAX)), Some((5, u64::MAX)));
        for foreign in ["any/p/larder-1/o/aa/bb/cc", "o/aa/bb/cc", "any/p/larder-1/o/aa/bb/cc.gone", ""] {
            assert_eq!(names.parse(Kind::Object, foreign), None);
            assert_eq!(Names::parse_timed(foreign), None);
        }
    }
}
