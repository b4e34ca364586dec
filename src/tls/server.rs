//! The certificates in use, and how they are replaced: by changed files, and by what others install.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use tracing::{info, warn};

use super::acme::Challenges;
use super::certificate::Certificate;
use super::config::Config;
use super::error::TlsError;
use super::files;
use super::resolver::{Certificates, Shelf};
use super::setup::{self, Preferred, Servers, Sessions};
use super::tickets::Tickets;
use super::watched::{Look, Watched};
use crate::base::log::OncePerMinute;
use crate::base::{Clock, HandshakeFailure, Metrics};
use crate::rfc9111::timestamp::Timestamp;

/// The time between two looks at the files. A change is taken when two looks have seen the same.
const PAUSE: Duration = Duration::from_secs(2);

/// The time after which a certificate that is about to expire is warned of again, in milliseconds.
const DAY: i64 = 24 * 60 * 60 * 1000;

/// Speaks TLS with clients. All workers share one.
#[derive(Debug)]
pub(crate) struct Tls {
    pub(super) config: Config,
    pub(super) shelf: Arc<Shelf>,
    /// Answers the challenges of CAs, once ACME has begun.
    pub(super) challenges: OnceLock<Arc<Challenges>>,
    /// Replaced when the file of the clients' authorities changes.
    servers: RwLock<Servers>,
    pub(super) provider: Arc<CryptoProvider>,
    /// `None`: clients show certificates, and resume no session.
    tickets: Option<Arc<Tickets>>,
    sources: Mutex<Sources>,
    pub(super) clock: Clock,
    pub(super) metrics: Arc<Metrics>,
    pub(super) told: OncePerMinute<HandshakeFailure>,
}

/// Where the certificates come from.
#[derive(Debug)]
struct Sources {
    /// One for each of `[[tls.certificate]]`.
    files: Vec<Watched<Certificate>>,
    /// Those that others have installed, by the name that they gave.
    installed: BTreeMap<String, Certificate>,
    /// The file of the clients' authorities.
    authorities: Option<Watched<()>>,
    /// The time of the last warning that certificates expire.
    warned: Timestamp,
}

impl Tls {
    /// Reads all files, and checks them.
    pub(crate) fn open(config: &Config, clock: Clock, metrics: Arc<Metrics>) -> Result<Arc<Self>, TlsError> {
        let provider = setup::provider(Preferred::Aes);
        let mut all = Vec::new();
        for pair in &config.certificates {
            let contents = pair.read()?;
            all.push(Watched::new(contents.hash(), pair.pair(&contents, &provider)?));
        }
        let shelf = Arc::new(Shelf::default());
        let (sessions, tickets, authorities) = sessions(config, &clock)?;
        let servers = setup::servers(config, &shelf, &sessions)?;
        let warned = clock.now();
        let sources = Sources { files: all, installed: BTreeMap::new(), authorities, warned };
        let this = Self {
            config: config.clone(),
            shelf,
            challenges: OnceLock::new(),
            servers: RwLock::new(servers),
            provider,
            tickets,
            sources: Mutex::new(Sources { files: Vec::new(), installed: BTreeMap::new(), authorities: None, warned }),
            clock,
            metrics,
            told: OncePerMinute::new(),
        };
        this.put_on_shelf(&sources);
        *this.sources.lock() = sources;
        for sentence in this.shelf.current().warnings(warned) {
            warn!("{sentence}");
        }
        Ok(Arc::new(this))
    }

    /// Returns the configuration for a new connection.
    pub(super) fn server(&self, preferred: Preferred) -> Arc<ServerConfig> {
        Arc::clone(&self.servers.read()[preferred as usize])
    }

    /// Looks at the files every few seconds, for ever.
    pub(crate) async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PAUSE).await;
            let this = Arc::clone(&self);
            // It waits for the disk.
            let _ = tokio::task::spawn_blocking(move || this.look(Look::Patient)).await;
        }
    }

    /// Takes what the files have now, as on SIGHUP.
    pub(crate) fn reload(&self) {
        self.look(Look::AtOnce);
    }

    /// Looks at the files once.
    pub(super) fn look(&self, look: Look) {
        let mut sources = self.sources.lock();
        let mut is_new = false;
        for (pair, watched) in self.config.certificates.iter().zip(&mut sources.files) {
            let seen = pair.read();
            let hash = seen.as_ref().map_or_else(files::hash_of_error, files::Contents::hash);
            if !watched.is_due(hash, look) {
                continue;
            }
            match seen.and_then(|contents| pair.pair(&contents, &self.provider)) {
                Ok(certificate) => {
                    info!(
                        "{}: the new certificate is in use, for {}, until {}",
                        certificate.source,
                        certificate.facts.named(),
                        certificate.facts.not_after.to_rfc3339()
                    );
                    for sentence in certificate.warnings(self.clock.now()) {
                        warn!("{sentence}");
                    }
                    self.metrics.tls.renewed();
                    watched.take(hash, certificate);
                    is_new = true;
                }
                Err(error) => {
                    warn!("{error}; the certificate that was read before stays in use");
                    self.metrics.tls.renewal_failed();
                    watched.refuse(hash);
                }
            }
        }
        if is_new {
            self.put_on_shelf(&sources);
        }
        self.look_at_authorities(&mut sources, look);
        drop(sources);
        for sentence in self.warnings_of_the_day() {
            warn!("{sentence}");
        }
        if let Some(tickets) = &self.tickets {
            tickets.keep();
        }
    }

    /// Takes the file of the clients' authorities if it has changed.
    fn look_at_authorities(&self, sources: &mut Sources, look: Look) {
        let Some(watched) = &mut sources.authorities else { return };
        let path = &self.config.client_ca;
        let seen = files::read(path);
        let hash = seen.as_ref().map_or_else(files::hash_of_error, |text| files::hash(text));
        if !watched.is_due(hash, look) {
            return;
        }
        let made = seen
            .and_then(|text| files::authorities(path, &text))
            .and_then(|roots| setup::servers(&self.config, &self.shelf, &Sessions::Certificates(roots)));
        match made {
            Ok(servers) => {
                info!("{}: the new authorities of clients are in use", path.display());
                *self.servers.write() = servers;
                self.metrics.tls.renewed();
                watched.take(hash, ());
            }
            Err(error) => {
                warn!("{error}; the authorities that were read before stay in use");
                self.metrics.tls.renewal_failed();
                watched.refuse(hash);
            }
        }
    }

    /// Returns, once a day, a sentence for each certificate that has expired or is about to.
    pub(super) fn warnings_of_the_day(&self) -> Vec<String> {
        let now = self.clock.now();
        let mut sources = self.sources.lock();
        if now.millis_since(sources.warned) < DAY {
            return Vec::new();
        }
        sources.warned = now;
        // Certificates by ACME are left out: `acme` renews them, and tells when one is late.
        let certificates = sources.files.iter().map(Watched::value);
        certificates
            .filter_map(|certificate| {
                certificate.facts.untimely(now).map(|why| format!("{}: {why}", certificate.source))
            })
            .collect()
    }

    /// Uses a certificate that does not come from a file of the configuration. It replaces that of the same source. The
    /// error is a sentence, and what was in use before stays.
    pub(crate) fn install(&self, source: &str, chain: &[u8], key: &[u8]) -> Result<(), TlsError> {
        let certificate = files::pair((source, source), chain, key, &self.provider)?;
        let mut sources = self.sources.lock();
        sources.installed.insert(source.to_owned(), certificate);
        self.put_on_shelf(&sources);
        Ok(())
    }

    /// Answers the challenges of ACME servers from now on.
    pub(crate) fn answer_challenges(&self, challenges: Arc<Challenges>) {
        // A process has them only once.
        let _ = self.challenges.set(challenges);
    }

    /// Puts the certificates of all sources in use at once.
    fn put_on_shelf(&self, sources: &Sources) {
        let of_files = sources.files.iter().map(|watched| watched.value().clone());
        let certificates = Certificates::new(of_files.chain(sources.installed.values().cloned()).collect());
        let expiries = certificates.all().iter().map(|certificate| {
            let name = certificate.facts.names.first().cloned().unwrap_or_default();
            (certificate.source.clone(), name, certificate.facts.not_after.as_secs())
        });
        self.metrics.tls.set_expiries(expiries.collect());
        self.shelf.replace(certificates);
    }
}

/// Decides whether clients resume sessions or show certificates.
fn sessions(config: &Config, clock: &Clock) -> Result<(Sessions, Option<Arc<Tickets>>, Option<Watched<()>>), TlsError> {
    if config.client_ca.as_os_str().is_empty() {
        let tickets = Arc::new(Tickets::open(&config.ticket_key, clock.clone())?);
        return Ok((Sessions::Tickets(Arc::clone(&tickets)), Some(tickets), None));
    }
    let text = files::read(&config.client_ca)?;
    let roots = files::authorities(&config.client_ca, &text)?;
    Ok((Sessions::Certificates(roots), None, Some(Watched::new(files::hash(&text), ()))))
}

/// The findings of `larder check` about the files.
#[derive(Debug, Default)]
pub(crate) struct Examined {
    /// The mistakes for which Larder does not start.
    pub mistakes: Vec<String>,
    /// Sentences about what is most likely not meant.
    pub warnings: Vec<String>,
    /// The certificates that are sound: their file, names and end.
    pub sound: Vec<String>,
}

/// Reads and checks all files without using them.
pub(crate) fn examine(config: &Config, now: Timestamp) -> Examined {
    let provider = setup::provider(Preferred::Aes);
    let mut told = Examined::default();
    let mut all = Vec::new();
    for pair in &config.certificates {
        match pair.read().and_then(|contents| pair.pair(&contents, &provider)) {
            Ok(certificate) => all.push(certificate),
            Err(error) => told.mistakes.push(error.to_string()),
        }
    }
    if !config.client_ca.as_os_str().is_empty() {
        let roots = files::read(&config.client_ca).and_then(|text| files::authorities(&config.client_ca, &text));
        told.mistakes.extend(roots.err().map(|error| error.to_string()));
    }
    told.sound = all
        .iter()
        .map(|certificate| {
            let facts = &certificate.facts;
            let (until, days) = (facts.not_after.to_rfc3339(), facts.days_left(now));
            format!("{}: for {}, until {until} ({days} days)", certificate.source, facts.named())
        })
        .collect();
    told.warnings = Certificates::new(all).warnings(now);
    told
}
