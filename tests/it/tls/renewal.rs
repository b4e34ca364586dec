//! Tests that new certificates come into use without a failed request.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{Authority, Larder, Origin, Pair, Process, TlsClient, eventually};

/// The certificate that the listener shows.
fn shown(authority: &Authority, address: std::net::SocketAddr) -> Vec<u8> {
    let client = authority.connect(address, None).expect("it connects");
    client.connection().peer_certificates().expect("a chain")[0].to_vec()
}

fn der(pair: &Pair) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject as _;
    rustls::pki_types::CertificateDer::from_pem_slice(pair.chain.as_bytes()).expect("a certificate").to_vec()
}

#[test]
fn certificates_are_swapped_under_load_and_no_request_fails() {
    let (authority, origin) = (Authority::new(), Origin::long_lived());
    let larder = Larder::new(&origin, &authority.listeners());
    let (address, reload) = (larder.address_of(1), larder.running().reloader().expect("there is TLS"));
    let config = authority.client_config(None);
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for n in 0..3 {
            let (config, stop, done) = (&config, &stop, &done);
            scope.spawn(move || {
                let mut kept = TlsClient::connect(address, config).expect("it connects");
                while !stop.load(Ordering::Relaxed) {
                    let mut new = TlsClient::connect(address, config).expect("it connects");
                    assert_eq!(new.get(&format!("/{n}"), "").status(), 200);
                    assert_eq!(kept.get(&format!("/{n}"), "").status(), 200);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..20 {
            let before = done.load(Ordering::Relaxed);
            let pair = authority.server(&["site.example"]);
            authority.write("site", &pair);
            reload();
            eventually("it is in use", || shown(&authority, address) == der(&pair));
            eventually("others ask", || done.load(Ordering::Relaxed) > before);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_changed_file_is_found_without_being_told() {
    let (authority, origin) = (Authority::new(), Origin::long_lived());
    let larder = Larder::new(&origin, &authority.listeners());
    let pair = authority.server(&["site.example"]);
    authority.write("site", &pair);
    eventually("it is in use", || {
        std::thread::sleep(Duration::from_millis(100));
        shown(&authority, larder.address_of(1)) == der(&pair)
    });
    assert_eq!(larder.metric("larder_tls_renewals_total{outcome=\"taken\"}"), 1);
}

#[test]
fn sighup_reads_the_files_again_and_says_what_is_wrong() {
    let (authority, origin) = (Authority::new(), Origin::long_lived());
    let sets = authority.listeners();
    let sets: Vec<&str> = sets.lines().chain(["durable.url=off"]).collect();
    let larder = Process::start(&origin.url(), &sets);
    let log = larder.log();
    let address =
        log.split("listening on https://").nth(1).and_then(|rest| rest.split(',').next()).expect("it listens");
    let address = address.parse().expect("an address");
    let pair = authority.server(&["site.example"]);
    authority.write("site", &pair);
    larder.signal("-HUP");
    eventually("it is in use", || shown(&authority, address) == der(&pair));
    let wrong = Pair { key: authority.server(&["site.example"]).key, ..authority.server(&["site.example"]) };
    authority.write("site", &wrong);
    larder.signal("-HUP");
    eventually("it is told", || larder.log().contains("it is not the key of the certificate in"));
    assert!(larder.log().contains("the certificate that was read before stays in use"), "{}", larder.log());
    assert!(shown(&authority, address) == der(&pair));
}
