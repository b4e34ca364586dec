//! A stream of bytes, to a client or to the origin: over TCP or a unix socket.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// Up to so many bytes go out in one piece.
const JOINED: usize = 4 << 10;

thread_local! {
    /// Holds those bytes while they are written. Used again for each write of the thread, whose connections write in
    /// turn.
    static JOIN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What Linux always has and lets everyone choose, and what sends as soon as it may.
const UNPACED: &[u8] = b"reno";

/// Has `socket`, at one of whose ends `address` is, send at once what is for this machine itself.
///
/// BBR, which some make the default, measures a connection's rate and keeps to it by a timer. That spares a
/// network's queues; where there is no network it costs an interrupt for each 64 KiB. Those that a listener
/// accepts are as it is. Where it can't be, nothing is lost.
pub(crate) fn send_at_once(socket: &SockRef<'_>, address: IpAddr) {
    if address.is_loopback() {
        let _ = socket.set_tcp_congestion(UNPACED);
    }
}

/// The stream.
#[derive(Debug)]
pub(crate) enum Transport {
    /// TCP.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [one] = bufs {
            return self.poll_write(cx, one);
        }
        if bufs.iter().map(|buf| buf.len()).sum::<usize>() <= JOINED {
            // To copy so little costs less than to tell the kernel where each piece is.
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
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
