//! `larder config` and `larder check` as commands: what goes to which output, and with which code they end.

use std::process::{Command, Output};

use crate::support::larder;

fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn config_prints_what_holds_and_whence() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("larder.toml");
    std::fs::write(&file, "[log]\n\nlevel = \"warn\"\n").expect("it is written");
    let mut command = larder(&["cache.set_cookie=strip"]);
    command.env("LARDER_UPSTREAM__URL", "unix:/run/app").env("LARDER_ADMIN__TOKEN", "hidden-word");
    let (code, out, error) = run(command.arg("config").arg("--config").arg(&file));
    assert_eq!((code, error.as_str()), (Some(0), ""), "{out}");
    let from_file = format!("{}:3", file.display());
    for (line, from) in [
        ("level = \"warn\" ", from_file.as_str()),
        ("set_cookie = \"strip\" ", "--set"),
        ("url = \"unix:/run/app\" ", "LARDER_UPSTREAM__URL"),
        ("# token = (set) ", "LARDER_ADMIN__TOKEN"),
        ("threads = 0 ", "default"),
    ] {
        let told = out.lines().find(|told| told.starts_with(line)).unwrap_or_else(|| panic!("{line}: {out}"));
        assert!(told.ends_with(&format!(" # {from}")), "{told}");
    }
    assert!(!out.contains("hidden-word"), "{out}");
    // What is printed is a configuration.
    std::fs::write(&file, &out).expect("it is written");
    let (code, again, error) = run(larder(&[]).arg("check").arg("--config").arg(&file));
    assert_eq!((code, again.as_str(), error.as_str()), (Some(0), "ok\n", ""));
}

#[test]
fn config_prints_json_and_single_keys() {
    let (code, out, _) = run(larder(&["log.level=warn"]).args(["config", "--json"]));
    let told: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &told["log"]["level"]["value"]), (Some(0), &"warn".into()));
    let (code, out, _) = run(larder(&[]).args(["config", "log.level"]));
    assert_eq!(code, Some(0));
    assert!(out.starts_with("[log]\n# Logs messages") && out.contains("level = \"info\" "), "{out}");
    let (code, out, error) = run(larder(&[]).args(["config", "log.levl"]));
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(error.contains("log.levl: there is no such key; the nearest key is \"log.level\""), "{error}");
    let (code, out, error) = run(larder(&["log.level=loud"]).arg("config"));
    assert_eq!((code, out.as_str(), error.lines().count()), (Some(2), "", 1), "{error}");
}

#[test]
fn check_shows_warnings_beside_mistakes() {
    let mut command = larder(&["server.listen=127.0.0.1:5000", "upstream.url=http://127.0.0.1:5000"]);
    command.env("LARDER_VERSION", "1").env("LARDER_LOG_LEVEL", "warn");
    let (code, out, error) = run(command.arg("check"));
    assert_eq!((code, error.lines().count(), out.lines().count()), (Some(2), 1, 2), "{error}{out}");
    assert!(error.starts_with("larder: LARDER_LOG_LEVEL: ") && error.contains("LARDER_LOG__LEVEL"), "{error}");
    assert!(out.lines().all(|line| line.starts_with("warning: ")), "{out}");
    assert!(out.contains("LARDER_VERSION: it sets nothing"), "{out}");
}
