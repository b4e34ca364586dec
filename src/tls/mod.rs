//! TLS: certificates and keys, the handshake, session tickets, clients' certificates.
//!
//! * A handshake has a deadline, and holds nothing but its own connection.
//! * A certificate is used only with the key that belongs to it. A pair that can't be used never replaces one that can.
//! * What a client's certificate says reaches the application in one field, which no client can write itself.
//!
//! May import: `base`, `rfc9111`, and for the state of ACME `store`. Knows no listener and no request.

mod accept;
pub mod acme;
mod certificate;
mod challenge;
mod config;
mod error;
mod files;
mod resolver;
mod server;
mod setup;
mod subject;
mod tickets;
mod watched;

pub(crate) use self::accept::{Accepted, Protocol};
pub use self::config::{CertificateFiles, Config, MinVersion, UnknownSni};
pub use self::error::TlsError;
pub(crate) use self::server::{Tls, examine};

#[cfg(test)]
mod sample;
#[cfg(test)]
mod tests;
