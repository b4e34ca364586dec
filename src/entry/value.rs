//! Values: what a client of the listener `resp` stores under a key of its own choice, kept as a stored response.
//!
//! This is the one door into a store besides [`Storable`](crate::rfc9111::storage::Storable). It opens for a [`ValueKey`]
//! alone, whose scheme no request has: nothing that comes in here answers a request.
//!
//! A value's body is its bytes. Its moment of expiry, if it has one, is its only field: `expires`, in decimal milliseconds
//! since the epoch.

use std::borrow::Cow;
use std::sync::Arc;

use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};

use super::StoredHead;
use super::fields::Fields;
use super::marks::Marks;
use super::version_vector::VersionVector;
use crate::base::wire::DecodeError;
use crate::rfc9111::freshness::Freshness;
use crate::rfc9111::key::{CacheKey, KeyParts, VALUE_SCHEME};
use crate::rfc9111::timestamp::Timestamp;

/// The key of a value: `resp://DATABASE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueKey(CacheKey);

/// The bytes of a name that stand for themselves in a key. All others are percent-encoded.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        plain[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"-._~!$&'()*+,;=:@/";
    let mut at = 0;
    while at < others.len() {
        plain[others[at] as usize] = true;
        at += 1;
    }
    plain
};

fn push_encoded(byte: u8, out: &mut String) {
    let digit = |half: u8| char::from(b"0123456789ABCDEF"[usize::from(half)]);
    if PLAIN[usize::from(byte)] {
        out.push(char::from(byte));
    } else {
        out.extend(['%', digit(byte >> 4), digit(byte & 15)]);
    }
}

impl ValueKey {
    /// Makes the key of `name`, which may be any bytes, in a database. `prefix` is `cache.key_prefix`.
    pub fn new(prefix: &str, database: u8, name: &[u8]) -> Self {
        let mut path = String::with_capacity(1 + name.len());
        path.push('/');
        match std::str::from_utf8(name) {
            Ok(text) if name.iter().all(|byte| PLAIN[usize::from(*byte)]) => path.push_str(text),
            Ok(_) | Err(_) => name.iter().for_each(|byte| push_encoded(*byte, &mut path)),
        }
        let mut digits = itoa::Buffer::new();
        let authority = digits.format(database);
        Self(CacheKey::new(KeyParts { prefix, scheme: VALUE_SCHEME, authority, path: &path, query: None }))
    }

    /// Returns the key as both tiers have it.
    pub fn key(&self) -> &CacheKey {
        &self.0
    }

    /// Returns the beginning of the keys of a database, as purges name it; without one that of all.
    pub fn beginning(database: Option<u8>) -> String {
        database.map_or_else(|| format!("{VALUE_SCHEME}://"), |database| format!("{VALUE_SCHEME}://{database}/"))
    }
}

/// Returns the database and the name of a value's key; `None` for the key of a page.
pub fn value_name(key: &CacheKey) -> Option<(u8, Cow<'_, [u8]>)> {
    let parts = key.parts().filter(|parts| parts.scheme == VALUE_SCHEME)?;
    let (database, text) = (parts.authority.parse().ok()?, parts.path.strip_prefix('/')?.as_bytes());
    if !text.contains(&b'%') {
        return Some((database, Cow::Borrowed(text)));
    }
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (mut name, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first == b'%' {
            let ([high, low], after) = rest.split_first_chunk::<2>()?;
            name.push(digit(high)? << 4 | digit(low)?);
            rest = after;
        } else {
            name.push(*first);
        }
    }
    Some((database, Cow::Owned(name)))
}

impl StoredHead {
    /// Makes the head of a value that is stored at `now`, and expires at `expires`; `None`: never. See
    /// [`StoredHead::position`] and [`StoredHead::version_vector`] for the last two.
    pub fn of_value(
        key: &ValueKey,
        expires: Option<Timestamp>,
        now: Timestamp,
        position: u64,
        version_vector: Arc<VersionVector>,
    ) -> Self {
        let expiry = expires.map(|expires| HeaderValue::from(expires.as_millis()));
        Self {
            key: key.0.clone(),
            fields: Fields::new(expiry.iter().map(|moment| (&header::EXPIRES, moment))),
            freshness: Freshness::of_value(now, expires),
            position,
            version_vector,
            rare: None,
            body_object: None,
            marks: Marks::default(),
            took: 0,
            status: StatusCode::OK,
            is_found_otherwise: false,
        }
    }

    /// Returns the moment at which a value expires; `None`: never.
    pub fn expires(&self) -> Option<Timestamp> {
        (self.freshness.lifetime != i64::MAX).then(|| self.freshness.fresh_until())
    }

    /// Returns whether a value has not expired at `now`.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.expires().is_none_or(|expires| now < expires)
    }
}

/// Returns the freshness of a value that was stored at `stored` with these fields.
pub(super) fn freshness(fields: &HeaderMap, stored: Timestamp) -> Result<Freshness, DecodeError> {
    let millis = |value: &HeaderValue| value.to_str().ok()?.parse().ok();
    let expires = match fields.get(header::EXPIRES) {
        None => None,
        Some(value) => Some(Timestamp::from_millis(millis(value).ok_or(DecodeError::Malformed)?)),
    };
    Ok(Freshness::of_value(stored, expires))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back_and_has_a_key_of_its_own() {
        let names: Vec<Vec<u8>> = (0..=255_u8)
            .map(|byte| vec![byte])
            .chain([vec![], b"view//a b?c#d%41%".to_vec(), b"A".to_vec(), b"%41".to_vec(), (0..=255).collect()])
            .collect();
        let mut keys = std::collections::HashMap::new();
        for name in names {
            for database in [0, 15, 255] {
                let key = ValueKey::new("p", database, &name);
                assert_eq!(value_name(key.key()), Some((database, Cow::Borrowed(&name[..]))), "{name:?}");
                assert!(key.key().is_value());
                let same = keys.insert(key.key().as_bytes().to_vec(), (database, name.clone()));
                assert!(same.is_none_or(|same| same == (database, name.clone())));
            }
        }
    }

    #[test]
    fn a_value_is_live_up_to_its_moment_and_not_a_millisecond_longer() {
        let (key, now) = (ValueKey::new("", 0, b"k"), Timestamp::from_secs(1_700_000_000));
        let of = |expires| StoredHead::of_value(&key, expires, now, 1, Arc::default());
        let head = of(Some(now.plus_millis(1234)));
        assert_eq!(head.expires(), Some(now.plus_millis(1234)));
        assert!(head.is_live(now.plus_millis(1233)) && !head.is_live(now.plus_millis(1234)));
        assert_eq!(freshness(&head.fields.to_map(), now).ok(), Some(head.freshness));
        // The clock was set back.
        assert!(head.is_live(now.plus_millis(-5000)));
        let head = of(None);
        assert_eq!((head.expires(), head.is_live(Timestamp::from_millis(i64::MAX))), (None, true));
        assert_eq!(freshness(&head.fields.to_map(), now).ok(), Some(head.freshness));
    }
}
