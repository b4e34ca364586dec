//! Finds the certificate for the name that a client asks for (SNI, RFC 6066 §3).

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::certificate::Certificate;
use crate::rfc9111::timestamp::Timestamp;

/// The certificates in use, which may be replaced while handshakes use them.
#[derive(Debug, Default)]
pub(super) struct Shelf(RwLock<Arc<Certificates>>);

impl Shelf {
    /// Returns the certificates in use.
    pub(super) fn current(&self) -> Arc<Certificates> {
        Arc::clone(&self.0.read())
    }

    /// Replaces all of them at once.
    pub(super) fn replace(&self, with: Certificates) {
        *self.0.write() = Arc::new(with);
    }
}

impl ResolvesServerCert for Shelf {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current().choose(hello.server_name(), hello.signature_schemes())
    }
}

/// Certificates by the names that they are for.
#[derive(Debug, Default)]
pub(super) struct Certificates {
    /// In the order of the configuration; the first is the default.
    all: Vec<Certificate>,
    /// The places in `all` of those for a name.
    exact: HashMap<String, Vec<usize>>,
    /// The same for `*.` and a name.
    wildcard: HashMap<String, Vec<usize>>,
    /// The places of the first, and of others for the same names with another kind of key.
    default: Vec<usize>,
}

impl Certificates {
    pub(super) fn new(all: Vec<Certificate>) -> Self {
        let mut this = Self::default();
        for (place, certificate) in all.iter().enumerate() {
            for name in &certificate.facts.names {
                let (map, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut this.wildcard, parent),
                    None => (&mut this.exact, name.as_str()),
                };
                let places = map.entry(name.to_owned()).or_default();
                if !places.contains(&place) {
                    places.push(place);
                }
            }
            if all[0].facts.names == certificate.facts.names {
                this.default.push(place);
            }
        }
        this.all = all;
        this
    }

    pub(super) fn all(&self) -> &[Certificate] {
        &self.all
    }

    /// Returns whether there is a certificate for `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.places(name).is_some()
    }

    fn places(&self, name: &str) -> Option<&[usize]> {
        let name = name.trim_end_matches('.');
        let lower;
        let name = if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            lower = name.to_ascii_lowercase();
            &lower
        } else {
            name
        };
        let exact = self.exact.get(name);
        // A wildcard stands for one label (RFC 6125 §6.4.3).
        let wildcard = || self.wildcard.get(name.split_once('.')?.1);
        exact.or_else(wildcard).map(Vec::as_slice)
    }

    /// Returns the certificate for `name`, or the default one, with a key that the client can check if there is any.
    pub(super) fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let places = name.and_then(|name| self.places(name)).unwrap_or(&self.default);
        let fits = |place: &&usize| self.all[**place].key.key.choose_scheme(schemes).is_some();
        let place = places.iter().find(fits).or(places.first())?;
        Some(Arc::clone(&self.all[*place].key))
    }

    /// Returns everything that is most likely not meant, at `now`.
    pub(super) fn warnings(&self, now: Timestamp) -> Vec<String> {
        let of_each = self.all.iter().flat_map(|certificate| certificate.warnings(now));
        of_each.chain(self.unused()).collect()
    }

    /// Returns a sentence for each certificate that no client ever gets: others of the same kind of key come first for
    /// all of its names.
    fn unused(&self) -> Vec<String> {
        let mut told = Vec::new();
        for (place, certificate) in self.all.iter().enumerate().skip(1) {
            let kind = kind_of(certificate);
            let before = |name: &String| {
                let places = match name.strip_prefix("*.") {
                    Some(parent) => self.wildcard.get(parent),
                    None => self.exact.get(name),
                };
                let same = |other: &&usize| **other < place && kind_of(&self.all[**other]) == kind;
                places?.iter().find(same).map(|other| &self.all[*other].source)
            };
            let first: Vec<Option<&String>> = certificate.facts.names.iter().map(before).collect();
            if let Some(Some(other)) = first.first()
                && first.iter().all(Option::is_some)
            {
                told.push(format!(
                    "{}: it is never used: {other} comes first, for {}; take one of them out",
                    certificate.source,
                    certificate.facts.named()
                ));
            }
        }
        told
    }
}

/// Schemes of signatures, one for each kind of key.
const SCHEMES: [SignatureScheme; 5] = [
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::ED25519,
];

/// Returns the scheme that tells the kind of a certificate's key.
fn kind_of(certificate: &Certificate) -> Option<SignatureScheme> {
    certificate.key.key.choose_scheme(&SCHEMES).map(|signer| signer.scheme())
}
