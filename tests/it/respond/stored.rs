//! Tests responses made from stored ones: the whole, a range of it, its head, and 304.

use crate::support::{Larder, Origin, eventually};

#[test]
fn clients_that_have_it_get_304_from_the_cache() {
    let origin = Origin::answers(vec![(
        200,
        "Cache-Control: max-age=60\nETag: \"v\"\nLast-Modified: Wed, 01 Jan 2020 00:00:00 GMT\nX-Other: 1",
        "body",
    )]);
    let larder = Larder::new(&origin, "");
    // Also on a miss: the whole is fetched, and the client's condition answered from it.
    let first = larder.get("/a", "If-None-Match: \"v\"");
    assert_eq!((first.status(), first.get("etag")), (304, Some("\"v\"")));
    // Its head is enough for that: the body may still be on its way.
    eventually("it is stored", || larder.metric("larder_memory_objects") == 1);
    for condition in
        ["If-None-Match: \"v\"", "If-None-Match: W/\"v\"", "If-Modified-Since: Wed, 01 Jan 2020 00:00:00 GMT"]
    {
        let answer = larder.get("/a", condition);
        assert_eq!((answer.status(), answer.hit(), answer.body.len()), (304, Some("memory"), 0), "{condition}");
        assert_eq!((answer.get("x-other"), answer.get("content-length")), (None, None));
    }
    assert_eq!(larder.get("/a", "If-None-Match: \"w\"").status(), 200);
    assert_eq!(origin.count(), 1);
}

#[test]
fn ranges_are_cut_from_the_whole() {
    let origin = Origin::answers(vec![(200, "Cache-Control: max-age=60\nETag: \"v\"", "0123456789")]);
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    for (fields, status, body, range) in [
        ("Range: bytes=2-4", 206, "234", Some("bytes 2-4/10")),
        ("Range: bytes=7-", 206, "789", Some("bytes 7-9/10")),
        ("Range: bytes=-2", 206, "89", Some("bytes 8-9/10")),
        ("Range: bytes=20-", 416, "", Some("bytes */10")),
        ("Range: bytes=4-2", 200, "0123456789", None),
        ("Range: bytes=2-4\nIf-Range: \"v\"", 206, "234", Some("bytes 2-4/10")),
        ("Range: bytes=2-4\nIf-Range: \"w\"", 200, "0123456789", None),
        ("Range: bytes=2-4\nIf-None-Match: \"v\"", 304, "", None),
    ] {
        let answer = larder.get("/a", fields);
        assert_eq!(
            (answer.status(), answer.text().as_str(), answer.get("content-range")),
            (status, body, range),
            "{fields}"
        );
        assert_eq!(answer.hit(), Some("memory"));
    }
    assert_eq!(origin.count(), 1);
}

#[test]
fn head_is_answered_from_a_stored_get() {
    let origin = Origin::new(|_, reply| {
        reply.begin("Cache-Control: max-age=60");
        reply.chunk("hello");
        reply.end();
    });
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    let mut client = larder.client();
    let head = client.send("HEAD", "/a", "");
    assert_eq!((head.hit(), head.get("content-length")), (Some("memory"), Some("5")));
    assert_eq!(client.get("/a", "").text(), "hello", "the connection goes on");
}
