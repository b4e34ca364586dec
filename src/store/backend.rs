//! Where durable objects live: the few operations that the durable tier needs, on each of the
//! places that can do them.

use std::fmt;

use bytes::Bytes;

use super::file::{FilePieces, FileStore, FileUpload};
use super::s3::{S3Pieces, S3Store, S3Upload};
use crate::rfc9111::timestamp::Timestamp;

/// Content of the object that is written to find out whether that is allowed.
pub(super) const PROBE: &[u8] = b"Larder writes this to find out whether it may.\n";

/// A place for durable objects. Names are relative, with slashes, and never empty.
#[derive(Debug)]
pub(crate) enum Backend {
    /// A directory.
    File(FileStore),
    /// A bucket.
    S3(S3Store),
    /// A place in memory, whose faults a test decides on.
    #[cfg(test)]
    Simulated(std::sync::Arc<super::simulated::Simulated>),
}

/// What a listing says of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// When it was written, by the clock of the place.
    pub modified: Timestamp,
}

/// A part of a listing, in the order of the names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// What it lists.
    pub listed: Vec<Listed>,
    /// Whether there is nothing after it.
    pub is_last: bool,
}

/// Sorts the trouble that an operation met by what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The place does not answer, or not in time: it is tried again.
    Unreachable,
    /// The place answers that it can't, or makes no sense: it is tried again.
    Failing,
    /// The place does not allow it (rights, keys, a lock, a wrong bucket or clock): it is tried again, seldom, until
    /// somebody changes that.
    Refused,
    /// The place does not take this one object, and takes others: it is not tried again.
    Unacceptable,
    /// There is no room, also after what could be evicted was.
    Full,
}

impl Trouble {
    /// Number of kinds.
    pub const COUNT: usize = 5;
}

/// An operation failed. The caller counts it and goes on without the durable tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendError {
    /// Kind of the trouble.
    pub trouble: Trouble,
    text: String,
}

impl BackendError {
    /// One of a kind, with a sentence that names the object.
    pub fn new(trouble: Trouble, text: impl Into<String>) -> Self {
        Self { trouble, text: text.into() }
    }

    /// One that may be over the next time.
    pub fn failing(text: impl Into<String>) -> Self {
        Self::new(Trouble::Failing, text)
    }

    /// The sentence.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for BackendError {}

/// Why the tier can't be used, found at the start: one sentence that says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckFailure(pub String);

impl fmt::Display for CheckFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CheckFailure {}

impl Backend {
    /// Checks that the place is there and may be used, also to write: the object `probe` is written and read again.
    /// It has the same name always, and stays.
    pub(crate) async fn check(&self, root: &str, probe: &str) -> Result<(), CheckFailure> {
        match self {
            Self::File(store) => store.check(probe).await,
            Self::S3(store) => store.check(root, probe).await,
            #[cfg(test)]
            Self::Simulated(store) => store.check().await,
        }
    }

    /// Checks that there is a cache below `root`, for commands of upkeep. Nothing is made or written.
    pub(crate) async fn look_for_cache(&self, root: &str) -> Result<(), CheckFailure> {
        match self {
            Self::File(store) => store.look_for_cache(root).await,
            Self::S3(store) => store.look_for_cache(root).await,
            #[cfg(test)]
            Self::Simulated(store) => store.check().await,
        }
    }

    /// Notes that the object `name` was used, where that decides on what is evicted.
    pub(crate) fn note_use(&self, name: &str) {
        if let Self::File(store) = self {
            store.room().note_use(name);
        }
    }

    /// The object `name`, whole; `None` if there is none. One larger than `limit` is an error.
    pub(crate) async fn get(&self, name: &str, limit: u64) -> Result<Option<Bytes>, BackendError> {
        match self {
            Self::File(store) => store.get(name, limit).await,
            Self::S3(store) => store.get(name, limit).await,
            #[cfg(test)]
            Self::Simulated(store) => store.get(name, limit).await,
        }
    }

    /// The object `name`, piece by piece; `None` if there is none. One that has not `len` bytes
    /// is an error.
    pub(crate) async fn read(&self, name: &str, len: u64) -> Result<Option<Pieces>, BackendError> {
        match self {
            Self::File(store) => store.read(name, len).await,
            Self::S3(store) => store.read(name, len).await,
            #[cfg(test)]
            Self::Simulated(store) => store.read(name, len).await,
        }
    }

    /// The bytes of the object `name` from `first` up to `end`, piece by piece; `None` if there is no such
    /// object. One that has not so many is an error.
    pub(crate) async fn read_range(&self, name: &str, first: u64, end: u64) -> Result<Option<Pieces>, BackendError> {
        match self {
            Self::File(store) => store.read_range(name, first, end).await,
            Self::S3(store) => store.read_range(name, first, end).await,
            #[cfg(test)]
            Self::Simulated(store) => store.read_range(name, first, end).await,
        }
    }

    /// The objects whose names begin with `prefix`, which ends in a slash, and come after `after`: the first
    /// thousand or so.
    pub(crate) async fn list(&self, prefix: &str, after: &str) -> Result<Page, BackendError> {
        match self {
            Self::File(store) => store.list(prefix, after).await,
            Self::S3(store) => store.list(prefix, after).await,
            #[cfg(test)]
            Self::Simulated(store) => store.list(prefix, after).await,
        }
    }

    /// All of them; an error when one page can't be had.
    pub(crate) async fn list_all(&self, prefix: &str, after: &str) -> Result<Vec<Listed>, BackendError> {
        let mut all: Vec<Listed> = Vec::new();
        loop {
            let last = all.last().map_or(after, |listed| &listed.name);
            let page = self.list(prefix, last).await?;
            let is_last = page.is_last || page.listed.is_empty();
            all.extend(page.listed);
            if is_last {
                return Ok(all);
            }
        }
    }

    /// Has so many threads look for objects, each of which calls [`super::s3::look_from`].
    pub(crate) fn prepare(&self, threads: usize) {
        if let Self::S3(store) = self {
            store.prepare(threads);
        }
    }

    /// Whether it is on this machine: quick, and free of charge.
    pub(crate) fn is_near(&self) -> bool {
        matches!(self, Self::File(_))
    }

    /// How far the clock of the place is ahead of this machine's, in milliseconds, as far as it said.
    pub(crate) fn clock_offset(&self) -> i64 {
        match self {
            Self::S3(store) => store.clock_offset(),
            Self::File(_) => 0,
            #[cfg(test)]
            Self::Simulated(_) => 0,
        }
    }

    /// Begins to write the object `name` piece by piece: it is there once [`Upload::finish`] says so.
    pub(crate) async fn begin(&self, name: &str) -> Result<Upload, BackendError> {
        match self {
            Self::File(store) => store.begin(name).await.map(Upload::File),
            Self::S3(store) => Ok(Upload::S3(store.begin(name))),
            #[cfg(test)]
            Self::Simulated(_) => Err(BackendError::failing(format!("{name}: large bodies are not simulated"))),
        }
    }

    /// Writes the object `name`: whole or not at all.
    pub(crate) async fn put(&self, name: &str, pieces: &[Bytes]) -> Result<(), BackendError> {
        match self {
            Self::File(store) => store.put(name, pieces).await,
            Self::S3(store) => store.put(name, pieces).await,
            #[cfg(test)]
            Self::Simulated(store) => store.put(name, pieces).await,
        }
    }

    /// Deletes the object `name`, if there is one.
    pub(crate) async fn delete(&self, name: &str) -> Result<(), BackendError> {
        match self {
            Self::File(store) => store.delete(name).await,
            Self::S3(store) => store.delete(name).await,
            #[cfg(test)]
            Self::Simulated(store) => store.delete(name).await,
        }
    }
}

/// An object that is written piece by piece. Dropped before it is finished, it leaves nothing behind.
#[derive(Debug)]
pub(crate) enum Upload {
    /// To a directory.
    File(FileUpload),
    /// To a bucket.
    S3(S3Upload),
}

impl Upload {
    /// Appends a piece. Returns when it may be followed by another: only a few MiB are held.
    pub(crate) async fn write(&mut self, piece: Bytes) -> Result<(), BackendError> {
        match self {
            Self::File(upload) => upload.write(&piece).await,
            Self::S3(upload) => upload.write(&piece).await,
        }
    }

    /// Puts the object in its place.
    pub(crate) async fn finish(self) -> Result<(), BackendError> {
        match self {
            Self::File(upload) => upload.finish().await,
            Self::S3(upload) => upload.finish().await,
        }
    }
}

/// An object that is read piece by piece.
#[derive(Debug)]
pub enum Pieces {
    /// From a directory.
    File(FilePieces),
    /// From a bucket.
    S3(S3Pieces),
    /// From memory.
    #[cfg(test)]
    Simulated(Option<Bytes>),
}

impl Pieces {
    /// The next piece, of any size; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BackendError> {
        match self {
            Self::File(pieces) => pieces.next().await,
            Self::S3(pieces) => pieces.next().await,
            #[cfg(test)]
            Self::Simulated(pieces) => Ok(pieces.take()),
        }
    }
}
