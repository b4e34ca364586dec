//! The PROXY protocol, versions 1 and 2: a load balancer that forwards bytes sends a header before them, which says who
//! connected to it.
//!
//! Connections from `server.proxy_protocol` must begin with a header, and others must not: who may send one can claim any
//! address. Exactly the header's bytes are read, so that what follows (TLS or HTTP) is read by others from its first
//! byte on.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::time::Duration;

use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::sync::CancellationToken;

use super::refusals::Refusals;
use super::server::Config;
use crate::base::Transport;
use crate::upstream::forwarding::Peer;

/// A member of `server.proxy_protocol`: connections from there begin with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// Connections from the addresses of a network.
    Network(IpNet),
    /// `"unix"`: connections to the unix sockets that Larder listens on.
    Unix,
}

impl Sender {
    /// Returns whether a connection from `ip` is one of these; `None`: from a unix socket.
    fn is_at(self, ip: Option<IpAddr>) -> bool {
        match (self, ip) {
            (Self::Network(network), Some(ip)) => network.contains(&ip),
            (Self::Unix, None) => true,
            (Self::Network(_), None) | (Self::Unix, Some(_)) => false,
        }
    }
}

/// The client that a header names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The sender of the header itself, as for a health check.
    Sender,
    /// A client of the sender, which does not say its address.
    Unknown,
    /// The client at this address.
    Client(IpAddr),
}

/// The statements of a header that count here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    source: Source,
    /// True if the client connected to the sender by TLS.
    is_tls: bool,
}

impl Header {
    const fn of(source: Source) -> Self {
        Self { source, is_tls: false }
    }

    /// Returns the peer of a connection that `sender` made and that begins with this header.
    ///
    /// A client whose address the sender does not know gets the sender's address, but is not believed as a trusted proxy
    /// even if the sender is one.
    fn peer(self, mut sender: Peer, trusted_proxies: &[IpNet]) -> Peer {
        if self.is_tls {
            sender.scheme = "https";
        }
        match self.source {
            Source::Sender => {}
            Source::Unknown => sender.trusted = false,
            Source::Client(ip) => return Peer::new(Some(ip), sender.scheme, trusted_proxies),
        }
        sender
    }
}

/// The reason why a connection has no header that can be read, as the end of a sentence about the connection.
type Why = &'static str;

/// The reason why a connection has no header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The sender closed it before the first byte, as programs do that only test whether the port is open.
    Empty,
    /// It begins with something else, or the header breaks off, or contradicts itself.
    Bad {
        /// The fault, to go on a sentence.
        why: Why,
        /// The bytes that were read.
        read: Vec<u8>,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self {
            Self::Empty => "it ended before its first byte",
            Self::Bad { why, .. } => why,
        };
        write!(f, "connections from this address begin with a PROXY header (server.proxy_protocol), but {why}")
    }
}

/// The beginning of a header of version 2.
pub(super) const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The beginning of a header of version 1.
pub(super) const PREFIX: &[u8; 6] = b"PROXY ";

/// The most bytes of a header of version 1.
const MAX_LINE: usize = 107;
/// The bytes of a header of version 2 whose number is fixed.
const FIXED: usize = 16;
/// The most bytes that follow these. Addresses take 216 at most, and what load balancers add some hundreds.
const MAX_BLOCK: usize = 4 << 10;

const NOT_A_HEADER: Why = "this one begins with something else";

/// Returns the peer of a connection that `peer` made: the client that the header names, if there must be one. `None` if
/// the header can't be read, which is counted and logged, or if the connections end before it is there.
pub(super) async fn introduce(
    config: &Config,
    refusals: &Refusals,
    transport: &mut Transport,
    peer: Peer,
    end: &CancellationToken,
) -> Option<Peer> {
    if !config.proxy_protocol.iter().any(|sender| sender.is_at(peer.ip)) {
        return Some(peer);
    }
    // On the heap: the connections without a header need no room for it.
    let read = Box::pin(read_header(transport, config.header_timeout));
    let read = tokio::select! {
        () = end.cancelled() => return None,
        read = read => read,
    };
    match read {
        Ok(header) => Some(header.peer(peer, &config.trusted_proxies)),
        Err(fault) => {
            refusals.note_proxy_header(peer.ip, &fault);
            None
        }
    }
}

/// Reads a header, within `limit`, and nothing behind it.
pub(crate) async fn read_header(stream: &mut (impl AsyncRead + Unpin), limit: Duration) -> Result<Header, Fault> {
    let mut read = Vec::with_capacity(MAX_LINE);
    let why = match tokio::time::timeout(limit, fill(stream, &mut read)).await {
        Ok(Ok(header)) => return Ok(header),
        Ok(Err(ENDED)) if read.is_empty() => return Err(Fault::Empty),
        Ok(Err(why)) => why,
        Err(_) => "none was complete within server.header_timeout",
    };
    Err(Fault::Bad { why, read })
}

const ENDED: Why = "this one ended before the header was complete";

/// Reads into `read` until a header is complete.
async fn fill(stream: &mut (impl AsyncRead + Unpin), read: &mut Vec<u8>) -> Result<Header, Why> {
    loop {
        let more = match progress(read)? {
            Progress::Complete(header) => return Ok(header),
            Progress::More(more) => more,
        };
        match (&mut *stream).take(more as u64).read_buf(read).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Err(ENDED),
        }
    }
}

/// The state of a header of which a part was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// At least so many bytes of it are still to come.
    More(usize),
    /// It is complete with the last byte.
    Complete(Header),
}

/// Returns what `bytes`, the beginning of a connection, lack of a header.
fn progress(bytes: &[u8]) -> Result<Progress, Why> {
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

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Returns a header of version 2.
    fn v2(version: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let len = u16::try_from(block.len()).expect("a short block");
        [&SIGNATURE[..], &[version, family], &len.to_be_bytes(), block].concat()
    }

    /// Returns a value with its type and length.
    fn value(kind: u8, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(value.len()).expect("a short value");
        [&[kind], &len.to_be_bytes()[..], value].concat()
    }

    const V4: [u8; 12] = [203, 0, 113, 9, 192, 0, 2, 1, 0xdc, 0x04, 0x01, 0xbb];

    /// Returns a header of version 2 for TCP over IPv4, with these values.
    fn with(values: &[&[u8]]) -> Vec<u8> {
        v2(0x21, 0x11, &[&V4[..], &values.concat()].concat())
    }

    /// Returns the header with a checksum, made bit by bit.
    fn with_checksum(before: &[u8], after: &[u8]) -> Vec<u8> {
        let mut header = with(&[before, &value(3, &[0; 4]), after]);
        let mut sum = u32::MAX;
        for byte in &header {
            sum ^= u32::from(*byte);
            for _ in 0..8 {
                sum = (sum >> 1) ^ (0x82f6_3b78 * (sum & 1));
            }
        }
        let at = FIXED + V4.len() + before.len() + 3;
        header[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
        header
    }

    fn client(ip: &str) -> Header {
        Header::of(Source::Client(ip.parse().expect("an address")))
    }

    /// Returns the outcome and what is left of `sent`, which arrives in pieces of `size` and then ends.
    fn read(sent: &[u8], size: usize) -> (Result<Header, Fault>, Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            let (mut near, mut far) = tokio::io::duplex(size);
            let sent = sent.to_vec();
            let sending = tokio::spawn(async move {
                let _ = far.write_all(&sent).await;
            });
            let outcome = read_header(&mut near, Duration::from_secs(30)).await;
            let mut rest = Vec::new();
            near.read_to_end(&mut rest).await.expect("it is in memory");
            sending.await.expect("it ends");
            (outcome, rest)
        })
    }

    #[test]
    fn headers_say_who_the_client_is() {
        let v6 = |ip: &str| {
            let ip: Ipv6Addr = ip.parse().expect("an address");
            [&ip.octets()[..], &[1; 16], &[0; 4]].concat()
        };
        let tls = |flags: u8| value(0x20, &[&[flags, 0, 0, 0, 0], &value(0x21, b"TLSv1.3")[..]].concat());
        let https = Header { is_tls: true, ..client("203.0.113.9") };
        let noop = value(4, &[0; 40]);
        let longest = "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
        assert_eq!(longest.len(), MAX_LINE);
        let longest_v6 = longest.replace("UNKNOWN", "TCP6");
        for (header, expected) in [
            (b"PROXY TCP4 203.0.113.9 192.0.2.1 56324 443\r\n".to_vec(), client("203.0.113.9")),
            (b"PROXY TCP4 1.1.1.1 1.1.1.1 0 0\r\n".to_vec(), client("1.1.1.1")),
            (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n".to_vec(), client("255.255.255.255")),
            (b"PROXY TCP6 2001:DB8::9 ::1 1 2\r\n".to_vec(), client("2001:db8::9")),
            (b"PROXY TCP6 :: :: 0 0\r\n".to_vec(), client("::")),
            (longest_v6.into(), client("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")),
            (b"PROXY UNKNOWN\r\n".to_vec(), Header::of(Source::Unknown)),
            (b"PROXY UNKNOWN \xff whatever\r\n".to_vec(), Header::of(Source::Unknown)),
            (longest.into(), Header::of(Source::Unknown)),
            (v2(0x21, 0x11, &V4), client("203.0.113.9")),
            (v2(0x21, 0x12, &V4), client("203.0.113.9")),
            (v2(0x21, 0x21, &v6("2001:db8::9")), client("2001:db8::9")),
            (v2(0x21, 0x22, &v6("::ffff:203.0.113.9")), client("::ffff:203.0.113.9")),
            (v2(0x21, 0x31, &[7; 216]), Header::of(Source::Unknown)),
            (v2(0x21, 0x31, &[&[7; 216], &tls(1)[..]].concat()), Header { source: Source::Unknown, is_tls: true }),
            (v2(0x21, 0x00, b""), Header::of(Source::Unknown)),
            (v2(0x21, 0x10, b"anything"), Header::of(Source::Unknown)),
            // LOCAL: whatever follows is skipped.
            (v2(0x20, 0x00, b""), Header::of(Source::Sender)),
            (v2(0x20, 0x11, &V4), Header::of(Source::Sender)),
            (v2(0x20, 0x11, b"short"), Header::of(Source::Sender)),
            (v2(0x20, 0xff, &[0xff; 4096]), Header::of(Source::Sender)),
            // Other values are of no use here.
            (
                with(&[&value(1, b"h2"), &value(2, b"shop.example"), &value(5, b"id"), &value(0xea, b"x")]),
                client("203.0.113.9"),
            ),
            (with(&[&noop, &noop, &value(0xee, b"")]), client("203.0.113.9")),
            (with(&[&tls(1)]), https),
            (with(&[&noop, &tls(7)]), https),
            (with(&[&value(0x20, &[1, 0, 0, 0, 1])]), https),
            // A client certificate is not TLS by itself.
            (with(&[&tls(0)]), client("203.0.113.9")),
            (with(&[&tls(6)]), client("203.0.113.9")),
            (with_checksum(b"", b""), client("203.0.113.9")),
            (with_checksum(&tls(1), &noop), https),
        ] {
            for size in [1, 3, 1 << 20] {
                let (found, rest) = read(&[&header[..], b"GET / HTTP/1.1\r\n"].concat(), size);
                assert_eq!(found.as_ref(), Ok(&expected), "{:?}", header.escape_ascii().to_string());
                assert_eq!(rest, b"GET / HTTP/1.1\r\n", "in pieces of {size}");
            }
            hold_proxy_header(&header);
            for cut in 1..header.len() {
                let (found, _) = read(&header[..cut], 1 << 20);
                assert_eq!(found, Err(Fault::Bad { why: ENDED, read: header[..cut].to_vec() }));
            }
        }
        assert_eq!(read(b"", 8).0, Err(Fault::Empty));
    }

    #[test]
    fn whatever_is_no_header_is_refused_with_what_is_wrong() {
        let fields = "does not consist of";
        let port = "has a port that is not";
        let bare = "CR or LF alone";
        let else_ = "begins with something else";
        let overrun = "does not end where it should";
        let mut changed = with_checksum(b"", b"");
        changed[FIXED] ^= 1;
        let mut lies = v2(0x21, 0x11, &V4);
        lies[15] = 11;
        let mut too_long = v2(0x21, 0x11, &[0; MAX_BLOCK]);
        too_long[14..16].copy_from_slice(&4097_u16.to_be_bytes());
        let mut huge = too_long.clone();
        huge[14..16].copy_from_slice(&[0xff; 2]);
        let line = |text: &str| text.as_bytes().to_vec();
        for (sent, expected) in [
            (line("GET / HTTP/1.1\r\nHost: h\r\n\r\n"), else_),
            (line("PROXYTCP4 1.1.1.1 1.1.1.1 1 1\r\n"), else_),
            (line("proxy TCP4 1.1.1.1 1.1.1.1 1 1\r\n"), else_),
            (line(" PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\n"), else_),
            (line("\r\n\r\n\0\r\nQUIT\r\n\r\n"), else_),
            (line("\r\n\r\nGET / HTTP/1.1\r\n"), else_),
            (vec![0x16, 3, 1, 2, 0], else_),
            (line("PROXY  TCP4 1.1.1.1 1.1.1.1 1 1\r\n"), fields),
            (line("PROXY TCP4  1.1.1.1 1 1\r\n"), "not IPv4"),
            (line("PROXY TCP4 1.1.1.1 1.1.1.1 1 1 \r\n"), fields),
            (line("PROXY TCP4 1.1.1.1 1.1.1.1 1 1 1\r\n"), fields),
            (line("PROXY TCP4 1.1.1.1 1.1.1.1 1\r\n          "), bare),
            (line("PROXY TCP4\r\n"), fields),
            (line("PROXY UNKNOWNS\r\n"), fields),
            (line("PROXY tcp4 1.1.1.1 1.1.1.1 1 1\r\n"), fields),
            (line("PROXY UDP4 1.1.1.1 1.1.1.1 1 1\r\n"), fields),
            (line("PROXY TCP4 1.1.1.1\t1.1.1.1 1 1 1\r\n"), "not IPv4"),
            (line("PROXY TCP4 ::1 1.1.1.1 1 1\r\n"), "not IPv4"),
            (line("PROXY TCP4 ::ffff:1.1.1.1 1.1.1.1 1 1\r\n"), "not IPv4"),
            (line("PROXY TCP4 1.1.1.1 ::1 1 1\r\n"), "not IPv4"),
            (line("PROXY TCP4 01.1.1.1 1.1.1.1 1 1\r\n"), "not IPv4"),
            (line("PROXY TCP4 1.1.1 1.1.1.1 1 1\r\n"), "not IPv4"),
            (line("PROXY TCP4 1.1.1.256 1.1.1.1 1 1\r\n"), "not IPv4"),
            (line("PROXY TCP4 h.example 1.1.1.1 1 1\r\n"), "not IPv4"),
            (line("PROXY TCP6 1.1.1.1 ::1 1 1\r\n"), "not IPv6"),
            (line("PROXY TCP6 fe80::1%eth0 ::1 1 1\r\n"), "not IPv6"),
            (line("PROXY TCP6 [::1] ::1 1 1\r\n"), "not IPv6"),
            (line("PROXY TCP6 1:2:3 ::1 1 1\r\n"), "not IPv6"),
            (line("PROXY TCP4 1.1.1.1 1.1.1.1 65536 1\r\n"), port),
            (line("PROXY TCP4 1.1.1.1 1.1.1.1 1 99999999999\r\n"), port),
            (line("PROXY TCP4 1.1.1.1 1.1.1.1 01 1\r\n"), port),
            (line("PROXY TCP4 1.1.1.1 1.1.1.1 00 1\r\n"), port),
            (line("PROXY TCP4 1.1.1.1 1.1.1.1 +1 1\r\n"), port),
            (line("PROXY TCP4 1.1.1.1 1.1.1.1 -1 1\r\n"), port),
            (line("PROXY TCP4 1.1.1.1 1.1.1.1 0x50 1\r\n"), port),
            (line("PROXY TCP4 1.1.1.1 1.1.1.1 http 1\r\n"), port),
            (line("PROXY TCP4 1.1.1.1 1.1.1.1  1\r\n"), port),
            (line("PROXY TCP4 1.1.1.1 1.1.1.1 1 1\n"), bare),
            (line("PROXY TCP4 1.1.1.1 1.1.1.1 1 1\rGET"), bare),
            (line("PROXY TCP4 1.1.1.1\r 1.1.1.1 1 1\r\n"), bare),
            (line("PROXY UNKNOWN x\ny\r\n"), bare),
            (line(&format!("PROXY UNKNOWN {}\r\n", "f".repeat(93))), "more than 107 bytes"),
            (line(&format!("PROXY UNKNOWN {}\r\n", "f".repeat(92))), "more than 107 bytes"),
            (line(&format!("PROXY TCP4 {}", "1".repeat(4096))), "more than 107 bytes"),
            (v2(0x11, 0x11, &V4), "not LOCAL or PROXY"),
            (v2(0x31, 0x11, &V4), "not LOCAL or PROXY"),
            (v2(0x22, 0x11, &V4), "not LOCAL or PROXY"),
            (v2(0x2f, 0x11, &V4), "not LOCAL or PROXY"),
            (v2(0x21, 0x41, &V4), "does not have"),
            (v2(0x21, 0x13, &V4), "does not have"),
            (v2(0x21, 0xff, &V4), "does not have"),
            (lies, "fewer bytes than its addresses"),
            (v2(0x21, 0x21, &[0; 35]), "fewer bytes than its addresses"),
            (v2(0x21, 0x31, &[0; 215]), "fewer bytes than its addresses"),
            (v2(0x21, 0x11, b""), "fewer bytes than its addresses"),
            (too_long, "more than 4096"),
            (huge, "more than 4096"),
            (with(&[&[4, 0, 1]]), overrun),
            (with(&[&[4, 0xff, 0xff, 0]]), overrun),
            (with(&[&[4, 0, 0, 4]]), overrun),
            (with(&[&[0]]), overrun),
            (with(&[&value(0x20, &[])]), overrun),
            (with(&[&value(0x20, &[1, 0, 0, 0])]), overrun),
            (with(&[&value(0x20, &[1, 0, 0, 0, 0, 0x21, 0, 8, b'T'])]), overrun),
            (with(&[&value(0x20, &[0, 0, 0, 0, 0]), &value(0x20, &[1, 0, 0, 0, 0])]), "the same twice"),
            (with(&[&value(3, &[0; 4]), &value(3, &[0; 4])]), "the same twice"),
            (with(&[&value(3, &[0; 3])]), "a checksum of another length"),
            (with(&[&value(3, &[0; 4])]), "changed on the way"),
            (changed, "changed on the way"),
        ] {
            for size in [1, 7, 1 << 20] {
                let (found, _) = read(&sent, size);
                let Err(fault @ Fault::Bad { .. }) = found else {
                    panic!("{found:?} for {:?}", sent.escape_ascii().to_string());
                };
                let said = fault.to_string();
                // A byte at a time the line may be judged before what is wrong behind it is read.
                let is_line = sent.starts_with(PREFIX) && expected == bare;
                assert!(said.contains(expected) || is_line, "{said} for {:?}", sent.escape_ascii().to_string());
            }
            hold_proxy_header(&sent);
        }
    }

    #[test]
    fn a_client_whose_address_is_not_told_is_not_believed_as_the_sender_is() {
        let proxies: Vec<IpNet> = vec!["10.0.0.0/8".parse().expect("a network")];
        let sender = || Peer::new(Some([10, 0, 0, 1].into()), "http", &proxies);
        let peer = |source, is_tls| Header { source, is_tls }.peer(sender(), &proxies);
        assert_eq!(peer(Source::Sender, false), sender());
        let unknown = peer(Source::Unknown, false);
        assert_eq!((unknown.ip, unknown.trusted, unknown.scheme), (sender().ip, false, "http"));
        assert_eq!(peer(Source::Unknown, true).scheme, "https");
        let known = peer(client("203.0.113.9").source, true);
        assert_eq!(known, Peer::new(Some([203, 0, 113, 9].into()), "https", &proxies));
        // The client may be a trusted proxy, and an address in another form is the same.
        assert!(peer(client("::ffff:10.2.3.4").source, false).trusted);
        let on_unix = Header::of(Source::Unknown).peer(Peer::new(None, "http", &proxies), &proxies);
        assert_eq!((on_unix.ip, on_unix.trusted), (None, false));
    }

    #[test]
    fn a_sender_that_waits_is_given_up_at_the_limit_and_not_before() {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
        runtime.block_on(async {
            for sent in [&b""[..], b"PROXY TCP4 1.1.1.1", &SIGNATURE[..]] {
                let (mut near, mut far) = tokio::io::duplex(64);
                far.write_all(sent).await.expect("it is in memory");
                let mut reading = pin!(read_header(&mut near, Duration::from_secs(15)));
                tokio::time::advance(Duration::from_millis(1)).await;
                assert!(reading.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                tokio::time::advance(Duration::from_millis(14_990)).await;
                assert!(reading.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                tokio::time::advance(Duration::from_millis(11)).await;
                let Poll::Ready(found) = reading.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
                    panic!("it still waits")
                };
                let why = "none was complete within server.header_timeout";
                assert_eq!(found, Err(Fault::Bad { why, read: sent.to_vec() }));
            }
        });
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic_or_read_on(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            beginning in 0..6_usize,
            command in prop::sample::select(vec![0x20_u8, 0x21, 0x21, 0x21, 0x22]),
            family in prop::sample::select(vec![0x11_u8, 0x12, 0x21, 0x22, 0x31, 0x00, 0x13, 0x41]),
            len in 0..320_u16,
        ) {
            let fixed = [&SIGNATURE[..], &[command, family], &len.to_be_bytes()].concat();
            let beginning: &[u8] = match beginning {
                0 => b"",
                1 => b"PROXY ",
                2 => b"PROXY TCP4 1.1.1.1 ",
                3 => SIGNATURE,
                _ => &fixed,
            };
            hold_proxy_header(&[beginning, &bytes].concat());
        }

        #[test]
        fn what_follows_a_header_is_left_in_place(
            ip in any::<[u8; 4]>(),
            ports in any::<[u16; 2]>(),
            rest in prop::collection::vec(any::<u8>(), 0..200),
            values in prop::collection::vec((0xe0..=0xef_u8, prop::collection::vec(any::<u8>(), 0..40)), 0..4),
            size in 1..400_usize,
        ) {
            let ip = Ipv4Addr::from(ip);
            let text = format!("PROXY TCP4 {ip} 192.0.2.1 {} {}\r\n", ports[0], ports[1]);
            let values: Vec<u8> = values.iter().flat_map(|(kind, of)| value(*kind, of)).collect();
            let binary = v2(0x21, 0x11, &[&ip.octets()[..], &V4[4..], &values].concat());
            for header in [text.as_bytes(), &binary] {
                let (found, left) = read(&[header, &rest].concat(), size);
                prop_assert_eq!(found, Ok(Header::of(Source::Client(ip.into()))));
                prop_assert_eq!(left, &rest[..]);
            }
        }
    }
}
