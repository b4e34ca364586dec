//! Bodies on their way in: from the origin, or from the durable tier, into a fill.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tracing::debug;

use crate::entry::{Body, FillWriter};
use crate::store::{BodyReader, StoreError};
use crate::upstream::{Passing, UpstreamBody};

/// A body on its way in, with what is stored already before it and after it.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) before: Vec<Bytes>,
    body: Passing,
    /// The bytes that have to come in between.
    pub(super) len: Option<u64>,
    pub(super) after: Vec<Bytes>,
}

impl Incoming {
    /// The length of it all, if that is known.
    pub(super) fn len(&self) -> Option<u64> {
        let stored: u64 = self.before.iter().chain(&self.after).map(|chunk| chunk.len() as u64).sum();
        self.len.or_else(|| self.body.size_hint().exact()).map(|len| len.saturating_add(stored))
    }
}

impl From<UpstreamBody> for Incoming {
    fn from(body: UpstreamBody) -> Self {
        Self { before: Vec::new(), body: Passing::held(body), len: None, after: Vec::new() }
    }
}

/// Takes a body in to its end, and has it kept if it is complete and was kept whole.
///
/// It is kept before the last of it is given out: a client that has read to the end, and asks
/// again, gets a hit.
pub(super) async fn fill_from_origin(mut writer: FillWriter, incoming: Incoming, keep: impl FnOnce(Body) -> Body) {
    let Incoming { before, mut body, len, after } = incoming;
    let mut left = len;
    for chunk in before {
        if !writer.push(chunk).await {
            return;
        }
    }
    let mut last = Bytes::new();
    while let Some(frame) = body.frame().await {
        let data = match frame.map(http_body::Frame::into_data) {
            Ok(Ok(data)) => data,
            // Trailers are not stored.
            Ok(Err(_)) => continue,
            Err(error) => {
                debug!("a response is not stored: {error}");
                return;
            }
        };
        // Bytes too many, or too few, would put those after them in the wrong place.
        match left.map(|left| left.checked_sub(data.len() as u64)) {
            Some(Some(less)) => left = Some(less),
            Some(None) => return,
            None => {}
        }
        if body.is_end_stream() {
            last = data;
            break;
        }
        if writer.is_window() {
            // Readers that are slower than the origin are none of its business.
            body.begin();
        }
        if !writer.push(data).await {
            return;
        }
    }
    if left.is_some_and(|left| left > 0) {
        return;
    }
    for chunk in after {
        if !writer.push(std::mem::replace(&mut last, chunk)).await {
            return;
        }
    }
    // One that is too large after all is taken over like any other.
    if !writer.has_room_for(&last) && !writer.push(std::mem::take(&mut last)).await {
        return;
    }
    finish(writer, last, keep);
}

/// The same for a body from the durable tier; an error when it broke off or can't be believed.
pub(super) async fn fill_from_durable(
    mut writer: FillWriter,
    first: Bytes,
    mut rest: BodyReader,
    keep: impl FnOnce(Body) -> Body,
) -> Result<(), StoreError> {
    let mut piece = first;
    loop {
        if rest.is_end() {
            finish(writer, piece, keep);
            return Ok(());
        }
        if !writer.push(piece).await {
            return Ok(());
        }
        piece = rest.next().await?.unwrap_or_default();
    }
}

/// Ends a fill with `last`. Who still reads has the body from where it is kept, as `keep` says.
fn finish(writer: FillWriter, last: Bytes, keep: impl FnOnce(Body) -> Body) {
    let body = writer.whole(&last).map(keep);
    writer.complete(last, body);
}
