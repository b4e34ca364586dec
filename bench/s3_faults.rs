//! What can go wrong with an S3 service: an answer of one, made worse. For tests and measurements.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, SizeHint};
use hyper::{Response, StatusCode};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// The connection breaks in the middle of the answer.
    Reset,
    /// An internal error.
    Status500,
    /// The service wants to be asked less.
    SlowDown,
    /// Access is denied.
    Status403,
    /// The answer comes five seconds late.
    Latency,
    /// An object is shorter than it was, and its length says so.
    Truncated,
    /// A byte of an object is another.
    Corrupt,
    /// The service believes that the client's clock is wrong.
    Skew,
    /// A byte comes every hundred milliseconds.
    Trickle,
}

impl Fault {
    /// All but none.
    pub(crate) const ALL: [(&'static str, Self); 9] = [
        ("reset in mid-body", Self::Reset),
        ("500", Self::Status500),
        ("503 SlowDown", Self::SlowDown),
        ("403", Self::Status403),
        ("5 s latency", Self::Latency),
        ("truncated body", Self::Truncated),
        ("wrong checksum", Self::Corrupt),
        ("clock skew error", Self::Skew),
        ("slow trickle", Self::Trickle),
    ];

    /// The fault of a name.
    pub(crate) fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|(known, _)| *known == name).map_or(Self::None, |(_, fault)| fault)
    }

    fn error(self) -> Option<(StatusCode, &'static str)> {
        match self {
            Self::Status500 => Some((StatusCode::INTERNAL_SERVER_ERROR, "InternalError")),
            Self::SlowDown => Some((StatusCode::SERVICE_UNAVAILABLE, "SlowDown")),
            Self::Status403 => Some((StatusCode::FORBIDDEN, "AccessDenied")),
            Self::Skew => Some((StatusCode::FORBIDDEN, "RequestTimeTooSkewed")),
            _ => None,
        }
    }

    /// Makes an answer worse. Only those to requests for objects are truncated, changed or slowed byte by
    /// byte.
    pub(crate) async fn spoil<B>(self, is_object: bool, answer: Response<B>) -> Response<AnyBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display,
    {
        if let Some((status, code)) = self.error() {
            let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>");
            let mut refused = Response::new(Spoilt::whole(text.into()).boxed_unsync());
            *refused.status_mut() = status;
            return refused;
        }
        if self == Self::Latency {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        let (mut parts, body) = answer.into_parts();
        if !is_object || matches!(self, Self::None | Self::Latency) {
            let body = body.map_err(|error| std::io::Error::other(error.to_string()));
            return Response::from_parts(parts, body.boxed_unsync());
        }
        let Ok(body) = body.collect().await else { return Response::new(Spoilt::whole(Bytes::new()).boxed_unsync()) };
        let mut bytes = body.to_bytes();
        let is_spoilt = parts.status.is_success() && bytes.len() > 2;
        match self {
            Self::Truncated if is_spoilt => {
                bytes.truncate(bytes.len() / 2);
                parts.headers.insert("content-length", bytes.len().into());
            }
            Self::Corrupt if is_spoilt => {
                let mut changed = bytes.to_vec();
                // A range of a pack may end with bytes of the next entry.
                let at = changed.len() / 2;
                changed[at] ^= 1;
                bytes = changed.into();
            }
            _ => {}
        }
        let body = match self {
            Self::Reset if is_spoilt => Spoilt { left: bytes, ends: Ends::Breaks, pause: None },
            Self::Trickle if is_spoilt => Spoilt { left: bytes, ends: Ends::Well, pause: Some(Box::pin(a_pause())) },
            _ => Spoilt::whole(bytes),
        };
        Response::from_parts(parts, body.boxed_unsync())
    }
}

fn a_pause() -> tokio::time::Sleep {
    tokio::time::sleep(Duration::from_millis(100))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    Well,
    Breaks,
}

/// A body as it is, or spoilt.
pub(crate) type AnyBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// A body that may break, or take its time.
struct Spoilt {
    left: Bytes,
    ends: Ends,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Spoilt {
    fn whole(bytes: Bytes) -> Self {
        Self { left: bytes, ends: Ends::Well, pause: None }
    }
}

impl Body for Spoilt {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        if self.ends == Ends::Breaks && self.left.len() < 2 {
            return Poll::Ready(Some(Err(std::io::Error::other("broken on purpose"))));
        }
        if let Some(pause) = &mut self.pause {
            std::task::ready!(pause.as_mut().poll(context));
            self.pause = Some(Box::pin(a_pause()));
            return Poll::Ready(Some(Ok(Frame::data(self.left.split_to(1)))));
        }
        let most = if self.ends == Ends::Breaks { self.left.len() / 2 } else { self.left.len() };
        let piece = self.left.split_to(most.max(1));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}
