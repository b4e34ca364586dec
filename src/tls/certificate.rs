//! What a certificate says: its names and the time that it is valid for.

use std::sync::Arc;

use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::rfc9111::timestamp::Timestamp;

/// A certificate with its key, ready to be used.
#[derive(Clone, Debug)]
pub(super) struct Certificate {
    /// Where it comes from: its file, or its order.
    pub(super) source: String,
    pub(super) facts: Facts,
    pub(super) key: Arc<CertifiedKey>,
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// The names that it is for, in lower case; `*.` begins a wildcard.
    pub(super) names: Vec<String>,
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
}

impl Facts {
    /// Reads a certificate's DER. The error goes on after the name of the file.
    pub(super) fn of(der: &[u8]) -> Result<Self, String> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| format!("has a certificate that can't be read: {error}"))?;
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|extension| &extension.value.general_names).filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.trim_end_matches('.').to_ascii_lowercase()),
            _ => None,
        });
        let at = |seconds: i64| Timestamp::from_millis(seconds.saturating_mul(1000));
        Ok(Self {
            names: names.collect(),
            not_before: at(certificate.validity().not_before.timestamp()),
            not_after: at(certificate.validity().not_after.timestamp()),
        })
    }
}
