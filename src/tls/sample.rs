//! Authorities, certificates and clients for the tests of this room.

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Accepted;
use super::config::{CertificateFiles, Config};
use super::error::HandshakeError;
use super::server::Tls;
use crate::base::{Clock, Metrics, Transport};
use crate::rfc9111::timestamp::Timestamp;

/// The time of the tests.
pub(super) const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

/// Issues certificates.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A chain and its key, as PEM.
#[derive(Clone)]
pub(super) struct Pair {
    pub(super) chain: String,
    pub(super) key: String,
}

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("it is signed"))
    }

    pub(super) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(super) fn issue_for(&self, params: &CertificateParams, key: &KeyPair) -> Pair {
        let certificate = params.signed_by(key, &self.0).expect("it is signed");
        Pair { chain: certificate.pem(), key: key.serialize_pem() }
    }

    pub(super) fn issue(&self, params: &CertificateParams) -> Pair {
        self.issue_for(params, &KeyPair::generate().expect("a key"))
    }

    pub(super) fn server(&self, names: &[&str]) -> Pair {
        self.issue(&params(names))
    }

    /// A client's certificate with this subject.
    pub(super) fn client(&self, subject: &[(DnType, &str)]) -> Pair {
        let mut params = params(&[]);
        for (kind, value) in subject {
            params.distinguished_name.push(kind.clone(), *value);
        }
        self.issue(&params)
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("a certificate");
        roots
    }
}

pub(super) fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name = DistinguishedName::new();
    params
}

/// Files in a directory of their own.
pub(super) struct Files(tempfile::TempDir);

impl Files {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(super) fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), contents).expect("it is written");
        self.path(name)
    }

    /// Writes a pair as `name.pem` and `name.key`.
    pub(super) fn pair(&self, name: &str, pair: &Pair) -> CertificateFiles {
        use std::os::unix::fs::PermissionsExt as _;
        let key = self.write(&format!("{name}.key"), &pair.key);
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("its mode");
        CertificateFiles { chain: self.write(&format!("{name}.pem"), &pair.chain), key }
    }
}

pub(super) fn open(config: &Config) -> Arc<Tls> {
    open_at(config, Clock::manual(NOW))
}

pub(super) fn open_at(config: &Config, clock: Clock) -> Arc<Tls> {
    Tls::open(config, clock, Metrics::new(1)).expect("sound files")
}

/// The properties of a client.
pub(super) struct Caller<'a> {
    pub(super) trusts: &'a Authority,
    pub(super) name: &'static str,
    pub(super) alpn: &'static [&'static str],
    pub(super) versions: &'static [&'static SupportedProtocolVersion],
    pub(super) shows: Option<Pair>,
    /// A part of the names of the ciphers that it prefers.
    pub(super) first: &'static str,
}

impl<'a> Caller<'a> {
    pub(super) fn new(trusts: &'a Authority) -> Self {
        Self { trusts, name: "a.example", alpn: &[], versions: rustls::ALL_VERSIONS, shows: None, first: "" }
    }

    pub(super) fn config(&self) -> ClientConfig {
        let mut provider = aws_lc_rs::default_provider();
        let is_first = |name: Option<&str>| name.is_some_and(|name| name.contains(self.first));
        provider.cipher_suites.sort_by_key(|suite| !is_first(suite.suite().as_str()));
        let builder = ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(self.versions);
        let builder = builder.expect("versions").with_root_certificates(self.trusts.roots());
        let mut config = match &self.shows {
            None => builder.with_no_client_auth(),
            Some(Pair { chain, key }) => {
                let chain =
                    CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().expect("a chain");
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
                builder.with_client_auth_cert(chain, key).expect("a pair")
            }
        };
        config.alpn_protocols = self.alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        config.resumption = Resumption::in_memory_sessions(8);
        config
    }

    pub(super) async fn call(&self, tls: &Tls) -> Called {
        call(tls, &Arc::new(self.config()), self.name).await
    }
}

/// Both ends of a handshake.
pub(super) struct Called {
    pub(super) client: std::io::Result<TlsStream<UnixStream>>,
    pub(super) server: Result<Accepted, HandshakeError>,
}

impl Called {
    /// The client's end after a byte has gone to and fro, so that tickets have arrived.
    pub(super) async fn client(self) -> ClientConnection {
        let mut client = self.client.expect("it connects");
        let mut server = self.server.expect("it accepts").transport;
        client.write_all(b"?").await.expect("it writes");
        let mut byte = [0];
        server.read_exact(&mut byte).await.expect("it reads");
        server.write_all(b"!").await.expect("it answers");
        client.read_exact(&mut byte).await.expect("it reads");
        assert_eq!(&byte, b"!");
        client.into_inner().1
    }
}

pub(super) async fn call(tls: &Tls, config: &Arc<ClientConfig>, name: &'static str) -> Called {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let name = match name {
        "" => ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into()),
        name => ServerName::try_from(name).expect("a name"),
    };
    let connector = TlsConnector::from(Arc::clone(config));
    let client = async {
        let mut stream = connector.connect(name, theirs).await?;
        // In TLS 1.3 a client learns only afterwards that its certificate is refused.
        let is_refused = tokio::time::timeout(std::time::Duration::from_millis(30), stream.read_u8()).await;
        match is_refused {
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) | Err(_) => Ok(stream),
        }
    };
    let (client, server) = tokio::join!(client, tls.accept(Transport::Unix(ours), None));
    Called { client, server }
}

/// The first certificate that the server has shown.
pub(super) fn shown(connection: &ClientConnection) -> Vec<u8> {
    connection.peer_certificates().and_then(|chain| chain.first()).map(|der| der.to_vec()).unwrap_or_default()
}

pub(super) fn der(pair: &Pair) -> Vec<u8> {
    CertificateDer::from_pem_slice(pair.chain.as_bytes()).expect("a certificate").to_vec()
}

pub(super) fn config(certificates: &[CertificateFiles]) -> Config {
    Config { certificates: certificates.to_vec(), ..Config::default() }
}
