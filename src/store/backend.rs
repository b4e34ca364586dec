//! Where durable objects live: the few operations that the durable tier needs, on each of the
//! places that can do them.

use std::fmt;

use bytes::Bytes;

use super::file::{FilePieces, FileStore, FileUpload};
use super::s3::{S3Pieces, S3Store, S3Upload};

/// A place for durable objects. Names are relative, with slashes, and never empty.
#[derive(Debug)]
pub enum Backend {
    /// A directory.
    File(FileStore),
    /// A bucket.
    S3(S3Store),
}

/// An operation failed. The caller counts it and goes on without the durable tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendError(pub String);

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
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
    /// Whether the place is there and may be used.
    pub async fn check(&self) -> Result<(), CheckFailure> {
        match self {
            Self::File(store) => store.check().await,
            Self::S3(store) => store.check().await,
        }
    }

    /// The object `name`, whole; `None` if there is none. One larger than `limit` is an error.
    pub async fn get(&self, name: &str, limit: u64) -> Result<Option<Bytes>, BackendError> {
        match self {
            Self::File(store) => store.get(name, limit).await,
            Self::S3(store) => store.get(name, limit).await,
        }
    }

    /// The object `name`, piece by piece; `None` if there is none. One that has not `len` bytes
    /// is an error.
    pub async fn read(&self, name: &str, len: u64) -> Result<Option<Pieces>, BackendError> {
        match self {
            Self::File(store) => store.read(name, len).await,
            Self::S3(store) => store.read(name, len).await,
        }
    }

    /// The bytes of the object `name` from `first` up to `end`, piece by piece; `None` if there is no such
    /// object. One that has not so many is an error.
    pub async fn read_range(&self, name: &str, first: u64, end: u64) -> Result<Option<Pieces>, BackendError> {
        match self {
            Self::File(store) => store.read_range(name, first, end).await,
            Self::S3(store) => store.read_range(name, first, end).await,
        }
    }

    /// Begins to write the object `name` piece by piece: it is there once [`Upload::finish`] says so.
    pub async fn begin(&self, name: &str) -> Result<Upload, BackendError> {
        match self {
            Self::File(store) => store.begin(name).await.map(Upload::File),
            Self::S3(store) => Ok(Upload::S3(store.begin(name))),
        }
    }

    /// Writes the object `name`: whole or not at all.
    pub async fn put(&self, name: &str, pieces: &[Bytes]) -> Result<(), BackendError> {
        match self {
            Self::File(store) => store.put(name, pieces).await,
            Self::S3(store) => store.put(name, pieces).await,
        }
    }

    /// Deletes the object `name`, if there is one.
    pub async fn delete(&self, name: &str) -> Result<(), BackendError> {
        match self {
            Self::File(store) => store.delete(name).await,
            Self::S3(store) => store.delete(name).await,
        }
    }
}

/// An object that is written piece by piece. Dropped before it is finished, it leaves nothing behind.
#[derive(Debug)]
pub enum Upload {
    /// To a directory.
    File(FileUpload),
    /// To a bucket.
    S3(S3Upload),
}

impl Upload {
    /// Appends a piece. Returns when it may be followed by another: only a few MiB are held.
    pub async fn write(&mut self, piece: Bytes) -> Result<(), BackendError> {
        match self {
            Self::File(upload) => upload.write(&piece).await,
            Self::S3(upload) => upload.write(&piece).await,
        }
    }

    /// Puts the object in its place.
    pub async fn finish(self) -> Result<(), BackendError> {
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
}

impl Pieces {
    /// The next piece, of any size; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BackendError> {
        match self {
            Self::File(pieces) => pieces.next().await,
            Self::S3(pieces) => pieces.next().await,
        }
    }
}
