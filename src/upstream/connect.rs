//! New connections to the origin.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tracing::debug;

use super::config::MAX_HEADERS;
use super::endpoint::{Endpoint, Target};
use super::link::Link;
use super::origin_io::{OriginIo, READ_AHEAD, Wire};
use super::{Transfer, Upstream, UpstreamError};
use crate::base::{Timer, Transport, send_at_once};

impl Upstream {
    /// Connects to an address within `connect_timeout` and the time that is `left`.
    pub(super) async fn connect(
        self: &Arc<Self>,
        endpoint: &Arc<Endpoint>,
        left: Duration,
    ) -> Result<Box<Link>, UpstreamError> {
        let limit = self.config.connect_timeout;
        let in_time = timeout(limit.min(left), self.dial(endpoint)).await;
        let transport = in_time
            .map_err(|_| if limit <= left { UpstreamError::ConnectTimeout } else { UpstreamError::ResponseTimeout })?
            .map_err(|error| UpstreamError::Connect(Arc::new(error)))?;
        let wire = Arc::new(Wire::default());
        let mut http = http1::Builder::new();
        http.max_buf_size(self.config.max_header_size.max(READ_AHEAD)).max_header_size(self.config.max_header_size);
        if self.config.max_headers != MAX_HEADERS {
            http.max_headers(self.config.max_headers);
        }
        let (sender, connection) = http
            .handshake(TokioIo::new(OriginIo::new(transport, Arc::clone(&wire))))
            .await
            .map_err(|error| UpstreamError::Broken(Arc::new(error)))?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                debug!("a connection to the origin ended: {error}");
            }
        });
        let (task, upstream) = (task.abort_handle(), Arc::clone(self));
        Ok(Box::new(Link {
            sender,
            task,
            timer: Timer::default(),
            upstream,
            endpoint: Arc::clone(endpoint),
            seat: None,
            wire,
            transfer: Transfer::default(),
            is_in_use: false,
            may_be_kept: true,
            upload: None,
            heard: None,
            silent: None,
        }))
    }
}

impl Endpoint {
    /// Opens a connection, without TLS and HTTP.
    pub(super) async fn dial(&self) -> io::Result<Transport> {
        let stream = match &self.target {
            Target::Name { host, port } => TcpStream::connect((host.as_str(), *port)).await?,
            Target::Socket(address) => TcpStream::connect(address).await?,
            Target::Unix(path) => return UnixStream::connect(path).await.map(Transport::Unix),
        };
        stream.set_nodelay(true)?;
        if let Ok(address) = stream.peer_addr() {
            send_at_once(&SockRef::from(&stream), address.ip());
        }
        Ok(Transport::Tcp(stream))
    }
}

/// Returns whether a connection failed because this machine lacks a descriptor, a port or memory.
pub(super) fn is_our_own(error: &io::Error) -> bool {
    // EMFILE, ENFILE, EADDRNOTAVAIL, ENOBUFS.
    matches!(error.raw_os_error(), Some(24 | 23 | 99 | 105))
}
