//! Tests `larder sweep`, `larder keys` and `larder lifecycle`, beside running Larders.

use std::process::Output;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{Origin, Place, eventually, file_url, larder};

const FIELDS: &str = "Cache-Control: max-age=600\nETag: \"v\"";

fn text(len: usize, seed: usize) -> String {
    (0..len).map(|n| char::from(b'a' + u8::try_from((n * 7 / 10 + seed) % 26).expect("a letter"))).collect()
}

fn run(place: &Place, args: &[&str]) -> Output {
    let sets: Vec<&str> = place.sets.iter().map(String::as_str).collect();
    larder(&[]).args(args).args(sets.iter().flat_map(|set| ["--set", set])).output().expect("it runs")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_sweep_removes_bodies_that_nothing_leads_to_and_no_others() {
    for place in Place::all() {
        let origin = Origin::new(|seen, reply| reply.send(200, FIELDS, &text(1_500_000, seen.path().len())));
        let mut larder = place.start(&origin, &[]);
        for path in ["/a", "/bb", "/ccc"] {
            larder.get(path, "");
            larder.settle();
        }
        // Replaced, and purged: nothing leads to what was there before.
        larder.get("/a", "Cache-Control: no-cache");
        larder.settle();
        assert_eq!(larder.purge("http://site.example/bb").status(), 200);
        larder.settle();
        // A pack that grows is its writer's: it is complete once that stops.
        larder.signal("-TERM");
        assert_eq!(larder.wait(), Some(0));
        let larder = place.start(&origin, &[]);
        let young = said(&run(&place, &["sweep"]));
        assert!(young.contains("separate bodies: 4; 0 unused, removed"), "{}: {young}", place.name);
        let looked = said(&run(&place, &["sweep", "--min-age", "0s", "--dry-run"]));
        assert!(looked.contains("separate bodies: 4;") && looked.contains("to be removed"), "{}: {looked}", place.name);
        let swept = run(&place, &["sweep", "--min-age", "0s"]);
        let words = "2 unused, removed";
        assert!(swept.status.success() && said(&swept).contains(words), "{}: {}", place.name, said(&swept));
        let again = said(&run(&place, &["sweep", "--min-age", "0s"]));
        assert!(again.contains("separate bodies: 2; 0 unused"), "{}: {again}", place.name);
        larder.kill_9();
        let larder = place.start_before("http://127.0.0.1:1", &["memory.capacity=0"]);
        eventually("the index is loaded", || larder.metric("larder_index_loaded") == 1);
        for path in ["/a", "/ccc"] {
            let answer = larder.get(path, "");
            assert_eq!((answer.hit(), answer.text()), (Some("durable"), text(1_500_000, path.len())), "{path}");
        }
        assert_eq!(larder.get("/bb", "").status(), 502);
    }
}

#[test]
fn a_body_whose_response_changed_its_key_is_not_swept() {
    let calls = AtomicUsize::new(0);
    let origin = Origin::new(move |seen, reply| {
        // What it says first is that the query does not matter, and then that it does.
        let variance = if calls.fetch_add(1, Ordering::SeqCst) == 0 { "params=(\"x\")" } else { "" };
        let fields = format!("Cache-Control: max-age=3600\nETag: \"1\"\nNo-Vary-Search: {variance}");
        let is_validation = seen.head.get("if-none-match").is_some();
        let (status, body) = if is_validation { (304, String::new()) } else { (200, text(1_500_000, 1)) };
        reply.send(status, &fields, &body);
    });
    let place = Place::file();
    let larder = place.start(&origin, &[]);
    larder.get("/a?x=1", "");
    larder.get("/a?x=1", "Cache-Control: no-cache");
    larder.settle();
    let swept = said(&run(&place, &["sweep", "--min-age", "0s"]));
    assert!(swept.contains("separate bodies: 1; 0 unused"), "{swept}");
    larder.kill_9();
    let larder = place.start_before("http://127.0.0.1:1", &["memory.capacity=0"]);
    eventually("the index is loaded", || larder.metric("larder_index_loaded") == 1);
    assert_eq!(larder.get("/a?x=1", "").hit(), Some("durable"));
}

#[test]
fn a_sweep_completes_and_deletes_packs_and_removes_what_was_not_finished() {
    let place = Place::file();
    let origin = Origin::new(|seen, reply| {
        let fields = if seen.path() == "/short" { "Cache-Control: max-age=1" } else { FIELDS };
        reply.send(200, fields, "page");
    });
    let sets = ["durable.min_lifetime=0s", "durable.retain=0s"];
    for path in ["/short", "/long"] {
        let larder = place.start(&origin, &sets);
        let ready = crate::support::Client::connect(larder.admin).get("/readyz", "Host: localhost").text();
        assert!(ready.contains("\"durable\":\"up\""), "{ready}");
        larder.get(path, "");
        larder.settle();
        larder.kill_9();
    }
    let root = place.directory();
    let open = |suffix: &str| {
        let names = std::fs::read_dir(root.join("larder-1/j")).expect("it is there");
        names.filter(|name| name.as_ref().is_ok_and(|name| name.path().to_string_lossy().ends_with(suffix))).count()
    };
    assert_eq!((open(".open"), open(".pack")), (1, 1), "the second process completed the pack of the first");
    let half = root.join("larder-1/b/00/.0123456789abcdef.tmp");
    std::fs::create_dir_all(half.parent().expect("a directory")).expect("it is made");
    std::fs::write(&half, "half").expect("it is written");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let looked = said(&run(&place, &["sweep", "--min-age", "0s", "--dry-run"]));
    assert!(looked.contains("1 of no use to be removed") && looked.contains("unfinished writes: 1"), "{looked}");
    assert!(half.exists() && (open(".open"), open(".pack")) == (1, 1));
    let swept = said(&run(&place, &["sweep", "--min-age", "0s"]));
    assert!(swept.contains("packs: 2; 1 of no use removed") && swept.contains("1 completed"), "{swept}");
    assert!(swept.contains("unfinished writes: 1 removed"), "{swept}");
    assert!(swept.contains("the packs had ") && swept.contains(", and have "), "{swept}");
    assert!(swept.contains("are purged; their bytes go with their packs"), "{swept}");
    assert!(!half.exists() && (open(".open"), open(".pack")) == (0, 1));
    let again = said(&run(&place, &["sweep", "--min-age", "0s"]));
    assert!(again.contains("packs: 1; 0 of no use removed, 0 merged or rewritten as 0, 0 completed"), "{again}");
    let larder = place.start_before("http://127.0.0.1:1", &[]);
    assert_eq!(larder.get("/long", "").hit(), Some("durable"));
}

#[test]
fn keys_lists_what_the_tier_holds() {
    for place in Place::all() {
        let origin = Origin::new(|seen, reply| {
            let tag = if seen.path().starts_with("/shop") { "\nCache-Tag: shop" } else { "" };
            let vary = if seen.path() == "/vary" { "\nVary: X" } else { "" };
            let len = if seen.path() == "/shop/large" { 1_500_000 } else { 3000 };
            reply.send(200, &format!("Cache-Control: max-age=7000{tag}{vary}"), &text(len, 1));
        });
        let larder = place.start(&origin, &[]);
        for (path, fields) in [
            ("/a", ""),
            ("/a", "Cache-Control: no-cache"),
            ("/gone", ""),
            ("/shop/1", ""),
            ("/shop/large", ""),
            ("/vary", "X: 1"),
            ("/vary", "X: 2"),
        ] {
            larder.get(path, fields);
            larder.settle();
        }
        assert_eq!(larder.purge("http://site.example/gone").status(), 200);
        larder.settle();
        let listed = |args: &[&str]| {
            let run = run(&place, &[&["keys"], args].concat());
            assert!(run.status.success(), "{}", said(&run));
            let all = String::from_utf8_lossy(&run.stdout).into_owned();
            let total = String::from_utf8_lossy(&run.stderr).into_owned();
            let lines = all.lines().count() - 1;
            let words = if lines == 1 { "1 response, ".to_owned() } else { format!("{lines} responses, ") };
            assert!(total.starts_with(&words) && total.contains(", in "), "{total}");
            let urls: Vec<String> =
                all.lines().skip(1).filter_map(|line| line.rsplit(' ').next()).map(str::to_owned).collect();
            (all.clone(), urls)
        };
        let (all, urls) = listed(&[]);
        let site = "http://site.example";
        let expected = ["/a", "/shop/1", "/shop/large", "/vary", "/vary"].map(|path| format!("{site}{path}"));
        assert_eq!(urls, expected, "{}: {all}", place.name);
        let large: Vec<&str> =
            all.lines().find(|line| line.ends_with("large")).expect("listed").split_whitespace().collect();
        assert!(large[0].parse::<u64>().is_ok_and(|size| size > 1_500_000), "{all}");
        assert!(large[1].ends_with('s') && large[2].ends_with('m') && large[3].len() == 33, "{all}");
        assert_eq!(large[4..6], ["-", "shop"], "{all}");
        let variants: Vec<&str> = all.lines().filter(|line| line.ends_with("/vary")).collect();
        let variant = |line: &str| line.split_whitespace().nth(4).map(str::to_owned);
        assert_ne!(variant(variants[0]), variant(variants[1]), "two variants are told apart: {all}");
        assert_eq!(listed(&["--prefix", "/shop"]).1, expected[1..3]);
        assert_eq!(listed(&["--prefix", "http://site.example/v"]).1, expected[3..]);
        assert_eq!(listed(&["--tag", "shop"]).1, expected[1..3]);
        assert!(listed(&["--tag", "sho"]).1.is_empty());
        // A prefix is read as that of a purge is: under both schemes, and with a host or from the slash on.
        assert_eq!(listed(&["--prefix", "https://site.example/v"]).1, expected[3..]);
        let refused = run(&place, &["keys", "--prefix", "site.example/v"]);
        assert_eq!(refused.status.code(), Some(1));
        assert!(said(&refused).contains("\"site.example/v\" is no prefix; write what URLs begin with"));
        let json = run(&place, &["keys", "--json", "--prefix", "/shop/large"]);
        let line: serde_json::Value = serde_json::from_slice(&json.stdout).expect("one JSON object");
        assert_eq!(line["url"], "http://site.example/shop/large");
        assert_eq!((&line["prefix"], &line["variant"]), (&"".into(), &serde_json::Value::Null));
        assert_eq!((&line["tags"], line["pack"].as_str().map(str::len)), (&serde_json::json!(["shop"]), Some(33)));
        assert!(line["bytes"].as_u64().is_some_and(|bytes| bytes > 1_500_000) && line["offset"].is_u64(), "{line}");
        let time =
            |name: &str| line[name].as_str().filter(|time| time.len() == 20 && time.ends_with('Z')).expect("a time");
        assert!(time("stored") < time("fresh_until"), "{line}");
        let json = run(&place, &["keys", "--json", "--prefix", "/vary"]);
        let variants =
            String::from_utf8_lossy(&json.stdout).lines().filter(|line| line.contains("\"variant\":\"")).count();
        assert_eq!(variants, 2, "{}", said(&json));
    }
}

#[test]
fn commands_for_a_tier_that_is_off_say_what_there_is_not_to_do() {
    for (command, words) in
        [("keys", "nothing to list"), ("sweep", "nothing to sweep"), ("lifecycle", "nothing to give rules to")]
    {
        let told = larder(&[]).args([command, "--set", "durable.url=off"]).output().expect("it runs");
        assert_eq!(told.status.code(), Some(1));
        assert!(said(&told).contains(words), "{}", said(&told));
    }
}

#[test]
fn a_file_in_the_place_of_the_directory_and_one_that_may_not_be_read_are_named() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("afile");
    std::fs::write(&file, "x").expect("it is written");
    for command in ["run", "keys"] {
        let set = ["--set", &file_url(&file), "--set", "server.listen=127.0.0.1:0", "--set", "admin.listen=off"];
        let told = larder(&[]).arg(command).args(set).output().expect("it runs");
        assert_eq!(told.status.code(), Some(1));
        assert!(said(&told).contains("afile is a file, not a directory"), "{command}: {}", said(&told));
    }
    let place = Place::file();
    let origin = Origin::new(|_, reply| reply.send(200, FIELDS, "page"));
    let larder = place.start(&origin, &[]);
    larder.get("/", "");
    larder.settle();
    let root = place.directory();
    let set_mode = |mode| std::fs::set_permissions(&root, std::fs::Permissions::from_mode(mode)).expect("it is ours");
    set_mode(0o000);
    // The superuser may read everything.
    if std::fs::read_dir(&root).is_err() {
        let told = run(&place, &["keys"]);
        assert_eq!(told.status.code(), Some(1));
        assert!(said(&told).contains("permission denied; run this as the user that Larder runs as"), "{}", said(&told));
    }
    set_mode(0o700);
}

#[test]
fn a_sweep_of_what_is_no_cache_is_an_error_and_makes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let missing = directory.path().join("mistyped");
    std::fs::create_dir(directory.path().join("other")).expect("it is made");
    for (path, word) in
        [(missing.clone(), "does not exist"), (directory.path().join("other"), "is not one that Larder")]
    {
        let url = file_url(&path);
        let swept = larder(&[]).args(["sweep", "--set", &url]).output().expect("it runs");
        let told = said(&swept);
        assert_eq!(swept.status.code(), Some(1), "{told}");
        assert!(told.contains(word) && told.contains(&path.display().to_string()), "{told}");
        assert!(told.contains("check durable.url"), "{told}");
        assert_eq!(std::fs::read_dir(directory.path().join("other")).expect("it is there").count(), 0);
    }
    assert!(!missing.exists());
    let place = Place::s3();
    let refused = run(&place, &["sweep"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("nothing lies below \"any/prefix/larder-1/\""), "{}", said(&refused));
    let sets = place.sets.iter().map(|set| set.replace("s3://larder-bucket", "s3://no-such-bucket"));
    let sets: Vec<String> = sets.flat_map(|set| ["--set".to_owned(), set]).collect();
    let refused = larder(&[]).arg("sweep").args(sets).output().expect("it runs");
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("there is no bucket \"no-such-bucket\""), "{}", said(&refused));
}

#[test]
fn the_lifecycle_rules_fit_the_configuration_and_leave_others_alone() {
    let refused = run(&Place::file(), &["lifecycle"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("Larder frees its space itself"), "{}", said(&refused));
    let Some(place) = Place::moto() else { return };
    // The longest rule and retain: 30 + 7 days, and one more.
    let rule = ["--set", "rule=[{path=\"/a\", timeout=\"720h\"}]"];
    let printed = run(&place, &[&["lifecycle"][..], &rule].concat());
    let piped: serde_json::Value = serde_json::from_slice(&printed.stdout).expect("nothing but JSON");
    assert_eq!(piped["Rules"].as_array().map(Vec::len), Some(4));
    let printed = said(&printed);
    for word in [
        "\"NoncurrentDays\": 1",
        "\"ExpiredObjectDeleteMarker\": true",
        "\"Days\": 38",
        "\"Days\": 45",
        "\"Prefix\": \"p/larder-1/j/\"",
        "new: \"larder packs p/larder-1/\"",
    ] {
        assert!(printed.contains(word), "{word} in {printed}");
    }
    let applied = run(&place, &[&["lifecycle", "--apply"][..], &rule].concat());
    assert!(applied.status.success() && said(&applied).contains("installed"), "{}", said(&applied));
    let again = said(&run(&place, &[&["lifecycle"][..], &rule].concat()));
    assert!(again.contains("unchanged: \"larder packs p/larder-1/\"") && !again.contains("new:"), "{again}");
    assert!(again.contains("unchanged: \"larder leftovers p/larder-1/\""), "{again}");
    assert!(again.contains("noncurrent versions deleted after 1 day, delete markers removed"), "{again}");
    let other = said(&run(&place, &["lifecycle", "--apply", "--longest", "100d"]));
    assert!(other.contains("changes from 38 to 108 days: \"larder packs p/larder-1/\""), "{other}");
    let elsewhere = said(&run(&place, &["lifecycle", "--apply", "--set", "cache.key_prefix=site"]));
    assert!(elsewhere.contains("stays: \"larder packs p/larder-1/\""), "{elsewhere}");
}
