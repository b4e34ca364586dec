//! Finds in one pass which of the fields that matter to caching a request has.
//!
//! Nearly every request has none of them. To look each up by its name would hash a dozen names a request.

use http::header::{self, HeaderMap, HeaderName};

use super::claims;

/// A set of field names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Present(u16);

impl Present {
    /// `Connection`
    pub const CONNECTION: Self = Self(1);
    /// `Upgrade`
    pub const UPGRADE: Self = Self(1 << 1);
    /// `Transfer-Encoding`
    pub const TRANSFER_ENCODING: Self = Self(1 << 2);
    /// `Cache-Control` and `Pragma`: the client's directives (RFC 9111 §5.2.1, §5.4).
    pub const DIRECTIVES: Self = Self(1 << 3);
    /// `If-Match` and `If-Unmodified-Since`: conditions on the origin's state, which only the origin knows (RFC 9111
    /// §4.3.2).
    pub const FOR_THE_ORIGIN: Self = Self(1 << 4);
    /// `If-None-Match` and `If-Modified-Since`, which a cache evaluates (RFC 9111 §4.3.2).
    pub const CONDITIONS: Self = Self(1 << 5);
    /// `Range`
    pub const RANGE: Self = Self(1 << 6);
    /// A field that an application could take for a proxy's word, or for another field (see [`claims::stands_out`]).
    pub const CLAIM: Self = Self(1 << 7);

    /// `Via`
    pub const VIA: Self = Self(1 << 8);
    /// `Cookie`
    pub const COOKIE: Self = Self(1 << 9);
    /// `Authorization`
    pub const AUTHORIZATION: Self = Self(1 << 10);
    /// All of these but [`Present::CLAIM`].
    pub const ANY_BUT_CLAIMS: Self = Self(!Self::CLAIM.0);

    /// Returns which of these are among `fields`.
    pub fn of(fields: &HeaderMap) -> Self {
        Self(fields.keys().fold(0, |set, name| set | Self::member(name).0))
    }

    /// Returns whether any of `others` is in the set.
    pub const fn has(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }

    /// Returns the union of both sets.
    pub const fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    fn member(name: &HeaderName) -> Self {
        match *name {
            header::CONNECTION => Self::CONNECTION,
            header::UPGRADE => Self::UPGRADE,
            header::TRANSFER_ENCODING => Self::TRANSFER_ENCODING,
            header::CACHE_CONTROL | header::PRAGMA => Self::DIRECTIVES,
            header::IF_MATCH | header::IF_UNMODIFIED_SINCE => Self::FOR_THE_ORIGIN,
            header::IF_NONE_MATCH | header::IF_MODIFIED_SINCE => Self::CONDITIONS,
            header::RANGE => Self::RANGE,
            header::VIA => Self::VIA,
            header::COOKIE => Self::COOKIE,
            header::AUTHORIZATION => Self::AUTHORIZATION,
            _ if claims::stands_out(name) => Self::CLAIM,
            _ => Self(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::header::HeaderValue;

    use super::*;

    #[test]
    fn each_is_found_and_nothing_else() {
        let all = [
            ("connection", Present::CONNECTION),
            ("upgrade", Present::UPGRADE),
            ("transfer-encoding", Present::TRANSFER_ENCODING),
            ("cache-control", Present::DIRECTIVES),
            ("pragma", Present::DIRECTIVES),
            ("if-match", Present::FOR_THE_ORIGIN),
            ("if-unmodified-since", Present::FOR_THE_ORIGIN),
            ("if-none-match", Present::CONDITIONS),
            ("if-modified-since", Present::CONDITIONS),
            ("range", Present::RANGE),
            ("x-forwarded-prefix", Present::CLAIM),
            ("accept_language", Present::CLAIM),
            ("via", Present::VIA),
            ("authorization", Present::AUTHORIZATION),
            ("cookie", Present::COOKIE),
            ("host", Present(0)),
            ("x-cache-control", Present(0)),
        ];
        for (name, expected) in all {
            let mut fields = HeaderMap::new();
            fields.insert("accept", HeaderValue::from_static("*/*"));
            fields.insert(HeaderName::from_static(name), HeaderValue::from_static("x"));
            assert_eq!(Present::of(&fields), expected, "{name}");
            for (other, set) in all {
                assert_eq!(Present::of(&fields).has(set), set != Present(0) && set == expected, "{name} {other}");
            }
        }
        assert!(Present::CONNECTION.and(Present::RANGE).has(Present::RANGE));
    }
}
