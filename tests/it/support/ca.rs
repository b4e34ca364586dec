//! A CA for tests: Debian's `pebble`, which validates names for real, behind a front that counts requests, fails when told
//! to, and suggests when to renew (which that pebble can't). Names lead to this machine, and the CA's connections to ports 80
//! and 443 to the Larders that a test names.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::ports::free_port;
use super::wait::eventually;

/// A running CA.
pub(crate) struct Ca {
    /// The URL of its directory.
    pub directory: String,
    files: tempfile::TempDir,
    front: Arc<Front>,
    pebble: Child,
    runtime: Option<tokio::runtime::Runtime>,
}

/// The behaviour of the front, and the requests that it has seen.
#[derive(Default)]
struct Front {
    /// The paths that were asked for, with their methods.
    seen: Mutex<Vec<String>>,
    /// Those that pebble has answered well. It refuses one nonce in twenty, so that some are sent twice.
    done: Mutex<Vec<String>>,
    /// The answers that are given instead, from the first on; the last stays.
    instead: Mutex<VecDeque<(u16, String)>>,
    /// True while everything is answered by the last of `instead`.
    fails: Mutex<bool>,
    /// The windows that are suggested, by a part of the certificate's id; empty: the CA suggests nothing.
    windows: Mutex<Vec<(String, i64, i64)>>,
    /// The certificates that orders have replaced.
    replaced: Mutex<Vec<String>>,
    /// The error of the next order that replaces a certificate.
    refuse_replacing: Mutex<Option<Value>>,
    /// Called for each request before it is passed on.
    hook: Mutex<Option<Box<dyn FnMut(&str) + Send>>>,
    /// Where connections to ports 80 and 443 lead; each goes to the next.
    doors: Mutex<[VecDeque<SocketAddr>; 2]>,
}

/// The authority that pebble's and the front's own certificates are from, and the pair for both, as PEM.
fn pair() -> (String, String, String) {
    let authority = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("an authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&authority).expect("a root").pem();
    let issuer = Issuer::new(params, authority);
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).expect("names");
    (root, params.signed_by(&key, &issuer).expect("a certificate").pem(), key.serialize_pem())
}

impl Ca {
    /// Starts a CA whose certificates are valid for so many seconds. `None`, and a sentence, where there is no pebble.
    pub(crate) fn start(validity: u32) -> Option<Self> {
        let is_there = Command::new("pebble").arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
        if !is_there {
            eprintln!("there is no pebble here, so that certificates by ACME are not tested: apt-get install pebble");
            return None;
        }
        let files = tempfile::tempdir().expect("a directory");
        let path = |name: &str| files.path().join(name);
        let (root, chain, key) = pair();
        for (name, text) in [("root.pem", &root), ("chain.pem", &chain), ("key.pem", &key)] {
            std::fs::write(path(name), text).expect("a file");
        }
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let front = Arc::new(Front::default());
        let doors = [0, 1].map(|door| {
            let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
            let port = listener.local_addr().expect("an address").port();
            runtime.spawn(lead_on(listener, Arc::clone(&front), door));
            port
        });
        let dns = runtime.block_on(UdpSocket::bind("127.0.0.1:0")).expect("a port");
        let dns_address = dns.local_addr().expect("an address");
        runtime.spawn(answer_names(dns));
        let (pebble, address) = (0..5)
            .find_map(|_| start_pebble(&files, validity, doors, dns_address))
            .expect("pebble starts with ports that were free a moment ago");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let own = listener.local_addr().expect("an address");
        runtime.spawn(serve_front(listener, Arc::clone(&front), address, [root, chain, key]));
        let directory = format!("https://localhost:{}/dir", own.port());
        Some(Self { directory, files, front, pebble, runtime: Some(runtime) })
    }

    /// Returns the settings of a Larder that gets certificates here.
    pub(crate) fn sets(&self, domains: &str) -> Vec<String> {
        vec![
            format!("tls.acme.domains={domains}"),
            "tls.acme.accept_terms=true".into(),
            "tls.acme.email=webmaster@shop.test".into(),
            format!("tls.acme.directory={}", self.directory),
            format!("tls.acme.ca_file={}", self.file("root.pem").display()),
            "tls.acme.poll_interval=1s".into(),
            "server.listen=127.0.0.1:0,https://127.0.0.1:0".into(),
        ]
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// Has the connections to port 80 and to port 443 go to these addresses in turn.
    pub(crate) fn lead_to(&self, port_80: &[SocketAddr], port_443: &[SocketAddr]) {
        *self.front.doors.lock().unwrap() = [port_80, port_443].map(|door| door.iter().copied().collect());
    }

    /// Returns how many requests there were with `part` in their method and path.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.front.seen.lock().unwrap().iter().filter(|seen| seen.contains(part)).count()
    }

    /// Returns the number of new accounts, of new orders, and of certificates that were asked for.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let done = self.front.done.lock().unwrap();
        let count = |part: &str| done.iter().filter(|done| done.contains(part)).count();
        (count("POST /sign-me-up"), count("POST /order-plz"), count("POST /finalize-order"))
    }

    pub(crate) fn requests(&self) -> usize {
        self.front.seen.lock().unwrap().len()
    }

    /// From now on everything is answered so: a status, and further fields.
    pub(crate) fn fail(&self, status: u16, fields: &str) {
        *self.front.instead.lock().unwrap() = [(status, fields.to_owned())].into();
        *self.front.fails.lock().unwrap() = true;
    }

    /// From now on it works.
    pub(crate) fn work(&self) {
        *self.front.fails.lock().unwrap() = false;
    }

    /// Suggests a window of renewal, in seconds since 1970, for certificates with `part` in their id.
    pub(crate) fn suggest(&self, part: &str, start: i64, end: i64) {
        self.front.windows.lock().unwrap().insert(0, (part.to_owned(), start, end));
    }

    /// Returns the ids of the certificates that orders have replaced.
    pub(crate) fn replaced(&self) -> Vec<String> {
        self.front.replaced.lock().unwrap().clone()
    }

    /// Refuses the next order that replaces a certificate.
    pub(crate) fn refuse_replacing(&self, kind: &str, detail: &str) {
        let problem = json!({"type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail, "status": 409});
        *self.front.refuse_replacing.lock().unwrap() = Some(problem);
    }

    /// Calls `hook` with the method and path of each request before it is passed on.
    pub(crate) fn on_request(&self, hook: impl FnMut(&str) + Send + 'static) {
        *self.front.hook.lock().unwrap() = Some(Box::new(hook));
    }
}

impl Drop for Ca {
    fn drop(&mut self) {
        let _ = self.pebble.kill();
        let _ = self.pebble.wait();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Starts pebble. `None`: it ended, such as because somebody else took its port.
fn start_pebble(
    files: &tempfile::TempDir,
    validity: u32,
    [http, tls]: [u16; 2],
    dns: SocketAddr,
) -> Option<(Child, SocketAddr)> {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let path = |name: &str| files.path().join(name).display().to_string();
    let config = json!({"pebble": {
        "listenAddress": address.to_string(),
        "managementListenAddress": "",
        "certificate": path("chain.pem"),
        "privateKey": path("key.pem"),
        "httpPort": http,
        "tlsPort": tls,
        "ocspResponderURL": "",
        "externalAccountBindingRequired": false,
        "certificateValidityPeriod": validity,
    }});
    std::fs::write(path("pebble.json"), config.to_string()).expect("a file");
    let mut child = Command::new("pebble")
        .args(["-config", &path("pebble.json"), "-strict", "-dnsserver", &dns.to_string()])
        .env_clear()
        .env("PEBBLE_VA_NOSLEEP", "1")
        .env("PEBBLE_AUTHZREUSE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("pebble is there");
    let mut is_gone = false;
    eventually("pebble listens, or ends", || {
        is_gone = child.try_wait().expect("it was started").is_some();
        is_gone || std::net::TcpStream::connect(address).is_ok()
    });
    (!is_gone).then_some((child, address))
}

/// Leads connections to the door's address that is next.
async fn lead_on(listener: TcpListener, front: Arc<Front>, door: usize) {
    while let Ok((mut from, _)) = listener.accept().await {
        let next = {
            let doors = &mut front.doors.lock().unwrap()[door];
            doors.rotate_left(usize::from(!doors.is_empty()));
            doors.back().copied()
        };
        // Without an address the connection is closed, as by a firewall.
        let Some(next) = next else { continue };
        tokio::spawn(async move {
            if let Ok(mut to) = TcpStream::connect(next).await {
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            }
        });
    }
}

/// Answers every question for the IPv4 address of a name with this machine's, and others with nothing.
async fn answer_names(socket: UdpSocket) {
    let mut question = [0; 512];
    while let Ok((len, from)) = socket.recv_from(&mut question).await {
        if len < 17 {
            continue;
        }
        // The name ends with an empty label; type and class follow.
        let end = 12 + question[12..len].iter().position(|byte| *byte == 0).unwrap_or(0) + 5;
        let is_address = question[end - 4..end] == [0, 1, 0, 1];
        let mut answer = question[..2].to_vec();
        answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_address), 0, 0, 0, 0]);
        answer.extend(&question[12..end]);
        if is_address {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 127, 0, 0, 1]);
        }
        let _ = socket.send_to(&answer, from).await;
    }
}

async fn serve_front(listener: TcpListener, front: Arc<Front>, pebble: SocketAddr, [root, chain, key]: [String; 3]) {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root.as_bytes()).expect("PEM")).expect("a root");
    let client = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = TlsConnector::from(Arc::new(client));
    let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes()).expect("PEM")];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
    let server = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a pair");
    let acceptor = TlsAcceptor::from(Arc::new(server));
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, client, front) = (acceptor.clone(), client.clone(), Arc::clone(&front));
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let answering = service_fn(move |request| {
                let (client, front) = (client.clone(), Arc::clone(&front));
                async move { Ok::<_, std::convert::Infallible>(front.answer(request, &client, pebble).await) }
            });
            let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), answering)
                .await;
        });
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl Front {
    async fn answer(
        &self,
        request: Request<Incoming>,
        client: &TlsConnector,
        pebble: SocketAddr,
    ) -> Response<Full<Bytes>> {
        let what = format!("{} {}", request.method(), request.uri().path());
        self.seen.lock().unwrap().push(what.clone());
        if let Some(hook) = self.hook.lock().unwrap().as_mut() {
            hook(&what);
        }
        if *self.fails.lock().unwrap() {
            let (status, fields) = self.instead.lock().unwrap().front().cloned().expect("as failing was set");
            return plain(status, &fields, "it does not work now");
        }
        let host = request.headers().get("host").and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
        if let Some(id) = what.strip_prefix("GET /ari/") {
            let windows = self.windows.lock().unwrap();
            let Some((_, start, end)) = windows.iter().find(|(part, ..)| id.contains(part)) else {
                return plain(404, "", "no such certificate");
            };
            let date = |secs: i64| larder::rfc9111::timestamp::Timestamp::from_secs(secs).to_rfc3339();
            let window = json!({"suggestedWindow": {"start": date(*start), "end": date(*end)}});
            return plain(200, "Retry-After: 60", &window.to_string());
        }
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let replaces =
            if what == "POST /order-plz" { payload(&body)["replaces"].as_str().map(str::to_owned) } else { None };
        if let Some(replaces) = &replaces {
            let mut replaced = self.replaced.lock().unwrap();
            if replaced.last() != Some(replaces) {
                replaced.push(replaces.clone());
            }
            drop(replaced);
            if let Some(problem) = self.refuse_replacing.lock().unwrap().take() {
                return plain(409, "Content-Type: application/problem+json", &problem.to_string());
            }
        }
        let mut passed = Request::from_parts(head, Full::new(body));
        *passed.uri_mut() =
            passed.uri().path_and_query().map_or("/", |path| path.as_str()).parse::<Uri>().expect("a path");
        let Ok(answer) = ask(passed, client, pebble).await else { return plain(502, "", "pebble does not answer") };
        let (mut head, mut body) = answer.into_parts();
        if head.status.is_success() {
            self.done.lock().unwrap().push(what.clone());
        }
        let has_windows = !self.windows.lock().unwrap().is_empty();
        let mut change = |field: &str, value: String| {
            let mut told: Value = serde_json::from_slice(&body).expect("JSON");
            told[field] = json!(value);
            body = Bytes::from(told.to_string());
            head.headers.remove("content-length");
        };
        if what == "GET /dir" && has_windows {
            change("renewalInfo", format!("https://{host}/ari"));
        }
        if let Some(replaces) = replaces
            && head.status.is_success()
        {
            change("replaces", replaces);
        }
        Response::from_parts(head, Full::new(body))
    }
}

/// Returns the payload of a signed request.
fn payload(body: &[u8]) -> Value {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let signed: Value = serde_json::from_slice(body).unwrap_or_default();
    let (mut bits, mut len, mut decoded) = (0_u32, 0, Vec::new());
    for byte in signed["payload"].as_str().unwrap_or_default().bytes() {
        let six = ALPHABET.iter().position(|letter| *letter == byte).expect("base64url");
        bits = bits << 6 | u32::try_from(six).expect("below 64");
        len += 6;
        if len >= 8 {
            len -= 8;
            decoded.push(u8::try_from(bits >> len & 0xff).expect("a byte"));
        }
    }
    serde_json::from_slice(&decoded).unwrap_or_default()
}

fn plain(status: u16, fields: &str, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::builder().status(status);
    for field in fields.lines() {
        let (name, value) = field.split_once(": ").expect("a field");
        response = response.header(name, value);
    }
    response.body(Full::new(Bytes::from(body.to_owned()))).expect("a response")
}

async fn ask(
    request: Request<Full<Bytes>>,
    client: &TlsConnector,
    pebble: SocketAddr,
) -> Result<Response<Bytes>, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(pebble).await?;
    let stream = client.connect(ServerName::try_from("localhost")?, stream).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await?.into_parts();
    Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
}

/// Takes every certificate, and leaves it to the test to look at it.
#[derive(Debug)]
struct TakesAll;

impl rustls::client::danger::ServerCertVerifier for TakesAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Returns the certificate, as DER, that a listener shows to a client who asks for `name`; `None`: the handshake fails.
pub(crate) fn shown(address: SocketAddr, name: &str) -> Option<Vec<u8>> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TakesAll))
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut stream = std::net::TcpStream::connect(address).expect("it listens");
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).ok()?;
    }
    connection.peer_certificates()?.first().map(|leaf| leaf.to_vec())
}

/// Returns the names that a certificate is for.
pub(crate) fn names_of(leaf: &[u8]) -> Vec<String> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(leaf).expect("a certificate");
    let names = parsed.subject_alternative_name().expect("one").expect("some");
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        other => panic!("{other:?}"),
    };
    names.value.general_names.iter().map(name).collect()
}
