//! The commands that ask a running Larder: `larder purge` and `larder explain`, through its admin listener.

use bytes::Bytes;
use http::header;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpStream, UnixStream};

use crate::admin::Config;
use crate::downstream::Listen;
use crate::proxy::{Manner, What};

/// The largest answer that is read.
const MAX_ANSWER: usize = 1 << 20;

/// Has something purged, and waits for `wait` after that (see [`parse_duration`](crate::base::parse_duration)). Gives back what was held of it,
/// in words; an error is one sentence for the operator.
pub fn purge(config: &Config, what: What<'_>, manner: Manner, wait: &str) -> Result<String, String> {
    let path = if wait.is_empty() { "/purge".to_owned() } else { format!("/purge?wait={wait}") };
    let mut body = what.to_json();
    body["soft"] = json!(manner.is_soft);
    let scheme = match what {
        What::Url(url) | What::Prefix(url) => {
            body["scheme"] = json!(manner.schemes.as_str());
            url.split_once("://").map_or("", |(scheme, _)| scheme)
        }
        What::Tag(_) | What::All => "",
    };
    ask(config, Method::POST, &path, &body).map(|told| held_in_words(&told, scheme))
}

/// Says in words what the purge of a URL with `scheme` found, from its answer.
fn held_in_words(told: &Value, scheme: &str) -> String {
    let Some(held) = told["held"].as_object() else {
        return "not searched for: what it covers counts as gone from now on".to_owned();
    };
    let queries = told["note"].as_str().map_or_else(String::new, |note| format!("; {note}"));
    let places = |tiers: &Value| -> Vec<&str> {
        let memory = (tiers["memory"] == true).then_some("in memory");
        let durable = match &tiers["durable"] {
            Value::Bool(true) => Some("in the durable tier"),
            Value::Null => Some("perhaps in the durable tier, whose index is not loaded yet"),
            _ => None,
        };
        memory.into_iter().chain(durable).collect()
    };
    let by_scheme: Vec<(&String, String)> = held
        .iter()
        .map(|(under, tiers)| (under, places(tiers).join(" and ")))
        .filter(|(_, places)| !places.is_empty())
        .collect();
    match &by_scheme[..] {
        [] => format!("nothing was held{queries}"),
        [(under, places)] if under.eq_ignore_ascii_case(scheme) => format!("held {places}{queries}"),
        all => {
            let all: Vec<String> = all.iter().map(|(under, places)| format!("under {under} {places}")).collect();
            format!("held {}{queries}", all.join(", and "))
        }
    }
}

/// Why a request is, or is not, a hit. `fields` are those of the request, `Name: value` each. With `content` it is a
/// QUERY.
pub fn explain(config: &Config, url: &str, fields: &[String], content: Option<&str>) -> Result<Value, String> {
    let mut question = json!({"url": url, "fields": fields});
    if let Some(content) = content {
        question["content"] = json!(content);
    }
    ask(config, Method::POST, "/explain", &question)
}

fn ask(config: &Config, method: Method, path: &str, body: &Value) -> Result<Value, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
    if !config.token.is_empty() {
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", config.token));
    }
    let request = request.body(Full::<Bytes>::from(body.to_string())).map_err(|error| error.to_string())?;
    let (status, answer) = runtime.block_on(send(config, request))?;
    let told: Option<Value> = serde_json::from_slice(&answer).ok();
    if status.is_success() {
        return told.ok_or_else(|| "the admin listener's answer makes no sense".to_owned());
    }
    let sentence = told.as_ref().and_then(|told| told.get("error")?.as_str());
    Err(sentence.map_or_else(|| format!("the admin listener answers {status}"), str::to_owned))
}

async fn send(config: &Config, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), String> {
    let listen = config.listen.as_ref().ok_or("admin.listen is \"off\": there is no one to ask")?;
    let unreachable = |error: std::io::Error| format!("Larder's admin listener at {listen} can't be reached: {error}");
    match listen {
        Listen::Tcp(address) | Listen::Tls(address) => {
            exchange(TokioIo::new(TcpStream::connect(address).await.map_err(unreachable)?), request).await
        }
        Listen::Unix(path) => {
            exchange(TokioIo::new(UnixStream::connect(path).await.map_err(unreachable)?), request).await
        }
    }
}

async fn exchange<S>(io: TokioIo<S>, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), String>
where
    S: Unpin + Send + 'static,
    TokioIo<S>: hyper::rt::Read + hyper::rt::Write,
{
    let told = |error: hyper::Error| format!("the admin listener did not answer: {error}");
    let (mut sender, connection) = http1::handshake(io).await.map_err(told)?;
    tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(told)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|error| error.to_string())?;
    Ok((status, body.to_bytes()))
}
