//! Counters of TLS.

use std::fmt::Write as _;

use parking_lot::Mutex;

use super::Metrics;
use super::counter::Counter;
use super::render::{header, labelled};

/// The reason why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HandshakeFailure {
    /// The client speaks HTTP without TLS.
    PlainHttp,
    /// It sent bytes that are no TLS.
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
    /// It sent an alert: it does not accept the certificate, or something else.
    Alert,
    /// It closed the connection in the middle.
    Closed,
    /// It took too long.
    Timeout,
    /// It closed the connection without a byte, as checks of load balancers do.
    Unused,
    /// None: an ACME server has checked who answers for a name.
    Challenge,
}

/// Every reason, with its name.
const FAILURES: [(HandshakeFailure, &str); 15] = [
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
    (HandshakeFailure::Unused, "unused"),
    (HandshakeFailure::Challenge, "acme-challenge"),
];

impl HandshakeFailure {
    /// Returns the name in `/metrics` and in the log.
    pub(crate) fn as_str(self) -> &'static str {
        FAILURES[self as usize].1
    }

    /// Returns whether an operator needs to hear of it.
    pub(crate) fn is_told(self) -> bool {
        !matches!(self, Self::Unused | Self::Challenge)
    }
}

/// A handshake that was done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handshake {
    /// True: TLS 1.3; false: TLS 1.2.
    pub is_tls13: bool,
    /// True if the client has resumed a session.
    pub is_resumed: bool,
}

/// The name that a client asks for (SNI).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sni {
    /// There is a certificate for it.
    Known,
    /// There is none.
    Unknown,
    /// It asks for none.
    None,
}

const SNIS: [(Sni, &str); 3] = [(Sni::Known, "known"), (Sni::Unknown, "unknown"), (Sni::None, "none")];

/// Counts handshakes, their failures, names and renewals.
#[derive(Debug, Default)]
pub(crate) struct TlsCounters {
    failures: [Counter; FAILURES.len()],
    /// By version, and by whether it was resumed.
    handshakes: [[Counter; 2]; 2],
    snis: [Counter; SNIS.len()],
    renewals: Counter,
    failed_renewals: Counter,
    /// Source, first name and end of each certificate in use. Locked for a scrape, and when a certificate is replaced.
    expiries: Mutex<Vec<(String, String, i64)>>,
}

impl TlsCounters {
    /// Counts a handshake that failed.
    pub(crate) fn failed(&self, why: HandshakeFailure) {
        // That one is what was asked for, and is counted where it is answered.
        if why != HandshakeFailure::Challenge {
            self.failures[why as usize].add_one();
        }
    }

    /// Counts a handshake that was done.
    pub(crate) fn done(&self, Handshake { is_tls13, is_resumed }: Handshake) {
        self.handshakes[usize::from(is_tls13)][usize::from(is_resumed)].add_one();
    }

    /// Counts the name that a client asks for.
    pub(crate) fn asked_for(&self, sni: Sni) {
        self.snis[sni as usize].add_one();
    }

    /// Counts changed files that are in use now.
    pub(crate) fn renewed(&self) {
        self.renewals.add_one();
    }

    /// Counts changed files that can't be used.
    pub(crate) fn renewal_failed(&self) {
        self.failed_renewals.add_one();
    }

    /// Sets the certificates in use: source, first name, and end in seconds.
    pub(crate) fn set_expiries(&self, of: Vec<(String, String, i64)>) {
        *self.expiries.lock() = of;
    }
}

impl Metrics {
    /// Writes the counters of TLS.
    pub(super) fn render_tls(&self, out: &mut String) {
        let tls = &self.tls;
        let name = "larder_tls_handshakes_total";
        header(out, name, "counter", "TLS handshakes that were done, by version and kind.");
        for (version, row) in ["1.2", "1.3"].iter().zip(&tls.handshakes) {
            for (kind, value) in ["full", "resumed"].iter().zip(row) {
                let _ = writeln!(out, "{name}{{version=\"{version}\",kind=\"{kind}\"}} {}", value.value());
            }
        }
        let told = FAILURES.iter().filter(|(why, _)| *why != HandshakeFailure::Challenge);
        let values = told.map(|(why, word)| (*word, tls.failures[*why as usize].value()));
        let help = "TLS connections that ended before a request could come, by reason.";
        labelled(out, "larder_tls_handshake_failures_total", help, "reason", values);
        let values = SNIS.map(|(sni, word)| (word, tls.snis[sni as usize].value()));
        let help = "TLS connections by the name that the client asks for: one with a certificate, another, or none.";
        labelled(out, "larder_tls_server_names_total", help, "name", values);
        let values = [("taken", tls.renewals.value()), ("refused", tls.failed_renewals.value())];
        let help = "Changed files of certificates, by whether they are in use now.";
        labelled(out, "larder_tls_renewals_total", help, "outcome", values);
        let name = "larder_tls_certificate_expiry_timestamp_seconds";
        header(out, name, "gauge", "The end of each certificate in use, in seconds since 1970.");
        for (source, first, end) in tls.expiries.lock().iter() {
            let _ = writeln!(out, "{name}{{certificate=\"{}\",name=\"{}\"}} {end}", label(source), label(first));
        }
    }
}

/// Escapes the value of a label.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_counted_under_its_own_name() {
        let metrics = Metrics::new(1);
        for (n, (why, word)) in FAILURES.into_iter().enumerate() {
            assert_eq!((why as usize, why.as_str()), (n, word));
        }
        for (n, (sni, _)) in SNIS.into_iter().enumerate() {
            assert_eq!(sni as usize, n);
        }
        metrics.tls.done(Handshake { is_tls13: true, is_resumed: false });
        metrics.tls.failed(HandshakeFailure::Closed);
        metrics.tls.asked_for(Sni::Unknown);
        metrics.tls.renewal_failed();
        metrics.tls.set_expiries(vec![("/a\"b".into(), "x.example".into(), 7)]);
        let text = metrics.render(&[]);
        for line in [
            "larder_tls_handshakes_total{version=\"1.3\",kind=\"full\"} 1",
            "larder_tls_handshake_failures_total{reason=\"closed\"} 1",
            "larder_tls_server_names_total{name=\"unknown\"} 1",
            "larder_tls_renewals_total{outcome=\"refused\"} 1",
            "larder_tls_certificate_expiry_timestamp_seconds{certificate=\"/a\\\"b\",name=\"x.example\"} 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
