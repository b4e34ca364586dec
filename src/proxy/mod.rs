//! The life of a request, from top to bottom, as RFC 9111 §4 tells it ([`Proxy::answer`](crate::proxy::Proxy)).
//!
//! * What is fetched is shared (`share`); what no stored response may answer is passed on (`forward`).
//! * What selects a response is what the origin saw: the key and the rules are made of the request once (`target`).
//!
//! May import: everything below it but sockets. Reads and writes no bytes.

mod access;
mod client;
mod explain;
mod failures;
mod forward;
mod purge;
mod reply;
mod request;
mod rules;
mod share;
mod target;
mod tunnel;

pub(crate) use self::client::{Client, Stream, Upgraded};
pub use self::explain::Question;
pub use self::failures::Failures;
pub use self::purge::{Held, Manner, PurgeError, Schemes, What};
pub use self::reply::Reply;
pub use self::request::{Proxy, Usage};
pub(crate) use self::rules::{Config as CacheConfig, Rule, Rules};
pub(crate) use self::target::Keys;
