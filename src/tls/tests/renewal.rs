//! Tests that changed files are taken whole, or not at all.

use std::time::Duration;

use rcgen::date_time_ymd;

use super::handshakes::counted;
use crate::base::Clock;
use crate::tls::config::Config;
use crate::tls::sample::{Authority, Caller, Files, NOW, config, der, open, open_at, params, shown};
use crate::tls::watched::Look;

fn refused(tls: &crate::tls::Tls) -> u64 {
    counted(tls, "larder_tls_renewals_total{outcome=\"refused\"}")
}

#[tokio::test]
async fn a_changed_pair_is_taken_when_it_has_settled_and_whole() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let (old, new) = (authority.server(&["a.example"]), authority.server(&["a.example"]));
    let tls = open(&config(&[files.pair("a", &old)]));
    let caller = Caller::new(&authority);
    tls.look(Look::Patient);
    // The chain is written first; it is refused as long as it has the key of the other.
    files.write("a.pem", &new.chain);
    for (look, told) in [(Look::Patient, 0), (Look::Patient, 1), (Look::Patient, 1), (Look::AtOnce, 2)] {
        tls.look(look);
        assert_eq!(refused(&tls), told, "it is told once, and on demand");
        assert!(shown(&caller.call(&tls).await.client().await) == der(&old));
    }
    files.write("a.key", &new.key);
    tls.look(Look::Patient);
    assert!(shown(&caller.call(&tls).await.client().await) == der(&old), "it may not be whole yet");
    tls.look(Look::Patient);
    assert!(shown(&caller.call(&tls).await.client().await) == der(&new));
    assert_eq!(counted(&tls, "larder_tls_renewals_total{outcome=\"taken\"}"), 1);
    files.pair("a", &old);
    tls.reload();
    assert!(shown(&caller.call(&tls).await.client().await) == der(&old), "at once on demand");
}

#[tokio::test]
async fn a_file_that_is_gone_or_cut_off_leaves_the_pair_in_use() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let pair = authority.server(&["a.example"]);
    let tls = open(&config(&[files.pair("a", &pair)]));
    for half in [None, Some(""), Some(&pair.chain[..200])] {
        match half {
            None => std::fs::remove_file(files.path("a.pem")).expect("it is there"),
            Some(half) => drop(files.write("a.pem", half)),
        }
        tls.reload();
        assert!(shown(&Caller::new(&authority).call(&tls).await.client().await) == der(&pair));
    }
    assert_eq!(refused(&tls), 3);
    files.pair("a", &pair);
    tls.look(Look::Patient);
    tls.look(Look::Patient);
    assert_eq!((refused(&tls), counted(&tls, "larder_tls_renewals_total{outcome=\"taken\"}")), (3, 0), "as it was");
}

#[tokio::test]
async fn files_behind_links_that_are_swapped_are_read_again() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let pairs = [authority.server(&["a.example"]), authority.server(&["a.example"])];
    for (n, pair) in pairs.iter().enumerate() {
        std::fs::create_dir(files.path(&n.to_string())).expect("a directory");
        files.pair(&format!("{n}/tls"), pair);
    }
    let link = |n: usize| {
        std::os::unix::fs::symlink(n.to_string(), files.path("new")).expect("a link");
        std::fs::rename(files.path("new"), files.path("data")).expect("it is swapped");
    };
    link(0);
    let data = crate::tls::CertificateFiles { chain: files.path("data/tls.pem"), key: files.path("data/tls.key") };
    let tls = open(&config(&[data]));
    link(1);
    tls.look(Look::Patient);
    tls.look(Look::Patient);
    assert!(shown(&Caller::new(&authority).call(&tls).await.client().await) == der(&pairs[1]));
}

#[tokio::test]
async fn new_authorities_of_clients_are_taken_and_bad_ones_are_not() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let (before, after) = (Authority::new("before"), Authority::new("after"));
    let pair = files.pair("a", &authority.server(&["a.example"]));
    let tls = open(&Config { client_ca: files.write("ca.pem", before.pem()), ..config(&[pair]) });
    let accepts = async |by: &Authority| {
        let shows = Some(by.client(&[(rcgen::DnType::CommonName, "x")]));
        Caller { shows, ..Caller::new(&authority) }.call(&tls).await.server.is_ok()
    };
    assert!(accepts(&before).await && !accepts(&after).await);
    files.write("ca.pem", after.pem());
    tls.look(Look::Patient);
    tls.look(Look::Patient);
    assert!(!accepts(&before).await && accepts(&after).await);
    files.write("ca.pem", "nonsense");
    tls.reload();
    assert!(accepts(&after).await);
    assert_eq!(refused(&tls), 1);
}

#[test]
fn the_end_of_each_certificate_is_in_the_metrics() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let mut params = params(&["a.example"]);
    params.not_after = date_time_ymd(2027, 2, 1);
    let tls = open(&config(&[files.pair("a", &authority.issue(&params))]));
    let name = format!(
        "larder_tls_certificate_expiry_timestamp_seconds{{certificate=\"{}\",name=\"a.example\"}}",
        files.path("a.pem").display()
    );
    assert_eq!(counted(&tls, &name), 1_801_440_000);
    params.not_after = date_time_ymd(2027, 2, 2);
    files.pair("a", &authority.issue(&params));
    tls.reload();
    assert_eq!(counted(&tls, &name), 1_801_440_000 + 86_400);
}

#[test]
fn a_certificate_that_is_about_to_expire_is_warned_of_once_a_day() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let mut params = params(&["a.example"]);
    params.not_after = date_time_ymd(2027, 1, 31);
    let clock = Clock::manual(NOW);
    let tls = open_at(&config(&[files.pair("a", &authority.issue(&params))]), clock.clone());
    let day = Duration::from_secs(86_400);
    // NOW is the 15th of January 2027, 15 days before.
    for (pass, words) in
        [(day / 2, None), (day / 2, None), (day, Some("in 13 days")), (day / 2, None), (day / 2, Some("in 12 days"))]
    {
        clock.advance(pass);
        let told = tls.warnings_of_the_day();
        assert_eq!(told.len(), usize::from(words.is_some()), "{told:?}");
        assert!(
            told.iter().all(|told| told.contains("a.pem: ") && told.contains(words.unwrap_or_default())),
            "{told:?}"
        );
    }
}
