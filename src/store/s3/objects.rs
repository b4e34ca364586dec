//! Reading, writing, listing and deleting the objects of a bucket.

use std::time::{Duration, SystemTime};

use aws_config::timeout::TimeoutConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use bytes::{Bytes, BytesMut};

use super::explain::Request;
use super::replay::ReplayOutcome;
use super::{CONNECT_TIMEOUT, S3Bucket, S3Config};
use crate::entry::encoding::SMALL;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::names::ObjectNames;
use crate::store::place::{Listed, ObjectReader, Operation, PROBE, Page};

/// Names on a page of a listing: the most that services give.
const PAGE: i32 = 1000;

/// An object, or a range of one, that is opened.
struct Opened {
    pieces: S3Pieces,
    /// The number of bytes that come, if the service told it.
    len: Option<u64>,
    /// False if the whole object comes.
    is_range: bool,
}

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
        let opened = self.open(&self.client, name, None).await?;
        opened.pieces.collect(opened.len, limit).await
    }

    /// Reads a range, which may end past the object.
    pub(super) async fn read_pack(&self, name: &str, first: u64, len: u32) -> Result<Bytes, StoreError> {
        let Some(last) = u64::from(len).checked_sub(1).map(|more| first.saturating_add(more)) else {
            return Ok(Bytes::new());
        };
        let opened = self.open_small(name, format!("bytes={first}-{last}")).await?;
        if opened.is_range {
            return opened.pieces.collect(opened.len, u64::from(len)).await;
        }
        opened.pieces.cut_out(first, len).await
    }

    pub(super) async fn read(&self, name: &str, len: u64) -> Result<Box<dyn ObjectReader>, StoreError> {
        match self.open(&self.client, name, None).await? {
            Opened { len: Some(actual), .. } if actual != len => {
                Err(StoreError::corrupt(format!("{name} has {actual} bytes instead of {len}")))
            }
            Opened { pieces, .. } => Ok(Box::new(pieces)),
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
            Opened { len: Some(len), .. } if len != end - first => {
                Err(StoreError::corrupt(format!("{name} gave {len} bytes instead of {}", end - first)))
            }
            Opened { pieces, .. } => Ok(Box::new(pieces)),
        }
    }

    /// Opens a range by this thread's own reader, if it has one. What that can't tell is asked of the SDK.
    async fn open_small(&self, name: &str, range: String) -> Result<Opened, StoreError> {
        let Some(reader) = self.reader() else { return self.open(&self.client, name, Some(range)).await };
        match reader.read(name, &range, &self.watcher).await {
            ReplayOutcome::Opened { stream, len, is_range } => {
                Ok(Opened { pieces: S3Pieces { stream, name: name.to_owned() }, len, is_range })
            }
            ReplayOutcome::Absent => Err(StoreError::absent(name)),
            ReplayOutcome::PastEnd => Err(past_end(name)),
            ReplayOutcome::Unclear => {
                let opened = self.open(&reader.client, name, Some(range)).await;
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
                let is_range = object.content_range().is_some();
                Ok(Opened { pieces: S3Pieces { stream: object.body, name: name.to_owned() }, len, is_range })
            }
            Err(SdkError::ServiceError(service)) if service.raw().status().as_u16() == PAST_END => Err(past_end(name)),
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

/// The status of a range that begins past the end.
pub(super) const PAST_END: u16 = 416;

fn past_end(name: &str) -> StoreError {
    StoreError::corrupt(format!("{name} ends before the range that was asked for"))
}

/// The longest that an attempt to write an object takes, besides a second for each [`LEAST_RATE`] bytes.
const TO_PUT: Duration = Duration::from_secs(30);

/// Bytes a second below which a write counts as failed.
const LEAST_RATE: u64 = 128 << 10;

/// Writes the object `name` by one request. The time that it may take grows with its length.
pub(super) async fn put(client: &Client, config: &S3Config, name: &str, body: Bytes) -> Result<(), StoreError> {
    let longest = TO_PUT + Duration::from_secs(body.len() as u64 / LEAST_RATE);
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(longest)
        .operation_timeout(longest * 2)
        .build();
    client
        .put_object()
        .bucket(&config.bucket)
        .key(name)
        .content_type("application/octet-stream")
        .body(ByteStream::from(body))
        .customize()
        .config_override(aws_sdk_s3::config::Builder::default().timeout_config(timeouts))
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

impl S3Pieces {
    /// Reads all that comes: `told` bytes, if the service told, and at most `limit`.
    async fn collect(mut self, told: Option<u64>, limit: u64) -> Result<Bytes, StoreError> {
        let too_large = |name: &str| StoreError::corrupt(format!("{name} gave more than {limit} bytes"));
        if told.is_some_and(|told| told > limit) {
            return Err(too_large(&self.name));
        }
        // What is large goes into a buffer of its own: a piece keeps all that was received with it.
        let expected = told.and_then(|told| usize::try_from(told).ok()).unwrap_or(0);
        let mut small = Bytes::new();
        let mut whole = BytesMut::with_capacity(if expected > SMALL { expected } else { 0 });
        while let Some(piece) = self.next_piece().await? {
            let total = small.len() + whole.len() + piece.len();
            if total as u64 > limit {
                return Err(too_large(&self.name));
            }
            if whole.is_empty() && small.is_empty() && total <= SMALL {
                small = piece;
            } else {
                whole.reserve(expected.saturating_sub(whole.len()));
                whole.extend_from_slice(&std::mem::take(&mut small));
                whole.extend_from_slice(&piece);
            }
        }
        let whole = if whole.is_empty() { small } else { whole.freeze() };
        if told.is_some_and(|told| told != whole.len() as u64) {
            return Err(StoreError::corrupt(format!("{} ended after {} bytes", self.name, whole.len())));
        }
        Ok(whole)
    }

    /// Reads `len` bytes from `first` on of an object that comes whole, since the service knows no ranges. Reads no further.
    async fn cut_out(mut self, first: u64, len: u32) -> Result<Bytes, StoreError> {
        let (mut skip, len) = (first, usize::try_from(len).unwrap_or(usize::MAX));
        let mut range = BytesMut::new();
        while range.len() < len
            && let Some(piece) = self.next_piece().await?
        {
            let passed = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
            skip -= passed as u64;
            let rest = &piece[passed..];
            range.extend_from_slice(&rest[..rest.len().min(len - range.len())]);
        }
        if skip > 0 { Err(past_end(&self.name)) } else { Ok(range.freeze()) }
    }
}

impl ObjectReader for S3Pieces {
    fn next(&mut self) -> Operation<'_, Option<Bytes>> {
        Box::pin(self.next_piece())
    }
}
