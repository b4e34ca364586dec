//! The listener that speaks Redis's protocol (RESP2 and RESP3): objects for the application's own use, kept in both
//! tiers like responses.
//!
//! * Commands of a connection are answered in their order. What memory answers is answered in the poll that read it.
//! * A client that does not send, or does not read, holds nothing that others need. Memory grows with what arrives,
//!   never with what is announced, and all clients together hold at most `resp.max_buffered`.
//! * Input that is not the protocol gets Redis's own error, and its connection ends.
//! * No object can meet a page: their keys are of another kind.
//!
//! May import: `downstream` (for its sockets) and below, but for `proxy`, `respond` and `fetch`.

mod commands;
mod config;
mod connection;
mod hold;
mod inline;
mod input;
mod memory;
mod output;
mod parse;
mod presence;
mod reply;
mod server;
mod session;
mod settling;
mod values;

pub use self::config::Config;
pub use self::hold::hold_commands;
pub(crate) use self::server::{Server, Worker};
