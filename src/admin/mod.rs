//! The operator's side: health, readiness, counters, purges and `explain` on the admin listener. Never on the public
//! ones.
//!
//! * Nobody but who may reach it by address, name and token is answered (`gate`); `/healthz` and `/readyz` are for all.
//! * "purged" is said once the purge holds here, and is recorded where other processes find it.
//!
//! May import: `downstream` and below.

mod api;
mod gate;
mod metrics;
mod purge;

pub(crate) use self::api::{Admin, Config};
