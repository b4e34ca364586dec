//! Reading a separate body: in pieces, each checked before it is given out.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::{FoundBody, Inner};
use crate::base::{DurableOp, DurableOutcome};
use crate::entry::encoding::BODY_CHUNK;
use crate::entry::{Body, StoredHead, encoding};
use crate::store::BackendError;
use crate::store::backend::Pieces;

/// A separate body, to be read in part.
#[derive(Clone, Debug)]
pub struct Apart {
    pub(super) inner: Arc<Inner>,
    pub(super) runtime: Handle,
    pub(super) name: String,
    pub(super) len: u64,
    pub(super) checksums: Arc<[u64]>,
}

/// What of a separate body is read, and what stands between.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// A text that is no part of it.
    Text(Bytes),
    /// The bytes from the first position up to the second.
    Range(u64, u64),
}

/// How many pieces a client's own reading is ahead of it.
const AHEAD: usize = 2;

impl Apart {
    /// The length of the body.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads what is wanted and no more, but to the ends of the chunks that are checked. `None` when the
    /// first piece can't be had, in time or at all. Dropping the receiver ends the reading.
    pub async fn read(&self, wanted: Vec<Wanted>) -> Option<mpsc::Receiver<Result<Bytes, BackendError>>> {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let (opened, is_open) = oneshot::channel();
        let this = self.clone();
        let within = self.inner.config.lookup_timeout;
        let task = self.runtime.spawn(async move { this.send(wanted, &sender, opened).await });
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

    async fn send(
        &self,
        wanted: Vec<Wanted>,
        sender: &mpsc::Sender<Result<Bytes, BackendError>>,
        opened: oneshot::Sender<()>,
    ) {
        let mut opened = Some(opened);
        // What stands before the first piece goes out once that is there.
        let mut texts = Vec::new();
        for wanted in wanted {
            let (first, end) = match wanted {
                Wanted::Text(text) => {
                    texts.push(text);
                    continue;
                }
                Wanted::Range(first, end) => (first, end),
            };
            let mut left = end.saturating_sub(first);
            let mut reader = match self.open(first, end).await {
                Ok(reader) => reader,
                Err(error) => {
                    self.inner.note_error(DurableOp::Get, &error);
                    let _ = sender.send(Err(error)).await;
                    return;
                }
            };
            let mut skip = first % BODY_CHUNK as u64;
            while left > 0 {
                let mut piece = match reader.next().await {
                    Ok(Some(piece)) => piece,
                    Ok(None) => return self.fail(BackendError::failing("the body ended early"), sender).await,
                    Err(error) => return self.fail(error, sender).await,
                };
                piece = piece.split_off(usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len()));
                piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                skip = 0;
                left -= piece.len() as u64;
                if let Some(opened) = opened.take() {
                    self.inner.metrics.durable(DurableOp::Get, DurableOutcome::Ok);
                    // The one who waits may have given up: the next line finds out.
                    let _ = opened.send(());
                }
                for piece in texts.drain(..).chain([piece]) {
                    if sender.send(Ok(piece)).await.is_err() {
                        return;
                    }
                }
            }
        }
        if let Some(opened) = opened.take() {
            let _ = opened.send(());
        }
        for text in texts {
            if sender.send(Ok(text)).await.is_err() {
                return;
            }
        }
    }

    async fn fail(&self, error: BackendError, sender: &mpsc::Sender<Result<Bytes, BackendError>>) {
        self.inner.unreadable(&self.name, error.text());
        let _ = sender.send(Err(error)).await;
    }

    /// Opens the chunks that hold the bytes from `first` up to `end`.
    async fn open(&self, first: u64, end: u64) -> Result<BodyReader, BackendError> {
        const CHUNK: u64 = BODY_CHUNK as u64;
        let start = first / CHUNK * CHUNK;
        let stop = end.div_ceil(CHUNK).saturating_mul(CHUNK).min(self.len);
        let pieces = self.inner.backend.read_range(&self.name, start, stop).await?;
        let pieces = pieces.ok_or_else(|| BackendError::failing("its body is missing"))?;
        let next = usize::try_from(first / CHUNK).unwrap_or(usize::MAX);
        let checksums = Arc::clone(&self.checksums);
        Ok(BodyReader { pieces, pending: BytesMut::new(), left: stop.saturating_sub(start), checksums, next })
    }
}

/// A separate body on its way in, each piece checked before it is given out.
#[derive(Debug)]
pub struct BodyReader {
    pieces: Pieces,
    pending: BytesMut,
    left: u64,
    checksums: Arc<[u64]>,
    next: usize,
}

impl BodyReader {
    /// The bytes that are still to come.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Whether every piece was given out.
    pub fn is_end(&self) -> bool {
        self.left == 0
    }

    /// The next checked piece; `None` at the end of a complete body.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BackendError> {
        if self.left == 0 {
            return Ok(None);
        }
        let want = usize::try_from(self.left.min(BODY_CHUNK as u64)).unwrap_or(BODY_CHUNK);
        while self.pending.len() < want {
            match self.pieces.next().await? {
                Some(piece) => self.pending.extend_from_slice(&piece),
                None => return Err(BackendError::failing("the body ended early")),
            }
        }
        let chunk = self.pending.split_to(want).freeze();
        if self.checksums.get(self.next) != Some(&encoding::chunk_checksum(&chunk)) {
            return Err(BackendError::failing("the body's checksum does not hold"));
        }
        self.next += 1;
        self.left -= want as u64;
        Ok(Some(chunk))
    }
}

impl Inner {
    /// Opens a separate body and checks its first piece, so that one that is missing, cut off, or
    /// another's is a miss and not a broken response.
    pub(super) async fn open_body(&self, head: &StoredHead, len: u64, checksums: Arc<[u64]>) -> Option<FoundBody> {
        let name = self.names.body(head.body_id());
        let opened = self.backend.read(&name, len).await;
        let pieces = match opened {
            Ok(Some(pieces)) => pieces,
            Ok(None) => {
                self.unreadable(&name, "its body is missing");
                self.forget_head(head);
                return None;
            }
            Err(error) => {
                self.note_error(DurableOp::Get, &error);
                return None;
            }
        };
        let mut reader = BodyReader { pieces, pending: BytesMut::new(), left: len, checksums, next: 0 };
        match reader.next().await {
            Ok(Some(first)) => Some(FoundBody::Streamed(first, reader)),
            Ok(None) => Some(FoundBody::Whole(Body::default())),
            Err(error) => {
                self.unreadable(&name, error.text());
                self.forget_head(head);
                None
            }
        }
    }

    /// The object of a head is no use: it is not looked for again before it is written again.
    fn forget_head(&self, head: &StoredHead) {
        if head.variant().is_none() {
            self.index.remove(head.key.hash());
        }
    }
}
