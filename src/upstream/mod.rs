//! The origin: connections to it, what it is asked, and the bodies on their way to and from it.
//!
//! * Every request has a deadline for its head. A message past its buffer goes to a temporary file.
//! * An answer that can't be taken is the fault of its URL; only what says that the origin is down opens the breaker.
//! * What the origin may believe about a client is set here (`forwarding`), or does not reach it.
//!
//! May import: `rfc9111`, `base`, `entry` (the memory that bodies share). Knows nothing of keys or tiers.

mod ahead;
mod body;
mod buffers;
pub mod forwarding;
mod framing;
mod informational;
mod link;
mod origin;
mod origin_io;
mod request_body;
mod spool;
mod transfer;

pub use self::ahead::Passing;
pub use self::body::{UpstreamBody, UpstreamBodyError};
pub(crate) use self::buffers::Buffers;
pub use self::framing::EndsWithConnection;
pub(crate) use self::informational::{Informational, InformationalSender};
pub(crate) use self::origin::{Address, Errand, OriginRequest, Upstream};
pub use self::origin::{Config, UpstreamError};
pub(crate) use self::request_body::{ClientBody, Fault, Limits, RequestBody};
pub(crate) use self::spool::Spools;
pub(crate) use self::transfer::{Overrides, Transfer};
