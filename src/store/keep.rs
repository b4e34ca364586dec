//! Small objects that are no cache: what is written here stays until it is deleted, and nothing else of the store touches
//! it. The state of ACME is kept so.
//!
//! * In a bucket the names lie below `<root>acme/`, beside the cache's own. No lifecycle rule of Larder, no sweep, no purge
//!   and no reclaiming knows them, and the rights that the cache needs are enough.
//! * In a directory of its own they lie in that. Its files are written aside, synced and renamed, and are for their owner
//!   alone.
//! * Names that differ lead to objects that differ: nothing depends on a condition that a service may ignore.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;

use super::directory::Directory;
use super::durable::Durable;
use super::error::StoreError;
use super::place::Place;
use super::purpose::asking_for;
use crate::base::{Clock, RequestPurpose};
use crate::rfc9111::timestamp::Timestamp;

/// The largest object: a chain of certificates with its key takes some ten KiB.
const MAX_OBJECT: u64 = 1 << 20;

/// The most objects that are listed. Larder makes some ten for each certificate.
const MAX_LISTED: usize = 20_000;

/// The longest that an operation takes.
const WITHIN: Duration = Duration::from_secs(20);

/// The name of the object that is written to find out whether the directory takes writes.
const PROBE: &str = "probe";

/// Keeps small objects by name.
#[derive(Clone, Debug)]
pub(crate) struct Keep {
    place: Arc<dyn Place>,
    /// The beginning of all names; empty, or ending in a slash.
    root: String,
    /// The runtime on which the place is asked.
    runtime: Handle,
    clock: Clock,
}

impl Keep {
    /// Keeps objects beside those of the durable tier.
    pub(crate) fn beside(durable: &Durable, clock: Clock) -> Self {
        let (place, names) = durable.place();
        Self { place, root: names.kept(), runtime: Handle::current(), clock }
    }

    /// Keeps objects in a directory of its own, which is made if it is not there, and checked to take writes.
    pub(crate) async fn in_directory(path: &Path, clock: Clock) -> Result<Self, StoreError> {
        let place = Arc::new(Directory::new(PathBuf::from(path)));
        let this = Self { place, root: String::new(), runtime: Handle::current(), clock };
        this.put(PROBE, Bytes::from_static(b"Larder writes this to find out whether it may.\n")).await?;
        this.delete(PROBE).await?;
        Ok(this)
    }

    /// Returns the current time by the clock of the place.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now().plus_millis(self.place.clock_offset())
    }

    /// Lists the names of all objects that begin with `prefix`, which ends in a slash, in their order.
    pub(crate) async fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let (place, below) = (Arc::clone(&self.place), format!("{}{prefix}", self.root));
        let skipped = self.root.len();
        let listed = self.run(async move {
            let mut names: Vec<String> = Vec::new();
            loop {
                let last = names.last().map_or("", String::as_str);
                let page = place.list(&below, last).await?;
                let is_last = page.is_last || page.listed.is_empty() || names.len() >= MAX_LISTED;
                names.extend(page.listed.into_iter().map(|listed| listed.name));
                if is_last {
                    return Ok(names);
                }
            }
        });
        let names = listed.await?;
        Ok(names.into_iter().filter_map(|name| name.get(skipped..).map(str::to_owned)).collect())
    }

    /// Reads an object.
    pub(crate) async fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        let (place, name) = (Arc::clone(&self.place), format!("{}{name}", self.root));
        self.run(async move { place.get(&name, MAX_OBJECT).await }).await
    }

    /// Writes an object.
    pub(crate) async fn put(&self, name: &str, content: Bytes) -> Result<(), StoreError> {
        let (place, name) = (Arc::clone(&self.place), format!("{}{name}", self.root));
        self.run(async move { place.put(&name, &[content]).await }).await
    }

    /// Deletes an object, if there is one.
    pub(crate) async fn delete(&self, name: &str) -> Result<(), StoreError> {
        let (place, name) = (Arc::clone(&self.place), format!("{}{name}", self.root));
        self.run(async move { place.delete(&name).await }).await
    }

    /// Runs an operation on the place's runtime, also if a worker asks for it: connections stay where they were made.
    async fn run<T: Send + 'static>(
        &self,
        operation: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let bounded =
            async { tokio::time::timeout(WITHIN, operation).await.unwrap_or_else(|_| Err(StoreError::timed_out())) };
        let task = self.runtime.spawn(asking_for(RequestPurpose::Certificates, bounded));
        task.await.unwrap_or_else(|_| Err(StoreError::given_up("the state")))
    }
}

/// Returns whether others than its owner may read what is in the directory `path`.
pub(crate) fn is_open_to_others(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.mode() & 0o077 != 0)
}
