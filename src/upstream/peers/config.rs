//! The `[peers]` section of the configuration, but for the listener.

use std::time::Duration;

use crate::upstream::config::{Address, Listed};
use crate::upstream::{Config, OriginTlsError, TlsConfig};

/// The settings by which peers are found and asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeersConfig {
    /// The listeners of all nodes, this one's among them; empty: see `name`.
    pub list: Vec<Address>,
    /// A name that has the addresses of all nodes; `None`: see `list`.
    pub name: Option<Address>,
    /// The time between two look-ups of that name.
    pub resolve_interval: Duration,
    /// The secret that all nodes know.
    pub token: String,
    /// The longest that a peer may say nothing.
    pub timeout: Duration,
    /// The time between two greetings of a peer.
    pub interval: Duration,
    /// The files and the name for TLS with peers that are `https`.
    pub tls: TlsConfig,
}

impl Default for PeersConfig {
    fn default() -> Self {
        Self {
            list: Vec::new(),
            name: None,
            resolve_interval: Duration::from_secs(10),
            token: String::new(),
            timeout: Duration::from_secs(1),
            interval: Duration::from_secs(2),
            tls: TlsConfig::default(),
        }
    }
}

impl PeersConfig {
    /// Reads the files of TLS to the nodes, as a start does.
    pub fn examine_tls(&self) -> Result<(), OriginTlsError> {
        let addresses = self.list.iter().chain(&self.name).cloned().map(Listed::from).collect();
        Config { addresses, tls: self.tls_of_nodes(), ..Config::default() }.examine_tls()
    }

    /// Returns the settings for TLS to the nodes.
    pub(super) fn tls_of_nodes(&self) -> TlsConfig {
        let mut tls = self.tls.clone();
        if let (true, Some(Address::Tcp { host, .. })) = (tls.server_name.is_empty(), &self.name) {
            // The certificates of the addresses are for the name that leads to them.
            tls.server_name.clone_from(host);
        }
        tls
    }

    /// Returns whether peers are named.
    pub fn is_on(&self) -> bool {
        !self.list.is_empty() || self.name.is_some()
    }
}
