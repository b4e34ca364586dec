//! A fetch: one question to the durable tier and the origin for everybody who asks the same, and what is kept of the
//! answer.
//!
//! * A fetch is its own task. No client's leaving or slowness touches it.
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
mod order;
mod parts;
mod searches;

pub(crate) use self::decide::{
    Behind, Decision, Inquiry, Sharing, Use, is_passed_on, sharing, with_nothing, with_stored, without_looking,
};
pub(crate) use self::fetch::{Fetch, Fetched, ForLeader};
pub use self::fetcher::MAX_UNATTENDED;
pub(crate) use self::fetcher::{Fetcher, Limits, Memories, Origin, clean_response};
pub use self::flight::{Flights, Follower, Joined, Lease, Outcome, Watch};
pub(crate) use self::flight::{Shared, SharedResponse, Source};
pub(crate) use self::hit_for_miss::{Looked, Pass, Selection};
pub(crate) use self::order::{Asked, Holdings, Order, Ranges, Terms};
