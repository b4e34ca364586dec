//! Tests ranges, and bodies that are too large for memory, on a directory and on a bucket.

use std::sync::Arc;

use crate::support::{Answer, Gate, Larder, Origin, Place, Process, Reply, Seen, at_once, eventually};

fn text(len: usize) -> String {
    (0..len).map(|n| char::from(b'a' + u8::try_from(n * 7 / 10 % 26).expect("a letter"))).collect()
}

const FIELDS: &str = "Cache-Control: max-age=600\nETag: \"v1\"\nContent-Type: text/plain";

fn sends(body: &str) -> impl Fn(&Seen, &mut Reply) + Send + Sync + 'static {
    let body = body.to_owned();
    move |_, reply| reply.send(200, FIELDS, &body)
}

/// The parts of a multipart answer: `Content-Range` and bytes.
fn parts(answer: &Answer) -> Vec<(String, String)> {
    let kind = answer.get("content-type").expect("a type");
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").expect(kind);
    let body = answer.text();
    let body = body.strip_prefix(&format!("--{boundary}\r\n")).expect("a delimiter first");
    let body = body.strip_suffix(&format!("\r\n--{boundary}--\r\n")).expect("a delimiter last");
    body.split(&format!("\r\n--{boundary}\r\n"))
        .map(|part| {
            let (head, bytes) = part.split_once("\r\n\r\n").expect("a head");
            let range = head.lines().find_map(|line| line.strip_prefix("Content-Range: ")).expect("its range");
            assert!(head.contains("Content-Type: text/plain"), "{head}");
            (range.to_owned(), bytes.to_owned())
        })
        .collect()
}

/// Asks for ranges of all kinds of a stored `body`, and holds each answer to it.
fn hold_ranges(larder: &Process, body: &str, tier: &str) {
    let len = body.len();
    for (range, first, end) in [
        ("0-0".to_owned(), 0, 1),
        (format!("{}-{}", len / 2, len / 2 + 99), len / 2, len / 2 + 100),
        (format!("{}-", len - 7), len - 7, len),
        ("-5".to_owned(), len - 5, len),
        (format!("262143-262144,{}-", len * 2), 262_143, 262_145),
    ] {
        let answer = larder.get("/a", &format!("Range: bytes={range}"));
        assert_eq!((answer.status(), answer.hit()), (206, Some(tier)), "{range}: {}", answer.cache_status());
        assert_eq!(answer.get("content-range"), Some(&*format!("bytes {first}-{}/{len}", end - 1)));
        assert_eq!(answer.text(), body[first..end], "{range}");
    }
    let several = larder.get("/a", "Range: bytes=600000-600009, 5-9, -3");
    assert_eq!((several.status(), several.hit()), (206, Some(tier)));
    let expected = [(600_000, 600_010), (5, 10), (len - 3, len)]
        .map(|(first, end)| (format!("bytes {first}-{}/{len}", end - 1), body[first..end].to_owned()));
    assert_eq!(parts(&several), expected);
    let beyond = larder.get("/a", &format!("Range: bytes={len}-"));
    assert_eq!((beyond.status(), beyond.get("content-range")), (416, Some(&*format!("bytes */{len}"))));
    // A part goes with the strong validator of what is stored, and with no other.
    assert_eq!(larder.get("/a", "Range: bytes=0-4\nIf-Range: \"v1\"").text(), body[..5]);
    for other in ["\"v0\"", "W/\"v1\""] {
        let whole = larder.get("/a", &format!("Range: bytes=0-4\nIf-Range: {other}"));
        assert_eq!((whole.status(), whole.body.len()), (200, len));
    }
    let head = larder.client().send("HEAD", "/a", "");
    assert_eq!((head.status(), head.get("content-length")), (200, Some(&*len.to_string())));
    assert_eq!(larder.get("/a", "Range: bytes=0-4\nIf-None-Match: \"v1\"").status(), 304);
}

#[test]
fn ranges_of_what_memory_has() {
    let body = text(700_000);
    let origin = Origin::new(sends(&body));
    let larder = Process::start(&origin.url(), &["durable.url=off"]);
    larder.get("/a", "");
    hold_ranges(&larder, &body, "memory");
    assert_eq!(origin.count(), 1);
}

#[test]
fn ranges_of_what_the_durable_tier_has_read_no_more_than_they_need() {
    let body = text(3_000_000);
    for place in Place::all() {
        let origin = Origin::new(sends(&body));
        let larder = place.start(&origin, &["memory.capacity=0"]);
        larder.get("/a", "");
        larder.settle();
        if let Some(s3) = &place.s3 {
            s3.seen.lock().unwrap().clear();
            larder.get("/a", "Range: bytes=1500000-1500099");
            let seen = s3.seen.lock().unwrap();
            let body: Vec<_> = seen.iter().filter(|(_, path, _)| path.contains("/b/")).collect();
            assert_eq!(body.len(), 1, "{seen:?}");
            assert_eq!(body[0].2, "bytes=1310720-1572863", "the one chunk");
        }
        hold_ranges(&larder, &body, "durable");
        // A small one is inline.
        let small = text(700_000);
        origin.script(sends(&small));
        assert_eq!(larder.purge("http://site.example/a").status(), 200);
        larder.get("/a", "");
        larder.settle();
        hold_ranges(&larder, &small, "durable");
        assert_eq!(origin.count(), 2);
    }
}

#[test]
fn what_is_read_in_part_again_is_taken_into_memory() {
    let body = text(3_000_000);
    let place = Place::file();
    let origin = Origin::new(sends(&body));
    let larder = place.start(&origin, &[]);
    larder.get("/a", "");
    larder.settle();
    drop(larder);
    let larder = place.start(&origin, &[]);
    for _ in 0..2 {
        assert_eq!(larder.get("/a", "Range: bytes=1-2").hit(), Some("durable"));
    }
    eventually("it is in memory", || larder.get("/a", "Range: bytes=1-2").hit() == Some("memory"));
    hold_ranges(&larder, &body, "memory");
    assert_eq!(origin.count(), 1);
}

#[test]
fn a_broken_body_is_a_miss_for_a_range_as_well() {
    let body = text(3_000_000);
    let place = Place::file();
    let origin = Origin::new(sends(&body));
    let larder = place.start(&origin, &["memory.capacity=0"]);
    larder.get("/a", "");
    larder.settle();
    let stored = place.left_over();
    let [path] = &stored[..] else { panic!("one body: {stored:?}") };
    let mut bytes = std::fs::read(path).expect("a body");
    bytes[1_500_050] ^= 1;
    std::fs::write(path, bytes).expect("it is written");
    let answer = larder.get("/a", "Range: bytes=10-19");
    assert_eq!((answer.status(), answer.hit()), (206, Some("durable")), "another chunk is sound");
    let answer = larder.get("/a", "Range: bytes=1500000-1500099");
    assert_eq!((answer.hit(), answer.fwd()), (None, Some("uri-miss")), "{}", answer.cache_status());
    assert_eq!(origin.last().head.get("range"), Some("bytes=1500000-1500099"));
    // The origin knows no ranges: the client has its own before the rest has come.
    eventually("the whole came anew", || larder.get("/a", "Range: bytes=1500000-1500099").hit() == Some("durable"));
}

#[test]
fn a_body_too_large_for_memory_goes_to_the_durable_tier_as_it_comes() {
    // More than one part, of whatever size a part is.
    let body = text(20_000_000);
    let places = Place::all().into_iter().map(|place| (place, false));
    for (place, chunked) in places.chain([(Place::file(), true)]) {
        let origin = Origin::new({
            let body = body.clone();
            move |_, reply| {
                if !chunked {
                    return reply.send(200, FIELDS, &body);
                }
                reply.begin(FIELDS);
                for piece in body.as_bytes().chunks(100_000) {
                    reply.chunk(std::str::from_utf8(piece).expect("letters"));
                }
                reply.end();
            }
        });
        let larder = place.start(&origin, &["memory.max_object_size=1MiB"]);
        let first = larder.get("/a", "");
        assert_eq!(first.text(), body);
        assert!(first.cache_status().contains("stored"), "{}", first.cache_status());
        larder.settle();
        assert_eq!(larder.metric("larder_memory_objects"), 0);
        assert_eq!(larder.metric("larder_fill_bytes"), 0);
        hold_ranges(&larder, &body, "durable");
        let whole = larder.get("/a", "");
        assert_eq!((whole.hit(), whole.text() == body), (Some("durable"), true));
        drop(larder);
        let larder = place.start(&origin, &["memory.max_object_size=1MiB"]);
        for answer in at_once(3, {
            let larder = Arc::new(larder);
            move |_| larder.get("/a", "")
        }) {
            assert_eq!((answer.hit(), answer.text() == body), (Some("durable"), true));
        }
        assert_eq!(origin.count(), 1);
    }
}

#[test]
fn a_large_body_that_breaks_off_or_is_too_large_leaves_nothing() {
    for place in Place::all() {
        let body = text(12_000_000);
        let origin = Origin::new({
            let body = body.clone();
            move |seen, reply| {
                if seen.path() == "/broken" {
                    reply.raw(format!(
                        "HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nContent-Length: {}\r\n\r\n",
                        body.len() + 1
                    ));
                    reply.raw(&body);
                    reply.hang_up();
                } else {
                    reply.begin(FIELDS);
                    for piece in body.as_bytes().chunks(100_000) {
                        reply.chunk(std::str::from_utf8(piece).expect("letters"));
                    }
                    reply.end();
                }
            }
        });
        let larder = place.start(&origin, &["memory.max_object_size=1MiB"]);
        let mut client = larder.client();
        client.ask("GET", "/broken", "");
        assert!(client.try_answer().is_err());
        larder.settle();
        eventually("nothing is left", || place.left_over().is_empty());
        drop(larder);
        let larder = place.start(&origin, &["memory.max_object_size=1MiB", "durable.max_object_size=10MiB"]);
        assert_eq!(larder.get("/a", "").text(), body, "a client does not suffer for it");
        larder.settle();
        eventually("nothing is left", || place.left_over().is_empty());
        assert_eq!(larder.get("/a", "Range: bytes=0-1").hit(), None);
    }
}

#[test]
fn a_large_successor_displaces_what_memory_has_and_a_purge_covers_it() {
    let place = Place::file();
    let gate = Gate::default();
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=10", "small"));
    let larder = Arc::new(Larder::new(&origin, &format!("{}\nmemory.max_object_size=1MiB", place.sets[0])));
    larder.get("/a", "");
    larder.settle();
    larder.advance(20);
    let large = text(3_000_000);
    origin.script(sends(&large));
    assert_eq!(larder.get("/a", "").text(), large);
    larder.settle();
    let answer = larder.get("/a", "");
    assert_eq!((answer.hit(), answer.text() == large), (Some("durable"), true), "{}", answer.cache_status());
    assert_eq!(larder.metric("larder_memory_objects"), 0);
    // Purged while it comes in: it is not there afterwards.
    assert_eq!(larder.purge("http://site.example/a").status(), 200);
    origin.script({
        let (gate, large) = (gate.clone(), large.clone());
        move |_, reply| {
            reply.begin(FIELDS);
            reply.chunk(&large);
            gate.wait();
            reply.end();
        }
    });
    let client = {
        let larder = Arc::clone(&larder);
        std::thread::spawn(move || larder.get("/a", "").text())
    };
    origin.requests.wait_for(3);
    eventually("it is on its way", || place.left_over().len() == 2);
    assert_eq!(larder.purge("http://site.example/a").status(), 200);
    gate.open();
    assert_eq!(client.join().expect("no panic"), large);
    larder.settle();
    // The first one goes with the pack that names it.
    eventually("nothing is left of the second", || place.left_over().len() == 1);
    origin.script(sends("after"));
    assert_eq!(larder.get("/a", "").text(), "after");
}

#[test]
fn variants_too_large_for_memory_are_told_apart() {
    let place = Place::file();
    let origin = Origin::new(|seen, reply| {
        let language = seen.head.get("accept-language").unwrap_or("none").to_owned();
        reply.send(200, &format!("{FIELDS}\nVary: Accept-Language"), &format!("{language}{}", text(2_000_000)));
    });
    let larder = place.start(&origin, &["memory.max_object_size=1MiB"]);
    for language in ["en", "de"] {
        larder.get("/a", &format!("Accept-Language: {language}"));
    }
    larder.settle();
    drop(larder);
    let larder = place.start(&origin, &["memory.max_object_size=1MiB"]);
    for language in ["de", "en"] {
        let answer = larder.get("/a", &format!("Accept-Language: {language}\nRange: bytes=0-1"));
        assert_eq!((answer.hit(), answer.text().as_str()), (Some("durable"), language));
    }
    assert_eq!(larder.get("/a", "Accept-Language: fr\nRange: bytes=0-1").hit(), None);
}

/// An origin of one page that knows single ranges.
fn ranged(body: &str) -> Origin {
    Origin::new(sends_ranges(body))
}

fn sends_ranges(body: &str) -> impl Fn(&Seen, &mut Reply) + Send + Sync + 'static {
    let body = body.to_owned();
    move |seen, reply| {
        let range = seen.head.get("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let holds = seen.head.get("if-range").is_none_or(|tag| tag == "\"v1\"");
        let Some((first, last)) = range.filter(|_| holds) else { return reply.send(200, FIELDS, &body) };
        let first: usize = first.parse().unwrap_or(0);
        let end = last.parse::<usize>().map_or(body.len(), |last| (last + 1).min(body.len()));
        let fields = format!("{FIELDS}\nContent-Range: bytes {first}-{}/{}", end - 1, body.len());
        reply.send(206, &fields, &body[first..end]);
    }
}

#[test]
fn the_second_range_brings_the_whole_of_what_memory_takes() {
    let body = text(100_000);
    for (rule, asked) in [("", 2), ("rule=[{path = \"*\", ranges = \"forward\"}]", 4)] {
        let origin = ranged(&body);
        let larder = Larder::new(&origin, rule);
        for first in [1000, 50_000, 90_000, 20_000] {
            let answer = larder.get("/a", &format!("Range: bytes={first}-{}", first + 9));
            assert_eq!((answer.status(), answer.text().as_str()), (206, &body[first..first + 10]), "{rule}");
        }
        assert_eq!(origin.count(), asked, "{rule}");
    }
    // What would not fit goes on range by range.
    let origin = ranged(&body);
    let larder = Larder::new(&origin, "memory.max_object_size=50KiB");
    for first in [1000, 50_000, 90_000] {
        assert_eq!(larder.get("/a", &format!("Range: bytes={first}-{}", first + 9)).text(), body[first..first + 10]);
    }
    assert_eq!(origin.count(), 3);
    assert!(origin.seen().iter().all(|seen| seen.head.get("range").is_some()));
}

#[test]
fn by_rule_a_range_brings_the_whole_for_everyone_as_it_comes() {
    let body = text(100_000);
    let gate = Gate::default();
    let origin = Origin::new({
        let (gate, body) = (gate.clone(), body.clone());
        move |_, reply| {
            reply.begin(&format!("{FIELDS}\nX-Origin: 1"));
            reply.chunk(&body[..60_000]);
            gate.wait();
            reply.chunk(&body[60_000..]);
            reply.end();
        }
    });
    let larder = Arc::new(Larder::new(&origin, "rule=[{path = \"*\", ranges = \"whole\"}]"));
    // Of unknown length the whole is the answer.
    let mut first = larder.client();
    first.ask("GET", "/a", "Range: bytes=0-9");
    let head = first.head().expect("a head");
    assert!(head.line.contains("200"), "{}", head.line);
    gate.open();
    origin.script({
        let body = body.clone();
        move |_, reply| reply.send(200, FIELDS, &body)
    });
    drop(first);
    let answers = at_once(8, {
        let larder = Arc::clone(&larder);
        move |i| (i, larder.get("/b", &format!("Range: bytes={0}-{1}", i * 1000, i * 1000 + 9)))
    });
    for (i, answer) in answers {
        assert_eq!((answer.status(), answer.text().as_str()), (206, &body[i * 1000..i * 1000 + 10]));
    }
    let asked = |path: &str| origin.seen().iter().filter(|seen| seen.path() == path).count();
    assert_eq!(asked("/b"), 1);
    assert!(origin.seen().iter().all(|seen| seen.head.get("range").is_none()));
    // What is too large to be stored is not sent whole for a range.
    let origin = ranged(&body);
    let larder = Larder::new(&origin, "rule=[{path = \"*\", ranges = \"whole\"}]\nmemory.max_object_size=50KiB");
    let answer = larder.get("/a", "Range: bytes=70000-70009");
    assert_eq!((answer.status(), answer.text().as_str()), (206, &body[70_000..70_010]));
}

#[test]
fn a_range_asked_for_meanwhile_is_no_reason_to_throw_the_whole_away() {
    let body = text(3_000_000);
    for (config, tier) in [("durable.url=off", "memory"), ("memory.max_object_size=1MiB", "durable")] {
        let place = Place::file();
        let gate = Gate::default();
        let origin = Origin::new({
            let (gate, body, ranges) = (gate.clone(), body.clone(), sends_ranges(&body));
            move |seen, reply| {
                if seen.head.get("range").is_some() {
                    return ranges(seen, reply);
                }
                reply.raw(format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nETag: \"v1\"\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n", body.len()));
                reply.raw(&body[..1_000_000]);
                gate.wait();
                reply.raw(&body[1_000_000..]);
            }
        });
        let larder = place.start(&origin, &[config]);
        let mut first = larder.client();
        first.ask("GET", "/a", "");
        first.head().expect("a head");
        assert_eq!(larder.get("/a", "Range: bytes=100-199").text(), body[100..200]);
        gate.open();
        assert_eq!(first.bytes(body.len()).expect("all of it"), body.as_bytes());
        larder.settle();
        let answer = larder.get("/a", "Range: bytes=2000000-2000009");
        assert_eq!((answer.hit(), answer.text().as_str()), (Some(tier), &body[2_000_000..2_000_010]), "{config}");
        assert_eq!(larder.get("/a", "").hit(), Some(tier), "{config}");
    }
}

#[test]
fn a_part_does_not_take_the_place_of_a_large_whole() {
    let body = text(3_000_000);
    let place = Place::file();
    let origin = ranged(&body);
    let larder = place.start(&origin, &["memory.max_object_size=1MiB"]);
    larder.get("/a", "");
    larder.settle();
    let part = larder.get("/a", "Range: bytes=0-9\nCache-Control: no-cache");
    assert_eq!((part.status(), part.hit()), (206, None));
    larder.settle();
    let whole = larder.get("/a", "");
    assert_eq!((whole.hit(), whole.text() == body), (Some("durable"), true), "{}", whole.cache_status());
}
