//! Tests several upstreams behind one Larder: which of them a request reaches by host, path and method, and that no
//! spelling of a request gets or stores the response of another one.

use crate::support::{Answer, Client, Larder, Origin, metric};

/// An application that answers with its name and with what it was asked.
fn application(name: &'static str) -> Origin {
    Origin::new(move |seen, reply| {
        let host = seen.head.get("host").unwrap_or_default();
        reply.send(200, "Cache-Control: max-age=600", &format!("{name} {} {host} {}", seen.method(), seen.path()));
    })
}

/// Three applications: that of `[upstream]`, `api` and `shop`.
struct Three {
    default: Origin,
    api: Origin,
    shop: Origin,
}

impl Three {
    fn new() -> Self {
        Self { default: application("default"), api: application("api"), shop: application("shop") }
    }

    fn behind(&self, config: &str) -> Larder {
        let urls = format!("upstreams.api.url={}\nupstreams.shop.url={}", self.api.url(), self.shop.url());
        Larder::new(&self.default, &format!("{urls}\n{config}"))
    }
}

/// The name of the application that an answer is of.
fn whose(answer: &Answer) -> String {
    match answer.status() {
        200 => answer.text().split(' ').next().unwrap_or_default().to_owned(),
        status => status.to_string(),
    }
}

const BY_PATH: &str = "rule=[{path=\"/api/*\", upstream=\"api\"}, {path=\"/shop/*\", upstream=\"shop\", bypass=false}]";

#[test]
fn no_spelling_of_a_path_gets_or_stores_another_upstreams_response() {
    let three = Three::new();
    let larder = three.behind(BY_PATH);
    for (path, expected) in [
        ("/api/x", "api"),
        ("/shop/x", "shop"),
        ("/x", "default"),
        ("/api/../shop/x", "400"),
        ("/api/../x", "400"),
        ("/api/%2e%2e/shop/x", "400"),
        ("/api/..%2fshop/x", "400"),
        ("/api/..;/shop/x", "400"),
        ("/api/..%5cshop/x", "400"),
        ("/%61pi/x", "api"),
        ("/%2561pi/x", "400"),
        ("//api/x", "400"),
        ("/./api/x", "400"),
        ("/api;x/y", "400"),
        ("/api/x;y", "api"),
        ("/API/x", "default"),
        ("/api", "default"),
        ("/api/%00/../../shop/x", "400"),
    ] {
        let first = larder.get(path, "");
        assert_eq!(whose(&first), expected, "{path}: {}", first.text());
        let again = larder.get(path, "");
        if expected == "400" {
            assert_eq!(again.status(), 400, "{path}");
            assert!(again.cache_status().contains("detail=ambiguous-path"), "{}", again.cache_status());
            assert!(again.text().contains("lead to different applications"), "{}", again.text());
        } else {
            assert_eq!((again.hit(), again.text()), (Some("memory"), first.text()), "{path}");
            assert!(again.text().ends_with(path), "{path}: {}", again.text());
        }
        let (url, admin) = (format!("http://site.example{path}").replace('%', "%25"), larder.admin);
        let told = Client::connect(admin).get(&format!("/explain?url={}", url.replace(';', "%3B")), "").text();
        let word =
            if expected == "400" { "ambiguous-path".into() } else { format!("upstream: {expected}, at http://") };
        assert!(told.contains(&word), "{path}: {told}");
    }
    // An unsafe request is no way round.
    assert_eq!(larder.client().send("POST", "/api/../shop/x", "").status(), 400);
    for (path, expected) in [("/api/x", "api"), ("/shop/x", "shop"), ("/x", "default")] {
        assert_eq!(whose(&larder.get(path, "")), expected, "{path}");
    }
}

const BY_HOST: &str = "rule=[{host=\"api.example\", upstream=\"api\"}, {host=\"*.shop.example\", upstream=\"shop\"}, {host=\"alt.example:8080\", upstream=\"shop\"}]";

#[test]
fn no_spelling_of_a_host_gets_or_stores_another_upstreams_response() {
    let three = Three::new();
    let trusting = three.behind(&format!("{BY_HOST}\nserver.trusted_proxies=127.0.0.1"));
    let plain = three.behind(BY_HOST);
    let told = |host: &str| format!("GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let forwarded = |host: &str, by: &str| format!("GET /x HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Host: {by}\r\n\r\n");
    for (larder, request, expected, host) in [
        (&plain, told("api.example"), "api", "api.example"),
        (&plain, told("API.Example"), "api", "api.example"),
        (&plain, told("api.example:80"), "api", "api.example"),
        (&plain, told("api.example:8080"), "api", "api.example:8080"),
        (&plain, told("api.example."), "api", "api.example."),
        (&plain, told("api.example.evil.example"), "default", "api.example.evil.example"),
        (&plain, told("a.shop.example"), "shop", "a.shop.example"),
        (&plain, told("a.b.shop.example"), "shop", "a.b.shop.example"),
        (&plain, told("shop.example"), "default", "shop.example"),
        (&plain, told("workshop.example"), "default", "workshop.example"),
        (&plain, told("alt.example:8080"), "shop", "alt.example:8080"),
        (&plain, told("alt.example"), "default", "alt.example"),
        (&plain, "GET http://api.example/x HTTP/1.1\r\nHost: a.shop.example\r\n\r\n".into(), "api", "api.example"),
        (&plain, "GET http://other.example/x HTTP/1.1\r\nHost: api.example\r\n\r\n".into(), "default", "other.example"),
        (&plain, "GET /x HTTP/1.0\r\n\r\n".into(), "default", ""),
        (&plain, forwarded("other.example", "api.example"), "default", "other.example"),
        (&plain, forwarded("api.example", "a.shop.example"), "api", "api.example"),
        (&trusting, forwarded("other.example", "api.example"), "api", "api.example"),
        (&trusting, forwarded("api.example", "a.shop.example"), "shop", "a.shop.example"),
        (&trusting, forwarded("api.example", "other.example"), "default", "other.example"),
    ] {
        for turn in 0..2 {
            let answer = larder.send_raw(&request);
            assert_eq!(answer.status(), 200, "{request}");
            let text = answer.text();
            assert!(text.starts_with(&format!("{expected} GET {host}")), "{request}: {text}");
            assert!(turn == 0 || answer.is_hit(), "{request}");
        }
    }
    for larder in [&plain, &trusting] {
        for (host, expected) in [("api.example", "api"), ("a.shop.example", "shop"), ("other.example", "default")] {
            assert_eq!(whose(&larder.get("/x", &format!("Host: {host}"))), expected, "{host}");
        }
    }
}

const BY_METHOD: &str = "rule=[{method=[\"POST\", \"DELETE\"], upstream=\"api\"}, {path=\"/p*\", method=\"GET\", ignore_query=[\"utm_*\"]}]";

#[test]
fn what_an_unsafe_request_changes_at_another_upstream_is_invalidated_where_get_stored_it() {
    let three = Three::new();
    let larder = three.behind(BY_METHOD);
    for method in ["POST", "DELETE", "PATCH"] {
        assert!(!larder.get("/p?utm_a=1", "").is_hit());
        assert!(larder.get("/p?utm_b=2", "").is_hit(), "one key");
        let head = larder.client().send("HEAD", "/p?utm_c=3", "");
        assert!(head.is_hit(), "HEAD goes where GET goes");
        let changed = larder.client().send(method, "/p?utm_d=4", "");
        assert_eq!(whose(&changed), if method == "PATCH" { "default" } else { "api" });
        assert!(changed.text().ends_with("/p?utm_d=4"), "{}", changed.text());
    }
    assert_eq!(whose(&larder.get("/p", "")), "default");
    // Another application's error says nothing, and a purge goes by GET's rule too.
    three.api.script(|_, reply| reply.send(500, "", "no"));
    larder.client().send("POST", "/p", "");
    assert!(larder.get("/p", "").is_hit());
    assert_eq!(larder.purge("http://site.example/p?utm_e=5").status(), 200);
    assert!(!larder.get("/p", "").is_hit());
}

/// The answer to a POST may be stored for GET, but not where GET asks another application.
#[test]
fn an_answer_to_post_is_not_stored_for_the_get_of_another_upstream() {
    let three = Three::new();
    three.api.script(|_, reply| reply.send(200, "Cache-Control: max-age=600\nContent-Location: /p", "api's own"));
    let larder = three.behind(BY_METHOD);
    larder.client().send("POST", "/p", "");
    let answer = larder.get("/p", "");
    assert_eq!((whose(&answer), answer.hit()), ("default".into(), None));
    let same = three.behind("rule=[{path=\"/p\", upstream=\"api\"}]");
    same.client().send("POST", "/p", "");
    assert_eq!((same.get("/p", "").text(), same.get("/p", "").hit()), ("api's own".into(), Some("memory")));
}

#[test]
fn each_upstream_has_its_own_limits_breaker_and_metrics() {
    let (default, gate) = Origin::gated();
    let api = application("api");
    let gone = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let config = format!(
        "upstreams.api.url={0}\nupstreams.api.response_timeout=100ms\nupstreams.gone.url=http://{gone}\nupstreams.gone.breaker_failures=1\nrule=[{{path=\"/api/*\", upstream=\"api\"}}, {{path=\"/gone/*\", upstream=\"gone\"}}]",
        api.url(),
    );
    let larder = Larder::new(&default, &config);
    let held = crate::support::Gate::default();
    let shut = held.clone();
    api.script(move |_, reply| {
        shut.wait();
        reply.send(200, "", "late");
    });
    let waiting = larder.crowd(1, "/slow");
    assert_eq!(larder.get("/api/x", "").status(), 504, "by the limit of its own upstream");
    assert_eq!(larder.get("/gone/x", "").status(), 502);
    let line = |name: &str, upstream: &str, address: &str| {
        metric(larder.admin, &format!("{name}{{upstream=\"{upstream}\",address=\"{address}\"}}"))
    };
    let gone = format!("http://{gone}");
    for (name, expected) in [("larder_upstream_down", [0, 0, 1]), ("larder_upstream_healthy", [1, 1, 1])] {
        let found = [("default", &default.url()), ("api", &api.url()), ("gone", &gone)];
        assert_eq!(found.map(|(upstream, address)| line(name, upstream, address)), expected, "{name}");
    }
    default.requests.wait_for(1);
    assert_eq!(line("larder_upstream_requests", "default", &default.url()), 1);
    assert_eq!(line("larder_upstream_requests", "gone", &gone), 0);
    let total = |upstream: &str, address: &str, outcome: &str| {
        let labels = format!("upstream=\"{upstream}\",address=\"{address}\",outcome=\"{outcome}\"");
        metric(larder.admin, &format!("larder_upstream_requests_total{{{labels}}}"))
    };
    let totals = |upstream: &str, address: &str| {
        ["answered", "connect-failed", "timed-out", "broken", "not-sent"]
            .map(|outcome| total(upstream, address, outcome))
    };
    assert_eq!(totals("default", &default.url()), [0; 5], "it is under way");
    assert_eq!((totals("api", &api.url()), totals("gone", &gone)), ([0, 0, 1, 0, 0], [0, 1, 0, 0, 0]));
    assert_eq!(larder.metric("larder_upstream_waiting{upstream=\"gone\"}"), 0);
    assert_eq!(larder.metric("larder_origin_down "), 1);
    gate.open();
    held.open();
    assert_eq!(waiting.join().expect("an answer")[0].status(), 200);
    assert_eq!(whose(&larder.get("/x", "")), "/x", "the others go on");
    assert_eq!(totals("default", &default.url()), [2, 0, 0, 0, 0]);
    let ready = Client::connect(larder.admin).get("/readyz", "");
    assert_eq!(ready.status(), 200);
    let told: serde_json::Value = serde_json::from_str(&ready.text()).expect("JSON");
    assert_eq!(told["origin"], "partly");
    assert_eq!(
        told["upstreams"],
        serde_json::json!({"default": "reachable", "api": "reachable", "gone": "unreachable"})
    );
}
