//! Tests the fields that tell an application about its client (`Forwarded`, `X-Forwarded-…`): none reaches it from a
//! client unless it is part of the key.

use crate::support::{Client, Larder, Origin};

/// An origin that shows which fields it saw, as a WSGI application would name them.
fn mirror(vary: &'static str) -> Origin {
    Origin::new(move |seen, reply| {
        let mut names: Vec<String> = seen
            .head
            .fields
            .iter()
            .map(|(name, value)| format!("{}={value}", name.to_ascii_uppercase().replace('-', "_")))
            .collect();
        names.sort();
        reply.send(200, &format!("Cache-Control: max-age=60{vary}"), &names.join("\n"));
    })
}

const TRUSTED: &str = "server.trusted_proxies=127.0.0.1";

#[test]
fn names_that_pass_for_others_do_not_reach_the_origin_and_select_nothing() {
    let origin = mirror("\nVary: Accept-Language, X_Theme");
    let larder = Larder::new(&origin, "");
    let plain = larder.get("/shop/", "").text();
    for (n, fields) in [
        "SCRIPT_NAME: /shop",
        "Script_Name: /shop",
        "Accept_Language: x",
        "X_Theme: dark",
        "X.Forwarded.Host: evil.example",
        "X_Forwarded_For: 1.2.3.4",
        "Content_Length: 5",
        "a!b: 1\nc^d: 1\ne|f: 1\ng~h: 1\ni*j: 1\nk'l: 1\nm`n: 1\no+p: 1\nq#r: 1\ns$t: 1\nu&v: 1\nw%x: 1",
    ]
    .iter()
    .enumerate()
    {
        assert_eq!(larder.get(&format!("/fresh/{n}"), fields).text(), plain, "{fields}");
        assert_eq!(larder.get("/shop/", fields).hit(), Some("memory"), "{fields}");
    }
}

#[test]
fn claims_reach_the_origin_from_nobody_unless_they_are_listed() {
    const CLAIMS: [&str; 24] = [
        "X-Forwarded-Prefix: /evil",
        "X-Forwarded-Port: 1",
        "X-Forwarded-Server: evil",
        "X-Forwarded-Ssl: on",
        "X-Forwarded-Scheme: https",
        "X-Original-URL: /evil",
        "X-Rewrite-URL: /evil",
        "X-Script-Name: /evil",
        "Forwarded: host=evil",
        "X-Host: evil",
        "X-Real-IP: 6.6.6.6",
        "X-Client-IP: 6.6.6.6",
        "True-Client-IP: 6.6.6.6",
        "X-Cluster-Client-IP: 6.6.6.6",
        "CF-Connecting-IP: 6.6.6.6",
        "Proxy: http://evil",
        "Remote-User: admin",
        "X-Remote-User: admin",
        "X-Forwarded-User: admin",
        "X-Auth-Request-Email: admin",
        "Client-Cert: :AAAA:",
        "SSL-Client-S-DN: CN=admin",
        "X-HTTP-Method-Override: DELETE",
        "X-Accel-Mapping: /=/etc",
    ];
    for config in ["", TRUSTED] {
        let origin = mirror("");
        let larder = Larder::new(&origin, config);
        let plain = larder.get("/a", "").text();
        for (n, claim) in CLAIMS.iter().enumerate() {
            // Over TLS or not is believed of a trusted peer, and is in the key.
            let text = larder.get(&format!("/{n}"), claim).text().replace("PROTO=https", "PROTO=http");
            assert_eq!(text, plain, "{claim} {config}");
            assert!(!text.contains("evil") && !text.contains("admin") && !text.contains("6.6.6.6"), "{claim}");
        }
    }
}

#[test]
fn a_listed_field_is_believed_of_a_trusted_proxy_and_part_of_the_key() {
    let origin = mirror("");
    let listed = format!("{TRUSTED}\nserver.trusted_fields=X-Forwarded-Prefix,X-Country,X-Real-IP");
    let larder = Larder::new(&origin, &listed);
    let prefixed = larder.get("/a", "X-Forwarded-Prefix: /shop");
    assert!(prefixed.text().contains("X_FORWARDED_PREFIX=/shop"), "{}", prefixed.text());
    assert_eq!(
        larder.get("/a", "X-Forwarded-Prefix: /other").fwd(),
        Some("vary-miss"),
        "another value, another answer"
    );
    assert_eq!(larder.get("/a", "").fwd(), Some("vary-miss"), "none is a value as well");
    assert_eq!(larder.get("/a", "X-Country: de").fwd(), Some("vary-miss"));
    for fields in ["X-Forwarded-Prefix: /shop", "X-Forwarded-Prefix: /other", "", "X-Country: de"] {
        assert_eq!(larder.get("/a", fields).hit(), Some("memory"), "{fields}");
    }
    // A purge of the URL covers them all.
    assert_eq!(larder.purge("http://site.example/a").status(), 200);
    for fields in ["X-Forwarded-Prefix: /shop", "X-Forwarded-Prefix: /other", "", "X-Country: de"] {
        assert_eq!(larder.get("/a", fields).hit(), None, "{fields}");
    }
    // So does what an unsafe request invalidates.
    larder.client().send("POST", "/a", "");
    assert_eq!(larder.get("/a", "X-Forwarded-Prefix: /shop").hit(), None);

    // The client's address is written here, from what trusted proxies vouch for, and selects nothing.
    let told = larder.get("/ip", "X-Real-IP: 6.6.6.6\nX-Forwarded-For: 7.7.7.7, 8.8.8.8");
    assert!(told.text().contains("X_REAL_IP=8.8.8.8"), "{}", told.text());
    assert_eq!(larder.get("/ip", "X-Forwarded-For: 9.9.9.9").hit(), Some("memory"));

    // From anyone else the same fields are no more than claims.
    let strangers = Larder::new(&origin, "server.trusted_proxies=192.0.2.1\nserver.trusted_fields=X-Country,X-Real-IP");
    let told = strangers.get("/a", "X-Country: de\nX-Real-IP: 6.6.6.6").text();
    assert!(!told.contains("X_COUNTRY") && told.contains("X_REAL_IP=127.0.0.1"), "{told}");
    assert_eq!(strangers.get("/a", "X-Country: fr").hit(), Some("memory"));
}

#[test]
fn an_allowed_name_counts_with_its_hyphenated_twin_in_vary() {
    let origin = mirror("\nVary: Accept-Theme");
    let larder = Larder::new(&origin, "server.allowed_fields=accept_theme");
    assert!(larder.get("/a", "accept_theme: dark").text().contains("ACCEPT_THEME=dark"));
    assert_eq!(larder.get("/a", "").fwd(), Some("vary-miss"));
    assert_eq!(larder.get("/a", "Accept-Theme: dark").fwd(), Some("vary-miss"), "told apart, to be safe");
    assert_eq!(larder.get("/a", "Accept_Theme: dark").hit(), Some("memory"));
}

#[test]
fn older_words_for_tls_count_where_there_is_no_proto_and_go_no_further() {
    let origin = mirror("");
    let larder = Larder::new(&origin, TRUSTED);
    for field in
        ["X-Forwarded-Ssl: on", "X-Forwarded-Protocol: ssl", "X-Forwarded-Protocol: https", "X-Forwarded-Scheme: https"]
    {
        let text = larder.get("/a", field).text();
        assert!(text.contains("X_FORWARDED_PROTO=https"), "{field}: {text}");
        for name in ["X_FORWARDED_SSL", "X_FORWARDED_PROTOCOL", "X_FORWARDED_SCHEME"] {
            assert!(!text.contains(name), "{field}: {text}");
        }
    }
    assert_eq!(larder.get("/a", "X-Forwarded-Proto: https").hit(), Some("memory"), "one key");
    assert_eq!(larder.get("/a", "X-Forwarded-Ssl: off").hit(), None, "another scheme");
}

#[test]
fn a_request_that_comes_round_is_refused() {
    // The origin leads back to Larder.
    let origin = Origin::new(|_, reply| reply.send(200, "", "x"));
    let larder = Larder::new(&origin, "");
    let address = larder.address;
    origin.script(move |seen, reply| {
        let fields: String = seen.head.fields.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        let answer = Client::connect(address).send(seen.method(), seen.path(), &fields);
        reply.send(answer.status(), "", &answer.text());
    });
    for method in ["GET", "POST", "OPTIONS"] {
        let answer = larder.client().send(method, "/a", "");
        assert_eq!(answer.status(), 508, "{method}");
    }
    assert_eq!(origin.count(), 3);
    // Another proxy of that kind before it is no loop.
    origin.script(|_, reply| reply.send(200, "", "x"));
    assert_eq!(larder.get("/b", "Via: 1.1 larder, 1.1 larder-00000000").status(), 200);
}

#[test]
fn options_heeds_max_forwards() {
    let origin = Origin::new(|_, reply| reply.send(200, "", ""));
    let larder = Larder::new(&origin, "");
    let mut client = larder.client();
    let last = client.send("OPTIONS", "/a", "Max-Forwards: 0");
    assert_eq!((last.status(), origin.count()), (204, 0));
    assert!(last.get("allow").is_some_and(|allow| allow.contains("GET")));
    assert_eq!(client.send("OPTIONS", "*", "Max-Forwards: 0").status(), 204);
    client.send("OPTIONS", "/a", "Max-Forwards: 5");
    assert_eq!(origin.last().head.get("max-forwards"), Some("4"));
    client.send("OPTIONS", "/a", "Max-Forwards: many");
    assert_eq!(origin.last().head.get("max-forwards"), Some("many"), "nonsense is nobody's business");
}

#[test]
fn trailers_of_requests_go_no_further() {
    for config in ["", "upstream.buffer_request=0\nupstream.spool=0"] {
        let origin = Origin::new(|_, reply| reply.send(200, "", "taken"));
        let larder = Larder::new(&origin, config);
        let mut client = larder.client();
        client.raw("POST /a HTTP/1.1\r\nHost: site.example\r\nTransfer-Encoding: chunked\r\nTrailer: X-Forwarded-For, Cookie\r\n\r\n");
        client.raw("4\r\nbody\r\n0\r\nX-Forwarded-For: 6.6.6.6\r\nCookie: session=evil\r\n\r\n");
        assert_eq!(client.answer().text(), "taken");
        let seen = origin.last();
        assert_eq!(seen.body, b"body");
        assert_eq!((seen.head.get("trailer"), seen.trailers.as_slice()), (None, &[][..]), "{config}");
    }
}

#[test]
fn a_chain_of_trusted_proxies_is_understood() {
    let origin = Origin::new(|seen, reply| {
        let of = |name: &str| seen.head.get(name).unwrap_or("none").to_owned();
        reply.send(200, "", &format!("{} {}", of("x-forwarded-proto"), of("x-forwarded-host")));
    });
    let larder = Larder::new(&origin, "server.trusted_proxies=127.0.0.1");
    for (fields, expected) in [
        ("X-Forwarded-Proto: https, http\nX-Forwarded-Host: a.example, b.example", "https a.example"),
        ("X-Forwarded-Proto: https\nX-Forwarded-Host:", "https site.example"),
        ("X-Forwarded-Proto: nonsense", "http site.example"),
    ] {
        assert_eq!(larder.get("/", fields).text(), expected, "{fields}");
    }
}

#[test]
fn a_field_that_connection_lists_is_still_what_a_trusted_proxy_said() {
    let origin = Origin::new(|seen, reply| {
        let told = ["x-forwarded-for", "x-forwarded-proto", "x-real-ip"].map(|name| seen.head.get(name).unwrap_or("-"));
        reply.send(200, "", &told.join(" "));
    });
    let larder = Larder::new(&origin, "server.trusted_proxies=127.0.0.1\nserver.trusted_fields=X-Real-IP");
    let fields = "X-Forwarded-For: 9.9.9.9\nX-Forwarded-Proto: https\nConnection: close, x-forwarded-for, x-forwarded-proto, x-real-ip";
    assert_eq!(larder.get("/a", fields).text(), "9.9.9.9, 127.0.0.1 https 9.9.9.9");
}
