//! Addresses to listen on, and the sockets bound to them.

use std::fmt;
use std::fs::{File, Permissions};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener as StdTcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream};
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use crate::base::send_at_once;

/// One address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `host:port`, or `http://host:port`
    Tcp(String),
    /// `https://host:port`
    Tls(String),
    /// `unix:/path`
    Unix(PathBuf),
}

impl Listen {
    /// Returns host and port; `None`: it is a unix socket.
    pub fn tcp(&self) -> Option<&str> {
        match self {
            Self::Tcp(address) | Self::Tls(address) => Some(address),
            Self::Unix(_) => None,
        }
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Tls(address) => write!(f, "https://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The reason why an address can't be listened on.
#[derive(Debug)]
pub struct ListenError {
    /// The configuration key that names it.
    key: &'static str,
    address: Listen,
    error: io::Error,
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, address, error } = self;
        write!(f, "can't listen on {address} ({key}): {error}")?;
        let advice = advice(address, error);
        if advice.is_empty() { Ok(()) } else { write!(f, "; {advice}") }
    }
}

impl std::error::Error for ListenError {}

/// Returns what to do about the error; empty: nothing to add.
fn advice(address: &Listen, error: &io::Error) -> &'static str {
    match (address, error.kind()) {
        (Listen::Tcp(_) | Listen::Tls(_), ErrorKind::AddrInUse) => {
            "another process listens on this port, perhaps another Larder: stop it, or choose another port"
        }
        (Listen::Tcp(_) | Listen::Tls(_), ErrorKind::PermissionDenied) => {
            "ports below 1024 are for privileged processes: choose one from 1024 on, or grant CAP_NET_BIND_SERVICE (AmbientCapabilities in a unit of systemd)"
        }
        (Listen::Tcp(_) | Listen::Tls(_), ErrorKind::AddrNotAvailable) => {
            "this machine does not have that address: choose one that it has, or 0.0.0.0 for all of them"
        }
        (Listen::Tcp(_) | Listen::Tls(_), _) if error.raw_os_error().is_none() => {
            "write an address such as 127.0.0.1:8080, or a name that this machine can resolve"
        }
        (Listen::Unix(_), ErrorKind::AddrInUse) => {
            "another process listens there, or a file that is no socket is in the way: stop the process, or choose another path"
        }
        (Listen::Unix(_), ErrorKind::NotFound) => "its directory does not exist: make it, or choose another path",
        (Listen::Unix(_), ErrorKind::PermissionDenied) => {
            "this user may not write to its directory: change who owns it, or choose another path"
        }
        (Listen::Unix(_), ErrorKind::InvalidInput) => "such a path has at most 107 bytes: choose a shorter one",
        _ => "",
    }
}

/// The sockets of one worker.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    /// Those whose clients speak in clear text.
    pub tcp: Vec<StdTcpListener>,
    /// Those whose clients begin with TLS.
    pub tls: Vec<StdTcpListener>,
    /// Unix sockets.
    pub unix: Vec<StdUnixListener>,
}

/// Binds every address of `key` once for each of `workers`. Returns the sockets, and the addresses with ports filled
/// in. The files of unix sockets get `mode`.
pub(crate) fn bind(
    key: &'static str,
    listen: &[Listen],
    workers: usize,
    mode: u32,
) -> Result<(Vec<Sockets>, Vec<Listen>), ListenError> {
    let mut sockets: Vec<Sockets> = (0..workers).map(|_| Sockets::default()).collect();
    let mut bound = Vec::new();
    for address in listen {
        let named = |error: io::Error| ListenError { key, address: address.clone(), error };
        match address {
            Listen::Tcp(text) | Listen::Tls(text) => {
                let wanted: Vec<SocketAddr> = text.to_socket_addrs().map_err(named)?.collect();
                let first = *wanted.first().ok_or_else(|| named(io::Error::other("the name has no address")))?;
                let (actual, each) = bind_tcp(first, workers).map_err(named)?;
                let is_tls = matches!(address, Listen::Tls(_));
                for (worker, socket) in sockets.iter_mut().zip(each) {
                    if is_tls { worker.tls.push(socket.into()) } else { worker.tcp.push(socket.into()) }
                }
                bound.push(if is_tls { Listen::Tls(actual.to_string()) } else { Listen::Tcp(actual.to_string()) });
            }
            Listen::Unix(path) => {
                let listener = bind_unix(path, mode).map_err(named)?;
                for worker in &mut sockets {
                    worker.unix.push(listener.try_clone().map_err(named)?);
                }
                bound.push(address.clone());
            }
        }
    }
    Ok((sockets, bound))
}

/// Binds `address` once for each of `workers`. Returns it with its port filled in.
fn bind_tcp(address: SocketAddr, workers: usize) -> io::Result<(SocketAddr, Vec<Socket>)> {
    // SO_REUSEPORT also shares a port with other processes that set it. The first socket is bound, and listens, without:
    // a port in use is an error.
    let first = tcp_socket(address, false)?;
    let actual = first.local_addr()?.as_socket().ok_or_else(|| io::Error::other("no socket address"))?;
    let mut sockets = Vec::with_capacity(workers);
    if workers <= 1 || cfg!(target_os = "linux") {
        // Linux lets a socket share its port from then on, so nobody else gets it in between.
        first.set_reuse_port(workers > 1)?;
        sockets.push(first);
    } else {
        drop(first);
    }
    while sockets.len() < workers {
        sockets.push(tcp_socket(actual, true)?);
    }
    Ok((actual, sockets))
}

fn tcp_socket(address: SocketAddr, share: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if share {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    send_at_once(&SockRef::from(&socket), address.ip());
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

const BACKLOG: i32 = 4096;

/// Binds a unix socket whose file gets `mode`, and is never more open than that.
///
/// Replaces a socket file that nobody listens on: its process is gone.
fn bind_unix(path: &Path, mode: u32) -> io::Result<StdUnixListener> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let refuses = |error: io::Error| error.kind() == ErrorKind::ConnectionRefused;
    if is_socket && UnixStream::connect(path).is_err_and(refuses) {
        std::fs::remove_file(path)?;
    }
    let socket = private_socket(path)?;
    socket.listen(BACKLOG)?;
    std::fs::set_permissions(path, Permissions::from_mode(mode))?;
    socket.set_nonblocking(true)?;
    Ok(OwnedFd::from(socket).into())
}

/// Binds a unix socket whose file only its owner may use from the first moment on. The file gets the mode of the
/// unbound socket, less the umask (Linux, `unix_bind`). The umask itself is not touched, since the whole process
/// shares it.
fn private_socket(path: &Path) -> io::Result<Socket> {
    let file = File::from(OwnedFd::from(Socket::new(Domain::UNIX, Type::STREAM, None)?));
    file.set_permissions(Permissions::from_mode(0o600))?;
    let socket = Socket::from(OwnedFd::from(file));
    socket.bind(&SockAddr::unix(path)?)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_socket_of_a_port_gets_connections_and_nobody_else_gets_the_port() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        for workers in [1, 2, 4] {
            let (address, sockets) = bind_tcp(any, workers).expect("a port");
            assert_eq!(sockets.len(), workers);
            let _clients: Vec<_> =
                (0..64).map(|_| std::net::TcpStream::connect(address).expect("a listener")).collect();
            let taken = |socket: &Socket| std::iter::from_fn(|| socket.accept().ok()).count();
            let each: Vec<usize> = sockets.iter().map(taken).collect();
            assert!(each.iter().all(|taken| *taken > 0) && each.iter().sum::<usize>() == 64, "{each:?}");
            for others in [1, 2] {
                assert_eq!(
                    bind_tcp(address, others).map(drop).map_err(|error| error.kind()),
                    Err(ErrorKind::AddrInUse)
                );
            }
        }
    }

    fn mode_of(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).expect("it is there").permissions().mode() & 0o777
    }

    #[test]
    fn a_unix_socket_is_never_more_open_than_it_is_to_be() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let socket = private_socket(&path).expect("it is bound");
        assert_eq!(mode_of(&path), 0o600, "from the first moment on");
        drop(socket);
        for mode in [0o660, 0o600, 0o666, 0o200] {
            // Replaces the file that the previous socket left.
            let listener = bind_unix(&path, mode).expect("it is bound");
            assert_eq!(mode_of(&path), mode);
            assert_eq!(bind_unix(&path, mode).expect_err("somebody listens").kind(), ErrorKind::AddrInUse);
            drop(listener);
        }
    }

    #[test]
    fn an_address_that_cannot_be_had_is_told_with_its_key_and_what_to_do() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("file"), "").expect("it is written");
        let unix = |name: &str| Listen::Unix(directory.path().join(name));
        for (address, word) in [
            (Listen::Tcp("192.0.2.1:0".into()), "this machine does not have that address"),
            (Listen::Tcp("no.such.name.invalid:1".into()), "a name that this machine can resolve"),
            (unix("none/s"), "its directory does not exist"),
            (unix("file"), "a file that is no socket is in the way"),
            (unix(&"x".repeat(120)), "choose a shorter one"),
        ] {
            let error =
                bind("admin.listen", std::slice::from_ref(&address), 1, 0o600).expect_err("it can't be").to_string();
            assert!(error.starts_with(&format!("can't listen on {address} (admin.listen): ")), "{error}");
            assert!(error.contains(word), "{word} in {error}");
        }
    }

    /// Returns the name of a socket's congestion control, as the system calls it.
    fn congestion(socket: &SockRef<'_>) -> Vec<u8> {
        let named = socket.tcp_congestion().expect("a TCP socket");
        named.into_iter().take_while(|byte| *byte != 0).collect()
    }

    #[test]
    fn what_is_for_this_machine_itself_is_sent_without_pacing() {
        let plain = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        let usual = congestion(&SockRef::from(&plain));
        for (address, expected) in [("127.0.0.1:0", &b"reno"[..]), ("0.0.0.0:0", &usual)] {
            for workers in [1, 2] {
                let (sockets, _) =
                    bind("server.listen", &[Listen::Tcp(address.into())], workers, 0o660).expect("a free port");
                for socket in sockets.iter().flat_map(|worker| &worker.tcp) {
                    assert_eq!(congestion(&SockRef::from(socket)), expected, "{address}, {workers}");
                }
            }
        }
        let listener = tcp_socket("127.0.0.1:0".parse().expect("an address"), false).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let client = std::net::TcpStream::connect(address.as_socket().expect("TCP")).expect("a connection");
        let accepted = std::iter::repeat_with(|| listener.accept()).find_map(Result::ok).expect("one was made").0;
        assert_eq!(congestion(&SockRef::from(&accepted)), b"reno");
        drop(client);
    }
}
