//! Tests `Cache-Groups` and `Cache-Group-Invalidation` (RFC 9875).

use crate::support::{Gate, Larder, Origin, Process, Seen, file_url, in_each_tier};

fn grouped(seen: &Seen) -> String {
    match (seen.method(), seen.path()) {
        ("GET", "/a") => "Cache-Control: max-age=60\nCache-Groups: \"news\", \"all\"".into(),
        ("GET", "/b") => "Cache-Control: max-age=60\nCache-Groups: \"all\"".into(),
        ("GET", "/c") => "Cache-Control: max-age=60\nCache-Groups: \"News\"".into(),
        ("GET", "/safe") => "Cache-Group-Invalidation: \"all\"".into(),
        (_, group) => format!("Cache-Group-Invalidation: \"{}\"", group.trim_start_matches('/')),
    }
}

#[test]
fn a_group_is_invalidated_as_one_on_its_own_origin() {
    in_each_tier(|start| {
        let origin = Origin::new(|seen, reply| reply.send(200, &grouped(seen), "x"));
        let larder = start(&origin);
        let hits = || ["/a", "/b", "/c"].map(|path| larder.get(path, "").is_hit());
        hits();
        larder.settle_if_durable();
        assert_eq!(hits(), [true, true, true]);
        larder.get("/safe", "");
        assert_eq!(hits(), [true, true, true], "the answer to a safe request says nothing");
        let post =
            |path: &str, fields: &str| larder.client().send("POST", path, &format!("Content-Length: 0\n{fields}"));
        post("/all", "Host: other.example");
        assert_eq!(hits(), [true, true, true], "another origin");
        post("/news", "");
        assert_eq!(hits(), [false, true, true], "names are compared letter by letter");
        assert_eq!(hits(), [true, true, true], "what is stored afterwards is not covered");
        post("/all", "");
        assert_eq!(hits(), [false, false, true]);
        origin.script(|seen, reply| reply.send(500, &grouped(seen), "x"));
        post("/all", "");
        assert_eq!(hits(), [true, true, true], "an error changes nothing");
    });
}

#[test]
fn a_groups_invalidation_survives_kill_9_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let origin = Origin::new(|seen, reply| reply.send(200, &grouped(seen), "x"));
    let upstream = origin.url();
    let url = file_url(directory.path());
    for _ in 0..3 {
        let larder = Process::start(&upstream, &[&url]);
        for path in ["/a", "/c"] {
            larder.get(path, "");
        }
        larder.settle();
        larder.client().send("POST", "/all", "Content-Length: 0");
        larder.kill_9();
        let larder = Process::start(&upstream, &[&url]);
        assert!(!larder.get("/a", "").is_hit());
        assert_eq!(larder.get("/c", "").hit(), Some("durable"), "another group");
        larder.settle();
        larder.kill_9();
        let larder = Process::start(&upstream, &[&url]);
        assert_eq!(larder.get("/a", "").hit(), Some("durable"), "what was stored afterwards");
    }
}

#[test]
fn a_response_under_way_is_covered_by_its_groups_invalidation() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |seen, reply| {
            if seen.method() == "GET" {
                gate.wait();
            }
            reply.send(200, &grouped(seen), "x");
        }
    });
    let larder = Larder::new(&origin, "");
    let mut client = larder.client();
    client.ask("GET", "/a", "");
    origin.requests.wait_for(1);
    larder.client().send("POST", "/all", "Content-Length: 0");
    gate.open();
    client.answer();
    assert!(!larder.get("/a", "").is_hit());
}

#[test]
fn nobody_joins_what_its_group_was_invalidated_under() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |seen, reply| match (seen.method(), seen.head.get("x-new")) {
            ("GET", None) => {
                reply.begin("Cache-Control: max-age=60\nCache-Groups: \"g\"");
                reply.chunk("old");
                gate.wait();
                reply.end();
            }
            ("GET", Some(_)) => reply.send(200, "Cache-Control: max-age=60", "new"),
            _ => reply.send(204, "Cache-Group-Invalidation: \"g\"", ""),
        }
    });
    let larder = Larder::new(&origin, "");
    let mut first = larder.client();
    first.ask("GET", "/a", "");
    first.head().expect("a head");
    assert_eq!(larder.client().send("POST", "/b", "Content-Length: 0").status(), 204);
    assert_eq!(larder.get("/a", "X-New: 1").text(), "new");
    gate.open();
}

#[test]
fn a_posts_response_of_before_its_groups_invalidation_is_not_stored() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |seen, reply| match (seen.method(), seen.path()) {
            ("POST", "/a") => {
                gate.wait();
                reply.send(200, "Cache-Control: max-age=60\nContent-Location: /a\nCache-Groups: \"g\"", "old");
            }
            ("POST", _) => reply.send(204, "Cache-Group-Invalidation: \"g\"", ""),
            _ => reply.send(200, "Cache-Control: max-age=60", "new"),
        }
    });
    let larder = Larder::new(&origin, "");
    let mut client = larder.client();
    client.ask("POST", "/a", "Content-Length: 0");
    origin.requests.wait_for(1);
    larder.client().send("POST", "/b", "Content-Length: 0");
    gate.open();
    assert_eq!(client.answer().text(), "old");
    assert_eq!(larder.get("/a", "").text(), "new");
}
