//! The place of the durable tier: a directory, a bucket, or in tests a simulated one of either.
//!
//! * Names are relative, with slashes between their parts, and never empty.
//! * An object is written whole or not at all. Its name leads to it only once all of it is written.
//! * No operation holds a whole body but [`Place::get`] and [`Place::put`]: bodies are read and written in pieces.

use std::fmt;
use std::pin::Pin;

use bytes::Bytes;

use super::error::StoreError;
use super::names::ObjectNames;
use crate::rfc9111::timestamp::Timestamp;

/// Content of the probe, the object that is written to find out whether the place takes writes.
pub(super) const PROBE: &[u8] = b"Larder writes this to find out whether it may.\n";

/// An operation of a place under way.
pub(crate) type Operation<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Holds the objects of the durable tier.
pub(crate) trait Place: fmt::Debug + Send + Sync {
    /// Checks that the place may be used: lists, writes the probe, and reads it. The probe stays.
    fn check<'a>(&'a self, names: &'a ObjectNames) -> Operation<'a, ()>;

    /// Checks that the place holds a cache below `root`. Writes nothing.
    fn find_cache<'a>(&'a self, root: &'a str) -> Operation<'a, ()>;

    /// Reads the object `name` whole. An object of more than `limit` bytes is corrupt.
    fn get<'a>(&'a self, name: &'a str, limit: u64) -> Operation<'a, Bytes>;

    /// Opens the object `name` to read it in pieces. An object that does not have `len` bytes is corrupt.
    fn read<'a>(&'a self, name: &'a str, len: u64) -> Operation<'a, Box<dyn ObjectReader>>;

    /// Opens the object `name` to read its bytes from `first` up to `end` in pieces. An object without those is corrupt.
    fn read_range<'a>(&'a self, name: &'a str, first: u64, end: u64) -> Operation<'a, Box<dyn ObjectReader>>;

    /// Lists the objects whose names begin with `prefix`, which ends in a slash, and come after `after`: one page.
    fn list<'a>(&'a self, prefix: &'a str, after: &'a str) -> Operation<'a, Page>;

    /// Writes the object `name`, which is the concatenation of `pieces`.
    fn put<'a>(&'a self, name: &'a str, pieces: &'a [Bytes]) -> Operation<'a, ()>;

    /// Begins to write the object `name` in pieces. [`ObjectWriter::finish`] puts it in its place.
    fn begin<'a>(&'a self, name: &'a str) -> Operation<'a, Box<dyn ObjectWriter>>;

    /// Deletes the object `name`, if there is one.
    fn delete<'a>(&'a self, name: &'a str) -> Operation<'a, ()>;

    /// Removes what interrupted writes below `root` left before `before`, unless `is_dry`. Returns their number.
    fn remove_unfinished<'a>(&'a self, root: &'a str, before: Timestamp, is_dry: bool) -> Operation<'a, u64>;

    /// Returns whether the place is on this machine. Requests to it are quick and free, so that listings, reads before
    /// writes, and searches for what belongs together are affordable.
    fn is_local(&self) -> bool {
        false
    }

    /// Returns by how many milliseconds the clock of the place is ahead of this machine's.
    fn clock_offset(&self) -> i64 {
        0
    }

    /// Returns the bytes that may still be written; `None` where there is no bound.
    fn space(&self) -> Operation<'_, Option<u64>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Prepares for `threads` threads that read objects, each of which calls [`super::s3::use_reader`].
    fn prepare(&self, _threads: usize) {}

    /// Reads at most `len` bytes of a pack from `first` on; fewer at the pack's end. `name` is the pack's complete name, also
    /// while it grows.
    fn read_pack<'a>(&'a self, name: &'a str, first: u64, len: u32) -> Operation<'a, Bytes>;

    /// Reads as [`Place::read_pack`] does, if that is possible without waiting; otherwise returns `None`.
    fn read_at_hand(&self, _name: &str, _first: u64, _len: u32) -> Option<Result<Bytes, StoreError>> {
        None
    }

    /// Begins a pack that grows by appends. `name` is its complete name. Only for a local place.
    fn begin_pack<'a>(&'a self, name: &'a str) -> Operation<'a, Box<dyn GrowingPack>>;

    /// Takes over a pack that still grows and whose writer is gone, to complete it. `None` while its writer has it, or
    /// another process was faster. Only for a local place.
    fn take_over<'a>(&'a self, name: &'a str) -> Operation<'a, Option<Box<dyn GrowingPack>>>;
}

impl dyn Place {
    /// Returns whether a listing that begins now shows the object `name`. A read may say that there is no such object
    /// because the place hides it.
    pub(crate) async fn is_listed(&self, name: &str) -> Result<bool, StoreError> {
        let directory = &name[..name.rfind('/').map_or(0, |slash| slash + 1)];
        let mut before = name.to_owned();
        before.pop();
        // No other name lies between the two but one that goes on with a byte below the last one of this.
        let page = self.list(directory, &before).await?;
        Ok(page.listed.iter().any(|listed| listed.name == name))
    }

    /// Lists all pages of what [`Place::list`] lists.
    pub(crate) async fn list_all(&self, prefix: &str, after: &str) -> Result<Vec<Listed>, StoreError> {
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
}

/// An object that is read in pieces.
pub(crate) trait ObjectReader: fmt::Debug + Send {
    /// Reads the next piece, of any size; `None` at the end.
    fn next(&mut self) -> Operation<'_, Option<Bytes>>;
}

/// An object that is written in pieces. Dropped before it is finished, it leaves nothing behind.
pub(crate) trait ObjectWriter: Send {
    /// Appends a piece. Returns when the next one may follow: few MiB are held.
    fn write(&mut self, piece: Bytes) -> Operation<'_, ()>;

    /// Puts the object in its place.
    fn finish(self: Box<Self>) -> Operation<'static, ()>;
}

/// A pack that grows by appends. Its writer alone appends, and holds a lock on it until it is dropped.
pub(crate) trait GrowingPack: fmt::Debug + Send {
    /// Returns the pack's length.
    fn len(&self) -> u64;

    /// Appends. Once this returns, the bytes survive the end of the process. After an error the pack is as long as before,
    /// or takes no more.
    fn append(&mut self, bytes: Bytes) -> Operation<'_, ()>;

    /// Cuts the pack off at `len` bytes.
    fn truncate(&mut self, len: u64) -> Operation<'_, ()>;

    /// Appends the footer, syncs, and gives the pack its complete name.
    fn seal(self: Box<Self>, footer: Bytes) -> Operation<'static, ()>;
}

/// One object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// The time at which it was written, by the clock of the place.
    pub modified: Timestamp,
}

/// One page of a listing, in the order of the names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Page {
    /// Its objects.
    pub listed: Vec<Listed>,
    /// True if no page follows.
    pub is_last: bool,
}
