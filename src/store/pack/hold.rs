//! States what holds for all bytes that are read as a pack, for the fuzz targets: no reader panics, and what is read is in bounds.

use bytes::Bytes;

use super::{Footer, TRAILER, Trailer, entries_of};

/// Reads `bytes` as the entries of a pack that may be cut or torn.
///
/// # Panics
/// If what is read is not within `bytes`, or reads otherwise when it is read again.
pub fn hold_entries(bytes: &[u8]) {
    let found = entries_of(Bytes::copy_from_slice(bytes), 0);
    assert!(found.len() <= bytes.len() as u64, "the entries are within the bytes");
    let sound = usize::try_from(found.len()).unwrap_or(usize::MAX);
    let again = entries_of(Bytes::copy_from_slice(&bytes[..sound]), 0);
    assert_eq!(found.entries(), again.entries(), "what follows the sound entries changes nothing");
}

/// Reads `bytes` as a complete pack: its trailer, and the footer that this leads to. Without a trailer, as a footer alone.
///
/// # Panics
/// If a footer that was read is another one when it is written and read again.
pub fn hold_footer(bytes: &[u8]) {
    let trailer = bytes.len().checked_sub(TRAILER).map(|at| Trailer::decode(&bytes[at..], bytes.len() as u64));
    let footer = match trailer {
        Some(Ok(trailer)) => {
            let start = usize::try_from(trailer.offset).unwrap_or(usize::MAX);
            &bytes[start..bytes.len() - TRAILER]
        }
        Some(Err(_)) | None => bytes,
    };
    let Ok(footer) = Footer::decode(footer) else { return };
    let again = footer.encode(footer.offset());
    let len = again.len();
    assert!(Trailer::decode(&again[len - TRAILER..], footer.offset() + len as u64).is_ok(), "the trailer leads to it");
    assert_eq!(Footer::decode(&again[..len - TRAILER]), Ok(footer), "it is read back");
}
