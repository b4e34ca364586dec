//! Tests what nodes share with each other, and what is one client's alone.

use super::*;

#[test]
fn what_one_client_alone_may_have_reaches_no_other() {
    let next = AtomicUsize::new(0);
    let origin = Origin::new(move |seen, reply| {
        let n = next.fetch_add(1, Ordering::SeqCst);
        let fields = match seen.path() {
            "/private" => "Cache-Control: private, max-age=60".to_owned(),
            "/no-store" => "Cache-Control: no-store".to_owned(),
            "/cookie" => format!("Cache-Control: max-age=60\nSet-Cookie: id={n}"),
            _ => "Cache-Control: max-age=60\nVary: *".to_owned(),
        };
        reply.send(200, &fields, &n.to_string());
    });
    let nodes = Nodes::start(&origin, 4, "");
    for path in ["/private", "/no-store", "/cookie", "/any"] {
        let crowds: Vec<_> = nodes.nodes.iter().map(|node| node.crowd(10, path)).collect();
        let mut seen: Vec<String> = Vec::new();
        for answer in crowds.into_iter().flat_map(|crowd| crowd.join().expect("no panic")) {
            assert!(!seen.contains(&answer.text()), "{path}: {} twice", answer.text());
            if path == "/cookie" {
                assert_eq!(answer.get("set-cookie"), Some(&*format!("id={}", answer.text())));
            }
            seen.push(answer.text());
        }
        for node in &nodes.nodes {
            let answer = node.get(path, "");
            assert!(!answer.is_hit() && !seen.contains(&answer.text()), "{path}: {:?}", answer.head);
            seen.push(answer.text());
        }
    }
    // Nobody asks a peer for what was not storable of late.
    let before: u64 = nodes.nodes.iter().map(|node| asked(node, "own") + asked(node, "declined")).sum();
    nodes.nodes.iter().for_each(|node| drop(node.get("/private", "")));
    let after: u64 = nodes.nodes.iter().map(|node| asked(node, "own") + asked(node, "declined")).sum();
    assert_eq!(before, after);
}

#[test]
fn variants_are_told_apart_by_what_each_client_sends() {
    let origin = Origin::new(|seen, reply| {
        let language = seen.head.get("accept-language").unwrap_or("-").to_owned();
        reply.send(200, "Cache-Control: max-age=60\nVary: Accept-Language", &language);
    });
    let nodes = Nodes::start(&origin, 3, "");
    for _ in 0..2 {
        for language in ["de", "fr", "en"] {
            for node in &nodes.nodes {
                assert_eq!(node.get("/page", &format!("Accept-Language: {language}")).text(), language);
            }
        }
    }
    assert_eq!(origin.count(), 3);
    // At once, and by all.
    let waiting = nodes.nodes.clone();
    let answers = at_once(60, move |n| {
        let language = ["it", "es", "pt"][n % 3];
        (language, waiting[n / 3 % 3].get("/other", &format!("Accept-Language: {language}")).text())
    });
    assert!(answers.iter().all(|(language, text)| language == text), "{answers:?}");
}

#[test]
fn the_origin_is_told_of_the_client_and_the_key_is_the_same_on_every_node() {
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=60", "page"));
    let nodes = Nodes::start(&origin, 2, "server.trusted_proxies=127.0.0.1");
    let (named, others) = nodes.named_for("https://shop.example/page");
    let (named, asking) = (&nodes.nodes[named], &nodes.nodes[others[0]]);
    let fields = "X-Forwarded-For: 192.0.2.7\nX-Forwarded-Proto: https\nX-Forwarded-Host: shop.example\nCookie: a=b";
    let answer = asking.get("/page", fields);
    assert_eq!(answer.status(), 200);
    let seen = origin.last();
    for field in [
        "X-Forwarded-For: 192.0.2.7, 127.0.0.1",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: shop.example",
        "Host: shop.example",
        "Cookie: a=b",
    ] {
        assert!(seen.has(field), "{field} in {:?}", seen.head);
    }
    assert!(named.get("/page", fields).is_hit());
    assert!(!named.get("/page", "").is_hit(), "another host, another page");
    assert_eq!(origin.count(), 2);
}

#[test]
fn only_what_clients_share_goes_through_peers() {
    let origin = Origin::new(|seen, reply| match seen.head.get("range") {
        Some(_) => reply.send(206, "Content-Range: bytes 0-0/10\nCache-Control: max-age=60", "0"),
        None => reply.send(200, "Cache-Control: max-age=60\nETag: \"a\"", "0123456789"),
    });
    let nodes = Nodes::start(&origin, 2, "");
    let (_, others) = nodes.named("/page");
    let asking = &nodes.nodes[others[0]];
    let send = |method: &str, fields: &str| asking.client().send(method, "/page", fields).status();
    assert_eq!(send("POST", "Content-Length: 0"), 200);
    assert_eq!(send("OPTIONS", ""), 200);
    assert_eq!(send("HEAD", ""), 200);
    assert_eq!(send("GET", "Range: bytes=0-0"), 206);
    assert_eq!(send("GET", "Cache-Control: only-if-cached"), 504);
    assert_eq!(send("GET", "Cache-Control: no-store"), 200);
    assert_eq!(send("GET", "If-Match: \"a\""), 200);
    for outcome in ["shared", "own", "declined", "failed", "silent", "strange", "purged"] {
        assert_eq!(asked(asking, outcome), 0, "{outcome}");
    }
    assert_eq!(send("GET", "If-None-Match: \"a\""), 304);
    assert_eq!(asked(asking, "shared"), 1);
}

#[test]
fn a_page_has_its_age_and_is_stale_everywhere_at_once() {
    let version = Arc::new(AtomicUsize::new(1));
    let origin = Origin::new({
        let version = Arc::clone(&version);
        move |seen, reply| {
            let version = version.load(Ordering::SeqCst).to_string();
            let fields = format!("Cache-Control: max-age=60, stale-while-revalidate=0\nETag: \"{version}\"");
            if seen.head.get("if-none-match") == Some(&*format!("\"{version}\"")) {
                return reply
                    .raw(format!("HTTP/1.1 304 X\r\nETag: \"{version}\"\r\nCache-Control: max-age=60\r\n\r\n"));
            }
            reply.send(200, &fields, &version);
        }
    });
    let nodes = Nodes::start(&origin, 3, "");
    let (named, others) = nodes.named("/page");
    let (named, one, other) = (&nodes.nodes[named], &nodes.nodes[others[0]], &nodes.nodes[others[1]]);
    assert_eq!(named.get("/page", "").text(), "1");
    named.advance(40);
    let answer = one.get("/page", "");
    assert_eq!((answer.get("age"), answer.fwd()), (Some("40"), Some("uri-miss")));
    assert!(answer.cache_status().contains("stored; ttl=20; detail=peer"), "{}", answer.cache_status());
    named.advance(10);
    assert_eq!(one.get("/page", "").get("age"), Some("50"));
    named.advance(20);
    // Stale on all: one validation for all of them.
    for node in [one, named, other] {
        let answer = node.get("/page", "");
        assert_eq!((answer.text().as_str(), answer.get("age")), ("1", Some("0")), "{:?}", answer.head);
    }
    assert_eq!(origin.count(), 2);
    version.fetch_add(1, Ordering::SeqCst);
    named.advance(70);
    for node in [other, one, named] {
        assert_eq!(node.get("/page", "").text(), "2");
    }
    assert_eq!(origin.count(), 3);
}

#[test]
fn the_time_for_which_the_origin_was_waited_for_counts_once() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |_, reply| {
            gate.wait();
            reply.send(200, "Cache-Control: max-age=600", "page");
        }
    });
    let nodes = Nodes::start(&origin, 2, "");
    let (named, others) = nodes.named("/page");
    let asking = &nodes.nodes[others[0]];
    let waiting = asking.crowd(1, "/page");
    origin.requests.wait_for(1);
    asking.advance(10);
    gate.open();
    let age = waiting.join().unwrap()[0].get("age").map(str::to_owned);
    assert_eq!(age, nodes.nodes[named].get("/page", "").get("age").map(str::to_owned));
}

#[test]
fn nodes_that_tell_other_requests_apart_do_not_answer_for_each_other() {
    // The page is of the user, whom only some settings tell apart.
    let origin = Origin::new(|seen, reply| {
        let user = seen.head.get("x-user").unwrap_or("-").to_owned();
        reply.send(200, "Cache-Control: max-age=60\nX-Tag: news", &format!("{}{user}", seen.path()));
    });
    for (case, here, there) in [
        ("query", "", "rule=[{path=\"/*\", ignore_query=[\"user\"]}]"),
        (
            "fields",
            "server.trusted_proxies=127.0.0.1\nserver.trusted_fields=X-User",
            "server.trusted_proxies=127.0.0.1",
        ),
        ("prefix", "cache.key_prefix=a", "cache.key_prefix=b"),
        ("tags", "cache.tag_fields=X-Tag", ""),
    ] {
        let addresses = free_addresses(2);
        let list = list_of(&addresses);
        let node = |address: &String, more: &str| {
            let sets =
                format!("peers.listen={address}\n{list}\n{TOKEN}\npeers.interval=100ms\npeers.timeout=10s\n{more}");
            Larder::at(&origin.url(), &sets, Clock::manual(START))
        };
        let (here, there) = (node(&addresses[0], here), node(&addresses[1], there));
        for admin in [here.admin, there.admin] {
            wait_for_peers(admin, &addresses, 1);
        }
        let path = |user: &str| {
            let path = |n: u32| if case == "query" { format!("/{n}?user={user}") } else { format!("/{user}/{n}") };
            (0..10_000).map(path).find(|path| named(here.admin, path).ends_with(&addresses[1])).expect("some")
        };
        for user in ["alice", "bob"] {
            let (path, field) = (path(user), format!("X-User: {user}"));
            there.get(&path.replace("?user=alice", "?user=carol").replace("?user=bob", "?user=carol"), "X-User: carol");
            let expected = format!("{path}{user}");
            assert_eq!(here.get(&path, &field).text(), expected, "{case}");
            assert_eq!(here.get(&path, &field).text(), expected, "{case}");
        }
        assert_eq!((asked(&here, "shared"), asked(&here, "declined") > 0), (0, true), "{case}");
    }
}

#[test]
fn a_client_stays_at_its_address_whichever_node_asks() {
    let name = |name: &'static str| Origin::new(move |_, reply| reply.send(200, "Cache-Control: private", name));
    let (a, b, c) = (name("a"), name("b"), name("c"));
    let urls = [&a, &b, &c].map(Origin::url).join(", ");
    let addresses = free_addresses(2);
    let list = list_of(&addresses);
    let node = |address: &String| {
        let sets = format!(
            "peers.listen={address}\n{list}\n{TOKEN}\npeers.interval=100ms\npeers.timeout=10s\nupstream.slow_start=1ms\n\
             upstream.sticky_cookie=at\nupstream.sticky_key=a-long-secret-of-many"
        );
        Larder::at(&urls, &sets, Clock::manual(START))
    };
    let nodes: Vec<_> = addresses.iter().map(node).collect();
    for node in &nodes {
        wait_for_peers(node.admin, &addresses, 1);
    }
    for n in 0..20 {
        let first = nodes[n % 2].get(&format!("/{n}"), "");
        let cookie =
            first.get("set-cookie").and_then(|cookie| cookie.split(';').next()).expect("a new client gets one");
        for later in 0..5 {
            let path = format!("/{n}/{later}");
            let answer = nodes[later % 2].get(&path, &format!("Cookie: {cookie}"));
            assert_eq!((answer.text(), answer.get("set-cookie")), (first.text(), None), "{path}");
        }
    }
    assert!(nodes.iter().map(|node| asked(node, "own")).sum::<u64>() > 20, "most of it through a peer");
    let told =
        [&a, &b, &c].iter().flat_map(|origin| origin.seen()).any(|seen| format!("{:?}", seen.head).contains("at="));
    assert!(!told, "the application sees none of it");
}
