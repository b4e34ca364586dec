//! Where responses are kept: memory first, the durable tier behind it, and the purges that both
//! obey.

pub mod backend;
pub mod durable;
pub mod file;
pub mod memory;
pub mod purge;
pub mod s3;

use std::sync::Arc;

use http::header::HeaderMap;

use self::backend::BackendError;
use self::durable::{Durable, Found};
use self::memory::Memory;
use self::purge::Purges;
use crate::clock::Clock;
use crate::rfc9111::freshness::LifetimePolicy;
use crate::rfc9111::key::CacheKey;
use crate::stored::{StoredResponse, VaryRecord};

/// Both tiers.
#[derive(Debug)]
pub struct Store {
    memory: Memory,
    durable: Option<Durable>,
    purges: Arc<Purges>,
    clock: Clock,
}

/// Whether a response goes to the durable tier as well, as its rule has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// If it is fresh for long enough.
    Durable,
    /// Never.
    MemoryOnly,
}

impl Store {
    /// Puts the tiers together.
    pub fn new(memory: Memory, durable: Option<Durable>, purges: Arc<Purges>, clock: Clock) -> Self {
        Self { memory, durable, purges, clock }
    }

    /// The memory tier.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The durable tier, unless it is off.
    pub fn durable(&self) -> Option<&Durable> {
        self.durable.as_ref()
    }

    /// The position of a fetch that begins now; what it stores is covered by every later purge.
    pub fn position(&self) -> u64 {
        self.purges.position()
    }

    /// What the durable tier has. An object that is past its retention counts as not there.
    pub async fn lookup_durable(
        &self,
        key: &CacheKey,
        request: &HeaderMap,
        policy: LifetimePolicy,
        known: Option<Arc<VaryRecord>>,
    ) -> Found {
        let Some(durable) = &self.durable else { return Found::Nothing };
        match durable.lookup(key, request, policy, known).await {
            Found::Response(found)
                if found.head.freshness.remaining(self.clock.now()).saturating_add(durable.retain_millis()) < 0 =>
            {
                Found::Nothing
            }
            found => found,
        }
    }

    /// Keeps a response that was just fetched or freshened, in memory and, where it lasts and
    /// `durability` allows, behind. `false` when a purge came since its fetch began.
    pub fn insert(&self, stored: &Arc<StoredResponse>, durability: Durability) -> bool {
        let Some(record) = self.insert_memory(stored) else { return false };
        if let (Some(durable), Durability::Durable) = (&self.durable, durability)
            && stored.head.freshness.remaining(self.clock.now()) >= durable.min_lifetime_millis().max(1)
        {
            durable.put(Arc::clone(stored), record);
        }
        true
    }

    /// Keeps in memory a response that the durable tier had.
    pub fn promote(&self, stored: &Arc<StoredResponse>, record: Option<VaryRecord>) -> bool {
        if let Some(record) = record {
            self.memory.adopt(record);
        }
        self.insert_memory(stored).is_some()
    }

    /// `Some` of the record that leads to it, if it varies; `None` when a purge covers it.
    fn insert_memory(&self, stored: &Arc<StoredResponse>) -> Option<Option<Arc<VaryRecord>>> {
        let head = &stored.head;
        if self.purges.covers_fetch(head.key.hash(), head.position) {
            return None;
        }
        let record = self.memory.insert(stored);
        // A purge notes its position before it removes: one that missed this entry is seen here.
        if self.purges.covers_fetch(head.key.hash(), head.position) {
            self.memory.remove_exact(stored, record.as_deref());
            return None;
        }
        Some(record)
    }

    /// Forgets everything stored for `key`; the durable tier follows behind.
    pub fn invalidate(&self, key: &CacheKey) {
        self.forget(key);
        if let Some(durable) = &self.durable {
            durable.delete(key);
        }
    }

    /// Forgets everything stored for `key` in memory; fetches under way store nothing of it.
    pub fn forget(&self, key: &CacheKey) {
        self.purges.purge(key.hash());
        self.memory.remove(key);
    }

    /// Has the durable tier forget everything stored for `key`, and waits until it has.
    pub async fn forget_durably(&self, key: &CacheKey) -> Result<(), BackendError> {
        match &self.durable {
            Some(durable) => durable.delete_now(key).await,
            None => Ok(()),
        }
    }

    /// Has an object deleted from the durable tier that was found expired there.
    pub fn drop_expired(&self, key: &CacheKey) {
        if let Some(durable) = &self.durable {
            durable.delete(key);
        }
    }
}
