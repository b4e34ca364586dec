//! A directory as the place of the durable tier.
//!
//! * A file is written aside, synced, and renamed into its place: a reader sees a whole object or none, also after
//!   `kill -9` or a loss of power.
//! * The space of all files is bounded ([`capacity`]); what was least recently used is evicted ([`evict`]).
//! * Calls that wait for the disk run on threads for that, one call for a whole operation.

mod capacity;
mod evict;
mod read;
mod uses;
mod walk;
mod write;

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tracing::warn;
use xxhash_rust::xxh3::xxh3_64;

use self::capacity::{Capacity, FileClass};
use self::uses::Uses;
use super::error::{StoreError, StoreErrorKind};
use super::names::ObjectNames;
use super::place::{EvictionContext, ObjectReader, ObjectWriter, Operation, PROBE, Page, Place, Space};
use crate::rfc9111::timestamp::Timestamp;

/// A directory of objects.
#[derive(Debug)]
pub(crate) struct Directory {
    root: PathBuf,
    /// The beginning of all names.
    base: String,
    capacity: Arc<Capacity>,
    uses: Uses,
    /// Held while a file is renamed into its place, or evicted: one lock for each of [`STRIPES`] groups of directories.
    renames: Arc<[Mutex<()>; STRIPES]>,
}

/// Number of locks that directories are spread over.
const STRIPES: usize = 64;

/// Returns the lock of the directory that a file is in. Objects and bodies of one key share it: their directories have
/// the same two names.
fn stripe(path: &Path) -> usize {
    let mut directories = path.ancestors().skip(1).take(2).filter_map(Path::file_name);
    let hash = |name: Option<&std::ffi::OsStr>| name.map_or(0, |name| xxh3_64(name.as_encoded_bytes()));
    let both = hash(directories.next()) ^ hash(directories.next()).rotate_left(1);
    usize::try_from(both % STRIPES as u64).unwrap_or(0)
}

impl Directory {
    /// The directory `root`, which [`Place::check`] makes, with names that begin with `base`. It may take `capacity`
    /// bytes; 0: any number.
    pub(crate) fn new(root: PathBuf, base: &str, capacity: u64) -> Self {
        Self {
            root,
            base: base.to_owned(),
            capacity: Capacity::new(capacity),
            uses: Uses::default(),
            renames: Arc::new([const { Mutex::new(()) }; STRIPES]),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Keeps files of the same key from being renamed into their places while the guard is held.
    fn lock_renames(&self, path: &Path) -> MutexGuard<'_, ()> {
        self.renames[stripe(path)].lock()
    }

    fn class(&self, name: &str) -> FileClass {
        match name.strip_prefix(&self.base).map(|rest| rest.get(..2)) {
            Some(Some("o/")) => FileClass::Object,
            Some(Some("b/")) => FileClass::Body,
            Some(_) | None => FileClass::Journal,
        }
    }

    /// Makes the directory and writes the probe. A full disk is no failure: what it holds can be read.
    async fn check(&self, probe: &str) -> Result<(), StoreError> {
        let root = self.root.clone();
        let made = on_a_thread("the directory", move || write::make_directory(&root)).await;
        let written = match made {
            Ok(()) => self.put(probe, &[Bytes::from_static(PROBE)]).await,
            failed => failed,
        };
        match written {
            Err(error) if error.kind() == StoreErrorKind::Full => {
                warn!("the disk of the directory {} is full: {error}", self.root.display());
                Ok(())
            }
            Err(error) => {
                let text = format!(
                    "the directory {} can't be written to ({error}); make it writable, or set durable.url",
                    self.root.display()
                );
                Err(StoreError::caused_by(error.kind(), text, error))
            }
            Ok(()) => Ok(()),
        }
    }

    async fn find_cache(&self, base: &str) -> Result<(), StoreError> {
        let (root, below) = (self.root.clone(), self.path(base));
        let found = on_a_thread("the directory", move || Ok((root.is_dir(), below.is_dir()))).await;
        let why = match found {
            Ok((true, true)) => return Ok(()),
            Ok((true, false)) => format!("is not one that Larder keeps objects in: it has no directory {base}"),
            Ok((false, _)) => "does not exist".to_owned(),
            Err(error) => format!("can't be looked at ({error})"),
        };
        let text = format!(
            "the directory {} {why}; check durable.url and cache.key_prefix, which have to be those that Larder runs with",
            self.root.display()
        );
        Err(StoreError::new(StoreErrorKind::Absent, text))
    }

    async fn was_evicted(&self, name: &str) -> Result<bool, StoreError> {
        let path = self.path(name);
        on_a_thread(name, move || path.try_exists().map(|exists| !exists)).await
    }
}

impl Place for Directory {
    fn check<'a>(&'a self, names: &'a ObjectNames) -> Operation<'a, ()> {
        Box::pin(async move { self.check(&names.probe()).await })
    }

    fn find_cache<'a>(&'a self, root: &'a str) -> Operation<'a, ()> {
        Box::pin(self.find_cache(root))
    }

    fn get<'a>(&'a self, name: &'a str, limit: u64) -> Operation<'a, Bytes> {
        Box::pin(self.get(name, limit))
    }

    fn read<'a>(&'a self, name: &'a str, len: u64) -> Operation<'a, Box<dyn ObjectReader>> {
        Box::pin(self.read(name, len))
    }

    fn read_range<'a>(&'a self, name: &'a str, first: u64, end: u64) -> Operation<'a, Box<dyn ObjectReader>> {
        Box::pin(self.read_range(name, first, end))
    }

    fn list<'a>(&'a self, prefix: &'a str, after: &'a str) -> Operation<'a, Page> {
        Box::pin(self.list(prefix, after))
    }

    fn put<'a>(&'a self, name: &'a str, pieces: &'a [Bytes]) -> Operation<'a, ()> {
        Box::pin(self.put(name, pieces))
    }

    fn begin<'a>(&'a self, name: &'a str) -> Operation<'a, Box<dyn ObjectWriter>> {
        Box::pin(self.begin(name))
    }

    fn delete<'a>(&'a self, name: &'a str) -> Operation<'a, ()> {
        Box::pin(self.delete(name))
    }

    fn remove_unfinished<'a>(&'a self, root: &'a str, before: Timestamp, is_dry: bool) -> Operation<'a, u64> {
        Box::pin(self.remove_unfinished(root, before, is_dry))
    }

    fn is_local(&self) -> bool {
        true
    }

    fn note_use(&self, name: &str) {
        self.uses.note(name);
    }

    /// Renames the file, so that an invalidation holds even if the process is killed the moment after. The deletion that
    /// follows finds it in the object's family.
    fn hide(&self, name: &str) {
        let _ = std::fs::rename(self.path(name), self.path(&format!("{name}.gone")));
    }

    fn family<'a>(&'a self, name: &'a str) -> Operation<'a, Vec<String>> {
        Box::pin(self.family(name))
    }

    fn was_evicted<'a>(&'a self, name: &'a str) -> Operation<'a, bool> {
        Box::pin(self.was_evicted(name))
    }

    fn space(&self) -> Option<Space> {
        let (used, capacity, largest) = (self.capacity.used(), self.capacity.bytes(), self.capacity.largest());
        Some(Space { used, capacity, largest })
    }

    fn evict(self: Arc<Self>, context: EvictionContext) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(evict::evict(self, context))
    }
}

/// Runs `work` on a thread that may wait for the disk. One call for a whole operation: each hand-over to another thread
/// costs as much as a system call.
async fn on_a_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| fault(name, error)),
        Err(_) => Err(StoreError::given_up(name)),
    }
}

/// Turns an error of the file system into one of the store.
fn fault(name: &str, error: io::Error) -> StoreError {
    use io::ErrorKind as Io;
    let kind = match error.kind() {
        Io::NotFound => StoreErrorKind::Absent,
        Io::StorageFull | Io::QuotaExceeded => StoreErrorKind::Full,
        Io::PermissionDenied | Io::ReadOnlyFilesystem => StoreErrorKind::Refused,
        Io::FileTooLarge | Io::InvalidFilename => StoreErrorKind::Unacceptable,
        // Something else is in the place of an object or a directory of ours.
        Io::IsADirectory | Io::NotADirectory | Io::DirectoryNotEmpty => StoreErrorKind::Corrupt,
        // A network file system whose server is gone.
        Io::TimedOut | Io::NotConnected | Io::HostUnreachable | Io::NetworkUnreachable | Io::StaleNetworkFileHandle => {
            StoreErrorKind::Unavailable
        }
        _ => StoreErrorKind::Overloaded,
    };
    StoreError::caused_by(kind, format!("{name}: {error}"), error)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}
