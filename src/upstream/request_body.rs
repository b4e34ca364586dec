//! The body of a request on its way to the origin.
//!
//! * Up to `buffer_request` it is taken into memory and, past that, up to `spool` into a temporary file,
//!   before the origin is asked: a client that sends slowly costs the application nothing. It is then sent
//!   with its length, and can be sent again.
//! * What is larger goes on as it comes from there on; with a `buffer_request` of 0, from the first byte on.
//! * A client has to send at a least rate, averaged, and may not stand still for too long. The time in which
//!   nobody reads what it sends is not counted.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::base::{Stopwatch, Timer};
use crate::upstream::buffers::Lease;
use crate::upstream::origin_io::Wire;
use crate::upstream::spool::SpoolFile;
use crate::upstream::{Buffers, Transfer};

/// What a client's request body may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long it may stand still.
    pub patience: Duration,
    /// Bytes; 0: any number.
    pub size: u64,
}

/// What was wrong with a client's request body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It broke off, or is not framed as HTTP has it.
    Broken,
    /// It stood still for too long, or came too slowly.
    TooSlow,
    /// It has more bytes than it may.
    TooLarge,
    /// A temporary file with a part of the body can't be read back.
    Lost,
    /// There is no room to take it in: for all temporary files, or on their disk.
    NoRoom,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Broken => "the request's body broke off",
            Self::TooSlow => "the request's body did not arrive in time",
            Self::TooLarge => "the request's body is larger than this server takes",
            Self::Lost => "the request's body can't be read back from its temporary file",
            Self::NoRoom => "there is no room for the request's body",
        })
    }
}

impl std::error::Error for Fault {}

/// The content of a client's request, as its connection hands it over, whatever its version of HTTP.
pub(crate) struct ClientBody(Option<BoxedBody>);

type BoxedBody = Pin<Box<dyn Body<Data = Bytes, Error = Box<dyn std::error::Error + Send + Sync>> + Send + Sync>>;

impl ClientBody {
    /// Takes a body; one that has ended already is none.
    #[inline]
    pub(crate) fn new<B>(body: B) -> Self
    where
        B: Body<Data = Bytes> + Send + Sync + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if body.is_end_stream() { Self(None) } else { Self(Some(Box::pin(body.map_err(Into::into)))) }
    }

    /// Returns whether there is none.
    pub(crate) fn is_none(&self) -> bool {
        self.0.is_none()
    }
}

/// The content of a client's request that has some.
struct Content(BoxedBody);

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Content").field(&self.0.size_hint()).finish()
    }
}

/// The body of a request to the origin.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// None.
    Empty,
    /// The client's.
    Sending(Box<Sending>),
}

/// A body on its way: what is held of it, and then what its client still sends.
#[derive(Debug)]
pub(crate) struct Sending {
    held: Arc<Held>,
    /// The bytes of it that were handed on.
    at: u64,
    /// A piece of the file that is being read.
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    rest: Option<Client>,
    upload: Upload,
    /// The connection that it goes out on.
    wire: Option<Arc<Wire>>,
}

/// Holds the part of a body that was read, in this order.
#[derive(Debug, Default)]
struct Held {
    memory: Bytes,
    file: Option<(SpoolFile, u64)>,
    /// Behind the file: less than a piece for it, or the first that it did not take.
    tail: Bytes,
    /// Counts what is in memory, until it is dropped.
    _lease: Option<Lease>,
}

impl Held {
    fn file_len(&self) -> u64 {
        self.file.as_ref().map_or(0, |(_, len)| *len)
    }

    fn len(&self) -> u64 {
        self.memory.len() as u64 + self.file_len() + self.tail.len() as u64
    }
}

/// A body that is held whole.
#[derive(Clone, Debug)]
pub(crate) struct Whole {
    held: Arc<Held>,
    upload: Upload,
}

/// The client's body, as it comes in.
#[derive(Debug)]
struct Client {
    body: Content,
    limits: Limits,
    pace: Pace,
    upload: Upload,
    /// Runs while the client sends nothing.
    timer: Timer,
    /// Since when it is waited for, if it is.
    waiting: Option<Stopwatch>,
}

/// Limits how long a client may be waited for in all.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    /// Bytes a second; 0: as long as it likes.
    rate: u64,
    read: u64,
    waited: Duration,
}

/// Time that every client has, whatever its rate: for a handshake of its own, or a slow disk.
const GRACE: Duration = Duration::from_secs(20);

impl Pace {
    /// Returns the time left to wait for the client.
    fn left(&self) -> Duration {
        if self.rate == 0 {
            return Duration::MAX;
        }
        let millis = self.read.saturating_mul(1000) / self.rate;
        (GRACE + Duration::from_millis(millis)).saturating_sub(self.waited)
    }
}

impl RequestBody {
    /// The body of a client's request, as it comes; an error when it says itself that it is too large.
    /// Nothing of it is read yet, so that a client that waits for leave to send does not get it.
    pub(crate) fn client(body: ClientBody, limits: Limits, transfer: &Transfer) -> Result<Self, Fault> {
        let ClientBody(Some(body)) = body else { return Ok(Self::Empty) };
        if limits.size > 0 && body.size_hint().lower() > limits.size {
            return Err(Fault::TooLarge);
        }
        let pace = Pace { rate: transfer.min_body_rate, ..Pace::default() };
        let upload = Upload::default();
        let client = Client {
            body: Content(body),
            limits,
            pace,
            upload: upload.clone(),
            timer: Timer::default(),
            waiting: None,
        };
        Ok(Self::sending(Arc::default(), Some(client), upload))
    }

    fn sending(held: Arc<Held>, rest: Option<Client>, upload: Upload) -> Self {
        Self::Sending(Box::new(Sending { held, at: 0, reading: None, rest, upload, wire: None }))
    }

    /// Takes the body in, as far as that is to be done before the origin is asked.
    pub(crate) async fn take_in(self, transfer: &Transfer, buffers: &Arc<Buffers>) -> Result<Self, Fault> {
        let sending = match self {
            Self::Sending(sending) if transfer.buffer_request > 0 => sending,
            Self::Empty | Self::Sending(_) => return Ok(self),
        };
        let Sending { held, rest, upload, .. } = *sending;
        let Some(mut client) = rest else { return Ok(Self::sending(held, None, upload)) };
        let mut taken = Taken::new(transfer, buffers);
        loop {
            let Some(frame) = std::future::poll_fn(|cx| client.poll_frame(cx)).await else { break };
            // Trailers go with the chunks: RFC 9110 §6.5.1 lets them be dropped.
            let Ok(data) = frame?.into_data() else { continue };
            let is_last = client.body.0.is_end_stream();
            if taken.is_empty() && is_last && taken.lease.try_add(data.len()) {
                // Nearly every body: it came in one piece, and stays that.
                taken.whole = data;
                break;
            }
            if !taken.add(&data, client.body.0.size_hint().upper()).await {
                let rest = Some(client).filter(|_| !is_last);
                // It would hold the application at its client's pace, which nobody bounds.
                if taken.found_no_room && rest.is_some() {
                    return Err(Fault::NoRoom);
                }
                return Ok(Self::held(taken, rest, upload));
            }
            if is_last {
                break;
            }
        }
        Ok(Self::held(taken, None, upload))
    }

    fn held(taken: Taken, rest: Option<Client>, upload: Upload) -> Self {
        let held = taken.into_held();
        {
            let mut way = upload.0.lock();
            way.moved = Stopwatch::start();
            way.waits_for_client = false;
            way.held = Some(Arc::clone(&held));
        }
        Self::sending(held, rest, upload)
    }

    /// What is known of the body's way.
    pub(crate) fn upload(&self) -> Option<Upload> {
        match self {
            Self::Empty => None,
            Self::Sending(sending) => Some(sending.upload.clone()),
        }
    }

    /// The body, if all of it is held, to be sent again.
    pub(crate) fn whole(&self) -> Option<Whole> {
        match self {
            Self::Sending(sending) if sending.rest.is_none() => {
                Some(Whole { held: Arc::clone(&sending.held), upload: sending.upload.clone() })
            }
            Self::Empty | Self::Sending(_) => None,
        }
    }

    /// Has the body end where its connection's `wire` takes nothing more.
    pub(crate) fn go_over(&mut self, wire: &Arc<Wire>) {
        if let Self::Sending(sending) = self {
            sending.wire = Some(Arc::clone(wire));
        }
    }
}

impl From<Whole> for RequestBody {
    fn from(whole: Whole) -> Self {
        whole.upload.0.lock().is_sent = false;
        Self::sending(whole.held, None, whole.upload)
    }
}

/// A body that is being taken in.
#[derive(Debug)]
struct Taken {
    /// All of it, if it came in one piece.
    whole: Bytes,
    memory: BytesMut,
    limit: usize,
    file: Option<(SpoolFile, u64)>,
    spool: u64,
    /// On its way to the file.
    tail: BytesMut,
    /// True if its file has no room: others have all that there is, or the disk is full.
    found_no_room: bool,
    lease: Lease,
}

/// So many bytes are written to a file at once.
const STAGE: usize = 64 << 10;

impl Taken {
    fn new(transfer: &Transfer, buffers: &Arc<Buffers>) -> Self {
        Self {
            whole: Bytes::new(),
            memory: BytesMut::new(),
            limit: usize::try_from(transfer.buffer_request).unwrap_or(usize::MAX),
            file: None,
            spool: transfer.spool,
            tail: BytesMut::new(),
            found_no_room: false,
            lease: Lease::new(buffers),
        }
    }

    fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.tail.is_empty() && self.file.is_none()
    }

    /// Takes a piece, behind which `more` are to come if that is known. `false`: it was the last for which
    /// there is room.
    async fn add(&mut self, data: &Bytes, more: Option<u64>) -> bool {
        let is_in_memory = self.file.is_none() && self.tail.is_empty();
        let has_room = self.lease.try_add(data.len());
        if !has_room {
            self.lease.add(data.len());
        }
        if is_in_memory && has_room && self.memory.len() + data.len() <= self.limit {
            if self.memory.is_empty() {
                let all = more.map_or(0, |more| usize::try_from(more).unwrap_or(usize::MAX)).saturating_add(data.len());
                self.memory.reserve(all.min(self.limit));
            }
            self.memory.extend_from_slice(data);
            return true;
        }
        self.tail.extend_from_slice(data);
        let in_file = self.file.as_ref().map_or(0, |(_, len)| *len);
        if in_file + self.tail.len() as u64 > self.spool {
            return false;
        }
        (has_room && self.tail.len() < STAGE) || self.write().await
    }

    /// Writes the tail to the file.
    async fn write(&mut self) -> bool {
        if self.file.is_none() {
            let Some(file) = self.lease.buffers().spools.open().await else { return false };
            self.file = Some((file, 0));
        }
        let Some((file, len)) = &mut self.file else { return false };
        let tail = self.tail.split().freeze();
        let bytes = tail.len();
        if !file.write(*len, vec![tail.clone()]).await {
            self.tail = BytesMut::from(tail);
            self.found_no_room = true;
            return false;
        }
        *len += bytes as u64;
        self.lease.release(bytes);
        true
    }

    fn into_held(self) -> Arc<Held> {
        Arc::new(Held {
            memory: if self.whole.is_empty() { self.memory.freeze() } else { self.whole },
            file: self.file,
            tail: self.tail.freeze(),
            _lease: Some(self.lease),
        })
    }
}

/// What is known of a body's way: the origin's time to answer begins when it has all of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upload(Arc<Mutex<Way>>);

#[derive(Debug)]
struct Way {
    moved: Stopwatch,
    waits_for_client: bool,
    is_sent: bool,
    fault: Option<Fault>,
    /// Part that was held when the origin was asked: it counts as long as somebody asks for the way, since the
    /// connection may not have written it yet.
    held: Option<Arc<Held>>,
}

impl Default for Way {
    fn default() -> Self {
        Self { moved: Stopwatch::start(), waits_for_client: false, is_sent: false, fault: None, held: None }
    }
}

impl Upload {
    /// When something of the body has moved last.
    pub(crate) fn moved(&self) -> Stopwatch {
        self.0.lock().moved
    }

    /// Whether it is the client's turn.
    pub(crate) fn waits_for_client(&self) -> bool {
        self.0.lock().waits_for_client
    }

    /// Returns whether all of it was handed to the connection.
    pub(crate) fn is_sent(&self) -> bool {
        self.0.lock().is_sent
    }

    /// What was wrong with the body, if it ended early.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.0.lock().fault
    }

    fn fail(&self, fault: Fault) -> Fault {
        self.0.lock().fault = Some(fault);
        fault
    }
}

impl Client {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let polled = match self.body.0.as_mut().poll_frame(cx) {
            Poll::Ready(polled) => polled,
            Poll::Pending => {
                let since = *self.waiting.get_or_insert_with(Stopwatch::start);
                let limit = self.limits.patience.min(self.pace.left());
                self.upload.0.lock().waits_for_client = true;
                ready!(self.timer.poll(cx, since, limit));
                return Poll::Ready(Some(Err(self.upload.fail(Fault::TooSlow))));
            }
        };
        if let Some(since) = self.waiting.take() {
            self.pace.waited += since.elapsed();
            let mut way = self.upload.0.lock();
            way.moved = Stopwatch::start();
            way.waits_for_client = false;
        } else {
            self.upload.0.lock().moved = Stopwatch::start();
        }
        Poll::Ready(match polled {
            None => None,
            Some(Err(_)) => Some(Err(self.upload.fail(Fault::Broken))),
            Some(Ok(frame)) => {
                self.pace.read += frame.data_ref().map_or(0, |data| data.len() as u64);
                let is_too_large = self.limits.size > 0 && self.pace.read > self.limits.size;
                Some(if is_too_large { Err(self.upload.fail(Fault::TooLarge)) } else { Ok(frame) })
            }
        })
    }
}

impl Sending {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        if self.wire.as_ref().is_some_and(|wire| wire.is_broken()) {
            // The origin's answer is what is waited for.
            self.upload.0.lock().waits_for_client = false;
            return Poll::Pending;
        }
        if self.at < self.held.len() {
            let piece = ready!(self.poll_held(cx));
            return Poll::Ready(Some(piece.map(Frame::data).map_err(|_| self.upload.fail(Fault::Lost))));
        }
        let Some(client) = &mut self.rest else {
            self.upload.0.lock().is_sent = true;
            return Poll::Ready(None);
        };
        let mut frame = ready!(client.poll_frame(cx));
        // Trailers go no further: some applications take them for fields of the head, which claims could come in by.
        while frame.as_ref().is_some_and(|frame| frame.as_ref().is_ok_and(Frame::is_trailers)) {
            frame = ready!(client.poll_frame(cx));
        }
        if frame.is_none() || client.body.0.is_end_stream() {
            self.upload.0.lock().is_sent = true;
        }
        Poll::Ready(frame)
    }

    /// The next piece of what is held, of which there is one.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let held = &self.held;
        let (in_memory, in_file) = (held.memory.len() as u64, held.file_len());
        let piece = match &held.file {
            _ if self.at < in_memory => held.memory.clone(),
            Some((file, _)) if self.at < in_memory + in_file => {
                let at = self.at - in_memory;
                let reading = self.reading.get_or_insert_with(|| file.read(at, in_file - at));
                let read = ready!(Pin::new(reading).poll(cx));
                self.reading = None;
                read.map_err(io::Error::other).flatten()?
            }
            Some(_) | None => held.tail.clone(),
        };
        self.at += piece.len() as u64;
        let is_sent = self.rest.is_none() && self.at == held.len();
        let mut way = self.upload.0.lock();
        way.moved = Stopwatch::start();
        way.is_sent |= is_sent;
        Poll::Ready(Ok(piece))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Sending(sending) => sending.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Sending(sending) => {
                sending.at == sending.held.len() && sending.rest.as_ref().is_none_or(|rest| rest.body.0.is_end_stream())
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Sending(sending) => {
                let left = sending.held.len() - sending.at;
                let Some(rest) = &sending.rest else { return SizeHint::with_exact(left) };
                rest.body.0.size_hint().exact().map_or_else(SizeHint::default, |rest| SizeHint::with_exact(left + rest))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_twenty_seconds_and_one_for_each_so_many_bytes() {
        let pace = |rate, read, waited| Pace { rate, read, waited: Duration::from_secs(waited) }.left().as_secs();
        assert_eq!(pace(500, 0, 0), 20);
        assert_eq!(pace(500, 0, 21), 0);
        assert_eq!(pace(500, 50_000, 100), 20);
        assert_eq!(pace(500, 50_000, 120), 0);
        assert_eq!(pace(0, 0, 1 << 40), Duration::MAX.as_secs());
    }

    fn buffers(total: usize, spooled: u64) -> Arc<Buffers> {
        use crate::entry::Budget;
        use crate::upstream::Spools;
        Buffers::new(total, Budget::new(total), Spools::new(std::path::PathBuf::new(), spooled))
    }

    /// Takes pieces of `len` bytes in until there is no room for more, or they are `most`.
    async fn take(transfer: &Transfer, buffers: &Arc<Buffers>, len: usize, most: usize) -> (Arc<Held>, usize) {
        let mut taken = Taken::new(transfer, buffers);
        let mut pieces = 0;
        while pieces < most {
            pieces += 1;
            if !taken.add(&Bytes::from(vec![b'0' + u8::try_from(pieces % 10).expect("a digit"); len]), None).await {
                break;
            }
        }
        (taken.into_held(), pieces)
    }

    #[tokio::test]
    async fn what_is_held_is_sent_in_order_as_often_as_need_be() {
        let transfer = Transfer { buffer_request: 10_000, spool: 300_000, ..Transfer::default() };
        for (max_buffered, spooled, most) in [
            (1 << 20, 1 << 20, 40),
            (1 << 20, 1 << 20, 1000),
            (1 << 20, 100_000, 1000),
            (1 << 20, 0, 1000),
            (1000, 1 << 20, 40),
        ] {
            let buffers = buffers(max_buffered, spooled);
            let (held, pieces) = take(&transfer, &buffers, 3000, most).await;
            let len = 3000 * pieces as u64;
            assert_eq!(held.len(), len, "nothing that came is lost");
            assert!(held.len() <= 10_000 + 300_000 + STAGE as u64 + 3000);
            let whole = Whole { held, upload: Upload::default() };
            for _ in 0..2 {
                let body = RequestBody::from(whole.clone());
                assert_eq!(body.size_hint().exact(), Some(len));
                let sent = http_body_util::BodyExt::collect(body).await.expect("it is all there").to_bytes();
                let expected: Vec<u8> =
                    (1..=pieces).flat_map(|n| vec![b'0' + u8::try_from(n % 10).expect("a digit"); 3000]).collect();
                assert!(sent == expected, "{max_buffered} {spooled} {most}");
                assert!(whole.upload.is_sent());
            }
            drop(whole);
            assert_eq!((buffers.used(), buffers.spools.used()), (0, 0));
        }
    }
}
