//! Splits the line of an inline command into words, as Redis does.

use bytes::Bytes;

/// Splits a line into words, which may be quoted. `None`: a quotation is not closed, or something follows it at once.
pub(super) fn words(line: &[u8], into: &mut Vec<Bytes>) -> Option<()> {
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        let Some(first) = rest.first() else { return Some(()) };
        let mut word = Vec::new();
        loop {
            match rest.split_first() {
                None => break,
                Some((byte, _)) if byte.is_ascii_whitespace() => break,
                Some((b'"', behind)) => {
                    rest = quoted(behind, &mut word)?;
                    break;
                }
                Some((b'\'', behind)) => {
                    rest = plainly_quoted(behind, &mut word)?;
                    break;
                }
                Some((byte, behind)) => {
                    word.push(*byte);
                    rest = behind;
                }
            }
        }
        if rest.first().is_some_and(|next| !next.is_ascii_whitespace()) {
            return None;
        }
        debug_assert!(!first.is_ascii_whitespace(), "a word begins here");
        into.push(word.into());
    }
}

/// Reads up to a closing `"`, with escapes. Returns what is behind it.
fn quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        let byte;
        (rest, byte) = match rest {
            [b'"', behind @ ..] => return Some(behind),
            [b'\\', b'x', high, low, behind @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                (behind, hex(*high) << 4 | hex(*low))
            }
            [b'\\', escaped, behind @ ..] => (behind, unescaped(*escaped)),
            [byte, behind @ ..] => (behind, *byte),
            [] => return None,
        };
        word.push(byte);
    }
}

/// Reads up to a closing `'`, in which only `\'` is an escape. Returns what is behind it.
fn plainly_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        let byte;
        (rest, byte) = match rest {
            [b'\'', behind @ ..] => return Some(behind),
            [b'\\', b'\'', behind @ ..] => (behind, b'\''),
            [byte, behind @ ..] => (behind, *byte),
            [] => return None,
        };
        word.push(byte);
    }
}

fn unescaped(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        other => other,
    }
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        b'A'..=b'F' => digit - b'A' + 10,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> Option<Vec<Bytes>> {
        let mut found = Vec::new();
        words(line.as_bytes(), &mut found).map(|()| found)
    }

    #[test]
    fn a_line_is_split_as_redis_splits_it() {
        for (line, expected) in [
            ("", &[][..]),
            (" \t ", &[]),
            ("PING", &["PING"]),
            ("  SET  a\tb ", &["SET", "a", "b"]),
            (r#"ECHO "a b""#, &["ECHO", "a b"]),
            (r#"ECHO "" ''"#, &["ECHO", "", ""]),
            (r#"ECHO "\x41\n\r\t\b\a\"\\\q""#, &["ECHO", "A\n\r\t\x08\x07\"\\q"]),
            (r#"ECHO "\x4g""#, &["ECHO", "x4g"]),
            (r"ECHO 'a\'b\n'", &["ECHO", r"a'b\n"]),
            (r#"ECHO a"b c""#, &["ECHO", "ab c"]),
            ("a\0b c", &["a\0b", "c"]),
        ] {
            let expected: Vec<_> = expected.iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
            assert_eq!(split(line), Some(expected), "{line:?}");
        }
        for line in [r#"a "b"#, "a 'b", r#"a "b"c"#, "a 'b'c", r#"a "b\"#, r#"a ""b""#] {
            assert_eq!(split(line), None, "{line:?}");
        }
    }
}
