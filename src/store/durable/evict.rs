//! Keeps a directory within its capacity: what was least recently used goes first.
//!
//! * Whoever evicts looks through the directory, and keeps the names of the [`POOL`] files that were used longest ago.
//!   It takes one after the other off that list, each after another look at it, and makes a new list when that one is
//!   at its end. So nothing is held in memory for each object, and a large directory is looked through once for many
//!   evictions.
//! * What memory has as well goes after what it has not: what is read there is not read here.
//! * A separate body goes with its head, a variant by itself, a record with what it leads to. First goes what nothing
//!   leads to: bodies without a head, and what was left of writing.

use std::cmp::Ordering as Order;
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tracing::{debug, warn};

use super::{Inner, MAX_HEAD, body_of};
use crate::base::{Clock, Stopwatch};
use crate::rfc9111::timestamp::Timestamp;
use crate::store::file::{FileStore, each_file, modified, remove};
use crate::store::room::{Content, Found, size_of_file};
use crate::store::{Backend, Kind};

/// The most files that are lined up to be evicted.
const POOL: usize = 65_536;

/// Age under which an object that nothing leads to is left alone: something may be about to lead to it.
const YOUNG: i64 = 60_000;

/// Age at which an unfinished write that nobody continued counts as interrupted.
const INTERRUPTED: i64 = 600_000;

/// After so many evictions those who wait for room look whether there is enough.
const ROUND: u32 = 16;

/// Pause after a failed look through the directory.
const PAUSE: Duration = Duration::from_secs(1);

/// In this order files are evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    /// Nothing leads to it.
    None,
    /// It is only here.
    Stored,
    /// Memory has it as well.
    InMemory,
}

/// A file that may be evicted, before those that compare as more.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    worth: Worth,
    used: Timestamp,
    modified: Timestamp,
    name: String,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Order {
        (self.worth, self.used, &self.name).cmp(&(other.worth, other.used, &other.name))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

/// Evicts when there is need, for good.
pub(super) async fn keep_within(inner: Arc<Inner>) {
    let Backend::File(store) = &*inner.backend else { return };
    let room = Arc::clone(store.room());
    room.tend();
    let mut pool = VecDeque::new();
    loop {
        let this = Arc::clone(&inner);
        let mut lined_up = std::mem::take(&mut pool);
        let evicted = tokio::task::spawn_blocking(move || {
            let Backend::File(store) = &*this.backend else { return Ok(lined_up) };
            this.evict_excess(store, &mut lined_up).map(|()| lined_up)
        });
        match evicted.await {
            Ok(Ok(lined_up)) => {
                pool = lined_up;
                room.wait().await;
            }
            Ok(Err(error)) => {
                if let Some(left_out) = inner.said.evicting.is_due() {
                    warn!("the directory can't be kept to its capacity: {error}{left_out}");
                }
                room.end_round(true);
                tokio::time::sleep(PAUSE).await;
            }
            // This process ends.
            Err(_) => return,
        }
    }
}

impl Inner {
    /// Evicts as much as there is need of.
    fn evict_excess(&self, store: &FileStore, pool: &mut VecDeque<Candidate>) -> io::Result<()> {
        let room = store.room();
        if room.needs_scan() {
            *pool = self.line_up(store)?;
        }
        let (mut is_fresh, mut since_round, mut all) = (false, 0, 0_u64);
        let mut is_exhausted = false;
        while room.excess() > 0 {
            let Some(candidate) = pool.pop_front() else {
                // Everything in a new list was looked at, and nothing came of it.
                if is_fresh {
                    is_exhausted = true;
                    break;
                }
                *pool = self.line_up(store)?;
                is_fresh = true;
                continue;
            };
            match self.evict(store, &candidate) {
                Ok(0) => {}
                Ok(bytes) => {
                    debug!(object = candidate.name, bytes, "evicted from the durable tier");
                    (is_fresh, since_round, all) = (false, since_round + 1, all + 1);
                    self.metrics.durable_evicted_objects.add_one();
                    self.metrics.durable_evicted_bytes.add(bytes);
                }
                Err(error) => {
                    if let Some(left_out) = self.said.evicting.is_due() {
                        warn!(object = candidate.name, "it can't be evicted: {error}{left_out}");
                    }
                }
            }
            if since_round >= ROUND {
                since_round = 0;
                room.end_round(false);
            }
        }
        if all > 0 {
            debug!(objects = all, "evicted from the durable tier");
        }
        room.end_round(is_exhausted);
        Ok(())
    }

    /// Looks through the directory: how much it holds, and what of it was used longest ago.
    fn line_up(&self, store: &FileStore) -> io::Result<VecDeque<Candidate>> {
        let (room, watch) = (store.room(), Stopwatch::start());
        room.begin_scan();
        let (mut found, mut pool) = (Found::default(), BinaryHeap::new());
        let now = Clock::system().now();
        let (young, interrupted) = (now.plus_millis(-YOUNG), now.plus_millis(-INTERRUPTED));
        let root = self.names.root();
        for first in 0..=u8::MAX {
            // Bodies first: a head that is written meanwhile is then found, if its body was.
            let mut bodies = Vec::new();
            each_file(store.root(), &self.names.shard(Kind::Body, first), &mut |name, metadata| {
                found.files += size_of_file(metadata.len());
                found.bodies += 1;
                bodies.push((name, modified(metadata)));
            })?;
            let mut keys = HashSet::new();
            each_file(store.root(), &self.names.shard(Kind::Object, first), &mut |name, metadata| {
                found.files += size_of_file(metadata.len());
                found.objects += 1;
                let modified = modified(metadata);
                let candidate = match self.names.parse(Kind::Object, &name) {
                    Some((hash, _)) => {
                        keys.insert(hash >> 64);
                        let used = store.room().last_use(&name).map_or(modified, |used| used.max(modified));
                        let worth = if self.memory.holds(hash) { Worth::InMemory } else { Worth::Stored };
                        Candidate { worth, used, modified, name }
                    }
                    // Takes any other old file as left over: removal deletes at once, and a finished write is renamed.
                    None if modified < if is_unfinished(&name) { interrupted } else { young } => {
                        Candidate { worth: Worth::None, used: modified, modified, name }
                    }
                    None => return,
                };
                keep(&mut pool, candidate);
            })?;
            for (name, modified) in bodies {
                let has_head = self.names.parse(Kind::Body, &name).is_some_and(|(id, _)| keys.contains(&(id >> 64)));
                if !has_head && modified < young {
                    keep(&mut pool, Candidate { worth: Worth::None, used: modified, modified, name });
                }
            }
        }
        for directory in [self.names.journal(), self.names.snapshots()] {
            each_file(store.root(), &directory, &mut |_, metadata| found.files += size_of_file(metadata.len()))?;
        }
        room.end_scan(&found);
        debug!(
            objects = found.objects,
            bytes = room.bytes(),
            ms = u64::try_from(watch.elapsed().as_millis()).unwrap_or(u64::MAX),
            "looked through {}{root}",
            store.root().join("").display()
        );
        Ok(pool.into_sorted_vec().into())
    }

    /// Evicts one file and what goes with it, unless it was used since it was lined up; how many bytes that were.
    fn evict(&self, store: &FileStore, candidate: &Candidate) -> io::Result<u64> {
        let (path, room) = (store.root().join(&candidate.name), store.room());
        let Some((hash, is_variant)) = self.names.parse(Kind::Object, &candidate.name) else {
            let content = match self.names.parse(Kind::Body, &candidate.name) {
                Some(_) => Content::Body,
                None => Content::Object,
            };
            let is_same = is_dated(&path, candidate.modified)?;
            return if is_same { Ok(remove(&path, content, room)?.map_or(0, size_of_file)) } else { Ok(0) };
        };
        let is_used = room.last_use(&candidate.name).is_some_and(|used| used > candidate.used);
        if is_used || (candidate.worth < Worth::InMemory && self.memory.holds(hash)) {
            return Ok(0);
        }
        self.evict_object(store, &path, candidate.modified, hash, is_variant)
    }

    /// Evicts an object: a variant, or a primary with all its variants. Each body after its head, so that a process that
    /// is killed in between leaves a body that nothing leads to.
    fn evict_object(
        &self,
        store: &FileStore,
        path: &Path,
        dated: Timestamp,
        hash: u128,
        is_variant: bool,
    ) -> io::Result<u64> {
        // Nothing takes the place of what is looked at meanwhile.
        let _still = store.keep_still(path);
        if !is_dated(path, dated)? {
            return Ok(0);
        }
        // A record leads to its variants. It is written and used whenever one of them is.
        let mut heads = if is_variant { Vec::new() } else { family_of(path)? };
        heads.insert(0, path.to_owned());
        let has_bodies = !self.bodies_of(store, hash)?.is_empty();
        if !is_variant {
            // A process that writes it from now on says so afterwards.
            self.index.remove(hash);
        }
        let mut freed = 0;
        for head in heads {
            let body = if has_bodies { read(&head)?.as_ref().and_then(body_of) } else { None };
            freed += remove(&head, Content::Object, store.room())?.map_or(0, size_of_file);
            if let Some(body) = body {
                let body = store.root().join(self.names.body(body));
                freed += remove(&body, Content::Body, store.room())?.map_or(0, size_of_file);
            }
        }
        Ok(freed)
    }

    /// The separate bodies of a key: their names begin with half of its hash.
    fn bodies_of(&self, store: &FileStore, hash: u128) -> io::Result<Vec<PathBuf>> {
        let one = store.root().join(self.names.body(hash));
        let (Some(directory), Some(name)) = (one.parent(), one.file_name().and_then(|name| name.to_str())) else {
            return Ok(Vec::new());
        };
        // Sixteen digits, of which four name directories.
        files_in(directory, name.get(..12).unwrap_or(name))
    }
}

/// Returns whether a file is there and was last changed then.
fn is_dated(path: &Path, dated: Timestamp) -> io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(modified(&metadata) == dated),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns whether a file's name says that it is still being written.
fn is_unfinished(name: &str) -> bool {
    name.rsplit('/').next().is_some_and(|last| last.starts_with('.'))
}

/// The variants of a primary, and what is left of them.
fn family_of(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    files_in(directory, &format!("{name}."))
}

/// The files in `directory` whose names begin with `start`.
fn files_in(directory: &Path, start: &str) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(start)) {
            files.push(entry.path());
        }
    }
    Ok(files)
}

/// An object, if it is there and may be one.
fn read(path: &Path) -> io::Result<Option<Bytes>> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.len() > MAX_HEAD => return Ok(None),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    std::fs::read(path).map(|object| Some(object.into()))
}

/// Keeps a candidate, if it is among those that go first.
fn keep(pool: &mut BinaryHeap<Candidate>, candidate: Candidate) {
    pool.push(candidate);
    if pool.len() > POOL {
        pool.pop();
    }
}
