//! Asks the CA: HTTP/1.1 over TLS, a connection a request, with bounds for time and size.
//!
//! `instant-acme` brings a client of its own, which has none of those, and hides `Retry-After`. Here are few requests.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient, Problem};
use parking_lot::Mutex;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;

use super::super::files;
use super::problem::clean;

/// The longest that connecting to one address takes, and a whole request.
const TO_CONNECT: Duration = Duration::from_secs(5);
const TO_ANSWER: Duration = Duration::from_secs(30);

/// The largest answer. A chain of certificates takes some ten KiB.
const MAX_ANSWER: usize = 1 << 20;

/// The name by which CAs know the program (RFC 8555 §6.1).
const USER_AGENT: &str = concat!("larder/", env!("CARGO_PKG_VERSION"));

/// The pause before the next question for a window of renewal, where the CA says none (RFC 9773 §4.3).
const PAUSE_OF_WINDOW: &str = "21600";

/// Asks the CA. Clones share what was said last.
#[derive(Clone)]
pub(super) struct CaClient {
    tls: TlsConnector,
    /// Guarded by its lock: the `Retry-After` of the last answer that was an error.
    said: Arc<Mutex<Option<Duration>>>,
}

impl CaClient {
    /// Makes a client that trusts the authorities in `ca_file`, or those of the machine if it is empty.
    pub(super) fn new(ca_file: &Path) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        if ca_file.as_os_str().is_empty() {
            // Single ones that can't be used are no harm, and without any a sentence is told below.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        } else {
            let shown = ca_file.display();
            let told = |why: String| format!("tls.acme.ca_file: {shown} {why}");
            let bytes = files::read_text(ca_file).map_err(|error| told(format!("can't be read: {error}")))?;
            for certificate in CertificateDer::pem_slice_iter(bytes.as_bytes()) {
                let certificate = certificate.map_err(|error| told(format!("is no sound PEM: {error}")))?;
                roots
                    .add(certificate)
                    .map_err(|error| told(format!("has a certificate that can't be used: {error}")))?;
            }
            if roots.is_empty() {
                return Err(told("has no certificate: name the authority that the directory's own is from".into()));
            }
        }
        if roots.is_empty() {
            return Err(
                "tls.acme: this machine has no certificates of authorities, by which the CA could be known: install \
                        them (the package ca-certificates), or name a file in tls.acme.ca_file"
                    .into(),
            );
        }
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("tls.acme: TLS can't be set up: {error}"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), said: Arc::default() })
    }

    /// Returns the pause that the last error asked for, once.
    pub(super) fn take_said(&self) -> Option<Duration> {
        self.said.lock().take()
    }

    async fn ask(self, mut request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Error> {
        let method = request.method().clone();
        let uri = request.uri().clone();
        let told = |why: String| Error::Other(format!("{uri}: {why}").into());
        let (host, port) = target(&uri).map_err(told)?;
        let answer = async {
            let stream = connect(&host, port).await.map_err(|error| format!("no connection: {error}"))?;
            let name = ServerName::try_from(host.clone()).map_err(|_| "its host is no name".to_owned())?;
            let stream =
                self.tls.connect(name, stream).await.map_err(|error| format!("the TLS handshake failed: {error}"))?;
            let (mut sender, connection) =
                http1::handshake(TokioIo::new(stream)).await.map_err(|error| format!("no HTTP: {error}"))?;
            let connection = tokio::spawn(connection);
            let authority = uri.authority().map_or("", http::uri::Authority::as_str);
            let fields = request.headers_mut();
            fields.insert(header::HOST, HeaderValue::from_str(authority).map_err(|error| error.to_string())?);
            fields.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
            fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
            let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
            *request.uri_mut() = path.parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
            let answer = sender.send_request(request).await.map_err(|error| format!("no answer: {error}"))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| format!("no answer: {error}"))?;
            connection.abort();
            Ok::<_, String>(Response::from_parts(head, body.to_bytes()))
        };
        let answer = tokio::time::timeout(TO_ANSWER, answer).await;
        let answer =
            answer.unwrap_or_else(|_| Err(format!("no answer within {} s", TO_ANSWER.as_secs()))).map_err(told)?;
        self.judge(&method, answer).map_err(told)
    }

    /// Notes what an error says, and turns errors without a problem document into sentences.
    fn judge(&self, method: &Method, mut answer: Response<Bytes>) -> Result<BytesResponse, String> {
        let status = answer.status();
        if status.is_client_error() || status.is_server_error() {
            *self.said.lock() = pause_in(answer.headers());
            let problem = serde_json::from_slice::<Problem>(answer.body()).ok();
            let problem = problem.filter(|problem| problem.r#type.is_some() || problem.detail.is_some());
            // Of what is only read, the directory and windows, a problem document would be taken for the thing itself.
            let is_understood = problem.is_some() && *method == Method::POST;
            if !is_understood {
                let detail = problem.and_then(|problem| problem.detail);
                let detail = detail.map_or_else(String::new, |detail| format!(": \"{}\"", clean(&detail)));
                return Err(format!("the answer is {status}{detail}"));
            }
        }
        if *method == Method::GET && !answer.headers().contains_key(header::RETRY_AFTER) {
            answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(PAUSE_OF_WINDOW));
        }
        Ok(BytesResponse::from(answer.map(Full::new)))
    }
}

impl HttpClient for CaClient {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        Box::pin(self.clone().ask(request))
    }
}

fn target(uri: &Uri) -> Result<(String, u16), String> {
    if uri.scheme_str() != Some("https") {
        return Err("it is no https URL, and ACME has no other".into());
    }
    let host = uri.host().ok_or("it names no host")?;
    Ok((host.trim_start_matches('[').trim_end_matches(']').to_owned(), uri.port_u16().unwrap_or(443)))
}

/// Tries the addresses of a host one after the other, so that one that can't be reached does not hide the others.
async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in lookup_host((host, port)).await? {
        match tokio::time::timeout(TO_CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// Returns the pause that `Retry-After` asks for: seconds, or a date, which is compared with the answer's own.
fn pause_in(fields: &HeaderMap) -> Option<Duration> {
    let text = |name| fields.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let after = text(header::RETRY_AFTER)?;
    let of_date = || {
        let until = httpdate::parse_http_date(after).ok()?;
        until.duration_since(httpdate::parse_http_date(text(header::DATE)?).ok()?).ok()
    };
    after.parse().ok().map(Duration::from_secs).or_else(of_date)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_seconds_or_a_date() {
        let now = "Fri, 27 Nov 2026 03:00:00 GMT";
        for (after, date, pause) in [
            ("120", None, Some(120)),
            ("Fri, 27 Nov 2026 03:02:00 GMT", Some(now), Some(120)),
            ("Fri, 27 Nov 2026 02:00:00 GMT", Some(now), None),
            ("Fri, 27 Nov 2026 03:02:00 GMT", None, None),
            ("soon", Some(now), None),
            ("-1", Some(now), None),
        ] {
            let mut fields = HeaderMap::new();
            fields.insert(header::RETRY_AFTER, HeaderValue::from_static(after));
            if let Some(date) = date {
                fields.insert(header::DATE, HeaderValue::from_static(date));
            }
            assert_eq!(pause_in(&fields), pause.map(Duration::from_secs), "{after}");
        }
    }

    #[test]
    fn only_https_is_asked() {
        for (uri, expected) in [
            ("https://ca.example/dir", Some(("ca.example", 443))),
            ("https://[::1]:14000/dir", Some(("::1", 14_000))),
            ("http://ca.example/dir", None),
            ("/dir", None),
        ] {
            let target = target(&uri.parse().expect("a URI")).ok();
            assert_eq!(target, expected.map(|(host, port)| (host.to_owned(), port)), "{uri}");
        }
    }
}
