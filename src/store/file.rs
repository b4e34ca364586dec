//! Durable objects as files: written aside, synced, and renamed into place, so that a reader sees
//! a whole object or none, also after `kill -9`.

use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::{Mutex, MutexGuard};
use tokio::fs;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tracing::warn;
use xxhash_rust::xxh3::xxh3_64;

use super::backend::{BackendError, CheckFailure, Listed, PROBE, Page, Pieces, Trouble};
use super::room::{Content, NoRoom, Patience, Reserved, Room};
use crate::base::Clock;
use crate::rfc9111::timestamp::Timestamp;

/// How much is read from a file at a time.
const PIECE: usize = 256 * 1024;

/// Files and directories that are made here are for their owner alone.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// A file that is read is dated anew when that was last done so long ago: what is evicted goes by that.
const DATED_EVERY: Duration = Duration::from_secs(3600);

/// So often a write to a full disk is tried, each time after something was evicted.
const ATTEMPTS: u32 = 3;

/// A directory of objects.
#[derive(Debug)]
pub(crate) struct FileStore {
    root: PathBuf,
    /// Prefix of all names.
    base: String,
    room: Arc<Room>,
    /// Each for some of the directories that names are spread over: held while a file takes the place of another, or is
    /// evicted.
    still: Arc<[Mutex<()>; STRIPES]>,
}

/// So many files can be put in their places at once.
const STRIPES: usize = 64;

fn stripe(path: &Path) -> usize {
    // Objects and bodies of one key are in directories of the same two names.
    let mut directories = path.ancestors().skip(1).take(2).filter_map(Path::file_name);
    let hash = |name: Option<&std::ffi::OsStr>| name.map_or(0, |name| xxh3_64(name.as_encoded_bytes()));
    let both = hash(directories.next()) ^ hash(directories.next()).rotate_left(1);
    usize::try_from(both % STRIPES as u64).unwrap_or(0)
}

impl FileStore {
    /// A store in `root`, which [`FileStore::check`] makes, of names that begin with `base`. It may take `capacity`
    /// bytes; 0: any number.
    pub(crate) fn new(root: PathBuf, base: &str, capacity: u64) -> Self {
        Self {
            root,
            base: base.to_owned(),
            room: Room::new(capacity),
            still: Arc::new([const { Mutex::new(()) }; STRIPES]),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the account of the space used.
    pub(crate) fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// While it is held, nothing takes the place of this file, nor of any of the same key.
    pub(crate) fn keep_still(&self, path: &Path) -> MutexGuard<'_, ()> {
        self.still[stripe(path)].lock()
    }

    /// Returns whether there is an object `name`.
    pub(crate) async fn has(&self, name: &str) -> Result<bool, BackendError> {
        let path = self.path(name);
        on_a_thread(name, move || path.try_exists()).await
    }

    fn content(&self, name: &str) -> Content {
        match name.strip_prefix(&self.base).map(|rest| rest.get(..2)) {
            Some(Some("o/")) => Content::Object,
            Some(Some("b/")) => Content::Body,
            Some(_) | None => Content::Journal,
        }
    }

    /// Makes the directory and writes the object `probe` in it. A full disk is no failure: what it holds is of use.
    pub(crate) async fn check(&self, probe: &str) -> Result<(), CheckFailure> {
        let root = self.root.clone();
        let made = on_a_thread("the directory", move || make_directory(&root)).await;
        let written = match made {
            Ok(()) => self.put(probe, &[Bytes::from_static(PROBE)]).await,
            failed => failed,
        };
        match written {
            Err(error) if error.trouble == Trouble::Full => {
                warn!("the disk of the directory {} is full: {error}", self.root.display());
                Ok(())
            }
            Err(error) => Err(CheckFailure(format!(
                "the directory {} can't be written to ({error}); make it writable, or set durable.url",
                self.root.display()
            ))),
            Ok(()) => Ok(()),
        }
    }

    /// Checks that a Larder keeps its objects here, below `base`.
    pub(crate) async fn look_for_cache(&self, base: &str) -> Result<(), CheckFailure> {
        let (root, below) = (self.root.clone(), self.path(base));
        let seen = on_a_thread("the directory", move || Ok((root.is_dir(), below.is_dir()))).await;
        let why = match seen {
            Ok((true, true)) => return Ok(()),
            Ok((true, false)) => format!("is not one that Larder keeps objects in: it has no directory {base}"),
            Ok((false, _)) => "does not exist".to_owned(),
            Err(error) => format!("can't be looked at ({error})"),
        };
        Err(CheckFailure(format!(
            "the directory {} {why}; check durable.url and cache.key_prefix, which have to be those that Larder runs with",
            self.root.display()
        )))
    }

    /// The object `name`, if there is one of at most `limit` bytes.
    pub(crate) async fn get(&self, name: &str, limit: u64) -> Result<Option<Bytes>, BackendError> {
        let path = self.path(name);
        let read = on_a_thread(name, move || {
            let mut file = match std::fs::File::open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            let metadata = file.metadata()?;
            let len = metadata.len();
            if len > limit {
                return Ok(Some(Err(len)));
            }
            let now = Clock::system().now();
            let age = metadata.modified().map_or(0, |modified| now.millis_since(modified.into()));
            if Duration::from_millis(u64::try_from(age).unwrap_or(0)) > DATED_EVERY {
                // Else it is evicted earlier than it should be.
                let _ = file.set_modified(now.into());
            }
            let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
            file.read_to_end(&mut bytes)?;
            Ok(Some(Ok(Bytes::from(bytes))))
        });
        let too_large =
            |len| BackendError::failing(format!("{name} has {len} bytes, more than the {limit} of any object of ours"));
        let found = read.await?.transpose().map_err(too_large)?;
        if found.is_some() {
            self.room.note_use(name);
        }
        Ok(found)
    }

    /// The object `name`, piece by piece, if there is one of `len` bytes.
    pub(crate) async fn read(&self, name: &str, len: u64) -> Result<Option<Pieces>, BackendError> {
        let Some((file, actual)) = self.open(name).await? else { return Ok(None) };
        if actual != len {
            return Err(BackendError::failing(format!("{name} has {actual} bytes instead of {len}")));
        }
        Ok(Some(Pieces::File(FilePieces { file, left: len, name: name.to_owned() })))
    }

    /// The bytes of the object `name` from `first` up to `end`, if there is one that has them.
    pub(crate) async fn read_range(&self, name: &str, first: u64, end: u64) -> Result<Option<Pieces>, BackendError> {
        let Some((mut file, actual)) = self.open(name).await? else { return Ok(None) };
        if actual < end {
            return Err(BackendError::failing(format!("{name} has {actual} bytes, less than {end}")));
        }
        file.seek(io::SeekFrom::Start(first)).await.map_err(|error| fault(name, &error))?;
        Ok(Some(Pieces::File(FilePieces { file, left: end.saturating_sub(first), name: name.to_owned() })))
    }

    /// Begins to write the object `name`.
    pub(crate) async fn begin(&self, name: &str) -> Result<FileUpload, BackendError> {
        let target = self.path(name);
        let directory = target.parent().unwrap_or(&self.root).to_owned();
        let aside = name_aside(&directory);
        let (into, path) = (directory.clone(), aside.clone());
        let reserved = self.reserve(name, 0).await?;
        let file = on_a_thread(name, move || create(&into, &path)).await?;
        Ok(FileUpload {
            file: file.into(),
            aside: Some(aside),
            target,
            directory,
            unsynced: 0,
            name: name.to_owned(),
            reserved: Some(reserved),
        })
    }

    async fn reserve(&self, name: &str, len: u64) -> Result<Reserved, BackendError> {
        let content = self.content(name);
        let how = if content == Content::Journal { Patience::AtOnce } else { Patience::Waits };
        self.room.reserve(content, len, how).await.map_err(|NoRoom| no_room(name))
    }

    async fn open(&self, name: &str) -> Result<Option<(fs::File, u64)>, BackendError> {
        match fs::File::open(self.path(name)).await {
            Ok(file) => {
                let len = file.metadata().await.map_err(|error| fault(name, &error))?.len();
                Ok(Some((file, len)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(fault(name, &error)),
        }
    }

    /// Writes the object `name`.
    pub(crate) async fn put(&self, name: &str, pieces: &[Bytes]) -> Result<(), BackendError> {
        let len = pieces.iter().map(|piece| piece.len() as u64).sum();
        let reserved = self.reserve(name, len).await?;
        let mut attempt = 1;
        loop {
            match self.try_put(name, pieces).await {
                Ok(replaced) => {
                    reserved.settle(replaced);
                    return Ok(());
                }
                Err(error) if error.trouble == Trouble::Full && attempt < ATTEMPTS && self.room.press(len).await => {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes an object; the length of the one that it took the place of.
    async fn try_put(&self, name: &str, pieces: &[Bytes]) -> Result<Option<u64>, BackendError> {
        let target = self.path(name);
        let directory = target.parent().unwrap_or(&self.root).to_owned();
        let (pieces, still) = (pieces.to_vec(), Arc::clone(&self.still));
        on_a_thread(name, move || {
            let aside = name_aside(&directory);
            let written = write_aside(&directory, &aside, &pieces)
                .and_then(|()| put_in_place(&aside, &target, &directory, &still[stripe(&target)]));
            if written.is_err() {
                let _ = std::fs::remove_file(&aside);
            }
            written
        })
        .await
    }

    /// Puts the object `name` out of reach at once, if it can: for an invalidation that has to hold
    /// when the process is killed the moment after. An orderly deletion follows, and finds it among
    /// [`FileStore::family`].
    pub(crate) fn put_out_of_reach(&self, name: &str) {
        let _ = std::fs::rename(self.path(name), self.path(&format!("{name}.gone")));
    }

    /// The objects in the directory `prefix` and below it whose names come after `after`.
    pub(crate) async fn list(&self, prefix: &str, after: &str) -> Result<Page, BackendError> {
        let (root, directory, after) = (self.root.clone(), prefix.to_owned(), after.to_owned());
        on_a_thread(prefix, move || {
            let mut listed = Vec::new();
            each_file(&root, &directory, &mut |name, metadata| {
                // But for those that are being written.
                if !name.rsplit('/').next().is_some_and(|file| file.starts_with('.')) {
                    listed.push(Listed { name, modified: modified(metadata) });
                }
            })?;
            listed.retain(|listed| listed.name > after);
            listed.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            Ok(Page { listed, is_last: true })
        })
        .await
    }

    /// Removes files below `prefix` that were begun to be written, or put out of reach, before `before`; how many.
    pub(crate) async fn remove_unfinished(
        &self,
        prefix: &str,
        before: Timestamp,
        is_dry: bool,
    ) -> Result<u64, BackendError> {
        let root = self.path(prefix);
        on_a_thread("unfinished files", move || {
            let mut found = Vec::new();
            walk_unfinished(&root, before, &mut found)?;
            for path in found.iter().filter(|_| !is_dry) {
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
            Ok(found.len() as u64)
        })
        .await
    }

    /// The object `name` and all whose names continue it with a dot.
    pub(crate) async fn family(&self, name: &str) -> Result<Vec<String>, BackendError> {
        let (directory, stem) = name.rsplit_once('/').unwrap_or(("", name));
        let (path, directory, stem) = (self.path(directory), directory.to_owned(), stem.to_owned());
        on_a_thread(name, move || {
            let entries = match std::fs::read_dir(path) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            };
            let mut family = Vec::new();
            for entry in entries {
                let found = entry?.file_name().to_string_lossy().into_owned();
                if found.strip_prefix(&stem).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) {
                    family.push(format!("{directory}/{found}"));
                }
            }
            Ok(family)
        })
        .await
    }

    /// Deletes the object `name`; it is no error if there is none.
    pub(crate) async fn delete(&self, name: &str) -> Result<(), BackendError> {
        let (path, content, room) = (self.path(name), self.content(name), Arc::clone(&self.room));
        on_a_thread(name, move || remove(&path, content, &room).map(|_| ())).await
    }
}

/// Removes a file, and the directories of its own that are empty without it; how long it was. It is no error if it is
/// gone.
pub(super) fn remove(path: &Path, content: Content, room: &Room) -> io::Result<Option<u64>> {
    let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let len = match std::fs::symlink_metadata(path).and_then(|found| std::fs::remove_file(path).map(|()| found.len())) {
        Ok(len) => len,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    room.removed(content, len);
    if content != Content::Journal {
        // Those with something in them stay.
        let mut directories = path.ancestors().skip(1).take(2);
        while directories.next().is_some_and(|directory| std::fs::remove_dir(directory).is_ok()) {}
    }
    Ok(Some(len))
}

/// Returns when a file was written or last used, from its date.
pub(super) fn modified(metadata: &std::fs::Metadata) -> Timestamp {
    metadata.modified().map_or_else(|_| Timestamp::default(), Timestamp::from)
}

/// Calls `with` for each file below `directory`, a name with a slash at its end.
pub(super) fn each_file(
    root: &Path,
    directory: &str,
    with: &mut dyn FnMut(String, &std::fs::Metadata),
) -> io::Result<()> {
    let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let entries = match std::fs::read_dir(root.join(directory)) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let Ok(file_name) = entry.file_name().into_string() else { continue };
        let name = format!("{directory}{file_name}");
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => each_file(root, &format!("{name}/"), with)?,
            Ok(metadata) => with(name, &metadata),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Finds files whose names say that they are not, or no longer, objects.
fn walk_unfinished(directory: &Path, before: Timestamp, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            walk_unfinished(&entry.path(), before, found)?;
            continue;
        }
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_ours = (name.starts_with('.') && name.ends_with(".tmp")) || name.ends_with(".gone");
        if is_ours && metadata.modified().is_ok_and(|modified| Timestamp::from(modified) < before) {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// A name for a file that is being written into `directory`.
fn name_aside(directory: &Path) -> PathBuf {
    directory.join(format!(".{:016x}.tmp", fastrand::u64(..)))
}

/// Makes a directory, and those that it is in.
fn make_directory(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)
}

/// A new file, in a directory that may have to be made.
fn create(directory: &Path, path: &Path) -> io::Result<std::fs::File> {
    let open = || std::fs::OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path);
    let mut opened = open();
    // One that is empty may be removed at any time.
    for _ in 0..8 {
        match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
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

/// Puts a file that is written in its place in `directory`, so that it lasts through a loss of power. The length of
/// the one that was there.
fn put_in_place(aside: &Path, target: &Path, directory: &Path, still: &Mutex<()>) -> io::Result<Option<u64>> {
    let replaced = {
        let _still = still.lock();
        let replaced = std::fs::symlink_metadata(target).ok().map(|metadata| metadata.len());
        std::fs::rename(aside, target)?;
        replaced
    };
    std::fs::File::open(directory)?.sync_all()?;
    Ok(replaced)
}

/// Does all of `work` on one thread that may wait for the disk: to hand each call over by itself costs as much
/// as the calls, and keeps several threads busy.
async fn on_a_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, BackendError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| fault(name, &error)),
        Err(_) => Err(BackendError::failing(format!("{name}: given up, since this process ends"))),
    }
}

fn fault(name: &str, error: &io::Error) -> BackendError {
    use io::ErrorKind::{
        FileTooLarge, InvalidFilename, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
    };
    let trouble = match error.kind() {
        StorageFull | QuotaExceeded => Trouble::Full,
        PermissionDenied | ReadOnlyFilesystem => Trouble::Refused,
        FileTooLarge | InvalidFilename => Trouble::Unacceptable,
        _ => Trouble::Failing,
    };
    BackendError::new(trouble, format!("{name}: {error}"))
}

fn no_room(name: &str) -> BackendError {
    BackendError::new(Trouble::Full, format!("{name}: durable.capacity has no room for it"))
}

/// So many bytes are written between two syncs, so that the last one is not of gigabytes.
const SYNC_AFTER: usize = 64 << 20;

/// A file that is written piece by piece, aside.
#[derive(Debug)]
pub(crate) struct FileUpload {
    file: fs::File,
    /// Taken when it is in its place.
    aside: Option<PathBuf>,
    target: PathBuf,
    directory: PathBuf,
    unsynced: usize,
    name: String,
    /// Taken when it is in its place.
    reserved: Option<Reserved>,
}

impl FileUpload {
    /// Appends a piece.
    pub(crate) async fn write(&mut self, piece: &[u8]) -> Result<(), BackendError> {
        if let Some(reserved) = &mut self.reserved {
            let taken = reserved.grow(piece.len() as u64, Patience::Waits).await;
            taken.map_err(|NoRoom| no_room(&self.name))?;
        }
        let written = self.try_write(piece).await.map_err(|error| fault(&self.name, &error));
        if let (Err(error), Some(reserved)) = (&written, &self.reserved)
            && error.trouble == Trouble::Full
        {
            // Too late for this one, of which nobody knows how much is written; the next one has room.
            reserved.press().await;
        }
        written
    }

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

    /// Puts the file in its place.
    pub(crate) async fn finish(mut self) -> Result<(), BackendError> {
        self.try_sync().await.map_err(|error| fault(&self.name, &error))?;
        let Some(aside) = self.aside.clone() else { return Ok(()) };
        let (target, directory) = (self.target.clone(), self.directory.clone());
        // Its name is new: nothing is in its place, and nothing evicts it yet.
        let placed = on_a_thread(&self.name, move || put_in_place(&aside, &target, &directory, &Mutex::new(())));
        let replaced = placed.await?;
        self.aside = None;
        if let Some(reserved) = self.reserved.take() {
            reserved.settle(replaced);
        }
        Ok(())
    }

    async fn try_sync(&mut self) -> io::Result<()> {
        // What the last write came to is told by the next operation, and not by every one.
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

/// A file, piece by piece.
#[derive(Debug)]
pub struct FilePieces {
    file: fs::File,
    /// The bytes still to be read of it.
    left: u64,
    name: String,
}

impl FilePieces {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BackendError> {
        let want = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE);
        let mut piece = BytesMut::with_capacity(want);
        while piece.len() < want {
            let room = want - piece.len();
            let mut limited = (&mut piece).limit(room);
            if self.file.read_buf(&mut limited).await.map_err(|error| fault(&self.name, &error))? == 0 {
                break;
            }
        }
        self.left -= piece.len() as u64;
        Ok((!piece.is_empty()).then(|| piece.freeze()))
    }
}
