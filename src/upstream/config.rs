//! The `[upstream]` and `[upstreams.NAME]` sections of the configuration.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;

use super::tls::TlsConfig;

/// Names an upstream of the configuration. Its connections and its breaker are its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamName {
    /// `[upstream]`
    #[default]
    Default,
    /// The `[upstreams.NAME]` of this number, in their order.
    Named(u16),
}

impl UpstreamName {
    /// Returns the upstream's number among all: that of `[upstream]` is 0.
    #[inline]
    pub fn index(self) -> usize {
        match self {
            Self::Default => 0,
            Self::Named(n) => usize::from(n) + 1,
        }
    }
}

/// The settings of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The addresses that the origin listens at.
    pub addresses: Vec<Listed>,
    /// Says which of them a request goes to.
    pub balance: Balance,
    /// What the choice goes by under `balance = "hash"`.
    pub hash_by: HashBy,
    /// The cookie that keeps a client at one address; empty: there is none.
    pub sticky_cookie: String,
    /// The secret that its values are made with; empty: a random one.
    pub sticky_key: String,
    /// The time for which an address that was down is given less than its share.
    pub slow_start: Duration,
    /// The most requests under way at an address; 0: any number.
    pub max_requests: u32,
    /// The most requests that wait until an address has room.
    pub max_waiting: usize,
    /// The longest that a request waits for room.
    pub queue_timeout: Duration,
    /// The part of requests that may be sent to another address after one has failed, in thousandths.
    pub retry_budget: u16,
    /// The path that health checks ask for; empty: there are none.
    pub health_path: String,
    /// The time between two health checks of an address.
    pub health_interval: Duration,
    /// The longest that a health check waits for its answer.
    pub health_timeout: Duration,
    /// The least and the greatest status of the answer of a healthy address.
    pub health_status: (u16, u16),
    /// The time between two look-ups of the names of addresses.
    pub resolve_interval: Duration,
    /// How TLS is spoken with those that are `https`.
    pub tls: TlsConfig,
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

/// One of the addresses in `upstream.url`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The address.
    pub address: Address,
    /// Its share of the requests, beside those of the others.
    pub weight: u32,
    /// True if it is asked only when no other can be.
    pub is_backup: bool,
}

impl From<Address> for Listed {
    fn from(address: Address) -> Self {
        Self { address, weight: 1, is_backup: false }
    }
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)?;
        if self.weight != 1 {
            write!(f, " weight={}", self.weight)?;
        }
        if self.is_backup { f.write_str(" backup") } else { Ok(()) }
    }
}

/// Says which address a request goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// Of two that are drawn, the one with less under way.
    P2c,
    /// One after the other.
    RoundRobin,
    /// The same for the same value of `hash_by`.
    Hash,
}

/// What the choice of an address goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashBy {
    /// The path, without the query.
    Path,
    /// A field of the request.
    Field(HeaderName),
    /// A cookie.
    Cookie(String),
}

/// The address in `upstream.url`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `http://host:port` or `https://host:port`
    Tcp {
        /// A host name or an IP address.
        host: String,
        /// The port number.
        port: u16,
        /// True if it is spoken to by TLS.
        is_tls: bool,
    },
    /// `unix:/path`
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, is_tls } => {
                let scheme = if *is_tls { "https" } else { "http" };
                if host.contains(':') {
                    write!(f, "{scheme}://[{host}]:{port}")
                } else {
                    write!(f, "{scheme}://{host}:{port}")
                }
            }
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            addresses: vec![Address::Tcp { host: "127.0.0.1".into(), port: 5000, is_tls: false }.into()],
            tls: TlsConfig::default(),
            balance: Balance::P2c,
            hash_by: HashBy::Path,
            sticky_cookie: String::new(),
            sticky_key: String::new(),
            slow_start: Duration::from_secs(10),
            max_requests: 0,
            max_waiting: 1024,
            queue_timeout: Duration::from_secs(10),
            retry_budget: 200,
            health_path: String::new(),
            health_interval: Duration::from_secs(5),
            health_timeout: Duration::from_secs(2),
            health_status: (200, 399),
            resolve_interval: Duration::from_secs(10),
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
