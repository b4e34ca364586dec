//! Lists of names: `KEYS`, `SCAN` and `DBSIZE`.
//!
//! * Each walks over memory, over what waits to be written, and over the footers of the packs. At most [`AT_ONCE`] do so at a
//!   time; the others wait, and hold up their own connection alone. One more may belong to a transaction, which has taken its
//!   place before any turn.
//! * A walk whose client is gone looks at no further name.
//! * A cursor of `SCAN` is a place in the order of the names' hashes: from there on nothing was listed yet. So a cursor
//!   stands for itself. It holds in every process that shares the durable tier, and after a restart; none is ever unknown,
//!   and nothing has to be remembered for it.
//! * So that not every call walks over everything, the names behind a cursor are kept for a while, [`KEPT`] lists of at most
//!   [`MOST_KEPT`] bytes. What is gone meanwhile is left out.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Values;
use super::glob::Pattern;
use crate::base::Stopwatch;
use crate::resp::reply::Reply;
use crate::store::{NamedValue, StoreError, ValueList, Wanted};

/// The most walks at once.
const AT_ONCE: usize = 2;

/// The most bytes of the names that `KEYS` lists.
pub(in crate::resp) const MOST_KEYS: usize = 32 << 20;

/// The most bytes that counting takes. Past it the rest is counted by another walk.
const MOST_COUNTED: usize = 64 << 20;

/// The lists of `SCAN` that are kept, the most bytes of one, and for how long.
const KEPT: usize = 8;
const MOST_KEPT: usize = 8 << 20;
const KEPT_FOR: Duration = Duration::from_secs(20);

/// The most names that one `SCAN` examines, whatever its `COUNT`.
const MOST_AT_ONCE: usize = 10_000;

/// The lists that are kept, and the places of those that are made.
#[derive(Debug)]
pub(in crate::resp) struct Listings {
    walks: Arc<Semaphore>,
    /// The place of a transaction that lists.
    pub(in crate::resp) of_transactions: Semaphore,
    /// Guarded by its lock: lists that are kept, the oldest first.
    kept: Mutex<VecDeque<Arc<KeptList>>>,
}

impl Default for Listings {
    fn default() -> Self {
        let walks = Arc::new(Semaphore::new(AT_ONCE));
        Self { walks, of_transactions: Semaphore::new(1), kept: Mutex::default() }
    }
}

/// The client that asks for a list.
#[derive(Clone, Debug)]
pub(in crate::resp) struct Asker {
    /// True once the client is gone.
    pub(in crate::resp) is_gone: Arc<AtomicBool>,
    /// True if a transaction asks, which has a place already and keeps others from turns.
    pub(in crate::resp) has_place: bool,
}

impl Asker {
    fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }
}

/// The names from a cursor on.
#[derive(Debug)]
struct KeptList {
    database: u8,
    pattern: Bytes,
    from: u64,
    list: ValueList,
    made: Stopwatch,
}

impl KeptList {
    /// Returns whether the list has what follows a cursor.
    fn has(&self, database: u8, pattern: &[u8], cursor: u64) -> bool {
        self.database == database
            && self.pattern == pattern
            && self.from <= cursor
            && self.list.until.is_none_or(|until| cursor < until)
            && self.made.elapsed() < KEPT_FOR
    }
}

/// One part of a `SCAN`: the cursor that goes on, 0 at the end, and names.
pub(in crate::resp) type Scanned = (u64, Vec<Bytes>);

impl Values {
    /// Lists the names that match a pattern, or returns an error if they are too many.
    pub(in crate::resp) async fn keys(&self, asker: &Asker, database: u8, pattern: &[u8]) -> Result<Vec<Bytes>, Reply> {
        let list = self.walk(asker, Looked { database, pattern, has_names: true }, 0, MOST_KEYS).await?;
        if list.until.is_some() {
            let text = format!("ERR more than {} MiB of keys match: list them with SCAN", MOST_KEYS >> 20);
            return Err(Reply::error(text));
        }
        Ok(list.values.into_iter().map(|value| value.name).collect())
    }

    /// Counts the names in a database.
    pub(in crate::resp) async fn count(&self, asker: &Asker, database: u8) -> Result<u64, Reply> {
        let (mut from, mut count) = (0, 0);
        loop {
            let looked = Looked { database, pattern: b"*", has_names: false };
            let list = self.walk(asker, looked, from, MOST_COUNTED).await?;
            count += list.values.len() as u64;
            match list.until {
                Some(until) => from = until,
                None => return Ok(count),
            }
        }
    }

    /// Lists about `count` names that match a pattern, from a cursor on.
    pub(in crate::resp) async fn scan(
        &self,
        asker: &Asker,
        database: u8,
        cursor: u64,
        pattern: &[u8],
        count: usize,
    ) -> Result<Scanned, Reply> {
        let kept = (cursor > 0).then(|| self.kept(database, pattern, cursor)).flatten();
        let kept = match kept {
            Some(kept) => kept,
            None => {
                let list = self.walk(asker, Looked { database, pattern, has_names: true }, cursor, MOST_KEPT).await?;
                self.keep(KeptList {
                    database,
                    pattern: Bytes::copy_from_slice(pattern),
                    from: cursor,
                    list,
                    made: Stopwatch::start(),
                })
            }
        };
        let values = &kept.list.values;
        let first = values.partition_point(|value| value.hash < cursor);
        let mut end = first.saturating_add(count.min(MOST_AT_ONCE)).min(values.len());
        // Names with one hash go together: a cursor can't point in between.
        while end > first && values.get(end).is_some_and(|next| next.hash == values[end - 1].hash) {
            end += 1;
        }
        let next = values.get(end).map_or(kept.list.until.unwrap_or(0), |value| value.hash);
        let there = values[first..end].iter().filter(|value| self.is_still_there(database, value));
        Ok((next, there.map(|value| value.name.clone()).collect()))
    }

    /// Returns whether a name that was listed some time ago may still have a value.
    fn is_still_there(&self, database: u8, value: &NamedValue) -> bool {
        value.expires.is_none_or(|expires| self.now() < expires)
            && self.key(database, &value.name).is_ok_and(|key| self.store.may_have_value(&key))
    }

    async fn walk(&self, asker: &Asker, looked: Looked<'_>, from: u64, most: usize) -> Result<ValueList, Reply> {
        Pattern::check(looked.pattern)?;
        let permit = if asker.has_place {
            None
        } else {
            Some(Arc::clone(&self.listings.walks).acquire_owned().await.expect("the queue is never closed"))
        };
        let failed = |error: StoreError| Reply::error(format!("ERR the durable tier can't be read: {error}"));
        let list = self.store.list_values(looked.wanted(asker, permit), from, most).await.map_err(failed)?;
        // It has not all that it should. Nobody reads this, and nobody else gets such a list.
        if asker.is_gone() { Err(Reply::error("ERR the client is gone")) } else { Ok(list) }
    }

    fn kept(&self, database: u8, pattern: &[u8], cursor: u64) -> Option<Arc<KeptList>> {
        let mut kept = self.listings.kept.lock();
        // Forgets lists from before a flush, which may name what it covers.
        kept.retain(|list| list.made.elapsed() < KEPT_FOR && !self.store.is_flushed_since(list.list.position));
        kept.iter().find(|list| list.has(database, pattern, cursor)).cloned()
    }

    fn keep(&self, list: KeptList) -> Arc<KeptList> {
        let list = Arc::new(list);
        let mut kept = self.listings.kept.lock();
        kept.push_back(Arc::clone(&list));
        while kept.len() > KEPT {
            kept.pop_front();
        }
        list
    }
}

/// The names that a walk looks for.
#[derive(Clone, Copy)]
struct Looked<'a> {
    database: u8,
    pattern: &'a [u8],
    has_names: bool,
}

impl Looked<'_> {
    /// Says it to the store. The permit is given back when nothing walks any more, be it that nobody waits for it.
    fn wanted(self, asker: &Asker, permit: Option<OwnedSemaphorePermit>) -> Wanted {
        let (text, asker, pattern) = (Bytes::copy_from_slice(self.pattern), asker.clone(), OnceLock::new());
        let matches = move |name: &[u8]| {
            let _ = &permit;
            // Read by who walks: not on the thread that serves others.
            !asker.is_gone() && pattern.get_or_init(|| Pattern::new(&text)).matches(name)
        };
        Wanted { database: self.database, matches: Arc::new(matches), has_names: self.has_names }
    }
}
