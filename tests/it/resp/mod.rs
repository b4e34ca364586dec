//! Tests of the room `resp`: objects over Redis's protocol.

mod atomic;
mod expiry;
mod listing;
mod pages;
mod semantics;
mod sharing;
mod starting;
mod survival;
