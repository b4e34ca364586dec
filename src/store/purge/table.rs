//! The table of known purges: by target, with bounds past which the oldest are evicted to a coarser form.
//!
//! An evicted purge of a URL leaves its fingerprint, and raises the floor of all such fingerprints. Past the bound of the
//! fingerprints, and for tags and prefixes at once, an evicted purge raises a floor: all that is older counts as covered.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};
use tracing::warn;

use super::belief::latest_believed;
use super::fingerprints::{Fingerprint, FingerprintSet};
use super::outgoing::{Outgoing, OutgoingQueue};
use super::snapshot::{PurgeSnapshot, Scope};
use super::stamps::{self, PurgeStamp, StampTable, Stamps, raise, supersede};
use super::{EITHER, PurgeTarget};
use crate::entry::{Covered, JournalTime, VersionVector};
use crate::rfc9111::key::{CacheKey, VALUE_SCHEME};

/// The most URLs whose purges are known one by one.
pub(super) const MAX_URLS: usize = 262_144;

/// The most fingerprints of evicted URLs. Past it all of them become a floor.
const MAX_OLD_URLS: u64 = 4 << 20;

/// The most tags whose purges are known one by one.
pub(super) const MAX_TAGS: usize = 65_536;

/// The most prefixes whose purges are known one by one.
pub(super) const MAX_PREFIXES: usize = 4096;

/// The most nodes whose last purge is known.
const MAX_NODES: usize = 4096;

#[derive(Debug)]
pub(super) struct PurgeTable {
    /// The number that this process signs its purges with.
    own_node: u64,
    /// By the key's hash.
    urls: StampTable<u128>,
    /// By the tag's hash.
    tags: StampTable<u128>,
    /// In the order of their arrival.
    prefixes: VecDeque<(String, PurgeStamp)>,
    all: Stamps,
    /// The fingerprints of evicted URLs.
    old_urls: FingerprintSet,
    floors: Floors,
    /// For each node the time of its last known purge.
    nodes: HashMap<u64, JournalTime>,
    /// See [`VersionVector::complete_until`].
    complete_until: JournalTime,
    version_vector: Arc<VersionVector>,
    /// The latest time that was given out here or read.
    latest: JournalTime,
    /// True while that is further ahead of the clock than what is read may be.
    is_ahead: bool,
    /// The purges of this process that wait to be written.
    pub(super) outgoing: OutgoingQueue,
}

/// The stamps of evicted purges, merged: all of a kind that is older counts as covered.
#[derive(Clone, Copy, Debug, Default)]
struct Floors {
    /// Arrival of the last evicted purge of a URL: what was fetched before counts as covered.
    urls: u64,
    /// Of the URLs that have a fingerprint.
    old_urls: Option<PurgeStamp>,
    /// Of all URLs.
    any_urls: Option<PurgeStamp>,
    tags: Option<PurgeStamp>,
    prefixes: Option<PurgeStamp>,
}

impl PurgeTable {
    /// An empty table of the process `own_node`.
    pub(super) fn new(own_node: u64) -> Self {
        Self {
            own_node,
            urls: StampTable::new(MAX_URLS),
            tags: StampTable::new(MAX_TAGS),
            prefixes: VecDeque::new(),
            all: Stamps::new(),
            old_urls: FingerprintSet::default(),
            floors: Floors::default(),
            nodes: HashMap::new(),
            complete_until: 0,
            version_vector: Arc::default(),
            latest: 0,
            is_ahead: false,
            outgoing: OutgoingQueue::default(),
        }
    }

    /// Returns the current version vector.
    pub(super) fn version_vector(&self) -> Arc<VersionVector> {
        Arc::clone(&self.version_vector)
    }

    /// Returns a time after `now` and after all that were given out or read: also if this process's clock is behind.
    pub(super) fn next_time(&mut self, now: JournalTime) -> JournalTime {
        let is_ahead = self.latest > latest_believed(now);
        if is_ahead && !self.is_ahead {
            // Nothing that was read is so far ahead: it is what was given out here.
            warn!(
                "this machine's clock was set back by more than an hour; other processes do not believe the times that follow, and count everything as purged: restart Larder"
            );
        }
        self.is_ahead = is_ahead;
        // Only times near the clock are noted: there are always later ones.
        self.latest = now.max(self.latest.saturating_add(1));
        self.latest
    }

    /// Returns the latest time that was given out here or read.
    pub(super) fn latest(&self) -> JournalTime {
        self.latest
    }

    /// Records a time that was read: later ones are given out from now on.
    pub(super) fn note_time(&mut self, time: JournalTime) {
        self.latest = self.latest.max(time);
    }

    /// Records that every purge made until then is known.
    pub(super) fn set_complete_until(&mut self, time: JournalTime) {
        self.complete_until = time;
        self.update_version_vector();
    }

    /// Records that all purges which `node` made until `time` are known.
    pub(super) fn note_node(&mut self, node: u64, time: JournalTime) {
        let last = self.nodes.entry(node).or_default();
        *last = time.max(*last);
        while self.nodes.len() > MAX_NODES {
            let oldest = self.nodes.iter().min_by_key(|(_, time)| **time).map(|(node, _)| *node);
            oldest.map(|node| self.nodes.remove(&node));
        }
        self.update_version_vector();
    }

    fn update_version_vector(&mut self) {
        let recent = self.nodes.iter().filter(|(_, time)| **time > self.complete_until);
        let mut recent: Vec<(u64, JournalTime)> = recent.map(|(node, time)| (*node, *time)).collect();
        recent.sort_unstable_by_key(|(node, time)| (std::cmp::Reverse(*time), *node));
        recent.truncate(VersionVector::MAX_RECENT);
        let vector = VersionVector { complete_until: self.complete_until, recent };
        if *self.version_vector != vector {
            self.version_vector = Arc::new(vector);
        }
    }

    /// Adds a purge. Returns the arrival of the last one of the same URL before it.
    pub(super) fn insert(&mut self, scope: &Scope, stamp: PurgeStamp) -> Option<u64> {
        match scope {
            Scope::Url(hash) => return self.insert_url(*hash, stamp),
            Scope::Tag(hash) => {
                for (_, evicted) in self.tags.insert(*hash, stamp).1 {
                    raise(&mut self.floors.tags, evicted);
                }
            }
            Scope::Prefix(prefix) => self.insert_prefix(prefix, stamp),
            Scope::All => stamps::add(&mut self.all, stamp),
            Scope::OldUrls => raise(&mut self.floors.old_urls, stamp),
            Scope::UrlFloor => raise(&mut self.floors.any_urls, stamp),
            Scope::TagFloor => raise(&mut self.floors.tags, stamp),
            Scope::PrefixFloor => raise(&mut self.floors.prefixes, stamp),
        }
        None
    }

    fn insert_url(&mut self, hash: u128, stamp: PurgeStamp) -> Option<u64> {
        let (before, evicted) = self.urls.insert(hash, stamp);
        for (hash, evicted) in evicted {
            self.floors.urls = self.floors.urls.max(evicted.arrival);
            self.insert_old_url(Fingerprint::of(hash), evicted);
        }
        before
    }

    fn insert_old_url(&mut self, fingerprint: Fingerprint, stamp: PurgeStamp) {
        self.old_urls.insert(fingerprint);
        raise(&mut self.floors.old_urls, stamp);
        if self.old_urls.len() > MAX_OLD_URLS {
            if let Some(floor) = self.floors.old_urls.take() {
                raise(&mut self.floors.any_urls, floor);
            }
            self.old_urls = FingerprintSet::default();
        }
    }

    fn insert_prefix(&mut self, prefix: &str, stamp: PurgeStamp) {
        let of_same = self.prefixes.iter().filter(|(other, _)| other == prefix).map(|(_, stamp)| *stamp);
        let mut of_same: Stamps = of_same.collect();
        stamps::add(&mut of_same, stamp);
        self.prefixes.retain(|(other, _)| other != prefix);
        for stamp in of_same {
            let at = self.prefixes.partition_point(|(_, other)| other.arrival <= stamp.arrival);
            self.prefixes.insert(at, (prefix.to_owned(), stamp));
        }
        while self.prefixes.len() > MAX_PREFIXES {
            if let Some((_, evicted)) = self.prefixes.pop_front() {
                raise(&mut self.floors.prefixes, evicted);
            }
        }
    }

    /// Adds the fingerprints of another process's evicted URLs. Returns `false` if they are malformed.
    pub(super) fn merge_old_urls(&mut self, encoded: &[u8]) -> bool {
        self.old_urls.merge(encoded)
    }

    /// Returns whether the table has a purge, or one that supersedes it.
    pub(super) fn has(&self, scope: &Scope, stamp: &PurgeStamp) -> bool {
        let is_below = |floor: Option<PurgeStamp>| {
            floor.is_some_and(|floor| floor.time >= stamp.time && floor.is_as_hard_as(stamp))
        };
        match scope {
            Scope::All => supersede(&self.all, stamp),
            Scope::Prefix(prefix) => {
                self.prefixes.iter().any(|(other, own)| other == prefix && supersede(&[*own], stamp))
            }
            Scope::Tag(hash) => supersede(self.tags.of(hash), stamp),
            Scope::Url(hash) => supersede(self.urls.of(hash), stamp),
            Scope::OldUrls => is_below(self.floors.old_urls),
            Scope::UrlFloor => is_below(self.floors.any_urls),
            Scope::TagFloor => is_below(self.floors.tags),
            Scope::PrefixFloor => is_below(self.floors.prefixes),
        }
    }

    /// Gives purges of this process that wait to be written a later time.
    pub(super) fn restamp<'a>(&mut self, purges: impl Iterator<Item = &'a mut Outgoing>, time: JournalTime) {
        let (node, mut is_any) = (self.own_node, false);
        for outgoing in purges {
            is_any = true;
            let old = outgoing.time;
            outgoing.time = time;
            let is_it = |stamp: &&mut PurgeStamp| stamp.node == node && stamp.time == old;
            match &outgoing.purge.target {
                PurgeTarget::Url(hash) => self.urls.of_mut(hash).filter(is_it).for_each(|stamp| stamp.time = time),
                PurgeTarget::Tag(tag) => {
                    self.tags.of_mut(&hash_of(tag)).filter(is_it).for_each(|stamp| stamp.time = time);
                }
                PurgeTarget::Prefix(prefix) => {
                    let of = self.prefixes.iter_mut().filter(|(other, _)| other == prefix).map(|(_, stamp)| stamp);
                    of.filter(is_it).for_each(|stamp| stamp.time = time);
                }
                PurgeTarget::All => self.all.iter_mut().filter(is_it).for_each(|stamp| stamp.time = time),
            }
        }
        if is_any {
            self.note_node(node, time);
        }
    }

    /// Calls `each` with every purge that covers a key with `tags`. With `since`, purges of prefixes are visited only if
    /// they arrived later.
    pub(super) fn each(
        &self,
        key: &CacheKey,
        tags: &[String],
        since: Option<u64>,
        each: &mut dyn FnMut(&dyn Fn() -> PurgeTarget, &PurgeStamp),
    ) {
        for stamp in &self.all {
            each(&|| PurgeTarget::All, stamp);
        }
        // A response for several queries of a path, or to a QUERY, is purged with the URLs that it belongs to.
        for hash in [Some(key.hash()), key.searched_path(), key.page_hash()].into_iter().flatten() {
            let old = self.floors.old_urls.as_ref().filter(|_| self.old_urls.contains(hash));
            for stamp in self.urls.of(&hash).iter().chain(old).chain(&self.floors.any_urls) {
                each(&|| PurgeTarget::Url(key.hash()), stamp);
            }
        }
        for tag in tags {
            for stamp in self.tags.of(&hash_of(tag)).iter().chain(&self.floors.tags) {
                each(&|| PurgeTarget::Tag(tag.clone()), stamp);
            }
        }
        if let Some(stamp) = &self.floors.prefixes {
            each(&|| PurgeTarget::Prefix(String::new()), stamp);
        }
        for (prefix, stamp) in self.prefixes.iter().rev() {
            if since.is_some_and(|since| stamp.arrival <= since) {
                break;
            }
            if begins_with(key, prefix) {
                each(&|| PurgeTarget::Prefix(prefix.clone()), stamp);
            }
        }
    }

    /// Returns how the purges for which `counts` says so affect a response.
    pub(super) fn covers(
        &self,
        key: &CacheKey,
        tags: &[String],
        since: Option<u64>,
        counts: impl Fn(&PurgeStamp) -> bool,
    ) -> Covered {
        let mut covered = Covered::No;
        self.each(key, tags, since, &mut |_, stamp| {
            if !counts(stamp) {
                return;
            }
            covered = match covered {
                _ if !stamp.is_soft => Covered::Wholly,
                Covered::No => Covered::Softly(stamp.moment()),
                Covered::Softly(moment) => Covered::Softly(moment.max(stamp.moment())),
                Covered::Wholly => Covered::Wholly,
            };
        });
        covered
    }

    /// Returns whether a purge of one of `tags` arrived after `position`.
    pub(super) fn covers_tags(&self, tags: &[String], position: u64) -> bool {
        self.floors.tags.is_some_and(|floor| floor.arrival > position)
            || tags.iter().flat_map(|tag| self.tags.of(&hash_of(tag))).any(|stamp| stamp.arrival > position)
    }

    /// Returns whether a purge of the URL with `hash` arrived after `position`.
    pub(super) fn covers_url(&self, hash: u128, position: u64) -> bool {
        position < self.floors.urls || self.urls.of(&hash).iter().any(|stamp| stamp.arrival > position)
    }

    pub(super) fn snapshot(&self) -> PurgeSnapshot {
        let mut all: Vec<(Scope, PurgeStamp)> = Vec::new();
        all.extend(self.all.iter().map(|stamp| (Scope::All, *stamp)));
        all.extend(self.prefixes.iter().map(|(prefix, stamp)| (Scope::Prefix(prefix.clone()), *stamp)));
        all.extend(self.tags.iter().map(|(hash, stamp)| (Scope::Tag(*hash), *stamp)));
        all.extend(self.urls.iter().map(|(hash, stamp)| (Scope::Url(*hash), *stamp)));
        let floors = [
            (Scope::OldUrls, self.floors.old_urls),
            (Scope::UrlFloor, self.floors.any_urls),
            (Scope::TagFloor, self.floors.tags),
            (Scope::PrefixFloor, self.floors.prefixes),
        ];
        all.extend(floors.into_iter().filter_map(|(scope, floor)| Some((scope, floor?))));
        all.sort_by_key(|(_, stamp)| stamp.arrival);
        let nodes = self.nodes.iter().map(|(node, time)| (*node, *time)).collect();
        PurgeSnapshot { stamps: all, nodes, old_urls: self.old_urls.encode(), latest: self.latest }
    }
}

/// Returns whether the URL of a key begins with `prefix`. Of a response that is stored for several queries, the prefix's
/// query counts as matching: nothing tells how each of the queries begins. The key of a value begins only with a prefix that
/// names its scheme: a path, and either scheme, are those of pages.
pub(crate) fn begins_with(key: &CacheKey, prefix: &str) -> bool {
    let Some(parts) = key.parts() else { return false };
    if parts.scheme == VALUE_SCHEME && !prefix.starts_with(VALUE_SCHEME) {
        return false;
    }
    let mut url: SmallVec<[&str; 6]> = smallvec![parts.path];
    let is_searched = parts.query.is_some_and(|query| query.contains('\0'));
    let prefix = match prefix.split_once('?') {
        Some((path, _)) if is_searched => {
            url.push("?");
            &prefix[..=path.len()]
        }
        _ => {
            url.extend(parts.query.filter(|_| !is_searched).into_iter().flat_map(|query| ["?", query]));
            prefix
        }
    };
    if !prefix.starts_with('/') {
        url.insert(0, parts.authority);
        url.insert(0, "://");
        url.insert(0, if prefix.starts_with(EITHER) { EITHER } else { parts.scheme });
    }
    let mut rest = prefix.as_bytes();
    for part in url {
        let part = part.as_bytes();
        if rest.len() <= part.len() {
            return part.starts_with(rest);
        }
        match rest.strip_prefix(part) {
            Some(left) => rest = left,
            None => return false,
        }
    }
    false
}

/// Returns the hash that a tag is kept by.
pub(super) fn hash_of(tag: &str) -> u128 {
    xxhash_rust::xxh3::xxh3_128(tag.as_bytes())
}
