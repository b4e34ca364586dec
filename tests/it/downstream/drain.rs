//! Tests the stop: what is under way is finished, what is new is refused, and it ends at its deadline.

use crate::support::{Client, Gate, Origin, Process, eventually};

#[test]
fn sigterm_finishes_what_is_under_way_and_refuses_what_is_new() {
    for signal in ["-TERM", "-INT"] {
        let gate = Gate::default();
        let origin = Origin::new({
            let gate = gate.clone();
            move |_, reply| {
                reply.begin("Cache-Control: max-age=60");
                reply.chunk("half");
                gate.wait();
                reply.chunk("rest");
                reply.end();
            }
        });
        let mut larder = Process::start(&origin.url(), &["durable.url=off"]);
        let mut idle = larder.client();
        let mut busy = larder.client();
        busy.ask("GET", "/a", "");
        busy.head().expect("a head");
        assert_eq!(busy.chunk().as_deref(), Some("half"));
        larder.signal(signal);
        assert!(idle.is_closed(), "an idle connection is closed at once");
        eventually("new connections are refused", || std::net::TcpStream::connect(larder.address).is_err());
        gate.open();
        assert_eq!(busy.chunk().as_deref(), Some("rest"));
        assert_eq!(busy.chunk().as_deref(), Some(""));
        assert_eq!(larder.wait(), Some(0), "{}", larder.log());
    }
}

#[test]
fn a_drain_ends_at_its_deadline() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |_, _| gate.wait()
    });
    let mut larder = Process::start(&origin.url(), &["durable.url=off", "server.drain_timeout=100ms"]);
    let mut client = larder.client();
    client.ask("GET", "/a", "");
    origin.requests.wait_for(1);
    larder.signal("-TERM");
    assert_eq!(larder.wait(), Some(0));
    gate.open();
}

#[test]
fn a_follower_on_another_thread_is_served_to_the_end_of_the_drain() {
    for _ in 0..4 {
        let gate = Gate::default();
        let origin = Origin::new({
            let gate = gate.clone();
            move |_, reply| {
                reply.begin("Cache-Control: max-age=60");
                reply.chunk("half");
                gate.wait();
                reply.chunk("rest");
                reply.end();
            }
        });
        let mut larder = Process::start(&origin.url(), &["durable.url=off", "server.threads=4"]);
        let mut leader = larder.client();
        leader.ask("GET", "/a", "");
        leader.head().expect("a head");
        let mut followers: Vec<Client> = (0..4).map(|_| larder.client()).collect();
        for follower in &mut followers {
            follower.ask("GET", "/a", "");
            follower.head().expect("a head");
        }
        drop(leader);
        larder.signal("-TERM");
        eventually("new connections are refused", || std::net::TcpStream::connect(larder.address).is_err());
        gate.open();
        for follower in &mut followers {
            assert_eq!(follower.chunk().as_deref(), Some("half"));
            assert_eq!(follower.chunk().as_deref(), Some("rest"));
            assert_eq!(follower.chunk().as_deref(), Some(""));
        }
        drop(followers);
        assert_eq!(larder.wait(), Some(0));
    }
}
