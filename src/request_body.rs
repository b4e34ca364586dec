//! The body of a request on its way to the origin: passed on as it comes, within limits of time and
//! size, and never kept.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use tokio::time::Sleep;

use crate::clock::Stopwatch;

/// What a client's request body may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long it may stand still.
    pub patience: Duration,
    /// Bytes; 0: any number.
    pub size: u64,
}

/// What was wrong with a client's request body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It broke off, or is not framed as HTTP has it.
    Broken,
    /// It stood still for too long.
    TooSlow,
    /// It has more bytes than it may.
    TooLarge,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Broken => "the request's body broke off",
            Self::TooSlow => "the request's body did not arrive in time",
            Self::TooLarge => "the request's body is larger than this server takes",
        })
    }
}

impl std::error::Error for Fault {}

/// The body of a request to the origin.
#[derive(Debug)]
pub enum RequestBody {
    /// None.
    Empty,
    /// The client's, as it comes in.
    Client(Box<Client>),
}

/// The client's body.
#[derive(Debug)]
pub struct Client {
    body: Incoming,
    limits: Limits,
    read: u64,
    upload: Upload,
    /// Runs while the client sends nothing.
    still: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    /// The body of a client's request; an error when it says itself that it is too large.
    pub fn client(body: Incoming, limits: Limits) -> Result<Self, Fault> {
        if body.is_end_stream() {
            return Ok(Self::Empty);
        }
        if limits.size > 0 && body.size_hint().lower() > limits.size {
            return Err(Fault::TooLarge);
        }
        Ok(Self::Client(Box::new(Client { body, limits, read: 0, upload: Upload::default(), still: None })))
    }

    /// What is known of the body's way.
    pub fn upload(&self) -> Option<Upload> {
        match self {
            Self::Empty => None,
            Self::Client(client) => Some(client.upload.clone()),
        }
    }
}

/// What is known of a body's way: the origin's time to answer begins when it has all of it.
#[derive(Clone, Debug)]
pub struct Upload(Arc<Mutex<Way>>);

#[derive(Debug)]
struct Way {
    moved: Stopwatch,
    waits_for_client: bool,
    fault: Option<Fault>,
}

impl Default for Upload {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Way { moved: Stopwatch::start(), waits_for_client: false, fault: None })))
    }
}

impl Upload {
    /// When something of the body has moved last.
    pub fn moved(&self) -> Stopwatch {
        self.0.lock().moved
    }

    /// Whether it is the client's turn.
    pub fn waits_for_client(&self) -> bool {
        self.0.lock().waits_for_client
    }

    /// What was wrong with the body, if it ended early.
    pub fn fault(&self) -> Option<Fault> {
        self.0.lock().fault
    }
}

impl Client {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let polled = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(polled) => polled,
            Poll::Pending => {
                let patience = self.limits.patience;
                let still = self.still.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
                self.upload.0.lock().waits_for_client = true;
                std::task::ready!(still.as_mut().poll(cx));
                return Poll::Ready(Some(Err(self.fail(Fault::TooSlow))));
            }
        };
        self.still = None;
        {
            let mut way = self.upload.0.lock();
            way.moved = Stopwatch::start();
            way.waits_for_client = false;
        }
        Poll::Ready(match polled {
            None => None,
            Some(Err(_)) => Some(Err(self.fail(Fault::Broken))),
            Some(Ok(frame)) => {
                self.read += frame.data_ref().map_or(0, |data| data.len() as u64);
                let is_too_large = self.limits.size > 0 && self.read > self.limits.size;
                Some(if is_too_large { Err(self.fail(Fault::TooLarge)) } else { Ok(frame) })
            }
        })
    }

    fn fail(&self, fault: Fault) -> Fault {
        self.upload.0.lock().fault = Some(fault);
        fault
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Client(client) => client.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client(client) => client.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Client(client) => client.body.size_hint(),
        }
    }
}
