//! The life of a request, from top to bottom, as RFC 9111 §4 tells it ([`Proxy::answer`](crate::proxy::Proxy)).
//!
//! * What is fetched is shared (`share`); what no stored response may answer is passed on (`forward`).
//! * A response is selected by what the origin saw: the key and the rule are worked out once a request (`target`).
//!
//! May import: everything below it but sockets. Reads and writes no bytes.

mod access;
mod background;
mod client;
mod explain;
mod failures;
mod forward;
mod hosts;
mod https;
mod label;
mod peer;
mod purge;
mod query;
mod readings;
mod reply;
mod request;
mod rules;
mod share;
mod state;
mod target;
mod tunnel;

pub(crate) use self::client::{Client, Stream, Upgraded};
pub use self::explain::Question;
pub use self::failures::Failures;
pub(crate) use self::hosts::HostPattern;
pub use self::https::Https;
pub(crate) use self::purge::prefixes;
pub use self::purge::{Held, Manner, PurgeError, Schemes, What};
pub use self::reply::Reply;
pub(crate) use self::rules::{Config as CacheConfig, Rule, Rules, Transfers};
pub use self::state::{Proxy, Usage};
pub(crate) use self::target::Keys;
