//! Tests clients' certificates: each client gets its own pages, and nobody writes the field that names it.

use std::time::Duration;

use larder::base::Clock;

use super::curl::curl;
use crate::support::{Authority, Client, Larder, Origin, eventually, out_of};

/// An origin whose page tells who it believes that the client is.
fn greeter() -> Origin {
    Origin::new(|seen, reply| {
        let mut who: Vec<String> = seen
            .head
            .fields
            .iter()
            .filter(|(name, _)| {
                name.to_ascii_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-") == "x-client-subject"
            })
            .map(|(_, value)| value.clone())
            .collect();
        who.sort();
        reply.send(200, "Cache-Control: max-age=60", &format!("{who:?}"));
    })
}

fn demanding(authority: &Authority) -> String {
    let ca = authority.file();
    format!("{}\ntls.client_ca={}\ntls.client_subject_field=X-Client-Subject", authority.listeners(), ca.display())
}

/// The fields by which clients try to be taken for somebody else.
const FORGERIES: [&str; 8] = [
    "",
    "X-Client-Subject: CN=bob",
    "x-client-subject: CN=bob\nX-CLIENT-SUBJECT: CN=carol",
    "X_Client_Subject: CN=bob",
    "X-Client_Subject: CN=bob",
    "X.Client.Subject: CN=bob",
    "Connection: X-Client-Subject\nX-Client-Subject: CN=bob",
    "Connection: close, x-client-subject",
];

#[test]
fn a_client_never_gets_the_page_of_another() {
    let (authority, origin) = (Authority::new(), greeter());
    let larder = Larder::new(&origin, &demanding(&authority));
    let address = larder.address_of(1);
    for (n, forgery) in FORGERIES.iter().enumerate() {
        let path = format!("/{n}");
        for round in ["alice", "bob", "alice", "bob"] {
            let pair = authority.client(round);
            let answer = authority.connect(address, Some(&pair)).expect("it connects").get(&path, forgery);
            assert_eq!(answer.text(), format!("[\"CN={round}\"]"), "{forgery}");
        }
        assert_eq!(origin.requests.value(), 2 * (n + 1), "each has a stored page of its own: {forgery}");
    }
}

/// A page that was stored under another configuration would be selected by fields that clients may write today.
#[test]
fn no_page_that_was_stored_while_the_field_did_not_count_or_another_did_is_given_out() {
    let (authority, origin) = (Authority::new(), greeter());
    let directory = tempfile::tempdir().expect("a directory");
    let store = format!("durable.url=file:{}", directory.path().display());
    let mutual = || Larder::new(&origin, &format!("{}\n{store}", demanding(&authority)));
    let renamed = || {
        let config = demanding(&authority).replace("X-Client-Subject", "X-Subject");
        Larder::new(&origin, &format!("{config}\n{store}"))
    };
    let open = || Larder::new(&origin, &store);
    let asks = |larder: &Larder, name: &str, path: &str, forgery: &str| {
        let pair = authority.client(name);
        let answer = authority.connect(larder.address_of(1), Some(&pair)).expect("it connects").get(path, forgery);
        larder.settle();
        answer
    };
    // Alice's page is no stranger's, and nobody's who has another certificate.
    let larder = mutual();
    assert_eq!(asks(&larder, "alice", "/a", "").text(), "[\"CN=alice\"]");
    larder.stop();
    let larder = open();
    let stranger = larder.get("/a", "X-Client-Subject: CN=alice");
    assert_eq!(stranger.hit(), None);
    larder.settle();
    larder.stop();
    let larder = renamed();
    assert_eq!(asks(&larder, "bob", "/a", "X-Client-Subject: CN=alice").hit(), None);
    larder.stop();
    // The page that a stranger had made for root is not bob's.
    let larder = open();
    assert_eq!(larder.get("/b", "X-Client-Subject: CN=root").text(), "[\"CN=root\"]");
    larder.settle();
    larder.stop();
    let larder = mutual();
    let bobs = asks(&larder, "bob", "/b", "");
    assert_eq!((bobs.hit(), bobs.text().as_str()), (None, "[\"CN=bob\"]"));
    assert_eq!(asks(&larder, "bob", "/b", "").hit(), Some("memory"), "under one configuration pages are kept");
}

#[test]
fn a_connection_ends_with_the_certificate_of_its_client() {
    let (authority, origin) = (Authority::new(), greeter());
    let larder = Larder::at(&origin.url(), &demanding(&authority), Clock::system());
    let pair = authority.client_for("alice", Duration::from_secs(4));
    let mut client = authority.connect(larder.address_of(1), Some(&pair)).expect("it connects");
    assert_eq!(client.get("/", "").text(), "[\"CN=alice\"]");
    eventually("nobody is served longer than his certificate says", || client.try_get("/", "").is_err());
}

#[test]
fn a_tunnel_ends_with_the_certificate_of_its_client() {
    let authority = Authority::new();
    let origin = Origin::new(|_, reply| reply.raw("HTTP/1.1 101 Ok\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"));
    let larder = Larder::at(&origin.url(), &demanding(&authority), Clock::system());
    let pair = authority.client_for("alice", Duration::from_secs(4));
    let mut client = authority.connect(larder.address_of(1), Some(&pair)).expect("it connects");
    let head = client.upgrade("/", "echo").expect("an answer");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(client.ends(), "the tunnel lasts longer than the certificate");
}

#[test]
fn a_client_of_http_2_never_gets_the_page_of_another() {
    let (authority, origin) = (Authority::new(), greeter());
    let larder = Larder::new(&origin, &demanding(&authority));
    for round in ["alice", "bob", "alice", "bob"] {
        authority.write(round, &authority.client(round));
        let (chain, key) = (authority.path(&format!("{round}.pem")), authority.path(&format!("{round}.key")));
        let (chain, key) = (chain.display().to_string(), key.display().to_string());
        let arguments = ["--http2", "--cert", &chain, "--key", &key, "-H", "x-client-subject: CN=carol"];
        let (_, out, error) = out_of(&curl(&authority, larder.address_of(1), &arguments));
        assert_eq!(out, format!("[\"CN={round}\"] 2"), "{error}");
    }
    assert_eq!(origin.requests.value(), 2, "each has a stored page of its own");
}

#[test]
fn nobody_without_a_certificate_is_taken_for_a_client() {
    for believed in ["", "server.trusted_proxies=127.0.0.1"] {
        let (authority, origin) = (Authority::new(), greeter());
        let larder = Larder::new(&origin, &format!("{}\n{believed}", demanding(&authority)));
        let bob = authority.client("bob");
        let shown = authority.connect(larder.address_of(1), Some(&bob)).expect("it connects").get("/page", "");
        assert_eq!(shown.text(), "[\"CN=bob\"]");
        for (n, forgery) in FORGERIES.iter().enumerate() {
            let mut client = Client::connect(larder.address_of(0));
            assert_eq!(client.get("/page", forgery).text(), "[]", "{forgery} {believed}");
            let mut client = Client::connect(larder.address_of(0));
            assert_eq!(client.get(&format!("/{n}"), forgery).text(), "[]", "{forgery} {believed}");
        }
    }
}

#[test]
fn a_client_without_an_accepted_certificate_gets_no_answer() {
    let (authority, origin) = (Authority::new(), greeter());
    let larder = Larder::new(&origin, &demanding(&authority));
    let strangers = Authority::new();
    for shows in [None, Some(strangers.client("alice"))] {
        let client = authority.connect(larder.address_of(1), shows.as_ref());
        let answer = client.and_then(|mut client| client.try_get("/a", ""));
        assert!(answer.is_err(), "{answer:?}");
    }
    assert_eq!(origin.requests.value(), 0);
    for reason in ["no-client-certificate", "client-certificate"] {
        let line = format!("larder_tls_handshake_failures_total{{reason=\"{reason}\"}}");
        assert_eq!(larder.metric(&line), 1, "{reason}");
    }
}

/// The operator's `explain` is for pages of clients without a certificate.
#[test]
fn the_operators_questions_name_no_client() {
    let (authority, origin) = (Authority::new(), greeter());
    let larder = Larder::new(&origin, &demanding(&authority));
    let bob = authority.client("bob");
    authority.connect(larder.address_of(1), Some(&bob)).expect("it connects").get("/page", "");
    for field in ["", "&header=X-Client-Subject:%20CN=bob"] {
        let query = format!("/explain?url=https://site.example/page{field}");
        let told = Client::connect(larder.admin).get(&query, "").text();
        assert!(told.contains("fwd=") && !told.contains("larder; hit"), "{told}");
    }
}
