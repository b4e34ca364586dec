//! An S3 server for tests.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;

use self::faults::Fault;
use crate::support::eventually;

#[allow(dead_code, reason = "measurements use the rest")]
#[path = "../../../bench/s3_faults.rs"]
pub(crate) mod faults;

/// An S3 server in this process, over a directory: the protocol is real, the storage is files.
pub(crate) struct S3 {
    pub address: SocketAddr,
    root: PathBuf,
    runtime: Option<tokio::runtime::Runtime>,
    /// The requests that came: method, path and query, and range.
    pub seen: Arc<Mutex<Vec<(String, String, String)>>>,
    /// The fault of its answers.
    pub fault: Arc<Mutex<Fault>>,
    refusal: Arc<Mutex<Option<Refusal>>>,
}

/// Chooses an error to answer instead, by method, path and query: status, code and message.
type Refusal = Box<dyn Fn(&str, &str) -> Option<(u16, &'static str, &'static str)> + Send>;

impl S3 {
    pub(crate) fn start(root: &Path, port: u16) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind(("127.0.0.1", port))).expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).expect("a directory"));
        builder.set_auth(SimpleAuth::from_single("larder", "secret"));
        let service = builder.build();
        let seen: Arc<Mutex<Vec<(String, String, String)>>> = Arc::default();
        let noted = Arc::clone(&seen);
        let fault = Arc::new(Mutex::new(Fault::None));
        let current = Arc::clone(&fault);
        let refusal: Arc<Mutex<Option<Refusal>>> = Arc::default();
        let refusing = Arc::clone(&refusal);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let (service, noted, current) = (service.clone(), Arc::clone(&noted), Arc::clone(&current));
                let refusing = Arc::clone(&refusing);
                let noting = service_fn(move |request: Request<Incoming>| {
                    let range = request.headers().get("range").map_or("", |range| range.to_str().unwrap_or("?"));
                    let what = (request.method().to_string(), request.uri().to_string(), range.to_owned());
                    let is_object = what.0 == "GET" && (what.1.contains(".pack") || what.1.contains("/b/"));
                    let refused = refusing.lock().unwrap().as_ref().and_then(|refuse| refuse(&what.0, &what.1));
                    noted.lock().unwrap().push(what);
                    let fault = *current.lock().unwrap();
                    let answered = hyper::service::Service::call(&service, request);
                    async move {
                        if let Some((status, code, message)) = refused {
                            return Ok(refuse(status, code, message));
                        }
                        Ok::<_, s3s::HttpError>(fault.spoil(is_object, answered.await?).await)
                    }
                });
                tokio::spawn(async move {
                    let _ =
                        auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), noting).await;
                });
            }
        });
        Self { address, root: root.to_owned(), runtime: Some(runtime), seen, fault, refusal }
    }

    /// From now on this goes wrong.
    pub(crate) fn set_fault(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    /// From now on requests are refused for which `refuse` has an answer.
    pub(crate) fn refuse(
        &self,
        refuse: impl Fn(&str, &str) -> Option<(u16, &'static str, &'static str)> + Send + 'static,
    ) {
        *self.refusal.lock().unwrap() = Some(Box::new(refuse));
    }

    /// From now on none is.
    pub(crate) fn allow(&self) {
        *self.refusal.lock().unwrap() = None;
    }

    /// Returns how many requests of this method there were for names with `part` in them.
    pub(crate) fn count(&self, method: &str, part: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|(seen, path, _)| seen == method && path.contains(part)).count()
    }

    /// Returns the number of requests for parts of packs.
    pub(crate) fn looked_for(&self) -> usize {
        self.count("GET", ".pack")
    }

    /// Ends it with every connection, as if the machine were gone.
    pub(crate) fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Starts it again where it was.
    pub(crate) fn restart(&mut self) {
        let port = self.address.port();
        eventually("the port is free", || std::net::TcpListener::bind(("127.0.0.1", port)).is_ok());
        *self = Self::start(&self.root, port);
    }

    pub(crate) fn sets(&self, bucket: &str) -> Vec<String> {
        vec![
            format!("durable.url=s3://{bucket}/any/prefix"),
            format!("durable.endpoint_url=http://{}", self.address),
            "durable.region=us-east-1".into(),
            "durable.path_style=true".into(),
            "durable.lookup_timeout=20s".into(),
        ]
    }
}

/// An answer as S3 refuses.
fn refuse(status: u16, code: &str, message: &str) -> hyper::Response<faults::AnyBody> {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>");
    let body = http_body_util::Full::new(bytes::Bytes::from(text)).map_err(|never| match never {});
    let mut answer = hyper::Response::new(body.boxed_unsync());
    *answer.status_mut() = hyper::StatusCode::from_u16(status).expect("a status");
    answer
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(crate) fn bucket(root: &Path) {
    std::fs::create_dir_all(root.join("larder-bucket")).expect("a bucket");
}
