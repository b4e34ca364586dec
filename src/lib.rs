//! Larder: an HTTP caching reverse proxy that answers from memory, then from an S3 bucket, and only
//! then asks the application.

mod admin;
pub mod app;
pub mod base;
pub mod cli;
pub mod config;
pub mod downstream;
pub mod entry;
pub mod fetch;
pub mod proxy;
pub mod resp;
mod respond;
pub mod rfc9111;
pub mod store;
pub mod tls;
pub mod upstream;
