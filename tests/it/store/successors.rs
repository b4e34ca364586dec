//! Tests that a newer response takes the place of an older one in every tier, and never the other way round.

use crate::support::{Gate, Larder, Origin, file_url};

#[test]
fn an_answer_that_took_long_does_not_take_the_place_of_a_newer_one() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |seen, reply| match seen.method() {
            "POST" => {
                reply.begin("Cache-Control: max-age=60\nContent-Location: /a");
                reply.chunk("old");
                gate.wait();
                reply.end();
            }
            _ => reply.send(200, "Cache-Control: max-age=60", "new"),
        }
    });
    let larder = Larder::new(&origin, "");
    let mut client = larder.client();
    client.ask("POST", "/a", "Content-Length: 0");
    client.head().expect("a head");
    larder.advance(1);
    assert_eq!(larder.get("/a", "X: 1").text(), "new");
    gate.open();
    while client.chunk().is_some_and(|chunk| !chunk.is_empty()) {}
    assert_eq!(larder.get("/a", "").text(), "new");
}

#[test]
fn a_newer_response_stays_whether_it_varies_or_not() {
    for (old, new) in [("", "Vary: X-V"), ("Vary: X-V", "")] {
        let gate = Gate::default();
        let origin = Origin::new({
            let gate = gate.clone();
            move |seen, reply| match seen.head.get("authorization") {
                Some(_) => {
                    reply.begin(&format!("Cache-Control: public, max-age=600\n{old}"));
                    reply.chunk("old");
                    gate.wait();
                    reply.end();
                }
                None => reply.send(200, &format!("Cache-Control: max-age=600\n{new}"), "new"),
            }
        });
        let larder = Larder::new(&origin, "");
        let mut client = larder.client();
        client.ask("GET", "/a", "Authorization: x");
        client.head().expect("a head");
        larder.advance(1);
        assert_eq!(larder.get("/a", "").text(), "new");
        gate.open();
        while client.chunk().is_some_and(|chunk| !chunk.is_empty()) {}
        assert_eq!(larder.get("/a", "").text(), "new", "{old:?} {new:?}");
    }
}

#[test]
fn a_successor_that_is_not_written_takes_the_durable_one_along() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = file_url(directory.path());
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=600", "first"));
    let larder = Larder::new(&origin, &url);
    larder.get("/a", "");
    larder.settle();
    // For less than durable.min_lifetime: in memory only.
    origin.script(|_, reply| reply.send(200, "Cache-Control: max-age=5", "second"));
    larder.get("/a", "Cache-Control: no-cache");
    larder.settle();
    larder.stop();
    let larder = Larder::new(&origin, &url);
    assert_eq!(larder.get("/a", "").text(), "second");
}

#[test]
fn a_variants_successor_takes_only_that_variant_along() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = file_url(directory.path());
    let origin = Origin::new(|seen, reply| {
        let foo = seen.head.get("foo").unwrap_or_default();
        reply.send(200, "Cache-Control: max-age=600\nVary: Foo", &format!("first {foo}"));
    });
    let larder = Larder::new(&origin, &url);
    for foo in ["a", "b", "c"] {
        larder.get("/a", &format!("Foo: {foo}"));
    }
    larder.settle();
    origin.script(|seen, reply| {
        let foo = seen.head.get("foo").unwrap_or_default();
        let lifetime = if foo == "a" { 5 } else { 600 };
        reply.send(200, &format!("Cache-Control: max-age={lifetime}\nVary: Foo"), &format!("second {foo}"));
    });
    larder.get("/a", "Foo: a\nCache-Control: no-cache");
    // The record that leads to all of them is written again after that.
    larder.get("/a", "Foo: b\nCache-Control: no-cache");
    larder.settle();
    larder.stop();
    let larder = Larder::new(&origin, &url);
    assert_eq!(larder.get("/a", "Foo: a").text(), "second a");
    assert_eq!(larder.get("/a", "Foo: b").text(), "second b");
    let other = larder.get("/a", "Foo: c");
    assert_eq!((other.text().as_str(), other.hit()), ("first c", Some("durable")));
}

#[test]
fn a_durable_response_without_validators_gives_way_as_well() {
    for successor in ["s-maxage=1", "no-store"] {
        let directory = tempfile::tempdir().expect("a directory");
        let url = file_url(directory.path());
        let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: s-maxage=600", "first"));
        let larder = Larder::new(&origin, &url);
        larder.get("/a", "");
        larder.settle();
        larder.stop();
        // Memory does not know it.
        let larder = Larder::new(&origin, &url);
        origin.script(move |_, reply| reply.send(200, &format!("Cache-Control: {successor}"), "second"));
        assert_eq!(larder.get("/a", "Cache-Control: no-cache").text(), "second");
        larder.settle();
        larder.stop();
        let larder = Larder::new(&origin, &url);
        assert_eq!(larder.get("/a", "").text(), "second", "{successor}");
    }
}
