//! Tests that those who ask for the same at once share one fetch, and who may share its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{Count, Gate, Larder, Origin, Reply, Seen, at_once, eventually};

#[test]
fn fifty_clients_of_a_cold_slow_url_are_one_request_and_see_bytes_as_they_arrive() {
    let (head, rest) = (Gate::default(), Gate::default());
    let origin = Origin::new({
        let (head, rest) = (head.clone(), rest.clone());
        move |_, reply| {
            head.wait();
            reply.begin("Cache-Control: max-age=60");
            reply.chunk("first");
            rest.wait();
            reply.chunk("second");
            reply.end();
        }
    });
    let larder = Arc::new(Larder::new(&origin, ""));
    let joined = Count::default();
    let seen_first = Count::default();
    let clients = {
        let (larder, joined, seen_first, rest) =
            (Arc::clone(&larder), joined.clone(), seen_first.clone(), rest.clone());
        std::thread::spawn(move || {
            at_once(50, move |_| {
                let mut client = larder.client();
                client.ask("GET", "/slow", "");
                joined.add();
                let answer = client.head().expect("a head");
                assert_eq!(client.chunk().as_deref(), Some("first"));
                seen_first.add();
                rest.wait();
                assert_eq!(client.chunk().as_deref(), Some("second"));
                assert_eq!(client.chunk().as_deref(), Some(""), "a clean end");
                answer.get("cache-status").unwrap_or_default().contains("collapsed")
            })
        })
    };
    joined.wait_for(50);
    origin.requests.wait_for(1);
    head.open();
    // Everyone has the first piece before the origin sends the second.
    seen_first.wait_for(50);
    rest.open();
    let collapsed = clients.join().expect("no panic");
    assert_eq!(origin.count(), 1);
    assert_eq!(collapsed.iter().filter(|collapsed| !**collapsed).count(), 1, "one led");
}

#[test]
fn nobody_waits_for_a_response_that_cannot_be_shared() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |_, reply| {
            gate.wait();
            reply.send(200, "Cache-Control: no-store", "mine");
        }
    });
    let larder = Arc::new(Larder::new(&origin, ""));
    let clients = {
        let larder = Arc::clone(&larder);
        std::thread::spawn(move || at_once(20, move |_| larder.get("/a", "").text()))
    };
    origin.requests.wait_for(1);
    gate.open();
    assert!(clients.join().expect("no panic").iter().all(|text| text == "mine"));
    assert_eq!(origin.count(), 20);
    // And the next crowd does not even queue: all are at the origin at once.
    let gate = Gate::default();
    let arrived = origin.requests.value();
    let clients = std::thread::spawn(move || at_once(10, move |_| larder.get("/a", "").text()));
    origin.requests.wait_for(arrived + 10);
    gate.open();
    clients.join().expect("no panic");
}

#[test]
fn followers_with_other_cookies_or_credentials_get_their_own() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |seen, reply| {
            gate.wait();
            let who = seen.head.get("cookie").or(seen.head.get("authorization")).unwrap_or("nobody").to_owned();
            let vary = if seen.path() == "/vary" { "Vary: Cookie" } else { "" };
            reply.send(200, &format!("Cache-Control: max-age=60\n{vary}"), &who);
        }
    });
    let larder = Arc::new(Larder::new(&origin, ""));
    let by_cookie = {
        let larder = Arc::clone(&larder);
        std::thread::spawn(move || at_once(8, move |i| (i, larder.get("/vary", &format!("Cookie: user={i}")).text())))
    };
    let by_credentials = {
        let larder = Arc::clone(&larder);
        std::thread::spawn(move || {
            at_once(8, move |i| (i, larder.get("/auth", &format!("Authorization: user={i}")).text()))
        })
    };
    origin.requests.wait_for(2);
    gate.open();
    for (i, text) in by_cookie.join().expect("no panic").into_iter().chain(by_credentials.join().expect("no panic")) {
        assert_eq!(text, format!("user={i}"));
    }
}

#[test]
fn a_leader_that_leaves_spoils_nothing() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |_, reply| {
            reply.begin("Cache-Control: max-age=60");
            reply.chunk("one");
            gate.wait();
            reply.chunk("two");
            reply.end();
        }
    });
    let larder = Larder::new(&origin, "");
    let mut leader = larder.client();
    leader.ask("GET", "/a", "");
    leader.head().expect("a head");
    assert_eq!(leader.chunk().as_deref(), Some("one"));
    drop(leader);
    let mut follower = larder.client();
    follower.ask("GET", "/a", "");
    follower.head().expect("a head");
    assert_eq!(follower.chunk().as_deref(), Some("one"));
    gate.open();
    assert_eq!(follower.chunk().as_deref(), Some("two"));
    assert_eq!(follower.chunk().as_deref(), Some(""));
    assert_eq!(larder.get("/a", "").hit(), Some("memory"));
    assert_eq!(origin.count(), 1);
}

#[test]
fn a_leader_that_leaves_before_the_head_still_lands() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |_, reply| {
            gate.wait();
            reply.send(200, "Cache-Control: max-age=60", "x");
        }
    });
    let larder = Larder::new(&origin, "");
    let mut leader = larder.client();
    leader.ask("GET", "/a", "");
    origin.requests.wait_for(1);
    drop(leader);
    gate.open();
    eventually("the response is stored", || larder.metric("larder_memory_objects") == 1);
    assert_eq!(larder.get("/a", "").hit(), Some("memory"));
}

#[test]
fn an_origin_that_dies_in_mid_body_is_never_a_clean_end() {
    for framing in ["Content-Length: 100\r\n", "Transfer-Encoding: chunked\r\n"] {
        let origin = Origin::new(move |_, reply| {
            reply.raw(format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n{framing}\r\n"));
            reply.raw(if framing.starts_with('C') { "only this" } else { "4\r\nonly\r\n" });
            reply.hang_up();
        });
        let larder = Larder::new(&origin, "");
        for n in 1..=2 {
            let mut client = larder.client();
            client.ask("GET", "/a", "");
            assert!(client.try_answer().is_err(), "{framing}");
            assert_eq!(origin.count(), n, "nothing was stored");
        }
        assert_eq!(larder.metric("larder_memory_objects"), 0);
        assert_eq!(larder.metric("larder_fill_bytes"), 0);
    }
}

#[test]
fn a_purge_covers_a_fetch_under_way() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        let calls = AtomicUsize::new(0);
        move |_, reply| {
            if calls.fetch_add(1, Ordering::SeqCst) == 0 {
                gate.wait();
                reply.send(200, "Cache-Control: max-age=60", "old");
            } else {
                reply.send(200, "Cache-Control: max-age=60", "new");
            }
        }
    });
    let larder = Larder::new(&origin, "");
    let mut first = larder.client();
    first.ask("GET", "/a", "");
    origin.requests.wait_for(1);
    assert_eq!(larder.purge("http://site.example/a").status(), 200);
    // Who comes after the purge does not join what began before it.
    assert_eq!(larder.get("/a", "").text(), "new");
    gate.open();
    assert_eq!(first.answer().text(), "old");
    assert_eq!(larder.get("/a", "").text(), "new");
}

#[test]
fn a_body_past_its_limit_is_passed_on_whole_and_not_stored() {
    let origin = Origin::new(|_, reply| {
        reply.begin("Cache-Control: max-age=60");
        for _ in 0..64 {
            reply.chunk(&"x".repeat(16 * 1024));
        }
        reply.end();
    });
    let larder = Larder::new(&origin, "memory.max_object_size=128KiB");
    for n in 1..=2 {
        assert_eq!(larder.get("/big", "").body.len(), 1 << 20);
        assert_eq!(origin.count(), n);
    }
    assert_eq!(larder.metric("larder_memory_objects"), 0);
    assert_eq!(larder.metric("larder_fill_bytes"), 0);
    // The same when the length is known beforehand.
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=60", &"x".repeat(1 << 20)));
    let larder = Larder::new(&origin, "memory.max_object_size=128KiB");
    assert_eq!(larder.get("/big", "").body.len(), 1 << 20);
    assert_eq!(larder.metric("larder_memory_objects"), 0);
}

#[test]
fn a_slow_reader_holds_nobody_back() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |_, reply| {
            gate.wait();
            reply.send(200, "Cache-Control: max-age=60", &"x".repeat(8 << 20));
        }
    });
    let larder = Arc::new(Larder::new(&origin, ""));
    let mut slow = larder.client();
    slow.ask("GET", "/a", "");
    origin.requests.wait_for(1);
    let quick = {
        let larder = Arc::clone(&larder);
        std::thread::spawn(move || at_once(4, move |_| larder.get("/a", "").body.len()))
    };
    gate.open();
    assert_eq!(quick.join().expect("no panic"), [8 << 20; 4]);
    assert_eq!(slow.answer().body.len(), 8 << 20, "and it gets all of it in its own time");
    assert_eq!(origin.count(), 1);
}

/// A script that lets each request wait at a gate of its own, by the order in which they come.
fn gated(
    gates: &[Gate],
    script: impl Fn(usize, &mut Reply) + Send + Sync + 'static,
) -> impl Fn(&Seen, &mut Reply) + Send + Sync + 'static {
    let (gates, calls) = (gates.to_vec(), AtomicUsize::new(0));
    move |_, reply| {
        let call = calls.fetch_add(1, Ordering::SeqCst);
        if let Some(gate) = gates.get(call) {
            gate.wait();
        }
        script(call, reply);
    }
}

#[test]
fn when_a_leader_fails_one_of_those_who_wait_asks_again() {
    let gates = [Gate::default(), Gate::default()];
    let origin = Origin::new(gated(&gates, |call, reply| match call {
        0 => reply.hang_up(),
        _ => reply.send(200, "Cache-Control: max-age=60", "at last"),
    }));
    let larder = Arc::new(Larder::new(&origin, "upstream.max_idle=0"));
    let clients = larder.crowd(10, "/a");
    larder.wait_for_waiting(10);
    gates[0].open();
    origin.requests.wait_for(2);
    gates[1].open();
    let answers = clients.join().expect("no panic");
    assert_eq!(answers.iter().filter(|answer| answer.status() == 502).count(), 1, "the leader's own");
    assert_eq!(answers.iter().filter(|answer| answer.text() == "at last").count(), 9);
    assert_eq!(origin.count(), 2);
}

#[test]
fn an_origin_that_keeps_failing_is_not_asked_by_everyone() {
    let gate = Gate::default();
    let origin = Origin::new(gated(std::slice::from_ref(&gate), |_, reply| reply.hang_up()));
    let larder = Arc::new(Larder::new(&origin, "upstream.max_idle=0"));
    let clients = larder.crowd(30, "/a");
    larder.wait_for_waiting(30);
    gate.open();
    let answers = clients.join().expect("no panic");
    assert!(answers.iter().all(|answer| answer.status() == 502));
    assert!(origin.count() <= 6, "{} requests", origin.count());
    assert_eq!(larder.metric("larder_flights"), 0);
}

#[test]
fn who_has_waited_for_long_asks_as_well_within_a_limit_and_for_all() {
    let gates = [Gate::default(), Gate::default(), Gate::default()];
    let origin = Origin::new(gated(&gates, |call, reply| {
        reply.send(200, "Cache-Control: max-age=60", &format!("the answer to request {call}"));
    }));
    let larder = Arc::new(Larder::new(&origin, "cache.collapse_timeout=50ms\ncache.collapse_limit=3"));
    let clients = larder.crowd(20, "/a");
    origin.requests.wait_for(3);
    larder.wait_for_waiting(20);
    assert_eq!(origin.count(), 3, "no more than three at once");
    gates[1].open();
    // One answer is everybody's, that of those who asked themselves among them.
    let answers = clients.join().expect("no panic");
    assert!(answers.iter().all(|answer| answer.text() == "the answer to request 1"), "{:?}", answers[0].text());
    assert_eq!(larder.get("/a", "").hit(), Some("memory"));
    gates[0].open();
    gates[2].open();
    eventually("all flights land", || larder.metric("larder_flights") == 0);
    assert_eq!(larder.metric("larder_fill_bytes"), 0);
}

#[test]
fn a_follower_waits_no_longer_than_the_origin_may_take() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |_, _| gate.wait()
    });
    let config = "upstream.connect_timeout=100ms\nupstream.response_timeout=200ms\ncache.collapse_limit=1";
    let larder = Arc::new(Larder::new(&origin, config));
    for answer in larder.crowd(5, "/a").join().expect("no panic") {
        assert_eq!(answer.status(), 504);
    }
    gate.open();
}

#[test]
fn a_rule_can_have_everyone_ask_for_themselves() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |_, reply| {
            gate.wait();
            reply.send(200, "Cache-Control: max-age=60", "x");
        }
    });
    let larder = Arc::new(Larder::new(&origin, "rule=[{path = \"/a\", collapse = false}]"));
    let clients = larder.crowd(5, "/a");
    origin.requests.wait_for(5);
    gate.open();
    assert!(clients.join().expect("no panic").iter().all(|answer| answer.text() == "x"));
    assert_eq!(larder.get("/a", "").hit(), Some("memory"), "and it is stored");
}

#[test]
fn what_nobody_waits_for_goes_on_in_bounded_number() {
    const MOST: usize = larder::fetch::MAX_UNATTENDED;
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |_, reply| {
            gate.wait();
            reply.send(200, "Cache-Control: max-age=60", "x");
        }
    });
    let larder = Larder::new(&origin, "");
    let clients: Vec<_> = (0..MOST + 10)
        .map(|i| {
            let mut client = larder.client();
            client.ask("GET", &format!("/{i}"), "");
            client
        })
        .collect();
    origin.requests.wait_for(MOST + 10);
    drop(clients);
    eventually("the others are called off", || larder.metric("larder_flights") == MOST as u64);
    gate.open();
    eventually("the rest lands", || larder.metric("larder_flights") == 0);
    eventually("and is stored", || larder.metric("larder_memory_objects") == MOST as u64);
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
fn whoever_has_an_answer_without_content_finds_it_stored() {
    let origin = Origin::new(|seen, reply| {
        let status = if seen.path().starts_with("/moved") { 301 } else { 200 };
        reply.send(status, "Cache-Control: max-age=60\nLocation: /there", "");
    });
    let larder = Larder::new(&origin, "server.threads=1");
    let mut client = larder.client();
    for page in 0..100 {
        for path in [format!("/empty/{page}"), format!("/moved/{page}")] {
            // The second one is there when the first is answered.
            let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
            client.raw(request.repeat(2));
            assert!(!client.answer().is_hit());
            let second = client.answer();
            assert!(second.is_hit(), "{path}: {}", second.cache_status());
        }
    }
    assert_eq!(origin.count(), 200);
}
