//! The client's side of a request, as the proxy sees it. `downstream` has one for each version of HTTP.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Waker;

use http::{Request, Version};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::entry::VersionVector;
use crate::upstream::forwarding::Peer;
use crate::upstream::{ClientBody, Informational};

/// The connection of a client: who sends requests, and how answers go out. It holds no state of one request.
pub(crate) trait Client: Send + Sync {
    /// Returns the connection's peer, and the scheme it used.
    fn peer(&self) -> &Peer;

    /// Makes a sender of informational responses to the request that is being answered.
    fn informational(&self) -> Informational;

    /// Wakes `waker` when an informational response is to go out.
    fn wake_on_informational(&self, waker: &Waker);

    /// Returns the purges that a peer knew when it asked on behalf of this client; `None`: the client asks here.
    fn known_to_peer(&self) -> Option<Arc<VersionVector>> {
        None
    }

    /// Takes over the connection once the 101 that answers `request` is out.
    fn upgraded(&self, request: &mut Request<ClientBody>) -> Upgraded;
}

/// A connection that becomes a tunnel.
pub(crate) type Upgraded = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// A stream of bytes in both directions.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Makes a sender of informational responses to a request of `version`; `None` for HTTP/1.0, which has none (RFC 9110
/// §15.2).
pub(super) fn informational(client: &dyn Client, version: Version) -> Option<Informational> {
    (version >= Version::HTTP_11).then(|| client.informational())
}
