//! Tests of the whole room, with clients.

mod clients;
mod files;
mod handshakes;
mod renewal;
mod tickets;
