//! Looking for a small object by one signed request.
//!
//! The SDK does two dozen things for every operation that make a read of 1 KiB cost twice what signing,
//! sending and reading do. So each thread that looks for objects has the SDK do it once, learns from the
//! request that went out where the bucket is and what it is signed for, and from then on signs the same
//! request itself, with the SDK's signer, credentials and connections. Whatever is answered with anything
//! but the object, or that there is none, is asked again by the SDK, which knows of all that can be
//! wrong, says so, and tries again; so is everything where the requests are of another kind.

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

use super::{CONNECT_TIMEOUT, Watcher};
use crate::base::RequestClass;

/// What one thread looks for objects with.
#[derive(Clone, Debug)]
pub(super) struct Looker {
    /// For what this one leaves to the SDK.
    pub(super) client: Client,
    learnt: Arc<Learnt>,
}

/// What the SDK's requests were seen to be.
#[derive(Debug, Default)]
pub(super) struct Learnt {
    /// The last one.
    last: Mutex<Option<Request>>,
    /// What came of them; `None` where they are not to be imitated.
    way: OnceLock<Option<Way>>,
}

/// A request as it went out.
#[derive(Debug)]
struct Request {
    uri: String,
    authorization: Option<String>,
    is_express: bool,
    components: RuntimeComponents,
}

/// Where the objects are, and what requests for them are signed for.
#[derive(Debug)]
struct Signed {
    /// The URI of an object, up to its name.
    base: String,
    region: String,
    service: String,
}

/// How an object is asked for.
#[derive(Debug)]
struct Way {
    place: Signed,
    connector: SharedHttpConnector,
    identities: SharedIdentityCache,
    resolver: SharedIdentityResolver,
    components: RuntimeComponents,
    bag: ConfigBag,
}

/// What was answered.
pub(super) enum Looked {
    /// An object, and its length if that was said.
    Object(ByteStream, Option<u64>),
    /// There is none.
    Nothing,
    /// Something that the SDK should be asked about.
    Unclear,
}

/// The SDK's handle to what is learnt of it.
#[derive(Debug)]
pub(super) struct Learning(Arc<Learnt>);

impl Intercept for Learning {
    fn name(&self) -> &'static str {
        "larder-look"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        components: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if self.0.way.get().is_none() {
            let request = context.request();
            *self.0.last.lock() = Some(Request {
                uri: request.uri().to_owned(),
                authorization: request.headers().get("authorization").map(str::to_owned),
                is_express: request.headers().get("x-amz-s3session-token").is_some(),
                components: components.clone(),
            });
        }
        Ok(())
    }
}

impl Looker {
    /// One whose client `make` makes, with an interceptor that it must have.
    pub(super) fn new(make: impl FnOnce(Learning) -> Client) -> Self {
        let learnt = Arc::new(Learnt::default());
        Self { client: make(Learning(Arc::clone(&learnt))), learnt }
    }

    /// Learns from the request that the SDK has made for `name`, unless that was done.
    pub(super) fn learn(&self, name: &str) {
        if self.learnt.way.get().is_some() {
            return;
        }
        // Another one's may have come after it: then the next one is looked at.
        let is_its = |seen: &mut Request| path(&seen.uri).0.ends_with(name);
        let Some(seen) = self.learnt.last.lock().take_if(is_its) else { return };
        let _ = self.learnt.way.set(Way::of(seen, name));
    }

    /// Asks for the object `name`.
    pub(super) async fn look(&self, name: &str, watcher: &Watcher) -> Looked {
        match self.learnt.way.get() {
            Some(Some(way)) if name.bytes().all(is_plain) => way.look(name, watcher).await,
            _ => Looked::Unclear,
        }
    }
}

/// Whether a byte of a name is itself in a URI.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'.' | b'_' | b'~')
}

/// A URI without its query, and whether that says no more than the operation's name.
fn path(uri: &str) -> (&str, bool) {
    match uri.split_once('?') {
        Some((path, query)) => (path, query == "x-id=GetObject"),
        None => (uri, true),
    }
}

/// The region and the service that a request is signed for.
fn scope(authorization: &str) -> Option<(&str, &str)> {
    let credential = authorization.strip_prefix("AWS4-HMAC-SHA256 Credential=")?.split(',').next()?;
    // The key's name may hold slashes, what follows it may not.
    let mut parts = credential.rsplitn(5, '/');
    let (end, service, region) = (parts.next()?, parts.next()?, parts.next()?);
    (end == "aws4_request").then_some((region, service))
}

impl Way {
    fn of(seen: Request, name: &str) -> Option<Self> {
        let (path, is_bare) = path(&seen.uri);
        let base = path.strip_suffix(name)?;
        let (region, service) = scope(seen.authorization.as_deref()?)?;
        if !is_bare || seen.is_express {
            return None;
        }
        let components = seen.components;
        let scheme = components.auth_scheme(AuthSchemeId::new("sigv4"))?;
        let settings = HttpConnectorSettings::builder().connect_timeout(CONNECT_TIMEOUT).build();
        Some(Self {
            place: Signed { base: base.to_owned(), region: region.to_owned(), service: service.to_owned() },
            connector: components.http_client()?.http_connector(&settings, &components),
            identities: components.identity_cache(),
            resolver: scheme.identity_resolver(&components)?,
            components,
            bag: ConfigBag::base(),
        })
    }

    async fn look(&self, name: &str, watcher: &Watcher) -> Looked {
        let resolver = self.resolver.clone();
        let identity = self.identities.resolve_cached_identity(resolver, &self.components, &self.bag).await;
        let Some(request) = identity.ok().and_then(|identity| self.place.request(name, &identity, watcher.time()))
        else {
            return Looked::Unclear;
        };
        watcher.metrics.request(RequestClass::Read);
        let Ok(mut answer) = self.connector.call(request).await else { return Looked::Unclear };
        if let Some(date) = answer.headers().get("date") {
            watcher.note_date(date);
        }
        let body = ByteStream::new(answer.take_body());
        match answer.status().as_u16() {
            200 => {
                let len = answer.headers().get("content-length").and_then(|len| len.parse().ok());
                Looked::Object(body, len)
            }
            404 if is_of_an_object(body).await => Looked::Nothing,
            _ => Looked::Unclear,
        }
    }
}

impl Signed {
    /// The request for an object, signed.
    fn request(&self, name: &str, identity: &Identity, time: SystemTime) -> Option<HttpRequest> {
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
        request.headers_mut().try_insert("user-agent", concat!("larder/", env!("CARGO_PKG_VERSION"))).ok()?;
        Some(request)
    }
}

/// Whether a 404 is about the object, and not about the bucket.
async fn is_of_an_object(mut body: ByteStream) -> bool {
    let mut said = Vec::new();
    while let Some(piece) = body.next().await {
        match piece {
            Ok(piece) if said.len() + piece.len() <= MAX_SAID => said.extend_from_slice(&piece),
            Ok(_) | Err(_) => return false,
        }
    }
    !String::from_utf8_lossy(&said).contains("NoSuchBucket")
}

/// The most that is read of why there is no object.
const MAX_SAID: usize = 64 << 10;

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
        let place = Signed { base: "http://h:9/b/".into(), region: "us-east-1".into(), service: "s3".into() };
        let identity = aws_sdk_s3::config::Credentials::new("key", "secret", Some("token".into()), None, "test").into();
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_790_000_000);
        let request = place.request("larder-1/o/aa/bb/cc", &identity, time).expect("a request");
        assert_eq!((request.method(), request.uri()), ("GET", "http://h:9/b/larder-1/o/aa/bb/cc"));
        let fields = request.headers();
        assert_eq!(fields.get("x-amz-security-token"), Some("token"));
        assert_eq!(fields.get("x-amz-date"), Some("20260921T141320Z"));
        let authorization = fields.get("authorization").expect("it is signed");
        assert_eq!(scope(authorization), Some(("us-east-1", "s3")));
        let signed = "SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token,";
        assert!(authorization.contains(signed), "{authorization}");
    }

    #[test]
    fn a_query_that_says_more_is_not_imitated() {
        assert_eq!(path("http://h/b/n?x-id=GetObject"), ("http://h/b/n", true));
        assert_eq!(path("http://h/b/n?versionId=1&x-id=GetObject"), ("http://h/b/n", false));
        assert_eq!(path("http://h/b/n"), ("http://h/b/n", true));
    }
}
