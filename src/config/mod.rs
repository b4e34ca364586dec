//! The configuration: a file, the environment and `--set`, read into one checked [`Config`].
//!
//! * Nothing stops at the first mistake: all are told, one line each, with the key, the value and what is allowed.
//! * An unknown key is a mistake, and the nearest known one is named.
//!
//! May import: every room that has settings. Starts nothing.

mod addresses;
mod hints;
mod settings;

pub use self::settings::{Config, ConfigErrors};
