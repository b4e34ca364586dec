//! The PROXY protocol, versions 1 and 2: a load balancer that forwards bytes sends a header before them, which says who
//! connected to it.
//!
//! Connections from `server.proxy_protocol` must begin with a header, and others must not: who may send one can claim any
//! address. Exactly the header's bytes are read, so that what follows (TLS or HTTP) is read by others from its first
//! byte on.

mod parse;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::sync::CancellationToken;

pub use self::parse::hold_proxy_header;
use self::parse::{MAX_LINE, Progress, progress};
pub(super) use self::parse::{PREFIX, SIGNATURE};
use super::refusals::Refusals;
use super::server::Config;
use crate::base::Transport;
use crate::upstream::forwarding::Peer;

/// A member of `server.proxy_protocol`: connections from there begin with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// Connections from the addresses of a network.
    Network(IpNet),
    /// `"unix"`: connections to the unix sockets that Larder listens on.
    Unix,
}

impl Sender {
    /// Returns whether a connection from `ip` is one of these; `None`: from a unix socket.
    fn is_at(self, ip: Option<IpAddr>) -> bool {
        match (self, ip) {
            (Self::Network(network), Some(ip)) => network.contains(&ip),
            (Self::Unix, None) => true,
            (Self::Network(_), None) | (Self::Unix, Some(_)) => false,
        }
    }
}

/// The client that a header names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The sender of the header itself, as for a health check.
    Sender,
    /// A client of the sender, which does not say its address.
    Unknown,
    /// The client at this address.
    Client(IpAddr),
}

/// The statements of a header that count here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    source: Source,
    /// True if the client connected to the sender by TLS.
    is_tls: bool,
}

impl Header {
    const fn of(source: Source) -> Self {
        Self { source, is_tls: false }
    }

    /// Returns the peer of a connection that `sender` made and that begins with this header.
    ///
    /// A client whose address the sender does not know gets the sender's address, but is not believed as a trusted proxy
    /// even if the sender is one.
    fn peer(self, mut sender: Peer, trusted_proxies: &[IpNet]) -> Peer {
        if self.is_tls {
            sender.scheme = "https";
        }
        match self.source {
            Source::Sender => {}
            Source::Unknown => sender.trusted = false,
            Source::Client(ip) => return Peer::new(Some(ip), sender.scheme, trusted_proxies),
        }
        sender
    }
}

/// The reason why a connection has no header that can be read, as the end of a sentence about the connection.
type Why = &'static str;

/// The reason why a connection has no header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The sender closed it before the first byte, as programs do that only test whether the port is open.
    Empty,
    /// It begins with something else, or the header breaks off, or contradicts itself.
    Bad {
        /// The fault, to go on a sentence.
        why: Why,
        /// The bytes that were read.
        read: Vec<u8>,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self {
            Self::Empty => "it ended before its first byte",
            Self::Bad { why, .. } => why,
        };
        write!(f, "connections from this address begin with a PROXY header (server.proxy_protocol), but {why}")
    }
}

/// Returns the peer of a connection that `peer` made: the client that the header names, if there must be one. `None` if
/// the header can't be read, which is counted and logged, or if the connections end before it is there.
pub(super) async fn introduce(
    config: &Config,
    refusals: &Refusals,
    transport: &mut Transport,
    peer: Peer,
    end: &CancellationToken,
) -> Option<Peer> {
    if !config.proxy_protocol.iter().any(|sender| sender.is_at(peer.ip)) {
        return Some(peer);
    }
    // On the heap: the connections without a header need no room for it.
    let read = Box::pin(read_header(transport, config.header_timeout));
    let read = tokio::select! {
        () = end.cancelled() => return None,
        read = read => read,
    };
    match read {
        Ok(header) => Some(header.peer(peer, &config.trusted_proxies)),
        Err(fault) => {
            refusals.note_proxy_header(peer.ip, &fault);
            None
        }
    }
}

/// Reads a header, within `limit`, and nothing behind it.
pub(crate) async fn read_header(stream: &mut (impl AsyncRead + Unpin), limit: Duration) -> Result<Header, Fault> {
    let mut read = Vec::with_capacity(MAX_LINE);
    let why = match tokio::time::timeout(limit, fill(stream, &mut read)).await {
        Ok(Ok(header)) => return Ok(header),
        Ok(Err(ENDED)) if read.is_empty() => return Err(Fault::Empty),
        Ok(Err(why)) => why,
        Err(_) => "none was complete within server.header_timeout",
    };
    Err(Fault::Bad { why, read })
}

const ENDED: Why = "this one ended before the header was complete";

/// Reads into `read` until a header is complete.
async fn fill(stream: &mut (impl AsyncRead + Unpin), read: &mut Vec<u8>) -> Result<Header, Why> {
    loop {
        let more = match progress(read)? {
            Progress::Complete(header) => return Ok(header),
            Progress::More(more) => more,
        };
        match (&mut *stream).take(more as u64).read_buf(read).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Err(ENDED),
        }
    }
}
