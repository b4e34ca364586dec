//! The body of a request on its way to the origin.
//!
//! * Before the origin is asked, up to `buffer_request` bytes of it are read into memory and, past that, up to `spool`
//!   bytes into a temporary file. A client that sends slowly costs the application nothing. A body that ends within
//!   these limits is sent with its length, and can be sent again.
//! * The rest of a larger body is passed on as it comes. With a `buffer_request` of 0, all of it is.
//! * A client has to send at a least rate, averaged, and may not stall. Time in which nobody reads what it sends is not
//!   counted.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::task::JoinHandle;

use super::buffered::{Buffered, BufferedBody, Content};
use super::client_content::{ClientBody, ClientContent, ContentStream, Fault, UploadLimits};
use super::intake::Intake;
use super::origin_io::Wire;
use super::upload::Upload;
use super::{Buffers, Transfer};

/// The body of a request to the origin.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// There is none.
    Empty,
    /// The client's body.
    Sending(Box<Sending>),
}

/// A body while it is sent: first the buffered part, then the rest as the client sends it.
#[derive(Debug)]
pub(crate) struct Sending {
    buffered: Arc<Buffered>,
    /// The bytes of `buffered` that were handed to the connection.
    at: u64,
    /// The read of a piece of the file, while it is under way.
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    rest: Option<ClientContent>,
    upload: Upload,
    /// State of the connection that the body is sent on.
    wire: Option<Arc<Wire>>,
}

impl RequestBody {
    /// Returns the body of a client's request, or an error if its stated length is too large. Reads nothing yet:
    /// reading would send 100 Continue to a client that expects it.
    pub(crate) fn client(body: ClientBody, limits: UploadLimits, transfer: &Transfer) -> Result<Self, Fault> {
        let ClientBody(Some(body)) = body else { return Ok(Self::Empty) };
        if limits.size > 0 && body.size_hint().lower() > limits.size {
            return Err(Fault::TooLarge);
        }
        let upload = Upload::default();
        let client = ClientContent::new(ContentStream(body), limits, transfer, upload.clone());
        Ok(Self::sending(Arc::default(), Some(client), upload))
    }

    fn sending(buffered: Arc<Buffered>, rest: Option<ClientContent>, upload: Upload) -> Self {
        Self::Sending(Box::new(Sending { buffered, at: 0, reading: None, rest, upload, wire: None }))
    }

    /// Reads the part of the body that is buffered before the origin is asked.
    pub(crate) async fn take_in(self, transfer: &Transfer, buffers: &Arc<Buffers>) -> Result<Self, Fault> {
        let sending = match self {
            Self::Sending(sending) if transfer.buffer_request > 0 => sending,
            Self::Empty | Self::Sending(_) => return Ok(self),
        };
        let Sending { buffered, rest, upload, .. } = *sending;
        let Some(mut client) = rest else { return Ok(Self::sending(buffered, None, upload)) };
        let mut intake = Intake::new(transfer, buffers);
        loop {
            let Some(frame) = std::future::poll_fn(|cx| client.poll_frame(cx)).await else { break };
            // Drops trailers, as RFC 9110 §6.5.1 allows: the body is sent with its length, not in chunks.
            let Ok(mut data) = frame?.into_data() else {
                intake.had_trailers = true;
                continue;
            };
            let is_last = client.body.0.is_end_stream();
            // Nearly every body comes in one piece.
            if is_last && intake.add_whole(&mut data) {
                break;
            }
            if !intake.add(&data, client.body.0.size_hint().upper()).await {
                let rest = Some(client).filter(|_| !is_last);
                // Passed on from here, it would occupy the application for as long as its client takes to send it.
                if intake.found_no_room && rest.is_some() {
                    return Err(Fault::NoRoom);
                }
                return Ok(Self::after_intake(intake, rest, upload));
            }
            if is_last {
                break;
            }
        }
        Ok(Self::after_intake(intake, None, upload))
    }

    fn after_intake(intake: Intake, rest: Option<ClientContent>, upload: Upload) -> Self {
        let buffered = intake.into_buffered();
        upload.note_buffered(&buffered);
        Self::sending(buffered, rest, upload)
    }

    /// Returns the progress of the body, if there is one.
    pub(crate) fn upload(&self) -> Option<Upload> {
        match self {
            Self::Empty => None,
            Self::Sending(sending) => Some(sending.upload.clone()),
        }
    }

    /// Returns the body as content that may be part of a key: all of it is in memory, in at most `limit` bytes, and no
    /// trailers followed it.
    pub(crate) fn content(&self, limit: u64) -> Option<Content> {
        match self {
            Self::Empty => Some(Content::default()),
            Self::Sending(sending) => {
                let buffered = &sending.buffered;
                let is_whole = sending.rest.is_none() && buffered.memory.len() as u64 == buffered.len();
                let is_plain = is_whole && !buffered.had_trailers && buffered.len() <= limit;
                is_plain.then(|| Content(Arc::clone(buffered)))
            }
        }
    }

    /// Returns a copy of the body to send again, if all of it is buffered.
    pub(crate) fn buffered_whole(&self) -> Option<BufferedBody> {
        match self {
            Self::Sending(sending) if sending.rest.is_none() => {
                Some(BufferedBody { buffered: Arc::clone(&sending.buffered), upload: sending.upload.clone() })
            }
            Self::Empty | Self::Sending(_) => None,
        }
    }

    /// Makes the body stop once a write to `wire`, the state of its connection, has failed.
    pub(crate) fn bind_to_wire(&mut self, wire: &Arc<Wire>) {
        if let Self::Sending(sending) = self {
            sending.wire = Some(Arc::clone(wire));
        }
    }
}

impl From<&Content> for RequestBody {
    fn from(content: &Content) -> Self {
        let upload = Upload::default();
        upload.note_buffered(&content.0);
        Self::sending(Arc::clone(&content.0), None, upload)
    }
}

impl From<BufferedBody> for RequestBody {
    fn from(whole: BufferedBody) -> Self {
        whole.upload.set_sent(false);
        Self::sending(whole.buffered, None, whole.upload)
    }
}

impl Sending {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        if self.wire.as_ref().is_some_and(|wire| wire.is_broken()) {
            // The exchange waits for the origin's answer from here on.
            self.upload.note_not_waiting();
            return Poll::Pending;
        }
        if self.at < self.buffered.len() {
            let piece = ready!(self.poll_buffered(cx));
            return Poll::Ready(Some(piece.map(Frame::data).map_err(|_| self.upload.fail(Fault::Lost))));
        }
        let Some(client) = &mut self.rest else {
            self.upload.set_sent(true);
            return Poll::Ready(None);
        };
        let mut frame = ready!(client.poll_frame(cx));
        // Drops trailers: some applications take them for fields of the head, which must not carry unchecked claims.
        while frame.as_ref().is_some_and(|frame| frame.as_ref().is_ok_and(Frame::is_trailers)) {
            frame = ready!(client.poll_frame(cx));
        }
        if frame.is_none() || client.body.0.is_end_stream() {
            self.upload.set_sent(true);
        }
        Poll::Ready(frame)
    }

    /// Polls for the next piece of the buffered part, which has one.
    fn poll_buffered(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let buffered = &self.buffered;
        let (in_memory, in_file) = (buffered.memory.len() as u64, buffered.file_len());
        let piece = match &buffered.file {
            _ if self.at < in_memory => buffered.memory.clone(),
            Some((file, _)) if self.at < in_memory + in_file => {
                let at = self.at - in_memory;
                let reading = self.reading.get_or_insert_with(|| file.read(at, in_file - at));
                let read = ready!(Pin::new(reading).poll(cx));
                self.reading = None;
                read.map_err(io::Error::other).flatten()?
            }
            Some(_) | None => buffered.tail.clone(),
        };
        self.at += piece.len() as u64;
        let is_last = self.rest.is_none() && self.at == buffered.len();
        self.upload.note_handed_on(is_last);
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
                sending.at == sending.buffered.len()
                    && sending.rest.as_ref().is_none_or(|rest| rest.body.0.is_end_stream())
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Sending(sending) => {
                let left = sending.buffered.len() - sending.at;
                let Some(rest) = &sending.rest else { return SizeHint::with_exact(left) };
                rest.body.0.size_hint().exact().map_or_else(SizeHint::default, |rest| SizeHint::with_exact(left + rest))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::intake::STAGE;

    fn buffers(total: usize, spooled: u64) -> Arc<Buffers> {
        use crate::entry::Budget;
        use crate::upstream::Spools;
        Buffers::new(total, Budget::new(total), Spools::new(std::path::PathBuf::new(), spooled))
    }

    /// Takes in pieces of `len` bytes, at most `most`, until there is no room for more.
    async fn take(transfer: &Transfer, buffers: &Arc<Buffers>, len: usize, most: usize) -> (Arc<Buffered>, usize) {
        let mut intake = Intake::new(transfer, buffers);
        let mut pieces = 0;
        while pieces < most {
            pieces += 1;
            if !intake.add(&Bytes::from(vec![b'0' + u8::try_from(pieces % 10).expect("a digit"); len]), None).await {
                break;
            }
        }
        (intake.into_buffered(), pieces)
    }

    #[tokio::test]
    async fn a_length_that_is_only_stated_takes_no_memory() {
        let transfer = Transfer { buffer_request: 1 << 20, ..Transfer::default() };
        let mut intake = Intake::new(&transfer, &buffers(1 << 21, 0));
        let mut sent = 0;
        for len in [1, 10, 100, 5000, 50_000, 500_000, (1 << 20) - 555_111] {
            sent += len;
            assert!(intake.add(&Bytes::from(vec![b'a'; len]), Some((1 << 20) - sent as u64)).await);
            assert!(intake.reserved() <= (2 * sent).max(64), "{} for {sent}", intake.reserved());
        }
        assert_eq!((sent, intake.reserved()), (1 << 20, 1 << 20));
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
            let (buffered, pieces) = take(&transfer, &buffers, 3000, most).await;
            let len = 3000 * pieces as u64;
            assert_eq!(buffered.len(), len, "nothing that came is lost");
            assert!(buffered.len() <= 10_000 + 300_000 + STAGE as u64 + 3000);
            let whole = BufferedBody { buffered, upload: Upload::default() };
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
