//! Tests which rule a request gets, and how paths that are read in several ways do.

use super::*;

/// Returns the rule of GET for a path of any host.
fn of_get<'a>(rules: &'a Rules, path: &str) -> &'a Resolved {
    rules.matching("site.example", &Method::GET, path).expect("one upstream")
}

#[test]
fn a_page_cannot_be_spelt_into_another_ones_rule() {
    let rule = |path: &str, bypass| Rule { path: path.into(), bypass, ..Rule::default() };
    let cache = Config { default_timeout: Duration::from_secs(9), ..Config::default() };
    let listed = ["/static/*", "/my%20files/*", "/café/*", "/account*"].map(|path| rule(path, false));
    let all = listed.into_iter().chain([rule("/admin/*", true)]).collect();
    let rules = Rules::new(&cache, &Transfers::default(), all, Nominated::default());
    let strictest = "strictest";
    for (path, expected) in [
        ("/static/a.css", "/static/*"),
        ("/static/%61.css", "/static/*"),
        ("/%73tatic/a.css", "/static/*"),
        ("/static/x/../a.css", "/static/*"),
        ("/my%20files/a", "/my%20files/*"),
        ("/caf%C3%A9/a", "/café/*"),
        ("/%61ccount", "/account*"),
        ("/plain/%61", "*"),
        ("/static/../account", strictest),
        ("/static/%2e%2e/account", strictest),
        ("/static/..%2faccount", strictest),
        ("//account", strictest),
        ("/plain/../account", strictest),
        ("/admin/x", "/admin/*"),
        ("/%61dmin/x", "/admin/*"),
        ("//admin/x", "/admin/*"),
        ("/static/../admin/x", "/admin/*"),
        ("/admin/../static/x", "/admin/*"),
        ("/50%", "*"),
        ("/static/a;v=1.css", "/static/*"),
        ("/static/..;/account", strictest),
        ("/static/..;x=1/account", strictest),
        ("/static/..%3b/account", strictest),
        ("/static/%252e%252e/account", strictest),
        ("/static/%25252e%25252e/account", strictest),
        ("/static/..%00/account", strictest),
        ("/static/..%5caccount", strictest),
        ("/account;/../static/x.css", strictest),
        ("/page;x.css", "*"),
        ("/page.html%00.css", "*"),
        ("/account%23/../static/x.css", strictest),
        ("/static/..%2faccount%3fx.css", strictest),
        ("/static/../admin;x.css/y", "/admin/*"),
        ("/static/..;/admin/x", "/admin/*"),
        ("/static/%252e%252e/admin/x", "/admin/*"),
        ("/admin/x%00/../../static/x", "/admin/*"),
        ("/./admin/x//../../plain", "/admin/*"),
        ("/static/./x//../y", "/static/*"),
    ] {
        let resolved = of_get(&rules, path);
        if expected == strictest {
            assert!(std::ptr::eq(resolved, &raw const rules.disputed[0].strictest), "{path}");
            assert_eq!(resolved.policy.lifetimes, LifetimePolicy::default());
        } else {
            assert_eq!(resolved.rule.path, expected, "{path}");
        }
    }
}

#[test]
fn what_ends_a_path_elsewhere_does_not_lend_it_an_extensions_rule() {
    let rules = |style: Rule| {
        let rule = |path: &str| Rule { path: path.into(), ..Rule::default() };
        Rules::new(&Config::default(), &Transfers::default(), vec![style, rule("/account*")], Nominated::default())
    };
    let style = Rule { path: "*.css".into(), timeout: Some(Duration::from_secs(60)), ..Rule::default() };
    let granting = rules(style.clone());
    let overriding = rules(Rule { override_timeout: Some(Duration::from_secs(60)), ..style });
    for path in ["/account;x.css", "/account%3bx.css", "/account%00.css", "/account%23.css", "/account%3f.css"] {
        assert_eq!(of_get(&granting, path).policy.lifetimes.default_timeout, None, "{path}");
        assert!(of_get(&overriding, path).rule.bypass, "{path}");
    }
    for path in ["/account%0a.css", "/account%0d%0a.css", "/account%253f.css", "/x;y.css", "/x%23.css"] {
        assert_eq!(of_get(&granting, path).policy.lifetimes.default_timeout, None, "{path}");
    }
    assert_eq!(of_get(&granting, "/a%20b.css").policy.lifetimes.default_timeout, Some(60_000));
    let long = format!("/static/{}%41", "a".repeat(5000));
    assert!(of_get(&granting, &long).rule.bypass, "too long to be read in all ways");
}

#[test]
fn the_first_match_wins_and_the_rest_is_defaults() {
    let rule =
        |path: &str, secs| Rule { path: path.into(), timeout: Some(Duration::from_secs(secs)), ..Rule::default() };
    let cache = Config { default_timeout: Duration::from_secs(9), ..Config::default() };
    let rules = Rules::new(
        &cache,
        &Transfers::default(),
        vec![rule("/static/*", 1), rule("/static/big/*", 2), rule("/a", 0)],
        Nominated::default(),
    );
    let timeout = |path: &str| of_get(&rules, path).policy.lifetimes.default_timeout;
    assert_eq!(timeout("/static/big/x"), Some(1000));
    assert_eq!(timeout("/static"), Some(9000));
    assert_eq!(timeout("/a"), Some(0), "a rule can say zero");
    assert_eq!(
        of_get(&Rules::new(&Config::default(), &Transfers::default(), vec![], Nominated::default()), "/")
            .policy
            .lifetimes
            .default_timeout,
        None
    );
}

/// Makes rules of their host, methods, path and upstream, each empty for any or none.
fn rules_of(listed: &[[&str; 4]]) -> Rules {
    let rule = |[host, methods, path, upstream]: &[&str; 4]| Rule {
        host: (!host.is_empty()).then(|| HostPattern::read(host).expect("a host")),
        methods: methods.split_whitespace().map(|method| method.parse().expect("a method")).collect(),
        path: if path.is_empty() { "*".into() } else { (*path).into() },
        upstream: (!upstream.is_empty()).then(|| (*upstream).to_owned()),
        ..Rule::default()
    };
    let quick = |secs| Transfer { response_timeout: Duration::from_secs(secs), ..Transfer::default() };
    let named = vec![("a".to_owned(), quick(1)), ("b".to_owned(), quick(2))];
    let transfers = Transfers { default: quick(9), named };
    Rules::new(&Config::default(), &transfers, listed.iter().map(rule).collect(), Nominated::default())
}

const NAMES: [UpstreamName; 3] = [UpstreamName::Default, UpstreamName::Named(0), UpstreamName::Named(1)];

#[test]
fn a_rule_is_chosen_by_host_method_and_path_together() {
    let rules = rules_of(&[
        ["api.example", "", "", "a"],
        ["*.shop.example", "GET", "/p/*", "b"],
        ["", "POST PUT", "/up/*", "b"],
        ["api.example:8080", "", "/never", "b"],
    ]);
    let [none, a, b] = NAMES;
    for (authority, method, path, expected) in [
        ("api.example", "GET", "/x", a),
        ("api.example", "POST", "/up/x", a),
        ("api.example:8080", "GET", "/never", a),
        ("api.example.", "GET", "/x", a),
        ("x.api.example", "GET", "/x", none),
        ("a.shop.example", "GET", "/p/1", b),
        ("a.shop.example", "HEAD", "/p/1", b),
        ("a.shop.example", "get", "/p/1", b),
        ("a.shop.example", "POST", "/p/1", none),
        ("a.shop.example", "GET", "/q/1", none),
        ("shop.example", "GET", "/p/1", none),
        ("other.example", "POST", "/up/1", b),
        ("other.example", "post", "/up/1", b),
        ("other.example", "PUT", "/up/1", b),
        ("other.example", "GET", "/up/1", none),
        ("", "GET", "/x", none),
    ] {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let found = rules.matching(authority, &method, path).expect("one upstream");
        assert_eq!(found.upstream, expected, "{authority} {method} {path}");
        let timeout = Duration::from_secs([9, 1, 2][expected.index()]);
        assert_eq!(found.transfer.response_timeout, timeout, "the limits are the upstream's own");
    }
}

#[test]
fn a_path_whose_readings_lead_to_several_upstreams_has_no_rule() {
    let rules = rules_of(&[["", "", "/api/*", "a"], ["", "", "/admin/*", "b"], ["one.example", "", "", "b"]]);
    let matching = |authority: &str, path: &str| rules.matching(authority, &Method::GET, path);
    for path in [
        "/api/../admin/x",
        "/api/..%2fadmin/x",
        "/api/%2e%2e/admin/x",
        "/api/..;/admin/x",
        "//api/x",
        "/x/../api/y",
        "/api/../x",
        "/x\\..\\api\\y",
        "/%2561pi/x",
        "/api;x/y",
        "/x%00/../../api/y",
    ] {
        assert_eq!(matching("h.example", path).err(), Some(Ambiguous), "{path}");
    }
    for (path, expected) in [
        ("/%61pi/x", NAMES[1]),
        ("/api/x;y=1", NAMES[1]),
        ("/api//x", NAMES[1]),
        ("/api/x/../y", NAMES[1]),
        ("/API/x", NAMES[0]),
        ("/x;y/z", NAMES[0]),
        ("/%zz", NAMES[0]),
    ] {
        assert_eq!(matching("h.example", path).expect(path).upstream, expected, "{path}");
    }
    // Of one upstream, they have its strictest terms.
    let rules = rules_of(&[["", "", "/a/*", "b"], ["", "", "/b/*", "b"], ["", "", "", "b"]]);
    let found = rules.matching("h.example", &Method::GET, "/a/../b/x").expect("one upstream");
    assert!(std::ptr::eq(found, &raw const rules.disputed[2].strictest));
    assert_eq!((found.upstream, found.transfer.response_timeout), (NAMES[2], Duration::from_secs(2)));
}

#[test]
fn a_path_too_long_to_be_read_goes_where_all_its_rules_lead_or_nowhere() {
    let rules = rules_of(&[
        ["one.example", "", "/x", "a"],
        ["one.example", "", "", "a"],
        ["two.example", "GET", "/api/*", "b"],
        ["three.example", "", "/a", "b"],
        ["three.example", "", "/*", "b"],
    ]);
    let long = format!("/%41{}", "a".repeat(MAX_READ));
    let matching = |authority: &str, method: &Method| {
        rules.matching(authority, method, &long).map(|found| (found.upstream, found.rule.bypass))
    };
    assert_eq!(matching("one.example", &Method::GET), Ok((NAMES[1], true)));
    assert_eq!(matching("two.example", &Method::GET), Err(Ambiguous));
    assert_eq!(matching("two.example", &Method::POST), Ok((NAMES[0], true)));
    assert_eq!(matching("three.example", &Method::GET), Ok((NAMES[2], true)));
    assert_eq!(matching("four.example", &Method::GET), Ok((NAMES[0], true)));
}

#[test]
fn a_rule_hides_another_by_host_method_and_path_together() {
    let rule = |[host, methods, path]: [&str; 3]| Rule {
        host: (!host.is_empty()).then(|| HostPattern::read(host).expect("a host")),
        methods: methods.split_whitespace().map(|method| method.parse().expect("a method")).collect(),
        path: path.into(),
        ..Rule::default()
    };
    for (former, later, expected) in [
        (["", "", "/a/*"], ["h.example", "GET", "/a/b"], true),
        (["h.example", "", "/a/*"], ["", "", "/a/b"], false),
        (["h.example", "", "/a/*"], ["h.example:81", "", "/a/b"], true),
        (["*.example", "", "*"], ["h.example", "", "/a"], true),
        (["h.example", "", "*"], ["i.example", "", "/a"], false),
        (["", "GET POST", "*"], ["", "POST", "/a"], true),
        (["", "POST", "*"], ["", "GET POST", "/a"], false),
        (["", "POST", "*"], ["", "", "/a"], false),
        (["", "", "/a"], ["", "", "*"], false),
        (["", "GET", "*"], ["", "QUERY", "/a"], true),
        (["", "QUERY", "*"], ["", "GET", "/a"], false),
        (["", "POST", "*"], ["", "QUERY", "/a"], false),
    ] {
        assert_eq!(rule(former).hides(&rule(later)), expected, "{former:?} {later:?}");
    }
}

#[test]
fn every_method_finds_the_key_by_the_rule_of_get() {
    let query = QueryRules { ignore: vec!["utm_*".into()], sort: false };
    let of_post = Rule { methods: vec![Method::POST], query, ..Rule::default() };
    let rules = Rules::new(&Config::default(), &Transfers::default(), vec![of_post], Nominated::default());
    assert!(rules.query("h.example", "/a").is_empty());
    assert!(rules.differ_from_get(&Method::POST) && !rules.differ_from_get(&Method::HEAD));
}
