//! The side of the clients.

pub mod client_io;
pub mod listen;
pub mod refusals;
pub mod server;
