//! The side of the clients: listeners, connections of HTTP/1, their limits and timeouts, and the drain at the stop.
//!
//! * A client that does not send, or does not read, holds nothing that others need.
//! * What hyper refuses by itself is answered with a sentence, counted and logged.
//!
//! May import: `proxy` and below. Knows nothing of keys, tiers or the origin.

mod client_io;
mod connection;
mod heads;
mod http1;
mod http2;
mod listen;
mod outlet;
mod proxy_protocol;
mod refusals;
mod server;

pub(crate) use self::client_io::{ClientIo, Patience};
pub(crate) use self::connection::Connection;
pub use self::listen::Listen;
pub(crate) use self::listen::{ListenError, Sockets, bind};
pub use self::proxy_protocol::{Sender, hold_proxy_header};
pub(crate) use self::refusals::{Refusals, Witness, conflicting_framing};
pub(crate) use self::server::{Audience, Config as ServerConfig, Worker, pause_after};
