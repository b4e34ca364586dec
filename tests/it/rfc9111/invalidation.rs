//! Tests that unsafe requests invalidate what they may have changed (RFC 9111 §4.4).

use crate::support::{Gate, Larder, Origin, eventually};

#[test]
fn unsafe_methods_invalidate_what_they_changed() {
    let origin = Origin::new(|seen, reply| match seen.method() {
        "GET" => reply.send(200, "Cache-Control: max-age=60", "page"),
        "POST" if seen.path() == "/fails" => reply.send(500, "", ""),
        "POST" => reply.send(303, "Location: /list\nContent-Location: http://site.example/item", ""),
        _ => reply.send(200, "Location: http://other.example/list", ""),
    });
    let larder = Larder::new(&origin, "");
    let paths = ["/form", "/list", "/item", "/fails"];
    let warm = || paths.iter().for_each(|path| drop(larder.get(path, "")));
    let cached = || paths.map(|path| larder.get(path, "").hit().is_some());
    warm();
    larder.client().send("POST", "/form", "Content-Length: 0");
    assert_eq!(cached(), [false, false, false, true]);
    warm();
    larder.client().send("POST", "/fails", "Content-Length: 0");
    assert_eq!(cached(), [true; 4], "a failed request changed nothing");
    larder.client().send("DELETE", "/form", "");
    assert_eq!(cached(), [false, true, true, true], "another origin's URLs are left alone");
    larder.client().send("FROB", "/form", "");
    assert_eq!(cached(), [false, true, true, true], "a method that nobody knows is unsafe");
    larder.client().send("OPTIONS", "/form", "");
    assert_eq!(cached(), [true; 4]);
}

#[test]
fn an_unsafe_request_whose_client_leaves_invalidates_all_the_same() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |seen, reply| match seen.method() {
            "GET" => reply.send(200, "Cache-Control: max-age=60", "x"),
            _ => {
                gate.wait();
                reply.send(204, "", "");
            }
        }
    });
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    let mut client = larder.client();
    client.ask("POST", "/a", "Content-Length: 0");
    origin.requests.wait_for(2);
    drop(client);
    gate.open();
    eventually("it is invalidated", || !larder.get("/a", "").is_hit());
}

#[test]
fn an_unsafe_request_invalidates_whatever_it_asks_to_upgrade_to() {
    let origin = Origin::new(|seen, reply| reply.send(200, "Cache-Control: max-age=60", seen.method()));
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    let answer = larder.client().send("POST", "/a", "Connection: upgrade\nUpgrade: h2c\nContent-Length: 0");
    assert_eq!(answer.fwd(), Some("method"));
    assert_eq!(origin.last().head.get("upgrade"), None);
    assert_eq!(larder.get("/a", "").hit(), None);
    assert_eq!(
        larder.get("/a", "Connection: upgrade, http2-settings\nUpgrade: h2c\nHTTP2-Settings: x").hit(),
        Some("memory")
    );
}
