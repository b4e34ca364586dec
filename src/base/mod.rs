//! What everything stands on: clocks, units, counters, the log, sockets, and the breaker.

pub mod breaker;
pub mod clock;
pub mod log;
pub mod metrics;
pub mod recent;
pub mod transport;
pub mod units;
