//! Everything that can be configured, as the rooms take it.

use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use super::reading::Reading;
use super::sources::Sources;
use super::table::upstream::UPSTREAMS;
use crate::base::log;
use crate::downstream::{Listen, ServerConfig};
use crate::proxy::{CacheConfig, Rule, Transfers};
use crate::upstream::Transfer;
use crate::upstream::forwarding::Trust;
use crate::{admin, resp, store, tls, upstream};

/// Everything that can be configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `[server]`
    pub server: ServerConfig,
    /// `[tls]` and `[[tls.certificate]]`
    pub tls: tls::Config,
    /// `[upstream]`
    pub upstream: upstream::Config,
    /// Each `[upstreams.NAME]`, with its name, in the order of the names.
    pub upstreams: Vec<(String, upstream::Config)>,
    /// `[cache]`
    pub cache: CacheConfig,
    /// `[memory]`
    pub memory: store::MemoryConfig,
    /// `[durable]`
    pub durable: store::DurableConfig,
    /// `peers.listen`: the address that other nodes connect to; `None`: no listener.
    pub peers_listen: Option<Listen>,
    /// The rest of `[peers]`
    pub peers: upstream::PeersConfig,
    /// `[resp]`
    pub resp: resp::Config,
    /// `[admin]`
    pub admin: admin::Config,
    /// `[log]`
    pub log: log::Config,
    /// `[[rule]]`
    pub rules: Vec<Rule>,
    /// Variables that begin with `LARDER_` and set nothing; [`Config::warnings`] names them.
    pub stray_variables: Vec<String>,
}

/// What `[upstream]` is called among the upstreams.
pub const DEFAULT_UPSTREAM: &str = "default";

/// The mistakes of a configuration, one sentence each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

impl Config {
    /// Returns how bytes pass to and from each upstream where no rule says otherwise.
    pub fn transfers(&self) -> Transfers {
        let named = self.upstreams.iter().map(|(name, upstream)| (name.clone(), self.transfer(upstream))).collect();
        Transfers { default: self.transfer(&self.upstream), named }
    }

    fn transfer(&self, upstream: &upstream::Config) -> Transfer {
        Transfer {
            buffer_request: upstream.buffer_request,
            buffer_response: upstream.buffer_response,
            spool: upstream.spool,
            min_body_rate: self.server.min_body_rate,
            response_timeout: upstream.response_timeout,
            body_timeout: upstream.body_timeout,
        }
    }

    /// Returns every upstream with its name: `[upstream]`, which is called [`DEFAULT_UPSTREAM`], then the others in their
    /// order.
    pub fn all_upstreams(&self) -> impl Iterator<Item = (&str, &upstream::Config)> {
        let named = self.upstreams.iter().map(|(name, upstream)| (&**name, upstream));
        std::iter::once((DEFAULT_UPSTREAM, &self.upstream)).chain(named)
    }

    /// Returns the name of the section of an upstream.
    pub fn section_of(upstream: &str) -> String {
        if upstream == DEFAULT_UPSTREAM { "upstream".into() } else { format!("{UPSTREAMS}.{upstream}") }
    }

    /// Returns whose word on a request counts, and in which fields.
    pub fn trust(&self) -> Trust {
        Trust { subject: self.tls.client_subject_field.clone(), ..self.server.trust() }
    }

    /// Returns the first part of every key: `cache.key_prefix`, and the fields that every response depends on. So a
    /// response that was stored while other fields counted is never found: a client could write one that counted then,
    /// and does not now.
    pub fn key_namespace(&self) -> String {
        let mut names: Vec<String> = self.trust().nominated().always.iter().map(ToString::to_string).collect();
        names.sort_unstable();
        let prefix = &self.cache.key_prefix;
        if names.is_empty() { prefix.clone() } else { format!("{prefix} ({})", names.join(", ")) }
    }

    /// Reads the configuration from `file`, if there is one, `environment` and the `--set`
    /// options, each overriding the ones before.
    pub fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (OsString, OsString)>,
        sets: &[String],
    ) -> Result<Self, ConfigErrors> {
        Reading::load(file, environment, sets).finish()
    }

    /// Reads the configuration from the text of a file alone.
    pub fn parse(text: &str) -> Result<Self, ConfigErrors> {
        let mut sources = Sources::default();
        sources.read_text("config.toml", text);
        Reading::of(sources).finish()
    }
}
