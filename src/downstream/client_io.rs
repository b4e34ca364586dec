//! A client's connection, as hyper sees it.
//!
//! hyper parses requests and frames responses. This stream adds what hyper leaves undone:
//!
//! * it replaces hyper's own answers to what it can't parse, which have no content, by a sentence;
//! * it escapes `"`, `<`, `>` and `` ` `` in a request's target (see `heads`);
//! * it closes connections that send nothing, by one timer a connection that is moved only when it fires;
//! * it lets informational responses out before the response (see `outlet`);
//! * it reads on for a moment when a connection ends whose client may still be sending: closing at once would reset
//!   the connection before the answer has reached the client.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Sleep;

use super::connection::Connection;
use super::refusals::Witness;
use crate::base::{Stopwatch, Transport, Unparsed};

/// The most bytes, and the longest time, for which a refused client is read on from.
const LINGER_BYTES: usize = 4 << 20;
const LINGER: Duration = Duration::from_secs(2);

impl Transport {
    /// Answers that there are too many connections, and closes.
    pub(crate) async fn refuse_for_load(mut self) {
        const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\nAge: 0\r\nCache-Status: larder; detail=too-many-connections\r\nContent-Length: 35\r\n\r\ntoo many connections are open here\n";
        let _ = tokio::time::timeout(LINGER, async { self.write_all(BUSY).await }).await;
        self.linger().await;
    }

    /// Shuts down writing, and reads on for a moment, so that a reset does not overtake the answer.
    pub(crate) async fn linger(&mut self) {
        let _ = tokio::time::timeout(LINGER, async {
            let mut sink = vec![0; 16 << 10];
            let mut read = 0;
            let _ = self.shutdown().await;
            while read < LINGER_BYTES {
                match self.read(&mut sink).await {
                    Ok(0) | Err(_) => return,
                    Ok(n) => read += n,
                }
            }
        })
        .await;
    }
}

/// The times for which a client may keep a connection waiting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// The longest time for the rest of a request's head.
    pub header: Duration,
    /// The longest time for a request to begin.
    pub idle: Duration,
    /// The longest time in which it takes nothing of what is written to it.
    pub body: Duration,
}

/// The stream that hyper reads and writes.
#[derive(Debug)]
pub(crate) struct ClientIo {
    transport: Option<Transport>,
    /// The bytes that were read before there was this stream.
    first: Bytes,
    connection: Arc<Connection>,
    patience: Patience,
    witness: Witness,
    /// Runs since the connection began to wait for a request, or for the rest of its head. `None` until the wait is
    /// first seen by `poll_patience`.
    since: Option<Stopwatch>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Runs while the client takes nothing of what is written to it.
    stall: Option<Pin<Box<Sleep>>>,
    /// The answer in place of hyper's that is not written yet.
    replacement: Bytes,
    /// True if the client may still be sending when the connection ends.
    must_linger: bool,
    /// The informational responses that are not written yet.
    informational: Bytes,
    /// The bytes that hyper is given next: escaping made more of a read than its buffer had room for.
    rest: Bytes,
}

impl ClientIo {
    /// Wraps the stream of a client's connection.
    /// `first` was read of it before.
    pub(crate) fn new(
        transport: Transport,
        first: Bytes,
        connection: Arc<Connection>,
        patience: Patience,
        witness: Witness,
    ) -> Self {
        Self {
            first,
            transport: Some(transport),
            connection,
            patience,
            witness,
            since: None,
            timer: None,
            stall: None,
            replacement: Bytes::new(),
            must_linger: false,
            informational: Bytes::new(),
            rest: Bytes::new(),
        }
    }

    /// Gives hyper as much of `rest` as there is room for.
    fn give_rest(&mut self, buf: &mut ReadBuf<'_>) {
        let given = self.rest.split_to(self.rest.len().min(buf.remaining()));
        buf.put_slice(&given);
    }

    #[inline]
    fn note_read(&mut self, bytes: &[u8]) {
        if self.connection.read(bytes) {
            self.since = None;
        }
    }

    /// Reads what was read before, or what the client sends.
    #[inline]
    fn poll_transport(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return self.transport()?.poll_read(cx, buf);
        }
        let given = self.first.split_to(self.first.len().min(buf.remaining()));
        buf.put_slice(&given);
        Poll::Ready(Ok(()))
    }

    fn transport(&mut self) -> io::Result<Pin<&mut Transport>> {
        self.transport.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Waits until the connection has waited for a request, or for the rest of its head, for longer than it may.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            // While a request is answered the client owes nothing. The timer runs on all the same: hyper may not poll
            // again before it fires.
            if self.connection.is_waiting() {
                let since = *self.since.get_or_insert_with(Stopwatch::start);
                // While the timer runs no limit can have passed.
                if self.timer.is_none() {
                    let limit = if self.connection.is_in_head() { self.patience.header } else { self.patience.idle };
                    if since.elapsed() >= limit {
                        if self.connection.is_in_head() {
                            self.note(Unparsed::HeadTimeout);
                        }
                        return Poll::Ready(());
                    }
                }
            }
            match &mut self.timer {
                // The timer wakes this task: it was polled when it was set.
                Some(timer) if !timer.is_elapsed() => return Poll::Pending,
                Some(_) => self.timer = None,
                None => {
                    // The limit of a head may be nearer than that of an idle connection, and a head may begin at any
                    // time.
                    let nearest = self.patience.header.min(self.patience.idle);
                    let timer = self.timer.insert(Box::pin(tokio::time::sleep(nearest)));
                    // Polls outside tokio's cooperative budget: a `Pending` caused by the budget would lose the only
                    // wake-up.
                    if Pin::new(&mut tokio::task::unconstrained(timer.as_mut())).poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    /// Fails a write with a timeout once the client has taken nothing for `patience.body`.
    fn poll_stall(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            if self.stall.is_some() {
                self.stall = None;
            }
            return written;
        }
        let limit = self.patience.body;
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(stall.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn note(&self, why: Unparsed) {
        self.connection.report(why, &self.witness);
    }

    /// Replaces hyper's answer to what it can't parse, which is a status and nothing else.
    fn replace_refusal(&mut self, refusal: &[u8]) {
        let status = refusal
            .get(9..12)
            .and_then(|digits| StatusCode::from_bytes(digits).ok())
            .unwrap_or(StatusCode::BAD_REQUEST);
        let (why, sentence) = match status {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                (Unparsed::HeadTooLarge, "the request's head is larger than this server takes")
            }
            StatusCode::URI_TOO_LONG => {
                (Unparsed::TargetTooLong, "the request's target is longer than this server takes")
            }
            _ => (Unparsed::Malformed, "this is not a request that HTTP/1.1 allows"),
        };
        self.note(why);
        let text = format!(
            "HTTP/1.1 {} {}\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\nAge: 0\r\nCache-Status: larder; detail=bad-request\r\nContent-Length: {}\r\n\r\n{sentence}\n",
            status.as_u16(),
            status.canonical_reason().unwrap_or_default(),
            sentence.len() + 1,
        );
        self.replacement = text.into();
        self.must_linger = true;
    }

    /// Writes the informational responses that wait, before hyper writes of the response behind them.
    #[inline]
    fn poll_informational(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.informational.is_empty() && !self.connection.outlet().has_pending() {
            return Poll::Ready(Ok(()));
        }
        self.write_informational(cx)
    }

    fn write_informational(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while !self.informational.is_empty() {
                let bytes = self.informational.clone();
                let written = self.transport()?.poll_write(cx, &bytes);
                let written = ready!(self.poll_stall(cx, written))?;
                let _ = self.informational.split_to(written);
            }
            match self.connection.outlet().take() {
                Some(bytes) => self.informational = bytes.into(),
                None => return Poll::Ready(Ok(())),
            }
        }
    }

    fn poll_replacement(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.replacement.is_empty() {
            let bytes = self.replacement.clone();
            let written = self.transport()?.poll_write(cx, &bytes);
            let written = ready!(self.poll_stall(cx, written))?;
            let _ = self.replacement.split_to(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for ClientIo {
    fn drop(&mut self) {
        if !self.must_linger {
            return;
        }
        if let (Some(mut transport), Ok(runtime)) = (self.transport.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { transport.linger().await });
        }
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if !this.rest.is_empty() {
            this.give_rest(buf);
            this.note_read(&buf.filled()[before..]);
            return Poll::Ready(Ok(()));
        }
        match this.poll_transport(cx, buf) {
            Poll::Ready(Ok(())) => {
                if let Some(escaped) = this.connection.escape_target(&buf.filled()[before..]) {
                    buf.set_filled(before);
                    this.rest = escaped.into();
                    this.give_rest(buf);
                }
                this.note_read(&buf.filled()[before..]);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                ready!(this.poll_patience(cx));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.connection.is_waiting() {
            this.replace_refusal(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(this.poll_informational(cx))?;
        this.connection.outlet().wrote();
        let written = this.transport()?.poll_write(cx, buf);
        this.poll_stall(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.connection.is_waiting() {
            let refusal: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
            this.replace_refusal(&refusal);
            return Poll::Ready(Ok(refusal.len()));
        }
        ready!(this.poll_informational(cx))?;
        this.connection.outlet().wrote();
        let written = this.transport()?.poll_write_vectored(cx, bufs);
        this.poll_stall(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_replacement(cx))?;
        ready!(this.poll_informational(cx))?;
        let flushed = this.transport()?.poll_flush(cx).map_ok(|()| 0);
        ready!(this.poll_stall(cx, flushed))?;
        // hyper flushes when its own buffer is empty, so the whole response is out.
        if this.connection.flushed() {
            this.since = None;
        }
        // hyper may be in the middle of a body that it no longer wants, and read no more: the limit is checked here as
        // well.
        let is_time = this.timer.as_ref().is_some_and(|timer| timer.is_elapsed());
        if is_time && this.poll_patience(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_replacement(cx))?;
        this.must_linger |= this.connection.may_be_in_body();
        this.transport()?.poll_shutdown(cx)
    }
}
