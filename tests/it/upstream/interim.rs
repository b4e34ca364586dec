//! Tests what comes before a response and behind it: early hints and trailers.

use crate::support::{Gate, Larder, Origin, eventually};

#[test]
fn early_hints_are_relayed_as_they_arrive_and_never_stored() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |_, reply| {
            reply.raw("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x\r\nX: 1\r\n\r\n");
            gate.wait();
            reply.send(200, "Cache-Control: max-age=60", "page");
        }
    });
    for (method, fields) in [("GET", ""), ("GET", "Range: bytes=0-1"), ("POST", "Content-Length: 0")] {
        let larder = Larder::new(&origin, "");
        let mut client = larder.client();
        client.ask(method, "/a", fields);
        // The origin has said no more than this by now.
        assert_eq!(client.head().map(|head| head.line), Some("HTTP/1.1 102 Processing".into()));
        let hints = client.head().expect("a head");
        assert_eq!(hints.line, "HTTP/1.1 103 Early Hints");
        assert_eq!(hints.all("link"), ["</a.css>; rel=preload"]);
        assert_eq!(hints.get("x"), None);
        gate.open();
        let is_range = fields.starts_with("Range");
        assert_eq!(client.answer().text(), if is_range { "pa" } else { "page" });
        if method == "GET" && fields.is_empty() {
            assert_eq!(client.get("/a", "").hit(), Some("memory"), "the next response begins at once");
        }
    }
    let larder = Larder::new(&origin, "");
    let mut old = larder.client();
    old.raw("GET /old HTTP/1.0\r\n\r\n");
    assert_eq!(old.answer().status(), 200, "HTTP/1.0 knows no interim responses");
}

#[test]
fn hints_to_a_slow_client_are_whole_or_not_there() {
    let origin = Origin::new(|_, reply| {
        for n in 0..400 {
            let fill = char::from(b'a' + u8::try_from(n % 26).expect("a letter")).to_string().repeat(7000);
            reply.raw(format!("HTTP/1.1 103 Early Hints\r\nX-Fill: {fill}\r\n\r\n"));
        }
        reply.send(200, "", "page");
    });
    let larder = Larder::new(&origin, "");
    let mut client = larder.client();
    client.ask("GET", "/a", "");
    // It reads nothing until the origin has said all.
    origin.requests.wait_for(1);
    eventually("the origin has answered", || larder.metric("larder_origin_requests_total{outcome=\"answered\"}") == 1);
    loop {
        let head = client.head().expect("a head");
        if !head.line.contains("103") {
            assert!(head.line.contains("200"), "{}", head.line);
            break;
        }
        let fill = head.get("x-fill").expect("its field");
        assert!(fill.len() == 7000 && fill.bytes().all(|byte| byte == fill.as_bytes()[0]), "{fill:.80}");
        assert_eq!(head.fields.len(), 1);
    }
    assert_eq!(client.bytes(4).expect("a body"), b"page");
}

#[test]
fn trailers_reach_a_client_that_takes_them_and_are_not_stored() {
    let origin = Origin::new(|seen, reply| {
        let cached = if seen.path() == "/stored" { "Cache-Control: max-age=60" } else { "Cache-Control: no-store" };
        reply.begin(&format!("Trailer: X-Sum\n{cached}"));
        reply.chunk("hello");
        reply.raw("0\r\nX-Sum: 42\r\n\r\n");
    });
    let larder = Larder::new(&origin, "");
    for (path, fields, expected) in [
        ("/a", "TE: trailers\nConnection: TE", true),
        ("/a", "", false),
        ("/stored", "TE: trailers\nConnection: TE", false),
    ] {
        let mut client = larder.client();
        client.ask("GET", path, fields);
        let head = client.head().expect("a head");
        assert_eq!(head.get("trailer").is_some(), path == "/a", "what is stored announces none");
        assert_eq!(client.chunk().as_deref(), Some("hello"));
        let mut rest = String::new();
        for _ in 0..3 {
            std::io::BufRead::read_line(client.reader(), &mut rest).expect("a line");
            if rest.ends_with("\r\n\r\n") {
                break;
            }
        }
        assert_eq!(rest.to_ascii_lowercase().contains("x-sum: 42"), expected, "{path} {fields}: {rest:?}");
    }
    assert!(larder.get("/stored", "").is_hit());
}
