//! Reading a separate body, in chunks that are verified before they are given out.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::{FoundBody, Inner};
use crate::base::{DurableOp, DurableOutcome};
use crate::entry::encoding::BODY_CHUNK;
use crate::entry::{Body, StoredHead, encoding};
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::place::ObjectReader;

/// A separate body that is not opened yet, to be read in part.
#[derive(Clone, Debug)]
pub struct SeparateBody {
    pub(super) inner: Arc<Inner>,
    pub(super) runtime: Handle,
    pub(super) name: String,
    pub(super) len: u64,
    pub(super) checksums: Arc<[u64]>,
}

/// A part of what a client gets of a separate body.
#[derive(Clone, Debug)]
pub enum BodyPart {
    /// Text between ranges, such as the boundaries of a multipart response.
    Text(Bytes),
    /// The bytes from the first position up to the second.
    Range(u64, u64),
}

/// The most pieces that are read ahead of the client.
const AHEAD: usize = 2;

/// The channel to the client.
type Pipe = mpsc::Sender<Result<Bytes, StoreError>>;

impl SeparateBody {
    /// Returns the length of the body.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Reads `parts`, and no more than the chunks that hold them. Returns `None` if the first piece can't be had, in time
    /// or at all. Dropping the receiver ends the reading.
    pub async fn read(&self, parts: Vec<BodyPart>) -> Option<mpsc::Receiver<Result<Bytes, StoreError>>> {
        let (pipe, receiver) = mpsc::channel(AHEAD);
        let (opened, is_open) = oneshot::channel();
        let this = self.clone();
        let within = self.inner.config.lookup_timeout;
        let task = self.runtime.spawn(async move {
            let mut sender = PartSender { body: &this, pipe, opened: Some(opened), texts: Vec::new() };
            if let Some(error) = sender.send(parts).await.err().flatten() {
                let _ = sender.pipe.send(Err(error)).await;
            }
        });
        match tokio::time::timeout(within, is_open).await {
            Ok(Ok(())) => Some(receiver),
            Ok(Err(_)) => None,
            Err(_) => {
                task.abort();
                self.inner.metrics.durable(DurableOp::Get, DurableOutcome::TimedOut);
                None
            }
        }
    }

    /// Opens the chunks that hold the bytes from `first` up to `end`.
    async fn open(&self, first: u64, end: u64) -> Result<BodyReader, StoreError> {
        const CHUNK: u64 = BODY_CHUNK as u64;
        let start = first / CHUNK * CHUNK;
        let stop = end.div_ceil(CHUNK).saturating_mul(CHUNK).min(self.len);
        let pieces = self.inner.place.read_range(&self.name, start, stop).await?;
        let next = usize::try_from(first / CHUNK).unwrap_or(usize::MAX);
        let checksums = Arc::clone(&self.checksums);
        Ok(BodyReader { pieces, pending: BytesMut::new(), left: stop.saturating_sub(start), checksums, next })
    }
}

/// Sends the parts of a separate body to a client.
struct PartSender<'a> {
    body: &'a SeparateBody,
    pipe: Pipe,
    /// Tells the caller of [`SeparateBody::read`] that the first piece is there. Dropped untold, it tells of a failure.
    opened: Option<oneshot::Sender<()>>,
    /// Texts that wait until the piece after them is there, so that nothing is sent of a body that can't be read.
    texts: Vec<Bytes>,
}

/// The end of sender before the last part: an error for the client, or `None` if the client has left.
type Ended = Option<StoreError>;

impl PartSender<'_> {
    async fn send(&mut self, parts: Vec<BodyPart>) -> Result<(), Ended> {
        for part in parts {
            match part {
                BodyPart::Text(text) => self.texts.push(text),
                BodyPart::Range(first, end) => self.send_range(first, end).await?,
            }
        }
        self.tell_opened();
        self.send_texts().await
    }

    async fn send_range(&mut self, first: u64, end: u64) -> Result<(), Ended> {
        let mut left = end.saturating_sub(first);
        let mut reader = self.body.open(first, end).await.inspect_err(|error| {
            self.body.inner.report_error(DurableOp::Get, error);
        })?;
        let mut skip = first % BODY_CHUNK as u64;
        while left > 0 {
            let read = reader.next().await.and_then(|piece| piece.ok_or_else(ended_early));
            let mut piece = read.inspect_err(|error| self.body.inner.report_unreadable(&self.body.name, error))?;
            piece = piece.split_off(usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len()));
            piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            skip = 0;
            left -= piece.len() as u64;
            if self.tell_opened() {
                self.body.inner.metrics.durable(DurableOp::Get, DurableOutcome::Ok);
            }
            self.send_texts().await?;
            self.pipe.send(Ok(piece)).await.map_err(|_| None)?;
        }
        Ok(())
    }

    async fn send_texts(&mut self) -> Result<(), Ended> {
        for text in self.texts.drain(..) {
            self.pipe.send(Ok(text)).await.map_err(|_| None)?;
        }
        Ok(())
    }

    /// Tells that the first piece is there. Returns whether that was not told before.
    fn tell_opened(&mut self) -> bool {
        let Some(opened) = self.opened.take() else { return false };
        // A caller that has given up is noticed when the piece is sent.
        let _ = opened.send(());
        true
    }
}

fn ended_early() -> StoreError {
    StoreError::corrupt("the body ended early")
}

/// A separate body that is being read. Each chunk is verified before it is given out.
#[derive(Debug)]
pub struct BodyReader {
    pieces: Box<dyn ObjectReader>,
    pending: BytesMut,
    left: u64,
    checksums: Arc<[u64]>,
    /// Number of the next chunk.
    next: usize,
}

impl BodyReader {
    /// Returns the number of bytes that are still to come.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Returns whether every chunk was given out.
    pub fn is_end(&self) -> bool {
        self.left == 0
    }

    /// Reads and verifies the next chunk. Returns `None` at the end of a complete body.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.left == 0 {
            return Ok(None);
        }
        let want = usize::try_from(self.left.min(BODY_CHUNK as u64)).unwrap_or(BODY_CHUNK);
        while self.pending.len() < want {
            match self.pieces.next().await? {
                Some(piece) => self.pending.extend_from_slice(&piece),
                None => return Err(ended_early()),
            }
        }
        let chunk = self.pending.split_to(want).freeze();
        if self.checksums.get(self.next) != Some(&encoding::chunk_checksum(&chunk)) {
            return Err(StoreError::corrupt("the body's checksum does not hold"));
        }
        self.next += 1;
        self.left -= want as u64;
        Ok(Some(chunk))
    }
}

impl Inner {
    /// Opens a separate body and verifies its first chunk: a body that is missing, cut off, or another's is then a miss and
    /// not a broken response.
    pub(super) async fn open_body(&self, head: &StoredHead, len: u64, checksums: Arc<[u64]>) -> Option<FoundBody> {
        let name = self.names.body(head.body_id());
        let pieces = match self.place.read(&name, len).await {
            Ok(pieces) => pieces,
            Err(error) if matches!(error.kind(), StoreErrorKind::Absent | StoreErrorKind::Corrupt) => {
                self.report_unreadable(&name, &error);
                self.forget_head(head);
                return None;
            }
            Err(error) => {
                self.report_error(DurableOp::Get, &error);
                return None;
            }
        };
        let mut reader = BodyReader { pieces, pending: BytesMut::new(), left: len, checksums, next: 0 };
        match reader.next().await {
            Ok(Some(first)) => Some(FoundBody::Streamed(first, reader)),
            Ok(None) => Some(FoundBody::Whole(Body::default())),
            Err(error) => {
                self.report_unreadable(&name, &error);
                self.forget_head(head);
                None
            }
        }
    }

    /// Takes the key of a head without a body out of the index, so that look-ups skip it until it is written anew.
    fn forget_head(&self, head: &StoredHead) {
        if head.variant().is_none() {
            let fingerprint = self.index.fingerprint(&head.key, 0);
            if let Some(found) = self.index.find(fingerprint) {
                self.index.bury(fingerprint, found.place);
            }
        }
    }
}
