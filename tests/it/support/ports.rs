//! Finds ports for what has to know its own before it listens.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the ports that the system gives to connections and to listeners at port 0: these are many at a time here, and would
/// take one before it is listened at.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// Returns a port of 127.0.0.1 that nobody listens at, each once.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Another process of tests begins elsewhere.
    let begin = u16::try_from(std::process::id() * 101 % u32::from(COUNT)).expect("less than COUNT");
    loop {
        let offset = (begin + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT;
        let port = FIRST + offset;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
