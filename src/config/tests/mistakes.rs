//! Tests that each mistake is told: the key, the value, and what is allowed.

use super::*;

#[test]
fn every_mistake_is_told_with_key_value_and_what_is_allowed() {
    for (text, sets, expected) in [
        ("[server]\nlisen = \"x\"", "", "f: server.lisen: there is no such key; the nearest key is \"server.listen\""),
        ("[[upstream]]\nurl = \"http://a\"", "", "f: upstream: there is no such key; [upstream] is one section"),
        (
            "[upstream.api]\nurl = \"http://a\"",
            "",
            "f: upstream.api.url: there is no such key; the section of a further application is [upstreams.api]",
        ),
        (
            "[upstream]\nweight = 2",
            "",
            "f: upstream.weight: there is no such key; it is said of one address, behind its URL",
        ),
        (
            "[[rule]]\npath = \"/a\"\nmax_requests = 2",
            "",
            "f: rule[0].max_requests: there is no such key; an upstream has it, and no rule",
        ),
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
            "f: cache.set_cookie: \"yes\" is not one of \"never\" or \"strip\" or \"explicit\" or \"rfc\"",
        ),
        ("[server]\nthreads = -1", "", "f: server.threads: -1 is not a whole number from 0 to 1024"),
        ("[server]\nlisten = [\"a\"]", "", "f: server.listen: [\"a\"] has \"a\", which is not host:port"),
        ("[server]\ntrusted_proxies = [\"me\"]", "", "has \"me\", which is not an address or a network"),
        (
            "[server]\nproxy_protocol = [\"lb\"]",
            "",
            "has \"lb\", which is not an address or a network, such as \"10.0.0.0/8\", or \"unix\"",
        ),
        ("[upstream]\nurl = \"ftp://a\"", "", "f: upstream.url: \"ftp://a\" is not \"http://host:port\""),
        ("[upstream]\nurl = \"http://a/path\"", "", "so it can't have one"),
        ("[upstream]\nurl = \"https://a/path\"", "", "so it can't have one"),
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
        ("[durable]\nafter_hits = 1000", "", "f: durable.after_hits: 1000 is not a whole number from 1 to 255"),
        ("[durable]\nafter_hits = 0", "", "f: durable.after_hits: 0 is not a whole number from 1 to 255"),
        ("[durable]\nafter_hits = \"3\"", "", "from 1 to 255; write it without quotes"),
        ("[durable]\nprice_read = \"0.4\"", "", "such as 5.0; write it without quotes"),
        ("[durable]\nrequired = \"false\"", "", "is not true or false; write it without quotes"),
        (
            "[durable]\ncapacity = 50",
            "",
            "f: durable.capacity: 50 is less than 2MiB, the least that is of use; 0: no limit; did you mean \"50MiB\"?",
        ),
        ("", "durable.capacity=50", "did you mean \"50MiB\"?"),
        ("[durable]\ncapacity = \"1MiB\"", "", "\"1MiB\" is less than 2MiB, the least that is of use; 0: no limit"),
        ("[durable]\nurl = \"file:///\"", "", "\"file:///\" is the root of the file system; name a directory"),
        ("[durable]\nendpoint_url = \"http://x:9000/?a=b\"", "", "has a query"),
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
    ] {
        assert_told(text, sets, expected);
    }
}

#[test]
fn mistakes_in_what_is_said_of_peers_are_told() {
    for (text, sets, expected) in [
        ("[peers]\nlist = [\"http://127.0.0.1:1\"]", "", "peers.listen: it is off, and the other nodes would ask"),
        ("[peers]\nlisten = \"127.0.0.1:1\"", "", "peers.list: it is empty, and so is peers.name"),
        (
            "[peers]\nlisten = \"127.0.0.1:1\"\nname = \"a:1\"\nlist = [\"b:1\"]\ntoken = \"0123456789abcdef\"",
            "",
            "peers.name: peers.list names the nodes as well",
        ),
        (
            "[peers]\nlisten = \"10.0.0.2:1\"\nlist = [\"127.0.0.1:1\"]",
            "",
            "peers.token: it is empty, and peers.listen",
        ),
        (
            "[peers]\nlisten = \"127.0.0.1:1\"\nlist = [\"a:1\"]",
            "",
            "peers.token: it is empty, and http://a:1 is another",
        ),
        (
            "[peers]\nlisten = \"127.0.0.1:1\"\nlist = [\"a:1\"]\ntoken = \"short\"",
            "",
            "peers.token: it has 5 characters, few enough to be guessed",
        ),
        ("[peers]\nlisten = \"127.0.0.1:1\"\nlist = [\"localhost:1\", \"localhost:1\"]", "", "is in it twice"),
        ("[peers]\nlisten = \"unix:/a\"", "", "f: peers.listen: \"unix:/a\" is a unix socket, which other nodes can't"),
        ("[peers]\nlist = [\"unix:/a\"]", "", "f: peers.list: [\"unix:/a\"] has \"unix:/a\", which is not"),
        (
            "[peers]\nlisten = \"https://127.0.0.1:1\"\nname = \"localhost:1\"",
            "",
            "tls.certificate: there is none for peers",
        ),
        ("[peers]\nlisten = \"127.0.0.1:8080\"\nname = \"localhost:1\"", "", "8080"),
    ] {
        assert_told(text, sets, expected);
    }
}

#[test]
fn mistakes_in_lists_of_fields_and_in_rules_are_told() {
    for (text, sets, expected) in [
        (
            "[server]\ntrusted_fields = [\"X-Forwarded-Proto\"]",
            "",
            "\"X-Forwarded-Proto\", which is believed of trusted proxies as it is",
        ),
        ("[server]\ntrusted_fields = [\"X_Country\"]", "", "\"X_Country\", which has other characters"),
        ("[server]\ntrusted_fields = [\"Cookie\"]", "", "\"Cookie\", which is one that Larder itself reads"),
        ("[server]\nallowed_fields = [\"X-Country\"]", "", "\"X-Country\", which has letters, digits and hyphens only"),
        (
            "[server]\nallowed_fields = [\"Content_Length\"]",
            "",
            "\"Content_Length\", which could be taken for content-length",
        ),
        (
            "[server]\nallowed_fields = [\"x.forwarded.for\"]",
            "",
            "\"x.forwarded.for\", which could be taken for x-forwarded-for",
        ),
        ("[server]\nallowed_fields = [\"Script_Name\"]", "", "\"Script_Name\", which could be taken for script-name"),
        (
            "[[rule]]\npath = \"/\"\ntimeut = \"1h\"",
            "",
            "f: rule[0].timeut: there is no such key; the nearest key is \"rule[0].timeout\"",
        ),
        ("[rule]\npath = \"/\"", "", "f: rule: it is a list of tables, each under its own [[rule]]"),
        ("[[rule]]\npath = \"static\"", "", "f: rule[0].path: \"static\" does not start with / or *"),
        ("[server\n", "", "f: line 1: "),
        ("", "nonsense", "--set nonsense: write it as section.key=value"),
    ] {
        assert_told(text, sets, expected);
    }
}

#[test]
fn a_key_that_is_given_twice_or_made_up_is_told_with_its_place() {
    for (text, sets, expected) in [
        (
            "[server]\nlisten = \"a:1\"\nthreads = 1\nlisten = \"b:1\"\n",
            "",
            "f: line 4: server.listen is given twice, first on line 2; keep one of them",
        ),
        (
            "[server]\nthreads = 1\n[log]\n[ server ] # again\nlisten = \"b:1\"\n",
            "",
            "f: line 4: [server] is there twice, first on line 1; put its keys under one of them",
        ),
        (
            "[[rule]]\npath = \"/a\"\n\n[[rule]]\npath = \"/b\"\n\"path\" = \"/c\"\n",
            "",
            "f: line 6: rule[1].path is given twice, first on line 5; keep one of them",
        ),
        (
            "[upstream]\nmax_ilde = 1",
            "",
            "f: upstream.max_ilde: there is no such key; the nearest key is \"upstream.max_idle\"",
        ),
        (
            "[upstream]\nthreads = 1",
            "",
            "f: upstream.threads: there is no such key; the nearest key is \"server.threads\"",
        ),
        ("[server]\nsocket_mode = \"999\"", "", "f: server.socket_mode: \"999\" is not the mode of a file in octal"),
        ("[server]\nsocket_mode = 660", "", "f: server.socket_mode: 660 is not a string"),
        ("[server]\nsocket_mode = \"0440\"", "", "f: server.socket_mode: \"0440\" lets nobody connect"),
        ("[admin]\nhosts = [\"http://a\"]", "", "has \"http://a\", which is not the name of a host"),
        ("[admin]\ntoken = \"a b\"", "", "f: admin.token: the secret has characters that a field can't carry"),
    ] {
        assert_told(text, sets, expected);
    }
}

/// With one underscore it would pass without a word.
#[test]
fn a_variable_that_sets_nothing_is_told() {
    for (name, meant) in [
        ("LARDER_UPSTREAM_URL", "LARDER_UPSTREAM__URL"),
        ("LARDER_ADMIN_TOKEN", "LARDER_ADMIN__TOKEN"),
        ("LARDER_CACHE_DEFALT_TIMEOUT", "LARDER_CACHE__DEFAULT_TIMEOUT"),
        ("LARDER_SERVER", "LARDER_SERVER__LISTEN"),
    ] {
        let errors = load("", &[(name, "hidden-word")], &[]).expect_err("a mistake");
        assert_eq!(errors.len(), 1, "{errors:?}");
        let told = format!("{name}: a variable has two underscores between section and key, as {meant}; ");
        assert!(errors[0].starts_with(&told) || name == "LARDER_SERVER", "{errors:?}");
        assert!(!errors[0].contains("hidden-word"), "{errors:?}");
    }
    let warnings = load("", &[("LARDER_VERSION", "1")], &[]).expect("sound").warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].starts_with("LARDER_VERSION: it sets nothing; "), "{warnings:?}");
    for made_up in [
        "LARDER_ADMIN",
        "LARDER_TOKEN",
        "LARDER_BINARY",
        "LARDER_SERVICE_HOST",
        "LARDER_SERVICE_PORT",
        "LARDER_SERVICE_PORT_HTTP",
        "LARDER_PORT",
        "LARDER_PORT_8080_TCP",
        "LARDER_PORT_8080_TCP_ADDR",
        "LARDER_ADMIN_SERVICE_HOST",
        "LARDER_ADMIN_PORT_9090_TCP_PROTO",
        "LARDER_TEST_SEED",
        "OTHER",
    ] {
        assert_eq!(load("", &[(made_up, "x")], &[]).expect("sound").warnings(), Vec::<String>::new(), "{made_up}");
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let errors = load("[server]\nthreads = \"x\"\n[memory]\ncapacity = \"y\"\nz = 1", &[], &[]).expect_err("mistakes");
    assert_eq!(errors.len(), 3, "{errors:#?}");
}

/// Keys of one section go before those of others, whatever they are called.
#[test]
fn a_hint_is_of_the_same_section() {
    let errors = load("[upstream]\nmax_header = 1\n[cache]\nmax_size = 1", &[], &[]).expect_err("mistakes");
    for (error, section) in errors.iter().rev().zip(["upstream", "cache"]) {
        let hint = error.split("nearest key is ").nth(1).expect("a hint");
        assert!(hint.starts_with(&format!("\"{section}.")), "{error}");
    }
}

#[test]
fn an_address_used_twice_is_an_error_where_it_can_never_work() {
    for (listen, admin, clashes) in [
        ("127.0.0.1:80", "127.0.0.1:81", false),
        ("127.0.0.1:80", "127.0.0.1:80", true),
        ("0.0.0.0:80", "127.0.0.1:80", true),
        ("127.0.0.1:80", "0.0.0.0:80", true),
        ("[::]:80", "127.0.0.1:80", true),
        ("[::]:80", "[::1]:80", true),
        ("0.0.0.0:80", "[::1]:80", false),
        ("127.0.0.1:80", "127.0.0.2:80", false),
        ("127.0.0.1:0", "127.0.0.1:0", false),
        ("localhost:80", "LOCALHOST:80", true),
        ("localhost:80", "127.0.0.1:80", false),
        ("unix:/run/a", "unix:/run//a", true),
        ("unix:/run/a", "unix:/run/b", false),
    ] {
        let admin_set = [format!("server.listen={listen}"), format!("admin.listen={admin}"), "admin.token=x".into()];
        let twice = [format!("server.listen={listen},{admin}"), "admin.listen=off".into()];
        for (sets, key) in [(&admin_set[..], "admin.listen: "), (&twice[..], "server.listen: ")] {
            let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
            let errors = load("", &[], &sets).err().unwrap_or_default();
            assert_eq!(!errors.is_empty(), clashes, "{sets:?} {errors:?}");
            assert!(errors.iter().all(|error| error.starts_with(key) && error.contains("one address")), "{errors:?}");
        }
    }
}

#[test]
fn a_variable_that_is_not_utf_8_is_a_mistake() {
    use std::os::unix::ffi::OsStringExt as _;
    let mut sources = Sources::default();
    let value = std::ffi::OsString::from_vec(vec![0xff, 0xfe]);
    sources.read_os_variable("LARDER_ADMIN__TOKEN".as_ref(), &value);
    sources.read_os_variable("LARDER_TEST".as_ref(), &value);
    let errors = Reading::of(sources).finish().expect_err("it is none").0;
    assert_eq!(errors, ["LARDER_ADMIN__TOKEN: the value is not UTF-8; write it as UTF-8, or take it out"]);
}

#[test]
fn a_key_of_no_section_gets_no_far_fetched_hint() {
    for set in ["nosuch.x=1", "rule[0].path=/a"] {
        let errors = load("", &[], &[set]).expect_err(set);
        assert!(errors.iter().all(|error| !error.contains("nearest")), "{errors:?}");
    }
}
