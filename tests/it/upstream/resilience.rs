//! Tests an origin that is slow, failing or gone, and pages about to expire: who waits, and for what.

use std::sync::Arc;

use crate::support::{Gate, Larder, Origin, at_once, eventually, file_url};

const SIE: &str = "Cache-Control: max-age=10, stale-if-error=600";

/// Larder with a stored, expired `/a` that says "old".
fn expired(origin: &Origin, config: &str, fields: &'static str) -> Arc<Larder> {
    let larder = Larder::new(origin, config);
    origin.script(move |_, reply| reply.send(200, fields, "old"));
    assert_eq!(larder.get("/a", "").text(), "old");
    larder.settle_if_durable();
    larder.advance(20);
    Arc::new(larder)
}

#[test]
fn an_origin_that_hangs_is_waited_for_once_and_not_by_everyone() {
    let gate = Gate::default();
    let origin = Origin::new(|_, _| {});
    let larder = expired(&origin, "upstream.response_timeout=200ms\nupstream.breaker_failures=0", SIE);
    origin.script({
        let gate = gate.clone();
        move |_, reply| {
            gate.wait();
            reply.send(200, "Cache-Control: max-age=60", "new");
        }
    });
    let first = larder.get("/a", "");
    assert_eq!((first.text().as_str(), first.fwd()), ("old", Some("stale")));
    // From now on nobody waits.
    for answer in at_once(8, {
        let larder = Arc::clone(&larder);
        move |_| larder.get("/a", "")
    }) {
        assert_eq!((answer.text().as_str(), answer.hit()), ("old", Some("memory")));
        assert!(answer.cache_status().contains("ttl=-10"), "{}", answer.cache_status());
    }
    assert_eq!(origin.count(), 2, "nor is it asked");
    // But for one in the background, now and then.
    larder.advance(2);
    assert_eq!(larder.get("/a", "").hit(), Some("memory"));
    assert_eq!(larder.get("/a", "").hit(), Some("memory"));
    origin.requests.wait_for(3);
    gate.open();
    larder.advance(2);
    eventually("the origin is found well again", || larder.get("/a", "").text() == "new");
}

#[test]
fn a_failing_origin_is_forgotten_after_a_while_and_forbidden_stale_is_never_served() {
    let origin = Origin::new(|_, _| {});
    let larder = expired(&origin, "", "Cache-Control: max-age=10, must-revalidate");
    origin.script(|_, reply| reply.send(503, "", "down"));
    for _ in 0..3 {
        assert_eq!(larder.get("/a", "").status(), 503);
    }
    let larder = expired(&origin, "", SIE);
    origin.script(|_, reply| reply.send(503, "", "down"));
    let first = larder.get("/a", "");
    assert_eq!((first.text().as_str(), first.fwd()), ("old", Some("stale")));
    assert_eq!(larder.get("/a", "").hit(), Some("memory"));
    // Who wants no stale response does not get one.
    assert_eq!(larder.get("/a", "Cache-Control: no-cache").status(), 503);
    larder.advance(300);
    origin.script(|_, reply| reply.send(200, "Cache-Control: max-age=60", "new"));
    assert_eq!(larder.get("/a", "").text(), "new", "a failure of five minutes ago says nothing");
}

#[test]
fn an_origin_that_is_down_is_not_asked_by_every_request() {
    let origin = Origin::new(|_, _| {});
    let config = "upstream.max_idle=0\nupstream.breaker_pause=1h\ncache.stale_if_unreachable=1h";
    let larder = expired(&origin, config, "Cache-Control: max-age=10");
    origin.script(|_, reply| reply.hang_up());
    for i in 0..5 {
        let answer = larder.get(&format!("/other/{i}"), "");
        assert_eq!(answer.status(), 502);
        assert!(answer.cache_status().contains("detail=origin-broken"), "{}", answer.cache_status());
    }
    assert_eq!(larder.metric("larder_origin_down "), 1);
    let asked = origin.count();
    for _ in 0..10 {
        let answer = larder.get("/a", "");
        assert_eq!((answer.text().as_str(), answer.hit()), ("old", Some("memory")));
    }
    assert_eq!(origin.count(), asked, "nobody waits for an origin that is down");
    // What has nothing else goes on, a few at a time; the rest is told at once.
    let gate = Gate::default();
    origin.script({
        let gate = gate.clone();
        move |_, reply| {
            gate.wait();
            reply.send(200, "Cache-Control: max-age=60", "up");
        }
    });
    let larder2 = Arc::clone(&larder);
    let probes = std::thread::spawn(move || at_once(16, move |i| larder2.get(&format!("/probe/{i}"), "")));
    origin.requests.wait_for(asked + 16);
    let refused = larder.get("/one/more", "");
    assert_eq!((refused.status(), refused.get("retry-after")), (504, Some("1")));
    assert!(refused.cache_status().contains("detail=origin-down"), "{}", refused.cache_status());
    assert!(larder.metric("larder_origin_refused_total") >= 1);
    gate.open();
    assert!(probes.join().expect("no panic").iter().all(|answer| answer.text() == "up"));
    assert_eq!(larder.metric("larder_origin_down "), 0);
    assert_eq!(larder.get("/one/more", "").text(), "up");
}

#[test]
fn an_origin_that_refuses_connections_is_down_until_one_is_made() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let larder = Larder::with_upstream(&format!("http://{address}"), "");
    for _ in 0..10 {
        assert_eq!(larder.get("/a", "").status(), 502);
    }
    assert_eq!(larder.metric("larder_origin_down "), 1);
    assert_eq!(larder.metric("larder_origin_downs_total"), 1);
}

#[test]
fn the_durable_tier_stands_in_for_an_origin_that_is_down() {
    for capacity in ["0", "1MiB"] {
        let directory = tempfile::tempdir().expect("a directory");
        let config = format!(
            "{}\nmemory.capacity={capacity}\ndurable.min_lifetime=0s\nupstream.max_idle=0\nupstream.breaker_pause=1h",
            file_url(directory.path())
        );
        let origin = Origin::new(|_, _| {});
        let before = expired(&origin, &config, SIE);
        let clock = before.clock.clone();
        drop(before);
        let larder = Larder::at(&origin.url(), &config, clock);
        origin.script(|_, reply| reply.hang_up());
        for i in 0..5 {
            assert_eq!(larder.get(&format!("/other/{i}"), "").status(), 502);
        }
        let asked = origin.count();
        let answer = larder.get("/a", "");
        assert_eq!((answer.text().as_str(), answer.hit()), ("old", Some("durable")), "{}", answer.cache_status());
        let tier = if capacity == "0" { "durable" } else { "memory" };
        assert_eq!(larder.get("/a", "").hit(), Some(tier));
        assert_eq!(origin.count(), asked);
    }
}

#[test]
fn a_stale_page_whose_origin_hangs_is_served_at_once_while_it_is_validated() {
    let gate = Gate::default();
    let origin = Origin::new(|_, _| {});
    let larder = expired(&origin, "", "Cache-Control: max-age=10, stale-while-revalidate=600");
    origin.script({
        let gate = gate.clone();
        move |_, reply| {
            gate.wait();
            reply.send(200, "Cache-Control: max-age=60", "new");
        }
    });
    for answer in at_once(20, {
        let larder = Arc::clone(&larder);
        move |_| larder.get("/a", "")
    }) {
        assert_eq!(answer.hit(), Some("memory"));
    }
    origin.requests.wait_for(2);
    assert_eq!(origin.count(), 2, "one validation");
    gate.open();
    eventually("it lands", || larder.get("/a", "").text() == "new");
}

#[test]
fn a_hot_page_is_refreshed_before_it_expires() {
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=100", "old"));
    let larder = Larder::new(&origin, "rule=[{path = \"/hot\", early_refresh = 0.5}]");
    for path in ["/hot", "/other"] {
        larder.get(path, "");
    }
    origin.script(|_, reply| reply.send(200, "Cache-Control: max-age=100", "new"));
    larder.advance(49);
    for _ in 0..50 {
        assert_eq!(larder.get("/hot", "").text(), "old");
    }
    assert_eq!(origin.count(), 2, "not before its last part");
    larder.advance(50);
    // By chance, and with a second left soon.
    eventually("it is refreshed behind", || {
        let answer = larder.get("/hot", "");
        assert_eq!(answer.hit(), Some("memory"), "nobody waits");
        answer.text() == "new"
    });
    for _ in 0..20 {
        assert_eq!(larder.get("/other", "").text(), "old", "no other rule has it");
    }
    assert_eq!(origin.count(), 3);
}

#[test]
fn background_validations_keep_one_pace_whatever_they_come_to() {
    for (status, fields) in [(500, ""), (503, "Cache-Control: no-store"), (400, ""), (0, "")] {
        let origin = Origin::answers(vec![(200, "Cache-Control: max-age=10, stale-while-revalidate=3600", "page")]);
        let larder = Larder::new(&origin, "upstream.breaker_pause=5s\nupstream.breaker_failures=0");
        larder.get("/a", "");
        larder.advance(20);
        origin.script(move |_, reply| if status == 0 { reply.hang_up() } else { reply.send(status, fields, "") });
        for _ in 0..3 {
            let before = origin.count();
            assert_eq!(larder.get("/a", "").text(), "page", "{status}");
            eventually("the validation ends", || {
                origin.count() > before && larder.running().proxy().usage().flights == 0
            });
            let asked = origin.count();
            larder.advance(4);
            for _ in 0..5 {
                assert_eq!(larder.get("/a", "").text(), "page", "{status}");
            }
            assert_eq!(origin.count(), asked, "not within the pause: {status} {fields}");
            larder.advance(2);
        }
    }
}
