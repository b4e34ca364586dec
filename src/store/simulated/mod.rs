//! A bucket or a directory in memory, for tests that need thousands of turns of events. Its faults are data: requests fail,
//! or are carried out and answered with an error, or are carried out late; appends are torn.
//!
//! `growing` has the packs of a directory that grow, and `pieces` what is read and written in pieces.

mod growing;
mod pieces;

use std::collections::{BTreeMap, HashMap};
use std::future::{pending, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use self::pieces::{Pieces, Upload};
use super::error::{StoreError, StoreErrorKind};
use super::names::ObjectNames;
use super::place::{GrowingPack, Listed, ObjectReader, ObjectWriter, Operation, Page, Place};
use crate::base::Clock;
use crate::rfc9111::timestamp::Timestamp;

/// The faults of the place, each in thousandths of the requests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// The request is not carried out, and fails.
    pub fail: u32,
    /// The request is carried out, and fails.
    pub lost_answer: u32,
    /// A write is carried out later, and fails.
    pub late: u32,
    /// An append to a growing pack is carried out in part, and fails.
    pub torn: u32,
    /// Every read is refused.
    pub refuse: bool,
    /// Every write finds no room.
    pub is_full: bool,
}

/// One process's access to the place.
#[derive(Debug)]
pub(crate) struct Simulated {
    bucket: Arc<SimulatedBucket>,
    /// Its number among the processes: locks are held by it.
    process: u64,
    is_cut: Arc<AtomicBool>,
}

/// The place that processes share: a bucket, or a directory.
#[derive(Debug)]
pub(crate) struct SimulatedBucket {
    clock: Clock,
    is_local: bool,
    content: Mutex<BucketContent>,
}

#[derive(Debug)]
struct BucketContent {
    objects: BTreeMap<String, (Bytes, Timestamp)>,
    random: fastrand::Rng,
    faults: Faults,
    /// Writes that are carried out later.
    late: Vec<(Timestamp, String, Bytes)>,
    /// Number of objects that were asked for.
    reads: u64,
    /// The object of which every read fails, all of them for an empty name, and how.
    unreadable: Option<(String, StoreErrorKind)>,
    /// Number of processes so far.
    processes: u64,
    /// In a directory: the process that holds the lock of each growing pack.
    locks: HashMap<String, u64>,
    /// The names of writes, in their order.
    puts: Vec<String>,
    /// True if no write is carried out, nor answered.
    hangs: bool,
    /// True if no pack of a directory is completed.
    seals_hang: bool,
}

/// The longest delay of a late write, in milliseconds.
const LATE: u64 = 8_000;

/// Names on a page: few, so that listings have several pages.
const PAGE: usize = 7;

enum Fate {
    Done,
    DoneWithError,
    Late,
    Failed,
}

impl SimulatedBucket {
    /// An empty bucket. `clock` is the true time.
    pub(crate) fn new(clock: Clock, seed: u64) -> Self {
        Self::with(clock, seed, false)
    }

    /// An empty directory. `clock` is the true time.
    pub(crate) fn directory(clock: Clock, seed: u64) -> Self {
        Self::with(clock, seed, true)
    }

    fn with(clock: Clock, seed: u64, is_local: bool) -> Self {
        let content = BucketContent {
            objects: BTreeMap::new(),
            random: fastrand::Rng::with_seed(seed),
            faults: Faults::default(),
            late: Vec::new(),
            reads: 0,
            unreadable: None,
            processes: 0,
            locks: HashMap::new(),
            puts: Vec::new(),
            hangs: false,
            seals_hang: false,
        };
        Self { clock, is_local, content: Mutex::new(content) }
    }

    /// Sets the faults from now on.
    pub(crate) fn set_faults(&self, faults: Faults) {
        self.content.lock().faults = faults;
    }

    /// Says whether writes are neither carried out nor answered from now on.
    pub(crate) fn set_hanging(&self, hangs: bool) {
        self.content.lock().hangs = hangs;
    }

    /// Says whether no pack of a directory is completed from now on, as if its disk synced nothing.
    pub(crate) fn set_hanging_seals(&self, hang: bool) {
        self.content.lock().seals_hang = hang;
    }

    /// Returns the number of objects that were asked for.
    pub(crate) fn reads(&self) -> u64 {
        self.content.lock().reads
    }

    /// Returns the names of all writes so far, in their order.
    pub(crate) fn puts(&self) -> Vec<String> {
        self.content.lock().puts.clone()
    }

    /// Refuses all reads of one object from now on; of none for `None`.
    pub(crate) fn refuse_reads_of(&self, name: Option<&str>) {
        self.fail_reads_of(name, StoreErrorKind::Refused);
    }

    /// Has all reads of one object fail from now on, those of all for an empty name; of none for `None`.
    pub(crate) fn fail_reads_of(&self, name: Option<&str>, kind: StoreErrorKind) {
        self.content.lock().unreadable = name.map(|name| (name.to_owned(), kind));
    }

    /// Removes an object behind everyone's back.
    pub(crate) fn remove(&self, name: &str) {
        self.content.lock().objects.remove(name);
    }

    /// Returns the names of all objects.
    pub(crate) fn names(&self) -> Vec<String> {
        self.content.lock().objects.keys().cloned().collect()
    }

    /// Adds an object that no process wrote.
    pub(crate) fn plant(&self, name: &str, object: Bytes) {
        let now = self.clock.now();
        self.content.lock().objects.insert(name.to_owned(), (object, now));
    }

    /// Removes all objects.
    pub(crate) fn remove_all(&self) {
        self.content.lock().objects.clear();
    }

    /// Changes an object behind everyone's back.
    pub(crate) fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some((object, _)) = self.content.lock().objects.get_mut(name) {
            let mut bytes = object.to_vec();
            change(&mut bytes);
            *object = Bytes::from(bytes);
        }
    }

    /// Begins a request: carries out late writes that are due, and decides the request's fate.
    fn begin(&self) -> (MutexGuard<'_, BucketContent>, Fate) {
        let now = self.clock.now();
        let mut content = self.content.lock();
        let (landing, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut content.late).into_iter().partition(|(at, ..)| *at <= now);
        content.late = later;
        for (_, name, object) in landing {
            content.objects.insert(name, (object, now));
        }
        let dice = content.random.u32(0..1000);
        let Faults { fail, lost_answer, late, .. } = content.faults;
        let fate = if dice < fail {
            Fate::Failed
        } else if dice < fail + lost_answer {
            Fate::DoneWithError
        } else if dice < fail + lost_answer + late {
            // What writes to a directory has ended when its process goes on.
            if self.is_local { Fate::Failed } else { Fate::Late }
        } else {
            Fate::Done
        };
        (content, fate)
    }
}

impl Simulated {
    /// Access to `bucket`.
    pub(crate) fn to(bucket: &Arc<SimulatedBucket>) -> Self {
        let process = {
            let mut content = bucket.content.lock();
            content.processes += 1;
            content.processes
        };
        Self { bucket: Arc::clone(bucket), process, is_cut: Arc::default() }
    }

    /// Fails all requests from now on, and releases all locks: to the place, the process is dead.
    pub(crate) fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        self.bucket.content.lock().locks.retain(|_, holder| *holder != self.process);
    }

    fn begin(&self) -> (MutexGuard<'_, BucketContent>, Fate) {
        let (content, fate) = self.bucket.begin();
        (content, if self.is_cut.load(Ordering::SeqCst) { Fate::Failed } else { fate })
    }

    fn get(&self, name: &str, limit: u64) -> Result<Bytes, StoreError> {
        let (mut content, fate) = self.begin();
        content.reads += 1;
        if content.faults.refuse {
            return Err(StoreError::new(StoreErrorKind::Refused, name));
        }
        if let Some((unreadable, kind)) = &content.unreadable
            && (unreadable.is_empty() || unreadable == name)
        {
            return Err(StoreError::new(*kind, name));
        }
        // A pack may be read by its complete name while it grows.
        let found = content.objects.get(name).or_else(|| content.objects.get(&open_name(name)));
        match (fate, found) {
            (Fate::Done, Some((object, _))) if object.len() as u64 > limit => Err(StoreError::corrupt(name)),
            (Fate::Done, Some((object, _))) => Ok(object.clone()),
            (Fate::Done, None) => Err(StoreError::absent(name)),
            (Fate::DoneWithError | Fate::Late | Fate::Failed, _) => Err(fault(name)),
        }
    }

    fn list(&self, prefix: &str, after: &str) -> Result<Page, StoreError> {
        let (content, fate) = self.begin();
        if !matches!(fate, Fate::Done) {
            return Err(fault(prefix));
        }
        let after = std::ops::Bound::Excluded(after.max(prefix).to_owned());
        let names = content.objects.range((after, std::ops::Bound::Unbounded));
        let mut listed: Vec<Listed> = names
            .take_while(|(name, _)| name.starts_with(prefix))
            .take(PAGE + 1)
            .map(|(name, (object, modified))| Listed {
                name: name.clone(),
                size: object.len() as u64,
                modified: *modified,
            })
            .collect();
        let is_last = listed.len() <= PAGE;
        listed.truncate(PAGE);
        Ok(Page { listed, is_last })
    }

    fn put(&self, name: &str, pieces: &[Bytes]) -> Result<(), StoreError> {
        let now = self.bucket.clock.now();
        let (mut content, fate) = self.begin();
        let object = Bytes::from(pieces.concat());
        if content.faults.is_full {
            return Err(StoreError::new(StoreErrorKind::Full, name));
        }
        content.puts.push(name.to_owned());
        match fate {
            Fate::Done | Fate::DoneWithError => drop(content.objects.insert(name.to_owned(), (object, now))),
            Fate::Late => {
                let at = now.plus_millis(i64::try_from(content.random.u64(0..LATE)).unwrap_or(0));
                content.late.push((at, name.to_owned(), object));
            }
            Fate::Failed => {}
        }
        if matches!(fate, Fate::Done) { Ok(()) } else { Err(fault(name)) }
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        let (mut content, fate) = self.begin();
        if !matches!(fate, Fate::Failed) {
            content.objects.remove(name);
        }
        if matches!(fate, Fate::Done) { Ok(()) } else { Err(fault(name)) }
    }
}

impl Place for Simulated {
    fn check<'a>(&'a self, _: &'a ObjectNames) -> Operation<'a, ()> {
        Box::pin(ready(Ok(())))
    }

    fn find_cache<'a>(&'a self, _: &'a str) -> Operation<'a, ()> {
        Box::pin(ready(Ok(())))
    }

    fn get<'a>(&'a self, name: &'a str, limit: u64) -> Operation<'a, Bytes> {
        Box::pin(ready(self.get(name, limit)))
    }

    fn read<'a>(&'a self, name: &'a str, len: u64) -> Operation<'a, Box<dyn ObjectReader>> {
        let object = self
            .get(name, u64::MAX)
            .and_then(|object| if object.len() as u64 == len { Ok(object) } else { Err(StoreError::corrupt(name)) });
        Box::pin(ready(object.map(Pieces::of)))
    }

    fn read_range<'a>(&'a self, name: &'a str, first: u64, end: u64) -> Operation<'a, Box<dyn ObjectReader>> {
        let object = self.get(name, u64::MAX).and_then(|object| {
            let range = usize::try_from(first).ok().zip(usize::try_from(end).ok());
            match range.filter(|(first, end)| first <= end && *end <= object.len()) {
                Some((first, end)) => Ok(object.slice(first..end)),
                None => Err(StoreError::corrupt(name)),
            }
        });
        Box::pin(ready(object.map(Pieces::of)))
    }

    fn read_pack<'a>(&'a self, name: &'a str, first: u64, len: u32) -> Operation<'a, Bytes> {
        Box::pin(ready(self.get(name, u64::MAX).map(|object| {
            let first = usize::try_from(first).unwrap_or(usize::MAX).min(object.len());
            let end = first.saturating_add(usize::try_from(len).unwrap_or(usize::MAX)).min(object.len());
            object.slice(first..end)
        })))
    }

    fn begin_pack<'a>(&'a self, name: &'a str) -> Operation<'a, Box<dyn GrowingPack>> {
        Box::pin(ready(growing::begin(self, name)))
    }

    fn take_over<'a>(&'a self, name: &'a str) -> Operation<'a, Option<Box<dyn GrowingPack>>> {
        Box::pin(ready(growing::take_over(self, name)))
    }

    fn list<'a>(&'a self, prefix: &'a str, after: &'a str) -> Operation<'a, Page> {
        Box::pin(ready(self.list(prefix, after)))
    }

    fn put<'a>(&'a self, name: &'a str, pieces: &'a [Bytes]) -> Operation<'a, ()> {
        let hangs = {
            let mut content = self.bucket.content.lock();
            let hangs = content.hangs;
            content.puts.extend(hangs.then(|| name.to_owned()));
            hangs
        };
        if hangs { Box::pin(pending()) } else { Box::pin(ready(self.put(name, pieces))) }
    }

    fn begin<'a>(&'a self, name: &'a str) -> Operation<'a, Box<dyn ObjectWriter>> {
        let access = Self { bucket: Arc::clone(&self.bucket), process: self.process, is_cut: Arc::clone(&self.is_cut) };
        Box::pin(ready(Ok(Box::new(Upload::to(access, name)) as Box<dyn ObjectWriter>)))
    }

    fn delete<'a>(&'a self, name: &'a str) -> Operation<'a, ()> {
        Box::pin(ready(self.delete(name)))
    }

    fn remove_unfinished<'a>(&'a self, _: &'a str, _: Timestamp, _: bool) -> Operation<'a, u64> {
        Box::pin(ready(Ok(0)))
    }

    fn is_local(&self) -> bool {
        self.bucket.is_local
    }
}

/// Returns the name that a pack has while it grows.
fn open_name(name: &str) -> String {
    name.strip_suffix(".pack").map_or_else(|| name.to_owned(), |stem| format!("{stem}.open"))
}

fn fault(name: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, format!("{name}: simulated"))
}
