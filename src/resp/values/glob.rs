//! Patterns of names, as Redis reads them: `*`, `?`, `[a-c]`, `[^a]`, and `\` before a byte that stands for itself.
//!
//! A pattern is read once. Matching takes at most as many steps as the pattern has parts, times the bytes of the name: no
//! pattern makes it take longer.

/// A pattern.
#[derive(Clone, Debug)]
pub(in crate::resp) struct Pattern {
    parts: Vec<Part>,
}

/// One part of a pattern. All but a run stand for one byte.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// Any run of bytes, also an empty one.
    Run,
    /// Any byte.
    Any,
    /// This byte.
    Byte(u8),
    /// One of a class: a bit for each.
    Class(Box<[u64; 4]>),
}

impl Pattern {
    /// Reads a pattern. Every text is one.
    pub(in crate::resp) fn new(text: &[u8]) -> Self {
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((first, after)) = rest.split_first() {
            rest = after;
            match first {
                b'*' if parts.last() == Some(&Part::Run) => {}
                b'*' => parts.push(Part::Run),
                b'?' => parts.push(Part::Any),
                b'[' => {
                    let (class, after) = class(rest);
                    parts.push(class);
                    rest = after;
                }
                b'\\' if !rest.is_empty() => {
                    parts.push(Part::Byte(rest[0]));
                    rest = &rest[1..];
                }
                byte => parts.push(Part::Byte(*byte)),
            }
        }
        Self { parts }
    }

    /// Returns whether a name matches.
    pub(in crate::resp) fn matches(&self, name: &[u8]) -> bool {
        let (mut part, mut at) = (0, 0);
        // Where to try again: behind the last run, which then takes one byte more.
        let mut retry: Option<(usize, usize)> = None;
        loop {
            match (self.parts.get(part), name.get(at)) {
                (Some(Part::Run), _) => {
                    part += 1;
                    if part == self.parts.len() {
                        return true;
                    }
                    retry = Some((part, at));
                    continue;
                }
                (Some(one), Some(byte)) if one.is(*byte) => {
                    part += 1;
                    at += 1;
                    continue;
                }
                (None, None) => return true,
                (_, _) => {}
            }
            match &mut retry {
                Some((behind, from)) if *from < name.len() => {
                    *from += 1;
                    (part, at) = (*behind, *from);
                }
                Some(_) | None => return false,
            }
        }
    }
}

impl Part {
    fn is(&self, byte: u8) -> bool {
        match self {
            Self::Run => false,
            Self::Any => true,
            Self::Byte(own) => *own == byte,
            Self::Class(bits) => bits[usize::from(byte >> 6)] >> (byte & 63) & 1 == 1,
        }
    }
}

/// Reads a class, behind its bracket. Returns what follows it. One that is not closed ends with the pattern.
fn class(text: &[u8]) -> (Part, &[u8]) {
    let (is_negated, mut rest) = match text.split_first() {
        Some((b'^', after)) => (true, after),
        _ => (false, text),
    };
    let mut bits = [0_u64; 4];
    let mut add = |byte: u8| bits[usize::from(byte >> 6)] |= 1 << (byte & 63);
    loop {
        match rest {
            [b'\\', byte, after @ ..] => {
                add(*byte);
                rest = after;
            }
            [b']', after @ ..] => {
                rest = after;
                break;
            }
            [] => break,
            [one, b'-', other, after @ ..] => {
                (*one.min(other)..=*one.max(other)).for_each(&mut add);
                rest = after;
            }
            [byte, after @ ..] => {
                add(*byte);
                rest = after;
            }
        }
    }
    if is_negated {
        bits = bits.map(|word| !word);
    }
    (Part::Class(Box::new(bits)), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Redis says to each (`redis-cli KEYS`, with the name as the only key).
    #[test]
    fn pattern_table() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("*", "abc", true),
            ("", "", true),
            ("", "a", false),
            ("a*c", "abbbc", true),
            ("a*c", "abbbd", false),
            ("a**b***c", "axxbyyc", true),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h[a-c]llo", "hdllo", false),
            ("[a-]", "-", false),
            ("[a-]", "^", true),
            ("[a-]", "a", true),
            (r"[\]]", "]", true),
            (r"[\a-c]", "b", false),
            (r"[\a-c]", "-", true),
            ("[]a]", "a]", false),
            ("[]a", "a", false),
            ("[^]a", "xa", true),
            ("[abc", "b", true),
            ("[abc", "d", false),
            ("[", "[", false),
            (r"\*", "*", true),
            (r"\*", "a", false),
            (r"a\", r"a\", true),
            (r"a\b", "ab", true),
            ("user:*:n?me", "user:1:2:name", true),
            ("\u{fc}*", "\u{fc}ber", true),
        ] {
            assert_eq!(Pattern::new(pattern.as_bytes()).matches(name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn no_pattern_takes_long() {
        let pattern = Pattern::new("a*".repeat(4000).as_bytes());
        let name = "a".repeat(7999) + "b";
        assert!(pattern.matches(name.as_bytes()));
        assert!(!Pattern::new(("a*".repeat(4000) + "c").as_bytes()).matches(name.as_bytes()));
    }
}
