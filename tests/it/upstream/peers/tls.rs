//! Tests TLS between nodes.

use super::*;

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
