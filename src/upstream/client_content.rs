//! Reads the content of a client's request, within its limits of size and speed.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame};

use super::Transfer;
use super::upload::Upload;
use crate::base::{Stopwatch, Timer};

/// The limits of a client's request body.
#[derive(Clone, Copy, Debug)]
pub struct UploadLimits {
    /// The longest time without a byte.
    pub patience: Duration,
    /// The most bytes; 0: any number.
    pub size: u64,
}

/// The reason why a client's request body could not be read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It broke off, or its framing is wrong.
    Broken,
    /// It stalled, or came too slowly.
    TooSlow,
    /// It has more bytes than [`UploadLimits::size`].
    TooLarge,
    /// A temporary file with a part of the body can't be read back.
    Lost,
    /// The temporary files have reached their limit, or their disk is full.
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

/// The content of a client's request as its connection hands it over, of any version of HTTP; `None`: there is none.
pub(crate) struct ClientBody(pub(super) Option<BoxedBody>);

pub(super) type BoxedBody =
    Pin<Box<dyn Body<Data = Bytes, Error = Box<dyn std::error::Error + Send + Sync>> + Send + Sync>>;

impl ClientBody {
    /// Wraps a body. One that has already ended becomes none.
    #[inline]
    pub(crate) fn new<B>(body: B) -> Self
    where
        B: Body<Data = Bytes> + Send + Sync + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if body.is_end_stream() { Self(None) } else { Self(Some(Box::pin(body.map_err(Into::into)))) }
    }

    /// Makes the content of a request that has none.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Returns whether the request has no content.
    pub(crate) fn is_none(&self) -> bool {
        self.0.is_none()
    }
}

/// The content of a client's request that has content.
pub(super) struct ContentStream(pub(super) BoxedBody);

impl fmt::Debug for ContentStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ContentStream").field(&self.0.size_hint()).finish()
    }
}

/// The client's content while it is read, within its limits.
#[derive(Debug)]
pub(super) struct ClientContent {
    /// The content.
    pub body: ContentStream,
    limits: UploadLimits,
    pace: Pace,
    upload: Upload,
    /// Runs while the client sends nothing.
    timer: Timer,
    /// Start of the current wait for the client.
    waiting: Option<Stopwatch>,
}

/// Limits the sum of the waits for a client by the bytes that it has sent.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    /// Least rate in bytes a second; 0: none.
    rate: u64,
    /// Bytes read so far.
    read: u64,
    /// Sum of the waits for the client so far.
    waited: Duration,
}

/// Time that every client has besides: for a handshake of its own, or a slow disk.
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

impl ClientContent {
    /// Begins to read `body`.
    pub(super) fn new(body: ContentStream, limits: UploadLimits, transfer: &Transfer, upload: Upload) -> Self {
        let pace = Pace { rate: transfer.min_body_rate, ..Pace::default() };
        Self { body, limits, pace, upload, timer: Timer::default(), waiting: None }
    }

    /// Polls for the next frame. Fails when the client is too slow or the content too large.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let polled = match self.body.0.as_mut().poll_frame(cx) {
            Poll::Ready(polled) => polled,
            Poll::Pending => {
                let since = *self.waiting.get_or_insert_with(Stopwatch::start);
                let limit = self.limits.patience.min(self.pace.left());
                self.upload.note_waiting();
                ready!(self.timer.poll(cx, since, limit));
                return Poll::Ready(Some(Err(self.upload.fail(Fault::TooSlow))));
            }
        };
        if let Some(since) = self.waiting.take() {
            self.pace.waited += since.elapsed();
            self.upload.note_received();
        } else {
            self.upload.note_moved();
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
}
