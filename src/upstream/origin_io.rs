//! The stream that hyper reads from and writes to.
//!
//! * An origin that refuses an upload may answer and close before it has read all of it. hyper gives up at the failed
//!   write, and never reads that answer. So after a failed write the stream drops all further writes and reports them
//!   as done, and hyper reads the answer.
//! * hyper's buffer is large enough for a whole head. To not fill it with a body, at most [`READ_AHEAD`] bytes are read at
//!   once.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};

use crate::base::Transport;

/// The most bytes that are read at once.
pub(super) const READ_AHEAD: usize = 64 << 10;

/// The state of a connection's bytes. Written by the connection's task, read by the request that uses it.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    /// True once a write failed.
    is_broken: AtomicBool,
    /// True while bytes that hyper wrote are not flushed.
    is_unsent: AtomicBool,
    /// See [`Wire::read`].
    read: AtomicU64,
}

impl Wire {
    /// Returns whether a write has failed, so that the origin gets nothing more.
    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Relaxed)
    }

    /// Returns whether everything that hyper wrote was sent.
    pub(crate) fn is_sent(&self) -> bool {
        !self.is_unsent.load(Ordering::Relaxed) && !self.is_broken()
    }

    /// Returns the bytes read since [`Wire::begin`].
    pub(crate) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Begins to count for a new request.
    pub(crate) fn begin(&self) {
        self.read.store(0, Ordering::Relaxed);
    }
}

/// The stream that hyper reads from and writes to.
#[derive(Debug)]
pub(super) struct OriginIo {
    transport: Take<Transport>,
    wire: Arc<Wire>,
}

impl OriginIo {
    /// Wraps a stream, whose state goes to `wire`.
    pub(super) fn new(transport: Transport, wire: Arc<Wire>) -> Self {
        Self { transport: transport.take(0), wire }
    }

    /// Calls `write`, unless an earlier write failed. Reports a failed write of `len` bytes as done.
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
        // hyper flushes once its own buffer is empty, so that nothing is unsent then.
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
