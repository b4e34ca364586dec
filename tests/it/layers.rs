//! Tests the shape of the sources: imports go strictly down, and some names stay in one file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// From the bottom up. A room may import those above its own line; those on one line do not import each other.
const ROOMS: &[&[&str]] = &[
    &["rfc9111"],
    &["base"],
    &["entry"],
    &["store", "upstream"],
    &["tls"],
    &["fetch"],
    &["respond"],
    &["proxy"],
    &["downstream"],
    &["admin", "resp"],
    &["config"],
    &["app"],
    &["cli"],
    &["main"],
];

/// The modules that rooms show as they are: their functions are called by the module's name. All others are private,
/// so that the compiler lets nobody past the door. The rules have a module each.
const NAMESPACES: &[&str] = &[
    "base/log",
    "base/wire",
    "cli/admin_client",
    "cli/upkeep",
    "entry/encoding",
    "entry/ready",
    "store/s3",
    "tls/acme",
    "upstream/forwarding",
];

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("the sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn layer(room: &str) -> usize {
    ROOMS.iter().position(|rooms| rooms.contains(&room)).unwrap_or_else(|| panic!("{room} has no layer; give it one"))
}

fn room_of(path: &Path, root: &Path) -> String {
    let first = path.strip_prefix(root).expect("below src").components().next().expect("a name");
    first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// The text before the tests, without comments.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).expect("a source");
    let text = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn imports_go_strictly_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for path in sources(&root).iter().filter(|path| !path.ends_with("tests.rs") && !path.ends_with("lib.rs")) {
        let own = room_of(path, &root);
        let code = code(path);
        let used = code.split(if own == "main" { "larder::" } else { "crate::" }).skip(1).flat_map(used_modules);
        for used in used.filter(|used| *used != own) {
            if layer(&used) >= layer(&own) {
                wrong.push(format!("{} uses {used}", path.display()));
            }
            arrows.entry(own.clone()).or_default().insert(used);
        }
    }
    for room in ROOMS.iter().rev().flat_map(|rooms| rooms.iter()) {
        let below = arrows.get(*room).map(|below| below.iter().cloned().collect::<Vec<_>>().join(" "));
        println!("{room:>10} -> {}", below.unwrap_or_default());
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_room_has_one_door() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut shown = Vec::new();
    let rooms = ROOMS.iter().flat_map(|rooms| rooms.iter()).filter(|room| !["app", "main"].contains(room));
    let mut folders = 0;
    for room in rooms {
        folders += 1;
        let door = root.join(room).join("mod.rs");
        let text = std::fs::read_to_string(&door).unwrap_or_else(|_| panic!("{room} has no mod.rs"));
        assert!(*room == "rfc9111" || text.contains("//! May import: "), "{room} does not say what it may import");
        let code = code(&door);
        for line in code.lines().filter(|line| line.starts_with(char::is_alphabetic)) {
            let is_door = ["mod ", "pub mod ", "pub(crate) mod ", "use ", "pub use ", "pub(crate) use "];
            assert!(is_door.iter().any(|kind| line.starts_with(kind)), "{room}/mod.rs is more than a door: {line}");
        }
        for module in
            code.lines().filter_map(|line| line.strip_prefix("pub mod ").or(line.strip_prefix("pub(crate) mod ")))
        {
            if *room != "rfc9111" {
                shown.push(format!("{room}/{}", module.trim_end_matches(';')));
            }
        }
    }
    shown.sort();
    assert_eq!(shown, NAMESPACES);
    assert!(folders <= 14, "{folders} rooms");
    for path in sources(&root.join("../tests/it")) {
        let test_room = room_of(&path, &root.join("../tests/it"));
        let is_room = ROOMS.iter().any(|rooms| rooms.contains(&test_room.as_str()));
        assert!(
            is_room || ["layers", "readme", "support"].contains(&test_room.as_str()),
            "tests of no room: {test_room}"
        );
        if is_room && path.ends_with("mod.rs") {
            assert!(code(&path).lines().all(|line| line.is_empty() || line.starts_with("mod ")), "{}", path.display());
        }
    }
    let manifest = std::fs::read_to_string(root.join("../Cargo.toml")).expect("the manifest");
    assert!(manifest.contains("unreachable_pub = \"warn\""));
}

/// The first segments of what follows `crate::`: one name, or those of a braced list.
fn used_modules(rest: &str) -> Vec<String> {
    let name = |text: &str| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    match rest.strip_prefix('{') {
        Some(list) => {
            list.split('}').next().unwrap_or_default().split(',').map(name).filter(|name| !name.is_empty()).collect()
        }
        None => vec![name(rest)],
    }
}

#[test]
fn some_names_stay_in_one_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (name, home) in [
        ("aws_config", "store/s3/"),
        ("aws_sdk", "store/s3/"),
        ("aws_sig", "store/s3/"),
        ("aws_smithy", "store/s3/"),
        ("moka", "store/memory/entries.rs"),
        ("toml", "config/"),
        ("SystemTime::now", "base/clock.rs"),
        ("Instant::now", "base/clock.rs"),
        ("sfv::", "rfc9111/structured.rs"),
        ("x509_parser", "tls/"),
    ] {
        for path in sources(&root) {
            let relative = path.strip_prefix(&root).expect("below src").to_string_lossy().into_owned();
            if !relative.starts_with(home) && !relative.ends_with("tests.rs") {
                assert!(!code(&path).contains(name), "{relative} names {name}, which belongs in {home}");
            }
        }
    }
}

#[test]
fn the_rules_are_pure() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/rfc9111");
    for path in sources(&root) {
        let code = code(&path);
        for name in ["async ", "tokio", "std::net", "std::fs", "Clock", "tracing"] {
            assert!(!code.contains(name), "{} has {name}", path.display());
        }
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for path in sources(&root.join("src")).into_iter().chain(sources(&root.join("tests"))) {
        let text = std::fs::read_to_string(&path).expect("a source");
        assert!(text.starts_with("//!"), "{} begins without //!", path.display());
    }
}

/// Functions are `module::name` or `src/file.rs::name`, tests `it::room::file::name` or a bare name.
#[test]
fn conformance_names_what_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let all: String = sources(&root.join("src")).iter().map(|path| read(path)).collect();
    let table = read(&root.join("CONFORMANCE.md"));
    let rows = table.lines().skip_while(|line| !line.starts_with("## RFC 9111")).filter(|line| line.starts_with("| "));
    let mut missing = Vec::new();
    for name in rows.flat_map(|row| row.split('`').skip(1).step_by(2)) {
        let defines = |text: &str, item: &str| {
            ["fn ", "struct ", "enum "].iter().any(|kind| {
                text.split(&format!("{kind}{item}")).skip(1).any(|rest| rest.starts_with(['(', '<', ' ', ';', '{']))
            })
        };
        let is_there = match name.split("::").collect::<Vec<_>>()[..] {
            ["it", ref modules @ .., item] => {
                defines(&read(&root.join("tests/it").join(modules.join("/")).with_extension("rs")), item)
            }
            [file, item] if file.starts_with("src/") => defines(&read(&root.join(file)), item),
            ["clock", item] => defines(&read(&root.join("src/base/clock.rs")), item),
            [module, item] => defines(&read(&root.join(format!("src/rfc9111/{module}.rs"))), item),
            [item] if item.len() > 10 && item.contains('_') && !item.contains(['.', '"', ' ']) => defines(&all, item),
            _ => true,
        };
        if !is_there {
            missing.push(name.to_owned());
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
