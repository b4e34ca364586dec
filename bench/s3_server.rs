//! An S3 server over a directory, for measurements: the protocol is real, nothing is kept in memory.
//!
//! `s3-server DIRECTORY [PORT]` listens on a port of 127.0.0.1, a free one if none is given, and prints it, and then a line for each
//! request: method, path, range asked for, and the length of the answer. Each directory in DIRECTORY is
//! a bucket; key `larder`, secret `secret`. A line on standard input names what goes wrong from then on
//! (`s3_faults.rs`), or `none`; `delay N` has each answer wait for so many milliseconds.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::Request;
use hyper::body::{Body, Incoming};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;

#[path = "s3_faults.rs"]
mod faults;

use self::faults::Fault;

/// What goes wrong now, and how late answers are.
#[derive(Clone, Copy)]
struct Mood {
    fault: Fault,
    delay: Duration,
}

fn listen_to(mood: &Arc<Mutex<Mood>>) {
    let mood = Arc::clone(mood);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let mut mood = mood.lock().expect("nobody panics");
            match line.strip_prefix("delay ") {
                Some(millis) => mood.delay = Duration::from_millis(millis.parse().unwrap_or(0)),
                None => mood.fault = Fault::named(&line),
            }
            println!("# {line}");
        }
    });
}

#[tokio::main]
async fn main() {
    let mood = Arc::new(Mutex::new(Mood { fault: Fault::None, delay: Duration::ZERO }));
    listen_to(&mood);
    let root = std::env::args().nth(1).expect("usage: s3-server DIRECTORY [PORT]");
    let port = std::env::args().nth(2).map_or(0, |port| port.parse().expect("a port"));
    let files = s3s_fs::FileSystem::new(&root).expect("the directory can be read");
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(SimpleAuth::from_single("larder", "secret"));
    let service = builder.build();
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("a port");
    println!("{}", listener.local_addr().expect("an address").port());
    while let Ok((stream, _)) = listener.accept().await {
        // Or the end of each small answer would wait for the client to say that it has the beginning.
        let _ = stream.set_nodelay(true);
        let (service, mood) = (service.clone(), Arc::clone(&mood));
        let noting = service_fn(move |request: Request<Incoming>| {
            let range = request.headers().get("range").map_or("-", |range| range.to_str().unwrap_or("?")).to_owned();
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let answered = Service::call(&service, request);
            let Mood { fault, delay } = *mood.lock().expect("nobody panics");
            let is_object = method == "GET" && (path.contains(".pack") || path.contains("/b/"));
            async move {
                tokio::time::sleep(delay).await;
                let answer = fault.spoil(is_object, answered.await?).await;
                let len = answer.body().size_hint().exact();
                println!("{method} {path} {range} {}", len.map_or("?".to_owned(), |len| len.to_string()));
                Ok::<_, s3s::HttpError>(answer)
            }
        });
        tokio::spawn(async move {
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), noting).await;
        });
    }
}
