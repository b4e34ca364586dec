//! Tests peers: nodes that fetch for each other, what they may share, and what happens when one of them fails.

use std::net::TcpListener;
use std::sync::Arc;

use larder::base::Clock;

use crate::support::{Answer, Client, Gate, Larder, Origin, Process, START, eventually, metric};

/// What the nodes of a test have in common.
const TOKEN: &str = "peers.token=a-secret-of-all-nodes";

/// Returns `n` addresses that nobody listens on.
fn free_addresses(n: usize) -> Vec<String> {
    let held: Vec<TcpListener> = (0..n).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
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
        let named = named(self.nodes[0].admin, path);
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
    let told = Client::connect(admin).get(&format!("/explain?url=http://site.example{path}"), "");
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
