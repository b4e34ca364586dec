//! Reading the files of a directory.

use std::io::{self, Read};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::fs;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{Directory, fault, on_a_thread};
use crate::store::error::StoreError;
use crate::store::place::{ObjectReader, Operation};

/// Bytes of a file that are read at a time.
const PIECE: usize = 256 * 1024;

impl Directory {
    pub(super) async fn get(&self, name: &str, limit: u64) -> Result<Bytes, StoreError> {
        let path = self.path(name);
        let read = on_a_thread(name, move || {
            let mut file = std::fs::File::open(path)?;
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
        Ok(Box::new(FilePieces { file, left: len, name: name.to_owned() }))
    }

    pub(super) async fn read_range(
        &self,
        name: &str,
        first: u64,
        end: u64,
    ) -> Result<Box<dyn ObjectReader>, StoreError> {
        let (mut file, actual) = self.open(name).await?;
        if actual < end {
            return Err(StoreError::corrupt(format!("{name} has {actual} bytes, less than {end}")));
        }
        file.seek(io::SeekFrom::Start(first)).await.map_err(|error| fault(name, error))?;
        Ok(Box::new(FilePieces { file, left: end.saturating_sub(first), name: name.to_owned() }))
    }

    async fn open(&self, name: &str) -> Result<(fs::File, u64), StoreError> {
        let file = fs::File::open(self.path(name)).await.map_err(|error| fault(name, error))?;
        let len = file.metadata().await.map_err(|error| fault(name, error))?.len();
        Ok((file, len))
    }
}

/// A file that is read in pieces.
#[derive(Debug)]
struct FilePieces {
    file: fs::File,
    /// Bytes that are still to be read.
    left: u64,
    name: String,
}

impl ObjectReader for FilePieces {
    fn next(&mut self) -> Operation<'_, Option<Bytes>> {
        Box::pin(async move {
            let want = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE);
            let mut piece = BytesMut::with_capacity(want);
            while piece.len() < want {
                let room = want - piece.len();
                let mut limited = (&mut piece).limit(room);
                if self.file.read_buf(&mut limited).await.map_err(|error| fault(&self.name, error))? == 0 {
                    break;
                }
            }
            self.left -= piece.len() as u64;
            Ok((!piece.is_empty()).then(|| piece.freeze()))
        })
    }
}
