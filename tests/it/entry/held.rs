//! Tests the memory that bodies hold while they pass, and what is refused past its limits.

use std::io::Read;

use crate::support::{Gate, Larder, Origin, Process, eventually};

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
fn what_clients_hold_keeps_others_from_nothing_but_large_bodies_in_memory() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |seen, reply| {
            if seen.path() == "/medium" {
                return reply.send(200, "Cache-Control: max-age=60", &"x".repeat(100_000));
            }
            if !seen.path().starts_with("/large") {
                return reply.send(200, "Cache-Control: max-age=60", "x");
            }
            reply.begin("Cache-Control: max-age=60");
            reply.chunk(&"x".repeat(3 << 19));
            gate.wait();
            reply.end();
        }
    });
    let larder = Larder::new(&origin, "server.max_buffered=1MiB");
    larder.get("/a", "");
    let mut slow = larder.client();
    slow.ask("GET", "/large", "");
    slow.head().expect("a head");
    eventually("it holds much", || larder.metric("larder_fill_bytes") > 1 << 20);
    // Small pages are kept as ever, larger ones pass, and nobody is told otherwise.
    assert!(larder.get("/small", "").cache_status().contains("stored"));
    assert_eq!(larder.get("/small", "").hit(), Some("memory"));
    for _ in 0..2 {
        let medium = larder.get("/medium", "");
        assert_eq!((medium.body.len(), medium.hit(), medium.cache_status().contains("stored")), (100_000, None, false));
    }
    // At twice as much, those that need the application wait.
    let mut another = larder.client();
    another.ask("GET", "/large2", "");
    another.head().expect("a head");
    eventually("it holds too much", || larder.metric("larder_fill_bytes") >= 1 << 20);
    let more: Vec<_> = (3..8)
        .map(|n| {
            let mut client = larder.client();
            client.ask("GET", &format!("/large{n}"), "");
            client
        })
        .collect();
    eventually("it holds too much", || larder.metric("larder_held_bytes") >= 2 << 20);
    let refused = larder.get("/b", "");
    assert_eq!((refused.status(), refused.get("retry-after")), (503, Some("1")));
    assert!(refused.cache_status().contains("detail=overloaded"), "{}", refused.cache_status());
    assert_eq!(larder.get("/a", "").hit(), Some("memory"));
    assert_eq!(larder.client().send("POST", "/a", "Content-Length: 0").status(), 200, "nothing of it is kept");
    gate.open();
    drop((slow, another, more));
    eventually("nobody does", || larder.metric("larder_held_bytes") == 0);
    assert_eq!(larder.get("/b", "").status(), 200);
}

#[test]
fn a_hit_that_nobody_reads_counts_until_it_is_over_whatever_memory_has_given_up() {
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=60", &"x".repeat(8 << 20)));
    let larder = Larder::new(&origin, "memory.capacity=20MiB\nserver.max_buffered=24MiB");
    let mut unread = Vec::new();
    for n in 0..6 {
        larder.get(&format!("/{n}"), "");
        for _ in 0..2 {
            let mut client = larder.client();
            client.ask("GET", &format!("/{n}"), "");
            assert!(client.head().is_some());
            unread.push(client);
        }
    }
    let held = larder.metric("larder_held_bytes");
    assert!(held >= 24 << 20, "those that memory gave up are counted, each once: {held}");
    assert!(held <= 40 << 20, "past that none is kept to be held: {held}");
    drop(unread);
    eventually("nobody reads any", || larder.metric("larder_held_bytes") == 0);
}

#[test]
fn large_bodies_pass_in_little_memory() {
    // The release binary is held to 2 GiB by `make large`; this is the same in small.
    const SIZE: usize = 192 << 20;
    let origin = Origin::new(|seen, reply| match seen.method() {
        "GET" => {
            reply.raw(format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: {SIZE}\r\n\r\n"));
            let block = vec![b'x'; 1 << 20];
            for _ in 0..SIZE >> 20 {
                reply.raw(&block);
            }
        }
        _ => reply.send(200, "", &seen.body.len().to_string()),
    });
    let larder = Process::start(&origin.url(), &["durable.url=off"]);
    larder.get("/warm", "Range: bytes=0-0\nConnection: close");
    let (idle, _) = larder.resident();
    let mut client = larder.client();
    client.ask("GET", "/large", "");
    client.head().expect("a head");
    let read = std::io::copy(&mut client.reader().take(SIZE as u64), &mut std::io::sink()).expect("a body");
    assert_eq!(read, SIZE as u64);
    client.raw(format!("POST /up HTTP/1.1\r\nHost: site.example\r\nContent-Length: {SIZE}\r\n\r\n"));
    let block = vec![b'x'; 1 << 20];
    for _ in 0..SIZE >> 20 {
        client.raw(&block);
    }
    assert_eq!(client.answer().text(), SIZE.to_string());
    let (_, peak) = larder.resident();
    assert!(peak < idle + (100 << 20), "{} MiB above idle", (peak - idle) >> 20);
}
