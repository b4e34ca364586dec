//! Prints the effective values and the source of each, as TOML and as JSON. Prints no secret.

use std::fmt::Write;

use serde_json::{Map, json};
use toml::Value;

use super::Config;
use super::hints::hint;
use super::key::{Draft, Field, Key, Section};
use super::kinds::{Kind, Size, Time};
use super::reading::Reading;
use super::reference::{self, comment};
use super::table;
use super::table::upstream::UPSTREAMS;
use crate::base::log;

/// The effective value of one key.
struct Effective {
    name: &'static str,
    value: Value,
    from: String,
    is_secret: bool,
    /// The value in force, if the given one leaves it to Larder or another key bounds it.
    in_force: Option<Value>,
}

impl Reading {
    /// Returns the effective values as a file that sets them. A comment behind each names its source; secrets are
    /// commented out.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::from("# Effective values. The comment behind each names its source.\n");
        for (section, values) in self.sections() {
            text.push('\n');
            comment("#", section.about, &mut text);
            let _ = writeln!(text, "[{}]", section.name);
            write_all(&values, &mut text);
        }
        let mut about = Some(table::upstream::ABOUT_NAMED);
        for (section, values) in self.upstreams() {
            text.push('\n');
            if let Some(about) = about.take() {
                comment("#", about, &mut text);
            }
            let _ = writeln!(text, "[{section}]");
            write_all(&values, &mut text);
        }
        let rules = self.rules();
        if !rules.is_empty() {
            text.push('\n');
            comment("#", table::rule::ABOUT, &mut text);
            text.push_str("# What a rule does not set it takes from the sections above, or from its defaults.\n");
        }
        for values in rules {
            text.push_str("\n[[rule]]\n");
            write_all(&values, &mut text);
        }
        for values in self.certificates() {
            text.push('\n');
            comment("#", table::tls::ABOUT, &mut text);
            let _ = writeln!(text, "[[{}]]", table::tls::LIST);
            write_all(&values, &mut text);
        }
        text
    }

    /// Returns the effective value of one key, its source, and what the key does and takes. The error is a sentence:
    /// there is no such key.
    pub(crate) fn explain(&self, key: &str) -> Result<String, String> {
        let row = self.rows().find(|row| row.key() == key).ok_or_else(|| self.unknown(key))?;
        let (header, holding) = if row.section == "rule" {
            ("[[rule]]".to_owned(), self.rules())
        } else if row.section == table::tls::LIST {
            (format!("[[{}]]", table::tls::LIST), self.certificates())
        } else {
            let sections = self.sections().into_iter().map(|(section, values)| (section.name.to_owned(), values));
            let sections = sections.chain(self.upstreams()).filter(|(section, _)| *section == row.section);
            (format!("[{}]", row.section), sections.map(|(_, values)| values).collect())
        };
        let mut text = format!("{header}\n");
        comment("#", row.does, &mut text);
        comment("#", &row.takes(), &mut text);
        write_all(holding.iter().flatten().filter(|value| value.name == row.name), &mut text);
        Ok(text)
    }

    fn rows(&self) -> impl Iterator<Item = reference::Row> {
        let named = self.draft.config.upstreams.iter().flat_map(|(name, _)| reference::upstream(name));
        reference::sections().into_iter().chain(named).chain(reference::rule()).chain(reference::certificate())
    }

    fn unknown(&self, key: &str) -> String {
        let known: Vec<String> = self.rows().map(|row| row.key()).collect();
        let hint = hint(&known, key);
        format!("{key}: there is no such key{hint}")
    }

    /// Returns the same as one JSON object: section, key, `{"value", "from"}`.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let object = |values: Vec<Effective>| -> Map<String, serde_json::Value> {
            values.into_iter().map(|value| (value.name.to_owned(), value.json())).collect()
        };
        let sections = self.sections().into_iter();
        let mut all: Map<String, serde_json::Value> =
            sections.map(|(section, values)| (section.name.to_owned(), object(values).into())).collect();
        if !self.draft.config.upstreams.is_empty() {
            let prefix = format!("{UPSTREAMS}.");
            let named = self
                .upstreams()
                .into_iter()
                .map(|(section, values)| (section.trim_start_matches(&prefix).to_owned(), object(values).into()));
            all.insert(UPSTREAMS.into(), named.collect::<Map<String, serde_json::Value>>().into());
        }
        all.insert("rule".into(), self.rules().into_iter().map(object).collect());
        all.insert(table::tls::LIST.into(), self.certificates().into_iter().map(object).collect());
        all.into()
    }

    fn sections(&self) -> Vec<(&'static Section, Vec<Effective>)> {
        let mut draft: Draft = self.draft.clone();
        let mut all = Vec::new();
        for section in table::SECTIONS {
            let path = |key: &Key<Draft>| format!("{}.{}", section.name, key.name);
            let keys = section.keys.iter();
            let values = keys.filter_map(|key| {
                let shown = self.effective(key.name, &path(key), key.field, &mut draft)?;
                Some(Effective { in_force: in_force(&self.draft.config, &path(key)), ..shown })
            });
            all.push((*section, values.collect()));
        }
        all
    }

    /// Returns the keys of each `[upstreams.NAME]`, with the name of the section.
    fn upstreams(&self) -> Vec<(String, Vec<Effective>)> {
        let mut all = Vec::new();
        for (name, upstream) in &self.draft.config.upstreams {
            let mut draft = Draft::default();
            draft.config.upstream = upstream.clone();
            let section = Config::section_of(name);
            let keys = table::upstream::SECTION.keys.iter();
            let shown = keys
                .filter_map(|key| self.effective(key.name, &format!("{section}.{}", key.name), key.field, &mut draft));
            let shown = shown.collect();
            all.push((section, shown));
        }
        all
    }

    /// Returns for each rule the keys that were set.
    fn rules(&self) -> Vec<Vec<Effective>> {
        let mut all = Vec::new();
        for (n, mut rule) in self.rules.iter().zip(self.draft.config.rules.clone()) {
            let keys = table::rule_fields().map(|(name, field)| (name, format!("rule[{n}].{name}"), field));
            let set = keys.filter(|(_, key, _)| self.origins.contains_key(key));
            all.push(set.filter_map(|(name, key, field)| self.effective(name, &key, field, &mut rule)).collect());
        }
        all
    }

    /// Returns the keys of each certificate.
    fn certificates(&self) -> Vec<Vec<Effective>> {
        let mut all = Vec::new();
        for (n, mut files) in self.certificates.iter().zip(self.draft.config.tls.certificates.clone()) {
            let keys = table::tls::CERTIFICATE.iter();
            let shown = keys.filter_map(|key| {
                self.effective(key.name, &format!("{}[{n}].{}", table::tls::LIST, key.name), key.field, &mut files)
            });
            all.push(shown.collect());
        }
        all
    }

    fn effective<S>(&self, name: &'static str, key: &str, field: &dyn Field<S>, of: &mut S) -> Option<Effective> {
        let from = self.origins.get(key).map_or_else(|| "default".into(), ToString::to_string);
        Some(Effective { name, value: field.shown(of)?, from, is_secret: field.described().is_secret, in_force: None })
    }
}

/// Returns what holds in place of a key's value, if that is another.
fn in_force(config: &Config, key: &str) -> Option<Value> {
    let (durable, size) = (&config.durable, Size { least: 0, most: u64::MAX });
    match key {
        "durable.capacity" if durable.capacity.is_none() => size.shown(&durable.capacity()),
        "durable.pack_interval" if durable.pack_interval.is_none() => Time::Any.shown(&durable.pack_interval()),
        "durable.pack_size" if durable.pack_size() < durable.pack_size => size.shown(&durable.pack_size()),
        _ => None,
    }
}

fn write_all<'a>(values: impl IntoIterator<Item = &'a Effective>, text: &mut String) {
    for value in values {
        value.write(text);
    }
}

impl Effective {
    /// Returns what is shown in place of a secret.
    fn is_set(&self) -> &'static str {
        if self.value.as_str() == Some("") { "(not set)" } else { "(set)" }
    }

    fn write(&self, text: &mut String) {
        let line = if self.is_secret {
            format!("# {} = {}", self.name, self.is_set())
        } else {
            format!("{} = {}", self.name, self.value)
        };
        let _ = write!(text, "{line:<40} # ");
        log::escape(&self.from, text);
        if let Some(value) = &self.in_force {
            let _ = write!(text, "; in force: {value}");
        }
        text.push('\n');
    }

    fn json(&self) -> serde_json::Value {
        let value = if self.is_secret { json!(self.is_set()) } else { json!(self.value) };
        match &self.in_force {
            Some(in_force) => json!({"value": value, "from": self.from, "in_force": in_force}),
            None => json!({"value": value, "from": self.from}),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::read;
    use crate::config::{Config, Reading};

    const FILE: &str = "\
[cache]
# The default.
default_timeout = \"10s\"
set_cookie = \"strip\"

[upstreams.api]
url = \"http://api\"

[[rule]]
path = \"/a\"
timeout = \"1h\"
upstream = \"api\"

[[rule]]
path = \"/b\"
bypass = true
";

    fn reading() -> Reading {
        let environment = [("LARDER_UPSTREAM__URL", "unix:/run/app"), ("LARDER_ADMIN__TOKEN", "hidden-word")];
        read(FILE, &environment, &["cache.set_cookie=rfc", "rule[1].bypass=false", "durable.region=eu"])
    }

    #[test]
    fn every_value_is_shown_with_where_it_comes_from() {
        let told = reading().to_text();
        for (line, from) in [
            ("listen = [\"127.0.0.1:8080\"]", "default"),
            ("url = \"unix:/run/app\"", "LARDER_UPSTREAM__URL"),
            ("default_timeout = \"10s\"", "f:3"),
            ("set_cookie = \"rfc\"", "--set"),
            ("region = \"eu\"", "--set"),
            ("url = \"http://api:80\"", "f:7"),
            ("path = \"/a\"", "f:10"),
            ("timeout = \"1h\"", "f:11"),
            ("path = \"/b\"", "f:15"),
            ("bypass = false", "--set"),
            ("# token = (set)", "LARDER_ADMIN__TOKEN"),
        ] {
            assert!(told.lines().any(|shown| shown == format!("{line:<40} # {from}")), "{line} {from}: {told}");
        }
        assert!(!told.contains("hidden-word"), "{told}");
        assert!(read("", &[], &[]).to_text().contains("# token = (not set)"));
    }

    /// Checks that the printed text is a file that sets the same values.
    #[test]
    fn what_is_shown_can_be_read_again() {
        let reading = reading();
        let again = Config::parse(&reading.to_text()).expect("sound");
        let mut config = reading.finish().expect("sound");
        config.admin.token.clear();
        assert_eq!(again, config);
        assert_eq!(Config::parse(&read("", &[], &[]).to_text()), Ok(Config::default()));
    }

    /// An empty value leaves it to Larder, and a small capacity makes packs smaller: what then holds is shown.
    #[test]
    fn what_holds_in_place_of_a_value_is_shown() {
        let shown = |sets: &[&str], key: &str| {
            let told = read("", &[], sets).to_text();
            let line = told.lines().find(|line| line.starts_with(&format!("{key} = "))).map(str::to_owned);
            line.expect("it is a key").split_once(" # ").expect("a source").1.to_owned()
        };
        assert_eq!(shown(&[], "capacity"), "default", "memory's");
        let durable = |sets: &[&str], key: &str| {
            read("", &[], sets).to_json()["durable"][key]["in_force"].as_str().map(str::to_owned)
        };
        assert_eq!(shown(&[], "pack_interval"), "default; in force: \"1s\"");
        assert_eq!(durable(&[], "capacity").as_deref(), Some("10GiB"));
        assert_eq!(durable(&["durable.capacity=50MiB"], "capacity"), None);
        assert_eq!(durable(&["durable.capacity=32MiB"], "pack_size").as_deref(), Some("1MiB"));
        assert_eq!(durable(&[], "pack_size"), None);
        let bucket = ["durable.url=s3://bucket"];
        assert_eq!(durable(&bucket, "capacity").as_deref(), Some("0"));
        assert_eq!(durable(&bucket, "pack_interval").as_deref(), Some("5s"));
    }

    #[test]
    fn the_same_as_json() {
        let told = reading().to_json();
        assert_eq!(told["cache"]["default_timeout"], serde_json::json!({"value": "10s", "from": "f:3"}));
        assert_eq!(told["rule"][1]["bypass"], serde_json::json!({"value": false, "from": "--set"}));
        assert_eq!(told["upstreams"]["api"]["max_idle"], serde_json::json!({"value": 256, "from": "default"}));
        assert_eq!(told["admin"]["token"]["value"], "(set)");
        assert!(!told.to_string().contains("hidden-word"), "{told}");
    }

    #[test]
    fn one_key_is_shown_with_what_it_does_and_takes() {
        let told = reading().explain("cache.set_cookie").expect("a key");
        assert!(told.starts_with("[cache]\n# Decides about a response with Set-Cookie."), "{told}");
        assert!(told.contains("# Type: word (\"never\", \"strip\", \"explicit\", \"rfc\"). Example: "), "{told}");
        assert!(told.contains(" Default: \"never\". Also by rule.\n"), "{told}");
        assert!(told.ends_with("# --set\n"), "{told}");
        let told = reading().explain("rule.timeout").expect("a key");
        assert!(told.starts_with("[[rule]]\n") && told.ends_with("# f:11\n"), "{told}");
        let told = reading().explain("upstreams.api.url").expect("a key");
        assert!(told.starts_with("[upstreams.api]\n") && told.ends_with("# f:7\n"), "{told}");
        assert!(told.contains("Default: none, it is required."), "{told}");
        let why = reading().explain("upstreams.apo.url").expect_err("no key");
        assert!(why.ends_with("the nearest key is \"upstreams.api.url\""), "{why}");
        let why = reading().explain("cache.setcookie").expect_err("no key");
        assert_eq!(why, "cache.setcookie: there is no such key; the nearest key is \"cache.set_cookie\"");
    }

    /// The name of a file can't add a line to what is printed.
    #[test]
    fn a_comment_ends_with_its_line() {
        let mut sources = crate::config::sources::Sources::default();
        sources.read_text("a\n[log]\nlevel = \"trace\"\n", "[memory]\ncapacity = \"1GiB\"");
        let told = Reading::of(sources).to_text();
        assert_eq!(Config::parse(&told).expect("sound").log.level, "info", "{told}");
    }
}
