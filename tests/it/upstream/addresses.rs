//! Tests an upstream of several addresses: who is asked, what happens when one is gone, slow or full.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{Client, Gate, Larder, Origin, Process, at_once, eventually};

/// Answers with its name, which nobody may store.
fn named(name: &'static str) -> Origin {
    Origin::new(move |_, reply| reply.send(200, "Cache-Control: no-store", name))
}

/// The address of a port that nobody listens on.
fn gone() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("an address"))
}

fn before(urls: &[&str], config: &str) -> Larder {
    Larder::with_upstream(&urls.join(", "), config)
}

#[test]
fn each_address_gets_its_share() {
    let (a, b, c) = (named("a"), named("b"), named("c"));
    for (balance, heavy) in [("p2c", 1), ("round_robin", 1), ("round_robin", 3)] {
        let counts = [&a, &b, &c].map(Origin::count);
        let larder = before(
            &[&a.url(), &format!("{} weight={heavy}", b.url()), &c.url()],
            &format!("upstream.balance={balance}"),
        );
        let mut client = larder.client();
        for n in 0..200 {
            assert_eq!(client.get(&format!("/{n}"), "").status(), 200);
        }
        let more: Vec<usize> = [&a, &b, &c].iter().zip(counts).map(|(origin, count)| origin.count() - count).collect();
        assert_eq!(more.iter().sum::<usize>(), 200);
        if balance == "round_robin" {
            let share = 200 / (2 + heavy);
            for (count, expected) in more.iter().zip([share, share * heavy, share]) {
                assert!(count.abs_diff(expected) <= heavy, "{balance} {heavy}: {more:?}");
            }
        } else {
            assert!(more.iter().all(|count| *count > 20), "{more:?}");
        }
    }
}

#[test]
fn what_one_address_did_not_get_another_answers() {
    let (a, dead) = (named("a"), gone());
    let larder = before(&[&dead, &a.url()], "upstream.breaker_failures=3");
    let mut client = larder.client();
    for method in ["GET", "POST", "DELETE", "GET"].iter().cycle().take(60) {
        let answer = client.send(method, "/", "");
        assert_eq!((answer.status(), answer.text().as_str()), (200, "a"), "{method}");
    }
    assert!(larder.metric("larder_origin_retries_total") >= 3);
    assert_eq!(larder.metric("larder_origin_downs_total"), 1, "it is not asked any more");
}

#[test]
fn only_what_may_be_repeated_goes_to_another_address() {
    for (method, content, repeats) in
        [("GET", "", true), ("PUT", "abc", true), ("DELETE", "", true), ("POST", "abc", false), ("PATCH", "abc", false)]
    {
        let breaks = Origin::new(|_, reply| reply.hang_up());
        let a = named("a");
        let larder = before(&[&breaks.url(), &a.url()], "upstream.balance=round_robin\nserver.threads=1");
        let mut statuses = Vec::new();
        for _ in 0..4 {
            let mut client = larder.client();
            client.raw(format!(
                "{method} / HTTP/1.1\r\nHost: site.example\r\nContent-Length: {}\r\n\r\n{content}",
                content.len()
            ));
            statuses.push(client.answer().status());
        }
        assert!(breaks.count() > 0, "{method}");
        let failed = statuses.iter().filter(|status| **status == 502).count();
        assert_eq!(failed, if repeats { 0 } else { breaks.count() }, "{method}: {statuses:?}");
    }
}

#[test]
fn a_timeout_is_not_repeated() {
    let slow = Origin::new(|_, _| std::thread::park());
    let a = named("a");
    let larder = before(
        &[&slow.url(), &a.url()],
        "upstream.balance=round_robin\nupstream.response_timeout=300ms\nserver.threads=1",
    );
    let statuses: Vec<u16> = (0..4).map(|_| larder.get("/", "").status()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 504).count(), slow.count(), "{statuses:?}");
    assert_eq!(slow.count(), 2);
}

#[test]
fn a_request_that_breaks_whoever_gets_it_does_not_go_through_all() {
    let origins: Vec<Origin> = (0..8)
        .map(|_| {
            Origin::new(|seen, reply| match seen.path() {
                "/poison" => reply.hang_up(),
                _ => reply.send(200, "Cache-Control: no-store", "x"),
            })
        })
        .collect();
    let urls: Vec<String> = origins.iter().map(Origin::url).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let larder = before(&urls, "upstream.balance=round_robin\nserver.threads=1\nupstream.breaker_failures=0");
    for is_warm in [false, true] {
        if is_warm {
            let mut client = larder.client();
            (0..16).for_each(|n| assert_eq!(client.get(&format!("/{n}"), "").status(), 200));
        }
        let seen = || origins.iter().map(Origin::count).sum::<usize>();
        let before = seen();
        assert_eq!(larder.get("/poison", "").status(), 502);
        assert!((2..=3).contains(&(seen() - before)), "{is_warm}: {}", seen() - before);
    }
}

#[test]
fn repetitions_are_a_part_of_the_requests() {
    let breaks = [Origin::new(|_, reply| reply.hang_up()), Origin::new(|_, reply| reply.hang_up())];
    let larder =
        before(&[&breaks[0].url(), &breaks[1].url()], "upstream.retry_budget=0.1\nupstream.breaker_failures=0");
    for _ in 0..300 {
        assert_eq!(larder.get("/", "").status(), 502);
    }
    let retries = larder.metric("larder_origin_retries_total");
    assert!((100..=135).contains(&retries), "100 at first, then each tenth: {retries}");
}

#[test]
fn a_backup_is_asked_only_when_no_other_answers() {
    let (a, backup) = (named("a"), named("backup"));
    let larder = before(&[&a.url(), &format!("{} backup", backup.url())], "");
    for _ in 0..20 {
        assert_eq!(larder.get("/", "").text(), "a");
    }
    assert_eq!(backup.count(), 0);
    let larder = before(&[&gone(), &format!("{} backup", backup.url())], "");
    for _ in 0..20 {
        assert_eq!(larder.get("/", "").text(), "backup");
    }
}

#[test]
fn one_path_goes_to_one_address_by_hash() {
    let origins = [named("a"), named("b"), named("c")];
    let urls: Vec<String> = origins.iter().map(Origin::url).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    for (by, field) in [("path", ""), ("field:x-user", "X-User: 7"), ("cookie:user", "Cookie: a=1; user=7; b=2")] {
        let larder = before(&urls, &format!("upstream.balance=hash\nupstream.hash_by={by}"));
        let answers: Vec<String> = (0..20).map(|_| larder.get("/one", field).text()).collect();
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{by}: {answers:?}");
        let others: std::collections::BTreeSet<String> = (0..50)
            .map(|n| match by {
                "path" => larder.get(&format!("/{n}"), "").text(),
                "field:x-user" => larder.get("/", &format!("X-User: {n}")).text(),
                _ => larder.get("/", &format!("Cookie: user={n}")).text(),
            })
            .collect();
        assert_eq!(others.len(), 3, "{by}");
    }
}

#[test]
fn an_address_never_has_more_under_way_than_it_may() {
    let most = Arc::new(AtomicUsize::new(0));
    let now = Arc::new(AtomicUsize::new(0));
    let (seen_most, seen_now) = (Arc::clone(&most), Arc::clone(&now));
    let origin = Origin::new(move |seen, reply| {
        let under_way = seen_now.fetch_add(1, Ordering::SeqCst) + 1;
        seen_most.fetch_max(under_way, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(5));
        seen_now.fetch_sub(1, Ordering::SeqCst);
        let control = if seen.path() == "/hit" { "max-age=600" } else { "no-store" };
        reply.send(200, &format!("Cache-Control: {control}"), "x");
    });
    let larder = Larder::new(&origin, "upstream.max_requests=2");
    assert_eq!(larder.get("/hit", "").status(), 200);
    let address = larder.address;
    let answers = at_once(60, move |n| {
        let mut client = Client::connect(address);
        (client.get(&format!("/{n}"), "").status(), client.get("/hit", "").is_hit())
    });
    assert!(answers.iter().all(|answer| *answer == (200, true)), "{answers:?}");
    assert!((1..=2).contains(&most.load(Ordering::SeqCst)), "{most:?}");
}

#[test]
fn who_waits_too_long_or_finds_the_queue_full_is_told_to_come_again() {
    let (origin, gate) = Origin::gated();
    let larder = Larder::new(&origin, "upstream.max_requests=1\nupstream.max_waiting=1\nupstream.queue_timeout=1s");
    let mut first = larder.client();
    first.ask("GET", "/slow", "");
    eventually("it is under way", || origin.count() == 1);
    let mut second = larder.client();
    second.ask("POST", "/2", "Content-Length: 0");
    eventually("it waits", || larder.running().proxy().usage().queued == 1);
    let third = larder.send_raw("POST /3 HTTP/1.1\r\nHost: site.example\r\nContent-Length: 0\r\n\r\n");
    assert_eq!((third.status(), third.get("retry-after")), (503, Some("1")), "the queue is full");
    let second = second.answer();
    assert_eq!((second.status(), second.get("retry-after")), (503, Some("1")), "it waited for a second");
    gate.open();
    assert_eq!(first.answer().status(), 200);
    assert_eq!(larder.get("/after", "").status(), 200, "the room is free again");
    assert_eq!(origin.count(), 2, "nobody else was let through");
}

#[test]
fn who_leaves_while_waiting_takes_no_room() {
    let (origin, gate) = Origin::gated();
    let larder = Larder::new(&origin, "upstream.max_requests=1");
    let mut first = larder.client();
    first.ask("GET", "/slow", "");
    eventually("it is under way", || origin.count() == 1);
    for n in 0..20 {
        let mut leaves = larder.client();
        leaves.ask("POST", &format!("/leaves/{n}"), "Content-Length: 0");
        eventually("it waits", || larder.running().proxy().usage().queued >= 1);
    }
    gate.open();
    assert_eq!(first.answer().status(), 200);
    for n in 0..3 {
        assert_eq!(larder.get(&format!("/after/{n}"), "").status(), 200);
    }
}

#[test]
fn an_address_that_fails_its_health_checks_gets_no_requests() {
    let sick = Arc::new(AtomicBool::new(false));
    let (a, b) = (sickly("a", &sick), named("b"));
    let larder = before(&[&a.url(), &b.url()], CHECKED);
    let answers =
        |count: usize| (0..count).map(|_| larder.get("/", "").text()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(answers(10).len(), 2);
    sick.store(true, Ordering::SeqCst);
    eventually("it is taken out", || answers(6).len() == 1);
    for _ in 0..20 {
        assert_eq!(larder.get("/", "").text(), "b");
    }
    sick.store(false, Ordering::SeqCst);
    eventually("it is back", || answers(6).len() == 2);
}

#[test]
fn an_address_that_was_down_is_found_again_without_a_client() {
    let port = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = port.local_addr().expect("an address");
    drop(port);
    let b = named("b");
    let larder = before(
        &[&format!("http://{address}"), &b.url()],
        "upstream.breaker_failures=1\nupstream.breaker_pause=20ms\nupstream.balance=round_robin\nupstream.slow_start=1ms",
    );
    for _ in 0..10 {
        assert_eq!(larder.get("/", "").text(), "b");
    }
    let listener = TcpListener::bind(address).expect("the port is free");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                use std::io::{BufRead, BufReader, Write};
                let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
                let mut stream = stream;
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|read| read > 0) {
                    if line == "\r\n" || line.ends_with("\n\r\n") {
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na");
                        line.clear();
                    }
                }
            });
        }
    });
    eventually("it is asked again", || (0..4).any(|_| larder.get("/", "").text() == "a"));
}

/// Answers its health checks with 500 while `is_sick`, and pages with its name.
fn sickly(name: &'static str, is_sick: &Arc<AtomicBool>) -> Origin {
    let is_sick = Arc::clone(is_sick);
    Origin::new(move |seen, reply| match seen.path() {
        "/healthz" if is_sick.load(Ordering::SeqCst) => reply.send(500, "", ""),
        _ => reply.send(200, "Cache-Control: no-store", name),
    })
}

fn is_healthy(larder: &Larder, url: &str) -> bool {
    larder.metric(&format!("larder_upstream_healthy{{upstream=\"default\",address=\"{url}\"}}")) == 1
}

const CHECKED: &str = "upstream.health_path=/healthz\nupstream.health_interval=20ms\nupstream.balance=round_robin\n\
                       upstream.slow_start=1ms";

#[test]
fn an_address_that_does_not_answer_its_check_delays_no_other_check() {
    let is_sick = Arc::new(AtomicBool::new(false));
    let a = sickly("a", &is_sick);
    let hangs = Origin::new(|seen, reply| match seen.path() {
        "/healthz" => std::thread::park(),
        _ => reply.send(200, "Cache-Control: no-store", "hangs"),
    });
    let larder = before(&[&a.url(), &hangs.url()], &format!("{CHECKED}\nupstream.health_timeout=1h"));
    eventually("it is checked", || hangs.count() > 0);
    is_sick.store(true, Ordering::SeqCst);
    eventually("the other one is taken out", || (0..6).all(|_| larder.get("/", "").text() == "hangs"));
    is_sick.store(false, Ordering::SeqCst);
    eventually("and comes back", || (0..6).any(|_| larder.get("/", "").text() == "a"));
}

#[test]
fn requests_are_spread_even_where_all_fail_their_health_checks() {
    let is_sick = Arc::new(AtomicBool::new(true));
    let origins = ["a", "b", "c"].map(|name| sickly(name, &is_sick));
    let urls = origins.each_ref().map(Origin::url);
    let larder = before(&urls.each_ref().map(String::as_str), CHECKED);
    eventually("none is healthy", || urls.iter().all(|url| !is_healthy(&larder, url)));
    let answers: std::collections::BTreeSet<String> = (0..12).map(|_| larder.get("/", "").text()).collect();
    assert_eq!(answers.len(), 3, "{answers:?}");
}

#[test]
fn who_waits_is_let_through_although_health_checks_fail() {
    let (gate, is_sick) = (Gate::default(), Arc::new(AtomicBool::new(false)));
    let (held, sick) = (gate.clone(), Arc::clone(&is_sick));
    let origin = Origin::new(move |seen, reply| match seen.path() {
        "/healthz" if sick.load(Ordering::SeqCst) => reply.send(500, "", ""),
        "/slow" => {
            held.wait();
            reply.send(200, "Cache-Control: no-store", "slow");
        }
        _ => reply.send(200, "Cache-Control: no-store", "x"),
    });
    let larder = before(&[&origin.url()], &format!("{CHECKED}\nupstream.max_requests=1"));
    let mut clients: Vec<Client> = ["/slow", "/1", "/2", "/3"].map(|path| waiting(&larder, path, &origin.url())).into();
    is_sick.store(true, Ordering::SeqCst);
    eventually("it is not healthy", || !is_healthy(&larder, &origin.url()));
    gate.open();
    for client in &mut clients {
        assert_eq!(client.answer().status(), 200, "nobody else is there to ask");
    }
}

#[test]
fn who_waits_gets_the_room_of_an_address_that_comes_up() {
    let (gate, is_sick) = (Gate::default(), Arc::new(AtomicBool::new(true)));
    let held = gate.clone();
    let busy = Origin::new(move |seen, reply| {
        if seen.path() == "/slow" {
            held.wait();
        }
        reply.send(200, "Cache-Control: no-store", "busy");
    });
    let back = sickly("back", &is_sick);
    let larder = before(&[&busy.url(), &back.url()], &format!("{CHECKED}\nupstream.max_requests=1"));
    eventually("one is not healthy", || !is_healthy(&larder, &back.url()));
    let [mut slow, mut one, mut two] = ["/slow", "/1", "/2"].map(|path| waiting(&larder, path, &busy.url()));
    is_sick.store(false, Ordering::SeqCst);
    for client in [&mut one, &mut two] {
        assert_eq!(client.answer().text(), "back", "the other one is busy still");
    }
    gate.open();
    assert_eq!(slow.answer().text(), "busy");
}

/// Asks for `path`, and returns once the request is at the address `url` or in the queue.
fn waiting(larder: &Larder, path: &str, url: &str) -> Client {
    let at_address = format!("larder_upstream_requests{{upstream=\"default\",address=\"{url}\"}}");
    let has = || larder.running().proxy().usage().queued + larder.metric(&at_address);
    let before = has();
    let mut client = larder.client();
    client.ask("POST", path, "Content-Length: 0");
    eventually("it is on its way", || has() > before);
    client
}

#[test]
fn who_could_not_share_an_answer_does_not_wait_again_behind_all_others() {
    let (first, second) = (Gate::default(), Gate::default());
    let gates = [first.clone(), second.clone()];
    let next = AtomicUsize::new(0);
    let origin = Origin::new(move |_, reply| {
        if let Some(gate) = gates.get(next.fetch_add(1, Ordering::SeqCst)) {
            gate.wait();
        }
        reply.send(200, "Cache-Control: no-store", "x");
    });
    let larder = Larder::new(&origin, "upstream.max_requests=1");
    let queued = |n: u64| eventually("they wait", || larder.running().proxy().usage().queued == n);
    let mut clients = [larder.client(), larder.client(), larder.client(), larder.client()];
    clients[0].ask("GET", "/private", "");
    origin.requests.wait_for(1);
    clients[1].ask("GET", "/private", "");
    larder.wait_for_waiting(2);
    for (n, client) in clients[2..].iter_mut().enumerate() {
        client.ask("POST", &format!("/{n}"), "Content-Length: 0");
        queued(n as u64 + 1);
    }
    first.open();
    origin.requests.wait_for(2);
    queued(2);
    second.open();
    for client in &mut clients {
        assert_eq!(client.answer().status(), 200);
    }
    let paths: Vec<String> = origin.seen().iter().map(|seen| seen.path().to_owned()).collect();
    let second = paths.iter().rposition(|path| path == "/private");
    assert!(second < paths.iter().position(|path| path == "/1"), "{paths:?}");
}

#[test]
fn who_finds_no_room_gets_a_stale_response_where_there_is_one() {
    let (origin, gate) = Origin::gated();
    let larder = Larder::new(&origin, "upstream.max_requests=1\nupstream.max_waiting=1\nupstream.queue_timeout=300ms");
    gate.open();
    origin.script(|_, reply| reply.send(200, "Cache-Control: max-age=10", "stored"));
    assert_eq!(larder.get("/page", "").text(), "stored");
    larder.advance(60);
    let held = crate::support::Gate::default();
    let opens = held.clone();
    origin.script(move |_, reply| {
        opens.wait();
        reply.send(200, "Cache-Control: no-store", "new");
    });
    let before = origin.count();
    let mut first = larder.client();
    first.ask("POST", "/slow", "Content-Length: 0");
    eventually("it is under way", || origin.count() == before + 1);
    let waited = larder.get("/page", "");
    assert_eq!((waited.status(), waited.text().as_str()), (200, "stored"), "after queue_timeout");
    let mut second = larder.client();
    second.ask("POST", "/fills-the-queue", "Content-Length: 0");
    eventually("it waits", || larder.running().proxy().usage().queued == 1);
    let at_once = larder.get("/page", "");
    assert_eq!((at_once.status(), at_once.text().as_str()), (200, "stored"), "the queue is full");
    held.open();
    assert_eq!(first.answer().status(), 200);
}

/// An application with one worker, which goes on with what it has begun whether or not its client has left.
struct OneWorker {
    origin: Origin,
    gate: Gate,
}

impl OneWorker {
    fn new() -> Self {
        let gate = Gate::default();
        let opens = gate.clone();
        let worker = Mutex::new(());
        let origin = Origin::new(move |seen, reply| {
            let _worker = worker.lock();
            if seen.path() != "/at-once" && seen.head.get("x-fast").is_none() {
                opens.wait();
            }
            reply.send(200, "Cache-Control: no-store", seen.path());
        });
        Self { origin, gate }
    }
}

#[test]
fn who_leaves_gives_no_room_that_the_application_does_not_have() {
    for method in ["POST", "GET", "OPTIONS", "PUT"] {
        let OneWorker { origin, gate } = OneWorker::new();
        let larder = Larder::new(&origin, "upstream.max_requests=1");
        // From here on it is known that the answers can't be shared.
        assert_eq!(larder.client().send(method, "/slow", "X-Fast: 1\r\nContent-Length: 0").status(), 200);
        let mut leaves = larder.client();
        leaves.ask(method, "/slow", "Content-Length: 0");
        eventually("it is at work", || origin.count() == 2);
        drop(leaves);
        let count = origin.count();
        let mut next = larder.client();
        next.ask("POST", "/next", "Content-Length: 0");
        eventually("it waits", || larder.running().proxy().usage().queued == 1);
        eventually("it is seen that the client left", || larder.metric("larder_connections ") == 1);
        assert_eq!((larder.running().proxy().usage().queued, origin.count()), (1, count), "{method}");
        gate.open();
        assert_eq!(next.answer().text(), "/next", "{method}");
    }
}

#[test]
fn who_was_told_that_it_took_too_long_gives_no_room_either() {
    for method in ["POST", "GET"] {
        let OneWorker { origin, gate } = OneWorker::new();
        let larder = Larder::new(&origin, "upstream.max_requests=1\nupstream.response_timeout=2s");
        let slow = larder.client().send(method, "/slow", "Content-Length: 0");
        assert_eq!(slow.status(), 504, "{method}");
        let mut next = larder.client();
        next.ask("POST", "/next", "Content-Length: 0");
        eventually("it waits", || larder.running().proxy().usage().queued == 1);
        assert_eq!(origin.count(), 1, "{method}: the worker has only that");
        gate.open();
        assert_eq!(next.answer().status(), 200);
    }
}

#[test]
fn who_leaves_the_queue_is_never_sent() {
    for method in ["GET", "POST", "PUT", "DELETE", "OPTIONS"] {
        let OneWorker { origin, gate } = OneWorker::new();
        let larder = Larder::new(&origin, "upstream.max_requests=1");
        let mut first = larder.client();
        first.ask("POST", "/first", "Content-Length: 0");
        eventually("it is at work", || origin.count() == 1);
        for n in 0..10 {
            let mut leaves = larder.client();
            leaves.ask(method, &format!("/left/{n}"), "Content-Length: 0");
            eventually("it waits", || larder.running().proxy().usage().queued >= 1);
        }
        eventually("all have left", || larder.running().proxy().usage().queued == 0);
        let mut last = larder.client();
        last.ask("POST", "/last", "Content-Length: 0");
        eventually("it waits", || larder.running().proxy().usage().queued == 1);
        gate.open();
        assert_eq!((first.answer().text(), last.answer().text()), ("/first".into(), "/last".into()), "{method}");
        let paths: Vec<String> = origin.seen().iter().map(|seen| seen.path().to_owned()).collect();
        assert_eq!(paths, ["/first", "/last"], "{method}");
    }
}

#[test]
fn a_tunnel_counts_among_the_requests_under_way() {
    let ends = Gate::default();
    let opens = ends.clone();
    let origin = Origin::new(move |seen, reply| {
        if seen.head.get("upgrade").is_some() {
            reply.raw("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
            opens.wait();
            return reply.hang_up();
        }
        reply.send(200, "Cache-Control: no-store", "x");
    });
    let larder = Larder::new(&origin, "upstream.max_requests=1");
    let mut tunnel = larder.client();
    tunnel.raw("GET /ws HTTP/1.1\r\nHost: site.example\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
    assert!(tunnel.head().expect("a head").line.contains("101"));
    let mut waits = larder.client();
    waits.ask("POST", "/", "Content-Length: 0");
    eventually("it waits", || larder.running().proxy().usage().queued == 1);
    drop(tunnel);
    ends.open();
    assert_eq!(waits.answer().status(), 200);
}

#[test]
fn a_full_address_is_not_unhealthy_because_its_check_has_to_wait() {
    let OneWorker { origin, gate } = OneWorker::new();
    let larder = Larder::new(
        &origin,
        "upstream.max_requests=1\nupstream.health_path=/at-once\nupstream.health_interval=20ms\nupstream.health_timeout=20ms",
    );
    let checks = || origin.seen().iter().filter(|seen| seen.path() == "/at-once").count();
    eventually("checks go out", || checks() > 1);
    let mut slow = larder.client();
    slow.ask("POST", "/slow", "Content-Length: 0");
    eventually("it is at work", || origin.seen().iter().any(|seen| seen.path() == "/slow"));
    let before = checks();
    eventually("checks come to nothing", || checks() > before + 5);
    assert!(is_healthy(&larder, &origin.url()));
    gate.open();
    assert_eq!(slow.answer().status(), 200);
}

#[test]
fn one_client_floods_no_log_with_an_address_that_goes_down_and_up() {
    let origin = Origin::new(|seen, reply| {
        if seen.path().starts_with("/crash") {
            reply.hang_up();
        } else {
            reply.send(200, "Cache-Control: no-store", "x");
        }
    });
    let process = Process::start(
        &origin.url(),
        &["durable.url=off", "upstream.breaker_failures=2", "upstream.breaker_pause=1ms"],
    );
    let mut client = process.client();
    for n in 0..40 {
        for path in 0..4 {
            client.get(&format!("/crash/{n}/{path}"), "");
        }
        eventually("it answers again", || client.get("/", "").status() == 200);
    }
    assert!(process.metric("larder_origin_downs_total") >= 30);
    let log = process.log();
    let lines = |words: &str| log.lines().filter(|line| line.contains(words)).count();
    assert!((1..=20).contains(&lines("counts as down")), "{log}");
    assert!((1..=20).contains(&lines("answers again")), "{log}");
}

#[test]
fn a_request_that_breaks_whoever_gets_it_counts_at_one_address() {
    let crashes = || {
        Origin::new(|seen, reply| match seen.path() {
            "/" => reply.send(200, "Cache-Control: no-store", "x"),
            _ => reply.hang_up(),
        })
    };
    let (a, b) = (crashes(), crashes());
    let larder =
        before(&[&a.url(), &b.url()], "upstream.breaker_failures=3\nupstream.balance=round_robin\nserver.threads=1");
    for n in 0..3 {
        assert_eq!(larder.get(&format!("/crash/{n}"), "").status(), 502);
    }
    assert!(a.count() >= 3 && b.count() >= 3, "each was asked for each");
    assert_eq!(larder.metric("larder_origin_downs_total"), 0);
}
