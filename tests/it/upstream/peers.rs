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

mod failing;
mod hostile;
mod purges;
mod sharing;
mod tls;

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

/// Returns a path in the share of the node with this address.
fn path_of(admin: std::net::SocketAddr, address: &str) -> &'static str {
    (0..10_000).map(|n| format!("/of/{n}")).find(|path| named(admin, path).ends_with(address)).expect("some").leak()
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
