//! Tests that peers undo no purge, and that a purge holds on all nodes.

use super::*;

/// Answers with its version, tagged, under a validator that `etag` makes of it, and takes every POST.
fn versions(version: &Arc<AtomicUsize>, etag: fn(usize) -> String) -> Origin {
    let version = Arc::clone(version);
    Origin::new(move |seen, reply| {
        if seen.method() == "POST" {
            return reply.send(204, "", "");
        }
        let version = version.load(Ordering::SeqCst);
        let etag = etag(version);
        let fields = format!("Cache-Control: max-age=600\nCache-Tag: news, sport\nETag: {etag}");
        if seen.has(&format!("if-none-match: {etag}")) {
            return reply.raw(format!("HTTP/1.1 304 X\r\n{}\r\n\r\n", fields.replace('\n', "\r\n")));
        }
        reply.send(200, &fields, &version.to_string());
    })
}

/// Invalidates a page on one node, in the way that `what` names.
fn invalidate(node: &Larder, what: &str, path: &str) {
    let url = format!("http://site.example{path}");
    let purge = match what {
        "url" => format!("{{\"url\": \"{url}\"}}"),
        "soft" => format!("{{\"url\": \"{url}\", \"soft\": true}}"),
        "prefix" => "{\"prefix\": \"http://site.example/page/\"}".into(),
        "tag" => "{\"tag\": \"news\"}".into(),
        "soft tag" => "{\"tag\": \"sport\", \"soft\": true}".into(),
        "all" => "{\"all\": true}".into(),
        _ => return assert_eq!(node.client().send("POST", path, "Content-Length: 0").status(), 204),
    };
    assert_eq!(node.purge_of(&purge).status(), 200, "{what}");
}

#[test]
fn no_purge_is_undone_by_a_node_that_has_not_heard_of_it() {
    // The nodes have no bucket in common, so none ever hears of another's purges.
    let version = Arc::new(AtomicUsize::new(1));
    let origin = versions(&version, |version| format!("\"{version}\""));
    let nodes = Nodes::start(&origin, 2, "");
    for what in ["url", "soft", "prefix", "tag", "soft tag", "all", "POST"] {
        let path = &*format!("/page/{}", what.replace(' ', "-")).leak();
        let (named, others) = nodes.named(path);
        let (named, asking) = (&nodes.nodes[named], &nodes.nodes[others[0]]);
        let before = version.load(Ordering::SeqCst).to_string();
        assert_eq!(asking.get(path, "").text(), before, "{what}");
        assert_eq!(named.get(path, "").hit(), Some("memory"), "{what}");
        version.fetch_add(1, Ordering::SeqCst);
        invalidate(asking, what, path);
        assert_eq!(named.get(path, "").text(), before, "{what}: this one has not heard of it");
        let (asked_before, after) = (origin.count(), version.load(Ordering::SeqCst).to_string());
        let answer = asking.get(path, "");
        assert_eq!(answer.text(), after, "{what}: {:?}", answer.head);
        assert_eq!(asking.get(path, "").text(), after, "{what}: and it stays");
        // The named node is told, and has fetched anew: for all.
        let answer = named.get(path, "");
        assert_eq!((answer.text(), answer.hit()), (after, Some("memory")), "{what}");
        assert_eq!(origin.count(), asked_before + 1, "{what}");
    }
}

#[test]
fn no_purge_is_undone_by_a_node_that_finds_its_old_page_to_be_current() {
    // The origin's validator says nothing of the body, as one by release or by the second.
    let version = Arc::new(AtomicUsize::new(1));
    let origin = versions(&version, |_| "\"release\"".into());
    let nodes = Nodes::start(&origin, 2, "");
    for what in ["url", "prefix", "tag", "all", "POST"] {
        for is_stale in [false, true] {
            let path = &*format!("/page/{what}/{is_stale}").leak();
            let (named, others) = nodes.named(path);
            let (named, asking) = (&nodes.nodes[named], &nodes.nodes[others[0]]);
            let before = version.load(Ordering::SeqCst).to_string();
            assert_eq!(asking.get(path, "").text(), before, "{what}");
            assert_eq!(named.get(path, "").hit(), Some("memory"), "{what}");
            let after = (version.fetch_add(1, Ordering::SeqCst) + 1).to_string();
            if is_stale {
                named.advance(700);
                asking.advance(700);
            }
            invalidate(asking, what, path);
            let directives = if is_stale { "" } else { "Cache-Control: no-cache" };
            assert_eq!(asking.get(path, directives).text(), after, "{what} {is_stale}");
            assert_eq!(asking.get(path, "").text(), after, "{what} {is_stale}: and it stays");
        }
    }
}

#[test]
fn a_purge_while_a_node_waits_for_another_covers_what_comes() {
    let gate = Gate::default();
    let version = Arc::new(AtomicUsize::new(1));
    let origin = Origin::new({
        let (gate, version) = (gate.clone(), Arc::clone(&version));
        move |_, reply| {
            let body = version.load(Ordering::SeqCst).to_string();
            gate.wait();
            reply.send(200, "Cache-Control: max-age=600", &body);
        }
    });
    let nodes = Nodes::start(&origin, 2, "");
    let (_, others) = nodes.named("/page");
    let asking = &nodes.nodes[others[0]];
    let early = asking.crowd(3, "/page");
    asking.wait_for_waiting(3);
    origin.requests.wait_for(1);
    version.fetch_add(1, Ordering::SeqCst);
    asking.purge("http://site.example/page");
    // Those who come after the purge ask anew. The named node lets them share the fetch from before, which is dropped.
    let late = asking.crowd(3, "/page");
    // Those from before it are counted no more.
    asking.wait_for_waiting(3);
    gate.open();
    early.join().expect("no panic");
    for answer in late.join().expect("no panic") {
        assert_eq!(answer.text(), "2", "{:?}", answer.head);
    }
    assert_eq!(asking.get("/page", "").text(), "2");
}

#[test]
fn of_a_bucket_the_named_node_takes_care_and_a_purge_is_one_request_of_all() {
    let version = Arc::new(AtomicUsize::new(1));
    let origin = Origin::new({
        let version = Arc::clone(&version);
        move |_, reply| reply.send(200, "Cache-Control: max-age=6000", &version.load(Ordering::SeqCst).to_string())
    });
    let place = Place::s3();
    let sets: Vec<&str> = place.sets.iter().map(String::as_str).collect();
    let mut processes = Processes::start(&origin.url(), 3, &sets);
    let (_, named) = processes.take_named("/page");
    let (named, one, other) = (&named, &processes.nodes[0], &processes.nodes[1]);
    let written = |node: &Process| {
        node.settle();
        node.metric("larder_durable_entries_total ")
    };
    for node in [one, other, named] {
        assert_eq!(node.get("/page", "").text(), "1");
    }
    assert_eq!((origin.count(), written(one), written(other), written(named)), (1, 0, 0, 1));
    version.fetch_add(1, Ordering::SeqCst);
    assert_eq!(one.purge("http://site.example/page").status(), 200);
    assert_eq!(one.get("/page", "").text(), "2");
    for node in [named, other] {
        eventually("it has heard of the purge", || node.get("/page", "").text() == "2");
    }
    assert_eq!(origin.count(), 2, "one after the purge, for all");
    assert_eq!((written(one) <= 1, written(other)), (true, 0), "a tombstone at most");
}

#[test]
fn a_node_whose_clock_is_ahead_does_not_undo_a_purge() {
    // Half an hour ahead, and with a directory of its own: it takes itself to know all purges until five minutes ago.
    let version = Arc::new(AtomicUsize::new(1));
    let origin = versions(&version, |version| format!("\"{version}\""));
    let addresses = free_addresses(2);
    let list = list_of(&addresses);
    let directories = [tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory")];
    let node = |n: usize, clock: Clock| {
        let sets = format!(
            "peers.listen={}\n{list}\n{TOKEN}\npeers.interval=100ms\npeers.timeout=10s\n{}",
            addresses[n],
            file_url(directories[n].path())
        );
        Larder::at(&origin.url(), &sets, clock)
    };
    let (here, ahead) = (node(0, Clock::manual(START)), node(1, Clock::manual(START)));
    ahead.advance(30 * 60);
    for admin in [here.admin, ahead.admin] {
        wait_for_peers(admin, &addresses, 1);
    }
    // Its journal is read by its clock now.
    let path = path_of(here.admin, &addresses[1]);
    assert_eq!(ahead.get(path, "").text(), "1");
    here.advance(10);
    ahead.advance(10);
    version.fetch_add(1, Ordering::SeqCst);
    assert_eq!(here.purge(&format!("http://site.example{path}")).status(), 200);
    assert_eq!(ahead.get(path, "").text(), "1", "it has not heard of it");
    assert_eq!(here.get(path, "").text(), "2");
}
