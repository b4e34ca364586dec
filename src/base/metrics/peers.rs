//! Counters of the peers: what this process asked them, and what it answered them.

use std::fmt::Write as _;

use super::Metrics;
use super::counter::Counter;
use super::render::header;

/// The outcome of asking peers for a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerOutcome {
    /// A peer gave a response that is shared.
    Shared,
    /// A peer gave a response for this one client.
    Own,
    /// A peer said that the origin is to be asked directly.
    Declined,
    /// A purge that is known here covers what the peer gave, so that it was dropped.
    Purged,
    /// A peer could not be reached, or its answer broke off.
    Failed,
    /// A peer said nothing for `peers.timeout`.
    Silent,
    /// A peer answered with what no peer says.
    Strange,
}

/// Every outcome, with its name.
const OUTCOMES: [(PeerOutcome, &str); 7] = [
    (PeerOutcome::Shared, "shared"),
    (PeerOutcome::Own, "own"),
    (PeerOutcome::Declined, "declined"),
    (PeerOutcome::Purged, "purged"),
    (PeerOutcome::Failed, "failed"),
    (PeerOutcome::Silent, "silent"),
    (PeerOutcome::Strange, "strange"),
];

/// The answer to a question of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerAnswer {
    /// A response that is shared.
    Shared,
    /// A response for its one client.
    Own,
    /// It is to ask the origin itself.
    Declined,
    /// It did not show that it knows the token.
    Refused,
    /// It was told who this process is.
    Greeted,
}

/// Every answer, with its name.
const ANSWERS: [(PeerAnswer, &str); 5] = [
    (PeerAnswer::Shared, "shared"),
    (PeerAnswer::Own, "own"),
    (PeerAnswer::Declined, "declined"),
    (PeerAnswer::Refused, "refused"),
    (PeerAnswer::Greeted, "greeted"),
];

/// Counts questions to peers and answers to them.
#[derive(Debug, Default)]
pub(crate) struct PeerCounters {
    asked: [Counter; OUTCOMES.len()],
    answered: [Counter; ANSWERS.len()],
}

impl PeerCounters {
    /// Counts a question to a peer.
    pub(crate) fn asked(&self, outcome: PeerOutcome) {
        self.asked[outcome as usize].add_one();
    }

    /// Counts an answer to a peer.
    pub(crate) fn answered(&self, answer: PeerAnswer) {
        self.answered[answer as usize].add_one();
    }
}

impl Metrics {
    /// Writes the questions to peers, and the answers to theirs.
    pub(super) fn render_peers(&self, out: &mut String) {
        header(out, "larder_peer_requests_total", "counter", "Requests to peers, by outcome.");
        for (outcome, name) in OUTCOMES {
            let value = self.peers.asked[outcome as usize].value();
            let _ = writeln!(out, "larder_peer_requests_total{{outcome=\"{name}\"}} {value}");
        }
        header(out, "larder_peer_answers_total", "counter", "Requests of peers that were answered, by answer.");
        for (answer, name) in ANSWERS {
            let value = self.peers.answered[answer as usize].value();
            let _ = writeln!(out, "larder_peer_answers_total{{answer=\"{name}\"}} {value}");
        }
    }
}
