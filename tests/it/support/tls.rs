//! Certificates for listeners with TLS, and a client that speaks it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::client::Answer;
use super::message::{Head, lines};
use super::wait::PATIENCE;

/// Issues certificates, and keeps them as files in a directory of its own.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

/// A chain and its key, as PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub chain: String,
    pub key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self::called("test authority")
    }

    pub(crate) fn called(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("it is signed");
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).expect("it is written");
        Self { issuer, directory }
    }

    /// The file of its own certificate.
    pub(crate) fn file(&self) -> PathBuf {
        self.path("ca.pem")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Issues a certificate for these names.
    pub(crate) fn server(&self, names: &[&str]) -> Pair {
        self.issue(names, "", None)
    }

    /// Issues a certificate for these names that has expired.
    pub(crate) fn expired(&self, names: &[&str]) -> Pair {
        self.issue_between(names, (2001, 2002))
    }

    /// Issues a certificate for these names that is not valid yet.
    pub(crate) fn not_yet(&self, names: &[&str]) -> Pair {
        self.issue_between(names, (4001, 4002))
    }

    /// Issues a certificate for a client of this name.
    pub(crate) fn client(&self, name: &str) -> Pair {
        self.issue(&[], name, None)
    }

    /// Issues a certificate for a client of this name that expires after some time.
    pub(crate) fn client_for(&self, name: &str, limit: std::time::Duration) -> Pair {
        self.issue(&[], name, Some(limit))
    }

    fn issue(&self, names: &[&str], subject: &str, limit: Option<std::time::Duration>) -> Pair {
        let mut params = named(names, subject);
        if let Some(limit) = limit {
            #[expect(clippy::disallowed_methods, reason = "the verifier asks the machine's clock")]
            let now = std::time::SystemTime::now();
            params.not_after = (now + limit).into();
        }
        self.sign(&params)
    }

    /// Issues a certificate for these names that is valid between these years.
    fn issue_between(&self, names: &[&str], (from, to): (i32, i32)) -> Pair {
        let mut params = named(names, "");
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Pair {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("it is signed");
        Pair { chain: certificate.pem(), key: key.serialize_pem() }
    }

    /// Writes a pair to files. Returns it as a table of `tls.certificate`.
    pub(crate) fn write(&self, name: &str, pair: &Pair) -> String {
        let (chain, key) = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        replace(&chain, &pair.chain);
        replace(&key, &pair.key);
        format!("{{chain = \"{}\", key = \"{}\"}}", chain.display(), key.display())
    }

    /// The lines of configuration for a listener in clear text, and one with TLS that has a certificate for
    /// `site.example`.
    pub(crate) fn listeners(&self) -> String {
        let pair = self.write("site", &self.server(&["site.example", "127.0.0.1"]));
        format!("server.listen=127.0.0.1:0,https://127.0.0.1:0\ntls.certificate=[{pair}]")
    }

    /// Connects to a listener with TLS.
    pub(crate) fn connect(&self, address: SocketAddr, shows: Option<&Pair>) -> std::io::Result<TlsClient> {
        TlsClient::connect(address, &self.client_config(shows))
    }

    pub(crate) fn client_config(&self, shows: Option<&Pair>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a certificate");
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match shows {
            None => builder.with_no_client_auth(),
            Some(Pair { chain, key }) => {
                let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes());
                builder.with_client_auth_cert(chain.expect("a chain"), key.expect("a key")).expect("a pair")
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

/// Replaces a file at once, as tools that renew certificates do.
fn replace(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("it is written");
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).expect("its mode");
    std::fs::rename(&new, path).expect("it is renamed");
}

/// One connection of a client that speaks TLS and HTTP/1.1.
pub(crate) struct TlsClient(BufReader<StreamOwned<ClientConnection, TcpStream>>);

impl TlsClient {
    pub(crate) fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> std::io::Result<Self> {
        let name = ServerName::try_from("site.example").expect("a name");
        let mut connection = ClientConnection::new(Arc::clone(config), name).map_err(std::io::Error::other)?;
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        Ok(Self(BufReader::new(StreamOwned::new(connection, stream))))
    }

    pub(crate) fn connection(&self) -> &ClientConnection {
        &self.0.get_ref().conn
    }

    /// Sends a request, and reads an answer whose length is stated.
    pub(crate) fn try_get(&mut self, path: &str, fields: &str) -> std::io::Result<Answer> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: site.example\r\n{}\r\n", lines(fields));
        self.0.get_mut().write_all(request.as_bytes())?;
        self.0.fill_buf()?;
        let head = Head::read(&mut self.0).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let length = head.get("content-length").and_then(|length| length.parse().ok()).expect("a length");
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok(Answer { head, body })
    }

    pub(crate) fn get(&mut self, path: &str, fields: &str) -> Answer {
        self.try_get(path, fields).expect("a whole answer")
    }

    /// Asks for a change of protocols, and returns the head of the answer.
    pub(crate) fn upgrade(&mut self, path: &str, protocol: &str) -> std::io::Result<String> {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: site.example\r\nConnection: upgrade\r\nUpgrade: {protocol}\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes())?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") && self.0.read_line(&mut head)? > 0 {}
        Ok(head)
    }

    /// Waits for the end of the connection, for as long as tests wait at most. Returns whether it came.
    pub(crate) fn ends(&mut self) -> bool {
        let ended = self.0.read(&mut [0]);
        // A connection that is cut off ends without a farewell.
        ended.map_or_else(|error| error.kind() == std::io::ErrorKind::UnexpectedEof, |read| read == 0)
    }
}

/// A certificate that signed itself.
pub(crate) struct SelfSigned {
    pub pair: Pair,
    pub file: PathBuf,
    _directory: tempfile::TempDir,
}

impl SelfSigned {
    /// Makes one for these names that is valid between these years. It may say that it is an authority's.
    pub(crate) fn new(names: &[&str], (from, to): (i32, i32), is_authority: bool) -> Self {
        let mut params = named(names, "site");
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        if is_authority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let key = KeyPair::generate().expect("a key");
        let chain = params.self_signed(&key).expect("it is signed").pem();
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("self-signed.pem");
        std::fs::write(&file, &chain).expect("it is written");
        Self { pair: Pair { chain, key: key.serialize_pem() }, file, _directory: directory }
    }
}

/// The parameters of a certificate for these names, or for a client of this name.
fn named(names: &[&str], subject: &str) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name = DistinguishedName::new();
    if !subject.is_empty() {
        params.distinguished_name.push(DnType::CommonName, subject);
    }
    params
}
