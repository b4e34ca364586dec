//! Tests session tickets.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::ProducesTickets as _;
use rustls::version::{TLS12, TLS13};
use rustls::{HandshakeKind, SupportedProtocolVersion};

use super::handshakes::counted;
use crate::base::Clock;
use crate::tls::config::Config;
use crate::tls::sample::{Authority, Caller, Files, NOW, call, config, open, open_at};
use crate::tls::tickets::Tickets;

const HOUR: Duration = Duration::from_secs(3600);

const VERSIONS: [&[&SupportedProtocolVersion]; 2] = [&[&TLS12], &[&TLS13]];

#[tokio::test]
async fn a_session_is_resumed_after_a_restart_with_the_file_and_not_without() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let pair = files.pair("a", &authority.server(&["a.example"]));
    for (ticket_key, kind) in
        [(files.path("tickets"), HandshakeKind::Resumed), (std::path::PathBuf::new(), HandshakeKind::Full)]
    {
        let server = Config { ticket_key, ..config(std::slice::from_ref(&pair)) };
        for versions in VERSIONS {
            let client = Arc::new(Caller { versions, ..Caller::new(&authority) }.config());
            let first = open(&server);
            let kinds = async |tls| call(tls, &client, "a.example").await.client().await.handshake_kind();
            assert_eq!(kinds(&*first).await, Some(HandshakeKind::Full));
            assert_eq!(kinds(&*first).await, Some(HandshakeKind::Resumed), "{versions:?}");
            assert_eq!(kinds(&*open(&server)).await, Some(kind), "{versions:?}");
            let version = if versions[0] == &TLS12 { "1.2" } else { "1.3" };
            let name = format!("larder_tls_handshakes_total{{version=\"{version}\",kind=\"resumed\"}}");
            assert_eq!(counted(&first, &name), 1);
        }
    }
}

#[tokio::test]
async fn no_session_is_resumed_where_clients_show_certificates() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let pair = files.pair("a", &authority.server(&["a.example"]));
    let clients = Authority::new("clients");
    let tls = open(&Config { client_ca: files.write("ca.pem", clients.pem()), ..config(&[pair]) });
    for versions in VERSIONS {
        let shows = Some(clients.client(&[(rcgen::DnType::CommonName, "x")]));
        let client = Arc::new(Caller { versions, shows, ..Caller::new(&authority) }.config());
        for _ in 0..3 {
            let kind = call(&tls, &client, "a.example").await.client().await.handshake_kind();
            assert_eq!(kind, Some(HandshakeKind::Full), "{versions:?}");
        }
    }
}

#[test]
fn a_ticket_is_accepted_in_its_own_period_and_the_next_and_never_after() {
    let clock = Clock::manual(NOW);
    let tickets = Tickets::open("".as_ref(), clock.clone()).expect("random");
    let ticket = tickets.encrypt(b"session").expect("a ticket");
    assert!(!ticket.windows(7).any(|window| window == b"session"));
    assert_ne!(ticket, tickets.encrypt(b"session").expect("a ticket"));
    for n in 0..ticket.len() {
        let mut other = ticket.clone();
        other[n] ^= 1;
        assert_eq!(tickets.decrypt(&other), None, "{n}");
        assert_eq!(tickets.decrypt(&ticket[..n]), None, "{n}");
    }
    clock.advance(6 * HOUR);
    assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
    clock.advance(6 * HOUR);
    assert_eq!(tickets.decrypt(&ticket), None);
    assert!(tickets.decrypt(&tickets.encrypt(b"x").expect("a ticket")).is_some());
}

/// The file of one period leads to the tickets of later ones, not to those of earlier ones.
#[test]
fn the_file_moves_on_and_reads_no_old_ticket() {
    let (files, clock) = (Files::new(), Clock::manual(NOW));
    let file = files.path("tickets");
    let tickets = Tickets::open(&file, clock.clone()).expect("it is made");
    let mode = std::fs::metadata(&file).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (first, old) = (std::fs::read_to_string(&file).expect("text"), tickets.encrypt(b"old").expect("a ticket"));
    tickets.keep();
    assert_eq!(std::fs::read_to_string(&file).expect("text"), first);

    clock.advance(48 * HOUR);
    let new = tickets.encrypt(b"new").expect("a ticket");
    tickets.keep();
    assert_ne!(std::fs::read_to_string(&file).expect("text"), first);
    let again = Tickets::open(&file, clock.clone()).expect("its own file");
    assert_eq!(again.decrypt(&new).as_deref(), Some(&b"new"[..]));
    let earlier = Tickets::open(&file, Clock::manual(NOW)).expect("its own file");
    assert_eq!(earlier.decrypt(&old), None, "the file has moved on");
    // Another machine has kept the first file, and its clock is a little ahead or behind.
    for hours in [-6_i64, 0, 6] {
        let copy = files.write("copy", &first);
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o600)).expect("its mode");
        let now = clock.now().plus_millis(hours * 3_600_000);
        let other = Tickets::open(&copy, Clock::manual(now)).expect("a copy");
        assert_eq!(other.decrypt(&new).as_deref(), Some(&b"new"[..]), "{hours}");
    }
}

#[test]
fn a_file_that_cannot_be_a_secret_is_told() {
    let files = Files::new();
    let mistake = |name: &str| Tickets::open(&files.path(name), Clock::manual(NOW)).expect_err("a mistake").to_string();
    let private = |name: &str, text: &str| {
        let path = files.write(name, text);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("its mode");
    };
    for text in [
        "",
        "larder-ticket-key-1 5 00",
        "larder-ticket-key-2 5 00",
        &format!("larder-ticket-key-1 5 {}", "é".repeat(32)),
    ] {
        private("strange", text);
        assert!(mistake("strange").contains("it is no file that Larder wrote"), "{text}");
    }
    assert!(mistake("none/tickets").contains("make its directory"));
    files.write("open", "x");
    std::fs::set_permissions(files.path("open"), std::fs::Permissions::from_mode(0o640)).expect("its mode");
    assert!(mistake("open").contains("other users may read this secret"));
    // A number far ahead would keep one secret for ever.
    let ahead = format!("larder-ticket-key-1 {} {}", u64::MAX / 4, "ab".repeat(32));
    private("ahead", &ahead);
    Tickets::open(&files.path("ahead"), Clock::manual(NOW)).expect("a new secret");
    assert_ne!(std::fs::read_to_string(files.path("ahead")).expect("text"), ahead);
}

#[test]
fn a_clock_that_was_far_ahead_does_not_keep_one_secret() {
    let clock = Clock::manual(NOW);
    let tickets = Tickets::open("".as_ref(), clock.clone()).expect("random");
    clock.advance(24 * 365 * 300 * HOUR);
    let ticket = tickets.encrypt(b"x").expect("a ticket");
    assert!(tickets.decrypt(&ticket).is_some());
    let _ = open_at(&Config::default(), clock);
}
