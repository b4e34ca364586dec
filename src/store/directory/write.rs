//! Writing and deleting the files of a directory: aside first, then renamed into their place.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::fs;
use tokio::io::AsyncWriteExt;

use super::capacity::{Capacity, FileClass, NoSpace, OnShortage, Reservation};
use super::{Directory, fault, is_gone, on_a_thread, stripe};
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::place::{ObjectWriter, Operation};

/// Files and directories that are made here are for their owner alone.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// The most attempts at a write to a full disk, each after an eviction.
const ATTEMPTS: u32 = 3;

/// Bytes of a streamed file that are written between two syncs, so that the last one does not take long.
const SYNC_AFTER: usize = 64 << 20;

impl Directory {
    pub(super) async fn put(&self, name: &str, pieces: &[Bytes]) -> Result<(), StoreError> {
        let len = pieces.iter().map(|piece| piece.len() as u64).sum();
        let reserved = self.reserve(name, len).await?;
        let mut attempt = 1;
        loop {
            match self.try_put(name, pieces).await {
                Ok(replaced) => {
                    reserved.settle(replaced);
                    return Ok(());
                }
                Err(error)
                    if error.kind() == StoreErrorKind::Full && attempt < ATTEMPTS && self.capacity.lower(len).await =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn reserve(&self, name: &str, len: u64) -> Result<Reservation, StoreError> {
        let class = self.class(name);
        let on_shortage = if class == FileClass::Journal { OnShortage::Exceed } else { OnShortage::Wait };
        self.capacity.reserve(class, len, on_shortage).await.map_err(|NoSpace| no_space(name))
    }

    /// Writes an object. Returns the length of the one that it replaced.
    async fn try_put(&self, name: &str, pieces: &[Bytes]) -> Result<Option<u64>, StoreError> {
        let target = self.path(name);
        let directory = target.parent().unwrap_or(&self.root).to_owned();
        let (pieces, renames) = (pieces.to_vec(), Arc::clone(&self.renames));
        on_a_thread(name, move || {
            let aside = name_aside(&directory);
            let written = write_aside(&directory, &aside, &pieces)
                .and_then(|()| put_in_place(&aside, &target, &directory, &renames[stripe(&target)]));
            if written.is_err() {
                let _ = std::fs::remove_file(&aside);
            }
            written
        })
        .await
    }

    pub(super) async fn begin(&self, name: &str) -> Result<Box<dyn ObjectWriter>, StoreError> {
        let target = self.path(name);
        let directory = target.parent().unwrap_or(&self.root).to_owned();
        let aside = name_aside(&directory);
        let (into, path) = (directory.clone(), aside.clone());
        let reserved = self.reserve(name, 0).await?;
        let file = on_a_thread(name, move || create(&into, &path)).await?;
        Ok(Box::new(FileUpload {
            file: file.into(),
            aside: Some(aside),
            target,
            directory,
            unsynced: 0,
            name: name.to_owned(),
            reserved: Some(reserved),
        }))
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), StoreError> {
        let (path, class, capacity) = (self.path(name), self.class(name), Arc::clone(&self.capacity));
        on_a_thread(name, move || remove(&path, class, &capacity).map(|_| ())).await
    }
}

/// Removes a file, and the two directories above it if that leaves them empty. Returns the file's length, or `None` if
/// there was none.
pub(super) fn remove(path: &Path, class: FileClass, capacity: &Capacity) -> io::Result<Option<u64>> {
    let len = match std::fs::symlink_metadata(path).and_then(|found| std::fs::remove_file(path).map(|()| found.len())) {
        Ok(len) => len,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    capacity.removed(class, len);
    if class != FileClass::Journal {
        let mut directories = path.ancestors().skip(1).take(2);
        while directories.next().is_some_and(|directory| std::fs::remove_dir(directory).is_ok()) {}
    }
    Ok(Some(len))
}

/// Returns a name for a file that is being written into `directory`.
fn name_aside(directory: &Path) -> PathBuf {
    directory.join(format!(".{:016x}.tmp", fastrand::u64(..)))
}

/// Makes a directory, and those that it is in.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)
}

/// Creates a file, and its directory. Tries several times: a deletion may remove the directory while it is empty.
fn create(directory: &Path, path: &Path) -> io::Result<std::fs::File> {
    let open = || std::fs::OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path);
    let mut opened = open();
    for _ in 0..8 {
        match opened {
            Err(error) if is_gone(&error) => {
                make_directory(directory)?;
                opened = open();
            }
            opened => return opened,
        }
    }
    opened
}

fn write_aside(directory: &Path, aside: &Path, pieces: &[Bytes]) -> io::Result<()> {
    let mut file = create(directory, aside)?;
    for piece in pieces {
        file.write_all(piece)?;
    }
    file.sync_all()
}

/// Renames a written file into its place, and syncs the directory, so that it survives a loss of power. Returns the length
/// of the file that it replaced.
fn put_in_place(aside: &Path, target: &Path, directory: &Path, renames: &Mutex<()>) -> io::Result<Option<u64>> {
    let replaced = {
        let _renames = renames.lock();
        let replaced = std::fs::symlink_metadata(target).ok().map(|metadata| metadata.len());
        std::fs::rename(aside, target)?;
        replaced
    };
    std::fs::File::open(directory)?.sync_all()?;
    Ok(replaced)
}

fn no_space(name: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Full, format!("{name}: durable.capacity has no room for it"))
}

/// A file that is written aside in pieces.
struct FileUpload {
    file: fs::File,
    /// Path of the unfinished file; taken when it is in its place.
    aside: Option<PathBuf>,
    target: PathBuf,
    directory: PathBuf,
    unsynced: usize,
    name: String,
    /// Taken when the file is in its place.
    reserved: Option<Reservation>,
}

impl ObjectWriter for FileUpload {
    fn write(&mut self, piece: Bytes) -> Operation<'_, ()> {
        Box::pin(async move {
            if let Some(reserved) = &mut self.reserved {
                let taken = reserved.grow(piece.len() as u64, OnShortage::Wait).await;
                taken.map_err(|NoSpace| no_space(&self.name))?;
            }
            let written = self.try_write(&piece).await.map_err(|error| fault(&self.name, error));
            if let (Err(error), Some(reserved)) = (&written, &self.reserved)
                && error.kind() == StoreErrorKind::Full
            {
                // Too late for this file, of which an unknown part is written. The next one finds space.
                reserved.lower_capacity().await;
            }
            written
        })
    }

    fn finish(mut self: Box<Self>) -> Operation<'static, ()> {
        Box::pin(async move {
            self.try_sync().await.map_err(|error| fault(&self.name, error))?;
            let Some(aside) = self.aside.clone() else { return Ok(()) };
            let (target, directory) = (self.target.clone(), self.directory.clone());
            // Takes no shared lock: the name is new, so nothing is in its place and nothing evicts it.
            let placed = on_a_thread(&self.name, move || put_in_place(&aside, &target, &directory, &Mutex::new(())));
            let replaced = placed.await?;
            self.aside = None;
            if let Some(reserved) = self.reserved.take() {
                reserved.settle(replaced);
            }
            Ok(())
        })
    }
}

impl FileUpload {
    async fn try_write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.file.write_all(piece).await?;
        self.unsynced += piece.len();
        if self.unsynced >= SYNC_AFTER {
            self.file.flush().await?;
            self.file.sync_data().await?;
            self.unsynced = 0;
        }
        Ok(())
    }

    /// Flushes first: only then does tokio's file report the error of its last write.
    async fn try_sync(&mut self) -> io::Result<()> {
        self.file.flush().await?;
        self.file.sync_all().await
    }
}

impl Drop for FileUpload {
    fn drop(&mut self) {
        if let Some(aside) = self.aside.take() {
            let _ = std::fs::remove_file(aside);
        }
    }
}
