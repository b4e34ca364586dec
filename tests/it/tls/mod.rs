//! Tests of listeners with TLS, with several kinds of clients.

mod acme;
mod curl;
mod front;
mod mutual;
mod renewal;
