//! Holds the limits for the bytes of one exchange: what is buffered of them, how slow they may come, how long the
//! application may take. Made of the configuration once for each rule, and shared by its requests.

use std::time::Duration;

/// Holds the limits for the bytes of one exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes of a request's body that are taken into memory before the origin is asked; 0: the body passes
    /// as it comes.
    pub buffer_request: u64,
    /// Bytes of a response's body that are read into memory ahead of its client; 0: none.
    pub buffer_response: u64,
    /// Bytes of either that go to a temporary file past that; 0: none.
    pub spool: u64,
    /// Bytes a second, averaged, below which a request's body is given up; 0: any rate will do.
    pub min_body_rate: u64,
    /// From sending a request to its response's head.
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

/// A rule's own words on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Instead of `upstream.buffer_request`; so are the others.
    pub buffer_request: Option<u64>,
    /// Instead of `upstream.buffer_response`.
    pub buffer_response: Option<u64>,
    /// Instead of `upstream.spool`.
    pub spool: Option<u64>,
    /// Instead of `server.min_body_rate`.
    pub min_body_rate: Option<u64>,
    /// Instead of `upstream.response_timeout`.
    pub response_timeout: Option<Duration>,
    /// Instead of `upstream.body_timeout`.
    pub body_timeout: Option<Duration>,
}

impl Overrides {
    /// Returns `default`, with what is said otherwise in its place.
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
