//! The command line.

pub mod admin_client;
pub mod signals;
pub mod upkeep;
