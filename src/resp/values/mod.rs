//! Values: what clients store under names of their own, over both tiers.
//!
//! * A value is a stored response under a key that no request has (`entry/value.rs`).
//! * What reads a value and writes it anew holds its key's turn meanwhile ([`turns`]), so that it is atomic in this process.
//!   Turns of different keys do not wait for each other, but for the few that share one.
//! * What an operation does is a pure function of the value that was found ([`operation`]).
//! * Lists of names are gathered aside, a few at a time, within a bound ([`listing`]).

pub(super) mod glob;
pub(super) mod listing;
pub(super) mod operation;
pub(super) mod turns;

use std::sync::Arc;

use self::listing::Listings;
use self::operation::Change;
use self::turns::Turns;
use super::reply::Reply;
use crate::base::Clock;
use crate::entry::ValueKey;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::{FoundValue, PurgeReceipt, Store};

/// The most bytes of a name. A key is in a pack twice, and in memory beside its value.
const MAX_NAME: usize = 16 << 10;

/// The values of all clients.
#[derive(Debug)]
pub(crate) struct Values {
    pub(super) store: Arc<Store>,
    clock: Clock,
    /// `cache.key_prefix`
    prefix: String,
    pub(super) turns: Turns,
    pub(super) listings: Listings,
}

impl Values {
    /// Makes the values that are kept in `store`, whose keys have the prefix `prefix` (`cache.key_prefix`).
    pub(crate) fn new(store: Arc<Store>, prefix: &str, clock: Clock) -> Self {
        let (turns, listings) = (Turns::default(), Listings::default());
        Self { store, clock, prefix: prefix.to_owned(), turns, listings }
    }

    /// Returns the time of day.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Returns the key of a name in a database, or the error that the name gets.
    pub(super) fn key(&self, database: u8, name: &[u8]) -> Result<ValueKey, Reply> {
        if name.len() > MAX_NAME {
            return Err(Reply::error(format!("ERR the key has more than {MAX_NAME} bytes")));
        }
        Ok(ValueKey::new(&self.prefix, database, name))
    }

    /// Waits until a directory has what was written before, for a bounded time. With a bucket, or without a durable tier,
    /// ends at once. One wait serves all commands before it. Connections wait by [`super::settling`].
    pub(super) async fn settle(&self) {
        self.store.values_written().await;
    }

    /// Deletes all values of a database, or without one of all. In force at once; the receipt is for
    /// [`Store::recorded`].
    pub(super) fn flush(&self, database: Option<u8>) -> PurgeReceipt {
        let receipt = self.store.flush_values(database);
        self.turns.note_flush();
        receipt
    }

    /// Carries out a change of the value that was found. The caller holds the key's turn. Returns the length of a value for
    /// which [`Values::settle`] does not wait, or the error of a value that neither tier takes.
    pub(super) fn carry_out(
        &self,
        key: &ValueKey,
        found: Option<&FoundValue>,
        change: Change,
    ) -> Result<Option<u64>, Reply> {
        let (len, written) = match change {
            Change::Nothing => return Ok(None),
            Change::Delete => {
                self.store.delete_value(key);
                (0, Ok(()))
            }
            Change::Put { value, expires } => (value.len() as u64, self.store.put_value(key, &value, expires, None)),
            Change::Rewrite { value, expires } => {
                (value.len() as u64, self.store.put_value(key, &value, expires, found))
            }
            Change::Retime { expires } => match found {
                Some(found) => (found.len(), self.store.retime_value(key, found, expires)),
                None => return Ok(None),
            },
        };
        self.turns.note_change(key);
        match written {
            Ok(()) => Ok(self.store.is_large_value(len).then_some(len)),
            // As Redis does when it has no memory left.
            Err(refused) => Err(Reply::error(format!("OOM {refused}"))),
        }
    }
}
