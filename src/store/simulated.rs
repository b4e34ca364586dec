//! A bucket in memory, for tests that need thousands of turns of events: requests fail, or are carried
//! out and answered with an error, or carried out late.

#![expect(clippy::unused_async, reason = "the places that it stands for wait")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::backend::{BackendError, CheckFailure, Listed, Page, Pieces};
use crate::base::Clock;
use crate::rfc9111::timestamp::Timestamp;

/// What goes wrong, each in thousandths of the requests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// Nothing is done, and that is said.
    pub fail: u32,
    /// It is done, and an error is the answer.
    pub lost_answer: u32,
    /// A write is done later, and an error is the answer.
    pub late: u32,
}

/// One process's way to the bucket.
#[derive(Debug)]
pub(crate) struct Simulated {
    bucket: Arc<Bucket>,
    is_cut: AtomicBool,
}

/// The bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    objects: BTreeMap<String, (Bytes, Timestamp)>,
    random: fastrand::Rng,
    faults: Faults,
    /// Writes that land at some time.
    late: Vec<(Timestamp, String, Bytes)>,
}

/// So late a write may land, in milliseconds.
const LATE: u64 = 8_000;

enum Fate {
    Done,
    DoneWithError,
    Late,
    Failed,
}

impl Bucket {
    /// An empty one. `clock` is the true time.
    pub(crate) fn new(clock: Clock, seed: u64) -> Self {
        let state = State {
            objects: BTreeMap::new(),
            random: fastrand::Rng::with_seed(seed),
            faults: Faults::default(),
            late: Vec::new(),
        };
        Self { clock, state: Mutex::new(state) }
    }

    /// From now on, this goes wrong.
    pub(crate) fn set_faults(&self, faults: Faults) {
        self.state.lock().faults = faults;
    }

    /// The names of all objects.
    pub(crate) fn names(&self) -> Vec<String> {
        self.state.lock().objects.keys().cloned().collect()
    }

    /// Puts an object in from outside.
    pub(crate) fn plant(&self, name: &str, object: Bytes) {
        let now = self.clock.now();
        self.state.lock().objects.insert(name.to_owned(), (object, now));
    }

    /// A request comes in: late writes land, and its fate is decided.
    fn begin(&self) -> (parking_lot::MutexGuard<'_, State>, Fate) {
        let now = self.clock.now();
        let mut state = self.state.lock();
        let (landing, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut state.late).into_iter().partition(|(at, ..)| *at <= now);
        state.late = later;
        for (_, name, object) in landing {
            state.objects.insert(name, (object, now));
        }
        let dice = state.random.u32(0..1000);
        let Faults { fail, lost_answer, late } = state.faults;
        let fate = if dice < fail {
            Fate::Failed
        } else if dice < fail + lost_answer {
            Fate::DoneWithError
        } else if dice < fail + lost_answer + late {
            Fate::Late
        } else {
            Fate::Done
        };
        (state, fate)
    }
}

impl Simulated {
    /// A way to `bucket`.
    pub(crate) fn to(bucket: &Arc<Bucket>) -> Self {
        Self { bucket: Arc::clone(bucket), is_cut: AtomicBool::new(false) }
    }

    /// From now on the process is dead, as far as the bucket can tell.
    pub(crate) fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
    }

    fn begin(&self) -> (parking_lot::MutexGuard<'_, State>, Fate) {
        let (state, fate) = self.bucket.begin();
        (state, if self.is_cut.load(Ordering::SeqCst) { Fate::Failed } else { fate })
    }

    pub(crate) async fn check(&self) -> Result<(), CheckFailure> {
        Ok(())
    }

    pub(crate) async fn get(&self, name: &str, limit: u64) -> Result<Option<Bytes>, BackendError> {
        let (state, fate) = self.begin();
        match fate {
            Fate::Done => match state.objects.get(name) {
                Some((object, _)) if object.len() as u64 > limit => Err(fault(name)),
                found => Ok(found.map(|(object, _)| object.clone())),
            },
            Fate::DoneWithError | Fate::Late | Fate::Failed => Err(fault(name)),
        }
    }

    pub(crate) async fn read(&self, name: &str, len: u64) -> Result<Option<Pieces>, BackendError> {
        let object = self.get(name, len).await?;
        Ok(object.map(|object| Pieces::Simulated(Some(object))))
    }

    pub(crate) async fn read_range(&self, name: &str, first: u64, end: u64) -> Result<Option<Pieces>, BackendError> {
        let (Ok(first), Ok(end)) = (usize::try_from(first), usize::try_from(end)) else { return Err(fault(name)) };
        let object = self.get(name, u64::MAX).await?;
        Ok(object.map(|object| Pieces::Simulated(Some(object.slice(first..end)))))
    }

    pub(crate) async fn list(&self, prefix: &str, after: &str) -> Result<Page, BackendError> {
        let (state, fate) = self.begin();
        if !matches!(fate, Fate::Done) {
            return Err(fault(prefix));
        }
        let after = std::ops::Bound::Excluded(after.max(prefix).to_owned());
        let names = state.objects.range((after, std::ops::Bound::Unbounded));
        let mut listed: Vec<Listed> = names
            .take_while(|(name, _)| name.starts_with(prefix))
            .take(PAGE + 1)
            .map(|(name, (_, modified))| Listed { name: name.clone(), modified: *modified })
            .collect();
        let is_last = listed.len() <= PAGE;
        listed.truncate(PAGE);
        Ok(Page { listed, is_last })
    }

    pub(crate) async fn put(&self, name: &str, pieces: &[Bytes]) -> Result<(), BackendError> {
        let now = self.bucket.clock.now();
        let (mut state, fate) = self.begin();
        let object = Bytes::from(pieces.concat());
        match fate {
            Fate::Done | Fate::DoneWithError => drop(state.objects.insert(name.to_owned(), (object, now))),
            Fate::Late => {
                let at = now.plus_millis(i64::try_from(state.random.u64(0..LATE)).unwrap_or(0));
                state.late.push((at, name.to_owned(), object));
            }
            Fate::Failed => {}
        }
        if matches!(fate, Fate::Done) { Ok(()) } else { Err(fault(name)) }
    }

    pub(crate) async fn delete(&self, name: &str) -> Result<(), BackendError> {
        let (mut state, fate) = self.begin();
        if !matches!(fate, Fate::Failed) {
            state.objects.remove(name);
        }
        if matches!(fate, Fate::Done) { Ok(()) } else { Err(fault(name)) }
    }
}

/// So many names make a page: few, so that listings have several.
const PAGE: usize = 7;

fn fault(name: &str) -> BackendError {
    BackendError::failing(format!("{name}: simulated"))
}
