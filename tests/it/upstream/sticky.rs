//! Tests the cookie that keeps a client at one address, whom it is given to, and who sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{Answer, Authority, Larder, Origin, eventually};

const STICKY: &str = "upstream.sticky_cookie=at\nupstream.sticky_key=a-long-secret-of-many\nupstream.slow_start=1ms";

/// Answers with its name, which nobody may store.
fn named(name: &'static str) -> Origin {
    Origin::new(move |_, reply| reply.send(200, "Cache-Control: private", name))
}

/// Answers so while `is_up`, and breaks off else.
fn up_while(name: &'static str, is_up: &Arc<AtomicBool>) -> Origin {
    let is_up = Arc::clone(is_up);
    Origin::new(move |_, reply| {
        if is_up.load(Ordering::SeqCst) {
            reply.send(200, "Cache-Control: private", name);
        } else {
            reply.hang_up();
        }
    })
}

fn before(origins: &[&Origin], config: &str) -> Larder {
    let urls: Vec<String> = origins.iter().map(|origin| origin.url()).collect();
    Larder::with_upstream(&urls.join(", "), &format!("{STICKY}\n{config}"))
}

/// The cookie that an answer gives, as the client sends it back.
fn given(answer: &Answer) -> Option<String> {
    let cookie = answer.get("set-cookie")?;
    assert!(cookie.starts_with("at=") && cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{cookie}");
    Some(cookie.split(';').next()?.to_owned())
}

#[test]
fn a_client_stays_at_the_address_that_it_was_given() {
    let (a, b, c) = (named("a"), named("b"), named("c"));
    for balance in ["p2c", "round_robin", "hash"] {
        let larder = before(&[&a, &b, &c], &format!("upstream.balance={balance}"));
        let mut first = std::collections::BTreeSet::new();
        for n in 0..20 {
            let answer = larder.get(&format!("/{n}"), "");
            let cookie = given(&answer).expect("a new client gets one");
            first.insert(answer.text());
            for method in ["GET", "POST", "OPTIONS", "DELETE", "HEAD"] {
                let field = format!("Cookie: {cookie}");
                let later = larder.client().send(method, &format!("/later/{n}"), &field);
                assert_eq!(given(&later), None, "it has it already");
                assert!(method == "HEAD" || later.text() == answer.text(), "{balance} {method}");
            }
        }
        assert_eq!(first.len(), 3, "{balance}: new ones go anywhere");
    }
    // The same secret gives the same values, after a restart too.
    let answer = before(&[&a, &b, &c], "").get("/", "");
    let cookie = given(&answer).expect("a cookie");
    for _ in 0..10 {
        assert_eq!(before(&[&a, &b, &c], "").get("/", &format!("Cookie: {cookie}")).text(), answer.text());
    }
}

#[test]
fn neither_the_application_nor_a_stored_response_sees_the_cookie() {
    let seen_by_vary = Origin::new(|seen, reply| {
        let cookie = seen.head.get("cookie").unwrap_or("none").to_owned();
        match seen.path() {
            "/shared" => reply.send(200, "Cache-Control: max-age=600\r\nVary: Cookie", &cookie),
            _ => reply.send(200, "Cache-Control: private", &cookie),
        }
    });
    let larder = before(&[&seen_by_vary], "");
    for (sent, left) in [("at=x", "none"), ("a=1; at=x", "a=1"), ("at=x; at=y; b=2", "b=2"), ("", "none")] {
        let field = if sent.is_empty() { String::new() } else { format!("Cookie: {sent}") };
        assert_eq!(larder.get("/own", &field).text(), left);
        let shared = larder.get("/shared", &field);
        assert_eq!(
            (shared.text().as_str(), given(&shared)),
            (left, None),
            "{sent}: who is stored for others gets none"
        );
    }
    let hit = larder.get("/shared", "Cookie: at=z");
    assert!(hit.is_hit() && given(&hit).is_none());
    assert_eq!(larder.get("/shared", "Cookie: at=z; a=1").hit(), Some("memory"));
}

#[test]
fn only_what_no_cache_gives_to_others_has_the_cookie() {
    let origin = Origin::new(|seen, reply| {
        let fields = seen.head.get("x-answer").expect("it says what to answer").replace('|', "\r\n");
        reply.send(200, &fields, "x");
    });
    let larder = before(&[&origin], "");
    for (n, (fields, is_given)) in [
        ("Cache-Control: private", true),
        ("Cache-Control: no-store", true),
        ("X: y", true),
        ("Last-Modified: Thu, 01 Jan 2015 00:00:00 GMT", false),
        ("Cache-Control: private, max-age=60", true),
        ("Cache-Control: max-age=60", false),
        ("Cache-Control: public", false),
        ("Cache-Control: s-maxage=60", false),
        ("Expires: Thu, 01 Jan 2099 00:00:00 GMT", false),
        ("CDN-Cache-Control: max-age=60|Cache-Control: private", false),
        // Another cache may store what this one does not.
        ("Cache-Control: max-age=60|Set-Cookie: own=1", false),
        ("Cache-Control: max-age=60|Vary: *", false),
    ]
    .into_iter()
    .enumerate()
    {
        for method in ["GET", "POST"] {
            let answer = larder.client().send(method, &format!("/{n}"), &format!("X-Answer: {fields}"));
            let cookies = answer
                .head
                .fields
                .iter()
                .filter(|(name, value)| name.eq_ignore_ascii_case("set-cookie") && value.starts_with("at="));
            assert_eq!(cookies.count(), usize::from(is_given), "{method} {fields}");
        }
    }
}

#[test]
fn values_that_nobody_was_given_choose_no_address() {
    let (a, b) = (named("a"), named("b"));
    let larder = before(&[&a, &b], "");
    let other = Larder::with_upstream(
        &format!("{}, {}", a.url(), b.url()),
        "upstream.sticky_cookie=at\nupstream.sticky_key=another-secret-of-many",
    );
    let foreign = given(&other.get("/", "")).expect("a cookie");
    for value in [foreign.as_str(), "at=", "at", &format!("at={}", a.url()), "at=0", "at=a"] {
        let answers: std::collections::BTreeSet<String> = (0..40)
            .map(|_| {
                let answer = larder.get("/", &format!("Cookie: {value}"));
                assert!(given(&answer).is_some(), "{value}: it is given a right one");
                answer.text()
            })
            .collect();
        assert_eq!(answers.len(), 2, "{value}");
    }
}

#[test]
fn whose_address_is_down_is_given_another() {
    let is_up = Arc::new(AtomicBool::new(true));
    let a = up_while("a", &is_up);
    let b = named("b");
    let larder = before(&[&a, &b], "upstream.breaker_failures=1\nupstream.breaker_pause=20ms");
    let mut cookie = String::new();
    eventually("a client is at a", || {
        let answer = larder.get("/", "");
        cookie = given(&answer).expect("a cookie");
        answer.text() == "a"
    });
    is_up.store(false, Ordering::SeqCst);
    let answer = larder.get("/", &format!("Cookie: {cookie}"));
    assert_eq!(answer.text(), "b");
    let moved = given(&answer).expect("it is kept where it is now");
    is_up.store(true, Ordering::SeqCst);
    eventually("a is up again", || larder.get("/", &format!("Cookie: {cookie}")).text() == "a");
    for _ in 0..10 {
        assert_eq!(larder.get("/", &format!("Cookie: {moved}")).text(), "b", "it does not move back");
    }
}

#[test]
fn who_is_kept_at_a_full_address_waits_for_that_one() {
    let (a, b) = (named("a"), named("b"));
    let larder = before(&[&a, &b], "upstream.max_requests=1");
    let mut cookie = String::new();
    eventually("a client is at a", || {
        let answer = larder.get("/", "");
        cookie = given(&answer).expect("a cookie");
        answer.text() == "a"
    });
    let gate = Arc::new(AtomicBool::new(false));
    let opened = Arc::clone(&gate);
    a.script(move |_, reply| {
        while !opened.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        reply.send(200, "Cache-Control: private", "a");
    });
    let field = format!("Cookie: {cookie}");
    let mut holder = larder.client();
    let before = a.count();
    holder.ask("GET", "/held", &field);
    eventually("a is full", || a.count() == before + 1);
    let mut waits = larder.client();
    waits.ask("GET", "/waits", &field);
    eventually("it waits", || larder.metric("larder_upstream_waiting") == 1);
    // Room at the other one is for others.
    assert_eq!(larder.get("/", "").text(), "b");
    assert_eq!(larder.metric("larder_upstream_waiting"), 1);
    gate.store(true, Ordering::SeqCst);
    assert_eq!((holder.answer().text().as_str(), waits.answer().text().as_str()), ("a", "a"));
}

#[test]
fn over_tls_the_cookie_is_secure() {
    let (authority, a) = (Authority::new(), named("a"));
    let larder = before(&[&a], &authority.listeners());
    let mut client = authority.connect(larder.address_of(1), None).expect("a connection");
    let answer = client.get("/", "");
    let cookie = answer.get("set-cookie").expect("a cookie");
    assert!(cookie.ends_with("; HttpOnly; SameSite=Lax; Secure"), "{cookie}");
}

#[test]
fn nobody_is_kept_at_a_backup() {
    let is_up = Arc::new(AtomicBool::new(false));
    let a = up_while("a", &is_up);
    let backup = named("backup");
    let larder = Larder::with_upstream(
        &format!("{}, {} backup", a.url(), backup.url()),
        &format!("{STICKY}\nupstream.breaker_failures=1\nupstream.breaker_pause=20ms"),
    );
    let answer = larder.get("/", "");
    assert_eq!((answer.text().as_str(), given(&answer)), ("backup", None));
    is_up.store(true, Ordering::SeqCst);
    eventually("a is up again", || larder.get("/", "").text() == "a");
}
