//! Cache groups (RFC 9875): responses that belong together, and are invalidated together.

use http::header::{HeaderMap, HeaderName};

use super::structured;

/// The field that names a response's groups.
pub const CACHE_GROUPS: HeaderName = HeaderName::from_static("cache-groups");

/// The field that names the groups which the answer to an unsafe request invalidates.
pub const CACHE_GROUP_INVALIDATION: HeaderName = HeaderName::from_static("cache-group-invalidation");

/// The number of groups of a response that count: the least that RFC 9875 §2 asks a cache to support. Further ones are
/// ignored.
pub const MAX_GROUPS: usize = 32;

/// The longest name of a group, in bytes: the least that RFC 9875 §2 asks a cache to support. Longer ones are ignored.
pub const MAX_NAME: usize = 32;

/// Returns the groups that `name` lists, each once, in order. Names are compared byte by byte.
pub fn listed(fields: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let mut groups: Vec<String> = Vec::new();
    for group in structured::list_of_strings(fields, name).unwrap_or_default() {
        if groups.len() < MAX_GROUPS && group.len() <= MAX_NAME && !groups.contains(&group) {
            groups.push(group);
        }
    }
    groups
}

/// The beginning of the tags that stand for groups. No other tag contains white space.
pub const TAG: &str = "group ";

/// Returns the tag that stands for a group in the store: a group belongs to one origin (RFC 9875 §2.1), and to one
/// namespace of keys. No tag of the configuration equals it, since none holds a space.
pub fn tag(prefix: &str, scheme: &str, authority: &str, group: &str) -> String {
    format!("{TAG}{}:{prefix} {scheme}://{authority} {group}", prefix.len())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn groups_are_the_strings_of_the_list() {
        let of = |value: &str| {
            let mut fields = HeaderMap::new();
            fields.append(CACHE_GROUPS, HeaderValue::from_str(value).expect("test value"));
            listed(&fields, &CACHE_GROUPS)
        };
        assert_eq!(of("\"a\", \"B c\";x, \"a\""), ["a", "B c"]);
        assert_eq!(of("a, 1, (\"b\"), \"c\""), ["c"]);
        assert!(of("\"a\", \"").is_empty());
        assert!(of("").is_empty());
        assert!(of(&format!("\"{}\"", "x".repeat(33))).is_empty());
        let many: Vec<String> = (0..40).map(|n| format!("\"g{n}\"")).collect();
        assert_eq!(of(&many.join(", ")).len(), MAX_GROUPS);
        assert!(listed(&HeaderMap::new(), &CACHE_GROUPS).is_empty());
    }

    #[test]
    fn a_group_is_of_one_origin_and_namespace() {
        let one = tag("", "https", "a.example", "g");
        for other in [
            tag("", "http", "a.example", "g"),
            tag("", "https", "b.example", "g"),
            tag("p", "https", "a.example", "g"),
            tag("", "https", "a.example", "G"),
        ] {
            assert_ne!(one, other);
        }
    }
}
