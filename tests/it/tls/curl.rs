//! Runs curl against a listener with TLS.

use std::net::SocketAddr;
use std::process::{Command, Output};

use crate::support::{Authority, run};

/// Asks for `/a`, and returns what curl says: the content, and the version of HTTP.
pub(super) fn curl(authority: &Authority, address: SocketAddr, arguments: &[&str]) -> Output {
    let resolve = format!("site.example:{}:127.0.0.1", address.port());
    let url = format!("https://site.example:{}/a", address.port());
    let mut command = Command::new("curl");
    command.args(["-sS", "-m", "20", "--resolve", &resolve, "-w", " %{http_version}", "--cacert"]);
    run(command.arg(authority.file()).args(arguments).arg(url))
}
