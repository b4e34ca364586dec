//! Patterns of names, as `KEYS`, `SCAN MATCH` and `CONFIG GET` take them.
//!
//! `*` stands for any bytes, `?` for one, `[abc]`, `[^abc]` and `[a-c]` for one of some; `\` makes the next byte plain.
//! The time that a match takes grows with the product of both lengths, whatever the pattern.

/// Returns whether all of `name` matches `pattern`.
pub(super) fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where to go on if what follows the last `*` does not match: only the last one has to be tried again.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if pattern.get(p) == Some(&b'*') {
            retry = Some((p + 1, n));
            p += 1;
            continue;
        }
        let matched = match (pattern.get(p), name.get(n)) {
            (None, None) => return true,
            (Some(_), Some(byte)) => one(&pattern[p..], *byte),
            (None, Some(_)) | (Some(_), None) => None,
        };
        match (matched, &mut retry) {
            (Some(len), _) => {
                p += len;
                n += 1;
            }
            (None, Some((after, from))) if *from < name.len() => {
                *from += 1;
                (p, n) = (*after, *from);
            }
            (None, _) => return false,
        }
    }
}

/// Returns the length of the first part of `pattern`, if it matches `byte`.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', class @ ..] => {
            let (is_in, len) = class_of(class, byte);
            is_in.then_some(len + 1)
        }
        [b'\\', plain, ..] => (*plain == byte).then_some(2),
        [plain, ..] => (*plain == byte).then_some(1),
        [] => None,
    }
}

/// Returns whether `byte` is in the class that `class` begins with, behind its `[`, and the length of the class. A class
/// that is not closed ends with the pattern, as in Redis.
fn class_of(class: &[u8], byte: u8) -> (bool, usize) {
    let is_negated = class.first() == Some(&b'^');
    let mut at = usize::from(is_negated);
    let mut is_in = false;
    loop {
        match &class[at..] {
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', plain, ..] => {
                is_in |= *plain == byte;
                at += 2;
            }
            [low, b'-', high, ..] => {
                is_in |= (*low.min(high)..=*low.max(high)).contains(&byte);
                at += 3;
            }
            [plain, ..] => {
                is_in |= *plain == byte;
                at += 1;
            }
        }
    }
    (is_in != is_negated, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_redis_matches_them() {
        for (pattern, name, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "abc", true),
            ("**a**", "bab", true),
            ("a*c", "abbc", true),
            ("a*c", "abcd", false),
            ("a*b*c", "aXbYbZc", true),
            ("?", "a", true),
            ("?", "", false),
            ("h?llo", "hallo", true),
            ("h[ae]llo", "hello", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h[a-c]llo", "hdllo", false),
            ("[a-]", "-", false),
            ("[a-]", "^", true),
            ("[\\]]", "]", true),
            ("[ab", "b", true),
            ("[", "a", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a\\", "a\\", true),
            ("flask_cache_*", "flask_cache_view//", true),
            ("flask_cache_*", "other", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern:?} {name:?}");
        }
    }

    #[test]
    fn no_pattern_takes_long() {
        let name = "a".repeat(2000);
        assert!(!matches(
            "*a".repeat(500).as_bytes().iter().copied().chain(*b"b").collect::<Vec<_>>().as_slice(),
            name.as_bytes()
        ));
    }
}
