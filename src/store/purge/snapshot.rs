//! The known purges of a process, in the form that a snapshot of the journal holds.

use super::table::hash_of;
use super::{PurgeStamp, PurgeTarget, Purges};
use crate::entry::JournalTime;

/// All purges that a process knows of. Targets are hashes where the process keeps no more than those.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PurgeSnapshot {
    /// Scopes and stamps, in the order of their arrival.
    pub stamps: Vec<(Scope, PurgeStamp)>,
    /// For each node the time of its last known purge (see [`Purges::learnt`]).
    pub nodes: Vec<(u64, JournalTime)>,
    /// The fingerprints of evicted URLs, encoded (see [`super::Scope::OldUrls`]).
    pub old_urls: Vec<u8>,
    /// The latest time known.
    pub latest: JournalTime,
}

/// The scope of a stamp: all that it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    All,
    /// A prefix.
    Prefix(String),
    /// A tag, by its hash.
    Tag(u128),
    /// A URL, by its key's hash.
    Url(u128),
    /// All URLs whose purges are evicted and of which a fingerprint is left.
    OldUrls,
    /// All URLs: the purges of some are evicted, with their fingerprints.
    UrlFloor,
    /// All tags: the purges of some are evicted.
    TagFloor,
    /// All prefixes: the purges of some are evicted.
    PrefixFloor,
}

impl From<&PurgeTarget> for Scope {
    fn from(target: &PurgeTarget) -> Self {
        match target {
            PurgeTarget::Url(hash) => Self::Url(*hash),
            PurgeTarget::Tag(tag) => Self::Tag(hash_of(tag)),
            PurgeTarget::Prefix(prefix) => Self::Prefix(prefix.clone()),
            PurgeTarget::All => Self::All,
        }
    }
}

impl Purges {
    /// Returns every known purge, for a snapshot.
    pub fn snapshot(&self) -> PurgeSnapshot {
        self.table.read().snapshot()
    }

    /// Takes over the purges of a snapshot. Returns `false` if a part of it is malformed, or a time in it can't be: then
    /// nothing of it counts.
    #[must_use]
    pub fn restore(&self, snapshot: &PurgeSnapshot) -> bool {
        let times =
            snapshot.stamps.iter().map(|(_, stamp)| stamp.time).chain(snapshot.nodes.iter().map(|(_, time)| *time));
        if times.chain([snapshot.latest]).max().is_some_and(|last| !self.believes(last)) {
            return false;
        }
        let mut table = self.table.write();
        let is_sound = table.merge_old_urls(&snapshot.old_urls);
        let mut arrival = self.position();
        for (scope, stamp) in &snapshot.stamps {
            if table.has(scope, stamp) {
                continue;
            }
            arrival += 1;
            table.insert(scope, PurgeStamp { arrival, ..*stamp });
        }
        for (node, time) in &snapshot.nodes {
            table.note_node(*node, *time);
        }
        table.note_time(snapshot.latest);
        self.publish(arrival, false);
        is_sound
    }
}
