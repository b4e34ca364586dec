//! Patterns of names, as Redis reads them: `*`, `?`, `[a-c]`, `[^a]`, and `\` before a byte that stands for itself.
//!
//! A pattern is read once, into a table with one bit for each of its places and each byte. A name is matched byte by byte, at
//! all places at once: it is never gone back in. So matching takes at most [`MOST_WORDS`] steps for each byte of the name,
//! whatever the pattern is.

use crate::resp::reply::Reply;

/// The most bytes of a pattern.
pub(in crate::resp) const LONGEST: usize = 1 << 10;

/// The words that have a bit for each place of the longest pattern, and for its end.
const MOST_WORDS: usize = LONGEST / 64 + 1;

/// A pattern.
#[derive(Clone, Debug)]
pub(in crate::resp) struct Pattern {
    /// The words that have a bit for each place, and for the end.
    words: usize,
    /// For each byte the places that take it.
    takers: Box<[u64]>,
    /// The places before which any bytes may come.
    runs: [u64; MOST_WORDS],
    /// Number of places, each of which takes one byte.
    places: usize,
}

/// The bytes that a place takes: a bit for each.
type Class = [u64; 4];

impl Pattern {
    /// Returns an error if a text is too long for a pattern. Every other is one.
    pub(in crate::resp) fn check(text: &[u8]) -> Result<(), Reply> {
        if text.len() > LONGEST { Err(Reply::error("ERR pattern is too long")) } else { Ok(()) }
    }

    /// Reads a pattern. What is past the longest is left out: see [`Pattern::check`].
    pub(in crate::resp) fn new(text: &[u8]) -> Self {
        let text = &text[..text.len().min(LONGEST)];
        let words = text.len() / 64 + 1;
        let mut pattern = Self { words, takers: vec![0; 256 * words].into(), runs: [0; MOST_WORDS], places: 0 };
        let mut rest = text;
        while let Some((first, after)) = rest.split_first() {
            rest = after;
            match first {
                b'*' => pattern.runs[pattern.places / 64] |= 1 << (pattern.places % 64),
                b'?' => pattern.take([u64::MAX; 4]),
                b'[' => {
                    let (class, after) = class(rest);
                    pattern.take(class);
                    rest = after;
                }
                b'\\' if !rest.is_empty() => {
                    pattern.take(only(rest[0]));
                    rest = &rest[1..];
                }
                byte => pattern.take(only(*byte)),
            }
        }
        pattern
    }

    /// Adds a place.
    fn take(&mut self, class: Class) {
        for (byte, takers) in self.takers.chunks_exact_mut(self.words).enumerate() {
            if class[byte >> 6] >> (byte & 63) & 1 == 1 {
                takers[self.places / 64] |= 1 << (self.places % 64);
            }
        }
        self.places += 1;
    }

    /// Returns whether a name matches.
    pub(in crate::resp) fn matches(&self, name: &[u8]) -> bool {
        let (end, end_bit) = (self.places / 64, 1 << (self.places % 64));
        let ends_with_run = self.runs[end] & end_bit != 0;
        // A bit for each place that the bytes so far lead to.
        let mut reached = [0_u64; MOST_WORDS];
        let reached = &mut reached[..self.words];
        reached[0] = 1;
        for byte in name {
            if ends_with_run && reached[end] & end_bit != 0 {
                return true;
            }
            let takers = &self.takers[usize::from(*byte) * self.words..][..self.words];
            let (mut carry, mut any) = (0, 0);
            for ((reached, takers), runs) in reached.iter_mut().zip(takers).zip(&self.runs) {
                let taken = *reached & takers;
                *reached = (taken << 1) | carry | (*reached & runs);
                carry = taken >> 63;
                any |= *reached;
            }
            if any == 0 {
                return false;
            }
        }
        reached[end] & end_bit != 0
    }
}

/// Returns the class of one byte.
fn only(byte: u8) -> Class {
    let mut bits = [0; 4];
    bits[usize::from(byte >> 6)] = 1 << (byte & 63);
    bits
}

/// Reads a class, behind its bracket. Returns what follows it. One that is not closed ends with the pattern.
fn class(text: &[u8]) -> (Class, &[u8]) {
    let (is_negated, mut rest) = match text.split_first() {
        Some((b'^', after)) => (true, after),
        _ => (false, text),
    };
    let mut bits: Class = [0; 4];
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
    (bits, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Patterns and names with Redis's answer to each (`redis-cli KEYS`, with the name as the only key).
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

    /// The plain way to match, for comparison.
    fn plainly(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern, name) {
            ([], _) => name.is_empty(),
            ([b'*', rest @ ..], _) => (0..=name.len()).any(|n| plainly(rest, &name[n..])),
            ([b'?', rest @ ..], [_, after @ ..]) => plainly(rest, after),
            ([byte, rest @ ..], [other, after @ ..]) => byte == other && plainly(rest, after),
            (_, []) => false,
        }
    }

    #[test]
    fn every_short_pattern_matches_what_it_should() {
        let texts = |letters: &'static [u8]| {
            (0..=5_u32).flat_map(move |len| {
                let base = letters.len();
                (0..base.pow(len))
                    .map(move |n| (0..len).map(|at| letters[n / base.pow(at) % base]).collect::<Vec<u8>>())
            })
        };
        for pattern in texts(b"ab*?") {
            let read = Pattern::new(&pattern);
            for name in texts(b"ab") {
                assert_eq!(read.matches(&name), plainly(&pattern, &name), "{pattern:?} {name:?}");
            }
        }
    }

    #[test]
    fn places_past_a_word_are_places_like_others() {
        for count in [62, 63, 64, 65, 127, 128, 129, 1022] {
            let name = "ab".repeat(count / 2) + &"c".repeat(count % 2);
            for (pattern, expected) in [
                (name.clone(), true),
                (format!("{name}*"), true),
                (format!("*{name}"), true),
                (format!("{name}?"), false),
                (format!("{}x", &name[..count - 1]), false),
            ] {
                assert_eq!(Pattern::new(pattern.as_bytes()).matches(name.as_bytes()), expected, "{count} {pattern}");
            }
        }
    }

    #[test]
    fn a_pattern_is_bounded_and_none_takes_much_memory() {
        assert!(Pattern::check(&[b'a'; LONGEST]).is_ok() && Pattern::check(&[b'a'; LONGEST + 1]).is_err());
        for text in ["[]".repeat(LONGEST), "a".repeat(LONGEST), "*".repeat(LONGEST), "[a-z]".repeat(LONGEST)] {
            assert!(size_of_val(&*Pattern::new(text.as_bytes()).takers) <= 256 * 8 * MOST_WORDS);
        }
    }

    #[test]
    fn no_pattern_takes_long() {
        let begun = crate::base::Stopwatch::start();
        let name = "a".repeat(16 << 10);
        for pattern in ["a*".repeat(LONGEST / 2 - 1) + "b", "*".to_owned() + &"a".repeat(LONGEST - 2) + "b"] {
            let pattern = Pattern::new(pattern.as_bytes());
            for _ in 0..20 {
                assert!(!pattern.matches(name.as_bytes()));
            }
            assert!(pattern.matches((name.clone() + "b").as_bytes()));
        }
        // One after the other, the places would take 20 times as long as this, and more.
        assert!(begun.elapsed() < std::time::Duration::from_secs(10));
    }
}
