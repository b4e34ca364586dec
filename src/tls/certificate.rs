//! Reads a certificate: its names and the time that it is valid for.

use std::sync::Arc;

use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::rfc9111::timestamp::Timestamp;

/// A certificate with its key, ready to be used.
#[derive(Clone, Debug)]
pub(super) struct Certificate {
    /// Where it comes from: its file, or what installed it.
    pub(super) source: String,
    pub(super) facts: Facts,
    pub(super) key: Arc<CertifiedKey>,
    /// Sentences about what is most likely not meant, with the file.
    pub(super) warnings: Vec<String>,
}

/// The names of a certificate, and the time that it is valid for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// The names that it is for, in lower case; `*.` begins a wildcard.
    pub(super) names: Vec<String>,
    /// True if it is for IP addresses as well. Clients that ask for one name none, and get the default certificate.
    pub(super) has_addresses: bool,
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
    /// The names of its subject and issuer as they are encoded.
    pub(super) subject: Vec<u8>,
    pub(super) issuer: Vec<u8>,
}

/// The days before the end in which a certificate is warned of.
pub(super) const WARNING_DAYS: i64 = 14;

const DAY: i64 = 24 * 60 * 60 * 1000;

impl Facts {
    /// Reads a certificate's DER. The error goes on after the name of the file.
    pub(super) fn of(der: &[u8]) -> Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| format!("it has a certificate that can't be read: {error}"))?;
        let alternatives = certificate.subject_alternative_name().ok().flatten();
        let alternatives = || alternatives.iter().flat_map(|extension| &extension.value.general_names);
        let names = alternatives().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.trim_end_matches('.').to_ascii_lowercase()),
            _ => None,
        });
        Ok(Self {
            names: names.collect(),
            has_addresses: alternatives().any(|name| matches!(name, GeneralName::IPAddress(_))),
            not_before: Timestamp::from_secs(certificate.validity().not_before.timestamp()),
            not_after: Timestamp::from_secs(certificate.validity().not_after.timestamp()),
            subject: certificate.subject().as_raw().to_vec(),
            issuer: certificate.issuer().as_raw().to_vec(),
        })
    }

    /// Returns the whole days that are left at `now`; negative: it has expired.
    pub(super) fn days_left(&self, now: Timestamp) -> i64 {
        self.not_after.millis_since(now).div_euclid(DAY)
    }

    /// Returns what is wrong with the time at `now`, to go on after the file's name.
    pub(super) fn untimely(&self, now: Timestamp) -> Option<String> {
        if now < self.not_before {
            let from = self.not_before.to_rfc3339();
            return Some(format!("the certificate is not valid before {from}; is this machine's clock right?"));
        }
        let until = self.not_after.to_rfc3339();
        match self.days_left(now) {
            ..0 => Some(format!("the certificate expired at {until}: clients refuse it; renew it")),
            0 => Some(format!("the certificate expires within a day, at {until}; renew it")),
            days @ 1..WARNING_DAYS => Some(format!("the certificate expires in {days} days, at {until}; renew it")),
            _ => None,
        }
    }

    /// Returns the names for a person to read.
    pub(super) fn named(&self) -> String {
        match (self.names.is_empty(), self.has_addresses) {
            (false, _) => self.names.join(", "),
            (true, true) => "IP addresses alone".into(),
            (true, false) => "no name".into(),
        }
    }
}

impl Certificate {
    /// Returns everything that is most likely not meant, at `now`.
    pub(super) fn warnings(&self, now: Timestamp) -> Vec<String> {
        let untimely = self.facts.untimely(now).map(|why| format!("{}: {why}", self.source));
        self.warnings.iter().cloned().chain(untimely).collect()
    }
}
