//! Keeps a client at one address of an upstream, by a cookie of ours.
//!
//! The cookie's value is made of the address's name with a secret, so that nobody can choose an address whose value he was
//! not given. No stored response has the cookie: a client is given one only with a response that nobody else gets. What
//! comes back is taken out of the request before anything looks at its `Cookie` field.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use aws_lc_rs::rand::fill;
use http::header::{self, HeaderMap, HeaderValue};

use super::endpoint::Endpoint;

/// The most values of one request that are compared.
const MAX_VALUES: usize = 8;

/// The cookie of an upstream.
pub(super) struct Sticky {
    name: String,
    key: Key,
}

impl fmt::Debug for Sticky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sticky").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Sticky {
    /// Makes the cookie `name`, with values by `secret`. Without a secret the values hold until the process ends. Fails if
    /// the system has no random bytes.
    pub(super) fn new(name: &str, secret: &str) -> Result<Self, Unspecified> {
        let mut random = [0; 32];
        fill(&mut random)?;
        let secret = if secret.is_empty() { &random[..] } else { secret.as_bytes() };
        Ok(Self { name: name.to_owned(), key: Key::new(HMAC_SHA256, secret) })
    }

    /// Returns the value that stands for an address.
    fn value<'a>(&self, endpoint: &'a Endpoint) -> &'a str {
        endpoint.sticky.get_or_init(|| {
            let signature = sign(&self.key, endpoint.name.as_bytes());
            let first: u128 = signature.as_ref()[..16].iter().fold(0, |sum, byte| sum << 8 | u128::from(*byte));
            format!("{first:032x}")
        })
    }

    /// Returns the one of `endpoints` that the cookies of a request stand for.
    pub(super) fn find(&self, cookies: &StickyCookies, endpoints: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
        let given = cookies.0.iter().filter(|(name, _)| *name == self.name);
        let values: Vec<&[u8]> = given.map(|(_, value)| &value[..]).collect();
        let is_meant = |endpoint: &&Arc<Endpoint>| values.contains(&self.value(endpoint).as_bytes());
        if values.is_empty() { None } else { endpoints.iter().find(is_meant).cloned() }
    }

    /// Returns the cookie that keeps a client at an address.
    pub(super) fn cookie(&self, endpoint: &Endpoint) -> NewStickyCookie {
        NewStickyCookie(format!("{}={}; Path=/; HttpOnly; SameSite=Lax", self.name, self.value(endpoint)))
    }
}

/// The cookies of ours that a request came with: names and values.
#[derive(Clone, Debug)]
pub(crate) struct StickyCookies(Vec<(String, Vec<u8>)>);

impl StickyCookies {
    /// Takes the cookies of these names out of a request. Leaves the others as they came.
    pub(crate) fn take(fields: &mut HeaderMap, names: &[String]) -> Option<Self> {
        let is_ours = |name: &[u8]| names.iter().any(|ours| ours.as_bytes() == name);
        let has_ours =
            |field: &HeaderValue| field.as_bytes().split(|byte| *byte == b';').any(|pair| is_ours(split(pair).0));
        if !fields.get_all(header::COOKIE).iter().any(has_ours) {
            return None;
        }
        let mut taken = Vec::new();
        let received: Vec<HeaderValue> = fields.get_all(header::COOKIE).iter().cloned().collect();
        fields.remove(header::COOKIE);
        for field in received {
            let (ours, others): (Vec<&[u8]>, Vec<&[u8]>) =
                field.as_bytes().split(|byte| *byte == b';').partition(|pair| is_ours(split(pair).0));
            for (name, value) in ours.into_iter().map(split) {
                if taken.len() < MAX_VALUES {
                    taken.push((String::from_utf8_lossy(name).into_owned(), value.to_owned()));
                }
            }
            let left = others.join(&b';');
            if !left.trim_ascii().is_empty()
                && let Ok(left) = HeaderValue::from_bytes(left.trim_ascii())
            {
                fields.append(header::COOKIE, left);
            }
        }
        Some(Self(taken))
    }

    /// Writes the cookies for a peer.
    pub(super) fn to_value(&self) -> Option<HeaderValue> {
        let pairs: Vec<Vec<u8>> =
            self.0.iter().map(|(name, value)| [name.as_bytes(), b"=", value.as_slice()].concat()).collect();
        HeaderValue::from_bytes(&pairs.join(&b';')).ok()
    }

    /// Reads what [`StickyCookies::to_value`] wrote.
    pub(super) fn of_value(told: &HeaderValue) -> Self {
        let pairs = told.as_bytes().split(|byte| *byte == b';').take(MAX_VALUES).map(split);
        Self(pairs.map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.to_owned())).collect())
    }
}

/// Splits a pair of a `Cookie` field into name and value.
fn split(pair: &[u8]) -> (&[u8], &[u8]) {
    match pair.iter().position(|byte| *byte == b'=') {
        Some(at) => (pair[..at].trim_ascii(), pair[at + 1..].trim_ascii()),
        None => (pair.trim_ascii(), b""),
    }
}

/// An extension of a response from the origin: the cookie that its client is to get, if nobody else gets the response.
#[derive(Clone, Debug)]
pub(crate) struct NewStickyCookie(String);

impl NewStickyCookie {
    /// Takes over the cookie that a peer tells of.
    pub(super) fn of_value(told: &HeaderValue) -> Option<Self> {
        told.to_str().ok().map(|told| Self(told.to_owned()))
    }

    /// Returns the `Set-Cookie` field for a client that came by `scheme`.
    pub(crate) fn to_value(&self, scheme: &str) -> Option<HeaderValue> {
        let secure = if scheme == "https" { "; Secure" } else { "" };
        HeaderValue::try_from(format!("{}{secure}", self.0)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_cookies_are_taken_out_and_the_others_stay_as_they_are() {
        for (fields, left, taken) in [
            (vec!["a=1; at=x; b=2"], vec!["a=1; b=2"], vec!["x"]),
            (vec!["at=x"], vec![], vec!["x"]),
            (vec!["at=x; b=2"], vec!["b=2"], vec!["x"]),
            (vec!["a=1;at=x"], vec!["a=1"], vec!["x"]),
            (vec!["at=x; at=y", "at=z; c=\"q;\" "], vec!["c=\"q;\""], vec!["x", "y", "z"]),
            (vec!["cat=1; at"], vec!["cat=1"], vec![""]),
            (vec!["AT=1;  at =x;c"], vec!["AT=1;c"], vec!["x"]),
        ] {
            let mut map = HeaderMap::new();
            for field in &fields {
                map.append(header::COOKIE, HeaderValue::from_static(field));
            }
            let cookies = StickyCookies::take(&mut map, &["at".to_owned()]).expect("there is one");
            let values: Vec<String> =
                cookies.0.iter().map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect();
            assert_eq!(values, taken, "{fields:?}");
            let rest: Vec<&str> =
                map.get_all(header::COOKIE).iter().map(|value| value.to_str().expect("text")).collect();
            assert_eq!(rest, left, "{fields:?}");
        }
        let mut map = HeaderMap::new();
        map.append(header::COOKIE, HeaderValue::from_static("cat=1; b=at=2"));
        assert!(StickyCookies::take(&mut map, &["at".to_owned()]).is_none());
        assert_eq!(map[header::COOKIE], "cat=1; b=at=2");
    }
}
