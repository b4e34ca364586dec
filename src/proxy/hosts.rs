//! The hosts that a rule is for.

use std::fmt;
use std::net::Ipv6Addr;

use crate::rfc9111::key::split_port;

/// The hosts that a rule is for: `shop.example`, or `*.shop.example` for every name below it. Without a port it is for
/// each port of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    /// The host in lower case; of a wildcard, what follows the star, with its dot.
    host: String,
    is_wildcard: bool,
    port: Option<u16>,
}

impl HostPattern {
    /// Reads a pattern. An error goes on after the pattern, and says what is expected.
    pub(crate) fn read(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "is not a host, such as \"shop.example\", \"*.shop.example\" or \"shop.example:8080\"; leave host out for any";
        let (is_wildcard, rest) = match text.strip_prefix('*') {
            Some(rest) if rest.starts_with('.') => (true, rest),
            Some(_) => return Err(EXPECTED),
            None => (false, text),
        };
        let (host, port) = split_port(rest).ok_or(EXPECTED)?;
        let host = without_final_dot(host).to_ascii_lowercase();
        let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        let is_name = host.bytes().all(is_name_byte) && host.len() > usize::from(is_wildcard);
        let is_dotted_first = host.starts_with('.') != is_wildcard;
        let is_address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_address = is_address.is_some_and(|host| host.parse::<Ipv6Addr>().is_ok());
        if is_dotted_first || !(is_name || is_address) {
            return Err(EXPECTED);
        }
        if matches!(port, Some(80 | 443)) {
            return Err("names the default port of a scheme, and a rule is for both schemes: write the host alone");
        }
        Ok(Self { host, is_wildcard, port })
    }

    /// Returns whether the pattern is for a host, given as the authority of a key. A final dot, which stands for the same
    /// host in the DNS, does not count.
    pub(super) fn matches(&self, authority: &str) -> bool {
        let Some((host, port)) = split_port(authority) else { return false };
        (self.port.is_none() || self.port == port) && self.has(without_final_dot(host))
    }

    /// Returns whether the pattern is for every host that `other` is for.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let is_of_port = self.port.is_none() || self.port == other.port;
        is_of_port
            && match (self.is_wildcard, other.is_wildcard) {
                (true, true) => other.host.ends_with(&self.host),
                (false, true) => false,
                (_, false) => self.has(&other.host),
            }
    }

    fn has(&self, host: &str) -> bool {
        if self.is_wildcard {
            // At least one label stands for the star.
            host.len() > self.host.len() && host.ends_with(&self.host)
        } else {
            host == self.host
        }
    }
}

fn without_final_dot(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.is_wildcard { "*" } else { "" };
        write!(f, "{star}{}", self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_for_the_hosts_that_it_names_and_for_no_others() {
        for (pattern, authority, expected) in [
            ("shop.example", "shop.example", true),
            ("Shop.Example", "shop.example", true),
            ("shop.example.", "shop.example", true),
            ("shop.example", "shop.example.", true),
            ("shop.example", "shop.example..", false),
            ("shop.example", "shop.example:8080", true),
            ("shop.example:8080", "shop.example:8080", true),
            ("shop.example:8080", "shop.example.:8080", true),
            ("shop.example:8080", "shop.example", false),
            ("shop.example:8080", "shop.example:8081", false),
            ("shop.example", "a.shop.example", false),
            ("shop.example", "workshop.example", false),
            ("shop.example", "shop.example.evil.example", false),
            ("shop.example", "", false),
            ("*.shop.example", "a.shop.example", true),
            ("*.shop.example", "a.b.shop.example:9", true),
            ("*.shop.example", "a.shop.example.", true),
            ("*.shop.example", "shop.example", false),
            ("*.shop.example", ".shop.example", false),
            ("*.shop.example", "workshop.example", false),
            ("*.shop.example", "a.shop.example.evil.example", false),
            ("*.shop.example:81", "a.shop.example:81", true),
            ("*.shop.example:81", "a.shop.example", false),
            ("[::1]", "[::1]:8080", true),
            ("[::1]:8080", "[::1]:8081", false),
            ("192.0.2.1", "192.0.2.1", true),
        ] {
            let read = HostPattern::read(pattern).expect(pattern);
            assert_eq!(read.matches(authority), expected, "{pattern} {authority}");
            assert_eq!(HostPattern::read(&read.to_string()), Ok(read), "{pattern} is shown as it is read");
        }
    }

    #[test]
    fn what_is_no_host_is_no_pattern() {
        for text in [
            "",
            "*",
            "*.",
            ".",
            "*shop.example",
            "a.*.example",
            "a*",
            "http://shop.example",
            "shop.example/x",
            "user@shop.example",
            "shop example",
            "shop.example:x",
            "shop.example:443",
            "shop.example:80",
            "*.shop.example:443",
            "sh%6fp.example",
        ] {
            assert!(HostPattern::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_pattern_covers_only_what_it_is_for_in_whole() {
        for (one, other, expected) in [
            ("a.example", "a.example", true),
            ("a.example", "a.example:81", true),
            ("a.example:81", "a.example", false),
            ("*.example", "a.example", true),
            ("*.example", "*.a.example", true),
            ("*.example", "*.example:81", true),
            ("*.a.example", "*.example", false),
            ("a.example", "*.example", false),
            ("*.example", "example", false),
        ] {
            let read = |text| HostPattern::read(text).expect("a pattern");
            assert_eq!(read(one).covers(&read(other)), expected, "{one} {other}");
        }
    }
}
