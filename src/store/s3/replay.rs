//! Reading a range of an object, mostly one response in a pack, by one request that is signed here.
//!
//! An operation of the SDK does two dozen things that make a read of 1 KiB cost twice what signing, sending and reading
//! cost. So each thread that looks responses up has the SDK read one, and records the request that went out: where the
//! bucket is, and what the request is signed for. From then on it signs the same request itself, with the SDK's signer,
//! credentials and connections. The range is a field that no signature has to cover.
//!
//! Every answer but the bytes, or that there are none, is [`ReplayOutcome::Unclear`]: the caller then asks the SDK, which
//! knows all that can be wrong, and tries again. Requests of any other kind are not replayed either.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings, UriPathNormalizationMode,
    sign,
};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::auth::{AuthScheme as _, AuthSchemeId};
use aws_smithy_runtime_api::client::http::{
    HttpClient as _, HttpConnector as _, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::identity::{
    Identity, ResolveCachedIdentity as _, SharedIdentityCache, SharedIdentityResolver,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use parking_lot::Mutex;

use super::objects::PAST_END;
use super::{CONNECT_TIMEOUT, Watcher};
use crate::base::RequestClass;
use crate::store::purpose::stated;

/// One thread's reader of ranges.
#[derive(Clone, Debug)]
pub(super) struct SmallReader {
    /// The SDK's client for what this reader leaves to it.
    pub(super) client: Client,
    recording: Arc<Recording>,
}

/// The record of the SDK's requests.
#[derive(Debug, Default)]
struct Recording {
    /// Guarded by its lock: the SDK's last request.
    last: Mutex<Option<SentRequest>>,
    /// The parts of a replayed request; `None` inside: requests are not replayed.
    replay: OnceLock<Option<Replay>>,
}

/// A request of the SDK as it went out.
#[derive(Debug)]
struct SentRequest {
    uri: String,
    authorization: Option<String>,
    is_express: bool,
    components: RuntimeComponents,
}

/// The address of the objects, and the scope that requests for them are signed for.
#[derive(Debug)]
struct Signed {
    /// The URI of an object, up to its name.
    base: String,
    region: String,
    service: String,
}

/// All that a request for an object is made of but its name.
#[derive(Debug)]
struct Replay {
    signed: Signed,
    connector: SharedHttpConnector,
    identities: SharedIdentityCache,
    resolver: SharedIdentityResolver,
    components: RuntimeComponents,
    bag: ConfigBag,
}

/// The answer to a replayed request.
pub(super) enum ReplayOutcome {
    /// Bytes come.
    Opened {
        /// The bytes.
        stream: ByteStream,
        /// Their number, if the service told it.
        len: Option<u64>,
        /// False if they are the whole object: the service knows no ranges.
        is_range: bool,
    },
    /// There is no such object.
    Absent,
    /// The object ends before the range.
    PastEnd,
    /// Anything else: the SDK is to be asked.
    Unclear,
}

/// The interceptor that records the SDK's requests.
#[derive(Debug)]
pub(super) struct Recorder(Arc<Recording>);

impl Intercept for Recorder {
    fn name(&self) -> &'static str {
        "larder-look"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        components: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if self.0.replay.get().is_none() {
            let request = context.request();
            *self.0.last.lock() = Some(SentRequest {
                uri: request.uri().to_owned(),
                authorization: request.headers().get("authorization").map(str::to_owned),
                is_express: request.headers().get("x-amz-s3session-token").is_some(),
                components: components.clone(),
            });
        }
        Ok(())
    }
}

impl SmallReader {
    /// A reader whose client `make` makes, with the recorder as an interceptor.
    pub(super) fn new(make: impl FnOnce(Recorder) -> Client) -> Self {
        let recording = Arc::new(Recording::default());
        Self { client: make(Recorder(Arc::clone(&recording))), recording }
    }

    /// Learns from the request that the SDK has just sent for `name`, unless that was done before.
    pub(super) fn learn(&self, name: &str) {
        if self.recording.replay.get().is_some() {
            return;
        }
        // Another request may have been recorded since. Then a later one is learnt from.
        let is_its = |sent: &mut SentRequest| path(&sent.uri).0.ends_with(name);
        let Some(sent) = self.recording.last.lock().take_if(is_its) else { return };
        let _ = self.recording.replay.set(Replay::of(sent, name));
    }

    /// Asks for a range of the object `name`.
    pub(super) async fn read(&self, name: &str, range: &str, watcher: &Watcher) -> ReplayOutcome {
        match self.recording.replay.get() {
            Some(Some(replay)) if name.bytes().all(is_plain) => replay.read(name, range, watcher).await,
            _ => ReplayOutcome::Unclear,
        }
    }
}

/// Returns whether a byte of a name stands for itself in a URI.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'.' | b'_' | b'~')
}

/// Returns a URI without its query, and whether that holds nothing but the operation's name.
fn path(uri: &str) -> (&str, bool) {
    match uri.split_once('?') {
        Some((path, query)) => (path, query == "x-id=GetObject"),
        None => (uri, true),
    }
}

/// Returns the region and the service that a request is signed for.
fn scope(authorization: &str) -> Option<(&str, &str)> {
    let credential = authorization.strip_prefix("AWS4-HMAC-SHA256 Credential=")?.split(',').next()?;
    // The access key may contain slashes, what follows it can't.
    let mut parts = credential.rsplitn(5, '/');
    let (end, service, region) = (parts.next()?, parts.next()?, parts.next()?);
    (end == "aws4_request").then_some((region, service))
}

impl Replay {
    /// Returns how `sent`, a request for `name`, is replayed for other names; `None`: not at all.
    fn of(sent: SentRequest, name: &str) -> Option<Self> {
        let (path, is_bare) = path(&sent.uri);
        let base = path.strip_suffix(name)?;
        let (region, service) = scope(sent.authorization.as_deref()?)?;
        if !is_bare || sent.is_express {
            return None;
        }
        let components = sent.components;
        let scheme = components.auth_scheme(AuthSchemeId::new("sigv4"))?;
        let settings = HttpConnectorSettings::builder().connect_timeout(CONNECT_TIMEOUT).build();
        Some(Self {
            signed: Signed { base: base.to_owned(), region: region.to_owned(), service: service.to_owned() },
            connector: components.http_client()?.http_connector(&settings, &components),
            identities: components.identity_cache(),
            resolver: scheme.identity_resolver(&components)?,
            components,
            bag: ConfigBag::base(),
        })
    }

    async fn read(&self, name: &str, range: &str, watcher: &Watcher) -> ReplayOutcome {
        let resolver = self.resolver.clone();
        let identity = self.identities.resolve_cached_identity(resolver, &self.components, &self.bag).await;
        let request = |identity| self.signed.request(name, range, &identity, watcher.time());
        let Some(request) = identity.ok().and_then(request) else { return ReplayOutcome::Unclear };
        watcher.metrics.request(RequestClass::Read, super::purpose_of(RequestClass::Read, name, stated()));
        let Ok(mut answer) = self.connector.call(request).await else { return ReplayOutcome::Unclear };
        if let Some(date) = answer.headers().get("date") {
            watcher.note_date(date);
        }
        let body = ByteStream::new(answer.take_body());
        match answer.status().as_u16() {
            status @ (200 | 206) => {
                let len = answer.headers().get("content-length").and_then(|len| len.parse().ok());
                ReplayOutcome::Opened { stream: body, len, is_range: status == 206 }
            }
            PAST_END => ReplayOutcome::PastEnd,
            404 if is_of_an_object(body).await => ReplayOutcome::Absent,
            _ => ReplayOutcome::Unclear,
        }
    }
}

impl Signed {
    /// Makes and signs the request for a range of an object.
    fn request(&self, name: &str, range: &str, identity: &Identity, time: SystemTime) -> Option<HttpRequest> {
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let params = v4::SigningParams::builder().identity(identity).region(&self.region).name(&self.service);
        let params = params.time(time).settings(settings).build().ok()?.into();
        let uri = [&self.base, name].concat();
        let signable = SignableRequest::new("GET", &*uri, std::iter::empty(), SignableBody::Bytes(&[])).ok()?;
        let (instructions, _) = sign(signable, &params).ok()?.into_parts();
        let (fields, _) = instructions.into_parts();
        let mut request = HttpRequest::new(SdkBody::empty());
        request.set_uri(uri).ok()?;
        for field in fields {
            request.headers_mut().try_insert(field.name(), field.value().to_owned()).ok()?;
        }
        request.headers_mut().try_insert("range", range.to_owned()).ok()?;
        request.headers_mut().try_insert("user-agent", concat!("larder/", env!("CARGO_PKG_VERSION"))).ok()?;
        Some(request)
    }
}

/// Returns whether the body of a 404 is about the object, and not about the bucket.
async fn is_of_an_object(mut body: ByteStream) -> bool {
    let mut text = Vec::new();
    while let Some(piece) = body.next().await {
        match piece {
            Ok(piece) if text.len() + piece.len() <= MAX_TEXT => text.extend_from_slice(&piece),
            Ok(_) | Err(_) => return false,
        }
    }
    !String::from_utf8_lossy(&text).contains("NoSuchBucket")
}

/// The most bytes that are read of a 404.
const MAX_TEXT: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requests_scope_is_read() {
        let authorization = "AWS4-HMAC-SHA256 Credential=a/b/20261123/eu-central-1/s3/aws4_request, SignedHeaders=host";
        assert_eq!(scope(authorization), Some(("eu-central-1", "s3")));
        assert_eq!(scope("AWS4-ECDSA-P256-SHA256 Credential=a/20261123/s3/aws4_request"), None);
        assert_eq!(scope("Bearer x"), None);
    }

    #[test]
    fn a_request_is_signed_with_its_token() {
        let signed = Signed { base: "http://h:9/b/".into(), region: "us-east-1".into(), service: "s3".into() };
        let identity = aws_sdk_s3::config::Credentials::new("key", "secret", Some("token".into()), None, "test").into();
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_790_000_000);
        let request = signed.request("larder-1/j/1-2.pack", "bytes=16-31", &identity, time).expect("a request");
        assert_eq!((request.method(), request.uri()), ("GET", "http://h:9/b/larder-1/j/1-2.pack"));
        let fields = request.headers();
        assert_eq!(fields.get("range"), Some("bytes=16-31"));
        assert_eq!(fields.get("x-amz-security-token"), Some("token"));
        assert_eq!(fields.get("x-amz-date"), Some("20260921T141320Z"));
        let authorization = fields.get("authorization").expect("it is signed");
        assert_eq!(scope(authorization), Some(("us-east-1", "s3")));
        let signed = "SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token,";
        assert!(authorization.contains(signed), "{authorization}");
    }

    #[test]
    fn a_query_that_says_more_is_not_replayed() {
        assert_eq!(path("http://h/b/n?x-id=GetObject"), ("http://h/b/n", true));
        assert_eq!(path("http://h/b/n?versionId=1&x-id=GetObject"), ("http://h/b/n", false));
        assert_eq!(path("http://h/b/n"), ("http://h/b/n", true));
    }
}
