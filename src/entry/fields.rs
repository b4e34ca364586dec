//! The fields of a stored response, in one piece of memory.
//!
//! A [`HeaderMap`] takes a hundred bytes for each field besides its text, and grows in powers of two. For a small
//! response that is more than all the rest. So only the text is kept. Each answer gets a map made of one copy of the
//! text, which the map's values share.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// The fields of a stored response, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// For each field: the index of its name in [`NUMBERED`], or [`OTHER`]; the length of its value; its value. The
    /// length is one byte, or [`LONG`] and a `u32`.
    text: Box<[u8]>,
    /// The names that are not in [`NUMBERED`].
    others: Option<Box<Others>>,
}

/// Names, in the order of their fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Others(Box<[HeaderName]>);

/// The names that responses often have. Their order may change: no file contains an index.
static NUMBERED: [HeaderName; 52] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CACHE_CONTROL,
    header::DATE,
    header::ETAG,
    header::LAST_MODIFIED,
    header::EXPIRES,
    header::VARY,
    header::SERVER,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LOCATION,
    header::CONTENT_DISPOSITION,
    header::CONTENT_RANGE,
    header::CONTENT_SECURITY_POLICY,
    header::CONTENT_SECURITY_POLICY_REPORT_ONLY,
    header::ACCEPT_RANGES,
    header::AGE,
    header::ALLOW,
    header::ALT_SVC,
    header::CACHE_STATUS,
    header::CDN_CACHE_CONTROL,
    header::LINK,
    header::LOCATION,
    header::PRAGMA,
    header::REFERRER_POLICY,
    header::REFRESH,
    header::RETRY_AFTER,
    header::SET_COOKIE,
    header::STRICT_TRANSPORT_SECURITY,
    header::VIA,
    header::WARNING,
    header::WWW_AUTHENTICATE,
    header::X_CONTENT_TYPE_OPTIONS,
    header::X_DNS_PREFETCH_CONTROL,
    header::X_FRAME_OPTIONS,
    header::X_XSS_PROTECTION,
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
    header::ACCESS_CONTROL_MAX_AGE,
    header::PROXY_AUTHENTICATE,
    header::PUBLIC_KEY_PINS,
    header::PUBLIC_KEY_PINS_REPORT_ONLY,
    header::ACCEPT,
    header::FORWARDED,
    header::FROM,
    header::HOST,
    header::ORIGIN,
    header::UPGRADE,
];

/// Stands for a name that is not in [`NUMBERED`]: the next one of the others.
const OTHER: u8 = u8::MAX;

/// Stands for a value of this many bytes or more. Its length follows as a `u32`.
const LONG: u8 = u8::MAX;

/// Number of fields that every response gets besides the stored ones.
const ADDED: usize = 2;

impl Fields {
    /// Copies `fields` into a buffer of their own. Values from the network share the buffer that they were read into,
    /// which is many times larger.
    pub fn new<'a>(fields: impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)>) -> Self {
        let (mut text, mut others) = (Vec::new(), Vec::new());
        for (name, value) in fields {
            let number = NUMBERED.iter().position(|numbered| numbered == name).and_then(|at| u8::try_from(at).ok());
            text.push(number.unwrap_or(OTHER));
            if number.is_none() {
                others.push(name.clone());
            }
            if let Some(len) = u8::try_from(value.len()).ok().filter(|len| *len < LONG) {
                text.push(len);
            } else {
                text.push(LONG);
                // Always fits: a head is far smaller than 4 GiB.
                text.extend_from_slice(&u32::try_from(value.len()).unwrap_or(0).to_le_bytes());
            }
            text.extend_from_slice(value.as_bytes());
        }
        let others = (!others.is_empty()).then(|| Box::new(Others(others.into())));
        Self { text: text.into(), others }
    }

    /// Returns the number of field lines: a field on several lines counts several times.
    pub fn len(&self) -> usize {
        self.places().count()
    }

    /// Returns whether there are no fields.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Returns the names and values, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&HeaderName, &[u8])> {
        self.places().map(|(name, (from, to))| (name, &self.text[from..to]))
    }

    /// Returns the first value of a field.
    pub fn get(&self, name: &HeaderName) -> Option<HeaderValue> {
        let (_, (from, to)) = self.places().find(|(own, _)| *own == name)?;
        // Never fails: the bytes were a value before.
        HeaderValue::from_bytes(&self.text[from..to]).ok()
    }

    /// Returns the fields as a map, with room for the fields that every answer gets besides.
    pub fn to_map(&self) -> HeaderMap {
        self.to_map_of(|_| true)
    }

    /// Returns the fields whose names are `wanted` as a map, with room for the fields that every answer gets besides.
    pub fn to_map_of(&self, wanted: impl Fn(&HeaderName) -> bool) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.len() + ADDED);
        let text = Bytes::copy_from_slice(&self.text);
        for (name, (from, to)) in self.places().filter(|(name, _)| wanted(name)) {
            // Never fails: the bytes were a value before.
            if let Ok(value) = HeaderValue::from_maybe_shared(text.slice(from..to)) {
                map.append(name.clone(), value);
            }
        }
        map
    }

    /// Returns the bytes that the fields take in memory.
    pub fn weight(&self) -> usize {
        let others: usize = self.others().iter().map(|name| size_of::<HeaderName>() + NAME + name.as_str().len()).sum();
        self.text.len() + others
    }

    fn others(&self) -> &[HeaderName] {
        self.others.as_ref().map_or(&[], |others| &others.0)
    }

    /// Returns the name of each field, and the range of its value in `text`.
    fn places(&self) -> Places<'_> {
        Places { fields: self, at: 0, others: 0 }
    }
}

/// Bytes that a name takes in memory besides its text.
const NAME: usize = 24;

struct Places<'a> {
    fields: &'a Fields,
    at: usize,
    others: usize,
}

impl<'a> Iterator for Places<'a> {
    type Item = (&'a HeaderName, (usize, usize));

    fn next(&mut self) -> Option<Self::Item> {
        let (&[number, short], rest) = self.fields.text.get(self.at..)?.split_first_chunk::<2>()?;
        let (from, len) = if short == LONG {
            (self.at + 6, usize::try_from(u32::from_le_bytes(*rest.first_chunk::<4>()?)).ok()?)
        } else {
            (self.at + 2, usize::from(short))
        };
        let to = from + len;
        self.at = to;
        let name = if number == OTHER {
            self.others += 1;
            self.fields.others().get(self.others - 1)?
        } else {
            NUMBERED.get(usize::from(number))?
        };
        Some((name, (from, to)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_as_they_were() {
        let mut map = HeaderMap::new();
        assert_eq!(Fields::new(map.iter()).to_map(), map);
        for (name, value) in
            [("x-own", "1"), ("date", "now"), ("x-other", ""), ("vary", "a"), ("x-own", "2"), ("set-cookie", "\u{e9}")]
        {
            map.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        map.insert("content-length", HeaderValue::from(10));
        for len in [253, 254, 255, 256, 70_000] {
            map.append("x-long", HeaderValue::from_str(&"v".repeat(len)).expect("a value"));
        }
        let fields = Fields::new(map.iter());
        assert_eq!(fields.to_map(), map);
        assert_eq!(fields.len(), map.len());
        let listed = |map: &HeaderMap| {
            map.iter().map(|(name, value)| (name.clone(), value.as_bytes().to_vec())).collect::<Vec<_>>()
        };
        let own: Vec<_> = fields.iter().map(|(name, value)| (name.clone(), value.to_vec())).collect();
        assert_eq!(own, listed(&map), "in their order");
        assert_eq!(fields.get(&HeaderName::from_static("x-own")), map.get("x-own").cloned());
        assert_eq!(fields.get(&header::ETAG), None);
        let some = fields.to_map_of(|name| *name == header::DATE || *name == header::VARY);
        assert_eq!(some.len(), 2);
    }

    #[test]
    fn a_names_number_is_its_own() {
        let numbers: std::collections::HashSet<&HeaderName> = NUMBERED.iter().collect();
        assert_eq!(numbers.len(), NUMBERED.len());
        assert!(NUMBERED.len() < usize::from(OTHER));
    }
}
