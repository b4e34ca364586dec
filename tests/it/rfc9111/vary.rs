//! Tests which variant a request selects (RFC 9111 §4.1).

use crate::support::{Answer, Larder, Origin, in_each_tier};

#[test]
fn variants_are_selected_by_the_nominated_fields() {
    let origin = Origin::new(|seen, reply| {
        let language = seen.head.get("accept-language").unwrap_or("none").to_owned();
        reply.send(200, "Cache-Control: max-age=60\nVary: Accept-Language", &language);
    });
    let larder = Larder::new(&origin, "");
    assert_eq!(larder.get("/a", "Accept-Language: en").fwd(), Some("uri-miss"));
    assert_eq!(larder.get("/a", "Accept-Language: de").fwd(), Some("vary-miss"));
    assert_eq!(larder.get("/a", "").fwd(), Some("vary-miss"));
    for (fields, expected) in [("Accept-Language: en", "en"), ("Accept-Language: de", "de"), ("", "none")] {
        let answer = larder.get("/a", fields);
        assert_eq!((answer.hit(), answer.text().as_str()), (Some("memory"), expected));
    }
    assert_eq!(origin.count(), 3);
}

#[test]
fn the_language_that_a_client_prefers_selects_what_is_stored_in_it() {
    in_each_tier(|start| {
        let origin = Origin::new(|seen, reply| {
            let language =
                if seen.head.get("accept-language").is_some_and(|asked| asked.contains("de")) { "de" } else { "en" };
            let fields = format!("Cache-Control: max-age=60\nVary: Accept-Language\nContent-Language: {language}");
            reply.send(200, &fields, language);
        });
        let larder = start(&origin);
        let get = |asked: &str| {
            let answer = larder.get("/a", &format!("Accept-Language: {asked}"));
            (answer.text(), answer.is_hit())
        };
        assert_eq!(get("en, de"), ("de".into(), false));
        assert_eq!(get("EN,  de"), ("de".into(), true), "case and white space mean nothing");
        assert_eq!(get("fr;q=0.5, de"), ("de".into(), true), "the one it prefers");
        assert_eq!(get("de, en"), ("de".into(), false), "some applications take the first of one weight");
        assert_eq!(get("fr"), ("en".into(), false));
        assert_eq!(get("en"), ("en".into(), true));
        assert_eq!(get("en, fr"), ("en".into(), false), "no one is preferred");
    });
}

#[test]
fn only_plain_lists_of_languages_and_codings_select_by_what_was_chosen() {
    let origin = Origin::new(|seen, reply| {
        // The application repeats what it was asked.
        let asked = seen.head.get("accept-language").unwrap_or_default().to_owned();
        reply.send(200, "Cache-Control: max-age=60\nVary: Accept-Language\nContent-Language: en", &asked);
    });
    let larder = Larder::new(&origin, "");
    for evil in ["\"><script>", "en, <script>", "en;q=0.9;x=<script>", "en_US"] {
        larder.get("/a", &format!("Accept-Language: {evil}"));
        assert_ne!(larder.get("/a", "Accept-Language: en").text(), evil);
        larder.purge("http://site.example/a");
    }
    larder.get("/a", "Accept-Language: en-US, en;q=0.9, de;q=0.1");
    assert_eq!(larder.get("/a", "Accept-Language: en").hit(), Some("memory"));
}

#[test]
fn lists_of_languages_that_applications_read_differently_are_variants_of_their_own() {
    let origin = Origin::new(|seen, reply| {
        let asked = seen.head.get("accept-language").unwrap_or_default().to_owned();
        reply.send(200, "Cache-Control: max-age=60\nVary: Accept-Language", &asked);
    });
    let larder = Larder::new(&origin, "");
    for asked in ["de", "d e", "de,fr", "fr,de", ",de", "de;q=1;x=y", "de;q=0.5, fr"] {
        assert_eq!(larder.get("/a", &format!("Accept-Language: {asked}")).text(), asked);
    }
    assert_eq!(larder.get("/a", "Accept-Language: DE, fr").text(), "de,fr", "case and white space mean nothing");
}

#[test]
fn a_field_that_connection_lists_does_not_select_a_variant() {
    let origin = Origin::new(|seen, reply| {
        let tenant = seen.head.get("x-tenant").unwrap_or("nobody").to_owned();
        reply.send(200, "Cache-Control: max-age=60\nVary: X-Tenant", &tenant);
    });
    let larder = Larder::new(&origin, "");
    assert_eq!(larder.get("/a", "X-Tenant: victim\nConnection: keep-alive, x-tenant").text(), "nobody");
    assert_eq!(larder.get("/a", "X-Tenant: victim").text(), "victim");
}

#[test]
fn vary_on_fields_that_the_proxy_writes_never_mixes_clients() {
    let origin = Origin::new(|seen, reply| {
        let name = seen.path().trim_start_matches('/').to_owned();
        let value = seen.head.get(&name).unwrap_or("none").to_owned();
        reply.send(200, &format!("Cache-Control: max-age=60\nVary: {name}"), &value);
    });
    let larder = Larder::new(&origin, "server.trusted_proxies=127.0.0.1");
    for n in 0..3 {
        assert_eq!(
            larder.get("/x-forwarded-for", &format!("X-Forwarded-For: 9.9.9.{n}")).text(),
            format!("9.9.9.{n}, 127.0.0.1")
        );
    }
    // Scheme and host are part of the key, so they select rightly.
    for scheme in ["http", "https"] {
        for _ in 0..2 {
            assert_eq!(larder.get("/x-forwarded-proto", &format!("X-Forwarded-Proto: {scheme}")).text(), scheme);
        }
    }
    assert_eq!(origin.count(), 5);
}

/// flask-cors: only requests with an origin that is allowed get the field, and only those say Vary.
fn cors() -> Origin {
    Origin::new(|seen, reply| match seen.head.get("origin") {
        Some(origin) if origin.ends_with(".shop.example") => {
            let fields = format!("Cache-Control: max-age=60\nVary: Origin\nAccess-Control-Allow-Origin: {origin}");
            reply.send(200, &fields, "shared");
        }
        Some(_) | None => reply.send(200, "Cache-Control: max-age=60", "plain"),
    })
}

const OURS: &str = "Origin: https://www.shop.example";

#[test]
fn an_answer_without_vary_does_not_take_fresh_variants_away() {
    let with_cors = |answer: &Answer| answer.get("access-control-allow-origin").is_some();
    for config in ["", "durable.url=file:DIR\nmemory.capacity=0\ndurable.min_lifetime=0s"] {
        let directory = tempfile::tempdir().unwrap();
        let config = config.replace("DIR", &directory.path().display().to_string());
        let origin = cors();
        let mut larder = Larder::new(&origin, &config);
        if !config.is_empty() {
            larder = larder.settling();
        }
        assert!(with_cors(&larder.get("/a", OURS)));
        for foreign in ["Origin: https://evil.example", "", "Origin: null"] {
            assert!(!with_cors(&larder.get("/a", foreign)));
        }
        let again = larder.get("/a", OURS);
        assert!(with_cors(&again) && again.hit().is_some(), "{}", again.cache_status());
        // It is kept for those who ask the same, and for no one else.
        assert!(larder.get("/a", "").hit().is_some());
        assert!(with_cors(&larder.get("/a", "Origin: https://m.shop.example")));
    }
}

#[test]
fn once_no_variant_is_fresh_an_answer_without_vary_is_everybodys() {
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=10\nVary: X-Theme", "one"));
    let larder = Larder::new(&origin, "");
    larder.get("/a", "X-Theme: dark");
    origin.script(|_, reply| reply.send(200, "Cache-Control: max-age=60", "for all"));
    // For a while after they are stale, they are not given up.
    larder.advance(20);
    assert_eq!(larder.get("/a", "X-Theme: dark").text(), "for all");
    assert_eq!(larder.get("/a", "X-Theme: light").hit(), None);
    larder.advance(700);
    assert_eq!(larder.get("/a", "X-Theme: dark").text(), "for all");
    assert_eq!(larder.get("/a", "X-Theme: light").hit(), Some("memory"));
}
