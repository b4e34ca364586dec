//! The page on the durable tier's format: its reader reads a pack that Larder wrote, and its example is the golden file.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::durable::{in_directory, packs, pages_of_every_kind};

const PAGE: &str = "docs/durable-format.md";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the block of the page that begins with `fence`.
fn block(fence: &str) -> String {
    let page = std::fs::read_to_string(root().join(PAGE)).expect("the page is there");
    let (_, rest) = page.split_once(&format!("\n```{fence}\n")).expect("the block is there");
    rest.split_once("```").expect("it ends").0.to_owned()
}

/// Runs the page's reader on a pack. Returns what it prints.
fn read(reader: &Path, pack: &Path) -> String {
    let ran = Command::new("python3").arg(reader).arg(pack).output().expect("Python is there");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).expect("text")
}

fn reader(directory: &Path) -> PathBuf {
    let path = directory.join("read_pack.py");
    std::fs::write(&path, block("python")).expect("it is written");
    path
}

#[test]
fn the_reader_of_the_page_reads_what_larder_writes() {
    let (origin, directory) = (pages_of_every_kind(), tempfile::tempdir().expect("a directory"));
    let larder = in_directory(&origin, &directory.path().join("cache"), "");
    larder.get("/a", "");
    larder.get("/vary", "Accept-Language: de");
    larder.get("/large", "");
    larder.settle();
    larder.client().send("DELETE", "/a", "");
    larder.settle();
    larder.stop();
    let packs = packs(&directory.path().join("cache"));
    let reader = reader(directory.path());
    let told: String = packs.iter().map(|pack| read(&reader, pack)).collect();
    let kinds_of = |path: &str| -> Vec<&str> {
        let of_it = told.lines().filter(|line| line.contains(path));
        of_it.filter_map(|line| line.split(' ').nth(1)).collect()
    };
    assert_eq!(kinds_of("/a "), ["response", "tombstone"], "{told}");
    assert_eq!(kinds_of("/vary "), ["vary", "response"], "{told}");
    assert_eq!(kinds_of("/large "), ["response"], "{told}");
    assert!(told.lines().any(|line| line.contains("/a ") && line.ends_with(" 2 bytes")), "{told}");
}

#[test]
fn the_example_of_the_page_is_the_golden_file() {
    let written: String = block("text").lines().flat_map(|line| line.split("  ").skip(1)).collect();
    let written: String = written.chars().filter(char::is_ascii_hexdigit).collect();
    let golden = std::fs::read(root().join("tests/golden/v1-entry-tombstone.bin")).expect("golden file is there");
    let golden: String = golden.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(written, golden);
    // The table takes it apart.
    let page = std::fs::read_to_string(root().join(PAGE)).expect("the page is there");
    let table = page.split_once("## A worked example").expect("it is there").1;
    for number in table.lines().filter(|line| line.starts_with("| `")).flat_map(|line| {
        line.split('|').nth(1).expect("a cell").split('`').filter(|part| part.len() >= 8 && !part.contains('…'))
    }) {
        assert!(golden.contains(number.trim()), "{number}");
    }
}
