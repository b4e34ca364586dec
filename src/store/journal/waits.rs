//! Objects of the journal that were listed and could not be read. Each waits on its own: it is tried again at every look, and
//! counts as unreadable once that has failed for too long.
//!
//! * An answer, such as a refusal, or that there is no such object, counts for half a minute. An object that is listed and
//!   seems not to be there may be one that the place does not let this process see.
//! * No answer counts for five minutes, and only while the place answers other reads: an outage of the place says nothing
//!   of one object.

use std::collections::BTreeMap;
use std::time::Duration;

use super::read::written;
use crate::base::Stopwatch;
use crate::entry::JournalTime;
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::names::ObjectNames;

/// The longest that an object waits which the place does not give, and one of which it gives another answer.
const UNANSWERED: Duration = Duration::from_secs(300);
const ANSWERED: Duration = Duration::from_secs(30);

/// The most that counts between two attempts: a process that was away has not tried.
const STEP: Duration = Duration::from_secs(10);

/// The most objects that wait. Past it the next one counts as unreadable at once.
const MOST: usize = 4096;

/// The objects that wait, by their names.
#[derive(Debug, Default)]
pub(super) struct Waits(BTreeMap<String, Wait>);

#[derive(Debug)]
struct Wait {
    /// The part of its time that is over, from 0 to 1.
    used: f64,
    last: Stopwatch,
    error: StoreError,
}

/// The fate of an object that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is tried again. This was the first attempt.
    WaitsFirst,
    /// It is tried again.
    Waits,
    /// It counts as unreadable.
    Unreadable,
}

impl Waits {
    /// Notes that an object could not be read. `is_up` says whether the place answers other reads.
    pub(super) fn note(&mut self, name: &str, error: &StoreError, is_up: bool) -> Verdict {
        let limit = if error.kind().is_outage() { UNANSWERED } else { ANSWERED };
        let Some(wait) = self.0.get_mut(name) else {
            if self.0.len() >= MOST {
                return Verdict::Unreadable;
            }
            self.0.insert(name.to_owned(), Wait { used: 0.0, last: Stopwatch::start(), error: error.clone() });
            return Verdict::WaitsFirst;
        };
        if is_up || !error.kind().is_outage() {
            wait.used += wait.last.elapsed().min(STEP).as_secs_f64() / limit.as_secs_f64();
        }
        wait.last = Stopwatch::start();
        wait.error = error.clone();
        if wait.used < 1.0 {
            return Verdict::Waits;
        }
        self.0.remove(name);
        Verdict::Unreadable
    }

    /// Notes that an object was read, or is not to be read any more.
    pub(super) fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Forgets all but what `is_kept` names.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| is_kept(name));
    }

    /// Returns the names of what waits.
    pub(super) fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// Returns the time in the name of the first record that waits; with a node, the first of that node.
    pub(super) fn first_record(&self, node: Option<u64>) -> Option<JournalTime> {
        let records = self.0.keys().filter_map(|name| written(name));
        records.filter(|name| node.is_none_or(|node| node == name.node)).map(|name| name.time).min()
    }

    /// Returns the error of the first record that waits.
    pub(super) fn record_error(&self) -> Option<StoreError> {
        self.0.iter().find(|(name, _)| written(name).is_some()).map(|(_, wait)| wait.error.clone())
    }
}

/// Returns whether an error says that this process ends: nothing follows from it.
pub(super) fn ends(error: &StoreError) -> bool {
    error.kind() == StoreErrorKind::GivenUp
}

/// Returns whether a name is that of a pack.
pub(super) fn is_pack(name: &str) -> bool {
    use crate::store::names::JournalObject::{OpenPack, Pack};
    matches!(ObjectNames::parse_journal(name), Some(Pack(_) | OpenPack(_)))
}

/// Returns whether a name is that of a pack that grows.
pub(super) fn grows(name: &str) -> bool {
    use crate::store::names::JournalObject::OpenPack;
    matches!(ObjectNames::parse_journal(name), Some(OpenPack(_)))
}
