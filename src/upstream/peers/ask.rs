//! Asks a peer for a response, on a connection that is kept and used again.

use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderMap;
use http::{Method, Response, StatusCode, Uri};
use parking_lot::Mutex;

use super::protocol::{self, PeerFacts, Question, Verdict};
use super::roster::{Node, Peers, Tried};
use crate::base::{PeerOutcome, Stopwatch};
use crate::entry::VersionVector;
use crate::upstream::connect::is_our_own;
use crate::upstream::forwarding::Peer;
use crate::upstream::{
    EndsWithConnection, Errand, Informational, InformationalSender, OriginRequest, RequestBody, StickyCookies,
    Transfer, UpstreamBody, UpstreamError,
};

/// The most peers that are asked for one response: the one that is named, and the next. After them comes the origin.
const MOST_ASKED: usize = 2;

/// A question to peers.
pub(crate) struct PeerRequest<'a> {
    /// The hash of the key, which names the peer.
    pub(crate) hash: u128,
    /// The hash of the key and of the terms of its rule.
    pub(crate) fingerprint: u128,
    /// The path and the query.
    pub(crate) uri: &'a Uri,
    /// Makes the fields, as for an origin.
    pub(crate) fields: &'a (dyn Fn() -> HeaderMap + Sync),
    /// The client.
    pub(crate) peer: &'a Peer,
    /// The cookies of ours that the client has.
    pub(crate) sticky: Option<&'a StickyCookies>,
    /// Receives the informational responses of the origin.
    pub(crate) informational: Option<&'a Informational>,
    /// Limits for the bytes of the response.
    pub(crate) transfer: &'a Transfer,
    /// The purges that are known here.
    pub(crate) known: &'a VersionVector,
    /// Purges of which the peer is told: it has answered with what they cover.
    pub(crate) purges: Option<&'a str>,
    /// True if it asks whether a stored response is current.
    pub(crate) is_conditional: bool,
    /// The longest wait for the head in all.
    pub(crate) patience: Duration,
}

/// The answer of a peer.
#[derive(Debug)]
pub(crate) enum PeerReply {
    /// A response that is shared, and what is told of it.
    Shared(Response<UpstreamBody>, PeerFacts),
    /// The origin's response to this request, for its client alone.
    Own(Response<UpstreamBody>),
    /// None: the peer has waited for the origin for as long as this node would.
    Late,
    /// None: the origin is to be asked.
    None,
}

/// The end of one attempt.
enum Attempt {
    Replied(PeerReply),
    /// Another peer may do better. The reason is why this one is not asked any more; `None`: it says nothing of it.
    Failed(PeerOutcome, Option<String>),
    /// It says that it waits, and does not answer by when it was told to.
    Overdue,
}

impl Peers {
    /// Asks the peer that is named for the key, and if that fails the next one.
    pub(crate) async fn ask(&self, request: &PeerRequest<'_>) -> PeerReply {
        let begun = Stopwatch::start();
        let mut tried = Tried::new();
        while tried.len() < MOST_ASKED && begun.elapsed() < request.patience {
            let Some(node) = self.next(request.hash, &tried) else { break };
            match self.attempt(&node, request, begun).await {
                Attempt::Replied(reply) => {
                    self.metrics.peers.asked(match &reply {
                        PeerReply::Shared(..) => PeerOutcome::Shared,
                        PeerReply::Own(_) => PeerOutcome::Own,
                        PeerReply::Late | PeerReply::None => PeerOutcome::Declined,
                    });
                    // The peer began to wait after this node did, so the origin had its time.
                    let is_late = begun.elapsed() >= request.transfer.response_timeout;
                    return if matches!(reply, PeerReply::None) && is_late { PeerReply::Late } else { reply };
                }
                Attempt::Failed(outcome, why) => {
                    self.metrics.peers.asked(outcome);
                    if let Some(why) = why {
                        node.set_down(&why);
                    }
                }
                Attempt::Overdue => {
                    self.metrics.peers.asked(PeerOutcome::Silent);
                    node.set_aside("it has waited for longer than it was told to");
                }
            }
            tried.push(node);
        }
        PeerReply::None
    }

    async fn attempt(&self, node: &Arc<Node>, request: &PeerRequest<'_>, begun: Stopwatch) -> Attempt {
        let Some(credential) = node.credential() else {
            return Attempt::Failed(PeerOutcome::Failed, None);
        };
        let timeout = self.config.timeout;
        let patience = request.patience.saturating_sub(begun.elapsed());
        let heard = Arc::new(Heard { last: Mutex::new(Stopwatch::start()), onward: request.informational.cloned() });
        let fields = || {
            let mut fields = (request.fields)();
            let question = Question {
                id: &self.secrets.id,
                credential: &credential,
                known: request.known,
                purges: request.purges,
                fingerprint: request.fingerprint,
                patience: timeout,
                limit: patience,
                subject: request.peer.subject.as_ref(),
                sticky: request.sticky,
            };
            protocol::write_question(&mut fields, &question);
            fields
        };
        let informational = Informational { sender: Arc::clone(&heard) as Arc<dyn InformationalSender>, request: 0 };
        // A silence ends the wait for the head, and not the origin's slowness. The peer ends it at the limit that it is
        // told, so one that does not is broken.
        let overdue = patience.saturating_add(timeout);
        let transfer = Transfer { response_timeout: overdue.saturating_add(timeout), ..*request.transfer };
        let sent = OriginRequest {
            method: &Method::GET,
            uri: request.uri,
            fields: &fields,
            informational: Some(&informational),
            since: None,
            sticky: None,
            is_sent: None,
            errand: Errand::Client,
            transfer: &transfer,
        };
        let answered = tokio::select! {
            biased;
            answered = node.upstream.send(&sent, RequestBody::Empty) => answered,
            () = heard.silence(timeout) => {
                return Attempt::Failed(PeerOutcome::Silent, Some(format!("it said nothing for {timeout:?}")));
            }
            () = tokio::time::sleep(overdue) => return Attempt::Overdue,
        };
        match answered {
            Ok(response) => read(response, request.is_conditional),
            Err(UpstreamError::Malformed(_) | UpstreamError::TooLargeHead(_) | UpstreamError::TooManyFields(_)) => {
                Attempt::Failed(PeerOutcome::Strange, None)
            }
            Err(UpstreamError::Connect(error)) if is_our_own(&error) => Attempt::Failed(PeerOutcome::Failed, None),
            Err(UpstreamError::Connect(error)) => Attempt::Failed(PeerOutcome::Failed, Some(error.to_string())),
            Err(UpstreamError::ConnectTimeout) => {
                Attempt::Failed(PeerOutcome::Failed, Some("it accepted no connection in time".into()))
            }
            Err(_) => Attempt::Failed(PeerOutcome::Failed, Some("its answer broke off".into())),
        }
    }
}

/// Returns whether a status can answer a question of a peer, which is for a whole page, or conditional on a stored one.
pub(crate) fn answers_question(status: StatusCode, is_conditional: bool) -> bool {
    match status {
        StatusCode::NOT_MODIFIED => is_conditional,
        StatusCode::PARTIAL_CONTENT | StatusCode::PRECONDITION_FAILED | StatusCode::RANGE_NOT_SATISFIABLE => false,
        _ => !status.is_informational(),
    }
}

/// Reads an answer by its verdict.
fn read(mut response: Response<UpstreamBody>, is_conditional: bool) -> Attempt {
    let verdict = Verdict::of(response.headers());
    // A peer says where its body ends: otherwise one that broke off would look whole.
    let is_unframed = response.extensions().get::<EndsWithConnection>().is_some();
    if matches!(verdict, Some(Verdict::Shared | Verdict::Own))
        && (is_unframed || !answers_question(response.status(), is_conditional))
    {
        return Attempt::Failed(PeerOutcome::Strange, None);
    }
    match verdict {
        Some(Verdict::Shared) => match protocol::take_facts(response.headers_mut()) {
            Some(facts) => Attempt::Replied(PeerReply::Shared(response, facts)),
            None => Attempt::Failed(PeerOutcome::Strange, None),
        },
        Some(Verdict::Own) => {
            if let Some(cookie) = protocol::take_sticky(response.headers_mut()) {
                response.extensions_mut().insert(cookie);
            }
            Attempt::Replied(PeerReply::Own(response))
        }
        Some(Verdict::Declined) => Attempt::Replied(PeerReply::None),
        // Another process has its address now: a greeting tells.
        Some(Verdict::Refused) => Attempt::Failed(PeerOutcome::Failed, Some("it is another process now".into())),
        Some(Verdict::Greeting | Verdict::Waits) | None => Attempt::Failed(PeerOutcome::Strange, None),
    }
}

/// Notes that a peer was heard of, and passes the origin's informational responses on.
#[derive(Debug)]
struct Heard {
    last: Mutex<Stopwatch>,
    onward: Option<Informational>,
}

impl Heard {
    /// Returns when nothing was heard for `limit`.
    async fn silence(&self, limit: Duration) {
        loop {
            let since = self.last.lock().elapsed();
            match limit.checked_sub(since) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                Some(_) | None => return,
            }
        }
    }
}

impl InformationalSender for Heard {
    fn send(&self, _request: u64, status: StatusCode, fields: &HeaderMap) {
        *self.last.lock() = Stopwatch::start();
        if let Some(onward) = self.onward.as_ref().filter(|_| Verdict::of(fields) != Some(Verdict::Waits)) {
            onward.sender.send(onward.request, status, fields);
        }
    }
}
