//! Tests of listeners with TLS, with several kinds of clients.

mod curl;
mod front;
mod mutual;
mod renewal;
