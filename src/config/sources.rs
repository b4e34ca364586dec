//! Collects the settings of a file, the environment and `--set`. A later source replaces settings of an earlier one.
//!
//! Knows no key and checks no value: `reading` does that with the table.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::path::Path;

use toml::Value;
use toml::de::{DeTable, DeValue};

use super::hints::{duplicate, line_of};

/// A value that a key was set to, and its source.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) value: Given,
    pub(super) origin: Origin,
}

#[derive(Clone, Debug)]
pub(super) enum Given {
    /// From the file, with its type.
    Typed(Value),
    /// From the environment or `--set`, to be read as whatever the key takes.
    Text(String),
}

/// The source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    File { name: String, line: usize },
    Variable(String),
    Set,
}

impl Origin {
    /// Returns the beginning of an error message about the key.
    pub(super) fn prefix(&self) -> String {
        match self {
            Self::File { name, .. } => format!("{name}: "),
            Self::Variable(name) => format!("{name}: "),
            Self::Set => "--set ".into(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { name, line } => write!(f, "{name}:{line}"),
            Self::Variable(name) => f.write_str(name),
            Self::Set => f.write_str("--set"),
        }
    }
}

/// Holds the settings by key, and what could not be read as a setting.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) settings: BTreeMap<String, Setting>,
    /// Variables that begin with `LARDER_` and name no key.
    pub(super) strays: Vec<String>,
    pub(super) errors: Vec<String>,
    /// The lines of the file's keys, those of tables in lists as `rule[0].path`.
    lines: BTreeMap<String, usize>,
}

impl Sources {
    pub(super) fn read_file(&mut self, path: &Path) {
        match std::fs::read_to_string(path) {
            Ok(text) => self.read_text(&path.display().to_string(), &text),
            Err(error) => self.errors.push(format!("{}: it can't be read: {error}", path.display())),
        }
    }

    pub(super) fn read_text(&mut self, name: &str, text: &str) {
        let table: toml::Table = match text.parse() {
            Ok(table) => table,
            Err(error) => {
                let at = error.span().unwrap_or_default();
                let why = match error.message() {
                    "duplicate key" => duplicate(text, at.clone()),
                    message => message.to_owned(),
                };
                self.errors.push(format!("{name}: line {}: {why}", line_of(text, at.start)));
                return;
            }
        };
        self.lines = lines(text);
        for (section, value) in table {
            match value {
                Value::Table(keys) if section != "rule" => {
                    self.set_all_in_file(name, &section, keys);
                }
                value => self.set_in_file(name, section, value),
            }
        }
    }

    /// Sets the keys of a section, and those of the sections within it.
    fn set_all_in_file(&mut self, name: &str, section: &str, keys: toml::Table) {
        for (key, value) in keys {
            match value {
                Value::Table(keys) => self.set_all_in_file(name, &format!("{section}.{key}"), keys),
                value => self.set_in_file(name, format!("{section}.{key}"), value),
            }
        }
    }

    fn set_in_file(&mut self, name: &str, key: String, value: Value) {
        let line = self.lines.get(&key).copied().unwrap_or(1);
        let origin = Origin::File { name: name.to_owned(), line };
        self.settings.insert(key, Setting { value: Given::Typed(value), origin });
    }

    /// Reads `LARDER_SECTION__KEY`.
    /// Reads a variable. One of Larder's that is not UTF-8 is a mistake: it may have been a secret that is missed.
    pub(super) fn read_os_variable(&mut self, name: &OsStr, value: &OsStr) {
        match (name.to_str(), value.to_str()) {
            (Some(name), Some(value)) => self.read_variable(name, value),
            (Some(name), None) if name.starts_with("LARDER_") && name.contains("__") => {
                self.errors.push(format!("{name}: the value is not UTF-8; write it as UTF-8, or take it out"));
            }
            (Some(_) | None, _) => {}
        }
    }

    pub(super) fn read_variable(&mut self, name: &str, value: &str) {
        let Some(rest) = name.strip_prefix("LARDER_") else { return };
        match rest.split_once("__") {
            Some((section, key)) => {
                let key = format!("{section}.{}", key.replace("__", ".")).to_ascii_lowercase();
                let setting =
                    Setting { value: Given::Text(unquoted(value)), origin: Origin::Variable(name.to_owned()) };
                self.settings.insert(key, setting);
            }
            None if is_of_others(rest) => {}
            None => self.strays.push(name.to_owned()),
        }
    }

    pub(super) fn read_set(&mut self, set: &str) {
        match set.split_once('=') {
            Some((key, value)) => {
                let setting = Setting { value: Given::Text(unquoted(value.trim())), origin: Origin::Set };
                self.settings.insert(key.trim().to_owned(), setting);
            }
            // Shows no more than a name: what follows may be a secret.
            None => {
                let name: String =
                    set.chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_')).collect();
                self.errors.push(format!("--set {name}: write it as section.key=value"));
            }
        }
    }

    /// Takes the tables of a list apart: `rule` becomes `rule[0].path` and so on. Returns the number of each, and who
    /// set it.
    pub(super) fn take_tables(&mut self, list: &str) -> Vec<(usize, Origin)> {
        let Some(Setting { value, origin }) = self.settings.remove(list) else { return Vec::new() };
        let value = match value {
            Given::Typed(value) => value,
            Given::Text(text) => match format!("list = {text}").parse::<toml::Table>() {
                Ok(mut table) => table.remove("list").unwrap_or(Value::Array(Vec::new())),
                Err(_) => Value::String(text),
            },
        };
        let Value::Array(tables) = value else {
            self.errors
                .push(format!("{}{list}: it is a list of tables, each under its own [[{list}]]", origin.prefix()));
            return Vec::new();
        };
        let mut numbers = Vec::new();
        for (n, table) in tables.into_iter().enumerate() {
            match table {
                Value::Table(table) => {
                    numbers.push((n, origin.clone()));
                    self.take_table(&format!("{list}[{n}]"), table, &origin);
                }
                _ => self.errors.push(format!("{}{list}[{n}]: it is a table, under [[{list}]]", origin.prefix())),
            }
        }
        numbers
    }

    fn take_table(&mut self, path: &str, table: toml::Table, origin: &Origin) {
        for (key, value) in table {
            let key = format!("{path}.{key}");
            let origin = match (origin, self.lines.get(&key)) {
                (Origin::File { name, .. }, Some(line)) => Origin::File { name: name.clone(), line: *line },
                (origin, _) => origin.clone(),
            };
            // The environment and `--set` override the file.
            self.settings.entry(key).or_insert(Setting { value: Given::Typed(value), origin });
        }
    }
}

/// The variables `LARDER_<rest>` that the Python module `larder` reads: it may run in the same environment.
const OF_THE_MODULE: [&str; 3] = ["ADMIN", "TOKEN", "BINARY"];

/// Returns whether the variable `LARDER_<rest>` is none of Larder's: the Python module reads it, or a container platform
/// sets it for a service called larder or larder-something, as it does `SERVICE_HOST` and `PORT_8080_TCP_ADDR`.
/// `TEST_…` is for Larder's own tests.
fn is_of_others(rest: &str) -> bool {
    if OF_THE_MODULE.contains(&rest) {
        return true;
    }
    let words: Vec<&str> = rest.split('_').collect();
    let is_port = |words: &[&str]| match words {
        [port, protocol, end @ ..] => {
            port.bytes().all(|byte| byte.is_ascii_digit())
                && ["TCP", "UDP", "SCTP"].contains(protocol)
                && matches!(end, [] | ["ADDR" | "PORT" | "PROTO"])
        }
        rest => rest.is_empty(),
    };
    words[0] == "TEST"
        || words.windows(2).any(|pair| matches!(pair, ["SERVICE", "HOST" | "PORT"]))
        || words.iter().enumerate().any(|(n, word)| *word == "PORT" && is_port(&words[n + 1..]))
}

/// Returns the line of every section, and of every key in a section or in a table of a list.
fn lines(text: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    if let Ok(table) = DeTable::parse(text) {
        note_lines(text, "", table.get_ref(), &mut found);
    }
    found
}

/// Notes the lines of the keys of `table`, which stand behind `prefix`.
fn note_lines(text: &str, prefix: &str, table: &DeTable<'_>, found: &mut BTreeMap<String, usize>) {
    for (key, value) in table {
        let path = format!("{prefix}{}", key.get_ref());
        found.insert(path.clone(), line_of(text, key.span().start));
        match value.get_ref() {
            DeValue::Table(keys) => note_lines(text, &format!("{path}."), keys, found),
            DeValue::Array(tables) => {
                for (n, table) in tables.iter().enumerate() {
                    if let Some(keys) = table.get_ref().as_table() {
                        note_lines(text, &format!("{path}[{n}]."), keys, found);
                    }
                }
            }
            _ => {}
        }
    }
}

/// A value that is quoted as in the file, without its quotation marks.
fn unquoted(value: &str) -> String {
    let is_quoted = value.len() > 1 && value.starts_with('"') && value.ends_with('"');
    let parsed = is_quoted.then(|| format!("value = {value}").parse::<toml::Table>().ok()).flatten();
    match parsed.as_ref().and_then(|table| table.get("value")) {
        Some(Value::String(text)) => text.clone(),
        Some(_) | None => value.to_owned(),
    }
}

/// Returns a value as messages show it: without what stands before an `@`, which may be a password.
fn without_credentials(text: &str) -> Cow<'_, str> {
    let Some((before, after)) = text.rsplit_once('@') else { return Cow::Borrowed(text) };
    let scheme = before.split_once("://").map_or("", |(scheme, _)| scheme);
    Cow::Owned(if scheme.is_empty() { format!("…@{after}") } else { format!("{scheme}://…@{after}") })
}

impl Given {
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Typed(Value::String(text)) | Self::Text(text) => Some(text),
            Self::Typed(_) => None,
        }
    }

    /// Returns whether the value is a number, without a unit.
    pub(super) fn is_number(&self) -> bool {
        match self {
            Self::Typed(Value::String(text)) | Self::Text(text) => text.trim().parse::<u64>().is_ok(),
            Self::Typed(value) => value.is_integer(),
        }
    }

    /// Returns whether the value is a number that the file has in quotes.
    pub(super) fn is_quoted_number(&self) -> bool {
        matches!(self, Self::Typed(Value::String(text)) if text.trim().parse::<f64>().is_ok())
    }

    pub(super) fn number(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "no number with a point is so large")]
        match self {
            Self::Typed(Value::Float(number)) => Some(*number),
            Self::Typed(Value::Integer(number)) => Some(*number as f64),
            Self::Text(text) => text.parse().ok(),
            Self::Typed(_) => None,
        }
    }

    /// A list; a lone string is a list of one. From the environment: separated by commas.
    pub(super) fn strings(&self) -> Option<Vec<String>> {
        match self {
            Self::Typed(Value::String(text)) => Some(vec![text.clone()]),
            Self::Typed(Value::Array(items)) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
            Self::Typed(_) => None,
            Self::Text(text) if text.is_empty() => Some(Vec::new()),
            Self::Text(text) => match format!("list = {text}").parse::<toml::Table>() {
                // An IPv6 address begins with a bracket, too.
                Ok(table) if text.starts_with('[') => Self::Typed(table.get("list")?.clone()).strings(),
                Ok(_) | Err(_) => Some(text.split(',').map(|item| item.trim().to_owned()).collect()),
            },
        }
    }

    /// Returns the value as an error message shows it.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Typed(Value::String(text)) => Value::String(without_credentials(text).into_owned()).to_string(),
            Self::Typed(value) => value.to_string(),
            Self::Text(text) => format!("\"{}\"", without_credentials(text)),
        }
    }
}
