//! The origin: what reaches it, what it answers, and what is done when it fails.

mod addresses;
mod broken_uploads;
mod claims;
mod connections;
mod forwarding;
mod interim;
mod named;
mod origin_answers;
mod peers;
mod resilience;
mod sticky;
mod tls;
mod uploads;
