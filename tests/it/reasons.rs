//! Why a response was not stored: told in `explain`, in `/metrics`, and in `Cache-Status` where the key is.

use crate::support::{Client, Larder, Origin};

#[test]
fn why_a_response_was_not_stored_is_told_everywhere() {
    for (why, request, fields) in [
        ("set-cookie", "", "Cache-Control: max-age=60\nSet-Cookie: a=1"),
        ("private", "", "Cache-Control: private"),
        ("no-store", "", "Cache-Control: no-store"),
        ("no-lifetime", "", ""),
        ("vary", "", "Cache-Control: max-age=60\nVary: *"),
        ("authorization", "Authorization: Basic x", "Cache-Control: max-age=60"),
        ("request-no-store", "Cache-Control: no-store", "Cache-Control: max-age=60"),
        ("too-large", "", "Cache-Control: max-age=60\nX-Large: 1"),
        ("stream", "", "Cache-Control: max-age=60\nContent-Type: text/event-stream"),
    ] {
        let origin = Origin::new(move |_, reply| {
            let body = "x".repeat(if fields.contains("X-Large") { 5000 } else { 10 });
            reply.send(200, fields, &body);
        });
        let larder = Larder::new(&origin, "cache.status_key=true\nmemory.max_object_size=4KiB");
        // Twice: the second goes by what is remembered of the first.
        for _ in 0..2 {
            let answer = larder.get("/a", request);
            let status = answer.cache_status();
            assert!(status.ends_with(&format!("; detail={why}")), "{why}: {status}");
        }
        assert_eq!(larder.metric(&format!("larder_not_stored_total{{reason=\"{why}\"}}")), 2);
        let told = Client::connect(larder.admin).get("/explain?url=http://site.example/a", "").text();
        assert!(
            told.contains(&format!("\"why\":\"{why}\"")) || told.contains(&format!("\"why\": \"{why}\"")),
            "{told}"
        );
        // Without the key the field says no more than the standard has words for.
        let plain = Larder::new(&origin, "memory.max_object_size=4KiB");
        let status = plain.get("/a", request).cache_status().to_owned();
        assert!(!status.contains("detail="), "{status}");
    }
}
