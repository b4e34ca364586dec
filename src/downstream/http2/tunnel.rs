//! Tunnels over HTTP/2 (RFC 8441), which WebSocket uses: a stream that carries their bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::Request;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use super::outgoing::{Data, Outgoing};
use crate::proxy::{Stream, Upgraded};
use crate::upstream::ClientBody;

/// The end of a tunnel on the client's side, which is there once the response is out. Goes with the request.
#[derive(Clone)]
pub(super) struct Pending(Arc<Mutex<Option<oneshot::Receiver<Tunnel>>>>);

/// Makes the two ends of the promise of a tunnel.
pub(super) fn promise() -> (oneshot::Sender<Tunnel>, Pending) {
    let (sender, receiver) = oneshot::channel();
    (sender, Pending(Arc::new(Mutex::new(Some(receiver)))))
}

/// Takes over the stream of a request once the response to it is out.
pub(super) fn upgraded(request: &mut Request<ClientBody>) -> Upgraded {
    let receiver = request.extensions_mut().remove::<Pending>().and_then(|pending| pending.0.lock().take());
    Box::pin(async move {
        let lost = || io::Error::new(io::ErrorKind::NotConnected, "the stream of the tunnel was reset");
        let tunnel = receiver.ok_or_else(lost)?.await.map_err(|_| lost())?;
        Ok(Box::new(tunnel) as Box<dyn Stream>)
    })
}

/// The bytes of a stream, in both directions.
pub(super) struct Tunnel {
    receive: h2::RecvStream,
    send: h2::SendStream<Data>,
    outgoing: Arc<Outgoing>,
    /// The bytes that were received and not read yet.
    rest: Bytes,
}

/// The most bytes of one write.
const PIECE: usize = 16 << 10;

impl Tunnel {
    pub(super) fn new(receive: h2::RecvStream, send: h2::SendStream<Data>, outgoing: Arc<Outgoing>) -> Self {
        Self { receive, send, outgoing, rest: Bytes::new() }
    }
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
    } else {
        io::Error::new(io::ErrorKind::BrokenPipe, error)
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.rest.is_empty() {
            match ready!(this.receive.poll_data(cx)) {
                Some(Ok(data)) => {
                    let _ = this.receive.flow_control().release_capacity(data.len());
                    this.rest = data;
                }
                // RFC 8441 §5: a reset with CANCEL is what a closed connection is.
                Some(Err(error)) if error.reason() == Some(h2::Reason::CANCEL) => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let taken = this.rest.len().min(buf.remaining());
        buf.put_slice(&this.rest[..taken]);
        this.rest.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(this.outgoing.poll_room(cx));
        this.send.reserve_capacity(buf.len().min(PIECE));
        let capacity = match this.send.capacity() {
            0 => match ready!(this.send.poll_capacity(cx)) {
                Some(capacity) => capacity.map_err(broken)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            },
            capacity => capacity,
        };
        let taken = buf.len().min(capacity);
        let data = this.outgoing.data(Bytes::copy_from_slice(&buf[..taken]).into(), taken);
        this.send.send_data(data, false).map_err(broken)?;
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's task writes.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let _ = self.get_mut().send.send_data(Data::empty(), true);
        Poll::Ready(Ok(()))
    }
}
