//! Writing a body that is too large for memory, as it arrives.

use std::sync::Arc;

use super::{Durable, Inner};
use crate::base::{DurableOp, DurableOutcome, Lost};
use crate::entry::encoding::Checksums;
use crate::entry::{BodyObject, FillReader, StoredApart, StoredHead};
use crate::store::error::StoreError;

/// Bytes for which room is made ahead of a body that is written as it arrives.
const ROOM: u64 = 1 << 20;

/// Permit to write the large body of one key. Held until its head is queued; dropping it lets the next one begin.
#[derive(Debug)]
pub struct UploadPermit {
    inner: Arc<Inner>,
    hash: u128,
}

impl Drop for UploadPermit {
    fn drop(&mut self) {
        self.inner.uploading.lock().remove(&self.hash);
        self.inner.queue.end_upload();
    }
}

impl Durable {
    /// Returns a permit to write the large body of a response for the key with this hash. There are few permits, and one
    /// for each key.
    pub fn begin_upload(&self, hash: u128) -> Option<UploadPermit> {
        let mut uploading = self.inner.uploading.lock();
        if uploading.len() >= self.inner.config.uploads || !uploading.insert(hash) {
            drop(uploading);
            self.inner.metrics.durable(DurableOp::Put, DurableOutcome::Dropped);
            self.inner.metrics.lost(Lost::Upload);
            return None;
        }
        self.inner.queue.begin_upload();
        Some(UploadPermit { inner: Arc::clone(&self.inner), hash })
    }

    /// Writes the body from `reader` as a separate object of `head`. Returns `None`, and leaves nothing, if the body is
    /// incomplete or too large, or could not be written. Returns the permit, to be held until the head is queued.
    pub async fn upload(
        &self,
        permit: UploadPermit,
        head: Arc<StoredHead>,
        reader: FillReader,
    ) -> Option<(StoredApart, UploadPermit)> {
        let written = self.runtime.spawn(async move {
            let inner = Arc::clone(&permit.inner);
            let outcome = inner.upload(&head, reader).await;
            inner.metrics.durable_uploads.add_one();
            match outcome {
                Ok(Some(apart)) => {
                    inner.metrics.durable(DurableOp::Put, DurableOutcome::Ok);
                    Some((apart, permit))
                }
                Ok(None) => {
                    inner.metrics.durable(DurableOp::Put, DurableOutcome::Dropped);
                    None
                }
                Err(error) => {
                    inner.report_error(DurableOp::Put, &error);
                    inner.report_lost(Lost::Upload, &head.key, &error);
                    None
                }
            }
        });
        written.await.ok().flatten()
    }
}

impl Inner {
    /// Writes the body from `reader`. Returns `None` if it is incomplete or too large.
    async fn upload(
        self: &Arc<Self>,
        head: &StoredHead,
        reader: FillReader,
    ) -> Result<Option<StoredApart>, StoreError> {
        let mut head = head.clone();
        let object = BodyObject::new(&head.key);
        head.body_object = Some(Arc::clone(&object));
        let written = self.write_upload(&head, &object, reader).await;
        if !matches!(written, Ok(Some(_))) {
            self.room.forget_body(object.id);
        }
        let Some((len, checksums)) = written? else { return Ok(None) };
        object.note(true);
        self.room.note_body(object.id, len, false);
        Ok(Some(StoredApart { head: Arc::new(head), len, checksums: checksums.finish().into() }))
    }

    /// Writes the body of `head` as `object`. Returns its length and its checksums.
    async fn write_upload(
        self: &Arc<Self>,
        head: &StoredHead,
        object: &BodyObject,
        mut reader: FillReader,
    ) -> Result<Option<(u64, Checksums)>, StoreError> {
        let mut upload = self.place.begin(&self.names.body(object.id)).await?;
        let (mut checksums, mut counted) = (Checksums::default(), 0);
        while let Some(chunk) = reader.chunk().await {
            let Ok(chunk) = chunk else { return Ok(None) };
            checksums.update(&chunk);
            if checksums.hashed() > self.max_object_size() {
                return Ok(None);
            }
            if checksums.hashed() > counted {
                let _reserved = self.make_room(ROOM).await?;
                counted = checksums.hashed() + ROOM;
                self.room.note_body(object.id, counted, true);
            }
            upload.write(chunk).await?;
        }
        let len = checksums.hashed();
        if !head.is_of_length(len) {
            return Ok(None);
        }
        upload.finish().await?;
        Ok(Some((len, checksums)))
    }
}
