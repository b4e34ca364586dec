//! The stream of bytes below a connection of HTTP/2: counts frames, and ends when its client takes nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::meter::Meter;
use crate::base::{Stopwatch, Timer, Transport};

/// The stream that `h2` reads and writes.
#[derive(Debug)]
pub(super) struct Http2Io {
    transport: Option<Transport>,
    /// The bytes that were read before there was this stream.
    first: Bytes,
    meter: Arc<Meter>,
    /// The longest time in which the client takes nothing of what is written to it.
    patience: Duration,
    stalled: Option<Stopwatch>,
    timer: Timer,
    /// True once the client sends no more.
    is_read: bool,
}

impl Http2Io {
    pub(super) fn new(transport: Transport, first: Bytes, meter: Arc<Meter>, patience: Duration) -> Self {
        let timer = Timer::default();
        Self { transport: Some(transport), first, meter, patience, stalled: None, timer, is_read: false }
    }

    fn transport(&mut self) -> io::Result<Pin<&mut Transport>> {
        self.transport.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Fails a write with a timeout once the client has taken nothing for `patience`.
    fn poll_stall(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = written {
            self.stalled = None;
            return Poll::Ready(written);
        }
        let since = *self.stalled.get_or_insert_with(Stopwatch::start);
        ready!(self.timer.poll(cx, since, self.patience));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Drop for Http2Io {
    fn drop(&mut self) {
        // Closing a connection whose client still sends would reset it before the client has read what was sent.
        if self.is_read {
            return;
        }
        if let (Some(mut transport), Ok(runtime)) = (self.transport.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { transport.linger().await });
        }
    }
}

impl AsyncRead for Http2Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.meter.flood().is_some() {
            // Whoever floods is not read from any more. The connection has a deadline by then.
            return Poll::Pending;
        }
        let before = buf.filled().len();
        if this.first.is_empty() {
            let read = ready!(this.transport()?.poll_read(cx, buf));
            this.is_read |= read.is_err() || buf.filled().len() == before;
            read?;
        } else {
            let given = this.first.split_to(this.first.len().min(buf.remaining()));
            buf.put_slice(&given);
        }
        this.meter.read(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Http2Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = this.transport()?.poll_write(cx, buf);
        if let Poll::Ready(Ok(count)) = written {
            this.meter.wrote(&buf[..count]);
        }
        this.poll_stall(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = this.transport()?.poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(mut left)) = written {
            for buf in bufs {
                let count = left.min(buf.len());
                this.meter.wrote(&buf[..count]);
                left -= count;
            }
        }
        this.poll_stall(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = this.transport()?.poll_flush(cx).map_ok(|()| 0);
        this.poll_stall(cx, flushed).map_ok(drop)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().transport()?.poll_shutdown(cx)
    }
}
