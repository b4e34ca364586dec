//! Tests that a directory is kept to its capacity, and that its files are their owner's alone.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::{Origin, Process, eventually, file_url, larder};

/// Bodies of 40 KiB, no two alike.
const SIZE: usize = 40 << 10;

fn origin() -> Origin {
    Origin::new(|seen, reply| {
        let vary = if seen.path().starts_with("/vary") { "\nVary: X" } else { "" };
        let text = format!("{}{}", seen.path(), seen.head.get("x").unwrap_or(""));
        reply.send(200, &format!("Cache-Control: max-age=6000{vary}"), &text.repeat(SIZE / text.len()));
    })
}

const CAPACITY: u64 = 4 << 20;

const SETS: &[&str] = &["durable.capacity=4MiB", "memory.capacity=0", "durable.lookup_timeout=20s"];

fn start(origin: &Origin, directory: &Path, more: &[&str]) -> Process {
    let url = file_url(directory);
    Process::start(&origin.url(), &[&[url.as_str()], SETS, more].concat())
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        }
        found.push(path);
    }
    found
}

/// As `du` counts, directories too.
fn used(directory: &Path) -> u64 {
    files(directory)
        .iter()
        .filter_map(|path| std::fs::symlink_metadata(path).ok())
        .map(|found| found.blocks() * 512)
        .sum()
}

/// Returns what a sweep would do.
fn bodies_without_heads(url: &str) -> String {
    let swept = larder(&[]).args(["sweep", "--dry-run", "--min-age", "0s", "--set", url]).output().expect("it runs");
    String::from_utf8_lossy(&swept.stdout).into_owned()
}

#[test]
fn a_flood_never_takes_the_directory_past_its_capacity() {
    for inline in ["durable.inline_size=1MiB", "durable.inline_size=1KiB"] {
        let (origin, directory) = (origin(), tempfile::tempdir().expect("a directory"));
        let larder = start(&origin, directory.path(), &[inline]);
        let (most, is_done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let watching = std::thread::spawn({
            let (most, is_done, path) = (Arc::clone(&most), Arc::clone(&is_done), directory.path().to_owned());
            move || {
                while !is_done.load(Ordering::SeqCst) {
                    most.fetch_max(used(&path), Ordering::SeqCst);
                }
            }
        });
        let mut client = larder.client();
        let count = 10 * usize::try_from(CAPACITY).expect("a size") / SIZE;
        for n in 0..count {
            let path = if n % 3 == 0 { format!("/vary{}", n / 30) } else { format!("/{n}") };
            assert_eq!(client.get(&path, &format!("X: {n}")).status(), 200);
        }
        larder.settle();
        is_done.store(true, Ordering::SeqCst);
        watching.join().expect("it watched");
        let most = most.load(Ordering::SeqCst);
        // Four packs, of a thirty-second of the capacity each.
        assert!(most <= CAPACITY + CAPACITY / 8, "{most} with {inline}");
        assert!(most > CAPACITY / 2, "{most}: the room is made use of");
        let evicted = larder.metric("larder_packs_evicted_total");
        assert!(evicted > 40, "{evicted}");
        assert!(larder.metric("larder_packs_evicted_bytes_total") > 16 << 20);
        assert_eq!(larder.metric("larder_durable_capacity_bytes"), CAPACITY);
        assert!(larder.metric("larder_durable_bytes") <= CAPACITY + CAPACITY / 20);
        assert_eq!(larder.metric("larder_durable_lost_total{why=\"no-room\"}"), 0, "{}", larder.log());
        // The last response is there; the tier knows of the others that they are not.
        client.get("/last", "");
        larder.settle();
        assert_eq!(client.get("/last", "").hit(), Some("durable"));
        let not_found = || larder.metric("larder_durable_operations_total{op=\"get\",outcome=\"not-found\"}");
        let before = not_found();
        assert_eq!(client.get("/1", "").hit(), None);
        assert_eq!(not_found(), before, "a plain miss");
        larder.settle();
        let swept = bodies_without_heads(&file_url(directory.path()));
        assert!(swept.contains("; 0 unused,"), "{swept}");
    }
}

#[test]
fn what_is_read_stays_and_what_is_not_goes_first() {
    let (origin, directory) = (origin(), tempfile::tempdir().expect("a directory"));
    let larder = start(&origin, directory.path(), &[]);
    let mut client = larder.client();
    for path in ["/read", "/unread", "/vary-read"] {
        client.get(path, "X: 1");
    }
    larder.settle();
    for n in 0..300 {
        client.get(&format!("/{n}"), "");
        if n % 10 == 0 {
            larder.settle();
            assert_eq!(client.get("/read", "").hit(), Some("durable"), "{n}");
            assert_eq!(client.get("/vary-read", "X: 1").hit(), Some("durable"), "{n}");
        }
    }
    assert_eq!(client.get("/unread", "").hit(), None);
    // The next process goes by what is written down, and finds what this one did.
    larder.settle();
    larder.kill_9();
    let larder = start(&origin, directory.path(), &[]);
    eventually("the index is loaded", || larder.metric("larder_index_loaded") == 1);
    assert_eq!(larder.get("/299", "").hit(), Some("durable"));
}

#[test]
fn a_capacity_that_was_lowered_is_kept_also_after_kill_9() {
    let (origin, directory) = (origin(), tempfile::tempdir().expect("a directory"));
    let larder = start(&origin, directory.path(), &["durable.capacity=0", "durable.inline_size=10KiB"]);
    let mut client = larder.client();
    for n in 0..250 {
        client.get(&format!("/{n}"), "");
    }
    larder.settle();
    assert!(used(directory.path()) > 2 * CAPACITY);
    assert!(larder.metric("larder_durable_bytes") > 2 * CAPACITY);
    for n in 250..300 {
        client.get(&format!("/{n}"), "");
    }
    larder.settle();
    for n in 300..310 {
        client.get(&format!("/{n}"), "");
    }
    larder.kill_9();
    // Leaves what a killed process leaves: a body without a head, and one that is half written.
    let left = directory.path().join("larder-1/b/00/00/000000000000000000000000000f");
    let half = directory.path().join("larder-1/b/00/01/.0000000000000001.tmp");
    let long_ago = std::time::UNIX_EPOCH;
    for path in [&left, &half] {
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("it is made");
        std::fs::write(path, vec![0; 1 << 20]).expect("it is written");
        std::fs::File::options().write(true).open(path).and_then(|file| file.set_modified(long_ago)).expect("dated");
    }
    let larder = start(&origin, directory.path(), &["durable.inline_size=10KiB"]);
    eventually("it is within its capacity", || used(directory.path()) <= CAPACITY + CAPACITY / 8);
    eventually("what is of no use goes as well", || !left.exists() && !half.exists());
    let kept = (280..300).rev().filter(|n| larder.get(&format!("/{n}"), "").hit() == Some("durable")).count();
    assert!(kept >= 5, "{kept}: the newest stays\n{}", larder.log());
}

#[test]
fn processes_that_share_a_directory_keep_to_one_capacity() {
    let (origin, directory) = (origin(), tempfile::tempdir().expect("a directory"));
    let both = [start(&origin, directory.path(), &[]), start(&origin, directory.path(), &[])];
    let mut clients = both.each_ref().map(Process::client);
    let mut most = 0;
    for n in 0..600 {
        clients[n % 2].get(&format!("/{n}"), "");
        if n % 10 == 0 {
            most = most.max(used(directory.path()));
        }
    }
    both.iter().for_each(Process::settle);
    most = most.max(used(directory.path()));
    assert!(most <= CAPACITY + CAPACITY / 4, "{most}");
}

#[test]
fn a_full_disk_is_the_capacity_and_fails_nobody() {
    let directory = tempfile::tempdir().expect("a directory");
    let mount = |args: &[&str]| std::process::Command::new(args[0]).args(&args[1..]).arg(directory.path()).status();
    let mounted = mount(&["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs"]);
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("no small disk can be mounted here; run as root to test a full one");
        return;
    }
    let outcome = std::panic::catch_unwind(|| {
        let origin = origin();
        let larder = start(&origin, directory.path(), &["durable.capacity=10GiB"]);
        let mut client = larder.client();
        for n in 0..400 {
            assert_eq!(client.get(&format!("/{n}"), "").status(), 200);
            if n % 20 == 0 {
                larder.settle();
            }
        }
        larder.settle();
        assert!(larder.metric("larder_packs_evicted_total") > 20, "{}", larder.log());
        assert_eq!(client.get("/399", "").hit(), Some("durable"));
        assert_eq!(larder.metric("larder_durable_down "), 0);
        let lost = larder.metric("larder_durable_lost_total{why=\"no-room\"}");
        assert!(lost < 40, "{lost}");
        assert_eq!(larder.purge("http://site.example/399").status(), 200, "the journal finds room");
        assert_eq!(client.get("/399", "").hit(), None);
        larder.kill_9();
        // All of the disk is somebody else's: nothing can be evicted, and nothing is said to be written.
        std::fs::remove_dir_all(directory.path().join("larder-1")).expect("it is removed");
        let mut brim = std::fs::File::create(directory.path().join("brim")).expect("it is made");
        while std::io::Write::write_all(&mut brim, &[0; 4096]).is_ok() {}
        let mut larder = start(&origin, directory.path(), &["durable.capacity=10GiB"]);
        for n in 0..3 {
            assert_eq!(larder.get(&format!("/{n}"), "").status(), 200);
        }
        eventually("they are given up", || larder.metric("larder_durable_lost_total{why=\"no-room\"}") == 3);
        larder.signal("-TERM");
        assert_eq!(larder.wait(), Some(0));
        eventually("it has said that it stopped", || larder.log().contains("stopped"));
        let log = larder.log();
        assert!(log.contains("3 found no room") && !log.contains("every response"), "{log}");
    });
    let _ = mount(&["umount", "-l"]);
    outcome.expect("the above holds");
}

#[test]
fn what_is_made_is_for_its_owner_alone_whatever_the_umask() {
    for umask in ["000", "022", "077"] {
        let (origin, directory) = (origin(), tempfile::tempdir().expect("a directory"));
        let existing = directory.path().join("existing");
        std::fs::create_dir(&existing).expect("it is made");
        std::fs::set_permissions(&existing, std::fs::Permissions::from_mode(0o755)).expect("it is changed");
        for (cache, is_new) in [(existing.clone(), false), (directory.path().join("made/here"), true)] {
            let mut command = std::process::Command::new("sh");
            let url = file_url(&cache);
            let upstream = format!("upstream.url=http://{}", origin.address);
            command.env_clear().args([
                "-c",
                &format!("umask {umask}; exec \"$@\""),
                "sh",
                env!("CARGO_BIN_EXE_larder"),
            ]);
            for set in
                ["server.listen=127.0.0.1:0", "admin.listen=127.0.0.1:0", &upstream, &url, "durable.inline_size=1KiB"]
            {
                command.args(["--set", set]);
            }
            command.args(["--set", "durable.pack_interval=100ms", "--set", "memory.max_object_size=64KiB"]);
            let larder = Process::spawn(command);
            larder.get("/a", "");
            larder.get("/vary", "X: 1");
            assert_eq!(larder.purge("http://site.example/b").status(), 200);
            larder.settle();
            let mode = |path: &Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o7777;
            let made = files(&cache);
            assert!(made.len() > 10, "{made:?}");
            for path in made {
                // A file that is being written may be gone again.
                let Ok(found) = std::fs::metadata(&path) else { continue };
                let expected = if found.is_dir() { 0o700 } else { 0o600 };
                assert_eq!(found.permissions().mode() & 0o7777, expected, "{} with {umask}", path.display());
            }
            assert_eq!(mode(&cache), if is_new { 0o700 } else { 0o755 }, "{umask}");
        }
    }
}

#[test]
fn a_response_of_more_than_an_eighth_of_the_capacity_is_in_memory_only_and_explained() {
    let (directory, origin) = (
        tempfile::tempdir().expect("a directory"),
        Origin::new(|seen, reply| {
            let size = if seen.path() == "/large" { 600_000 } else { 100_000 };
            let lifetime = if seen.path() == "/short" { 20 } else { 6000 };
            reply.send(200, &format!("Cache-Control: max-age={lifetime}"), &"x".repeat(size));
        }),
    );
    let larder = Process::start(&origin.url(), &[&file_url(directory.path()), "durable.capacity=4MiB"]);
    let host = "Host: site.example";
    for path in ["/large", "/short", "/small"] {
        assert_eq!(larder.get(path, host).status(), 200);
        larder.settle();
        assert_eq!(larder.get(path, host).hit(), Some("memory"));
    }
    assert!(used(directory.path()) < 300_000, "{}", used(directory.path()));
    for (path, why) in [
        ("large", "it is larger than the 524288 bytes that the tier keeps of a response"),
        ("short", "its lifetime of 20s is below durable.min_lifetime, 30s"),
    ] {
        let told = explained(&larder, path);
        assert!(told.contains(&format!("durable: what memory has is not written: {why}")), "{told}");
    }
    let told = explained(&larder, "small");
    assert!(!told.contains("is not written") && told.contains("durable: it is in pack"), "{told}");
}

fn explained(larder: &Process, path: &str) -> String {
    let mut admin = crate::support::Client::connect(larder.admin);
    admin.get(&format!("/explain?url=http://site.example/{path}"), "").text()
}

#[test]
fn a_separate_body_counts_once() {
    let (origin, directory) = (origin(), tempfile::tempdir().expect("a directory"));
    let larder = start(&origin, directory.path(), &["durable.inline_size=1KiB"]);
    for n in 0..20 {
        larder.get(&format!("/{n}"), "");
    }
    larder.settle();
    let (told, held) = (larder.metric("larder_durable_bytes"), used(&directory.path().join("larder-1")));
    assert!(told < 20 * (SIZE as u64 + (16 << 10)) + (64 << 10), "{told} are told, {held} are there");
}
