//! Tests nodes that are killed or stopped while others ask them: processes of their own.

use super::*;

/// Has `n` clients of each node ask for `path` at once.
fn crowds(nodes: &[Process], n: usize, path: &'static str) -> Vec<std::thread::JoinHandle<Vec<Answer>>> {
    let ask = |node: &Process| {
        let address = node.address;
        std::thread::spawn(move || at_once(n, move |_| Client::connect(address).get(path, "")))
    };
    nodes.iter().map(ask).collect()
}

#[test]
fn a_named_node_that_is_killed_in_the_middle_costs_one_further_request() {
    let (first, gate) = (AtomicUsize::new(0), Gate::default());
    let origin = Origin::new({
        let gate = gate.clone();
        move |seen, reply| {
            // The first one is answered only when its node is gone.
            if first.fetch_add(1, Ordering::SeqCst) == 0 {
                gate.wait();
            }
            reply.send(200, "Cache-Control: max-age=600", seen.path());
        }
    });
    let mut processes = Processes::start(&origin.url(), 10, &["server.threads=1"]);
    let (_, named) = processes.take_named("/slow");
    let waiting = crowds(&processes.nodes, 20, "/slow");
    origin.requests.wait_for(1);
    for node in &processes.nodes {
        eventually("its clients wait", || {
            node.metric("larder_flights ") == 1 && node.metric("larder_connections ") == 20
        });
    }
    named.kill_9();
    for crowd in waiting {
        for answer in crowd.join().expect("no panic") {
            assert_eq!((answer.status(), answer.text().as_str()), (200, "/slow"));
        }
    }
    gate.open();
    assert_eq!(origin.count(), 2, "one of the node that died, and one of the next");
}

#[test]
fn a_node_that_hangs_is_skipped_and_one_that_waits_for_the_application_is_not() {
    let (origin, gate) = Origin::gated();
    let mut processes = Processes::start(&origin.url(), 3, &["peers.timeout=2s"]);
    let (address, hanging) = processes.take_named("/slow");
    let waiting = crowds(&processes.nodes, 5, "/slow");
    origin.requests.wait_for(1);
    // Longer than the timeout, so that whoever does not hear of it gives up.
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(origin.count(), 1, "the node that waits for the application says so");
    gate.open();
    for crowd in waiting {
        assert!(crowd.join().expect("no panic").iter().all(|answer| answer.status() == 200));
    }
    let path = path_of(processes.nodes[0].admin, &address);
    // So that no greeting finds it out before a request does.
    hanging.signal("-STOP");
    let answers = crowds(&processes.nodes, 5, path).into_iter().flat_map(|crowd| crowd.join().expect("no panic"));
    assert!(answers.map(|answer| answer.text()).all(|text| text == path));
    for node in &processes.nodes {
        eventually("it is down", || node.metric(&format!("larder_peer_up{{address=\"http://{address}\"}} ")) == 0);
    }
    assert!(origin.count() <= 3, "{}", origin.count());
    hanging.signal("-CONT");
    for node in &processes.nodes {
        wait_for_peers(node.admin, std::slice::from_ref(&address), 1);
    }
}

#[test]
fn no_page_goes_back_to_what_a_peer_has_of_it() {
    let version = Arc::new(AtomicUsize::new(1));
    let origin = Origin::new({
        let version = Arc::clone(&version);
        move |_, reply| {
            let version = version.load(Ordering::SeqCst);
            // The second one expires sooner.
            let fields = format!("Cache-Control: max-age={}", if version == 1 { 600 } else { 2 });
            reply.send(200, &fields, &version.to_string());
        }
    });
    let mut processes = Processes::start(&origin.url(), 2, &["peers.timeout=200ms"]);
    let (address, named) = processes.take_named("/page");
    let asking = &processes.nodes[0];
    assert_eq!(named.get("/page", "").text(), "1");
    version.fetch_add(1, Ordering::SeqCst);
    named.signal("-STOP");
    assert_eq!(asking.get("/page", "").text(), "2");
    named.signal("-CONT");
    wait_for_peers(asking.admin, &[address], 1);
    eventually("it expires", || {
        let answer = asking.get("/page", "");
        assert_eq!(answer.text(), "2", "and not 1, which the named node still has");
        answer.fwd() == Some("stale")
    });
    assert_eq!(named.get("/page", "").text(), "1");
}
