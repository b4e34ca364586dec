//! Reading the files of a directory.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::OFlags;

use super::{Directory, Threads};
use crate::store::error::StoreError;
use crate::store::place::{ObjectReader, Operation};

/// Bytes of a file that are read at a time.
const PIECE: usize = 256 * 1024;

impl Directory {
    pub(super) async fn get(&self, name: &str, limit: u64) -> Result<Bytes, StoreError> {
        let path = self.path(name);
        let read = self.threads.read(name, move || {
            let (file, len) = open_file(&path)?;
            let mut bytes = Vec::with_capacity(usize::try_from(len.min(limit)).unwrap_or(0));
            // It may grow meanwhile.
            file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        let bytes = Bytes::from(read.await?);
        if bytes.len() as u64 > limit {
            return Err(StoreError::corrupt(format!("{name} has more than the {limit} bytes of any object of ours")));
        }
        Ok(bytes)
    }

    pub(super) async fn read(&self, name: &str, len: u64) -> Result<Box<dyn ObjectReader>, StoreError> {
        let (file, actual) = self.open(name).await?;
        if actual != len {
            return Err(StoreError::corrupt(format!("{name} has {actual} bytes instead of {len}")));
        }
        Ok(self.pieces(name, file, 0, len))
    }

    pub(super) async fn read_range(
        &self,
        name: &str,
        first: u64,
        end: u64,
    ) -> Result<Box<dyn ObjectReader>, StoreError> {
        let (file, actual) = self.open(name).await?;
        if actual < end {
            return Err(StoreError::corrupt(format!("{name} has {actual} bytes, less than {end}")));
        }
        Ok(self.pieces(name, file, first, end))
    }

    async fn open(&self, name: &str) -> Result<(Arc<File>, u64), StoreError> {
        let path = self.path(name);
        let opened = self.threads.read(name, move || open_file(&path).map(|(file, len)| (Arc::new(file), len)));
        opened.await
    }

    fn pieces(&self, name: &str, file: Arc<File>, at: u64, end: u64) -> Box<dyn ObjectReader> {
        Box::new(FilePieces { file, at, end: end.max(at), name: name.to_owned(), threads: self.threads.clone() })
    }
}

/// A file that is read in pieces.
#[derive(Debug)]
struct FilePieces {
    file: Arc<File>,
    /// The place of the next piece.
    at: u64,
    end: u64,
    name: String,
    threads: Threads,
}

impl ObjectReader for FilePieces {
    fn next(&mut self) -> Operation<'_, Option<Bytes>> {
        Box::pin(async move {
            let want = usize::try_from(self.end - self.at).unwrap_or(PIECE).min(PIECE);
            let (file, at) = (Arc::clone(&self.file), self.at);
            let piece = self.threads.read(&self.name, move || read_at(&file, at, want)).await?;
            self.at += piece.len() as u64;
            Ok((!piece.is_empty()).then_some(piece))
        })
    }
}

/// Opens a file for reading. Returns its length as well. Waits for nothing else than the disk, and takes nothing else than a
/// file: a FIFO without a writer, or a device, might never come to an end.
pub(super) fn open_file(path: &Path) -> io::Result<(File, u64)> {
    only_a_file(File::options().read(true).custom_flags(DO_NOT_WAIT).open(path)?)
}

/// Has an open not wait for the other end of a FIFO. To a file it means nothing. (The flag that closes a file in new
/// processes is always set.)
pub(super) const DO_NOT_WAIT: i32 = OFlags::NONBLOCK.bits().cast_signed();

/// Returns what was opened, and its length, if it is a file.
pub(super) fn only_a_file(opened: File) -> io::Result<(File, u64)> {
    let found = opened.metadata()?;
    let kind = found.file_type();
    if kind.is_file() {
        return Ok((opened, found.len()));
    }
    Err(io::Error::other(NotAFile(match kind {
        _ if kind.is_dir() => "a directory",
        _ if kind.is_fifo() => "a FIFO",
        _ if kind.is_char_device() || kind.is_block_device() => "a device",
        _ => "something else",
    })))
}

/// The error of opening what is no file.
#[derive(Debug)]
pub(super) struct NotAFile(&'static str);

impl fmt::Display for NotAFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it is {}, and no file", self.0)
    }
}

impl std::error::Error for NotAFile {}

/// Reads `want` bytes of a file from `at` on; fewer at its end.
pub(super) fn read_at(file: &File, at: u64, want: usize) -> io::Result<Bytes> {
    let mut bytes = vec![0; want];
    let mut filled = 0;
    while filled < want {
        match file.read_at(&mut bytes[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(Bytes::from(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;
    use crate::store::error::StoreErrorKind;

    /// Reads of these would wait for a writer, never come to an end, or fail in ways that look like a sick disk.
    #[tokio::test]
    async fn what_is_no_file_is_corrupt_and_holds_up_nothing() {
        let root = tempfile::tempdir().expect("a directory");
        let path = |name: &str| root.path().join(name);
        mknodat(CWD, path("fifo"), FileType::Fifo, Mode::RWXU, 0).expect("a FIFO");
        let _socket = UnixListener::bind(path("socket")).expect("a socket");
        symlink("/dev/zero", path("device")).expect("a link");
        symlink(path("loop"), path("loop")).expect("a link");
        std::fs::create_dir(path("directory")).expect("a directory");
        std::fs::create_dir(path("growing.open")).expect("a directory");
        mknodat(CWD, path("taken.open"), FileType::Fifo, Mode::RWXU, 0).expect("a FIFO");
        let place = Directory::new(root.path().to_owned());
        let quickly = |read: Operation<'static, ()>| tokio::time::timeout(Duration::from_secs(20), read);
        let place: &'static Directory = Box::leak(Box::new(place));
        for (name, why) in
            [("fifo", "a FIFO"), ("socket", ""), ("device", "a device"), ("loop", ""), ("directory", "a dir")]
        {
            let reads: [Operation<'static, ()>; 4] = [
                Box::pin(async move { place.get(name, 1000).await.map(drop) }),
                Box::pin(async move { place.read(name, 0).await.map(drop) }),
                Box::pin(async move { place.read_range(name, 0, 1).await.map(drop) }),
                Box::pin(async move { place.read_pack(name, 0, 1000).await.map(drop) }),
            ];
            for read in reads {
                let error = quickly(read).await.expect("it does not wait").expect_err("it is no file");
                assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{error}");
                assert!(error.to_string().contains(why), "{error}");
            }
        }
        for name in ["taken.pack", "growing.pack"] {
            let take = Box::pin(async move { place.take_over(name).await.map(drop) });
            let error = quickly(take).await.expect("it does not wait").expect_err("it is no file");
            assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{error}");
        }
    }

    #[tokio::test]
    async fn no_more_is_read_of_a_file_than_its_limit() {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::write(root.path().join("file"), [7; 100]).expect("a file");
        let place = Directory::new(root.path().to_owned());
        assert_eq!(place.get("file", 100).await.expect("it fits").len(), 100);
        assert_eq!(place.get("file", 99).await.expect_err("too long").kind(), StoreErrorKind::Corrupt);
    }
}
