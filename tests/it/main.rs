//! Larder over real sockets: a scripted origin, a byte-exact client, and the proxy between them (`support`).
//!
//! The folders are named as the rooms of `src`: a test is in the room that its subject is in.
//!
//! Nothing here sleeps to let something happen: tests wait on gates, on counters that they are
//! told of, or on the end of what they started.

#![allow(clippy::unwrap_used, clippy::format_collect, reason = "a test may fail where it stands")]

mod admin;
mod app;
mod base;
mod cli;
mod config;
mod downstream;
mod entry;
mod fetch;
mod layers;
mod proxy;
mod readme;
mod resp;
mod respond;
mod rfc9111;
mod store;
mod support;
mod tls;
mod upstream;
