//! Turns a failed request to the service into an error of the store: its kind, and a sentence that quotes the service and
//! says what to do.

use std::fmt::Write as _;
use std::time::Duration;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};

use super::S3Config;
use crate::base::Clock;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::error::{StoreError, StoreErrorKind};

/// The requests to the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    List,
    Read,
    Write,
    Delete,
    ListUploads,
    AbortUpload,
    ReadLifecycle,
    WriteLifecycle,
}

impl Request {
    /// Returns the words for the request after "may not", and the right that it takes.
    fn in_words(self) -> (&'static str, &'static str) {
        match self {
            Self::List => {
                ("list names there", "s3:ListBucket, which a condition on s3:prefix may narrow to these names")
            }
            Self::Read => ("read there", "s3:GetObject for these names"),
            Self::Write => ("write there", "s3:PutObject for these names, and those of the bucket's encryption key"),
            Self::Delete => ("delete there", "s3:DeleteObject for these names"),
            Self::ListUploads => ("list unfinished uploads", "s3:ListBucketMultipartUploads for the bucket"),
            Self::AbortUpload => ("end unfinished uploads", "s3:AbortMultipartUpload for these names"),
            Self::ReadLifecycle => ("read its lifecycle rules", "s3:GetLifecycleConfiguration for the bucket"),
            Self::WriteLifecycle => ("change its lifecycle rules", "s3:PutLifecycleConfiguration for the bucket"),
        }
    }
}

/// Codes of answers after which the request is sent again later, whatever their status.
const AGAIN: &[&str] = &[
    "RequestTimeout",
    "IncompleteBody",
    "BadDigest",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "InternalError",
    "ServiceUnavailable",
    "OperationAborted",
    "ConditionalRequestConflict",
];

/// Codes of answers after which an operator has to change something, whatever their status.
const REFUSED: &[&str] = &[
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "AuthorizationHeaderMalformed",
    "PermanentRedirect",
    "NoSuchBucket",
    "InvalidBucketState",
    "IllegalLocationConstraintException",
    "MethodNotAllowed",
    "NotImplemented",
    "QuotaExceeded",
];

/// Returns the kind of an error with this status and code.
fn kind_of(status: u16, code: &str, message: &str) -> StoreErrorKind {
    let is_lock = message.contains("Object Lock");
    match status {
        _ if AGAIN.contains(&code) => StoreErrorKind::Overloaded,
        _ if REFUSED.contains(&code) || code.starts_with("KMS.") || is_lock => StoreErrorKind::Refused,
        301 | 302 | 307 | 308 | 401 | 403 | 404 | 405 => StoreErrorKind::Refused,
        408 | 425 | 429 => StoreErrorKind::Overloaded,
        400..=499 => StoreErrorKind::Unacceptable,
        _ => StoreErrorKind::Overloaded,
    }
}

/// The service's own words for an error.
struct Quote<'a> {
    status: u16,
    code: &'a str,
    message: &'a str,
}

impl Quote<'_> {
    /// Returns the words as a sentence quotes them.
    fn in_words(&self) -> String {
        let Self { status, code, message } = self;
        match (code.is_empty(), message.is_empty()) {
            (true, true) => format!("it answers {status} and says no more"),
            (true, false) => format!("it answers {status}: {message}"),
            (false, true) => format!("it answers {status} {code}"),
            (false, false) => format!("it answers {status} {code}: {message}"),
        }
    }
}

/// The most characters that are quoted.
const MAX_QUOTE: usize = 500;

/// Returns the content of the element `name` in an error's XML.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    Some(rest.split_once("</")?.0.trim())
}

fn cut(text: &str) -> &str {
    text.char_indices().nth(MAX_QUOTE).map_or(text, |(end, _)| &text[..end])
}

impl S3Config {
    /// Returns the error of a request about `what`, a name or what names begin with.
    pub(super) fn fault<E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static>(
        &self,
        request: Request,
        what: &str,
        error: SdkError<E>,
    ) -> StoreError {
        let (kind, text) = self.explain(request, &error);
        // A listing asks for no object, so its failure is one of the bucket.
        let text = if request == Request::List { text } else { format!("{what}: {text}") };
        StoreError::caused_by(kind, text, error)
    }

    fn endpoint(&self) -> &str {
        if self.endpoint_url.is_empty() { "AWS" } else { &self.endpoint_url }
    }

    fn explain<E: ProvideErrorMetadata + std::error::Error + 'static>(
        &self,
        request: Request,
        error: &SdkError<E>,
    ) -> (StoreErrorKind, String) {
        let endpoint = self.endpoint();
        match error {
            SdkError::ServiceError(service) => {
                let raw = service.raw();
                let body = raw.body().bytes().map(String::from_utf8_lossy).unwrap_or_default();
                let code = service.err().code().or_else(|| element(&body, "Code")).unwrap_or_default();
                let message = service.err().message().or_else(|| element(&body, "Message")).unwrap_or_default();
                let quote = Quote { status: raw.status().as_u16(), code: cut(code), message: cut(message) };
                (kind_of(quote.status, code, message), self.explain_answer(request, &quote, raw, &body))
            }
            SdkError::DispatchFailure(failure) if failure.is_io() || failure.is_timeout() => {
                let cause = DisplayErrorContext(error).to_string();
                let why = [
                    ("dns error", " (its host name is not known)"),
                    ("Connection refused", " (connection refused)"),
                    ("unreachable", " (no route to it)"),
                    ("certificate", " (its certificate is not trusted)"),
                ];
                let why = why.iter().find(|(word, _)| cause.contains(word)).map_or("", |(_, words)| words);
                let text = format!("{endpoint} can't be reached{why}; check durable.endpoint_url and the network");
                (StoreErrorKind::Unavailable, text + &self.hint())
            }
            SdkError::TimeoutError(_) => {
                let text = format!("{endpoint} does not answer in time; check durable.endpoint_url and the network");
                (StoreErrorKind::Unavailable, text + &self.hint())
            }
            other => {
                let (text, bucket) = (DisplayErrorContext(other).to_string(), &self.bucket);
                if text.contains("redentials") {
                    let text = format!(
                        "no credentials for the bucket \"{bucket}\" were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role"
                    );
                    return (StoreErrorKind::Refused, text);
                }
                let first = text.lines().next().unwrap_or_default();
                let text = format!("the bucket \"{bucket}\" at {endpoint} can't be used: {}", cut(first));
                (StoreErrorKind::Overloaded, text + &self.hint())
            }
        }
    }

    fn explain_answer(&self, request: Request, quote: &Quote<'_>, raw: &HttpResponse, body: &str) -> String {
        let (endpoint, bucket, words) = (self.endpoint(), &self.bucket, quote.in_words());
        let hint = self.hint();
        match (quote.code, quote.status) {
            ("RequestTimeTooSkewed", _) => format!(
                "this machine's clock is wrong{}: {endpoint} does not take its requests ({words}); set the clock, and keep it right by NTP",
                raw.headers().get("date").map_or_else(String::new, by_how_much)
            ),
            ("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException", _)
            | (_, 301 | 307) => {
                let region = raw.headers().get("x-amz-bucket-region").or_else(|| element(body, "Region"));
                let set = region.map_or_else(String::new, |region| format!(" = \"{}\"", cut(region)));
                format!("the bucket \"{bucket}\" is in another region ({words}); set durable.region{set}{hint}")
            }
            ("NoSuchBucket", _) => format!(
                "there is no bucket \"{bucket}\" at {endpoint} ({words}); create it, or name another in durable.url{hint}"
            ),
            ("" | "NotFound", 404) => format!(
                "there is no bucket \"{bucket}\" at {endpoint}, or nothing that speaks S3 ({words}); create it, or check durable.url and durable.endpoint_url{hint}"
            ),
            (
                "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "ExpiredToken"
                | "InvalidToken"
                | "TokenRefreshRequired"
                | "RequestExpired",
                _,
            ) => format!(
                "{endpoint} refuses these credentials for the bucket \"{bucket}\" ({words}); give Larder others"
            ),
            (_, 401 | 403) => {
                let (verb, right) = request.in_words();
                format!(
                    "{endpoint} refuses these credentials for the bucket \"{bucket}\": they may not {verb} ({words}); they need {right}"
                )
            }
            (code, _) if code.starts_with("KMS.") => format!(
                "the bucket \"{bucket}\" at {endpoint} can't use its encryption key ({words}); see to the key, or to the rights to it"
            ),
            (_, 400 | 405 | 501) => {
                let (verb, _) = request.in_words();
                format!("{endpoint} does not let Larder {verb}, in the bucket \"{bucket}\" ({words}){hint}")
            }
            _ => format!("{endpoint} fails for the bucket \"{bucket}\": {words}"),
        }
    }

    /// Returns a hint at the usual mistake with services other than AWS, whose buckets have no host names.
    fn hint(&self) -> String {
        if self.path_style || self.endpoint_url.is_empty() {
            return String::new();
        }
        let host = self.endpoint_url.split_once("://").map_or(&*self.endpoint_url, |(_, rest)| rest);
        let host = host.split('/').next().unwrap_or_default();
        format!(
            "; it was asked at {}.{host}: if it does not know buckets by host names, as MinIO and most services do not, set durable.path_style = true",
            self.bucket
        )
    }
}

/// Returns how far this machine's clock is off, by the date of an answer.
fn by_how_much(date: &str) -> String {
    let Ok(date) = httpdate::parse_http_date(date) else { return String::new() };
    let behind = Timestamp::from(date).millis_since(Clock::system().now());
    let seconds = Duration::from_millis(behind.unsigned_abs()).as_secs();
    let mut text = String::new();
    if seconds > 0 {
        let _ = write!(text, " by {seconds} s ({})", if behind > 0 { "behind" } else { "ahead" });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_of_the_service_has_a_kind() {
        for (status, code, message, expected) in [
            (500, "InternalError", "", StoreErrorKind::Overloaded),
            (503, "SlowDown", "", StoreErrorKind::Overloaded),
            (502, "", "", StoreErrorKind::Overloaded),
            (429, "", "", StoreErrorKind::Overloaded),
            (400, "RequestTimeout", "", StoreErrorKind::Overloaded),
            (409, "OperationAborted", "", StoreErrorKind::Overloaded),
            (403, "AccessDenied", "", StoreErrorKind::Refused),
            (403, "QuotaExceeded", "", StoreErrorKind::Refused),
            (400, "ExpiredToken", "", StoreErrorKind::Refused),
            (400, "KMS.DisabledException", "", StoreErrorKind::Refused),
            (400, "InvalidRequest", "Content-MD5 is required with Object Lock parameters", StoreErrorKind::Refused),
            (404, "NoSuchBucket", "", StoreErrorKind::Refused),
            (301, "PermanentRedirect", "", StoreErrorKind::Refused),
            (400, "InvalidRequest", "", StoreErrorKind::Unacceptable),
            (400, "", "", StoreErrorKind::Unacceptable),
            (413, "", "", StoreErrorKind::Unacceptable),
            (400, "EntityTooLarge", "", StoreErrorKind::Unacceptable),
        ] {
            assert_eq!(kind_of(status, code, message), expected, "{status} {code}");
        }
    }

    #[test]
    fn elements_of_an_errors_xml_are_found() {
        let xml = "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-central-1</Region></Error>";
        assert_eq!(element(xml, "Region"), Some("eu-central-1"));
        assert_eq!(element(xml, "Message"), None);
        assert_eq!(element("<Region>", "Region"), None);
    }

    #[test]
    fn a_service_asked_by_host_name_gets_a_hint() {
        let config = |endpoint: &str, path_style| S3Config {
            bucket: "b".into(),
            endpoint_url: endpoint.into(),
            region: String::new(),
            path_style,
        };
        assert!(config("http://localhost:9000/", false).hint().contains("b.localhost:9000: "));
        assert!(config("http://localhost:9000", false).hint().contains("durable.path_style = true"));
        for quiet in [config("http://localhost:9000", true), config("", false)] {
            assert_eq!(quiet.hint(), "");
        }
    }
}
