//! Supports the tests: a scripted origin, a byte-exact client, the proxy between them, the real binary, and places
//! for the durable tier.

mod admin;
mod binary;
pub(crate) mod ca;
mod client;
pub(crate) mod durable;
mod message;
mod origin;
mod places;
mod ports;
mod proxy;
pub(crate) mod redis;
pub(crate) mod s3;
pub(crate) mod tagged;
mod tls;
mod wait;

pub(crate) use self::admin::{metric, post};
pub(crate) use self::binary::{Process, file_url, larder, out_of, run, signal_to};
pub(crate) use self::client::{Answer, Client};
pub(crate) use self::durable::{FORWARD, in_each_tier};
pub(crate) use self::message::Head;
pub(crate) use self::origin::{Origin, Reply, Seen};
pub(crate) use self::places::{Place, packs};
pub(crate) use self::ports::free_port;
pub(crate) use self::proxy::{Larder, START};
pub(crate) use self::redis::Redis;
pub(crate) use self::s3::{S3, bucket};
pub(crate) use self::tls::{Authority, Pair, SelfSigned, TlsClient};
pub(crate) use self::wait::{Count, Gate, PATIENCE, at_once, eventually};
