//! Tests what is said of files.

use std::process::Command;

use rcgen::{DnType, KeyPair, PKCS_ECDSA_P384_SHA384, date_time_ymd};

use crate::base::{Clock, Metrics};
use crate::tls::config::Config;
use crate::tls::sample::{Authority, Files, NOW, config, params};
use crate::tls::server::{Tls, examine};

fn refused(config: &Config) -> String {
    Tls::open(config, Clock::manual(NOW), Metrics::new(1)).expect_err("a mistake").to_string()
}

#[test]
fn every_mistake_in_a_pair_is_told_with_its_file_and_what_to_do() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let (one, other) = (authority.server(&["a.example"]), authority.server(&["b.example"]));
    let sound = files.pair("sound", &one);
    let der = |pem: &str| pem_der(pem);
    let pkcs8 = KeyPair::from_pem(&one.key).expect("a key").serialize_der();
    let sealed = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    let ssh = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n";
    let strange = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    for (chain, key, file, words) in [
        (Some("".as_bytes().to_vec()), None, "x.pem", "it is empty"),
        (None, Some("".as_bytes().to_vec()), "x.key", "it is empty"),
        (Some(b"hello".to_vec()), None, "x.pem", "it has no certificate; it must have one as PEM"),
        (None, Some(b"hello".to_vec()), "x.key", "it has no private key; it must have one as PEM"),
        (Some(one.key.clone().into()), None, "x.pem", "the wrong way round"),
        (None, Some(one.chain.clone().into()), "x.key", "the wrong way round"),
        (Some(der(&one.chain)), None, "x.pem", "openssl x509 -inform der -in"),
        (None, Some(pkcs8), "x.key", "openssl pkey -inform der -in"),
        (None, Some(sealed.into()), "x.key", "protected by a passphrase"),
        (None, Some(old.into()), "x.key", "protected by a passphrase"),
        (None, Some(ssh.into()), "x.key", "one of SSH"),
        (None, Some(strange.into()), "x.key", "its private key can't be used"),
        (None, Some(format!("{}{}", one.key, other.key).into()), "x.key", "more than one private key"),
        (None, Some(other.key.clone().into()), "x.key", "it is not the key of the certificate in"),
        (
            Some(format!("{}{}", authority.pem(), one.chain).into()),
            None,
            "x.pem",
            "in the wrong order: the one for the key is number 2",
        ),
        (Some(one.chain.as_bytes()[..300].to_vec()), None, "x.pem", "perhaps cut off"),
        (Some(one.chain.replace("MII", "AAA").into()), None, "x.pem", "can't be read"),
    ] {
        let chain_file = chain.map_or_else(|| sound.chain.clone(), |text| files.write("x.pem", text));
        let key_file = key.map_or_else(|| sound.key.clone(), |text| files.write("x.key", text));
        let told = refused(&config(&[crate::tls::CertificateFiles { chain: chain_file, key: key_file }]));
        assert!(told.starts_with(&format!("{}: ", files.path(file).display())), "{told}");
        assert!(told.contains(words), "{words}: {told}");
    }
    let missing = crate::tls::CertificateFiles { chain: files.path("none"), ..sound.clone() };
    assert!(refused(&config(&[missing])).contains("there is no such file"));
    let directory = crate::tls::CertificateFiles { chain: files.path(""), ..sound.clone() };
    assert!(refused(&config(&[directory])).contains("it is a directory"));
    let no_authority = Config { client_ca: files.write("ca.pem", "hello"), ..config(&[sound]) };
    assert!(refused(&no_authority).contains("ca.pem: it has no certificate"));
}

fn pem_der(pem: &str) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject as _;
    rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM").to_vec()
}

#[test]
fn what_openssl_writes_is_read() {
    let files = Files::new();
    let text = |name: &str| files.path(name).display().to_string();
    for (name, arguments) in [
        (
            "pkcs8",
            "req -x509 -newkey rsa:2048 -nodes -keyout KEY -out CHAIN -days 30 -subj /CN=x -addext subjectAltName=DNS:a.example",
        ),
        ("ec", "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout KEY -out CHAIN -subj /CN=x"),
        ("ed", "req -x509 -newkey ed25519 -nodes -keyout KEY -out CHAIN -subj /CN=x"),
    ] {
        let arguments =
            arguments.replace("KEY", &text(&format!("{name}.key"))).replace("CHAIN", &text(&format!("{name}.pem")));
        let made = Command::new("openssl").args(arguments.split(' ')).output().expect("openssl is here");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let pair = crate::tls::CertificateFiles {
            chain: text(&format!("{name}.pem")).into(),
            key: text(&format!("{name}.key")).into(),
        };
        Tls::open(&config(&[pair]), Clock::system(), Metrics::new(1)).unwrap_or_else(|why| panic!("{name}: {why}"));
    }
    // The older forms of keys: PKCS #1, and SEC 1 with the parameters of the curve before it.
    for (name, arguments) in
        [("pkcs8", "rsa -traditional -in KEY -out NEW"), ("ec", "ec -in KEY -out NEW -param_enc named_curve")]
    {
        let arguments = arguments.replace("KEY", &text(&format!("{name}.key"))).replace("NEW", &text("old.key"));
        let made = Command::new("openssl").args(arguments.split(' ')).output().expect("openssl is here");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let pair =
            crate::tls::CertificateFiles { chain: text(&format!("{name}.pem")).into(), key: text("old.key").into() };
        Tls::open(&config(&[pair]), Clock::system(), Metrics::new(1)).unwrap_or_else(|why| panic!("{name}: {why}"));
    }
}

#[test]
fn what_is_most_likely_not_meant_is_told_and_what_is_sound_is_shown() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let until = |year, month, day| {
        let mut params = params(&["a.example", "*.b.example"]);
        params.not_after = date_time_ymd(year, month, day);
        params
    };
    // NOW is the 15th of January 2027.
    let soon = files.pair("soon", &authority.issue(&until(2027, 1, 20)));
    let gone = files.pair("gone", &authority.issue(&until(2027, 1, 1)));
    let fine = files.pair("fine", &authority.issue(&until(2027, 2, 20)));
    let mut later = params(&["late.example"]);
    later.not_before = date_time_ymd(2027, 3, 1);
    let later = files.pair("later", &authority.issue(&later));
    let nameless = files.pair("nameless", &authority.client(&[(DnType::CommonName, "a.example")]));
    let strangers = Authority::new("other").pem();
    let mut pair = authority.server(&["c.example"]);
    pair.chain.push_str(&strangers);
    let disorder = files.pair("disorder", &pair);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).expect("a key");
    let dual = files.pair("dual", &authority.issue_for(&until(2028, 1, 1), &key));

    let told = examine(&config(&[fine, soon, gone, later, nameless, disorder, dual]), NOW);
    assert_eq!(told.mistakes, Vec::<String>::new());
    assert_eq!(told.sound.len(), 7, "{:#?}", told.sound);
    assert!(
        told.sound[0].contains("fine.pem: for a.example, *.b.example, until 2027-02-20T00:00:00"),
        "{:#?}",
        told.sound
    );
    let warned: Vec<(&str, &str)> = vec![
        ("soon.pem", "expires in 4 days"),
        ("gone.pem", "the certificate expired"),
        ("later.pem", "is not valid before 2027-03-01"),
        ("nameless.pem", "is for no name"),
        ("disorder.pem", "certificate number 2 is not of the issuer"),
        ("soon.pem", "it is never used: "),
        ("gone.pem", "it is never used: "),
    ];
    for (file, words) in &warned {
        assert!(
            told.warnings.iter().any(|told| told.contains(file) && told.contains(words)),
            "{file} {words}: {:#?}",
            told.warnings
        );
    }
    assert_eq!(told.warnings.len(), warned.len(), "{:#?}", told.warnings);
}

#[test]
fn a_key_that_everybody_may_read_is_a_warning() {
    use std::os::unix::fs::PermissionsExt as _;
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let pair = files.pair("a", &authority.server(&["a.example"]));
    assert_eq!(examine(&config(std::slice::from_ref(&pair)), NOW).warnings, Vec::<String>::new());
    std::fs::set_permissions(&pair.key, std::fs::Permissions::from_mode(0o644)).expect("its mode");
    let told = examine(&config(&[pair]), NOW).warnings;
    assert!(told.len() == 1 && told[0].contains("may read this private key"), "{told:?}");
}
