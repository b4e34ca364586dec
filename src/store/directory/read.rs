//! Reading the files of a directory.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use super::{Directory, Threads};
use crate::store::error::StoreError;
use crate::store::place::{ObjectReader, Operation};

/// Bytes of a file that are read at a time.
const PIECE: usize = 256 * 1024;

impl Directory {
    pub(super) async fn get(&self, name: &str, limit: u64) -> Result<Bytes, StoreError> {
        let path = self.path(name);
        let read = self.threads.run(name, move || {
            let mut file = File::open(path)?;
            let len = file.metadata()?.len();
            if len > limit {
                return Ok(Err(len));
            }
            let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
            file.read_to_end(&mut bytes)?;
            Ok(Ok(Bytes::from(bytes)))
        });
        read.await?.map_err(|len| {
            StoreError::corrupt(format!("{name} has {len} bytes, more than the {limit} of any object of ours"))
        })
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
        let opened = self.threads.run(name, move || {
            let file = File::open(path)?;
            let len = file.metadata()?.len();
            Ok((Arc::new(file), len))
        });
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
            let piece = self.threads.run(&self.name, move || read_at(&file, at, want)).await?;
            self.at += piece.len() as u64;
            Ok((!piece.is_empty()).then_some(piece))
        })
    }
}

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
