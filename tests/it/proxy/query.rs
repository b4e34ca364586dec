//! Tests QUERY (RFC 10008): what is one query and what is another, what is stored of it, and what makes it go.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{Answer, Client, Gate, Larder, Origin, Place, at_once, eventually, file_url, larder};

const TEXT: &str = "Content-Type: text/plain";

/// Sends a QUERY with a length; `fields` as one field a line.
fn send(client: &mut Client, path: &str, fields: &str, content: &str) {
    client.ask("QUERY", path, &format!("{fields}\nContent-Length: {}", content.len()));
    client.raw(content);
}

fn query_of(client: &mut Client, path: &str, fields: &str, content: &str) -> Answer {
    send(client, path, fields, content);
    client.answer()
}

/// Sends a QUERY of plain text on a connection of its own.
fn query(larder: &Larder, path: &str, content: &str) -> Answer {
    query_with(larder, path, TEXT, content)
}

fn query_with(larder: &Larder, path: &str, fields: &str, content: &str) -> Answer {
    query_of(&mut larder.client(), path, fields, content)
}

/// Sends a QUERY in chunks of `len` bytes, with `trailers`.
fn chunked(larder: &Larder, path: &str, content: &str, len: usize, trailers: &str) -> Answer {
    let mut message =
        format!("QUERY {path} HTTP/1.1\r\nHost: site.example\r\n{TEXT}\r\nTransfer-Encoding: chunked\r\n\r\n");
    for piece in content.as_bytes().chunks(len) {
        let _ = write!(message, "{:x}\r\n{}\r\n", piece.len(), String::from_utf8_lossy(piece));
    }
    larder.send_raw(format!("{message}0\r\n{trailers}\r\n"))
}

/// Answers each request with its method, target, type and content, and a number that no other answer has. The fields of
/// the answer are those of the configuration `fields`.
fn echoing(fields: &'static str) -> Origin {
    let count = AtomicUsize::new(0);
    Origin::new(move |seen, reply| {
        let n = count.fetch_add(1, Ordering::SeqCst);
        let media_type = seen.head.get("content-type").unwrap_or("nothing");
        let content = String::from_utf8_lossy(&seen.body);
        reply.send(200, fields, &format!("{n} {} {} {media_type} {content}", seen.method(), seen.path()));
    })
}

fn fresh() -> Origin {
    echoing("Cache-Control: max-age=600")
}

#[test]
fn a_content_is_asked_for_once_and_another_is_another() {
    let origin = fresh();
    let larder = Larder::new(&origin, "");
    let first = query(&larder, "/s?a=1", "one");
    assert_eq!(first.cache_status(), "larder; fwd=uri-miss; stored; ttl=600");
    assert_eq!(first.text(), "0 QUERY /s?a=1 text/plain one");
    let seen = origin.last();
    assert_eq!((seen.head.get("content-length"), seen.head.get("connection")), (Some("3"), None));
    let again = query(&larder, "/s?a=1", "one");
    assert_eq!((again.hit(), again.text()), (Some("memory"), first.text()));
    // None of these is the same.
    let others = [
        ("/s?a=1", TEXT, "two"),
        ("/s?a=1", TEXT, "One"),
        ("/s?a=1", TEXT, "one "),
        ("/s?a=1", TEXT, ""),
        ("/s?a=2", TEXT, "one"),
        ("/s", TEXT, "one"),
        ("/s?", TEXT, "one"),
        ("/other", TEXT, "one"),
        ("/s?a=1", "Content-Type: text/plain; charset=utf-8", "one"),
        ("/s?a=1", "Content-Type: application/json", "one"),
        ("/s?a=1", "Content-Type: text/plain\nContent-Encoding: gzip", "one"),
        ("/s?a=1", "Content-Type: text/plain\nContent-Language: en", "one"),
        ("/s?a=1", "Content-Type: text/plain\nContent-Location: /q/1", "one"),
        ("/s?a=1", "Content-Type: text/plain\nHost: other.example", "one"),
    ];
    for (path, fields, content) in others {
        let answer = query_with(&larder, path, fields, content);
        assert_eq!(answer.fwd(), Some("uri-miss"), "{path} {fields} {content}");
        assert!(answer.text().ends_with(content), "{path} {fields} {content}: {}", answer.text());
    }
    for (path, fields, content) in others {
        assert_eq!(query_with(&larder, path, fields, content).hit(), Some("memory"), "{path} {fields} {content}");
    }
    assert_eq!(query(&larder, "/s?a=1", "one").text(), first.text());
}

#[test]
fn no_get_gets_the_answer_to_a_query_nor_the_other_way_round() {
    let origin = fresh();
    let larder = Larder::new(&origin, "cache.status_key=true");
    let of_query = query(&larder, "/s", "one");
    let of_get = larder.get("/s", "");
    assert_eq!((of_get.fwd(), of_get.text().contains(" GET ")), (Some("uri-miss"), true));
    assert_eq!(larder.client().send("HEAD", "/s", "").hit(), Some("memory"));
    assert_eq!(query(&larder, "/s", "one").text(), of_query.text());
    // Text of a client in the place of the key's text makes no key.
    let status = of_query.cache_status().to_owned();
    let digest = status.split_once("QUERY ").expect("the key has the digest").1.split(' ').next().expect("a digest");
    assert_eq!(digest.len(), 64, "{status}");
    for path in ["/s", "/s?"] {
        for text in [digest.to_owned(), format!("?{digest}"), format!("%00{digest}"), format!("QUERY%20{digest}")] {
            let answer = larder.get(&format!("{path}{text}"), "");
            assert!(answer.text().contains(" GET "), "{path}{text}: {}", answer.text());
            let answer = query(&larder, path, &text);
            assert!(answer.text().ends_with(&text), "{path} {text}: {}", answer.text());
        }
    }
    assert_eq!(larder.get("/s", "").text(), of_get.text());
    assert_eq!(query(&larder, "/s", "one").text(), of_query.text());
    // A method is compared to the byte: `query` is one that nobody knows, and counts as unsafe.
    let mut client = larder.client();
    client.ask("query", "/s", "Content-Type: text/plain\nContent-Length: 3");
    client.raw("one");
    assert_eq!(client.answer().fwd(), Some("method"));
    assert_eq!(larder.get("/s", "").hit(), None);
}

#[test]
fn a_get_with_content_is_no_query() {
    let origin = fresh();
    let larder = Larder::new(&origin, "");
    query(&larder, "/s", "one");
    for method in ["GET", "POST", "SEARCH", "REPORT"] {
        let mut client = larder.client();
        client.ask(method, "/other", "Content-Type: text/plain\nContent-Length: 3");
        client.raw("one");
        assert!(client.answer().text().contains(method));
    }
    for _ in 0..2 {
        let mut client = larder.client();
        client.ask("GET", "/s", "Content-Type: text/plain\nContent-Length: 3");
        client.raw("one");
        let answer = client.answer();
        assert_eq!((answer.fwd(), answer.text().contains(" GET ")), (Some("request"), true));
    }
}

#[test]
fn spellings_that_mean_one_are_one_query() {
    let origin = fresh();
    let larder = Larder::new(&origin, "");
    let first = query_with(&larder, "/s", "Content-Type: text/plain;charset=utf-8\nContent-Encoding: gzip", "one");
    for fields in [
        "Content-Type: Text/Plain; Charset=\"UTF-8\"\nContent-Encoding: GZIP",
        "content-TYPE: text/plain ; charset=utf-8;\nContent-Encoding: gzip\nContent-Encoding:",
        "Content-Type: text/plain;charset=utf-8\nContent-Encoding: gzip\nAccept: text/csv\nUser-Agent: x",
    ] {
        let answer = query_with(&larder, "/s", fields, "one");
        assert_eq!((answer.hit(), answer.text()), (Some("memory"), first.text()), "{fields}");
    }
    // However it is framed.
    let content = "abcdefghij".repeat(100);
    query(&larder, "/f", &content);
    for len in [1, 7, 1000] {
        assert_eq!(chunked(&larder, "/f", &content, len, "").hit(), Some("memory"), "{len}");
    }
    let mut client = larder.client();
    client.ask("QUERY", "/f", &format!("{TEXT}\nExpect: 100-continue\nContent-Length: {}", content.len()));
    assert_eq!(client.answer().status(), 100);
    client.raw(&content);
    assert_eq!(client.answer().hit(), Some("memory"));
    // No content is empty content.
    query(&larder, "/e", "");
    assert_eq!(larder.client().send("QUERY", "/e", TEXT).hit(), Some("memory"));
    assert_eq!(chunked(&larder, "/e", "", 1, "").hit(), Some("memory"));
    // The origin gets what the client sent, and only from the first.
    assert_eq!(origin.seen()[0].head.get("content-type"), Some("text/plain;charset=utf-8"));
    assert_eq!(origin.count(), 3);
}

#[test]
fn what_can_have_no_key_is_passed_on_and_never_answered_from_the_cache() {
    let origin = fresh();
    let larder = Larder::new(&origin, "upstream.buffer_request=1000B\nrule=[{path = \"/off\", bypass = true}]");
    let (fits, long) = ("a".repeat(1000), "a".repeat(1001));
    assert_eq!(query(&larder, "/s", &fits).fwd(), Some("uri-miss"));
    assert_eq!(query(&larder, "/s", &fits).hit(), Some("memory"));
    for _ in 0..2 {
        for (path, fields, content, fwd) in [
            ("/s", TEXT, &*long, "request"),
            ("/s", "", "one", "request"),
            ("/s", "Content-Type:", "one", "request"),
            ("/s", "Content-Type: text/plain\nContent-Type: text/plain", "one", "request"),
            ("/s", "Content-Type: text/plain\nContent-Range: bytes 0-2/3", "one", "request"),
            ("/s", "Content-Type: text/plain\nIf-Match: \"a\"", "one", "request"),
            ("/off", TEXT, "one", "bypass"),
        ] {
            let before = origin.count();
            let answer = query_with(&larder, path, fields, content);
            assert_eq!(answer.fwd(), Some(fwd), "{fields} {}", content.len());
            assert!(answer.text().ends_with(content), "{fields}");
            assert!(!answer.cache_status().contains("stored"), "{}", answer.cache_status());
            assert_eq!(origin.count(), before + 1);
        }
        let answer = chunked(&larder, "/s", "one", 3, "X-Checksum: 1\r\n");
        assert_eq!((answer.fwd(), answer.text().ends_with("one")), (Some("request"), true));
        assert_eq!(chunked(&larder, "/s", &long, 100, "").fwd(), Some("request"));
    }
    assert_eq!(query(&larder, "/s", "one").fwd(), Some("uri-miss"), "nothing of that was stored");
    eventually("nothing is held", || larder.buffered() == (0, 0));
    let unbuffered = Larder::new(&origin, "upstream.buffer_request=0B");
    for _ in 0..2 {
        assert_eq!(query(&unbuffered, "/s", "one").fwd(), Some("bypass"));
    }
}

#[test]
fn a_rule_says_how_long_a_content_may_be() {
    let origin = fresh();
    let rules = r#"rule=[{path = "/long", method = ["QUERY"], buffer_request = "1MiB"}, {path = "/none", buffer_request = "0B"}]"#;
    let larder = Larder::new(&origin, rules);
    let long = "a".repeat(1 << 20);
    for (path, first, second) in [
        ("/long", Some("uri-miss"), None),
        ("/s", Some("request"), Some("request")),
        ("/none", Some("bypass"), Some("bypass")),
    ] {
        for fwd in [first, second] {
            let answer = query(&larder, path, &long);
            assert_eq!((answer.fwd(), answer.text().ends_with(&long)), (fwd, true), "{path}");
        }
    }
    eventually("nothing is held", || larder.buffered() == (0, 0));
}

#[test]
fn a_content_that_breaks_off_is_no_query() {
    let origin = fresh();
    let larder = Larder::new(&origin, "");
    for begun in [
        format!("QUERY /s HTTP/1.1\r\nHost: site.example\r\n{TEXT}\r\nContent-Length: 4\r\n\r\none"),
        format!("QUERY /s HTTP/1.1\r\nHost: site.example\r\n{TEXT}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n"),
        format!("QUERY /s HTTP/1.1\r\nHost: site.example\r\n{TEXT}\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none"),
        format!(
            "QUERY /s HTTP/1.1\r\nHost: site.example\r\n{TEXT}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n"
        ),
    ] {
        let mut client = larder.client();
        client.raw(&begun);
        drop(client);
        let answer = larder.send_raw(format!(
            "QUERY /s HTTP/1.1\r\nHost: site.example\r\n{TEXT}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\nx\r\n"
        ));
        assert_eq!(answer.status(), 400, "a chunk without a length");
    }
    eventually("nothing is held", || larder.buffered() == (0, 0));
    assert_eq!(origin.count(), 0);
    assert_eq!(query(&larder, "/s", "one").fwd(), Some("uri-miss"));
    // Both framings at once could be read in two ways.
    let both = format!(
        "QUERY /s HTTP/1.1\r\nHost: site.example\r\n{TEXT}\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n"
    );
    assert_eq!(larder.send_raw(both).status(), 400);
}

#[test]
fn only_a_stated_lifetime_keeps_the_answer_to_a_query() {
    let rule = r#"rule=[{path = "/over", override_timeout = "100s"}, {path = "/timeout", timeout = "100s"}]"#;
    for (fields, is_stored) in [
        ("", false),
        ("ETag: \"1\"", false),
        ("Last-Modified: Fri, 01 Jan 2010 00:00:00 GMT", false),
        ("Cache-Control: public", false),
        ("Cache-Control: no-cache\nETag: \"1\"", false),
        ("Cache-Control: max-age=60, private", false),
        ("Cache-Control: max-age=60, no-store", false),
        ("Cache-Control: max-age=60\nSet-Cookie: a=1", false),
        ("Cache-Control: max-age=60\nVary: *", false),
        ("Cache-Control: max-age=60", true),
        ("Cache-Control: s-maxage=60", true),
        ("CDN-Cache-Control: max-age=60", true),
        ("Expires: Fri, 01 Jan 2038 00:00:00 GMT", true),
    ] {
        let origin = echoing(fields);
        let larder = Larder::new(&origin, &format!("cache.default_timeout=100s\n{rule}"));
        for path in ["/s", "/over", "/timeout"] {
            query(&larder, path, "one");
            let answer = query(&larder, path, "one");
            assert_eq!(answer.is_hit(), is_stored, "{fields} {path}: {}", answer.cache_status());
        }
    }
}

#[test]
fn authorization_cookies_and_vary_count_as_for_get() {
    let origin = Origin::new(|seen, reply| {
        let fields = match seen.path() {
            "/public" => "Cache-Control: max-age=60, public",
            "/vary" => "Cache-Control: max-age=60\nVary: Accept, Cookie",
            _ => "Cache-Control: max-age=60",
        };
        let of = |name| seen.head.get(name).unwrap_or("-").to_owned();
        reply.send(200, fields, &format!("{} {} {}", of("accept"), of("cookie"), String::from_utf8_lossy(&seen.body)));
    });
    let larder = Larder::new(&origin, "");
    let with = |path, more: &str, content| query_with(&larder, path, &format!("{TEXT}\n{more}"), content);
    for (path, is_stored) in [("/private", false), ("/public", true)] {
        with(path, "Authorization: Basic x", "one");
        assert_eq!(with(path, "Authorization: Basic y", "one").is_hit(), is_stored, "{path}");
    }
    for (fields, content) in
        [("Accept: a", "one"), ("Accept: b", "one"), ("Accept: a", "two"), ("Accept: a\nCookie: c", "one")]
    {
        let answer = with("/vary", fields, content);
        let cookie = if fields.contains("Cookie") { "c" } else { "-" };
        let accept = if fields.contains("Accept: a") { "a" } else { "b" };
        assert_eq!((answer.is_hit(), answer.text()), (false, format!("{accept} {cookie} {content}")));
        let again = with("/vary", fields, content);
        assert_eq!((again.hit(), again.text()), (Some("memory"), answer.text()), "{fields}");
    }
    assert_eq!(with("/vary", "Accept: c", "one").fwd(), Some("vary-miss"));
    assert_eq!(with("/vary", "Accept: a", "three").fwd(), Some("uri-miss"));
}

#[test]
fn directives_of_the_client_count_as_for_get() {
    let origin = fresh();
    let larder = Larder::new(&origin, "");
    let with = |more: &str, content: &str| query_with(&larder, "/s", &format!("{TEXT}\n{more}"), content);
    assert_eq!(with("Cache-Control: only-if-cached", "one").status(), 504);
    assert_eq!(origin.count(), 0);
    with("Cache-Control: no-store", "one");
    assert_eq!(with("", "one").fwd(), Some("uri-miss"));
    assert_eq!(with("Cache-Control: only-if-cached", "one").hit(), Some("memory"));
    assert_eq!(with("Cache-Control: no-cache", "one").fwd(), Some("request"));
}

#[test]
fn conditions_are_about_the_answer_to_this_content() {
    let origin = Origin::new(|seen, reply| {
        let content = String::from_utf8_lossy(&seen.body).into_owned();
        let tag = format!("\"{content}\"");
        if seen.head.get("if-none-match") == Some(&*tag) {
            return reply.send(304, &format!("ETag: {tag}\nCache-Control: max-age=10"), "");
        }
        reply.send(200, &format!("ETag: {tag}\nCache-Control: max-age=10"), &content);
    });
    let larder = Larder::new(&origin, "");
    let with = |more: &str, content: &str| query_with(&larder, "/s", &format!("{TEXT}\n{more}"), content);
    with("", "one");
    with("", "two");
    assert_eq!(with("If-None-Match: \"one\"", "one").status(), 304);
    assert_eq!(with("If-None-Match: \"one\"", "two").status(), 200);
    assert_eq!(origin.count(), 2);
    larder.advance(11);
    let answer = with("", "one");
    assert!(
        answer.cache_status().starts_with("larder; fwd=stale; fwd-status=304; stored"),
        "{}",
        answer.cache_status()
    );
    assert_eq!((answer.status(), answer.text().as_str()), (200, "one"));
    let seen = origin.last();
    assert_eq!((seen.method(), &*seen.body, seen.head.get("if-none-match")), ("QUERY", &b"one"[..], Some("\"one\"")));
    assert_eq!(with("", "one").hit(), Some("memory"));
    // A range of it, too.
    let part = with("Range: bytes=1-", "one");
    assert_eq!((part.status(), part.text().as_str(), part.hit()), (206, "ne", Some("memory")));
}

#[test]
fn a_stale_answer_is_validated_behind_with_its_content() {
    let origin = echoing("Cache-Control: max-age=10, stale-while-revalidate=100\nETag: \"1\"");
    let larder = Larder::new(&origin, "");
    let first = query(&larder, "/s", "one");
    larder.advance(20);
    assert_eq!(query(&larder, "/s", "one").text(), first.text());
    origin.requests.wait_for(2);
    let seen = origin.last();
    assert_eq!((seen.method(), &*seen.body), ("QUERY", &b"one"[..]));
    assert!(seen.has("If-None-Match: \"1\"") && seen.has("Content-Length: 3") && seen.has(TEXT));
    eventually("the new one is there", || query(&larder, "/s", "one").text().starts_with("1 "));
    eventually("nothing is held", || larder.buffered() == (0, 0));
    assert_eq!(origin.count(), 2);
}

#[test]
fn equal_queries_at_once_are_one_and_others_are_not() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::new(move |seen, reply| {
        held.wait();
        reply.send(200, "Cache-Control: max-age=60", &String::from_utf8_lossy(&seen.body));
    });
    let larder = Larder::new(&origin, "");
    let address = larder.address;
    let crowd = std::thread::spawn(move || {
        at_once(20, move |n| {
            let content = format!("content {}", n % 2);
            (query_of(&mut Client::connect(address), "/s", TEXT, &content), content)
        })
    });
    larder.wait_for_waiting(20);
    assert_eq!(origin.count(), 2);
    gate.open();
    for (answer, content) in crowd.join().expect("they were answered") {
        assert_eq!(answer.text(), content);
    }
    assert_eq!(origin.count(), 2);
    eventually("nothing is held", || larder.buffered() == (0, 0));
}

#[test]
fn a_purge_of_the_url_takes_every_answer_to_a_query_with_it() {
    for durable in [false, true] {
        let (origin, directory) = (fresh(), tempfile::tempdir().expect("a directory"));
        let config = if durable { file_url(directory.path()) } else { String::new() };
        let larder = Larder::new(&origin, &config);
        let fill = || {
            for content in ["one", "two"] {
                query(&larder, "/s?a", content);
                query_with(&larder, "/s?a", "Content-Type: text/csv\nAccept: x", content);
            }
            query(&larder, "/other", "one");
            query(&larder, "/s", "one");
            larder.get("/s?a", "");
        };
        let hits = || {
            let asked = [
                query(&larder, "/s?a", "one"),
                query_with(&larder, "/s?a", "Content-Type: text/csv\nAccept: x", "two"),
                query(&larder, "/other", "one"),
                query(&larder, "/s", "one"),
            ];
            asked.map(|answer| answer.is_hit())
        };
        for (what, left) in [
            (r#"{"url": "http://site.example/s?a"}"#, [false, false, true, true]),
            (r#"{"url": "http://site.example/s"}"#, [true, true, true, false]),
            (r#"{"prefix": "http://site.example/s"}"#, [false, false, true, false]),
            (r#"{"prefix": "/o"}"#, [true, true, false, true]),
            (r#"{"all": true}"#, [false; 4]),
            (r#"{"url": "http://site.example/s?a", "soft": true}"#, [false, false, true, true]),
        ] {
            fill();
            assert_eq!(hits(), [true; 4]);
            let told = larder.purge_of(what);
            assert_eq!(told.status(), 200, "{}", told.text());
            assert_eq!(hits(), left, "{what} {durable}");
            assert_eq!(hits(), [true; 4], "stored after the purge, it is good: {what}");
        }
        let told = larder.purge("http://site.example/s?a").text();
        assert!(told.contains("responses to QUERY"), "it tells what it did not search for: {told}");
        origin.script(|_, reply| reply.send(200, "Cache-Control: max-age=60\nCache-Tag: t", "tagged"));
        query(&larder, "/tagged", "one");
        assert_eq!(query(&larder, "/tagged", "one").hit(), Some("memory"));
        larder.purge_of(r#"{"tag": "t"}"#);
        assert_eq!(query(&larder, "/tagged", "one").hit(), None);
    }
}

#[test]
fn nobody_waits_for_a_query_that_was_under_way_when_its_url_changed() {
    let purge = |larder: &Larder| drop(larder.purge("http://site.example/s"));
    let soft = |larder: &Larder| drop(larder.purge_of(r#"{"url": "http://site.example/s", "soft": true}"#));
    let post = |larder: &Larder| drop(larder.client().send("POST", "/s", "Content-Length: 0"));
    let put = |larder: &Larder| drop(larder.client().send("PUT", "/t", "Content-Length: 0"));
    for change in [&purge as &dyn Fn(&Larder), &soft, &post, &put] {
        let (gate, count) = (Gate::default(), AtomicUsize::new(0));
        let held = gate.clone();
        let origin = Origin::new(move |seen, reply| {
            if seen.method() != "QUERY" {
                return reply.send(200, "Location: /s", "");
            }
            let n = count.fetch_add(1, Ordering::SeqCst);
            if n == 0 {
                held.wait();
            }
            reply.send(200, "Cache-Control: max-age=60", &n.to_string());
        });
        // Past this time one who waits would ask for itself.
        let larder = Larder::new(&origin, "cache.collapse_timeout=1h");
        let mut early = larder.client();
        send(&mut early, "/s", TEXT, "one");
        origin.requests.wait_for(1);
        change(&larder);
        // The first one is still under way.
        assert_eq!(query(&larder, "/s", "one").text(), "1");
        gate.open();
        assert_eq!(early.answer().text(), "0");
        assert_eq!(query(&larder, "/s", "one").text(), "1");
    }
}

#[test]
fn only_what_changes_a_page_with_answers_to_queries_is_written_to_the_journal() {
    let (origin, place) = (fresh(), Place::file());
    let larder = place.start(&origin, &[]);
    eventually("it knows what is there", || larder.metric("larder_index_loaded") == 1);
    let mut client = Client::connect(larder.address);
    query_of(&mut client, "/s", TEXT, "one");
    // A record is written before its request is answered, so nothing has to be waited for.
    for path in ["/other", "/s?other", "/s/", "/"] {
        assert_eq!(client.send("POST", path, "Content-Length: 0").status(), 200);
        assert_eq!(larder.metric("larder_journal_written_total"), 0, "{path}");
    }
    assert_eq!(client.send("POST", "/s", "Content-Length: 0").status(), 200);
    assert_eq!(larder.metric("larder_journal_written_total"), 1);
    assert_eq!(query_of(&mut client, "/s", TEXT, "one").hit(), None);
}

#[test]
fn an_unsafe_request_takes_every_answer_to_a_query_with_it_and_a_query_takes_none() {
    for place in [None, Some(Place::file())] {
        let origin = Origin::new(|seen, reply| match seen.method() {
            "DELETE" => reply.send(404, "", ""),
            "PUT" => reply.send(200, "Location: /s", ""),
            "POST" => reply.send(303, "Location: /elsewhere", ""),
            _ => reply.send(200, "Cache-Control: max-age=600\nLocation: /other\nContent-Location: /other", seen.path()),
        });
        let sets = place.as_ref().map_or_else(String::new, |place| place.sets.join("\n"));
        let larder = Larder::new(&origin, &sets);
        larder.get("/s", "");
        larder.get("/other", "");
        query(&larder, "/s", "one");
        query(&larder, "/s", "two");
        assert_eq!(larder.get("/s", "").hit(), Some("memory"));
        assert_eq!(larder.get("/other", "").hit(), Some("memory"), "a QUERY is safe, wherever its answer points");
        for (method, path, is_gone) in [
            ("DELETE", "/s", false),
            ("POST", "/s?other", false),
            ("POST", "/s", true),
            ("PUT", "/t", true),
            ("query", "/s", true),
        ] {
            larder.client().send(method, path, "Content-Length: 0");
            for content in ["one", "two"] {
                let answer = query(&larder, "/s", content);
                assert_eq!(answer.is_hit(), !is_gone, "{method} {path} {}", answer.cache_status());
            }
        }
    }
}

#[test]
fn answers_to_queries_survive_a_restart_and_what_was_purged_or_invalidated_does_not_come_back() {
    for place in [Place::file(), Place::s3()] {
        let origin = fresh();
        let ask = |larder: &crate::support::Process, path: &str, content: &str| {
            query_of(&mut Client::connect(larder.address), path, TEXT, content)
        };
        let larder = place.start(&origin, &[]);
        for path in ["/kept", "/purged", "/changed", "/changed?a"] {
            ask(&larder, path, "one");
            ask(&larder, path, "two");
            larder.get(path, "");
        }
        let before = ask(&larder, "/kept", "one").text();
        larder.settle();
        larder.kill_9();
        // Knows of them from the journal alone, for nobody has asked it for one.
        let larder = place.start(&origin, &[]);
        assert_eq!(larder.purge("http://site.example/purged").status(), 200);
        let mut client = Client::connect(larder.address);
        assert_eq!(client.send("POST", "/changed", "Content-Length: 0").status(), 200);
        assert_eq!(client.send("POST", "/never-asked", "Content-Length: 0").status(), 200);
        larder.settle();
        if place.name != "file" {
            eventually("the journal has both", || {
                larder.metric("larder_durable_requests_total{class=\"write\",purpose=\"purges\"}") >= 2
            });
        }
        larder.kill_9();
        let larder = place.start(&origin, &[]);
        let answer = ask(&larder, "/kept", "one");
        assert_eq!((answer.hit(), answer.text()), (Some("durable"), before), "{}", place.name);
        assert_eq!(larder.get("/kept", "").hit(), Some("durable"));
        for (path, is_kept) in [("/kept", true), ("/changed?a", true), ("/purged", false), ("/changed", false)] {
            assert_eq!(ask(&larder, path, "two").is_hit(), is_kept, "{} {path}", place.name);
        }
    }
}

#[test]
fn rules_for_get_are_for_queries_too_and_upstreams_keep_them_apart() {
    let (one, two) = (fresh(), fresh());
    let rules = format!(
        "upstreams.two.url={}\n{}",
        two.url(),
        r#"rule=[
            {path = "/q", method = ["QUERY"], upstream = "two"},
            {path = "/get", method = ["GET"], upstream = "two", ignore_query = ["utm_*"], tags = ["of-get"]},
            {path = "/post", method = ["POST"], upstream = "two"},
            {path = "/key", method = ["GET"], ignore_query = ["utm_*"]}, {path = "/key2", method = ["QUERY"], ignore_query = ["utm_*"]}
        ]"#
        .replace('\n', " ")
    );
    let larder = Larder::new(&one, &rules);
    query(&larder, "/q", "one");
    larder.get("/q", "");
    assert_eq!((one.count(), two.count()), (1, 1));
    assert_eq!(query(&larder, "/q", "one").hit(), Some("memory"));
    query(&larder, "/get?utm_a=1", "one");
    assert_eq!((two.count(), two.last().path()), (2, "/get"), "what the key leaves out, the origin does not see");
    assert_eq!(query(&larder, "/get?utm_a=2", "one").hit(), Some("memory"));
    larder.purge_of(r#"{"tag": "of-get"}"#);
    assert_eq!(query(&larder, "/get?utm_a=2", "one").hit(), None);
    query(&larder, "/post", "one");
    assert_eq!((one.count(), two.count()), (2, 3));
    // The key is GET's: what a rule for QUERY alone would leave out stays.
    query(&larder, "/key2?utm_a=1", "one");
    assert_eq!(one.last().path(), "/key2?utm_a=1");
    assert_eq!(query(&larder, "/key2?utm_a=2", "one").hit(), None);
    query(&larder, "/key?utm_a=1", "one");
    assert_eq!(query(&larder, "/key?utm_a=2", "one").hit(), Some("memory"));
    larder.purge("http://site.example/key?utm_a=3");
    assert_eq!(query(&larder, "/key?utm_a=2", "one").hit(), None);
}

#[test]
fn a_redirect_is_never_followed_and_kept_only_as_it_says() {
    let origin = Origin::new(|seen, reply| match seen.path() {
        "/explicit" => reply.send(303, "Location: /result\nCache-Control: max-age=60", ""),
        "/heuristic" => reply.send(308, "Location: /result", ""),
        "/bare" => reply.send(303, "Location: /result", ""),
        path => reply.send(
            200,
            "Cache-Control: max-age=60\nAccept-Query: \"text/plain\"\nLocation: /q/1\nContent-Location: /r/1",
            path,
        ),
    });
    let larder = Larder::new(&origin, "cache.default_timeout=60s");
    for (path, status, is_stored) in [("/explicit", 303, true), ("/heuristic", 308, false), ("/bare", 303, false)] {
        for is_hit in [false, is_stored] {
            let answer = query(&larder, path, "one");
            assert_eq!(
                (answer.status(), answer.get("location"), answer.is_hit()),
                (status, Some("/result"), is_hit),
                "{path}"
            );
        }
    }
    for _ in 0..2 {
        let answer = query(&larder, "/s", "one");
        assert_eq!(answer.get("accept-query"), Some("\"text/plain\""));
        assert_eq!((answer.get("location"), answer.get("content-location")), (Some("/q/1"), Some("/r/1")));
    }
    assert!(origin.seen().iter().all(|seen| seen.method() == "QUERY" && seen.path() != "/result"));
    assert_eq!(larder.get("/r/1", "").hit(), None, "the answer says where it can be got, and nothing is stored there");
}

#[test]
fn no_field_makes_the_application_take_a_query_for_another_method() {
    let origin = fresh();
    let larder = Larder::new(&origin, "");
    query_with(&larder, "/s", &format!("{TEXT}\nX-HTTP-Method-Override: DELETE\nX-Method-Override: POST"), "one");
    let seen = origin.last();
    assert_eq!((seen.head.get("x-http-method-override"), seen.head.get("x-method-override")), (None, None));
}

#[test]
fn a_query_becomes_no_tunnel() {
    let origin = fresh();
    let larder = Larder::new(&origin, "");
    for is_hit in [false, true] {
        for content in ["", "one"] {
            let answer =
                query_with(&larder, "/s", &format!("{TEXT}\nConnection: Upgrade\nUpgrade: websocket"), content);
            assert_eq!(answer.is_hit(), is_hit, "{}", answer.cache_status());
            assert!(answer.text().contains(" QUERY /s"), "{}", answer.text());
        }
    }
    assert_eq!(origin.last().head.get("upgrade"), None);
}

#[test]
fn no_vary_search_of_a_get_says_nothing_of_a_query() {
    let origin = echoing("Cache-Control: max-age=60\nNo-Vary-Search: params");
    let larder = Larder::new(&origin, "");
    for content in ["one", "two"] {
        for path in ["/s?a=1", "/s?a=2"] {
            assert!(query(&larder, path, content).text().ends_with(&format!("QUERY {path} text/plain {content}")));
        }
        larder.get("/s?a=1", "");
        assert!(larder.get("/s?a=2", "").text().contains("GET /s?a=1"));
    }
    assert_eq!(origin.count(), 5);
}

#[test]
fn a_query_is_sent_again_where_a_get_is() {
    let broken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&broken);
    let origin = Origin::new(move |seen, reply| {
        if seen.path() == "/breaks" && count.fetch_add(1, Ordering::SeqCst) == 0 {
            return reply.hang_up();
        }
        reply.send(200, "Cache-Control: max-age=60", &String::from_utf8_lossy(&seen.body));
    });
    let larder = Larder::new(&origin, "server.threads=1");
    query(&larder, "/first", "one");
    for (path, fields) in [("/breaks", TEXT), ("/breaks", "")] {
        broken.store(0, Ordering::SeqCst);
        let answer = query_with(&larder, path, fields, "again");
        assert_eq!((answer.status(), answer.text().as_str()), (200, "again"), "{fields}");
        assert_eq!(broken.load(Ordering::SeqCst), 2);
    }
}

#[test]
fn contents_count_in_what_clients_hold() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::new(move |seen, reply| {
        held.wait();
        reply.send(200, "Cache-Control: max-age=60", &seen.body.len().to_string());
    });
    let larder = Larder::new(&origin, "");
    let content = "a".repeat(50_000);
    let mut clients: Vec<Client> = (0..4).map(|_| larder.client()).collect();
    for client in &mut clients {
        send(client, "/s", TEXT, &content);
    }
    larder.wait_for_waiting(4);
    assert_eq!(larder.buffered().0, 4 * content.len(), "also those who wait for another's answer");
    gate.open();
    for client in &mut clients {
        assert_eq!(client.answer().text(), "50000");
    }
    eventually("nothing is held", || larder.buffered() == (0, 0));
}

#[test]
fn explain_and_keys_tell_answers_to_queries() {
    let (origin, place) = (fresh(), Place::file());
    let running = place.start(&origin, &[]);
    let ask = |content: &str| query_of(&mut running.client(), "/s?a", TEXT, content);
    let explain = |content: &str, more: &str| {
        let target =
            format!("/explain?url=http://site.example/s?a&content={content}&header=Content-Type:%20text/plain{more}");
        Client::connect(running.admin).get(&target, "Host: localhost").text()
    };
    ask("one");
    ask("two");
    running.settle();
    assert!(explain("one", "").contains("larder; hit; ttl="), "{}", explain("one", ""));
    assert!(explain("one", "").contains("key: content "));
    assert!(explain("three", "").contains("larder; fwd=uri-miss"));
    assert!(explain("one", "&method=GET").contains("larder; fwd=uri-miss"));
    assert!(explain("one", "&header=Content-Type:%20text/plain").contains("larder; fwd=request"));
    assert!(explain("one", "&header=If-Match:%20x").contains("does not have one Content-Type"));
    let run = larder(&[])
        .args(["explain", "http://site.example/s?a", "-H", TEXT, "--content", "two"])
        .args(["--set", &format!("admin.listen={}", running.admin)])
        .output()
        .expect("it runs");
    let told = String::from_utf8_lossy(&run.stdout);
    assert!(told.contains("verdict: Cache-Status: larder; hit"), "{told}");
    running.purge("http://site.example/s?a");
    assert!(explain("one", "").contains("covered by a purge of its URL"), "{}", explain("one", ""));
    assert!(explain("one", "").contains("larder; fwd=uri-miss"));
    assert_eq!(origin.count(), 2);
    ask("one");
    running.get("/s?a", "");
    running.settle();
    let keys = |more: &[&str]| {
        let sets = place.sets.iter().flat_map(|set| ["--set", set]);
        let run = larder(&[]).arg("keys").args(more).args(sets).output().expect("it runs");
        String::from_utf8_lossy(&run.stdout).into_owned()
    };
    let told = keys(&[]);
    assert_eq!(told.matches("http://site.example/s?a QUERY ").count(), 1, "the others were purged: {told}");
    let told = keys(&["--json"]);
    let of_query = told.lines().filter(|line| line.contains("\"content\":\"")).count();
    assert_eq!((told.lines().count(), of_query), (2, 1), "{told}");
}
