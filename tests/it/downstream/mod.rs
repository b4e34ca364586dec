//! The side of the clients: what they may send, how slowly they may read, and the stop.

mod drain;
mod framing;
mod hostile;
mod https;
mod listen;
mod proxy_protocol;
mod slow_clients;
