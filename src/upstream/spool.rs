//! Temporary files for bodies that are too large for memory.
//!
//! * A file never has a name, so that nothing is left of it when the process ends.
//! * The runtime's blocking threads read and write it, at most one operation a file at a time.
//! * A full disk, or a directory that can't be written to, fails no request: the body does without a file.
//! * All files together hold at most `server.max_spooled` bytes. A file counts until it is closed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::warn;

use crate::base::Stopwatch;

/// The most bytes that are read from a file at once.
pub(super) const PIECE: usize = 64 << 10;

/// Pause between two log lines about files that can't be made or written.
const LOG_PAUSE: Duration = Duration::from_secs(60);

/// Holds the directory of temporary files, and counts the bytes in all of them.
#[derive(Debug)]
pub(crate) struct Spools {
    directory: PathBuf,
    /// Bytes in all files.
    used: AtomicU64,
    /// The most bytes in all files.
    limit: u64,
    /// Time of the last logged failure. The lock guards one look.
    logged: Mutex<Option<Stopwatch>>,
}

impl Spools {
    /// Prepares files in `directory` (empty: the system's temporary directory) of at most `limit` bytes together.
    pub(crate) fn new(directory: PathBuf, limit: u64) -> Arc<Self> {
        let directory = if directory.as_os_str().is_empty() { std::env::temp_dir() } else { directory };
        Arc::new(Self { directory, used: AtomicU64::new(0), limit, logged: Mutex::default() })
    }

    /// Returns the bytes in all files.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Counts `bytes` if the sum stays within the limit, and returns whether it does.
    fn reserve(&self, bytes: u64) -> bool {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.limit {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Makes an empty file; `None` if that fails, or if no files are allowed.
    pub(crate) async fn open(self: &Arc<Self>) -> Option<SpoolFile> {
        if self.limit == 0 {
            return None;
        }
        let directory = self.directory.clone();
        // `tempfile_in` makes a file with mode 0600 and no name.
        let made = spawn_blocking(move || tempfile::tempfile_in(directory)).await;
        match made.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(file) => {
                Some(SpoolFile { file: Some(Arc::new(file)), len: AtomicU64::new(0), spools: Arc::clone(self) })
            }
            Err(error) => {
                self.log_failure(&error);
                None
            }
        }
    }

    /// Logs a failure, at most once in [`LOG_PAUSE`].
    fn log_failure(&self, error: &io::Error) {
        let mut logged = self.logged.lock();
        if logged.is_none_or(|at| at.elapsed() >= LOG_PAUSE) {
            *logged = Some(Stopwatch::start());
            warn!(
                "a body could not be put into a temporary file in {} (server.spool_dir): {error}; it passes at the pace of the slower side",
                self.directory.display()
            );
        }
    }
}

/// A temporary file without a name.
#[derive(Debug)]
pub(crate) struct SpoolFile {
    /// The open file; `None` only while it is dropped.
    file: Option<Arc<File>>,
    /// Bytes that are counted for it: its greatest length so far.
    len: AtomicU64,
    spools: Arc<Spools>,
}

impl SpoolFile {
    /// Writes `pieces` at offset `at`. Returns `false` if there is no room.
    pub(crate) async fn write(&self, at: u64, pieces: Vec<Bytes>) -> bool {
        let Some(file) = self.file.clone() else { return false };
        let end = pieces.iter().fold(at, |end, piece| end + piece.len() as u64);
        // Only one task writes, so that nobody changes the length meanwhile.
        let grows = end.saturating_sub(self.len.load(Ordering::Relaxed));
        if grows > 0 {
            if !self.spools.reserve(grows) {
                return false;
            }
            self.len.store(end, Ordering::Relaxed);
        }
        let write = move || {
            let mut at = at;
            for piece in &pieces {
                file.write_all_at(piece, at)?;
                at += piece.len() as u64;
            }
            Ok(())
        };
        match spawn_blocking(write).await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(()) => true,
            Err(error) => {
                self.spools.log_failure(&error);
                false
            }
        }
    }

    /// Begins to read `len` bytes, at most [`PIECE`], at offset `at`.
    pub(crate) fn read(&self, at: u64, len: u64) -> JoinHandle<io::Result<Bytes>> {
        let file = self.file.clone();
        let len = usize::try_from(len).unwrap_or(PIECE).min(PIECE);
        spawn_blocking(move || {
            let file = file.ok_or(io::ErrorKind::NotFound)?;
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, at)?;
            Ok(bytes.into())
        })
    }
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        self.spools.used.fetch_sub(*self.len.get_mut(), Ordering::Relaxed);
        // Closes it on a blocking thread: freeing the blocks of a large file takes time.
        if let (Some(file), Ok(runtime)) = (self.file.take(), Handle::try_current()) {
            runtime.spawn_blocking(move || drop(file));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_has_no_name_and_counts_until_it_is_closed() {
        let directory = tempfile::tempdir().expect("a directory");
        let spools = Spools::new(directory.path().into(), 100);
        let file = spools.open().await.expect("a file");
        assert_eq!(std::fs::read_dir(directory.path()).expect("it is there").count(), 0);
        assert!(file.write(0, vec![Bytes::from_static(b"01234"), Bytes::from_static(b"56789")]).await);
        assert!(file.write(5, vec![Bytes::from_static(b"abcde")]).await, "over what is there");
        assert_eq!(spools.used(), 10);
        let read = file.read(3, 4).await.expect("no panic").expect("it is read");
        assert_eq!(&read[..], b"34ab");
        assert!(!file.write(10, vec![Bytes::from(vec![0; 91])]).await, "past the limit of all");
        assert!(file.write(10, vec![Bytes::from(vec![0; 90])]).await);
        let other = spools.open().await.expect("another");
        assert!(!other.write(0, vec![Bytes::from_static(b"x")]).await);
        drop(file);
        assert_eq!(spools.used(), 0);
        assert!(other.write(0, vec![Bytes::from_static(b"x")]).await);
    }

    #[tokio::test]
    async fn there_is_no_file_where_none_can_be_made() {
        assert!(Spools::new("/nowhere/at/all".into(), 100).open().await.is_none());
        assert!(Spools::new(PathBuf::new(), 0).open().await.is_none());
    }
}
