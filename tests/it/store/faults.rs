//! Tests a bucket that fails in every way there is: no client sees anything of it, and it is used again when it is
//! well.

use crate::support::s3::faults::Fault;
use crate::support::{Origin, Place, eventually};

const SETS: &[&str] = &["memory.capacity=0", "durable.lookup_timeout=300ms", "durable.breaker_pause=50ms"];

#[test]
fn no_fault_of_the_bucket_is_seen_by_clients_and_each_ends_with_it() {
    for (name, fault) in Fault::ALL {
        let (place, origin) = (Place::s3(), Origin::long_lived());
        let s3 = place.s3.as_ref().expect("a server");
        let larder = place.start(&origin, SETS);
        for n in 0..10 {
            larder.get(&format!("/before/{n}"), "");
        }
        larder.settle();
        s3.set_fault(fault);
        for n in 0..10 {
            for path in [format!("/before/{n}"), format!("/during/{n}")] {
                let answer = larder.get(&path, "");
                assert_eq!((answer.status(), answer.text()), (200, path.repeat(50)), "{name}");
            }
        }
        s3.set_fault(Fault::None);
        larder.settle();
        eventually("it is in use again", || larder.metric("larder_durable_down ") == 0);
        // What could not be believed was replaced; what could not be had in time is asked for again.
        for n in 0..10 {
            larder.get(&format!("/before/{n}"), "");
        }
        larder.settle();
        let asked = origin.count();
        for n in 0..10 {
            assert_eq!(larder.get(&format!("/before/{n}"), "").hit(), Some("durable"), "{name}");
        }
        assert_eq!(origin.count(), asked);
        assert!(!larder.log().contains("panicked"), "{}", larder.log());
    }
}

#[test]
fn small_objects_are_looked_for_by_requests_of_our_own() {
    let (place, origin) = (Place::s3(), Origin::long_lived());
    let s3 = place.s3.as_ref().expect("a server");
    let larder = place.start(&origin, &[SETS, &["server.threads=1"]].concat());
    let ask = || {
        for n in 0..10 {
            let path = format!("/{n}");
            let answer = larder.get(&path, "");
            assert_eq!((answer.status(), answer.text()), (200, path.repeat(50)));
        }
    };
    ask();
    larder.settle();
    ask();
    assert_eq!(origin.count(), 10, "all were found");
    // The SDK's say in the query what they are.
    let of_the_sdk = || {
        let seen = s3.seen.lock().unwrap();
        let looked = seen.iter().filter(|(method, path, _)| method == "GET" && path.contains(".pack"));
        looked.map(|(_, path, _)| path.contains("x-id")).collect::<Vec<_>>()
    };
    s3.seen.lock().unwrap().clear();
    ask();
    assert_eq!(of_the_sdk(), [false; 10]);
    // What only the SDK can tell is asked of it: here, whether to try again.
    s3.set_fault(Fault::Status500);
    s3.seen.lock().unwrap().clear();
    larder.get("/0", "");
    assert!(of_the_sdk().contains(&true));
}

#[test]
fn a_bucket_that_is_down_is_not_asked_until_it_answers() {
    let (place, origin) = (Place::s3(), Origin::long_lived());
    let s3 = place.s3.as_ref().expect("a server");
    let larder = place.start(&origin, &[SETS, &["durable.breaker_failures=3"]].concat());
    for n in 0..20 {
        larder.get(&format!("/{n}"), "");
    }
    larder.settle();
    s3.set_fault(Fault::Status500);
    for n in 0..3 {
        larder.get(&format!("/{n}"), "");
    }
    assert_eq!((larder.metric("larder_durable_down "), larder.metric("larder_durable_downs_total")), (1, 1));
    let looked = s3.looked_for();
    for n in 3..20 {
        assert_eq!(larder.get(&format!("/{n}"), "").status(), 200);
    }
    assert_eq!(s3.looked_for(), looked, "open, it is not asked at all");
    assert_eq!(larder.metric("larder_durable_saved_total{why=\"breaker\"}"), 17);
    s3.set_fault(Fault::None);
    eventually("it is found up again", || larder.metric("larder_durable_down ") == 0);
    eventually("what waited is written", || larder.metric("larder_durable_queue_objects") == 0);
    assert_eq!(larder.get("/19", "").hit(), Some("durable"));
    assert_eq!(larder.log().matches("counts as down").count(), 1, "{}", larder.log());
}

#[test]
fn an_object_that_cannot_be_believed_is_said_once_and_written_anew() {
    let (place, origin) = (Place::s3(), Origin::long_lived());
    let s3 = place.s3.as_ref().expect("a server");
    let larder = place.start(&origin, SETS);
    larder.get("/a", "");
    larder.settle();
    s3.set_fault(Fault::Corrupt);
    // Nothing that it brings is stored: the object stays as it is.
    let only = "Cache-Control: no-store";
    for _ in 0..5 {
        assert_eq!(larder.get("/a", only).status(), 200);
    }
    assert_eq!(larder.log().matches("is not readable").count(), 1, "{}", larder.log());
    s3.set_fault(Fault::None);
    larder.get("/a", "");
    larder.settle();
    assert_eq!(larder.get("/a", "").hit(), Some("durable"));
}

/// Checks the message of a process that can't read a journal which is there.
#[test]
fn a_record_that_cannot_be_read_counts_as_a_purge_of_everything() {
    let (place, origin) = (Place::file(), Origin::long_lived());
    let larder = place.start(&origin, &[]);
    larder.get("/a", "");
    larder.settle();
    assert_eq!(larder.get("/a", "").hit(), Some("memory"));
    let root = std::path::PathBuf::from(place.sets[0].trim_start_matches("durable.url=file:"));
    let journal = root.join("larder-1/j");
    let known = larder.metric("larder_purge_position");
    let mut time = String::new();
    eventually("a pack is begun", || {
        let names = std::fs::read_dir(&journal).into_iter().flatten().map(|entry| entry.expect("an entry").file_name());
        let name = names.map(|name| name.to_string_lossy().into_owned()).find(|name| !name.starts_with('.'));
        time = name.and_then(|name| Some(name.split_once('-')?.0.to_owned())).unwrap_or_default();
        !time.is_empty()
    });
    std::fs::write(journal.join(format!("{time}-00000000000000ff.purges")), "nonsense").expect("it is written");
    eventually("it is read", || larder.metric("larder_purge_position") > known);
    assert_eq!(larder.metric("larder_journal_unreadable_total"), 1);
    assert_eq!(larder.get("/a", "").hit(), None);
    assert_eq!(larder.get("/a", "").hit(), Some("memory"), "what came since is good");
    std::fs::write(journal.join("not-ours.purges"), "nonsense").expect("it is written");
    larder.settle();
    assert_eq!(larder.metric("larder_journal_unreadable_total"), 1, "another's file says nothing");
}

/// A read of a FIFO would wait for whoever writes into it.
#[test]
fn what_is_no_file_keeps_no_process_from_following_purges() {
    let (place, origin) = (Place::file(), Origin::long_lived());
    let (here, other) = (place.start(&origin, &[]), place.start(&origin, &[]));
    here.get("/a", "");
    here.settle();
    eventually("the other has it", || other.get("/a", "").hit().is_some());
    let journal = std::path::PathBuf::from(place.sets[0].trim_start_matches("durable.url=file:")).join("larder-1/j");
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_millis() << 10;
    for (number, kind) in ["purges", "pack", "open"].iter().enumerate() {
        let path = journal.join(format!("{now:016x}-00000000000000f{number}.{kind}"));
        let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo runs");
        assert!(made.success());
    }
    let read = other.metric("larder_journal_read_total");
    assert_eq!(here.purge("http://site.example/a").status(), 200);
    eventually("the other follows", || other.metric("larder_journal_read_total") > read);
    eventually("it is logged", || other.log().contains("it is a FIFO, and no file"));
}
