//! Writes `config.toml` and `docs/configuration.md` from the table, and holds the two files to it. If the
//! environment has `LARDER_TEST_WRITE=1`, the tests write the files.

use std::fmt::Write;
use std::path::Path;

use toml::Value;

use super::reference::{self, Default, Row, comment};
use super::tests::read;
use super::{Config, table};

const CONFIG_HEAD: &str = "\
# Larder: every key with its default. Delete what you do not change.
# Precedence: --set section.key=value, then LARDER_SECTION__KEY, then this file, then the default.
# Durations: \"250ms\", \"30s\", \"5m\", \"1h\", \"7d\". Sizes: \"512KiB\", \"64MiB\", \"2GiB\".
# \"larder check\" prints what is wrong with this file, \"larder config\" the effective values and the source of each.
# This file is made from the table in src/config/table; docs/configuration.md has the bounds of each key.
";

const PAGE_HEAD: &str = "\
<!-- Made from the table in src/config/table. Change it there. -->
# Configuration

```toml
# larder.toml
[upstream]
url = \"http://127.0.0.1:5000\"

[cache]
default_timeout = \"10s\"

[[rule]]
path = \"/static/*\"
timeout = \"1h\"
```

```sh
larder --config larder.toml --set log.level=debug
LARDER_UPSTREAM__URL=http://127.0.0.1:8000 larder --config larder.toml
larder check --config larder.toml           # prints ok, or one line for each mistake
larder config --config larder.toml          # prints the effective values and the source of each
larder config cache.set_cookie              # prints what a key does, and which values it takes
```

* **Precedence.** `--set section.key=value` overrides the environment, the environment overrides the file, and the file overrides the default.
* **Environment.** `LARDER_SECTION__KEY` sets `section.key`: two underscores between section and key. `LARDER_UPSTREAM_URL`, with one, is a mistake. Other variables that begin with `LARDER_` set nothing, and Larder warns of them. It leaves alone what container platforms make up for a service of that name (`LARDER_SERVICE_HOST`, `LARDER_PORT_8080_TCP`), and what the Python module reads (`LARDER_ADMIN`, `LARDER_TOKEN`, `LARDER_BINARY`).
* **Durations** are a whole number and a unit: `\"250ms\"`, `\"30s\"`, `\"5m\"`, `\"1h\"`, `\"7d\"`.
* **Sizes** are a whole number of bytes, or one with a unit: `\"512B\"`, `\"64KiB\"`, `\"64MiB\"`, `\"2GiB\"`, `\"1TiB\"`.
* **Lists.** In the environment and behind `--set`, commas separate the items. One item needs no list.
* **Mistakes.** Larder names every mistake at once, each with its key, and does not start. An unknown key is a mistake.
* **Rules.** A `[[rule]]` can set the keys marked \"By rule\" for its own paths.

";

fn config_toml() -> String {
    let mut text = String::from(CONFIG_HEAD);
    let rows = reference::sections();
    for section in table::SECTIONS {
        text.push('\n');
        comment("#", section.about, &mut text);
        let _ = writeln!(text, "[{}]", section.name);
        for row in rows.iter().filter(|row| row.section == section.name) {
            text.push('\n');
            comment("#", row.does, &mut text);
            if let Default::Value(value) = &row.default {
                let _ = writeln!(text, "{} = {value}", row.name);
            }
        }
    }
    config_certificate(&mut text);
    config_rule(&rows, &mut text);
    text
}

/// Appends a certificate, commented out: words behind `##`, keys behind `#`.
fn config_certificate(text: &mut String) {
    text.push('\n');
    comment("##", table::tls::ABOUT, text);
    let _ = writeln!(text, "# [[{}]]", table::tls::LIST);
    for row in reference::certificate() {
        text.push_str("#\n");
        comment("##", row.does, text);
        let _ = writeln!(text, "# {} = {}", row.name, row.described.example);
    }
}

/// Appends a rule with every key, commented out: words behind `##`, keys behind `#`.
fn config_rule(rows: &[Row], text: &mut String) {
    text.push('\n');
    comment("##", table::rule::ABOUT, text);
    text.push_str("# [[rule]]\n");
    let mut section = "";
    for row in reference::rule() {
        let value = match &row.default {
            Default::Value(value @ (Value::Boolean(_) | Value::String(_))) => value.clone(),
            Default::OfSection(section) => default_of(rows, section, row.name),
            Default::Value(_) | Default::Unset | Default::Required => row.described.example.clone(),
        };
        match row.default {
            Default::OfSection(of) if of != section => {
                section = of;
                text.push_str("#\n");
                comment("##", &format!("Instead of the keys of the same names in [{section}]:"), text);
            }
            Default::OfSection(_) => {}
            Default::Value(_) | Default::Unset | Default::Required => {
                text.push_str("#\n");
                comment("##", row.does, text);
            }
        }
        let _ = writeln!(text, "# {} = {value}", row.name);
    }
}

fn default_of(rows: &[Row], section: &str, name: &str) -> Value {
    let row = rows.iter().find(|row| row.section == section && row.name == name).expect("a shared key");
    match &row.default {
        Default::Value(value) => value.clone(),
        Default::OfSection(_) | Default::Unset | Default::Required => row.described.example.clone(),
    }
}

fn configuration_md() -> String {
    let mut text = String::from(PAGE_HEAD);
    let rows = reference::sections();
    for section in table::SECTIONS {
        let _ = writeln!(text, "## `[{}]`\n\n{}\n", section.name, section.about);
        text.push_str(
            "| Key | Type | Default | Bounds | By rule | What it does |\n| --- | --- | --- | --- | --- | --- |\n",
        );
        for row in rows.iter().filter(|row| row.section == section.name) {
            let by_rule = if row.is_by_rule { "yes" } else { "" };
            let _ = writeln!(
                text,
                "| `{}` | {} | {} | {} | {by_rule} | {} |",
                row.name,
                row.described.kind,
                default_cell(row),
                cell(&row.described.bounds),
                cell(row.does)
            );
        }
        text.push('\n');
    }
    table_page(table::tls::LIST, table::tls::ABOUT, &reference::certificate(), &mut text);
    text.push('\n');
    table_page(table::rule::LIST, table::rule::ABOUT, &reference::rule(), &mut text);
    text
}

/// Appends the keys of a list of tables.
fn table_page(list: &str, about: &str, rows: &[Row], text: &mut String) {
    let _ = writeln!(text, "## `[[{list}]]`\n\n{about}\n");
    text.push_str("| Key | Type | Default | Bounds | What it does |\n| --- | --- | --- | --- | --- |\n");
    for row in rows {
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} | {} |",
            row.name,
            row.described.kind,
            default_cell(row),
            cell(&row.described.bounds),
            cell(row.does)
        );
    }
}

fn default_cell(row: &Row) -> String {
    match &row.default {
        Default::Value(value) if value.as_str() == Some("") => "empty".into(),
        Default::Value(value) => format!("`{value}`"),
        Default::OfSection(section) => format!("`{section}.{}`", row.name),
        Default::Unset => "not set".into(),
        Default::Required => "required".into(),
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('*', "\\*")
}

/// Asserts that `file` is what the table makes.
fn assert_is(file: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("LARDER_TEST_WRITE").is_some() {
        std::fs::write(&path, made).expect("it is written");
    }
    let found = std::fs::read_to_string(&path).expect("the file");
    let differing = found.lines().zip(made.lines()).position(|(found, made)| found != made);
    assert!(
        found == made,
        "{file} is not what the table makes, from line {}: run LARDER_TEST_WRITE=1 cargo test --lib config::pages",
        1 + differing.unwrap_or_else(|| found.lines().count().min(made.lines().count()))
    );
}

#[test]
fn the_shipped_file_is_made_from_the_table() {
    assert_is("config.toml", &config_toml());
}

#[test]
fn the_page_is_made_from_the_table() {
    assert_is("docs/configuration.md", &configuration_md());
}

#[test]
fn the_shipped_file_sets_every_key_to_its_default() {
    let made = config_toml();
    let reading = read(&made, &[], &[]);
    assert_eq!(reading.errors(), Vec::<String>::new());
    for key in &reading.known {
        assert!(reading.origins.contains_key(key), "config.toml does not show {key}");
    }
    assert_eq!(Config::parse(&made), Ok(Config::default()));
}

/// Checks that the rule which the file shows can be read.
#[test]
fn the_rule_that_the_shipped_file_shows_is_sound() {
    let made = config_toml();
    let (_, rule) = made.split_once("# [[rule]]\n").expect("a rule");
    let is_key = |line: &&str| line.split(' ').nth(1) == Some("=");
    let keys: Vec<&str> = rule.lines().filter_map(|line| line.strip_prefix("# ")).filter(is_key).collect();
    let reading = read(&format!("[[rule]]\n{}", keys.join("\n")), &[], &[]);
    assert_eq!(reading.errors(), Vec::<String>::new());
    for (name, _) in table::rule_fields() {
        assert!(reading.origins.contains_key(&format!("rule[0].{name}")), "config.toml does not show rule.{name}");
    }
}

#[test]
fn the_example_of_the_page_is_sound() {
    let page = configuration_md();
    let (_, rest) = page.split_once("```toml\n").expect("an example");
    let (example, _) = rest.split_once("```").expect("its end");
    let reading = read(example, &[], &[]);
    assert_eq!((reading.errors(), reading.warnings()), (&[][..], Vec::new()));
}
