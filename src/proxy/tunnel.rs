//! Tunnels: ties two connections together that are no longer HTTP.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::base::Stopwatch;

/// Copies bytes in both directions until both sides have ended, one breaks, or nothing has moved in either direction
/// for `limit`.
pub(super) async fn tie<A, B>(a: A, b: B, limit: Duration) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let moved = Arc::new(Mutex::new(Stopwatch::start()));
    let (mut a, mut b) = (Watched { io: a, moved: Arc::clone(&moved) }, Watched { io: b, moved: Arc::clone(&moved) });
    let stands_still = async {
        loop {
            let still = moved.lock().elapsed();
            if still >= limit {
                return;
            }
            tokio::time::sleep(limit.saturating_sub(still)).await;
        }
    };
    tokio::select! {
        copied = tokio::io::copy_bidirectional(&mut a, &mut b) => copied.map(drop),
        () = stands_still => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// A stream, with the time at which something last moved in it.
struct Watched<T> {
    io: T,
    moved: Arc<Mutex<Stopwatch>>,
}

impl<T> Watched<T> {
    fn note<R>(&self, polled: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if polled.is_ready() {
            *self.moved.lock() = Stopwatch::start();
        }
        polled
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        this.note(read)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(cx, buf);
        this.note(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_lasts_as_long_as_something_moves_in_either_direction() {
        let (mut client, a) = duplex(64);
        let (b, mut origin) = duplex(64);
        let tied = tokio::spawn(tie(a, b, Duration::from_secs(10)));
        let mut byte = [0];
        for n in 0..10 {
            tokio::time::sleep(Duration::from_secs(9)).await;
            let (from, to) = if n % 2 == 0 { (&mut client, &mut origin) } else { (&mut origin, &mut client) };
            from.write_all(b"x").await.expect("it is open");
            to.read_exact(&mut byte).await.expect("it is open");
        }
        let ended = tied.await.expect("no panic");
        assert_eq!(ended.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
        assert_eq!(client.read(&mut byte).await.expect("it is closed"), 0);
    }
}
