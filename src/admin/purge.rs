//! The purges of the admin listener: `POST /purge` and `PURGE URL`.

use std::time::Duration;

use http::header;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;
use tracing::{info, warn};

use super::Admin;
use super::api::{AdminReply, error, json_reply};
use crate::base::parse_duration;
use crate::proxy::{Held, Manner, PurgeError, Schemes, What};

/// The longest time for which the answer to a purge may be delayed.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// `POST /purge`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PurgeRequest {
    url: Option<String>,
    prefix: Option<String>,
    tag: Option<String>,
    all: Option<bool>,
    soft: Option<bool>,
    scheme: Option<String>,
}

impl Admin {
    /// Answers `POST /purge`.
    pub(super) async fn purge(&self, request: Request<Incoming>) -> AdminReply {
        let wait = match wait_of(request.uri().query()) {
            Ok(wait) => wait,
            Err(sentence) => return error(StatusCode::BAD_REQUEST, &sentence),
        };
        let body = match self.body(request).await {
            Ok(body) => body,
            Err(reply) => return reply,
        };
        let asked: PurgeRequest = match serde_json::from_slice(&body) {
            Ok(asked) => asked,
            Err(why) => {
                return error(
                    StatusCode::BAD_REQUEST,
                    &format!("a purge is JSON such as {{\"url\": \"http://host/path\"}}: {why}"),
                );
            }
        };
        let what = match &asked {
            PurgeRequest { url: Some(url), prefix: None, tag: None, all: None | Some(false), .. } => What::Url(url),
            PurgeRequest { url: None, prefix: Some(prefix), tag: None, all: None | Some(false), .. } => {
                What::Prefix(prefix)
            }
            PurgeRequest { url: None, prefix: None, tag: Some(tag), all: None | Some(false), .. } => What::Tag(tag),
            PurgeRequest { url: None, prefix: None, tag: None, all: Some(true), .. } => What::All,
            _ => {
                return error(
                    StatusCode::BAD_REQUEST,
                    "a purge has one of \"url\", \"prefix\", \"tag\" and \"all\": true",
                );
            }
        };
        let schemes = match (&what, asked.scheme.as_deref()) {
            (_, None) => Schemes::Both,
            (What::Url(_) | What::Prefix(_), Some("both")) => Schemes::Both,
            (What::Url(_) | What::Prefix(_), Some("exact")) => Schemes::Exact,
            (What::Url(_) | What::Prefix(_), Some(_)) => {
                return error(StatusCode::BAD_REQUEST, "\"scheme\" is \"both\" or \"exact\"");
            }
            (What::Tag(_) | What::All, Some(_)) => {
                return error(StatusCode::BAD_REQUEST, "\"scheme\" is for URLs and prefixes; tags and all have none");
            }
        };
        self.carry_out(what, Manner { is_soft: asked.soft.unwrap_or(false), schemes }, wait).await
    }

    /// Answers `PURGE URL`, as other caches do. The URL is the target, or `Host` and a path; a star at its end makes
    /// it a prefix. Purges under both schemes.
    pub(super) async fn purge_by_method(&self, request: &Request<Incoming>) -> AdminReply {
        let mut is_soft = false;
        for value in ["soft-purge", "fastly-soft-purge"].iter().flat_map(|name| request.headers().get_all(*name)) {
            match value.to_str().unwrap_or_default().to_ascii_lowercase().as_str() {
                "1" | "true" | "yes" => is_soft = true,
                "0" | "false" | "no" => {}
                _ => return error(StatusCode::BAD_REQUEST, "Soft-Purge is 1 or 0"),
            }
        }
        let uri = request.uri();
        if uri.scheme().is_none() && !uri.path().starts_with('/') {
            return error(StatusCode::BAD_REQUEST, "PURGE takes a URL, or a path and Host; /* is everything of a host");
        }
        let url = if uri.scheme().is_some() {
            uri.to_string()
        } else {
            let mut hosts = request.headers().get_all(header::HOST).iter();
            let host = hosts.next().and_then(|host| host.to_str().ok()).unwrap_or_default();
            if host.is_empty() || hosts.next().is_some() {
                return error(StatusCode::BAD_REQUEST, "PURGE with a path takes one Host field: that of the URL");
            }
            format!("http://{host}{uri}")
        };
        let what = match url.strip_suffix('*') {
            Some(prefix) => What::Prefix(prefix),
            None => What::Url(&url),
        };
        self.carry_out(what, Manner { is_soft, schemes: Schemes::Both }, Duration::ZERO).await
    }

    async fn carry_out(&self, what: What<'_>, manner: Manner, wait: Duration) -> AdminReply {
        match self.proxy.purge(what, manner).await {
            Ok(held) => {
                info!(soft = manner.is_soft, "purged {what}");
                tokio::time::sleep(wait).await;
                // Other processes read the journal this often.
                let durable = self.proxy.store().durable();
                let elsewhere = durable.map_or(0, |durable| durable.poll_interval().as_millis());
                let mut told = json!({
                    "purged": what.to_json(),
                    "soft": manner.is_soft,
                    "held": held.as_ref().map(Held::to_json),
                    "elsewhere_within_ms": u64::try_from(elsewhere).unwrap_or(0),
                });
                if let What::Url(_) | What::Prefix(_) = what {
                    told["scheme"] = json!(manner.schemes.as_str());
                }
                if held.is_none() {
                    told["note"] =
                        json!("it was not searched for: what it covers counts as gone when it is next looked at");
                } else if self.proxy.store().may_hold_queries() {
                    told["note"] = json!("responses to QUERY under it were not searched for, and are purged too");
                }
                json_reply(StatusCode::OK, &told)
            }
            Err(PurgeError::Unclear(sentence)) => error(StatusCode::BAD_REQUEST, &sentence),
            Err(PurgeError::NotRecorded(why)) => {
                warn!("a purge is not in the journal yet: {why}");
                let text = format!(
                    "purged here, and not yet where other processes see it: {why}; that is tried again until it succeeds, or this process ends"
                );
                error(StatusCode::BAD_GATEWAY, &text)
            }
        }
    }
}

/// Reads `?wait=`: the time between recording a purge and answering.
fn wait_of(query: Option<&str>) -> Result<Duration, String> {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(Duration::ZERO) };
    let text = query.strip_prefix("wait=").ok_or_else(|| format!("\"{query}\": /purge takes ?wait=, and no more"))?;
    match parse_duration(text) {
        Some(wait) if wait <= MAX_WAIT => Ok(wait),
        Some(_) | None => Err(format!("wait={text}: write a duration of at most 60s, such as 3s or 500ms")),
    }
}
