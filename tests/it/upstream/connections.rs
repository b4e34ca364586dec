//! Tests the connections to the origin: kept and used again, and given up when they are gone.

use std::sync::Arc;

use crate::support::{Gate, Larder, Origin, at_once};

#[test]
fn connections_to_the_origin_are_used_again() {
    let origin = Origin::answers(vec![(200, "Cache-Control: no-store", "x")]);
    let larder = Larder::new(&origin, "server.threads=1");
    let mut client = larder.client();
    for _ in 0..20 {
        client.get("/a", "");
    }
    assert_eq!((origin.count(), origin.connections.value()), (20, 1));
}

#[test]
fn a_kept_connection_that_has_gone_is_no_error() {
    let origin = Origin::new(|seen, reply| {
        reply.send(200, "Cache-Control: no-store", seen.method());
        // It was kept, and is gone when it is wanted again.
        reply.hang_up();
    });
    let larder = Larder::new(&origin, "server.threads=1");
    let mut client = larder.client();
    for _ in 0..20 {
        assert_eq!(client.get("/a", "").text(), "GET");
    }
    // What is sent again was not answered before; a GET may have been received twice.
    assert!(origin.count() >= 20);
}

#[test]
fn a_post_that_may_have_been_received_is_not_repeated() {
    let origin = Origin::new(|seen, reply| match seen.method() {
        "GET" => reply.send(200, "Cache-Control: no-store", "x"),
        _ => reply.hang_up(),
    });
    let larder = Larder::new(&origin, "server.threads=1");
    let mut client = larder.client();
    client.get("/a", "");
    client.raw("POST /a HTTP/1.1\r\nHost: site.example\r\nContent-Length: 3\r\n\r\nabc");
    let answer = client.answer();
    assert_eq!((answer.status(), answer.cache_status()), (502, "larder; fwd=method; detail=origin-broken"));
    assert_eq!(origin.seen().iter().filter(|seen| seen.method() == "POST").count(), 1);
}

#[test]
fn a_request_that_breaks_connections_goes_through_one_kept_one_at_most() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |seen, reply| match seen.path() {
            "/die" => reply.hang_up(),
            _ => {
                gate.wait();
                reply.send(200, "Cache-Control: no-store", "x");
            }
        }
    });
    let larder = Arc::new(Larder::new(&origin, "server.threads=1"));
    // Ten connections to the origin, all idle afterwards.
    let clients = {
        let larder = Arc::clone(&larder);
        std::thread::spawn(move || at_once(10, move |n| drop(larder.get(&format!("/{n}"), ""))))
    };
    origin.requests.wait_for(10);
    gate.open();
    clients.join().expect("no panic");
    assert_eq!(larder.get("/die", "").status(), 502);
    assert!(origin.seen().iter().filter(|seen| seen.path() == "/die").count() <= 2);
}

#[test]
fn no_connection_need_be_kept() {
    let origin = Origin::answers(vec![(200, "", "x")]);
    let larder = Larder::new(&origin, "upstream.max_idle=0");
    for _ in 0..3 {
        assert_eq!(larder.get("/a", "").text(), "x");
    }
}
