//! Writing a large object in parts, as its bytes arrive.

use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::error::DisplayErrorContext;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::{Bytes, BytesMut};
use tokio::task::JoinSet;
use tracing::debug;

use super::explain::Request;
use super::objects::put;
use super::{CONNECT_TIMEOUT, S3Bucket, S3Config};
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::place::{ObjectWriter, Operation};

/// Size of a part, which is sent as a whole.
const PART: usize = 8 << 20;

/// The longest that the service may take to put the parts together.
const TO_COMPLETE: Duration = Duration::from_secs(600);

/// The most parts that are being sent. With the part that is gathered, an upload holds 32 MiB.
const PARTS_AT_ONCE: usize = 3;

/// An object that is written in pieces. One smaller than a part is written by a single request.
struct S3Upload {
    client: Client,
    config: S3Config,
    name: String,
    /// Id of the multipart upload, once it is begun.
    id: Option<String>,
    pending: BytesMut,
    sending: JoinSet<Result<CompletedPart, StoreError>>,
    parts: Vec<CompletedPart>,
    /// Number of the next part.
    next: i32,
}

impl S3Bucket {
    /// Begins to write the object `name`. Sends nothing before a part is full.
    pub(super) fn begin(&self, name: &str) -> Box<dyn ObjectWriter> {
        Box::new(S3Upload {
            client: self.client.clone(),
            config: self.config.clone(),
            name: name.to_owned(),
            id: None,
            pending: BytesMut::new(),
            sending: JoinSet::new(),
            parts: Vec::new(),
            next: 1,
        })
    }
}

impl ObjectWriter for S3Upload {
    fn write(&mut self, piece: Bytes) -> Operation<'_, ()> {
        Box::pin(async move { self.append(&piece).await })
    }

    fn finish(self: Box<Self>) -> Operation<'static, ()> {
        Box::pin((*self).complete())
    }
}

impl S3Upload {
    /// Appends a piece. Waits while as many parts as may are being sent.
    async fn append(&mut self, mut piece: &[u8]) -> Result<(), StoreError> {
        while !piece.is_empty() {
            if self.pending.capacity() < PART {
                self.pending.reserve(PART - self.pending.len());
            }
            let (now, later) = piece.split_at(piece.len().min(PART - self.pending.len()));
            self.pending.extend_from_slice(now);
            piece = later;
            if self.pending.len() == PART {
                self.send_part().await?;
            }
        }
        Ok(())
    }

    async fn send_part(&mut self) -> Result<(), StoreError> {
        let id = match &self.id {
            Some(id) => id.clone(),
            None => self.begin().await?,
        };
        while self.sending.len() >= PARTS_AT_ONCE {
            self.settle_one().await?;
        }
        let number = self.next;
        self.next += 1;
        let body = std::mem::take(&mut self.pending).freeze();
        let (client, config, name) = (self.client.clone(), self.config.clone(), self.name.clone());
        self.sending.spawn(async move {
            let sent = client
                .upload_part()
                .bucket(&config.bucket)
                .key(&name)
                .upload_id(id)
                .part_number(number)
                .body(ByteStream::from(body))
                .send()
                .await
                .map_err(|error| config.fault(Request::Write, &name, error))?;
            Ok(CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag).build())
        });
        Ok(())
    }

    async fn begin(&mut self) -> Result<String, StoreError> {
        let begun = self
            .client
            .create_multipart_upload()
            .bucket(&self.config.bucket)
            .key(&self.name)
            .content_type("application/octet-stream")
            .send()
            .await
            .map_err(|error| self.config.fault(Request::Write, &self.name, error))?;
        let id = begun
            .upload_id
            .ok_or_else(|| StoreError::new(StoreErrorKind::Overloaded, format!("{}: no upload id came", self.name)))?;
        self.id = Some(id.clone());
        Ok(id)
    }

    async fn settle_one(&mut self) -> Result<(), StoreError> {
        match self.sending.join_next().await {
            Some(Ok(part)) => self.parts.push(part?),
            Some(Err(_)) => return Err(StoreError::given_up(&self.name)),
            None => {}
        }
        Ok(())
    }

    async fn complete(mut self) -> Result<(), StoreError> {
        if self.id.is_none() {
            let body = std::mem::take(&mut self.pending).freeze();
            return put(&self.client, &self.config, &self.name, body).await;
        }
        if !self.pending.is_empty() {
            self.send_part().await?;
        }
        while !self.sending.is_empty() {
            self.settle_one().await?;
        }
        self.parts.sort_unstable_by_key(|part| part.part_number);
        let patient = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(TO_COMPLETE)
            .operation_timeout(TO_COMPLETE)
            .build();
        let parts = CompletedMultipartUpload::builder().set_parts(Some(std::mem::take(&mut self.parts))).build();
        self.client
            .complete_multipart_upload()
            .bucket(&self.config.bucket)
            .key(&self.name)
            .set_upload_id(self.id.clone())
            .multipart_upload(parts)
            .customize()
            .config_override(aws_sdk_s3::config::Builder::default().timeout_config(patient))
            .send()
            .await
            .map_err(|error| self.config.fault(Request::Write, &self.name, error))?;
        self.id = None;
        Ok(())
    }
}

impl Drop for S3Upload {
    fn drop(&mut self) {
        let (Some(id), Ok(runtime)) = (self.id.take(), tokio::runtime::Handle::try_current()) else { return };
        let (client, bucket, name) = (self.client.clone(), self.config.bucket.clone(), self.name.clone());
        runtime.spawn(async move {
            let aborted = client.abort_multipart_upload().bucket(bucket).key(&name).upload_id(id).send().await;
            if let Err(error) = aborted {
                // The bucket's lifecycle rule ends the upload.
                debug!(name, "an upload was not aborted: {}", DisplayErrorContext(&error));
            }
        });
    }
}
