//! Tests TLS to the origin: whose certificates are believed, and what is told of those that are not.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion, version};

use crate::support::{Authority, Larder, Origin, Pair, Process, SelfSigned, eventually, larder, run};

/// The facts of a handshake with the origin.
#[derive(Clone, Debug)]
struct Handshake {
    name: Option<String>,
    protocol: Option<String>,
    has_certificate: bool,
    is_resumed: bool,
}

/// An application behind TLS that answers each request with "x", which nobody may store.
struct TlsOrigin {
    address: SocketAddr,
    handshakes: Arc<Mutex<Vec<Handshake>>>,
}

impl TlsOrigin {
    fn new(pair: &Pair, clients: Option<&Authority>, versions: &[&'static SupportedProtocolVersion]) -> Self {
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(pair.chain.as_bytes()).collect::<Result<_, _>>().expect("a chain");
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("a key");
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .expect("versions");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                let file = std::fs::read(authority.file()).expect("a file");
                for certificate in CertificateDer::pem_slice_iter(&file) {
                    roots.add(certificate.expect("a certificate")).expect("a root");
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
        };
        let mut config = builder.with_single_cert(chain, key).expect("a pair");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let handshakes: Arc<Mutex<Vec<Handshake>>> = Arc::default();
        let noted = Arc::clone(&handshakes);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, noted) = (Arc::clone(&config), Arc::clone(&noted));
                std::thread::spawn(move || {
                    let connection = ServerConnection::new(config).expect("a connection");
                    serve(StreamOwned::new(connection, stream), &noted);
                });
            }
        });
        Self { address, handshakes }
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    fn last(&self) -> Handshake {
        self.handshakes.lock().expect("no panic").last().cloned().expect("a handshake")
    }
}

fn serve(mut stream: StreamOwned<ServerConnection, std::net::TcpStream>, noted: &Mutex<Vec<Handshake>>) {
    while stream.conn.is_handshaking() {
        if stream.conn.complete_io(&mut stream.sock).is_err() {
            return;
        }
    }
    noted.lock().expect("no panic").push(Handshake {
        name: stream.conn.server_name().map(str::to_owned),
        protocol: stream.conn.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()),
        has_certificate: stream.conn.peer_certificates().is_some_and(|chain| !chain.is_empty()),
        is_resumed: stream.conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
    });
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|read| read > 2) {}
        if line.is_empty() {
            return;
        }
        let answer = b"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 1\r\n\r\nx";
        if reader.get_mut().write_all(answer).and_then(|()| reader.get_mut().flush()).is_err() {
            return;
        }
    }
}

fn believing(authority: &Authority) -> String {
    format!("upstream.ca_file={}", authority.file().display())
}

#[test]
fn an_origin_is_asked_over_tls_with_the_name_that_it_is_known_by() {
    let authority = Authority::new();
    for versions in [&[&version::TLS12][..], &[&version::TLS13], &[&version::TLS12, &version::TLS13]] {
        let origin = TlsOrigin::new(&authority.server(&["127.0.0.1", "app.internal"]), None, versions);
        let larder = Larder::with_upstream(&origin.url(), &believing(&authority));
        for n in 0..3 {
            assert_eq!(larder.get(&format!("/{n}"), "").text(), "x");
        }
        assert_eq!(origin.last().name, None, "an address is no name (RFC 6066 §3)");
        assert_eq!(origin.last().protocol.as_deref(), Some("http/1.1"));
        let config = format!("{}\nupstream.server_name=app.internal", believing(&authority));
        let larder = Larder::with_upstream(&origin.url(), &config);
        assert_eq!(larder.get("/", "").text(), "x");
        assert_eq!(origin.last().name.as_deref(), Some("app.internal"));
    }
}

#[test]
fn connections_are_kept_and_sessions_resumed() {
    let authority = Authority::new();
    let pair = authority.server(&["127.0.0.1"]);
    let origin = TlsOrigin::new(&pair, None, &[&version::TLS13]);
    let larder = Larder::with_upstream(&origin.url(), &format!("{}\nserver.threads=1", believing(&authority)));
    let mut client = larder.client();
    for n in 0..10 {
        assert_eq!(client.get(&format!("/{n}"), "").status(), 200);
    }
    assert_eq!(origin.handshakes.lock().expect("no panic").len(), 1);
    let config = format!("{}\nserver.threads=1\nupstream.max_idle=0", believing(&authority));
    let larder = Larder::with_upstream(&origin.url(), &config);
    assert_eq!(larder.get("/", "").status(), 200);
    assert!(!origin.last().is_resumed);
    assert_eq!(larder.get("/", "").status(), 200);
    assert!(origin.last().is_resumed, "a new connection takes the ticket of an earlier one");
}

#[test]
fn a_certificate_that_is_not_believed_is_refused_with_its_sentence() {
    let authority = Authority::new();
    let (stranger, namesake) = (Authority::called("stranger"), Authority::new());
    let all = &[&version::TLS12, &version::TLS13][..];
    let right = authority.server(&["127.0.0.1"]);
    let cases = [
        ("expired", TlsOrigin::new(&authority.expired(&["127.0.0.1"]), None, all), "has expired"),
        ("not yet valid", TlsOrigin::new(&authority.not_yet(&["127.0.0.1"]), None, all), "is not valid yet"),
        (
            "wrong name",
            TlsOrigin::new(&authority.server(&["shop.example"]), None, all),
            "is not for 127.0.0.1; see server_name",
        ),
        (
            "unknown authority",
            TlsOrigin::new(&stranger.server(&["127.0.0.1"]), None, all),
            "is of an authority that is not believed; see ca_file",
        ),
        (
            "another authority of the same name",
            TlsOrigin::new(&namesake.server(&["127.0.0.1"]), None, all),
            "is not signed by the authority that it names, or by an older key of it; see ca_file",
        ),
    ];
    for (case, origin, sentence) in &cases {
        let process = Process::start(&origin.url(), &[&believing(&authority), "durable.url=off"]);
        let mut client = process.client();
        for method in ["GET", "POST"] {
            let answer = client.send(method, "/", "");
            assert_eq!(answer.status(), 502, "{case}");
            assert!(
                !answer.text().contains("certificate"),
                "clients are told nothing of the inside: {}",
                answer.text()
            );
        }
        eventually(&format!("{case}: {sentence} in {}", process.log()), || process.log().contains(sentence));
        assert!(origin.handshakes.lock().expect("no panic").is_empty(), "{case}: nothing was sent");
    }
    // Beside a right one, nobody notices.
    let fine = TlsOrigin::new(&right, None, all);
    let urls: Vec<String> = cases.iter().map(|(_, origin, _)| origin.url()).chain([fine.url()]).collect();
    let larder = Larder::with_upstream(&urls.join(", "), &believing(&authority));
    for n in 0..30 {
        assert_eq!(larder.get(&format!("/{n}"), "").status(), 200);
    }
}

#[test]
fn a_certificate_that_signed_itself_is_believed_where_the_file_has_it_and_where_it_is_right() {
    let all = &[&version::TLS12, &version::TLS13][..];
    for is_authority in [true, false] {
        let signed = |names: &[&str], years| SelfSigned::new(names, years, is_authority);
        let (right, other) = (signed(&["127.0.0.1"], (2001, 4001)), signed(&["127.0.0.1"], (2001, 4001)));
        let (named, old) = (signed(&["shop.example"], (2001, 4001)), signed(&["127.0.0.1"], (2001, 2002)));
        for (case, shown, file, status) in [
            ("right", &right, &right, 200),
            ("another's", &other, &right, 502),
            ("wrong name", &named, &named, 502),
            ("expired", &old, &old, 502),
        ] {
            let origin = TlsOrigin::new(&shown.pair, None, all);
            let larder = Larder::with_upstream(&origin.url(), &format!("upstream.ca_file={}", file.file.display()));
            assert_eq!(larder.get("/", "").status(), status, "{case}, {is_authority}");
        }
    }
}

#[test]
fn larder_shows_its_own_certificate_where_it_has_one() {
    let authority = Authority::new();
    let origin = TlsOrigin::new(&authority.server(&["127.0.0.1"]), Some(&authority), &[&version::TLS13]);
    let pair = authority.client("larder");
    std::fs::write(authority.path("own.pem"), &pair.chain).expect("it is written");
    std::fs::write(authority.path("own.key"), &pair.key).expect("it is written");
    let own = format!(
        "{}\nupstream.client_chain={}\nupstream.client_key={}",
        believing(&authority),
        authority.path("own.pem").display(),
        authority.path("own.key").display()
    );
    let larder = Larder::with_upstream(&origin.url(), &own);
    assert_eq!(larder.get("/", "").text(), "x");
    assert!(origin.last().has_certificate);
    let without = Larder::with_upstream(&origin.url(), &believing(&authority));
    assert_eq!(without.get("/", "").status(), 502);
}

#[test]
fn an_origin_that_speaks_no_tls_or_says_nothing_is_given_up() {
    let plain = Origin::cacheable();
    let url = plain.url().replace("http:", "https:");
    let authority = Authority::new();
    let larder = Larder::with_upstream(&url, &believing(&authority));
    assert_eq!(larder.get("/", "").status(), 502);
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("https://{}", silent.local_addr().expect("an address"));
    let larder = Larder::with_upstream(&url, &format!("{}\nupstream.connect_timeout=300ms", believing(&authority)));
    assert_eq!(larder.get("/", "").status(), 504, "the handshake counts as connecting");
}

#[test]
fn files_that_can_not_be_used_stop_the_start_with_a_sentence() {
    let authority = Authority::new();
    std::fs::write(authority.path("empty.pem"), "").expect("it is written");
    let pair = authority.client("larder");
    std::fs::write(authority.path("own.pem"), &pair.chain).expect("it is written");
    std::fs::write(authority.path("other.key"), authority.client("x").key).expect("it is written");
    let path = |name: &str| authority.path(name).display().to_string();
    for (keys, sentence) in [
        (vec![("ca_file", "gone.pem")], "ca_file: "),
        (vec![("ca_file", "empty.pem")], "it has no certificate"),
        (vec![("client_chain", "own.pem"), ("client_key", "gone.key")], "client_key: "),
        (vec![("client_chain", "own.pem"), ("client_key", "other.key")], "client_key: "),
        (vec![("client_chain", "own.pem")], "client_key: "),
        (vec![("client_key", "other.key")], "client_chain: "),
    ] {
        for (section, url) in [
            ("upstream", &["upstream.url=https://127.0.0.1:1"][..]),
            ("upstreams.api", &["upstreams.api.url=https://127.0.0.1:1"]),
            ("peers", &["peers.list=https://127.0.0.1:1", "peers.listen=127.0.0.1:0"]),
        ] {
            let files = keys.iter().map(|(key, file)| format!("{section}.{key}={}", path(file)));
            let files: Vec<String> = files.chain(["durable.url=off".into()]).collect();
            let sets: Vec<&str> = url.iter().copied().chain(files.iter().map(String::as_str)).collect();
            for command in ["", "check"] {
                let mut larder = larder(&sets);
                if !command.is_empty() {
                    larder.arg(command);
                }
                let output = run(&mut larder);
                let told = String::from_utf8_lossy(&output.stderr);
                let expected = told.contains(&format!("{section}.c")) && told.contains(sentence);
                assert!(!output.status.success() && expected, "{command} {section} {keys:?}: {told}");
            }
        }
    }
}
