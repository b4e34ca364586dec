//! The command line: commands, signals, and upkeep of the durable tier.

mod commands;
mod signals;
mod upkeep;
