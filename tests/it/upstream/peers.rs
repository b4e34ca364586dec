//! Tests peers: nodes that fetch for each other, what they may share, and what happens when one of them fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use larder::base::Clock;
use larder::downstream::Listen;

use crate::support::{
    Answer, Authority, Client, Gate, Larder, Origin, Pair, Place, Process, Reply, START, Seen, at_once, eventually,
    file_url, free_port, metric,
};

/// The nodes of a test, and what they have in common.
const TOKEN: &str = "peers.token=a-secret-of-all-nodes";

/// Returns `n` addresses that nobody listens on.
fn free_addresses(n: usize) -> Vec<String> {
    (0..n).map(|_| format!("127.0.0.1:{}", free_port())).collect()
}

/// Returns the value of `peers.list` with these addresses.
fn list_of(addresses: &[String]) -> String {
    let quoted: Vec<String> = addresses.iter().map(|address| format!("\"http://{address}\"")).collect();
    format!("peers.list=[{}]", quoted.join(", "))
}

/// Nodes in this process, which know each other.
struct Nodes {
    addresses: Vec<String>,
    nodes: Vec<Arc<Larder>>,
}

impl Nodes {
    fn start(origin: &Origin, n: usize, config: &str) -> Self {
        let addresses = free_addresses(n);
        let clock = Clock::manual(START);
        let node = |address: &String| {
            let list = list_of(&addresses);
            let sets =
                format!("peers.listen={address}\n{list}\n{TOKEN}\npeers.interval=100ms\nserver.threads=1\n{config}");
            Arc::new(Larder::at(&origin.url(), &sets, clock.clone()))
        };
        let nodes: Vec<_> = addresses.iter().map(node).collect();
        let this = Self { addresses, nodes };
        this.wait_until_all_know_each_other();
        this
    }

    fn wait_until_all_know_each_other(&self) {
        for node in &self.nodes {
            wait_for_peers(node.admin, &self.addresses, 1);
        }
    }

    /// Returns the node whose share has the path, and the others.
    fn named(&self, path: &str) -> (usize, Vec<usize>) {
        self.named_for(&format!("http://site.example{path}"))
    }

    fn named_for(&self, url: &str) -> (usize, Vec<usize>) {
        let named = named_for(self.nodes[0].admin, url);
        let at = self.addresses.iter().position(|address| named.ends_with(address)).expect("one of the nodes");
        (at, (0..self.nodes.len()).filter(|other| *other != at).collect())
    }
}

/// Waits until the node counts these as up (1) or down (0).
fn wait_for_peers(admin: std::net::SocketAddr, addresses: &[String], up: u64) {
    for address in addresses {
        let line = format!("larder_peer_up{{address=\"http://{address}\"}} ");
        eventually(&format!("{address} is up: {up}"), || metric(admin, &line) == up);
    }
}

/// Returns the address of the node whose share has the path, as the node with this admin listener says.
fn named(admin: std::net::SocketAddr, path: &str) -> String {
    named_for(admin, &format!("http://site.example{path}"))
}

fn named_for(admin: std::net::SocketAddr, url: &str) -> String {
    let told = Client::connect(admin).get(&format!("/explain?url={url}"), "");
    let told: serde_json::Value = serde_json::from_slice(&told.body).expect("JSON");
    told["peer"]["address"].as_str().expect("an address").to_owned()
}

fn asked(node: &Larder, outcome: &str) -> u64 {
    node.metric(&format!("larder_peer_requests_total{{outcome=\"{outcome}\"}} "))
}

#[test]
fn ten_nodes_with_a_hundred_clients_each_of_a_cold_url_are_one_request() {
    let (origin, gate) = Origin::gated();
    let nodes = Nodes::start(&origin, 10, "");
    let crowds: Vec<_> = nodes.nodes.iter().map(|node| node.crowd(100, "/slow")).collect();
    for node in &nodes.nodes {
        node.wait_for_waiting(100);
    }
    let (named, others) = nodes.named("/slow");
    nodes.nodes[named].wait_for_waiting(109);
    gate.open();
    for crowd in crowds {
        for answer in crowd.join().expect("no panic") {
            assert_eq!((answer.status(), answer.text().as_str()), (200, "/slow"));
            assert_eq!(answer.get("age"), Some("0"));
            assert!(answer.head.fields.iter().all(|(name, _)| !name.starts_with("larder-peer")), "{:?}", answer.head);
            assert!(!nodes.addresses.iter().any(|address| format!("{:?}", answer.head).contains(address)));
        }
    }
    assert_eq!(origin.count(), 1);
    for other in others {
        assert_eq!(asked(&nodes.nodes[other], "shared"), 1, "one question for all of its clients");
        assert_eq!(nodes.nodes[other].get("/slow", "").hit(), Some("memory"), "it keeps what it got");
    }
    assert_eq!(origin.count(), 1);
}

/// Nodes that are processes of their own.
struct Processes {
    addresses: Vec<String>,
    nodes: Vec<Process>,
}

impl Processes {
    fn start(upstream: &str, n: usize, more: &[&str]) -> Self {
        let addresses = free_addresses(n);
        let list = list_of(&addresses);
        let node = |address: &String| {
            let listen = format!("peers.listen={address}");
            let mut sets = vec![&*listen, &*list, TOKEN, "peers.interval=100ms", "durable.url=off"];
            sets.extend(more);
            Process::start(upstream, &sets)
        };
        let nodes: Vec<_> = addresses.iter().map(node).collect();
        for node in &nodes {
            wait_for_peers(node.admin, &addresses, 1);
        }
        Self { addresses, nodes }
    }

    /// Takes out the node whose share has the path.
    fn take_named(&mut self, path: &str) -> (String, Process) {
        let named = named(self.nodes[0].admin, path);
        let at = self.addresses.iter().position(|address| named.ends_with(address)).expect("one of the nodes");
        (self.addresses.remove(at), self.nodes.remove(at))
    }
}

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

/// Returns a path in the share of the node with this address.
fn path_of(admin: std::net::SocketAddr, address: &str) -> &'static str {
    (0..10_000).map(|n| format!("/of/{n}")).find(|path| named(admin, path).ends_with(address)).expect("some").leak()
}

#[test]
fn nodes_with_other_tokens_neither_ask_nor_answer_each_other() {
    let origin = Origin::cacheable();
    let addresses = free_addresses(2);
    let list = list_of(&addresses);
    let node = |n: usize, token: &str| {
        Larder::new(
            &origin,
            &format!("peers.listen={}\n{list}\npeers.interval=100ms\npeers.token={token}", addresses[n]),
        )
    };
    let (one, other) = (node(0, "a-secret-of-one-node"), node(1, "a-secret-of-another"));
    for (this, own, strange) in [(&one, 0, 1), (&other, 1, 0)] {
        wait_for_peers(this.admin, &addresses[own..=own], 1);
        wait_for_peers(this.admin, &addresses[strange..=strange], 0);
        eventually("it is refused", || this.metric("larder_peer_answers_total{answer=\"refused\"} ") > 0);
        for n in 0..8 {
            assert_eq!(this.get(&format!("/{n}"), "").fwd(), Some("uri-miss"));
        }
        assert_eq!(asked(this, "shared"), 0);
    }
    assert_eq!(origin.count(), 16);
}

#[test]
fn a_client_reaches_nothing_on_the_listener_of_the_peers_and_is_no_peer_elsewhere() {
    let origin = Origin::new(|seen, reply| {
        let told = "Cache-Control: max-age=60\nlarder-peer-verdict: own\nlarder-peer-tags: x";
        reply.send(200, told, &format!("{:?}", seen.head));
    });
    let nodes = Nodes::start(&origin, 2, "");
    for address in &nodes.addresses {
        for fields in ["", "larder-peer-credential: 0", "larder-peer-hello: 1\nlarder-peer-proof: 2"] {
            let answer = Client::connect(address.parse().unwrap()).get("/private", fields);
            assert_eq!((answer.status(), answer.text().as_str()), (403, ""), "{fields}");
        }
    }
    assert_eq!(origin.count(), 0, "nothing of that reached the origin");
    let (named, others) = nodes.named("/a");
    let claims = "larder-peer-credential: 1\nlarder-peer-subject: admin\nlarder-peer-known: ff\nlarder-peer-hello: 1";
    let answer = nodes.nodes[others[0]].get("/a", claims);
    assert_eq!(asked(&nodes.nodes[others[0]], "shared"), 1);
    assert!(!answer.text().contains("larder-peer"), "a peer takes no client's word: {}", answer.text());
    assert_eq!(
        nodes.nodes[named].get("/a", "").hit(),
        Some("memory"),
        "what the origin says by these names is nothing"
    );
}

#[test]
fn nodes_of_which_each_takes_the_next_for_the_named_one_answer_all() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |seen, reply| {
            gate.wait();
            reply.send(200, "Cache-Control: max-age=600", seen.path());
        }
    });
    let addresses = free_addresses(3);
    let clock = Clock::manual(START);
    // Each knows itself and the next, which it calls by another name than that does itself: no two score alike.
    let next = |n: usize| addresses[(n + 1) % 3].replace("127.0.0.1", "localhost");
    let nodes: Vec<_> = (0..3)
        .map(|n| {
            let list = list_of(&[addresses[n].clone(), next(n)]);
            let sets = format!("peers.listen={}\n{list}\n{TOKEN}\npeers.interval=100ms", addresses[n]);
            Larder::at(&origin.url(), &sets, clock.clone())
        })
        .collect();
    for (n, node) in nodes.iter().enumerate() {
        wait_for_peers(node.admin, &[addresses[n].clone(), next(n)], 1);
    }
    let goes_round = |path: &String| (0..3).all(|n| named(nodes[n].admin, path).ends_with(&next(n)));
    let path: &'static str = (0..10_000).map(|n| format!("/{n}")).find(goes_round).expect("one in eight").leak();
    let crowds: Vec<_> = nodes.iter().map(|node| node.crowd(20, path)).collect();
    // Twenty clients each, which wait for the next node, and the one that asks on behalf of those of the last.
    for node in &nodes {
        node.wait_for_waiting(21);
    }
    gate.open();
    for crowd in crowds {
        assert!(crowd.join().expect("no panic").iter().all(|answer| answer.text() == path));
    }
    assert_eq!(origin.count(), 3, "each asks for the one before");
}

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
fn what_one_client_alone_may_have_reaches_no_other() {
    let next = AtomicUsize::new(0);
    let origin = Origin::new(move |seen, reply| {
        let n = next.fetch_add(1, Ordering::SeqCst);
        let fields = match seen.path() {
            "/private" => "Cache-Control: private, max-age=60".to_owned(),
            "/no-store" => "Cache-Control: no-store".to_owned(),
            "/cookie" => format!("Cache-Control: max-age=60\nSet-Cookie: id={n}"),
            _ => "Cache-Control: max-age=60\nVary: *".to_owned(),
        };
        reply.send(200, &fields, &n.to_string());
    });
    let nodes = Nodes::start(&origin, 4, "");
    for path in ["/private", "/no-store", "/cookie", "/any"] {
        let crowds: Vec<_> = nodes.nodes.iter().map(|node| node.crowd(10, path)).collect();
        let mut seen: Vec<String> = Vec::new();
        for answer in crowds.into_iter().flat_map(|crowd| crowd.join().expect("no panic")) {
            assert!(!seen.contains(&answer.text()), "{path}: {} twice", answer.text());
            if path == "/cookie" {
                assert_eq!(answer.get("set-cookie"), Some(&*format!("id={}", answer.text())));
            }
            seen.push(answer.text());
        }
        for node in &nodes.nodes {
            let answer = node.get(path, "");
            assert!(!answer.is_hit() && !seen.contains(&answer.text()), "{path}: {:?}", answer.head);
            seen.push(answer.text());
        }
    }
    // Nobody asks a peer for what was not storable of late.
    let before: u64 = nodes.nodes.iter().map(|node| asked(node, "own") + asked(node, "declined")).sum();
    nodes.nodes.iter().for_each(|node| drop(node.get("/private", "")));
    let after: u64 = nodes.nodes.iter().map(|node| asked(node, "own") + asked(node, "declined")).sum();
    assert_eq!(before, after);
}

#[test]
fn variants_are_told_apart_by_what_each_client_sends() {
    let origin = Origin::new(|seen, reply| {
        let language = seen.head.get("accept-language").unwrap_or("-").to_owned();
        reply.send(200, "Cache-Control: max-age=60\nVary: Accept-Language", &language);
    });
    let nodes = Nodes::start(&origin, 3, "");
    for _ in 0..2 {
        for language in ["de", "fr", "en"] {
            for node in &nodes.nodes {
                assert_eq!(node.get("/page", &format!("Accept-Language: {language}")).text(), language);
            }
        }
    }
    assert_eq!(origin.count(), 3);
    // At once, and by all.
    let waiting = nodes.nodes.clone();
    let answers = at_once(60, move |n| {
        let language = ["it", "es", "pt"][n % 3];
        (language, waiting[n / 3 % 3].get("/other", &format!("Accept-Language: {language}")).text())
    });
    assert!(answers.iter().all(|(language, text)| language == text), "{answers:?}");
}

#[test]
fn the_origin_is_told_of_the_client_and_the_key_is_the_same_on_every_node() {
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=60", "page"));
    let nodes = Nodes::start(&origin, 2, "server.trusted_proxies=127.0.0.1");
    let (named, others) = nodes.named_for("https://shop.example/page");
    let (named, asking) = (&nodes.nodes[named], &nodes.nodes[others[0]]);
    let fields = "X-Forwarded-For: 192.0.2.7\nX-Forwarded-Proto: https\nX-Forwarded-Host: shop.example\nCookie: a=b";
    let answer = asking.get("/page", fields);
    assert_eq!(answer.status(), 200);
    let seen = origin.last();
    for field in [
        "X-Forwarded-For: 192.0.2.7, 127.0.0.1",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: shop.example",
        "Host: shop.example",
        "Cookie: a=b",
    ] {
        assert!(seen.has(field), "{field} in {:?}", seen.head);
    }
    assert!(named.get("/page", fields).is_hit());
    assert!(!named.get("/page", "").is_hit(), "another host, another page");
    assert_eq!(origin.count(), 2);
}

#[test]
fn a_large_body_passes_as_it_comes_and_breaks_off_with_the_one_who_sends_it() {
    let (rest, gate) = (Gate::default(), Gate::default());
    let origin = Origin::new({
        let (rest, gate) = (rest.clone(), gate.clone());
        move |seen, reply| {
            reply.begin("Cache-Control: max-age=60");
            reply.chunk("first");
            rest.wait();
            let piece = "x".repeat(1 << 20);
            for _ in 0..64 {
                reply.chunk(&piece);
            }
            if seen.path() == "/broken" {
                return reply.hang_up();
            }
            gate.wait();
            reply.end();
        }
    });
    let nodes = Nodes::start(&origin, 2, "memory.max_object_size=1MiB");
    for path in ["/whole", "/broken"] {
        let (_, others) = nodes.named(path);
        let mut client = nodes.nodes[others[0]].client();
        client.ask("GET", path, "");
        assert_eq!(client.head().expect("a head").line, "HTTP/1.1 200 OK");
        assert_eq!(client.chunk().as_deref(), Some("first"), "before the rest is sent");
        rest.open();
        gate.open();
        let mut len = 0;
        let end = loop {
            match client.chunk() {
                Some(chunk) if chunk.is_empty() => break true,
                Some(chunk) => len += chunk.len(),
                None => break false,
            }
        };
        assert_eq!(end, path == "/whole", "{path}");
        assert!(len == 64 << 20 || !end, "{len}");
    }
    assert_eq!(origin.count(), 2);
}

#[test]
fn a_client_that_leaves_takes_nothing_from_those_who_wait() {
    let (origin, gate) = Origin::gated();
    let nodes = Nodes::start(&origin, 2, "");
    let (_, others) = nodes.named("/slow");
    let asking = &nodes.nodes[others[0]];
    let mut first = asking.client();
    first.ask("GET", "/slow", "");
    origin.requests.wait_for(1);
    let others = asking.crowd(5, "/slow");
    asking.wait_for_waiting(6);
    drop(first);
    gate.open();
    assert!(others.join().expect("no panic").iter().all(|answer| answer.text() == "/slow"));
    assert_eq!(origin.count(), 1);
}

#[test]
fn only_what_clients_share_goes_through_peers() {
    let origin = Origin::new(|seen, reply| match seen.head.get("range") {
        Some(_) => reply.send(206, "Content-Range: bytes 0-0/10\nCache-Control: max-age=60", "0"),
        None => reply.send(200, "Cache-Control: max-age=60\nETag: \"a\"", "0123456789"),
    });
    let nodes = Nodes::start(&origin, 2, "");
    let (_, others) = nodes.named("/page");
    let asking = &nodes.nodes[others[0]];
    let send = |method: &str, fields: &str| asking.client().send(method, "/page", fields).status();
    assert_eq!(send("POST", "Content-Length: 0"), 200);
    assert_eq!(send("OPTIONS", ""), 200);
    assert_eq!(send("HEAD", ""), 200);
    assert_eq!(send("GET", "Range: bytes=0-0"), 206);
    assert_eq!(send("GET", "Cache-Control: only-if-cached"), 504);
    assert_eq!(send("GET", "Cache-Control: no-store"), 200);
    assert_eq!(send("GET", "If-Match: \"a\""), 200);
    for outcome in ["shared", "own", "declined", "failed", "silent", "strange", "purged"] {
        assert_eq!(asked(asking, outcome), 0, "{outcome}");
    }
    assert_eq!(send("GET", "If-None-Match: \"a\""), 304);
    assert_eq!(asked(asking, "shared"), 1);
}

#[test]
fn a_page_has_its_age_and_is_stale_everywhere_at_once() {
    let version = Arc::new(AtomicUsize::new(1));
    let origin = Origin::new({
        let version = Arc::clone(&version);
        move |seen, reply| {
            let version = version.load(Ordering::SeqCst).to_string();
            let fields = format!("Cache-Control: max-age=60, stale-while-revalidate=0\nETag: \"{version}\"");
            if seen.head.get("if-none-match") == Some(&*format!("\"{version}\"")) {
                return reply
                    .raw(format!("HTTP/1.1 304 X\r\nETag: \"{version}\"\r\nCache-Control: max-age=60\r\n\r\n"));
            }
            reply.send(200, &fields, &version);
        }
    });
    let nodes = Nodes::start(&origin, 3, "");
    let (named, others) = nodes.named("/page");
    let (named, one, other) = (&nodes.nodes[named], &nodes.nodes[others[0]], &nodes.nodes[others[1]]);
    assert_eq!(named.get("/page", "").text(), "1");
    named.advance(40);
    let answer = one.get("/page", "");
    assert_eq!((answer.get("age"), answer.fwd()), (Some("40"), Some("uri-miss")));
    assert!(answer.cache_status().contains("stored; ttl=20; detail=peer"), "{}", answer.cache_status());
    named.advance(10);
    assert_eq!(one.get("/page", "").get("age"), Some("50"));
    named.advance(20);
    // Stale on all: one validation for all of them.
    for node in [one, named, other] {
        let answer = node.get("/page", "");
        assert_eq!((answer.text().as_str(), answer.get("age")), ("1", Some("0")), "{:?}", answer.head);
    }
    assert_eq!(origin.count(), 2);
    version.fetch_add(1, Ordering::SeqCst);
    named.advance(70);
    for node in [other, one, named] {
        assert_eq!(node.get("/page", "").text(), "2");
    }
    assert_eq!(origin.count(), 3);
}

#[test]
fn a_node_without_its_own_address_in_the_list_finds_that_out() {
    let origin = Origin::cacheable();
    let addresses = free_addresses(2);
    let list = list_of(&addresses[1..]);
    let node = Larder::new(&origin, &format!("peers.listen={}\n{list}\n{TOKEN}\npeers.interval=100ms", addresses[0]));
    wait_for_peers(node.admin, &addresses[1..], 0);
    assert_eq!(node.metric(&format!("larder_peer_own{{address=\"http://{}\"}} ", addresses[1])), 0);
    assert_eq!(node.get("/a", "").status(), 200, "nobody answers there, so it asks by itself");
    assert_eq!(Client::connect(node.admin).get("/readyz", "").status(), 200);
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
fn nodes_speak_tls_with_each_other() {
    let authority = Authority::new();
    let pair = authority.write("peers", &authority.server(&["larder.internal"]));
    let (origin, gate) = Origin::gated();
    let clock = Clock::manual(START);
    let addresses = free_addresses(2);
    let list = list_of(&addresses).replace("http:", "https:");
    let node = |address: &String, ca: &str| {
        let sets = format!(
            "peers.listen=https://{address}\n{list}\n{TOKEN}\npeers.interval=100ms\npeers.ca_file={ca}\n\
             peers.server_name=larder.internal\ntls.certificate=[{pair}]"
        );
        Larder::at(&origin.url(), &sets, clock.clone())
    };
    let nodes: Vec<_> = addresses.iter().map(|address| node(address, &authority.file().to_string_lossy())).collect();
    let wait_for = |admin, up| {
        for address in &addresses {
            let line = format!("larder_peer_up{{address=\"https://{address}\"}} ");
            eventually(&format!("it is up: {up}"), || metric(admin, &line) == up);
        }
    };
    nodes.iter().map(|node| node.admin).for_each(|admin| wait_for(admin, 1));
    let crowds: Vec<_> = nodes.iter().map(|node| node.crowd(10, "/slow")).collect();
    for node in &nodes {
        node.wait_for_waiting(10);
    }
    gate.open();
    assert!(crowds.into_iter().flat_map(|crowd| crowd.join().unwrap()).all(|answer| answer.text() == "/slow"));
    assert_eq!(origin.count(), 1);
    // Whoever believes another authority asks nobody.
    let address = nodes[0].running().peers_address().and_then(Listen::tcp).expect("TLS").to_owned();
    drop(nodes);
    let other = Authority::new();
    let node = node(&address, &other.file().to_string_lossy());
    wait_for(node.admin, 0);
}

#[test]
fn a_node_finds_itself_by_a_name() {
    let origin = Origin::cacheable();
    let address = free_addresses(1).remove(0);
    let name = address.replace("127.0.0.1", "localhost");
    let sets = format!("peers.listen={address}\npeers.name={name}\n{TOKEN}\npeers.interval=100ms");
    let node = Larder::new(&origin, &sets);
    let line = format!("larder_peer_own{{address=\"http://{address}\"}} 1\n");
    eventually("it has found itself", || Client::connect(node.admin).get("/metrics", "").text().contains(&line));
    assert_eq!(node.get("/a", "").fwd(), Some("uri-miss"));
    assert_eq!(asked(&node, "shared"), 0, "it asks the origin, and nobody in between");
}

#[test]
fn the_time_for_which_the_origin_was_waited_for_counts_once() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |_, reply| {
            gate.wait();
            reply.send(200, "Cache-Control: max-age=600", "page");
        }
    });
    let nodes = Nodes::start(&origin, 2, "");
    let (named, others) = nodes.named("/page");
    let asking = &nodes.nodes[others[0]];
    let waiting = asking.crowd(1, "/page");
    origin.requests.wait_for(1);
    asking.advance(10);
    gate.open();
    let age = waiting.join().unwrap()[0].get("age").map(str::to_owned);
    assert_eq!(age, nodes.nodes[named].get("/page", "").get("age").map(str::to_owned));
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

/// A peer that greets as one does, by passing each greeting on to a node, and answers each question by a script.
struct Impostor {
    /// The listener that the other node knows.
    listener: Origin,
    /// The node that is greeted in its place.
    _node: Larder,
    asking: Larder,
}

impl Impostor {
    fn new(origin: &Origin, config: &str, script: impl Fn(&Seen, &mut Reply) + Send + Sync + 'static) -> Self {
        let addresses = free_addresses(2);
        let greeted = addresses[1].parse().expect("an address");
        let listener = Origin::new(move |seen, reply| {
            let Some(number) = seen.head.get("larder-peer-hello") else { return script(seen, reply) };
            let proof = seen.head.get("larder-peer-proof").expect("a proof");
            let fields = format!("larder-peer-hello: {number}\nlarder-peer-proof: {proof}");
            let answer = Client::connect(greeted).get("/", &fields);
            let told =
                |name: &str| format!("larder-peer-{name}: {}", answer.get(&format!("larder-peer-{name}")).unwrap());
            reply.send(200, &["verdict", "id", "proof"].map(told).join("\n"), "");
        });
        let strange = listener.url().replace("http://", "");
        let node = |address: &String, list: &[String]| {
            let list = list_of(list);
            let sets = format!("peers.listen={address}\n{list}\n{TOKEN}\npeers.interval=100ms\n{config}");
            Larder::at(&origin.url(), &sets, Clock::manual(START))
        };
        let relayed = node(&addresses[1], &addresses[1..]);
        wait_for_peers(relayed.admin, &addresses[1..], 1);
        let asking = node(&addresses[0], &[addresses[0].clone(), strange.clone()]);
        wait_for_peers(asking.admin, &[addresses[0].clone(), strange], 1);
        Self { listener, _node: relayed, asking }
    }

    /// Returns paths in its share.
    fn paths(&self) -> impl Iterator<Item = String> {
        let strange = self.listener.url().replace("http://", "");
        (0..10_000).map(|n| format!("/{n}")).filter(move |path| named(self.asking.admin, path).ends_with(&strange))
    }
}

/// The fields of a shared answer, with no purge known.
const SHARED: &str =
    "larder-peer-verdict: shared\nlarder-peer-known: 00000000000000000000\nlarder-peer-tags:\nlarder-peer-held-for: 0";

#[test]
fn a_peer_that_only_ever_says_that_it_waits_costs_nobody_an_answer() {
    let origin = Origin::cacheable();
    let config = "upstream.connect_timeout=500ms\nupstream.response_timeout=500ms\npeers.timeout=5s";
    let impostor = Impostor::new(&origin, config, |_, reply| {
        while reply.try_raw("HTTP/1.1 102 X\r\nlarder-peer-verdict: waits\r\n\r\n") {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let paths: Vec<String> = impostor.paths().take(2).collect();
    let asking = &impostor.asking;
    assert_eq!(asking.get(&paths[0], "").status(), 200, "the origin is asked");
    assert_eq!(asked(asking, "silent"), 1);
    // It answers greetings all the while.
    let greetings = impostor.listener.requests.value();
    impostor.listener.requests.wait_for(greetings + 2);
    assert_eq!(asking.get(&paths[1], "").status(), 200);
    assert_eq!(asked(asking, "silent"), 1, "it is not asked again soon");
    assert_eq!(origin.count(), 2);
}

#[test]
fn an_application_that_is_slow_for_a_peer_is_not_asked_once_more() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |_, reply| {
            gate.wait();
            reply.hang_up();
        }
    });
    let nodes =
        Nodes::start(&origin, 2, "peers.timeout=10s\nupstream.response_timeout=1s\nupstream.connect_timeout=20s");
    let (_, others) = nodes.named("/slow");
    assert_eq!(nodes.nodes[others[0]].get("/slow", "").status(), 504);
    assert_eq!(origin.count(), 1);
    gate.open();
}

#[test]
fn a_peer_ends_its_wait_when_the_asking_node_would() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |_, reply| {
            gate.wait();
            reply.hang_up();
        }
    });
    let addresses = free_addresses(2);
    let list = list_of(&addresses);
    let node = |address: &String, more: &str| {
        let sets = format!("peers.listen={address}\n{list}\n{TOKEN}\npeers.interval=100ms\npeers.timeout=10s\n{more}");
        Larder::at(&origin.url(), &sets, Clock::manual(START))
    };
    // The one that is asked would wait for longer.
    let (short, long) =
        (node(&addresses[0], "upstream.response_timeout=1s\nupstream.connect_timeout=1s"), node(&addresses[1], ""));
    for admin in [short.admin, long.admin] {
        wait_for_peers(admin, &addresses, 1);
    }
    let path = path_of(short.admin, &addresses[1]);
    assert_eq!(short.get(path, "").status(), 504);
    assert_eq!((origin.count(), asked(&short, "declined"), asked(&short, "silent")), (1, 1, 0));
    wait_for_peers(short.admin, &addresses, 1);
    gate.open();
}

#[test]
fn an_answer_of_a_peer_that_answers_another_question_reaches_no_client() {
    let origin = Origin::cacheable();
    let answers: [(&str, String); 10] = [
        ("304", format!("HTTP/1.1 304 X\n{SHARED}\n\n")),
        ("304 of its own", "HTTP/1.1 304 X\nlarder-peer-verdict: own\n\n".into()),
        ("206", format!("HTTP/1.1 206 X\nContent-Range: bytes 0-0/9\nContent-Length: 1\n{SHARED}\n\nx")),
        (
            "206 of its own",
            "HTTP/1.1 206 X\nContent-Range: bytes 0-0/9\nContent-Length: 1\nlarder-peer-verdict: own\n\nx".into(),
        ),
        ("412", "HTTP/1.1 412 X\nContent-Length: 0\nlarder-peer-verdict: own\n\n".into()),
        ("416", "HTTP/1.1 416 X\nContent-Length: 0\nlarder-peer-verdict: own\n\n".into()),
        ("401 of something before it", "HTTP/1.1 401 X\nContent-Length: 0\n\n".into()),
        ("502 of something before it", "HTTP/1.1 502 X\nContent-Length: 0\n\n".into()),
        ("no end", format!("HTTP/1.1 200 X\nConnection: close\nCache-Control: max-age=60\n{SHARED}\n\nx")),
        ("half of what is told", "HTTP/1.1 200 X\nContent-Length: 1\nlarder-peer-verdict: shared\n\nx".into()),
    ];
    let next = Arc::new(AtomicUsize::new(0));
    let impostor = Impostor::new(&origin, "peers.timeout=10s", {
        let (next, answers) = (Arc::clone(&next), answers.clone());
        move |_, reply| {
            reply.raw(answers[next.load(Ordering::SeqCst)].1.replace('\n', "\r\n"));
            reply.hang_up();
        }
    });
    for ((n, (case, _)), path) in answers.iter().enumerate().zip(impostor.paths()) {
        next.store(n, Ordering::SeqCst);
        let answer = impostor.asking.get(&path, "");
        assert_eq!((answer.status(), answer.text()), (200, path.clone()), "{case}: {:?}", answer.head);
        assert_eq!(asked(&impostor.asking, "strange"), n as u64 + 1, "{case}");
    }
    assert_eq!(origin.count(), answers.len());
}

#[test]
fn nodes_that_tell_other_requests_apart_do_not_answer_for_each_other() {
    // The page is of the user, whom only some settings tell apart.
    let origin = Origin::new(|seen, reply| {
        let user = seen.head.get("x-user").unwrap_or("-").to_owned();
        reply.send(200, "Cache-Control: max-age=60\nX-Tag: news", &format!("{}{user}", seen.path()));
    });
    for (case, here, there) in [
        ("query", "", "rule=[{path=\"/*\", ignore_query=[\"user\"]}]"),
        (
            "fields",
            "server.trusted_proxies=127.0.0.1\nserver.trusted_fields=X-User",
            "server.trusted_proxies=127.0.0.1",
        ),
        ("prefix", "cache.key_prefix=a", "cache.key_prefix=b"),
        ("tags", "cache.tag_fields=X-Tag", ""),
    ] {
        let addresses = free_addresses(2);
        let list = list_of(&addresses);
        let node = |address: &String, more: &str| {
            let sets =
                format!("peers.listen={address}\n{list}\n{TOKEN}\npeers.interval=100ms\npeers.timeout=10s\n{more}");
            Larder::at(&origin.url(), &sets, Clock::manual(START))
        };
        let (here, there) = (node(&addresses[0], here), node(&addresses[1], there));
        for admin in [here.admin, there.admin] {
            wait_for_peers(admin, &addresses, 1);
        }
        let path = |user: &str| {
            let path = |n: u32| if case == "query" { format!("/{n}?user={user}") } else { format!("/{user}/{n}") };
            (0..10_000).map(path).find(|path| named(here.admin, path).ends_with(&addresses[1])).expect("some")
        };
        for user in ["alice", "bob"] {
            let (path, field) = (path(user), format!("X-User: {user}"));
            there.get(&path.replace("?user=alice", "?user=carol").replace("?user=bob", "?user=carol"), "X-User: carol");
            let expected = format!("{path}{user}");
            assert_eq!(here.get(&path, &field).text(), expected, "{case}");
            assert_eq!(here.get(&path, &field).text(), expected, "{case}");
        }
        assert_eq!((asked(&here, "shared"), asked(&here, "declined") > 0), (0, true), "{case}");
    }
}

#[test]
fn nodes_show_each_other_certificates_where_these_are_demanded() {
    let (authority, other) = (Authority::new(), Authority::called("another"));
    let origin = Origin::cacheable();
    let pair = authority.write("peers", &authority.server(&["larder.internal"]));
    let addresses = free_addresses(2);
    let list = list_of(&addresses).replace("http:", "https:");
    let node = |address: &String, client: Option<Pair>| {
        let mut sets = format!(
            "peers.listen=https://{address}\n{list}\n{TOKEN}\npeers.interval=100ms\npeers.ca_file={ca}\n\
             peers.server_name=larder.internal\ntls.certificate=[{pair}]\ntls.client_ca={ca}",
            ca = authority.file().display()
        );
        let shown = client.map_or_else(String::new, |client| {
            authority.write("client", &client);
            let file = |name: &str| authority.path(name).display().to_string();
            format!("\npeers.client_chain={}\npeers.client_key={}", file("client.pem"), file("client.key"))
        });
        sets.push_str(&shown);
        Larder::at(&origin.url(), &sets, Clock::manual(START))
    };
    let wait_for = |admin, address: &String, up| {
        let line = format!("larder_peer_up{{address=\"https://{address}\"}} ");
        eventually(&format!("it is up: {up}"), || {
            let told = Client::connect(admin).get("/metrics", "").text();
            told.contains(&format!("{line}{up}\n"))
        });
    };
    let right = node(&addresses[0], Some(authority.client("one")));
    wait_for(right.admin, &addresses[0], 1);
    for (case, client, up) in [
        ("right", Some(authority.client("two")), 1),
        ("none", None, 0),
        ("of another authority", Some(other.client("two")), 0),
        ("expired", Some(authority.expired(&["two"])), 0),
    ] {
        let node = node(&addresses[1], client);
        let refused = || {
            let reasons = ["no-client-certificate", "client-certificate"];
            let line = |reason| format!("larder_tls_handshake_failures_total{{reason=\"{reason}\"}} ");
            reasons.iter().map(|reason| right.metric(&line(reason))).sum::<u64>()
        };
        if up == 0 {
            let greetings = refused();
            eventually(&format!("{case}: its greetings are refused"), || refused() > greetings + 1);
        }
        // It knows the others, and itself, only if it shows a certificate that is believed.
        wait_for(node.admin, &addresses[0], up);
        wait_for(node.admin, &addresses[1], up);
        wait_for(right.admin, &addresses[1], 1);
        let before = right.metric("larder_peer_answers_total{answer=\"shared\"} ");
        for n in 0..8 {
            assert_eq!(node.get(&format!("/{case}/{n}").replace(' ', "-"), "").status(), 200, "{case}");
        }
        let answered = right.metric("larder_peer_answers_total{answer=\"shared\"} ") - before;
        assert!(up == 1 || answered == 0, "{case}: {answered}");
    }
}

#[test]
fn a_client_stays_at_its_address_whichever_node_asks() {
    let name = |name: &'static str| Origin::new(move |_, reply| reply.send(200, "Cache-Control: private", name));
    let (a, b, c) = (name("a"), name("b"), name("c"));
    let urls = [&a, &b, &c].map(Origin::url).join(", ");
    let addresses = free_addresses(2);
    let list = list_of(&addresses);
    let node = |address: &String| {
        let sets = format!(
            "peers.listen={address}\n{list}\n{TOKEN}\npeers.interval=100ms\npeers.timeout=10s\nupstream.slow_start=1ms\n\
             upstream.sticky_cookie=at\nupstream.sticky_key=a-long-secret-of-many"
        );
        Larder::at(&urls, &sets, Clock::manual(START))
    };
    let nodes: Vec<_> = addresses.iter().map(node).collect();
    for node in &nodes {
        wait_for_peers(node.admin, &addresses, 1);
    }
    for n in 0..20 {
        let first = nodes[n % 2].get(&format!("/{n}"), "");
        let cookie =
            first.get("set-cookie").and_then(|cookie| cookie.split(';').next()).expect("a new client gets one");
        for later in 0..5 {
            let path = format!("/{n}/{later}");
            let answer = nodes[later % 2].get(&path, &format!("Cookie: {cookie}"));
            assert_eq!((answer.text(), answer.get("set-cookie")), (first.text(), None), "{path}");
        }
    }
    assert!(nodes.iter().map(|node| asked(node, "own")).sum::<u64>() > 20, "most of it through a peer");
    let told =
        [&a, &b, &c].iter().flat_map(|origin| origin.seen()).any(|seen| format!("{:?}", seen.head).contains("at="));
    assert!(!told, "the application sees none of it");
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
