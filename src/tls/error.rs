//! Says why TLS can't be spoken: with the configured files, or with one client.

use std::fmt;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

use crate::base::HandshakeFailure;

/// The reason why TLS can't be set up: a sentence with the file and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError(pub(super) String);

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TlsError {}

/// The reason why a handshake failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HandshakeError {
    /// The reason that it is counted by.
    pub why: HandshakeFailure,
    /// The sentence for the log.
    pub sentence: String,
}

impl HandshakeError {
    pub(super) fn new(why: HandshakeFailure, sentence: impl Into<String>) -> Self {
        Self { why, sentence: sentence.into() }
    }

    /// Makes the error of a client that is too old.
    pub(super) fn too_old() -> Self {
        let sentence = "the client speaks only versions of TLS older than tls.min_version; it needs an update";
        Self::new(HandshakeFailure::NoSharedVersion, sentence)
    }

    /// Makes the error of a connection that failed.
    pub(super) fn of_io(error: &std::io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(inner) => Self::of_tls(inner),
            None => Self::new(
                HandshakeFailure::Closed,
                format!("the client closed the connection in the handshake: {error}"),
            ),
        }
    }

    /// Makes the error that rustls reports.
    pub(super) fn of_tls(error: &Error) -> Self {
        use HandshakeFailure as Why;
        match error {
            Error::AlertReceived(alert) => Self::new(Why::Alert, alert_sentence(*alert)),
            Error::NoApplicationProtocol => {
                Self::new(Why::NoSharedProtocol, "the client speaks neither h2 nor http/1.1 (ALPN)")
            }
            Error::NoCertificatesPresented => {
                Self::new(Why::NoClientCertificate, "the client showed no certificate, and tls.client_ca demands one")
            }
            Error::InvalidCertificate(error) => Self::new(Why::ClientCertificate, certificate_sentence(error)),
            Error::PeerIncompatible(error) => of_incompatible(error),
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
                Self::new(Why::NotTls, "what the client sent is not TLS")
            }
            error => Self::new(Why::Malformed, format!("the client broke the protocol: {error}")),
        }
    }
}

fn of_incompatible(error: &PeerIncompatible) -> HandshakeError {
    use HandshakeFailure as Why;
    match error {
        PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
        | PeerIncompatible::SupportedVersionsExtensionRequired => HandshakeError::too_old(),
        PeerIncompatible::NoCipherSuitesInCommon
        | PeerIncompatible::NoKxGroupsInCommon
        | PeerIncompatible::NoSignatureSchemesInCommon
        | PeerIncompatible::NoEcPointFormatsInCommon => HandshakeError::new(
            Why::NoSharedCipher,
            format!("the client knows no cipher, curve or signature that Larder takes ({error:?}); it needs an update"),
        ),
        error => HandshakeError::new(Why::Malformed, format!("the client lacks what TLS takes today: {error:?}")),
    }
}

/// Says what a client means by an alert.
fn alert_sentence(alert: AlertDescription) -> String {
    let meaning = match alert {
        AlertDescription::UnknownCA => {
            "it does not know the authority that issued the certificate: is the chain complete, with its intermediates?"
        }
        AlertDescription::CertificateExpired => "it says that the certificate has expired",
        AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => {
            "it does not accept the certificate: is it for this name, and is the chain complete?"
        }
        AlertDescription::ProtocolVersion => "it speaks no version of TLS that Larder does",
        AlertDescription::HandshakeFailure => "it has no cipher or curve in common with Larder",
        _ => "it gave up the handshake",
    };
    format!("the client sent the alert {alert:?}: {meaning}")
}

fn certificate_sentence(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the client's certificate has expired".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the client's certificate is not valid yet".into()
        }
        CertificateError::UnknownIssuer => {
            "the client's certificate is of an issuer that is not in tls.client_ca".into()
        }
        error => format!("the client's certificate can't be used: {error}"),
    }
}
