//! Precedence, every default, and the sentence for every mistake.

use std::time::Duration;

use http::Method;

use super::sources::Sources;
use super::{Config, Reading};
use crate::base::{parse_duration, parse_size};
use crate::downstream::Listen;
use crate::fetch::Ranges;
use crate::proxy::{HostPattern, Rule};
use crate::rfc9111::key::QueryRules;
use crate::store::Durability;
use crate::upstream::{Address, Overrides};

pub(super) fn read(text: &str, environment: &[(&str, &str)], sets: &[&str]) -> Reading {
    let mut sources = Sources::default();
    sources.read_text("f", text);
    for (name, value) in environment {
        sources.read_variable(name, value);
    }
    for set in sets {
        sources.read_set(set);
    }
    Reading::of(sources)
}

fn load(text: &str, environment: &[(&str, &str)], sets: &[&str]) -> Result<Config, Vec<String>> {
    read(text, environment, sets).finish().map_err(|errors| errors.0)
}

#[test]
fn set_goes_before_environment_before_file_before_default() {
    let file = "[upstream]\nurl = \"http://file:1\"\n";
    let environment =
        [("LARDER_UPSTREAM__URL", "http://environment:2"), ("LARDER_SERVICE_HOST", "x"), ("OTHER__X", "y")];
    let tcp = |host: &str, port| Address::Tcp { host: host.into(), port, is_tls: false };
    let address = |text, environment: &[_], sets: &[_]| {
        load(text, environment, sets).expect("sound").upstream.addresses[0].address.clone()
    };
    assert_eq!(address("", &[], &[]), tcp("127.0.0.1", 5000));
    assert_eq!(address(file, &[], &[]), tcp("file", 1));
    assert_eq!(address(file, &environment, &[]), tcp("environment", 2));
    assert_eq!(address(file, &environment, &["upstream.url=unix:/run/x"]), Address::Unix("/run/x".into()));
}

#[test]
fn lists_from_every_source() {
    let expected = vec![Listen::Tcp("127.0.0.1:1".into()), Listen::Unix("/x".into())];
    for (text, environment, sets) in [
        ("[server]\nlisten = [\"127.0.0.1:1\", \"unix:/x\"]", None, None),
        ("", Some("127.0.0.1:1, unix:/x"), None),
        ("", None, Some("server.listen=[\"127.0.0.1:1\", \"unix:/x\"]")),
    ] {
        let environment: Vec<_> = environment.map(|value| ("LARDER_SERVER__LISTEN", value)).into_iter().collect();
        let sets: Vec<_> = sets.into_iter().collect();
        assert_eq!(load(text, &environment, &sets).expect("sound").server.listen, expected);
    }
    let lone = load("[server]\nlisten = \"[::1]:8080\"", &[], &[]).expect("sound");
    assert_eq!(lone.server.listen, [Listen::Tcp("[::1]:8080".into())]);
}

#[test]
fn a_listener_is_a_url_or_an_address() {
    let tcp = |address: &str| Ok(Listen::Tcp(address.into()));
    let tls = |address: &str| Ok(Listen::Tls(address.into()));
    let certificate = "[[tls.certificate]]\nchain = \"chain.pem\"\nkey = \"key.pem\"\n";
    for (text, expected) in [
        ("127.0.0.1:8080", tcp("127.0.0.1:8080")),
        ("http://127.0.0.1:8080", tcp("127.0.0.1:8080")),
        ("http://0.0.0.0:80/", tcp("0.0.0.0:80")),
        ("http://0.0.0.0", tcp("0.0.0.0:80")),
        ("http://[::]", tcp("[::]:80")),
        ("https://0.0.0.0", tls("0.0.0.0:443")),
        ("https://[::1]:8443", tls("[::1]:8443")),
        ("https://shop.example:8443", tls("shop.example:8443")),
        ("unix:/run/larder.sock", Ok(Listen::Unix("/run/larder.sock".into()))),
        ("https://0.0.0.0:443/path", Err("more than a host and a port")),
        ("https://user@0.0.0.0", Err("more than a host and a port")),
        ("https://", Err("is not host:port")),
        ("https://:443", Err("is not host:port")),
        ("https://0.0.0.0:port", Err("is not host:port")),
        ("ftp://0.0.0.0:21", Err("is not host:port")),
        ("https:0.0.0.0:443/", Err("is not host:port")),
    ] {
        let read = load(&format!("{certificate}[server]\nlisten = [\"{text}\"]"), &[], &[]);
        match (read, expected) {
            (Ok(config), Ok(expected)) => assert_eq!(config.server.listen, [expected], "{text}"),
            (Err(told), Err(why)) => assert!(told.iter().any(|told| told.contains(why)), "{text}: {told:?}"),
            (read, expected) => panic!("{text}: {expected:?}, and not {read:?}"),
        }
    }
    for key in ["admin.listen", "resp.listen"] {
        let read = load("", &[], &[&format!("{key}=https://127.0.0.1:8443")]);
        assert!(read.is_err(), "{key} speaks no TLS");
    }
}

#[test]
fn rules_are_read_whole() {
    let text = r#"
        [upstreams.files]
        url = "http://files"

        [[rule]]
        path = "/static/*"
        host = "*.shop.example"
        method = ["GET", "POST"]
        upstream = "files"
        timeout = "1h"
        override_timeout = "2h"
        stale_while_revalidate = "3s"
        stale_if_error = "4s"
        stale_if_unreachable = "0s"
        bypass = true
        collapse = false
        early_refresh = 0.125
        ranges = "whole"
        ignore_query = ["utm_*"]
        sort_query = true
        durable = false
        tags = ["static"]
        buffer_request = "0"
        buffer_response = "5KiB"
        spool = "6KiB"
        min_body_rate = "7B"
        response_timeout = "8s"
        body_timeout = "9s"

        [[rule]]
        path = "/b"
    "#;
    let rules = load(text, &[], &[]).expect("sound").rules;
    let expected = Rule {
        path: "/static/*".into(),
        host: Some(HostPattern::read("*.shop.example").expect("a host")),
        methods: vec![Method::GET, Method::POST],
        upstream: Some("files".into()),
        timeout: Some(Duration::from_secs(3600)),
        override_timeout: Some(Duration::from_secs(7200)),
        stale_while_revalidate: Some(Duration::from_secs(3)),
        stale_if_error: Some(Duration::from_secs(4)),
        stale_if_unreachable: Some(Duration::ZERO),
        bypass: true,
        collapse: false,
        early_refresh: 125,
        ranges: Ranges::Whole,
        query: QueryRules { ignore: vec!["utm_*".into()], sort: true },
        durability: Durability::MemoryOnly,
        tags: vec!["static".into()],
        transfer: Overrides {
            buffer_request: Some(0),
            buffer_response: Some(5 << 10),
            spool: Some(6 << 10),
            min_body_rate: Some(7),
            response_timeout: Some(Duration::from_secs(8)),
            body_timeout: Some(Duration::from_secs(9)),
        },
        ..Rule::default()
    };
    assert_eq!(rules, [expected, Rule { path: "/b".into(), ..Rule::default() }]);
    let set = load("", &[], &["rule=[{path = \"/x\", bypass = true}]"]).expect("sound").rules;
    assert_eq!(set, [Rule { path: "/x".into(), bypass: true, ..Rule::default() }]);
}

mod mistakes;
mod upstreams;
mod warnings;

/// Asserts that the mistake in `text` and `sets` is reported as `expected`.
fn assert_told(text: &str, sets: &str, expected: &str) {
    let sets: Vec<&str> = Some(sets).filter(|set| !set.is_empty()).into_iter().collect();
    let errors = load(text, &[], &sets).expect_err("a mistake");
    assert!(
        errors.iter().any(|error| error.contains(expected)),
        "{text} {sets:?}\nwanted: {expected}\ngot: {errors:#?}"
    );
}

#[test]
fn durations_and_sizes() {
    for (text, expected) in [
        ("250ms", Some(250)),
        ("0s", Some(0)),
        ("5m", Some(300_000)),
        ("1h", Some(3_600_000)),
        ("7d", Some(604_800_000)),
        ("5", None),
        ("s", None),
        ("-5s", None),
        ("1.5s", None),
        ("99999999999999999999s", None),
        ("36601d", None),
    ] {
        assert_eq!(parse_duration(text), expected.map(Duration::from_millis), "{text}");
    }
    for (text, expected) in [
        ("512", Some(512)),
        ("64MiB", Some(64 << 20)),
        ("2 GiB", Some(2 << 30)),
        ("64MB", None),
        ("MiB", None),
        ("99999999999999999TiB", None),
    ] {
        assert_eq!(parse_size(text), expected, "{text}");
    }
}

#[test]
fn a_token_is_needed_only_where_strangers_can_reach() {
    for (listen, token, sound) in [
        ("127.0.0.1:1", "", true),
        ("[::1]:1", "", true),
        ("localhost:1", "", true),
        ("unix:/x", "", true),
        ("off", "", true),
        ("0.0.0.0:1", "", false),
        ("192.0.2.1:1", "", false),
        ("0.0.0.0:1", "secret", true),
    ] {
        let sets = [format!("admin.listen={listen}"), format!("admin.token={token}")];
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        assert_eq!(load("", &[], &sets).is_ok(), sound, "{listen} {token}");
    }
}

#[test]
fn no_message_shows_what_may_be_a_secret() {
    for set in [
        "upstream.url=http://u:SECRET@h",
        "upstream.host=u:SECRET@h",
        "durable.url=s3://k:SECRET@b/x",
        "durable.endpoint_url=https://k:SECRET@e",
        "admin.token=SECRET with a space",
        "admin.token SECRET",
        "admin.token:SECRET",
    ] {
        let errors = load("", &[], &[set]).expect_err(set);
        assert!(errors.iter().all(|error| !error.contains("SECRET")), "{set}: {errors:?}");
    }
    let errors = load("[upstream]\nurl = \"http://u:SECRET@h\"", &[], &[]).expect_err("no such address");
    assert!(errors.iter().all(|error| !error.contains("SECRET")), "{errors:?}");
}
