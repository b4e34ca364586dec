//! Precedence, every default, and the sentence for every mistake.

use super::*;

fn load(text: &str, environment: &[(&str, &str)], sets: &[&str]) -> Result<Config, Vec<String>> {
    let mut reader = Reader::default();
    reader.read_text("f", text);
    for (name, value) in environment {
        reader.read_variable(name, (*value).to_owned());
    }
    for set in sets {
        reader.read_set(set);
    }
    let config = Config::read(&mut reader);
    reader.finish(config).map_err(|errors| errors.0)
}

#[test]
fn set_goes_before_environment_before_file_before_default() {
    let file = "[upstream]\nurl = \"http://file:1\"\n";
    let environment =
        [("LARDER_UPSTREAM__URL", "http://environment:2"), ("LARDER_SERVICE_HOST", "x"), ("OTHER__X", "y")];
    let tcp = |host: &str, port| Address::Tcp { host: host.into(), port };
    let address = |text, environment: &[_], sets: &[_]| load(text, environment, sets).expect("sound").upstream.address;
    assert_eq!(address("", &[], &[]), tcp("127.0.0.1", 5000));
    assert_eq!(address(file, &[], &[]), tcp("file", 1));
    assert_eq!(address(file, &environment, &[]), tcp("environment", 2));
    assert_eq!(address(file, &environment, &["upstream.url=unix:/run/x"]), Address::Unix("/run/x".into()));
}

#[test]
fn the_shipped_file_shows_every_key_with_its_default() {
    let text = include_str!("../../config.toml");
    let mut reader = Reader::default();
    reader.read_text("config.toml", text);
    let given: Vec<String> = reader.settings.keys().cloned().collect();
    let mut config = Config::read(&mut reader);
    let known = reader.known.clone();
    assert_eq!(reader.errors, Vec::<String>::new());
    assert_eq!(reader.settings.keys().collect::<Vec<_>>(), Vec::<&String>::new(), "unknown keys");
    for key in known.iter().filter(|key| !key.starts_with("rule")) {
        assert!(given.contains(key), "config.toml does not show {key}");
    }
    let rule_keys = [
        "path",
        "timeout",
        "override_timeout",
        "stale_while_revalidate",
        "stale_if_error",
        "stale_if_unreachable",
        "bypass",
        "buffer_request",
        "buffer_response",
        "spool",
        "min_body_rate",
        "response_timeout",
        "body_timeout",
        "ignore_query",
        "sort_query",
        "durable",
        "tags",
    ];
    for name in rule_keys {
        assert!(text.contains(&format!("# {name} = ")), "config.toml does not show rule.{name}");
    }
    config.rules.clear();
    assert_eq!(config, Config::default());
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
fn rules_are_read_whole() {
    let text = r#"
        [[rule]]
        path = "/static/*"
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
    };
    assert_eq!(rules, [expected, Rule { path: "/b".into(), ..Rule::default() }]);
    let set = load("", &[], &["rule=[{path = \"/x\", bypass = true}]"]).expect("sound").rules;
    assert_eq!(set, [Rule { path: "/x".into(), bypass: true, ..Rule::default() }]);
}

#[test]
fn every_mistake_is_told_with_key_value_and_what_is_allowed() {
    for (text, sets, expected) in [
        ("[server]\nlisen = \"x\"", "", "f: server.lisen: there is no such key; the nearest key is \"server.listen\""),
        ("[sever]\nthreads = 1", "", "f: sever.threads: there is no such key; the nearest key is \"server.threads\""),
        (
            "",
            "cache.default_timout=1s",
            "--set cache.default_timout: there is no such key; the nearest key is \"cache.default_timeout\"",
        ),
        ("[memory]\ncapacity = \"10 apples\"", "", "f: memory.capacity: \"10 apples\" is not a size from 0 to 1024TiB"),
        ("[memory]\ncapacity = true", "", "f: memory.capacity: true is not a size"),
        ("[cache]\ndefault_timeout = \"soon\"", "", "f: cache.default_timeout: \"soon\" is not a duration, such as"),
        ("[cache]\ndefault_timeout = 5", "", "f: cache.default_timeout: 5 is not a duration"),
        (
            "[upstream]\nconnect_timeout = \"0s\"",
            "",
            "f: upstream.connect_timeout: \"0s\" is not a duration above zero",
        ),
        (
            "[cache]\nset_cookie = \"yes\"",
            "",
            "f: cache.set_cookie: \"yes\" is not one of \"explicit\" or \"rfc\" or \"never\"",
        ),
        ("[server]\nthreads = -1", "", "f: server.threads: -1 is not a whole number from 0 to 1024"),
        ("[server]\nlisten = [\"a\"]", "", "f: server.listen: [\"a\"] has \"a\", which is not host:port"),
        ("[server]\ntrusted_proxies = [\"me\"]", "", "has \"me\", which is not an address or a network"),
        ("[upstream]\nurl = \"ftp://a\"", "", "f: upstream.url: \"ftp://a\" is not \"http://host:port\""),
        ("[upstream]\nurl = \"http://a/path\"", "", "so it can't have one"),
        ("[upstream]\nurl = \"https://a\"", "", "is https"),
        ("[upstream]\nurl = \"http://a:99999\"", "", "f: upstream.url: \"http://a:99999\" is not"),
        ("[upstream]\nurl = \"http://a:0\"", "", "f: upstream.url: \"http://a:0\" is not"),
        ("[durable]\nurl = \"file://host/x\"", "", "f: durable.url: \"file://host/x\" names a host"),
        ("[server]\nlisten = []", "", "server.listen: it is empty"),
        (
            "[[rule]]\npath = \"/\"\nbypass = false",
            "rule[0].bypass=perhaps",
            "--set rule[0].bypass: \"perhaps\" is not true or false",
        ),
        (
            "[[rule]]\npath = \"/\"\nearly_refresh = 1.5",
            "",
            "f: rule[0].early_refresh: 1.5 is not a number from 0 to 0.999",
        ),
        (
            "[[rule]]\npath = \"/\"\nranges = \"some\"",
            "",
            "f: rule[0].ranges: \"some\" is not one of \"auto\" or \"whole\" or \"forward\"",
        ),
        ("[cache]\ntag_fields = [\"Cache Tag\"]", "", "has \"Cache Tag\", which is not the name of a field"),
        ("[durable]\nafter_hits = 1000", "", "f: durable.after_hits: 1000 is not a whole number from 0 to 255"),
        ("[durable]\nmonthly_writes = \"many\"", "", "f: durable.monthly_writes: \"many\" is not a whole number"),
        ("[durable]\nprice_write = -1", "", "f: durable.price_write: -1 is not a price of a million requests"),
        ("[durable]\npoll_interval = \"0s\"", "", "f: durable.poll_interval: \"0s\" is not a duration above zero"),
        ("[durable]\nurl = \"s3://\"", "", "f: durable.url: \"s3://\" names no bucket"),
        ("[durable]\nurl = \"gs://x\"", "", "f: durable.url: \"gs://x\" is not \"file:/directory\""),
        ("[durable]\nrequired = \"perhaps\"", "", "f: durable.required: \"perhaps\" is not true or false"),
        (
            "[admin]\nlisten = \"0.0.0.0:9090\"",
            "",
            "admin.token: it is empty, and admin.listen = \"0.0.0.0:9090\" can be reached",
        ),
        ("[log]\nlevel = \"loud\"", "", "f: log.level: \"loud\" is not one of"),
        ("[[rule]]\ntimeout = \"1h\"", "", "f: rule[0].path: it is missing"),
        (
            "[[rule]]\npath = \"/\"\ntimeut = \"1h\"",
            "",
            "f: rule[0].timeut: there is no such key; the nearest key is \"rule[0].timeout\"",
        ),
        ("[rule]\npath = \"/\"", "", "f: rule: rules are tables, each under its own [[rule]]"),
        ("[[rule]]\npath = \"static\"", "", "f: rule[0].path: \"static\" does not start with / or *"),
        ("[server\n", "", "f: line 1: "),
        ("", "nonsense", "--set nonsense: write it as section.key=value"),
    ] {
        let sets: Vec<&str> = Some(sets).filter(|set| !set.is_empty()).into_iter().collect();
        let errors = load(text, &[], &sets).expect_err("a mistake");
        assert!(
            errors.iter().any(|error| error.contains(expected)),
            "{text} {sets:?}\nwanted: {expected}\ngot: {errors:#?}"
        );
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let errors = load("[server]\nthreads = \"x\"\n[memory]\ncapacity = \"y\"\nz = 1", &[], &[]).expect_err("mistakes");
    assert_eq!(errors.len(), 3, "{errors:#?}");
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
