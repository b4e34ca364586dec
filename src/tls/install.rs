//! Puts certificates into use that do not come from files.

use std::sync::Arc;

use rustls::sign::CertifiedKey;
use tracing::warn;

use super::Tls;
use super::acme::Challenges;
use super::certificate::{Certificate, Facts};

/// A certificate to be put into use.
#[derive(Clone, Debug)]
pub(crate) struct Installed {
    /// Where it comes from, for the log.
    pub(crate) source: String,
    pub(crate) key: Arc<CertifiedKey>,
}

impl Tls {
    /// Replaces the certificates that were installed before.
    pub(crate) fn install(&self, certificates: Vec<Installed>) {
        let read = |Installed { source, key }: Installed| {
            let facts = key.cert.first().ok_or_else(|| "is empty".to_owned()).and_then(|first| Facts::of(first));
            match facts {
                Ok(facts) => Some(Certificate { source, facts, key }),
                Err(why) => {
                    warn!("{source}: it {why}");
                    None
                }
            }
        };
        self.shelf.install(certificates.into_iter().filter_map(read).collect());
    }

    /// Answers the challenges of CAs from now on.
    pub(crate) fn answer_challenges(&self, challenges: Arc<Challenges>) {
        // There is one Acme to a process.
        let _ = self.challenges.set(challenges);
    }
}
