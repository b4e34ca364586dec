//! Reads the headers of both versions, from the bytes that have come so far.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use super::{Header, Source, Why};

/// The beginning of a header of version 2.
pub(in crate::downstream) const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The beginning of a header of version 1.
pub(in crate::downstream) const PREFIX: &[u8; 6] = b"PROXY ";

/// The most bytes of a header of version 1.
pub(super) const MAX_LINE: usize = 107;
/// The bytes of a header of version 2 whose number is fixed.
pub(super) const FIXED: usize = 16;
/// The most bytes that follow these. Addresses take 216 at most, and what load balancers add some hundreds.
pub(super) const MAX_BLOCK: usize = 4 << 10;

const NOT_A_HEADER: Why = "this one begins with something else";

/// The state of a header of which a part was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// At least so many bytes of it are still to come.
    More(usize),
    /// It is complete with the last byte.
    Complete(Header),
}

/// Returns what `bytes`, the beginning of a connection, lack of a header.
pub(super) fn progress(bytes: &[u8]) -> Result<Progress, Why> {
    if bytes.starts_with(SIGNATURE) {
        binary(bytes)
    } else if bytes.starts_with(PREFIX) && bytes.len() >= SIGNATURE.len() {
        line(bytes)
    } else if SIGNATURE.starts_with(bytes) || PREFIX.starts_with(bytes) || bytes.starts_with(PREFIX) {
        // Every header is longer than the signature.
        Ok(Progress::More(SIGNATURE.len() - bytes.len()))
    } else {
        Err(NOT_A_HEADER)
    }
}

/// Reads a header of version 1: one line of text.
fn line(bytes: &[u8]) -> Result<Progress, Why> {
    const BARE: Why = "its header has CR or LF alone";
    const TOO_LONG: Why = "its header is a line of more than 107 bytes";
    match memchr::memchr2(b'\r', b'\n', bytes) {
        Some(end) if bytes[end] == b'\n' => Err(BARE),
        Some(end) => match &bytes[end + 1..] {
            [] if bytes.len() < MAX_LINE => Ok(Progress::More(1)),
            [] => Err(TOO_LONG),
            [b'\n'] => text(&bytes[PREFIX.len()..end]).map(|source| Progress::Complete(Header::of(source))),
            _ => Err(BARE),
        },
        None => {
            // Each field that is missing takes a byte and a space, and the end of the line two.
            let spaces = memchr::memchr_iter(b' ', bytes).count();
            let has_fields = bytes[PREFIX.len()..].starts_with(b"TCP");
            let missing = if has_fields { 5_usize.saturating_sub(spaces) } else { 0 };
            match MAX_LINE - bytes.len() {
                0 | 1 => Err(TOO_LONG),
                room => Ok(Progress::More((2 * missing + 2).min(room))),
            }
        }
    }
}

/// Reads the line between `PROXY` and its end.
fn text(text: &[u8]) -> Result<Source, Why> {
    const FIELDS: Why = "its header does not consist of TCP4 or TCP6, two addresses and two ports";
    if text == b"UNKNOWN" || text.starts_with(b"UNKNOWN ") {
        return Ok(Source::Unknown);
    }
    let text = std::str::from_utf8(text).map_err(|_| FIELDS)?;
    let mut fields = text.split(' ');
    let mut next = || fields.next().ok_or(FIELDS);
    let (family, source, destination, ports) = (next()?, next()?, next()?, [next()?, next()?]);
    if fields.next().is_some() {
        return Err(FIELDS);
    }
    let address = |text: &str| match family {
        "TCP4" => text.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| "its header has an address that is not IPv4"),
        "TCP6" => text.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| "its header has an address that is not IPv6"),
        _ => Err(FIELDS),
    };
    let client = address(source)?;
    address(destination)?;
    if !ports.into_iter().all(is_port) {
        return Err("its header has a port that is not a number from 0 to 65535");
    }
    Ok(Source::Client(client))
}

/// Returns whether `text` is a port without leading zeros.
fn is_port(text: &str) -> bool {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    is_plain && text.parse::<u16>().is_ok()
}

/// Reads a header of version 2: addresses, and further values with type and length.
fn binary(bytes: &[u8]) -> Result<Progress, Why> {
    let Some(&[version, family, high, low]) = bytes.get(SIGNATURE.len()..FIXED).and_then(<[u8]>::first_chunk) else {
        return Ok(Progress::More(FIXED - bytes.len()));
    };
    let is_local = match version {
        0x20 => true,
        0x21 => false,
        _ => return Err("its header is not LOCAL or PROXY of version 2"),
    };
    let announced = usize::from(u16::from_be_bytes([high, low]));
    if announced > MAX_BLOCK {
        return Err("its header announces more than 4096 bytes");
    }
    if bytes.len() < FIXED + announced {
        return Ok(Progress::More(FIXED + announced - bytes.len()));
    }
    if is_local {
        // The rest is skipped, whatever it is.
        return Ok(Progress::Complete(Header::of(Source::Sender)));
    }
    if family >> 4 > 3 || family & 0xf > 2 {
        return Err("its header names an address family or transport that version 2 does not have");
    }
    let len = match family {
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        0x31 | 0x32 => 216,
        // Without family or transport the form of the rest is unknown.
        _ => return Ok(Progress::Complete(Header::of(Source::Unknown))),
    };
    let Some((addresses, _)) = bytes[FIXED..].split_at_checked(len) else {
        return Err("its header announces fewer bytes than its addresses take");
    };
    let source = match (family >> 4, addresses.first_chunk::<4>(), addresses.first_chunk::<16>()) {
        (1, Some(ip), _) => Source::Client(Ipv4Addr::from(*ip).into()),
        (2, _, Some(ip)) => Source::Client(Ipv6Addr::from(*ip).into()),
        _ => Source::Unknown,
    };
    let is_tls = extensions(bytes, FIXED + len)?;
    Ok(Progress::Complete(Header { source, is_tls }))
}

/// Checks the values that begin at `from`. Returns whether they say that the client came by TLS.
fn extensions(bytes: &[u8], from: usize) -> Result<bool, Why> {
    const CHECKSUM: u8 = 0x03;
    const TLS: u8 = 0x20;
    let (mut tls, mut checksum) = (None, None);
    for value in Values(bytes, from..bytes.len()) {
        let (kind, value) = value?;
        let seen = match kind {
            CHECKSUM => checksum.replace(value),
            TLS => tls.replace(value),
            // Also what Larder has no use for: ALPN, AUTHORITY, UNIQUE_ID, NETNS and what is a sender's own.
            _ => None,
        };
        if seen.is_some() {
            return Err("its header says the same twice");
        }
    }
    if let Some(at) = checksum {
        let sent =
            <[u8; 4]>::try_from(&bytes[at.clone()]).map_err(|_| "its header has a checksum of another length")?;
        let mut blank = bytes.to_vec();
        blank[at].fill(0);
        if crc_fast::crc32_iscsi(&blank) != u32::from_be_bytes(sent) {
            return Err("its header was changed on the way: the checksum is of another one");
        }
    }
    let Some(at) = tls else { return Ok(false) };
    // A byte of flags and four for the certificate, then values again.
    let (first, rest) = (at.start, at.start + 5..at.end);
    if rest.start > rest.end {
        return Err(OVERRUN);
    }
    for value in Values(bytes, rest) {
        value?;
    }
    Ok(bytes[first] & 1 == 1)
}

const OVERRUN: Why = "its header has a value that does not end where it should";

/// The values in a range of the bytes: the type of each, and where it is.
struct Values<'a>(&'a [u8], Range<usize>);

impl Iterator for Values<'_> {
    type Item = Result<(u8, Range<usize>), Why>;

    fn next(&mut self) -> Option<Self::Item> {
        let Self(bytes, rest) = self;
        let [kind, high, low, ..] = bytes[rest.clone()] else {
            return (!std::mem::replace(rest, 0..0).is_empty()).then_some(Err(OVERRUN));
        };
        let start = rest.start + 3;
        let end = start + usize::from(u16::from_be_bytes([high, low]));
        if end > rest.end {
            *rest = 0..0;
            return Some(Err(OVERRUN));
        }
        rest.start = end;
        Some(Ok((kind, start..end)))
    }
}

/// States what holds for all bytes that senders of headers send, for the fuzz target: the reader returns, takes no byte
/// behind the header, and finds the same however the bytes arrive.
///
/// # Panics
/// If one of these does not hold.
pub fn hold_proxy_header(bytes: &[u8]) {
    let (taken, found) = arrive(bytes, usize::MAX);
    for size in [1, bytes.first().map_or(2, |byte| usize::from(*byte).max(2))] {
        let (at, other) = arrive(bytes, size);
        match found {
            Err(_) => assert!(other.is_err(), "in pieces of {size}: {found:?} {other:?}"),
            Ok(_) => assert_eq!((at, other), (taken, found), "in pieces of {size}"),
        }
    }
    let Ok(Progress::Complete(header)) = found else { return };
    if bytes.starts_with(PREFIX) {
        assert!(header.source != Source::Sender && !header.is_tls, "a line does not say so much");
        assert_eq!(memchr::memmem::find(bytes, b"\r\n"), Some(taken - 2), "a line ends at its first end");
        assert!(taken <= MAX_LINE, "{taken}");
    } else {
        assert_eq!(bytes[14..16], u16::try_from(taken - FIXED).unwrap_or(u16::MAX).to_be_bytes(), "as announced");
    }
}

/// Reads `bytes` as they arrive in pieces of `size`. Returns how many were taken, and the outcome.
fn arrive(bytes: &[u8], size: usize) -> (usize, Result<Progress, Why>) {
    let (mut taken, mut found) = (0, progress(&[]));
    while let Ok(Progress::More(more)) = found
        && taken < bytes.len()
    {
        assert!(more >= 1 && taken + more <= FIXED + MAX_BLOCK, "{more} bytes behind {taken}");
        taken += more.min(size).min(bytes.len() - taken);
        found = progress(&bytes[..taken]);
    }
    (taken, found)
}
