//! Tests handshakes: names, protocols, versions, and what is no TLS.

use std::time::Duration;

use rcgen::{KeyPair, PKCS_RSA_SHA256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::base::{HandshakeFailure as Why, Transport};
use crate::tls::acme::Challenges;
use crate::tls::config::{Config, MinVersion, UnknownSni};
use crate::tls::sample::{Authority, Caller, Files, config, der, open, params, shown};
use crate::tls::{Protocol, Tls};

/// A client that speaks nothing newer than TLS 1.2.
const TLS12: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];

/// The first message of a client that speaks TLS 1.1, with no session, one cipher and no extension.
const OLD: &[u8] = b"\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x02\
    01234567890123456789012345678901\x00\x00\x02\xc0\x13\x01\x00";

/// The number that a metric has.
pub(super) fn counted(tls: &Tls, line: &str) -> u64 {
    let text = tls.metrics.render(&[]);
    let found = text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
    found.unwrap_or_else(|| panic!("{line} is not in\n{text}"))
}

fn failures(tls: &Tls, why: &str) -> u64 {
    counted(tls, &format!("larder_tls_handshake_failures_total{{reason=\"{why}\"}}"))
}

#[tokio::test]
async fn a_client_gets_the_certificate_for_the_name_that_it_asks_for() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let first = authority.server(&["a.example", "127.0.0.1"]);
    let second = authority.server(&["*.b.example", "b.example"]);
    let third = authority.server(&["x.b.example"]);
    let pairs = [files.pair("1", &first), files.pair("2", &second), files.pair("3", &third)];
    let tls = open(&config(&pairs));
    for (name, expected) in [
        ("a.example", &first),
        ("A.Example", &first),
        ("b.example", &second),
        ("y.b.example", &second),
        ("x.b.example", &third),
        ("", &first),
    ] {
        let caller = Caller { name, ..Caller::new(&authority) };
        assert!(shown(&caller.call(&tls).await.client().await) == der(expected), "{name}");
    }
    // A wildcard stands for one label. The default certificate is not for this name, so that the client refuses it.
    let caller = Caller { name: "z.y.b.example", ..Caller::new(&authority) };
    let called = caller.call(&tls).await;
    assert!(called.client.expect_err("it is for another name").to_string().contains("not valid for name"));
    assert_eq!(called.server.expect_err("the client refuses it").why, Why::Alert);
    assert_eq!(counted(&tls, "larder_tls_server_names_total{name=\"known\"}"), 5);
    assert_eq!(counted(&tls, "larder_tls_server_names_total{name=\"none\"}"), 1);
    assert_eq!(counted(&tls, "larder_tls_server_names_total{name=\"unknown\"}"), 1);
}

#[tokio::test]
async fn of_two_kinds_of_keys_for_one_name_a_client_gets_the_one_that_it_can_check() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let ecdsa = authority.server(&["a.example"]);
    let key = KeyPair::generate_for(&PKCS_RSA_SHA256).expect("a key");
    let rsa = authority.issue_for(&params(&["a.example"]), &key);
    let tls = open(&config(&[files.pair("ecdsa", &ecdsa), files.pair("rsa", &rsa)]));
    let certificates = tls.shelf.current();
    for name in [Some("a.example"), None, Some("unknown.example")] {
        let shown = |schemes: &[_]| certificates.choose(name, schemes).expect("one").cert[0].to_vec();
        assert!(shown(&[rustls::SignatureScheme::ECDSA_NISTP256_SHA256]) == der(&ecdsa));
        assert!(shown(&[rustls::SignatureScheme::RSA_PSS_SHA256]) == der(&rsa));
    }
}

#[tokio::test]
async fn a_name_without_a_certificate_is_refused_by_its_own_alert_where_configured() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let pair = files.pair("a", &authority.server(&["a.example", "127.0.0.1"]));
    let tls = open(&Config { unknown_sni: UnknownSni::Refuse, ..config(&[pair]) });
    let called = Caller { name: "other.example", ..Caller::new(&authority) }.call(&tls).await;
    let error = called.client.expect_err("it is refused").to_string();
    assert!(error.contains("UnrecognisedName"), "{error}");
    let error = called.server.expect_err("it is refused");
    assert!(error.why == Why::UnknownSni && error.sentence.contains("other.example"), "{error:?}");
    assert_eq!(failures(&tls, "unknown-sni"), 1);
    for name in ["a.example", ""] {
        Caller { name, ..Caller::new(&authority) }.call(&tls).await.client().await;
    }
}

#[tokio::test]
async fn the_protocol_is_chosen_by_alpn() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let tls = open(&config(&[files.pair("a", &authority.server(&["a.example"]))]));
    for (alpn, expected) in [
        (&["h2", "http/1.1"][..], Protocol::Http2),
        (&["http/1.1", "h2"], Protocol::Http2),
        (&["http/1.1"], Protocol::Http1),
        (&["http/1.0"], Protocol::Http1),
        (&["spdy/3", "http/1.1"], Protocol::Http1),
        (&[], Protocol::Http1),
    ] {
        let caller = Caller { alpn, ..Caller::new(&authority) };
        assert_eq!(caller.call(&tls).await.server.expect("it is accepted").protocol, expected, "{alpn:?}");
    }
    for alpn in [&["spdy/3"][..], &["acme-tls/1"]] {
        let called = Caller { alpn, ..Caller::new(&authority) }.call(&tls).await;
        assert_eq!(called.server.expect_err("it is refused").why, Why::NoSharedProtocol);
        assert!(called.client.expect_err("it is refused").to_string().contains("NoApplicationProtocol"));
    }
}

#[tokio::test]
async fn the_cheapest_cipher_is_chosen_unless_the_client_has_no_instructions_for_aes() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let tls = open(&config(&[files.pair("a", &authority.server(&["a.example"]))]));
    for (first, versions, expected) in [
        ("AES_256", rustls::ALL_VERSIONS, "TLS13_AES_128_GCM_SHA256"),
        ("CHACHA20", rustls::ALL_VERSIONS, "TLS13_CHACHA20_POLY1305_SHA256"),
        ("AES_256", TLS12, "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
        ("CHACHA20", TLS12, "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"),
    ] {
        let caller = Caller { versions, first, ..Caller::new(&authority) };
        let suite = caller.call(&tls).await.client().await.negotiated_cipher_suite().expect("one");
        assert_eq!(suite.suite().as_str(), Some(expected));
    }
}

#[tokio::test]
async fn an_old_version_is_refused_with_a_sentence() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let pairs = [files.pair("a", &authority.server(&["a.example"]))];
    let caller = Caller { versions: TLS12, ..Caller::new(&authority) };
    caller.call(&open(&config(&pairs))).await.client().await;
    let tls = open(&Config { min_version: MinVersion::Tls13, ..config(&pairs) });
    let error = caller.call(&tls).await.server.expect_err("it is too old");
    assert!(error.why == Why::NoSharedVersion && error.sentence.contains("tls.min_version"), "{error:?}");
}

/// Sends bytes instead of a handshake, and returns the answer and the error.
async fn raw(tls: &Tls, bytes: &[u8]) -> (Vec<u8>, crate::tls::error::HandshakeError) {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    let client = async {
        theirs.write_all(bytes).await.expect("it writes");
        theirs.shutdown().await.expect("it ends");
        let mut answer = Vec::new();
        let _ = theirs.read_to_end(&mut answer).await;
        answer
    };
    let (answer, server) = tokio::join!(client, tls.accept(Transport::Unix(ours), None));
    (answer, server.expect_err("it is no handshake"))
}

#[tokio::test]
async fn what_is_not_tls_is_told_so() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let tls = open(&config(&[files.pair("a", &authority.server(&["a.example"]))]));
    for request in ["GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", "POST", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let (answer, error) = raw(&tls, request.as_bytes()).await;
        let answer = String::from_utf8(answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())) && head.contains("Connection: close"));
        assert_eq!(body, "this port speaks TLS: use https://\n");
        assert_eq!(error.why, Why::PlainHttp);
    }
    for (bytes, why) in [
        (&b"SSH-2.0-x\r\n"[..], Why::NotTls),
        (b"\0\0\0", Why::NotTls),
        (b"", Why::Unused),
        (b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00", Why::Malformed),
        (b"\x16\x03\x01\x02\x00\x01", Why::Closed),
        (OLD, Why::NoSharedVersion),
    ] {
        assert_eq!(raw(&tls, bytes).await.1.why, why, "{bytes:?}");
    }
    assert_eq!(failures(&tls, "plain-http"), 3);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_is_not_done_in_time_ends() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let tls = open(&config(&[files.pair("a", &authority.server(&["a.example"]))]));
    for sent in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00"] {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        theirs.write_all(sent).await.expect("it writes");
        let error = tls.accept(Transport::Unix(ours), None).await.expect_err("it takes too long");
        assert!(error.why == Why::Timeout && error.sentence.contains("tls.handshake_timeout"), "{error:?}");
    }
    assert_eq!(failures(&tls, "timeout"), 2);
    assert_eq!(tls.config.handshake_timeout, Duration::from_secs(10));
}

#[tokio::test]
async fn a_client_that_does_not_know_the_authority_is_told_of() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let tls = open(&config(&[files.pair("a", &authority.server(&["a.example"]))]));
    let stranger = Authority::new("other");
    let error = Caller::new(&stranger).call(&tls).await.server.expect_err("the client refuses");
    assert!(error.why == Why::Alert && error.sentence.contains("is the chain complete"), "{error:?}");
}

#[tokio::test]
async fn a_ca_that_checks_a_name_is_shown_the_certificate_for_that_and_others_their_own() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let tls = open(&config(&[files.pair("a", &authority.server(&["a.example"]))]));
    let caller = Caller { alpn: &["acme-tls/1"], ..Caller::new(&authority) };
    assert_eq!(caller.call(&tls).await.server.expect_err("there is no ACME").why, Why::NoSharedProtocol);
    let directory = tempfile::tempdir().expect("a directory");
    let challenges = Challenges::with_one(directory.path(), "a.example").await;
    tls.answer_challenges(std::sync::Arc::clone(&challenges));
    // This client would take any certificate of the authority, and no other.
    assert_eq!(caller.call(&tls).await.server.expect_err("it ends").why, Why::Alert);
    Caller::new(&authority).call(&tls).await.client().await;
    challenges.end_all();
    assert_eq!(caller.call(&tls).await.server.expect_err("it is over").why, Why::NoCertificate);
}

#[tokio::test]
async fn a_name_gets_a_certificate_once_it_is_installed() {
    let authority = Authority::new("ca");
    let tls = open(&Config::default());
    let caller = Caller::new(&authority);
    assert_eq!(caller.call(&tls).await.server.expect_err("there is none").why, Why::NoCertificate);
    let (old, new) = (authority.server(&["a.example"]), authority.server(&["a.example"]));
    for pair in [&old, &new] {
        tls.install("acme", pair.chain.as_bytes(), pair.key.as_bytes()).expect("a pair");
        assert!(shown(&caller.call(&tls).await.client().await) == der(pair));
    }
    let why = tls.install("acme", new.chain.as_bytes(), old.key.as_bytes()).expect_err("it is another's key");
    assert!(why.to_string().starts_with("acme: it is not the key"), "{why}");
    assert!(shown(&caller.call(&tls).await.client().await) == der(&new));
}
