//! Structured Fields (RFC 9651), as far as the caching fields need them. Only this file names the library that parses
//! them.

use http::header::{HeaderMap, HeaderName};

/// The longest field, all its lines together, in bytes. A longer one is invalid.
pub const MAX_LEN: usize = 16 * 1024;

/// A bare item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bare {
    /// An Integer: at most fifteen digits.
    Integer(i64),
    /// A Boolean; a dictionary's key without a value is true.
    Boolean(bool),
    /// A String.
    String(String),
    /// A Token.
    Token(String),
    /// A Decimal, Byte Sequence, Date, or Display String, which no field here uses.
    Other,
}

/// A member of a Dictionary, without its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Member {
    /// An Item.
    Item(Bare),
    /// An Inner List.
    List(Vec<Bare>),
}

/// Parses all lines of `name` as one Dictionary. `None` if there is no such field, or it is no Dictionary, in which
/// case RFC 9651 §4.2 ignores all of it. The last value of a repeated key counts.
pub fn dictionary(fields: &HeaderMap, name: &HeaderName) -> Option<Vec<(String, Member)>> {
    let text = combined(fields, name)?;
    let parsed = sfv::Parser::new(&text).parse::<sfv::Dictionary>().ok()?;
    Some(parsed.into_iter().map(|(key, entry)| (key.as_str().to_owned(), member(entry))).collect())
}

/// Parses all lines of `name` as one List, and returns its Strings without the members of other types. `None` if there
/// is no such field, or it is no List.
pub fn list_of_strings(fields: &HeaderMap, name: &HeaderName) -> Option<Vec<String>> {
    let text = combined(fields, name)?;
    let parsed = sfv::Parser::new(&text).parse::<sfv::List>().ok()?;
    let strings = parsed.into_iter().filter_map(|entry| match member(entry) {
        Member::Item(Bare::String(text)) => Some(text),
        Member::Item(_) | Member::List(_) => None,
    });
    Some(strings.collect())
}

/// Returns whether the field is longer than [`MAX_LEN`].
pub fn is_too_long(fields: &HeaderMap, name: &HeaderName) -> bool {
    fields.contains_key(name) && combined(fields, name).is_none()
}

/// Joins the lines of a field with commas, as RFC 9651 §4.2 does before parsing.
fn combined(fields: &HeaderMap, name: &HeaderName) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    for (n, line) in fields.get_all(name).iter().enumerate() {
        if n > 0 {
            text.extend_from_slice(b", ");
        }
        text.extend_from_slice(line.as_bytes());
        if text.len() > MAX_LEN {
            return None;
        }
    }
    fields.contains_key(name).then_some(text)
}

fn member(entry: sfv::ListEntry) -> Member {
    match entry {
        sfv::ListEntry::Item(item) => Member::Item(bare(&item.bare_item)),
        sfv::ListEntry::InnerList(list) => Member::List(list.items.iter().map(|item| bare(&item.bare_item)).collect()),
    }
}

fn bare(item: &sfv::BareItem) -> Bare {
    match item {
        sfv::BareItem::Integer(value) => Bare::Integer(i64::from(*value)),
        sfv::BareItem::Boolean(value) => Bare::Boolean(*value),
        sfv::BareItem::String(text) => Bare::String(text.as_str().to_owned()),
        sfv::BareItem::Token(text) => Bare::Token(text.as_str().to_owned()),
        _ => Bare::Other,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const NAME: HeaderName = HeaderName::from_static("x");

    fn lines(lines: &[&str]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for line in lines {
            fields.append(NAME, HeaderValue::from_str(line).expect("test value"));
        }
        fields
    }

    #[test]
    fn dictionaries() {
        let of = |text: &[&str]| dictionary(&lines(text), &NAME);
        let item = |key: &str, value| (key.to_owned(), Member::Item(value));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[""]), Some(vec![]));
        let expected = Some(vec![item("a", Bare::Integer(1)), item("b", Bare::Boolean(true))]);
        for same in [&["a=1, b"][..], &["a=1", "b"], &["a=1;p=2,b;q"], &["a=7, a=1,  b=?1"]] {
            assert_eq!(of(same), expected, "{same:?}");
        }
        let strings = Member::List(vec![Bare::String("x".into()), Bare::Token("y".into()), Bare::Other]);
        assert_eq!(of(&["l=(\"x\" y 1.5)"]), Some(vec![("l".into(), strings)]));
        for invalid in ["A=1", "a=", "a=1,", "a=1, &&&", "a = 1", "a=1 b=2", "a=\"open", "a=1234567890123456", "a=(1"] {
            assert_eq!(of(&[invalid]), None, "{invalid}");
        }
        assert_eq!(of(&["a=1", "&"]), None, "one bad line spoils all");
        let long = format!("a=\"{}\"", "x".repeat(MAX_LEN));
        assert_eq!(of(&[&long]), None);
    }

    #[test]
    fn lists() {
        let of = |text: &[&str]| list_of_strings(&lines(text), &NAME);
        assert_eq!(of(&["\"a\", \"b c\";x=1", "\"d\""]), Some(vec!["a".into(), "b c".into(), "d".into()]));
        assert_eq!(of(&["\"a\", b, 3, (\"c\")"]), Some(vec!["a".into()]));
        assert_eq!(of(&["\"a\", \""]), None);
        assert_eq!(of(&[]), None);
    }
}
