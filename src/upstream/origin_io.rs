//! A connection to the origin, as hyper sees it.
//!
//! * An origin that refuses an upload answers and closes, although there is more to come. hyper takes the
//!   failed write for the end, and never reads that answer. So from a failed write on nothing is written any
//!   more, and what was sent before is read to its end.
//! * hyper's buffer has to hold a whole head; of a body no more is read ahead than [`READ_AHEAD`].

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};

use crate::base::Transport;

/// The most bytes that are read at once.
pub(super) const READ_AHEAD: usize = 64 << 10;

/// Holds the state of a connection's bytes. Written by its task, read by whoever has a request on it.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    is_broken: AtomicBool,
    is_unsent: AtomicBool,
    read: AtomicU64,
}

impl Wire {
    /// Returns whether the origin takes nothing more.
    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Relaxed)
    }

    /// Returns whether all that hyper has written has been sent.
    pub(crate) fn is_sent(&self) -> bool {
        !self.is_unsent.load(Ordering::Relaxed) && !self.is_broken()
    }

    /// Bytes read since [`Wire::begin`].
    pub(crate) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Begins a request.
    pub(crate) fn begin(&self) {
        self.read.store(0, Ordering::Relaxed);
    }
}

/// The stream that hyper reads and writes.
#[derive(Debug)]
pub(super) struct OriginIo {
    transport: Take<Transport>,
    wire: Arc<Wire>,
}

impl OriginIo {
    /// Wraps a stream.
    pub(super) fn new(transport: Transport, wire: Arc<Wire>) -> Self {
        Self { transport: transport.take(0), wire }
    }

    #[inline]
    fn write(
        &mut self,
        len: impl FnOnce() -> usize,
        write: impl FnOnce(Pin<&mut Transport>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
        if self.wire.is_broken() {
            return Poll::Ready(Ok(len()));
        }
        self.wire.is_unsent.store(true, Ordering::Relaxed);
        match write(Pin::new(self.transport.get_mut())) {
            Poll::Ready(Err(error))
                if matches!(error.kind(), BrokenPipe | ConnectionReset | ConnectionAborted | NotConnected) =>
            {
                self.wire.is_broken.store(true, Ordering::Relaxed);
                Poll::Ready(Ok(len()))
            }
            written => written,
        }
    }
}

impl AsyncRead for OriginIo {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = if buf.remaining() > READ_AHEAD {
            this.transport.set_limit(READ_AHEAD as u64);
            Pin::new(&mut this.transport).poll_read(cx, buf)
        } else {
            Pin::new(this.transport.get_mut()).poll_read(cx, buf)
        };
        if matches!(read, Poll::Ready(Ok(()))) {
            let bytes = (buf.filled().len() - before) as u64;
            this.wire.read.store(this.wire.read() + bytes, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for OriginIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write(|| buf.len(), |transport| transport.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len = || bufs.iter().map(|buf| buf.len()).sum();
        self.get_mut().write(len, |transport| transport.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.wire.is_broken() {
            return Poll::Ready(Ok(()));
        }
        // hyper flushes when its own buffer is empty.
        let flushed = Pin::new(this.transport.get_mut()).poll_flush(cx);
        if flushed.is_ready() {
            this.wire.is_unsent.store(false, Ordering::Relaxed);
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().transport.get_mut()).poll_shutdown(cx)
    }
}
