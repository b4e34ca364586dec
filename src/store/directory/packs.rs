//! Packs that grow in their place, and reads of packs.
//!
//! * A pack that grows has a name of its own (`.open`), and its writer holds a lock on the file (`flock`). The kernel
//!   releases the lock when the process ends, however it ends. Whoever gets it then may complete the pack.
//! * An append is in the page cache when it returns: it survives the process, and not a loss of power. Sealing syncs.
//! * Files that are read stay open, at most [`MAX_OPEN`] of them: a name that changes or goes meanwhile does no harm.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::read::{DO_NOT_WAIT, only_a_file, open_file, read_at};
use super::write::{FILE_MODE, create};
use super::{Directory, Threads, fault, is_gone};
use crate::store::error::StoreError;
use crate::store::place::{GrowingPack, Operation};

/// The most files of packs that are kept open for reading.
const MAX_OPEN: usize = 512;

/// The most bytes that are read in a request's own poll.
const MOST_AT_HAND: u32 = 64 << 10;

/// The files of packs that are open for reading, by name.
#[derive(Debug, Default)]
pub(super) struct OpenFiles {
    /// Guarded by its lock: the files, and the number of their last use.
    open: Mutex<(HashMap<String, (Arc<File>, u64)>, u64)>,
}

impl OpenFiles {
    fn get(&self, name: &str) -> Option<Arc<File>> {
        let mut open = self.open.lock();
        let (files, uses) = &mut *open;
        let (file, last) = files.get_mut(name)?;
        *uses += 1;
        *last = *uses;
        Some(Arc::clone(file))
    }

    fn keep(&self, name: &str, file: &Arc<File>) {
        let mut open = self.open.lock();
        let (files, uses) = &mut *open;
        *uses += 1;
        files.insert(name.to_owned(), (Arc::clone(file), *uses));
        if files.len() > MAX_OPEN
            && let Some(oldest) = files.iter().min_by_key(|(_, (_, last))| *last).map(|(name, _)| name.clone())
        {
            files.remove(&oldest);
        }
    }

    /// Closes a file whose pack is deleted.
    pub(super) fn forget(&self, name: &str) {
        self.open.lock().0.remove(name);
    }
}

/// Returns the name that a pack has while it grows.
fn open_name(name: &str) -> String {
    match name.strip_suffix(".pack") {
        Some(stem) => format!("{stem}.open"),
        None => name.to_owned(),
    }
}

impl Directory {
    /// Opens a pack, by its complete name or by that which it has while it grows.
    fn open_pack(root: &Path, name: &str) -> io::Result<File> {
        let open = |name: &str| open_file(&root.join(name)).map(|(file, _)| file);
        match open(name) {
            // It may be completed between the two attempts.
            Err(error) if is_gone(&error) => match open(&open_name(name)) {
                Err(error) if is_gone(&error) => open(name),
                opened => opened,
            },
            opened => opened,
        }
    }

    pub(super) async fn read_pack(&self, name: &str, first: u64, len: u32) -> Result<Bytes, StoreError> {
        let (known, root, owned) = (self.files.get(name), self.root.clone(), name.to_owned());
        let (file, bytes) = self
            .threads
            .read(name, move || {
                let file = match known {
                    Some(file) => file,
                    None => Arc::new(Self::open_pack(&root, &owned)?),
                };
                let bytes = read_at(&file, first, usize::try_from(len).unwrap_or(0))?;
                Ok((file, bytes))
            })
            .await?;
        self.files.keep(name, &file);
        Ok(bytes)
    }

    /// Reads what the page cache has. Returns `None` if it does not have all of it, or the file is not open yet.
    pub(super) fn read_at_hand(&self, name: &str, first: u64, len: u32) -> Option<Result<Bytes, StoreError>> {
        if len > MOST_AT_HAND {
            return None;
        }
        let file = self.files.get(name)?;
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        let read = preadv2(file.as_fd(), &mut [io::IoSliceMut::new(&mut bytes)], first, ReadWriteFlags::NOWAIT);
        match read {
            // A short read may be the end of the pack, or of what the page cache has.
            Ok(read) if read == bytes.len() => Some(Ok(Bytes::from(bytes))),
            Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR | Errno::NOSYS) => None,
            Err(error) => Some(Err(fault(name, error.into()))),
        }
    }

    pub(super) async fn begin_pack(&self, name: &str) -> Result<Box<dyn GrowingPack>, StoreError> {
        let (complete, path) = (self.path(name), self.path(&open_name(name)));
        let directory = path.parent().unwrap_or(&self.root).to_owned();
        let (owned, threads, owner) = (name.to_owned(), self.threads.clone(), self.owner());
        let pack = self
            .threads
            .run(name, move || {
                let file = create(&directory, &path, owner)?;
                flock(&file, FlockOperation::NonBlockingLockExclusive)?;
                Ok(PackFile { file: Arc::new(file), len: 0, path, complete, directory, name: owned, threads })
            })
            .await?;
        Ok(Box::new(pack))
    }

    pub(super) async fn take_over(&self, name: &str) -> Result<Option<Box<dyn GrowingPack>>, StoreError> {
        let (complete, path) = (self.path(name), self.path(&open_name(name)));
        let directory = path.parent().unwrap_or(&self.root).to_owned();
        let (owned, threads) = (name.to_owned(), self.threads.clone());
        let taken = self.threads.run(name, move || {
            let opened = File::options().read(true).write(true).mode(FILE_MODE).custom_flags(DO_NOT_WAIT).open(&path);
            let (file, len) = match opened.and_then(only_a_file) {
                Ok(file) => file,
                Err(error) if is_gone(&error) => return Ok(None),
                Err(error) => return Err(error),
            };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            // Its writer may have completed it before the lock was free.
            if !path.try_exists()? {
                return Ok(None);
            }
            // Its writer may have appended to it meanwhile.
            let len = file.metadata()?.len().max(len);
            Ok(Some(PackFile { file: Arc::new(file), len, path, complete, directory, name: owned, threads }))
        });
        Ok(taken.await?.map(|pack| Box::new(pack) as Box<dyn GrowingPack>))
    }
}

/// A pack that grows. Its lock goes with the file.
#[derive(Debug)]
struct PackFile {
    file: Arc<File>,
    len: u64,
    path: PathBuf,
    complete: PathBuf,
    directory: PathBuf,
    name: String,
    threads: Threads,
}

impl GrowingPack for PackFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn append(&mut self, bytes: Bytes) -> Operation<'_, ()> {
        Box::pin(async move {
            let (file, at, len) = (Arc::clone(&self.file), self.len, bytes.len() as u64);
            let written = self.threads.run(&self.name, move || {
                file.write_all_at(&bytes, at).inspect_err(|_| {
                    // What was written of it would stand between this entry and the next one.
                    let _ = file.set_len(at);
                })
            });
            written.await?;
            self.len += len;
            Ok(())
        })
    }

    fn truncate(&mut self, len: u64) -> Operation<'_, ()> {
        Box::pin(async move {
            let file = Arc::clone(&self.file);
            self.threads.run(&self.name, move || file.set_len(len)).await?;
            self.len = len;
            Ok(())
        })
    }

    fn seal(self: Box<Self>, footer: Bytes) -> Operation<'static, ()> {
        Box::pin(async move {
            let Self { file, len, path, complete, directory, name, threads } = *self;
            threads
                .run(&name, move || {
                    // A failed append may have left something.
                    file.set_len(len)?;
                    file.write_all_at(&footer, len)?;
                    (&*file).flush()?;
                    file.sync_all()?;
                    std::fs::rename(&path, &complete)?;
                    File::open(&directory)?.sync_all()
                })
                .await
        })
    }
}
