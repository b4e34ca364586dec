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
use self::memory::{Kept, Memory};
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
        let record = match self.insert_memory(stored) {
            Kept::No => return false,
            Kept::Alone => None,
            Kept::Under(record) => Some(record),
        };
        if let (Some(durable), Durability::Durable) = (&self.durable, durability)
            && stored.head.freshness.remaining(self.clock.now()) >= durable.min_lifetime_millis().max(1)
        {
            durable.put(Arc::clone(stored), record);
        }
        true
    }

    /// Keeps in memory a response that the durable tier had, under the record that led to it.
    pub fn promote(&self, stored: &Arc<StoredResponse>, record: Option<VaryRecord>) {
        if let Some(record) = record {
            self.adopt(record, stored.head.position);
        }
        self.insert_memory(stored);
    }

    /// Takes over a record that a read of the durable tier found which began at `position`.
    pub fn adopt(&self, record: VaryRecord, position: u64) {
        let hash = record.key.hash();
        self.memory.adopt(record, &|| !self.purges.covers_fetch(hash, position));
    }

    /// A purge notes its position before it removes, so one that this does not see removes what
    /// is kept here.
    fn insert_memory(&self, stored: &Arc<StoredResponse>) -> Kept {
        let head = &stored.head;
        self.memory.insert(stored, &|| !self.purges.covers_fetch(head.key.hash(), head.position))
    }

    /// Forgets everything stored for `key`; the durable tier follows behind, except for a
    /// directory, where it takes no longer than to say so.
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

    /// Has what the durable tier keeps for `key` deleted: it was found expired, or broken.
    pub fn discard(&self, key: &CacheKey) {
        if let Some(durable) = &self.durable {
            durable.delete(key);
        }
    }
}
