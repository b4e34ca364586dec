//! The body of a response on its way to a client, whatever its source.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::mpsc;

use crate::entry::{Body, FillReader, StoredResponse};
use crate::store::StoreError;
use crate::upstream::{Passing, UpstreamBody};

/// The error that ends a body early. hyper then closes the connection, so that no client takes the rest for complete.
pub(super) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A response's body, with what is called when it ends.
#[derive(Debug)]
pub struct ResponseBody {
    source: BodySource,
    sent: u64,
    ending: Option<Box<Ending>>,
    /// The connection to notify when the body is dropped.
    carrier: Option<Arc<dyn Carrier>>,
}

#[derive(Debug)]
enum BodySource {
    Empty,
    /// A sentence made here, or a stored body in one piece; it is not empty.
    Whole(Piece),
    /// A stored body: the next piece, and the numbers of bytes to skip and to send.
    Stored {
        body: Body,
        next: usize,
        skip: u64,
        left: u64,
    },
    /// A body that is coming in: the bytes to skip, and those to send if that is known.
    Fill {
        reader: FillReader,
        skip: u64,
        left: Option<u64>,
    },
    /// Several pieces of a stored body, each behind a text.
    Multipart {
        pieces: std::vec::IntoIter<Bytes>,
        left: u64,
    },
    /// A body that is read from the durable tier for this client: the pieces, and the bytes that they must amount to.
    Pieces {
        receiver: mpsc::Receiver<Result<Bytes, StoreError>>,
        left: u64,
    },
    /// The origin's body.
    Upstream(Passing),
}

/// A piece of a body.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Bytes counted by themselves.
    Bytes(Bytes),
    /// The body of a stored response from this offset on. It shares the response's own reference count: counting the
    /// bytes separately would allocate for each response.
    Own(Arc<StoredResponse>, usize),
}

impl From<Bytes> for Piece {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.chunk().len()
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Own(stored, at) => stored.own_body().and_then(|body| body.get(*at..)).unwrap_or_default(),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Bytes(bytes) => bytes.advance(count),
            Self::Own(_, at) => *at += count,
        }
    }
}

/// The connection that a response goes out on.
pub trait Carrier: std::fmt::Debug + Send + Sync {
    /// Called when the response's body has ended or broken off.
    fn body_has_ended(&self);
}

/// Called with the number of bytes sent, when the body has ended or broken off.
struct Ending(Box<dyn FnOnce(u64) + Send + Sync>);

impl std::fmt::Debug for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ending")
    }
}

impl ResponseBody {
    fn from_source(source: BodySource) -> Self {
        Self { source, sent: 0, ending: None, carrier: None }
    }

    /// Makes an empty body.
    pub fn empty() -> Self {
        Self::from_source(BodySource::Empty)
    }

    /// Makes a body of `bytes`.
    pub fn whole(bytes: Bytes) -> Self {
        Self::from_source(if bytes.is_empty() { BodySource::Empty } else { BodySource::Whole(bytes.into()) })
    }

    /// Makes the body of a stored response.
    pub fn stored(stored: Arc<StoredResponse>) -> Self {
        let len = stored.len();
        match stored.own_body() {
            Some([]) => Self::empty(),
            Some(_) => Self::from_source(BodySource::Whole(Piece::Own(stored, 0))),
            None => match stored.into_body().into_one() {
                Ok(one) => Self::whole(one),
                Err(body) => Self::stored_range(body, 0, len),
            },
        }
    }

    /// Makes a body of the bytes of a stored one from `first` up to `end`.
    pub fn stored_range(body: Body, first: u64, end: u64) -> Self {
        Self::from_source(BodySource::Stored { body, next: 0, skip: first, left: end.saturating_sub(first) })
    }

    /// Makes a multipart body: ranges of a stored body, each behind its text, and a last text.
    pub fn multipart(body: &Body, ranges: &[(u64, u64)], before: Vec<Vec<u8>>, end: Vec<u8>) -> Self {
        let mut pieces = Vec::new();
        for (text, (first, end)) in before.into_iter().zip(ranges) {
            pieces.push(Bytes::from(text));
            body.cut(*first, end.saturating_sub(*first), &mut pieces);
        }
        pieces.push(Bytes::from(end));
        let left = pieces.iter().map(|piece| piece.len() as u64).sum();
        Self::from_source(BodySource::Multipart { pieces: pieces.into_iter(), left })
    }

    /// Makes a body of `len` bytes from a channel. Fewer, or an error, break the body off.
    pub fn pieces(receiver: mpsc::Receiver<Result<Bytes, StoreError>>, len: u64) -> Self {
        Self::from_source(if len == 0 { BodySource::Empty } else { BodySource::Pieces { receiver, left: len } })
    }

    /// Makes a body of one that is coming in.
    pub fn fill(reader: FillReader) -> Self {
        Self::from_source(BodySource::Fill { reader, skip: 0, left: None })
    }

    /// Makes a body of the bytes from `first` up to `end` of one that is coming in. Fewer break the body off.
    pub fn fill_range(reader: FillReader, first: u64, end: u64) -> Self {
        Self::from_source(BodySource::Fill { reader, skip: first, left: Some(end.saturating_sub(first)) })
    }

    /// Makes a body of the origin's, which is read ahead where the client is slower.
    pub fn upstream(body: UpstreamBody) -> Self {
        Self::from_source(BodySource::Upstream(body.into()))
    }

    /// Notifies a connection when the body has ended or broken off.
    pub fn track(&mut self, carrier: Arc<dyn Carrier>) {
        self.carrier = Some(carrier);
    }

    /// Calls `ending` with the number of bytes sent, when the body has ended or broken off.
    #[must_use]
    pub fn on_end(mut self, ending: impl FnOnce(u64) + Send + Sync + 'static) -> Self {
        let before = self.ending.take();
        self.ending = Some(Box::new(Ending(Box::new(move |sent| {
            ending(sent);
            if let Some(before) = before {
                (before.0)(sent);
            }
        }))));
        self
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let Some(ending) = self.ending.take() {
            (ending.0)(self.sent);
        }
        if let Some(carrier) = self.carrier.take() {
            carrier.body_has_ended();
        }
    }
}

impl BodySource {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, BodyError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Whole(piece) => {
                let piece = std::mem::replace(piece, Piece::Bytes(Bytes::new()));
                *self = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            Self::Stored { body, next, skip, left } => loop {
                let Some(segment) = body.segments().get(*next).filter(|_| *left > 0) else { return Poll::Ready(None) };
                *next += 1;
                if let Some(bytes) = cut(segment, skip, left) {
                    return Poll::Ready(Some(Ok(Frame::data(bytes.into()))));
                }
            },
            Self::Fill { reader, skip, left } => loop {
                if *left == Some(0) {
                    return Poll::Ready(None);
                }
                match std::task::ready!(Pin::new(&mut *reader).poll_chunk(cx)) {
                    Some(Ok(chunk)) => {
                        let mut unlimited = u64::MAX;
                        if let Some(bytes) = cut(&chunk, skip, left.as_mut().unwrap_or(&mut unlimited)) {
                            return Poll::Ready(Some(Ok(Frame::data(bytes.into()))));
                        }
                    }
                    Some(Err(incomplete)) => return Poll::Ready(Some(Err(incomplete.into()))),
                    None if left.is_some_and(|left| left > 0) => {
                        return Poll::Ready(Some(Err(crate::entry::Incomplete.into())));
                    }
                    None => return Poll::Ready(None),
                }
            },
            Self::Multipart { pieces, left } => {
                let piece = pieces.next();
                *left -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
                Poll::Ready(piece.map(|piece| Ok(Frame::data(piece.into()))))
            }
            Self::Pieces { receiver, left } => {
                if *left == 0 {
                    return Poll::Ready(None);
                }
                match std::task::ready!(receiver.poll_recv(cx)) {
                    Some(Ok(piece)) => {
                        *left = left.saturating_sub(piece.len() as u64);
                        Poll::Ready(Some(Ok(Frame::data(piece.into()))))
                    }
                    Some(Err(error)) => Poll::Ready(Some(Err(error.into()))),
                    None => Poll::Ready(Some(Err(crate::entry::Incomplete.into()))),
                }
            }
            Self::Upstream(body) => poll_upstream(body, cx),
        }
    }
}

#[inline(never)]
fn poll_upstream(body: &mut Passing, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, BodyError>>> {
    let frame = std::task::ready!(Pin::new(body).poll_frame(cx));
    Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(Piece::from)).map_err(Into::into)))
}

/// Returns the part of `segment` to send: skips `skip` bytes first, and takes at most `left`. `None`: none of it.
fn cut(segment: &Bytes, skip: &mut u64, left: &mut u64) -> Option<Bytes> {
    let len = segment.len() as u64;
    let start = (*skip).min(len);
    *skip -= start;
    let end = start + (len - start).min(*left);
    *left -= end - start;
    // Both lie within the segment's length, which is a usize.
    let (start, end) = (usize::try_from(start).ok()?, usize::try_from(end).ok()?);
    (start < end).then(|| segment.slice(start..end))
}

impl HttpBody for ResponseBody {
    type Data = Piece;
    type Error = BodyError;

    #[inline]
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, BodyError>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(this.source.poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.sent += data.remaining() as u64;
        }
        Poll::Ready(frame)
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        match &self.source {
            BodySource::Empty => true,
            BodySource::Whole(_) => false,
            BodySource::Stored { left, .. } | BodySource::Multipart { left, .. } | BodySource::Pieces { left, .. } => {
                *left == 0
            }
            BodySource::Fill { reader, left, .. } => *left == Some(0) || reader.is_end(),
            BodySource::Upstream(body) => body.is_end_stream(),
        }
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        match &self.source {
            BodySource::Empty => SizeHint::with_exact(0),
            BodySource::Whole(piece) => SizeHint::with_exact(piece.remaining() as u64),
            BodySource::Stored { left, .. } | BodySource::Multipart { left, .. } | BodySource::Pieces { left, .. } => {
                SizeHint::with_exact(*left)
            }
            BodySource::Fill { left: Some(left), .. } => SizeHint::with_exact(*left),
            BodySource::Fill { left: None, .. } => SizeHint::default(),
            BodySource::Upstream(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::entry::tests::sample;

    /// A stored response with such a body, and one that shares it.
    fn stored(bytes: &[u8]) -> [Arc<StoredResponse>; 2] {
        let body = Body::from_chunks([Bytes::copy_from_slice(bytes)].iter(), bytes.len() as u64);
        let stored = Arc::new(StoredResponse::new(sample().head, body));
        let other = Arc::new(StoredResponse::with_body_of(&stored, sample().head));
        [stored, other]
    }

    #[tokio::test]
    async fn a_stored_body_is_sent_whole_whoever_has_it() {
        for len in [0, 1, 5000, 600_000_u32] {
            let bytes: Vec<u8> = (0..len).map(|n| u8::try_from(n % 251).expect("below 251")).collect();
            for stored in stored(&bytes) {
                assert_eq!((stored.len(), stored.pieces().collect::<Vec<_>>().concat()), (len.into(), bytes.clone()));
                let body = ResponseBody::stored(Arc::clone(&stored));
                assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(len.into()), len == 0));
                drop(stored);
                assert_eq!(body.collect().await.expect("no error").to_bytes(), bytes);
            }
        }
    }

    #[tokio::test]
    async fn what_is_left_of_a_piece_is_what_was_not_taken() {
        let [stored, _] = stored(b"0123456789");
        for mut piece in [Piece::Own(stored, 0), Piece::from(Bytes::from_static(b"0123456789"))] {
            assert_eq!(piece.remaining(), 10);
            piece.advance(3);
            assert_eq!((piece.remaining(), piece.chunk()), (7, &b"3456789"[..]));
            assert_eq!(&piece.copy_to_bytes(6)[..], b"345678");
            piece.advance(1);
            assert!(!piece.has_remaining());
        }
    }

    #[tokio::test]
    async fn a_range_of_a_stored_body_is_cut_across_its_segments() {
        let chunk: Vec<u8> = (0..600_000_u32).map(|n| u8::try_from(n % 251).expect("below 251")).collect();
        let body = Body::from_chunks([Bytes::from(chunk.clone())].iter(), chunk.len() as u64);
        for (first, end) in [(0, 600_000), (0, 1), (262_143, 262_145), (599_999, 600_000), (300_000, 599_000)] {
            let ranged = ResponseBody::stored_range(body.clone(), first as u64, end as u64);
            assert_eq!(ranged.size_hint().exact(), Some((end - first) as u64));
            let sent = ranged.collect().await.expect("no error").to_bytes();
            assert_eq!(sent, chunk[first..end], "{first}..{end}");
        }
    }
}
