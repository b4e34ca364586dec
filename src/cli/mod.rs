//! The command line: the commands, the client of the admin listener that some of them are, signals, upkeep of the
//! durable tier (`lifecycle`, `sweep`, `keys`), and `dev`, which runs an application as well.
//!
//! * Nothing here panics because standard output or standard error is closed or full.
//! * A mistake in the configuration or on the command line exits with 2, a failure with 1.
//!
//! May import: everything.

pub mod admin_client;
mod commands;
mod dev;
mod memory_pages;
mod signals;
mod tied;
pub mod upkeep;

pub use self::commands::main;
pub use self::signals::Signals;
