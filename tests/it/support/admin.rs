//! Requests to the admin listener.

use std::net::SocketAddr;

use super::client::{Answer, Client};

pub(crate) fn purge(admin: SocketAddr, url: &str) -> Answer {
    post(admin, "/purge", &format!("{{\"url\": \"{url}\"}}"))
}

/// Posts JSON to the admin listener.
pub(crate) fn post(admin: SocketAddr, path: &str, body: &str) -> Answer {
    let mut client = Client::connect(admin);
    client.raw(format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    client.answer()
}

/// The number on the first line of `/metrics` that starts with `line_start`.
pub(crate) fn metric(admin: SocketAddr, line_start: &str) -> u64 {
    let metrics = Client::connect(admin).get("/metrics", "Host: localhost").text();
    let line = metrics
        .lines()
        .find(|line| line.starts_with(line_start))
        .unwrap_or_else(|| panic!("no {line_start} in\n{metrics}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}
