//! The time that the origin has to answer.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::origin_io::Wire;
use super::upload::Upload;
use super::{Config, Fault, UpstreamError};
use crate::base::{Stopwatch, Timer};

/// The wait for the head of a response. The time limit counts from the last progress of the request's body, so that an
/// upload may take as long as it needs.
pub(super) struct HeadWait<'a> {
    /// The start of the time limit: the request's, or the last progress of its body.
    pub since: Stopwatch,
    /// The time that the origin has.
    pub limit: &'a Duration,
    /// The progress of the request's body, if it has one.
    pub upload: Option<Upload>,
}

impl HeadWait<'_> {
    /// Returns the time that is left, for a body that does not move.
    pub(super) fn left(&self) -> Duration {
        self.limit.saturating_sub(self.since.elapsed())
    }

    /// Returns whether part of the request's body is still to be sent.
    pub(super) fn is_sending(&self, wire: &Wire) -> bool {
        self.upload.as_ref().is_some_and(|upload| !(upload.is_sent() && wire.is_sent()))
    }

    /// Returns why there is no answer. A fault of the client's body is the cause of the error that hyper reports.
    pub(super) fn error(&self, error: hyper::Error, wire: &Wire, config: &Config) -> UpstreamError {
        match self.upload.as_ref().and_then(Upload::fault) {
            Some(fault) => UpstreamError::RequestBody(fault),
            None if error.is_user() => UpstreamError::RequestBody(Fault::Broken),
            None if error.is_parse_too_large() && wire.read() >= config.max_header_size as u64 => {
                UpstreamError::TooLargeHead(config.max_header_size)
            }
            None if error.is_parse_too_large() => UpstreamError::TooManyFields(config.max_headers),
            None if error.is_parse() => UpstreamError::Malformed(Arc::new(error)),
            None => UpstreamError::Broken(Arc::new(error)),
        }
    }

    /// Becomes ready when the origin's time is over.
    pub(super) fn poll_end(&mut self, timer: &mut Timer, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(timer.poll(cx, self.since, *self.limit));
            let Some(upload) = &self.upload else { return Poll::Ready(()) };
            let moved = upload.moved();
            if moved.elapsed() < *self.limit {
                self.since = moved;
            } else if upload.waits_for_client() {
                // The body itself fails when its client stalls.
                self.since = Stopwatch::start();
            } else {
                return Poll::Ready(());
            }
        }
    }
}
