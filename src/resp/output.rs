//! The replies of a connection that are not written yet.
//!
//! Replies are gathered in a buffer that the connections of a thread share, so that the replies of a pipeline leave in
//! one write. Large values are not copied: they stand beside it, and are written from where they are. What the client
//! does not take at once is kept by its connection.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

use super::reply::{Protocol, Reply};
use crate::base::Transport;

/// Values from this size on are written from where they are. Copying fewer bytes costs less than a piece of their own.
pub(super) const LARGE: usize = 16 << 10;

/// The size up to which the shared buffer is kept.
const KEPT: usize = 256 << 10;

/// The most pieces of one write.
const PIECES: usize = 64;

/// Replies that are not written yet.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// The pieces that come first.
    pieces: VecDeque<Bytes>,
    /// The bytes of `pieces`.
    before: usize,
    /// The end: the part of the shared buffer that no large value follows.
    last: Vec<u8>,
    /// The bytes of `last` that are written.
    written: usize,
}

impl Output {
    /// Lends it the shared buffer, which is empty.
    pub(super) fn lend(&mut self, shared: &mut Vec<u8>) {
        std::mem::swap(&mut self.last, shared);
    }

    /// Takes the shared buffer back. What was not written stays here.
    pub(super) fn give_back(&mut self, shared: &mut Vec<u8>) {
        self.push_last();
        std::mem::swap(&mut self.last, shared);
        if shared.capacity() > KEPT {
            *shared = Vec::new();
        }
        shared.clear();
    }

    /// Returns the bytes that are not written yet.
    pub(super) fn len(&self) -> usize {
        self.before + self.last.len() - self.written
    }

    /// Returns whether everything is written.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops everything that is not written yet.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.last.clear();
        (self.before, self.written) = (0, 0);
    }

    /// Adds a reply.
    pub(super) fn put(&mut self, reply: Reply, protocol: Protocol) {
        match reply {
            Reply::Bulk(bytes) if bytes.len() >= LARGE => self.put_large(bytes),
            Reply::Array(items) if items.iter().any(is_large) => {
                self.last.push(b'*');
                self.last.extend_from_slice(itoa::Buffer::new().format(items.len()).as_bytes());
                self.last.extend_from_slice(b"\r\n");
                for item in items {
                    self.put(item, protocol);
                }
            }
            small => small.encode(protocol, &mut self.last),
        }
    }

    fn put_large(&mut self, bytes: Bytes) {
        self.last.push(b'$');
        self.last.extend_from_slice(itoa::Buffer::new().format(bytes.len()).as_bytes());
        self.last.extend_from_slice(b"\r\n");
        self.push_last();
        self.before += bytes.len();
        self.pieces.push_back(bytes);
        self.last.extend_from_slice(b"\r\n");
    }

    /// Makes a piece of what comes last.
    fn push_last(&mut self) {
        let rest = &self.last[self.written..];
        if !rest.is_empty() {
            self.before += rest.len();
            self.pieces.push_back(Bytes::copy_from_slice(rest));
        }
        self.last.clear();
        self.written = 0;
    }

    /// Writes as much as the client takes. Ready once everything is written.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, transport: &mut Transport) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let written = if self.pieces.is_empty() {
                ready!(Pin::new(&mut *transport).poll_write(cx, &self.last[self.written..]))?
            } else {
                let mut slices = [IoSlice::new(&[]); PIECES];
                let all = self.pieces.iter().map(|piece| &piece[..]).chain([&self.last[self.written..]]);
                let mut count = 0;
                for (slice, piece) in slices.iter_mut().zip(all) {
                    *slice = IoSlice::new(piece);
                    count += 1;
                }
                ready!(Pin::new(&mut *transport).poll_write_vectored(cx, &slices[..count]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
        self.last.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// Counts `written` bytes as written.
    fn advance(&mut self, mut written: usize) {
        while let Some(piece) = self.pieces.front_mut().filter(|_| written > 0) {
            let of_this = written.min(piece.len());
            piece.advance(of_this);
            self.before -= of_this;
            written -= of_this;
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
        self.written += written;
    }
}

fn is_large(reply: &Reply) -> bool {
    match reply {
        Reply::Bulk(bytes) => bytes.len() >= LARGE,
        Reply::Array(items) => items.iter().any(is_large),
        _ => false,
    }
}
