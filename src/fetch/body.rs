//! Copies a body into a fill as it comes in, from the origin or from the durable tier.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tracing::debug;

use crate::entry::{Body, FillWriter};
use crate::store::{BodyReader, StoreError};
use crate::upstream::{Passing, UpstreamBody};

/// A body that is coming in, between the stored bytes that precede and follow it.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) before: Vec<Bytes>,
    body: Passing,
    /// The number of bytes that have to come in between; `None`: any number.
    pub(super) len: Option<u64>,
    pub(super) after: Vec<Bytes>,
}

impl Incoming {
    /// Returns the length of the whole, stored bytes included, if it is known.
    pub(super) fn len(&self) -> Option<u64> {
        let stored: u64 = self.before.iter().chain(&self.after).map(|chunk| chunk.len() as u64).sum();
        self.len.or_else(|| self.body.size_hint().exact()).map(|len| len.saturating_add(stored))
    }
}

impl From<UpstreamBody> for Incoming {
    fn from(body: UpstreamBody) -> Self {
        Self { before: Vec::new(), body: Passing::on_demand(body), len: None, after: Vec::new() }
    }
}

/// Reads a body to its end into `writer`, and calls `keep` with it if it is complete and was kept whole.
///
/// Calls `keep` before the last bytes are given to readers: a client that has read to the end, and asks again, gets a
/// hit.
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
        // A body that is longer or shorter would put the stored bytes behind it in the wrong place.
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
            // The buffer is at its limit: from here on readers that are slower than the origin no longer slow it down.
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
    // The body turns out too large to be kept whole: its last bytes go to the readers like all before.
    if !writer.has_room_for(&last) && !writer.push(std::mem::take(&mut last)).await {
        return;
    }
    finish(writer, last, keep);
}

/// Reads a body from the durable tier to its end into `writer`, and calls `keep` with it if it was kept whole. Returns
/// an error if the body breaks off or fails its checksum.
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

/// Ends a fill with `last`. Calls `keep` with the body if it was kept whole; readers then share what `keep` returns.
fn finish(writer: FillWriter, last: Bytes, keep: impl FnOnce(Body) -> Body) {
    let body = writer.whole(&last).map(keep);
    writer.complete(last, body);
}
