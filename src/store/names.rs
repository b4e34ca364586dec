//! The names of durable objects. This process writes and deletes no others.
//!
//! | name | content |
//! | --- | --- |
//! | `j/<time>-<node>.pack` | a pack of responses |
//! | `j/<time>-<node>.open` | in a directory: a pack that still grows |
//! | `j/<time>-<node>.purges` | purges that one process made |
//! | `b/aa/bb/…` | a separate body |
//! | `s/<time>-<node>` | a snapshot of the journal |
//! | `acme/…` | the state of ACME, which is no cache: see [`Keep`](super::Keep) |
//! | `probe` | a constant, written to find out whether the place takes writes |
//!
//! All lie below `<prefix of the URL>/<key prefix>/larder-1/`. Packs and purges share a prefix, so that one listing finds
//! what is new of both.

use std::fmt;

use crate::entry::JournalTime;

/// The name of a pack: packs are ordered by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PackName {
    /// The time at which its writer named it.
    pub time: JournalTime,
    /// Its writer.
    pub node: u64,
}

impl fmt::Display for PackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}", self.time, self.node)
    }
}

/// An object of the journal, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JournalObject {
    /// A pack that is complete.
    Pack(PackName),
    /// A pack of a directory that still grows.
    OpenPack(PackName),
    /// Purges.
    Purges(PackName),
}

impl JournalObject {
    /// Returns the time and the writer in its name.
    pub(crate) fn name(self) -> PackName {
        match self {
            Self::Pack(name) | Self::OpenPack(name) | Self::Purges(name) => name,
        }
    }
}

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

    /// Returns the name of a complete pack.
    pub(crate) fn pack(&self, pack: PackName) -> String {
        format!("{}j/{pack}.pack", self.root)
    }

    /// Returns the name of a pack that still grows.
    pub(crate) fn open_pack(&self, pack: PackName) -> String {
        format!("{}j/{pack}.open", self.root)
    }

    /// Returns the name of the purges that a process wrote at a time.
    pub(crate) fn purges(&self, name: PackName) -> String {
        format!("{}j/{name}.purges", self.root)
    }

    /// Returns the name of a separate body, spread over 65,536 prefixes: directories stay small.
    pub(crate) fn body(&self, id: u128) -> String {
        let hex = format!("{id:032x}");
        format!("{}b/{}/{}/{}", self.root, &hex[..2], &hex[2..4], &hex[4..])
    }

    /// Returns what the names of separate bodies begin with whose id begins with this byte.
    pub(crate) fn bodies(&self, first: u8) -> String {
        format!("{}b/{first:02x}/", self.root)
    }

    /// Returns the id in the name of a separate body.
    pub(crate) fn parse_body(&self, name: &str) -> Option<u128> {
        let rest = name.strip_prefix(&self.root)?.strip_prefix("b/")?;
        let mut parts = rest.split('/');
        let hex = [parts.next()?, parts.next()?, parts.next()?].concat();
        let is_whole = parts.next().is_none() && hex.len() == 32;
        u128::from_str_radix(&hex, 16).ok().filter(|_| is_whole)
    }

    /// Returns what the names of packs and purges begin with.
    pub(crate) fn journal(&self) -> String {
        format!("{}j/", self.root)
    }

    /// Returns what the names of packs and purges are greater than that were named at `time` or later.
    pub(crate) fn journal_from(&self, time: JournalTime) -> String {
        format!("{}j/{time:016x}", self.root)
    }

    /// Returns what the names of objects begin with that are no cache.
    pub(crate) fn kept(&self) -> String {
        format!("{}acme/", self.root)
    }

    /// Returns the name of the probe.
    pub(crate) fn probe(&self) -> String {
        format!("{}probe", self.root)
    }

    /// Returns what the names of snapshots begin with.
    pub(crate) fn snapshots(&self) -> String {
        format!("{}s/", self.root)
    }

    /// Returns the name of the snapshot that `node` wrote of all until `time`.
    pub(crate) fn snapshot(&self, time: JournalTime, node: u64) -> String {
        format!("{}s/{}", self.root, PackName { time, node })
    }

    /// Returns the time and the node in the name of a snapshot.
    pub(crate) fn parse_snapshot(name: &str) -> Option<(JournalTime, u64)> {
        let name = parse_timed(name.rsplit('/').next()?)?;
        Some((name.time, name.node))
    }

    /// Returns the object of the journal with this name.
    pub(crate) fn parse_journal(name: &str) -> Option<JournalObject> {
        let (timed, kind) = name.rsplit('/').next()?.split_once('.')?;
        let name = parse_timed(timed)?;
        match kind {
            "pack" => Some(JournalObject::Pack(name)),
            "open" => Some(JournalObject::OpenPack(name)),
            "purges" => Some(JournalObject::Purges(name)),
            _ => None,
        }
    }
}

fn parse_timed(text: &str) -> Option<PackName> {
    let (time, node) = text.split_once('-')?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 16);
    Some(PackName { time: hex(time)?, node: hex(node)? })
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
        let (names, name) = (ObjectNames::new("any", "p"), PackName { time: 5, node: u64::MAX });
        assert_eq!(names.parse_body(&names.body(u128::MAX)), Some(u128::MAX));
        assert!(names.body(0xab << 120).starts_with(&names.bodies(0xab)));
        assert_eq!(ObjectNames::parse_journal(&names.pack(name)), Some(JournalObject::Pack(name)));
        assert_eq!(ObjectNames::parse_journal(&names.open_pack(name)), Some(JournalObject::OpenPack(name)));
        assert_eq!(ObjectNames::parse_journal(&names.purges(name)), Some(JournalObject::Purges(name)));
        assert_eq!(ObjectNames::parse_snapshot(&names.snapshot(5, u64::MAX)), Some((5, u64::MAX)));
        for foreign in ["any/p/larder-1/j/aa-bb.pack", "j/aa", "any/p/larder-1/b/aa/bb/cc.gone", ""] {
            assert_eq!(names.parse_body(foreign), None);
            assert_eq!(ObjectNames::parse_journal(foreign), None);
            assert_eq!(ObjectNames::parse_snapshot(foreign), None);
        }
    }
}
