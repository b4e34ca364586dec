//! Reading the records of purges, each on its own: one that can't be read holds up no others.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tracing::{error, warn};

use super::read::{BLOCK, KEPT, Tail, written};
use super::record::Record;
use super::waits::{Verdict, ends};
use super::{AT_ONCE, Journal};
use crate::entry::{JournalTime, TICK_BITS};
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::names::{JournalObject, ObjectNames, PackName};
use crate::store::place::Listed;
use crate::store::purge::{Purge, PurgeTarget};

/// The most bytes of a record.
const MAX_RECORD: u64 = 64 << 20;

/// The longest that reading a record may take: a service that does not answer fails sooner.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// By how many milliseconds a record of a bucket may be deleted earlier, by the clock of the process that compacts.
const EARLIER: u64 = 10 * 60_000;

/// The most bytes of the probe.
const MAX_PROBE: u64 = 1024;

/// The records that were read at once: the number of each among their names, and what was read.
type Read = Vec<(usize, Result<Bytes, StoreError>)>;

impl Journal {
    /// Reads the records of a listing that are new, and applies them in their order. Those that can't be read wait.
    pub(super) async fn read_records(&self, tail: &mut Tail, listed: &[Listed]) -> Result<(), StoreError> {
        let is_new = |listed: &&Listed| {
            written(&listed.name).is_some_and(|name| {
                name.time >= tail.from && self.purges.believes(name.time) && !tail.read.contains(&listed.name)
            })
        };
        let new: Vec<String> = listed.iter().filter(is_new).map(|listed| listed.name.clone()).collect();
        let mut failed = Vec::new();
        let (mut is_up, mut down) = (false, None);
        for names in new.chunks(AT_ONCE) {
            let read = self.read_at_once(names).await?;
            is_up |= read.iter().any(|(_, object)| object.is_ok());
            let is_outage =
                |object: &Result<_, StoreError>| object.as_ref().is_err_and(|error| error.kind().is_outage());
            let are_all_down = !read.is_empty() && read.iter().all(|(_, object)| is_outage(object));
            for (index, object) in read {
                match object {
                    Ok(object) => {
                        self.apply(tail, &names[index], &object);
                        tail.is_read(&names[index], object.len() as u64);
                    }
                    Err(error) => failed.push((names[index].clone(), error)),
                }
            }
            for name in names.iter().filter(|name| self.is_own(name)) {
                tail.is_read(name, 0);
            }
            // The rest would mostly fail as well.
            if are_all_down && !self.is_place_up(false, &failed).await {
                is_up = false;
                down = failed.first().map(|(_, error)| error.clone());
                break;
            }
        }
        is_up = self.is_place_up(is_up, &failed).await;
        failed.extend(self.vanished(tail, listed)?);
        self.judge_records(tail, failed, is_up);
        self.release_held(tail);
        down.map_or(Ok(()), Err)
    }

    /// Reads records at once. This process knows what it wrote itself.
    async fn read_at_once(&self, names: &[String]) -> Result<Read, StoreError> {
        let mut reading = JoinSet::new();
        for (index, name) in names.iter().enumerate().filter(|(_, name)| !self.is_own(name)) {
            let (place, name) = (Arc::clone(&self.place), name.clone());
            reading.spawn(async move {
                let read = tokio::time::timeout(READ_TIMEOUT, place.get(&name, MAX_RECORD)).await;
                (index, read.unwrap_or_else(|_| Err(StoreError::timed_out())))
            });
        }
        let mut objects = Vec::new();
        while let Some(read) = reading.join_next().await {
            match read {
                Ok((_, Err(error))) if ends(&error) => return Err(error),
                Ok(read) => objects.push(read),
                Err(_) => return Err(StoreError::given_up("the journal")),
            }
        }
        objects.sort_unstable_by_key(|(index, _)| *index);
        Ok(objects)
    }

    fn is_own(&self, name: &str) -> bool {
        written(name).is_some_and(|name| name.node == self.purges.node())
    }

    /// Returns whether the place answers reads. Asks for the probe if some were not answered, and none succeeded.
    pub(super) async fn is_place_up(&self, is_known_up: bool, failed: &[(String, StoreError)]) -> bool {
        if is_known_up || !failed.iter().any(|(_, error)| error.kind().is_outage()) {
            return true;
        }
        let probe = self.names.probe();
        let asked = tokio::time::timeout(READ_TIMEOUT, self.place.get(&probe, MAX_PROBE)).await;
        asked.is_ok_and(|answer| !answer.is_err_and(|error| error.kind().is_outage() || ends(&error)))
    }

    /// Returns the records that wait and are not listed any more. One that is old was compacted; a process that has not read
    /// all yet needs the snapshot which has it.
    fn vanished(&self, tail: &mut Tail, listed: &[Listed]) -> Result<Vec<(String, StoreError)>, StoreError> {
        let there: HashSet<&str> = listed.iter().map(|listed| listed.name.as_str()).collect();
        let kept_from = self.purges.journal_now().saturating_sub(self.surely_kept() << TICK_BITS);
        let mut vanished = Vec::new();
        for name in tail.waits.names() {
            let Some(PackName { time, .. }) = written(&name).filter(|_| !there.contains(name.as_str())) else {
                continue;
            };
            if time >= kept_from {
                let error = StoreError::absent(&name);
                vanished.push((name, error));
                continue;
            }
            tail.waits.remove(&name);
            if !self.is_loaded() {
                tail.restored = None;
                return Err(StoreError::new(
                    StoreErrorKind::Absent,
                    format!("{name}: it was compacted meanwhile; the newest snapshot is read"),
                ));
            }
        }
        Ok(vanished)
    }

    /// Returns for how many milliseconds no record is deleted, whatever the clock of the process that compacts the journal.
    fn surely_kept(&self) -> u64 {
        if self.place.is_local() { self.away() } else { KEPT - EARLIER }
    }

    /// Has the records that could not be read wait, or count as unreadable.
    fn judge_records(&self, tail: &mut Tail, failed: Vec<(String, StoreError)>, is_up: bool) {
        for (name, error) in failed {
            match tail.waits.note(&name, &error, is_up) {
                Verdict::WaitsFirst => self.log_wait("record", &name, &error),
                Verdict::Waits => {}
                Verdict::Unreadable => {
                    self.count_as_purge_of_everything(tail, &name, &error.to_string());
                    tail.is_read(&name, 0);
                }
            }
        }
    }

    /// Logs that an object can't be read, and waits.
    pub(super) fn log_wait(&self, what: &str, name: &str, error: &StoreError) {
        if let Some(suppressed) = self.log.reading.is_due() {
            warn!(
                "the {what} {name} can't be read, which is tried again; until then its purges are not followed: {error}{suppressed}"
            );
        }
    }

    fn apply(&self, tail: &mut Tail, name: &str, object: &[u8]) {
        let is_sound = |record: &Record| {
            written(name) == Some(PackName { time: record.time, node: record.node })
                // A record is written after the purges in it.
                && record.purges.iter().all(|(_, time)| *time <= record.time)
        };
        let record = match Record::decode(object) {
            Ok(record) if is_sound(&record) => record,
            Ok(_) => return self.count_as_purge_of_everything(tail, name, "its times are not those of its name"),
            Err(error) => return self.count_as_purge_of_everything(tail, name, error.as_str()),
        };
        for (purge, time) in &record.purges {
            let learn = || self.purges.learn(purge, *time, record.node);
            match purge {
                Purge { target: PurgeTarget::Url(hash), is_soft: false } => self.memory.remove(*hash, learn),
                _ => learn(),
            };
        }
        tail.hold(record.node, record.time);
        self.metrics.journal_read.add_one();
    }

    fn count_as_purge_of_everything(&self, tail: &mut Tail, name: &str, why: &str) {
        self.metrics.journal_unreadable.add_one();
        let Some(PackName { time, node }) = written(name) else { return };
        error!(
            "the record {name} can't be read: a purge may be in it, so all that was stored before counts as purged: {why}"
        );
        self.purges.learn(&Purge::hard(PurgeTarget::All), time, node);
        tail.hold(node, time);
    }

    /// Takes the purges of nodes for known of which no earlier record waits.
    pub(super) fn release_held(&self, tail: &mut Tail) {
        for (node, time) in std::mem::take(&mut tail.held) {
            match tail.waits.first_record(Some(node)) {
                Some(first) if first < time => {
                    tail.held.insert(node, time);
                }
                Some(_) | None => self.purges.learnt(node, time),
            }
        }
    }

    /// Looks for names of a time that can't be. What is in such objects is not taken, and they may hold anything: they count
    /// as unreadable, once each.
    pub(super) fn disbelieve(&self, tail: &mut Tail, listed: &[Listed]) {
        let latest = self.purges.latest_believed();
        let (mut found, mut new) = (HashSet::new(), Vec::new());
        for Listed { name, .. } in listed {
            let Some(object) = ObjectNames::parse_journal(name) else { continue };
            // This process knows what it named before its clock was set back.
            if object.name().time <= latest || object.name().node == self.purges.node() {
                continue;
            }
            if !tail.unbelieved.contains(name) {
                new.push((name, object));
            }
            found.insert(name.clone());
        }
        if let Some((first, _)) = new.first() {
            let has_records = new.iter().any(|(_, object)| matches!(object, JournalObject::Purges(_)));
            self.metrics.journal_unreadable.add(new.len() as u64);
            error!(
                number = new.len(),
                "{first} has a time that is more than an hour ahead of the clock: it is not read, and all that is stored counts as {}; set the clock right, or delete the object",
                if has_records { "purged" } else { "stale" }
            );
            self.purges.purge(Purge { target: PurgeTarget::All, is_soft: !has_records }, false);
        }
        tail.unbelieved = found;
    }
}

impl Tail {
    /// Notes that a record of `len` bytes was read. It takes a block at least.
    fn is_read(&mut self, name: &str, len: u64) {
        self.waits.remove(name);
        self.read.insert(name.to_owned());
        self.since_snapshot += 1;
        self.bytes_since += len.div_ceil(BLOCK).max(1) * BLOCK;
    }

    /// Notes the time of a node's last record that was read.
    pub(super) fn hold(&mut self, node: u64, time: JournalTime) {
        let held = self.held.entry(node).or_default();
        *held = time.max(*held);
    }
}

#[cfg(test)]
mod tests;
