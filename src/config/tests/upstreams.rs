//! Tests what is read of upstreams, and what is told of mistakes in them.

use super::*;

#[test]
fn further_upstreams_are_read_from_every_source_with_defaults_of_their_own() {
    let file = "
        [upstream]
        connect_timeout = \"1s\"

        [upstreams.my-api]
        url = \"http://file:1\"
        max_idle = 3

        [[rule]]
        host = \"*.Shop.Example\"
        method = [\"GET\", \"POST\"]
        upstream = \"my-api\"
    ";
    let api = |environment: &[(&str, &str)], sets: &[&str]| {
        let config = load(file, environment, sets).expect("sound");
        let (name, api) = config.upstreams[0].clone();
        assert_eq!((&*name, api.max_idle), ("my-api", 3));
        assert_eq!(api.connect_timeout, Duration::from_secs(5), "nothing is taken from [upstream]");
        api.addresses[0].address.to_string()
    };
    let variable = ("LARDER_UPSTREAMS__MY_API__URL", "http://environment:2");
    let set = "upstreams.my-api.url=http://set:3";
    assert_eq!(api(&[], &[]), "http://file:1");
    assert_eq!(api(&[variable], &[]), "http://environment:2");
    assert_eq!(api(&[variable], &[set]), "http://set:3");
    let config = load("", &[("LARDER_UPSTREAMS__B__URL", "unix:/b")], &["upstreams.a.url=unix:/a"]).expect("sound");
    let names: Vec<&str> = config.all_upstreams().map(|(name, _)| name).collect();
    assert_eq!(names, ["default", "a", "b"]);
    let rule = &load(file, &[], &[]).expect("sound").rules[0];
    assert_eq!(rule.in_words(), "host = \"*.shop.example\", method = [\"GET\", \"POST\"]");
    assert_eq!((rule.upstream.as_deref(), &*rule.path), (Some("my-api"), "*"));
}

#[test]
fn mistakes_in_further_upstreams_and_in_what_leads_to_them_are_told() {
    const API: &str = "[upstreams.api]\nurl = \"http://a\"\n";
    for (text, sets, expected) in [
        ("[upstreams.api]", "", "f: upstreams.api.url: it is missing; name the application's address"),
        ("[upstreams.api]\nhost = \"h\"", "", "f: upstreams.api.url: it is missing"),
        ("", "upstreams.api.host=h", "--set upstreams.api.url: it is missing"),
        ("[upstreams.api]\nurl = []", "", "upstreams.api.url: it is empty; name at least one address"),
        ("[upstreams.api]\nurl = \"ftp://a\"", "", "f: upstreams.api.url: \"ftp://a\" is not \"http://host:port\""),
        (
            "[upstreams.api]\nurl = \"http://a\"\nconnect_timout = \"1s\"",
            "",
            "f: upstreams.api.connect_timout: there is no such key; the nearest key is \"upstreams.api.connect_timeout\"",
        ),
        ("[upstreams.\"a.b\"]\nurl = \"http://a\"", "", "f: upstreams.a.b: \"a.b\" is not a name of 1 to 64 letters"),
        ("[upstreams.\"a b\"]\nurl = \"http://a\"", "", "f: upstreams.a b: \"a b\" is not a name of 1 to 64 letters"),
        ("[upstreams.a__b]\nurl = \"http://a\"", "", "f: upstreams.a__b: \"a__b\" has underscores at an end or two"),
        ("[upstreams.Default]\nurl = \"http://a\"", "", "f: upstreams.Default: \"Default\" stands for [upstream]"),
        (
            "[upstreams.my-api]\nurl = \"http://a\"\n[upstreams.My_Api]\nurl = \"http://a\"",
            "",
            "f: upstreams.my-api: in variables this is the same name as upstreams.My_Api; rename one of them",
        ),
        ("[upstreams]\nurl = \"http://a\"", "", "f: upstreams.url: upstreams have names, and each its own keys"),
        ("", "upstreams=x", "--set upstreams: upstreams have names"),
        (
            API,
            "rule=[{path = \"/\", upstream = \"apo\"}]",
            "rule[0].upstream: there is no [upstreams.apo]; the nearest is \"api\"",
        ),
        (API, "rule=[{upstream = \"api\"}]", "--set rule[0].path: it is missing; a rule is for some paths"),
        ("[[rule]]\nhost = \"http://a\"", "", "f: rule[0].host: \"http://a\" is not a host, such as"),
        ("[[rule]]\nhost = \"a:443\"", "", "f: rule[0].host: \"a:443\" names the default port of a scheme"),
        ("[[rule]]\nmethod = [\"HEAD\"]", "", "has \"HEAD\", which goes where GET goes; write GET"),
        ("[[rule]]\nmethod = [\"get\"]", "", "has \"get\", which is not in capitals"),
        ("[[rule]]\nmethod = \"TRACE\"", "", "has \"TRACE\", which is never passed on"),
    ] {
        assert_told(text, sets, expected);
    }
    for (text, name, expected) in [
        (API, "LARDER_UPSTREAMS_API_URL", "as LARDER_UPSTREAMS__API__URL; rename it"),
        ("", "LARDER_UPSTREAMS_API_URL", "as LARDER_UPSTREAMS__NAME__URL; rename it"),
    ] {
        let errors = load(text, &[(name, "http://a")], &[]).expect_err("a mistake");
        assert!(errors.len() == 1 && errors[0].contains(expected), "{errors:?}");
    }
}

#[test]
fn what_is_most_likely_not_meant_of_further_upstreams_is_a_warning() {
    let warnings = |sets: &[&str]| load("", &[], sets).expect("sound").warnings();
    let own = ["server.listen=127.0.0.1:80", "upstreams.api.url=http://127.0.0.1:80"];
    let rule = "rule=[{path=\"/api/*\", upstream=\"api\"}]";
    let told = warnings(&[own[0], own[1], rule]);
    assert!(
        told.len() == 1 && told[0].starts_with("upstreams.api.url: http://127.0.0.1:80 is Larder's own"),
        "{told:?}"
    );
    let told = warnings(&["upstreams.api.url=http://a"]);
    assert!(told.len() == 1 && told[0].starts_with("upstreams.api: no rule leads to it"), "{told:?}");
    assert_eq!(warnings(&["upstreams.api.url=http://a", rule]), Vec::<String>::new());
    let told = warnings(&["rule=[{host=\"*.a.example\"}, {host=\"b.a.example\", path=\"/x\"}, {host=\"c.example\"}]"]);
    let expected =
        "rule[1]: host = \"b.a.example\", path = \"/x\" is never reached: rule[0], host = \"*.a.example\", comes";
    assert!(told.len() == 1 && told[0].starts_with(expected), "{told:?}");
}

#[test]
fn what_is_most_likely_not_meant_of_addresses_is_a_warning() {
    let warnings = |sets: &[&str]| load("", &[], sets).expect("sound").warnings();
    let sound = "upstream.health_path=/healthz";
    assert_eq!(warnings(&["upstream.url=http://a, http://b", sound]), Vec::<String>::new());
    for (sets, expected) in [
        (&["upstream.url=http://a, http://b"][..], "upstream.health_path: it is empty, so an address that accepts"),
        (&["upstream.url=http://a, http://a:80 weight=2", sound], "upstream.url: http://a:80 is there twice"),
        (&["upstream.url=http://a backup, http://b backup", sound], "upstream.url: every address is a backup"),
        (&["upstream.sticky_cookie=at"], "upstream.sticky_key: it is empty, so the cookies end"),
        (&["upstream.sticky_key=long-enough-as-it-is"], "upstream.sticky_cookie: it is empty, so upstream.sticky_key"),
        (&["upstream.ca_file=/x"], "upstream.url: no address in it is https, so upstream.ca_file"),
    ] {
        let told = warnings(sets);
        assert!(told.len() == 1 && told[0].starts_with(expected), "{told:?}");
    }
    let both = ["upstreams.api.url=http://b", "upstreams.api.sticky_cookie=at", "upstream.sticky_cookie=at"];
    let errors = load("", &[], &both).expect_err("a mistake");
    assert!(errors[0].starts_with("upstreams.api.sticky_cookie: \"at\" is that of upstream too"), "{errors:?}");
    let errors = load("", &[], &["upstream.sticky_key=short"]).expect_err("a mistake");
    assert!(errors[0].contains("upstream.sticky_key") && errors[0].contains("16 characters"), "{errors:?}");
}
