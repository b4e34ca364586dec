//! The proxy under test, in this process, with a clock that the test moves.

use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use super::admin::{metric, post, purge};
use super::client::{Answer, Client};
use super::origin::Origin;
use super::wait::{PATIENCE, at_once, eventually};
use larder::app;
use larder::app::Running;
use larder::base::Clock;
use larder::config::Config;
use larder::downstream::Listen;
use larder::rfc9111::timestamp::Timestamp;

/// Nobody waits longer than that for what processes tell each other.
pub(crate) const SOON: [&str; 2] = ["durable.pack_interval=20ms", "durable.poll_interval=100ms"];

/// The proxy under test, in this process, with a clock that the test moves.
pub(crate) struct Larder {
    pub clock: Clock,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    running: Option<Running>,
    settles: bool,
}

/// The time at which tests begin: a moment like any other.
pub(crate) const START: Timestamp = Timestamp::from_secs(1_790_000_000);

impl Larder {
    /// In front of `origin`, with `config` (TOML) on top of defaults for a test: no durable tier,
    /// ports of its own, two workers.
    pub(crate) fn new(origin: &Origin, config: &str) -> Self {
        Self::with_upstream(&origin.url(), config)
    }

    /// In front of an upstream that is given by its URL.
    pub(crate) fn with_upstream(upstream: &str, config: &str) -> Self {
        Self::at(upstream, config, Clock::manual(START))
    }

    pub(crate) fn at(upstream: &str, config: &str, clock: Clock) -> Self {
        let sets = [
            "server.listen=127.0.0.1:0".to_owned(),
            "server.threads=2".to_owned(),
            "admin.listen=127.0.0.1:0".to_owned(),
            format!("upstream.url={upstream}"),
        ];
        let mut sets = sets.to_vec();
        if !config.contains("durable.url") {
            sets.push("durable.url=off".into());
        }
        if !config.contains("admin.hosts") {
            // Clients in the tests call every server by this name.
            sets.push("admin.hosts=site.example".into());
        }
        sets.extend(SOON.map(str::to_owned));
        // One dotted key a line, as `--set` takes them; rules come as one inline array.
        sets.extend(config.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
        let config = Config::load(None, std::iter::empty(), &sets).expect("a sound test configuration");
        let running = app::start(config, clock.clone()).expect("it starts");
        let socket = |listen: &Listen| match listen {
            Listen::Tcp(text) | Listen::Tls(text) => text.parse().unwrap(),
            Listen::Unix(_) => panic!("a TCP listener was asked for"),
        };
        let address = socket(&running.addresses()[0]);
        let admin = socket(running.admin_address().unwrap());
        Self { clock, address, admin, running: Some(running), settles: false }
    }

    /// The address of the public listener `n`.
    pub(crate) fn address_of(&self, n: usize) -> SocketAddr {
        self.running().addresses()[n].tcp().expect("a TCP listener").parse().expect("an address")
    }

    pub(crate) fn client(&self) -> Client {
        if self.settles {
            self.settle();
        }
        Client::connect(self.address)
    }

    /// Before each client the durable tier has carried out all that it was asked.
    pub(crate) fn settling(mut self) -> Self {
        self.settles = true;
        self
    }

    /// One GET on a connection of its own.
    pub(crate) fn get(&self, path: &str, fields: &str) -> Answer {
        self.client().get(path, fields)
    }

    /// Sends `bytes` on a connection of its own and reads one answer.
    pub(crate) fn send_raw(&self, bytes: impl AsRef<[u8]>) -> Answer {
        let mut client = self.client();
        client.raw(bytes);
        client.answer()
    }

    /// Has `n` clients ask for `path` at once, each on a connection of its own.
    pub(crate) fn crowd(&self, n: usize, path: &'static str) -> JoinHandle<Vec<Answer>> {
        let address = self.address;
        std::thread::spawn(move || at_once(n, move |_| Client::connect(address).get(path, "")))
    }

    /// Waits until at least `n` clients wait for the origin, those who lead among them.
    pub(crate) fn wait_for_waiting(&self, n: usize) {
        eventually(&format!("{n} clients wait"), || self.running().proxy().usage().waiting >= n as u64);
    }

    pub(crate) fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    /// Bytes of bodies that pass: in memory, and in temporary files.
    pub(crate) fn buffered(&self) -> (usize, u64) {
        let usage = self.running().proxy().usage();
        (usize::try_from(usage.buffered).unwrap_or(usize::MAX), usage.spooled)
    }

    /// Waits until the durable tier has carried out all that it was asked.
    pub(crate) fn settle(&self) {
        let running = self.running();
        let durable = running.proxy().store().durable().expect("a durable tier");
        assert_eq!(running.control().block_on(durable.drain(PATIENCE)).left(), 0);
    }

    /// The same, where there is a durable tier.
    pub(crate) fn settle_if_durable(&self) {
        if self.running().proxy().store().durable().is_some() {
            self.settle();
        }
    }

    pub(crate) fn metric(&self, line_start: &str) -> u64 {
        metric(self.admin, line_start)
    }

    pub(crate) fn purge(&self, url: &str) -> Answer {
        purge(self.admin, url)
    }

    /// Asks for a purge of something else than a URL.
    pub(crate) fn purge_of(&self, what: &str) -> Answer {
        post(self.admin, "/purge", what)
    }

    pub(crate) fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    pub(crate) fn stop(mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }
}

impl Drop for Larder {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }
}
