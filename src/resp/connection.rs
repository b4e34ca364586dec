//! One client's connection.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::commands::{Context, Step, run};
use super::parse;
use super::reply::encode;
use super::server::Server;
use super::session::Session;
use crate::base::Transport;

/// Serves a client until it leaves.
pub(super) async fn serve(mut transport: Transport, server: Arc<Server>, mut session: Session) {
    let (mut buffer, mut arguments, mut out) = (BytesMut::new(), Vec::new(), Vec::new());
    loop {
        loop {
            match parse::next(&mut buffer, &mut arguments) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    let _ = transport.write_all(format!("-ERR {}\r\n", error.0).as_bytes()).await;
                    return;
                }
            }
            let mut context = Context { values: &server.values, session: &mut session, server: &server };
            let reply = match run(&mut context, &arguments) {
                Step::Done(reply) => reply,
                Step::Waits(waiting) => waiting.await,
                Step::TakesSession(waiting) => {
                    let (reply, back) = waiting.await;
                    session = back;
                    reply
                }
            };
            encode(&reply, session.protocol, &mut out);
        }
        server.values.settle().await;
        if transport.write_all(&out).await.is_err() || session.is_closing {
            return;
        }
        out.clear();
        if !matches!(transport.read_buf(&mut buffer).await, Ok(1..)) {
            return;
        }
    }
}
