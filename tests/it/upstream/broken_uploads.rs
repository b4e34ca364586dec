//! Tests uploads whose origin or client does not go on with them.

use std::io::{Read, Write};
use std::net::TcpListener;

use crate::support::{Larder, Origin, eventually};
use larder::base::Stopwatch;

#[test]
fn a_connection_whose_upload_still_goes_out_is_not_used_again() {
    let origin = TcpListener::bind("127.0.0.1:0").expect("a port");
    let upstream = format!("http://{}", origin.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in origin.incoming() {
            let mut stream = stream.expect("a connection");
            std::thread::spawn(move || {
                // Answers as soon as it has a head, whatever body is announced.
                let mut block = [0; 4096];
                while stream.read(&mut block).is_ok_and(|n| n > 0) {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                }
            });
        }
    });
    let config = "server.threads=1\nupstream.response_timeout=20s\nupstream.buffer_request=0";
    let larder = Larder::with_upstream(&upstream, config);
    let mut uploader = larder.client();
    uploader.raw("POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\nsome");
    assert_eq!(uploader.answer().text(), "ok");
    let watch = Stopwatch::start();
    assert_eq!(larder.get("/next", "").text(), "ok");
    assert!(watch.elapsed().as_secs() < 10, "it waited for the upload");
}

#[test]
fn a_slow_upload_is_not_the_origins_silence() {
    let origin = Origin::new(|seen, reply| reply.send(200, "", &seen.body.len().to_string()));
    let larder = Larder::new(&origin, "upstream.response_timeout=1500ms\nupstream.buffer_request=0");
    let mut client = larder.client();
    client.raw("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 20\r\n\r\n");
    for _ in 0..20 {
        // The passing of time is what is tested here.
        std::thread::sleep(std::time::Duration::from_millis(100));
        client.raw("x");
    }
    assert_eq!(client.answer().text(), "20");
}

#[test]
fn an_upload_that_nobody_wants_any_more_is_timed_out() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let upstream = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            std::thread::spawn(move || {
                let mut block = [0; 4096];
                while stream.read(&mut block).is_ok_and(|n| n > 0) {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                }
            });
        }
    });
    let config = "server.header_timeout=200ms\nserver.idle_timeout=300ms\nupstream.buffer_request=0";
    let larder = Larder::with_upstream(&upstream, config);
    let mut client = larder.client();
    client.raw("POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nx");
    assert_eq!(client.answer().text(), "ok");
    assert!(client.is_closed());
    eventually("the connection is gone", || larder.metric("larder_connections ") == 0);
}

#[test]
fn an_upload_that_its_origin_does_not_read_ends_with_the_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let upstream = format!("http://{}", listener.local_addr().expect("an address"));
    // Each connection is taken, and nothing of it read.
    let unread = std::thread::spawn(move || listener.incoming().take(1).collect::<Vec<_>>());
    let config = "upstream.response_timeout=300ms\nserver.header_timeout=60s\nserver.idle_timeout=60s\nupstream.buffer_request=0";
    let larder = Larder::with_upstream(&upstream, config);
    let mut client = larder.client();
    let mut sending = client.reader().get_ref().try_clone().expect("a stream");
    let sender = std::thread::spawn(move || {
        let _ = sending.write_all(b"PUT /up HTTP/1.1\r\nHost: h\r\nContent-Length: 67108864\r\n\r\n");
        let block = vec![b'x'; 1 << 20];
        (0..64).all(|_| sending.write_all(&block).is_ok())
    });
    let answer = client.answer();
    assert_eq!((answer.status(), answer.fwd()), (504, Some("method")));
    assert!(client.is_closed(), "the client learns that the rest is of no use");
    assert!(!sender.join().expect("it sends"), "not all of it was taken");
    eventually("the connection is gone", || larder.metric("larder_connections ") == 0);
    drop(unread.join().expect("a connection"));
}

#[test]
fn a_client_that_stops_sending_is_timed_out_and_the_origin_is_not_blamed() {
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: no-store", "x"));
    for (buffered, not_sent) in [("64KiB", 0), ("0", 12)] {
        let config = "server.body_timeout=200ms\nupstream.response_timeout=100ms\nupstream.buffer_request=";
        let larder = Larder::new(&origin, &format!("{config}{buffered}"));
        for framing in ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"] {
            for _ in 0..6 {
                let mut client = larder.client();
                client.raw(format!("POST /a HTTP/1.1\r\nHost: site.example\r\n{framing}"));
                let answer = client.answer();
                assert_eq!((answer.status(), answer.get("connection")), (408, Some("close")), "{framing}");
                assert!(answer.cache_status().contains("detail=request-timeout"), "{}", answer.cache_status());
                assert!(client.is_closed());
            }
        }
        assert_eq!(larder.metric("larder_origin_down "), 0);
        let count = |outcome: &str| {
            let labels = format!("upstream=\"default\",address=\"{}\",outcome=\"{outcome}\"", origin.url());
            larder.metric(&format!("larder_upstream_requests_total{{{labels}}}"))
        };
        let counts = ["timed-out", "broken", "not-sent"].map(count);
        assert_eq!(counts, [0, 0, not_sent], "its address is not blamed either");
        assert_eq!(larder.get("/a", "").status(), 200);
    }
}
