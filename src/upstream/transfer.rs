//! The limits for the bytes of one request and its response: how many are buffered, how slowly they may come, and how long
//! the application may take. Made from the configuration once for each rule.

use std::time::Duration;

/// The limits for the bytes of one request and its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes of a request's body that are read into memory before the origin is asked; 0: the body is passed on as it
    /// comes.
    pub buffer_request: u64,
    /// Bytes of a response's body that are read into memory ahead of its client; 0: none.
    pub buffer_response: u64,
    /// Bytes of either body that go to a temporary file once the memory is full; 0: none.
    pub spool: u64,
    /// Least average rate of a request's body, in bytes a second; 0: none.
    pub min_body_rate: u64,
    /// The longest time from sending a request to the head of its response.
    pub response_timeout: Duration,
    /// The longest silence within a response's body.
    pub body_timeout: Duration,
}

impl Default for Transfer {
    fn default() -> Self {
        Self {
            buffer_request: 64 << 10,
            buffer_response: 1 << 20,
            spool: 1 << 30,
            min_body_rate: 500,
            response_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
        }
    }
}

/// The limits that a rule sets in place of the general ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Replaces `upstream.buffer_request`.
    pub buffer_request: Option<u64>,
    /// Replaces `upstream.buffer_response`.
    pub buffer_response: Option<u64>,
    /// Replaces `upstream.spool`.
    pub spool: Option<u64>,
    /// Replaces `server.min_body_rate`.
    pub min_body_rate: Option<u64>,
    /// Replaces `upstream.response_timeout`.
    pub response_timeout: Option<Duration>,
    /// Replaces `upstream.body_timeout`.
    pub body_timeout: Option<Duration>,
}

impl Overrides {
    /// Returns `default` with these limits in place of its own.
    pub fn of(self, default: &Transfer) -> Transfer {
        Transfer {
            buffer_request: self.buffer_request.unwrap_or(default.buffer_request),
            buffer_response: self.buffer_response.unwrap_or(default.buffer_response),
            spool: self.spool.unwrap_or(default.spool),
            min_body_rate: self.min_body_rate.unwrap_or(default.min_body_rate),
            response_timeout: self.response_timeout.unwrap_or(default.response_timeout),
            body_timeout: self.body_timeout.unwrap_or(default.body_timeout),
        }
    }
}
