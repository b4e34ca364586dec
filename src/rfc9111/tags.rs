//! Tags: names that the origin gives a response, by which it is purged together with others. They come in fields that
//! several caches and delivery networks know: `Cache-Tag`, `Surrogate-Key`, `xkey`.

use http::header::{HeaderMap, HeaderName};

/// The most tags of a response. One with more could not be purged by all of them, and is not stored.
pub const MAX_TAGS: usize = 1000;

/// The longest tag, in bytes. A response with a longer one is not stored either.
pub const MAX_LEN: usize = 1024;

/// The fields that tags are read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagFields {
    /// Their names.
    pub names: Vec<HeaderName>,
    /// True if clients see them.
    pub are_shown: bool,
}

impl Default for TagFields {
    fn default() -> Self {
        let names = ["cache-tag", "surrogate-key", "xkey"].map(HeaderName::from_static).to_vec();
        Self { names, are_shown: false }
    }
}

/// The error of a response that has more tags, or longer ones, than can be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyTags;

impl TagFields {
    /// Adds the tags of `fields` to `tags`, each once. Commas and white space separate them, and their bytes are kept.
    pub fn add(&self, fields: &HeaderMap, tags: &mut Vec<String>) -> Result<(), TooManyTags> {
        let mut fresh = Vec::new();
        for value in self.names.iter().flat_map(|name| fields.get_all(name)) {
            for tag in value.as_bytes().split(|byte| matches!(byte, b',' | b' ' | b'\t')) {
                if tag.is_empty() {
                    continue;
                }
                // Purges name tags in UTF-8, so a tag that is not UTF-8 can't be purged by.
                let Ok(tag) = std::str::from_utf8(tag) else { continue };
                let tag = tag.to_owned();
                if tag.len() > MAX_LEN {
                    return Err(TooManyTags);
                }
                fresh.push(tag);
            }
        }
        // Applications repeat tags. Sorting costs less than a look-up for each.
        fresh.sort_unstable();
        fresh.dedup();
        fresh.retain(|tag| !tags.contains(tag));
        tags.append(&mut fresh);
        if tags.len() > MAX_TAGS { Err(TooManyTags) } else { Ok(()) }
    }

    /// Returns whether `name` is a field that clients do not see.
    pub fn hides(&self, name: &HeaderName) -> bool {
        !self.are_shown && self.names.contains(name)
    }

    /// Removes the fields that clients do not see.
    pub fn remove(&self, fields: &mut HeaderMap) {
        if fields.keys().any(|name| self.hides(name)) {
            for name in &self.names {
                fields.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn fields(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for (name, value) in list {
            fields.append(HeaderName::from_static(name), HeaderValue::from_str(value).expect("test value"));
        }
        fields
    }

    #[test]
    fn tags_are_what_commas_and_spaces_separate() {
        let mut tags = vec!["rule".to_owned(), "a".to_owned()];
        let list = fields(&[
            ("cache-tag", "b,a , B"),
            ("surrogate-key", "c  d,e"),
            ("xkey", "b"),
            ("xkey", "f*\tg"),
            ("other", "x"),
        ]);
        assert_eq!(TagFields::default().add(&list, &mut tags), Ok(()));
        assert_eq!(tags, ["rule", "a", "B", "b", "c", "d", "e", "f*", "g"]);
    }

    #[test]
    fn more_than_can_be_kept_is_said() {
        let of = |text: &str| TagFields::default().add(&fields(&[("xkey", text)]), &mut Vec::new());
        let many = |count: usize| (0..count).map(|n| format!("t{n}")).collect::<Vec<_>>().join(" ");
        assert_eq!(of(&many(MAX_TAGS)), Ok(()));
        assert_eq!(of(&many(MAX_TAGS + 1)), Err(TooManyTags));
        assert_eq!(of(&"t ".repeat(5000)), Ok(()), "one tag, often");
        assert_eq!(of(&"x".repeat(MAX_LEN)), Ok(()));
        assert_eq!(of(&"x".repeat(MAX_LEN + 1)), Err(TooManyTags));
    }

    #[test]
    fn clients_see_them_where_configured() {
        let mut list = fields(&[("xkey", "b"), ("etag", "\"1\"")]);
        TagFields { are_shown: true, ..TagFields::default() }.remove(&mut list);
        assert_eq!(list.len(), 2);
        TagFields::default().remove(&mut list);
        assert_eq!(list.len(), 1);
    }
}
