//! No object can meet a page: neither by a request, nor by a purge.

use super::starting::NOBODY;
use crate::support::{Larder, Origin, file_url};

const RESP: &str = "resp.listen=127.0.0.1:0";

#[test]
fn no_request_gets_a_value_and_no_client_of_values_gets_a_page() {
    let directory = tempfile::tempdir().expect("a directory");
    let origin = Origin::new(|_, reply| reply.send(200, "Cache-Control: max-age=600", "a page"));
    for durable in ["durable.url=off", &file_url(directory.path())] {
        let config = format!(
            "{RESP}\n{durable}\nserver.trusted_proxies=127.0.0.0/8\nrule=[{{path = \"*\", ignore_query = [\"*\"]}}]"
        );
        let larder = Larder::new(&origin, &config);
        let mut redis = larder.redis();
        for name in ["k", "", "/k", "resp://0/k", "http://site.example/k", "site.example/k", "0/k"] {
            assert_eq!(redis.command(&[b"SET", name.as_bytes(), b"a value"]), "OK");
        }
        larder.settle_if_durable();
        for request in [
            "GET resp://0/k HTTP/1.1\r\nHost: 0\r\n\r\n",
            "GET resp://0/k HTTP/1.1\r\nHost: 0\r\nX-Forwarded-Proto: resp\r\n\r\n",
            "GET /k HTTP/1.1\r\nHost: 0\r\n\r\n",
            "GET /k HTTP/1.1\r\nHost: 0\r\nX-Forwarded-Proto: resp\r\n\r\n",
            "GET /k HTTP/1.1\r\nHost: resp://0\r\n\r\n",
            "GET /k HTTP/1.1\r\nHost: x\r\nX-Forwarded-Proto: resp\r\nX-Forwarded-Host: 0\r\n\r\n",
            "GET /k HTTP/1.1\r\nHost: x\r\nX-Forwarded-Proto: resp, http\r\n\r\n",
            "GET http://0/k HTTP/1.1\r\nHost: 0\r\n\r\n",
            "GET /resp://0/k HTTP/1.1\r\nHost: 0\r\n\r\n",
            "GET //0/k HTTP/1.1\r\nHost: 0\r\n\r\n",
            "GET k HTTP/1.1\r\nHost: 0\r\n\r\n",
        ] {
            for _ in 0..2 {
                let answer = larder.send_raw(request);
                assert_ne!(answer.text(), "a value", "{request}");
                assert!(answer.status() == 400 || answer.text() == "a page", "{request} {}", answer.text());
            }
        }
        assert_eq!(larder.get("/k", "Host: site.example").text(), "a page");
        for name in ["k", "/k", "http://site.example/k"] {
            assert_eq!(redis.command(&[b"GET", name.as_bytes()]), "\"a value\"", "{name}");
        }
        assert_eq!(redis.say("GET page"), "nil");
        assert_eq!(redis.say("DBSIZE"), ":7");
    }
}

#[test]
fn purges_of_pages_and_flushes_of_values_leave_each_other_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let origin = Origin::cacheable();
    for durable in ["durable.url=off", &file_url(directory.path())] {
        let larder = Larder::new(&origin, &format!("{RESP}\n{durable}"));
        let mut redis = larder.redis();
        let values = ["SET k v", "SET /k v", "SET site.example/k v", "SET http://site.example/k v"];
        assert_eq!(redis.pipeline(&values), ["OK"; 4]);
        let all = "MGET k /k site.example/k http://site.example/k";
        for purge in [
            r#"{"prefix": "/"}"#,
            r#"{"prefix": "/k"}"#,
            r#"{"prefix": "http://"}"#,
            r#"{"prefix": "http://0/"}"#,
            r#"{"prefix": "http://0/k", "schemes": "both"}"#,
            r#"{"url": "http://0/k"}"#,
            r#"{"url": "https://0/k"}"#,
            r#"{"tag": "k"}"#,
        ] {
            larder.purge_of(purge);
            larder.settle_if_durable();
            assert_eq!(redis.say(all), "[\"v\", \"v\", \"v\", \"v\"]", "{purge}");
        }
        for refused in [r#"{"url": "resp://0/k"}"#, r#"{"prefix": "resp://0/"}"#, r#"{"prefix": "*://0/"}"#] {
            assert_eq!(larder.purge_of(refused).status(), 400, "{refused}");
        }
        assert_eq!(redis.say(all), "[\"v\", \"v\", \"v\", \"v\"]");
        larder.get("/page", "");
        assert!(larder.get("/page", "").get("cache-status").unwrap_or("").contains("hit"));
        for flush in ["FLUSHDB", "FLUSHALL"] {
            assert_eq!(redis.say(flush), "OK");
            assert!(larder.get("/page", "").get("cache-status").unwrap_or("").contains("hit"), "{flush}");
        }
        assert_eq!(redis.say(all), "[nil, nil, nil, nil]");
    }
}

#[test]
fn a_purge_of_everything_is_one_of_values_too() {
    let larder = Larder::with_upstream(NOBODY, RESP);
    for purge in [r#"{"all": true}"#, r#"{"all": true, "soft": true}"#] {
        let mut redis = larder.redis();
        assert_eq!(redis.pipeline(&["SET k v", "SELECT 3", "SET k v"]), ["OK", "OK", "OK"]);
        assert_eq!(larder.purge_of(purge).status(), 200);
        larder.advance(1);
        assert_eq!(redis.pipeline(&["GET k", "DBSIZE", "SELECT 0", "GET k"]), ["nil", ":0", "OK", "nil"], "{purge}");
    }
}
