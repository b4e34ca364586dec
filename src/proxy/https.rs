//! Answers that have to do with https: the redirect there, Strict-Transport-Security, and the challenges of CAs.

use std::sync::Arc;

use http::header::{HeaderMap, HeaderValue, STRICT_TRANSPORT_SECURITY};
use http::{Method, Request, Uri};

use super::Proxy;
use super::client::Client;
use super::reply::Step;
use super::request::span_of;
use super::target::RequestTarget;
use crate::respond::{Answer, Refusal, challenge, redirect};
use crate::rfc9111::key::split_port;
use crate::rfc9111::present::Present;
use crate::tls::acme::Challenges;
use crate::upstream::ClientBody;

/// Settings for the redirect to https, and for Strict-Transport-Security (RFC 6797).
#[derive(Clone, Debug, Default)]
pub struct Https {
    /// `server.redirect_to_https`, with the port that https is listened on.
    pub redirect: Option<u16>,
    /// `server.hsts`; `None`: nothing.
    pub hsts: Option<HeaderValue>,
}

impl Https {
    /// Adds `Strict-Transport-Security` to what goes out by https, unless the application sent one (RFC 6797 §7.2).
    #[inline]
    pub(super) fn strict(&self, scheme: &str, fields: &mut HeaderMap) {
        if let Some(hsts) = &self.hsts
            && scheme == "https"
            && !fields.contains_key(STRICT_TRANSPORT_SECURITY)
        {
            fields.insert(STRICT_TRANSPORT_SECURITY, hsts.clone());
        }
    }
}

impl Proxy {
    /// Makes the answer to a request by `scheme` that has no target.
    #[cold]
    pub(super) fn refused(&self, refusal: Refusal, scheme: &str) -> Answer {
        let mut answer = refusal.answer();
        self.https.strict(scheme, answer.1.headers_mut());
        answer
    }

    /// Makes the answer that sends a client to the same URL with https. Whoever came by the port of http, which a host
    /// may map to another one here, goes to that of https; others go to where https is listened on.
    #[cold]
    pub(super) fn redirected(&self, target: &RequestTarget<'_>, uri: &Uri) -> Answer {
        if target.authority().is_empty() {
            // HTTP/1.0 without Host: the path would be taken for a host.
            return Refusal::NoHost.answer();
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path = if path.starts_with('/') { path } else { "/" };
        redirect(&match (split_port(target.authority()), self.https.redirect) {
            (Some((host, Some(_))), Some(port)) if port != 443 => format!("https://{host}:{port}{path}"),
            (Some((host, _)), _) => format!("https://{host}{path}"),
            (None, _) => format!("https://{}{path}", target.authority()),
        })
    }

    /// Answers what a CA asks for, by http or https (RFC 8555 §8.3). What no Larder with the same state has ordered is a
    /// request as any other: the application may get certificates of its own.
    #[cold]
    pub(super) fn answer_challenge<'a>(
        self: &'a Arc<Self>,
        caller: &'a dyn Client,
        target: RequestTarget<'a>,
        request: Request<ClientBody>,
        present: Present,
    ) -> Step<'a> {
        let token = Challenges::token(request.uri().path()).map(str::to_owned);
        let (Some(acme), Some(token), &Method::GET) = (&self.acme, token, request.method()) else {
            return self.answer(caller, target, request, present);
        };
        let span = span_of(&request, &target);
        Step::waits(span, async move {
            let client = self.trust.client(caller.peer(), request.headers());
            if let Some(authorization) = acme.challenges().answer(client, &token).await {
                self.metrics.acme.challenges.add_one();
                let mut answer = challenge(authorization);
                self.label_answer(&mut answer, Some(&target));
                return answer;
            }
            self.answer(caller, target, request, present).taken().await
        })
    }
}

/// Returns whether a request may be a certificate authority's, which asks by http (RFC 8555 §8.3).
pub(super) fn is_challenge(request: &Request<ClientBody>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD) && Challenges::token(request.uri().path()).is_some()
}
