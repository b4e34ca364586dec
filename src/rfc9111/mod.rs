//! The rules of HTTP caching (RFC 9111) and what they stand on (RFC 9110), as pure functions.
//!
//! Nothing here awaits, reads a clock, or does I/O: `now` is a parameter, and the same arguments always give the same
//! answer. The request flow in [`crate::proxy`] obeys these functions; no other module decides what is fresh, what may
//! be stored, or what may be reused.
//!
//! Every function is total: whatever bytes a field holds, it returns without panicking, in time linear in their
//! length.

pub mod cache_status;
pub mod claims;
pub mod conditional;
pub mod date;
pub mod directives;
pub mod fields;
pub mod freshness;
pub mod groups;
pub mod invalidation;
pub mod key;
pub mod partial;
pub mod present;
pub mod query;
pub mod range;
pub mod reuse;
pub mod search;
pub mod storage;
pub mod structured;
pub mod tags;
pub mod targeted;
pub mod timestamp;
pub mod validation;
pub mod vary;
