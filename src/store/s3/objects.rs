//! Reading, writing, listing and deleting the objects of a bucket.

use std::time::SystemTime;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use bytes::{Bytes, BytesMut};

use super::explain::Request;
use super::replay::ReplayOutcome;
use super::{S3Bucket, S3Config};
use crate::entry::encoding::SMALL;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::names::ObjectNames;
use crate::store::place::{Listed, ObjectReader, Operation, PROBE, Page};

/// Names on a page of a listing: the most that services give.
const PAGE: i32 = 1000;

/// An object that is opened: its bytes, and its length if the service told it.
type Opened = (S3Pieces, Option<u64>);

impl S3Bucket {
    /// Lists, writes the probe and reads it, in this order. Asks for nothing outside the root, where rights may end.
    pub(super) async fn check(&self, names: &ObjectNames) -> Result<(), StoreError> {
        let probe = names.probe();
        self.is_anything_below(names.root()).await?;
        put(&self.client, &self.config, &probe, Bytes::from_static(PROBE)).await?;
        let read = self.client.get_object().bucket(&self.config.bucket).key(&probe).send().await;
        read.map_err(|error| self.config.fault(Request::Read, &probe, error))?;
        // Needed to tell a refused read from one of a missing object.
        let _ = self.probe.set(probe);
        Ok(())
    }

    async fn is_anything_below(&self, root: &str) -> Result<bool, StoreError> {
        let listing = self.client.list_objects_v2().bucket(&self.config.bucket).prefix(root).max_keys(1);
        let listed = listing.send().await.map_err(|error| self.config.fault(Request::List, root, error))?;
        Ok(listed.contents.is_some_and(|listed| !listed.is_empty()))
    }

    /// Returns whether names below `root` can be listed.
    pub(crate) async fn is_listable(&self, root: &str) -> bool {
        self.is_anything_below(root).await.is_ok()
    }

    pub(super) async fn find_cache(&self, root: &str) -> Result<(), StoreError> {
        if self.is_anything_below(root).await? {
            return Ok(());
        }
        let text = format!(
            "in the bucket \"{}\" nothing lies below \"{root}\": check durable.url and cache.key_prefix, which have to be those that Larder runs with",
            self.config.bucket
        );
        Err(StoreError::new(StoreErrorKind::Absent, text))
    }

    pub(super) async fn list(&self, prefix: &str, after: &str) -> Result<Page, StoreError> {
        let listing = self.client.list_objects_v2().bucket(&self.config.bucket).prefix(prefix).max_keys(PAGE);
        let listing = if after.is_empty() { listing } else { listing.start_after(after) };
        let page = listing.send().await.map_err(|error| self.config.fault(Request::List, prefix, error))?;
        let is_last = !page.is_truncated.unwrap_or(false);
        let listed = page.contents.unwrap_or_default().into_iter().filter_map(|object| {
            let modified = object.last_modified.and_then(|time| SystemTime::try_from(time).ok()).map(Timestamp::from);
            let size = object.size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
            Some(Listed { name: object.key?, size, modified: modified.unwrap_or_default() })
        });
        // A service that ignores `start_after` would never come to an end.
        let listed: Vec<Listed> = listed.filter(|listed| listed.name.as_str() > after).collect();
        Ok(Page { is_last: is_last || listed.is_empty(), listed })
    }

    pub(super) async fn get(&self, name: &str, limit: u64) -> Result<Bytes, StoreError> {
        let too_large = || StoreError::corrupt(format!("{name} has more than the {limit} bytes of any object of ours"));
        let (mut pieces, len) = self.open_small(name).await?;
        if len.is_some_and(|len| len > limit) {
            return Err(too_large());
        }
        // A large object goes into a buffer of its own: a piece keeps all that was received with it.
        let expected = len.and_then(|len| usize::try_from(len).ok()).unwrap_or(0);
        let mut small = Bytes::new();
        let mut whole = BytesMut::with_capacity(if expected > SMALL { expected } else { 0 });
        while let Some(piece) = pieces.next_piece().await? {
            let total = small.len() + whole.len() + piece.len();
            if total as u64 > limit {
                return Err(too_large());
            }
            if whole.is_empty() && small.is_empty() && total <= SMALL {
                small = piece;
            } else {
                whole.extend_from_slice(&std::mem::take(&mut small));
                whole.extend_from_slice(&piece);
            }
        }
        let whole = if whole.is_empty() { small } else { whole.freeze() };
        if len.is_some_and(|len| len != whole.len() as u64) {
            return Err(StoreError::corrupt(format!("{name} ended after {} bytes", whole.len())));
        }
        Ok(whole)
    }

    /// Reads a range that may end past the object.
    pub(super) async fn read_pack(&self, name: &str, first: u64, len: u32) -> Result<Bytes, StoreError> {
        let range = format!("bytes={first}-{}", first.saturating_add(u64::from(len)).saturating_sub(1));
        let (mut pieces, actual) = self.open(&self.client, name, Some(range)).await?;
        if actual.is_some_and(|actual| actual > u64::from(len)) {
            return Err(StoreError::corrupt(format!("{name} gave more than the {len} bytes that were asked for")));
        }
        let mut whole = BytesMut::with_capacity(actual.and_then(|len| usize::try_from(len).ok()).unwrap_or(0));
        while let Some(piece) = pieces.next_piece().await? {
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }

    pub(super) async fn read(&self, name: &str, len: u64) -> Result<Box<dyn ObjectReader>, StoreError> {
        match self.open(&self.client, name, None).await? {
            (_, Some(actual)) if actual != len => {
                Err(StoreError::corrupt(format!("{name} has {actual} bytes instead of {len}")))
            }
            (pieces, _) => Ok(Box::new(pieces)),
        }
    }

    pub(super) async fn read_range(
        &self,
        name: &str,
        first: u64,
        end: u64,
    ) -> Result<Box<dyn ObjectReader>, StoreError> {
        let range = format!("bytes={first}-{}", end.saturating_sub(1));
        match self.open(&self.client, name, Some(range)).await? {
            // A service that ignores the range sends the whole.
            (_, Some(len)) if len != end - first => {
                Err(StoreError::corrupt(format!("{name} gave {len} bytes instead of {}", end - first)))
            }
            (pieces, _) => Ok(Box::new(pieces)),
        }
    }

    /// Opens an object by this thread's own reader, if it has one. What that can't tell is asked of the SDK.
    async fn open_small(&self, name: &str) -> Result<Opened, StoreError> {
        let Some(reader) = self.reader() else { return self.open(&self.client, name, None).await };
        match reader.read(name, &self.watcher).await {
            ReplayOutcome::Object(stream, len) => Ok((S3Pieces { stream, name: name.to_owned() }, len)),
            ReplayOutcome::Absent => Err(StoreError::absent(name)),
            ReplayOutcome::Unclear => {
                let opened = self.open(&reader.client, name, None).await;
                if opened.is_ok() {
                    reader.learn(name);
                }
                opened
            }
        }
    }

    async fn open(&self, client: &Client, name: &str, range: Option<String>) -> Result<Opened, StoreError> {
        match client.get_object().bucket(&self.config.bucket).key(name).set_range(range).send().await {
            Ok(object) => {
                let len = object.content_length().and_then(|len| u64::try_from(len).ok());
                Ok((S3Pieces { stream: object.body, name: name.to_owned() }, len))
            }
            Err(SdkError::ServiceError(service))
                if service.err().is_no_such_key()
                    || (service.raw().status().as_u16() == 404 && service.err().code() != Some("NoSuchBucket")) =>
            {
                Err(StoreError::absent(name))
            }
            Err(SdkError::ServiceError(service)) if self.may_hide_a_missing(name, service.raw()) => {
                // S3 refuses every missing name to credentials that may list only with a prefix.
                if self.is_probe_readable().await {
                    return Err(StoreError::absent(name));
                }
                Err(self.config.fault(Request::Read, name, SdkError::ServiceError(service)))
            }
            Err(error) => Err(self.config.fault(Request::Read, name, error)),
        }
    }

    /// Returns whether a refused read may be one of a missing object.
    fn may_hide_a_missing(&self, name: &str, answer: &HttpResponse) -> bool {
        answer.status().as_u16() == 403 && self.probe.get().is_some_and(|probe| probe != name)
    }

    /// Returns whether the probe, which is there, can be read.
    async fn is_probe_readable(&self) -> bool {
        let Some(probe) = self.probe.get() else { return false };
        self.client.get_object().bucket(&self.config.bucket).key(probe).send().await.is_ok()
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), StoreError> {
        match self.client.delete_object().bucket(&self.config.bucket).key(name).send().await {
            Err(SdkError::ServiceError(service)) if service.err().code() == Some("NoSuchKey") => Ok(()),
            Err(error) => Err(self.config.fault(Request::Delete, name, error)),
            Ok(_) => Ok(()),
        }
    }
}

/// Writes the object `name` by one request.
pub(super) async fn put(client: &Client, config: &S3Config, name: &str, body: Bytes) -> Result<(), StoreError> {
    client
        .put_object()
        .bucket(&config.bucket)
        .key(name)
        .content_type("application/octet-stream")
        .body(ByteStream::from(body))
        .send()
        .await
        .map(|_| ())
        .map_err(|error| config.fault(Request::Write, name, error))
}

/// An object that is read in pieces.
#[derive(Debug)]
struct S3Pieces {
    stream: ByteStream,
    name: String,
}

impl S3Pieces {
    async fn next_piece(&mut self) -> Result<Option<Bytes>, StoreError> {
        match self.stream.next().await {
            None => Ok(None),
            Some(Ok(piece)) => Ok(Some(piece)),
            Some(Err(error)) => {
                let text = format!("{}: {error}", self.name);
                Err(StoreError::caused_by(StoreErrorKind::Unavailable, text, error))
            }
        }
    }
}

impl ObjectReader for S3Pieces {
    fn next(&mut self) -> Operation<'_, Option<Bytes>> {
        Box::pin(self.next_piece())
    }
}
