//! Writing a body that is too large for memory, as it comes in.

use std::sync::Arc;

use super::{Durable, Inner};
use crate::base::{DurableOp, DurableOutcome, Lost};
use crate::entry::encoding::Checksums;
use crate::entry::{BodyObject, FillReader, StoredApart, StoredHead};
use crate::store::BackendError;

/// Leave to write a large body.
#[derive(Debug)]
pub struct Leave {
    inner: Arc<Inner>,
    hash: u128,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.inner.uploading.lock().remove(&self.hash);
        self.inner.queue.leave_other();
    }
}

impl Durable {
    /// Leave to write the large body of a response for the key with this hash: a few at once have it, and
    /// one for each key.
    pub fn begin_upload(&self, hash: u128) -> Option<Leave> {
        let mut uploading = self.inner.uploading.lock();
        if uploading.len() >= self.inner.config.uploads || !uploading.insert(hash) {
            drop(uploading);
            self.inner.metrics.durable(DurableOp::Put, DurableOutcome::Dropped);
            self.inner.metrics.lost(Lost::Upload);
            return None;
        }
        self.inner.queue.enter_other();
        Some(Leave { inner: Arc::clone(&self.inner), hash })
    }

    /// Writes the body that `reader` brings as the object of `head`. `None` when it did not come to its
    /// end, is too large, or could not be written: then there is nothing. The leave comes back, to be kept
    /// until the head is on its way.
    pub async fn upload(
        &self,
        leave: Leave,
        head: Arc<StoredHead>,
        reader: FillReader,
    ) -> Option<(StoredApart, Leave)> {
        let written = self.runtime.spawn(async move {
            let inner = Arc::clone(&leave.inner);
            let outcome = inner.upload(&head, reader).await;
            inner.metrics.durable_uploads.add_one();
            match outcome {
                Ok(Some(apart)) => {
                    inner.metrics.durable(DurableOp::Put, DurableOutcome::Ok);
                    Some((apart, leave))
                }
                Ok(None) => {
                    inner.metrics.durable(DurableOp::Put, DurableOutcome::Dropped);
                    None
                }
                Err(error) => {
                    inner.note_error(DurableOp::Put, &error);
                    inner.lost(Lost::Upload, &head.key, &error);
                    None
                }
            }
        });
        written.await.ok().flatten()
    }
}

impl Inner {
    /// Writes the body that `reader` brings; `None` when it broke off, or is too large.
    async fn upload(&self, head: &StoredHead, mut reader: FillReader) -> Result<Option<StoredApart>, BackendError> {
        let mut head = head.clone();
        let object = BodyObject::new(&head.key);
        head.body_object = Some(Arc::clone(&object));
        let mut upload = self.backend.begin(&self.names.body(object.id)).await?;
        let mut checksums = Checksums::default();
        while let Some(chunk) = reader.chunk().await {
            let Ok(chunk) = chunk else { return Ok(None) };
            checksums.update(&chunk);
            if checksums.len() > self.max_object_size() {
                return Ok(None);
            }
            upload.write(chunk).await?;
        }
        let len = checksums.len();
        if !head.is_of_length(len) {
            return Ok(None);
        }
        upload.finish().await?;
        object.note(true);
        Ok(Some(StoredApart { head: Arc::new(head), len, checksums: checksums.finish().into() }))
    }
}
