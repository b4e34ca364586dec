//! Lists every key, in one file for each section. To add a key, add its field to the room's `Config` and its row here.
//!
//! * No row has a default: the `Default` of the `Config` has it.
//! * Tests check that every field has a row, and that every row says in sentences what its key does.
//! * `LARDER_TEST_WRITE=1 cargo test --lib config::pages` then writes `config.toml` and `docs/configuration.md`.

mod acme;
mod admin;
mod cache;
mod durable;
mod log;
mod memory;
mod peers;
mod resp;
pub(super) mod rule;
mod server;
pub(super) mod tls;
pub(super) mod upstream;

use super::key::{Field, Section};
use crate::proxy::Rule;

/// In the order of `config.toml`.
pub(super) static SECTIONS: &[&Section] = &[
    &server::SECTION,
    &tls::SECTION,
    &acme::SECTION,
    &upstream::SECTION,
    &cache::SECTION,
    &memory::SECTION,
    &durable::SECTION,
    &peers::SECTION,
    &resp::SECTION,
    &admin::SECTION,
    &log::SECTION,
];

/// The keys of a `[[rule]]`: its own, and those that it shares with a section.
pub(super) fn rule_fields() -> impl Iterator<Item = (&'static str, &'static dyn Field<Rule>)> {
    let own = rule::KEYS.iter().map(|key| (key.name, key.field));
    let keys = SECTIONS.iter().flat_map(|section| section.keys);
    own.chain(keys.filter_map(|key| Some((key.name, key.field.of_rule()?))))
}

#[cfg(test)]
mod tests;
