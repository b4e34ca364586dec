//! The kinds of text of `[upstream]`.

use std::path::PathBuf;

use http::{HeaderName, Uri};

use super::{Text, password};
use crate::rfc9111::key::normal_authority;
use crate::upstream::{Address, HashBy, Listed};

pub(in crate::config) const UPSTREAM_URL: Text<Listed> =
    Text { of: "URL", bounds: "", example: "unix:/run/gunicorn.sock", read: listed_url, show: Listed::to_string };

/// Reads one of the addresses of an upstream, with what stands behind it.
fn listed_url(text: &str) -> Result<Listed, String> {
    let mut words = text.split_ascii_whitespace();
    let mut listed = Listed::from(upstream_url(words.next().unwrap_or_default())?);
    for word in words {
        match word.strip_prefix("weight=").map(str::parse) {
            Some(Ok(weight @ 1..=1000)) => listed.weight = weight,
            Some(_) => return Err(format!("has {word} behind it, and a weight is a whole number from 1 to 1000")),
            None if word == "backup" => listed.is_backup = true,
            None => return Err(format!("has {word} behind it, where only weight=NUMBER and backup may stand")),
        }
    }
    Ok(listed)
}

pub(in crate::config) fn upstream_url(text: &str) -> Result<Address, String> {
    const ALLOWED: &str = "is not \"http://host:port\", \"https://host:port\" or \"unix:/path\"";
    if let Some(path) = text.strip_prefix("unix:") {
        return if path.is_empty() { Err(ALLOWED.into()) } else { Ok(Address::Unix(PathBuf::from(path))) };
    }
    let uri: Uri = text.parse().map_err(|_| ALLOWED.to_owned())?;
    let is_tls = uri.scheme_str() == Some("https");
    let authority =
        uri.authority().filter(|_| is_tls || uri.scheme_str() == Some("http")).ok_or_else(|| ALLOWED.to_owned())?;
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() || authority.as_str().contains('@') {
        return Err(format!("{ALLOWED}; paths of clients are passed on as they are, so it can't have one"));
    }
    let port = match authority.as_str().strip_prefix(authority.host()).and_then(|rest| rest.strip_prefix(':')) {
        Some(digits) => digits.parse().ok().filter(|port| *port != 0).ok_or_else(|| ALLOWED.to_owned())?,
        None if is_tls => 443,
        None => 80,
    };
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    if host.is_empty() { Err(ALLOWED.into()) } else { Ok(Address::Tcp { host, port, is_tls }) }
}

pub(in crate::config) const SERVER_NAME: Text<String> =
    Text { of: "host name", bounds: "", example: "app.internal", read: server_name, show: String::clone };

fn server_name(text: &str) -> Result<String, String> {
    if text.is_empty() || rustls::pki_types::ServerName::try_from(text).is_ok() {
        Ok(text.to_owned())
    } else {
        Err("is not a host name or an address that a certificate can be for".into())
    }
}

pub(in crate::config) const HASH_BY: Text<HashBy> =
    Text { of: "text", bounds: "", example: "cookie:session", read: hash_by, show: shown_hash_by };

fn hash_by(text: &str) -> Result<HashBy, String> {
    const ALLOWED: &str = "is not \"path\", \"field:NAME\" or \"cookie:NAME\"";
    match text.split_once(':') {
        None if text == "path" => Ok(HashBy::Path),
        Some(("field", name)) => name.parse().map(HashBy::Field).map_err(|_| ALLOWED.into()),
        Some(("cookie", name)) if name.parse::<HeaderName>().is_ok() => Ok(HashBy::Cookie(name.to_owned())),
        Some(_) | None => Err(ALLOWED.into()),
    }
}

fn shown_hash_by(by: &HashBy) -> String {
    match by {
        HashBy::Path => "path".into(),
        HashBy::Field(name) => format!("field:{name}"),
        HashBy::Cookie(name) => format!("cookie:{name}"),
    }
}

pub(in crate::config) const COOKIE_NAME: Text<String> =
    Text { of: "cookie name", bounds: "", example: "larder-at", read: cookie_name, show: String::clone };

fn cookie_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.parse::<HeaderName>().is_ok() {
        Ok(text.to_owned())
    } else {
        Err("is not the name of a cookie: use letters, digits, hyphens and underscores".into())
    }
}

pub(in crate::config) const STICKY_KEY: Text<String> = Text {
    of: "secret",
    bounds: "at least 16 characters, or empty",
    example: "a-long-random-word",
    read: sticky_key,
    show: String::clone,
};

fn sticky_key(text: &str) -> Result<String, String> {
    if text.is_empty() || text.chars().count() >= 16 {
        password(text)
    } else {
        Err("is shorter than 16 characters, and could be found by trying; make it longer".into())
    }
}

pub(in crate::config) const HEALTH_PATH: Text<String> =
    Text { of: "path", bounds: "", example: "/healthz", read: health_path, show: String::clone };

fn health_path(text: &str) -> Result<String, String> {
    let is_path = text.starts_with('/') && text.parse::<Uri>().is_ok_and(|uri| uri.authority().is_none());
    if text.is_empty() || is_path {
        Ok(text.to_owned())
    } else {
        Err("is not a path, such as \"/healthz\", or empty".into())
    }
}

pub(in crate::config) const STATUSES: Text<(u16, u16)> = Text {
    of: "statuses",
    bounds: "",
    example: "200-204",
    read: statuses,
    show: |(least, most)| format!("{least}-{most}"),
};

fn statuses(text: &str) -> Result<(u16, u16), String> {
    let (least, most) = text.split_once('-').unwrap_or((text, text));
    match (least.trim().parse(), most.trim().parse()) {
        (Ok(least), Ok(most)) if (100..=599).contains(&least) && (least..=599).contains(&most) => Ok((least, most)),
        _ => Err("is not a status, such as \"200\", or the first and the last of some, such as \"200-399\"".into()),
    }
}

pub(in crate::config) const UPSTREAM_HOST: Text<Option<String>> = Text {
    of: "host name",
    bounds: "",
    example: "app.internal",
    read: upstream_host,
    show: |host| host.clone().unwrap_or_else(|| "preserve".into()),
};

fn upstream_host(text: &str) -> Result<Option<String>, String> {
    if text == "preserve" {
        return Ok(None);
    }
    match normal_authority(text, "http") {
        Some(_) => Ok(Some(text.to_owned())),
        None => Err("is not \"preserve\" or a host name for every request".into()),
    }
}
