//! Reads the settings into a [`Config`], key by key of the table. A setting that no key takes is an unknown key.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;

use super::hints::{hint, nearest};
use super::key::{Draft, Field};
use super::sources::{Origin, Sources, folded};
use super::table::upstream::UPSTREAMS;
use super::values::check_upstream_name;
use super::{Config, ConfigErrors, table};
use crate::proxy::Rule;
use crate::store::Location;
use crate::store::s3::S3Config;
use crate::tls::CertificateFiles;
use crate::upstream;

/// Holds the configuration that was read, and the mistakes in it.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(super) draft: Draft,
    /// The source of each key that was set.
    pub(super) origins: BTreeMap<String, Origin>,
    /// For each of `draft`'s rules, its number in the file.
    pub(super) rules: Vec<usize>,
    /// The same for the certificates.
    pub(super) certificates: Vec<usize>,
    errors: Vec<String>,
    /// Keys whose value could not be read; the draft has their defaults.
    mistaken: BTreeSet<String>,
    pub(super) known: Vec<String>,
}

impl Reading {
    /// Reads `file`, if there is one, `environment` and the `--set` options, each overriding the ones before.
    pub(crate) fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (OsString, OsString)>,
        sets: &[String],
    ) -> Self {
        Self::load_over(&[], file, environment, sets)
    }

    /// Like [`Reading::load`], over other defaults, each written as in `--set`.
    pub(crate) fn load_over(
        defaults: &[&str],
        file: Option<&Path>,
        environment: impl Iterator<Item = (OsString, OsString)>,
        sets: &[String],
    ) -> Self {
        let mut sources = Sources::default();
        for default in defaults {
            sources.read_set(default);
        }
        if let Some(path) = file {
            sources.read_file(path);
        }
        for (name, value) in environment {
            sources.read_os_variable(&name, &value);
        }
        for set in sets {
            sources.read_set(set);
        }
        Self::of(sources)
    }

    pub(super) fn of(mut sources: Sources) -> Self {
        let rules = sources.take_tables(table::rule::LIST);
        let certificates = sources.take_tables(table::tls::LIST);
        let mut reading = Self {
            draft: Draft::default(),
            origins: BTreeMap::new(),
            rules: Vec::new(),
            certificates: Vec::new(),
            errors: std::mem::take(&mut sources.errors),
            mistaken: BTreeSet::new(),
            known: Vec::new(),
        };
        let mut draft = Draft::default();
        for section in table::SECTIONS {
            for key in section.keys {
                reading.read(&mut sources, format!("{}.{}", section.name, key.name), key.field, &mut draft);
            }
        }
        for (n, origin) in rules {
            draft.config.rules.push(reading.read_rule(&mut sources, n, &origin));
            reading.rules.push(n);
        }
        for (n, origin) in certificates {
            draft.config.tls.certificates.push(reading.read_certificate(&mut sources, n, &origin));
            reading.certificates.push(n);
        }
        draft.config.upstreams = reading.read_upstreams(&mut sources);
        if let Location::S3 { config, .. } = &mut draft.config.durable.location {
            *config = S3Config { bucket: std::mem::take(&mut config.bucket), ..draft.s3.clone() };
        }
        reading.draft = draft;
        reading.tell_mistakes_together();
        reading.tell_unknown(sources);
        reading
    }

    /// Reads `key` into its field. After a mistake the field keeps its default.
    fn read<S>(&mut self, sources: &mut Sources, key: String, field: &dyn Field<S>, into: &mut S) {
        self.known.push(key.clone());
        let Some(setting) = sources.settings.remove(&key) else { return };
        if let Err(why) = field.read(&setting.value, into) {
            let value = if field.described().is_secret { "the secret".into() } else { setting.value.shown() };
            self.errors.push(format!("{}{key}: {value} {why}", setting.origin.prefix()));
            self.mistaken.insert(key.clone());
        }
        self.origins.insert(key, setting.origin);
    }

    /// Reads each `[upstreams.NAME]`: the keys of `[upstream]`, with their own defaults.
    fn read_upstreams(&mut self, sources: &mut Sources) -> Vec<(String, upstream::Config)> {
        let names = sources.names_in(UPSTREAMS);
        let mut read: Vec<(String, upstream::Config)> = Vec::new();
        for (name, origin) in names {
            let (section, from) = (Config::section_of(&name), origin.prefix());
            if let Err(why) = check_upstream_name(&name) {
                self.errors.push(format!("{from}{section}: \"{name}\" {why}"));
                sources.remove_below(&section);
                continue;
            }
            if let Some((other, _)) = read.iter().find(|(other, _)| folded(other) == folded(&name)) {
                self.errors.push(format!(
                    "{from}{section}: in variables this is the same name as {UPSTREAMS}.{other}; rename one of them"
                ));
            }
            let url = format!("{section}.{}", table::upstream::REQUIRED);
            if !sources.settings.contains_key(&url) {
                self.errors.push(format!("{from}{url}: it is missing; name the application's address"));
                self.mistaken.insert(url);
            }
            let mut draft = Draft::default();
            for key in table::upstream::SECTION.keys {
                self.read(sources, format!("{section}.{}", key.name), key.field, &mut draft);
            }
            read.push((name, draft.config.upstream));
        }
        let is_nameless = |key: &str| {
            key == UPSTREAMS
                || key.strip_prefix(UPSTREAMS).is_some_and(|rest| rest.starts_with('.') && !rest[1..].contains('.'))
        };
        let nameless: Vec<String> = sources.settings.keys().filter(|key| is_nameless(key)).cloned().collect();
        for key in nameless {
            let Some(setting) = sources.settings.remove(&key) else { continue };
            self.errors.push(format!(
                "{}{key}: upstreams have names, and each its own keys: [{UPSTREAMS}.NAME], {UPSTREAMS}.NAME.url",
                setting.origin.prefix()
            ));
        }
        read
    }

    fn read_rule(&mut self, sources: &mut Sources, n: usize, origin: &Origin) -> Rule {
        let has = |name: &str| sources.settings.contains_key(&format!("rule[{n}].{name}"));
        if !has(table::rule::REQUIRED) && !table::rule::INSTEAD.into_iter().any(has) {
            let (from, path) = (origin.prefix(), table::rule::REQUIRED);
            self.errors.push(format!(
                "{from}rule[{n}].{path}: it is missing; a rule is for some paths, such as \"/static/*\", or has a host or a method"
            ));
        }
        let mut rule = Rule::default();
        for (name, field) in table::rule_fields() {
            self.read(sources, format!("rule[{n}].{name}"), field, &mut rule);
        }
        rule
    }

    fn read_certificate(&mut self, sources: &mut Sources, n: usize, origin: &Origin) -> CertificateFiles {
        let mut files = CertificateFiles::default();
        for key in table::tls::CERTIFICATE {
            let path = format!("{}[{n}].{}", table::tls::LIST, key.name);
            if !sources.settings.contains_key(&path) {
                let from = origin.prefix();
                self.errors.push(format!("{from}{path}: it is missing; a certificate is a chain and its key"));
            }
            self.read(sources, path, key.field, &mut files);
        }
        files
    }

    fn tell_mistakes_together(&mut self) {
        let told = self.draft.config.mistakes_together();
        self.errors.extend(told.into_iter().filter(|told| !self.is_of_a_mistaken_key(told)).collect::<Vec<_>>());
    }

    /// Returns whether a sentence names a key whose value could not be read: it would be about the default.
    fn is_of_a_mistaken_key(&self, told: &str) -> bool {
        self.mistaken.iter().any(|key| told.contains(key.as_str()))
    }

    /// Reports the settings and variables that no key takes.
    fn tell_unknown(&mut self, sources: Sources) {
        for (key, setting) in sources.settings {
            let hint = hint(&self.known, &key);
            self.errors.push(format!("{}{key}: there is no such key{hint}", setting.origin.prefix()));
        }
        for name in sources.strays {
            match self.meant_by(&name) {
                Some(meant) => self.errors.push(format!(
                    "{name}: a variable has two underscores between section and key, as {meant}; rename it, or take it out"
                )),
                None => self.draft.config.stray_variables.push(name),
            }
        }
    }

    /// Returns the variable of the key that `name` is meant for, if it begins as a section does.
    fn meant_by(&self, name: &str) -> Option<String> {
        let rest = name.strip_prefix("LARDER_")?.to_ascii_lowercase();
        let (section, key) = rest.split_once('_').unwrap_or((&rest, ""));
        if section == UPSTREAMS {
            let named: Vec<String> = self.known.iter().filter(|key| is_of_named(key)).cloned().collect();
            let key = nearest(&named, &format!("{section}.{}", key.replace('_', ".")));
            return Some(
                key.map_or_else(
                    || format!("LARDER_{}__NAME__URL", UPSTREAMS.to_ascii_uppercase()),
                    |key| variable(key),
                ),
            );
        }
        table::SECTIONS.iter().find(|known| known.name == section)?;
        let key = nearest(&self.known, &format!("{section}.{key}"))?;
        Some(variable(key))
    }

    /// Returns the configuration as far as it could be read.
    pub(crate) fn config(&self) -> &Config {
        &self.draft.config
    }

    pub(crate) fn errors(&self) -> &[String] {
        &self.errors
    }

    /// Returns the warnings of [`Config::warnings`], but for those about a value that could not be read.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let told = self.draft.config.warnings();
        told.into_iter().filter(|told| !self.is_of_a_mistaken_key(told)).collect()
    }

    /// Returns the configuration, or everything that is wrong with it.
    pub(crate) fn finish(self) -> Result<Config, ConfigErrors> {
        if self.errors.is_empty() { Ok(self.draft.config) } else { Err(ConfigErrors(self.errors)) }
    }
}

/// Returns whether a key is one of an `[upstreams.NAME]`.
fn is_of_named(key: &str) -> bool {
    key.strip_prefix(UPSTREAMS).is_some_and(|rest| rest.starts_with('.'))
}

/// The variable that sets `section.key`.
pub(super) fn variable(key: &str) -> String {
    format!("LARDER_{}", key.replace('.', "__").replace('-', "_").to_ascii_uppercase())
}
