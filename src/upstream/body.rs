//! The body of a response from the origin.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::Upstream;
use super::link::{self, Link};
use crate::clock::Stopwatch;

/// The body of a response from the origin. At its end the connection is kept for the next request;
/// dropped before, it is closed.
#[derive(Debug)]
pub struct UpstreamBody {
    body: Incoming,
    link: Option<Link>,
    upstream: Arc<Upstream>,
    /// Since nothing has come.
    silent: Option<Stopwatch>,
}

/// Why a response's body broke off.
#[derive(Debug)]
pub enum UpstreamBodyError {
    /// The connection broke, or the framing did.
    Broken(hyper::Error),
    /// Nothing came for longer than `upstream.body_timeout`.
    TimedOut,
}

impl fmt::Display for UpstreamBodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(error) => write!(f, "the origin's response broke off: {error}"),
            Self::TimedOut => f.write_str("the origin's response stalled"),
        }
    }
}

impl std::error::Error for UpstreamBodyError {}

impl UpstreamBody {
    pub(super) fn new(body: Incoming, link: Link, upstream: Arc<Upstream>) -> Self {
        let mut this = Self { body, link: Some(link), upstream, silent: None };
        this.finish_if_ended();
        this
    }

    /// Ends the connection in the middle of the body.
    fn cut(&mut self) {
        if let Some(link) = self.link.take() {
            link.task.abort();
        }
    }

    /// hyper does not ask a body of known length for its end, so it is looked for after each frame.
    fn finish_if_ended(&mut self) {
        if self.body.is_end_stream() {
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        if let Some(link) = self.link.take() {
            link::give_back(link, self.upstream.id, self.upstream.config.max_idle);
        }
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        self.cut();
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = UpstreamBodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.silent = None;
                this.finish_if_ended();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.cut();
                Poll::Ready(Some(Err(UpstreamBodyError::Broken(error))))
            }
            Poll::Ready(None) => {
                this.give_back();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let limit = this.upstream.config.body_timeout;
                let silent = *this.silent.get_or_insert_with(Stopwatch::start);
                let is_over = this.link.as_mut().is_none_or(|link| link.timer.poll(cx, silent, limit).is_ready());
                if is_over {
                    this.cut();
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
