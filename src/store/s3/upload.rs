//! Writing a large object in parts, as its bytes come.

use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::error::DisplayErrorContext;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::BytesMut;
use tokio::task::JoinSet;
use tracing::debug;

use super::explain::Asked;
use super::{CONNECT_TIMEOUT, S3Config, S3Store, put};
use crate::store::BackendError;

/// The size of a part of a large object: what is sent at once.
const PART: usize = 8 << 20;

/// How long the service may take to put the parts of an object together.
const TO_COMPLETE: Duration = Duration::from_secs(600);

/// How many parts are on their way at once; with the one that is gathered, 32 MiB an upload.
const PARTS_AT_ONCE: usize = 3;

/// An object that is written piece by piece. One of less than a part is written at once.
#[derive(Debug)]
pub struct S3Upload {
    client: Client,
    store: S3Config,
    name: String,
    /// That of the multipart upload, once there is one.
    id: Option<String>,
    pending: BytesMut,
    sending: JoinSet<Result<CompletedPart, BackendError>>,
    parts: Vec<CompletedPart>,
    /// The number of the next part.
    next: i32,
}

impl S3Store {
    /// Begins to write the object `name`. Nothing is sent before there is enough for a part.
    pub fn begin(&self, name: &str) -> S3Upload {
        S3Upload {
            client: self.client.clone(),
            store: self.config.clone(),
            name: name.to_owned(),
            id: None,
            pending: BytesMut::new(),
            sending: JoinSet::new(),
            parts: Vec::new(),
            next: 1,
        }
    }
}

impl S3Upload {
    /// Appends a piece. Waits when as many parts as may are on their way.
    pub async fn write(&mut self, mut piece: &[u8]) -> Result<(), BackendError> {
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

    async fn send_part(&mut self) -> Result<(), BackendError> {
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
        let (client, store, name) = (self.client.clone(), self.store.clone(), self.name.clone());
        self.sending.spawn(async move {
            let sent = client
                .upload_part()
                .bucket(&store.bucket)
                .key(&name)
                .upload_id(id)
                .part_number(number)
                .body(ByteStream::from(body))
                .send()
                .await
                .map_err(|error| store.fault(Asked::Write, &name, &error))?;
            Ok(CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag).build())
        });
        Ok(())
    }

    async fn begin(&mut self) -> Result<String, BackendError> {
        let begun = self
            .client
            .create_multipart_upload()
            .bucket(&self.store.bucket)
            .key(&self.name)
            .content_type("application/octet-stream")
            .send()
            .await
            .map_err(|error| self.store.fault(Asked::Write, &self.name, &error))?;
        let id = begun.upload_id.ok_or_else(|| BackendError::failing(format!("{}: no upload id came", self.name)))?;
        self.id = Some(id.clone());
        Ok(id)
    }

    async fn settle_one(&mut self) -> Result<(), BackendError> {
        match self.sending.join_next().await {
            Some(Ok(part)) => self.parts.push(part?),
            Some(Err(_)) => return Err(BackendError::failing(format!("{}: a part was not sent", self.name))),
            None => {}
        }
        Ok(())
    }

    /// Puts the object in its place.
    pub async fn finish(mut self) -> Result<(), BackendError> {
        if self.id.is_none() {
            let body = std::mem::take(&mut self.pending).freeze();
            return put(&self.client, &self.store, &self.name, body).await;
        }
        if !self.pending.is_empty() {
            self.send_part().await?;
        }
        while !self.sending.is_empty() {
            self.settle_one().await?;
        }
        self.parts.sort_unstable_by_key(|part| part.part_number);
        // The service may take minutes to put a large object together.
        let patient = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(TO_COMPLETE)
            .operation_timeout(TO_COMPLETE)
            .build();
        let parts = CompletedMultipartUpload::builder().set_parts(Some(std::mem::take(&mut self.parts))).build();
        self.client
            .complete_multipart_upload()
            .bucket(&self.store.bucket)
            .key(&self.name)
            .set_upload_id(self.id.clone())
            .multipart_upload(parts)
            .customize()
            .config_override(aws_sdk_s3::config::Builder::default().timeout_config(patient))
            .send()
            .await
            .map_err(|error| self.store.fault(Asked::Write, &self.name, &error))?;
        self.id = None;
        Ok(())
    }
}

impl Drop for S3Upload {
    fn drop(&mut self) {
        let (Some(id), Ok(runtime)) = (self.id.take(), tokio::runtime::Handle::try_current()) else { return };
        let (client, bucket, name) = (self.client.clone(), self.store.bucket.clone(), self.name.clone());
        runtime.spawn(async move {
            let aborted = client.abort_multipart_upload().bucket(bucket).key(&name).upload_id(id).send().await;
            if let Err(error) = aborted {
                // The bucket's lifecycle rule ends it.
                debug!(name, "an upload was not aborted: {}", DisplayErrorContext(&error));
            }
        });
    }
}
