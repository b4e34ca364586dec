//! Formats a line of the log as text or JSON. Escapes control characters and those that set the direction of text, so that
//! no value can end its line, forge another, or change the direction in which it is read.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use tracing::Level;
use tracing::field::{Field, Visit};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use super::LogFormat;

/// Returns whether a character is escaped: it ends a line, or changes how the characters around it are shown.
fn is_escaped(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Marks, embeddings, overrides and isolates of direction (Unicode UAX #9).
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            // Ends of lines and paragraphs.
            | '\u{2028}' | '\u{2029}')
}

/// Limit of a value in a line, in bytes: clients choose some.
const MAX_VALUE: usize = 1024;

/// Cuts a value that a client chose to [`MAX_VALUE`].
pub(crate) fn cut(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.len() <= MAX_VALUE {
        return text;
    }
    Cow::Owned(format!("{}…", &text[..text.floor_char_boundary(MAX_VALUE)]))
}

/// Appends `text` to `out`, with its control and direction characters escaped.
pub fn escape(text: &str, out: &mut String) {
    // Writing to a `String` never fails.
    let _ = Escaping { out, place: TextPlace::Message }.write_str(text);
}

/// Begins a line with its time and level.
pub(super) fn begin(format: LogFormat, level: Level, out: &mut String) {
    if format == LogFormat::Json {
        out.push_str("{\"timestamp\":\"");
    }
    // Leaves the time out if the clock can't be read.
    let _ = SystemTime.format_time(&mut Writer::new(out));
    let _ = match format {
        LogFormat::Text | LogFormat::Short => write!(out, " {level:>5}"),
        LogFormat::Json => write!(out, "\",\"level\":\"{level}\""),
    };
}

/// Ends a line.
pub(super) fn end(format: LogFormat, out: &mut String) {
    out.push_str(match format {
        LogFormat::Text | LogFormat::Short => "\n",
        LogFormat::Json => "}\n",
    });
}

/// Appends fields to a line.
pub(super) struct Fields<'a> {
    format: LogFormat,
    out: &'a mut String,
    /// The span that the fields belong to. Their names are written as `span.field`.
    span: Option<&'static str>,
}

impl<'a> Fields<'a> {
    /// Appends the fields of an event to `out`.
    pub(super) fn new(format: LogFormat, out: &'a mut String) -> Self {
        Self { format, out, span: None }
    }

    /// Appends the fields of a span to `out`.
    pub(super) fn of_span(span: &'static str, format: LogFormat, out: &'a mut String) -> Self {
        Self { format, out, span: Some(span) }
    }

    /// Writes the name of a field in a text line.
    fn text_name(&mut self, name: &str) {
        if let Some(span) = self.span {
            self.out.push_str(span);
            self.out.push('.');
        }
        self.out.push_str(name);
        self.out.push('=');
    }

    /// Writes the message.
    pub(super) fn message(&mut self, message: &str) {
        self.text("message", &format_args!("{message}"));
    }

    /// Writes a value that is neither a number nor a boolean.
    fn text(&mut self, name: &str, value: &dyn fmt::Display) {
        if self.format == LogFormat::Json {
            self.json_name(name);
            self.out.push('"');
            let _ = write!(Escaping { out: self.out, place: TextPlace::Json }, "{value}");
            self.out.push('"');
            return;
        }
        self.out.push(' ');
        if name == "message" {
            let _ = write!(Escaping { out: self.out, place: TextPlace::Message }, "{value}");
            return;
        }
        self.text_name(name);
        let from = self.out.len();
        let _ = write!(Escaping { out: self.out, place: TextPlace::Quoted }, "{value}");
        let written = &self.out[from..];
        // Quotes everything but one plain word. Escaped characters contain a backslash.
        if written.is_empty() || written.contains([' ', '\\', '=', ',']) {
            self.out.insert(from, '"');
            self.out.push('"');
        }
    }

    /// Writes a number or a boolean.
    fn plain(&mut self, name: &str, value: &dyn fmt::Display) {
        match self.format {
            LogFormat::Json => self.json_name(name),
            LogFormat::Text | LogFormat::Short => {
                self.out.push(' ');
                self.text_name(name);
            }
        }
        let _ = write!(self.out, "{value}");
    }

    /// Writes the name of a field in a JSON line.
    fn json_name(&mut self, name: &str) {
        self.out.push_str(",\"");
        if let Some(span) = self.span {
            self.out.push_str(span);
            self.out.push('.');
        }
        self.out.push_str(name);
        self.out.push_str("\":");
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field.name(), &format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field.name(), &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field.name(), &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field.name(), &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field.name(), &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has neither infinities nor NaN.
        if value.is_finite() { self.plain(field.name(), &value) } else { self.text(field.name(), &value) }
    }
}

/// The place of an escaped text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TextPlace {
    /// A message, which is never quoted.
    Message,
    /// A field of a text line, which may be quoted.
    Quoted,
    /// A string of a JSON line.
    Json,
}

/// Writes text to `out`, escaped for its place.
struct Escaping<'a> {
    out: &'a mut String,
    place: TextPlace,
}

impl fmt::Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let is_quoted = self.place != TextPlace::Message;
        let mut rest = text;
        while let Some(at) = rest.find(|c| is_escaped(c) || (is_quoted && matches!(c, '"' | '\\'))) {
            let (before, from) = rest.split_at(at);
            self.out.push_str(before);
            let mut chars = from.chars();
            match chars.next() {
                Some(c @ ('"' | '\\')) => self.out.extend(['\\', c]),
                Some('\n') => self.out.push_str("\\n"),
                Some('\r') => self.out.push_str("\\r"),
                Some('\t') => self.out.push_str("\\t"),
                Some(c) if self.place == TextPlace::Json => write!(self.out, "\\u{:04x}", u32::from(c))?,
                Some(c) => write!(self.out, "\\u{{{:x}}}", u32::from(c))?,
                None => {}
            }
            rest = chars.as_str();
        }
        self.out.push_str(rest);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_cut_at_a_character() {
        let long = "é".repeat(MAX_VALUE);
        let short = cut(Cow::Borrowed(&long));
        assert!(short.len() <= MAX_VALUE + '…'.len_utf8() && short.ends_with("é…"), "{}", short.len());
        assert_eq!(cut(Cow::Borrowed("a")), "a");
    }

    const HOSTILE: &str = "a\nb\r\t\u{1b}[31m\u{202e}gpj\u{2066}x\u{7f}\u{85}\u{2028}\"\\ é";

    #[test]
    fn no_value_forges_a_line_or_turns_one() {
        let mut text = String::new();
        let mut fields = Fields::new(LogFormat::Text, &mut text);
        fields.message(HOSTILE);
        fields.text("field", &HOSTILE);
        assert!(!text.chars().any(is_escaped), "{text:?}");
        assert!(text.contains("\\n") && text.contains("\\u{202e}") && text.contains("\\u{1b}[31m"), "{text}");
        assert!(text.contains("field=\"") && text.ends_with("\\\"\\\\ é\""), "{text}");
    }

    #[test]
    fn json_is_json_and_says_the_same() {
        let mut text = String::new();
        begin(LogFormat::Json, Level::INFO, &mut text);
        let mut fields = Fields::new(LogFormat::Json, &mut text);
        fields.message(HOSTILE);
        fields.text("field", &HOSTILE);
        fields.plain("number", &7);
        end(LogFormat::Json, &mut text);
        assert!(!text.trim_end().chars().any(is_escaped), "{text:?}");
        let read: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((read["message"].as_str(), read["field"].as_str()), (Some(HOSTILE), Some(HOSTILE)));
        assert_eq!((read["level"].as_str(), read["number"].as_u64()), (Some("INFO"), Some(7)));
    }

    #[test]
    fn a_value_of_several_words_is_quoted_and_one_word_is_not() {
        for (value, expected) in [
            ("GET", " f=GET"),
            ("", " f=\"\""),
            ("a b", " f=\"a b\""),
            ("x status=200", " f=\"x status=200\""),
            ("say \"x\"", " f=\"say \\\"x\\\"\""),
            ("/a?b=1", " f=\"/a?b=1\""),
        ] {
            let mut text = String::new();
            Fields::new(LogFormat::Text, &mut text).text("f", &value);
            assert_eq!(text, expected);
        }
    }
}
