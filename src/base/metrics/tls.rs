//! Counters of TLS.

use super::Metrics;
use super::counter::Counter;
use super::render::labelled;

/// The reason why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HandshakeFailure {
    /// The client speaks HTTP without TLS.
    PlainHttp,
    /// What it sent is no TLS.
    NotTls,
    /// It sent something that TLS forbids.
    Malformed,
    /// It speaks older versions only.
    NoSharedVersion,
    /// It has no cipher, curve or signature in common.
    NoSharedCipher,
    /// It speaks other protocols only (ALPN).
    NoSharedProtocol,
    /// It asks for a name of which there is no certificate.
    UnknownSni,
    /// There is no certificate yet.
    NoCertificate,
    /// It showed no certificate, and must.
    NoClientCertificate,
    /// Its certificate is not accepted.
    ClientCertificate,
    /// It does not accept the certificate, or something else, and said so.
    Alert,
    /// It closed the connection.
    Closed,
    /// It took too long.
    Timeout,
    /// It was a CA, whose challenge was answered (RFC 8737).
    Challenge,
}

/// Every reason, with its name.
const FAILURES: [(HandshakeFailure, &str); 14] = [
    (HandshakeFailure::PlainHttp, "plain-http"),
    (HandshakeFailure::NotTls, "not-tls"),
    (HandshakeFailure::Malformed, "malformed"),
    (HandshakeFailure::NoSharedVersion, "no-shared-version"),
    (HandshakeFailure::NoSharedCipher, "no-shared-cipher"),
    (HandshakeFailure::NoSharedProtocol, "no-shared-protocol"),
    (HandshakeFailure::UnknownSni, "unknown-sni"),
    (HandshakeFailure::NoCertificate, "no-certificate"),
    (HandshakeFailure::NoClientCertificate, "no-client-certificate"),
    (HandshakeFailure::ClientCertificate, "client-certificate"),
    (HandshakeFailure::Alert, "alert"),
    (HandshakeFailure::Closed, "closed"),
    (HandshakeFailure::Timeout, "timeout"),
    (HandshakeFailure::Challenge, "acme-challenge"),
];

impl HandshakeFailure {
    /// Returns the name in `/metrics` and in the log.
    pub(crate) fn as_str(self) -> &'static str {
        FAILURES[self as usize].1
    }
}

/// What is counted about TLS.
#[derive(Debug, Default)]
pub(crate) struct TlsCounters {
    failures: [Counter; FAILURES.len()],
}

impl TlsCounters {
    /// Counts a handshake that failed.
    pub(crate) fn failed(&self, why: HandshakeFailure) {
        self.failures[why as usize].add_one();
    }
}

impl Metrics {
    /// Writes the counters of TLS.
    pub(super) fn render_tls(&self, out: &mut String) {
        let values = FAILURES.map(|(why, word)| (word, self.tls.failures[why as usize].value()));
        let help = "TLS handshakes that failed, by reason.";
        labelled(out, "larder_tls_handshake_failures_total", help, "reason", values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_under_their_own_names() {
        for (n, (why, word)) in FAILURES.into_iter().enumerate() {
            assert_eq!((why as usize, why.as_str()), (n, word));
        }
    }
}
