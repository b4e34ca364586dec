//! The parts that every room may use: clocks, units, counters, the log, sockets, a circuit breaker, checked encoding.
//!
//! * Only `clock` reads the machine's clocks; everything else is given a time or a [`Clock`].
//! * Logging never blocks, fails or panics. Lines wait in a bounded queue, and dropped lines are counted.
//! * Nothing here knows a request, an origin or a tier. The counters are defined here; the other rooms count.
//!
//! May import: `rfc9111` (for [`Timestamp`](crate::rfc9111::timestamp::Timestamp) and the labels of the counters).

mod breaker;
mod clock;
pub mod log;
mod metrics;
mod recent;
mod transport;
mod units;
pub mod wire;

pub(crate) use self::breaker::{Admission, Breaker, Probe};
pub(crate) use self::clock::Timer;
pub use self::clock::{Clock, Stopwatch};
pub(crate) use self::metrics::{
    AcmeOutcome, DurableOp, DurableOutcome, Gauge, Handshake, HandshakeFailure, Lost, Metrics, OriginOutcome,
    PeerAnswer, PeerOutcome, Prices, RequestClass, RequestPurpose, RespClass, RespCounters, RespRefusal, Saved, Sni,
    Unparsed, WorkerMetrics,
};
pub(crate) use self::recent::Recent;
pub(crate) use self::transport::{COPIED, Transport, send_at_once};
pub use self::units::parse_duration;
pub(crate) use self::units::{format_size, parse_size, readable_size};
