//! The subject of a client's certificate, as the value of a request field.
//!
//! It is the distinguished name in the form of RFC 4514; of a certificate without one, the first alternative name, such
//! as `URI:spiffe://cluster/app`. Two subjects never have one form, and no subject can look like more than one field:
//! whatever is not a printable character of ASCII is written as `\` and two hexadecimal digits.

use std::fmt::Write as _;

use http::HeaderValue;
use x509_parser::asn1_rs::{Any, Tag};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The longest subject, in bytes.
const LONGEST: usize = 4096;

/// Types of attributes that have a name of their own: those of RFC 4514 §3, and some that are common.
const TYPES: &[(&str, &str)] = &[
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "STREET"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.42", "GN"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

/// Returns the subject of a certificate; `None`: it has none, or one that is too long for a field.
pub(super) fn of(der: &[u8]) -> Option<HeaderValue> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let mut text = String::new();
    // The most specific comes first (RFC 4514 §2.1).
    let sets: Vec<_> = certificate.subject().iter_rdn().collect();
    for (n, set) in sets.into_iter().rev().enumerate() {
        text.push_str(if n == 0 { "" } else { "," });
        for (n, attribute) in set.iter().enumerate() {
            text.push_str(if n == 0 { "" } else { "+" });
            let oid = attribute.attr_type().to_id_string();
            match (TYPES.iter().find(|(of, _)| *of == oid), string(attribute.attr_value())) {
                (Some((_, name)), Some(value)) => {
                    let _ = write!(text, "{name}=");
                    escape(value, &mut text);
                }
                (_, _) => {
                    let value = attribute.attr_value();
                    // The tag is written, too: strings of two kinds are two values.
                    let _ = write!(text, "{oid}=#{:02x}", value.header.tag().0);
                    hex(value.data, &mut text);
                }
            }
        }
    }
    if text.is_empty() {
        alternative(&certificate, &mut text)?;
    }
    if text.len() > LONGEST { None } else { HeaderValue::from_str(&text).ok() }
}

/// Writes the first alternative name that is one of a host, a URI or a mailbox.
fn alternative(certificate: &X509Certificate<'_>, text: &mut String) -> Option<()> {
    let names = certificate.subject_alternative_name().ok()??;
    let (kind, name) = names.value.general_names.iter().find_map(|name| match name {
        GeneralName::DNSName(name) => Some(("DNS", *name)),
        GeneralName::URI(uri) => Some(("URI", *uri)),
        GeneralName::RFC822Name(mailbox) => Some(("email", *mailbox)),
        _ => None,
    })?;
    let _ = write!(text, "{kind}:");
    escape(name, text);
    Some(())
}

/// Returns the text of a string that is one in ASCII or UTF-8.
fn string<'a>(value: &Any<'a>) -> Option<&'a str> {
    match value.header.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::NumericString | Tag::VisibleString => {
            std::str::from_utf8(value.data).ok()
        }
        _ => None,
    }
}

/// Writes a value as RFC 4514 §2.4 does. Everything but printable ASCII is written in hexadecimal digits.
fn escape(value: &str, text: &mut String) {
    let last = value.len().saturating_sub(1);
    for (n, byte) in value.bytes().enumerate() {
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => text.extend(['\\', char::from(byte)]),
            b'#' if n == 0 => text.push_str("\\#"),
            b' ' if n == 0 || n == last => text.push_str("\\ "),
            b' '..=b'~' => text.push(char::from(byte)),
            byte => {
                text.push('\\');
                hex(&[byte], text);
            }
        }
    }
}

fn hex(bytes: &[u8], text: &mut String) {
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
}
