//! Tests the command line: options, `larder purge`, and commands whose output is closed or full.

use std::process::{Command, Stdio};

use crate::support::tagged::{fill, hits, others, tagged};
use crate::support::{Larder, Origin, Process, larder, out_of, run};

#[test]
fn options_are_taken_before_and_after_the_subcommand() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("config.toml");
    std::fs::write(&file, "[log]\nlevel = \"loud\"\n").expect("it is written");
    let file = file.to_str().expect("a path");
    let run = |args: &[&str]| {
        out_of(&Command::new(env!("CARGO_BIN_EXE_larder")).env_clear().args(args).output().expect("it runs"))
    };
    let fixed = "log.level=info";
    for (args, code) in [
        (&["--config", file, "check"][..], 2),
        (&["check", "--config", file], 2),
        (&["--config", file, "check", "--set", fixed], 0),
        (&["--config", file, "--set", fixed, "check"], 0),
        (&["--set", fixed, "check", "--config", file], 0),
        (&["--set", "log.level=x", "check", "--set", fixed], 0),
        (&["--set", fixed, "check", "--set", "log.level=x"], 2),
        (&["--config", file, "check", "--config", file], 2),
    ] {
        let (found, out, error) = run(args);
        assert_eq!(found, Some(code), "{args:?}: {out}{error}");
        assert_eq!(code == 0, out.ends_with("ok\n"), "{args:?}: {out}{error}");
    }
    // With both behind one another the later one wins, and the first keys still count.
    let (_, _, error) = run(&["--set", "server.threads=x", "check", "--set", "log.level=x"]);
    assert_eq!(error.lines().count(), 2, "{error}");
}

#[test]
fn a_command_whose_output_or_error_is_closed_or_full_does_not_panic() {
    let origin = Origin::cacheable();
    let running = Larder::new(&origin, "");
    let admin = format!("admin.listen={}", running.admin);
    let explain = ["explain", "http://site.example/a"];
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let run = |args: &[&str], stdout: Stdio, stderr: Stdio| {
        let mut child =
            larder(&[&admin, "durable.url=off"]).args(args).stdout(stdout).stderr(stderr).spawn().expect("it runs");
        // Nobody reads.
        drop((child.stdout.take(), child.stderr.take()));
        child.wait().expect("it ends").code()
    };
    for args in [&explain[..], &["check"], &["purge", "http://site.example/a"]] {
        assert_eq!(run(args, Stdio::piped(), Stdio::piped()), Some(0), "{args:?}: a reader that has enough");
        assert_eq!(run(args, full().into(), full().into()), Some(1), "{args:?}: what can't be said");
    }
    for (args, code) in
        [(&["check", "--set", "a.b=1"][..], 2), (&["run", "--set", "a.b=1"], 2), (&["purge"], 2), (&["nonsense"], 2)]
    {
        assert_eq!(run(args, Stdio::null(), full().into()), Some(code), "{args:?}");
        assert_eq!(run(args, Stdio::null(), Stdio::piped()), Some(code), "{args:?}");
    }
}

#[test]
fn purge_from_the_command_line() {
    let origin = Origin::cacheable();
    let larder = Process::start(&origin.url(), &["durable.url=off"]);
    larder.get("/a", "");
    let purge = |url: &str, admin: &str| {
        run(Command::new(env!("CARGO_BIN_EXE_larder")).env_clear().args([
            "purge",
            url,
            "--set",
            &format!("admin.listen={admin}"),
        ]))
    };
    let purged = purge("http://site.example/a", &larder.admin.to_string());
    let told = String::from_utf8_lossy(&purged.stdout).into_owned();
    assert_eq!((purged.status.code(), told.as_str()), (Some(0), "purged http://site.example/a (held in memory)\n"));
    assert_eq!(larder.get("/a", "").hit(), None);
    let wrong = purge("nonsense", &larder.admin.to_string());
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("is no absolute http or https URL"));
    let nobody = purge("http://site.example/a", "127.0.0.1:1");
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("can't be reached"));
}

#[test]
fn the_command_purges_what_it_is_told() {
    let origin = tagged();
    let running = Larder::new(&origin, "");
    fill(&running);
    let admin = format!("admin.listen={}", running.admin);
    for (args, covered) in [
        (&["http://site.example/blog/1", "http://site.example/"][..], &[0, 4][..]),
        (&["--prefix", "/blog/"], &[0, 1]),
        (&["--tag", "s-shop", "--tag", "x-blogs"], &[2, 3]),
        (&["--all", "--wait", "10ms"], &[0, 1, 2, 3, 4]),
    ] {
        let done = larder(&[]).arg("purge").args(args).args(["--set", &admin]).output().expect("it runs");
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(hits(&running), others(covered), "{args:?}");
    }
    let done = larder(&[]).args(["purge", "--soft", "--all", "--set", &admin]).output().expect("it runs");
    assert!(done.status.success());
    assert!(running.get("/shop/1", "").cache_status().contains("fwd=stale; fwd-status=304"));
    let nothing = larder(&[]).args(["purge", "--soft"]).output().expect("it runs");
    assert_eq!(nothing.status.code(), Some(2));
    let wrong = larder(&[]).args(["purge", "--prefix", "site", "--set", &admin]).output().expect("it runs");
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("is no prefix"));
}
