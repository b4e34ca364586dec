//! A stored response: its head, its body, what happens to it while it is kept, and its versioned encoding.
//!
//! * A [`StoredResponse`] is made from a [`Storable`](crate::rfc9111::storage::Storable), the proof that RFC 9111 §3
//!   allows to store it, or is read from bytes that were once written from one. A value is made for a [`ValueKey`], which
//!   no request has (`value`).
//! * A body that is still coming in ([`Fill`]) ends complete or failed. It fails if its writer is dropped before.
//!
//! May import: `rfc9111`, `base`. Does not decide where a response is kept, or for how long.

mod body;
pub mod encoding;
mod fields;
mod fill;
mod head;
mod marks;
pub mod ready;
mod record;
mod response;
#[cfg(test)]
mod sample;
mod uses;
mod value;
mod version_vector;

pub use self::body::{Body, SEGMENT};
pub(crate) use self::fields::Fields;
pub use self::fill::{Budget, Fill, FillReader, FillWriter, Unread};
pub(crate) use self::fill::{Incomplete, Reading};
pub(crate) use self::head::Variant;
#[cfg(test)]
pub(crate) use self::head::tests;
pub use self::head::{NewHead, StoredHead};
pub use self::marks::{BodyObject, Marks, Tried, Validating, Who};
pub use self::record::VaryRecord;
pub use self::response::{Replaced, StoredApart, StoredResponse};
#[cfg(test)]
pub(crate) use self::sample::sample_head;
pub(crate) use self::uses::Uses;
pub use self::value::{ValueKey, value_name};
pub(crate) use self::version_vector::{Covered, HORIZON, JournalTime, TICK_BITS, VersionVector};
