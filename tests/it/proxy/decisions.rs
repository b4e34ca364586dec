//! Compares the verdict of `explain` with the answer that the request then gets, over thousands of generated states:
//! stored fields, ages, purges, requests and rules.

use crate::support::{Client, Larder, Origin};

/// States that are tried; each has a URL of its own, so that none changes another.
const STATES: u64 = 3000;

const RULES: &str = r#"rule=[{path="/bypass/*", bypass=true}, {path="/granted/*", timeout="40s"}, {path="/ignore/*", request_directives="ignore"}, {path="/bound/*", request_directives="bound"}, {path="/alone/*", collapse=false}, {path="/whole/*", ranges="whole"}, {path="/override/*", override_timeout="20s"}]"#;

fn pick<'a>(rng: &mut fastrand::Rng, from: &[&'a str]) -> &'a str {
    from[rng.usize(..from.len())]
}

/// The fields of a stored response.
fn stored(rng: &mut fastrand::Rng) -> String {
    let lifetime = pick(rng, &["max-age=30", "max-age=10", "max-age=0", "s-maxage=20", "no-cache", "public", ""]);
    let more = pick(
        rng,
        &["", "", "must-revalidate", "proxy-revalidate", "stale-while-revalidate=30", "stale-if-error=60", "immutable"],
    );
    let validator = pick(rng, &["ETag: \"a\"", "Last-Modified: Wed, 01 Jul 2026 00:00:00 GMT", ""]);
    let vary = pick(rng, &["", "", "", "Vary: Accept-Language", "Vary: *"]);
    let search = pick(rng, &["", "", "No-Vary-Search: params=(\"x\")"]);
    let directives = [lifetime, more].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(", ");
    let fields = [format!("Cache-Control: {directives}"), validator.into(), vary.into(), search.into()];
    fields.into_iter().filter(|field| !field.is_empty()).collect::<Vec<_>>().join("\n")
}

/// A request's method and fields.
fn asked(rng: &mut fastrand::Rng) -> (&'static str, Vec<String>) {
    let method = *["GET", "GET", "GET", "GET", "HEAD", "POST", "OPTIONS"].get(rng.usize(..7)).expect("one of them");
    let directives = [
        "",
        "",
        "",
        "no-cache",
        "max-age=0",
        "max-age=5",
        "max-age=100",
        "min-fresh=20",
        "max-stale",
        "max-stale=10",
        "only-if-cached",
        "no-store",
        "max-stale, only-if-cached",
        "no-cache, only-if-cached",
    ];
    let mut fields = Vec::new();
    match pick(rng, &directives) {
        "" => {}
        text => fields.push(format!("Cache-Control: {text}")),
    }
    match rng.u8(..8) {
        0 => fields.push("Range: bytes=0-3".into()),
        1 => fields.push("Accept-Language: de".into()),
        2 => fields.push("If-Match: \"a\"".into()),
        3 => fields.push("If-None-Match: \"a\"".into()),
        4 => fields.push("Cookie: a=1".into()),
        5 => fields.push("Authorization: Basic eDp5".into()),
        _ => {}
    }
    (method, fields)
}

/// Returns the decision in a `Cache-Status`: a hit with its lifetime and tier, or why the origin was asked.
fn decision(status: &str) -> String {
    let members: Vec<&str> = status.split("; ").collect();
    let is_told = |member: &&&str| {
        ["hit", "fwd=", "ttl=", "detail="].iter().any(|word| member.starts_with(word))
            // `explain` can't know the lifetime that a fetch will bring.
            && !(status.contains("fwd=") && member.starts_with("ttl="))
    };
    members.iter().filter(is_told).copied().collect::<Vec<_>>().join("; ")
}

fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[test]
fn explain_says_what_a_request_then_gets() {
    let origin = Origin::new(|request, reply| {
        // The first request for a path says which fields are stored.
        let fields = request.head.get("x-store").unwrap_or("Cache-Control: no-store").replace('|', "\n");
        if request.method() == "GET" && request.head.get("if-none-match") == Some("\"a\"") {
            return reply.send(304, "ETag: \"a\"", "");
        }
        reply.send(200, &fields, "0123456789");
    });
    let larder = Larder::new(&origin, RULES);
    let mut rng = fastrand::Rng::with_seed(18);
    let mut admin = Client::connect(larder.admin);
    let mut seen = std::collections::BTreeMap::new();
    for n in 0..STATES {
        let rule = pick(
            &mut rng,
            &["/", "/", "/", "/bypass/", "/granted/", "/ignore/", "/bound/", "/alone/", "/whole/", "/override/"],
        );
        let base = format!("{rule}{n}");
        let path = format!("{base}{}", pick(&mut rng, &["", "?x=1"]));
        if rng.u8(..10) > 0 {
            let store = stored(&mut rng).replace('\n', "|");
            larder.get(&path, &format!("X-Store: {store}\nAccept-Language: en"));
        }
        larder.advance(rng.u64(..25));
        let path = if rng.u8(..4) == 0 { format!("{base}?x=2") } else { path };
        let url = format!("http://site.example{path}");
        match rng.u8(..12) {
            0 => drop(larder.purge(&url)),
            1 => drop(larder.purge_of(&format!("{{\"url\": \"{url}\", \"soft\": true}}"))),
            _ => {}
        }
        larder.advance(rng.u64(..25));
        let (method, mut fields) = asked(&mut rng);
        if rng.bool() {
            fields.push("Accept-Language: en".into());
        }
        let headers: String = fields.iter().map(|field| format!("&header={}", escaped(field))).collect();
        let told = admin.get(&format!("/explain?url={}&method={method}{headers}", escaped(&url)), "");
        let told: serde_json::Value = serde_json::from_str(&told.text()).expect("JSON");
        let mut client = larder.client();
        client.ask(method, &path, &fields.join("\n"));
        let got = client.answer();
        let told_decision = decision(told["verdict"].as_str().expect("a verdict"));
        let state = format!("{method} {path} {fields:?}\n{told:#}\n{}", got.cache_status());
        assert_eq!(told_decision, decision(got.cache_status()), "{state}");
        let kind = told["decision"].as_str().expect("a decision").to_owned();
        *seen.entry(kind).or_insert(0) += 1;
    }
    // Each kind of decision was among them.
    for kind in [
        "Answer(Fresh, No)",
        "Answer(Accepted, No)",
        "Answer(WhileRevalidate, Yes)",
        "Fetch(UriMiss)",
        "Fetch(VaryMiss)",
        "Fetch(Stale)",
        "Fetch(Request)",
        "Pass(Bypass)",
        "Pass(Method)",
        "Pass(Request)",
        "NotCached",
    ] {
        assert!(seen.get(kind).is_some_and(|times| *times >= 5), "{kind} in {seen:#?}");
    }
}
