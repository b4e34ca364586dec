//! Tests stored parts of a response (RFC 9111 §3.3, §3.4): combined, completed, and never mixed with another
//! representation.

use crate::support::{FORWARD, Gate, Larder, Origin, in_each_tier};

/// A file of twenty letters that answers ranges, with a validator of its own.
fn ranged(validator: &'static str) -> Origin {
    Origin::new(move |seen, reply| {
        const FILE: &str = "abcdefghijklmnopqrst";
        let common =
            format!("Cache-Control: max-age=60\n{validator}\nX-Range: {}", seen.head.get("range").unwrap_or("-"));
        let spec = seen.head.get("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        match spec {
            Some((first, last)) => {
                let first: usize = first.parse().expect("a position");
                let last: usize = last.parse().unwrap_or(FILE.len() - 1);
                let fields = format!("{common}\nContent-Range: bytes {first}-{last}/{}", FILE.len());
                reply.send(206, &fields, &FILE[first..=last]);
            }
            None => reply.send(200, &common, FILE),
        }
    })
}

fn range(larder: &Larder, range: &str) -> (u16, String, Option<String>, bool) {
    let answer = larder.get("/f", &format!("Range: bytes={range}"));
    (answer.status(), answer.text(), answer.get("content-range").map(str::to_owned), answer.is_hit())
}

#[test]
fn parts_are_stored_served_combined_and_completed() {
    in_each_tier(|start| {
        let origin = ranged("ETag: \"v\"");
        let larder = start(&origin);
        let part =
            |text: &str, positions: &str, hit| (206, text.to_owned(), Some(format!("bytes {positions}/20")), hit);
        assert_eq!(range(&larder, "2-5"), part("cdef", "2-5", false));
        assert_eq!(range(&larder, "2-5"), part("cdef", "2-5", true));
        assert_eq!(range(&larder, "3-4"), part("de", "3-4", true), "a smaller one");
        assert_eq!(range(&larder, "10-14"), part("klmno", "10-14", false), "elsewhere");
        assert_eq!(range(&larder, "2-5"), part("cdef", "2-5", true), "the first is still there");
        assert_eq!(range(&larder, "6-9"), part("ghij", "6-9", false));
        assert_eq!(range(&larder, "2-14"), part("cdefghijklmno", "2-14", true), "three together");
        assert_eq!(range(&larder, "15-"), part("pqrst", "15-19", false));
        assert_eq!(range(&larder, "-3"), part("rst", "17-19", true));
        // Only the beginning is missing, and only that is asked for.
        let whole = larder.get("/f", "");
        assert_eq!((whole.status(), whole.text().as_str()), (200, "abcdefghijklmnopqrst"));
        assert_eq!((whole.fwd(), whole.get("content-range")), (Some("partial"), None));
        assert!(whole.cache_status().contains("fwd-status=206"), "{}", whole.cache_status());
        assert_eq!(whole.get("content-length"), Some("20"));
        let asked = origin.last().head;
        assert_eq!((asked.get("range"), asked.get("if-range")), (Some("bytes=0-1"), Some("\"v\"")));
        assert_eq!(whole.get("x-range"), Some("bytes=0-1"), "the newest fields");
        let again = larder.get("/f", "");
        assert_eq!((again.text().as_str(), again.is_hit()), ("abcdefghijklmnopqrst", true));
        assert_eq!(range(&larder, "0-0"), part("a", "0-0", true));
    });
}

#[test]
fn ranges_that_make_a_whole_are_one() {
    in_each_tier(|start| {
        let origin = ranged("ETag: \"v\"");
        let larder = start(&origin);
        range(&larder, "0-9");
        range(&larder, "8-19");
        let whole = larder.get("/f", "");
        assert_eq!((whole.status(), whole.text().as_str(), whole.is_hit()), (200, "abcdefghijklmnopqrst", true));
        assert_eq!(origin.count(), 2);
    });
}

#[test]
fn parts_of_different_representations_are_never_mixed() {
    in_each_tier(|start| {
        for (before, after) in [
            ("ETag: \"v\"", "ETag: \"w\""),
            ("ETag: W/\"v\"", "ETag: W/\"v\""),
            ("X: 1", "X: 1"),
            ("ETag: \"v\"", "X: 1"),
        ] {
            let (first, second) = (ranged(before), ranged(after));
            let larder = start(&first);
            range(&larder, "0-9");
            first.script_of(&second);
            assert!(!range(&larder, "10-19").3);
            // The newer part took the place of the older one.
            assert!(range(&larder, "10-19").3, "{before} {after}");
            assert!(!range(&larder, "0-9").3, "{before} {after}");
            let whole = larder.get("/f", "");
            assert_eq!((whole.status(), whole.text().as_str()), (200, "abcdefghijklmnopqrst"), "{before} {after}");
        }
    });
}

#[test]
fn a_stored_part_is_validated_and_obeys_if_range() {
    in_each_tier(|start| {
        let origin = ranged("ETag: \"v\"");
        let larder = start(&origin);
        range(&larder, "2-9");
        let with = |fields: &str| larder.get("/f", &format!("Range: bytes=3-4\n{fields}"));
        assert!(with("If-Range: \"v\"").is_hit());
        let other = with("If-Range: \"w\"");
        assert!(!other.is_hit());
        range(&larder, "2-9");
        larder.advance(61);
        origin.script(|_, reply| reply.send(304, "Cache-Control: max-age=60\nETag: \"v\"\nX: new", ""));
        let validated = with("");
        assert_eq!((validated.status(), validated.text().as_str(), validated.get("x")), (206, "de", Some("new")));
        assert_eq!(origin.last().head.get("if-none-match"), Some("\"v\""));
        assert_eq!(origin.last().head.get("range"), Some("bytes=3-4"));
        assert!(with("").is_hit());
        // HEAD and what is beyond are not answered from a part.
        assert!(!larder.client().send("HEAD", "/f", "").is_hit());
    });
}

#[test]
fn a_part_never_takes_the_place_of_a_whole() {
    let gate = Gate::default();
    let (slow, quick) = (ranged("ETag: \"v\""), ranged("ETag: \"v\""));
    let larder = Larder::new(&slow, "");
    slow.script({
        let gate = gate.clone();
        move |seen, reply| {
            if seen.head.get("range").is_some() {
                reply.raw("HTTP/1.1 206 X\r\nCache-Control: max-age=60\r\nETag: \"v\"\r\nContent-Range: bytes 0-1/20\r\nContent-Length: 2\r\n\r\n");
                gate.wait();
                reply.raw("ab");
            } else {
                reply.send(200, "Cache-Control: max-age=60\nETag: \"v\"", "abcdefghijklmnopqrst");
            }
        }
    });
    let mut client = larder.client();
    client.ask("GET", "/f", "Range: bytes=0-1");
    assert_eq!(client.head().map(|head| head.line), Some("HTTP/1.1 206 Partial Content".into()));
    // The whole comes while the part is still on its way.
    larder.get("/f", "");
    gate.open();
    assert_eq!(client.bytes(2).expect("the part"), b"ab");
    slow.script_of(&quick);
    assert!(larder.get("/f", "").is_hit());
    assert!(range(&larder, "5-6").3);
}

#[test]
fn the_refusal_of_a_range_is_no_answer_to_others() {
    let origin = Origin::new(|seen, reply| match seen.head.get("range") {
        Some(_) => reply.send(416, "Cache-Control: max-age=60\nContent-Range: bytes */4", ""),
        None => reply.send(200, "Cache-Control: max-age=60", "page"),
    });
    let larder = Larder::new(&origin, "");
    assert_eq!(larder.get("/a", "Range: bytes=99-").status(), 416);
    assert_eq!(larder.get("/a", "").text(), "page");
}

#[test]
fn a_validated_part_is_cut_and_shared_as_the_answer_says() {
    in_each_tier(|start| {
        let origin = ranged("ETag: \"v\"");
        let larder = start(&origin);
        range(&larder, "0-1");
        range(&larder, "6-9");
        larder.advance(61);
        origin.script(|_, reply| reply.send(304, "Cache-Control: private\nETag: \"v\"", ""));
        let (status, text, positions, _) = range(&larder, "0-1");
        assert_eq!((status, text.as_str(), positions.as_deref()), (206, "ab", Some("bytes 0-1/20")));
        let asked = origin.count();
        range(&larder, "6-9");
        assert!(origin.count() > asked, "what became private is gone");
    });
}

#[test]
fn a_client_with_a_part_of_one_representation_gets_no_part_of_another() {
    let origin = ranged("ETag: \"v\"");
    let larder = Larder::new(&origin, "");
    range(&larder, "2-9");
    larder.advance(61);
    origin.script(|seen, reply| match seen.head.get("if-range") {
        Some("\"v\"") => reply.send(200, "ETag: \"w\"", "another"),
        _ => reply.send(206, "ETag: \"w\"\nContent-Range: bytes 3-4/7", "th"),
    });
    let answer = larder.get("/f", "Range: bytes=3-4\nIf-Range: \"v\"");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "another"));
}

#[test]
fn what_completes_a_part_is_shared_by_its_own_word_only() {
    for (stored, fields, answer) in [
        ("public, max-age=60", "", "Set-Cookie: sid=alice"),
        ("public, max-age=60", "Authorization: Basic alice", "X: alice"),
        ("max-age=60", "", "Cache-Control: private"),
    ] {
        let origin = Origin::new(move |seen, reply| match (seen.head.get("range"), seen.head.get("x-who")) {
            (Some("bytes=0-4"), _) => {
                let fields = format!("CDN-Cache-Control: {stored}\nETag: \"a\"\nContent-Range: bytes 0-4/10");
                reply.send(206, &fields, "01234");
            }
            (Some("bytes=5-"), Some(who)) => {
                reply.send(206, &format!("{answer}\nETag: \"a\"\nContent-Range: bytes 5-9/10"), &who[..5]);
            }
            (_, who) => reply.send(200, &format!("{answer}\nETag: \"a\""), who.unwrap_or("nobody")),
        });
        let larder = Larder::new(&origin, "");
        larder.get("/a", "Range: bytes=0-4");
        larder.get("/a", &format!("X-Who: alice\n{fields}"));
        let bob = larder.get("/a", "X-Who: bobby");
        assert!(!bob.is_hit(), "{answer}");
        assert!(!bob.text().contains("alice"), "{answer}: {}", bob.text());
    }
}

#[test]
fn what_does_not_fit_the_gap_never_looks_like_a_whole() {
    for (sent, before, after) in
        [("XXXXXXXX", "", "56789"), ("X", "", "56789"), ("XXXXXXXX", "01", "789"), ("X", "01", "789")]
    {
        let origin = Origin::new(move |seen, reply| {
            let (first, last) = (before.len(), 9 - after.len());
            match seen.head.get("range") {
                Some(asked) if asked.starts_with(&format!("bytes={first}-{last}")) => {
                    reply.raw(format!("HTTP/1.1 206 X\r\nETag: \"a\"\r\nCache-Control: max-age=60\r\nContent-Range: bytes {first}-{last}/10\r\nTransfer-Encoding: chunked\r\n\r\n"));
                    reply.chunk(sent);
                    reply.end();
                }
                Some(asked) => {
                    let (from, text) = if asked == "bytes=0-1" { (0, before) } else { (10 - after.len(), after) };
                    let fields = format!(
                        "ETag: \"a\"\nCache-Control: max-age=60\nContent-Range: bytes {from}-{}/10",
                        from + text.len() - 1
                    );
                    reply.send(206, &fields, text);
                }
                None => reply.send(200, "ETag: \"a\"", "0123456789"),
            }
        });
        let larder = Larder::new(&origin, FORWARD);
        if !before.is_empty() {
            larder.get("/a", "Range: bytes=0-1");
        }
        larder.get("/a", &format!("Range: bytes={}-", 10 - after.len()));
        let mut client = larder.client();
        client.ask("GET", "/a", "");
        assert!(client.try_answer().is_err(), "{sent} {before} {after}");
    }
}

#[test]
fn a_head_of_what_is_held_in_part_is_answered_by_the_origin() {
    in_each_tier(|start| {
        let origin = ranged("ETag: \"v\"");
        let larder = start(&origin);
        range(&larder, "2-5");
        range(&larder, "9-12");
        origin.script(|_, reply| {
            reply.raw("HTTP/1.1 200 X\r\nCache-Control: max-age=60\r\nETag: \"v\"\r\nContent-Length: 20\r\n\r\n");
        });
        let head = larder.client().send("HEAD", "/f", "");
        assert_eq!((head.status(), head.get("content-length"), head.get("content-range")), (200, Some("20"), None));
        assert!(range(&larder, "2-5").3, "and the part is good for longer");
    });
}

#[test]
fn a_part_that_nobody_asked_for_is_not_stored() {
    let origin = Origin::answers(vec![(206, "Cache-Control: max-age=60\nContent-Range: bytes 0-1/4", "ab")]);
    let larder = Larder::new(&origin, "");
    assert_eq!(larder.get("/a", "").status(), 206, "the origin's word is passed on");
    assert!(!larder.get("/a", "Range: bytes=0-1").is_hit());
}

#[test]
fn a_range_of_something_not_stored_goes_to_the_origin_as_it_is() {
    let origin = Origin::answers(vec![(206, "Content-Range: bytes 0-1/10\nCache-Control: max-age=60", "01")]);
    let larder = Larder::new(&origin, "");
    assert_eq!(larder.get("/a", "Range: bytes=0-1").status(), 206);
    assert_eq!(origin.last().head.get("range"), Some("bytes=0-1"));
    // What came is a part: it must not be taken for the whole. Without a strong validator it can't be
    // completed either, whatever comes when the rest is asked for.
    larder.get("/a", "");
    assert_eq!(origin.count(), 3);
    assert_eq!(origin.last().head.get("range"), None);
}
