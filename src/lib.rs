//! Larder: an HTTP caching reverse proxy that answers from memory, then from an S3 bucket, and only
//! then asks the application.

pub mod access;
pub mod admin;
pub mod admin_client;
pub mod app;
pub mod body;
pub mod breaker;
pub mod client_io;
pub mod clock;
pub mod config;
pub mod fetch;
pub mod fill;
pub mod flight;
pub mod forwarding;
pub mod interim;
pub mod listen;
pub mod log;
pub mod passes;
pub mod proxy;
pub mod ready;
pub mod refusals;
pub mod request_body;
pub mod respond;
pub mod rfc9111;
pub mod rules;
pub mod searches;
pub mod server;
pub mod signals;
pub mod store;
pub mod stored;
pub mod target;
pub mod telemetry;
pub mod transport;
pub mod units;
pub mod upkeep;
pub mod upstream;
