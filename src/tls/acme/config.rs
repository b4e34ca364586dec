//! `[tls.acme]`

use std::path::PathBuf;
use std::time::Duration;

/// `[tls.acme]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The certificates to get: the names that each is for. Empty: ACME is off.
    pub domains: Vec<Domains>,
    /// The address at which the CA reaches the operator; empty: none.
    pub email: String,
    /// The URL of the CA's directory.
    pub directory: String,
    /// The file of the authorities that the directory's own certificate may come from; empty: those of the machine.
    pub ca_file: PathBuf,
    /// The file of the account's private key; empty: one is made, and kept in the state.
    pub account_key: PathBuf,
    /// True if the operator agrees to the CA's terms of service.
    pub accept_terms: bool,
    /// The place of the account, the certificates and their keys.
    pub state: StatePlace,
    /// The challenge that the CA is asked for.
    pub challenge: ChallengeChoice,
    /// The profile that the CA is asked for; empty: its default.
    pub profile: String,
    /// The time between two looks at the state.
    pub poll_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            domains: Vec::new(),
            email: String::new(),
            directory: LETS_ENCRYPT.into(),
            ca_file: PathBuf::new(),
            account_key: PathBuf::new(),
            accept_terms: false,
            state: StatePlace::Default,
            challenge: ChallengeChoice::Auto,
            profile: String::new(),
            poll_interval: Duration::from_secs(45),
        }
    }
}

/// Let's Encrypt's directory.
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// The names of one certificate, in lower case: at least one, each once, in the order of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domains(Vec<String>);

/// `tls.acme.state`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatePlace {
    /// The bucket, if the durable tier is one; otherwise a directory has to be named.
    Default,
    /// The bucket of the durable tier.
    Bucket,
    /// A directory.
    Directory(PathBuf),
}

/// `tls.acme.challenge`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChallengeChoice {
    /// By the listeners.
    Auto,
    /// A request to port 80 (RFC 8555 §8.3).
    Http01,
    /// A handshake with port 443 (RFC 8737).
    TlsAlpn01,
}

/// The most names of one certificate: as many as Let's Encrypt takes.
const MAX_NAMES: usize = 100;

impl Domains {
    /// Reads names with white space between them. The error goes on after the text.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let mut names: Vec<String> = Vec::new();
        for name in text.split_ascii_whitespace() {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            check(&name)?;
            if !names.contains(&name) {
                names.push(name);
            }
        }
        match names.len() {
            0 => Err("names no host; write one such as \"shop.example\", or several with spaces between them".into()),
            1..=MAX_NAMES => Ok(Self(names)),
            many => Err(format!("has {many} names; a certificate is for at most {MAX_NAMES}: make several of it")),
        }
    }

    /// Returns the names.
    pub(crate) fn names(&self) -> &[String] {
        &self.0
    }

    /// Returns the names with spaces between them.
    pub(crate) fn shown(&self) -> String {
        self.0.join(" ")
    }
}

/// Checks a name in lower case.
fn check(name: &str) -> Result<(), String> {
    if name.starts_with("*.") {
        return Err(format!(
            "has {name}, for which CAs demand a record in DNS (dns-01), which Larder does not do: name each host, or get \
             that certificate by another program, and name its files in [[tls.certificate]]"
        ));
    }
    if name.parse::<std::net::IpAddr>().is_ok() {
        return Err(format!("has {name}, which is an address: name the host"));
    }
    if !name.is_ascii() {
        return Err(format!("has {name}: write it as DNS does, in letters, digits and hyphens (xn--…)"));
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(is_label) {
        return Err(format!("has {name}, which is not the name of a host, such as \"shop.example\""));
    }
    if !name.contains('.') {
        return Err(format!("has {name}, which no CA knows: a public name has a dot, such as \"shop.example\""));
    }
    Ok(())
}

impl Config {
    /// Returns whether certificates are to be got.
    pub fn is_on(&self) -> bool {
        !self.domains.is_empty()
    }

    /// Returns what is wrong with the keys together, a sentence each. `has_bucket`: the durable tier is one.
    pub(crate) fn mistakes(&self, has_bucket: bool) -> Vec<String> {
        let mut told = Vec::new();
        if !self.is_on() {
            return told;
        }
        if !self.accept_terms {
            told.push(format!(
                "tls.acme.accept_terms: it is false, and the CA gives certificates only to those who agree to its terms of \
                 service: read them (their address is in {}), then set it to true",
                self.directory
            ));
        }
        match self.state {
            StatePlace::Default if !has_bucket => told.push(
                "tls.acme.state: it has to name a directory that is kept when this machine or container is replaced, such as \
                 \"/var/lib/larder/acme\", since durable.url is no bucket: a certificate that is lost is ordered again, and CAs \
                 give only a few a week"
                    .into(),
            ),
            StatePlace::Bucket if !has_bucket => {
                told.push("tls.acme.state: it is \"bucket\", and durable.url is no bucket: name one, or a directory".into());
            }
            StatePlace::Default | StatePlace::Bucket | StatePlace::Directory(_) => {}
        }
        let mut seen: Vec<&String> = Vec::new();
        for name in self.domains.iter().flat_map(Domains::names) {
            if seen.contains(&name) {
                told.push(format!("tls.acme.domains: {name} is there twice; one certificate is enough"));
            }
            seen.push(name);
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_what_no_ca_takes_is_refused_with_what_to_do() {
        let read = |text: &str| Domains::read(text).map(|domains| domains.shown());
        assert_eq!(read("Shop.Example.").as_deref(), Ok("shop.example"));
        assert_eq!(read(" b.example  a.example b.example").as_deref(), Ok("b.example a.example"));
        for (text, said) in [
            ("", "names no host"),
            ("*.shop.example", "dns-01"),
            ("shop.example *.shop.example", "*.shop.example"),
            ("192.0.2.1", "is an address"),
            ("2001:db8::1", "is an address"),
            ("shop", "has a dot"),
            ("bücher.example", "xn--"),
            ("a_b.example", "not the name of a host"),
            ("a..example", "not the name of a host"),
            ("-a.example", "not the name of a host"),
            ("shop.example:443", "not the name of a host"),
            ("https://shop.example/", "not the name of a host"),
        ] {
            let why = read(text).expect_err(text);
            assert!(why.contains(said), "{text}: {why}");
        }
        let many: Vec<String> = (0..101).map(|n| format!("{n}.example")).collect();
        assert!(read(&many.join(" ")).is_err());
    }

    #[test]
    fn keys_that_do_not_go_together_are_told_at_the_start() {
        let domains = |text: &str| Domains::read(text).expect("names");
        assert!(Config::default().mistakes(false).is_empty(), "off");
        let on = Config { domains: vec![domains("a.example")], ..Config::default() };
        let told = on.mistakes(false);
        assert!(told[0].contains("accept_terms") && told[1].contains("/var/lib/larder/acme"), "{told:?}");
        let agreed = Config { accept_terms: true, ..on };
        assert!(agreed.mistakes(true).is_empty());
        let bucket = Config { state: StatePlace::Bucket, ..agreed.clone() };
        assert!(bucket.mistakes(true).is_empty() && bucket.mistakes(false)[0].contains("no bucket"));
        let directory = Config { state: StatePlace::Directory("/d".into()), ..agreed };
        assert!(directory.mistakes(false).is_empty());
        let twice = Config { domains: vec![domains("a.example b.example"), domains("b.example")], ..directory };
        assert!(twice.mistakes(false)[0].contains("b.example is there twice"));
    }
}
