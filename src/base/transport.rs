//! A stream of bytes, to a client or to the origin: over TCP or a unix socket, or TLS over either.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

/// The most bytes that are copied together to be written as one piece.
const JOINED: usize = 4 << 10;

/// The most bytes of a body that are copied at once. More can be copied by an instruction that some processors take
/// fifteen times as long for where the lower bits of both addresses are nearly the same. Those of pages of memory, and
/// of the records that they are copied into, are.
pub(crate) const COPIED: usize = 2 << 10;

/// The most slices of a write with TLS. They are as many bytes as the stream encrypts at once.
const SLICES: usize = 32;

thread_local! {
    /// Holds the copied bytes during a write. The connections of a thread share it, since they write in turn.
    static JOIN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A congestion control that does not pace. Every Linux has it, and any process may choose it.
const UNPACED: &[u8] = b"reno";

/// Turns pacing off for `socket` if `address`, one of its ends, is this machine's loopback.
///
/// BBR, the default of some machines, paces a connection by a timer to keep the queues of networks short. On the
/// loopback that only costs an interrupt for each 64 KiB. Connections inherit the setting from their listener. A failure
/// is ignored: the connection is then paced.
pub(crate) fn send_at_once(socket: &SockRef<'_>, address: IpAddr) {
    if address.is_loopback() {
        let _ = socket.set_tcp_congestion(UNPACED);
    }
}

/// A stream of bytes.
#[derive(Debug)]
pub(crate) enum Transport {
    /// A TCP connection.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
    /// TLS over one of these, this end being the server.
    Tls(Box<TlsStream<Transport>>),
    /// TLS over one of these, this end being the client.
    TlsClient(Box<tokio_rustls::client::TlsStream<Transport>>),
}

impl Transport {
    /// Returns whether the other end sends no more, be it that what it sent is not read yet.
    pub(crate) fn is_read_closed(&self, cx: &mut Context<'_>) -> bool {
        let ready = match self {
            Self::Tcp(stream) => pin!(stream.ready(Interest::READABLE)).poll(cx),
            Self::Unix(stream) => pin!(stream.ready(Interest::READABLE)).poll(cx),
            Self::Tls(stream) => return stream.get_ref().0.is_read_closed(cx),
            Self::TlsClient(stream) => return stream.get_ref().0.is_read_closed(cx),
        };
        match ready {
            Poll::Ready(Ok(ready)) => ready.is_read_closed(),
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        }
    }

    /// Reads from what is not TCP alone. It is apart, so that reading TCP is small enough to be inlined.
    #[inline(never)]
    fn poll_read_other(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::TlsClient(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }

    /// Writes to what is not TCP alone.
    #[inline(never)]
    fn poll_write_other(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => poll_write_tls(stream, cx, &[IoSlice::new(buf)]),
            Self::TlsClient(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }
}

impl AsyncRead for Transport {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            other => other.poll_read_other(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            other => other.poll_write_other(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [one] = bufs {
            return self.poll_write(cx, one);
        }
        // Gathers the pieces into records itself, and writes these by the transport below.
        match self.as_mut().get_mut() {
            Self::Tls(stream) => return poll_write_tls(stream, cx, bufs),
            Self::TlsClient(stream) => return Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tcp(_) | Self::Unix(_) => {}
        }
        if bufs.iter().map(|buf| buf.len()).sum::<usize>() <= JOINED {
            // Copying so few bytes costs less than a vectored write.
            return JOIN.with_borrow_mut(|joined| {
                joined.clear();
                for buf in bufs {
                    joined.extend_from_slice(buf);
                }
                self.poll_write(cx, joined)
            });
        }
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => poll_write_tls(stream, cx, bufs),
            Self::TlsClient(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::TlsClient(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::TlsClient(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Writes with TLS, in slices of which each is copied quickly.
fn poll_write_tls(
    stream: &mut TlsStream<Transport>,
    cx: &mut Context<'_>,
    bufs: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let mut slices = [IoSlice::new(&[]); SLICES];
    let all = bufs.iter().flat_map(|buf| buf.chunks(COPIED));
    let count = slices.iter_mut().zip(all).map(|(slice, part)| *slice = IoSlice::new(part)).count();
    Pin::new(stream).poll_write_vectored(cx, &slices[..count])
}
