//! A fetch: asks the durable tier and the origin once for everybody who asks alike, and keeps what may be kept of the
//! answer.
//!
//! * A fetch is its own task. A client that leaves, or reads slowly, does not affect it.
//! * It knows at the response's head whether the response may be shared, and says so at once.
//! * What it stores carries the purge position at which it began.
//!
//! May import: `rfc9111`, `base`, `entry`, `store`, `upstream`. Makes no response for a client.

mod body;
mod decide;
mod durable;
#[expect(clippy::module_inception, reason = "the room is named for it")]
mod fetch;
mod fetcher;
mod flight;
mod freshen;
mod hit_for_miss;
mod keep;
mod launch;
mod missing;
mod order;
mod parts;
mod peers;
mod searches;

pub(crate) use self::decide::{
    Background, Decision, Inquiry, OnStored, Sharing, Use, is_passed_on, sharing, with_nothing, with_stored,
    without_looking,
};
pub(crate) use self::fetch::{Fetch, Fetched, ForLeader};
pub use self::fetcher::MAX_UNATTENDED;
pub(crate) use self::fetcher::{FetchLimits, Fetcher, Memories, Origins, clean_response};
pub use self::flight::{FlightName, Flights, Follower, Joined, Lease, Outcome, Watch};
pub(crate) use self::flight::{Provenance, Shared, SharedResponse};
pub(crate) use self::hit_for_miss::{Recalled, Selection, Unshared};
pub(crate) use self::order::{Asked, Holdings, Order, Ranges, Terms};
pub(crate) use self::peers::fingerprint;
