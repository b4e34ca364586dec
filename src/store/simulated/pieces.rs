//! What is read from and written to a simulated place in pieces.

use std::future::ready;

use bytes::Bytes;

use super::Simulated;
use crate::store::place::{ObjectReader, ObjectWriter, Operation};

/// The longest piece that is read at once: short, so that an object has several.
const PIECE: usize = 16 << 10;

/// An object that is read in pieces.
#[derive(Debug)]
pub(super) struct Pieces(Bytes);

impl Pieces {
    pub(super) fn of(object: Bytes) -> Box<dyn ObjectReader> {
        Box::new(Self(object))
    }
}

impl ObjectReader for Pieces {
    fn next(&mut self) -> Operation<'_, Option<Bytes>> {
        let piece = self.0.split_to(self.0.len().min(PIECE));
        Box::pin(ready(Ok((!piece.is_empty()).then_some(piece))))
    }
}

/// An object that is written in pieces.
pub(super) struct Upload {
    access: Simulated,
    name: String,
    pieces: Vec<Bytes>,
}

impl Upload {
    pub(super) fn to(access: Simulated, name: &str) -> Self {
        Self { access, name: name.to_owned(), pieces: Vec::new() }
    }
}

impl ObjectWriter for Upload {
    fn write(&mut self, piece: Bytes) -> Operation<'_, ()> {
        self.pieces.push(piece);
        Box::pin(ready(Ok(())))
    }

    fn finish(self: Box<Self>) -> Operation<'static, ()> {
        Box::pin(ready(self.access.put(&self.name, &self.pieces)))
    }
}
