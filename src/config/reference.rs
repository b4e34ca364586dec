//! Describes each key of the table for a reader: for `larder config KEY`, `config.toml` and `docs/configuration.md`.

use std::fmt::Write;

use toml::Value;

use super::key::{Draft, Field, Key};
use super::kinds::Described;
use super::table;
use crate::proxy::Rule;
use crate::tls::CertificateFiles;

/// One key, described.
pub(super) struct Row {
    /// The name of the section or list: `rule` for a key of `[[rule]]`.
    pub(super) section: &'static str,
    pub(super) name: &'static str,
    pub(super) described: Described,
    pub(super) default: Default,
    pub(super) does: &'static str,
    /// True if a rule may set it as well.
    pub(super) is_by_rule: bool,
}

/// The value that applies if a key is not set.
pub(super) enum Default {
    Value(Value),
    /// A rule takes the value of the same key in this section.
    OfSection(&'static str),
    /// Nothing.
    Unset,
    /// There is none: it must be set.
    Required,
}

impl Row {
    pub(super) fn key(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    fn new<S>(section: &'static str, key: &Key<S>, field: &dyn Field<S>, of: &mut S) -> Self {
        Self {
            section,
            name: key.name,
            described: field.described(),
            default: field.shown(of).map_or(Default::Unset, Default::Value),
            does: key.does,
            is_by_rule: field.of_rule().is_some(),
        }
    }

    /// Says what values the key takes, and what applies if it is not set.
    pub(super) fn takes(&self) -> String {
        let Described { kind, bounds, example, .. } = &self.described;
        let bounds = if bounds.is_empty() { String::new() } else { format!(" ({bounds})") };
        let default = match &self.default {
            Default::Value(value) => value.to_string(),
            Default::OfSection(section) => format!("that of {section}.{}", self.name),
            Default::Unset => "not set".into(),
            Default::Required => "none, it is required".into(),
        };
        let by_rule = if self.is_by_rule { " Also by rule." } else { "" };
        format!("Type: {kind}{bounds}. Example: {example}. Default: {default}.{by_rule}")
    }
}

/// Returns the keys of every section, in the table's order.
pub(super) fn sections() -> Vec<Row> {
    let mut draft = Draft::default();
    let keys = table::SECTIONS.iter().flat_map(|section| section.keys.iter().map(|key| (section.name, key)));
    keys.map(|(section, key)| Row::new(section, key, key.field, &mut draft)).collect()
}

/// Returns the keys of a rule: its own, then those that it shares with sections.
pub(super) fn rule() -> Vec<Row> {
    let mut rule = Rule::default();
    let own = table::rule::KEYS.iter().map(|key| {
        let row = Row::new("rule", key, key.field, &mut rule);
        let default = if key.name == table::rule::REQUIRED { Default::Required } else { row.default };
        Row { default, ..row }
    });
    let shared = sections().into_iter().filter(|row| row.is_by_rule).map(|row| Row {
        default: Default::OfSection(row.section),
        section: "rule",
        is_by_rule: false,
        ..row
    });
    own.collect::<Vec<_>>().into_iter().chain(shared).collect()
}

/// Returns the keys of a `[[tls.certificate]]`.
pub(super) fn certificate() -> Vec<Row> {
    let mut files = CertificateFiles::default();
    let rows = table::tls::CERTIFICATE.iter().map(|key| Row::new(table::tls::LIST, key, key.field, &mut files));
    rows.map(|row| Row { default: Default::Required, ..row }).collect()
}

/// Breaks `text` into lines of comment, which begin with `sign`.
pub(super) fn comment(sign: &str, text: &str, out: &mut String) {
    let mut line = String::from(sign);
    for word in text.split(' ') {
        if line.chars().count() + word.chars().count() >= 110 {
            let _ = writeln!(out, "{line}");
            line = String::from(sign);
        }
        let _ = write!(line, " {word}");
    }
    let _ = writeln!(out, "{line}");
}
