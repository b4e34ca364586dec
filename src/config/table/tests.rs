//! Checks that every field has a key, that every key says what it does, and that a value that is shown can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use crate::config::key::{Draft, Field};
use crate::config::kinds::Described;
use crate::config::reference::{self, Row};
use crate::config::sources::Given;
use crate::config::table::{self, SECTIONS};
use crate::config::tests::read;
use crate::proxy::Rule;
use crate::tls::CertificateFiles;

/// Values among which every key finds one that it takes.
const VALUES: &[&str] = &[
    "true",
    "false",
    "7h",
    "3GiB",
    "700KiB",
    "7",
    "0.5",
    "s3://another-bucket/p",
    "host.example",
    "http://a.example:7",
];

/// Returns values that may do for a key: its words, its example, and [`VALUES`].
fn values(described: &Described) -> Vec<Given> {
    let words = described.bounds.split(", ").map(|word| word.trim_matches('"').to_owned());
    let texts = words.chain(VALUES.iter().map(|text| (*text).to_owned())).map(Given::Text);
    std::iter::once(Given::Typed(described.example.clone())).chain(texts).collect()
}

/// Sets `field` to a value other than that of `of`.
fn set_to_another<S: Clone>(name: &str, field: &dyn Field<S>, of: &S, into: &mut S) {
    let before = field.shown(&mut of.clone());
    for given in values(&field.described()) {
        let mut changed = of.clone();
        if field.read(&given, &mut changed).is_ok() && field.shown(&mut changed) != before {
            field.read(&given, into).expect("as before");
            return;
        }
    }
    panic!("{name} takes none of the values that are tried: add one to VALUES");
}

/// Every field of a value in its `Debug` form, as `server.listen`, with the text of what it is.
fn fields(of: &impl Debug) -> BTreeMap<String, String> {
    let text = format!("{of:#?}");
    let mut path: Vec<&str> = Vec::new();
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for line in text.lines() {
        let depth = (line.len() - line.trim_start().len()) / 4;
        path.truncate(depth.saturating_sub(1));
        match line.trim_start().split_once(": ") {
            Some((name, value))
                if depth > 0 && name.bytes().all(|b| b.is_ascii_lowercase() || b"_0123456789".contains(&b)) =>
            {
                path.push(name);
                found.insert(path.join("."), value.to_owned());
            }
            // A line of a list or of an enum's value belongs to the field around it.
            _ => {
                path.resize(path.len().max(depth.saturating_sub(1)), "");
                let is_end = line.trim_start().starts_with(['}', ']', ')']);
                if !is_end && let Some(value) = found.get_mut(path.join(".").trim_end_matches('.')) {
                    value.push_str(line.trim());
                }
            }
        }
    }
    found
}

/// Returns the fields that are the same in both.
fn same(one: &impl Debug, other: &impl Debug) -> Vec<String> {
    let other = fields(other);
    // The text of a struct is its name; its fields are told by themselves.
    let is_struct = |value: &String| value.ends_with('{');
    fields(one)
        .into_iter()
        .filter(|(name, value)| !is_struct(value) && other.get(name) == Some(value))
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn every_field_has_a_key() {
    let base = Draft::default();
    let mut changed = base.clone();
    for section in SECTIONS {
        for key in section.keys {
            set_to_another(key.name, key.field, &base, &mut changed);
        }
    }
    // Left out: the bucket's name, which `durable.url` has, and rules, certificates, upstreams and variables, which are
    // no keys. An address has its weight behind its URL.
    let no_keys = [
        "config.rules",
        "config.stray_variables",
        "config.tls.certificates",
        "config.upstreams",
        "s3.bucket",
        "config.upstream.addresses.address.is_backup",
        "config.upstream.addresses.address.weight",
    ];
    let unread: Vec<String> = same(&base, &changed).into_iter().filter(|at| !no_keys.contains(&at.as_str())).collect();
    assert_eq!(unread, Vec::<String>::new(), "fields that no key of the table sets");
    let mut rule = Rule::default();
    for (name, field) in table::rule_fields() {
        set_to_another(name, field, &Rule::default(), &mut rule);
    }
    assert_eq!(same(&Rule::default(), &rule), Vec::<String>::new(), "fields of a rule that no key of the table sets");
    let mut files = CertificateFiles::default();
    for key in table::tls::CERTIFICATE {
        set_to_another(key.name, key.field, &CertificateFiles::default(), &mut files);
    }
    assert_eq!(
        same(&CertificateFiles::default(), &files),
        Vec::<String>::new(),
        "fields of a certificate without a key"
    );
}

#[test]
fn every_key_says_what_it_does_in_sentences() {
    let mut told = BTreeSet::new();
    for row in reference::sections().iter().chain(&reference::rule()).chain(&reference::certificate()) {
        let key = row.key();
        let verb = row.does.split([' ', ',']).next().unwrap_or_default();
        assert!(verb.starts_with(char::is_uppercase), "{key}: {}", row.does);
        assert!(verb.ends_with('s') || verb == "Neither", "{key} does not begin with what it does: {}", row.does);
        assert!(row.does.ends_with('.'), "{key}: {}", row.does);
        for sentence in row.does.split_inclusive(". ") {
            assert!(sentence.split(' ').count() <= 35, "{key}: {sentence}");
        }
        assert!(!row.described.kind.is_empty(), "{key} has no kind");
        assert!(told.insert(key.clone()), "{key} is there twice");
    }
    for section in SECTIONS {
        assert!(section.about.ends_with('.'), "{}", section.name);
    }
}

/// Checks that a shown value reads back as itself, and that each example can be read.
#[test]
fn what_is_shown_is_what_is_read() {
    let mut draft = Draft::default();
    for section in SECTIONS {
        for key in section.keys {
            set_to_another(key.name, key.field, &Draft::default(), &mut draft);
            let shown = key.field.shown(&mut draft).expect("a value");
            let mut again = Draft::default();
            key.field.read(&Given::Typed(shown.clone()), &mut again).expect("what is shown");
            assert_eq!(key.field.shown(&mut again), Some(shown), "{}.{}", section.name, key.name);
        }
    }
    for Row { section, name, described, .. } in reference::sections().into_iter().chain(reference::rule()) {
        let path = if section == "rule" && name != "path" { "path = \"*\"\n" } else { "" };
        let upstream = "[upstreams.api]\nurl = \"http://127.0.0.1:5001\"\n";
        let header = if section == "rule" { format!("{upstream}[[rule]]") } else { format!("[{section}]") };
        let beside = match (&*section, name) {
            // Nobody gets certificates by chance.
            (_, "domains") => "\naccept_terms = true\nstate = \"/d\"",
            // Peers are found and listened for, or neither.
            ("peers", "listen") => "\nname = \"a:1\"\ntoken = \"0123456789abcdef\"",
            ("peers", "list" | "name") => "\nlisten = \"a:1\"\ntoken = \"0123456789abcdef\"",
            _ => "",
        };
        let text = format!("{header}\n{path}{name} = {}{beside}", described.example);
        assert_eq!(read(&text, &[], &[]).errors(), Vec::<String>::new(), "{text}");
    }
}
