//! The readings of a path: what applications and servers may take it for. They differ on escapes, dot segments, empty
//! segments, backslashes and parameters.

/// Returns whether a path has more than one reading.
pub(super) fn is_spelt_out(path: &str) -> bool {
    let mut before = 0;
    path.bytes().any(|byte| {
        let is_behind_slash = before == b'/';
        before = byte;
        matches!(byte, b'%' | b'\\' | b';') || (is_behind_slash && matches!(byte, b'.' | b'/'))
    })
}

/// The most rounds in which escapes of escapes are undone.
const MAX_DECODED: usize = 3;

/// Returns everything that a server or application may read `path` as. Readings undo escapes once or more, take
/// backslashes for slashes, resolve dot segments and empty ones, and drop parameters (`;x`). They also end the path
/// at, or drop, characters that end a string or path elsewhere (NUL, line ends, `#`, `?`).
pub(super) fn readings(path: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut note = |reading: String| {
        if !found.contains(&reading) {
            found.push(reading);
        }
    };
    let mut decoded = unescape(path);
    for _ in 0..=MAX_DECODED {
        let whole = decoded.replace('\\', "/");
        let cut = whole.split(|c: char| c.is_control() || matches!(c, '#' | '?')).next().unwrap_or_default().to_owned();
        let without: String = whole.chars().filter(|c| !c.is_control()).collect();
        for text in [whole, cut, without] {
            for text in [without_parameters(&text), text] {
                note(resolved(&text, Empty::Dropped));
                note(resolved(&text, Empty::Kept));
            }
        }
        let next = decode(&decoded, |_| true);
        if next == decoded {
            break;
        }
        decoded = next;
    }
    found
}

/// Returns `path` without parameters: what follows a semicolon in a segment.
fn without_parameters(path: &str) -> String {
    let segments: Vec<&str> = path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect();
    segments.join("/")
}

/// Undoes the escapes of `path`, except those of slashes, backslashes, dots and percent signs, on which applications
/// differ.
pub(super) fn unescape(path: &str) -> String {
    decode(path, |byte| !matches!(byte, b'/' | b'\\' | b'.' | b'%'))
}

fn decode(path: &str, is_undone: impl Fn(u8) -> bool) -> String {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [byte, tail @ ..] = rest {
        let escaped = match (byte, tail) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)).map(|(high, low)| high * 16 + low),
            _ => None,
        };
        let escaped = escaped.filter(|byte| is_undone(*byte));
        decoded.push(escaped.unwrap_or(*byte));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Says what happens to empty segments where dot segments are resolved: RFC 3986 and browsers keep them, servers do
/// not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Empty {
    Kept,
    Dropped,
}

/// Resolves the dot segments of `path`, and keeps empty segments or drops them.
fn resolved(path: &str, empty: Empty) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.strip_prefix('/').unwrap_or(path).split('/') {
        match segment {
            "." => {}
            "" if empty == Empty::Dropped => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    if empty == Empty::Kept {
        return format!("/{}", kept.join("/"));
    }
    let ends_in_directory = path.ends_with('/') || path.ends_with("/.") || path.ends_with("/..");
    let end = if ends_in_directory && !kept.is_empty() { "/" } else { "" };
    format!("/{}{end}", kept.join("/"))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}
