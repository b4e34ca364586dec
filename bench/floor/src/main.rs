//! Fixed responses (`pages`) from hyper on one thread. Listens on a free port of 127.0.0.1 and prints the number.
//!
//! With the port of an origin as its argument it passes every request on to that instead, over connections
//! that are kept: no timeouts, no second try, nothing looked at.

use std::cell::RefCell;
use std::convert::Infallible;
use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

mod pages;

use pages::Pages;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn Error + Send + Sync>;

thread_local! {
    /// The connections to the origin that wait for a request.
    static IDLE: RefCell<Vec<SendRequest<Incoming>>> = const { RefCell::new(Vec::new()) };
}

async fn pass(port: u16, request: Request<Incoming>) -> Result<Response<Passed>, Failure> {
    let idle = IDLE.with_borrow_mut(Vec::pop);
    let mut sender = match idle {
        Some(sender) => sender,
        None => {
            let stream = TcpStream::connect(("127.0.0.1", port)).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            sender
        }
    };
    let response = sender.send_request(request).await?;
    Ok(response.map(|body| Passed { body, sender: Some(sender) }))
}

/// What comes from the origin; at its end the connection waits again.
struct Passed {
    body: Incoming,
    sender: Option<SendRequest<Incoming>>,
}

impl Body for Passed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if self.body.is_end_stream()
            && let Some(sender) = self.sender.take()
        {
            IDLE.with_borrow_mut(|idle| idle.push(sender));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn serve(origin: Option<u16>) -> Result<(), Failure> {
    let pages: &'static Pages = Box::leak(Box::new(Pages::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let stream = TokioIo::new(stream);
        // The load generator cuts its connections off; that is no one's mistake.
        match origin {
            Some(port) => {
                let service = service_fn(move |request| pass(port, request));
                tokio::spawn(async move {
                    let _ = http1::Builder::new().serve_connection(stream, service).await;
                });
            }
            None => {
                let service = service_fn(async |request| Ok::<_, Infallible>(pages.answer(&request)));
                tokio::spawn(async move {
                    let _ = http1::Builder::new().serve_connection(stream, service).await;
                });
            }
        }
    }
}

fn main() -> Result<(), Failure> {
    let origin = std::env::args().nth(1).map(|port| port.parse()).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(serve(origin))
}
