//! Tests of listeners with TLS, with several kinds of clients.

mod acme;
