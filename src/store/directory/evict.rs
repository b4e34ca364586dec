//! Keeps a directory within its capacity: evicts what was least recently used.
//!
//! * A scan of the directory lines up the [`POOL`] files that were used longest ago. Each is examined again before it is
//!   evicted. A new scan follows when the line is used up. Nothing is held in memory for each object, and one scan serves
//!   many evictions.
//! * An object that memory holds goes after the others: its hits do not reach the directory.
//! * A separate body goes with its head, a Vary record with its variants, a variant alone. First go files that no object
//!   leads to: bodies without a head, and what interrupted writes left.

use std::cmp::Ordering as Order;
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tracing::{debug, warn};

use super::capacity::{Capacity, FileClass, Scanned, size_of_file};
use super::walk::{each_file, files_in, is_unfinished, modified};
use super::write::remove;
use super::{Directory, is_gone};
use crate::base::{Clock, Stopwatch};
use crate::entry::encoding::separate_body_of;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::MAX_HEAD;
use crate::store::names::Namespace;
use crate::store::place::EvictionContext;
use crate::store::throttle::LogThrottle;

/// The most files that are lined up to be evicted.
const POOL: usize = 65_536;

/// Age in milliseconds under which a body without a head is kept: its head may be about to be written.
const YOUNG: i64 = 60_000;

/// Age in milliseconds at which an unfinished write counts as interrupted.
const INTERRUPTED: i64 = 600_000;

/// Number of evictions in a round. Writes that wait for space look again after each round.
const ROUND: u32 = 16;

/// Pause after a failed scan of the directory.
const PAUSE: Duration = Duration::from_secs(1);

/// The order of eviction: the first go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// No object leads to it.
    Orphan,
    /// Memory does not hold it.
    Stored,
    /// Memory holds it as well.
    InMemory,
}

/// A file that may be evicted. A lesser one goes first.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    rank: Rank,
    used: Timestamp,
    modified: Timestamp,
    name: String,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Order {
        (self.rank, self.used, &self.name).cmp(&(other.rank, other.used, &other.name))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

/// Evicts for good, whenever the directory exceeds its capacity.
pub(super) async fn evict(directory: Arc<Directory>, context: EvictionContext) {
    let capacity = Arc::clone(&directory.capacity);
    let evictor = Arc::new(Evictor { directory, context, warnings: LogThrottle::default() });
    capacity.add_evictor();
    let mut pool = VecDeque::new();
    loop {
        let this = Arc::clone(&evictor);
        let mut lined_up = std::mem::take(&mut pool);
        let evicted = tokio::task::spawn_blocking(move || this.evict_excess(&mut lined_up).map(|()| lined_up));
        match evicted.await {
            Ok(Ok(lined_up)) => {
                pool = lined_up;
                capacity.wait().await;
            }
            Ok(Err(error)) => {
                if let Some(suppressed) = evictor.warnings.is_due() {
                    warn!("the directory can't be kept to its capacity: {error}{suppressed}");
                }
                capacity.end_round(true);
                tokio::time::sleep(PAUSE).await;
            }
            // This process ends.
            Err(_) => return,
        }
    }
}

/// Evicts from one directory. Its methods wait for the disk.
struct Evictor {
    directory: Arc<Directory>,
    context: EvictionContext,
    warnings: LogThrottle,
}

impl Evictor {
    fn capacity(&self) -> &Capacity {
        &self.directory.capacity
    }

    /// Evicts until the directory is within its capacity, or nothing is left to evict.
    fn evict_excess(&self, pool: &mut VecDeque<Candidate>) -> io::Result<()> {
        let capacity = self.capacity();
        if capacity.needs_scan() {
            *pool = self.scan()?;
        }
        let (mut is_new, mut since_round, mut all) = (false, 0, 0_u64);
        let mut is_exhausted = false;
        while capacity.excess() > 0 {
            let Some(candidate) = pool.pop_front() else {
                // True if all of a new scan's candidates were examined and none was evicted.
                is_exhausted = is_new;
                if is_exhausted {
                    break;
                }
                *pool = self.scan()?;
                is_new = true;
                continue;
            };
            match self.evict(&candidate) {
                Ok(0) => {}
                Ok(bytes) => {
                    debug!(object = candidate.name, bytes, "evicted from the durable tier");
                    (is_new, since_round, all) = (false, since_round + 1, all + 1);
                    self.context.metrics.durable_evicted_objects.add_one();
                    self.context.metrics.durable_evicted_bytes.add(bytes);
                }
                Err(error) => {
                    if let Some(suppressed) = self.warnings.is_due() {
                        warn!(object = candidate.name, "it can't be evicted: {error}{suppressed}");
                    }
                }
            }
            if since_round >= ROUND {
                since_round = 0;
                capacity.end_round(false);
            }
        }
        if all > 0 {
            debug!(objects = all, "evicted from the durable tier");
        }
        capacity.end_round(is_exhausted);
        Ok(())
    }

    /// Scans the directory: measures what it holds, and lines up what was used longest ago.
    fn scan(&self) -> io::Result<VecDeque<Candidate>> {
        let (capacity, watch) = (self.capacity(), Stopwatch::start());
        capacity.begin_scan();
        let mut scan =
            Scan { evictor: self, now: Clock::system().now(), scanned: Scanned::default(), pool: BinaryHeap::new() };
        for first in 0..=u8::MAX {
            scan.shard(first)?;
        }
        let Scan { mut scanned, pool, .. } = scan;
        let (root, names) = (&self.directory.root, &self.context.names);
        for directory in [names.journal(), names.snapshots()] {
            each_file(root, &directory, &mut |_, metadata| scanned.files += size_of_file(metadata.len()))?;
        }
        capacity.end_scan(&scanned);
        debug!(
            objects = scanned.objects,
            bytes = capacity.used(),
            ms = u64::try_from(watch.elapsed().as_millis()).unwrap_or(u64::MAX),
            "looked through {}{}",
            root.join("").display(),
            names.root()
        );
        Ok(pool.into_sorted_vec().into())
    }

    /// Evicts a file and what goes with it, unless it was used since it was lined up. Returns the bytes freed.
    fn evict(&self, candidate: &Candidate) -> io::Result<u64> {
        let (path, names) = (self.directory.root.join(&candidate.name), &self.context.names);
        let Some((hash, is_variant)) = names.parse(Namespace::Objects, &candidate.name) else {
            let class = match names.parse(Namespace::Bodies, &candidate.name) {
                Some(_) => FileClass::Body,
                None => FileClass::Object,
            };
            let is_same = is_dated(&path, candidate.modified)?;
            return if is_same { Ok(remove(&path, class, self.capacity())?.map_or(0, size_of_file)) } else { Ok(0) };
        };
        let is_used = self.directory.uses.last(&candidate.name).is_some_and(|used| used > candidate.used);
        if is_used || (candidate.rank < Rank::InMemory && self.context.memory.holds(hash)) {
            return Ok(0);
        }
        self.evict_object(&path, candidate.modified, hash, is_variant)
    }

    /// Evicts an object: a variant, or a primary with all its variants. Removes each body after its head: a process that
    /// is killed in between leaves a body that nothing leads to.
    fn evict_object(&self, path: &Path, dated: Timestamp, hash: u128, is_variant: bool) -> io::Result<u64> {
        // Held until the object is gone, so that none is placed after it was examined.
        let _renames = self.directory.lock_renames(path);
        if !is_dated(path, dated)? {
            return Ok(0);
        }
        // A record is written and used whenever one of its variants is, so it is never older than they are.
        let mut heads = if is_variant { Vec::new() } else { variants_of(path)? };
        heads.insert(0, path.to_owned());
        let has_bodies = !self.bodies_of(hash)?.is_empty();
        if !is_variant {
            // A process that writes the key after this announces it after this.
            self.context.index.remove(hash);
        }
        let mut freed = 0;
        for head in heads {
            let body = if has_bodies { read(&head)?.as_ref().and_then(separate_body_of) } else { None };
            freed += remove(&head, FileClass::Object, self.capacity())?.map_or(0, size_of_file);
            if let Some(body) = body {
                let body = self.directory.root.join(self.context.names.body(body));
                freed += remove(&body, FileClass::Body, self.capacity())?.map_or(0, size_of_file);
            }
        }
        Ok(freed)
    }

    /// Returns the separate bodies of a key. Their names begin with half of its hash: sixteen digits, of which four name
    /// directories.
    fn bodies_of(&self, hash: u128) -> io::Result<Vec<PathBuf>> {
        let one = self.directory.root.join(self.context.names.body(hash));
        let (Some(directory), Some(name)) = (one.parent(), one.file_name().and_then(|name| name.to_str())) else {
            return Ok(Vec::new());
        };
        files_in(directory, name.get(..12).unwrap_or(name))
    }
}

/// A scan of the directory under way.
struct Scan<'a> {
    evictor: &'a Evictor,
    now: Timestamp,
    scanned: Scanned,
    /// The [`POOL`] first candidates so far.
    pool: BinaryHeap<Candidate>,
}

impl Scan<'_> {
    /// Scans the bodies and objects whose names begin with one byte. Bodies first: the head of a body that was found is
    /// then found as well, though it may be written meanwhile.
    fn shard(&mut self, first: u8) -> io::Result<()> {
        let Evictor { directory, context, .. } = self.evictor;
        let young = self.now.plus_millis(-YOUNG);
        let mut bodies = Vec::new();
        each_file(&directory.root, &context.names.shard(Namespace::Bodies, first), &mut |name, metadata| {
            self.scanned.files += size_of_file(metadata.len());
            self.scanned.bodies += 1;
            bodies.push((name, modified(metadata)));
        })?;
        let mut keys = HashSet::new();
        each_file(&directory.root, &context.names.shard(Namespace::Objects, first), &mut |name, metadata| {
            self.scanned.files += size_of_file(metadata.len());
            self.scanned.objects += 1;
            if let Some((hash, _)) = context.names.parse(Namespace::Objects, &name) {
                keys.insert(hash >> 64);
            }
            if let Some(candidate) = self.candidate(name, modified(metadata)) {
                self.keep(candidate);
            }
        })?;
        for (name, modified) in bodies {
            let id = context.names.parse(Namespace::Bodies, &name);
            let has_head = id.is_some_and(|(id, _)| keys.contains(&(id >> 64)));
            if !has_head && modified < young {
                self.keep(Candidate { rank: Rank::Orphan, used: modified, modified, name });
            }
        }
        Ok(())
    }

    /// Returns the candidate that a file among the objects is. A file without an object's name is a leftover once it is
    /// old: a deletion removes at once, and a finished write is renamed.
    fn candidate(&self, name: String, modified: Timestamp) -> Option<Candidate> {
        let Evictor { directory, context, .. } = self.evictor;
        let Some((hash, _)) = context.names.parse(Namespace::Objects, &name) else {
            let age = if is_unfinished(&name) { INTERRUPTED } else { YOUNG };
            let is_leftover = modified < self.now.plus_millis(-age);
            return is_leftover.then_some(Candidate { rank: Rank::Orphan, used: modified, modified, name });
        };
        let used = directory.uses.last(&name).map_or(modified, |used| used.max(modified));
        let rank = if context.memory.holds(hash) { Rank::InMemory } else { Rank::Stored };
        Some(Candidate { rank, used, modified, name })
    }

    fn keep(&mut self, candidate: Candidate) {
        self.pool.push(candidate);
        if self.pool.len() > POOL {
            self.pool.pop();
        }
    }
}

/// Returns whether a file is there and was last changed then.
fn is_dated(path: &Path, dated: Timestamp) -> io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(modified(&metadata) == dated),
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the variants of a primary, and what is left of them.
fn variants_of(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    files_in(directory, &format!("{name}."))
}

/// Reads a file that may be an object; `None` if it is gone or too large for one.
fn read(path: &Path) -> io::Result<Option<Bytes>> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.len() > MAX_HEAD => return Ok(None),
        Ok(_) => {}
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    }
    std::fs::read(path).map(|object| Some(object.into()))
}
