//! Tests clients' certificates and their subjects.

use http::HeaderName;
use rcgen::{DistinguishedName, DnType, DnValue, SanType, date_time_ymd};

use super::handshakes::counted;
use crate::base::HandshakeFailure as Why;
use crate::tls::Tls;
use crate::tls::config::Config;
use crate::tls::sample::{Authority, Caller, Files, Pair, config, der, open, params};
use crate::tls::subject;

fn demanding(files: &Files, authority: &Authority, clients: &Authority) -> std::sync::Arc<Tls> {
    let pair = files.pair("a", &authority.server(&["a.example"]));
    let client_subject_field = Some(HeaderName::from_static("x-client-subject"));
    open(&Config { client_ca: files.write("ca.pem", clients.pem()), client_subject_field, ..config(&[pair]) })
}

#[tokio::test]
async fn only_clients_of_the_authorities_are_let_in_each_with_its_subject() {
    let (files, authority, clients) = (Files::new(), Authority::new("ca"), Authority::new("clients"));
    let tls = demanding(&files, &authority, &clients);
    let come = async |shows: Option<Pair>| Caller { shows, ..Caller::new(&authority) }.call(&tls).await;
    for name in ["alice", "bob"] {
        let accepted = come(Some(clients.client(&[(DnType::CommonName, name)]))).await.server.expect("it is let in");
        assert_eq!(accepted.subject.expect("a subject"), format!("CN={name}"));
    }
    let mut expired = params(&[]);
    expired.distinguished_name.push(DnType::CommonName, "x");
    expired.not_after = date_time_ymd(2020, 1, 1);
    for (shows, why, words) in [
        (None, Why::NoClientCertificate, "tls.client_ca"),
        (Some(Authority::new("clients").client(&[(DnType::CommonName, "alice")])), Why::ClientCertificate, ""),
        (Some(clients.issue(&expired)), Why::ClientCertificate, "expired"),
        (Some(clients.issue(&params(&[]))), Why::ClientCertificate, "has no subject"),
    ] {
        let error = come(shows).await.server.expect_err("it is kept out");
        assert!(error.why == why && error.sentence.contains(words), "{words}: {error:?}");
    }
    assert_eq!(counted(&tls, "larder_tls_handshake_failures_total{reason=\"client-certificate\"}"), 3);
}

/// The subject of a certificate whose name has these attributes.
fn subject_of(attributes: &[(DnType, DnValue)]) -> Option<String> {
    let mut params = params(&[]);
    params.distinguished_name = DistinguishedName::new();
    for (kind, value) in attributes {
        params.distinguished_name.push(kind.clone(), value.clone());
    }
    let value = subject::of(&der(&Authority::new("ca").issue(&params)))?;
    Some(value.to_str().expect("printable").to_owned())
}

#[test]
fn a_subject_is_printable_and_belongs_to_one_name() {
    let utf8 = |text: &str| DnValue::Utf8String(text.to_owned());
    let common = |text: &str| subject_of(&[(DnType::CommonName, utf8(text))]).expect("a subject");
    for (name, expected) in [
        ("alice", "CN=alice"),
        ("alice,O=root", "CN=alice\\,O=root"),
        ("a\\,b", "CN=a\\\\\\,b"),
        ("a+OU=b", "CN=a\\+OU=b"),
        ("a\r\nX-Admin: 1", "CN=a\\0d\\0aX-Admin: 1"),
        ("\u{0}", "CN=\\00"),
        ("J\u{fc}rgen", "CN=J\\c3\\bcrgen"),
        (" a ", "CN=\\ a\\ "),
        ("#61", "CN=\\#61"),
        ("\"<>;", "CN=\\\"\\<\\>\\;"),
    ] {
        assert_eq!(common(name), expected, "{name:?}");
    }
    let whole = [
        (DnType::CountryName, DnValue::PrintableString("DE".try_into().expect("letters"))),
        (DnType::OrganizationName, utf8("Shop")),
        (DnType::CommonName, utf8("till")),
    ];
    assert_eq!(subject_of(&whole).as_deref(), Some("CN=till,O=Shop,C=DE"), "the last comes first (RFC 4514)");
    let strange = DnType::CustomDnType(vec![1, 2, 3, 4]);
    assert_eq!(subject_of(&[(strange, utf8("ab"))]).as_deref(), Some("1.2.3.4=#0c6162"));
    let wide = DnValue::BmpString("a".try_into().expect("letters"));
    assert_eq!(subject_of(&[(DnType::CommonName, wide)]).as_deref(), Some("2.5.4.3=#1e0061"));
    assert_eq!(subject_of(&[(DnType::CommonName, utf8(&"x".repeat(5000)))]), None);
}

#[test]
fn a_certificate_without_a_subject_is_named_by_its_first_alternative_name() {
    let with = |names: Vec<SanType>| {
        let mut params = params(&[]);
        params.subject_alt_names = names;
        subject::of(&der(&Authority::new("ca").issue(&params))).map(|value| value.to_str().expect("text").to_owned())
    };
    let uri = SanType::URI("spiffe://cluster/app".try_into().expect("ASCII"));
    let dns = SanType::DnsName("a.example".try_into().expect("ASCII"));
    assert_eq!(with(vec![uri.clone(), dns.clone()]).as_deref(), Some("URI:spiffe://cluster/app"));
    assert_eq!(with(vec![SanType::IpAddress([1, 2, 3, 4].into()), dns]).as_deref(), Some("DNS:a.example"));
    assert_eq!(with(Vec::new()), None);
}
