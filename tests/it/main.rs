//! Larder over real sockets: a scripted origin, a byte-exact client, and the proxy between them.
//!
//! Nothing here sleeps to let something happen: tests wait on gates, on counters that they are
//! told of, or on the end of what they started.

#![allow(clippy::unwrap_used, clippy::format_collect, reason = "a test may fail where it stands")]

mod binary;
mod caching;
mod cancellation;
mod capacity;
mod claims;
mod configuration;
mod conformance;
mod corpus;
mod faults;
mod flask;
mod forwarding;
mod hostile;
mod large;
mod layers;
mod levers;
mod operator;
mod origin_answers;
mod places;
mod properties;
mod purging;
mod readme;
mod reasons;
mod regressions;
mod resilience;
mod rights;
mod s3;
mod sharing;
mod slow_clients;
mod support;
mod tiers;
mod upkeep;
mod uploads;
mod writes;
