//! The origin: connections to it, requests to it, and the bodies that pass in both directions.
//!
//! * Every request has a deadline for its head. A message past its buffer goes to a temporary file.
//! * An answer that can't be used counts against its URL. Only failures that mean that the origin is down open the
//!   breaker.
//! * Fields that tell the origin about the client are set here (`forwarding`), or do not reach the origin.
//!
//! May import: `rfc9111`, `base`, `entry` (the memory that bodies share). Knows nothing of keys or tiers.

mod ahead;
mod ahead_queue;
mod apart;
mod attempts;
mod balance;
mod believed;
mod body;
mod buffered;
mod buffers;
mod choice;
mod client_content;
mod config;
mod connect;
mod endpoint;
mod error;
pub mod forwarding;
mod framing;
mod informational;
mod intake;
mod link;
mod message;
mod origin;
mod origin_io;
mod peers;
mod pool;
mod queue;
mod request_body;
mod spool;
mod sticky;
mod tls;
mod transfer;
mod upload;
mod wait;
mod watch;

pub use self::ahead::Passing;
pub(crate) use self::apart::TunnelSeat;
pub use self::body::{UpstreamBody, UpstreamBodyError};
pub(crate) use self::buffered::Content;
pub(crate) use self::buffers::Buffers;
pub(crate) use self::client_content::{ClientBody, Fault, UploadLimits};
pub(crate) use self::config::Address;
pub use self::config::{Balance, Config, HashBy, Listed, UpstreamName};
pub use self::error::UpstreamError;
pub use self::framing::EndsWithConnection;
pub(crate) use self::informational::{Informational, InformationalSender};
pub(crate) use self::message::{Errand, OriginRequest};
pub(crate) use self::origin::Upstream;
pub use self::peers::PeersConfig;
pub(crate) use self::peers::{
    Asker, PeerReply, PeerRequest, PeerState, Peers, Received, Verdict, answers_question, put_word, word_of,
    write_facts, write_sticky, write_verdict,
};
pub(crate) use self::request_body::RequestBody;
pub(crate) use self::spool::Spools;
pub(crate) use self::sticky::{NewStickyCookie, StickyCookies};
pub use self::tls::{OriginTlsError, TlsConfig};
pub(crate) use self::transfer::{Overrides, Transfer};
