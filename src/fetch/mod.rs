//! A fetch: one question to the durable tier and the origin for everybody who asks the same, and what is kept of the
//! answer.
//!
//! * A fetch is its own task. No client's leaving or slowness touches it.
//! * It knows at the response's head whether the response may be shared, and says so at once.
//! * What it stores carries the purge position at which it began.
//!
//! May import: `rfc9111`, `base`, `entry`, `store`, `upstream`. Makes no response for a client.

mod durable;
mod fetcher;
mod flight;
mod hit_for_miss;
mod keep;
mod plan;
mod searches;

pub use self::fetcher::MAX_UNATTENDED;
pub(crate) use self::fetcher::{Fetched, Fetcher, ForLeader, clean_response};
pub use self::flight::{Flights, Follower, Joined, Landing, Outcome, Watch};
pub(crate) use self::flight::{Shared, SharedResponse, Source};
pub(crate) use self::hit_for_miss::{HitForMiss, Looked, Pass, Selection};
pub use self::plan::Plan;
pub(crate) use self::plan::Ranges;
pub(crate) use self::searches::Searches;
