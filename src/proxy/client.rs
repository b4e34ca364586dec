//! The client's side of a request, as the proxy sees it. `downstream` has one for each version of HTTP.

use std::io;
use std::pin::Pin;
use std::task::Waker;

use http::{Request, Version};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::upstream::forwarding::Peer;
use crate::upstream::{ClientBody, Informational};

/// Who sends requests, and how their answers go out. Nothing of it is of one request: what is, is made for it here.
pub(crate) trait Client: Send + Sync {
    /// Returns the peer of the connection, and the scheme that it was asked by.
    fn peer(&self) -> &Peer;

    /// Makes a sender of informational responses to the request that is being answered.
    fn informational(&self) -> Informational;

    /// Has `waker` woken when an informational response is to go out.
    fn wake_on_informational(&self, waker: &Waker);

    /// Takes the connection over once the answer to `request`, 101, is out.
    fn upgraded(&self, request: &mut Request<ClientBody>) -> Upgraded;
}

/// A connection that is about to be no longer HTTP.
pub(crate) type Upgraded = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// A stream of bytes in both directions.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Makes a sender of informational responses for a request of `version`. HTTP/1.0 knows none (RFC 9110 §15.2).
pub(super) fn informational(client: &dyn Client, version: Version) -> Option<Informational> {
    (version >= Version::HTTP_11).then(|| client.informational())
}
