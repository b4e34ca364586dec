//! A bucket in memory, for tests that need thousands of turns of events. Its requests fail, or are carried out and answered
//! with an error, or are carried out late.

use std::collections::BTreeMap;
use std::future::{pending, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use super::error::{StoreError, StoreErrorKind};
use super::names::ObjectNames;
use super::place::{GrowingPack, Listed, ObjectReader, ObjectWriter, Operation, Page, Place};
use crate::base::Clock;
use crate::rfc9111::timestamp::Timestamp;

/// The faults of the bucket, each in thousandths of the requests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// The request is not carried out, and fails.
    pub fail: u32,
    /// The request is carried out, and fails.
    pub lost_answer: u32,
    /// A write is carried out later, and fails.
    pub late: u32,
    /// Every read is refused.
    pub refuse: bool,
    /// No write is carried out, nor answered.
    pub hang: bool,
}

/// One process's access to the bucket.
#[derive(Debug)]
pub(crate) struct Simulated {
    bucket: Arc<SimulatedBucket>,
    is_cut: AtomicBool,
}

/// The bucket that processes share.
#[derive(Debug)]
pub(crate) struct SimulatedBucket {
    clock: Clock,
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
    /// The names of writes, in their order.
    puts: Vec<String>,
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
        let content = BucketContent {
            objects: BTreeMap::new(),
            random: fastrand::Rng::with_seed(seed),
            faults: Faults::default(),
            late: Vec::new(),
            reads: 0,
            puts: Vec::new(),
        };
        Self { clock, content: Mutex::new(content) }
    }

    /// Sets the faults from now on.
    pub(crate) fn set_faults(&self, faults: Faults) {
        self.content.lock().faults = faults;
    }

    /// Returns the number of objects that were asked for.
    pub(crate) fn reads(&self) -> u64 {
        self.content.lock().reads
    }

    /// Returns the names of all writes so far, in their order.
    pub(crate) fn puts(&self) -> Vec<String> {
        self.content.lock().puts.clone()
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
            Fate::Late
        } else {
            Fate::Done
        };
        (content, fate)
    }
}

impl Simulated {
    /// Access to `bucket`.
    pub(crate) fn to(bucket: &Arc<SimulatedBucket>) -> Self {
        Self { bucket: Arc::clone(bucket), is_cut: AtomicBool::new(false) }
    }

    /// Fails all requests from now on: to the bucket, the process is dead.
    pub(crate) fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
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
        match (fate, content.objects.get(name)) {
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
        let object = self.get(name, len);
        Box::pin(ready(object.map(|object| Box::new(OnePiece(Some(object))) as Box<dyn ObjectReader>)))
    }

    fn read_pack<'a>(&'a self, name: &'a str, first: u64, len: u32) -> Operation<'a, Bytes> {
        Box::pin(ready(self.get(name, u64::MAX).map(|object| {
            let first = usize::try_from(first).unwrap_or(usize::MAX).min(object.len());
            let end = first.saturating_add(usize::try_from(len).unwrap_or(usize::MAX)).min(object.len());
            object.slice(first..end)
        })))
    }

    fn begin_pack<'a>(&'a self, name: &'a str) -> Operation<'a, Box<dyn GrowingPack>> {
        Box::pin(ready(Err(fault(name))))
    }

    fn take_over<'a>(&'a self, _: &'a str) -> Operation<'a, Option<Box<dyn GrowingPack>>> {
        Box::pin(ready(Ok(None)))
    }

    fn read_range<'a>(&'a self, name: &'a str, _: u64, _: u64) -> Operation<'a, Box<dyn ObjectReader>> {
        Box::pin(ready(Err(fault(name))))
    }

    fn list<'a>(&'a self, prefix: &'a str, after: &'a str) -> Operation<'a, Page> {
        Box::pin(ready(self.list(prefix, after)))
    }

    fn put<'a>(&'a self, name: &'a str, pieces: &'a [Bytes]) -> Operation<'a, ()> {
        let hangs = {
            let mut content = self.bucket.content.lock();
            let hangs = content.faults.hang;
            content.puts.extend(hangs.then(|| name.to_owned()));
            hangs
        };
        if hangs { Box::pin(pending()) } else { Box::pin(ready(self.put(name, pieces))) }
    }

    fn begin<'a>(&'a self, name: &'a str) -> Operation<'a, Box<dyn ObjectWriter>> {
        Box::pin(ready(Err(fault(name))))
    }

    fn delete<'a>(&'a self, name: &'a str) -> Operation<'a, ()> {
        Box::pin(ready(self.delete(name)))
    }

    fn remove_unfinished<'a>(&'a self, _: &'a str, _: Timestamp, _: bool) -> Operation<'a, u64> {
        Box::pin(ready(Ok(0)))
    }
}

/// An object that comes in one piece.
#[derive(Debug)]
struct OnePiece(Option<Bytes>);

impl ObjectReader for OnePiece {
    fn next(&mut self) -> Operation<'_, Option<Bytes>> {
        Box::pin(ready(Ok(self.0.take())))
    }
}

fn fault(name: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, format!("{name}: simulated"))
}
