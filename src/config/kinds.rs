//! Kinds of values: each reads, shows and describes a value, and says why a setting is not one.
//!
//! A kind knows no key. Forms of one key's own, such as addresses, are a [`Text`] in `values`.

use std::time::Duration;

use toml::Value;

use super::sources::{Given, without_credentials};
use crate::base::{format_size, parse_duration, parse_size};

/// Reads and shows the values of one kind.
pub(super) trait Kind<T>: Sync {
    /// Returns the value. The error goes on after the key and the value: "is not a duration".
    fn read(&self, given: &Given) -> Result<T, String>;

    /// Returns the value as a file would give it; `None`: it is not set.
    fn shown(&self, value: &T) -> Option<Value>;

    fn described(&self) -> Described;
}

/// Describes the values of a key to a reader.
pub(super) struct Described {
    /// Name of the kind.
    pub(super) kind: String,
    /// Bounds in words; empty: anything of the kind is allowed.
    pub(super) bounds: String,
    /// A value that may be given.
    pub(super) example: Value,
    /// True if the value must not be shown.
    pub(super) is_secret: bool,
}

impl Described {
    fn new(kind: impl Into<String>, bounds: impl Into<String>, example: impl Into<Value>) -> Self {
        Self { kind: kind.into(), bounds: bounds.into(), example: example.into(), is_secret: false }
    }
}

/// `"250ms"`, `"5m"`
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Time {
    /// Zero has a meaning.
    Any,
    AboveZero,
}

impl Kind<Duration> for Time {
    fn read(&self, given: &Given) -> Result<Duration, String> {
        let allowed = match self {
            Self::Any => "is not a duration, such as \"0s\", \"250ms\", \"30s\", \"5m\", \"1h\" or \"7d\"",
            Self::AboveZero => "is not a duration above zero, such as \"250ms\", \"30s\", \"5m\", \"1h\" or \"7d\"",
        };
        let duration = given.text().and_then(parse_duration);
        duration.filter(|duration| *self == Self::Any || !duration.is_zero()).ok_or_else(|| allowed.to_owned())
    }

    fn shown(&self, value: &Duration) -> Option<Value> {
        Some(Value::String(format_duration(*value)))
    }

    fn described(&self) -> Described {
        let bounds = if *self == Self::Any { "" } else { "above 0s" };
        Described::new("duration", bounds, "1h")
    }
}

/// A duration in the largest unit that it is a multiple of.
fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (length, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")] {
        if millis > 0 && millis.is_multiple_of(length) {
            return format!("{}{unit}", millis / length);
        }
    }
    if millis == 0 { "0s".into() } else { format!("{millis}ms") }
}

/// `"64MiB"`, or a number of bytes.
pub(super) struct Size {
    pub(super) least: u64,
    pub(super) most: u64,
}

impl<T: Copy + TryFrom<u64> + TryInto<u64>> Kind<T> for Size {
    fn read(&self, given: &Given) -> Result<T, String> {
        let size = match given {
            Given::Typed(Value::Integer(bytes)) => u64::try_from(*bytes).ok(),
            Given::Typed(_) | Given::Text(_) => given.text().and_then(parse_size),
        };
        size.filter(|size| (self.least..=self.most).contains(size)).and_then(|size| size.try_into().ok()).ok_or_else(
            || {
                let (least, most) = (format_size(self.least), format_size(self.most));
                format!("is not a size from {least} to {most}, such as \"512KiB\", \"64MiB\" or \"2GiB\"")
            },
        )
    }

    fn shown(&self, value: &T) -> Option<Value> {
        let size: u64 = (*value).try_into().ok()?;
        let text = format_size(size);
        let unit = if size > 0 && text.ends_with(|c: char| c.is_ascii_digit()) { "B" } else { "" };
        Some(Value::String(format!("{text}{unit}")))
    }

    fn described(&self) -> Described {
        let bounds = format!("{} to {}", format_size(self.least), format_size(self.most));
        Described::new("size", bounds, "1MiB")
    }
}

/// A size, or 0, which has a meaning of its own.
pub(super) struct ZeroOr(pub(super) Size);

impl<T: Copy + TryFrom<u64> + TryInto<u64>> Kind<T> for ZeroOr {
    fn read(&self, given: &Given) -> Result<T, String> {
        let Size { least, most } = self.0;
        let any: Result<u64, String> = Size { least: 0, most }.read(given);
        match any {
            Ok(0) => 0.try_into().map_err(|_| "is not a size".to_owned()),
            Ok(bytes) if bytes < least => {
                // A number alone is one of bytes, which is seldom meant.
                let meant = if given.is_number() { format!("; did you mean \"{bytes}MiB\"?") } else { String::new() };
                Err(format!("is less than {}, the least that is of use; 0: no limit{meant}", format_size(least)))
            }
            Ok(_) => self.0.read(given),
            Err(why) => Err(format!("{why}, or 0")),
        }
    }

    fn shown(&self, value: &T) -> Option<Value> {
        self.0.shown(value)
    }

    fn described(&self) -> Described {
        let described = <Size as Kind<u64>>::described(&self.0);
        Described { bounds: format!("0, or {}", described.bounds), example: Value::from("50GiB"), ..described }
    }
}

/// A whole number.
pub(super) struct Whole {
    pub(super) least: u64,
    pub(super) most: u64,
}

impl<T: Copy + TryFrom<u64> + TryInto<u64>> Kind<T> for Whole {
    fn read(&self, given: &Given) -> Result<T, String> {
        let number = match given {
            Given::Typed(Value::Integer(number)) => u64::try_from(*number).ok(),
            Given::Text(text) => text.parse().ok(),
            Given::Typed(_) => None,
        };
        let number = number.filter(|number| (self.least..=self.most).contains(number));
        number.and_then(|number| number.try_into().ok()).ok_or_else(|| {
            let quoted = if given.is_quoted_number() { "; write it without quotes" } else { "" };
            format!("is not a whole number from {} to {}{quoted}", self.least, self.most)
        })
    }

    fn shown(&self, value: &T) -> Option<Value> {
        let number: u64 = (*value).try_into().ok()?;
        Some(Value::Integer(i64::try_from(number).ok()?))
    }

    fn described(&self) -> Described {
        Described::new("whole number", format!("{} to {}", self.least, self.most), 8)
    }
}

/// A price of a million requests.
pub(super) struct Price;

impl Kind<f64> for Price {
    fn read(&self, given: &Given) -> Result<f64, String> {
        given.number().filter(|price| (0.0..1e9).contains(price)).ok_or_else(|| {
            let quoted = if given.is_quoted_number() { "; write it without quotes" } else { "" };
            format!("is not a price of a million requests, such as 5.0{quoted}")
        })
    }

    fn shown(&self, value: &f64) -> Option<Value> {
        Some(Value::Float(*value))
    }

    fn described(&self) -> Described {
        Described::new("number", "0 to 1000000000", 5.0)
    }
}

/// A part of the whole, from 0 up to but not including 1; kept in thousandths.
pub(super) struct Fraction;

impl Kind<u16> for Fraction {
    fn read(&self, given: &Given) -> Result<u16, String> {
        let thousandths = given.number().map(|number| (number * 1000.0).round());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is within 0..1000")]
        thousandths
            .filter(|number| (0.0..1000.0).contains(number))
            .map(|number| number as u16)
            .ok_or_else(|| "is not a number from 0 to 0.999, such as 0.1".into())
    }

    fn shown(&self, value: &u16) -> Option<Value> {
        Some(Value::Float(f64::from(*value) / 1000.0))
    }

    fn described(&self) -> Described {
        Described::new("number", "0 to 0.999", 0.1)
    }
}

/// `true` or `false`, and what each stands for.
pub(super) struct Switch<T> {
    pub(super) on: T,
    pub(super) off: T,
}

pub(super) const FLAG: Switch<bool> = Switch { on: true, off: false };

impl<T: Copy + PartialEq + Sync> Kind<T> for Switch<T> {
    fn read(&self, given: &Given) -> Result<T, String> {
        let is_on = match given {
            Given::Typed(Value::Boolean(is_on)) => Some(*is_on),
            Given::Text(text) => text.parse().ok(),
            Given::Typed(_) => None,
        };
        is_on.map(|is_on| if is_on { self.on } else { self.off }).ok_or_else(|| {
            let quoted = matches!(given, Given::Typed(Value::String(text)) if text.parse::<bool>().is_ok());
            format!("is not true or false{}", if quoted { "; write it without quotes" } else { "" })
        })
    }

    fn shown(&self, value: &T) -> Option<Value> {
        Some(Value::Boolean(*value == self.on))
    }

    fn described(&self) -> Described {
        Described::new("true or false", "", true)
    }
}

/// One of some words, and what each stands for.
pub(super) struct Words<T: 'static>(pub(super) &'static [(&'static str, T)]);

impl<T: Copy + PartialEq + Sync> Kind<T> for Words<T> {
    fn read(&self, given: &Given) -> Result<T, String> {
        let word = given.text().and_then(|text| self.0.iter().find(|(word, _)| *word == text));
        word.map(|(_, value)| *value).ok_or_else(|| not_one_of(self.0.iter().map(|(word, _)| *word)))
    }

    fn shown(&self, value: &T) -> Option<Value> {
        self.0.iter().find(|(_, of)| of == value).map(|(word, _)| Value::from(*word))
    }

    fn described(&self) -> Described {
        words(&self.0.iter().map(|(word, _)| *word).collect::<Vec<_>>())
    }
}

/// One of some words, which stand for themselves.
pub(super) struct Names(pub(super) &'static [&'static str]);

impl Kind<String> for Names {
    fn read(&self, given: &Given) -> Result<String, String> {
        let word = given.text().filter(|text| self.0.contains(text));
        word.map(str::to_owned).ok_or_else(|| not_one_of(self.0.iter().copied()))
    }

    fn shown(&self, value: &String) -> Option<Value> {
        Some(Value::String(value.clone()))
    }

    fn described(&self) -> Described {
        words(self.0)
    }
}

fn not_one_of(words: impl Iterator<Item = &'static str>) -> String {
    format!("is not one of {}", words.map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" or "))
}

fn words(words: &[&'static str]) -> Described {
    let bounds = words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
    Described::new("word", bounds, *words.last().unwrap_or(&""))
}

/// A string of a form of its own.
pub(super) struct Text<T: 'static> {
    /// Name of the kind: "address", "URL".
    pub(super) of: &'static str,
    /// Bounds in words; empty: any text is allowed.
    pub(super) bounds: &'static str,
    pub(super) example: &'static str,
    pub(super) read: fn(&str) -> Result<T, String>,
    pub(super) show: fn(&T) -> String,
}

impl<T> Kind<T> for Text<T> {
    fn read(&self, given: &Given) -> Result<T, String> {
        (self.read)(given.text().ok_or("is not a string")?)
    }

    fn shown(&self, value: &T) -> Option<Value> {
        Some(Value::String((self.show)(value)))
    }

    fn described(&self) -> Described {
        Described::new(self.of, self.bounds, self.example)
    }
}

/// A string that must not be shown.
pub(super) struct Secret(pub(super) Text<String>);

impl Kind<String> for Secret {
    fn read(&self, given: &Given) -> Result<String, String> {
        self.0.read(given)
    }

    fn shown(&self, value: &String) -> Option<Value> {
        self.0.shown(value)
    }

    fn described(&self) -> Described {
        Described { is_secret: true, ..self.0.described() }
    }
}

/// Any number of strings of one form.
pub(super) struct List<T: 'static> {
    /// Name of the kind in the plural.
    pub(super) of: &'static str,
    pub(super) item: Text<T>,
}

impl<T> Kind<Vec<T>> for List<T> {
    fn read(&self, given: &Given) -> Result<Vec<T>, String> {
        let items = given.strings().ok_or("is not a list of strings")?;
        let read = |item: &String| {
            (self.item.read)(item).map_err(|why| format!("has \"{}\", which {why}", without_credentials(item)))
        };
        items.iter().map(read).collect()
    }

    fn shown(&self, value: &Vec<T>) -> Option<Value> {
        Some(Value::Array(value.iter().map(|item| Value::String((self.item.show)(item))).collect()))
    }

    fn described(&self) -> Described {
        let example = Value::Array(vec![Value::from(self.item.example)]);
        Described::new(format!("list of {}", self.of), self.item.bounds, example)
    }
}

/// One string of a form, or a list of several.
pub(super) struct OneOrMore<T: 'static>(pub(super) List<T>);

impl<T> Kind<Vec<T>> for OneOrMore<T> {
    fn read(&self, given: &Given) -> Result<Vec<T>, String> {
        match given.strings().as_deref() {
            // The value is told by whoever calls.
            Some([one]) => (self.0.item.read)(one).map(|one| vec![one]),
            _ => self.0.read(given),
        }
    }

    fn shown(&self, value: &Vec<T>) -> Option<Value> {
        match &value[..] {
            [one] => Some(Value::String((self.0.item.show)(one))),
            _ => self.0.shown(value),
        }
    }

    fn described(&self) -> Described {
        Described::new(
            format!("{}, or a list of {}", self.0.item.of, self.0.of),
            self.0.item.bounds,
            Value::from(self.0.item.example),
        )
    }
}

/// A value of the kind, or none.
pub(super) struct Optional<K>(pub(super) K);

impl<T, K: Kind<T>> Kind<Option<T>> for Optional<K> {
    fn read(&self, given: &Given) -> Result<Option<T>, String> {
        self.0.read(given).map(Some)
    }

    fn shown(&self, value: &Option<T>) -> Option<Value> {
        self.0.shown(value.as_ref()?)
    }

    fn described(&self) -> Described {
        self.0.described()
    }
}

/// A value of its kind, or an empty string for none.
pub(super) struct OrEmpty<K>(pub(super) K);

impl<T, K: Kind<T>> Kind<Option<T>> for OrEmpty<K> {
    fn read(&self, given: &Given) -> Result<Option<T>, String> {
        if given.text().is_some_and(str::is_empty) {
            return Ok(None);
        }
        self.0.read(given).map(Some)
    }

    fn shown(&self, value: &Option<T>) -> Option<Value> {
        match value {
            Some(value) => self.0.shown(value),
            None => Some(Value::String(String::new())),
        }
    }

    fn described(&self) -> Described {
        let described = self.0.described();
        let bounds =
            if described.bounds.is_empty() { "or empty".to_owned() } else { format!("{}, or empty", described.bounds) };
        Described { bounds, ..described }
    }
}
