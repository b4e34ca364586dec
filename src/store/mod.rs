//! The two tiers, and the purges that both obey: memory first, the durable tier (a bucket or a directory) behind it.
//!
//! * The durable tier never fails or slows a request that the origin can serve: look-ups have a deadline and a breaker,
//!   writes wait in a bounded queue.
//! * A purge is a position, not a scan. What was fetched before it is not served, wherever it is.
//! * The full key and the checksums are compared on every durable read. Anything unreadable is a counted miss.
//! * What differs between a bucket and a directory is behind `Place`: the rest of the room does not know which it has.
//!
//! May import: `rfc9111`, `base`, `entry`. Asks no origin, and decides nothing about freshness.

mod admission;
mod directory;
mod durable;
mod error;
mod index;
mod invalidation;
mod journal;
mod keep;
mod listing;
mod memory;
mod names;
mod pack;
mod place;
mod purge;
mod purpose;
mod queue;
pub mod s3;
mod second_use;
mod throttle;
mod tiers;
mod values;

#[cfg(test)]
mod model;
#[cfg(test)]
mod simulated;

pub(crate) use self::durable::{
    BodyPart, BodyReader, Config as DurableConfig, Durable, DurableLookup, Examined, FoundBody, FoundResponse, KeptKey,
    Location, Opening, SeparateBody, Sweep, report_drain,
};
pub(crate) use self::error::{StoreError, StoreErrorKind};
pub(crate) use self::index::Index;
pub(crate) use self::keep::{Keep, is_open_to_others};
pub(crate) use self::listing::{NamedValue, ValueList, Wanted};
pub use self::memory::{Config as MemoryConfig, Lookup, Memory, MemoryPolicy};
pub(crate) use self::names::ObjectNames;
pub use self::pack::{hold_entries, hold_footer};
pub(crate) use self::purge::{EITHER, PurgeReceipt, PurgeStamp, begins_with};
pub use self::purge::{Purge, PurgeTarget, Purges};
pub(crate) use self::tiers::KnownRecord;
pub use self::tiers::{Durability, Store};
pub(crate) use self::values::{FoundValue, LookedUp};
