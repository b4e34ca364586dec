//! The stream of bytes below a connection of HTTP/2: counts frames, gathers what is written, and ends when its client
//! takes nothing.
//!
//! `h2` writes and flushes each DATA frame alone. Here the frames of a turn of the connection's task are gathered, up to
//! as many bytes as TLS encrypts at once, and are written when the turn ends ([`Wire::poll_out`]): ten small responses
//! are one record and one system call.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use super::LAST_WORDS;
use super::meter::Meter;
use crate::base::{COPIED, Stopwatch, Timer, Transport};

/// The most bytes that are gathered: four whole records of TLS.
const GATHERED: usize = 64 << 10;

thread_local! {
    /// The room for gathering that no connection of this thread uses. Few need one between their turns.
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The stream that `h2` reads and writes.
#[derive(Debug)]
pub(super) struct Http2Io {
    wire: Arc<Mutex<Wire>>,
}

/// The state that the stream shares with the task that serves the connection.
#[derive(Debug)]
pub(super) struct Wire {
    transport: Option<Transport>,
    /// The bytes that were read before there was this stream.
    first: Bytes,
    meter: Arc<Meter>,
    /// The bytes that are gathered, of which the first `written` are written.
    gathered: Vec<u8>,
    written: usize,
    /// True if [`Wire::poll_out`] is called at the end of each turn: a flush does nothing then.
    has_turns: bool,
    /// The longest time in which the client takes nothing of what is written to it.
    patience: Duration,
    stalled: Option<Stopwatch>,
    timer: Timer,
    /// True once the client sends no more.
    is_read: bool,
}

impl Http2Io {
    /// Returns the stream, and what it shares with the task.
    pub(super) fn new(
        transport: Transport,
        first: Bytes,
        meter: Arc<Meter>,
        patience: Duration,
    ) -> (Self, Arc<Mutex<Wire>>) {
        let wire = Arc::new(Mutex::new(Wire {
            transport: Some(transport),
            first,
            meter,
            gathered: Vec::new(),
            written: 0,
            has_turns: false,
            patience,
            stalled: None,
            timer: Timer::default(),
            is_read: false,
        }));
        (Self { wire: Arc::clone(&wire) }, wire)
    }
}

impl Wire {
    /// Expects [`Wire::poll_out`] at the end of each turn from now on.
    pub(super) fn begin_turns(&mut self) {
        self.has_turns = true;
    }

    fn transport(&mut self) -> io::Result<Pin<&mut Transport>> {
        self.transport.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Writes what is gathered.
    pub(super) fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.gathered.len() {
            let Self { transport, gathered, written, .. } = self;
            let Some(transport) = transport else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
            let taken = Pin::new(transport).poll_write(cx, &gathered[*written..]);
            match ready!(self.poll_stall(cx, taken))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        self.give_room_back();
        let flushed = self.transport()?.poll_flush(cx).map_ok(|()| 0);
        self.poll_stall(cx, flushed).map_ok(drop)
    }

    fn give_room_back(&mut self) {
        self.written = 0;
        if self.gathered.capacity() > 0 {
            self.gathered.clear();
            SPARE.set(std::mem::take(&mut self.gathered));
        }
    }

    /// Takes as much as there is room for.
    fn poll_gather(&mut self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.gathered.len() >= GATHERED {
            ready!(self.poll_out(cx))?;
        }
        if self.gathered.capacity() == 0 {
            self.gathered = SPARE.take();
        }
        let before = self.gathered.len();
        for buf in bufs {
            let taken = buf.len().min(GATHERED - self.gathered.len());
            for part in buf[..taken].chunks(COPIED) {
                self.gathered.extend_from_slice(part);
            }
        }
        self.meter.wrote(&self.gathered[before..]);
        Poll::Ready(Ok(self.gathered.len() - before))
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

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.meter.flood().is_some() {
            // Whoever floods is not read from any more. The connection has a deadline by then.
            return Poll::Pending;
        }
        let before = buf.filled().len();
        if self.first.is_empty() {
            let read = ready!(self.transport()?.poll_read(cx, buf));
            self.is_read |= read.is_err() || buf.filled().len() == before;
            read?;
        } else {
            let given = self.first.split_to(self.first.len().min(buf.remaining()));
            buf.put_slice(&given);
        }
        self.meter.read(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Http2Io {
    fn drop(&mut self) {
        let mut wire = self.wire.lock();
        let mut rest = std::mem::take(&mut wire.gathered);
        rest.drain(..wire.written);
        // Closing a connection whose client still sends would reset it before the client has read what was sent.
        let must_linger = !wire.is_read;
        if rest.is_empty() && !must_linger {
            return;
        }
        if let (Some(mut transport), Ok(runtime)) = (wire.transport.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                let _ = tokio::time::timeout(LAST_WORDS, transport.write_all(&rest)).await;
                if must_linger {
                    transport.linger().await;
                }
            });
        }
    }
}

impl AsyncRead for Http2Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.wire.lock().poll_read(cx, buf)
    }
}

impl AsyncWrite for Http2Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.wire.lock().poll_gather(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.wire.lock().poll_gather(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.wire.lock();
        if wire.has_turns { Poll::Ready(Ok(())) } else { wire.poll_out(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.wire.lock();
        ready!(wire.poll_out(cx))?;
        wire.transport()?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::task::Waker;

    use tokio::io::AsyncReadExt as _;
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn what_is_written_in_a_turn_goes_out_when_it_ends() {
        // The client asks its socket itself, so that it knows for sure.
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().expect("sockets");
        ours.set_nonblocking(true).expect("it can be");
        theirs.set_nonblocking(true).expect("it can be");
        let ours = Transport::Unix(UnixStream::from_std(ours).expect("a socket"));
        let (mut io, wire) = Http2Io::new(ours, Bytes::new(), Arc::new(Meter::new()), Duration::from_secs(60));
        wire.lock().begin_turns();
        for part in ["one ", "two ", "three"] {
            io.write_all(part.as_bytes()).await.expect("written");
            io.flush().await.expect("flushed");
        }
        let mut read = [0; 64];
        assert!(theirs.read(&mut read).is_err(), "nothing is there yet");
        std::future::poll_fn(|cx| wire.lock().poll_out(cx)).await.expect("written");
        assert_eq!(theirs.read(&mut read).expect("it is there"), 13);
        assert_eq!(wire.lock().gathered.capacity(), 0, "the room is given back");
    }

    #[tokio::test]
    async fn what_is_gathered_is_bounded_and_goes_out_when_the_connection_is_dropped() {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        let meter = Arc::new(Meter::new());
        let (mut io, wire) = Http2Io::new(Transport::Unix(ours), Bytes::new(), meter, Duration::from_secs(60));
        wire.lock().begin_turns();
        let mut cx = Context::from_waker(Waker::noop());
        let mut taken = 0;
        // The client reads nothing: the socket is full at some time.
        while let Poll::Ready(count) = Pin::new(&mut io).poll_write(&mut cx, &[b'x'; 10_000]) {
            taken += count.expect("taken");
            assert!(wire.lock().gathered.len() <= GATHERED);
        }
        drop(io);
        let mut all = Vec::new();
        theirs.take(taken as u64).read_to_end(&mut all).await.expect("read");
        assert_eq!(all.len(), taken);
    }
}
