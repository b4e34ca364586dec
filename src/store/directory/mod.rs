//! A directory as the place of the durable tier.
//!
//! * A file is written aside, synced, and renamed into its place: a reader sees a whole object or none, also after
//!   `kill -9` or a loss of power. Packs alone grow in their place ([`packs`]).
//! * Calls that wait for the disk run on threads for that, one call for a whole operation. What the page cache has of a
//!   pack is read without one.
//! * Reads and listings have a deadline ([`threads`]). What is no file, such as a FIFO or a device, is not read.

mod packs;
mod read;
mod threads;
mod walk;
mod write;

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bytes::Bytes;
use rustix::io::Errno;
use tracing::warn;

use self::packs::OpenFiles;
use self::read::NotAFile;
use self::threads::Threads;
use self::write::Owner;
use super::error::{StoreError, StoreErrorKind};
use super::names::ObjectNames;
use super::place::{GrowingPack, ObjectReader, ObjectWriter, Operation, PROBE, Page, Place};
use crate::rfc9111::timestamp::Timestamp;

/// A directory of objects.
#[derive(Debug)]
pub(crate) struct Directory {
    root: PathBuf,
    /// The owner of what is made in it.
    owner: OnceLock<Owner>,
    files: OpenFiles,
    threads: Threads,
}

impl Directory {
    /// The directory `root`, which [`Place::check`] makes. Waits for the disk on threads of the current runtime.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, owner: OnceLock::new(), files: OpenFiles::default(), threads: Threads::of_current_runtime() }
    }

    /// Returns the owner of what is made in the directory.
    fn owner(&self) -> Owner {
        *self.owner.get_or_init(|| Owner::of(&self.root))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes the directory and writes the probe. A full disk is no failure: what it holds can be read.
    async fn check(&self, probe: &str) -> Result<(), StoreError> {
        let root = self.root.clone();
        let made = self.threads.run("the directory", move || write::make_directory(&root, Owner::default())).await;
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
                let root = self.root.display();
                let text = if self.root.metadata().is_ok_and(|found| !found.is_dir()) {
                    format!("{root} is a file, not a directory; name a directory in durable.url")
                } else {
                    format!("the directory {root} can't be written to ({error}); make it writable, or set durable.url")
                };
                Err(StoreError::caused_by(error.kind(), text, error))
            }
            Ok(()) => Ok(()),
        }
    }

    async fn find_cache(&self, base: &str) -> Result<(), StoreError> {
        let (root, below) = (self.root.clone(), self.path(base));
        let found = self.threads.run("the directory", move || find(&root, &below)).await;
        let why = match found {
            Ok(Found::Cache) => return Ok(()),
            Ok(Found::NoCache) => format!("is not one that Larder keeps objects in: it has no directory {base}"),
            Ok(Found::NoDirectory) => "is a file, not a directory".to_owned(),
            Ok(Found::Nothing) => "does not exist".to_owned(),
            Err(error) if error.kind() == StoreErrorKind::Refused => {
                let text = format!(
                    "the directory {} can't be read: permission denied; run this as the user that Larder runs as",
                    self.root.display()
                );
                return Err(StoreError::caused_by(StoreErrorKind::Refused, text, error));
            }
            Err(error) => format!("can't be looked at ({error})"),
        };
        let text = format!(
            "the directory {} {why}; check durable.url and cache.key_prefix, which have to be those that Larder runs with",
            self.root.display()
        );
        Err(StoreError::new(StoreErrorKind::Absent, text))
    }
}

/// The finding at the place of a cache.
enum Found {
    Cache,
    /// A directory without a cache.
    NoCache,
    /// A file.
    NoDirectory,
    Nothing,
}

/// Looks for a cache: the directory `root`, with the directory `below` in it, which can be listed.
fn find(root: &Path, below: &Path) -> io::Result<Found> {
    match root.metadata() {
        Err(error) if is_gone(&error) => return Ok(Found::Nothing),
        Err(error) => return Err(error),
        Ok(found) if !found.is_dir() => return Ok(Found::NoDirectory),
        Ok(_) => {}
    }
    match std::fs::read_dir(below) {
        Ok(_) => Ok(Found::Cache),
        Err(error) if is_gone(&error) || error.kind() == io::ErrorKind::NotADirectory => Ok(Found::NoCache),
        Err(error) => Err(error),
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

    fn space(&self) -> Operation<'_, Option<u64>> {
        let root = self.root.clone();
        Box::pin(self.threads.run("the directory", move || {
            let found = rustix::fs::statvfs(&root)?;
            Ok(Some(found.f_bavail.saturating_mul(found.f_frsize)))
        }))
    }

    fn read_pack<'a>(&'a self, name: &'a str, first: u64, len: u32) -> Operation<'a, Bytes> {
        Box::pin(self.read_pack(name, first, len))
    }

    fn read_at_hand(&self, name: &str, first: u64, len: u32) -> Option<Result<Bytes, StoreError>> {
        self.read_at_hand(name, first, len)
    }

    fn begin_pack<'a>(&'a self, name: &'a str) -> Operation<'a, Box<dyn GrowingPack>> {
        Box::pin(self.begin_pack(name))
    }

    fn take_over<'a>(&'a self, name: &'a str) -> Operation<'a, Option<Box<dyn GrowingPack>>> {
        Box::pin(self.take_over(name))
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
        _ if is_not_a_file(&error) => StoreErrorKind::Corrupt,
        _ => StoreErrorKind::Overloaded,
    };
    StoreError::caused_by(kind, format!("{name}: {error}"), error)
}

/// Returns whether something that is no file was opened: a socket and a device without a driver have no other error, and a
/// link that leads to itself leads to none.
fn is_not_a_file(error: &io::Error) -> bool {
    let no_file = [Errno::LOOP, Errno::NXIO, Errno::NODEV];
    error.get_ref().is_some_and(<dyn Error + Send + Sync>::is::<NotAFile>)
        || no_file.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}
