//! The configuration: a file, the environment and `--set`, read into one checked [`Config`].
//!
//! * A setting is one row of `table`: its key, its field, its bounds and what it does. Reading, `larder check`,
//!   `larder config`, `config.toml` and `docs/configuration.md` are made from the rows. Its default is the field's.
//! * Nothing stops at the first mistake: all are told, one line each, with the key, the value and what is allowed.
//! * An unknown key is a mistake, and the nearest known one is named.
//!
//! May import: every room that has settings. Starts nothing.

mod addresses;
mod effective;
mod hints;
mod key;
mod kinds;
mod reading;
mod reference;
mod settings;
mod sources;
mod table;
mod values;

pub(crate) use self::reading::Reading;
pub use self::settings::{Config, ConfigErrors, DEFAULT_UPSTREAM};

#[cfg(test)]
mod pages;
#[cfg(test)]
mod tests;
