//! Writing and deleting the files of a directory: aside first, then renamed into their place.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown, fchown};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::fs;
use tokio::io::AsyncWriteExt;

use super::{Directory, Threads, fault, is_gone};
use crate::store::error::StoreError;
use crate::store::place::{ObjectWriter, Operation};

/// Files and directories that are made here are for their owner alone.
pub(super) const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// The user and group that get what root makes: those of the directory, as whom Larder runs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Owner(Option<(u32, u32)>);

impl Owner {
    /// Returns the owner of `root`, if this process is root and that is somebody else.
    pub(super) fn of(root: &Path) -> Self {
        let found = std::fs::metadata(root).ok().filter(|found| found.uid() != 0);
        Self(found.filter(|_| rustix::process::geteuid().is_root()).map(|found| (found.uid(), found.gid())))
    }

    fn gets_file(self, file: &File) -> io::Result<()> {
        self.0.map_or(Ok(()), |(user, group)| fchown(file, Some(user), Some(group)))
    }

    fn gets_directory(self, path: &Path) -> io::Result<()> {
        self.0.map_or(Ok(()), |(user, group)| chown(path, Some(user), Some(group)))
    }
}

/// Bytes of a streamed file that are written between two syncs, so that the last one does not take long.
const SYNC_AFTER: usize = 64 << 20;

impl Directory {
    pub(super) async fn put(&self, name: &str, pieces: &[Bytes]) -> Result<(), StoreError> {
        let target = self.path(name);
        let directory = target.parent().unwrap_or(&self.root).to_owned();
        let (pieces, owner) = (pieces.to_vec(), self.owner());
        self.threads
            .run(name, move || {
                let aside = name_aside(&directory);
                let written = write_aside(&directory, &aside, &pieces, owner)
                    .and_then(|()| put_in_place(&aside, &target, &directory));
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
        let (into, path, owner) = (directory.clone(), aside.clone(), self.owner());
        let file = self.threads.run(name, move || create(&into, &path, owner)).await?;
        Ok(Box::new(FileUpload {
            file: file.into(),
            aside: Some(aside),
            target,
            directory,
            unsynced: 0,
            name: name.to_owned(),
            threads: self.threads.clone(),
        }))
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name);
        self.files.forget(name);
        self.threads.run(name, move || remove(&path)).await
    }
}

/// Removes a file, and the two directories above it if that leaves them empty.
fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if !is_gone(&error) => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut directories = path.ancestors().skip(1).take(2);
    while directories.next().is_some_and(|directory| std::fs::remove_dir(directory).is_ok()) {}
    Ok(())
}

/// Returns a name for a file that is being written into `directory`.
fn name_aside(directory: &Path) -> PathBuf {
    directory.join(format!(".{:016x}.tmp", fastrand::u64(..)))
}

/// Makes a directory, and those that it is in.
pub(super) fn make_directory(path: &Path, owner: Owner) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|path| !path.exists()).collect();
    std::fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)?;
    missing.into_iter().try_for_each(|path| owner.gets_directory(path))
}

/// Creates a file, and its directory. Tries several times: a deletion may remove the directory while it is empty.
pub(super) fn create(directory: &Path, path: &Path, owner: Owner) -> io::Result<File> {
    let open = || std::fs::OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path);
    let mut opened = open();
    for _ in 0..8 {
        if !opened.as_ref().is_err_and(is_gone) {
            break;
        }
        make_directory(directory, owner)?;
        opened = open();
    }
    let file = opened?;
    owner.gets_file(&file)?;
    Ok(file)
}

fn write_aside(directory: &Path, aside: &Path, pieces: &[Bytes], owner: Owner) -> io::Result<()> {
    let mut file = create(directory, aside, owner)?;
    for piece in pieces {
        file.write_all(piece)?;
    }
    file.sync_all()
}

/// Renames a written file into its place, and syncs the directory, so that it survives a loss of power.
fn put_in_place(aside: &Path, target: &Path, directory: &Path) -> io::Result<()> {
    std::fs::rename(aside, target)?;
    File::open(directory)?.sync_all()
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
    threads: Threads,
}

impl ObjectWriter for FileUpload {
    fn write(&mut self, piece: Bytes) -> Operation<'_, ()> {
        Box::pin(async move { self.try_write(&piece).await.map_err(|error| fault(&self.name, error)) })
    }

    fn finish(mut self: Box<Self>) -> Operation<'static, ()> {
        Box::pin(async move {
            self.try_sync().await.map_err(|error| fault(&self.name, error))?;
            let Some(aside) = self.aside.clone() else { return Ok(()) };
            let (target, directory) = (self.target.clone(), self.directory.clone());
            self.threads.run(&self.name, move || put_in_place(&aside, &target, &directory)).await?;
            self.aside = None;
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
