//! One test for each mended bug that no other test names.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::binary::{Process, file_url};
use crate::support::{Client, Count, Gate, Larder, Origin, START, at_once, eventually};

#[test]
fn content_length_beside_transfer_encoding_never_reaches_a_client() {
    let origin = Origin::new(|seen, reply| match seen.path() {
        "/odd" => reply.raw(
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nCache-Control: max-age=60\r\n\r\n\
             32\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil...\r\n0\r\n\r\n",
        ),
        path => reply.send(200, "", path),
    });
    let larder = Larder::new(&origin, "");
    let mut client = larder.client();
    for _ in 0..3 {
        let answer = client.get("/odd", "");
        assert!(answer.text().starts_with("helloHTTP") && answer.text().ends_with("evil..."), "{}", answer.text());
        assert_eq!(client.get("/next", "").text(), "/next");
    }
}

#[test]
fn a_body_that_ends_with_its_connection_is_passed_on_and_not_stored() {
    let origin = Origin::new(|_, reply| {
        reply.raw("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nConnection: close\r\n\r\nperhaps all of it");
        reply.hang_up();
    });
    let larder = Larder::new(&origin, "");
    for n in 1..=2 {
        assert_eq!(larder.get("/a", "").text(), "perhaps all of it");
        assert_eq!(origin.count(), n);
    }
}

#[test]
fn a_full_fill_budget_streams_and_does_not_store() {
    for config in ["memory.fill_budget=1KiB", "memory.max_object_size=0", "memory.max_object_size=1KiB"] {
        let origin = Origin::new(|seen, reply| {
            match seen.path() {
            "/chunked" => reply.raw(format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nCache-Control: max-age=60\r\n\r\n1000\r\n{}\r\n0\r\n\r\n",
                "x".repeat(4096)
            )),
            _ => reply.send(200, "Cache-Control: max-age=60", &"x".repeat(4096)),
        }
        });
        let larder = Larder::new(&origin, config);
        for path in ["/chunked", "/known", "/chunked", "/known"] {
            assert_eq!(larder.get(path, "").body.len(), 4096, "{config} {path}");
        }
        assert_eq!(larder.metric("larder_fill_bytes"), 0);
    }
}

#[test]
fn a_field_that_connection_lists_does_not_select_a_variant() {
    let origin = Origin::new(|seen, reply| {
        let tenant = seen.head.get("x-tenant").unwrap_or("nobody").to_owned();
        reply.send(200, "Cache-Control: max-age=60\nVary: X-Tenant", &tenant);
    });
    let larder = Larder::new(&origin, "");
    assert_eq!(larder.get("/a", "X-Tenant: victim\nConnection: keep-alive, x-tenant").text(), "nobody");
    assert_eq!(larder.get("/a", "X-Tenant: victim").text(), "victim");
}

#[test]
fn vary_on_fields_that_the_proxy_writes_never_mixes_clients() {
    let origin = Origin::new(|seen, reply| {
        let name = seen.path().trim_start_matches('/').to_owned();
        let value = seen.head.get(&name).unwrap_or("none").to_owned();
        reply.send(200, &format!("Cache-Control: max-age=60\nVary: {name}"), &value);
    });
    let larder = Larder::new(&origin, "server.trusted_proxies=127.0.0.1");
    for n in 0..3 {
        assert_eq!(
            larder.get("/x-forwarded-for", &format!("X-Forwarded-For: 9.9.9.{n}")).text(),
            format!("9.9.9.{n}, 127.0.0.1")
        );
    }
    // Scheme and host are part of the key, so they select rightly.
    for scheme in ["http", "https"] {
        for _ in 0..2 {
            assert_eq!(larder.get("/x-forwarded-proto", &format!("X-Forwarded-Proto: {scheme}")).text(), scheme);
        }
    }
    assert_eq!(origin.count(), 5);
}

#[test]
fn a_purge_during_a_durable_lookup_is_not_undone() {
    let directory = tempfile::tempdir().expect("a directory");
    let origin = Origin::new(|seen, reply| match seen.method() {
        "GET" => {
            let variant = seen.head.get("x-l").unwrap_or("none").to_owned();
            reply.send(200, "Cache-Control: max-age=600\nVary: X-L", &variant);
        }
        _ => reply.send(204, "", ""),
    });
    let larder = Arc::new(Larder::new(&origin, &file_url(directory.path())));
    for round in 0..40 {
        let path = format!("/{round}");
        larder.get(&path, "X-L: kept");
        // Lookups of other variants, under way while the URL is invalidated.
        let misses = {
            let (larder, path) = (Arc::clone(&larder), path.clone());
            std::thread::spawn(move || at_once(6, move |n| drop(larder.get(&path, &format!("X-L: {n}")))))
        };
        larder.client().send("POST", &path, "Content-Length: 0");
        let asked =
            origin.seen().iter().filter(|seen| seen.path() == path && seen.head.get("x-l") == Some("kept")).count();
        larder.get(&path, "X-L: kept");
        let again =
            origin.seen().iter().filter(|seen| seen.path() == path && seen.head.get("x-l") == Some("kept")).count();
        assert_eq!(again, asked + 1, "round {round}: what was invalidated came back");
        misses.join().expect("no panic");
    }
}

#[test]
fn an_invalidation_survives_kill_9_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let origin = Origin::new(|seen, reply| match seen.method() {
        "GET" => reply.send(200, "Cache-Control: max-age=600", "page"),
        _ => reply.send(204, "", ""),
    });
    let upstream = format!("http://{}", origin.address);
    let url = file_url(directory.path());
    for _ in 0..5 {
        let larder = Process::start(&upstream, &[&url]);
        larder.get("/a", "");
        larder.settle();
        assert_eq!(larder.client().send("DELETE", "/a", "").status(), 204);
        larder.kill_9();
        let larder = Process::start(&upstream, &[&url]);
        assert_eq!(larder.get("/a", "").hit(), None);
        larder.settle();
        larder.kill_9();
    }
}

#[test]
fn a_large_durable_body_that_is_broken_inside_is_asked_for_anew() {
    let directory = tempfile::tempdir().expect("a directory");
    let body: String = (0..200_000).map(|n| format!("{n:07}\n")).collect();
    let origin = Origin::new({
        let body = body.clone();
        move |_, reply| reply.send(200, "Cache-Control: max-age=600", &body)
    });
    let config = format!("{}\ndurable.lookup_timeout=20s", file_url(directory.path()));
    let larder = Larder::new(&origin, &config);
    larder.get("/big", "");
    larder.settle();
    larder.stop();
    let bodies = directory.path().join("larder-1/b");
    let first = |path: &std::path::Path| {
        std::fs::read_dir(path).expect("a directory").next().expect("an entry").expect("an entry").path()
    };
    let file = first(&first(&first(&bodies)));
    let mut bytes = std::fs::read(&file).expect("the body");
    bytes[1_000_000] ^= 1;
    std::fs::write(&file, bytes).expect("it is spoilt");
    let larder = Larder::new(&origin, &config);
    let mut client = larder.client();
    client.ask("GET", "/big", "");
    assert!(client.try_answer().is_err(), "what can't be believed is not given out as whole");
    larder.settle();
    let answer = larder.get("/big", "");
    assert_eq!((answer.hit(), answer.text() == body), (None, true));
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody_for_long() {
    let origin = Origin::new(|_, reply| {
        reply.begin("Cache-Control: max-age=60");
        for _ in 0..48 {
            reply.chunk(&"x".repeat(1 << 20));
        }
        reply.end();
    });
    let larder = Arc::new(Larder::new(&origin, "memory.max_object_size=1MiB"));
    let mut stuck = larder.client();
    stuck.ask("GET", "/a", "");
    origin.requests.wait_for(1);
    let others = {
        let larder = Arc::clone(&larder);
        std::thread::spawn(move || at_once(3, move |_| larder.get("/a", "").body.len()))
    };
    assert_eq!(others.join().expect("no panic"), [48 << 20; 3]);
    drop(stuck);
}

#[test]
fn a_connection_whose_upload_still_goes_out_is_not_used_again() {
    let origin = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
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
    let larder = Larder::at(&upstream, config, larder::base::Clock::manual(START));
    let mut uploader = larder.client();
    uploader.raw("POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\nsome");
    assert_eq!(uploader.answer().text(), "ok");
    let watch = larder::base::Stopwatch::start();
    assert_eq!(larder.get("/next", "").text(), "ok");
    assert!(watch.elapsed().as_secs() < 10, "it waited for the upload");
}

#[test]
fn a_request_that_breaks_connections_goes_through_one_kept_one_at_most() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |seen, reply| match seen.path() {
            "/die" => reply.hang_up(),
            _ => {
                gate.wait();
                reply.send(200, "Cache-Control: no-store", "x");
            }
        }
    });
    let larder = Arc::new(Larder::new(&origin, "server.threads=1"));
    // Ten connections to the origin, all idle afterwards.
    let clients = {
        let larder = Arc::clone(&larder);
        std::thread::spawn(move || at_once(10, move |n| drop(larder.get(&format!("/{n}"), ""))))
    };
    origin.requests.wait_for(10);
    gate.open();
    clients.join().expect("no panic");
    assert_eq!(larder.get("/die", "").status(), 502);
    assert!(origin.seen().iter().filter(|seen| seen.path() == "/die").count() <= 2);
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
fn a_client_cannot_evict_what_others_use() {
    let origin = Origin::new(|seen, reply| match seen.head.get("if-none-match") {
        Some(_) => reply.send(304, "ETag: \"1\"\nCache-Control: max-age=60", ""),
        None => reply.send(200, "ETag: \"1\"\nCache-Control: max-age=60", "x"),
    });
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    for fields in [
        "Cache-Control: no-cache, no-store",
        "Cache-Control: no-cache\nAuthorization: x",
        "Cache-Control: max-age=0\nAuthorization: x",
        "Cache-Control: no-cache, no-store\nRange: bytes=0-0",
    ] {
        assert!(larder.get("/a", fields).status() < 300, "{fields}");
        assert_eq!(larder.get("/a", "").hit(), Some("memory"), "{fields}");
    }
}

#[test]
fn a_client_cannot_switch_collapsing_off() {
    for poison in ["Range: bytes=0-0", "Authorization: x", "Cache-Control: no-store"] {
        let gate = Gate::default();
        let origin = Origin::new({
            let gate = gate.clone();
            move |seen, reply| {
                if seen.head.get("range").is_some() {
                    reply.send(206, "Content-Range: bytes 0-0/2\nCache-Control: max-age=60", "x");
                    return;
                }
                if seen.head.get("x-crowd").is_some() {
                    gate.wait();
                }
                reply.send(200, "Cache-Control: max-age=60", "x");
            }
        });
        let larder = Arc::new(Larder::new(&origin, ""));
        larder.get("/a", poison);
        let crowd = {
            let larder = Arc::clone(&larder);
            let asked = Count::default();
            let seen = asked.clone();
            let threads = std::thread::spawn(move || {
                at_once(20, move |_| {
                    let mut client = larder.client();
                    client.ask("GET", "/a", "X-Crowd: 1");
                    asked.add();
                    client.answer().status()
                })
            });
            seen.wait_for(20);
            threads
        };
        origin.requests.wait_for(2);
        gate.open();
        assert_eq!(crowd.join().expect("no panic"), [200; 20]);
        // The part has no validator: what is missing is asked for in vain, once for all.
        let asked = if poison.starts_with("Range") { 3 } else { 2 };
        assert_eq!(origin.count(), asked, "{poison}");
    }
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

#[test]
fn stale_if_error_is_shared_when_the_origin_is_gone() {
    let calls = Arc::new(AtomicUsize::new(0));
    let gate = Gate::default();
    let origin = Origin::new({
        let (calls, gate) = (Arc::clone(&calls), gate.clone());
        move |_, reply| {
            if calls.fetch_add(1, Ordering::SeqCst) == 0 {
                reply.send(200, "Cache-Control: max-age=1, stale-if-error=600\nETag: \"1\"", "good");
            } else {
                gate.wait();
                reply.hang_up();
            }
        }
    });
    let larder = Arc::new(Larder::new(&origin, ""));
    larder.get("/a", "");
    larder.advance(10);
    let asked = Count::default();
    let crowd = {
        let (larder, asked) = (Arc::clone(&larder), asked.clone());
        std::thread::spawn(move || {
            at_once(10, move |_| {
                let mut client = larder.client();
                client.ask("GET", "/a", "");
                asked.add();
                client.answer().text()
            })
        })
    };
    asked.wait_for(10);
    origin.requests.wait_for(2);
    gate.open();
    assert!(crowd.join().expect("no panic").iter().all(|text| text == "good"));
    // One flight, perhaps repeated once over the kept connection, and stragglers that came after it.
    assert!(origin.count() < 10, "{}", origin.count());
}

#[test]
fn spellings_of_a_path_do_not_reach_into_a_rule() {
    let origin = Origin::answers(vec![(200, "", "private")]);
    let larder = Larder::new(&origin, "rule=[{path = \"/static/*\", override_timeout = \"1h\"}]");
    for path in ["/static/../account", "/static/%2e%2e/account", "/static/..%2faccount"] {
        larder.get(path, "Cookie: session=1");
        assert_eq!(larder.get(path, "").hit(), None, "{path}");
    }
    larder.get("/static/a.css", "");
    assert_eq!(larder.get("/static/a.css", "").hit(), Some("memory"));
}

#[test]
fn codings_and_protocols_that_nobody_asked_for_are_refused() {
    for (bytes, detail) in [
        ("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "origin-unsupported"),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\nCache-Control: max-age=60\r\n\r\n2\r\nzz\r\n0\r\n\r\n",
            "origin-unsupported",
        ),
    ] {
        let origin = Origin::new(move |_, reply| reply.raw(bytes));
        let larder = Larder::new(&origin, "");
        let answer = larder.get("/a", "");
        assert_eq!(answer.status(), 502);
        assert!(answer.cache_status().ends_with(detail), "{}", answer.cache_status());
    }
    let origin = Origin::answers(vec![(200, "", "x")]);
    let larder = Larder::new(&origin, "");
    let mut client = larder.client();
    client.raw("POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n");
    assert_eq!(client.answer().status(), 501);
    let mut client = larder.client();
    client.raw("GET * HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.answer().status(), 400);
    assert_eq!(origin.count(), 0);
}

#[test]
fn conflicting_framing_is_seen_in_pipelines_and_behind_large_heads() {
    let origin = Origin::answers(vec![(200, "Cache-Control: max-age=60", "x")]);
    let larder = Larder::new(&origin, "");
    let bad = "POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let mut client = larder.client();
    client.raw(format!("GET /a HTTP/1.1\r\nHost: h\r\n\r\n{bad}"));
    assert_eq!((client.answer().status(), client.answer().status()), (200, 400));
    let mut client = larder.client();
    let padding = "x".repeat(40 << 10);
    client.raw(format!("POST /b HTTP/1.1\r\nHost: h\r\nX: {padding}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"));
    assert_eq!(client.answer().status(), 400);
    assert_eq!(origin.count(), 1);
}

#[test]
fn bodies_are_not_taken_for_heads() {
    let origin = Origin::answers(vec![(200, "", "x")]);
    let larder = Larder::new(&origin, "");
    let mut client = larder.client();
    let parts = "--b\r\nA: 1\r\n\r\n1\r\n--b\r\nB: 2\r\n\r\n2\r\n--b--\r\n";
    let plain = format!("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{parts}", parts.len());
    let chunked = "POST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n";
    for request in [&plain, &plain, chunked, &plain, chunked, chunked, "GET /c HTTP/1.1\r\nHost: h\r\n\r\n", chunked] {
        client.raw(request);
        assert_eq!(client.answer().status(), 200, "{request}");
    }
    let bad = "POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    client.raw(bad);
    assert_eq!(client.answer().status(), 400);
}

#[test]
fn conflicting_framing_is_seen_behind_bare_line_feeds_and_while_another_is_answered() {
    let bad = "POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let gate = Gate::default();
    let origin = {
        let gate = gate.clone();
        Origin::new(move |_, reply| {
            gate.wait();
            reply.send(200, "", "x");
        })
    };
    let larder = Larder::new(&origin, "");
    let mut client = larder.client();
    client.raw("GET /a HTTP/1.1\r\nHost: h\r\n\r\n");
    origin.requests.wait_for(1);
    client.raw(bad);
    gate.open();
    assert_eq!((client.answer().status(), client.answer().status()), (200, 400));

    let mut client = larder.client();
    client.raw(format!("\r\n\r\nGET /a HTTP/1.1\nHost: h\n\n{bad}"));
    assert_eq!((client.answer().status(), client.answer().status()), (200, 400));
}

#[test]
fn a_chain_of_trusted_proxies_is_understood() {
    let origin = Origin::new(|seen, reply| {
        let of = |name: &str| seen.head.get(name).unwrap_or("none").to_owned();
        reply.send(200, "", &format!("{} {}", of("x-forwarded-proto"), of("x-forwarded-host")));
    });
    let larder = Larder::new(&origin, "server.trusted_proxies=127.0.0.1");
    for (fields, expected) in [
        ("X-Forwarded-Proto: https, http\nX-Forwarded-Host: a.example, b.example", "https a.example"),
        ("X-Forwarded-Proto: https\nX-Forwarded-Host:", "https site.example"),
        ("X-Forwarded-Proto: nonsense", "http site.example"),
    ] {
        assert_eq!(larder.get("/", fields).text(), expected, "{fields}");
    }
}

#[test]
fn a_web_page_cannot_purge_through_its_visitors_browser() {
    let origin = Origin::answers(vec![(200, "Cache-Control: max-age=60", "x")]);
    let larder = Larder::new(&origin, "");
    larder.get("/a", "");
    let mut browser = Client::connect(larder.admin);
    let body = "{\"url\": \"http://site.example/a\"}";
    browser.raw(format!(
        "POST /purge HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    assert_eq!(browser.answer().status(), 403);
    assert_eq!(larder.get("/a", "").hit(), Some("memory"));
}

#[test]
fn a_follower_on_another_thread_is_served_to_the_end_of_the_drain() {
    for _ in 0..4 {
        let gate = Gate::default();
        let origin = Origin::new({
            let gate = gate.clone();
            move |_, reply| {
                reply.begin("Cache-Control: max-age=60");
                reply.chunk("half");
                gate.wait();
                reply.chunk("rest");
                reply.end();
            }
        });
        let mut larder =
            Process::start(&format!("http://{}", origin.address), &["durable.url=off", "server.threads=4"]);
        let mut leader = larder.client();
        leader.ask("GET", "/a", "");
        leader.head().expect("a head");
        let mut followers: Vec<Client> = (0..4).map(|_| larder.client()).collect();
        for follower in &mut followers {
            follower.ask("GET", "/a", "");
            follower.head().expect("a head");
        }
        drop(leader);
        larder.signal("-TERM");
        eventually("new connections are refused", || std::net::TcpStream::connect(larder.address).is_err());
        gate.open();
        for follower in &mut followers {
            assert_eq!(follower.chunk().as_deref(), Some("half"));
            assert_eq!(follower.chunk().as_deref(), Some("rest"));
            assert_eq!(follower.chunk().as_deref(), Some(""));
        }
        drop(followers);
        assert_eq!(larder.wait(), Some(0));
    }
}

#[test]
fn a_response_of_http_1_0_that_breaks_off_is_no_clean_end() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |_, reply| {
            reply.raw("HTTP/1.0 200 OK\r\n\r\nhalf of it");
            gate.wait();
        }
    });
    let larder = Larder::new(&origin, "upstream.body_timeout=200ms");
    let mut client = larder.client();
    client.ask("GET", "/a", "");
    let head = client.head().expect("a head");
    assert_eq!((head.line.as_str(), head.get("transfer-encoding")), ("HTTP/1.1 200 OK", Some("chunked")));
    assert_eq!(client.chunk().as_deref(), Some("half of it"));
    assert_eq!(client.chunk(), None, "no last chunk");
    gate.open();
}

#[test]
fn no_connection_need_be_kept() {
    let origin = Origin::answers(vec![(200, "", "x")]);
    let larder = Larder::new(&origin, "upstream.max_idle=0");
    for _ in 0..3 {
        assert_eq!(larder.get("/a", "").text(), "x");
    }
}

#[test]
fn an_upload_that_nobody_wants_any_more_is_timed_out() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
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
    let larder = Larder::at(&upstream, config, larder::base::Clock::manual(START));
    let mut client = larder.client();
    client.raw("POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nx");
    assert_eq!(client.answer().text(), "ok");
    assert!(client.is_closed());
    eventually("the connection is gone", || larder.metric("larder_connections ") == 0);
}

#[test]
fn an_upload_that_its_origin_does_not_read_ends_with_the_answer() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let upstream = format!("http://{}", listener.local_addr().expect("an address"));
    // Each connection is taken, and nothing of it read.
    let unread = std::thread::spawn(move || listener.incoming().take(1).collect::<Vec<_>>());
    let config = "upstream.response_timeout=300ms\nserver.header_timeout=60s\nserver.idle_timeout=60s\nupstream.buffer_request=0";
    let larder = Larder::at(&upstream, config, larder::base::Clock::manual(START));
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
fn a_deletion_that_never_succeeds_does_not_stop_the_writes() {
    let directory = tempfile::tempdir().expect("a directory");
    let origin = Origin::new(|seen, reply| match seen.method() {
        "GET" => reply.send(200, "Cache-Control: max-age=600", seen.path()),
        _ => reply.send(204, "", ""),
    });
    let config = format!("{}\ndurable.queue_objects=5\ndurable.drain_timeout=0s", file_url(directory.path()));
    let larder = Larder::new(&origin, &config);
    larder.get("/stuck", "");
    larder.settle();
    // A directory in the object's place can be deleted neither by name nor in passing.
    let mut files = Vec::new();
    let mut directories = vec![directory.path().to_owned()];
    while let Some(next) = directories.pop() {
        for entry in std::fs::read_dir(next).expect("a directory").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() && !entry.ends_with("j") && !entry.ends_with("s") {
                directories.push(entry);
            } else if entry.is_file() {
                files.push(entry);
            }
        }
    }
    let object = files.pop().expect("an object");
    std::fs::remove_file(&object).expect("it goes");
    std::fs::create_dir_all(object.join("in-the-way")).expect("it is made");
    for _ in 0..20 {
        larder.client().send("DELETE", "/stuck", "");
    }
    eventually("the queue is empty", || larder.metric("larder_durable_queue_objects") == 0);
    for n in 0..5 {
        larder.get(&format!("/{n}"), "");
        eventually("the queue is empty", || larder.metric("larder_durable_queue_objects") == 0);
    }
    assert_eq!(larder.metric("larder_durable_operations_total{op=\"put\",outcome=\"dropped\"}"), 0);
    assert!(larder.metric("larder_durable_operations_total{op=\"delete\",outcome=\"error\"}") > 0);
}
