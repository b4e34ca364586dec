//! The body of a response from the origin.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::link::{self, Link};
use super::pool::Seat;

/// The body of a response from the origin. Its connection is kept for the next request once the body has ended, and is
/// closed if the body is dropped before.
#[derive(Debug)]
pub struct UpstreamBody {
    body: Incoming,
    link: Option<Box<Link>>,
}

/// The reason why a response's body broke off.
#[derive(Debug)]
pub enum UpstreamBodyError {
    /// The connection broke, or the framing is wrong.
    Broken(hyper::Error),
    /// Nothing came for longer than `upstream.body_timeout`.
    TimedOut,
    /// A temporary file with a part of the body can't be read back.
    Lost(std::io::Error),
}

impl fmt::Display for UpstreamBodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(error) => write!(f, "the origin's response broke off: {error}"),
            Self::Lost(error) => write!(f, "the response can't be read back from its temporary file: {error}"),
            Self::TimedOut => f.write_str("the origin's response stalled"),
        }
    }
}

impl std::error::Error for UpstreamBodyError {}

impl UpstreamBody {
    /// Ties a body to the connection that it comes over.
    pub(super) fn new(body: Incoming, link: Box<Link>) -> Self {
        let mut this = Self { body, link: Some(link) };
        this.finish_if_ended();
        this
    }

    /// Keeps the request's place at the origin until the body has ended.
    pub(super) fn hold(&mut self, seat: Seat) {
        if let Some(link) = &mut self.link {
            link.seat = Some(seat);
        }
    }

    /// Gives the connection back if the body has ended. Called after each frame, since hyper does not poll a body of known
    /// length for its end.
    fn finish_if_ended(&mut self) {
        if self.body.is_end_stream() {
            self.give_back();
        }
    }

    /// Returns the connection, while there is more to come.
    pub(super) fn link(&self) -> Option<&Link> {
        self.link.as_deref()
    }

    /// Gives the connection back for the next request.
    fn give_back(&mut self) {
        if let Some(link) = self.link.take() {
            link::give_back(link);
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = UpstreamBodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(link) = &mut this.link {
                    link.silent = None;
                }
                this.finish_if_ended();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.link = None;
                Poll::Ready(Some(Err(UpstreamBodyError::Broken(error))))
            }
            Poll::Ready(None) => {
                this.give_back();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let is_over = this.link.as_mut().is_none_or(|link| link.poll_silence(cx).is_ready());
                if is_over {
                    this.link = None;
                    return Poll::Ready(Some(Err(UpstreamBodyError::TimedOut)));
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
