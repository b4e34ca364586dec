//! Tests the fields that speak to this cache in place of `Cache-Control` (RFC 9213).

use crate::support::{Larder, Origin};

#[test]
fn a_targeted_field_replaces_cache_control_and_expires() {
    const FUTURE: &str = "Fri, 01 Jan 2038 00:00:00 GMT";
    for (fields, stored) in [
        ("CDN-Cache-Control: max-age=60\nCache-Control: no-store".to_owned(), true),
        ("CDN-Cache-Control: no-store\nCache-Control: max-age=60".to_owned(), false),
        ("CDN-Cache-Control: private\nCache-Control: max-age=60".to_owned(), false),
        ("Larder-Cache-Control: max-age=60\nCDN-Cache-Control: no-store".to_owned(), true),
        (format!("CDN-Cache-Control: max-age=0\nExpires: {FUTURE}"), false),
        (format!("CDN-Cache-Control: must-revalidate\nExpires: {FUTURE}"), false),
        (format!("CDN-Cache-Control: MAX-AGE=0\nExpires: {FUTURE}"), true),
        ("CDN-Cache-Control: max-age=60\nSet-Cookie: a=1".to_owned(), true),
        ("Surrogate-Control: max-age=60".to_owned(), false),
        ("X-Accel-Expires: 60".to_owned(), false),
    ] {
        let sent = fields.clone();
        let origin = Origin::new(move |_, reply| reply.send(200, &sent, "x"));
        let larder = Larder::new(&origin, "cache.set_cookie=explicit");
        let first = larder.get("/a", "");
        let name = fields.split(':').next().expect("a name");
        assert!(first.get(name).is_some(), "{name} is passed on");
        assert_eq!(larder.get("/a", "").is_hit(), stored, "{fields}");
    }
}

#[test]
fn other_fields_speak_to_larder_where_configured_and_are_removed_where_configured() {
    for (fields, stored) in [
        ("Surrogate-Control: max-age=60\nCache-Control: no-store", true),
        ("Surrogate-Control: max-age=60;other\nCache-Control: no-store", false),
        ("X-Accel-Expires: 60\nCache-Control: private", true),
        ("X-Accel-Expires: 0\nCache-Control: max-age=60", false),
        ("My-Cache-Control: max-age=60\nCDN-Cache-Control: no-store", true),
        ("CDN-Cache-Control: max-age=60", false),
    ] {
        let origin = Origin::new(move |_, reply| reply.send(200, fields, "x"));
        let config = "cache.surrogate_control=true\ncache.x_accel_expires=true\ncache.remove_targets=true\ncache.targets=My-Cache-Control";
        let larder = Larder::new(&origin, config);
        for _ in 0..2 {
            let answer = larder.get("/a", "");
            for gone in ["surrogate-control", "x-accel-expires", "my-cache-control"] {
                assert_eq!(answer.get(gone), None);
            }
        }
        assert_eq!(larder.get("/a", "").is_hit(), stored, "{fields}");
        assert_eq!(origin.last().head.get("surrogate-capability"), Some("larder=\"Surrogate/1.0\""));
    }
}
