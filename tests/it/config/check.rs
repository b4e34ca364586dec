//! Tests where the configuration is read from, and what `larder check` says of it.

use std::path::Path;
use std::process::Command;

use crate::support::{Origin, Process, larder, out_of, run};

#[test]
fn check_says_ok_or_what_is_wrong() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("config.toml");
    std::fs::write(&file, "[server]\nlisen = \"x\"\n[memory]\ncapacity = \"much\"\n").expect("it is written");
    let check = |path: &Path| run(Command::new(env!("CARGO_BIN_EXE_larder")).arg("check").arg("--config").arg(path));
    let wrong = check(&file);
    let told = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(wrong.status.code(), Some(2), "{told}");
    assert_eq!(told.lines().count(), 2, "{told}");
    assert!(told.contains("server.lisen: there is no such key; the nearest key is \"server.listen\""), "{told}");
    assert!(told.contains("memory.capacity: \"much\" is not a size"), "{told}");
    let shipped = check(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml")));
    assert_eq!((shipped.status.code(), shipped.stdout.as_slice()), (Some(0), &b"ok\n"[..]));
    assert_eq!(check(&directory.path().join("none.toml")).status.code(), Some(2));
    let ran = run(&mut larder(&["server.threads=many"]));
    assert_eq!(ran.status.code(), Some(2), "a wrong configuration does not run");
}

#[test]
fn check_warns_and_still_says_ok() {
    let run = |sets: &[&str]| out_of(&larder(sets).arg("check").output().expect("it runs"));
    let rules = "rule=[{path = \"*\"}, {path = \"/static/*\"}]";
    let (code, out, error) = run(&[rules, "server.listen=127.0.0.1:5000", "upstream.url=http://localhost:5000"]);
    assert_eq!((code, error.as_str(), out.lines().last()), (Some(0), "", Some("ok")), "{out}");
    let told: Vec<&str> = out.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert_eq!(told.len(), 2, "{out}");
    assert!(told[0].contains("upstream.url") && told[1].contains("rule[1].path"), "{out}");
    let (code, out, error) = run(&["server.listen=127.0.0.1:9090"]);
    assert_eq!((code, out.as_str()), (Some(2), ""), "{error}");
    assert!(error.contains("admin.listen: \"127.0.0.1:9090\"") && error.contains("one address"), "{error}");
}

#[test]
fn the_environment_configures_too() {
    let origin = Origin::cacheable();
    let mut command =
        larder(&["server.listen=127.0.0.1:0", "admin.listen=127.0.0.1:0", "durable.url=off", "log.format=json"]);
    command.env("LARDER_UPSTREAM__URL", origin.url()).env("LARDER_CACHE__KEY_PREFIX", "x");
    let larder = Process::spawn(command);
    assert_eq!(larder.get("/a", "").text(), "/a");
    assert!(larder.log().lines().all(|line| line.starts_with('{')), "{}", larder.log());
}
