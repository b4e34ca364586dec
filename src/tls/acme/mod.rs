//! Certificates that renew themselves (ACME, RFC 8555).
//!
//! * A CA that fails harms nothing: what there is is served, and it is asked again at growing intervals.
//! * Several processes with one state share the account and the certificates. One of them orders (`claims`); all answer the
//!   CA's challenges (`challenges`), and use a new certificate within a minute.
//! * Nothing is ordered unless the state takes writes, and no state is lost by the end of a process (`order`). A process that
//!   is started again and again orders no more often than one that runs.
//!
//! `plan` says when, `due` decides what is to be done now, `order` does it, `state` and `records` keep it, `problem` says what went wrong.

mod certificate;
mod challenges;
mod claims;
mod client;
mod config;
mod due;
mod order;
mod plan;
mod problem;
mod records;
mod run;
mod state;
mod waiting;

pub(crate) use self::challenges::{ACME_TLS, Challenges};
pub(crate) use self::config::Domains;
pub use self::config::{ChallengeChoice, Config, StatePlace};
pub(crate) use self::due::Doors;
pub(crate) use self::run::Acme;
