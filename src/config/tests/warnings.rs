//! Tests the warnings of what is allowed and most likely not meant.

use super::*;

#[test]
fn warnings_stand_beside_mistakes_but_not_for_a_value_that_could_not_be_read() {
    let itself = ["server.listen=127.0.0.1:5000", "upstream.url=http://127.0.0.1:5000"];
    let reading = read("", &[], &[itself[0], itself[1], "log.level=loud"]);
    assert_eq!((reading.errors().len(), reading.warnings().len()), (1, 1), "{reading:?}");
    let reading = read("", &[], &[itself[0], "upstream.url=ftp://a"]);
    assert_eq!((reading.errors().len(), reading.warnings().len()), (1, 0), "{reading:?}");
    let reading = read("", &[], &["admin.listen=0.0.0.0:9090", "admin.token=a b"]);
    assert_eq!(reading.errors().len(), 1, "{reading:?}");
}

#[test]
fn values_that_are_most_likely_not_meant_are_warned_of() {
    for (sets, words) in [
        (&["memory.capacity=256"][..], "memory.capacity: 256 is 256 bytes, too few"),
        (
            &["durable.url=s3://bucket", "durable.region=EU_central-1"],
            "durable.region: \"EU_central-1\" is no region of AWS; did you mean \"eu-central-1\"?",
        ),
    ] {
        let warnings = load("", &[], sets).expect("sound").warnings();
        assert!(warnings.len() == 1 && warnings[0].starts_with(words), "{sets:?}: {warnings:?}");
    }
    // Other services name regions as they like, and some have their API below a path.
    let elsewhere = ["durable.endpoint_url=https://s3.example/storage/v1", "durable.region=my_region"];
    for sets in
        [&[&elsewhere[..], &["durable.url=s3://bucket"]].concat()[..], &["memory.capacity=0"], &["durable.capacity=0"]]
    {
        assert_eq!(load("", &[], sets).expect("sound").warnings(), Vec::<String>::new(), "{sets:?}");
    }
}

#[test]
fn a_durable_tier_that_hardly_holds_more_than_memory_is_a_warning() {
    let warnings = |sets: &[&str]| load("", &[], sets).expect("sound").warnings();
    let (directory, bucket) = ("durable.url=file:./d", "durable.url=s3://bucket");
    for (sets, is_told) in [
        (&[directory, "memory.capacity=256MiB", "durable.capacity=511MiB"][..], true),
        (&[bucket, "memory.capacity=256MiB", "durable.capacity=511MiB"], true),
        (&[directory, "memory.capacity=256MiB", "durable.capacity=512MiB"], false),
        (&[directory, "memory.capacity=256MiB", "durable.capacity=0"], false),
        (&[directory, "memory.capacity=0", "durable.capacity=4MiB"], false),
        (&["durable.url=off", "memory.capacity=256MiB", "durable.capacity=4MiB"], false),
    ] {
        let told = warnings(sets);
        assert_eq!(
            told.iter().any(|told| told.starts_with("durable.capacity: 511MiB is less than")),
            is_told,
            "{told:?}"
        );
    }
}

#[test]
fn what_is_most_likely_not_meant_is_a_warning() {
    let warnings = |sets: &[&str]| load("", &[], sets).expect("sound").warnings();
    for (listen, upstream, is_itself) in [
        ("127.0.0.1:5000", "http://127.0.0.1:5000", true),
        ("0.0.0.0:5000", "http://127.0.0.1:5000", true),
        ("0.0.0.0:5000", "http://localhost:5000", true),
        ("127.0.0.1:5000", "http://localhost:5000", true),
        ("[::]:5000", "http://127.0.0.1:5000", true),
        ("127.0.0.1:5000", "http://0.0.0.0:5000", true),
        ("app:5000", "http://app:5000", true),
        ("unix:/run/app", "unix:/run/app", true),
        ("127.0.0.1:5001", "http://127.0.0.1:5000", false),
        ("0.0.0.0:5000", "http://192.0.2.1:5000", false),
        ("0.0.0.0:5000", "http://app:5000", false),
        ("127.0.0.2:5000", "http://127.0.0.1:5000", false),
        ("127.0.0.1:0", "http://127.0.0.1:5000", false),
    ] {
        let told = warnings(&[&format!("server.listen={listen}"), &format!("upstream.url={upstream}")]);
        assert_eq!(told.len(), usize::from(is_itself), "{listen} {upstream}: {told:?}");
        assert!(
            told.iter().all(|told| told.starts_with("upstream.url: ") && told.contains("server.listen")),
            "{told:?}"
        );
    }
    assert_eq!(warnings(&["upstream.url=http://127.0.0.1:9090"]).len(), 1, "the admin listener's");
    assert!(warnings(&["server.listen=localhost:90", "admin.listen=127.0.0.1:90"])[0].contains("may be one address"));
    for (paths, hidden) in [
        (&["/a", "/b"][..], None),
        (&["/a", "/a"], Some(1)),
        (&["*", "/b"], Some(1)),
        (&["/b", "*"], None),
        (&["/*", "/b/*"], Some(1)),
        (&["/static/*", "/x", "/static/css/*"], Some(2)),
        (&["/static/*", "/static*"], None),
        (&["*.css", "/static/*.css"], Some(1)),
        (&["/caf%C3%A9", "/café"], Some(1)),
        (&["/a*b", "/a*c*b"], Some(1)),
    ] {
        let rules = paths.iter().map(|path| format!("{{path = \"{path}\"}}")).collect::<Vec<_>>().join(", ");
        let told = warnings(&[&format!("rule=[{rules}]")]);
        assert_eq!(told.len(), usize::from(hidden.is_some()), "{paths:?}: {told:?}");
        if let Some(n) = hidden {
            assert!(told[0].starts_with(&format!("rule[{n}].path: ")) && told[0].contains("never reached"), "{told:?}");
        }
    }
}
