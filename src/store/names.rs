//! The names of durable objects. This process writes and deletes no others.
//!
//! | name | content |
//! | --- | --- |
//! | `o/aa/bb/…` | the object at a key: a response, or the record of one that varies |
//! | `o/aa/bb/….<variant>` | a variant |
//! | `b/aa/bb/…` | a separate body |
//! | `j/<time>-<node>` | a record of the journal |
//! | `s/<time>-<node>` | a snapshot of the journal |
//! | `probe` | a constant, written to find out whether the place takes writes |
//!
//! All lie below `<prefix of the URL>/<key prefix>/larder-1/`.

use crate::entry::JournalTime;
use crate::rfc9111::key::CacheKey;

/// Makes and parses the names below one root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ObjectNames {
    root: String,
}

impl ObjectNames {
    /// Names for the prefix of a bucket's URL, and a key prefix.
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

    /// Returns what all names begin with.
    pub(crate) fn root(&self) -> &str {
        &self.root
    }

    /// Returns the name of the object at a key: a response, or the record of one that varies.
    pub(crate) fn primary(&self, key: &CacheKey) -> String {
        self.spread("o", key.hash())
    }

    /// Returns the name of a variant of what is at a key.
    pub(crate) fn variant(&self, key: &CacheKey, variant: u128) -> String {
        format!("{}.{variant:032x}", self.primary(key))
    }

    /// Returns the name of a separate body.
    pub(crate) fn body(&self, id: u128) -> String {
        self.spread("b", id)
    }

    /// Returns what the names begin with whose hash begins with this byte.
    pub(crate) fn shard(&self, namespace: Namespace, first: u8) -> String {
        format!("{}{}/{first:02x}/", self.root, namespace.letter())
    }

    /// Returns the hash that a name was made of, and whether it is a variant's.
    pub(crate) fn parse(&self, namespace: Namespace, name: &str) -> Option<(u128, bool)> {
        let rest = name.strip_prefix(&self.root)?.strip_prefix(namespace.letter())?.strip_prefix('/')?;
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

    /// Spreads names over 65,536 prefixes: S3 partitions by prefix, and directories stay small.
    fn spread(&self, kind: &str, hash: u128) -> String {
        let hex = format!("{hash:032x}");
        format!("{}{kind}/{}/{}/{}", self.root, &hex[..2], &hex[2..4], &hex[4..])
    }

    /// Returns what the names of the journal's records begin with.
    pub(crate) fn journal(&self) -> String {
        format!("{}j/", self.root)
    }

    /// Returns the name of the probe.
    pub(crate) fn probe(&self) -> String {
        format!("{}probe", self.root)
    }

    /// Returns what the names of snapshots begin with.
    pub(crate) fn snapshots(&self) -> String {
        format!("{}s/", self.root)
    }

    /// Returns the name of the record that `node` wrote at `time`.
    pub(crate) fn record(&self, time: JournalTime, node: u64) -> String {
        format!("{}j/{time:016x}-{node:016x}", self.root)
    }

    /// Returns the name of the snapshot that `node` wrote of all until `time`.
    pub(crate) fn snapshot(&self, time: JournalTime, node: u64) -> String {
        format!("{}s/{time:016x}-{node:016x}", self.root)
    }

    /// Returns the time and the node in the name of a record or a snapshot.
    pub(crate) fn parse_timed(name: &str) -> Option<(JournalTime, u64)> {
        let (time, node) = name.rsplit('/').next()?.split_once('-')?;
        let hex = |text: &str| u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 16);
        Some((hex(time)?, hex(node)?))
    }
}

/// The two groups of names that are spread by a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Namespace {
    /// Responses and records, by the key's hash.
    Objects,
    /// Separate bodies, by their id.
    Bodies,
}

impl Namespace {
    fn letter(self) -> &'static str {
        match self {
            Self::Objects => "o",
            Self::Bodies => "b",
        }
    }
}

/// Escapes a key prefix to one path segment that can't climb out of its directory.
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
            let names = ObjectNames::new(url_prefix, key_prefix);
            assert_eq!(names.root(), root);
            assert!(names.body(1).starts_with(root));
        }
    }

    #[test]
    fn names_are_read_back() {
        let names = ObjectNames::new("any", "p");
        let key = CacheKey::new(KeyParts { prefix: "p", scheme: "http", authority: "h", path: "/", query: None });
        assert_eq!(names.parse(Namespace::Objects, &names.primary(&key)), Some((key.hash(), false)));
        assert_eq!(names.parse(Namespace::Objects, &names.variant(&key, 3)), Some((key.hash(), true)));
        assert_eq!(names.parse(Namespace::Bodies, &names.body(u128::MAX)), Some((u128::MAX, false)));
        assert!(names.primary(&key).starts_with(&names.shard(Namespace::Objects, (key.hash() >> 120) as u8)));
        assert_eq!(ObjectNames::parse_timed(&names.record(5, u64::MAX)), Some((5, u64::MAX)));
        for foreign in ["any/p/larder-1/o/aa/bb/cc", "o/aa/bb/cc", "any/p/larder-1/o/aa/bb/cc.gone", ""] {
            assert_eq!(names.parse(Namespace::Objects, foreign), None);
            assert_eq!(ObjectNames::parse_timed(foreign), None);
        }
    }
}
