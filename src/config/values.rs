//! Strings with a form of their own: addresses, URLs, names of fields. Each is read by one function, which returns
//! what is wrong with it, and stands in a [`Text`] that the table names.

use std::path::{Path, PathBuf};

use http::{HeaderName, Method, Uri};
use ipnet::IpNet;

use super::kinds::Text;
use super::settings::DEFAULT_UPSTREAM;
use crate::downstream::{Listen, Sender};
use crate::proxy::HostPattern;
use crate::rfc9111::claims::Claim;
use crate::rfc9111::present::Present;
use crate::rfc9111::{claims, fields};
use crate::store::Location;
use crate::store::s3::S3Config;
use crate::tls::acme::{Domains, StatePlace};
use crate::upstream::Address;

mod upstream;

use self::upstream::upstream_url;
pub(super) use self::upstream::{
    COOKIE_NAME, HASH_BY, HEALTH_PATH, SERVER_NAME, STATUSES, STICKY_KEY, UPSTREAM_HOST, UPSTREAM_URL,
};

pub(super) const LISTEN: Text<Listen> =
    Text { of: "address", bounds: "", example: "unix:/run/larder.sock", read: listen, show: Listen::to_string };

/// Reads an address that clients of HTTP connect to: with a scheme, or without.
fn listen(text: &str) -> Result<Listen, String> {
    let (is_tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        (None, None) => return plain_listen(text),
    };
    let default = if is_tls { 443 } else { 80 };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    // Brackets around an address of IPv6 end it; a colon behind them begins the port.
    let has_port = rest.rsplit_once(':').is_some_and(|(host, _)| !host.contains('[') || host.ends_with(']'));
    let address = if has_port { rest.to_owned() } else { format!("{rest}:{default}") };
    if rest.contains(['/', '?', '#', '@']) {
        return Err("has more than a host and a port; paths are chosen by [[rule]]".into());
    }
    match plain_listen(&address)? {
        Listen::Tcp(address) if is_tls => Ok(Listen::Tls(address)),
        listen => Ok(listen),
    }
}

/// Reads an address without a scheme.
fn plain_listen(text: &str) -> Result<Listen, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return if path.is_empty() { Err("names no path after unix:".into()) } else { Ok(Listen::Unix(path.into())) };
    }
    let (host, port) = text.rsplit_once(':').unwrap_or_default();
    if host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
        return Err("is not host:port, such as \"127.0.0.1:8080\", or \"unix:/path\"".into());
    }
    Ok(Listen::Tcp(text.to_owned()))
}

pub(super) const SOCKET_MODE: Text<u32> = Text {
    of: "text",
    bounds: "octal, 3 or 4 digits",
    example: "0600",
    read: socket_mode,
    show: |mode| format!("{mode:04o}"),
};

fn socket_mode(text: &str) -> Result<u32, String> {
    let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if is_octal && mode <= 0o777 && mode & 0o222 != 0 => Ok(mode),
        Ok(mode) if is_octal && mode <= 0o777 => Err("lets nobody connect: that takes the right to write".into()),
        Ok(_) | Err(_) => Err("is not the mode of a file in octal, such as \"0660\" or \"0600\"".into()),
    }
}

pub(super) const HSTS: Text<String> = Text {
    of: "field value",
    bounds: "",
    example: "max-age=31536000; includeSubDomains",
    read: hsts,
    show: String::clone,
};

/// Reads the value of `Strict-Transport-Security` (RFC 6797 §6.1).
fn hsts(text: &str) -> Result<String, String> {
    let mut directives = text.split(';').map(|directive| directive.trim().to_ascii_lowercase());
    let is_known = |directive: &str| {
        let age = directive.strip_prefix("max-age=").map(|age| age.trim_matches('"').parse::<u64>().is_ok());
        age.unwrap_or(matches!(directive, "" | "includesubdomains" | "preload"))
    };
    let has_age = directives.clone().any(|directive| directive.starts_with("max-age="));
    if text.is_empty() || (has_age && directives.all(|directive| is_known(&directive))) {
        Ok(text.to_owned())
    } else {
        Err("is not max-age=SECONDS, with or without includeSubDomains and preload behind semicolons".into())
    }
}

pub(super) const TOKEN: Text<String> = Text {
    of: "secret",
    bounds: "letters, digits and signs",
    example: "a-long-random-word",
    read: admin_token,
    show: String::clone,
};

fn admin_token(text: &str) -> Result<String, String> {
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("has characters that a field can't carry: use letters, digits and signs, without white space".into())
    }
}

pub(super) const PASSWORD: Text<String> =
    Text { of: "secret", bounds: "", example: "a-long-random-word", read: password, show: String::clone };

fn password(text: &str) -> Result<String, String> {
    if text.chars().any(char::is_control) {
        Err("has characters that can't be typed, such as a line break".into())
    } else {
        Ok(text.to_owned())
    }
}

pub(super) const ADMIN_HOST: Text<String> =
    Text { of: "host name", bounds: "", example: "larder.internal", read: admin_host, show: String::clone };

fn admin_host(text: &str) -> Result<String, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if !text.is_empty() && text.len() <= 253 && text.chars().all(is_name) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("is not the name of a host, without scheme and port, such as \"larder.internal\"".into())
    }
}

pub(super) const OPTIONAL_LISTEN: Text<Option<Listen>> = Text {
    of: "address",
    bounds: "",
    example: "unix:/run/larder-admin.sock",
    read: optional_listen,
    show: |listen| listen.as_ref().map_or_else(|| "off".into(), Listen::to_string),
};

fn optional_listen(text: &str) -> Result<Option<Listen>, String> {
    if text == "off" {
        return Ok(None);
    }
    plain_listen(text).map(Some).map_err(|why| format!("{why}, or \"off\""))
}

pub(super) const PEERS_LISTEN: Text<Option<Listen>> = Text {
    of: "address",
    bounds: "",
    example: "10.0.0.2:8081",
    read: peers_listen,
    show: |listen| listen.as_ref().map_or_else(|| "off".into(), Listen::to_string),
};

fn peers_listen(text: &str) -> Result<Option<Listen>, String> {
    match text {
        "off" => Ok(None),
        _ => match listen(text).map_err(|why| format!("{why}, or \"off\""))? {
            Listen::Unix(_) => Err("is a unix socket, which other nodes can't reach".into()),
            listen => Ok(Some(listen)),
        },
    }
}

pub(super) const PEER: Text<Address> =
    Text { of: "URL", bounds: "", example: "http://10.0.0.2:8081", read: peer, show: Address::to_string };

/// Reads the address of a peer: with a scheme, or without.
fn peer(text: &str) -> Result<Address, String> {
    const ALLOWED: &str = "is not \"http://host:port\" or \"https://host:port\"";
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    match upstream_url(&url) {
        Ok(address @ Address::Tcp { .. }) => Ok(address),
        Ok(Address::Unix(_)) | Err(_) => Err(ALLOWED.into()),
    }
}

pub(super) const NETWORK: Text<IpNet> =
    Text { of: "address or network", bounds: "", example: "10.0.0.0/8", read: network, show: network_shown };

fn network(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| "is not an address or a network, such as \"10.0.0.0/8\"".into())
}

/// A network of one address is shown as the address.
fn network_shown(network: &IpNet) -> String {
    let is_one = network.prefix_len() == network.max_prefix_len();
    if is_one { network.addr().to_string() } else { network.to_string() }
}

pub(super) const PROXY_SENDER: Text<Sender> =
    Text { of: "address or network", bounds: "", example: "10.0.0.0/8", read: proxy_sender, show: proxy_sender_shown };

fn proxy_sender(text: &str) -> Result<Sender, String> {
    match text {
        "unix" => Ok(Sender::Unix),
        _ => network(text).map(Sender::Network).map_err(|why| format!("{why}, or \"unix\"")),
    }
}

fn proxy_sender_shown(sender: &Sender) -> String {
    match sender {
        Sender::Network(network) => network_shown(network),
        Sender::Unix => "unix".into(),
    }
}

pub(super) const TRUSTED_FIELD: Text<HeaderName> = Text {
    of: "field name",
    bounds: "",
    example: "X-Forwarded-Prefix",
    read: trusted_field,
    show: HeaderName::to_string,
};

/// A further field to believe trusted proxies in.
fn trusted_field(text: &str) -> Result<HeaderName, String> {
    let name = field_name(text)?;
    if !claims::is_plain(name.as_str()) {
        return Err("has other characters than letters, digits and hyphens; see server.allowed_fields".into());
    }
    match claims::claim(name.as_str()) {
        Some(Claim::For | Claim::Proto | Claim::Host) => {
            Err("is believed of trusted proxies as it is, and need not be listed".into())
        }
        Some(Claim::Tls) => Err("only says the scheme, which X-Forwarded-Proto says".into()),
        _ if is_read_here(&name) => Err("is one that Larder itself reads or writes, and can't be believed".into()),
        Some(Claim::Address | Claim::Method | Claim::Other) | None => Ok(name),
    }
}

pub(super) const SUBJECT_FIELD: Text<HeaderName> = Text {
    of: "field name",
    bounds: "",
    example: "X-Client-Subject",
    read: subject_field,
    show: HeaderName::to_string,
};

/// A field that Larder writes the subject of a client's certificate to.
fn subject_field(text: &str) -> Result<HeaderName, String> {
    let name = field_name(text)?;
    if !claims::is_plain(name.as_str()) {
        return Err(
            "has other characters than letters, digits and hyphens, which applications take for one another".into()
        );
    }
    let is_of_another_kind = !matches!(claims::claim(name.as_str()), Some(Claim::Other) | None);
    if is_of_another_kind || is_read_here(&name) {
        return Err("is one that Larder itself reads or writes for another purpose; choose a name of its own".into());
    }
    Ok(name)
}

pub(super) const ALLOWED_FIELD: Text<HeaderName> =
    Text { of: "field name", bounds: "", example: "X_Tenant", read: allowed_field, show: HeaderName::to_string };

/// A field name with other characters than letters, digits and hyphens that may pass.
fn allowed_field(text: &str) -> Result<HeaderName, String> {
    let name = field_name(text)?;
    if claims::is_plain(name.as_str()) {
        return Err("has letters, digits and hyphens only, and passes as it is".into());
    }
    let twin = HeaderName::try_from(claims::twin(name.as_str())).map_err(|_| "is not the name of a field")?;
    if is_read_here(&twin) || claims::claim(twin.as_str()).is_some() {
        return Err(format!("could be taken for {twin} by an application, which must not come from a client that way"));
    }
    Ok(name)
}

/// Returns whether a field decides here about framing, connections, conditions, caching, or the origin asked.
fn is_read_here(name: &HeaderName) -> bool {
    let mut fields = http::HeaderMap::new();
    fields.insert(name.clone(), http::HeaderValue::from_static("x"));
    Present::of(&fields).has(Present::ANY_BUT_CLAIMS)
        || fields::is_hop_by_hop(name)
        || matches!(
            *name,
            http::header::HOST
                | http::header::CONTENT_LENGTH
                | http::header::AUTHORIZATION
                | http::header::COOKIE
                | http::header::EXPECT
                | http::header::TRAILER
                | http::header::IF_RANGE
                | http::header::VIA
                | http::header::MAX_FORWARDS
        )
}

pub(super) const KEY_PREFIX: Text<String> =
    Text { of: "text", bounds: "up to 128 bytes", example: "site-a", read: key_prefix, show: String::clone };

fn key_prefix(text: &str) -> Result<String, String> {
    if text.len() > 128 { Err("is longer than 128 bytes".into()) } else { Ok(text.to_owned()) }
}

pub(super) const DURABLE_URL: Text<Location> =
    Text { of: "URL", bounds: "", example: "s3://bucket/any/prefix", read: durable_url, show: location_shown };

fn durable_url(text: &str) -> Result<Location, String> {
    const ALLOWED: &str = "is not \"file:/directory\", \"s3://bucket/prefix\" or \"off\"";
    if text == "off" {
        return Ok(Location::Off);
    }
    if let Some(path) = text.strip_prefix("file:") {
        let path = match path.strip_prefix("//") {
            Some(path) if !path.starts_with('/') => return Err(format!("names a host; it {ALLOWED}")),
            Some(path) => path,
            None => path,
        };
        if path.is_empty() {
            return Err(ALLOWED.into());
        }
        if Path::new(path).parent().is_none() {
            return Err("is the root of the file system; name a directory for the cache alone".into());
        }
        return Ok(Location::File(path.into()));
    }
    let rest = text.strip_prefix("s3://").ok_or_else(|| ALLOWED.to_owned())?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let is_bucket = (3..=63).contains(&bucket.len())
        && bucket.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b));
    if !is_bucket {
        return Err(format!("names no bucket (3 to 63 lower-case letters, digits, dots and hyphens); it {ALLOWED}"));
    }
    let config =
        S3Config { bucket: bucket.to_owned(), endpoint_url: String::new(), region: String::new(), path_style: false };
    Ok(Location::S3 { config, prefix: prefix.trim_matches('/').to_owned() })
}

fn location_shown(location: &Location) -> String {
    match location {
        Location::Off => "off".into(),
        Location::File(path) => format!("file:{}", path.display()),
        Location::S3 { config, prefix } if prefix.is_empty() => format!("s3://{}", config.bucket),
        Location::S3 { config, prefix } => format!("s3://{}/{prefix}", config.bucket),
    }
}

pub(super) const ENDPOINT: Text<String> =
    Text { of: "URL", bounds: "", example: "https://s3.example", read: endpoint, show: String::clone };

fn endpoint(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    match text.parse::<Uri>() {
        Ok(uri) if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) => {
            Err("has a user name or a password; credentials come from the environment or a profile".into())
        }
        Ok(uri) if uri.query().is_some() => Err("has a query, which an endpoint can't have".into()),
        Ok(uri) if matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some() => {
            Ok(text.to_owned())
        }
        Ok(_) | Err(_) => Err("is not an http or https URL".into()),
    }
}

pub(super) const RULE_PATH: Text<String> =
    Text { of: "text", bounds: "begins with / or *", example: "/static/*", read: rule_path, show: String::clone };

fn rule_path(text: &str) -> Result<String, String> {
    if text.starts_with('/') || text.starts_with('*') {
        Ok(text.to_owned())
    } else {
        Err("does not start with / or *".into())
    }
}

pub(super) const RULE_HOST: Text<HostPattern> = Text {
    of: "host",
    bounds: "",
    example: "*.shop.example",
    read: |text| HostPattern::read(text).map_err(str::to_owned),
    show: HostPattern::to_string,
};

pub(super) const METHOD: Text<Method> =
    Text { of: "method", bounds: "in capitals", example: "POST", read: method, show: Method::to_string };

fn method(text: &str) -> Result<Method, String> {
    match text {
        "HEAD" => Err("goes where GET goes; write GET".into()),
        "CONNECT" | "TRACE" | "PURGE" => Err("is never passed on to an application".into()),
        _ if text.bytes().any(|byte| byte.is_ascii_lowercase()) => Err("is not in capitals, as methods are".into()),
        _ => Method::from_bytes(text.as_bytes()).map_err(|_| "is not a method, such as \"GET\" or \"POST\"".into()),
    }
}

pub(super) const RULE_UPSTREAM: Text<String> =
    Text { of: "name", bounds: "", example: "api", read: |text| Ok(text.to_owned()), show: String::clone };

/// The longest name of an upstream.
const MAX_UPSTREAM_NAME: usize = 64;

/// Checks the name of an upstream: one that a variable can have, too. An error goes on after the name.
pub(super) fn check_upstream_name(name: &str) -> Result<(), &'static str> {
    let is_sound = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if !is_sound || name.is_empty() || name.len() > MAX_UPSTREAM_NAME {
        return Err("is not a name of 1 to 64 letters, digits, hyphens and underscores");
    }
    if name.starts_with('_') || name.ends_with('_') || name.contains("__") {
        return Err("has underscores at an end or two in a row, which in variables separate names");
    }
    if name.eq_ignore_ascii_case(DEFAULT_UPSTREAM) {
        return Err("stands for [upstream]; put its keys there, or choose another name");
    }
    Ok(())
}

pub(super) const TARGET: Text<HeaderName> = Text {
    of: "field name",
    bounds: "end in -Cache-Control",
    example: "CDN-Cache-Control",
    read: target,
    show: HeaderName::to_string,
};

fn target(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| "is not a field name".to_owned())?;
    if name.as_str().ends_with("-cache-control") {
        Ok(name)
    } else {
        Err("is not a targeted field: their names end in -Cache-Control (RFC 9213)".into())
    }
}

pub(super) const FIELD_NAME: Text<HeaderName> =
    Text { of: "field name", bounds: "", example: "Cache-Tag", read: field_name, show: HeaderName::to_string };

fn field_name(text: &str) -> Result<HeaderName, String> {
    text.parse().map_err(|_| "is not the name of a field".into())
}

pub(super) const TAG: Text<String> = Text {
    of: "tag",
    bounds: "1 to 256 bytes each, without white space or commas",
    example: "static",
    read: tag,
    show: String::clone,
};

fn tag(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 256 || text.bytes().any(|b| b.is_ascii_whitespace() || b == b',') {
        Err("is not a tag: 1 to 256 bytes without white space or commas".into())
    } else {
        Ok(text.to_owned())
    }
}

pub(super) const REGION: Text<String> =
    Text { of: "text", bounds: "", example: "eu-central-1", read: |text| Ok(text.to_owned()), show: String::clone };

pub(super) const PARAMETER: Text<String> =
    Text { of: "parameter", bounds: "", example: "utm_*", read: |text| Ok(text.to_owned()), show: String::clone };

pub(super) const FILE: Text<PathBuf> = Text {
    of: "path",
    bounds: "",
    example: "/etc/larder/tls.pem",
    read: |text| Ok(text.into()),
    show: |path| path.display().to_string(),
};

pub(super) const DOMAINS: Text<Domains> = Text {
    of: "names of hosts",
    bounds: "at most 100, with spaces between them",
    example: "shop.example www.shop.example",
    read: Domains::read,
    show: Domains::shown,
};

pub(super) const EMAIL: Text<String> =
    Text { of: "address", bounds: "", example: "webmaster@shop.example", read: email, show: String::clone };

fn email(text: &str) -> Result<String, String> {
    let is_plain =
        text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b',' | b'?' | b'<' | b'>' | b'"'));
    let has_both = text.split_once('@').is_some_and(|(who, host)| !who.is_empty() && host.contains('.'));
    if text.is_empty() || (is_plain && has_both) {
        Ok(text.to_owned())
    } else {
        Err("is not one mail address, such as \"webmaster@shop.example\"".into())
    }
}

pub(super) const ACME_DIRECTORY: Text<String> = Text {
    of: "URL",
    bounds: "https",
    example: "https://acme-staging-v02.api.letsencrypt.org/directory",
    read: acme_directory,
    show: String::clone,
};

fn acme_directory(text: &str) -> Result<String, String> {
    match text.parse::<Uri>() {
        Ok(uri)
            if uri.scheme_str() == Some("https")
                && uri.authority().is_some_and(|name| !name.as_str().contains('@')) =>
        {
            Ok(text.to_owned())
        }
        Ok(_) | Err(_) => {
            Err("is not the https URL of a CA's directory, such as \"https://acme-v02.api.letsencrypt.org/directory\""
                .into())
        }
    }
}

pub(super) const ACME_STATE: Text<StatePlace> = Text {
    of: "path",
    bounds: "or \"bucket\", or empty",
    example: "/var/lib/larder/acme",
    read: |text| {
        Ok(match text {
            "" => StatePlace::Default,
            "bucket" => StatePlace::Bucket,
            path => StatePlace::Directory(path.strip_prefix("file:").unwrap_or(path).into()),
        })
    },
    show: |place| match place {
        StatePlace::Default => String::new(),
        StatePlace::Bucket => "bucket".into(),
        StatePlace::Directory(path) => path.display().to_string(),
    },
};

pub(super) const PROFILE: Text<String> =
    Text { of: "text", bounds: "", example: "shortlived", read: profile, show: String::clone };

fn profile(text: &str) -> Result<String, String> {
    if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
        Ok(text.to_owned())
    } else {
        Err("is not the name of a profile, such as \"shortlived\"".into())
    }
}

pub(super) const DIRECTORY: Text<PathBuf> = Text {
    of: "path",
    bounds: "",
    example: "/var/tmp",
    read: |text| Ok(text.into()),
    show: |path| path.display().to_string(),
};
