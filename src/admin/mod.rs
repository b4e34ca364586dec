//! The operator's side: health, readiness, counters, purges and `explain` on the admin listener, and never on the
//! public ones.
//!
//! * Only requests that `gate` admits, by address, name and token, are answered; `/healthz` and `/readyz` are for all.
//! * A purge is confirmed once it is in force here and recorded where other processes find it.
//!
//! May import: `downstream` and below.

mod api;
mod gate;
mod metrics;
mod purge;

pub(crate) use self::api::{Admin, Config};
