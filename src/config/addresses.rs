//! Finds mistakes of two keys together: addresses that are one, and rules that another rule hides.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Config;
use super::hints::nearest;
use super::table::upstream::UPSTREAMS;
use crate::base::format_size;
use crate::downstream::Listen;
use crate::proxy::Rule;
use crate::rfc9111::claims;
use crate::store::Location;
use crate::upstream::{self, Address, Listed, TlsConfig};

/// The fewest characters of `peers.token`.
const LEAST_TOKEN: usize = 16;

/// Says how two addresses go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Overlap {
    None,
    /// It is up to what a name stands for.
    Perhaps,
    /// Nobody can listen on both.
    Certain,
}

/// A host and a port, as far as they say which socket is meant.
struct Place<'a> {
    host: &'a str,
    port: u16,
}

impl<'a> Place<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        Some(Self { host: host.trim_matches(['[', ']']), port: port.parse().ok()? })
    }

    /// The address, unless it is a name.
    fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok().map(|ip: IpAddr| ip.to_canonical())
    }

    fn is_loopback_or_its_name(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost") || self.ip().is_some_and(|ip| ip.is_loopback())
    }
}

/// Compares two listeners: whether one excludes the other. A port of 0 is a free one.
fn overlap(one: &Listen, other: &Listen) -> Overlap {
    match (one, other) {
        (Listen::Unix(one), Listen::Unix(other)) if one == other => Overlap::Certain,
        _ => match (one.tcp().and_then(Place::read), other.tcp().and_then(Place::read)) {
            (Some(one), Some(other)) if one.port == other.port && one.port != 0 => places_overlap(&one, &other),
            _ => Overlap::None,
        },
    }
}

fn places_overlap(one: &Place<'_>, other: &Place<'_>) -> Overlap {
    // Linux gives a listener on :: the IPv4 addresses as well, unless it is told otherwise.
    let takes = |all: IpAddr, ip: IpAddr| match all {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => ip.is_ipv4() || ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => true,
        all => all == ip,
    };
    match (one.ip(), other.ip()) {
        (Some(one), Some(other)) if takes(one, other) || takes(other, one) => Overlap::Certain,
        (Some(_), Some(_)) => Overlap::None,
        _ if one.host.eq_ignore_ascii_case(other.host) => Overlap::Certain,
        (Some(ip), None) | (None, Some(ip)) if ip.is_unspecified() => Overlap::Certain,
        _ if one.is_loopback_or_its_name() && other.is_loopback_or_its_name() => Overlap::Perhaps,
        _ => Overlap::None,
    }
}

/// Returns whether requests sent to `upstream` arrive at `listen`.
fn leads_to(upstream: &Address, listen: &Listen) -> bool {
    match (upstream, listen) {
        (Address::Unix(upstream), Listen::Unix(listen)) => upstream == listen,
        (Address::Tcp { host, port, .. }, Listen::Tcp(listen) | Listen::Tls(listen)) => {
            let (upstream, Some(listen)) = (Place { host, port: *port }, Place::read(listen)) else { return false };
            // To connect to an address of all is to connect to this machine. Whose address another one is,
            // nobody knows here.
            let is_here = upstream.is_loopback_or_its_name() || upstream.ip().is_some_and(|ip| ip.is_unspecified());
            let takes_all = listen.ip().is_some_and(|ip| ip.is_unspecified());
            upstream.port == listen.port
                && match (upstream.ip(), listen.ip()) {
                    (Some(one), Some(other)) if one == other => true,
                    (Some(one), Some(_)) if takes_all => is_here && (one.is_ipv4() || listen.host.contains(':')),
                    (Some(_), Some(other)) => {
                        upstream.ip().is_some_and(|ip| ip.is_unspecified()) && other.is_loopback()
                    }
                    _ if upstream.host.eq_ignore_ascii_case(listen.host) => true,
                    _ => is_here && (takes_all || listen.is_loopback_or_its_name()),
                }
        }
        _ => false,
    }
}

fn is_local(address: &Listen) -> bool {
    match address {
        Listen::Unix(_) => true,
        Listen::Tcp(text) | Listen::Tls(text) => {
            let host = text.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']);
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
        }
    }
}

/// Returns whether an address is on this machine.
fn is_near(address: &Address) -> bool {
    match address {
        Address::Tcp { host, .. } => {
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
        }
        Address::Unix(_) => true,
    }
}

impl Config {
    /// Every listener, with its key.
    fn listeners(&self) -> Vec<(&'static str, &Listen)> {
        let public = self.server.listen.iter().map(|listen| ("server.listen", listen));
        let peers = self.peers_listen.iter().map(|listen| ("peers.listen", listen));
        let resp = self.resp.listen.iter().map(|listen| ("resp.listen", listen));
        let admin = self.admin.listen.iter().map(|listen| ("admin.listen", listen));
        public.chain(peers).chain(resp).chain(admin).collect()
    }

    fn overlaps(&self, of: Overlap) -> Vec<[(&'static str, &Listen); 2]> {
        let all = self.listeners();
        let pairs = all.iter().enumerate().flat_map(|(n, one)| all[n + 1..].iter().map(|other| [*one, *other]));
        pairs.filter(|[(_, one), (_, other)]| overlap(one, other) == of).collect()
    }

    /// Returns what is wrong with keys of which each alone is sound.
    pub(super) fn mistakes_together(&self) -> Vec<String> {
        let mut told = Vec::new();
        if self.server.listen.is_empty() {
            told.push("server.listen: it is empty; name at least one address, such as \"127.0.0.1:8080\"".into());
        }
        for (name, _) in self.all_upstreams().filter(|(_, upstream)| upstream.addresses.is_empty()) {
            let section = Self::section_of(name);
            told.push(format!(
                "{section}.url: it is empty; name at least one address, such as \"http://127.0.0.1:5000\""
            ));
        }
        told.extend(self.unknown_upstreams());
        if self.admin.token.is_empty()
            && let Some(listen) = self.admin.listen.as_ref().filter(|listen| !is_local(listen))
        {
            told.push(format!(
                "admin.token: it is empty, and admin.listen = \"{listen}\" can be reached from other machines; set a token, or listen on a loopback address or a unix socket"
            ));
        }
        if self.resp.password.is_empty()
            && let Some(listen) = self.resp.listen.as_ref().filter(|listen| !is_local(listen))
        {
            told.push(format!(
                "resp.password: it is empty, and resp.listen = \"{listen}\" can be reached from other machines; set a password, or listen on a loopback address or a unix socket"
            ));
        }
        told.extend(self.sticky_clashes());
        told.extend(self.peer_mistakes());
        told.extend(self.address_clashes());
        told.extend(self.subject_clashes());
        told.extend(self.tls.acme.mistakes(&self.durable.location));
        if let Some(listen) = self.tls_listener().filter(|_| self.tls.certificates.is_empty() && !self.tls.acme.is_on())
        {
            told.push(format!(
                "tls.certificate: there is none for server.listen = \"{listen}\"; name a chain and its key under [[tls.certificate]], or have it got by tls.acme.domains"
            ));
        }
        told
    }

    /// Returns the upstreams whose cookies overwrite each other's.
    fn sticky_clashes(&self) -> Vec<String> {
        let all: Vec<_> = self.all_upstreams().filter(|(_, upstream)| !upstream.sticky_cookie.is_empty()).collect();
        let clash = |(n, (name, upstream)): (usize, &(&str, &upstream::Config))| {
            let (other, _) = all[..n].iter().find(|(_, other)| other.sticky_cookie == upstream.sticky_cookie)?;
            let (section, other) = (Self::section_of(name), Self::section_of(other));
            let cookie = &upstream.sticky_cookie;
            Some(format!(
                "{section}.sticky_cookie: \"{cookie}\" is that of {other} too, and clients have one of a name; choose another"
            ))
        };
        all.iter().enumerate().filter_map(clash).collect()
    }

    /// Returns warnings of addresses and keys that are most likely not meant so.
    fn strange_upstreams(&self) -> Vec<String> {
        let mut told = Vec::new();
        for (name, upstream) in self.all_upstreams() {
            let section = Self::section_of(name);
            let all = &upstream.addresses;
            for (n, listed) in all.iter().enumerate() {
                if all[..n].iter().any(|other| other.address == listed.address) {
                    let address = &listed.address;
                    told.push(format!("{section}.url: {address} is there twice, and may have twice {section}.max_requests under way; use weight=2 for more of the requests"));
                }
            }
            if !all.is_empty() && all.iter().all(|listed| listed.is_backup) {
                told.push(format!(
                    "{section}.url: every address is a backup; take the word from those that are asked first"
                ));
            }
            if !upstream.sticky_cookie.is_empty() && upstream.sticky_key.is_empty() {
                told.push(format!("{section}.sticky_key: it is empty, so the cookies end with this process, and no other Larder knows them; set one secret for all"));
            }
            if upstream.sticky_cookie.is_empty() && !upstream.sticky_key.is_empty() {
                told.push(format!(
                    "{section}.sticky_cookie: it is empty, so {section}.sticky_key counts for nothing; name a cookie"
                ));
            }
            if all.len() > 1 && upstream.health_path.is_empty() {
                told.push(format!("{section}.health_path: it is empty, so an address that accepts connections and answers nothing keeps its share of the requests; name a path that each answers quickly"));
            }
        }
        told
    }

    /// Returns what is wrong with `[peers]`.
    fn peer_mistakes(&self) -> Vec<String> {
        let (peers, mut told) = (&self.peers, Vec::new());
        if !peers.list.is_empty() && peers.name.is_some() {
            told.push("peers.name: peers.list names the nodes as well; keep one of the two".into());
        }
        let Some(listen) = &self.peers_listen else {
            if peers.is_on() {
                told.push("peers.listen: it is off, and the other nodes would ask this one in vain; name an address that they reach".into());
            }
            return told;
        };
        if !peers.is_on() {
            told.push("peers.list: it is empty, and so is peers.name; name all nodes, or take peers.listen out".into());
        }
        let far = peers.list.iter().chain(&peers.name).find(|address| !is_near(address));
        if peers.token.is_empty() {
            if !is_local(listen) {
                told.push(format!(
                    "peers.token: it is empty, and peers.listen = \"{listen}\" can be reached from other machines; set the same secret on every node"
                ));
            } else if let Some(far) = far {
                told.push(format!(
                    "peers.token: it is empty, and {far} is another machine, which anybody could be; set the same secret on every node"
                ));
            }
        } else if peers.token.len() < LEAST_TOKEN {
            told.push(format!(
                "peers.token: it has {} characters, few enough to be guessed; take {LEAST_TOKEN} or more, such as what \"openssl rand -hex 32\" prints",
                peers.token.len()
            ));
        }
        let mut seen = Vec::new();
        for address in &peers.list {
            if seen.contains(&address) {
                told.push(format!("peers.list: {address} is in it twice; name each node once"));
            }
            seen.push(address);
        }
        if let Listen::Tls(address) = listen
            && self.tls.certificates.is_empty()
            && !self.tls.acme.is_on()
        {
            told.push(format!(
                "tls.certificate: there is none for peers.listen = \"https://{address}\"; name a chain and its key under [[tls.certificate]]"
            ));
        }
        told
    }

    /// Returns what is wrong with the upstreams that rules name, and with the number of upstreams.
    fn unknown_upstreams(&self) -> Vec<String> {
        let known: Vec<String> = self.all_upstreams().map(|(name, _)| name.to_owned()).collect();
        let mut told = Vec::new();
        for (n, rule) in self.rules.iter().enumerate() {
            let Some(name) = rule.upstream.as_ref().filter(|name| !known.contains(name)) else { continue };
            let hint = nearest(&known[1..], name);
            let hint = hint.map_or_else(String::new, |known| format!("; the nearest is \"{known}\""));
            told.push(format!("rule[{n}].upstream: there is no [{UPSTREAMS}.{name}]{hint}"));
        }
        if self.upstreams.len() > MAX_UPSTREAMS {
            told.push(format!("{UPSTREAMS}: there are more than {MAX_UPSTREAMS}"));
        }
        told
    }

    /// Returns warnings of what is set for TLS to upstreams that are not spoken to by it.
    fn unused_origin_tls(&self) -> Vec<String> {
        let plain = self.all_upstreams().filter(|(_, upstream)| {
            upstream.tls != TlsConfig::default() && !upstream.addresses.iter().any(Listed::is_tls)
        });
        let told = |(name, _)| {
            let section = Self::section_of(name);
            format!(
                "{section}.url: no address in it is https, so {section}.ca_file, server_name, client_chain and client_key count for nothing; write https://"
            )
        };
        plain.map(told).collect()
    }

    /// Returns a warning of nodes that do not hear of each other's purges.
    fn peers_without_a_bucket(&self) -> Option<String> {
        let is_shared = matches!(self.durable.location, Location::S3 { .. });
        let far = self.peers.list.iter().chain(&self.peers.name).find(|address| !is_near(address));
        far.filter(|_| !is_shared).map(|far| {
            format!(
                "durable.url: it is no bucket, so {far} does not hear of purges on this node; name a bucket that all nodes share, or purge each node"
            )
        })
    }

    /// Returns warnings of upstreams that no request goes to.
    fn unused_upstreams(&self) -> Vec<String> {
        let is_named = |name: &str| self.rules.iter().any(|rule| rule.upstream.as_deref() == Some(name));
        let unused = self.upstreams.iter().filter(|(name, _)| !is_named(name));
        unused
            .map(|(name, _)| {
                format!(
                    "{UPSTREAMS}.{name}: no rule leads to it; add upstream = \"{name}\" to one, or take the section out"
                )
            })
            .collect()
    }

    /// Returns the first listener with TLS.
    fn tls_listener(&self) -> Option<&Listen> {
        self.server.listen.iter().find(|listen| matches!(listen, Listen::Tls(_)))
    }

    /// Returns warnings of settings of TLS that have no effect.
    fn unused_tls(&self) -> Vec<String> {
        let mut told = Vec::new();
        if self.tls.acme.is_on() && self.tls_listener().is_none() {
            told.push(
                "tls.acme.domains: its certificates are not used, since no address of server.listen begins with https://; add one, such as \"https://0.0.0.0:443\"".into(),
            );
        }
        let has_tls_for_peers = matches!(self.peers_listen, Some(Listen::Tls(_)));
        if !self.tls.certificates.is_empty() && self.tls_listener().is_none() && !has_tls_for_peers {
            told.push(
                "tls.certificate: it is not used, since no address of server.listen begins with https://; add one, or take it out".into(),
            );
        }
        if let Some(field) = &self.tls.client_subject_field
            && self.tls.client_ca.as_os_str().is_empty()
        {
            told.push(format!(
                "tls.client_subject_field: \"{field}\" is removed from all requests and never written, since tls.client_ca is empty; set that too, or leave both empty"
            ));
        }
        told
    }

    /// Returns what would let somebody else write the field of a client's subject.
    fn subject_clashes(&self) -> Vec<String> {
        let Some(field) = &self.tls.client_subject_field else { return Vec::new() };
        let mut told = Vec::new();
        if self.server.trusted_fields.contains(field) {
            told.push(format!(
                "tls.client_subject_field: \"{field}\" is in server.trusted_fields too, so that a proxy could write it; take it out there"
            ));
        }
        let twins = self.server.allowed_fields.iter().filter(|name| claims::twin(name.as_str()) == field.as_str());
        told.extend(twins.map(|name| format!(
            "tls.client_subject_field: an application may take \"{name}\", which server.allowed_fields lets through, for \"{field}\"; take it out there"
        )));
        told
    }

    /// Addresses that are to be listened on twice, which can't be.
    fn address_clashes(&self) -> Vec<String> {
        let told = |[(key, one), (other_key, other)]: [(&str, &Listen); 2]| {
            if key == other_key {
                format!("{key}: \"{one}\" and \"{other}\" are one address, which can be listened on once: take one out")
            } else {
                format!(
                    "{other_key}: \"{other}\" and {key} = \"{one}\" are one address, which can be listened on once: choose another port or path for one of them"
                )
            }
        };
        self.overlaps(Overlap::Certain).into_iter().map(told).collect()
    }

    /// Returns a sentence for each setting that is allowed but most likely not meant.
    pub fn warnings(&self) -> Vec<String> {
        let mut told = Vec::new();
        for [(key, one), (other_key, other)] in self.overlaps(Overlap::Perhaps) {
            told.push(format!(
                "{other_key}: \"{other}\" and {key} = \"{one}\" may be one address, which can be listened on once"
            ));
        }
        for (key, listen) in self.listeners() {
            let addresses = self
                .all_upstreams()
                .flat_map(|(name, upstream)| upstream.addresses.iter().map(move |listed| (name, &listed.address)));
            for (name, address) in addresses {
                if leads_to(address, listen) {
                    let section = Self::section_of(name);
                    told.push(format!(
                        "{section}.url: {address} is Larder's own {key} = \"{listen}\": it would ask itself; name the application's address"
                    ));
                }
            }
        }
        let has_tls = self.server.listen.iter().any(|listen| matches!(listen, Listen::Tls(_)));
        if self.server.redirect_to_https
            && !has_tls
            && self.server.trusted_proxies.is_empty()
            && self.server.proxy_protocol.is_empty()
        {
            told.push("server.redirect_to_https: there is no https:// in server.listen, and no trusted proxy that could say that a client came by https: everybody is sent to a port that nobody may listen on".into());
        }
        told.extend(self.small_memory());
        told.extend(self.small_durable_tier());
        told.extend(self.strange_region());
        told.extend(self.unused_tls());
        told.extend(self.peers_without_a_bucket());
        told.extend(self.unused_upstreams());
        told.extend(self.unused_origin_tls());
        told.extend(self.strange_upstreams());
        for name in &self.stray_variables {
            told.push(format!(
                "{name}: it sets nothing; a variable for a key is LARDER_SECTION__KEY, with two underscores"
            ));
        }
        for (n, rule) in self.rules.iter().enumerate() {
            if let Some((former, by)) = self.rules[..n].iter().enumerate().find(|(_, former)| former.hides(rule)) {
                told.push(unreachable(n, rule, former, by));
            }
        }
        told
    }
}

/// The most sections `[upstreams.NAME]`.
const MAX_UPSTREAMS: usize = 10_000;

/// The least memory of any use, in bytes: few responses take less.
const LEAST_MEMORY: u64 = 64 << 10;

impl Config {
    /// Returns a warning of a durable tier that hardly holds more than memory: it keeps what memory holds, and drops the rest.
    fn small_durable_tier(&self) -> Option<String> {
        let (durable, memory) = (self.durable.capacity(), self.memory.capacity);
        let is_small =
            !matches!(self.durable.location, Location::Off) && durable > 0 && durable < memory.saturating_mul(2);
        is_small.then(|| {
            format!(
                "durable.capacity: {} is less than twice memory.capacity, {}: the tier would hold little else than what memory holds; set it to several times as much",
                format_size(durable), format_size(memory)
            )
        })
    }

    /// Returns a warning of memory that holds next to nothing: a size without a unit is mostly not meant in bytes.
    fn small_memory(&self) -> Option<String> {
        let bytes = self.memory.capacity;
        (1..LEAST_MEMORY).contains(&bytes).then(|| {
            format!(
                "memory.capacity: {bytes} is {bytes} bytes, too few to keep more than some small responses; write a unit, such as \"256MiB\", or 0 to keep nothing"
            )
        })
    }

    /// Returns a warning of a region that AWS can't have. Other services name theirs as they like.
    fn strange_region(&self) -> Option<String> {
        let Location::S3 { config, .. } = &self.durable.location else { return None };
        let is_of_aws = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_strange = config.endpoint_url.is_empty() && !config.region.bytes().all(is_of_aws);
        is_strange.then(|| {
            let meant = config.region.to_ascii_lowercase().replace(['_', ' '], "-");
            format!("durable.region: \"{}\" is no region of AWS; did you mean \"{meant}\"?", config.region)
        })
    }
}

fn unreachable(n: usize, rule: &Rule, former: usize, by: &Rule) -> String {
    let is_by_path = [rule, by].iter().all(|rule| rule.host.is_none() && rule.methods.is_empty());
    if is_by_path {
        return format!(
            "rule[{n}].path: \"{}\" is never reached: rule[{former}].path = \"{}\" comes first and matches all of it; put the narrower rule first",
            rule.path, by.path
        );
    }
    format!(
        "rule[{n}]: {} is never reached: rule[{former}], {}, comes first and matches all of it; put the narrower rule first",
        rule.in_words(),
        by.in_words()
    )
}
