//! Lists of values: gathered from both tiers in any order, and kept in the order of a hash that is the same in every process.
//!
//! A list is bounded in bytes. Past its bound it keeps the values with the least hashes, and says from which hash on there
//! are others. So whoever wants all of them asks again from there, and no listing has to be remembered between two calls.

use std::cmp::Reverse;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::entry::value_name;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::timestamp::Timestamp;

/// The values to be listed.
#[derive(Clone)]
pub struct Wanted {
    /// Their database.
    pub database: u8,
    /// Says whether a name is wanted.
    pub matches: Arc<dyn Fn(&[u8]) -> bool + Send + Sync>,
    /// True if names are listed, false if they are only counted.
    pub has_names: bool,
}

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wanted").field("database", &self.database).finish_non_exhaustive()
    }
}

/// A value in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedValue {
    /// The hash that the list is in the order of.
    pub hash: u64,
    /// The name; empty if only counted.
    pub name: Bytes,
    /// The moment at which it expires; `None`: never.
    pub expires: Option<Timestamp>,
}

impl NamedValue {
    /// Returns the bytes that it takes in a list.
    pub fn cost(&self) -> usize {
        size_of::<Self>() + self.name.len()
    }
}

/// A list of values, each once.
#[derive(Clone, Debug, Default)]
pub struct ValueList {
    /// The values, in the order of their hashes.
    pub values: Vec<NamedValue>,
    /// The hash from which on there are others.
    pub until: Option<u64>,
    /// The purge position before the list was begun.
    pub position: u64,
}

/// Returns the hash of a name that lists are in the order of.
fn hash_of(key: &CacheKey) -> u64 {
    u64::try_from(key.hash() >> 64).unwrap_or(0)
}

/// A list that is being gathered.
#[derive(Clone, Debug)]
pub(super) struct Gathering {
    wanted: Wanted,
    from: u64,
    most: usize,
    /// Guarded by its lock: what is gathered so far.
    gathered: Arc<Mutex<Gathered>>,
}

#[derive(Debug, Default)]
struct Gathered {
    values: Vec<NamedValue>,
    cost: usize,
    until: Option<u64>,
}

impl Gathering {
    /// Begins a list of values whose hashes are at least `from`, in at most `most` bytes.
    pub(super) fn new(wanted: Wanted, from: u64, most: usize) -> Self {
        Self { wanted, from, most, gathered: Arc::default() }
    }

    /// Adds a value, if it is wanted.
    pub(super) fn add(&self, key: &CacheKey, expires: Option<Timestamp>) {
        let Some((_, name)) = value_name(key).filter(|(database, _)| *database == self.wanted.database) else { return };
        if !(self.wanted.matches)(&name) {
            return;
        }
        let hash = hash_of(key);
        let mut gathered = self.gathered.lock();
        if hash < self.from || gathered.until.is_some_and(|until| hash >= until) {
            return;
        }
        let name = if self.wanted.has_names { Bytes::copy_from_slice(&name) } else { Bytes::new() };
        let value = NamedValue { hash, name, expires };
        gathered.cost += value.cost();
        gathered.values.push(value);
        if gathered.cost > 2 * self.most {
            gathered.shorten(self.most);
        }
    }

    /// Returns the list.
    pub(super) fn finish(&self, position: u64) -> ValueList {
        let mut gathered = std::mem::take(&mut *self.gathered.lock());
        gathered.shorten(self.most);
        ValueList { values: gathered.values, until: gathered.until, position }
    }
}

impl Gathered {
    /// Removes what is there twice, and then what is past the bound.
    fn shorten(&mut self, most: usize) {
        // Of two that were stored one after the other, that which expires last is listed.
        let expires = |value: &NamedValue| Reverse(value.expires.unwrap_or(Timestamp::from_millis(i64::MAX)));
        self.values.sort_unstable_by(|a, b| (a.hash, &a.name, expires(a)).cmp(&(b.hash, &b.name, expires(b))));
        self.values.dedup_by(|a, b| (a.hash, &a.name) == (b.hash, &b.name));
        let mut cost = 0;
        let fitting = self.values.iter().take_while(|value| {
            cost += value.cost();
            cost <= most
        });
        let count = fitting.count();
        if let Some(first) = self.values.get(count) {
            // Values with one hash stay together: the next list begins with the first of them.
            let until = first.hash;
            let is_progress = self.values.first().is_some_and(|least| least.hash < until);
            // Names that were made to share one hash are cut off: a list has its bound.
            let until = if is_progress { until } else { until.saturating_add(1) };
            self.values.truncate(count);
            self.values.retain(|value| value.hash < until);
            self.until = Some(until);
        }
        self.cost = self.values.iter().map(NamedValue::cost).sum();
    }
}
