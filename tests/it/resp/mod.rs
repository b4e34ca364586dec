//! Tests of the room `resp`: objects over Redis's protocol.

mod atomic;
mod bounds;
mod expiry;
mod hostile;
mod listing;
mod pages;
mod protocol;
mod semantics;
mod sharing;
mod starting;
mod survival;
