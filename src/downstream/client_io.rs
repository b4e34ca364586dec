//! A client's connection, as hyper sees it.
//!
//! hyper parses requests and frames responses. What it leaves undone is done here, on the bytes
//! that pass:
//!
//! * its own answers to what it can't parse have no content: they get a sentence;
//! * `"`, `<`, `>` and `` ` `` in a request's target, which browsers and other servers let pass and hyper does
//!   not, are escaped, so that there is one key for both spellings;
//! * a request with both `Content-Length` and `Transfer-Encoding` is let through with the former
//!   taken out: it is refused (RFC 9112 §6.1);
//! * connections that send nothing are closed, by one timer a connection that is moved only when
//!   it fires;
//! * a client that is still sending when its connection ends, because it was refused or the rest of its
//!   request's body is of no use to anyone, is heard out for a moment, so that the answer reaches it before
//!   the connection is reset.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use memchr::memmem;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Sleep;

use super::outlet::Outlet;
use crate::base::{Stopwatch, Transport, Unparsed};
use crate::downstream::Witness;
use crate::respond::{Carrier, ResponseBody};
use crate::rfc9111::present::Present;

/// The most bytes of a request head that are kept to look at.
const MAX_RECENT: usize = 128 << 10;

/// What of that a connection keeps room for while it waits.
const KEPT_RECENT: usize = 4 << 10;

/// How much, and for how long, a refused client is heard out.
const LINGER_BYTES: usize = 4 << 20;
const LINGER: Duration = Duration::from_secs(2);

impl Transport {
    /// Tells a client that there are too many, and closes.
    pub(crate) async fn refuse_for_load(mut self) {
        const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\nAge: 0\r\nCache-Status: larder; detail=too-many-connections\r\nContent-Length: 35\r\n\r\ntoo many connections are open here\n";
        let _ = tokio::time::timeout(LINGER, async { self.write_all(BUSY).await }).await;
        self.hear_out().await;
    }

    /// Ends what is sent, and reads on for a moment.
    async fn hear_out(&mut self) {
        let _ = tokio::time::timeout(LINGER, async {
            let mut sink = vec![0; 16 << 10];
            let mut heard = 0;
            let _ = self.shutdown().await;
            while heard < LINGER_BYTES {
                match self.read(&mut sink).await {
                    Ok(0) | Err(_) => return,
                    Ok(n) => heard += n,
                }
            }
        })
        .await;
    }
}

/// What a connection's stream and its requests tell each other.
#[derive(Debug)]
pub(crate) struct Connection {
    /// A [`Phase`]. Read and written on one thread, that of the connection; it is atomic to be shared at all.
    phase: AtomicU8,
    /// Guarded by its lock, which nobody ever waits for, for the same reason: the heads as they were read.
    heads: Mutex<Heads>,
    outlet: Arc<Outlet>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// Every response is out; nothing, or a part of a head, has been read.
    Waiting,
    /// A request is being answered.
    Answering,
    /// The body of its response has ended, and may not be written out yet.
    Flushing,
    /// The bytes are no longer HTTP, and no longer looked at.
    Tunnel,
}

/// The heads of requests, as they were read; what comes while a request with a body is answered is that.
#[derive(Debug, Default)]
struct Heads {
    recent: Vec<u8>,
    /// How many of the heads at the beginning have become requests, and are of no more use.
    begun: usize,
    /// Whether what is behind them is the body of the last of those requests.
    is_body: bool,
}

/// The part of a request line that comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Method,
    Target,
}

/// Returns whether the first line in `read` may hold signs that hyper takes in no target (RFC 9112 §3.2). It nearly
/// never does, and is short: eight bytes at a time, and what is behind it in the last of them counts as well.
#[inline]
fn may_hold_unsafe_signs(read: &[u8]) -> bool {
    const fn each(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    // Finds a zero byte in a word.
    let has_zero = |word: u64| word.wrapping_sub(each(1)) & !word & each(0x80) != 0;
    let start = match read.first() {
        Some(b'\r' | b'\n') => read.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(read.len()),
        _ => 0,
    };
    let (words, rest) = read[start..].as_chunks::<8>();
    for word in words {
        let word = u64::from_ne_bytes(*word);
        // `<` and `>` differ in one bit.
        let has_sign =
            has_zero(word ^ each(b'"')) | has_zero(word ^ each(b'`')) | has_zero(word & !each(2) ^ each(b'<'));
        if has_sign || has_zero(word ^ each(b'\n')) {
            return has_sign;
        }
    }
    rest.iter().any(|byte| is_unsafe_sign(*byte))
}

const fn is_unsafe_sign(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'`')
}

/// The first line in `read` that is not empty, if it holds such signs.
fn line_with_unsafe_signs(read: &[u8]) -> Option<Range<usize>> {
    let start = read.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let end = start + memchr::memchr(b'\n', &read[start..]).unwrap_or(read.len() - start);
    read[start..end].iter().any(|byte| is_unsafe_sign(*byte)).then_some(start..end)
}

/// `read` with those signs escaped in the target that is in `line`. A head behind another one in the same read is
/// left as it is.
fn escaped(read: &[u8], line: Range<usize>, from: Line) -> Option<Vec<u8>> {
    let Range { start, end } = line;
    let target = match from {
        Line::Method => start + memchr::memchr(b' ', &read[start..end])?,
        Line::Target => start,
    };
    let line = &read[target..end];
    let mut bytes = Vec::with_capacity(read.len() + 64);
    bytes.extend_from_slice(&read[..target]);
    for byte in line {
        if is_unsafe_sign(*byte) {
            bytes.push(b'%');
            bytes.extend([byte >> 4, byte & 15].map(|digit| b"0123456789ABCDEF"[usize::from(digit)]));
        } else {
            bytes.push(*byte);
        }
    }
    bytes.extend_from_slice(&read[end..]);
    Some(bytes)
}

/// Where the first head in `bytes` ends, as hyper sees it: with an empty line, behind any at the
/// beginning; a line may end without a carriage return.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    memchr::memchr_iter(b'\n', &bytes[start..]).map(|at| start + at + 1).find_map(|next| match bytes[next..] {
        [b'\n', ..] => Some(next + 1),
        [b'\r', b'\n', ..] => Some(next + 2),
        _ => None,
    })
}

impl Heads {
    /// Notes a head that has become a request.
    fn begin(&mut self, has_body: bool) {
        self.begun += 1;
        self.is_body = has_body;
    }

    /// Forgets heads whose requests are all answered, when hyper reads on: it does so once it has no whole
    /// head any more, so that behind an empty line there is nothing.
    #[inline]
    fn forget_answered(&mut self) {
        if self.begun > 0 && !self.is_body && (self.recent.ends_with(b"\n\r\n") || self.recent.ends_with(b"\n\n")) {
            self.begun = 0;
            self.recent.clear();
            if self.recent.capacity() > KEPT_RECENT {
                self.recent.shrink_to(KEPT_RECENT);
            }
        }
    }

    /// Adds what was read, and returns whether a head begins with it. A head that began behind a body in one read
    /// with that is not looked at: where its framing contradicts itself hyper ends the connection with it, and goes by
    /// `Transfer-Encoding`.
    #[inline]
    fn read(&mut self, bytes: &[u8]) -> bool {
        self.forget_begun();
        if std::mem::take(&mut self.is_body) {
            self.recent.clear();
        }
        let begins = self.recent.is_empty();
        let room = MAX_RECENT - self.recent.len();
        self.recent.extend_from_slice(&bytes[..bytes.len().min(room)]);
        begins
    }

    /// Returns the part of the request line that the next bytes belong to, if they belong to one.
    fn line(&mut self) -> Option<Line> {
        self.forget_begun();
        if self.is_body {
            return None;
        }
        let start = self.recent.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(self.recent.len());
        let line = &self.recent[start..];
        if line.contains(&b'\n') {
            return None;
        }
        Some(if line.contains(&b' ') { Line::Target } else { Line::Method })
    }

    /// Whether there is a part of a head.
    fn is_in_head(&mut self) -> bool {
        self.forget_begun();
        !self.recent.is_empty() && !self.is_body
    }

    #[inline]
    fn forget_begun(&mut self) {
        if self.begun > 0 {
            self.drop_begun();
        }
    }

    fn drop_begun(&mut self) {
        let end = self.recent.len() - self.next().len();
        self.begun = 0;
        self.recent.drain(..end);
        if self.recent.capacity() > KEPT_RECENT {
            self.recent.shrink_to(KEPT_RECENT);
        }
    }

    /// The head that becomes the next request, and what is behind it.
    fn next(&self) -> &[u8] {
        (0..self.begun).fold(&self.recent[..], |rest, _| &rest[end_of_head(rest).unwrap_or(rest.len())..])
    }
}

impl Connection {
    /// A connection that waits for its first request.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { phase: AtomicU8::new(Phase::Waiting as u8), heads: Mutex::default(), outlet: Arc::default() })
    }

    /// Notes that a request has come, with the fields that are `present`; whether its framing
    /// contradicts itself.
    #[inline]
    pub(crate) fn begin(&self, request: &Request<Incoming>, present: Present) -> bool {
        self.enter(Phase::Answering);
        let mut heads = self.heads.lock();
        let conflict = present.has(Present::TRANSFER_ENCODING) && has_content_length(heads.next(), request);
        heads.begin(!request.body().is_end_stream());
        conflict
    }

    #[inline]
    fn is_in(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Relaxed) == phase as u8
    }

    #[inline]
    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Where the connection's interim responses go out.
    pub(super) fn outlet(&self) -> &Arc<Outlet> {
        &self.outlet
    }

    /// Has the connection wait again once `response` is out.
    #[inline]
    pub(crate) fn track(self: &Arc<Self>, response: &mut Response<ResponseBody>) {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            self.enter(Phase::Tunnel);
        }
        response.body_mut().track(Arc::clone(self) as Arc<dyn Carrier>);
    }

    /// Notes that all that was written is out; whether the connection waits from now on.
    #[inline]
    fn flushed(&self) -> bool {
        self.outlet.flushed();
        let waits = self.is_in(Phase::Flushing);
        if waits {
            self.enter(Phase::Waiting);
        }
        waits
    }

    /// Notes what was read; whether a head has begun with it.
    #[inline]
    fn read(&self, bytes: &[u8]) -> bool {
        if self.is_in(Phase::Tunnel) {
            return false;
        }
        let mut heads = self.heads.lock();
        // Behind a request without a body comes the next one.
        if self.is_in(Phase::Answering) && heads.is_body {
            return false;
        }
        if self.is_waiting() {
            heads.forget_answered();
        }
        heads.read(bytes)
    }

    /// Returns the bytes for hyper to read in place of `read`, where they differ.
    #[inline]
    fn instead_of(&self, read: &[u8]) -> Option<Vec<u8>> {
        if may_hold_unsafe_signs(read) { self.escaped(read) } else { None }
    }

    #[cold]
    fn escaped(&self, read: &[u8]) -> Option<Vec<u8>> {
        let line = line_with_unsafe_signs(read)?;
        if self.is_in(Phase::Tunnel) {
            return None;
        }
        let part = {
            let mut heads = self.heads.lock();
            if self.is_in(Phase::Answering) && heads.is_body {
                return None;
            }
            if self.is_waiting() {
                heads.forget_answered();
            }
            heads.line()?
        };
        escaped(read, line, part)
    }

    fn is_waiting(&self) -> bool {
        self.is_in(Phase::Waiting)
    }

    fn is_in_head(&self) -> bool {
        self.heads.lock().is_in_head()
    }

    /// Whether the last request had a body, of which there may be more to come.
    fn may_be_in_body(&self) -> bool {
        !self.is_in(Phase::Tunnel) && self.heads.lock().is_body
    }
}

/// Whether the head of `request`, as it was read, has a `Content-Length`. hyper takes that field
/// out where there is a `Transfer-Encoding`, so the bytes are looked at.
fn has_content_length(recent: &[u8], request: &Request<Incoming>) -> bool {
    let line = format!("{} ", request.method());
    let Some(start) = memmem::find(recent, line.as_bytes()) else { return false };
    let head = &recent[start..];
    let head = &head[..end_of_head(head).unwrap_or(head.len())];
    head.split(|&byte| byte == b'\n').skip(1).any(|line| {
        let name = line.split(|&byte| byte == b':').next().unwrap_or_default();
        name.trim_ascii().eq_ignore_ascii_case(b"content-length")
    })
}

/// The answer to a request with two framings. Its connection ends with it: hyper sees to that.
pub(crate) fn conflicting_framing() -> Response<ResponseBody> {
    const SENTENCE: &str = "the request has both Content-Length and Transfer-Encoding\n";
    let mut response = Response::new(ResponseBody::whole(Bytes::from_static(SENTENCE.as_bytes())));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    let fields = response.headers_mut();
    fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert(header::AGE, HeaderValue::from_static("0"));
    fields.insert("cache-status", HeaderValue::from_static("larder; detail=bad-request"));
    response
}

impl Carrier for Connection {
    fn body_has_ended(&self) {
        if self.is_in(Phase::Answering) {
            self.enter(Phase::Flushing);
        }
    }
}

/// How long a client may keep a connection waiting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For the rest of a request's head.
    pub header: Duration,
    /// For a request.
    pub idle: Duration,
    /// For it to take some of what is written to it.
    pub body: Duration,
}

/// The stream that hyper reads and writes.
#[derive(Debug)]
pub(crate) struct ClientIo {
    transport: Option<Transport>,
    connection: Arc<Connection>,
    patience: Patience,
    witness: Witness,
    /// Since the connection began to wait for a request, or for the rest of its head; `None`: since it was
    /// last looked at.
    since: Option<Stopwatch>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Runs while the client takes nothing of what is written to it.
    stall: Option<Pin<Box<Sleep>>>,
    /// Our words in place of hyper's, as far as they are not written yet.
    instead: Bytes,
    /// Whether the client may still be sending when the connection ends.
    is_heard_out: bool,
    /// Interim responses, as far as they are not written yet.
    interim: Bytes,
    /// The bytes that hyper is given next: more came of what was read than there was room for.
    rest: Bytes,
}

impl ClientIo {
    /// Wraps a stream.
    pub(crate) fn new(transport: Transport, connection: Arc<Connection>, patience: Patience, witness: Witness) -> Self {
        Self {
            transport: Some(transport),
            connection,
            patience,
            witness,
            since: None,
            timer: None,
            stall: None,
            instead: Bytes::new(),
            is_heard_out: false,
            interim: Bytes::new(),
            rest: Bytes::new(),
        }
    }

    /// Gives hyper as much of the rest as there is room for.
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

    fn transport(&mut self) -> io::Result<Pin<&mut Transport>> {
        self.transport.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Whether the connection has waited for longer than it may.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            // While a request is answered nobody waits for the client. The timer runs all the same:
            // hyper may not read again before it is time to look.
            if self.connection.is_waiting() {
                let since = *self.since.get_or_insert_with(Stopwatch::start);
                // Nobody has waited for longer than the timer has run.
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
                // It wakes this connection, as it was told when it was set.
                Some(timer) if !timer.is_elapsed() => return Poll::Pending,
                Some(_) => self.timer = None,
                None => {
                    // In the middle of a head the limit may be nearer than when it was set.
                    let nearest = self.patience.header.min(self.patience.idle);
                    let timer = self.timer.insert(Box::pin(tokio::time::sleep(nearest)));
                    // It is asked but once, and has to hear: also when this task has had its turn.
                    if Pin::new(&mut tokio::task::unconstrained(timer.as_mut())).poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    /// A client that takes nothing for too long is given up.
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
        let heads = self.connection.heads.lock();
        let Witness { refusals, peer } = &self.witness;
        refusals.note(why, *peer, heads.next());
    }

    /// hyper answers by itself what it can't parse, with a status and nothing else.
    fn put_into_words(&mut self, theirs: &[u8]) {
        let status =
            theirs.get(9..12).and_then(|digits| StatusCode::from_bytes(digits).ok()).unwrap_or(StatusCode::BAD_REQUEST);
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
        self.instead = text.into();
        self.is_heard_out = true;
    }

    /// Interim responses go out before what hyper writes of the response they announce.
    #[inline]
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.interim.is_empty() && !self.connection.outlet.has_pending() {
            return Poll::Ready(Ok(()));
        }
        self.write_interim(cx)
    }

    fn write_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while !self.interim.is_empty() {
                let bytes = self.interim.clone();
                let written = self.transport()?.poll_write(cx, &bytes);
                let written = ready!(self.poll_stall(cx, written))?;
                let _ = self.interim.split_to(written);
            }
            match self.connection.outlet.take() {
                Some(bytes) => self.interim = bytes.into(),
                None => return Poll::Ready(Ok(())),
            }
        }
    }

    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.instead.is_empty() {
            let words = self.instead.clone();
            let written = self.transport()?.poll_write(cx, &words);
            let written = ready!(self.poll_stall(cx, written))?;
            let _ = self.instead.split_to(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for ClientIo {
    fn drop(&mut self) {
        if !self.is_heard_out {
            return;
        }
        if let (Some(mut transport), Ok(runtime)) = (self.transport.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { transport.hear_out().await });
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
        match this.transport()?.poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                if let Some(instead) = this.connection.instead_of(&buf.filled()[before..]) {
                    buf.set_filled(before);
                    this.rest = instead.into();
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
            this.put_into_words(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(this.poll_interim(cx))?;
        this.connection.outlet.wrote();
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
            let theirs: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
            this.put_into_words(&theirs);
            return Poll::Ready(Ok(theirs.len()));
        }
        ready!(this.poll_interim(cx))?;
        this.connection.outlet.wrote();
        let written = this.transport()?.poll_write_vectored(cx, bufs);
        this.poll_stall(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_instead(cx))?;
        ready!(this.poll_interim(cx))?;
        ready!(this.transport()?.poll_flush(cx))?;
        // hyper flushes when its own buffer is empty: what was to be written is.
        if this.connection.flushed() {
            this.since = None;
        }
        // It may be in the middle of a body that it no longer wants, and not read any more.
        let is_time = this.timer.as_ref().is_some_and(|timer| timer.is_elapsed());
        if is_time && this.poll_patience(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_instead(cx))?;
        this.is_heard_out |= this.connection.may_be_in_body();
        this.transport()?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_that_no_target_may_have_are_escaped_there_and_nowhere_else() {
        let escape = |read: &str, from| {
            let line = line_with_unsafe_signs(read.as_bytes())?;
            escaped(read.as_bytes(), line, from).map(|bytes| String::from_utf8(bytes).expect("text"))
        };
        for (read, from, expected) in [
            ("GET /a HTTP/1.1\r\nA: \"<>\r\n\r\n", Line::Method, None),
            ("GET /\"<>` HTTP/1.1\r\nA: \"<\r\n", Line::Method, Some("GET /%22%3C%3E%60 HTTP/1.1\r\nA: \"<\r\n")),
            ("\r\nGET /?q=\"x\" HTTP/1.1\n", Line::Method, Some("\r\nGET /?q=%22x%22 HTTP/1.1\n")),
            ("x\"y HTTP/1.1\r\n", Line::Target, Some("x%22y HTTP/1.1\r\n")),
            ("G\"T /<", Line::Method, Some("G\"T /%3C")),
            ("G\"T", Line::Method, None),
            ("", Line::Method, None),
        ] {
            assert_eq!(escape(read, from).as_deref(), expected, "{read}");
            assert!(may_hold_unsafe_signs(read.as_bytes()) || expected.is_none(), "{read}");
        }
    }
}
