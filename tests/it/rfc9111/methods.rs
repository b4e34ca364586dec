//! Tests what the request's method means for the store: POST and HEAD beside GET.

use crate::support::{Larder, Origin, in_each_tier};

#[test]
fn methods_and_bodies_do_not_share_a_response() {
    let origin = Origin::new(|seen, reply| {
        reply.send(
            200,
            "Cache-Control: max-age=60",
            &format!("{} {}", seen.method(), String::from_utf8_lossy(&seen.body)),
        );
    });
    let larder = Larder::new(&origin, "");
    assert_eq!(larder.client().send("POST", "/a", "Content-Length: 0").text(), "POST ");
    assert_eq!(larder.client().send("OPTIONS", "/a", "").text(), "OPTIONS ");
    let answer = larder.send_raw("GET /a HTTP/1.1\r\nHost: site.example\r\nContent-Length: 4\r\n\r\nevil");
    assert_eq!(answer.text(), "GET evil");
    assert_eq!(larder.get("/a", "").text(), "GET ", "a GET with content is no one else's GET");
}

#[test]
fn a_head_response_is_not_a_get_response() {
    let origin = Origin::new(|seen, reply| match seen.method() {
        "HEAD" => reply.raw("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nCache-Control: max-age=60\r\n\r\n"),
        _ => reply.send(200, "Cache-Control: max-age=60", "hello"),
    });
    let larder = Larder::new(&origin, "");
    assert_eq!(larder.client().send("HEAD", "/a", "").status(), 200);
    assert_eq!(larder.get("/a", "").text(), "hello");
    assert_eq!(origin.count(), 2);
}

#[test]
fn a_head_freshens_what_it_matches_and_invalidates_what_it_does_not() {
    in_each_tier(|start| {
        for (head, freshened, again) in [
            ("Cache-Control: max-age=60\nETag: \"a\"\nContent-Length: 4\nX: new", true, false),
            ("Cache-Control: max-age=60\nETag: \"a\"\nX: new", true, false),
            ("Cache-Control: max-age=60\nETag: \"b\"\nX: new", false, true),
            ("Cache-Control: max-age=60\nETag: \"a\"\nContent-Length: 5", false, true),
            // Nothing in common that could be relied on.
            ("Cache-Control: max-age=60", false, false),
        ] {
            let origin = Origin::new(move |seen, reply| match seen.method() {
                "HEAD" => reply.raw(format!("HTTP/1.1 200 OK\r\n{}\r\n\r\n", head.replace('\n', "\r\n"))),
                _ => reply.send(200, "Cache-Control: max-age=10\nETag: \"a\"\nX: old\nKept: 1", "body"),
            });
            let larder = start(&origin);
            larder.get("/a", "");
            larder.advance(11);
            let answer = larder.client().send("HEAD", "/a", "");
            assert_eq!(answer.status(), 200);
            if freshened {
                assert_eq!((answer.get("x"), answer.get("kept")), (Some("new"), Some("1")), "{head}");
            }
            let get = larder.get("/a", "");
            assert_eq!(get.is_hit(), freshened, "{head}");
            assert_eq!(get.text(), "body");
            if freshened {
                assert_eq!((get.get("x"), get.get("content-length")), (Some("new"), Some("4")));
            } else {
                // The client also asks about a response that is another by now, where it is kept to stand in.
                let is_conditional = origin.last().head.get("if-none-match").is_some();
                assert!(is_conditional || again, "{head}");
            }
        }
    });
}

#[test]
fn a_posts_response_answers_get_when_it_says_that_it_may() {
    in_each_tier(|start| {
        for (fields, stored) in [
            ("Cache-Control: max-age=60\nContent-Location: /a", true),
            ("Cache-Control: max-age=60\nContent-Location: http://site.example/a", true),
            ("Cache-Control: max-age=60\nContent-Location: /other", false),
            ("Cache-Control: max-age=60\nContent-Location: http://other.example/a", false),
            ("Cache-Control: max-age=60", false),
            ("Last-Modified: Fri, 01 Jan 2010 00:00:00 GMT\nContent-Location: /a", false),
            ("Cache-Control: max-age=60, private\nContent-Location: /a", false),
            ("Cache-Control: max-age=60\nContent-Location: /a\nSet-Cookie: s=1", false),
            ("Cache-Control: max-age=60\nContent-Location: /a\nVary: *", false),
        ] {
            let origin = Origin::new(move |seen, reply| match seen.method() {
                "POST" => reply.send(200, fields, "posted"),
                _ => reply.send(200, "Cache-Control: max-age=60", "got"),
            });
            let larder = start(&origin);
            assert_eq!(larder.get("/a", "").text(), "got");
            let mut client = larder.client();
            client.ask("POST", "/a", "Content-Length: 3");
            client.raw("x=1");
            let posted = client.answer();
            assert_eq!((posted.status(), posted.text().as_str()), (200, "posted"), "{fields}");
            assert_eq!(posted.fwd(), Some("method"));
            let expected = if stored { ("posted", true) } else { ("got", false) };
            let answer = larder.get("/a", "");
            assert_eq!((answer.text().as_str(), answer.is_hit()), expected, "{fields}");
            // A POST is never answered from the store.
            let before = origin.count();
            larder.client().send("POST", "/a", "Content-Length: 0");
            assert_eq!(origin.count(), before + 1);
        }
    });
}
