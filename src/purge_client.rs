//! `larder purge`: asks the admin listener of a running Larder.

use bytes::Bytes;
use http::header;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpStream, UnixStream};

use crate::admin::Config;
use crate::server::Listen;

/// Has `url` purged; an error is one sentence for the operator.
pub fn purge(config: &Config, url: &str) -> Result<(), String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(ask(config, url))
}

async fn ask(config: &Config, url: &str) -> Result<(), String> {
    let listen = config.listen.as_ref().ok_or("admin.listen is \"off\": there is no one to ask")?;
    let unreachable = |error: std::io::Error| format!("Larder's admin listener at {listen} can't be reached: {error}");
    let (status, body) = match listen {
        Listen::Tcp(address) => {
            exchange(TokioIo::new(TcpStream::connect(address).await.map_err(unreachable)?), config, url).await?
        }
        Listen::Unix(path) => {
            exchange(TokioIo::new(UnixStream::connect(path).await.map_err(unreachable)?), config, url).await?
        }
    };
    if status.is_success() {
        return Ok(());
    }
    let told: Option<Value> = serde_json::from_slice(&body).ok();
    let sentence = told.as_ref().and_then(|told| told.get("error")?.as_str());
    Err(sentence.map_or_else(|| format!("the admin listener answers {status}"), str::to_owned))
}

async fn exchange<S>(io: TokioIo<S>, config: &Config, url: &str) -> Result<(StatusCode, Bytes), String>
where
    S: Unpin + Send + 'static,
    TokioIo<S>: hyper::rt::Read + hyper::rt::Write,
{
    let told = |error: hyper::Error| format!("the admin listener did not answer: {error}");
    let (mut sender, connection) = http1::handshake(io).await.map_err(told)?;
    tokio::spawn(connection);
    let mut request = Request::builder().method(Method::POST).uri("/purge").header(header::HOST, "larder");
    if !config.token.is_empty() {
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", config.token));
    }
    let request =
        request.body(Full::<Bytes>::from(json!({"url": url}).to_string())).map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(told)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), 64 << 10).collect().await.map_err(|error| error.to_string())?;
    Ok((status, body.to_bytes()))
}
