//! The `[upstream]` section of the configuration.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Names an upstream of the configuration. Its connections and its breaker are its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamName {
    /// `[upstream]`
    #[default]
    Default,
}

/// The `[upstream]` settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The address that the origin listens at.
    pub address: Address,
    /// The longest time for making a connection.
    pub connect_timeout: Duration,
    /// The longest time from sending a request to its response head.
    pub response_timeout: Duration,
    /// The longest silence within a response's body.
    pub body_timeout: Duration,
    /// The time for which an idle connection is kept.
    pub idle_timeout: Duration,
    /// The number of idle connections that each worker thread keeps.
    pub max_idle: usize,
    /// The `Host` of every request; `None`: the client's.
    pub host: Option<String>,
    /// The number of consecutive failures after which the origin counts as down; 0: never.
    pub breaker_failures: u32,
    /// The least time between two probes of an origin that is down.
    pub breaker_pause: Duration,
    /// Bytes of a request's body that are read into memory before the origin is asked.
    pub buffer_request: u64,
    /// Bytes of a response's body that are read into memory ahead of its client.
    pub buffer_response: u64,
    /// Bytes of either body that go to a temporary file once the memory is full.
    pub spool: u64,
    /// The most fields of a response head.
    pub max_headers: usize,
    /// The largest response head, in bytes.
    pub max_header_size: usize,
}

/// The address in `upstream.url`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `http://host:port`
    Tcp {
        /// A host name or an IP address.
        host: String,
        /// The port number.
        port: u16,
    },
    /// `unix:/path`
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "http://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: Address::Tcp { host: "127.0.0.1".into(), port: 5000 },
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(30),
            max_idle: 256,
            host: None,
            breaker_failures: 5,
            breaker_pause: Duration::from_secs(1),
            buffer_request: 64 << 10,
            buffer_response: 1 << 20,
            spool: 1 << 30,
            max_headers: MAX_HEADERS,
            max_header_size: 256 << 10,
        }
    }
}

/// The number of fields that hyper takes by default. Any other limit makes it allocate for each head.
pub(super) const MAX_HEADERS: usize = 100;
