//! The side of the clients: what they may send, how slowly they may read, and the stop.

mod drain;
mod framing;
mod hostile;
mod https;
mod listen;
mod slow_clients;
