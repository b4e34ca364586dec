//! Tests the reading of headers, however they arrive.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

use super::parse::{FIXED, MAX_BLOCK};
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
    let longest =
        "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
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
