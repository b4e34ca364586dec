//! Purges of tags in the durable tier: a small object for each tag, with the position of its last
//! purge. What was stored before that position counts as not there.
//!
//! A process asks for a tag's object once, when it first reads a response that has the tag, and
//! remembers the answer: an application that uses no tags pays nothing.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tracing::warn;

use super::backend::{Backend, BackendError};
use crate::rfc9111::freshness::LifetimePolicy;
use crate::rfc9111::key::{CacheKey, KeyParts};
use crate::stored::encoding::{Object, decode, encode_tag};

/// The most tags whose positions are remembered; all are forgotten when there are more, and asked
/// for again.
const MAX_KNOWN: usize = 65_536;

/// The most tags whose purges wait to be written.
const MAX_WAITING: usize = 65_536;

/// More bytes than the object of a tag has.
const MAX_LEN: u64 = 16 << 10;

/// The longest pause between two attempts to write one.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// What is known of the tags' last purges, by the hash of the tag's key.
#[derive(Debug, Default)]
pub struct TagPurges {
    /// Guarded by its lock, for a look-up or an insertion.
    known: Mutex<HashMap<u128, u64>>,
    /// Guarded by its lock: the last purge of each tag that is being written, by the hash of the tag's
    /// key. One task writes a tag, so that no older position overtakes a newer one.
    waiting: Mutex<HashMap<u128, u64>>,
}

/// A tag's own key: no URI has its scheme.
pub fn key_of(tag: &str) -> CacheKey {
    CacheKey::new(KeyParts { prefix: "", scheme: "tag", authority: "", path: tag, query: None })
}

impl TagPurges {
    /// Whether a purge of one of `tags` that the tier knows of covers what was stored at `position`.
    /// A tag that can't be asked for counts as purged: what may be stale by decree is not served on a
    /// guess. One whose object can't be read counts as purged at `now`.
    pub async fn cover(
        &self,
        backend: &Backend,
        name: impl Fn(&CacheKey) -> String,
        tags: &[String],
        position: u64,
        now: u64,
    ) -> bool {
        for tag in tags {
            match self.last_purge(backend, &name, tag, now).await {
                Ok(purged) if purged <= position => {}
                Ok(_) => return true,
                Err(error) => {
                    warn!("a tag's purges can't be read: {error}");
                    return true;
                }
            }
        }
        false
    }

    async fn last_purge(
        &self,
        backend: &Backend,
        name: impl Fn(&CacheKey) -> String,
        tag: &str,
        now: u64,
    ) -> Result<u64, BackendError> {
        let key = key_of(tag);
        if let Some(position) = self.known.lock().get(&key.hash()) {
            return Ok(*position);
        }
        let name = name(&key);
        let position = match stored_position(backend, &name, &key).await? {
            Some(position) => position,
            None => {
                // Said once, so that the next process does not take a later moment for it.
                backend.put(&name, &[Bytes::from(encode_tag(&key, now))]).await?;
                now
            }
        };
        // A purge that came while the tier was asked is later.
        Ok(self.note(&key, position))
    }

    /// Notes a purge in this process; the last one of the tag that is known of.
    fn note(&self, key: &CacheKey, position: u64) -> u64 {
        let mut known = self.known.lock();
        if known.len() >= MAX_KNOWN && !known.contains_key(&key.hash()) {
            known.clear();
        }
        let last = known.entry(key.hash()).or_default();
        *last = position.max(*last);
        *last
    }

    /// Notes a purge that is to be written down; whether [`TagPurges::write`] is to be called for it.
    pub fn begin(&self, key: &CacheKey, position: u64) -> bool {
        self.note(key, position);
        let mut waiting = self.waiting.lock();
        if let Some(last) = waiting.get_mut(&key.hash()) {
            *last = position.max(*last);
            return false;
        }
        if waiting.len() >= MAX_WAITING {
            warn!("too many purges of tags wait: one is in force until this process ends, and not after");
            return false;
        }
        waiting.insert(key.hash(), position);
        true
    }

    /// Writes the last purge of a tag down, and tries until it is.
    pub async fn write(&self, backend: &Backend, name: &str, key: &CacheKey) {
        let mut pause = Duration::from_millis(100);
        loop {
            let position = self.waiting.lock().get(&key.hash()).copied().unwrap_or(0);
            let written = async {
                // Another process may have written a later one.
                let last = stored_position(backend, name, key).await?.unwrap_or(0).max(position);
                backend.put(name, &[Bytes::from(encode_tag(key, last))]).await
            };
            match written.await {
                Ok(()) => {
                    let mut waiting = self.waiting.lock();
                    if waiting.get(&key.hash()).is_none_or(|last| *last <= position) {
                        waiting.remove(&key.hash());
                        return;
                    }
                    continue;
                }
                Err(error) => warn!("a tag's purge is not written yet: {error}"),
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }
}

/// The position in the object `name`: zero where there is no such object, `None` where nobody knows
/// any more what it said.
async fn stored_position(backend: &Backend, name: &str, key: &CacheKey) -> Result<Option<u64>, BackendError> {
    let Some(bytes) = backend.get(name, MAX_LEN).await? else { return Ok(Some(0)) };
    match decode(&bytes, key, &LifetimePolicy::default()) {
        Ok(Object::Tag { position }) => Ok(Some(position)),
        Ok(Object::Response { .. } | Object::Vary(_)) => Ok(None),
        Err(error) => {
            warn!(object = name, why = error.as_str(), "a durable object is not readable");
            Ok(None)
        }
    }
}
