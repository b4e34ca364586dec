//! Tests what a bucket does not allow, and what Larder says of it.

use crate::support::{Origin, Place, eventually, larder, packs};

/// As a policy has it that allows no more than it must: names below the prefix, and a condition on `s3:prefix`, which
/// makes a missing object a refused one.
fn least_privilege(place: &Place) {
    let root = place.directory().join("larder-bucket");
    place.s3.as_ref().expect("a server").refuse(move |method, path| {
        let refused = Some((403, "AccessDenied", "User is not authorized"));
        let (name, query) = path.split_once('?').unwrap_or((path, ""));
        let name = name.strip_prefix("/larder-bucket").unwrap_or(name).trim_start_matches('/');
        if name.is_empty() {
            let is_own = query.contains("list-type=2") && query.contains("prefix=any%2Fprefix%2Flarder-1%2F");
            return if is_own { None } else { refused };
        }
        let is_hidden = method == "GET" && !root.join(name).exists();
        if name.starts_with("any/prefix/larder-1/") && !is_hidden { None } else { refused }
    });
}

#[test]
fn no_right_outside_the_prefix_is_needed() {
    let (place, origin) = (Place::s3(), Origin::long_lived());
    least_privilege(&place);
    let sets = ["memory.capacity=0", "durable.breaker_failures=3", "durable.breaker_pause=50ms"];
    let larder = place.start(&origin, &sets);
    for n in 0..10 {
        larder.get(&format!("/{n}"), "");
    }
    larder.settle();
    assert_eq!(larder.get("/0", "").hit(), Some("durable"));
    // As the bucket's lifecycle rules do.
    for pack in packs(&place) {
        std::fs::remove_file(pack).expect("it is there");
    }
    for n in 0..10 {
        let answer = larder.get(&format!("/{n}"), "");
        assert_eq!((answer.status(), answer.hit()), (200, None));
    }
    assert_eq!(larder.metric("larder_durable_downs_total"), 0, "a missing object is no fault: {}", larder.log());
    assert_eq!(larder.purge("http://site.example/1").status(), 200);
    larder.settle();
    let sets: Vec<&str> = place.sets.iter().flat_map(|set| ["--set", set]).collect();
    let swept = larder_command(&["sweep", "--min-age", "0s"], &sets);
    assert!(swept.0 && swept.1.contains("s3:ListBucketMultipartUploads"), "{}", swept.1);
    for apply in [&["lifecycle"][..], &["lifecycle", "--apply"]] {
        let (is_done, told) = larder_command(apply, &sets);
        assert!(told.contains("s3:GetLifecycleConfiguration"), "{told}");
        assert_eq!(is_done, apply.len() == 1, "{told}");
    }
    // A refusal in earnest counts as one.
    place.s3.as_ref().expect("a server").refuse(|_, _| Some((403, "AccessDenied", "Not any more")));
    eventually("it is down", || {
        larder.get("/2", "");
        larder.metric("larder_durable_down ") == 1
    });
}

fn larder_command(args: &[&str], sets: &[&str]) -> (bool, String) {
    let ran = larder(&[]).args(args).args(sets).output().expect("it runs");
    let told = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    (ran.status.success(), told)
}

/// Returns what is logged at a start where every request is answered so.
fn told_at_the_start(status: u16, code: &'static str, message: &'static str) -> String {
    let place = Place::s3();
    place.s3.as_ref().expect("a server").refuse(move |_, _| Some((status, code, message)));
    start(&place.sets)
}

fn start(sets: &[String]) -> String {
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let all = [&["server.listen=127.0.0.1:0", "admin.listen=off"], &sets[..]].concat();
    let ran = larder(&all).output().expect("it runs");
    let told = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!((ran.status.code(), told.lines().count()), (Some(1), 1), "{told}");
    told
}

#[test]
fn each_refusal_says_what_the_service_said_and_what_to_do() {
    for (status, code, message, to_do) in [
        (403, "RequestTimeTooSkewed", "The difference is too large.", "set the clock"),
        (403, "AccessDenied", "Access Denied", "s3:ListBucket"),
        (403, "InvalidAccessKeyId", "It does not exist.", "give Larder others"),
        (400, "ExpiredToken", "The token has expired.", "give Larder others"),
        (400, "AuthorizationHeaderMalformed", "The region is wrong.", "set durable.region"),
        (301, "PermanentRedirect", "Use another endpoint.", "set durable.region"),
        (404, "NoSuchBucket", "It does not exist.", "name another in durable.url"),
        (400, "InvalidRequest", "Something is missing.", "does not let Larder list"),
    ] {
        let told = told_at_the_start(status, code, message);
        for word in [code, message, to_do] {
            assert!(told.contains(word), "{word} in {told}");
        }
    }
}

#[test]
fn a_service_that_knows_no_host_names_of_buckets_is_hinted_at() {
    let place = Place::s3();
    let port = place.s3.as_ref().expect("a server").address.port();
    for host in ["localhost", "no-such-host.invalid"] {
        let mut sets = place.sets.clone();
        sets.retain(|set| !set.contains("path_style") && !set.contains("endpoint_url"));
        sets.push(format!("durable.endpoint_url=http://{host}:{port}"));
        let told = start(&sets);
        assert!(told.contains("durable.path_style = true"), "{told}");
        assert!(told.contains(&format!("larder-bucket.{host}:{port}")), "{told}");
    }
}

/// Makes `path` and all below it belong to `user`.
fn give(path: &std::path::Path, user: u32) {
    std::os::unix::fs::chown(path, Some(user), Some(user)).expect("root may");
    if path.is_dir() {
        for entry in std::fs::read_dir(path).expect("it is read") {
            give(&entry.expect("it is read").path(), user);
        }
    }
}

fn owners(path: &std::path::Path, found: &mut Vec<u32>) {
    found.push(std::os::unix::fs::MetadataExt::uid(&std::fs::symlink_metadata(path).expect("it is there")));
    if path.is_dir() {
        for entry in std::fs::read_dir(path).expect("it is read") {
            owners(&entry.expect("it is read").path(), found);
        }
    }
}

#[test]
fn what_root_writes_belongs_to_the_owner_of_the_directory() {
    if std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").expect("it is there")) != 0 {
        return;
    }
    let (place, origin) = (Place::file(), Origin::long_lived());
    let stop = |mut larder: crate::support::Process| {
        larder.signal("-TERM");
        assert_eq!(larder.wait(), Some(0));
    };
    let larder = place.start(&origin, &[]);
    larder.get("/1", "");
    larder.settle();
    stop(larder);
    give(&place.directory(), 65_534);
    let larder = place.start(&origin, &["durable.inline_size=0"]);
    larder.get("/2", "");
    assert_eq!(larder.purge("http://site.example/1").status(), 200);
    larder.settle();
    stop(larder);
    let sets: Vec<&str> = place.sets.iter().flat_map(|set| ["--set", set]).collect();
    let (is_done, told) = larder_command(&["sweep", "--min-age", "0s"], &sets);
    assert!(is_done, "{told}");
    let mut found = Vec::new();
    owners(&place.directory(), &mut found);
    assert!(found.len() > 3 && found.iter().all(|owner| *owner == 65_534), "{found:?}");
}

#[test]
fn a_pack_that_cannot_be_read_costs_its_responses_and_not_the_tier() {
    let (place, origin) = (Place::file(), Origin::long_lived());
    let mut before = None;
    for path in ["/1", "/2"] {
        let mut larder = place.start(&origin, &[]);
        larder.get(path, "");
        larder.settle();
        larder.signal("-TERM");
        assert_eq!(larder.wait(), Some(0));
        let names = std::fs::read_dir(place.directory().join("larder-1/j")).expect("it is read");
        before = before.or_else(|| names.map(|entry| entry.expect("it is read").path()).find(|path| is_pack(path)));
    }
    // Root reads whatever its rights: a directory in the place of the file is not readable for anybody.
    let first = before.expect("a pack");
    std::fs::remove_file(&first).expect("it is there");
    std::fs::create_dir(&first).expect("it is made");
    let larder = place.start(&origin, &[]);
    eventually("the index is loaded", || larder.metric("larder_index_loaded") == 1);
    let answer = larder.get("/2", "");
    assert!(answer.status() == 200 && answer.head.get("cache-status").is_some(), "{answer:?}");
    larder.get("/3", "");
    larder.settle();
    assert_eq!(larder.get("/1", "").status(), 200);
}

fn is_pack(path: &std::path::Path) -> bool {
    path.extension().is_some_and(|extension| extension == "pack")
}
