//! Defines the objects of the state, as JSON, and their names.
//!
//! | name, below a directory for each CA | content |
//! | --- | --- |
//! | `accounts/<time>-<node>` | the account with its key; the first counts |
//! | `certificates/<group>/<time>-<node>` | a chain with its key; the one that is valid longest counts |
//! | `orders/<group>/<time>-<node>` | an order under way, with the key of its certificate; the last counts |
//! | `plans/<group>/<time>-<node>` | when to renew, and what failed; the last counts |
//! | `challenges/<time>/<name>/<token>` | the key authorization of a challenge that is to be answered |
//! | `claims/<time>-<node>-<beat>` | a process that orders, or wants to |
//!
//! Names are never written twice. A group is the names of one certificate.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::plan::{Trouble, Window};
use crate::rfc9111::timestamp::Timestamp;

/// The version of the records. Others count as not there.
const VERSION: u8 = 1;

/// A record of one kind.
pub(super) trait Record: Serialize + DeserializeOwned {
    /// The first part of its names.
    const KIND: &'static str;
}

#[derive(Serialize, Deserialize)]
pub(super) struct Account {
    /// The credentials by which `instant-acme` finds the account again, with its private key.
    pub(super) credentials: serde_json::Value,
    /// The address that the CA was told.
    pub(super) email: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Certificate {
    /// The chain, as PEM.
    pub(super) chain: String,
    /// The private key, as PEM.
    pub(super) key: String,
    /// The URL of the account that ordered it.
    pub(super) account: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) url: String,
    /// The private key of the certificate, as PEM.
    pub(super) key: String,
    /// The URL of its account.
    pub(super) account: String,
}

/// When the certificate of a group is renewed, and what failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// The CA's name of the certificate that the plan is about.
    pub(super) certificate: Option<String>,
    /// The window that the CA suggested last.
    pub(super) window: Option<Window>,
    /// The moment chosen in it, in seconds.
    pub(super) renew_at: Option<i64>,
    /// When the CA is asked again for the window, in seconds.
    pub(super) check_at: Option<i64>,
    /// The failures since the last order that succeeded.
    pub(super) failures: Option<Failures>,
}

/// Attempts that failed on end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failures {
    pub(super) count: u32,
    pub(super) trouble: Trouble,
    /// When the last one failed, in seconds.
    pub(super) failed_at: i64,
    /// When the next attempt is made, in seconds.
    pub(super) retry_at: i64,
    /// The moment before which the CA does not want to be asked, in seconds.
    pub(super) not_before: Option<i64>,
    /// The sentence that says what happened.
    pub(super) told: String,
}

impl Record for Account {
    const KIND: &'static str = "accounts";
}

impl Record for Certificate {
    const KIND: &'static str = "certificates";
}

impl Record for Order {
    const KIND: &'static str = "orders";
}

impl Record for Plan {
    const KIND: &'static str = "plans";
}

// Private keys are not shown.
impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").finish_non_exhaustive()
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").finish_non_exhaustive()
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Order").field("url", &self.url).finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct Versioned<R> {
    version: u8,
    record: R,
}

pub(super) fn encode<R: Record>(record: &R) -> Result<Vec<u8>, String> {
    serde_json::to_vec_pretty(&Versioned { version: VERSION, record }).map_err(|error| error.to_string())
}

pub(super) fn decode<R: Record>(bytes: &[u8]) -> Result<R, String> {
    let read: Versioned<R> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if read.version == VERSION { Ok(read.record) } else { Err(format!("it has version {}", read.version)) }
}

/// When a name was made, and by which process. Ordered by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Stamp {
    pub(super) time: Timestamp,
    pub(super) node: u64,
}

impl Stamp {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (time, node) = text.split_once('-')?;
        Some(Self { time: parse_time(time)?, node: parse_hex(node)? })
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", shown(self.time), self.node)
    }
}

fn shown(time: Timestamp) -> String {
    format!("{:016x}", time.as_millis().max(0))
}

fn parse_time(text: &str) -> Option<Timestamp> {
    i64::try_from(parse_hex(text)?).ok().map(Timestamp::from_millis)
}

fn parse_hex(text: &str) -> Option<u64> {
    let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(text, 16).ok().filter(|_| is_hex)
}

/// Returns the directory of a CA's state.
pub(super) fn base(directory: &str) -> String {
    format!("{:016x}/", xxh3_64(directory.as_bytes()))
}

/// Returns the name of a group: the first of its names by the alphabet, and a hash of all.
pub(super) fn group(names: &[String]) -> String {
    let mut sorted: Vec<&str> = names.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let first: String = sorted.first().copied().unwrap_or_default().chars().take(100).collect();
    format!("{first}-{:016x}", xxh3_64(sorted.join(" ").as_bytes()))
}

/// A process that orders, or wants to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClaimName {
    pub(super) stamp: Stamp,
    /// Grows while the process is alive.
    pub(super) beat: u32,
}

impl ClaimName {
    /// The first part of their names.
    pub(super) const KIND: &'static str = "claims";

    pub(super) fn parse(name: &str) -> Option<Self> {
        let (stamp, beat) = name.rsplit_once('-')?;
        let is_hex = beat.len() == 8 && beat.bytes().all(|byte| byte.is_ascii_hexdigit());
        let beat = u32::from_str_radix(beat, 16).ok().filter(|_| is_hex)?;
        Some(Self { stamp: Stamp::parse(stamp)?, beat })
    }
}

impl fmt::Display for ClaimName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:08x}", self.stamp, self.beat)
    }
}

/// A challenge that is to be answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pending {
    /// When it was made.
    pub(super) since: Timestamp,
    /// The name that is validated.
    pub(super) name: String,
    pub(super) token: String,
}

impl Pending {
    /// The first part of their names.
    pub(super) const KIND: &'static str = "challenges";

    pub(super) fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('/');
        let (since, name, token) = (parse_time(parts.next()?)?, parts.next()?, parts.next()?);
        let is_sound = parts.next().is_none() && is_token(token);
        is_sound.then(|| Self { since, name: name.to_owned(), token: token.to_owned() })
    }
}

impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", shown(self.since), self.name, self.token)
    }
}

/// Returns whether a text may be a token (RFC 8555 §8.3: of the alphabet of base64url), of a length that a file's name has.
pub(super) fn is_token(text: &str) -> bool {
    (1..=200).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_nothing_else_is() {
        let stamp = Stamp { time: Timestamp::from_millis(5), node: u64::MAX };
        assert_eq!(Stamp::parse(&stamp.to_string()), Some(stamp));
        let claim = ClaimName { stamp, beat: 7 };
        assert_eq!(ClaimName::parse(&claim.to_string()), Some(claim));
        let pending = Pending { since: stamp.time, name: "a.example".into(), token: "to-k_en".into() };
        assert_eq!(Pending::parse(&pending.to_string()), Some(pending));
        for foreign in
            ["", "-", "5-6", "+000000000000005-0000000000000006", "0000000000000005-0000000000000006-", "a/b/c"]
        {
            assert_eq!((Stamp::parse(foreign), ClaimName::parse(foreign), Pending::parse(foreign)), (None, None, None));
        }
        for (token, is_sound) in
            [("a", true), ("", false), ("../x", false), ("a/b", false), ("a.b", false), ("ä", false)]
        {
            assert_eq!(is_token(token), is_sound, "{token}");
        }
        assert!(!is_token(&"a".repeat(201)));
    }

    #[test]
    fn a_group_is_its_names_in_any_order() {
        let group = |names: &[&str]| group(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(group(&["a.example", "b.example"]), group(&["b.example", "a.example"]));
        assert_ne!(group(&["a.example"]), group(&["a.example", "b.example"]));
        assert!(group(&["a.example"]).starts_with("a.example-"));
    }

    #[test]
    fn a_record_of_another_version_is_not_read_and_no_key_is_shown() {
        let order = Order { url: "https://ca/1".into(), key: "SECRET".into(), account: "https://ca/2".into() };
        let bytes = encode(&order).expect("JSON");
        assert_eq!(decode::<Order>(&bytes).expect("as written").url, order.url);
        let text = String::from_utf8(bytes).expect("UTF-8").replace("\"version\": 1", "\"version\": 2");
        assert!(decode::<Order>(text.as_bytes()).expect_err("another").contains("version 2"));
        assert!(decode::<Order>(b"{").is_err());
        assert!(!format!("{order:?}").contains("SECRET"));
    }
}
