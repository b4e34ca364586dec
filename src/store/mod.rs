//! The two tiers, and the purges that both obey: memory first, the durable tier (a bucket or a directory) behind it.
//!
//! * The durable tier never fails or slows a request that the origin can serve: look-ups have a deadline and a breaker,
//!   writes wait in a bounded queue.
//! * A purge is a position, not a scan. What was fetched before it is not served, wherever it is.
//! * The full key and the checksums are compared on every durable read. Anything unreadable is a counted miss.
//!
//! May import: `rfc9111`, `base`, `entry`. Asks no origin, and decides nothing about freshness.

mod admission;
mod backend;
mod durable;
mod file;
mod index;
mod journal;
mod memory;
mod names;
mod purge;
mod queue;
mod room;
pub mod s3;
mod seldom;
#[cfg(test)]
mod simulated;
mod tiers;

pub(crate) use self::backend::{Backend, BackendError, CheckFailure, Trouble};
pub(crate) use self::durable::{
    Apart, BodyReader, Config as DurableConfig, Durable, Examined, Found, FoundBody, FoundResponse, Location, MAX_HEAD,
    Opening, Wanted, body_of, place, report_drain,
};
pub(crate) use self::index::Index;
pub use self::memory::{Config as MemoryConfig, Lookup, Memory};
pub(crate) use self::names::{Kind, Names};
pub(crate) use self::purge::{EITHER, Made, Mark};
pub use self::purge::{Purge, Purges, Target};
pub(crate) use self::tiers::Known;
pub use self::tiers::{Durability, Store};
