//! Tests streams that never end: each listener has its own, and it ends with the listener.

use crate::support::{Gate, Larder, Origin};

#[test]
fn a_stream_gets_no_configured_lifetime_and_each_listener_has_its_own() {
    for kind in ["text/event-stream", "multipart/x-mixed-replace; boundary=x"] {
        for fields in ["", "Cache-Control: max-age=60\n"] {
            let fields = format!("{fields}Content-Type: {kind}");
            let origin = Origin::new(move |_, reply| {
                reply.begin(&fields);
                reply.chunk("first");
                reply.chunk("second");
                reply.end();
            });
            let larder =
                Larder::new(&origin, "cache.default_timeout=1h\nrule=[{path=\"/o\", override_timeout=\"1h\"}]");
            for path in ["/a", "/o"] {
                for _ in 0..3 {
                    assert_eq!(larder.get(path, "").hit(), None, "{kind} {path}");
                }
            }
            assert_eq!(origin.count(), 6, "{kind}");
        }
    }
}

#[test]
fn the_stream_of_one_listener_ends_with_it() {
    let gone = Gate::default();
    let noticed = gone.clone();
    let origin = Origin::new(move |_, reply| {
        reply.begin("Content-Type: text/event-stream");
        while reply.try_chunk("event") {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        noticed.open();
    });
    let larder = Larder::new(&origin, "cache.default_timeout=1h");
    let mut client = larder.client();
    client.ask("GET", "/a", "");
    assert!(client.head().is_some() && client.chunk().is_some());
    drop(client);
    gone.wait();
}
