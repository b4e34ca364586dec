//! The side of the clients: listeners, connections of HTTP/1, their limits and timeouts, and the drain at the stop.
//!
//! * A client that does not send, or does not read, holds nothing that others need.
//! * What hyper refuses by itself is answered with a sentence, counted and logged.
//!
//! May import: `proxy` and below. Knows nothing of keys, tiers or the origin.

mod client_io;
mod listen;
mod outlet;
mod refusals;
mod server;

pub(crate) use self::client_io::{ClientIo, Connection, Patience, conflicting_framing};
pub use self::listen::Listen;
pub(crate) use self::listen::{ListenError, Sockets, bind};
pub(crate) use self::refusals::{Refusals, Witness};
pub(crate) use self::server::{Config as ServerConfig, Worker, rest_after};
