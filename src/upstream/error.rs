//! The reasons why a request got no response from the origin.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::Fault;

/// The reason why there is no response from the origin.
#[derive(Clone, Debug)]
pub enum UpstreamError {
    /// No connection could be made.
    Connect(Arc<io::Error>),
    /// No connection could be made in time.
    ConnectTimeout,
    /// No response head arrived in time.
    ResponseTimeout,
    /// The connection broke before the head was there.
    Broken(Arc<hyper::Error>),
    /// The origin's answer is not HTTP.
    Malformed(Arc<hyper::Error>),
    /// The head has more bytes than `upstream.max_header_size`, which is the number.
    TooLargeHead(usize),
    /// The head has more fields than `upstream.max_headers`, which is the number.
    TooManyFields(usize),
    /// The `Content-Length` is not one number.
    InvalidLength,
    /// The client's request body ended early.
    RequestBody(Fault),
    /// The origin is known to be down, and was not asked.
    Down {
        /// True if the last failure was a slow or broken answer, false if no connection could be made.
        was_slow: bool,
    },
    /// Every address has `upstream.max_requests` under way, and too many requests wait, or this one waited too long.
    Busy,
    /// This proxy can't pass the answer on, for the reason in the sentence.
    Unsupported(&'static str),
}

impl UpstreamError {
    /// Returns whether there was no connection to send the request on.
    pub(super) fn is_connect(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::ConnectTimeout)
    }
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "no connection to the origin: {error}"),
            Self::ConnectTimeout => f.write_str("no connection to the origin in time"),
            Self::ResponseTimeout => f.write_str("the origin did not answer in time"),
            Self::Broken(error) => write!(f, "the origin's answer broke off: {error}"),
            Self::Malformed(error) => write!(f, "the origin's answer is not HTTP: {error}"),
            Self::TooLargeHead(limit) => {
                write!(f, "the head of the origin's answer has more than {limit} bytes (upstream.max_header_size)")
            }
            Self::TooManyFields(limit) => {
                write!(f, "the origin's answer has more than {limit} fields (upstream.max_headers)")
            }
            Self::InvalidLength => f.write_str("the Content-Length of the origin's answer is not one number"),
            Self::RequestBody(fault) => fault.fmt(f),
            Self::Down { .. } => f.write_str("the origin is known to be down"),
            Self::Busy => f.write_str("the origin has upstream.max_requests under way, and no room came in time"),
            Self::Unsupported(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for UpstreamError {
    /// Returns the cause of the inner error, whose own sentence is in this one.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect(error) => error.source(),
            Self::Broken(error) | Self::Malformed(error) => error.source(),
            Self::ConnectTimeout
            | Self::ResponseTimeout
            | Self::TooLargeHead(_)
            | Self::TooManyFields(_)
            | Self::InvalidLength
            | Self::RequestBody(_)
            | Self::Down { .. }
            | Self::Busy
            | Self::Unsupported(_) => None,
        }
    }
}
