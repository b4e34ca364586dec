//! Packs: the objects that hold many responses each. `entry` and `footer` are their encoding, `builder` makes one.
//!
//! A pack is a sequence of entries, and then a footer that describes each of them. Once its footer is written, a pack
//! never changes. In a directory a pack grows by appends until then; in a bucket it is written whole.

mod builder;
mod entry;
mod footer;
mod hold;
#[cfg(test)]
mod tests;

pub(super) use self::builder::{NewEntry, PackBuilder, entries_of};
pub(super) use self::entry::{ALIGNMENT, Entry, EntryHeader, EntryKind};
pub(super) use self::footer::{Footer, FooterEntry, TRAILER, Trailer, is_footer};
pub use self::hold::{hold_entries, hold_footer};
