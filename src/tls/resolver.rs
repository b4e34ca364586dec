//! Finds the certificate for the name that a client asks for (SNI, RFC 6066 §3).

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::certificate::Certificate;

/// The certificates in use, which may be replaced while handshakes use them.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    current: RwLock<Arc<Certificates>>,
    /// Guarded by its lock: those of files and those of ACME, which change each for themselves.
    parts: Mutex<Parts>,
}

#[derive(Debug, Default)]
struct Parts {
    files: Vec<Certificate>,
    acme: Vec<Certificate>,
}

impl Shelf {
    /// Returns the certificates in use.
    pub(super) fn current(&self) -> Arc<Certificates> {
        Arc::clone(&self.current.read())
    }

    /// Replaces those of files, all at once.
    pub(super) fn replace(&self, with: Vec<Certificate>) {
        self.change(|parts| parts.files = with);
    }

    /// Replaces those of ACME, all at once. Where both have one for a name, that of the file counts.
    pub(super) fn install(&self, with: Vec<Certificate>) {
        self.change(|parts| parts.acme = with);
    }

    fn change(&self, change: impl FnOnce(&mut Parts)) {
        let mut parts = self.parts.lock();
        change(&mut parts);
        let all = parts.files.iter().chain(&parts.acme).cloned().collect();
        *self.current.write() = Arc::new(Certificates::new(all));
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
    /// The places of the first, and of others for the same names, such as one with another kind of key.
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
}
